"""Reading the index: datasets and shards, found by name, filter and order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from arwkv_api.folders import is_servable_name
from arwkv_api.listing import Order
from arwkv_api.tables import DatasetRow, ManifestRow, ShardRow
from arwkv_store.errors import NotFound

DATASET_ORDERS = {
    "name": DatasetRow.name,
    "teacher": DatasetRow.teacher,
    "samples": DatasetRow.samples,
    "tokens": DatasetRow.tokens,
    "size_bytes": DatasetRow.size_bytes,
    "created_at": DatasetRow.created_at_s,
    "updated_at": DatasetRow.updated_at_s,
}
SHARD_ORDERS = {
    "part": ShardRow.part,
    "samples": ShardRow.samples,
    "tokens": ShardRow.tokens,
    "size_bytes": ShardRow.size_bytes,
    "entropy_mean": ShardRow.entropy_mean,
    "tail_mass_mean": ShardRow.tail_mass_mean,
    "committed_at": ShardRow.committed_at_s,
}


@dataclass(frozen=True)
class DatasetFilter:
    """Which datasets to list; None admits all."""

    contains: str | None = None
    teacher: str | None = None
    state: str | None = None


@dataclass(frozen=True)
class ShardFilter:
    """Which shards to list; None admits all."""

    state: str | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    sample_id: int | None = None
    with_manifest: bool = False


def list_datasets(
    session: Session, roots: Sequence[Path], wanted: DatasetFilter, sort: str, cursor: str | None, limit: int
) -> tuple[Sequence[DatasetRow], str | None]:
    """A page of datasets under `roots`, and the next page's cursor. Raises BadCursor."""
    query = _served(roots)
    if wanted.contains is not None:
        query = query.where(func.lower(DatasetRow.name).contains(wanted.contains.lower(), autoescape=True))
    if wanted.teacher is not None:
        query = query.where(DatasetRow.teacher == wanted.teacher)
    if wanted.state is not None:
        query = query.where(DatasetRow.state == wanted.state)
    else:
        query = query.where(DatasetRow.state != "withdrawn")
    return Order.parse(sort, DATASET_ORDERS, DatasetRow.name).fetch(session, query, cursor, limit)


def find_dataset(session: Session, roots: Sequence[Path], name: str, *, withdrawn: bool = False) -> DatasetRow:
    """The dataset called `name` under `roots`. Raises NotFound; a withdrawn one is found only where asked for."""
    row = session.scalar(_served(roots).where(DatasetRow.name == name)) if is_servable_name(name) else None
    if row is None or (row.state == "withdrawn" and not withdrawn):
        raise NotFound(f"dataset {name[:100]!r}: not under any root; GET /v1/datasets lists what is")
    return row


def list_shards(
    session: Session, dataset: DatasetRow, wanted: ShardFilter, sort: str, cursor: str | None, limit: int
) -> tuple[Sequence[ShardRow], str | None]:
    """A page of the dataset's shards, and the next page's cursor. Raises BadCursor."""
    query = select(ShardRow).where(ShardRow.dataset_id == dataset.id)
    if wanted.state is not None:
        query = query.where(ShardRow.state == wanted.state)
    if wanted.with_manifest:
        query = query.where(ShardRow.state != "missing")
    if wanted.min_tokens is not None:
        query = query.where(ShardRow.tokens >= wanted.min_tokens)
    if wanted.max_tokens is not None:
        query = query.where(ShardRow.tokens <= wanted.max_tokens)
    if wanted.sample_id is not None:
        query = query.where(ShardRow.first_sample_id <= wanted.sample_id, ShardRow.last_sample_id >= wanted.sample_id)
    return Order.parse(sort, SHARD_ORDERS, ShardRow.part).fetch(session, query, cursor, limit)


def find_shard(session: Session, dataset: DatasetRow, part: int) -> ShardRow:
    """One shard of a dataset. Raises NotFound."""
    row = session.scalar(select(ShardRow).where(ShardRow.dataset_id == dataset.id, ShardRow.part == part))
    if row is None:
        raise NotFound(
            f"dataset {dataset.name!r}: part {part} is not committed ({dataset.shards} of {dataset.parts} are); "
            "it appears here within seconds once it is"
        )
    return row


def manifests_of(session: Session, shards: Sequence[ShardRow]) -> dict[int, bytes]:
    """Raw manifests by the shards' row ids."""
    columns = select(ManifestRow.shard_id, ManifestRow.raw).where(ManifestRow.shard_id.in_([row.id for row in shards]))
    return dict(session.execute(columns).all())


def _served(roots: Sequence[Path]) -> Select[DatasetRow]:
    return select(DatasetRow).where(DatasetRow.root.in_(list(map(str, roots))))
