"""An Arrow IPC record batch as its metadata lays it out, read without pyarrow.

The metadata is read from the bytes whose checksum was compared, and each buffer must lie within them. A compressed body
is refused, because it would let a small file unpack to any size: only single cells are compressed.
"""

import struct
from dataclasses import dataclass
from typing import NamedTuple

from arwkv_store.format.codecs.frames import BadCell

_CONTINUATION = 0xFFFFFFFF
PREFIX_BYTES = 8
"""Of a message: tells how many bytes of metadata follow."""
# Field numbers in Arrow's Message.fbs: Message.header; RecordBatch's length, nodes, buffers, compression.
_MESSAGE_HEADER = 2
_ROWS, _NODES, _BUFFERS, _COMPRESSION = 0, 1, 2, 3
BUFFERS_OF_BINARY = 3
"""Validity, offsets, bytes."""


class Node(NamedTuple):
    """One array: a column, or the values of a list column."""

    length: int
    nulls: int


class Span(NamedTuple):
    """One buffer: its range within the message."""

    start: int
    length: int


@dataclass(frozen=True)
class BatchLayout:
    """The places of a record batch's buffers, in the order of the schema's fields."""

    rows: int
    nodes: list[Node]
    buffers: list[Span]

    def heavy_starts(self, heavy: int) -> list[int]:
        """Where the buffers of each of the last `heavy` columns, all binary, begin within the message."""
        return [span.start for span in self.buffers[len(self.buffers) - BUFFERS_OF_BINARY * heavy :: BUFFERS_OF_BINARY]]


def metadata_bytes(message: bytes | memoryview) -> int:
    """How many bytes of a message come before its body, from its first PREFIX_BYTES. Raises BadCell."""
    if len(message) < PREFIX_BYTES:
        raise BadCell("an Arrow message that ends early")
    continuation, length = struct.unpack_from("<II", message, 0)
    if continuation != _CONTINUATION:
        raise BadCell("no Arrow message where the manifest says one begins")
    return PREFIX_BYTES + int(length)


def batch_layout(message: memoryview, message_bytes: int) -> BatchLayout:
    """The layout of an encapsulated record batch of so many bytes, of which `message` holds the metadata at least.

    Raises BadCell for another message, a compressed body, or buffers that overlap or leave the message.
    """
    try:
        metadata = message[: metadata_bytes(message)]
        header = _field(metadata, PREFIX_BYTES + _u32(metadata, PREFIX_BYTES), _MESSAGE_HEADER)
        if header is None:
            raise BadCell("the Arrow message has no header")
        batch = header + _u32(metadata, header)
        if _field(metadata, batch, _COMPRESSION) is not None:
            raise BadCell("compressed record batch; only cells may be compressed")
        at = _field(metadata, batch, _ROWS)
        rows = 0 if at is None else int(struct.unpack_from("<q", metadata, at)[0])
        nodes = [Node(*pair) for pair in _pairs(metadata, batch, _NODES)]
        spans = [Span(len(metadata) + start, length) for start, length in _pairs(metadata, batch, _BUFFERS)]
    except struct.error as error:
        raise BadCell(f"the Arrow message ends early ({error})") from error
    end = len(metadata)
    for span in spans:
        if span.start < end or span.length < 0:
            raise BadCell("buffers of a record batch overlap")
        end = span.start + span.length
    if end > message_bytes:
        raise BadCell(f"buffers of a record batch end at byte {end} of its {message_bytes}")
    return BatchLayout(rows, nodes, spans)


def _pairs(message: memoryview, table: int, number: int) -> list[tuple[int, int]]:
    """A vector of structs of two int64."""
    at = _field(message, table, number)
    if at is None:
        return []
    vector = at + _u32(message, at)
    return list(struct.iter_unpack("<qq", message[vector + 4 : vector + 4 + 16 * _u32(message, vector)]))


def _field(message: memoryview, table: int, number: int) -> int | None:
    """The place of a field of a flatbuffers table; None if it has its default."""
    vtable = table - int(struct.unpack_from("<i", message, table)[0])
    (size,) = struct.unpack_from("<H", message, vtable)
    if 4 + 2 * number >= size:
        return None
    (offset,) = struct.unpack_from("<H", message, vtable + 4 + 2 * number)
    return table + int(offset) if offset else None


def _u32(message: memoryview, at: int) -> int:
    return int(struct.unpack_from("<I", message, at)[0])
