"""The summary of a next-token distribution, computed from its logits on the device.

Shapes: T rows (token positions), V vocabulary columns of this rank, K kept candidates, S draws, R tensor-parallel
ranks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from arwkv_kernels import topk_logprobs, topk_logsumexp
from arwkv_producer.numerics.sampling import draw, split

# All-gathers a [T, n] fp32 tensor over the tensor-parallel ranks, along the last dimension: [T, R·n].
GatherColumns = Callable[[Tensor], Tensor]

OUTSIDE_VOCABULARY = -1e30
"""The logit of a padding row: so low that its probability is 0 in fp32, and finite so that 0 · logit is 0."""


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
    """Of the token that follows in the text; 0 if `next_ids` is -1 (nothing follows)."""
    drawn_TS: Tensor
    """int32 ids drawn at random; S = 0 without draws."""


def rows_of(summaries: Sequence[Distribution]) -> dict[str, Tensor]:
    """Consecutive positions' distributions as rows."""
    return {
        "ids": torch.cat([summary.ids_TK for summary in summaries]),
        "logprobs": torch.cat([summary.logprobs_TK for summary in summaries]),
        "tail_logprob": torch.cat([summary.tail_logprob_T for summary in summaries]),
        "entropy": torch.cat([summary.entropy_T for summary in summaries]),
        "true_logprob": torch.cat([summary.true_logprob_T for summary in summaries]),
        "drawn": torch.cat([summary.drawn_TS for summary in summaries]),
    }


@dataclass(frozen=True)
class Draws:
    """Ids to draw from each distribution."""

    uniforms_TS: Tensor
    """float64 in [0, 1): see `sampling.uniforms`."""
    outside_top_k: bool
    """Draw from the tail only, with probabilities normalized over it."""


def summarize(
    logits_TV: Tensor,
    k: int,
    next_ids_T: Tensor,
    *,
    draws: Draws | None = None,
    first_id: int = 0,
    gather: GatherColumns | None = None,
) -> Distribution:
    """Keep the top `k`, the exact tail, the entropy and the next token's log-probability of each row of `logits_TV`.

    `logits_TV` fp32 holds only columns of real tokens: ids `first_id ..`; its memory is reused. Under tensor
    parallelism each rank passes its own columns and the same `draws` and `gather`. All get the same result, and only 2k
    + 4 numbers per row and rank are exchanged, S + 1 more with S draws. With x the logits, m their maximum and s = Σ
    exp(x - m): log Z = m + log s and H = log s - Σ exp(x - m)(x - m) / s; the tail's mass is Σ over the tokens outside
    the top k of exp(x - m).
    """
    on_gpu = logits_TV.device.type != "cpu"
    if on_gpu and draws is None and gather is None:
        top = topk_logprobs(logits_TV, min(k, logits_TV.shape[1]), next_ids_T)
        none_drawn_TS = top.ids_TK[:, :0]
        return Distribution(
            top.ids_TK, top.logprobs_TK, top.tail_logprob_T, top.entropy_T, top.next_logprob_T, none_drawn_TS
        )
    next_T = _next(logits_TV, next_ids_T, first_id)
    summarized = _in_torch if draws is not None else _on_gpu if on_gpu else _compiled
    own = summarized(logits_TV, k)
    columns = own
    if gather is not None:
        columns, next_T = _merge_ranks(own, next_T, k, first_id, gather)
    drawn_TS = columns.ids_TK[:, :0]
    if draws is not None:
        if draws.outside_top_k:
            _strike_out(own.weights_TV, columns.ids_TK - first_id)
        if gather is None:
            drawn_TS = draw(own.weights_TV, draws.uniforms_TS)
        else:
            drawn_TS, masses_TR = _draw_over_ranks(own, columns.log_z_T, draws.uniforms_TS, first_id, gather)
            if draws.outside_top_k:  # no tail where there was none to draw from
                columns = columns._replace(tail_T=masses_TR.sum(-1).log())
    return Distribution(
        ids_TK=columns.ids_TK.int(),
        logprobs_TK=columns.top_TK - columns.log_z_T[:, None],
        tail_logprob_T=columns.tail_T,
        entropy_T=columns.entropy_T.clamp_min(0.0),
        true_logprob_T=torch.where(next_ids_T < 0, 0.0, next_T - columns.log_z_T),
        drawn_TS=drawn_TS.int(),
    )


class _Columns(NamedTuple):
    """One rank's summary of its columns, as in `Distribution`, without the normalizer log Z."""

    log_z_T: Tensor
    entropy_T: Tensor
    tail_T: Tensor
    top_TK: Tensor
    """Logits."""
    ids_TK: Tensor
    weights_TV: Tensor
    """exp(x - m) of this rank's columns; V = 0 without draws."""

    @classmethod
    def of_sums(
        cls, sum_T: Tensor, moment_T: Tensor, rest_T: Tensor, top_TK: Tensor, ids_TK: Tensor, weights_TV: Tensor
    ) -> "_Columns":
        """From s = Σ exp(x - m), Σ exp(x - m)(x - m) and the rest's share of s, all [T, 1]."""
        log_sum_T = sum_T.log()
        log_z_T, entropy_T = top_TK[:, :1] + log_sum_T, log_sum_T - moment_T / sum_T
        tail_T = rest_T.log() - log_sum_T
        return cls(log_z_T.squeeze(1), entropy_T.squeeze(1), tail_T.squeeze(1), top_TK, ids_TK, weights_TV)


def _next(logits_TV: Tensor, next_ids_T: Tensor, first_id: int) -> Tensor:
    """[T] logit of the token that follows, OUTSIDE_VOCABULARY if it is not among these columns."""
    at_T = next_ids_T - first_id
    inside_T = at_T.clamp(0, logits_TV.shape[1] - 1)
    return torch.where(at_T == inside_T, logits_TV.gather(1, inside_T[:, None]).squeeze(1), OUTSIDE_VOCABULARY)


def _compiled(logits_TV: Tensor, k: int) -> _Columns:
    """On a CPU, in two passes over each row where torch takes nine."""
    from arwkv_producer.numerics.compiled_summary import summarize_rows

    _, sum_T, moment_T, rest_T, top_TK, ids_TK = summarize_rows(logits_TV, min(k, logits_TV.shape[1]))
    return _Columns.of_sums(sum_T, moment_T, rest_T, top_TK, ids_TK, top_TK[:, :0])


def _on_gpu(logits_TV: Tensor, k: int) -> _Columns:
    """By kernels that read the logits once."""
    top = topk_logsumexp(logits_TV, min(k, logits_TV.shape[1]))
    return _Columns(top.logsumexp_T, top.entropy_T, top.tail_logprob_T, top.values_TK, top.ids_TK, top.values_TK[:, :0])


def _in_torch(logits_TV: Tensor, k: int) -> _Columns:
    """With the weights."""
    top_TK, ids_TK = logits_TV.topk(min(k, logits_TV.shape[1]), dim=-1)
    shifted_TV = logits_TV.sub_(top_TK[:, :1])
    weights_TV = shifted_TV.exp()
    sum_T = weights_TV.sum(-1, keepdim=True)
    moment_T = shifted_TV.mul_(weights_TV).sum(-1, keepdim=True)
    kept_TK = weights_TV.gather(1, ids_TK)
    rest_T = weights_TV.scatter_(1, ids_TK, 0.0).sum(-1, keepdim=True)
    return _Columns.of_sums(sum_T, moment_T, rest_T, top_TK, ids_TK, weights_TV.scatter_(1, ids_TK, kept_TK))


def _merge_ranks(
    own: _Columns, own_next_T: Tensor, k: int, first_id: int, gather: GatherColumns
) -> tuple[_Columns, Tensor]:
    """Combine the ranks' summaries; ids are exchanged bit-cast as fp32, because vLLM's CPU all-gather takes floats
    only.

    With w the ranks' shares of the mass, H = Σ w (H_rank - log w).
    """
    missing = k - own.top_TK.shape[1]
    top_TK = torch.nn.functional.pad(own.top_TK, (0, missing), value=OUTSIDE_VOCABULARY)
    ids_TK = torch.nn.functional.pad(own.ids_TK.int() + first_id, (0, missing), value=0)
    numbers_T4 = torch.stack([own.log_z_T, own.entropy_T, own.tail_T, own_next_T], dim=-1)
    packed_TN = torch.cat([numbers_T4, top_TK, ids_TK.view(torch.float32)], dim=-1)
    ranks_TRN = gather(packed_TN).view(len(packed_TN), -1, packed_TN.shape[1])
    log_z_TR, entropy_TR, tail_TR, next_TR = ranks_TRN[..., :4].unbind(-1)
    log_z_T = log_z_TR.logsumexp(-1)
    log_share_TR = log_z_TR - log_z_T[:, None]

    candidates_TN = ranks_TRN[..., 4 : 4 + k].flatten(1)
    candidate_ids_TN = ranks_TRN[..., 4 + k :].contiguous().view(torch.int32).flatten(1)
    top_TK, at_TK = candidates_TN.topk(k, dim=-1)
    unkept_TN = (candidates_TN - log_z_T[:, None]).scatter(1, at_TK, -torch.inf)
    tail_T = torch.cat([tail_TR + log_share_TR, unkept_TN], dim=-1).logsumexp(-1)
    return _Columns(
        log_z_T=log_z_T,
        entropy_T=(log_share_TR.exp() * (entropy_TR - log_share_TR)).sum(-1),
        tail_T=tail_T.masked_fill(tail_T < OUTSIDE_VOCABULARY / 2, -torch.inf),  # of columns that are no token's
        top_TK=top_TK,
        ids_TK=candidate_ids_TN.gather(1, at_TK),
        weights_TV=own.weights_TV,
    ), next_TR.amax(-1)


def _strike_out(weights_TV: Tensor, columns_TK: Tensor) -> None:
    """Set these columns to 0, except columns of other ranks."""
    inside_TK = columns_TK.long().clamp(0, weights_TV.shape[1] - 1)
    struck_TK = torch.where(columns_TK == inside_TK, 0.0, torch.inf).to(weights_TV.dtype)
    weights_TV.scatter_reduce_(1, inside_TK, struck_TK, "amin")


def _draw_over_ranks(
    own: _Columns, log_z_T: Tensor, uniforms_TS: Tensor, first_id: int, gather: GatherColumns
) -> tuple[Tensor, Tensor]:
    """[T, S] ids, each from the rank that holds its number, and [T, R] the ranks' masses of exp(x) / Z.

    Every rank makes every draw with the same numbers; the result of the rank that holds it is used.
    """
    scale_T = (own.top_TK[:, 0].double() - log_z_T).exp()
    masses_TR = gather((own.weights_TV.sum(-1) * scale_T).float()[:, None])
    rank_TS, within_TS = split(masses_TR, uniforms_TS)
    own_ids_TS = (draw(own.weights_TV, within_TS) + first_id).int()
    ids_TRS = gather(own_ids_TS.view(torch.float32)).view(torch.int32).view(len(rank_TS), -1, rank_TS.shape[1])
    return ids_TRS.gather(1, rank_TS[:, None]).squeeze(1), masses_TR
