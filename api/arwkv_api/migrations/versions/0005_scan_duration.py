"""The duration of a root's last scan, which sets the limit for slow roots."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Not known yet."""
    op.add_column("leases", sa.Column("scan_took_s", sa.Double(), nullable=False, server_default="0"))


def downgrade() -> None:
    """Forget it."""
    op.drop_column("leases", "scan_took_s")
