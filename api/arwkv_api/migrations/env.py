"""How alembic reaches the index: through the connection that `arwkv_api.index.database` holds open."""

from alembic import context

from arwkv_api.index.orm import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
