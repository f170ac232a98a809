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
        teacher_BTC: Tensor | None = None,
        only_mixes: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Returns (stream after the layer, the first mixer's value, its output where a teacher's was given).

        With `teacher_BTC`, the teacher's attention output of this layer, the residual stream continues with it instead
        of the time mixer's output, and without a gradient: stage 1's teacher forcing. `only_mixes` ends with the time
        mixer, if the stream after it is not needed.
        """
        x_BTC = self.normed(self.norms.before_mixer, hidden_BTC)
        mixed_BTC = None
        if self.mixes_time:
            state = None if cache is None else cache.time_mix_state(self.layer, x_BTC)
            mixed_BTC, v_first_BTU, state = self.time_mix(x_BTC, v_first_BTU, context, state)
            if cache is not None:
                cache.keep_time_mix_state(self.layer, state, x_BTC.shape[1])
        elif teacher_BTC is None and not only_mixes:
            assert attention is not None, "a layer that attends was given no positions"
            mixed_BTC, _ = self.self_attn(
                hidden_states=x_BTC,
                position_embeddings=attention.cos_sin_BTD,
                attention_mask=attention.causal_masks[self.kind],
                past_key_values=cache,
            )
        if only_mixes:
            return hidden_BTC, v_first_BTU, mixed_BTC
        if teacher_BTC is not None:
            with torch.no_grad():
                return self.rest(hidden_BTC, teacher_BTC.to(hidden_BTC.dtype)), v_first_BTU, mixed_BTC
        assert mixed_BTC is not None, "without a teacher's output, a layer mixes time or attends"
        return self.rest(hidden_BTC, mixed_BTC), v_first_BTU, None

    def rest(self, hidden_BTC: Tensor, mixed_BTC: Tensor) -> Tensor:
        """The residual stream after the layer, from the mixer's output."""
        hidden_BTC = hidden_BTC + self.normed(self.norms.after_mixer, mixed_BTC)
        y_BTC = self.mlp(self.normed(self.norms.before_mlp, hidden_BTC))
        return hidden_BTC + self.normed(self.norms.after_mlp, y_BTC)

    def normed(self, norm: str | None, x_BTC: Tensor) -> Tensor:
        if norm is None:
            return x_BTC
        normed_BTC: Tensor = getattr(self, norm)(x_BTC)
        return normed_BTC
