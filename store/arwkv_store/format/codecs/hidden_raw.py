"""`none`: hidden states without coding, for temporary data. Decoded states are read-only views on the cell."""

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from arwkv_store.format.codecs.frames import BadCell, build_cell, parse_cell

CODEC_ID = 24


def encode(states: NDArray[ml_dtypes.bfloat16]) -> bytes:
    """One cell of states [T, C]."""
    return build_cell(CODEC_ID, tokens=states.shape[0], entries=states.shape[1], raw=[states])


def decode(cell: NDArray[np.uint8], tokens: int, width: int) -> NDArray[ml_dtypes.bfloat16]:
    """States [T, C], without a copy. Raises BadCell."""
    parsed = parse_cell(cell, CODEC_ID, tokens, max_bytes_per_token=0)
    if len(parsed.raw) != 2 * tokens * width or parsed.entries != width:
        raise BadCell(f"{len(parsed.raw)} bytes of {parsed.entries} channels, expected [{tokens}, {width}]")
    states: NDArray[ml_dtypes.bfloat16] = parsed.raw.view(ml_dtypes.bfloat16).reshape(tokens, width)
    return states
