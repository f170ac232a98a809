"""`exact`: the log-probabilities bit for bit.

A head that computes in bf16 leaves its logits on a coarse grid, so within a position every log-probability is the first
one less a small multiple of a power of two. Such positions store the first value, the grid and the small integers; they
are used only where the decoder's arithmetic gives back the very bits. Other positions (an fp32 head) store the
differences of the floats' bit patterns.
"""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from arwkv_store.format.codecs.frames import BadCell, Planes, build_cell, parse_cell
from arwkv_store.format.codecs.planes import join_ids, join_u32, split_ids, split_u32
from arwkv_store.format.codecs.segments import Segments, checked_counts, deltas, running_sums, segments
from arwkv_store.format.sample import SparseLogits

CODEC_ID = 1
# Finest grid: 2^-16 nats. A position's grid byte is its exponent, or NO_GRID.
FINEST_EXPONENT = 16
NO_GRID = 255
# Positions tried before the rest are believed to be off the grid as well.
_PROBE = 256
_HIGH_PLANE, _SOME_OFF_GRID = 1, 2
# Spelled out, the annotations of functions made at each call would cost 3% of decoding.
_Floats: TypeAlias = NDArray[np.float32]
_Bytes: TypeAlias = NDArray[np.uint8]


def encode(logits: SparseLogits, _limit: int) -> bytes:
    """One cell. `logits` is valid (validate_sample)."""
    parts = segments(logits.counts)
    values = np.ascontiguousarray(logits.logprobs, np.float32)
    first = values[parts.starts()]
    exponents, steps = _grid(values, first, parts)
    id_bits, raw_ids, packed_ids = split_ids(logits.ids)
    flags, packed_logprobs, raw_logprobs = 0, [], []
    on_grid = exponents != NO_GRID
    if on_grid.any():
        differences = deltas(steps, parts)[_entries(on_grid, parts)]
        packed_logprobs.append(differences.astype(np.uint8))
        if differences.max(initial=0) > 255:
            flags |= _HIGH_PLANE
            packed_logprobs.append((differences >> 8).astype(np.uint8))
    if not on_grid.all():
        flags |= _SOME_OFF_GRID
        differences = deltas(values.view(np.uint32), parts)[_entries(~on_grid, parts)]
        low, middle, high, top = split_u32(differences)
        raw_logprobs, packed_logprobs = [low, middle], [*packed_logprobs, high, top]
    first_planes, tail_planes = split_u32(first), split_u32(np.ascontiguousarray(logits.tail_logprob, np.float32))
    return build_cell(
        CODEC_ID,
        tokens=len(logits.counts),
        entries=parts.n,
        flags=flags,
        parameter=id_bits,
        raw=[*raw_ids, *first_planes[:2], *tail_planes[:2], *raw_logprobs],
        packed=[
            *split_u32(np.ascontiguousarray(logits.counts, np.int32)),
            exponents,
            *first_planes[2:],
            *tail_planes[2:],
            *packed_ids,
            *packed_logprobs,
        ],
    )


def decode(cell: NDArray[np.uint8], tokens: int, limit: int) -> SparseLogits:
    """Inverse of `encode`; positions hold at most `limit` entries. Raises BadCell."""
    parsed = parse_cell(cell, CODEC_ID, tokens, max_bytes_per_token=32, max_bytes_per_entry=8)
    raw, packed = Planes(parsed.raw), Planes(parsed.packed)
    counts = checked_counts(join_u32([packed.take(tokens) for _ in range(4)]), parsed.entries, limit)
    parts = segments(counts)
    P = len(parts.counts)
    exponents = packed.take(P)
    low_ids = raw.take(parts.n)
    first = join_u32([raw.take(P), raw.take(P), packed.take(P), packed.take(P)]).view(np.float32)
    tail = join_u32([raw.take(tokens), raw.take(tokens), packed.take(tokens), packed.take(tokens)]).view(np.float32)
    ids = join_ids(parts.n, parsed.parameter, low_ids, packed)
    on_grid = exponents != NO_GRID
    if exponents[on_grid].max(initial=0) > FINEST_EXPONENT:
        raise BadCell(f"grid of 2^-{exponents[on_grid].max()}, the finest is 2^-{FINEST_EXPONENT}")
    high_plane = bool(parsed.flags & _HIGH_PLANE)

    def grid(chosen: Segments, first: _Floats, exponents: _Bytes) -> _Floats:
        differences = packed.take(chosen.n)
        if high_plane:
            differences = differences | (packed.take(chosen.n).astype(np.uint16) << 8)
        sums = running_sums(differences, chosen)
        return _grid_values(sums, first, exponents, chosen)

    def floats(chosen: Segments, first: _Floats, _: _Bytes) -> _Floats:
        n = chosen.n
        differences = join_u32([raw.take(n), raw.take(n), packed.take(n), packed.take(n)])
        bits: NDArray[np.uint32] = running_sums(differences, chosen) + chosen.spread(first.view(np.uint32))
        return bits.view(np.float32)

    if not parsed.flags & _SOME_OFF_GRID:
        logprobs = grid(parts, first, exponents).reshape(-1)
    else:
        logprobs = np.empty(parts.n, np.float32)
        _fill(logprobs, on_grid, parts, first, exponents, grid)
        _fill(logprobs, ~on_grid, parts, first, exponents, floats)
    raw.end()
    packed.end()
    return SparseLogits(counts, ids, logprobs, tail)


def _grid(
    values: NDArray[np.float32], first: NDArray[np.float32], parts: Segments
) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """Exponent [P] (NO_GRID where the bits would not come back) and steps [N] below the first entry."""
    P = len(first)
    if P > _PROBE:
        n = int(parts.counts[:_PROBE].sum())
        probe = Segments(parts.counts[:_PROBE], n, parts.uniform)
        exponents, _ = _grid(values[:n], first[:_PROBE], probe)
        if (exponents == NO_GRID).all():
            return np.full(P, NO_GRID, np.uint8), np.zeros(parts.n, np.uint32)
    shaped = parts.shape(values)
    with np.errstate(over="ignore"):
        fine = parts.spread(first) - shaped
    np.clip(fine, 0, 2.0**30 / (1 << FINEST_EXPONENT), out=fine)
    fine *= np.float32(1 << FINEST_EXPONENT)
    np.rint(fine, out=fine)
    steps = fine.astype(np.uint32)
    used = parts.reduce(np.bitwise_or, steps) | np.uint32(1 << FINEST_EXPONENT)
    shift = np.log2((used & (~used + np.uint32(1))).astype(np.float32)).astype(np.uint32)
    steps >>= parts.spread(shift)
    exponents = (FINEST_EXPONENT - shift).astype(np.uint8)
    same = _grid_values(steps, first, exponents, parts).view(np.uint32) == shaped.view(np.uint32)
    fits = parts.reduce(np.maximum, steps) <= 0xFFFF
    flat = steps.reshape(-1)
    rising = deltas(flat, parts) <= 0xFFFF
    good = parts.reduce(np.logical_and, same & parts.shape(rising)) & fits
    return np.where(good, exponents, NO_GRID).astype(np.uint8), flat


def _grid_values(
    steps: NDArray[np.uint32], first: NDArray[np.float32], exponents: NDArray[np.uint8], parts: Segments
) -> NDArray[np.float32]:
    """first - steps * 2^-exponent, in float32: both product and steps are exact, so only the difference rounds."""
    values = steps.astype(np.float32)
    values *= parts.spread(np.ldexp(np.float32(1), -exponents.astype(np.int32)))
    np.subtract(parts.spread(first), values, out=values)
    return values


def _entries(chosen: NDArray[np.bool_], parts: Segments) -> NDArray[np.bool_] | slice:
    return slice(None) if chosen.all() else np.repeat(chosen, parts.counts)


def _fill(
    logprobs: NDArray[np.float32],
    chosen: NDArray[np.bool_],
    parts: Segments,
    first: NDArray[np.float32],
    exponents: NDArray[np.uint8],
    decoded: Callable[[Segments, NDArray[np.float32], NDArray[np.uint8]], NDArray[np.float32]],
) -> None:
    """Decode the chosen positions into their entries."""
    if chosen.any():
        some = segments(parts.counts[chosen])
        logprobs[_entries(chosen, parts)] = decoded(some, first[chosen], exponents[chosen]).reshape(-1)
