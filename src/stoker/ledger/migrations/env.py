"""Runs the migrations on the connection that `stores` hands over, all of them in one transaction."""

from __future__ import annotations

from alembic import context

from stoker.ledger.schema import metadata

# Offline mode (printing SQL) is left out: a ledger is always migrated by the Stoker that opens it.
context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
