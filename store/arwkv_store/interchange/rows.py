"""The rows of a source as samples: plain nested lists, and DistillKit's columns."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from arwkv_store.errors import NotFound, UsageError
from arwkv_store.format.hidden_names import hidden_column
from arwkv_store.format.sample import Sample, SparseLogits
from arwkv_store.interchange import distillkit_codec as distillkit
from arwkv_store.interchange.entries import Derived, Entries, at_positions, count_hits, sparse_logits
from arwkv_store.interchange.parquet_files import ParquetFiles, list_of, nested_list_of

COMPRESSION_FILE = "compression_config.yaml"
"""What DistillKit's capture writes next to its Parquet files."""
NAMES = {
    "sample_id": ("sample_id",),
    "tokens": ("tokens", "input_ids"),
    "loss_mask": ("loss_mask",),
    "labels": ("labels",),
    "source": ("source",),
    "ids": ("ids", "token_ids"),
    "logprobs": ("logprobs", "top_values"),
    "tail_logprob": ("tail_logprob",),
    "entropy": ("entropy",),
    "true_logprob": ("true_logprob",),
}
"""What a column may be called."""
PACKED = ("compressed_logprobs", "bytepacked_indices")
LEGACY = ("packed_indices", "exact_values", "coeffs")

Row = Mapping[str, Any]
"""Column to the row's value, a scalar of pyarrow."""
Decode = Callable[[Row, str], Entries]


@dataclass(frozen=True)
class Rows:
    """How a row of these files becomes a sample."""

    files: ParquetFiles
    names: Mapping[str, str]
    """Our name of a column to the source's; what the source lacks is missing."""
    decode: Decode | None
    """None: no logits."""
    heavy: tuple[str, ...]
    most_entries: int | None
    """Entries of a position, if all have as many; None: they have to be counted."""
    values: str
    rule: str
    hidden: tuple[str, ...] = ()
    own: bool = False
    """Whether `store export` wrote the files: nothing is sorted or derived."""

    @property
    def columns(self) -> list[str]:
        """The columns to read."""
        return [*dict.fromkeys([*self.names.values(), *self.heavy, *map(hidden_column, self.hidden)])]

    def sample(self, number: int, row: Row, derived: Derived) -> Sample:
        """One row as a sample. Raises UsageError, CorruptShard."""
        where = f"{self.files.source}: row {number}"
        tokens = list_of(row[self.names["tokens"]], where).astype(np.int32)
        return Sample(
            sample_id=number if "sample_id" not in self.names else int(row[self.names["sample_id"]].as_py()),
            tokens=tokens,
            loss_mask=self._mask(row, tokens, where),
            source=self._source(row),
            logits=self._logits(row, tokens, derived, where),
            entropy=self._floats("entropy", row, where),
            true_logprob=self._floats("true_logprob", row, where),
            hidden={name: _states(row[hidden_column(name)], where) for name in self.hidden},
        )

    def _mask(self, row: Row, tokens: NDArray[np.int32], where: str) -> NDArray[np.bool_]:
        if "loss_mask" in self.names:
            return list_of(row[self.names["loss_mask"]], where).astype(bool)
        if "labels" in self.names:
            labels: NDArray[np.bool_] = list_of(row[self.names["labels"]], where) >= 0
            return labels
        return np.ones(len(tokens), bool)

    def _source(self, row: Row) -> str:
        return str(row[self.names["source"]].as_py() or "") if "source" in self.names else ""

    def _floats(self, name: str, row: Row, where: str) -> NDArray[np.float32] | None:
        if name not in self.names or not row[self.names[name]].is_valid:
            return None
        return list_of(row[self.names[name]], where).astype(np.float32)

    def _logits(self, row: Row, tokens: NDArray[np.int32], derived: Derived, where: str) -> SparseLogits | None:
        if self.decode is None:
            return None
        entries = at_positions(self.decode(row, where), len(tokens), self.rule, where)
        tail = self._floats("tail_logprob", row, where)
        if self.own and tail is not None:
            counts = entries.counts.astype(np.int32)
            return SparseLogits(counts, entries.ids.astype(np.int32), entries.values.astype(np.float32), tail)
        logits = sparse_logits(entries, self.values, derived, where)
        count_hits(logits, tokens, derived)
        return logits


def rows_of(
    files: ParquetFiles,
    kind: str,
    *,
    renamed: Mapping[str, str],
    compression: Path | None,
    values: str,
    rule: str,
    hidden: tuple[str, ...] = (),
    own: bool = False,
) -> Rows:
    """How to read these files: `kind` is "parquet" or "distillkit". Raises UsageError where a column is missing."""
    names = _names(files, renamed)
    if "tokens" not in names:
        raise UsageError(f"{files.source}: no column tokens or input_ids; name it with --column tokens=NAME")
    decode, heavy, most = _plain(names)
    if kind == "distillkit" and set(PACKED) <= set(files.schema.names):
        settings = _settings(files, compression)
        if not isinstance(settings, distillkit.Compression):
            raise UsageError(
                f"{files.source}: columns {', '.join(PACKED)} need a logprob_compressor, not legacy settings"
            )
        decode, heavy, most = _packed(settings), PACKED, settings.k
    elif kind == "distillkit" and set(LEGACY) <= set(files.schema.names):
        legacy = _settings(files, compression)
        if not isinstance(legacy, distillkit.LegacyCompression):
            raise UsageError(f"{files.source}: columns {', '.join(LEGACY)} need a legacy_logit_compression")
        decode, heavy, most = _legacy(legacy), LEGACY, legacy.k
    elif decode is None and not own:
        raise UsageError(
            f"{files.source}: no log-probabilities among the columns {', '.join(files.schema.names)}; "
            "name them with --column ids=NAME logprobs=NAME"
        )
    return Rows(files, names, decode, heavy, most, values, rule, hidden, own)


def _names(files: ParquetFiles, renamed: Mapping[str, str]) -> dict[str, str]:
    unknown = [name for name in renamed if name not in NAMES]
    absent = [column for column in renamed.values() if column not in files.schema.names]
    if unknown or absent:
        what = f"no {unknown[0]!r}; names are {', '.join(NAMES)}" if unknown else f"no column {absent[0]!r}"
        raise UsageError(f"--column: {what}; {files.source} has {', '.join(files.schema.names)}")
    found = {name: renamed.get(name) or files.column(*usual) for name, usual in NAMES.items()}
    return {name: column for name, column in found.items() if column is not None}


def _plain(names: Mapping[str, str]) -> tuple[Decode | None, tuple[str, ...], int | None]:
    if not {"ids", "logprobs"} <= set(names):
        return None, (), None

    def decode(row: Row, where: str) -> Entries:
        counts, ids = nested_list_of(row[names["ids"]], where)
        other, values = nested_list_of(row[names["logprobs"]], where)
        if not np.array_equal(counts, other):
            raise UsageError(f"{where}: ids and log-probabilities of a position differ in number; check the source")
        return Entries(counts, ids.astype(np.int64), values.astype(np.float32))

    return decode, (), None


def _packed(settings: distillkit.Compression) -> Decode:
    def decode(row: Row, where: str) -> Entries:
        packed, ids = (_matrix(row[name], where).astype(np.uint8) for name in PACKED)
        values = distillkit.decoded_logprobs(packed, settings, where)
        return _uniform(distillkit.decoded_ids(ids, settings, where), values)

    return decode


def _legacy(settings: distillkit.LegacyCompression) -> Decode:
    def decode(row: Row, where: str) -> Entries:
        packed, exact, coefficients = (_matrix(row[name], where) for name in LEGACY)
        values = distillkit.legacy_values(exact.astype(np.float32), coefficients.astype(np.float32), settings, where)
        return _uniform(distillkit.legacy_ids(packed.astype(np.uint64), settings, where), values)

    return decode


def _uniform(ids: NDArray[np.int64], values: NDArray[np.float32]) -> Entries:
    return Entries(np.full(len(ids), ids.shape[1]), ids.reshape(-1), values.reshape(-1))


def _matrix(value: Any, where: str) -> NDArray[Any]:
    """[P, width] of a list of lists of one width."""
    counts, flat = nested_list_of(value, where)
    if len(counts) and (counts != counts[0]).any():
        raise UsageError(f"{where}: positions of {counts.min()} to {counts.max()} values; DistillKit's are all alike")
    return flat.reshape(len(counts), -1) if len(flat) else np.zeros((len(counts), 0), flat.dtype)


def _states(value: Any, where: str) -> NDArray[ml_dtypes.bfloat16]:
    return _matrix(value, where).astype(np.float32).astype(ml_dtypes.bfloat16)


def _settings(files: ParquetFiles, compression: Path | None) -> distillkit.Compression | distillkit.LegacyCompression:
    where = str(compression or f"{files.source}: {COMPRESSION_FILE}")
    try:
        raw = files.beside(COMPRESSION_FILE) if compression is None else compression.read_bytes()
    except OSError as error:
        raise NotFound(f"--compression {compression}: {error.strerror}; name a file that is there") from error
    if raw is None:
        raise UsageError(
            f"{files.source}: no {COMPRESSION_FILE} there; write the logprob_compressor of the capture's description "
            "(d, k, exact_k, exact_dtype, polynomial_terms, …) into a file and name it with --compression FILE"
        )
    document = _parsed(raw, where)
    if not isinstance(document, Mapping):
        raise UsageError(f"{where}: {type(document).__name__}, settings by name are needed")
    return distillkit.parsed(document, where)


def _parsed(raw: bytes, where: str) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        pass
    try:
        import yaml
    except ImportError as error:
        raise UsageError(f'{where}: reading YAML needs "pip install pyyaml"; or write the settings as JSON') from error
    try:
        return yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: {' '.join(str(error).split())}; give YAML or JSON") from error
