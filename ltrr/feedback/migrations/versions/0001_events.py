"""Impressions and actions. Never changed, whatever becomes of schema.py: it says what databases had then."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    _table(
        "impressions",
        sa.Column("customer", sa.Text),
        sa.Column("session", sa.Text),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("query", "normalised", "policy")),
        sa.Column("propensity", sa.Double, nullable=False),
        sa.Column("shown", sa.JSON, nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
        sa.CheckConstraint("propensity > 0 AND propensity <= 1", name="ck_impressions_propensity"),
    )
    _table(
        "actions",
        *(sa.Column(name, sa.Text, nullable=False) for name in ("impression", "entity", "kind")),
        sa.Column("seconds", sa.Double),
        sa.CheckConstraint("kind IN ('click', 'like', 'favourite', 'play', 'dismiss')", name="ck_actions_kind"),
        sa.CheckConstraint("seconds >= 0", name="ck_actions_seconds"),
    )
    op.create_index("ix_impressions_customer", "impressions", ["customer"])
    op.create_index("ix_actions_impression", "actions", ["impression"])


def _table(name: str, *items: sa.schema.SchemaItem) -> None:
    op.create_table(
        name,
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("id", name=f"uq_{name}_id"),
        *items,
        sqlite_autoincrement=True,
    )
    op.create_index(f"ix_{name}_time", name, ["time"])
