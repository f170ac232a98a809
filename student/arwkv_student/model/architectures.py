"""The families of attention checkpoints that a student can start from: one entry each, in transformers' own classes.

A student keeps its base's embedding, norms, MLPs, rotary embedding, head and, in a hybrid, attention. All of them are
the classes of the base's family, under the base's tensor names.
"""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from arwkv_store.errors import UsageError
from arwkv_student.model.time_mix_options import BaseShape, QkNorm


@dataclass(frozen=True)
class BlockNorms:
    """The names of a block's norms; None where it has none.

    h' = h + after_mixer(mixer(before_mixer(h))), then h' + after_mlp(mlp(before_mlp(h'))); the mixer is attention or
    time mixing.
    """

    before_mixer: str | None = "input_layernorm"
    after_mixer: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None

    def names(self) -> Iterator[str]:
        """Those that there are."""
        norms = (self.before_mixer, self.after_mixer, self.before_mlp, self.after_mlp)
        return (name for name in norms if name is not None)

    @property
    def form(self) -> str:
        """The block's name in dataset.json."""
        if self.after_mixer is None:
            return "pre-norm"
        return "post-norm" if self.before_mixer is None else "sandwich"


def has_experts(config: Any, layer: int) -> bool:
    """Qwen3-MoE's rule: every `decoder_sparse_step`-th layer routes to experts, but for `mlp_only_layers`."""
    sparse = config.num_experts > 0 and (layer + 1) % config.decoder_sparse_step == 0
    return bool(sparse and layer not in (config.mlp_only_layers or ()))


@dataclass(frozen=True)
class Architecture:
    """One family. Its tensor names are `model.layers.N.self_attn.q_proj.weight` and so on."""

    prefix: str
    """What the names of transformers' classes begin with."""
    module: str
    """Where they are, below `transformers.models`."""
    norms: BlockNorms = BlockNorms()
    qkv_bias: bool | None = None
    """Whether query, key and value have biases; None: as `attention_bias` says, and then the output has one too."""
    qk_norm: QkNorm = "none"
    """RMSNorm of query and key before they are turned."""
    experts: Callable[[Any, int], bool] | None = None
    """(configuration, layer) -> whether the MLP is a mixture of experts."""

    def attention(self, config: Any, layer: int) -> Any:  # Any, here and below: torch and transformers load slowly
        """The family's attention block."""
        return self._class("Attention")(config, layer)

    def is_sparse(self, config: Any, layer: int) -> bool:
        """Whether the layer's MLP is a mixture of experts."""
        return self.experts is not None and self.experts(config, layer)

    def mlp(self, config: Any, layer: int) -> Any:
        """The family's MLP, of experts where the layer has them."""
        return self._class("SparseMoeBlock" if self.is_sparse(config, layer) else "MLP")(config)

    def norm(self, config: Any) -> Any:
        """The family's norm of the residual stream."""
        return self._class("RMSNorm")(config.hidden_size, eps=config.rms_norm_eps)

    def rotary_embedding(self, config: Any) -> Any:
        """The family's rotary embedding."""
        return self._class("RotaryEmbedding")(config)

    def shape(self, config: Any) -> BaseShape:
        """What presets read of a base's configuration."""
        heads = config.num_attention_heads
        biased = bool(getattr(config, "attention_bias", False))
        return BaseShape(
            hidden_size=config.hidden_size,
            num_attention_heads=heads,
            num_key_value_heads=config.num_key_value_heads or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            qkv_bias=biased if self.qkv_bias is None else self.qkv_bias,
            output_bias=biased and self.qkv_bias is None,
            qk_norm=self.qk_norm,
        )

    def _class(self, part: str) -> Any:
        module = importlib.import_module(f"transformers.models.{self.module}.modeling_{self.module}")
        return getattr(module, self.prefix + part)


ARCHITECTURES = {
    "qwen2": Architecture("Qwen2", "qwen2", qkv_bias=True),
    "qwen3": Architecture("Qwen3", "qwen3", qk_norm="head"),
    "qwen3_moe": Architecture("Qwen3Moe", "qwen3_moe", qk_norm="head", experts=has_experts),
    "llama": Architecture("Llama", "llama"),
    "mistral": Architecture("Mistral", "mistral"),
    "olmo2": Architecture(
        "Olmo2",
        "olmo2",
        norms=BlockNorms(None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
        qk_norm="width",
    ),
}
"""By `model_type`."""


def architecture_of(what: str, model_type: Any) -> Architecture:
    """The entry of a family. Raises UsageError, naming those that there are; `what` names the model in the message."""
    if model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UsageError(f"{what}: model type {model_type!r} is no base that students start from; name one of {known}")
    return ARCHITECTURES[model_type]


def attention_windows(config: Any) -> list[int | None]:
    """How many tokens, itself included, a token of each layer sees; None: all before it."""
    window: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [window if kind == "sliding_attention" else None for kind in kinds]


def expert_tensors(parameter: str, config: Any) -> Iterator[tuple[str, Any]]:
    """(stored tensor, its index in the parameter) of weights that transformers keeps in one tensor for all experts.

    Nothing for any other parameter.
    """
    prefix, found, fused = parameter.rpartition(".experts.")
    if not found:
        return
    I = config.moe_intermediate_size  # noqa: E741 -- the width of an expert, as the papers write it
    gate_up, down = (("gate_proj", slice(I)), ("up_proj", slice(I, None))), (("down_proj", slice(None)),)
    for expert in range(config.num_experts):
        for name, rows in gate_up if fused == "gate_up_proj" else down:
            yield f"{prefix}.experts.{expert}.{name}.weight", (expert, rows)
