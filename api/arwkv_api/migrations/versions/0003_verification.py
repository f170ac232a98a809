"""When each shard's files were last checksummed, and how many of a dataset's were."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """No shard counts as verified yet."""
    op.add_column("datasets", sa.Column("verified_shards", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("shards", sa.Column("verified_at_s", sa.Double(), nullable=False, server_default="0"))
    op.create_index("ix_shards_verified_at_s", "shards", ["verified_at_s"])


def downgrade() -> None:
    """Forget it."""
    op.drop_index("ix_shards_verified_at_s", "shards")
    op.drop_column("shards", "verified_at_s")
    op.drop_column("datasets", "verified_shards")
