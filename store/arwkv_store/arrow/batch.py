"""A record batch as numpy views. Bounds are checked once; reading a row creates no Python object per value."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from arwkv_store.arrow.ipc_message import BUFFERS_OF_BINARY, BatchLayout, Span
from arwkv_store.format.codecs.frames import BadCell

Take = Callable[[Span], NDArray[np.uint8]]
"""Reads bytes of the record batch, given where they lie in it."""


@dataclass(frozen=True)
class _Ragged:
    """Variable-length values: row i is values[offsets[i]:offsets[i+1]]."""

    offsets: list[int]
    values: "NDArray[Any] | _Stored"
    valid: NDArray[np.bool_] | None = None

    def __getitem__(self, row: int) -> Any:  # a numpy array whose type depends on the column
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def all(self) -> Any:
        """The values of all rows, one after another."""
        return self.values[self.offsets[0] : self.offsets[-1]]

    def lengths(self) -> list[int]:
        return [end - start for start, end in itertools.pairwise(self.offsets)]


class _Stored:
    """The values of a buffer; a slice is read from the file when it is taken."""

    def __init__(self, take: Take, span: Span, dtype: type[np.generic]) -> None:
        self._take, self._start, self._dtype = take, span.start, np.dtype(dtype)
        self._count = span.length // self._dtype.itemsize

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, part: slice) -> NDArray[Any]:
        size = self._dtype.itemsize
        return self._take(Span(self._start + part.start * size, (part.stop - part.start) * size)).view(self._dtype)


class Batch:
    """The rows of one record batch; tokens and heavy cells are read from the file row by row.

    Raises BadCell if lengths or offsets contradict each other.
    """

    def __init__(self, schema: pa.Schema, layout: BatchLayout, take: Take, light: bool, heavy: Sequence[str]) -> None:
        columns = _Columns(schema, layout, take)
        self.sample_id = columns.fixed("sample_id", np.int64)
        self.n_tokens = columns.fixed("n_tokens", np.int32)
        self._heavy = {name: columns.binary(name) for name in heavy}
        if light:
            self._tokens = columns.number_list("tokens", np.int32)
            self._mask = columns.bool_list("loss_mask")
            self._source = columns.texts("source")
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

    def texts(self) -> tuple[list[int], NDArray[np.int32], NDArray[np.bool_]]:
        """The rows' lengths, and their tokens and masks one after another."""
        return self.n_tokens, self._tokens.all(), self._mask.all()

    def source(self, row: int) -> str:
        """The sample's source."""
        return self._source[row]

    def cell(self, name: str, row: int) -> NDArray[np.uint8] | None:
        """The bytes of a heavy column; None if the row has none."""
        column = self._heavy[name]
        if column.valid is not None and not column.valid[row]:
            return None
        cell: NDArray[np.uint8] = column[row]
        return cell


class _Columns:
    """A record batch's columns by name; the buffers of a column are checked when it is read."""

    def __init__(self, schema: pa.Schema, layout: BatchLayout, take: Take) -> None:
        self._layout, self._take = layout, take
        self._places: dict[str, tuple[int, int]] = {}
        node = buffer = 0
        for field in schema:
            self._places[field.name] = node, buffer
            nodes, buffers = _extent(field.type)
            node, buffer = node + nodes, buffer + buffers
        if node != len(layout.nodes) or buffer != len(layout.buffers):
            raise BadCell(f"{len(layout.nodes)} arrays of {len(layout.buffers)} buffers are not the schema's columns")

    def fixed(self, name: str, dtype: type[np.generic]) -> list[int]:
        values = self._buffer(name, 1, dtype)
        if len(values) < self._layout.rows:
            raise BadCell(f"column {name} has {len(values)} values for {self._layout.rows} rows")
        return list(values[: self._layout.rows].tolist())

    def number_list(self, name: str, dtype: type[np.generic]) -> _Ragged:
        values = _Stored(self._take, self._span(name, 3), dtype)
        return _Ragged(self._offsets(name, len(values)), values)

    def bool_list(self, name: str) -> _Ragged:
        count = self._layout.nodes[self._places[name][0] + 1].length
        values = self._bits(name, 3, count)
        return _Ragged(self._offsets(name, len(values)), values)

    def binary(self, name: str) -> _Ragged:
        values = _Stored(self._take, self._span(name, 2), np.uint8)
        nulls = self._layout.nodes[self._places[name][0]].nulls
        valid = self._bits(name, 0, self._layout.rows) if nulls else None
        return _Ragged(self._offsets(name, len(values)), values, valid)

    def texts(self, name: str) -> list[str]:
        values = self._buffer(name, 2, np.uint8)
        texts = _Ragged(self._offsets(name, len(values)), values)
        try:
            return [bytes(texts[row]).decode() for row in range(self._layout.rows)]
        except UnicodeDecodeError as error:
            raise BadCell(f"a text is not UTF-8 ({error})") from error

    def _offsets(self, name: str, limit: int) -> list[int]:
        offsets: list[int] = self._buffer(name, 1, np.int32)[: self._layout.rows + 1].tolist()
        wrong = len(offsets) != self._layout.rows + 1 or offsets[0] < 0 or offsets[-1] > limit
        if wrong or offsets != sorted(offsets):
            raise BadCell(f"column {name}: offsets lie outside the buffer of {limit} values")
        return offsets

    def _bits(self, name: str, number: int, count: int) -> NDArray[np.bool_]:
        bits = self._buffer(name, number, np.uint8)
        if not 0 <= count <= 8 * len(bits):
            raise BadCell(f"column {name}: {count} values in a buffer of {len(bits)} bytes")
        return np.unpackbits(bits, count=count, bitorder="little").view(np.bool_)

    def _span(self, name: str, number: int) -> Span:
        return self._layout.buffers[self._places[name][1] + number]

    def _buffer(self, name: str, number: int, dtype: type[np.generic]) -> NDArray[Any]:
        taken = self._take(self._span(name, number))
        return taken[: len(taken) // np.dtype(dtype).itemsize * np.dtype(dtype).itemsize].view(dtype)


def _extent(type_: pa.DataType) -> tuple[int, int]:
    """Number of nodes and buffers of a column of this type."""
    if pa.types.is_list(type_):
        nodes, buffers = _extent(type_.value_type)
        return 1 + nodes, 2 + buffers
    if pa.types.is_binary(type_) or pa.types.is_string(type_):
        return 1, BUFFERS_OF_BINARY
    if pa.types.is_primitive(type_):
        return 1, 2
    raise BadCell(f"unexpected column of type {type_}")
