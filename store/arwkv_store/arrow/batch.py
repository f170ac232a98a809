"""A record batch as numpy views, bounds checked once, so that taking a row costs no Python object per value."""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from arwkv_store.format.codecs.frames import BadCell


@dataclass(frozen=True)
class _Ragged:
    """Variable-length values: row i is values[offsets[i]:offsets[i+1]]."""

    offsets: list[int]
    values: NDArray[Any]
    valid: list[bool] | None

    def __getitem__(self, row: int) -> Any:  # a numpy view whose type depends on the column
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def lengths(self) -> list[int]:
        return [end - start for start, end in itertools.pairwise(self.offsets)]


class Batch:
    """The rows of one record batch. Raises BadCell when made of lengths or offsets that contradict each other."""

    def __init__(self, batch: pa.RecordBatch, light: bool, heavy: tuple[str, ...]) -> None:
        rows = batch.num_rows
        self.sample_id = _fixed(batch.column("sample_id"), np.int64, rows)
        self.n_tokens = _fixed(batch.column("n_tokens"), np.int32, rows)
        self._heavy = {name: _binary(batch.column(name)) for name in heavy}
        if light:
            self._tokens = _list(batch.column("tokens"), np.int32)
            self._mask = _bool_list(batch.column("loss_mask"))
            self._source = _texts(batch.column("source"))
            if not self._tokens.lengths() == self._mask.lengths() == self.n_tokens:
                raise BadCell("n_tokens are not the lengths of tokens and loss_mask")

    def tokens(self, row: int) -> NDArray[np.int32]:
        """[T] token ids, a copy."""
        tokens: NDArray[np.int32] = self._tokens[row].copy()
        return tokens

    def loss_mask(self, row: int) -> NDArray[np.bool_]:
        """[T], a copy."""
        mask: NDArray[np.bool_] = self._mask[row].copy()
        return mask

    def source(self, row: int) -> str:
        """The sample's source."""
        return self._source[row]

    def cell(self, name: str, row: int) -> NDArray[np.uint8] | None:
        """The bytes of a heavy column, a view on the file; None where the row has none."""
        column = self._heavy[name]
        if column.valid is not None and not column.valid[row]:
            return None
        cell: NDArray[np.uint8] = column[row]
        return cell


def _fixed(array: pa.Array, dtype: type[np.generic], rows: int) -> list[int]:
    values = _buffer(array, 1, dtype)
    if len(values) < rows:
        raise BadCell(f"column of {len(values)} values for {rows} rows")
    return list(values[:rows].tolist())


def _list(array: pa.Array, dtype: type[np.generic]) -> _Ragged:
    values = _buffer(array.values, 1, dtype)
    return _Ragged(_offsets(array, len(values)), values, None)


def _bool_list(array: pa.Array) -> _Ragged:
    bits = _buffer(array.values, 1, np.uint8)
    if len(array.values) > 8 * len(bits):
        raise BadCell(f"{len(array.values)} values in a buffer of {len(bits)} bytes")
    values = np.unpackbits(bits, count=len(array.values), bitorder="little").view(np.bool_)
    return _Ragged(_offsets(array, len(values)), values, None)


def _binary(array: pa.Array) -> _Ragged:
    values = _buffer(array, 2, np.uint8)
    valid = None if array.null_count == 0 else array.is_valid().to_pylist()
    return _Ragged(_offsets(array, len(values)), values, valid)


def _texts(array: pa.Array) -> list[str]:
    texts = _binary(array)
    try:
        return [bytes(texts[row]).decode() for row in range(len(array))]
    except UnicodeDecodeError as error:
        raise BadCell(f"{error}, in what should be a text") from error


def _offsets(array: pa.Array, limit: int) -> list[int]:
    offsets: list[int] = _buffer(array, 1, np.int32)[: len(array) + 1].tolist()
    if len(offsets) != len(array) + 1 or offsets[0] < 0 or offsets[-1] > limit or offsets != sorted(offsets):
        raise BadCell(f"offsets leave their buffer of {limit} values")
    return offsets


def _buffer(array: pa.Array, index: int, dtype: type[np.generic]) -> NDArray[Any]:
    if array.offset:
        raise BadCell("array with an offset of its own")
    buffer = array.buffers()[index]
    if buffer is None:
        return np.empty(0, dtype)
    size = np.dtype(dtype).itemsize
    return np.frombuffer(buffer, np.uint8, buffer.size // size * size).view(dtype)
