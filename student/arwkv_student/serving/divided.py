"""A student built for one of several devices that serve it: its linear layers are vLLM's, its parameters the device's.

Time mixers and attention are divided by heads, MLPs by width, embedding and head by rows of the vocabulary; each layer
adds its devices' outputs twice, as vLLM's own models do. One device is the same with nothing divided.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from transformers.initialization import no_init_weights
from vllm._custom_ops import rms_norm
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_gather,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.weight_utils import sharded_weight_loader
from vllm.model_executor.models.transformers.utils import init_on_device_without_buffers, replace_linear_class
from vllm.model_executor.utils import set_weight_attrs

from arwkv_student.model.configuration import ArwkvConfig
from arwkv_student.model.modeling import ArwkvForCausalLM
from arwkv_student.model.time_mix import TimeMix
from arwkv_student.model.time_mix_options import TimeMixOptions

STYLES = dict.fromkeys(
    ("receptance", "key", "value", "up", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), "colwise"
) | dict.fromkeys(("output", "o_proj", "down_proj"), "rowwise")
"""Which side of a linear layer is divided, by its own name; of the others neither."""
UNDIVIDED = ("shift_mix", "receptance_norm.weight", "key_norm.weight")
"""A time mixer's parameters that are not one row for each channel of its heads."""
READ_IN_FP32 = ("decay.bias", "rate.bias", "value_mix.bias", "removal_scale", "rate_scale", "bonus")
"""Parameters that every step would raise to fp32. The decay's bias is stored so: bf16 is too coarse for it."""


class FusedNorm(nn.Module):
    """An RMSNorm in one call."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        normed = torch.empty_like(x)
        rms_norm(normed, x, self.weight, self.eps)
        return normed


def own_options(config: ArwkvConfig, devices: int) -> TimeMixOptions:
    """Of a time mixer with one device's share of the heads.

    Raises ValueError if `devices` do not divide the key-value heads; what divides those divides all heads.
    """
    options = config.time_mix_options
    counts = {"its time mixers": options.num_key_value_heads}
    if len(config.time_mix_layers) < config.num_hidden_layers:
        counts["its attention"] = config.num_key_value_heads
    if found := [f"{count} key-value heads of {part}" for part, count in counts.items() if count % devices]:
        raise ValueError(
            f"student: --tensor-parallel-size {devices} does not divide the {' and the '.join(found)}; "
            "choose one that does"
        )
    return dataclasses.replace(
        options, num_heads=options.num_heads // devices, num_key_value_heads=options.num_key_value_heads // devices
    )


def own_student(config: ArwkvConfig) -> Any:
    """The modules of `config`, whose parameters are uninitialized and hold this device's share alone."""
    with no_init_weights(), init_on_device_without_buffers(torch.device("meta")):
        student = ArwkvForCausalLM(config)
    _use_layers_of_vllm(student, config)
    for module in list(student.modules()):
        if isinstance(module, TimeMix):
            _divide(module, config)
        for name in ("q_norm", "k_norm"):
            norm = getattr(module, name, None)
            if norm is not None and len(norm.weight) != config.head_dim:
                normalize_whole_width(norm)
    for module in student.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                setattr(module, name, nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype)))
    return student.requires_grad_(False)


def _divide(mixer: TimeMix, config: ArwkvConfig) -> None:
    devices = get_tensor_model_parallel_world_size()
    mixer.options = own_options(config, devices)
    if mixer.options.output_norm == "group":
        mixer.norm.num_groups = mixer.options.num_heads
    if mixer.options.qk_norm == "width":
        normalize_whole_width(mixer.receptance_norm)
        normalize_whole_width(mixer.key_norm)
    for name, parameter in list(mixer.named_parameters()):
        if parameter.is_meta and name not in UNDIVIDED:
            dtype = torch.float32 if name.endswith(READ_IN_FP32) else parameter.dtype
            own = nn.Parameter(torch.empty(len(parameter) // devices, *parameter.shape[1:], dtype=dtype))
            set_weight_attrs(own, {"weight_loader": sharded_weight_loader(0)})
            parent, _, own_name = name.rpartition(".")
            setattr(mixer.get_submodule(parent), own_name, own)


def normalize_whole_width(norm: nn.Module) -> None:
    """Let a norm over all heads see those of the other devices too."""
    if get_tensor_model_parallel_world_size() == 1:
        return
    rank, devices = get_tensor_model_parallel_rank(), get_tensor_model_parallel_world_size()
    norm.register_forward_pre_hook(lambda _, inputs: (tensor_model_parallel_all_gather(inputs[0].contiguous()),))
    norm.register_forward_hook(lambda _, __, whole: whole.chunk(devices, dim=-1)[rank].contiguous())


def _use_layers_of_vllm(student: Any, config: ArwkvConfig) -> None:
    """Linear layers, which on a CPU torch packs again at every call, embedding and head, and the stream's norms."""
    rows, width = config.vocab_size, config.hidden_size
    student.model.embed_tokens = VocabParallelEmbedding(rows, width, prefix="model.embed_tokens")
    student.lm_head = ParallelLMHead(rows, width, prefix="lm_head")
    if config.tie_word_embeddings:
        student.lm_head = student.lm_head.tie_weights(student.model.embed_tokens)
    for name, linear in list(student.named_modules()):
        if type(linear) is nn.Linear:
            parent, _, own = name.rpartition(".")
            style: Any = STYLES.get(own, "replicate")
            setattr(student.get_submodule(parent), own, replace_linear_class(linear, style, prefix=name))
    student.model.norm = FusedNorm(student.model.norm)
    for block in student.model.layers:
        for name in block.norms.names():
            setattr(block, name, FusedNorm(getattr(block, name)))
