"""Reading the index: datasets and shards, found by name, filter and order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Row, Select, func, literal_column, select
from sqlalchemy.orm import Session

from arwkv_api.folders import is_servable_name
from arwkv_api.listing import Column, Order
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
# Rows of lists are plain ones: making an object of each would take longer than finding them.
DATASET_COLUMNS = [column for column in DatasetRow.__table__.c if column.name not in ("identity", "stats", "growth")]
SHARD_COLUMNS = list(ShardRow.__table__.c)


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
) -> tuple[Sequence[Row[Any]], str | None]:
    """A page of datasets under `roots`, and the next page's cursor. Raises BadCursor."""
    query = select(*DATASET_COLUMNS).where(_under(roots))
    if wanted.contains is not None:
        query = query.where(func.lower(DatasetRow.name).contains(wanted.contains.lower(), autoescape=True))
    if wanted.teacher is not None:
        query = query.where(DatasetRow.teacher == wanted.teacher)
    if wanted.state is not None:
        query = query.where(DatasetRow.state == wanted.state)
    else:
        query = query.where(DatasetRow.state != "withdrawn")
    return Order.parse(sort, DATASET_ORDERS, DatasetRow.name).fetch(session, query, cursor, limit)


def find_dataset(session: Session, roots: Sequence[Path], name: str) -> DatasetRow:
    """The dataset called `name` under `roots`. Raises NotFound, also for a withdrawn one."""
    found: DatasetRow = _one(session, select(DatasetRow), roots, name)[0]
    return found


def dataset_figures(session: Session, roots: Sequence[Path], name: str, *figures: Column) -> tuple[Any, ...]:
    """Some columns of that dataset alone. Raises NotFound."""
    return tuple(_one(session, select(*(DatasetRow.__table__.c[figure.key] for figure in figures)), roots, name))


def _one(session: Session, query: Select[Any], roots: Sequence[Path], name: str) -> Row[Any]:
    served = (_under(roots), DatasetRow.name == name, DatasetRow.state != "withdrawn")
    row = session.execute(query.where(*served)).first() if is_servable_name(name) else None
    if row is None:
        raise NotFound(f"dataset {name[:100]!r}: not under any root; GET /v1/datasets lists what is")
    return row


def list_shards(
    session: Session, dataset_id: int, wanted: ShardFilter, sort: str, cursor: str | None, limit: int
) -> tuple[Sequence[Row[Any]], str | None]:
    """A page of a dataset's shards, and the next page's cursor. Raises BadCursor."""
    query = select(*SHARD_COLUMNS).where(ShardRow.__table__.c.dataset_id == dataset_id)
    if wanted.state is not None:
        query = query.where(ShardRow.state == wanted.state)
    if wanted.with_manifest:
        query = query.where(ShardRow.state != "missing")
    tokens = _tokens_in_order(session, sort)
    if wanted.min_tokens is not None:
        query = query.where(tokens >= wanted.min_tokens)
    if wanted.max_tokens is not None:
        query = query.where(tokens <= wanted.max_tokens)
    if wanted.sample_id is not None:
        query = query.where(ShardRow.id == with_sample(dataset_id, wanted.sample_id).scalar_subquery())
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


def with_sample(dataset_id: int, sample_id: int) -> Select[tuple[int]]:
    """The id of the shard that may hold a sample: of those that end at or after it the first, as no two overlap."""
    ends_after = select(ShardRow.id, ShardRow.first_sample_id).where(
        ShardRow.dataset_id == dataset_id, ShardRow.last_sample_id >= sample_id, ShardRow.samples > 0
    )
    first = ends_after.order_by(ShardRow.last_sample_id).limit(1).subquery()
    return select(first.c.id).where(first.c.first_sample_id <= sample_id)


def manifests_of(session: Session, shards: Sequence[Row[Any]]) -> dict[int, bytes]:
    """Raw manifests by the shards' row ids."""
    columns = select(ManifestRow.shard_id, ManifestRow.raw).where(ManifestRow.shard_id.in_([row.id for row in shards]))
    return dict(session.execute(columns).all())


def _tokens_in_order(session: Session, sort: str) -> ColumnElement[int]:
    """The column to filter by. SQLite would look tokens up in their own index and then sort all that it found; behind a
    plus sign it compares them as it reads the index of the order asked for. PostgreSQL weighs the two by what is there.
    """
    if session.get_bind().dialect.name != "sqlite" or sort.removeprefix("-") == "tokens":
        return ShardRow.__table__.c.tokens
    return literal_column("+shards.tokens", BigInteger)


def _under(roots: Sequence[Path]) -> ColumnElement[bool]:
    return DatasetRow.root.in_(list(map(str, roots)))
