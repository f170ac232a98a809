"""The producer's summary of a row of logits: the k largest, the normalizer, the entropy, and the mass of the rest."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from arwkv_kernels.backends import backend_for

# 16 MiB of fp32 at one time, where torch does it.
LOGITS_PER_CHUNK = 4 << 20


class TopK(NamedTuple):
    """Per row of logits, in nats: the k largest in descending order, and of the whole row log-sum-exp and entropy."""

    values_TK: Tensor
    ids_TK: Tensor
    logsumexp_T: Tensor
    entropy_T: Tensor
    tail_logprob_T: Tensor
    """log of the mass outside the k: the sum over the other columns, never 1 - P; -inf where there is none."""


def topk_logsumexp(logits: Tensor, k: int, *, backend: str = "auto") -> TopK:
    """Top-k, log-sum-exp, entropy and tail of logits [T, V] (fp32, bf16 or fp16), in fp32; ids are int64. No gradient.

    Log-probabilities are `values_TK - logsumexp_T[:, None]`. Entries of -inf (padded vocabulary rows) count nothing;
    at least k must be finite. A row that holds a NaN or +inf has no log-sum-exp (NaN). The Triton kernels keep up to
    128 of 262,144 columns; where they cannot, torch does it. Raises ValueError unless 1 ≤ k ≤ V.
    """
    if logits.dim() != 2 or not 1 <= k <= logits.shape[1]:
        raise ValueError(f"topk_logsumexp: logits {tuple(logits.shape)}, k={k}; pass [T, V] with 1 ≤ k ≤ V")
    choice = backend_for(logits, backend=backend, operation="topk_logsumexp")
    logits = logits.detach()
    if choice.name == "triton":
        from arwkv_kernels.triton.topk_logsumexp import can_keep, topk_logsumexp_triton

        if can_keep(k, logits.shape[1]):
            return TopK(*topk_logsumexp_triton(_by_rows(logits), k)[:5])
    rows = max(1, LOGITS_PER_CHUNK // logits.shape[1])
    pieces = [_in_torch(piece.float(), k) for piece in torch.split(logits, rows)]
    return TopK(*(torch.cat(column) for column in zip(*pieces, strict=True)))


class TopKLogprobs(NamedTuple):
    """What a capture keeps of rows of logits, in nats: the k largest in descending order, and of the whole row."""

    logprobs_TK: Tensor
    ids_TK: Tensor
    """int32."""
    tail_logprob_T: Tensor
    entropy_T: Tensor
    """At least 0."""
    next_logprob_T: Tensor
    """Of the id that follows; 0 where none does."""


def topk_logprobs(logits: Tensor, k: int, next_ids: Tensor, *, backend: str = "auto") -> TopKLogprobs:
    """`topk_logsumexp` as log-probabilities, with that of `next_ids` [T]; -1 where nothing follows.

    On a GPU two kernels and nothing else, because many small launches take longer than the reading of the logits. An id
    that is no column of the logits [T, V] has the logit -1e30. Raises ValueError as `topk_logsumexp` does.
    """
    if logits.dim() == 2 and backend_for(logits, backend=backend, operation="topk_logsumexp").name == "triton":
        from arwkv_kernels.triton.topk_logsumexp import can_keep, topk_logsumexp_triton

        if 1 <= k <= logits.shape[1] and can_keep(k, logits.shape[1]):
            found = topk_logsumexp_triton(_by_rows(logits.detach()), k, next_ids)
            logprobs_TK, ids_TK, _, entropy_T, tail_T, next_T = found
            return TopKLogprobs(logprobs_TK, ids_TK, tail_T, entropy_T, next_T)
    top = topk_logsumexp(logits, k, backend=backend)
    known_T = next_ids.clamp(0, logits.shape[1] - 1)
    next_T = torch.where(next_ids == known_T, logits.gather(1, known_T[:, None].long()).squeeze(1).float(), -1e30)
    return TopKLogprobs(
        top.values_TK - top.logsumexp_T[:, None],
        top.ids_TK.int(),
        top.tail_logprob_T,
        top.entropy_T.clamp_min(0.0),
        torch.where(next_ids < 0, 0.0, next_T - top.logsumexp_T),
    )


def _by_rows(logits_TV: Tensor) -> Tensor:
    """As the kernels read them: each row contiguous."""
    return logits_TV if logits_TV.stride(1) == 1 else logits_TV.contiguous()


def _in_torch(logits_tV: Tensor, k: int) -> TopK:
    logsumexp_t = logits_tV.logsumexp(1)
    logprobs_tV = logits_tV - logsumexp_t[:, None]
    p_tV = logprobs_tV.exp()
    entropy_t = -torch.where(p_tV > 0, p_tV * logprobs_tV, 0.0).sum(1)
    values_tK, ids_tK = logits_tV.topk(k, dim=1)
    return TopK(values_tK, ids_tK, logsumexp_t, entropy_t, p_tV.scatter_(1, ids_tK, 0.0).sum(1).log())
