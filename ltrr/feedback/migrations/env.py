"""Alembic's entry: runs the migrations in the transaction that ltrr.feedback.schema has begun."""

from alembic import context

from ltrr.feedback.schema import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
with context.begin_transaction():
    context.run_migrations()
