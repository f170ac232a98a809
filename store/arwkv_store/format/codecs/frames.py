"""The cell that every codec writes: a fixed header, raw planes, and one zstd frame of the planes that compress.

Planes that do not compress stay outside the frame, where they take no time to encode or decode.
"""

import struct
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import zstandard
from numpy.typing import NDArray

# codec, flags, parameter, tokens, entries, raw bytes, bytes the frame unpacks to, bytes of the frame
HEADER = struct.Struct("<BBHIIIII")
ZSTD_LEVEL = 1
_SCRATCH_BYTES = 8 << 20
# For planes without repeats: only the entropy coding pays. Searching for short matches in them makes the frame larger
# and its decoding slower (measured on bf16 exponents: 1.358 against 1.379 bytes a value, 1.6 times the speed).
_ENTROPY_ONLY = zstandard.ZstdCompressionParameters(
    strategy=zstandard.STRATEGY_FAST,
    min_match=7,
    hash_log=8,
    chain_log=6,
    search_log=1,
    window_log=17,
    write_checksum=False,
    write_content_size=True,
)
CELL_ALIGNMENT = 8

_local = threading.local()


class BadCell(ValueError):
    """A cell's bytes contradict themselves. The reader turns it into CorruptShard with file and batch."""


class Cell(NamedTuple):
    """A parsed cell; `raw` and `packed` hold the planes one after another.

    `packed` is this thread's scratch memory until the next cell is parsed: what is decoded from it must be copied.
    """

    flags: int
    parameter: int
    tokens: int
    entries: int
    raw: NDArray[np.uint8]
    packed: NDArray[np.uint8]


def build_cell(
    codec: int,
    *,
    tokens: int,
    entries: int,
    raw: Sequence[NDArray[Any]] = (),
    packed: Sequence[NDArray[Any]] = (),
    flags: int = 0,
    parameter: int = 0,
    entropy_only: bool = False,
) -> bytes:
    """Lay out one cell, zero-padded to a multiple of 8 bytes so that raw planes lie aligned in the file."""
    raw_bytes = b"".join([_bytes_of(plane) for plane in raw])
    packed_bytes = b"".join([_bytes_of(plane) for plane in packed])
    frame = _compressor(entropy_only).compress(packed_bytes) if packed_bytes else b""
    header = HEADER.pack(codec, flags, parameter, tokens, entries, len(raw_bytes), len(packed_bytes), len(frame))
    padding = b"\0" * (-(HEADER.size + len(raw_bytes) + len(frame)) % CELL_ALIGNMENT)
    return b"".join([header, raw_bytes, frame, padding])


def parse_cell(
    cell: NDArray[np.uint8], codec: int, tokens: int, *, max_bytes_per_token: int, max_bytes_per_entry: int = 0
) -> Cell:
    """Split one cell and unpack its frame into at most so many bytes. Raises BadCell.

    Each entry has a raw byte, so a small cell cannot declare many entries.
    """
    if len(cell) < HEADER.size:
        raise BadCell(f"cell of {len(cell)} bytes is shorter than its header")
    found, flags, parameter, cell_tokens, entries, raw_size, packed_size, frame_size = HEADER.unpack_from(cell.data)
    if found != codec or cell_tokens != tokens:
        raise BadCell(f"cell of codec {found} with {cell_tokens} tokens, expected codec {codec} with {tokens}")
    end = HEADER.size + raw_size + frame_size
    most = tokens * max_bytes_per_token + min(entries, raw_size) * max_bytes_per_entry
    if len(cell) != end + -end % CELL_ALIGNMENT or packed_size > most:
        raise BadCell(f"cell of {len(cell)} bytes claims {raw_size}+{frame_size} bytes, unpacking to {packed_size}")
    raw = cell[HEADER.size : HEADER.size + raw_size]
    packed = _unpack(cell[HEADER.size + raw_size : end], packed_size)
    return Cell(flags, parameter, tokens, entries, raw, packed)


def _unpack(frame: NDArray[np.uint8], size_bytes: int) -> NDArray[np.uint8]:
    if size_bytes == 0 and len(frame) == 0:
        return np.empty(0, np.uint8)
    try:
        # The declared size is what the decoder allocates: it must be the bounded one before decoding starts.
        if zstandard.frame_content_size(frame.data) != size_bytes:
            raise BadCell(f"frame does not unpack to the {size_bytes} bytes that its cell declares")
        scratch = _scratch(size_bytes)
        with _decompressor().stream_reader(frame.data, read_across_frames=True) as reader:
            # The read after the last byte finds a second frame or other bytes that do not belong there.
            if reader.readinto(scratch.data) != size_bytes or reader.read(1):
                raise BadCell(
                    f"frame does not unpack to the {size_bytes} bytes that its cell declares, or bytes follow it"
                )
    except zstandard.ZstdError as error:
        raise BadCell(f"frame does not unpack: {error}") from error
    return scratch


class Planes:
    """Reads the planes of a section in the order they were written. Raises BadCell at its end."""

    def __init__(self, section: NDArray[np.uint8]) -> None:
        self._section = section
        self._at = 0

    def take(self, n: int, dtype: type[np.generic] = np.uint8) -> NDArray[Any]:
        """The next `n` values of `dtype`, a view on the section."""
        size = n * np.dtype(dtype).itemsize
        plane = self._section[self._at : self._at + size]
        if len(plane) != size:
            raise BadCell(f"planes end {size - len(plane)} bytes early")
        self._at += size
        return plane.view(dtype)

    def end(self) -> None:
        """Raise BadCell unless every byte was taken."""
        if self._at != len(self._section):
            raise BadCell(f"{len(self._section) - self._at} bytes after the last plane")


def _bytes_of(plane: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(plane).reshape(-1).view(np.uint8).data


def _compressor(entropy_only: bool) -> zstandard.ZstdCompressor:
    # zstd contexts hold megabytes and are not thread-safe: one of each per thread.
    if not hasattr(_local, "compressors"):
        plain = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=False)
        _local.compressors = (plain, zstandard.ZstdCompressor(compression_params=_ENTROPY_ONLY))
    compressors: tuple[zstandard.ZstdCompressor, zstandard.ZstdCompressor] = _local.compressors
    return compressors[entropy_only]


def _scratch(size_bytes: int) -> NDArray[np.uint8]:
    """This thread's buffer for unpacking: a new one per cell would cause page faults, a third of the decoding time."""
    if size_bytes > _SCRATCH_BYTES:
        return np.empty(size_bytes, np.uint8)
    if not hasattr(_local, "scratch"):
        _local.scratch = np.empty(_SCRATCH_BYTES, np.uint8)
    scratch: NDArray[np.uint8] = _local.scratch[:size_bytes]
    return scratch


def _decompressor() -> zstandard.ZstdDecompressor:
    if not hasattr(_local, "decompressor"):
        _local.decompressor = zstandard.ZstdDecompressor()
    decompressor: zstandard.ZstdDecompressor = _local.decompressor
    return decompressor
