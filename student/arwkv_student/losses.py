"""The losses of stages 1 and 2, on what shards hold. Shape legend: B batch, T time, C width, V vocabulary, L layers."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from arwkv_kernels import linear_sparse_kl
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


def distill_loss(
    batch: Mapping[str, Tensor], vocab_size: int, *, temperature: float = 1.0, compute_dtype: torch.dtype | None = None
) -> HeadLoss:
    """KL(teacher ‖ student) in nats with the tail as one more outcome, mean over the positions that count.

    Goes into `ArwkvForCausalLM.forward(head_loss=…)`. The head's rows from `vocab_size` on are padding.
    `compute_dtype`: of the product with the head; None keeps the hidden states' own.
    """

    def loss(hidden_BTC: Tensor, weight_VC: Tensor) -> Tensor:
        dtype = compute_dtype or hidden_BTC.dtype
        return linear_sparse_kl(
            hidden_BTC.flatten(0, 1).to(dtype),
            weight_VC[:vocab_size].to(dtype),
            batch["ids"],
            batch["logprobs"],
            batch["counts"],
            batch["tail_logprob"],
            mask=batch["predicts"].flatten(),
            temperature=temperature,
        )

    return loss
