"""What is kept of a next-token distribution, computed from its logits on the device.

Shapes: T rows (token positions), V vocabulary columns of this rank, K kept candidates, R tensor-parallel ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# All-gathers a [T, n] fp32 tensor over the tensor-parallel ranks, along the last dimension: [T, R·n].
GatherColumns = Callable[[Tensor], Tensor]

OUTSIDE_VOCABULARY = -1e30
"""A logit that is no token's: so low that its probability is 0 in fp32, finite so that 0 · logit stays 0."""


@dataclass(frozen=True)
class Distribution:
    """Top-k and exact summary of T distributions, in nats, fp32; ids int32, by descending log-probability."""

    ids_TK: Tensor
    logprobs_TK: Tensor
    tail_logprob_T: Tensor
    """log of the mass outside the top k: the sum over the other tokens, never 1 - P; -inf where k covers V."""
    entropy_T: Tensor
    """Of the full distribution."""
    true_logprob_T: Tensor
    """Of the token that follows in the text; 0 where `next_ids` is -1 (nothing follows)."""


def summarise(
    logits_TV: Tensor, k: int, next_ids_T: Tensor, *, first_id: int = 0, gather: GatherColumns | None = None
) -> Distribution:
    """Keep the top `k`, the exact tail, the entropy and the next token's log-probability of each row of `logits_TV`.

    `logits_TV` fp32 holds real tokens' columns only: ids `first_id ..`; its memory is reused. Under tensor parallelism
    each rank passes its own columns and the same `gather`, all get the same answer, and only 2k + 5 numbers per row
    and rank travel. With x the logits, m their maximum and s = Σ exp(x - m): log Z = m + log s and
    H = log s - Σ exp(x - m)(x - m) / s; the tail's mass is Σ over the tokens outside the top k of exp(x - m).
    """
    columns = logits_TV.shape[1]
    local_k = min(k, columns)
    top_TK, at_TK = logits_TV.topk(local_k, dim=-1)
    here_T = (next_ids_T >= first_id) & (next_ids_T < first_id + columns)
    next_T = logits_TV.gather(1, torch.where(here_T, next_ids_T - first_id, 0)[:, None])
    next_T.masked_fill_(~here_T[:, None], OUTSIDE_VOCABULARY)

    maximum_T = top_TK[:, :1]
    shifted_TV = logits_TV.sub_(maximum_T)
    weights_TV = shifted_TV.exp()
    sum_T = weights_TV.sum(-1, keepdim=True)
    moment_T = shifted_TV.mul_(weights_TV).sum(-1, keepdim=True)
    rest_T = weights_TV.scatter_(1, at_TK, 0.0).sum(-1, keepdim=True)

    ids_TK = at_TK + first_id
    if gather is not None:
        maximum_T, sum_T, moment_T, rest_T, next_T, top_TK, ids_TK = _merge_ranks(
            k, gather, maximum_T, sum_T, moment_T, rest_T, next_T, top_TK, ids_TK
        )
    log_sum_T = sum_T.log()
    log_z_T = maximum_T + log_sum_T
    return Distribution(
        ids_TK=ids_TK.int(),
        logprobs_TK=top_TK - log_z_T,
        tail_logprob_T=(rest_T.log() - log_sum_T).squeeze(1),
        entropy_T=(log_sum_T - moment_T / sum_T).clamp_min_(0.0).squeeze(1),
        true_logprob_T=torch.where(next_ids_T < 0, 0.0, (next_T - log_z_T).squeeze(1)),
    )


def _merge_ranks(
    k: int,
    gather: GatherColumns,
    maximum_T: Tensor,
    sum_T: Tensor,
    moment_T: Tensor,
    rest_T: Tensor,
    next_T: Tensor,
    top_TK: Tensor,
    ids_TK: Tensor,
) -> tuple[Tensor, ...]:
    """Combine the ranks' summaries; ids travel bit-cast as fp32 because vLLM's CPU all-gather takes floats only."""
    missing = k - top_TK.shape[1]
    if missing:
        top_TK = torch.nn.functional.pad(top_TK, (0, missing), value=OUTSIDE_VOCABULARY)
        ids_TK = torch.nn.functional.pad(ids_TK, (0, missing), value=0)
    scalars_TS = torch.cat([maximum_T, sum_T, moment_T, rest_T, next_T], dim=-1)
    packed_TN = torch.cat([scalars_TS, top_TK, ids_TK.int().view(torch.float32)], dim=-1).contiguous()
    ranks_TRN = gather(packed_TN).view(len(packed_TN), -1, packed_TN.shape[1])
    local_maximum_TR, local_sum_TR, local_moment_TR, local_rest_TR, next_TR = ranks_TRN[..., :5].unbind(-1)
    maximum_T = local_maximum_TR.amax(-1, keepdim=True)
    scale_TR = (local_maximum_TR - maximum_T).exp()
    sum_T = (local_sum_TR * scale_TR).sum(-1, keepdim=True)
    shift_TR = local_maximum_TR - maximum_T
    moment_T = (scale_TR * (local_moment_TR + shift_TR * local_sum_TR)).sum(-1, keepdim=True)

    candidates_TN = ranks_TRN[..., 5 : 5 + k].flatten(1)
    candidate_ids_TN = ranks_TRN[..., 5 + k :].contiguous().view(torch.int32).flatten(1)
    top_TK, at_TK = candidates_TN.topk(k, dim=-1)
    unkept_TN = (candidates_TN - maximum_T).exp().scatter(1, at_TK, 0.0)
    rest_T = (local_rest_TR * scale_TR).sum(-1, keepdim=True) + unkept_TN.sum(-1, keepdim=True)
    return maximum_T, sum_T, moment_T, rest_T, next_TR.amax(-1, keepdim=True), top_TK, candidate_ids_TN.gather(1, at_TK)
