"""What llama.cpp's `arwkv7` architecture cannot compute of a student. Its graph is fixed, so the rest is refused."""

from collections.abc import Iterator
from typing import Any

from arwkv_student.model.architectures import BlockNorms
from arwkv_student.model.configuration import ArwkvConfig

HEAD_DIMS = (64, 128)
"""Those that llama.cpp's kernels (vectorized CPU, CUDA) compute."""


def obstacles(config: ArwkvConfig) -> list[str]:
    """Every reason why llama.cpp cannot compute a student of this configuration; empty where it can."""
    return [*_of_layers(config), *_of_time_mix(config)]


def _of_layers(config: ArwkvConfig) -> Iterator[str]:
    kept = sorted(set(range(config.num_hidden_layers)) - set(config.time_mix_layers))
    if kept:
        yield f"layers {' '.join(map(str, kept))} keep softmax attention, which arwkv7 does not have"
    if config.architecture.norms != BlockNorms():
        yield f"the norms of {config.base_model_type} follow its blocks, but those of arwkv7 precede them"
    if config.architecture.experts is not None:
        yield f"the MLPs of {config.base_model_type} are mixtures of experts, but those of arwkv7 are dense"
    if config.hidden_act != "silu":
        yield f"the MLP's activation is {config.hidden_act}, but that of arwkv7 is silu"
    if getattr(config, "mlp_bias", False):
        yield "the MLP's projections have biases, but those of arwkv7 have none"


def _of_time_mix(config: ArwkvConfig) -> Iterator[str]:
    options: Any = config.time_mix_options
    C, D = config.hidden_size, options.head_dim
    if options.rope:
        yield "rope rotates receptance and key by position, which arwkv7 does not do"
    if options.qk_norm != "none":
        yield "qk_norm normalizes receptance and key, which arwkv7 does not do"
    if options.qkv_bias:
        yield "qkv_bias: receptance, key and value have biases, but those of arwkv7 have none"
    if options.state_balancing:
        yield "state_balancing scales the key by the decay, but arwkv7 scales it by the in-context learning rate alone"
    if options.width > C or C % D:
        yield f"{options.num_heads} heads of {D} do not fit into the model's width {C}"
    if D not in HEAD_DIMS:
        yield f"head_dim is {D}, but llama.cpp's kernels compute heads of {' and '.join(map(str, HEAD_DIMS))}"
