"""How a dataset grew, kept with it; one index for each order of a shard list, with the filtered columns at its end."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

KEYS = ("part", "samples", "tokens", "size_bytes", "entropy_mean", "tail_mass_mean", "committed_at_s")
BEFORE = ("state", "samples", "tokens", "size_bytes", "entropy_mean", "tail_mass_mean", "committed_at_s")


def upgrade() -> None:
    """The index is a cache: shards are forgotten, and the next look at the roots reads them again, growth and all."""
    op.add_column("datasets", sa.Column("growth", sa.Text(), nullable=True))
    for key in BEFORE:
        op.drop_index(f"ix_shards_dataset_id_{key}_part", "shards")
    op.execute("DELETE FROM manifests")
    op.execute("DELETE FROM shards")
    op.execute(
        "UPDATE datasets SET revision = revision + 1, stats = NULL, "
        "shards = 0, samples = 0, tokens = 0, size_bytes = 0, faulty_shards = 0"
    )
    op.drop_index("uq_shards_dataset_id_part", "shards")
    op.create_index("uq_shards_part_dataset_id", "shards", ["part", "dataset_id"], unique=True)
    for key in KEYS:
        columns = dict.fromkeys(("dataset_id", key, "part", "state", "tokens"))
        op.create_index(f"ix_shards_by_{key}", "shards", list(columns))


def downgrade() -> None:
    """Back to the indexes of before."""
    for key in KEYS:
        op.drop_index(f"ix_shards_by_{key}", "shards")
    op.drop_index("uq_shards_part_dataset_id", "shards")
    op.create_index("uq_shards_dataset_id_part", "shards", ["dataset_id", "part"], unique=True)
    for key in BEFORE:
        op.create_index(f"ix_shards_dataset_id_{key}_part", "shards", ["dataset_id", key, "part"])
    op.drop_column("datasets", "growth")
