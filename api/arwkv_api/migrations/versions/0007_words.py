"""What a search looks in."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The next scan reads every dataset.json again."""
    op.add_column("datasets", sa.Column("words", sa.Text(), nullable=False, server_default=""))
    op.execute("UPDATE datasets SET identity_mtime_ns = 0")


def downgrade() -> None:
    """Forget it."""
    op.drop_column("datasets", "words")
