"""Rows of logits to their sparse KL and its gradient, by the formulas of arwkv_kernels.sparse_kl.

One program per row. It takes the candidates' logits out, reads the rest twice (log-sum-exp, then gradient), and puts
the candidates' gradients where they belong.
"""

# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False
# mypy: disallow-untyped-calls=False, disallow-incomplete-defs=False
# Triton compiles these functions; their parameters are pointers and constants that Python's types do not describe.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from arwkv_kernels.sparse_teacher import TAILS, TeacherChunk
from arwkv_kernels.triton.launch import device_of

BLOCK = 4096
WARPS = 8
# Of a row, held in registers: 8192 leave none over, and rows with more are left to torch.
MOST_CANDIDATES = 8192


@triton.jit
def sparse_kl_rows_kernel(
    logits_ptr, gradient_ptr, ids_ptr, counts_ptr, log_p_ptr, log_p_tail_ptr, loss_ptr,
    V, K, temperature,
    CANDIDATES: tl.constexpr, BLOCK: tl.constexpr, BUCKET: tl.constexpr, RENORMALIZE: tl.constexpr,
):  # fmt: skip
    """`gradient_ptr` may be `logits_ptr`; the logits are overwritten at the candidates either way."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * V
    gradient_ptr += row * V
    rank = tl.arange(0, CANDIDATES)
    real = rank < tl.load(counts_ptr + row)
    ids = tl.load(ids_ptr + row * K + rank, mask=real, other=0)
    log_p = tl.load(log_p_ptr + row * K + rank, mask=real, other=-float("inf"))
    chosen = tl.load(logits_ptr + ids, mask=real, other=-float("inf"))
    tl.debug_barrier()
    tl.store(logits_ptr + ids, -float("inf"), mask=real)
    tl.debug_barrier()

    j = tl.arange(0, BLOCK)
    highest = tl.full([BLOCK], -float("inf"), tl.float32)
    mass = tl.zeros([BLOCK], tl.float32)
    for first in range(0, V, BLOCK):
        z = tl.load(logits_ptr + first + j, mask=first + j < V, other=-float("inf"))
        higher = tl.maximum(highest, z)
        # Lanes that saw nothing yet hold -inf, and -inf - -inf is NaN.
        base = tl.where(higher == -float("inf"), 0.0, higher)
        mass = mass * tl.exp(highest - base) + tl.exp(z - base)
        highest = higher
    top = tl.max(highest, 0)
    base = tl.where(top == -float("inf"), 0.0, top)
    total = tl.sum(mass * tl.exp(highest - base), 0)
    rest = tl.where(total > 0, base + tl.log(tl.where(total > 0, total, 1.0)), -float("inf"))

    soft = chosen / temperature
    soft_tail = tl.where(RENORMALIZE, -float("inf"), rest / temperature)
    top_soft = tl.maximum(tl.max(soft, 0), soft_tail)
    top_soft = tl.where(top_soft == -float("inf"), 0.0, top_soft)
    soft_mass = tl.sum(tl.exp(soft - top_soft), 0) + tl.exp(soft_tail - top_soft)
    normalizer = tl.where(soft_mass > 0, top_soft + tl.log(tl.where(soft_mass > 0, soft_mass, 1.0)), 0.0)
    log_q, log_q_tail = soft - normalizer, soft_tail - normalizer
    log_p_tail = tl.load(log_p_tail_ptr + row)
    p = tl.exp(log_p)
    p_tail = tl.where(BUCKET, tl.exp(log_p_tail), 0.0)
    mass_of_loss = tl.sum(p, 0) + p_tail
    loss = tl.sum(p * tl.where(p > 0, log_p - log_q, 0.0), 0)
    loss += p_tail * tl.where(p_tail > 0, log_p_tail - log_q_tail, 0.0)
    tl.store(loss_ptr + row, loss)

    gradient = tl.where(real, (mass_of_loss * tl.exp(log_q) - p) / temperature, 0.0)
    scale = (mass_of_loss * tl.exp(log_q_tail) - p_tail) / temperature / tl.where(total > 0, total, 1.0)
    for first in range(0, V, BLOCK):
        z = tl.load(logits_ptr + first + j, mask=first + j < V, other=-float("inf"))
        tl.store(gradient_ptr + first + j, scale * tl.exp(z - base), mask=first + j < V)
    tl.debug_barrier()
    tl.store(gradient_ptr + ids, gradient, mask=real)


def rows_in_triton(
    logits_tV: Tensor, gradient_tV: Tensor, chunk: TeacherChunk, tail: str, temperature: float
) -> Tensor:
    """The losses [t] of fp32 logits; leaves each one's gradient in `gradient_tV` (any float dtype, or the logits)."""
    assert tail in TAILS
    losses_t = torch.empty(logits_tV.shape[0], dtype=torch.float32, device=logits_tV.device)
    K = chunk.ids_tK.shape[1]
    with device_of(logits_tV):
        sparse_kl_rows_kernel[(logits_tV.shape[0],)](
            logits_tV, gradient_tV, chunk.ids_tK.contiguous(), chunk.real_tK.sum(1), chunk.log_p_tK.contiguous(),
            chunk.log_p_tail_t.contiguous(), losses_t, logits_tV.shape[1], K, temperature,
            CANDIDATES=triton.next_power_of_2(K), BLOCK=BLOCK,
            BUCKET=tail == "bucket", RENORMALIZE=tail == "renormalize", num_warps=WARPS,
        )  # fmt: skip
    return losses_t
