"""The student without its head: embedding, layers, last norm.

Shape legend: B batch, T time, C model width, L layers.
"""

import copy
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
from arwkv_student.model.stage_one import AttentionTargets
from arwkv_student.model.time_mix import TimeMix, TimeMixContext


@dataclass
class ArwkvModelOutput(ModelOutput):  # type: ignore[misc] # transformers is untyped
    """The result of the decoder stack."""

    last_hidden_state: Tensor | None = None
    past_key_values: ArwkvCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    losses_L: Tensor | None = None
    """Of stage 1, by layer that mixes time."""


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
        if self.rotary_emb is not None and not config.kept_rope:
            self.rotary_emb = WithoutPositions(self.rotary_emb)
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
        targets: AttentionTargets | None = None,
        output_hidden_states: bool = False,
    ) -> ArwkvModelOutput:
        """Run the stack. `cu_seqlens` [n + 1]: documents packed along T, with B = 1.

        With `targets`, stage 1: every time mixer up to the last reads the teacher's residual stream, and the result is
        their `losses_L` alone.
        """
        hidden_BTC = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = ArwkvCache(self.config)
        cache = past_key_values if use_cache else None
        if cache is not None and cu_seqlens is not None:
            raise UsageError("cu_seqlens and a cache: a packed row has no single final state; pass use_cache=False")
        context, attention = self._context(hidden_BTC, attention_mask, position_ids, cache, cu_seqlens)
        if targets is not None:
            return ArwkvModelOutput(losses_L=self._learn(hidden_BTC, context, attention, targets))
        v_first_BTU, streams = None, [hidden_BTC]
        for block in self.layers:
            hidden_BTC, v_first_BTU, _ = block(hidden_BTC, v_first_BTU, context, attention, cache)
            if output_hidden_states:
                streams.append(hidden_BTC)
        return ArwkvModelOutput(
            last_hidden_state=self.norm(hidden_BTC),
            past_key_values=cache,
            hidden_states=tuple(streams) if output_hidden_states else None,
        )

    def _learn(
        self,
        hidden_BTC: Tensor,
        context: TimeMixContext,
        attention: AttentionContext | None,
        targets: AttentionTargets,
    ) -> Tensor:
        """Stage 1's losses [L] of the layers that mix time."""
        v_first_BTU, losses, last = None, [], self.config.time_mix_layers[-1]
        for layer, block in enumerate(self.layers[: last + 1]):
            if block.mixes_time or targets.rebuilds:
                only_mixes = layer == last or not targets.rebuilds
                hidden_BTC, v_first_BTU, loss = block(
                    hidden_BTC, v_first_BTU, context, attention, None, targets, only_mixes
                )
                losses += [] if loss is None else [loss]
        return torch.stack(losses)

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
        if cache is None and mask_BT1 is not None and bool((mask_BT1[:, 1:] <= mask_BT1[:, :-1]).all()):
            attention_mask = None  # what pads is to the right, where no token that counts sees it
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


class WithoutPositions(nn.Module):
    """In the place of a rotary embedding: no rotation at any position. What attends finds tokens by content alone."""

    def __init__(self, rotary_emb: nn.Module) -> None:
        super().__init__()
        self.rotary_emb = rotary_emb

    def forward(self, hidden_BTC: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        cos_BTD, sin_BTD = self.rotary_emb(hidden_BTC, position_ids)
        return torch.ones_like(cos_BTD), torch.zeros_like(sin_BTD)


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
