"""`sampled`: how often each token id was drawn in S draws from the teacher; its log-probability is log(hits / S).

The draws hold all the mass, so the tail is -inf. Positions with fewer than S draws are refused, because the missing
draws would look like a tail.
"""

import numpy as np
from numpy.typing import NDArray

from arwkv_store.errors import UsageError
from arwkv_store.format.codecs.frames import BadCell, Planes, build_cell, parse_cell
from arwkv_store.format.codecs.planes import join_ids, join_u32, split_ids, split_u16, split_u32
from arwkv_store.format.codecs.segments import checked_counts, segments
from arwkv_store.format.sample import SparseLogits

CODEC_ID = 3
MAX_SAMPLES = 65535
_WIDE_IDS, _WIDER_IDS, _HIGH_PLANE = 1, 2, 4


def encode(logits: SparseLogits, limit: int) -> bytes:
    """One cell for S = `limit` draws a position. Raises UsageError unless the log-probabilities are log(hits / S)."""
    parts = segments(logits.counts)
    hits = np.rint(np.exp(logits.logprobs.astype(np.float64)) * limit)
    if limit > MAX_SAMPLES or hits.min(initial=1) < 1:
        raise UsageError(f"codec sampled: {limit} draws with {hits.min(initial=1):.0f} hits; 1..{MAX_SAMPLES} fit")
    if np.abs(_logprobs(hits, limit) - logits.logprobs).max(initial=0) > 1e-5:
        raise UsageError(f"codec sampled: log-probabilities are not log(hits / {limit}); use exact or compact")
    totals = parts.reduce(np.add, parts.shape(hits))
    if len(parts.counts) != len(logits.counts) or (totals != limit).any():
        raise UsageError(f"codec sampled: hits of a position do not add up to {limit}; use exact or compact")
    id_bits, raw_ids, packed_ids = split_ids(logits.ids)
    low, high = split_u16((hits - 1).astype(np.uint16))
    flags = {0: 0, 2: _WIDE_IDS, 8: _WIDER_IDS}[id_bits] | (_HIGH_PLANE if high.any() else 0)
    return build_cell(
        CODEC_ID,
        tokens=len(logits.counts),
        entries=parts.n,
        flags=flags,
        parameter=limit,
        raw=raw_ids,
        packed=[
            *split_u32(np.ascontiguousarray(logits.counts, np.int32)),
            *packed_ids,
            low,
            *([high] if high.any() else []),
        ],
    )


def decode(cell: NDArray[np.uint8], tokens: int, limit: int) -> SparseLogits:
    """Inverse of `encode`. Raises BadCell."""
    parsed = parse_cell(cell, CODEC_ID, tokens, max_bytes_per_token=8, max_bytes_per_entry=4)
    if parsed.parameter == 0 or (parsed.flags & _WIDE_IDS and parsed.flags & _WIDER_IDS):
        raise BadCell(f"flags {parsed.flags} of {parsed.parameter} draws")
    raw, packed = Planes(parsed.raw), Planes(parsed.packed)
    counts = checked_counts(join_u32([packed.take(tokens) for _ in range(4)]), parsed.entries, limit)
    id_bits = 2 if parsed.flags & _WIDE_IDS else 8 if parsed.flags & _WIDER_IDS else 0
    ids = join_ids(parsed.entries, id_bits, raw.take(parsed.entries), packed)
    hits = packed.take(parsed.entries).astype(np.uint32)
    if parsed.flags & _HIGH_PLANE:
        hits |= packed.take(parsed.entries).astype(np.uint32) << 8
    raw.end()
    packed.end()
    table = _logprobs(np.arange(1, int(hits.max(initial=0)) + 2, dtype=np.float64), parsed.parameter)
    return SparseLogits(counts, ids, np.take(table, hits), np.full(tokens, -np.inf, np.float32))


def _logprobs(hits: NDArray[np.float64], draws: int) -> NDArray[np.float32]:
    return np.log(hits / draws).astype(np.float32)
