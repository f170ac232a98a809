"""A student as vLLM's model class: its own modules, but for the states and the kept attention, which vLLM keeps.

Shape legend: N tokens of the batch, C model width, V vocabulary rows.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.mamba.mamba_utils import get_temporal_copy_spec
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.interfaces import HasInnerState, IsHybrid

from arwkv_student.model.configuration import TIME_MIX, WINDOWED_ATTENTION, ArwkvConfig
from arwkv_student.serving.divided import own_options, own_student
from arwkv_student.serving.plugin import let_modules_be_inspected
from arwkv_student.serving.served_time_mix import ServedTimeMix, state_dtypes, state_shapes

let_modules_be_inspected()


class ServedAttention(nn.Module):
    """The base's attention over vLLM's paged keys and values."""

    def __init__(self, attention: Any, config: ArwkvConfig, layer: int, vllm_config: Any, prefix: str) -> None:
        super().__init__()
        self.attention, self.head_dim = attention, int(config.head_dim or 0)
        devices = vllm_config.parallel_config.tensor_parallel_size
        windowed = config.layer_types is not None and config.layer_types[layer] == WINDOWED_ATTENTION
        self.paged = Attention(
            config.num_attention_heads // devices,
            self.head_dim,
            attention.scaling,
            num_kv_heads=config.num_key_value_heads // devices,
            cache_config=vllm_config.cache_config,
            per_layer_sliding_window=config.sliding_window if windowed else None,
            prefix=f"{prefix}.attn",
        )

    def forward(self, x_NC: Tensor, cos_sin_1ND: tuple[Tensor, Tensor]) -> Tensor:
        """[N, C]."""
        block = self.attention
        q, k = self._heads("q", block.q_proj(x_NC)), self._heads("k", block.k_proj(x_NC))
        q, k = apply_rotary_pos_emb(q[None], k[None], *cos_sin_1ND, unsqueeze_dim=2)
        y: Tensor = block.o_proj(self.paged(q[0].flatten(1), k[0].flatten(1), block.v_proj(x_NC)))
        return y

    def _heads(self, name: str, y: Tensor) -> Tensor:
        """[N, heads, D], normalized where the family does, over the width or by head as its weight's size says."""
        norm = getattr(self.attention, f"{name}_norm", None)
        if norm is not None and len(norm.weight) != self.head_dim:
            return norm(y).view(len(y), -1, self.head_dim)  # type: ignore[no-any-return] # transformers is untyped
        y = y.view(len(y), -1, self.head_dim)
        return y if norm is None else norm(y)


class ServedStudent(nn.Module, HasInnerState, IsHybrid):  # type: ignore[misc] # vLLM is untyped
    """vLLM's view of a student of any preset, and of hybrids."""

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: Any) -> tuple[torch.dtype, ...]:
        model = vllm_config.model_config
        return state_dtypes(model.hf_config.time_mix_options, model.dtype)

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: Any) -> tuple[tuple[int, ...], ...]:
        config, devices = vllm_config.model_config.hf_config, vllm_config.parallel_config.tensor_parallel_size
        return state_shapes(own_options(config, devices), config.hidden_size)

    def get_mamba_state_copy_funcs(self, mamba_types: Iterable[Any]) -> dict[Any, tuple[Any, ...]]:
        """Of the instance, because its options say how many states there are."""
        states = len(state_dtypes(self.config.time_mix_options, torch.float32))
        return dict.fromkeys(mamba_types, (get_temporal_copy_spec,) * states)

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        if found := unverified(vllm_config):
            raise ValueError(f"students in vLLM were not verified with {'; nor with '.join(found)}")
        self.config: ArwkvConfig = vllm_config.model_config.hf_config
        self.student = own_student(self.config)
        self.logits = LogitsProcessor(self.config.vocab_size)
        self.mixers = nn.ModuleList(
            self._served(layer, vllm_config, f"{prefix}.layers.{layer}".removeprefix("."))
            for layer in range(self.config.num_hidden_layers)
        )
        tokens = _tokens_of_tokenizer(vllm_config)
        self.tokens = self.config.vocab_size if tokens is None else tokens

    def _served(self, layer: int, vllm_config: Any, prefix: str) -> nn.Module:
        block: Any = self.student.model.layers[layer]
        if block.mixes_time:
            return ServedTimeMix(block.time_mix, self.config.hidden_size, vllm_config, f"{prefix}.time_mix")
        return ServedAttention(block.self_attn, self.config, layer, vllm_config, f"{prefix}.self_attn")

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """[N, C]."""
        embedded: Tensor = self.student.model.embed_tokens(input_ids)
        return embedded

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Final hidden states [N, C] of the batch's tokens."""
        model: Any = self.student.model
        hidden_NC = model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        turned = None if model.rotary_emb is None else model.rotary_emb(hidden_NC[None], positions[None])
        of_mixers = model.time_mix_rotary_emb
        mixer_turned = None if of_mixers is None else of_mixers(hidden_NC[None], positions[None])
        v_first_1NU = None
        for layer, block in enumerate(model.layers):
            x_NC = block.normed(block.norms.before_mixer, hidden_NC)
            if block.kind == TIME_MIX:
                mixed_NC, v_first_1NU = self.mixers[layer](x_NC, v_first_1NU, mixer_turned)
            else:
                mixed_NC = self.mixers[layer](x_NC, turned)
            hidden_NC = block.rest(hidden_NC[None], mixed_NC[None])[0]
        normed: Tensor = model.norm(hidden_NC)
        return normed

    def compute_logits(self, hidden_NC: Tensor) -> Tensor | None:
        """Logits [N, V], on the device that samples; −∞ in the rows that are no token's."""
        logits_NV: Tensor | None = self.logits(self.student.lm_head, hidden_NC)
        if logits_NV is None:
            return None
        logits_NV = logits_NV.float()
        logits_NV[:, self.tokens :] = -torch.inf
        return logits_NV

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Copy the checkpoint's tensors. Raises ValueError for one that is missing or unknown."""
        parameters = dict(self.student.named_parameters(remove_duplicate=False))
        loaded = set()
        for name, tensor in weights:
            if name not in parameters:
                raise ValueError(f"student: its weights hold {name}, which its configuration does not ask for")
            load = getattr(parameters[name], "weight_loader", default_weight_loader)
            load(parameters[name], tensor)
            loaded.add(name)
        tied = {"lm_head.weight"} if self.config.tie_word_embeddings else set()
        if missing := parameters.keys() - loaded - tied:
            raise ValueError(f"student: no {min(missing)} in its weights ({len(missing)} tensors are missing)")
        return {f"student.{name}" for name in parameters}


def unverified(vllm_config: Any) -> list[str]:
    """What a configuration asks for that was not compared with transformers, each with the way out."""
    found = []
    if vllm_config.use_v2_model_runner:
        found.append("model runner V2; set VLLM_USE_V2_MODEL_RUNNER=0")
    if str(getattr(vllm_config.compilation_config.cudagraph_mode, "name", "NONE")) != "NONE":
        found.append("CUDA graphs; give enforce_eager=True (--enforce-eager)")
    parallel = vllm_config.parallel_config
    if parallel.pipeline_parallel_size > 1:
        found.append("stages on several devices; give --tensor-parallel-size instead")
    if vllm_config.quant_config is not None:
        found.append("quantized weights; export the student in bf16")
    if vllm_config.speculative_config is not None:
        found.append("speculative decoding; leave it out")
    if vllm_config.model_config.hf_config.architecture.experts is not None:
        found.append("mixtures of experts; use transformers")
    return found


def _tokens_of_tokenizer(vllm_config: Any) -> int | None:
    """How many rows of the head are a token's; None where vLLM runs without a tokenizer."""
    if vllm_config.model_config.skip_tokenizer_init:
        return None
    from vllm.tokenizers import cached_tokenizer_from_config

    vocabulary: dict[str, int] = cached_tokenizer_from_config(vllm_config.model_config).get_vocab()
    return max(vocabulary.values()) + 1
