"""The attention of a base's layers in training: by blocks on a CPU in bf16, else torch's own.

Shape legend: B batch, H query heads, K key-value heads, T time, S keys, D head width.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from arwkv_kernels.blocked_attention import blocked_attention

NAME = "arwkv"
"""Of this attention, for transformers' `_attn_implementation`."""


def attend(
    module: Any,
    q_BHTD: Tensor,
    k_BKSD: Tensor,
    v_BKSD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **further: Any,
) -> tuple[Tensor, None]:
    """An attention function as transformers calls it: the output [B, T, H, D], and no probabilities.

    Without a mask, T queries of S = T keys are causal.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else q_BHTD.dtype
    on_cpu_in_bf16 = q_BHTD.device.type == "cpu" and dtype == torch.bfloat16
    is_causal = further.get("is_causal", getattr(module, "is_causal", True)) is not False
    sees_all_before = attention_mask is None and is_causal and q_BHTD.shape[2] == k_BKSD.shape[2]
    if not (on_cpu_in_bf16 and sees_all_before and dropout == 0.0):
        return sdpa_attention_forward(  # type: ignore[no-any-return] # transformers is untyped
            module, q_BHTD, k_BKSD, v_BKSD, attention_mask, dropout=dropout, scaling=scaling, **further
        )
    q_BHTD, k_BKSD, v_BKSD = (x.to(dtype) for x in (q_BHTD, k_BKSD, v_BKSD))
    scale = q_BHTD.shape[-1] ** -0.5 if scaling is None else scaling
    return blocked_attention(q_BHTD, k_BKSD, v_BKSD, scale).transpose(1, 2), None


def attend_by_blocks(model: PreTrainedModel) -> None:
    """Give a model on a CPU this attention, if its own is torch's; its configuration file does not name it."""
    if model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
