"""Who was erased, so that whatever learned from them learns of it; and the store's own id, which snapshots name."""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "erasures",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        sa.Column("customer", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    store = op.create_table("store", sa.Column("id", sa.Text, primary_key=True))
    op.bulk_insert(store, [{"id": str(uuid.uuid4())}])
