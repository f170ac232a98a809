"""What the producer keeps of a row of logits: the k largest, the normaliser, and the entropy."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from arwkv_kernels.backends import backend_for

# 64 MiB of fp32 at one time.
LOGITS_PER_CHUNK = 16 << 20


class TopK(NamedTuple):
    """Per row of logits: the k largest in descending order, and the whole row's log-sum-exp and entropy in nats."""

    values_TK: Tensor
    ids_TK: Tensor
    logsumexp_T: Tensor
    entropy_T: Tensor


def topk_logsumexp(logits: Tensor, k: int, *, backend: str = "auto") -> TopK:
    """Top-k, log-sum-exp and entropy of logits [T, V] (fp32, bf16 or fp16), in fp32; ids are int64. No gradient.

    Log-probabilities are `values_TK - logsumexp_T[:, None]`. Entries of -inf (padded vocabulary rows) count nothing;
    at least k must be finite. The Triton kernel keeps up to 4096; a larger k runs in torch. Raises ValueError unless
    1 ≤ k ≤ V.
    """
    if logits.dim() != 2 or not 1 <= k <= logits.shape[1]:
        raise ValueError(f"topk_logsumexp: logits {tuple(logits.shape)}, k={k}; pass [T, V] with 1 ≤ k ≤ V")
    choice = backend_for(logits, backend=backend, operation="topk_logsumexp")
    logits = logits.detach()
    if choice.name == "triton":
        from arwkv_kernels.triton.topk_logsumexp import MOST_KEPT, topk_logsumexp_triton

    if choice.name == "triton" and k <= MOST_KEPT:
        return TopK(*topk_logsumexp_triton(logits if logits.stride(1) == 1 else logits.contiguous(), k))
    rows = max(1, LOGITS_PER_CHUNK // logits.shape[1])
    pieces = [_in_torch(piece.float(), k) for piece in torch.split(logits, rows)]
    return TopK(*(torch.cat(column) for column in zip(*pieces, strict=True)))


def _in_torch(logits_tV: Tensor, k: int) -> TopK:
    logsumexp_t = logits_tV.logsumexp(1)
    logprobs_tV = logits_tV - logsumexp_t[:, None]
    p_tV = logprobs_tV.exp()
    entropy_t = -torch.where(p_tV > 0, p_tV * logprobs_tV, 0.0).sum(1)
    values_tK, ids_tK = logits_tV.topk(k, dim=1)
    return TopK(values_tK, ids_tK, logsumexp_t, entropy_t)
