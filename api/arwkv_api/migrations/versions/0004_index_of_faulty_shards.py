"""A separate index of faulty shards: there are few of them, and they are listed by state."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

FAULTY = sa.text("state <> 'committed'")


def upgrade() -> None:
    """Index what is not committed."""
    columns = ["dataset_id", "state", "part"]
    op.create_index("ix_shards_faulty", "shards", columns, sqlite_where=FAULTY, postgresql_where=FAULTY)


def downgrade() -> None:
    """Drop it."""
    op.drop_index("ix_shards_faulty", "shards")
