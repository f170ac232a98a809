"""`fp8`: e4m3 with one scale per token: states[t] ~ scale[t] * e4m3, scale[t] = max|states[t]| / 448."""

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from arwkv_store.format.codecs.frames import BadCell, Planes, build_cell, parse_cell
from arwkv_store.format.codecs.rounding import bf16_in_blocks

CODEC_ID = 17
LARGEST = 448.0

_VALUES = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)


def encode(states: NDArray[ml_dtypes.bfloat16]) -> bytes:
    """One cell of states [T, C]."""
    values = states.astype(np.float32)
    scale = np.abs(values).max(axis=1, initial=0) / np.float32(LARGEST)
    np.divide(values, scale[:, None], out=values, where=scale[:, None] > 0)
    codes = np.clip(values, -LARGEST, LARGEST).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    return build_cell(CODEC_ID, tokens=states.shape[0], entries=states.shape[1], raw=[scale], packed=[codes])


def decode(cell: NDArray[np.uint8], tokens: int, width: int) -> NDArray[ml_dtypes.bfloat16]:
    """States [T, C], rounded to bf16. Raises BadCell."""
    parsed = parse_cell(cell, CODEC_ID, tokens, max_bytes_per_token=width)
    if parsed.entries != width:
        raise BadCell(f"{parsed.entries} channels, expected {width}")
    raw, packed = Planes(parsed.raw), Planes(parsed.packed)
    codes, scale = packed.take(tokens * width).reshape(tokens, width), raw.take(tokens, np.float32)
    raw.end()
    packed.end()

    def values(some: slice) -> NDArray[np.float32]:
        block = np.take(_VALUES, codes[some])
        block *= scale[some, None]
        return block

    return bf16_in_blocks(tokens, width, values)
