"""The losses of stages 1 and 2, on what shards hold. Shape legend: B batch, T time, C width, V vocabulary, L layers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from arwkv_kernels import linear_sparse_kl
from arwkv_student.divergences import DIVERGENCES, exact_kl, sparse_divergence
from arwkv_student.model import HeadLoss


def align_loss_L(time_mix_outputs: Sequence[Tensor], attention_outputs: Sequence[Tensor], mask_BT: Tensor) -> Tensor:
    """Per layer the mean over tokens of ‖a_l − TimeMix_l‖₂ / √C, un-squared (arXiv 2501.15570, stage 1); fp32 [L].

    `mask_BT` is 1 for tokens and 0 for padding, which the mean leaves out.
    """
    weights_BT = mask_BT.float() / mask_BT.sum()
    losses = []
    for mixed_BTC, teacher_BTC in zip(time_mix_outputs, attention_outputs, strict=True):
        distance_BT = torch.linalg.vector_norm(mixed_BTC.float() - teacher_BTC.float(), dim=-1)
        losses.append((distance_BT * weights_BT).sum() / math.sqrt(mixed_BTC.shape[-1]))
    return torch.stack(losses)


def relative_error_L(
    time_mix_outputs: Sequence[Tensor], attention_outputs: Sequence[Tensor], mask_BT: Tensor
) -> Tensor:
    """Per layer ‖a_l − TimeMix_l‖ / ‖a_l‖, both over all tokens and channels: 1 is what a silent mixer has; [L]."""
    mask_BT1 = mask_BT[..., None].float()
    return torch.stack(
        [
            torch.linalg.vector_norm((mixed.float() - teacher.float()) * mask_BT1)
            / torch.linalg.vector_norm(teacher.float() * mask_BT1).clamp_min(1e-12)
            for mixed, teacher in zip(time_mix_outputs, attention_outputs, strict=True)
        ]
    )


@dataclass(frozen=True)
class Objective:
    """What stage distill minimises: (1 − ce_weight) · divergence from the teacher + ce_weight · cross-entropy."""

    vocab_size: int
    """The head's rows from here on are padding and take no part."""
    divergence: str = "forward"
    """"forward", "reverse" or "adaptive" (see `arwkv_student.divergences`)."""
    temperature: float = 1.0
    """Softens teacher and student alike; the loss keeps its scale, τ² times the softened divergence."""
    ce_weight: float = 0.0
    """Share of the cross-entropy of the true next tokens."""
    teacher_head_VC: Tensor | None = None
    """With the teacher's head, and `final` hidden states in the batch, the KL is exact."""
    compute_dtype: torch.dtype | None = None
    """Of the products with the head; None keeps the hidden states' own."""


def distill_loss(batch: Mapping[str, Tensor], objective: Objective) -> HeadLoss:
    """The objective on a batch made by `collate`, in nats, mean over the positions that count.

    Goes into `ArwkvForCausalLM.forward(head_loss=…)`. The tail counts as one more outcome.
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
    if objective.teacher_head_VC is not None:
        final_TC = batch["final"].flatten(0, 1)
        head_VC = objective.teacher_head_VC[: objective.vocab_size]
        divergence = exact_kl(hidden_TC, weight_VC, final_TC, head_VC, mask_T, temperature=temperature)
    elif objective.divergence == "forward":
        sparse = (batch["ids"], batch["logprobs"], batch["counts"], batch["tail_logprob"])
        divergence = linear_sparse_kl(hidden_TC, weight_VC, *sparse, mask=mask_T, temperature=temperature)
    else:
        formula = DIVERGENCES[objective.divergence]
        divergence = sparse_divergence(hidden_TC, weight_VC, batch, formula, temperature=temperature)
    return divergence * temperature**2


def _cross_entropy(hidden_TC: Tensor, weight_VC: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """−log q of the true next tokens: the KL from a teacher that is sure of them."""
    counts_T = torch.ones_like(batch["predicts"], dtype=torch.int64).flatten()
    certain_T = torch.zeros_like(counts_T, dtype=torch.float32)
    return linear_sparse_kl(
        hidden_TC,
        weight_VC,
        batch["input_ids"].roll(-1, dims=1).flatten(),
        certain_T,
        counts_T,
        certain_T - torch.inf,
        mask=batch["predicts"].flatten(),
    )
