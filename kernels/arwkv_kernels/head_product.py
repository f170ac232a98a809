"""The three matrix products of a language-model head, with fp32 results whatever the weights' precision.

A CPU's bf16 product rounds its result to bf16, an error of 0.06 at a logit of 20; so bf16 weights are raised to fp32
a block of rows at a time. CUDA's product accumulates and returns fp32 by itself.
C model width, V vocabulary, t tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# 8192 rows of width 4096 in fp32 are 128 MiB.
ROWS_PER_BLOCK = 8192


def _raised_blocks(weight_VC: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    rows = weight_VC.shape[0] if weight_VC.dtype == dtype else ROWS_PER_BLOCK
    for start in range(0, weight_VC.shape[0], max(1, rows)):
        block = slice(start, min(start + rows, weight_VC.shape[0]))
        yield block, weight_VC[block].to(dtype)


def head_logits(hidden_tC: Tensor, weight_VC: Tensor, out: Tensor) -> Tensor:
    """hidden @ weightᵀ, written to `out` [t, V] (contiguous, fp32 or fp64), which is returned."""
    if hidden_tC.is_cuda and hidden_tC.dtype == weight_VC.dtype and hidden_tC.dtype != out.dtype:
        return torch.mm(hidden_tC, weight_VC.mT, out_dtype=out.dtype, out=out)
    hidden_tC = hidden_tC.to(out.dtype)
    for block, weight_block in _raised_blocks(weight_VC, out.dtype):
        torch.mm(hidden_tC, weight_block.mT, out=out[:, block])
    return out


def times_head(d_logits_tV: Tensor, weight_VC: Tensor) -> Tensor:
    """d_logits @ weight: the gradient of the hidden states [t, C], in d_logits' dtype."""
    if d_logits_tV.is_cuda and weight_VC.dtype != d_logits_tV.dtype:
        return torch.mm(d_logits_tV.to(weight_VC.dtype), weight_VC, out_dtype=d_logits_tV.dtype)
    d_hidden_tC = d_logits_tV.new_zeros(d_logits_tV.shape[0], weight_VC.shape[1])
    for block, weight_block in _raised_blocks(weight_VC, d_logits_tV.dtype):
        d_hidden_tC.addmm_(d_logits_tV[:, block], weight_block)
    return d_hidden_tC


def accumulate_weight_gradient(d_weight_VC: Tensor, d_logits_tV: Tensor, hidden_tC: Tensor) -> None:
    """d_weight += d_logitsᵀ @ hidden."""
    if hidden_tC.is_cuda and hidden_tC.dtype != d_logits_tV.dtype:
        d_weight_VC += torch.mm(d_logits_tV.to(hidden_tC.dtype).mT, hidden_tC, out_dtype=d_weight_VC.dtype)
        return
    d_weight_VC.addmm_(d_logits_tV.mT, hidden_tC.to(d_logits_tV.dtype))
