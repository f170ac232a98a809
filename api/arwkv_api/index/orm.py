"""The index's tables: the content of manifests when they were last read.

Only one bit, `datasets.state = withdrawn`, is not in the folders; a scan can rebuild everything else. Times are seconds
since the epoch, in UTC.
"""

from typing import ClassVar

from sqlalchemy import BigInteger, Double, ForeignKey, Index, Integer, LargeBinary, MetaData, String, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# SQLite numbers rows by itself only for a column of its own integer type.
RowId = BigInteger().with_variant(Integer(), "sqlite")

# Replaces a figure that was not captured in a sortable column; real figures are never negative.
NOT_KNOWN = -1.0


class Base(DeclarativeBase):
    """Names every constraint, so that migrations can drop it on each database."""

    metadata: ClassVar[MetaData] = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class DatasetRow(Base):
    """One dataset folder. `revision` grows with every change of its shards or notes; derived answers are kept by it."""

    __tablename__ = "datasets"
    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    name: Mapped[str] = mapped_column(String(255), unique=True)
    root: Mapped[str] = mapped_column(Text)
    folder: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(16), index=True)
    problem: Mapped[str | None] = mapped_column(Text)
    revision: Mapped[int] = mapped_column(BigInteger, default=0)
    identity: Mapped[bytes] = mapped_column(LargeBinary)
    dataset_hash: Mapped[str] = mapped_column(String(128))
    identity_mtime_ns: Mapped[int] = mapped_column(BigInteger)
    teacher: Mapped[str] = mapped_column(Text, index=True)
    parts: Mapped[int] = mapped_column(BigInteger)
    shards: Mapped[int] = mapped_column(BigInteger, default=0)
    samples: Mapped[int] = mapped_column(BigInteger, default=0, index=True)
    tokens: Mapped[int] = mapped_column(BigInteger, default=0, index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger, default=0, index=True)
    faulty_shards: Mapped[int] = mapped_column(BigInteger, default=0)
    verified_shards: Mapped[int] = mapped_column(BigInteger, default=0)
    sampled_regions: Mapped[int] = mapped_column(BigInteger, default=0)
    sampled_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    # A JSON list of format.heartbeat.Heartbeat: those of the processes that make the dataset.
    heartbeats: Mapped[str | None] = mapped_column(Text)
    stats: Mapped[str | None] = mapped_column(Text, deferred=True)
    growth: Mapped[str | None] = mapped_column(Text, deferred=True)
    # The name and every text of dataset.json, in lower case.
    words: Mapped[str] = mapped_column(Text, default="", deferred=True)
    # What notes.json says: its version, its tags between spaces, and its words in lower case.
    notes_version: Mapped[str] = mapped_column(String(32), default="none")
    tags: Mapped[str] = mapped_column(Text, default="")
    note_words: Mapped[str] = mapped_column(Text, default="", deferred=True)
    created_at_s: Mapped[float] = mapped_column(Double, index=True)
    updated_at_s: Mapped[float] = mapped_column(Double, index=True)


FAULTY = text("state <> 'committed'")

# One index for each order of a shard list. It begins with the order, which finds a page, and ends with what lists are
# filtered by, so that the index skips rows that a filter leaves out.
SORTED = {
    key: tuple(dict.fromkeys(("dataset_id", key, "part", "state", "tokens")))
    for key in ("part", "samples", "tokens", "size_bytes", "entropy_mean", "tail_mass_mean", "committed_at_s")
}


class ShardRow(Base):
    """One committed shard: the figures that lists sort and filter by."""

    __tablename__ = "shards"
    id: Mapped[int] = mapped_column(RowId, primary_key=True)
    dataset_id: Mapped[int] = mapped_column(ForeignKey("datasets.id", ondelete="CASCADE"))
    part: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(String(16))
    problem: Mapped[str | None] = mapped_column(Text)
    samples: Mapped[int] = mapped_column(BigInteger)
    tokens: Mapped[int] = mapped_column(BigInteger)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    first_sample_id: Mapped[int] = mapped_column(BigInteger)
    last_sample_id: Mapped[int] = mapped_column(BigInteger)
    entropy_mean: Mapped[float] = mapped_column(Double)
    tail_mass_mean: Mapped[float] = mapped_column(Double)
    committed_at_s: Mapped[float] = mapped_column(Double)
    fingerprint: Mapped[str] = mapped_column(String(64))
    # 0 until the files were verified.
    verified_at_s: Mapped[float] = mapped_column(Double, default=0.0, index=True)

    __table_args__ = (
        # In the other order, so that no list uses it: it lacks the columns that lists are filtered by.
        Index("uq_shards_part_dataset_id", "part", "dataset_id", unique=True),
        Index("ix_shards_dataset_id_last_sample_id", "dataset_id", "last_sample_id"),
        Index("ix_shards_faulty", "dataset_id", "state", "part", sqlite_where=FAULTY, postgresql_where=FAULTY),
        *(Index(f"ix_shards_by_{key}", *SORTED[key]) for key in SORTED),
    )


class ManifestRow(Base):
    """A shard's manifest, byte for byte; separate from ShardRow, so that lists do not read it."""

    __tablename__ = "manifests"
    shard_id: Mapped[int] = mapped_column(ForeignKey("shards.id", ondelete="CASCADE"), primary_key=True)
    raw: Mapped[bytes] = mapped_column(LargeBinary)


class LeaseRow(Base):
    """Which process scans a root: one at a time, and another one soon after it dies."""

    __tablename__ = "leases"
    root: Mapped[str] = mapped_column(Text, primary_key=True)
    holder: Mapped[str] = mapped_column(String(64))
    expires_at_s: Mapped[float] = mapped_column(Double)
    # 0 until a scan of the root is complete.
    scanned_at_s: Mapped[float] = mapped_column(Double, default=0.0)
    scan_took_s: Mapped[float] = mapped_column(Double, default=0.0)
