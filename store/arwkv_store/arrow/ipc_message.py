"""A look into an Arrow IPC message before pyarrow unpacks it.

Cells are compressed one by one, record batches never: a compressed body would let a small file unpack to any size, and
pyarrow offers no bound. So the one flatbuffers field that announces compression is read here.
"""

import struct

from arwkv_store.format.codecs.frames import BadCell

_CONTINUATION = 0xFFFFFFFF
_PREFIX_BYTES = 8
# Field numbers in Arrow's Message.fbs: Message.header, RecordBatch.compression.
_MESSAGE_HEADER, _BATCH_COMPRESSION = 2, 3


def require_plain_body(message: memoryview) -> None:
    """Raise BadCell if the encapsulated record batch `message` has a compressed body, or is no such message."""
    try:
        if struct.unpack_from("<I", message, 0)[0] != _CONTINUATION:
            raise BadCell("no Arrow message where the manifest says one begins")
        root = _PREFIX_BYTES + _u32(message, _PREFIX_BYTES)
        header = _field(message, root, _MESSAGE_HEADER)
        if header is None:
            raise BadCell("an Arrow message without a header")
        if _field(message, header + _u32(message, header), _BATCH_COMPRESSION) is not None:
            raise BadCell("compressed record batch; only cells may be compressed")
    except struct.error as error:
        raise BadCell(f"an Arrow message that ends early ({error})") from error


def _field(message: memoryview, table: int, number: int) -> int | None:
    """Where a field of a flatbuffers table lies; None where it has its default."""
    vtable = table - int(struct.unpack_from("<i", message, table)[0])
    (size,) = struct.unpack_from("<H", message, vtable)
    if 4 + 2 * number >= size:
        return None
    (offset,) = struct.unpack_from("<H", message, vtable + 4 + 2 * number)
    return table + int(offset) if offset else None


def _u32(message: memoryview, at: int) -> int:
    return int(struct.unpack_from("<I", message, at)[0])
