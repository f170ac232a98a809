"""Top-k, log-sum-exp, entropy and the rest's mass of rows of logits, reading each logit once.

The k largest of a row lie in the k groups with the largest maxima. The first kernel reads the row and leaves, of every
group of 38 or so logits, the maximum and the sums that the normalizer and the entropy take. The second chooses the
groups, reads their logits again, and keeps the k largest. Both choices find the k-th largest bit by bit. How a row is
cut depends on V and k alone: what is kept, of equal logits too, does not depend on the rows beside it.

Legend: T rows, V columns, K kept, G = SPLITS · LANES groups; a group is every LANES-th column of its split.
"""

# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False
# mypy: disallow-untyped-calls=False, disallow-incomplete-defs=False
# Triton compiles these functions; their parameters are pointers and constants that Python's types do not describe.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from arwkv_kernels.triton.launch import device_of

LANES = 1024
DEPTH = 8
READ_WARPS = 8
CHOOSE_WARPS = 8
# The candidates of a row, K groups of them, are held in registers.
MOST_KEPT = 128
MOST_CANDIDATES = 4096


@triton.jit
def _exp_of(x, base):
    """exp(x - base), 0 where both are -inf."""
    return tl.exp(tl.where(x == -float("inf"), -float("inf"), x - base))


@triton.jit
def topk_groups_kernel(
    logits_ptr, highest_ptr, mass_ptr, moment_ptr, V, stride, steps,
    SPLITS: tl.constexpr, LANES: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Of each group: its maximum m, Σ exp(x - m), Σ exp(x - m)(x - m)."""
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lane, depth = tl.arange(0, LANES), tl.arange(0, DEPTH)
    logits_ptr += row * stride
    highest = tl.full([LANES], -float("inf"), tl.float32)
    mass = tl.zeros([LANES], tl.float32)
    moment = tl.zeros([LANES], tl.float32)
    for step in range(0, steps, DEPTH):
        at = step + depth
        columns = (split * steps + at)[:, None] * LANES + lane[None, :]
        inside = (at < steps)[:, None] & (columns < V)
        z = tl.load(logits_ptr + columns, mask=inside, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(highest, tl.max(z, 0))
        # A NaN is no maximum, but reaches the sums: the row's log-sum-exp says so.
        base = tl.where(higher == -float("inf"), 0.0, higher)
        weight = tl.exp(z - base[None, :])
        fading = tl.exp(highest - base)
        shift = tl.where(highest == -float("inf"), 0.0, highest - base)
        moment = fading * (moment + shift * mass) + tl.sum(tl.where(weight > 0, (z - base[None, :]) * weight, 0.0), 0)
        mass = mass * fading + tl.sum(weight, 0)
        highest = higher
    group = row * (SPLITS * LANES) + split * LANES + lane
    tl.store(highest_ptr + group, highest)
    tl.store(mass_ptr + group, mass)
    tl.store(moment_ptr + group, moment)


@triton.jit
def _ordered(x):
    """uint32 that compare as the floats do; above 0, which stands for what is no entry; NaN lowest."""
    bits = x.to(tl.uint32, bitcast=True)
    ordered = tl.where(bits >> 31 == 1, ~bits, bits | 0x80000000)
    return tl.where(x != x, 1, ordered).to(tl.uint32)


@triton.jit
def _value(ordered):
    """The float that `_ordered` was given."""
    bits = tl.where(ordered >> 31 == 1, ordered ^ 0x80000000, ~ordered).to(tl.uint32)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _chosen(keys, K):
    """Which K are the largest; of equal ones the first. And each chosen one's place among the chosen."""
    threshold, bit = tl.full([], 0, tl.uint32), tl.full([], 1 << 31, tl.uint32)
    for _ in range(0, 32):
        trial = threshold | bit
        threshold = tl.where(tl.sum((keys >= trial).to(tl.int32), 0) >= K, trial, threshold)
        bit = bit >> 1
    above, level = keys > threshold, keys == threshold
    free = K - tl.sum(above.to(tl.int32), 0)
    chosen = above | (level & (tl.cumsum(level.to(tl.int32), 0) <= free))
    return chosen, tl.cumsum(chosen.to(tl.int32), 0) - 1


@triton.jit
def topk_choose_kernel(
    logits_ptr, highest_ptr, mass_ptr, moment_ptr, groups_ptr,
    values_ptr, ids_ptr, logsumexp_ptr, entropy_ptr, tail_ptr, next_ids_ptr, next_ptr, V, K, stride, steps,
    G: tl.constexpr, LANES: tl.constexpr, KEPT: tl.constexpr, STEPS: tl.constexpr, LOGPROBS: tl.constexpr,
):  # fmt: skip
    """With LOGPROBS the values are log-probabilities, and next_ptr gets that of each row's next id, 0 of -1."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, G)
    highest = tl.load(highest_ptr + row * G + group)
    chosen, place = _chosen(_ordered(highest), K)
    tl.store(groups_ptr + row * K + place, group, mask=chosen)
    top = tl.max(highest, 0)
    mass = tl.load(mass_ptr + row * G + group) * _exp_of(highest, top)
    total = tl.sum(mass, 0)
    rest = tl.sum(tl.where(chosen, 0.0, mass), 0)
    shift = tl.where(highest == -float("inf"), 0.0, highest - top)
    moment = tl.load(moment_ptr + row * G + group) * _exp_of(highest, top) + shift * mass
    entropy = tl.log(total) - tl.sum(moment, 0) / total
    tl.debug_barrier()

    candidate = tl.arange(0, KEPT * STEPS)
    which, at = candidate // STEPS, candidate % STEPS
    own = tl.load(groups_ptr + row * K + which, mask=which < K, other=0)
    columns = (own // LANES * steps + at) * LANES + own % LANES
    inside = (which < K) & (at < steps) & (columns < V)
    z = tl.load(logits_ptr + row * stride + columns, mask=inside, other=-float("inf")).to(tl.float32)
    # Columns that are none come after those at -inf, which have a place in a row of fewer than K finite logits.
    kept, slot = _chosen(tl.where(inside, _ordered(z), 0).to(tl.uint32), K)
    rest += tl.sum(tl.where(kept, 0.0, _exp_of(z, top)), 0)
    tl.store(values_ptr + row * K + slot, z, mask=kept)
    tl.store(ids_ptr + row * K + slot, columns, mask=kept)
    tl.debug_barrier()

    rank = tl.arange(0, KEPT)
    keys = _ordered(tl.load(values_ptr + row * K + rank, mask=rank < K, other=-float("inf"))).to(tl.uint64)
    # The smaller column first among equals.
    pairs = (keys << 32) | (0xFFFFFFFF - tl.load(ids_ptr + row * K + rank, mask=rank < K, other=0).to(tl.uint64))
    pairs = tl.sort(tl.where(rank < K, pairs, 0), descending=True)
    tl.debug_barrier()
    values, log_z = _value((pairs >> 32).to(tl.uint32)), top + tl.log(total)
    if LOGPROBS:
        values -= log_z
        entropy = tl.where(entropy < 0.0, 0.0, entropy)  # by rounding; a NaN stays
        following = tl.load(next_ids_ptr + row)
        known = (following >= 0) & (following < V)
        z_next = tl.load(logits_ptr + row * stride + following, mask=known, other=-1e30).to(tl.float32)
        tl.store(next_ptr + row, tl.where(following < 0, 0.0, z_next - log_z))
    tl.store(values_ptr + row * K + rank, values, mask=rank < K)
    tl.store(ids_ptr + row * K + rank, (0xFFFFFFFF - (pairs & 0xFFFFFFFF)).to(tl.int32), mask=rank < K)
    tl.store(logsumexp_ptr + row, log_z)
    tl.store(entropy_ptr + row, entropy)
    tl.store(tail_ptr + row, tl.log(rest) - tl.log(total))


def can_keep(k: int, columns: int) -> bool:
    """Whether a row's candidates fit into registers."""
    return k <= MOST_KEPT and triton.next_power_of_2(k) * _cut(k, columns)[2] <= MOST_CANDIDATES


def _cut(k: int, columns: int) -> tuple[int, int, int]:
    """SPLITS, the steps of a split, and the next power of two."""
    splits = 4 if k <= 64 else 8
    steps = triton.cdiv(triton.cdiv(columns, LANES), splits)
    return splits, steps, triton.next_power_of_2(steps)


def topk_logsumexp_triton(
    logits_TV: Tensor, k: int, next_ids_T: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `arwkv_kernels.topk_logsumexp`, for logits whose last axis is contiguous and a k that `can_keep` takes.

    With `next_ids_T` as `topk_logprobs`, and the log-probabilities of these ids [T] come last.
    """
    T, V = logits_TV.shape
    splits, steps, padded_steps = _cut(k, V)
    kept = triton.next_power_of_2(k)
    device = logits_TV.device
    groups = [torch.empty(T, splits * LANES, device=device) for _ in range(3)]
    groups_TK = torch.empty(T, k, dtype=torch.int32, device=device)
    ids_TK = torch.empty(T, k, dtype=torch.int64 if next_ids_T is None else torch.int32, device=device)
    values_TK = torch.empty(T, k, device=device)
    logsumexp_T, entropy_T, tail_T, next_T = torch.empty(4, T, device=device)
    with device_of(logits_TV):
        topk_groups_kernel[(T, splits)](
            logits_TV, *groups, V, logits_TV.stride(0), steps,
            SPLITS=splits, LANES=LANES, DEPTH=DEPTH, num_warps=READ_WARPS,
        )  # fmt: skip
        topk_choose_kernel[(T,)](
            logits_TV, *groups, groups_TK, values_TK, ids_TK, logsumexp_T, entropy_T, tail_T,
            ids_TK if next_ids_T is None else next_ids_T.contiguous(), next_T, V, k, logits_TV.stride(0), steps,
            G=splits * LANES, LANES=LANES, KEPT=kept, STEPS=padded_steps, LOGPROBS=next_ids_T is not None,
            num_warps=CHOOSE_WARPS,
        )  # fmt: skip
    return values_TK, ids_TK, logsumexp_T, entropy_T, tail_T, next_T
