"""`compact`: rounded log-probabilities that hardly change the distribution. Also used for `hybrid` captures.

An entry of probability p that is off by d nats adds about p d^2 / 2 to the KL divergence. So the step grows as
1/sqrt(p): step(l) = min(COARSEST, FINEST e^(l/2)) for l = -log p, which spreads the loss evenly over the entries: at
most k FINEST^2 / 24 nats for k of them. The largest error of a log-probability is COARSEST / 2 = 0.125 nats; that of
the tail is 2^-11 of its value (float16).
"""

import math

import numpy as np
from numpy.typing import NDArray

from arwkv_store.errors import UsageError
from arwkv_store.format.codecs.frames import BadCell, Planes, build_cell, parse_cell
from arwkv_store.format.codecs.planes import join_ids, join_u16, join_u32, split_ids, split_u16, split_u32
from arwkv_store.format.codecs.segments import checked_counts, deltas, running_sums, segments
from arwkv_store.format.sample import SparseLogits

CODEC_ID = 2
FINEST, COARSEST = 0.004, 0.25
"""Steps in nats at p = 1 and for small p."""
MAX_ERROR = COARSEST / 2
CODES = 4096
"""Codes from log-probability 0 downwards; the last stands for about -909 nats."""

_KNEE_NATS = 2 * math.log(COARSEST / FINEST)
_KNEE_CODE = (2 / FINEST) * (1 - math.exp(-_KNEE_NATS / 2))
_HIGH_PLANE, _SIGNED = 1, 2


def _table() -> NDArray[np.float32]:
    """[CODES] the log-probability each code stands for."""
    code = np.arange(CODES, dtype=np.float64)
    below_knee = -2 * np.log1p(-np.minimum(code, _KNEE_CODE) * (FINEST / 2))
    return -np.where(code < _KNEE_CODE, below_knee, _KNEE_NATS + (code - _KNEE_CODE) * COARSEST).astype(np.float32)


_LOGPROBS = _table()
_LEAST_LOGPROB = float(_LOGPROBS[-1]) - MAX_ERROR


def require_codes(where: str, logits: SparseLogits) -> None:
    """Raise UsageError for log-probabilities too small for any code."""
    least = logits.logprobs.min(initial=0)
    if least < _LEAST_LOGPROB:
        raise UsageError(
            f"{where}: logits.logprobs holds {least:.4g}, the lowest value of codec compact is {_LEAST_LOGPROB:.4g}; "
            "use exact"
        )


def encode(logits: SparseLogits, _limit: int) -> bytes:
    """One cell."""
    parts = segments(logits.counts)
    codes = _codes(logits.logprobs)
    first = codes[parts.starts()].astype(np.uint16)
    differences = deltas(codes, parts).astype(np.uint16)
    flags = 0
    if (differences >= 1 << 15).any():
        flags |= _SIGNED
        differences = ((differences << 1) ^ (np.uint16(0) - (differences >> 15))).astype(np.uint16)
    planes = list(split_u16(differences))
    if planes[1].any():
        flags |= _HIGH_PLANE
    id_bits, raw_ids, packed_ids = split_ids(logits.ids)
    with np.errstate(over="ignore"):
        tail = logits.tail_logprob.astype(np.float16)
    return build_cell(
        CODEC_ID,
        tokens=len(logits.counts),
        entries=parts.n,
        flags=flags,
        parameter=id_bits,
        raw=[tail, *raw_ids],
        packed=[
            *split_u32(np.ascontiguousarray(logits.counts, np.int32)),
            *split_u16(first),
            *packed_ids,
            *planes[: 2 if flags & _HIGH_PLANE else 1],
        ],
    )


def decode(cell: NDArray[np.uint8], tokens: int, limit: int) -> SparseLogits:
    """Counts and ids as they were; log-probabilities within MAX_ERROR. Raises BadCell."""
    parsed = parse_cell(cell, CODEC_ID, tokens, max_bytes_per_token=16, max_bytes_per_entry=4)
    raw, packed = Planes(parsed.raw), Planes(parsed.packed)
    tail = raw.take(tokens, np.float16).astype(np.float32)
    counts = checked_counts(join_u32([packed.take(tokens) for _ in range(4)]), parsed.entries, limit)
    parts = segments(counts)
    first = join_u16(packed.take(len(parts.counts)), packed.take(len(parts.counts)))
    ids = join_ids(parts.n, parsed.parameter, raw.take(parts.n), packed)
    differences = packed.take(parts.n)
    if parsed.flags & _HIGH_PLANE:
        differences = join_u16(differences, packed.take(parts.n))
    if parsed.flags & _SIGNED:
        wide = differences.astype(np.uint32)
        differences = (wide >> 1) ^ (np.uint32(0) - (wide & 1))
    raw.end()
    packed.end()
    codes = running_sums(differences, parts)
    codes += parts.spread(first.astype(np.uint32))
    if codes.max(initial=0) >= CODES:
        raise BadCell(f"code {codes.max()} is not below {CODES}")
    return SparseLogits(counts, ids, np.take(_LOGPROBS, codes.reshape(-1)), tail)


def _codes(logprobs: NDArray[np.float32]) -> NDArray[np.uint32]:
    nats = np.maximum(-logprobs, np.float32(0))
    below_knee = (1 - np.exp(nats * np.float32(-0.5))) * np.float32(2 / FINEST)
    above_knee = (nats - np.float32(_KNEE_NATS)) * np.float32(1 / COARSEST) + np.float32(_KNEE_CODE)
    codes = np.where(nats < np.float32(_KNEE_NATS), below_knee, above_knee)
    np.minimum(codes, np.float32(CODES - 1), out=codes)
    np.rint(codes, out=codes)
    return codes.astype(np.uint32)
