"""Preset `transformer`: any causal language model of transformers as a student, with its own attention.

Its class is transformers' own with one more way through `forward`, so its folder is an ordinary checkpoint.
Shape legend: B batch, T time, C model width, V vocabulary rows.
"""

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from arwkv_store.errors import UsageError
from arwkv_student.model.decoder import positions
from arwkv_student.model.modeling import HeadLoss, plain_weight

AGREEMENT = 1e-3
"""How far logits from the linear head may be from the model's own, as a share of their largest."""


def load_transformer(folder: Path, dtype: torch.dtype | str = torch.float32) -> PreTrainedModel:
    """The folder's causal language model, whose `forward` also takes `head_loss` and `cu_seqlens` as a student's does.

    Raises UsageError where transformers has no causal language model for it, or its logits are no linear function of
    its final hidden states, which losses on sparse distributions need.
    """
    config = AutoConfig.from_pretrained(folder)
    kind = transformer_of(config)
    if kind is None:
        raise UsageError(f"model {folder}: transformers has no causal language model for {config.model_type!r}")
    model = kind.from_pretrained(folder, config=config, dtype=dtype)
    _require_linear_head(model, folder)
    return model


def transformer_of(config: Any) -> Any:
    """The class of `load_transformer` for this configuration; None where transformers has none."""
    kind = AutoModelForCausalLM._model_mapping.get(type(config), None)
    return None if kind is None or isinstance(kind, tuple) else _with_head_loss(kind)


@functools.cache
def _with_head_loss(kind: Any) -> Any:
    @functools.wraps(kind.forward)
    def forward(
        self: Any,
        *arguments: Any,
        head_loss: HeadLoss | None = None,
        cu_seqlens: Tensor | None = None,
        **named: Any,
    ) -> Any:
        if cu_seqlens is not None:
            ids_BT = named["input_ids"]
            named |= {
                "position_ids": positions(ids_BT.shape[1], 0, None, cu_seqlens, ids_BT.device),
                "use_cache": False,
            }
            named.pop("attention_mask", None)  # without it, transformers separates packed samples
        if head_loss is None:
            return kind.forward(self, *arguments, **named)
        hidden_BTC = self.base_model(*arguments, **named | {"use_cache": False}).last_hidden_state
        return CausalLMOutputWithPast(loss=head_loss(*_linear_head(self, hidden_BTC)))

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _linear_head(model: Any, hidden_BTC: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states and a weight whose product is the model's logits: a scale goes to the one, a bias to both."""
    head, config = model.get_output_embeddings(), model.config
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    weight_VC, hidden_BTC = plain_weight(head), hidden_BTC * scale if scale != 1.0 else hidden_BTC
    if head.bias is not None:
        hidden_BTC = torch.cat([hidden_BTC, torch.ones_like(hidden_BTC[..., :1])], dim=-1)
        weight_VC = torch.cat([weight_VC, head.bias[:, None]], dim=1)
    return hidden_BTC, weight_VC


@torch.no_grad()
def _require_linear_head(model: Any, folder: Path) -> None:
    was_training, ids_BT = model.training, torch.arange(1, 5, device=model.device)[None]
    model.eval()
    found: list[Tensor] = []

    def own_logits(hidden_BTC: Tensor, weight_VC: Tensor) -> Tensor:
        found.append(hidden_BTC @ weight_VC.T)
        return hidden_BTC.new_zeros(())

    model(input_ids=ids_BT, head_loss=own_logits)
    logits = model(input_ids=ids_BT, use_cache=False).logits
    model.train(was_training)
    if float((logits - found[0]).abs().max()) > AGREEMENT * float(logits.abs().max()):
        raise UsageError(
            f"model {folder}: the logits of {model.config.model_type} are no linear function of its final hidden "
            "states (a soft cap, or a norm in the head), which stage distill's losses need; choose another model"
        )
