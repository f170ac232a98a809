"""Reads the index: datasets and shards by name, filter and order."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Row, Select, String, func, literal_column, or_, select
from sqlalchemy.orm import Session

from arwkv_api.index.orm import DatasetRow, LeaseRow, ManifestRow, ShardRow
from arwkv_api.index.paging import Column, Order
from arwkv_api.roots.folders import is_servable_name
from arwkv_api.roots.manifests import ShardState
from arwkv_api.words import asked_for
from arwkv_store.errors import NotFound, TryAgain

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
# Parts named in one statement: below the number of parameters that every database takes.
NAMED_PARTS = 500
# This many are sorted quickly.
FEW_SHARDS = 2000
# A page with manifests ends before it exceeds this, for any number of requested items.
MANIFEST_PAGE_BYTES = 4 << 20
# Lists use plain rows: creating an object for each would take longer than finding it.
DATASET_COLUMNS = [
    column
    for column in DatasetRow.__table__.c
    if column.name not in ("identity", "stats", "growth", "heartbeats", "words", "note_words")
]
SHARDS = ShardRow.__table__.c
SHARD_COLUMNS = list(SHARDS)


@dataclass(frozen=True)
class DatasetFilter:
    """Which datasets to list; None means all."""

    contains: str | None = None
    search: str | None = None
    tag: str | None = None
    teacher: str | None = None
    state: str | None = None
    admitted: tuple[str, ...] = ()
    """Names, or prefixes that end with `*`; none: all."""


@dataclass(frozen=True)
class ShardFilter:
    """Which shards to list; None means all."""

    state: str | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    sample_id: int | None = None
    with_manifest: bool = False


def list_datasets(
    session: Session, roots: Sequence[str], wanted: DatasetFilter, sort: str, cursor: str | None, limit: int
) -> tuple[Sequence[Row[Any]], str | None]:
    """A page of datasets under `roots`, and the next page's cursor. Raises BadCursor."""
    query = select(*DATASET_COLUMNS).where(_under(roots))
    if wanted.contains is not None:
        # As it is, too: a database may know no other letters' cases than ASCII's.
        in_any_case = func.lower(DatasetRow.name).contains(wanted.contains.lower(), autoescape=True)
        query = query.where(or_(in_any_case, DatasetRow.name.contains(wanted.contains, autoescape=True)))
    for word in asked_for(wanted.search or ""):
        columns = DatasetRow.words, DatasetRow.note_words
        query = query.where(or_(*(column.contains(word, autoescape=True) for column in columns)))
    if wanted.tag is not None:
        query = query.where(DatasetRow.tags.contains(f" {wanted.tag} ", autoescape=True))
    if wanted.admitted:
        query = query.where(is_admitted(wanted.admitted))
    if wanted.teacher is not None:
        query = query.where(DatasetRow.teacher == wanted.teacher)
    if wanted.state is not None:
        query = query.where(DatasetRow.state == wanted.state)
    else:
        query = query.where(DatasetRow.state != "withdrawn")
    return Order.parse(sort, DATASET_ORDERS, DatasetRow.name).fetch(session, query, cursor, limit)


def is_admitted(names: Sequence[str]) -> ColumnElement[bool]:
    """Whether a dataset has one of these names, or begins with one that ends with `*`."""
    return or_(
        *(
            # Not LIKE, which ignores the case of letters in SQLite.
            func.substr(DatasetRow.name, 1, len(name) - 1) == name[:-1]
            if name.endswith("*")
            else DatasetRow.name == name
            for name in names
        )
    )


def find_dataset(session: Session, roots: Sequence[str], name: str) -> DatasetRow:
    """The dataset called `name` under `roots`. Raises NotFound, also for a withdrawn one, and TryAgain before all
    roots were scanned."""
    found: DatasetRow = _one(session, select(DatasetRow), roots, name)[0]
    return found


def dataset_figures(session: Session, roots: Sequence[str], name: str, *figures: Column) -> tuple[Any, ...]:
    """Some columns of that dataset alone. Raises NotFound, and TryAgain before all of its shards were read."""
    columns = (DatasetRow.__table__.c[figure.key] for figure in (DatasetRow.state, *figures))
    row = tuple(_one(session, select(*columns), roots, name))
    if row[0] == "indexing":
        raise still_indexed(name)
    return row[1:]


def still_indexed(name: str) -> TryAgain:
    """The error for a request that needs the complete index of a dataset."""
    return TryAgain(f"dataset {name[:100]!r}: its shards are still being indexed; try again in a moment")


def _one(session: Session, query: Select[Any], roots: Sequence[str], name: str) -> Row[Any]:
    require_servable(name)
    served = (_under(roots), DatasetRow.name == name, DatasetRow.state != "withdrawn")
    row = session.execute(query.where(*served)).first()
    if row is None:
        scanned = select(func.count()).where(LeaseRow.root.in_(roots), LeaseRow.scanned_at_s > 0)
        if session.execute(scanned).scalar_one() < len(roots):
            raise TryAgain(
                f"dataset {name[:100]!r}: not found yet, but the roots are still being indexed; try again later"
            )
        raise _unknown(name)
    return row


def require_servable(name: str) -> None:
    """Raise NotFound for a name that no dataset can have, and that a database may refuse."""
    if not is_servable_name(name):
        raise _unknown(name)


def _unknown(name: str) -> NotFound:
    return NotFound(f"dataset {name[:100]!r}: not under any root; GET /v1/datasets lists the datasets")


def list_shards(
    session: Session, dataset_id: int, wanted: ShardFilter, sort: str, cursor: str | None, limit: int
) -> tuple[Sequence[Row[Any]], str | None]:
    """A page of a dataset's shards, and the next page's cursor. Raises BadCursor."""
    few = _few(session, dataset_id, wanted)
    if few is not None:
        query = select(*SHARD_COLUMNS).where(SHARDS.id.in_(few))
    else:
        # Behind a plus sign no index of tokens is used: that would have all that pass sorted, page by page.
        tokens = SHARDS.tokens if sort.removeprefix("-") == "tokens" else literal_column("+shards.tokens", BigInteger)
        query = select(*SHARD_COLUMNS).where(SHARDS.dataset_id == dataset_id, *_passing(wanted, tokens))
    if wanted.with_manifest:
        query = query.where(SHARDS.state != ShardState.MISSING)
    order = Order.parse(sort, SHARD_ORDERS, ShardRow.part)
    if not wanted.with_manifest:
        return order.fetch(session, query, cursor, limit)
    return order.fetch(session, query, cursor, limit, lambda rows: _with_manifests_that_fit(session, rows))


def _few(session: Session, dataset_id: int, wanted: ShardFilter) -> Select[tuple[int]] | None:
    """Selects the ids of the shards that pass the filters, by the filters' own indexes; None if there are many.

    Many are found quickly in the order of the list; few are not, but are sorted quickly.
    """
    if wanted.sample_id is not None:
        # The first of the shards that end at or after the sample, because shards do not overlap.
        ends_after = select(SHARDS.id, SHARDS.first_sample_id, SHARDS.state, SHARDS.tokens).where(
            SHARDS.dataset_id == dataset_id, SHARDS.last_sample_id >= wanted.sample_id, SHARDS.samples > 0
        )
        first = ends_after.order_by(SHARDS.last_sample_id).limit(1).subquery()
        found = select(first.c.id).where(first.c.first_sample_id <= wanted.sample_id)
        if wanted.state is not None:
            found = found.where(first.c.state == wanted.state)
        return found.where(*_within(wanted, first.c.tokens))
    if (wanted.min_tokens, wanted.max_tokens) == (None, None) and wanted.state in (None, ShardState.COMMITTED):
        return None
    some = select(SHARDS.id).where(SHARDS.dataset_id == dataset_id, *_passing(wanted, SHARDS.tokens))
    counted = select(func.count()).select_from(some.limit(FEW_SHARDS + 1).subquery())
    return some if session.execute(counted).scalar_one() <= FEW_SHARDS else None


def _passing(wanted: ShardFilter, tokens: ColumnElement[int]) -> list[ColumnElement[bool]]:
    conditions = _within(wanted, tokens)
    if wanted.state is not None:
        conditions.append(SHARDS.state == wanted.state)
        if wanted.state != ShardState.COMMITTED:
            # Spelt out, as a database cannot tell from a parameter that the index of these alone will do.
            conditions.append(SHARDS.state != literal_column("'committed'", String))
    return conditions


def _within(wanted: ShardFilter, tokens: ColumnElement[int]) -> list[ColumnElement[bool]]:
    least = [tokens >= wanted.min_tokens] if wanted.min_tokens is not None else []
    most = [tokens <= wanted.max_tokens] if wanted.max_tokens is not None else []
    return [*least, *most]


def find_shard(session: Session, dataset: DatasetRow, part: int) -> ShardRow:
    """One shard of a dataset. Raises NotFound, and TryAgain if it may not be indexed yet."""
    row = session.scalar(select(ShardRow).where(ShardRow.dataset_id == dataset.id, ShardRow.part == part))
    if row is None and dataset.state == "indexing":
        raise still_indexed(dataset.name)
    if row is None:
        planned = dataset.parts or dataset.shards
        raise NotFound(
            f"dataset {dataset.name!r}: part {part} is not committed ({dataset.shards} of {planned} are); "
            "it appears within seconds after its commit"
        )
    return row


def committed_at_s(session: Session, dataset_id: int, parts: Iterable[int]) -> dict[int, float]:
    """The times of these parts' commits, in seconds since the epoch."""
    columns = select(ShardRow.part, ShardRow.committed_at_s)
    named, found = list(dict.fromkeys(parts)), dict[int, float]()
    for first in range(0, len(named), NAMED_PARTS):
        some = ShardRow.part.in_(named[first : first + NAMED_PARTS])
        found.update(session.execute(columns.where(ShardRow.dataset_id == dataset_id, some)).all())
    return found


def manifests_of(session: Session, shards: Sequence[Row[Any]]) -> dict[int, bytes]:
    """Raw manifests by the shards' row ids."""
    columns = select(ManifestRow.shard_id, ManifestRow.raw).where(ManifestRow.shard_id.in_([row.id for row in shards]))
    return dict(session.execute(columns).all())


def _with_manifests_that_fit(session: Session, shards: Sequence[Row[Any]]) -> int:
    """How many of the shards fit in one page with their manifests: at least one."""
    sizes = select(ManifestRow.shard_id, func.length(ManifestRow.raw))
    found = session.execute(sizes.where(ManifestRow.shard_id.in_([row.id for row in shards])))
    size_of: dict[int, int] = dict(found.all())
    ends = list(accumulate(size_of.get(row.id, 0) for row in shards))
    return max(bisect_right(ends, MANIFEST_PAGE_BYTES), 1)


def _under(roots: Sequence[str]) -> ColumnElement[bool]:
    return DatasetRow.root.in_(roots)
