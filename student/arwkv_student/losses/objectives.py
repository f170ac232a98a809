"""The losses of stages 1 and 2. Shape legend: B batch, T time, C width, V vocabulary, L layers."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from arwkv_kernels import linear_sparse_kl
from arwkv_student.losses.divergences import (
    DIVERGENCES,
    Divergence,
    TokenWeights,
    exact_divergence,
    skewed_forward_kl,
    skewed_reverse_kl,
    sparse_divergence,
)


def align_loss_L(
    time_mix_outputs: Sequence[Tensor],
    attention_outputs: Sequence[Tensor],
    mask_BT: Tensor,
    kind: str = "paper",
    *,
    layer_scaled: bool = False,
) -> Tensor:
    """The loss of stage 1 per layer, fp32 [L]; the mean over tokens of the error vector's size.

    `paper`: ‖a_l − TimeMix_l‖₂ / √C, un-squared (arXiv 2501.15570, stage 1); `mse`: its square. `layer_scaled` divides
    by the loss of a zero-output mixer. `mask_BT` is 1 for tokens and 0 for padding, which the mean leaves out.
    """
    weights_BT = mask_BT.float() / mask_BT.sum()

    def size(error_BTC: Tensor) -> Tensor:
        if kind == "mse":
            return (error_BTC.square().mean(dim=-1) * weights_BT).sum()
        distance_BT: Tensor = torch.linalg.vector_norm(error_BTC, dim=-1)
        return (distance_BT * weights_BT).sum() / math.sqrt(error_BTC.shape[-1])

    losses = []
    for mixed_BTC, teacher_BTC in zip(time_mix_outputs, attention_outputs, strict=True):
        loss = size(mixed_BTC.float() - teacher_BTC.float())
        losses.append(loss / size(teacher_BTC.float()).clamp_min(1e-12) if layer_scaled else loss)
    return torch.stack(losses)


def error_and_size_2L(
    time_mix_outputs: Sequence[Tensor], attention_outputs: Sequence[Tensor], mask_BT: Tensor
) -> Tensor:
    """Per layer Σ‖a_l − TimeMix_l‖² and Σ‖a_l‖² over all tokens; [2, L]."""
    mask_BT1 = mask_BT[..., None].float()
    pairs = list(zip(time_mix_outputs, attention_outputs, strict=True))
    errors = [((mixed.float() - teacher.float()) * mask_BT1).square().sum() for mixed, teacher in pairs]
    sizes = [(teacher.float() * mask_BT1).square().sum() for _, teacher in pairs]
    return torch.stack([torch.stack(errors), torch.stack(sizes)])


@dataclass(frozen=True)
class Objective:
    """The loss of stage distill: (1 − ce_weight) · divergence from the teacher + ce_weight · cross-entropy."""

    vocab_size: int
    """The head's rows from here on are padding and are ignored."""
    divergence: str = "forward"
    """One of `arwkv_student.losses.divergences.DIVERGENCES`."""
    skew: float = 0.1
    """The other distribution's share in the mixture of a skewed divergence."""
    token_weight: str = "equal"
    """Weight of a position's divergence: 1, the teacher's "entropy" in nats, or the student's "error" 1 − q of the true
    next token."""
    temperature: float = 1.0
    """Softens teacher and student; the loss keeps its scale, τ² times the softened divergence."""
    ce_weight: float = 0.0
    """Share of the cross-entropy of the true next tokens."""
    teacher_head_VC: Tensor | None = None
    """With the teacher's head, and `final` hidden states in the batch, the KL is exact."""
    compute_dtype: torch.dtype | None = None
    """Of the products with the head; None keeps the hidden states' own."""


def distill_loss(batch: Mapping[str, Tensor], objective: Objective) -> Callable[[Tensor, Tensor], Tensor]:
    """The objective on a batch made by `collate`, in nats, mean over the positions that count.

    A function of the final hidden states [B, T, C] and the head's weight [V, C], for
    `ArwkvForCausalLM.forward(head_loss=…)`. The tail counts as one more outcome.
    """

    def loss(hidden_BTC: Tensor, weight_VC: Tensor) -> Tensor:
        dtype = objective.compute_dtype or hidden_BTC.dtype
        hidden_TC, weight_VC = hidden_BTC.flatten(0, 1).to(dtype), weight_VC[: objective.vocab_size].to(dtype)
        terms = []
        if objective.ce_weight < 1.0:
            terms.append((1.0 - objective.ce_weight) * _divergence(hidden_TC, weight_VC, batch, objective))
        if objective.ce_weight > 0.0:
            terms.append(objective.ce_weight * _cross_entropy(hidden_TC, weight_VC, batch))
        return sum(terms[1:], terms[0])

    return loss


def _divergence(hidden_TC: Tensor, weight_VC: Tensor, batch: Mapping[str, Tensor], objective: Objective) -> Tensor:
    temperature = objective.temperature
    mask_T = batch["predicts"].flatten()
    softened: dict[str, Any] = {"temperature": temperature, "weights": _token_weights(batch, objective)}
    if objective.teacher_head_VC is not None:
        final_TC = batch["final"].flatten(0, 1)
        head_VC = objective.teacher_head_VC[: objective.vocab_size]
        divergence = exact_divergence(hidden_TC, weight_VC, final_TC, head_VC, mask_T, _formula(objective), **softened)
    elif objective.divergence == "forward" and objective.token_weight == "equal":
        sparse = (batch["ids"], batch["logprobs"], batch["counts"], batch["tail_logprob"])
        divergence = linear_sparse_kl(hidden_TC, weight_VC, *sparse, mask=mask_T, temperature=temperature)
        if "entropy_gap" in batch:
            # No gradient: it makes losses from draws comparable with those from other captures.
            divergence = divergence + batch["entropy_gap"][mask_T].sum() / mask_T.sum().clamp_min(1)
    else:
        divergence = sparse_divergence(hidden_TC, weight_VC, batch, _formula(objective), **softened)
    return divergence * temperature**2


def _formula(objective: Objective) -> Divergence:
    skewed = {"skewed-forward": skewed_forward_kl, "skewed-reverse": skewed_reverse_kl}.get(objective.divergence)
    return DIVERGENCES[objective.divergence] if skewed is None else partial(skewed, skew=objective.skew)


def _token_weights(batch: Mapping[str, Tensor], objective: Objective) -> TokenWeights:
    gap_T = batch.get("entropy_gap")
    if objective.token_weight == "entropy":
        return TokenWeights(given_T=batch["entropy"].flatten(), gap_T=gap_T)
    true_T = _next_tokens_T(batch) if objective.token_weight == "error" else None
    return TokenWeights(true_T=true_T, gap_T=gap_T)


def _next_tokens_T(batch: Mapping[str, Tensor]) -> Tensor:
    """The token after each position; a segment of a longer sample brings them along."""
    ids_BT = batch["next_ids"] if "next_ids" in batch else batch["input_ids"].roll(-1, dims=1)
    return ids_BT.flatten()


def _cross_entropy(hidden_TC: Tensor, weight_VC: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """−log q of the true next tokens: the KL from a teacher that is sure of them."""
    counts_T = torch.ones_like(batch["predicts"], dtype=torch.int64).flatten()
    certain_T = torch.zeros_like(counts_T, dtype=torch.float32)
    return linear_sparse_kl(
        hidden_TC,
        weight_VC,
        _next_tokens_T(batch),
        certain_T,
        counts_T,
        certain_T - torch.inf,
        mask=batch["predicts"].flatten(),
    )
