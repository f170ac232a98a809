"""Compares stored next-token distributions with the teacher's full distributions.

Shapes: T positions, V the tokenizer's vocabulary, N the maximum number of entries of a position, K that of a head. The
head of a position are its top-k entries, by descending log-probability; drawn entries follow.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from arwkv_store import SparseLogits
from arwkv_store.format.schema import CaptureInfo

NEVER_DRAWN = -40.0
"""A log-probability too low for any draw of a run: e^-40 is 4e-18."""
LOWEST = -1e4
"""Replaces the logarithm of 0 in products with 0."""


@dataclass(frozen=True)
class Entries:
    """Stored entries, one row per position; unused places are in neither mask."""

    ids_TN: Tensor
    logprobs_TN: Tensor
    tail_logprob_T: Tensor
    head_TN: Tensor
    drawn_TN: Tensor

    def rows(self, start: int, stop: int, device: torch.device) -> "Entries":
        """Of the positions from `start` to `stop`, on the device where they are compared."""
        return Entries(*(getattr(self, name)[start:stop].to(device) for name in self.__dataclass_fields__))


def entries(stored: SparseLogits, capture: CaptureInfo) -> Entries:
    """A sample's entries, those of the head and the drawn ones marked."""
    counts_T = torch.from_numpy(stored.counts.astype(np.int64))[:, None]
    places_N = torch.arange(int(counts_T.max()))
    present_TN = places_N < counts_T
    drawn_from = {"sampled": 0, "hybrid": capture.top_k or 0}.get(capture.logits, len(places_N))
    ids_TN = torch.zeros(present_TN.shape, dtype=torch.int64)
    ids_TN[present_TN] = torch.from_numpy(stored.ids.astype(np.int64))
    logprobs_TN = torch.full(present_TN.shape, -torch.inf, dtype=torch.float64)
    logprobs_TN[present_TN] = torch.from_numpy(stored.logprobs.astype(np.float64))
    return Entries(
        ids_TN,
        logprobs_TN,
        torch.from_numpy(stored.tail_logprob.astype(np.float64)),
        head_TN=present_TN & (places_N < drawn_from),
        drawn_TN=present_TN & (places_N >= drawn_from),
    )


def outside_head(full_TV: Tensor, stored: Entries) -> Tensor:
    """[T, V] the log-probabilities with those of the head's tokens at -inf."""
    if not stored.head_TN.any():
        return full_TV
    # Where a place is not of the head, the first entry's token is masked once more.
    return full_TV.scatter(1, torch.where(stored.head_TN, stored.ids_TN, stored.ids_TN[:, :1]), -torch.inf)


def differences(full_TV: Tensor, stored: Entries, least_mass: float) -> dict[str, Tensor]:
    """The differences of each stored quantity from the true log-probabilities, in nats; one-dimensional each.

    `logprobs`: those of the head's tokens. `top k`: the head compared with the largest values, rank by rank, so that
    equal ones may be in either order. `tail_logprob`: the mass outside the head, stored as such or spread over drawn
    entries; masses that differ by less than `least_mass` count as equal. `mass`: the total mass with the tail, compared
    with one.
    """
    found: dict[str, Tensor] = {}
    head_TN, drawn_TN = stored.head_TN, stored.drawn_TN
    tail_T = torch.logaddexp(stored.tail_logprob_T, _masked(stored.logprobs_TN, drawn_TN).logsumexp(1))
    if head_TN.any():
        own_TN = full_TV.gather(1, stored.ids_TN) - stored.logprobs_TN
        found["logprobs"] = own_TN[head_TN]
        width = int(head_TN.sum(1).max())
        best_TK = full_TV.topk(width).values - stored.logprobs_TN[:, :width]
        found["top k"] = best_TK[head_TN[:, :width]]
        true_T = outside_head(full_TV, stored).logsumexp(1)
        differing_T = (true_T.exp() - tail_T.exp()).abs() > least_mass
        found["tail_logprob"] = torch.where(differing_T, true_T - tail_T, 0.0)
    found["mass"] = torch.logaddexp(tail_T, _masked(stored.logprobs_TN, head_TN).logsumexp(1))
    return found


def surprise(full_TV: Tensor, stored: Entries, draws: int) -> tuple[Tensor, Tensor, int | None]:
    """How much rarer than expected the drawn tokens are, in nats, and its variance: [T] each, 0 without draws; and a
    token that cannot have been drawn.

    The expectation of -log p over draws from p is p's entropy; S independent draws vary by Var(log p) / S.
    """
    rest_TV = outside_head(full_TV, stored)
    log_TV = (rest_TV - rest_TV.logsumexp(1, keepdim=True)).clamp_min(LOWEST)
    p_TV = log_TV.exp()
    entropy_T = -(p_TV * log_TV).sum(1)
    variance_T = (p_TV * log_TV.square()).sum(1) - entropy_T.square()
    at_TN = log_TV.gather(1, stored.ids_TN)
    any_T = stored.drawn_TN.any(1)
    shares_TN = _masked(stored.logprobs_TN, stored.drawn_TN).softmax(1)
    excess_T = -torch.where(stored.drawn_TN, shares_TN * at_TN, 0.0).sum(1) - entropy_T
    impossible = stored.ids_TN[stored.drawn_TN & (at_TN < NEVER_DRAWN)]
    return (
        torch.where(any_T, excess_T, 0.0),
        torch.where(any_T, variance_T.clamp_min(0.0) / max(draws, 1), 0.0),
        int(impossible[0]) if len(impossible) else None,
    )


def _masked(logprobs_TN: Tensor, kept_TN: Tensor) -> Tensor:
    return logprobs_TN.masked_fill(~kept_TN, -torch.inf)
