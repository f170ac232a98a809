"""A student from a base checkpoint: everything but attention is the base's, and attention's place is taken."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from arwkv_store.errors import UsageError
from arwkv_student.bases.checkpoint import BaseCheckpoint
from arwkv_student.bases.layers import chosen_layers
from arwkv_student.model.architectures import attention_windows, expert_tensors
from arwkv_student.model.configuration import ATTENTION, TIME_MIX, WINDOWED_ATTENTION, ArwkvConfig
from arwkv_student.model.loading import empty_student
from arwkv_student.model.modeling import ArwkvForCausalLM
from arwkv_student.model.time_mix import TimeMix
from arwkv_student.model.time_mix_options import TRANSFORMER, BaseShape, TimeMixOptions, options_as_dict, preset_options
from arwkv_student.model.transformer_student import load_transformer
from arwkv_student.settings import AdvancedTimeMixer, EvalSettings, TrainSettings

# Of a base's configuration, what a student's says in its own way, or says itself.
NOT_COPIED = frozenset({"layer_types", "use_cache", "head_dim", "max_window_layers", "use_sliding_window"})
ATTENTION_OF_TIME_MIX = {
    "receptance": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "output": "o_proj",
    "receptance_norm": "q_norm",
    "key_norm": "k_norm",
}


@dataclass(frozen=True)
class Conversion:
    """A student, and the names of the base's tensors that went into it."""

    model: ArwkvForCausalLM
    loaded: tuple[str, ...]


def student_config(
    base: BaseCheckpoint,
    preset: str,
    overrides: dict[str, Any] | None = None,
    layers: Sequence[int] | None = None,
    *,
    kept_rope: bool = True,
    kept_window: int | None = None,
) -> ArwkvConfig:
    """The configuration of a student of `base`. `layers`: those that mix time (None: all); the others keep attention.

    They attend with the base's rotary embedding unless `kept_rope` is false, and to the last `kept_window` tokens,
    itself included (None: as the base).

    Raises UsageError for layers that the base does not have, and options that do not go with it.
    """
    options = preset_options(preset, base.shape, overrides)
    config = base.family_config
    depth: int = config.num_hidden_layers
    chosen = set(range(depth)) if layers is None else set(layers)
    if not chosen <= set(range(depth)):
        raise UsageError(f"layers {sorted(chosen)}: base {base.name} has layers 0 to {depth - 1}; choose among those")
    if options.init_from_teacher:
        _require_equal_projections(base, options)
    windows = attention_windows(config) if kept_window is None else [kept_window] * depth
    kept = [ATTENTION if window is None else WINDOWED_ATTENTION for window in windows]
    return ArwkvConfig(
        **_copied(config) | ({} if kept_window is None else {"sliding_window": kept_window}),
        kept_rope=kept_rope,
        base_model_type=base.config["model_type"],
        head_dim=base.shape.head_dim,
        layer_types=[TIME_MIX if layer in chosen else kind for layer, kind in enumerate(kept)],
        preset=preset,
        time_mix=options_as_dict(options),
        use_cache=True,
    )


def _copied(config: Any) -> dict[str, Any]:
    """What the family's own configuration adds to transformers' general one, and its tokens' ids."""
    own = {field.name for field in dataclasses.fields(config)} - NOT_COPIED
    general = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    return {name: getattr(config, name) for name in sorted(own - general)}


def _require_equal_projections(base: BaseCheckpoint, options: TimeMixOptions) -> None:
    shape = base.shape
    if shape.output_bias:
        raise UsageError(
            f"init_from_teacher: base {base.name} has attention_bias, and a time mixer's output has no bias; "
            "set --init-from-teacher False"
        )
    names = ("num_attention_heads", "num_key_value_heads", "head_dim", "qk_norm")
    of_base = tuple(getattr(shape, name) for name in names)
    of_student = (options.num_heads, options.num_key_value_heads, options.head_dim, options.qk_norm)
    if of_base != of_student or (shape.qkv_bias and not options.qkv_bias):
        raise UsageError(
            f"init_from_teacher: (heads, key-value heads, head_dim, qk_norm) {of_student}, qkv_bias="
            f"{options.qkv_bias} differ from the base's {of_base}, qkv_bias={shape.qkv_bias}; keep the base's, or set "
            "init_from_teacher=False"
        )


def convert(base: BaseCheckpoint, config: ArwkvConfig) -> Conversion:
    """Make a student in fp32: random time mixers, and the base's embedding, norms, MLPs and head.

    The base's attention tensors are read only for layers that keep attention, and for `init_from_teacher`. Weights are
    read tensor by tensor into a model without memory, so that no more than the student and one tensor is held.
    """
    model = empty_student(config)
    for mixer in (module for module in model.modules() if isinstance(module, TimeMix)):
        mixer.to_empty(device="cpu")
        mixer.initialize()
    sources = _sources(base, config, dict(model.named_parameters()))
    for name, tensor in base.tensors(sources):
        parameter, index = sources[name]
        target = _in_memory(model, parameter)[index]
        base.require_shape(name, tensor.shape, target.shape)
        target.copy_(tensor)
    model.tie_weights()
    return Conversion(model, tuple(sources))


def _in_memory(model: nn.Module, name: str) -> Tensor:
    """The values of a parameter, which gets memory at its first use."""
    module_name, _, attribute = name.rpartition(".")
    module = model.get_submodule(module_name)
    parameter = module.get_parameter(attribute)
    if parameter.is_meta:
        module.register_parameter(attribute, nn.Parameter(torch.empty_like(parameter, device="cpu")))
    return module.get_parameter(attribute).detach()


def _sources(base: BaseCheckpoint, config: ArwkvConfig, parameters: Iterable[str]) -> dict[str, tuple[str, Any]]:
    """The base's tensor names, and the parameter of the student that each becomes, or a part of it by its index."""
    sources: dict[str, tuple[str, Any]] = {}
    for parameter in parameters:
        stored: str | None = parameter
        if ".time_mix." in parameter:
            stored = _attention_name(parameter, base.shape) if config.time_mix_options.init_from_teacher else None
        parts = () if parameter in base.file_of_tensor else tuple(expert_tensors(parameter, config))
        if stored is not None:
            sources |= {name: (parameter, index) for name, index in parts} or {stored: (parameter, ...)}
    return sources


def _attention_name(parameter: str, shape: BaseShape) -> str | None:
    """The base's tensor that a time mixer's parameter starts from; None: it has none."""
    layer, _, name = parameter.partition(".time_mix.")
    module, _, kind = name.partition(".")
    if module not in ATTENTION_OF_TIME_MIX or (kind == "bias" and not shape.qkv_bias):
        return None
    return f"{layer}.self_attn.{ATTENTION_OF_TIME_MIX[module]}.{kind}"


def untrained_student(base: BaseCheckpoint, settings: TrainSettings | EvalSettings, seed: int) -> PreTrainedModel:
    """The student before any stage: `base` with fresh time mixers, or with preset `transformer` itself."""
    transformers.set_seed(seed)
    if settings.preset == TRANSFORMER:
        return load_transformer(base.folder)
    return convert(base, config_of(base, settings)).model


def config_of(base: BaseCheckpoint, settings: TrainSettings | EvalSettings) -> ArwkvConfig:
    """`student_config` by the flags of a command."""
    chosen = {field.name: getattr(settings, field.name) for field in dataclasses.fields(AdvancedTimeMixer)}
    layers, kept_rope = chosen_layers(base, chosen.pop("layers")), chosen.pop("kept_rope") is not False
    kept = {"kept_rope": kept_rope, "kept_window": chosen.pop("kept_window")}
    return student_config(base, settings.preset or "arwkv", chosen, layers, **kept)
