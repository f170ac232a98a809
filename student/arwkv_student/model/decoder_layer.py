"""One layer of the student: its base's, with a time mixer instead of its attention, or with its attention.

Shape legend: B batch, T time, C model width, U width of all key-value heads.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from arwkv_student.model.cache import ArwkvCache
from arwkv_student.model.configuration import TIME_MIX, ArwkvConfig
from arwkv_student.model.elementwise import fused
from arwkv_student.model.stage_one import AttentionTargets, with_gradient_at_once
from arwkv_student.model.time_mix import TimeMix, TimeMixContext


class AttentionContext(NamedTuple):
    """Shared by the attention layers of one forward pass."""

    cos_sin_BTD: tuple[Tensor, Tensor]
    causal_masks: Mapping[str, Tensor | None]
    """By kind of layer."""


class ArwkvDecoderLayer(GradientCheckpointingLayer):  # type: ignore[misc] # transformers is untyped
    """Norms, time mixer or attention, and MLP, as the base's layer has them (see `BlockNorms`), under its names."""

    def __init__(self, config: ArwkvConfig, layer: int) -> None:
        super().__init__()
        assert config.layer_types is not None
        architecture = config.architecture
        self.layer, self.kind, self.norms = layer, config.layer_types[layer], architecture.norms
        self.mixes_time = self.kind == TIME_MIX
        self.is_sparse = architecture.is_sparse(config, layer)
        self.fuse = False
        """Whether what follows the mixer is compiled. Experts are not: the tokens of each change with the batch."""
        if self.mixes_time:
            is_first = layer == min(config.time_mix_layers)
            self.time_mix = TimeMix(
                *(config.time_mix_options, config.hidden_size, layer, config.num_hidden_layers),
                is_first=is_first,
                norm_eps=config.rms_norm_eps,
            )
        else:
            self.self_attn = architecture.attention(config, layer)
        self.mlp = architecture.mlp(config, layer)
        for name in self.norms.names():
            self.add_module(name, architecture.norm(config))

    def forward(
        self,
        hidden_BTC: Tensor,
        v_first_BTU: Tensor | None,
        context: TimeMixContext,
        attention: AttentionContext | None,
        cache: ArwkvCache | None,
        targets: AttentionTargets | None = None,
        only_mixes: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Returns (stream after the layer, the first mixer's value, stage 1's loss of this layer).

        With `targets`, the mixer learns the teacher's attention output, and the stream continues with that output,
        without a gradient. `only_mixes` ends with the loss, if the stream after it is not needed.
        """
        if targets is not None:
            return self._learn(hidden_BTC, v_first_BTU, context, attention, targets, only_mixes)
        x_BTC = self.normed(self.norms.before_mixer, hidden_BTC)
        if self.mixes_time:
            state = None if cache is None else cache.time_mix_state(self.layer, x_BTC)
            mixed_BTC, v_first_BTU, state = self.time_mix(x_BTC, v_first_BTU, context, state)
            if cache is not None:
                cache.keep_time_mix_state(self.layer, state, x_BTC.shape[1])
        else:
            mixed_BTC = self._attend(x_BTC, attention, cache)
        return self.rest(hidden_BTC, mixed_BTC), v_first_BTU, None

    def _learn(
        self,
        hidden_BTC: Tensor,
        v_first_BTU: Tensor | None,
        context: TimeMixContext,
        attention: AttentionContext | None,
        targets: AttentionTargets,
        only_mixes: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Only the time mixer has a gradient, computed here; that of a first mixer to which others add comes later."""
        with torch.no_grad():
            hidden_BTC = targets.stream(self.layer, hidden_BTC)
            x_BTC = self.normed(self.norms.before_mixer, hidden_BTC)
            output_BTC = targets.attention(self.layer, hidden_BTC)
            if output_BTC is None:
                output_BTC = self._attend(x_BTC, attention, None)
        loss = None
        if self.mixes_time:
            first = v_first_BTU is None
            mixed_BTC, v_first_BTU, _ = self.time_mix(x_BTC, v_first_BTU, context)
            loss = targets.loss(self.layer, mixed_BTC, output_BTC)
            if self.time_mix.options.value_residual != "differentiable":
                v_first_BTU = v_first_BTU.detach()
            if not (first and v_first_BTU.requires_grad):
                loss = with_gradient_at_once(loss, [*self.time_mix.parameters(), v_first_BTU])
        if not only_mixes:
            with torch.no_grad():
                hidden_BTC = self.rest(hidden_BTC, output_BTC.to(hidden_BTC.dtype))
        return hidden_BTC, v_first_BTU, loss

    def _attend(self, x_BTC: Tensor, attention: AttentionContext | None, cache: ArwkvCache | None) -> Tensor:
        assert attention is not None, "a layer that attends was given no positions"
        output_BTC: Tensor = self.self_attn(
            hidden_states=x_BTC,
            position_embeddings=attention.cos_sin_BTD,
            attention_mask=attention.causal_masks[self.kind],
            past_key_values=cache,
        )[0]
        return output_BTC

    def rest(self, hidden_BTC: Tensor, mixed_BTC: Tensor) -> Tensor:
        """The residual stream after the layer, from the mixer's output."""
        return (fused(_rest) if self.fuse and not self.is_sparse else _rest)(self, hidden_BTC, mixed_BTC)

    def normed(self, norm: str | None, x_BTC: Tensor) -> Tensor:
        if norm is None:
            return x_BTC
        normed_BTC: Tensor = getattr(self, norm)(x_BTC)
        return normed_BTC


def _rest(layer: ArwkvDecoderLayer, hidden_BTC: Tensor, mixed_BTC: Tensor) -> Tensor:
    hidden_BTC = hidden_BTC + layer.normed(layer.norms.after_mixer, mixed_BTC)
    y_BTC = layer.mlp(layer.normed(layer.norms.before_mlp, hidden_BTC))
    return hidden_BTC + layer.normed(layer.norms.after_mlp, y_BTC)
