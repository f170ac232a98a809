"""Integers as byte planes: bytes of equal significance together, which zstd compresses better."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from arwkv_store.format.codecs.frames import BadCell, Planes


def split_u32(values: NDArray[Any]) -> list[NDArray[np.uint8]]:
    """The four byte planes of 32-bit values, lowest byte first."""
    as_bytes = np.ascontiguousarray(values).view(np.uint8).reshape(-1, 4)
    return [np.ascontiguousarray(as_bytes[:, i]) for i in range(4)]


def join_u32(planes: list[NDArray[np.uint8]]) -> NDArray[np.uint32]:
    """Inverse of split_u32."""
    values = planes[3].astype(np.uint32)
    for plane in (planes[2], planes[1], planes[0]):
        values <<= 8
        values |= plane
    return values


def split_u16(values: NDArray[np.uint16]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The low and high byte planes of 16-bit values."""
    return values.astype(np.uint8), (values >> 8).astype(np.uint8)


def join_u16(low: NDArray[np.uint8], high: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Inverse of split_u16."""
    # One pass that widens and shifts, one that joins: half the memory traffic of widening first.
    values = np.multiply(high, np.uint16(256), dtype=np.uint16)
    np.bitwise_or(values, low, out=values)
    return values


# Bits above the 16th of a token id, by how many are needed: 0 up to 65,536 ids, 2 up to 262,144, 8 up to 2^24.
HIGH_BITS = (0, 2, 8)
_UNPACK_2 = np.ascontiguousarray(((np.arange(256)[:, None] >> np.array([0, 2, 4, 6])) & 3).astype(np.int32) << 16)


def split_ids(ids: NDArray[np.int32]) -> tuple[int, list[NDArray[np.uint8]], list[NDArray[np.uint8]]]:
    """Token ids as (bits above the 16th, raw planes, planes worth compressing). Ids are below 2^24."""
    top = int(ids.max(initial=0)) >> 16
    bits = 0 if top == 0 else 2 if top < 4 else 8
    low, middle = split_u16(ids.astype(np.uint16))
    if bits == 0:
        return 0, [low], [middle]
    high = (ids >> 16).astype(np.uint8)
    if bits == 8:
        return 8, [low], [middle, high]
    quads = np.zeros(-(-len(high) // 4) * 4, np.uint8)
    quads[: len(high)] = high
    # Four 2-bit values read as one little-endian word; the multiplication brings them together in its top byte.
    quad = (quads.view("<u4") * np.uint32(1 << 24 | 1 << 18 | 1 << 12 | 1 << 6)) >> 24
    return 2, [low], [middle, quad.astype(np.uint8)]


def join_ids(n: int, bits: int, low: NDArray[np.uint8], packed: Planes) -> NDArray[np.int32]:
    """Inverse of split_ids for `n` ids; takes their compressible planes off `packed`. Raises BadCell."""
    if bits not in HIGH_BITS:
        raise BadCell(f"token ids of 16+{bits} bits, expected one of {HIGH_BITS} more")
    lower = join_u16(low, packed.take(n))
    if bits == 0:
        return lower.astype(np.int32)
    if bits == 8:
        ids: NDArray[np.int32] = packed.take(n).astype(np.int32)
        ids <<= 16
    else:
        ids = np.take(_UNPACK_2, packed.take(-(-n // 4)), axis=0).reshape(-1)[:n]
    ids |= lower
    return ids
