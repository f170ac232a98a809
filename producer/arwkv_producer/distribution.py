"""What is kept of a next-token distribution, computed from its logits on the device.

Shapes: T rows (token positions), V vocabulary columns of this rank, K kept candidates, R tensor-parallel ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from arwkv_producer.sampling import draw

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
    drawn_TS: Tensor
    """int32 ids drawn at random, S = 0 where none were asked for."""


@dataclass(frozen=True)
class Draws:
    """Ids to draw from each distribution."""

    uniforms_TS: Tensor
    """float64 in [0, 1): see `sampling.uniforms`."""
    outside_top_k: bool
    """From the tail only, given that it is the tail."""


def summarise(
    logits_TV: Tensor,
    k: int,
    next_ids_T: Tensor,
    *,
    draws: Draws | None = None,
    first_id: int = 0,
    gather: GatherColumns | None = None,
) -> Distribution:
    """Keep the top `k`, the exact tail, the entropy and the next token's log-probability of each row of `logits_TV`.

    `logits_TV` fp32 holds real tokens' columns only: ids `first_id ..`; its memory is reused. Under tensor parallelism
    each rank passes its own columns and the same `gather`, all get the same answer, and only 2k + 5 numbers per row
    and rank travel. With x the logits, m their maximum and s = Σ exp(x - m): log Z = m + log s and
    H = log s - Σ exp(x - m)(x - m) / s; the tail's mass is Σ over the tokens outside the top k of exp(x - m).
    `draws` needs all the columns, so not together with `gather`.
    """
    assert draws is None or gather is None
    next_T = _next(logits_TV, next_ids_T, first_id)
    if logits_TV.device.type == "cpu" and draws is None:
        columns = _compiled(logits_TV, k, next_T, first_id)
    else:
        columns = _in_torch(logits_TV, k, next_T, first_id, draws)
    if gather is not None:
        columns = _merge_ranks(columns, k, gather)
    log_sum_T = columns.sum_T.log()
    log_z_T = columns.maximum_T + log_sum_T
    return Distribution(
        ids_TK=columns.ids_TK.int(),
        logprobs_TK=columns.top_TK - log_z_T,
        tail_logprob_T=(columns.rest_T.log() - log_sum_T).squeeze(1),
        entropy_T=(log_sum_T - columns.moment_T / columns.sum_T).clamp_min_(0.0).squeeze(1),
        true_logprob_T=torch.where(next_ids_T < 0, 0.0, (columns.next_T - log_z_T).squeeze(1)),
        drawn_TS=columns.drawn_TS.int(),
    )


class _Columns(NamedTuple):
    """One rank's summary of its columns. All are [T, 1] but the last three."""

    maximum_T: Tensor
    sum_T: Tensor
    moment_T: Tensor
    rest_T: Tensor
    next_T: Tensor
    top_TK: Tensor
    ids_TK: Tensor
    drawn_TS: Tensor


def _next(logits_TV: Tensor, next_ids_T: Tensor, first_id: int) -> Tensor:
    """[T, 1] logit of the token that follows, OUTSIDE_VOCABULARY where it is not among these columns."""
    here_T = (next_ids_T >= first_id) & (next_ids_T < first_id + logits_TV.shape[1])
    next_T = logits_TV.gather(1, torch.where(here_T, next_ids_T - first_id, 0)[:, None])
    return next_T.masked_fill_(~here_T[:, None], OUTSIDE_VOCABULARY)


def _compiled(logits_TV: Tensor, k: int, next_T: Tensor, first_id: int) -> _Columns:
    """On a CPU, in two passes over each row where torch takes nine."""
    from arwkv_producer.compiled_summary import summarise_rows

    maximum_T, sum_T, moment_T, rest_T, top_TK, at_TK = summarise_rows(logits_TV, min(k, logits_TV.shape[1]))
    return _Columns(maximum_T, sum_T, moment_T, rest_T, next_T, top_TK, at_TK.long() + first_id, at_TK[:, :0].long())


def _in_torch(logits_TV: Tensor, k: int, next_T: Tensor, first_id: int, draws: Draws | None) -> _Columns:
    top_TK, at_TK = logits_TV.topk(min(k, logits_TV.shape[1]), dim=-1)
    maximum_T = top_TK[:, :1]
    shifted_TV = logits_TV.sub_(maximum_T)
    weights_TV = shifted_TV.exp()
    sum_T = weights_TV.sum(-1, keepdim=True)
    moment_T = shifted_TV.mul_(weights_TV).sum(-1, keepdim=True)
    drawn_TS = at_TK[:, :0]
    if draws is not None and not draws.outside_top_k:
        drawn_TS = draw(weights_TV, draws.uniforms_TS)
    rest_T = weights_TV.scatter_(1, at_TK, 0.0).sum(-1, keepdim=True)
    if draws is not None and draws.outside_top_k:
        drawn_TS = draw(weights_TV, draws.uniforms_TS)
    return _Columns(maximum_T, sum_T, moment_T, rest_T, next_T, top_TK, at_TK + first_id, drawn_TS + first_id)


def _merge_ranks(own: _Columns, k: int, gather: GatherColumns) -> _Columns:
    """Combine the ranks' summaries; ids travel bit-cast as fp32 because vLLM's CPU all-gather takes floats only."""
    missing = k - own.top_TK.shape[1]
    top_TK = torch.nn.functional.pad(own.top_TK, (0, missing), value=OUTSIDE_VOCABULARY)
    ids_TK = torch.nn.functional.pad(own.ids_TK, (0, missing), value=0)
    packed_TN = torch.cat([*own[:5], top_TK, ids_TK.int().view(torch.float32)], dim=-1)
    ranks_TRN = gather(packed_TN).view(len(packed_TN), -1, packed_TN.shape[1])
    local_maximum_TR, local_sum_TR, local_moment_TR, local_rest_TR, next_TR = ranks_TRN[..., :5].unbind(-1)
    maximum_T = local_maximum_TR.amax(-1, keepdim=True)
    shift_TR = local_maximum_TR - maximum_T
    scale_TR = shift_TR.exp()

    candidates_TN = ranks_TRN[..., 5 : 5 + k].flatten(1)
    candidate_ids_TN = ranks_TRN[..., 5 + k :].contiguous().view(torch.int32).flatten(1)
    top_TK, at_TK = candidates_TN.topk(k, dim=-1)
    unkept_TN = (candidates_TN - maximum_T).exp().scatter(1, at_TK, 0.0)
    return _Columns(
        maximum_T=maximum_T,
        sum_T=(local_sum_TR * scale_TR).sum(-1, keepdim=True),
        moment_T=(scale_TR * (local_moment_TR + shift_TR * local_sum_TR)).sum(-1, keepdim=True),
        rest_T=(local_rest_TR * scale_TR).sum(-1, keepdim=True) + unkept_TN.sum(-1, keepdim=True),
        next_T=next_TR.amax(-1, keepdim=True),
        top_TK=top_TK,
        ids_TK=candidate_ids_TN.gather(1, at_TK),
        drawn_TS=own.drawn_TS,
    )
