"""`int8`: one scale per token and group of 64 channels: states ~ scale * int8, scale = max|group| / 127.

A massive activation raises the error only within its group; the shard's worst channel error shows if that is enough.
"""

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from arwkv_store.format.codecs.frames import BadCell, Planes, build_cell, parse_cell
from arwkv_store.format.codecs.rounding import bf16_in_blocks

CODEC_ID = 18
GROUP_CHANNELS = 64
LARGEST = 127


def encode(states: NDArray[ml_dtypes.bfloat16]) -> bytes:
    """One cell of states [T, C]; scales are float32 [T, ceil(C / 64)]."""
    T, C = states.shape
    values = np.zeros((T, _groups(C) * GROUP_CHANNELS), np.float32)
    values[:, :C] = states
    grouped = values.reshape(T, -1, GROUP_CHANNELS)
    scale = np.abs(grouped).max(axis=2, initial=0) / np.float32(LARGEST)
    np.divide(grouped, scale[:, :, None], out=grouped, where=scale[:, :, None] > 0)
    codes = np.clip(np.rint(values[:, :C]), -LARGEST, LARGEST).astype(np.int8)
    return build_cell(CODEC_ID, tokens=T, entries=C, parameter=GROUP_CHANNELS, raw=[scale], packed=[codes])


def decode(cell: NDArray[np.uint8], tokens: int, width: int) -> NDArray[ml_dtypes.bfloat16]:
    """States [T, C], rounded to bf16. Raises BadCell."""
    parsed = parse_cell(cell, CODEC_ID, tokens, max_bytes_per_token=width)
    if parsed.entries != width or parsed.parameter != GROUP_CHANNELS:
        raise BadCell(f"{parsed.entries} channels in groups of {parsed.parameter}, not {width} in {GROUP_CHANNELS}")
    raw, packed = Planes(parsed.raw), Planes(parsed.packed)
    scale = raw.take(tokens * _groups(width), np.float32).reshape(tokens, -1)
    codes = packed.take(tokens * width, np.int8).reshape(tokens, width)
    raw.end()
    packed.end()

    def values(some: slice) -> NDArray[np.float32]:
        block = codes[some].astype(np.float32)
        block *= np.repeat(scale[some], GROUP_CHANNELS, axis=1)[:, :width]
        return block

    return bf16_in_blocks(tokens, width, values)


def _groups(width: int) -> int:
    return -(-width // GROUP_CHANNELS)
