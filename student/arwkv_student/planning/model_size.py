"""What a student's forward and backward passes need of a device: parameters, operations, activations.

Parameters are exact: they are those of the student built without memory. Operations are those of matrix products (2 for
each weight and token, forward), of the recurrence and of attention. Activations follow measurements of this code.
Shape legend: C model width, I width of the MLP, H heads, D head size, T tokens of a sample.
"""

from dataclasses import dataclass, field
from typing import Any

from accelerate import init_empty_weights

from arwkv_student.bases.checkpoint import BaseCheckpoint
from arwkv_student.model.architectures import attention_windows
from arwkv_student.model.configuration import ArwkvConfig
from arwkv_student.model.modeling import ArwkvForCausalLM
from arwkv_student.training.parameters import choose_trained

RECURRENCE = 9
"""Operations of the recurrence for one token, head and D²: the removal (2), the new state (5), the output (2)."""
ACTIVATIONS = {"arwkv": (148, 176), "arwkv-gate-active-mlp": (164, 200), "rad-rwkv7": (115, 132)}
"""Bytes that a time mixer keeps of a token for its backward pass, divided by C: with bf16 and with fp32 products."""
NORMS = 22
"""The same of a layer's norms and residual additions; the MLP keeps four values of width I besides."""
FORWARD_ONLY = 24
"""Bytes of a token without a gradient, divided by C: the stream, its norm, the attention output, the MLP's output."""


@dataclass(frozen=True)
class StudentSize:
    """The counts of one student and its base."""

    config: ArwkvConfig
    parameters: dict[str, int]
    """All, and by part: embedding (with the head where both are one), head, mlp, time_mix, attention, norms."""
    trained: dict[str, int]
    """What each stage trains."""
    base_attention: int
    """Parameters of the attention that the time mixers replace."""
    active_mlp: float
    """Parameters of the MLPs that a token passes: of experts, those it is routed to."""
    attention_operations: float
    """Of scores and values of the replaced attention, for a token, forward."""
    layers: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", self.config.num_hidden_layers)

    @property
    def mixing(self) -> int:
        """Layers that mix time."""
        return len(self.config.time_mix_layers)

    @property
    def dense_weights(self) -> int:
        """Parameters of the layers' MLPs and kept attention, unless they are experts."""
        experts = bool(getattr(self.config, "num_experts", 0))
        return self.parameters["attention"] + (0 if experts else self.parameters["mlp"])

    @property
    def recurrence_operations(self) -> float:
        """Of all mixers for a token, forward."""
        options = self.config.time_mix_options
        return RECURRENCE * self.mixing * options.width * options.head_dim

    def mixer_activations(self, bf16: bool) -> float:
        """Bytes of a token that one time mixer keeps."""
        per_channel = ACTIVATIONS.get(self.config.preset, ACTIVATIONS["arwkv"])[0 if bf16 else 1]
        return per_channel * self.config.hidden_size

    def layer_activations(self, bf16: bool) -> float:
        """Bytes of a token that a whole layer keeps."""
        inner = 4 * self._inner_width() * (2 if bf16 else 4)
        return self.mixer_activations(bf16) + NORMS * self.config.hidden_size + inner

    def _inner_width(self) -> int:
        config: Any = self.config
        experts = getattr(config, "num_experts_per_tok", 0) if getattr(config, "num_experts", 0) else 0
        return int(experts * config.moe_intermediate_size if experts else config.intermediate_size)


def size_of(base: BaseCheckpoint, config: ArwkvConfig, trained: str, context: int) -> StudentSize:
    """Count a student of this configuration, which is built without memory."""
    with init_empty_weights():
        model = ArwkvForCausalLM(config)
    model.tie_weights()
    parts = dict.fromkeys(("embedding", "head", "mlp", "time_mix", "attention", "norms"), 0)
    active_mlp = 0.0
    for name, parameter in model.named_parameters():
        part = _part(name)
        parts[part] += parameter.numel()
        if part == "mlp":
            share = config.num_experts_per_tok / config.num_experts if ".experts." in name else 1.0
            active_mlp += share * parameter.numel()
    counts = {}
    for stage, kind in (("align", "time-mix"), ("distill", trained)):
        if stage == "distill" or config.time_mix_layers:
            choose_trained(model, kind)
            counts[stage] = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return StudentSize(
        config,
        {"all": sum(parts.values()), **parts},
        counts,
        _attention_parameters(base, config),
        active_mlp,
        _attention_operations(base, config, context),
    )


def _part(name: str) -> str:
    for mark, part in ((".mlp.", "mlp"), (".time_mix.", "time_mix"), (".self_attn.", "attention")):
        if mark in name:
            return part
    return "embedding" if "embed_tokens" in name else "head" if "lm_head" in name else "norms"


def _attention_parameters(base: BaseCheckpoint, config: ArwkvConfig) -> int:
    if not config.time_mix_layers:
        return 0
    with init_empty_weights():
        block = base.architecture.attention(base.family_config, 0)
    of_one = sum(int(parameter.numel()) for parameter in block.parameters())
    return len(config.time_mix_layers) * of_one


def _attention_operations(base: BaseCheckpoint, config: ArwkvConfig, context: int) -> float:
    """Scores and values: 2 · 2 · H · D operations for each of the tokens seen, half of the context on average."""
    windows = attention_windows(base.family_config)
    seen = [min(context / 2, windows[layer] or context) for layer in config.time_mix_layers]
    return 4.0 * base.shape.num_attention_heads * base.shape.head_dim * sum(seen)
