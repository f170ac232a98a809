"""What was verified by samples, of datasets in object stores, and what running captures say."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing yet."""
    for name in ("sampled_regions", "sampled_bytes"):
        op.add_column("datasets", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("datasets", sa.Column("heartbeats", sa.Text(), nullable=True))


def downgrade() -> None:
    """Forget it."""
    for name in ("sampled_regions", "sampled_bytes", "heartbeats"):
        op.drop_column("datasets", name)
