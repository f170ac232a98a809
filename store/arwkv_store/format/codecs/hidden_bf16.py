"""`bf16`: hidden states bit for bit. The byte with sign and exponent is compressed; the byte of the mantissa is not."""

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from arwkv_store.format.codecs.frames import BadCell, build_cell, parse_cell
from arwkv_store.format.codecs.planes import join_u16, split_u16

CODEC_ID = 16


def encode(states: NDArray[ml_dtypes.bfloat16]) -> bytes:
    """One cell of states [T, C]."""
    T, C = states.shape
    low, high = split_u16(np.ascontiguousarray(states).view(np.uint16).reshape(-1))
    return build_cell(CODEC_ID, tokens=T, entries=C, raw=[low], packed=[high], entropy_only=True)


def decode(cell: NDArray[np.uint8], tokens: int, width: int) -> NDArray[ml_dtypes.bfloat16]:
    """States [T, C] bit for bit. Raises BadCell."""
    parsed = parse_cell(cell, CODEC_ID, tokens, max_bytes_per_token=width)
    shape = (tokens, width)
    if parsed.entries != width or len(parsed.raw) != tokens * width or len(parsed.packed) != len(parsed.raw):
        raise BadCell(f"planes of {len(parsed.raw)} and {len(parsed.packed)} bytes, expected {shape}")
    states: NDArray[ml_dtypes.bfloat16] = join_u16(parsed.raw, parsed.packed).view(ml_dtypes.bfloat16).reshape(shape)
    return states
