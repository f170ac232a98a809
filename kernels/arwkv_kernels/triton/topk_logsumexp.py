"""Top-k, log-sum-exp and entropy of rows of logits, reading each logit once.

One program per row. Few logits of a block beat the worst of the k kept so far, so they are taken one at a time, largest
first, into its place; over a whole row of V that is about k·(1 + ln(V/k)) insertions.
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

BLOCK = 2048
WARPS = 4
# Kept in registers; more do not fit.
MOST_KEPT = 4096


@triton.jit
def topk_logsumexp_kernel(
    logits_ptr, values_ptr, ids_ptr, logsumexp_ptr, entropy_ptr, V, K, stride,
    KEPT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * stride
    j, slot = tl.arange(0, BLOCK), tl.arange(0, KEPT)
    kept = tl.where(slot < K, -float("inf"), float("inf"))
    kept_ids = tl.full([KEPT], -1, tl.int32)
    worst = tl.min(kept, 0)
    highest = tl.full([BLOCK], -float("inf"), tl.float32)
    mass = tl.zeros([BLOCK], tl.float32)
    weighted = tl.zeros([BLOCK], tl.float32)
    for first in range(0, V, BLOCK):
        inside = first + j < V
        z = tl.load(logits_ptr + first + j, mask=inside, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(highest, z)
        base = tl.where(higher == -float("inf"), 0.0, higher)
        fading, weight = tl.exp(highest - base), tl.exp(z - base)
        mass = mass * fading + weight
        weighted = weighted * fading + tl.where(weight > 0, z * weight, 0.0)
        highest = higher
        best = tl.max(z, 0)
        while best > worst:
            at = tl.min(tl.where(z == best, j, BLOCK), 0)
            place = tl.min(tl.where(kept == worst, slot, KEPT), 0)
            kept = tl.where(slot == place, best, kept)
            kept_ids = tl.where(slot == place, first + at, kept_ids)
            z = tl.where(j == at, -float("inf"), z)
            worst = tl.min(kept, 0)
            best = tl.max(z, 0)
    top = tl.max(highest, 0)
    fading = tl.exp(highest - top)
    total = tl.sum(mass * fading, 0)
    logsumexp = top + tl.log(total)
    tl.store(logsumexp_ptr + row, logsumexp)
    tl.store(entropy_ptr + row, logsumexp - tl.sum(weighted * fading, 0) / total)
    tl.store(values_ptr + row * K + slot, kept, mask=slot < K)
    tl.store(ids_ptr + row * K + slot, kept_ids, mask=slot < K)


def topk_logsumexp_triton(logits_TV: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `arwkv_kernels.topk_logsumexp`, for logits whose last axis is contiguous."""
    T, V = logits_TV.shape
    device = logits_TV.device
    values_TK = torch.empty(T, k, dtype=torch.float32, device=device)
    ids_TK = torch.empty(T, k, dtype=torch.int32, device=device)
    logsumexp_T, entropy_T = (torch.empty(T, dtype=torch.float32, device=device) for _ in range(2))
    with device_of(logits_TV):
        topk_logsumexp_kernel[(T,)](
            logits_TV, values_TK, ids_TK, logsumexp_T, entropy_T, V, k, logits_TV.stride(0),
            KEPT=triton.next_power_of_2(k), BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    values_TK, order_TK = values_TK.sort(dim=1, descending=True, stable=True)
    return values_TK, ids_TK.gather(1, order_TK).long(), logsumexp_T, entropy_T
