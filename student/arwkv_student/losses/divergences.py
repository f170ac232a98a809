"""Divergences between stored distributions and the student besides the plain forward KL, and those to an exact teacher.

Teacher and student are distributions over a position's K stored tokens and one more outcome, the rest of the
vocabulary. Logits exist for one chunk of positions at a time, and are computed again in the backward pass
(checkpointing). This is slower than `arwkv_kernels.linear_sparse_kl` for the forward KL, but works for any formula of
the two distributions. The head is cast to fp32 once, so that the chunks' gradients add up in fp32. If no position
counts, loss and gradients are 0.

Shape legend: T positions, t positions of a chunk, K stored tokens, V vocabulary, C model width, N stored entries.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LOGITS_PER_CHUNK = 16 << 20
"""fp32 logits held at once: 64 MiB."""
# Replaces a teacher's log-probability of -inf, for which the reverse KL would be infinite.
LOWEST_LOG_PROBABILITY = -30.0

# (log p, log q) [t, K + 1] -> divergence [t]
Divergence = Callable[[Tensor, Tensor], Tensor]


def forward_kl(log_p_tK: Tensor, log_q_tK: Tensor) -> Tensor:
    """Σ p (log p − log q)."""
    return (log_p_tK.exp() * (log_p_tK - log_q_tK)).sum(-1)


def reverse_kl(log_p_tK: Tensor, log_q_tK: Tensor) -> Tensor:
    """Σ q (log q − log p)."""
    return forward_kl(log_q_tK, log_p_tK)


def adaptive_kl(log_p_tK: Tensor, log_q_tK: Tensor, head_mass: float = 0.5) -> Tensor:
    """Forward and reverse KL, weighted by where the two distributions differ (arXiv 2404.02657, eq. 9).

    The teacher's likeliest tokens up to `head_mass` are its head. Σ|p − q| over the head is the weight of the forward
    KL, and over the rest that of the reverse KL.
    """
    p, q = log_p_tK.exp().detach(), log_q_tK.exp().detach()
    sorted_p, order = p.sort(dim=-1, descending=True)
    in_head = (sorted_p.cumsum(-1) - sorted_p < head_mass).gather(-1, order.argsort(-1))
    gap = (p - q).abs()
    head, rest = (gap * in_head).sum(-1), (gap * ~in_head).sum(-1)
    share = head / (head + rest).clamp_min(1e-12)
    return share * forward_kl(log_p_tK, log_q_tK) + (1 - share) * reverse_kl(log_p_tK, log_q_tK)


def jensen_shannon(log_p_tK: Tensor, log_q_tK: Tensor) -> Tensor:
    """½ KL(p ‖ m) + ½ KL(q ‖ m) with m = (p + q) / 2: symmetric, at most log 2."""
    return 0.5 * (skewed_forward_kl(log_p_tK, log_q_tK, 0.5) + skewed_reverse_kl(log_p_tK, log_q_tK, 0.5))


def total_variation(log_p_tK: Tensor, log_q_tK: Tensor) -> Tensor:
    """½ Σ |p − q|, at most 1."""
    return 0.5 * (log_p_tK.exp() - log_q_tK.exp()).abs().sum(-1)


def skewed_forward_kl(log_p_tK: Tensor, log_q_tK: Tensor, skew: float = 0.1) -> Tensor:
    """KL(p ‖ skew · p + (1 − skew) · q): finite where q is 0 (arXiv 2402.03898, eq. 4)."""
    return forward_kl(log_p_tK, _mixed(log_q_tK, log_p_tK, skew))


def skewed_reverse_kl(log_p_tK: Tensor, log_q_tK: Tensor, skew: float = 0.1) -> Tensor:
    """KL(q ‖ skew · q + (1 − skew) · p): finite where p is 0 (arXiv 2402.03898)."""
    return forward_kl(log_q_tK, _mixed(log_p_tK, log_q_tK, skew))


def _mixed(log_a_tK: Tensor, log_b_tK: Tensor, share: float) -> Tensor:
    """log((1 − share) · a + share · b)."""
    return torch.logaddexp(log_a_tK + math.log1p(-share), log_b_tK + math.log(share))


DIVERGENCES: Mapping[str, Divergence] = {
    "forward": forward_kl,
    "reverse": reverse_kl,
    "adaptive": adaptive_kl,
    "jsd": jensen_shannon,
    "tvd": total_variation,
    "skewed-forward": skewed_forward_kl,
    "skewed-reverse": skewed_reverse_kl,
}


class TokenWeights(NamedTuple):
    """How much each position counts. No gradient passes through a weight."""

    given_T: Tensor | None = None
    """Weights from outside, such as the teacher's entropy."""
    true_T: Tensor | None = None
    """The true next tokens: the weight is 1 − q of them, the student's error."""
    gap_T: Tensor | None = None
    """Added to each divergence before it is weighted; see `entropy_gap` of `collate`."""

    def at(self, positions: Tensor) -> "TokenWeights":
        """Those of some positions."""
        return TokenWeights(*(None if field is None else field[positions] for field in self))

    def total(self, divergence_t: Tensor, logits_tV: Tensor) -> Tensor:
        """The weighted sum; all fields are those of these positions."""
        if self.gap_T is not None:
            divergence_t = divergence_t + self.gap_T
        if self.given_T is not None:
            divergence_t = divergence_t * self.given_T
        if self.true_T is not None:
            logits_tV = logits_tV.detach()
            log_q_t = logits_tV.gather(1, self.true_T[:, None]).squeeze(1) - logits_tV.logsumexp(-1)
            divergence_t = divergence_t * -torch.expm1(log_q_t)
        return divergence_t.sum()


EQUAL_WEIGHTS = TokenWeights()


def sparse_divergence(
    hidden_TC: Tensor,
    weight_VC: Tensor,
    batch: Mapping[str, Tensor],
    divergence: Divergence,
    *,
    temperature: float = 1.0,
    weights: TokenWeights = EQUAL_WEIGHTS,
) -> Tensor:
    """Mean of `divergence` in nats over the positions of `batch` (made by `collate`) that count, in fp32.

    `temperature` softens the K + 1 outcomes of teacher and student. With `weights`, the sum of the weighted divergences
    is divided by the number of positions, so that it does not depend on how the positions are split into batches.
    """
    counts_T = batch["counts"]
    first_T = counts_T.cumsum(0) - counts_T
    positions = batch["predicts"].flatten().nonzero().flatten()
    total, weight_VC = hidden_TC.new_zeros((), dtype=torch.float32), weight_VC.float()
    for at in torch.split(positions, max(1, LOGITS_PER_CHUNK // weight_VC.shape[0])):
        most = int(counts_T[at].max()) if len(at) else 0
        index_tK = first_T[at, None] + torch.arange(most, device=at.device)
        stored_tK = torch.arange(index_tK.shape[1], device=at.device) < counts_T[at, None]
        index_tK = index_tK.clamp_max(len(batch["ids"]) - 1)
        log_p_tK = torch.cat(
            [batch["logprobs"][index_tK].masked_fill(~stored_tK, -torch.inf), batch["tail_logprob"][at, None]], dim=1
        )
        ids_tK = batch["ids"][index_tK].masked_fill(~stored_tK, 0)
        total = total + checkpoint(
            *(_chunk, hidden_TC[at], weight_VC, ids_tK, stored_tK, log_p_tK, divergence, temperature, weights.at(at)),
            use_reentrant=False,
        )
    return total / max(1, len(positions))


def _chunk(
    hidden_tC: Tensor,
    weight_VC: Tensor,
    ids_tK: Tensor,
    stored_tK: Tensor,
    log_p_tK: Tensor,
    divergence: Divergence,
    temperature: float,
    weights: TokenWeights,
) -> Tensor:
    logits_tV = _logits(hidden_tC, weight_VC)
    is_stored_tV = torch.zeros_like(logits_tV, dtype=torch.bool).scatter_(1, ids_tK, stored_tK)
    # An id of 0 that is only padding must not overwrite a stored 0.
    is_stored_tV[:, 0] = ((ids_tK == 0) & stored_tK).any(1)
    chosen_tK = logits_tV.gather(1, ids_tK).masked_fill(~stored_tK, -torch.inf)
    rest_t1 = logits_tV.masked_fill(is_stored_tV, -torch.inf).logsumexp(-1, keepdim=True)
    log_q_tK = _softened(torch.cat([chosen_tK, rest_t1], dim=1), temperature)
    log_p_tK = _softened(log_p_tK, temperature).clamp_min(LOWEST_LOG_PROBABILITY)
    return weights.total(divergence(log_p_tK, log_q_tK), logits_tV)


def _logits(hidden_tC: Tensor, weight_VC: Tensor) -> Tensor:
    """In fp32: in bf16, a third of neighbouring logits would tie."""
    with torch.autocast(hidden_tC.device.type, enabled=False):
        return hidden_tC.float() @ weight_VC.float().T


def _softened(logits_tK: Tensor, temperature: float) -> Tensor:
    """Finite log-probabilities at a temperature; e^-10000 is 0."""
    return (logits_tK / temperature).clamp_min(-1e4).log_softmax(-1)


def exact_divergence(
    hidden_TC: Tensor,
    weight_VC: Tensor,
    final_TC: Tensor,
    teacher_weight_VC: Tensor,
    mask_T: Tensor,
    divergence: Divergence = forward_kl,
    *,
    temperature: float = 1.0,
    weights: TokenWeights = EQUAL_WEIGHTS,
) -> Tensor:
    """Mean of `divergence` over the whole vocabulary and `mask_T`, weighted as in `sparse_divergence`.

    The teacher is its final hidden states (after the last norm) and its frozen head. Teacher and student may have
    different widths C.
    """
    positions = mask_T.nonzero().flatten()
    total, weight_VC = hidden_TC.new_zeros((), dtype=torch.float32), weight_VC.float()
    for at in torch.split(positions, max(1, LOGITS_PER_CHUNK // weight_VC.shape[0])):
        teacher = (final_TC[at], teacher_weight_VC)
        total = total + checkpoint(
            *(_exact_chunk, hidden_TC[at], weight_VC, *teacher, divergence, temperature, weights.at(at)),
            use_reentrant=False,
        )
    return total / max(1, len(positions))


def _exact_chunk(
    hidden_tC: Tensor,
    weight_VC: Tensor,
    final_tC: Tensor,
    teacher_weight_VC: Tensor,
    divergence: Divergence,
    temperature: float,
    weights: TokenWeights,
) -> Tensor:
    logits_tV = _logits(hidden_tC, weight_VC)
    with torch.no_grad():
        log_p_tV = (_logits(final_tC, teacher_weight_VC) / temperature).log_softmax(-1)
    return weights.total(divergence(log_p_tV, (logits_tV / temperature).log_softmax(-1)), logits_tV)
