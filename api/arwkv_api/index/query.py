"""Reads the index: datasets and shards by name, filter and order."""

import dataclasses
import functools
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, ColumnElement, Row, Select, String, bindparam, func, literal_column, or_, select
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
ALL_SHARDS = select(*SHARDS)


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

    def shape(self) -> "ShardFilter":
        """The same for all filters whose statement is the same: any number stands for any other."""

        def some(number: int | None) -> int | None:
            return None if number is None else 0

        return dataclasses.replace(
            self,
            min_tokens=some(self.min_tokens),
            max_tokens=some(self.max_tokens),
            sample_id=some(self.sample_id),
        )


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
    order = Order.parse(sort, DATASET_ORDERS, DatasetRow.name)
    return order.fetch(session, order.page(query, cursor is not None), order.place(cursor, limit))


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
    found: DatasetRow = _one(session, _SERVED_ROW, roots, name)[0]
    return found


def dataset_figures(session: Session, roots: Sequence[str], name: str, *figures: Column) -> tuple[Any, ...]:
    """Some columns of that dataset alone. Raises NotFound, and TryAgain before all of its shards were read."""
    row = tuple(_one(session, _served_figures(figures), roots, name))
    if row[0] == "indexing":
        raise still_indexed(name)
    return row[1:]


def _served(query: Select[Any]) -> Select[Any]:
    """Those under `roots` called `name`."""
    named = DatasetRow.name == bindparam("name", type_=String)
    return query.where(DatasetRow.root.in_(bindparam("roots", expanding=True)), named, DatasetRow.state != "withdrawn")


_SERVED_ROW = _served(select(DatasetRow))


@functools.lru_cache(maxsize=100)
def _served_figures(figures: tuple[Column, ...]) -> Select[Any]:
    return _served(select(*(DatasetRow.__table__.c[figure.key] for figure in (DatasetRow.state, *figures))))


def still_indexed(name: str) -> TryAgain:
    """The error for a request that needs the complete index of a dataset."""
    return TryAgain(f"dataset {name[:100]!r}: its shards are still being indexed; try again in a moment")


def _one(session: Session, query: Select[Any], roots: Sequence[str], name: str) -> Row[Any]:
    require_servable(name)
    row = session.execute(query, {"roots": list(roots), "name": name}).first()
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
    order = Order.parse(sort, SHARD_ORDERS, ShardRow.part)
    values = {**vars(wanted), "dataset_id": dataset_id, **order.place(cursor, limit)}
    found = _finding(order, wanted.shape(), cursor is not None)
    many = found.counted is None or session.connection().execute(found.counted, values).scalar_one() > FEW_SHARDS
    fitting = partial(_with_manifests_that_fit, session) if wanted.with_manifest else len
    return order.fetch(session, found.in_order if many else found.sorted, values, fitting)


class _Finding(NamedTuple):
    """Statements that find a page. Many shards are found quickly in the list's order; few are not, but sort quickly."""

    in_order: Select[Any]
    sorted: Select[Any]
    counted: Select[int] | None = None
    """How many pass, up to one more than are few; None: many."""


@functools.lru_cache(maxsize=1000)
def _finding(order: Order, shape: ShardFilter, follows: bool) -> _Finding:
    """Kept, because to build statements takes longer than to execute them."""
    own = SHARDS.dataset_id == bindparam("dataset_id", type_=BigInteger)

    def page(*conditions: ColumnElement[bool]) -> Select[Any]:
        found = ALL_SHARDS.where(*conditions)
        return order.page(found.where(SHARDS.state != ShardState.MISSING) if shape.with_manifest else found, follows)

    if shape.sample_id is not None:
        the_one = page(SHARDS.id.in_(_with_sample(own, shape)))
        return _Finding(the_one, the_one)
    # Behind a plus sign no index of tokens is used: that would have all that pass sorted, page by page.
    tokens = SHARDS.tokens if order.column.key == "tokens" else literal_column("+shards.tokens", BigInteger)
    in_order = page(own, *_passing(shape, tokens))
    if (shape.min_tokens, shape.max_tokens) == (None, None) and shape.state in (None, ShardState.COMMITTED):
        return _Finding(in_order, in_order)
    passing = select(SHARDS.id).where(own, *_passing(shape, SHARDS.tokens))
    counted = select(func.count()).select_from(passing.limit(FEW_SHARDS + 1).subquery())
    return _Finding(in_order, page(SHARDS.id.in_(passing)), counted)


def _with_sample(own: ColumnElement[bool], shape: ShardFilter) -> Select[tuple[int]]:
    """Selects the id of the shard that holds a sample, if it passes the other filters."""
    # The first of the shards that end at or after the sample, because shards do not overlap.
    sample_id = bindparam("sample_id", type_=BigInteger)
    ends_after = select(SHARDS.id, SHARDS.first_sample_id, SHARDS.state, SHARDS.tokens).where(
        own, SHARDS.last_sample_id >= sample_id, SHARDS.samples > 0
    )
    first = ends_after.order_by(SHARDS.last_sample_id).limit(1).subquery()
    found = select(first.c.id).where(first.c.first_sample_id <= sample_id)
    if shape.state is not None:
        found = found.where(first.c.state == shape.state)
    return found.where(*_within(shape, first.c.tokens))


def _passing(shape: ShardFilter, tokens: ColumnElement[int]) -> list[ColumnElement[bool]]:
    conditions = _within(shape, tokens)
    if shape.state is not None:
        conditions.append(SHARDS.state == shape.state)
        if shape.state != ShardState.COMMITTED:
            # Spelt out, as a database cannot tell from a parameter that the index of these alone will do.
            conditions.append(SHARDS.state != literal_column("'committed'", String))
    return conditions


def _within(shape: ShardFilter, tokens: ColumnElement[int]) -> list[ColumnElement[bool]]:
    least = [tokens >= bindparam("min_tokens", type_=BigInteger)] if shape.min_tokens is not None else []
    most = [tokens <= bindparam("max_tokens", type_=BigInteger)] if shape.max_tokens is not None else []
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
