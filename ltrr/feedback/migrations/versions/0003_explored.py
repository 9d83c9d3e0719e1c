"""The candidate that a policy explored at a reserved place of the page; nulls in older rows, which explored none."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("impressions", sa.Column("explored", sa.Text))
    op.add_column("impressions", sa.Column("explored_place", sa.Integer))
    op.add_column("impressions", sa.Column("explored_propensity", sa.Double))
