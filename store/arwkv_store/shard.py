"""One committed part, open for reading: its rows file, and its hidden file once a hidden state is asked for."""

import bisect
from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import pyarrow as pa

from arwkv_store.arrow_file import REMEDY, ArrowFile
from arwkv_store.batch import Batch
from arwkv_store.codecs.frames import BadCell
from arwkv_store.columns import HeavyColumn
from arwkv_store.errors import CorruptShard
from arwkv_store.manifest import ShardManifest
from arwkv_store.rows import LIGHT_COLUMNS
from arwkv_store.sample import Sample, hidden_name
from arwkv_store.source import Source

Columns = Mapping[str, tuple[HeavyColumn, ...]]


class Shard:
    """Reads samples of one part, verified, in any order."""

    def __init__(self, source: Source, manifest: ShardManifest, columns: Columns, *, verify: bool) -> None:
        self._rows = _OpenFile(source, manifest, "rows", columns["rows"], verify)
        hidden = columns["hidden"]
        self._hidden = _OpenFile(source, manifest, "hidden", hidden, verify) if hidden else None

    def sample(self, row: int) -> Sample:
        """The sample in this row. Raises CorruptShard, naming file and batch, unless every byte used is verified."""
        batch, at = self._rows.row(row)
        sample_id = batch.sample_id[at]
        hidden: dict[str, Any] = {}
        if self._hidden is not None:
            other, other_at = self._hidden.row(row)
            if other.sample_id[other_at] != sample_id or other.n_tokens[other_at] != batch.n_tokens[at]:
                raise CorruptShard(f"{self._hidden.path}: row {row} is not the rows file's; {REMEDY}")
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


class _OpenFile:
    """A file of the part with its parsed batches."""

    def __init__(
        self, source: Source, manifest: ShardManifest, kind: str, columns: tuple[HeavyColumn, ...], verify: bool
    ) -> None:
        info = manifest.files.get(kind)
        if info is None:
            raise CorruptShard(f"{source.uri}: part {manifest.part} has no {kind} file; {REMEDY}")
        self.path = source.data_path(manifest.part, kind, info)
        self._kind, self._columns = kind, columns
        self._file = ArrowFile(self.path, info, verify=verify)
        self._batches: dict[int, Batch] = {}
        self._ends = list(accumulate(batch.rows for batch in info.batches))
        self._require_columns()

    def row(self, row: int) -> tuple[Batch, int]:
        """The batch that holds the row, and the row's place in it."""
        index = bisect.bisect_right(self._ends, row)
        batch = self._batches.get(index)
        if batch is None:
            names = tuple(column.name for column in self._columns)
            try:
                batch = Batch(self._file.batch(index), self._kind == "rows", names)
            except BadCell as error:
                raise CorruptShard(f"{self.path}: record batch {index}: {error}; {REMEDY}") from error
            self._batches[index] = batch
        return batch, row - (self._ends[index - 1] if index else 0)

    def values(self, row: int) -> dict[str, Any]:
        """The row's decoded heavy columns by name; columns the row has no value for are left out."""
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

    def _require_columns(self) -> None:
        schema = self._file.schema
        expected = [(field.name, field.type) for field in LIGHT_COLUMNS[self._kind]]
        expected += [(column.name, pa.binary()) for column in self._columns]
        for name, kind in expected:
            at = schema.get_field_index(name)
            if at < 0 or schema.field(at).type != kind:
                found = "is not there once" if at < 0 else f"is {schema.field(at).type}"
                raise CorruptShard(f"{self.path}: schema: column {name} {found}, expected {kind}; {REMEDY}")
