"""The student without its head: embedding, layers, last norm.

Shape legend: B batch, T time, C model width, L layers.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import ModelOutput

from arwkv_store.errors import UsageError
from arwkv_student.model.cache import ArwkvCache
from arwkv_student.model.configuration import TIME_MIX, WINDOWED_ATTENTION, ArwkvConfig
from arwkv_student.model.decoder_layer import ArwkvDecoderLayer, AttentionContext
from arwkv_student.model.time_mix import TimeMix, TimeMixContext


@dataclass
class ArwkvModelOutput(ModelOutput):  # type: ignore[misc] # transformers is untyped
    """The result of the decoder stack."""

    last_hidden_state: Tensor | None = None
    past_key_values: ArwkvCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    time_mix_outputs: tuple[Tensor, ...] | None = None


class ArwkvPreTrainedModel(PreTrainedModel):  # type: ignore[misc] # transformers is untyped
    """Loading, saving and initialization."""

    config_class = ArwkvConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ArwkvDecoderLayer"]  # noqa: RUF012 -- transformers' own class attribute
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    # bf16 would round the argument of the decay's exponential by 1.5% of the log decay.
    _keep_in_fp32_modules_strict = ["decay.bias"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _is_stateful = True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TimeMix):
            module.initialize()


class ArwkvModel(ArwkvPreTrainedModel):
    """Embedding, layers, final norm."""

    def __init__(self, config: ArwkvConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(ArwkvDecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        architecture = config.architecture
        self.norm = architecture.norm(config)
        self.attention_kinds = set(config.layer_types or ()) - {TIME_MIX}
        self.rotary_emb = architecture.rotary_embedding(config) if self.attention_kinds else None
        self.time_mix_rotary_emb = _time_mix_rotary_emb(config) if config.time_mix_options.rope else None
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: ArwkvCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cu_seqlens: Tensor | None = None,
        teacher_attention: Sequence[Tensor] | None = None,
        teacher_streams: Sequence[Tensor] | None = None,
        output_hidden_states: bool = False,
    ) -> ArwkvModelOutput:
        """Run the stack. `cu_seqlens` [n + 1]: documents packed along T, with B = 1.

        `teacher_attention`: the teacher's attention outputs, L of [B, T, C] (or one [L, B, T, C]), up to the last layer
        that mixes time. Every time mixer then reads the teacher's residual stream, rebuilt by this model's embedding,
        norms and MLPs, and `time_mix_outputs` holds their outputs. `teacher_streams`: the same from stored residual
        streams that enter each layer.
        """
        hidden_BTC = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = ArwkvCache(self.config)
        cache = past_key_values if use_cache else None
        if cache is not None and cu_seqlens is not None:
            raise UsageError("cu_seqlens and a cache: a packed row has no single final state; pass use_cache=False")
        context, attention = self._context(hidden_BTC, attention_mask, position_ids, cache, cu_seqlens)
        v_first_BTU, streams, mixed = None, [hidden_BTC], []
        blocks = self.layers
        if teacher_attention is not None or teacher_streams is not None:
            blocks = blocks[: self.config.time_mix_layers[-1] + 1]
        for layer, block in enumerate(blocks):
            teacher_BTC = None if teacher_attention is None else teacher_attention[layer]
            if teacher_streams is not None:
                hidden_BTC = teacher_streams[layer].to(hidden_BTC.dtype)
            is_last = layer == len(blocks) - 1
            only_mixes = teacher_streams is not None or (teacher_attention is not None and is_last)
            hidden_BTC, v_first_BTU, mixed_BTC = block(
                hidden_BTC, v_first_BTU, context, attention, cache, teacher_BTC, only_mixes
            )
            if output_hidden_states:
                streams.append(hidden_BTC)
            if mixed_BTC is not None:
                mixed.append(mixed_BTC)
        return ArwkvModelOutput(
            last_hidden_state=self.norm(hidden_BTC),
            past_key_values=cache,
            hidden_states=tuple(streams) if output_hidden_states else None,
            time_mix_outputs=tuple(mixed),
        )

    def _context(
        self,
        hidden_BTC: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: ArwkvCache | None,
        cu_seqlens: Tensor | None,
    ) -> tuple[TimeMixContext, AttentionContext | None]:
        length = hidden_BTC.shape[1]
        mask_BT1 = None
        if attention_mask is not None and not bool(attention_mask[:, -length:].all()):
            mask_BT1 = attention_mask[:, -length:, None]
        if self.rotary_emb is None and self.time_mix_rotary_emb is None:
            return TimeMixContext(None, mask_BT1, cu_seqlens), None
        past = 0 if cache is None else cache.get_seq_length()
        if position_ids is None:
            position_ids = positions(length, past, attention_mask, cu_seqlens, hidden_BTC.device)
        turned = None if self.time_mix_rotary_emb is None else self.time_mix_rotary_emb(hidden_BTC, position_ids)
        context = TimeMixContext(turned, mask_BT1, cu_seqlens)
        if self.rotary_emb is None:
            return context, None
        causal_masks = {
            kind: (create_sliding_window_causal_mask if kind == WINDOWED_ATTENTION else create_causal_mask)(
                config=self.config,
                inputs_embeds=hidden_BTC,
                attention_mask=attention_mask,
                past_key_values=cache,
                position_ids=position_ids,
            )
            for kind in self.attention_kinds
        }
        return context, AttentionContext(self.rotary_emb(hidden_BTC, position_ids), causal_masks)


def _time_mix_rotary_emb(config: ArwkvConfig) -> nn.Module:
    """The base's rotary embedding, for the time mixers' own head size."""
    own = copy.copy(config)
    own.head_dim = config.time_mix_options.head_dim
    embedding: nn.Module = config.architecture.rotary_embedding(own)
    return embedding


def positions(
    length: int, past: int, attention_mask: Tensor | None, cu_seqlens: Tensor | None, device: torch.device
) -> Tensor:
    """Positions [B or 1, T], counted from each sequence's first token."""
    if cu_seqlens is not None:
        starts_T = torch.repeat_interleave(cu_seqlens[:-1], cu_seqlens.diff())
        return (torch.arange(length, device=device) - starts_T.to(device))[None]
    if attention_mask is not None:
        return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -length:]
    return (torch.arange(length, device=device) + past)[None]
