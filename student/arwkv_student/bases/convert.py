"""A student from a base checkpoint: everything but attention is the base's, and attention's place is taken."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from arwkv_store.errors import UsageError
from arwkv_student.bases.checkpoint import BaseCheckpoint
from arwkv_student.model.configuration import ATTENTION, TIME_MIX, ArwkvConfig
from arwkv_student.model.modeling import ArwkvForCausalLM
from arwkv_student.model.time_mix_options import BaseShape, TimeMixOptions, options_as_dict, preset_options
from arwkv_student.settings import AdvancedTimeMixer, EvalSettings, TrainSettings

COPIED_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "tie_word_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)
LAYER_TENSORS = (
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
)
ATTENTION_TENSORS = (
    "self_attn.q_proj.weight",
    "self_attn.q_proj.bias",
    "self_attn.k_proj.weight",
    "self_attn.k_proj.bias",
    "self_attn.v_proj.weight",
    "self_attn.v_proj.bias",
    "self_attn.o_proj.weight",
)
TIME_MIX_OF_ATTENTION = {"q_proj": "receptance", "k_proj": "key", "v_proj": "value", "o_proj": "output"}


@dataclass(frozen=True)
class Conversion:
    """A student, and the names of the base's tensors that went into it."""

    model: ArwkvForCausalLM
    loaded: tuple[str, ...]


def base_shape(base: BaseCheckpoint) -> BaseShape:
    """The base's widths, as presets read them."""
    config = base.config
    heads = config["num_attention_heads"]
    return BaseShape(
        hidden_size=config["hidden_size"],
        num_attention_heads=heads,
        num_key_value_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
    )


def student_config(
    base: BaseCheckpoint, preset: str, overrides: dict[str, Any] | None = None, layers: Sequence[int] | None = None
) -> ArwkvConfig:
    """The configuration of a student of `base`. `layers`: those that mix time (all); the others keep attention."""
    options = preset_options(preset, base_shape(base), overrides)
    config, depth = base.config, base.config["num_hidden_layers"]
    chosen = set(range(depth)) if layers is None else set(layers)
    if not chosen or not chosen <= set(range(depth)):
        raise UsageError(f"layers {sorted(chosen)}: base {base.name} has layers 0 to {depth - 1}; choose among those")
    if config.get("use_sliding_window") and len(chosen) < depth:
        raise UsageError(f"base {base.name}: sliding-window attention cannot be kept in a hybrid; convert all layers")
    if options.init_from_teacher:
        _require_equal_projections(base, options)
    copied = {name: config[name] for name in COPIED_FIELDS if config.get(name) is not None}
    return ArwkvConfig(
        **copied,
        head_dim=base_shape(base).head_dim,
        rope_parameters=base.rope_parameters,
        layer_types=[TIME_MIX if layer in chosen else ATTENTION for layer in range(depth)],
        preset=preset,
        time_mix=options_as_dict(options),
        use_cache=True,
    )


def _require_equal_projections(base: BaseCheckpoint, options: TimeMixOptions) -> None:
    shape = base_shape(base)
    of_base = (shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim)
    of_student = (options.num_heads, options.num_key_value_heads, options.head_dim)
    if of_base != of_student or not options.qkv_bias:
        raise UsageError(
            f"init_from_teacher: (heads, key-value heads, head_dim) {of_student}, qkv_bias={options.qkv_bias} "
            f"differ from the base's {of_base} with biases; keep the base's, or set init_from_teacher=False"
        )


def convert(base: BaseCheckpoint, config: ArwkvConfig) -> Conversion:
    """Make a student in fp32: random time mixers, and the base's embedding, norms, MLPs and head.

    The base's attention tensors are read only for layers that keep attention, and for `init_from_teacher`.
    """
    model = ArwkvForCausalLM(config)
    sources = _sources(config)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in base.tensors(sources):
            target = parameters[sources[name]]
            if target.shape != tensor.shape:
                raise UsageError(
                    f"base {base.name}: tensor {name} is {tuple(tensor.shape)}, the student's {tuple(target.shape)}; "
                    "its config.json does not describe its weights"
                )
            target.copy_(tensor)
    model.tie_weights()
    return Conversion(model, tuple(sources))


def _sources(config: ArwkvConfig) -> dict[str, str]:
    """The base's tensor names, and the parameter of the student that each becomes."""
    same = ["model.embed_tokens.weight", "model.norm.weight"]
    if not config.tie_word_embeddings:
        same.append("lm_head.weight")
    sources = {name: name for name in same}
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        sources |= {prefix + name: prefix + name for name in LAYER_TENSORS}
        if layer not in config.time_mix_layers:
            sources |= {prefix + name: prefix + name for name in ATTENTION_TENSORS}
        elif config.time_mix_options.init_from_teacher:
            sources |= {prefix + name: prefix + _time_mix_name(name) for name in ATTENTION_TENSORS}
    return sources


def _time_mix_name(attention_name: str) -> str:
    _, projection, kind = attention_name.split(".")
    return f"time_mix.{TIME_MIX_OF_ATTENTION[projection]}.{kind}"


def untrained_student(base: BaseCheckpoint, settings: TrainSettings | EvalSettings, seed: int) -> ArwkvForCausalLM:
    """The student before any stage: `base` with fresh time mixers."""
    transformers.set_seed(seed)
    return convert(base, config_of(base, settings)).model


def config_of(base: BaseCheckpoint, settings: TrainSettings | EvalSettings) -> ArwkvConfig:
    """`student_config` by the flags of a command."""
    chosen = {field.name: getattr(settings, field.name) for field in dataclasses.fields(AdvancedTimeMixer)}
    layers = chosen.pop("layers")
    return student_config(base, settings.preset or "arwkv", chosen, layers)
