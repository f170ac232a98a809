"""`ArwkvForCausalLM`: a decoder whose attention blocks are RWKV-7 time mixers, as a Hugging Face model.

Layers that `config.layer_types` calls "linear_attention" mix time; all others keep the base's attention (a hybrid).
Shape legend: B batch, T time, C model width, V vocabulary rows, L layers.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from arwkv_store.errors import UsageError
from arwkv_student.model.cache import ArwkvCache
from arwkv_student.model.configuration import ArwkvConfig
from arwkv_student.model.decoder import ArwkvModel, ArwkvModelOutput, ArwkvPreTrainedModel
from arwkv_student.model.stage_one import AttentionTargets

# hidden [B, T, C], head weight [V, C] -> loss
HeadLoss = Callable[[Tensor, Tensor], Tensor]


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
        targets: AttentionTargets | None = None,
        head_loss: HeadLoss | None = None,
        output_hidden_states: bool | None = None,
        **loss_options: Any,  # what transformers' and TRL's loss functions take
    ) -> CausalLMOutputWithPast | ArwkvModelOutput:
        """Logits [B, T, V], and the loss of `labels` (shifted here, once).

        With `targets` (see `ArwkvModel.forward`) no logits are computed, and the stack's output is returned.
        With `head_loss` none are computed either: it is called with the final hidden states and the head's weight. This
        happens inside this forward, where a sharded head is gathered.
        """
        packed = cu_seqlens if past_key_values is None else None
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=self._keeps_cache(head_loss, targets, packed) if use_cache is None else use_cache,
            cu_seqlens=cu_seqlens,
            targets=targets,
            output_hidden_states=bool(output_hidden_states),
        )
        if targets is not None:
            return outputs
        hidden_BTC = outputs.last_hidden_state
        if head_loss is not None:
            return CausalLMOutputWithPast(loss=head_loss(hidden_BTC, plain_weight(self.lm_head)))
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

        Continues from `cache`, if given, and changes it in place; `attention_mask` [B, past + T] then covers its tokens
        too. `generate(all_ids, past_key_values=cache)` reads only what the cache has not seen.
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
        """`generate` would create a key-value cache, but this model needs its own."""
        cache: Cache | None = model_kwargs.get("past_key_values")
        if cache is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = ArwkvCache(self.config)


def plain_weight(head: nn.Module) -> Tensor:
    """The weight of the head. Raises UsageError for a wrapped head."""
    weight = getattr(head, "weight", None)
    if type(head) is not nn.Linear or type(weight) is not nn.Parameter or weight.is_meta:
        kind = "offloaded" if isinstance(weight, Tensor) and weight.is_meta else type(head).__name__
        raise UsageError(
            f"lm_head is wrapped ({kind} with a weight of type {type(weight).__name__}), but this loss reads the "
            "plain weight of a linear layer; merge the adapter, or load the head into memory without quantization"
        )
    return weight


AutoConfig.register("arwkv", ArwkvConfig, exist_ok=True)
AutoModelForCausalLM.register(ArwkvConfig, ArwkvForCausalLM, exist_ok=True)
