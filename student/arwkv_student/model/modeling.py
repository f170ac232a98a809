"""`ArwkvForCausalLM`: a Qwen2 decoder whose attention blocks are RWKV-7 time mixers, as a Hugging Face model.

Layers that `config.layer_types` calls "full_attention" keep the base's attention (a hybrid); all others mix time.
Shape legend: B batch, T time, C model width, V vocabulary rows, L layers.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast, ModelOutput
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2MLP, Qwen2RMSNorm, Qwen2RotaryEmbedding

from arwkv_student.model.cache import ArwkvCache
from arwkv_student.model.configuration import TimeMixOptions
from arwkv_student.model.time_mix import TimeMix, TimeMixContext

TIME_MIX, ATTENTION = "linear_attention", "full_attention"

# hidden [B, T, C], head weight [V, C] -> loss
HeadLoss = Callable[[Tensor, Tensor], Tensor]


class ArwkvConfig(PreTrainedConfig):  # type: ignore[misc] # transformers is untyped
    """Qwen2's configuration, and `time_mix`: the fields of `arwkv_student.model.configuration.TimeMixOptions`."""

    model_type = "arwkv"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 -- transformers' own class attribute

    vocab_size: int = 151936
    hidden_size: int = 896
    intermediate_size: int = 4864
    num_hidden_layers: int = 24
    num_attention_heads: int = 14
    num_key_value_heads: int = 2
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    tie_word_embeddings: bool = False
    rope_parameters: dict | None = None  # type: ignore[type-arg] # transformers checks it at run time, and knows no dict[…]
    layer_types: list[str] | None = None
    sliding_window: int | None = None
    attention_dropout: float = 0.0
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    preset: str = "arwkv"
    time_mix: dict | None = None  # type: ignore[type-arg] # as above

    def __post_init__(self, **kwargs: Any) -> None:
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        self.layer_types = self.layer_types or [TIME_MIX] * self.num_hidden_layers
        super().__post_init__(**kwargs)

    @property
    def time_mix_options(self) -> TimeMixOptions:
        """`time_mix`, typed and checked."""
        assert self.time_mix is not None, "an ArwkvConfig without time_mix; make it with preset_options"
        return TimeMixOptions(**self.time_mix)

    @property
    def time_mix_layers(self) -> list[int]:
        """The layers that mix time."""
        return [layer for layer, kind in enumerate(self.layer_types or []) if kind == TIME_MIX]


class AttentionContext(NamedTuple):
    """What the layers that kept their attention share in one forward pass."""

    cos_sin_BTD: tuple[Tensor, Tensor]
    causal_mask: Tensor | None


@dataclass
class ArwkvModelOutput(ModelOutput):  # type: ignore[misc] # transformers is untyped
    """What the decoder stack returns."""

    last_hidden_state: Tensor | None = None
    past_key_values: ArwkvCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    time_mix_outputs: tuple[Tensor, ...] | None = None


class ArwkvDecoderLayer(GradientCheckpointingLayer):  # type: ignore[misc] # transformers is untyped
    """Norm, time mixer or attention, norm, MLP; Qwen2's layer, and its parameter names."""

    def __init__(self, config: ArwkvConfig, layer: int) -> None:
        super().__init__()
        assert config.layer_types is not None
        self.layer, self.mixes_time = layer, config.layer_types[layer] == TIME_MIX
        if self.mixes_time:
            is_first = layer == min(config.time_mix_layers)
            self.time_mix = TimeMix(
                config.time_mix_options, config.hidden_size, layer, config.num_hidden_layers, is_first=is_first
            )
        else:
            self.self_attn = Qwen2Attention(config, layer)
        self.mlp = Qwen2MLP(config)
        self.input_layernorm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

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

        With `teacher_BTC`, the teacher's attention output of this layer, the stream goes on with that instead of the
        time mixer's own, and carries no gradient: stage 1's teacher forcing. `only_mixes` ends with the time mixer,
        where nobody reads the stream after it.
        """
        x_BTC = self.input_layernorm(hidden_BTC)
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
                attention_mask=attention.causal_mask,
                past_key_values=cache,
            )
        if only_mixes:
            return hidden_BTC, v_first_BTU, mixed_BTC
        if teacher_BTC is not None:
            with torch.no_grad():
                return self._with_mlp(hidden_BTC + teacher_BTC.to(hidden_BTC.dtype)), v_first_BTU, mixed_BTC
        assert mixed_BTC is not None, "without a teacher's output, a layer mixes time or attends"
        return self._with_mlp(hidden_BTC + mixed_BTC), v_first_BTU, None

    def _with_mlp(self, hidden_BTC: Tensor) -> Tensor:
        stream_BTC: Tensor = hidden_BTC + self.mlp(self.post_attention_layernorm(hidden_BTC))
        return stream_BTC


class ArwkvPreTrainedModel(PreTrainedModel):  # type: ignore[misc] # transformers is untyped
    """Loading, saving and initialisation."""

    config_class = ArwkvConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ArwkvDecoderLayer"]  # noqa: RUF012 -- transformers' own class attribute
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flash_attn = True
    _is_stateful = True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, TimeMix):
            module.initialise()


class ArwkvModel(ArwkvPreTrainedModel):
    """Embedding, layers, final norm."""

    def __init__(self, config: ArwkvConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(ArwkvDecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = Qwen2RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = Qwen2RotaryEmbedding(config) if ATTENTION in (config.layer_types or []) else None
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
        that mixes time: every time mixer then sees the teacher's own stream, rebuilt by this model's embedding, norms
        and MLPs, and `time_mix_outputs` holds what each made of it. `teacher_streams`: the same from the residual
        streams entering each layer, stored.
        """
        hidden_BTC = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = ArwkvCache(self.config)
        cache = past_key_values if use_cache else None
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
            position_ids = _positions(length, past, attention_mask, cu_seqlens, hidden_BTC.device)
        turned = None if self.time_mix_rotary_emb is None else self.time_mix_rotary_emb(hidden_BTC, position_ids)
        context = TimeMixContext(turned, mask_BT1, cu_seqlens)
        if self.rotary_emb is None:
            return context, None
        causal_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden_BTC,
            attention_mask=attention_mask,
            past_key_values=cache,
            position_ids=position_ids,
        )
        return context, AttentionContext(self.rotary_emb(hidden_BTC, position_ids), causal_mask)


def _time_mix_rotary_emb(config: ArwkvConfig) -> nn.Module:
    """The base's rotary embedding, for the time mixers' own head size."""
    own = copy.copy(config)
    own.head_dim = config.time_mix_options.head_dim
    embedding: nn.Module = Qwen2RotaryEmbedding(own)
    return embedding


def _positions(
    length: int, past: int, attention_mask: Tensor | None, cu_seqlens: Tensor | None, device: torch.device
) -> Tensor:
    """Positions [B or 1, T], counted from each sequence's first token."""
    if cu_seqlens is not None:
        starts_T = torch.repeat_interleave(cu_seqlens[:-1], cu_seqlens.diff())
        return (torch.arange(length, device=device) - starts_T.to(device))[None]
    if attention_mask is not None:
        return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -length:]
    return (torch.arange(length, device=device) + past)[None]


class ArwkvForCausalLM(ArwkvPreTrainedModel, GenerationMixin):  # type: ignore[misc] # transformers is untyped
    """The student: next-token logits over the base's vocabulary rows, with a state of constant size."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 -- transformers' own

    def __init__(self, config: ArwkvConfig) -> None:
        super().__init__(config)
        self.model = ArwkvModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: ArwkvCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cu_seqlens: Tensor | None = None,
        teacher_attention: Sequence[Tensor] | None = None,
        teacher_streams: Sequence[Tensor] | None = None,
        head_loss: HeadLoss | None = None,
        output_hidden_states: bool | None = None,
        **loss_options: Any,  # what transformers' and TRL's loss functions take
    ) -> CausalLMOutputWithPast | ArwkvModelOutput:
        """Logits [B, T, V], and the loss of `labels` (shifted here, once).

        With a teacher's values (see `ArwkvModel.forward`) no logits are made: the stack's own output is returned. With
        `head_loss` neither: it is called with the final hidden states and the head's weight, inside this forward, where
        a sharded head is whole.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=self._keeps_cache(head_loss, teacher_attention, teacher_streams)
            if use_cache is None
            else use_cache,
            cu_seqlens=cu_seqlens,
            teacher_attention=teacher_attention,
            teacher_streams=teacher_streams,
            output_hidden_states=bool(output_hidden_states),
        )
        if teacher_attention is not None or teacher_streams is not None:
            return outputs
        hidden_BTC = outputs.last_hidden_state
        if head_loss is not None:
            return CausalLMOutputWithPast(loss=head_loss(hidden_BTC, self.lm_head.weight))
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden_BTC[:, kept, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **loss_options)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=outputs.past_key_values, hidden_states=outputs.hidden_states
        )

    @torch.no_grad()
    def prefill(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: ArwkvCache | None = None,
        chunk_tokens: int = 2048,
    ) -> ArwkvCache:
        """The state after `input_ids` [B, T], read in chunks, so that memory does not grow with T.

        Goes on from `cache` (changed in place) where given; `attention_mask` [B, past + T] then covers its tokens too.
        `generate(all_ids, past_key_values=cache)` reads only what the cache has not seen.
        """
        cache = ArwkvCache(self.config) if cache is None else cache
        past = cache.get_seq_length()
        for start in range(0, input_ids.shape[1], chunk_tokens):
            chunk_BT = input_ids[:, start : start + chunk_tokens]
            mask = None if attention_mask is None else attention_mask[:, : past + start + chunk_BT.shape[1]]
            self.model(input_ids=chunk_BT, attention_mask=mask, past_key_values=cache, use_cache=True)
        return cache

    def _keeps_cache(self, *for_training: object) -> bool:
        return self.config.use_cache and not self.training and all(given is None for given in for_training)

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *arguments: Any, **options: Any
    ) -> None:
        """`generate`'s own choice would be a key-value cache; the state of this model is another thing."""
        cache: Cache | None = model_kwargs.get("past_key_values")
        if cache is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = ArwkvCache(self.config)


AutoConfig.register("arwkv", ArwkvConfig, exist_ok=True)
AutoModelForCausalLM.register(ArwkvConfig, ArwkvForCausalLM, exist_ok=True)
