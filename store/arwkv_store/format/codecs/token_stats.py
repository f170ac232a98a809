"""`token_stats`: entropy [T] and the true tokens' log-probabilities [T-1], bit for bit, as float32 byte planes."""

import numpy as np
from numpy.typing import NDArray

from arwkv_store.format.codecs.frames import Planes, build_cell, parse_cell
from arwkv_store.format.codecs.planes import join_u32, split_u32

CODEC_ID = 32


def encode(entropy: NDArray[np.float32], true_logprob: NDArray[np.float32]) -> bytes:
    """One cell."""
    entropy_planes = split_u32(np.ascontiguousarray(entropy, np.float32))
    true_planes = split_u32(np.ascontiguousarray(true_logprob, np.float32))
    return build_cell(
        CODEC_ID,
        tokens=len(entropy),
        entries=len(true_logprob),
        raw=[*entropy_planes[:2], *true_planes[:2]],
        packed=[*entropy_planes[2:], *true_planes[2:]],
    )


def decode(cell: NDArray[np.uint8], tokens: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(entropy [T], true_logprob [T-1]). Raises BadCell."""
    parsed = parse_cell(cell, CODEC_ID, tokens, max_bytes_per_token=4)
    raw, packed = Planes(parsed.raw), Planes(parsed.packed)
    n = tokens - 1
    entropy = join_u32([raw.take(tokens), raw.take(tokens), packed.take(tokens), packed.take(tokens)])
    true_logprob = join_u32([raw.take(n), raw.take(n), packed.take(n), packed.take(n)])
    raw.end()
    packed.end()
    return entropy.view(np.float32), true_logprob.view(np.float32)
