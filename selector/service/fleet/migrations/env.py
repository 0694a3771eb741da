"""Alembic reads this file. `database.migrate` opens the connection, takes the lock and begins the transaction."""

from alembic import context

from selector.service.fleet.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
