"""People's notes and tags."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

COLUMNS = {"notes_version": (sa.String(32), "none"), "tags": (sa.Text(), ""), "note_words": (sa.Text(), "")}


def upgrade() -> None:
    """The next scan fills them."""
    for name, (kind, at_first) in COLUMNS.items():
        op.add_column("datasets", sa.Column(name, kind, nullable=False, server_default=at_first))


def downgrade() -> None:
    """Forget them."""
    for name in COLUMNS:
        op.drop_column("datasets", name)
