"""Environment in which Alembic runs the migrations: on the connection that `adctl.tracking.migrate` gives."""

from __future__ import annotations

from alembic import context

from adctl.tracking.schema import METADATA, VERSIONS

context.configure(
    connection=context.config.attributes["connection"], target_metadata=METADATA, version_table=VERSIONS.name
)
with context.begin_transaction():
    context.run_migrations()
