"""`none`: plain arrays, for temporary data. Decoded arrays are read-only views on the cell."""

import numpy as np
from numpy.typing import NDArray

from arwkv_store.format.codecs.frames import Planes, build_cell, parse_cell
from arwkv_store.format.codecs.segments import checked_counts
from arwkv_store.format.sample import SparseLogits

CODEC_ID = 8


def encode(logits: SparseLogits, _limit: int) -> bytes:
    """One cell."""
    planes = [
        logits.counts.astype(np.int32),
        logits.tail_logprob.astype(np.float32),
        logits.ids.astype(np.int32),
        logits.logprobs.astype(np.float32),
    ]
    return build_cell(CODEC_ID, tokens=len(logits.counts), entries=len(logits.ids), raw=planes)


def decode(cell: NDArray[np.uint8], tokens: int, limit: int) -> SparseLogits:
    """Inverse of `encode`, without a copy; positions hold at most `limit` entries. Raises BadCell."""
    parsed = parse_cell(cell, CODEC_ID, tokens, max_bytes_per_token=0)
    raw = Planes(parsed.raw)
    counts = checked_counts(raw.take(tokens, np.uint32), parsed.entries, limit)
    tail, ids = raw.take(tokens, np.float32), raw.take(parsed.entries, np.int32)
    logprobs = raw.take(parsed.entries, np.float32)
    raw.end()
    return SparseLogits(counts, ids, logprobs, tail)
