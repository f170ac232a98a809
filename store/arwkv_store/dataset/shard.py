"""One committed part, open for reading: its rows file, and its hidden file once a hidden state is read."""

import bisect
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from arwkv_store.arrow.arrow_file import REMEDY, ArrowFile
from arwkv_store.arrow.batch import Batch
from arwkv_store.arrow.rows import LIGHT_COLUMNS
from arwkv_store.errors import CorruptShard
from arwkv_store.format.codecs.frames import BadCell
from arwkv_store.format.columns import HeavyColumn
from arwkv_store.format.hidden_names import hidden_name
from arwkv_store.format.manifest import ShardManifest
from arwkv_store.format.sample import Sample
from arwkv_store.places.source import Source

Columns = Mapping[str, tuple[HeavyColumn, ...]]
Result = TypeVar("Result")

FETCHES = 3
"""Times that a remote file is fetched before the source counts as damaged."""
EVICTIONS = 30
"""Times that it may be evicted before it is opened: then the cache is too small for its readers."""


class Shard:
    """Reads samples of one part, verified, in any order.

    `in_part`: of remote files only the record batches that are read are fetched, however much of the file they are.
    """

    def __init__(
        self, source: Source, manifest: ShardManifest, columns: Columns, *, verify: bool, in_part: bool = False
    ) -> None:
        self._rows = _OpenFile(source, manifest, "rows", columns["rows"], verify, in_part)
        hidden = columns["hidden"]
        self._hidden = _OpenFile(source, manifest, "hidden", hidden, verify, in_part) if hidden else None

    def sample(self, row: int) -> Sample:
        """The sample in this row. Raises CorruptShard, naming file and batch, if a byte that it uses is damaged."""
        batch, at = self._rows.row(row)
        sample_id = batch.sample_id[at]
        hidden: dict[str, Any] = {}
        if self._hidden is not None:
            other, other_at = self._hidden.row(row)
            if other.sample_id[other_at] != sample_id or other.n_tokens[other_at] != batch.n_tokens[at]:
                raise CorruptShard(f"{self._hidden.path}: row {row} does not match the rows file; {REMEDY}")
            hidden = {hidden_name(name): value for name, value in self._hidden.values(row).items()}
        values = self._rows.values(row)
        entropy, true_logprob = values.get("token_stats") or (None, None)
        return Sample(
            sample_id=sample_id,
            tokens=batch.tokens(at),
            loss_mask=batch.loss_mask(at),
            source=batch.source(at),
            logits=values.get("logits"),
            entropy=entropy,
            true_logprob=true_logprob,
            hidden=hidden,
        )

    def length(self, row: int) -> int:
        """Tokens of the sample in this row. Raises as `sample` does."""
        batch, at = self._rows.row(row)
        return int(batch.n_tokens[at])

    def texts(self) -> Iterator[tuple[list[int], NDArray[np.int32], NDArray[np.bool_]]]:
        """The lengths, tokens and masks of its samples, a record batch at a time. Raises as `sample` does."""
        for batch in self._rows.batches():
            yield batch.texts()

    def fetch(self) -> None:
        """Fetch everything that its samples need into the cache. Raises as `sample` does."""
        for file in filter(None, (self._rows, self._hidden)):
            file.fetch()


class _OpenFile:
    """A file of the part with its parsed batches."""

    def __init__(
        self,
        source: Source,
        manifest: ShardManifest,
        kind: str,
        columns: tuple[HeavyColumn, ...],
        verify: bool,
        in_part: bool,
    ) -> None:
        info = manifest.files.get(kind)
        if info is None:
            raise CorruptShard(f"{source.uri}: part {manifest.part} has no {kind} file; {REMEDY}")
        self._source, self._part, self._info, self._verify = source, manifest.part, info, verify
        self._kind, self._columns = kind, columns
        self._in_part = in_part or _is_small(columns, kind, manifest)
        self._batches: dict[int, Batch] = {}
        self._ends = list(accumulate(batch.rows for batch in info.batches))
        self._file: ArrowFile | None = None
        self._fetching = False
        self.path = self._reading(lambda file: file.path)

    def fetch(self) -> None:
        """Fetch what opening did not fetch: the columns of each batch of a sparse copy."""
        for end in self._ends if self._in_part else ():
            self.row(end - 1)

    def batches(self) -> Iterator[Batch]:
        """Every batch; none is kept."""
        for index in range(len(self._ends)):
            yield self._reading(partial(self._batch, index=index))

    def row(self, row: int) -> tuple[Batch, int]:
        """The batch that holds the row, and the row's place in it."""
        index = bisect.bisect_right(self._ends, row)
        batch = self._batches.get(index)
        if batch is None:
            batch = self._batches[index] = self._reading(lambda file: self._batch(file, index))
        return batch, row - (self._ends[index - 1] if index else 0)

    def _reading(self, read: Callable[[ArrowFile], Result]) -> Result:
        """The result of `read`; a copy that is damaged, or was evicted before it was opened, is fetched again."""
        damaged = gone = 0
        while True:
            file = self._file
            try:
                file = self._file = file or self._opened()
                return read(file)
            except CorruptShard as error:
                evicted = isinstance(error.__cause__, FileNotFoundError)
                damaged, gone = damaged + (not evicted), gone + evicted
                refused = self._fetching and not evicted  # by the source: another request would give the same
                self._fetching = False
                if refused or damaged == FETCHES or gone == EVICTIONS or not self._source.forget(self._info):
                    raise
                self._file = None

    def _opened(self) -> ArrowFile:
        kind, info = self._kind, self._info
        with self._asking():
            ranged = self._source.data_ranges(self._part, kind, info) if self._in_part else None
            path = self._source.data_path(self._part, kind, info) if ranged is None else ranged.path
        fetch = None if ranged is None else self._asking()(ranged.fetch)
        file = ArrowFile(path, info, verify=self._verify, fetch=fetch)
        _require_columns(file, kind, self._columns)
        return file

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Marks that the source is being read; the mark stays if that fails."""
        self._fetching = True
        yield
        self._fetching = False

    def _batch(self, file: ArrowFile, index: int) -> Batch:
        return file.batch(index, light=self._kind == "rows", heavy=[column.name for column in self._columns])

    def values(self, row: int) -> dict[str, Any]:
        """The row's decoded heavy columns by name; columns without a value are left out."""
        batch, at = self.row(row)
        tokens = batch.n_tokens[at]
        decoded: dict[str, Any] = {}
        for column in self._columns:
            cell = batch.cell(column.name, at)
            if cell is None:
                continue
            try:
                decoded[column.name] = column.decode(cell, tokens)
            except BadCell as error:
                where = f"record batch {bisect.bisect_right(self._ends, row)}: sample {batch.sample_id[at]}"
                raise CorruptShard(f"{self.path}: {where}: {column.name}: {error}; {REMEDY}") from error
        return decoded


def _is_small(columns: Iterable[HeavyColumn], kind: str, manifest: ShardManifest) -> bool:
    """Whether these columns have their own checksums and are a small part of the file: then only they are fetched."""
    file, sizes = manifest.files[kind], manifest.stats.bytes_by_column
    wanted = sum(sizes.get(column.name, 0) for column in columns) + (sizes.get("rows", 0) if kind == "rows" else 0)
    return bool(file.batches) and bool(file.batches[0].columns) and 2 * wanted < file.size_bytes


def _require_columns(file: ArrowFile, kind: str, columns: tuple[HeavyColumn, ...]) -> None:
    expected = [(field.name, field.type) for field in LIGHT_COLUMNS[kind]]
    expected += [(column.name, pa.binary()) for column in columns]
    for name, type_ in expected:
        at = file.schema.get_field_index(name)
        if at < 0 or file.schema.field(at).type != type_:
            found = "is not there once" if at < 0 else f"is {file.schema.field(at).type}"
            raise CorruptShard(f"{file.path}: schema: column {name} {found}, expected {type_}; {REMEDY}")
