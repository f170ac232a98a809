"""The first tables: datasets, shards, manifests and leases."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make every table."""

    op.create_table(
        "datasets",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("root", sa.Text(), nullable=False),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("identity", sa.LargeBinary(), nullable=False),
        sa.Column("dataset_hash", sa.String(length=128), nullable=False),
        sa.Column("identity_mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("teacher", sa.Text(), nullable=False),
        sa.Column("parts", sa.BigInteger(), nullable=False),
        sa.Column("shards", sa.BigInteger(), nullable=False),
        sa.Column("samples", sa.BigInteger(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("faulty_shards", sa.BigInteger(), nullable=False),
        sa.Column("stats", sa.Text(), nullable=True),
        sa.Column("created_at_s", sa.Double(), nullable=False),
        sa.Column("updated_at_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_datasets")),
        sa.UniqueConstraint("name", name=op.f("uq_datasets_name")),
    )
    op.create_index(op.f("ix_datasets_created_at_s"), "datasets", ["created_at_s"], unique=False)
    op.create_index(op.f("ix_datasets_samples"), "datasets", ["samples"], unique=False)
    op.create_index(op.f("ix_datasets_size_bytes"), "datasets", ["size_bytes"], unique=False)
    op.create_index(op.f("ix_datasets_state"), "datasets", ["state"], unique=False)
    op.create_index(op.f("ix_datasets_teacher"), "datasets", ["teacher"], unique=False)
    op.create_index(op.f("ix_datasets_tokens"), "datasets", ["tokens"], unique=False)
    op.create_index(op.f("ix_datasets_updated_at_s"), "datasets", ["updated_at_s"], unique=False)
    op.create_table(
        "leases",
        sa.Column("root", sa.Text(), nullable=False),
        sa.Column("holder", sa.String(length=64), nullable=False),
        sa.Column("expires_at_s", sa.Double(), nullable=False),
        sa.Column("scanned_at_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("root", name=op.f("pk_leases")),
    )
    op.create_table(
        "shards",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("dataset_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("part", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("samples", sa.BigInteger(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("first_sample_id", sa.BigInteger(), nullable=False),
        sa.Column("last_sample_id", sa.BigInteger(), nullable=False),
        sa.Column("entropy_mean", sa.Double(), nullable=False),
        sa.Column("tail_mass_mean", sa.Double(), nullable=False),
        sa.Column("committed_at_s", sa.Double(), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["dataset_id"], ["datasets.id"], name=op.f("fk_shards_dataset_id_datasets"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_shards")),
    )
    op.create_index(
        "ix_shards_dataset_id_committed_at_s_part", "shards", ["dataset_id", "committed_at_s", "part"], unique=False
    )
    op.create_index(
        "ix_shards_dataset_id_entropy_mean_part", "shards", ["dataset_id", "entropy_mean", "part"], unique=False
    )
    op.create_index("ix_shards_dataset_id_last_sample_id", "shards", ["dataset_id", "last_sample_id"], unique=False)
    op.create_index("ix_shards_dataset_id_samples_part", "shards", ["dataset_id", "samples", "part"], unique=False)
    op.create_index(
        "ix_shards_dataset_id_size_bytes_part", "shards", ["dataset_id", "size_bytes", "part"], unique=False
    )
    op.create_index("ix_shards_dataset_id_state_part", "shards", ["dataset_id", "state", "part"], unique=False)
    op.create_index(
        "ix_shards_dataset_id_tail_mass_mean_part", "shards", ["dataset_id", "tail_mass_mean", "part"], unique=False
    )
    op.create_index("ix_shards_dataset_id_tokens_part", "shards", ["dataset_id", "tokens", "part"], unique=False)
    op.create_index("uq_shards_dataset_id_part", "shards", ["dataset_id", "part"], unique=True)
    op.create_table(
        "manifests",
        sa.Column("shard_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("raw", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["shard_id"], ["shards.id"], name=op.f("fk_manifests_shard_id_shards"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("shard_id", name=op.f("pk_manifests")),
    )


def downgrade() -> None:
    """Drop every table: the index is a cache."""
    for table in ("manifests", "shards", "datasets", "leases"):
        op.drop_table(table)
