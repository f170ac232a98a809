"""Parquet files of others: a file, a folder or a Hub dataset as one sequence of rows, read a few rows at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from arwkv_store.errors import CorruptShard, NotFound, UsageError
from arwkv_store.places.object_folder import ObjectFolder

ROWS_TOGETHER = 16
"""Rows that are decoded at one time; one of a published capture can be 8 MB."""

MOST_BESIDE_BYTES = 256 << 20
"""Of a file next to them: a tokenizer, settings."""


@dataclass(frozen=True)
class _Block:
    """A row group: its file, its number, and its rows in the whole sequence."""

    path: str
    group: int
    rows: range
    size_bytes: int
    """Before compression."""


class ParquetFiles:
    """The rows of all Parquet files of a source, in order of their names."""

    def __init__(self, source: str) -> None:
        """Read the footers. Raises NotFound, UsageError if the files' columns differ, CorruptShard, TryAgain."""
        self.source = source
        self._place = ObjectFolder(source) if "://" in source else None
        paths = self._found()
        if not paths:
            raise NotFound(f"{source}: no .parquet file; name a Parquet file, a folder of them, or hf://datasets/NAME")
        self._blocks: list[_Block] = []
        self.rows = 0
        for path in paths:
            with self._opened(path) as file:
                if path == paths[0]:
                    self.schema = file.schema_arrow
                elif file.schema_arrow.names != self.schema.names:
                    raise UsageError(
                        f"{path}: columns {', '.join(file.schema_arrow.names)}, but {paths[0]} has "
                        f"{', '.join(self.schema.names)}; name a folder whose files belong together"
                    )
                for group in range(file.num_row_groups):
                    about = file.metadata.row_group(group)
                    rows = range(self.rows, self.rows + about.num_rows)
                    self._blocks.append(_Block(path, group, rows, about.total_byte_size))
                    self.rows = rows.stop
        if not self.rows:
            raise UsageError(f"{source}: its Parquet files have no rows; name the source that holds the capture")

    def layout(self) -> str:
        """Rows and bytes of each row group: which files these are, wherever they lie."""
        return " ".join(f"{len(block.rows)}:{block.size_bytes}" for block in self._blocks)

    def column(self, *names: str) -> str | None:
        """The first of these names that is a column; None if none is."""
        return next((name for name in names if name in self.schema.names), None)

    def batches(
        self, columns: Sequence[str], wanted: Callable[[range], bool] = lambda rows: True
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(first row, some rows of these columns), in order; row groups that are not `wanted` are not read."""
        for block in filter(lambda block: wanted(block.rows), self._blocks):
            with self._opened(block.path) as file:
                first = block.rows.start
                for batch in file.iter_batches(ROWS_TOGETHER, row_groups=[block.group], columns=list(columns)):
                    yield first, batch
                    first += batch.num_rows

    def beside(self, name: str) -> bytes | None:
        """A small file next to the Parquet files; None if there is none."""
        if self._place is None:
            path = Path(self.source)
            path = (path if path.is_dir() else path.parent) / name
            return path.read_bytes() if path.is_file() else None
        try:
            return self._place.read(name, MOST_BESIDE_BYTES)
        except NotFound:
            return None

    def _found(self) -> list[str]:
        if self._place is None:
            path = Path(self.source)
            files = [path] if path.is_file() else path.rglob("*.parquet")
            return sorted(str(one) for one in files if not one.name.startswith("."))
        place, root = self._place, self._place.filesystem()._strip_protocol(self._place.uri)
        found = place.attempt(lambda: list(place.filesystem().find(root)), "")
        return sorted(str(path) for path in found if str(path).endswith(".parquet"))

    @contextmanager
    def _opened(self, path: str) -> Iterator[pq.ParquetFile]:
        try:
            place = self._place
            if place is None:
                with pq.ParquetFile(path) as file:
                    yield file
            else:
                with place.attempt(lambda: place.filesystem().open(path, "rb"), "") as content:
                    yield pq.ParquetFile(content)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise CorruptShard(f"{path}: {' '.join(str(error).split())}; fetch the file again") from error
        except FileNotFoundError as error:
            raise NotFound(f"{path}: not found; name a file that is there") from error


def list_of(value: Any, where: str) -> NDArray[Any]:
    """A list of numbers [T]. Raises UsageError for anything else, also for missing numbers."""
    return _numbers(_values(value, where), where)


def nested_list_of(value: Any, where: str) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """A list of lists of numbers: the inner lengths [T], and all numbers. Raises UsageError for anything else."""
    inner = _values(value, where)
    if not _is_list(inner.type):
        raise UsageError(f"{where}: {value.type}, a list of lists is needed; convert the column first")
    counts = inner.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    return counts, _numbers(inner.flatten(), where)


def _values(value: Any, where: str) -> pa.Array:
    """What a list holds."""
    if not value.is_valid or not _is_list(value.type):
        raise UsageError(f"{where}: {value.type if value.is_valid else 'missing'}, a list is needed in every row")
    values: pa.Array = value.values
    return values


def _numbers(flat: pa.Array, where: str) -> NDArray[Any]:
    if not (pa.types.is_integer(flat.type) or pa.types.is_floating(flat.type) or pa.types.is_boolean(flat.type)):
        raise UsageError(f"{where}: values of type {flat.type}, numbers are needed; convert the column first")
    if flat.null_count:
        raise UsageError(f"{where}: {flat.null_count} missing values; fill or drop them first")
    numbers: NDArray[Any] = flat.to_numpy(zero_copy_only=False)
    return numbers


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
