"""The three matrix products of a language-model head, with fp32 results for weights of any precision.

A CPU's bf16 product rounds its result to bf16, an error of 0.06 at a logit of 20; so bf16 weights are raised to fp32
a block of rows at a time. CUDA's product accumulates and returns fp32 by itself. The gradient of the logits never
passes through fp16: most of its entries are about 1/V, below what fp16 holds.
C model width, V vocabulary, t tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# 8192 rows of width 4096 in fp32 are 128 MiB.
ROWS_PER_BLOCK = 8192


def blocks(weight_VC: Tensor) -> Iterator[slice]:
    """The rows in blocks that are small in fp32 compared with the head."""
    for start in range(0, weight_VC.shape[0], ROWS_PER_BLOCK):
        yield slice(start, min(start + ROWS_PER_BLOCK, weight_VC.shape[0]))


def _raised_blocks(weight_VC: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    if weight_VC.dtype == dtype:
        yield slice(0, weight_VC.shape[0]), weight_VC
        return
    for block in blocks(weight_VC):
        yield block, weight_VC[block].to(dtype)


def _multiplies_in_half(x: Tensor) -> bool:
    return x.is_cuda and x.dtype in (torch.bfloat16, torch.float16)


def gradient_dtype(device: torch.device, weight_dtype: torch.dtype, compute_dtype: torch.dtype) -> torch.dtype:
    """The dtype of products with the logits' gradient: bf16 for a bf16 head on a GPU, else the compute dtype."""
    return torch.bfloat16 if device.type == "cuda" and weight_dtype == torch.bfloat16 else compute_dtype


def head_logits(hidden_tC: Tensor, weight_VC: Tensor, out: Tensor) -> Tensor:
    """hidden @ weightᵀ, written to `out` [t, V] (contiguous, fp32 or fp64), which is returned."""
    if _multiplies_in_half(weight_VC):
        return torch.mm(hidden_tC.to(weight_VC.dtype), weight_VC.mT, out_dtype=out.dtype, out=out)
    hidden_tC = hidden_tC.to(out.dtype)
    for block, weight_block in _raised_blocks(weight_VC, out.dtype):
        torch.mm(hidden_tC, weight_block.mT, out=out[:, block])
    return out


def times_head(d_logits_tV: Tensor, weight_VC: Tensor, dtype: torch.dtype) -> Tensor:
    """d_logits @ weight: the gradient of the hidden states [t, C], in `dtype` (fp32 or fp64)."""
    if gradient_dtype(weight_VC.device, weight_VC.dtype, dtype) == torch.bfloat16:
        return torch.mm(d_logits_tV.to(weight_VC.dtype), weight_VC, out_dtype=dtype)
    d_hidden_tC = torch.zeros(d_logits_tV.shape[0], weight_VC.shape[1], dtype=dtype, device=weight_VC.device)
    for block, weight_block in _raised_blocks(weight_VC, dtype):
        d_hidden_tC.addmm_(d_logits_tV[:, block].to(dtype), weight_block)
    return d_hidden_tC


def accumulate_weight_gradient(d_weight_VC: Tensor, d_logits_tV: Tensor, hidden_tC: Tensor) -> None:
    """d_weight += d_logitsᵀ @ hidden, d_weight in fp32 or fp64."""
    if gradient_dtype(hidden_tC.device, hidden_tC.dtype, d_weight_VC.dtype) != torch.bfloat16:
        d_weight_VC.addmm_(d_logits_tV.mT.to(d_weight_VC.dtype), hidden_tC.to(d_weight_VC.dtype))
        return
    for block in blocks(d_weight_VC):
        d_logits_Vt = d_logits_tV[:, block].to(hidden_tC.dtype).mT
        d_weight_VC[block] += torch.mm(d_logits_Vt, hidden_tC, out_dtype=d_weight_VC.dtype)
