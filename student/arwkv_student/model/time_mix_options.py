"""The options of a time mixer, and the presets that name whole recipes. No torch here: the command line imports it."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from arwkv_store.errors import UsageError

Gate = Literal["none", "low-rank", "residual"]
OutputNorm = Literal["none", "group"]
ValueResidual = Literal["none", "detached", "differentiable"]
QkNorm = Literal["none", "head", "width"]
Preset = Literal["arwkv", "arwkv-active-mlp", "arwkv-gate-active-mlp", "arwkv-from-32b", "rad-rwkv7"]
PRESETS: tuple[str, ...] = get_args(Preset)
TRANSFORMER: Literal["transformer"] = "transformer"
"""The preset of students that keep their attention: no time mixer, and so none of the options below."""


@dataclass(frozen=True)
class TimeMixOptions:
    """One RWKV-7 time mixer, in the field's terms (arXiv 2503.14456, 2501.15570 and 2505.03005)."""

    head_dim: int
    """Width of one head and side of its square state."""
    num_heads: int
    """Receptance heads; their total width num_heads × head_dim may differ from the model's."""
    num_key_value_heads: int
    """Key and value heads; each serves num_heads / num_key_value_heads receptance heads."""
    qkv_bias: bool
    """Biases on the receptance, key and value projections."""
    rope: bool
    """Rotary position embedding on receptance and key."""
    token_shift: bool
    """Mix every input with the previous token's input."""
    gate: Gate
    """`low-rank`: y ⊙ σ(x g1) g2; `residual`: y ⊙ (1 + σ(x g1) g2), the identity at the start."""
    output_norm: OutputNorm
    """`group`: normalize each head's output (eps 64e-5 as in RWKV-7)."""
    bonus: bool
    """Add (Σ r⊙k̃⊙r_k)·v, the current token's own contribution."""
    value_residual: ValueResidual
    """Mix layer 0's value into later ones, with or without the gradient through it."""
    state_balancing: bool
    """k̃ = k⊙(1 − decay + a) and output × head_dim^-½ (RADLADS), instead of k⊙(1 + (a − 1)k_a)."""
    init_from_teacher: bool
    """Start receptance, key, value and output projections from the base's q, k, v and o."""
    decay_rank: int
    """Rank of w, the data-dependent decay."""
    rate_rank: int
    """Rank of a, the in-context learning rate."""
    value_rank: int
    """Rank of the value residual's mixing weight."""
    gate_rank: int
    """Rank of the gate."""
    qk_norm: QkNorm = "none"
    """RMSNorm of receptance and key before rope, of each head (Qwen3's) or of all at once (OLMo 2's)."""

    def __post_init__(self) -> None:
        _check_choices(self)
        if self.num_heads < 1 or self.num_key_value_heads < 1 or self.num_heads % self.num_key_value_heads:
            raise UsageError(
                f"num_key_value_heads {self.num_key_value_heads} does not divide the {self.num_heads} heads of "
                f"{self.head_dim}; choose --num-key-value-heads that does"
            )
        if self.rope and self.head_dim % 2:
            raise UsageError(
                f"head_dim {self.head_dim} is odd, but rope rotates pairs of channels; choose an even head_dim"
            )

    @property
    def width(self) -> int:
        """Total width of the receptance heads."""
        return self.num_heads * self.head_dim

    @property
    def key_value_width(self) -> int:
        """Total width of the key heads, and of the value heads."""
        return self.num_key_value_heads * self.head_dim

    @property
    def output_scale(self) -> float:
        """Factor of the recurrence's output."""
        return self.head_dim**-0.5 if self.state_balancing else 1.0


def _check_choices(options: TimeMixOptions) -> None:
    for name, hint in get_type_hints(TimeMixOptions).items():
        allowed, value = get_args(hint), getattr(options, name)
        if allowed and value not in allowed:
            raise UsageError(f"{name} {value!r} is unknown; choose one of {', '.join(map(str, allowed))}")
        if hint is int and value < 1:
            raise UsageError(f"{name} {value} is too small; choose 1 or more")


@dataclass(frozen=True)
class BaseShape:
    """The widths of a base checkpoint that presets follow."""

    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: QkNorm = "none"


def preset_options(preset: str, base: BaseShape, overrides: Mapping[str, Any] | None = None) -> TimeMixOptions:
    """The time mixer that `preset` means for a base of this shape, with `overrides` (None values are ignored) on top.

    `arwkv*`: heads of 64, full-width projections, no rope, no biases, token shift, group norm off (arXiv 2501.15570 and
    its released 7B). `rad-rwkv7`: the base's own heads, biases, q/k norms and rope, its
    q/k/v/o as the start (arXiv 2505.03005).
    """
    if preset not in PRESETS:
        raise UsageError(f"preset {preset!r} is unknown; choose one of {', '.join(PRESETS)}")
    chosen = {name: value for name, value in (overrides or {}).items() if value is not None}
    defaults = _rad_rwkv7(base) if preset == "rad-rwkv7" else _arwkv(preset, base, chosen.get("head_dim", 64))
    return TimeMixOptions(**(defaults | chosen))


def _arwkv(preset: str, base: BaseShape, head_dim: int) -> dict[str, Any]:
    if base.hidden_size % head_dim:
        raise UsageError(
            f"preset {preset}: heads of {head_dim} do not divide the base's hidden size {base.hidden_size}; "
            "choose --head-dim that does"
        )
    heads = base.hidden_size // head_dim
    return {
        "head_dim": head_dim,
        "num_heads": heads,
        "num_key_value_heads": heads,
        "qkv_bias": False,
        "rope": False,
        "token_shift": True,
        "gate": "residual" if preset == "arwkv-gate-active-mlp" else "none",
        "output_norm": "none",
        "bonus": True,
        "value_residual": "detached",
        "state_balancing": False,
        "init_from_teacher": False,
        "decay_rank": 64,
        "rate_rank": 64,
        "value_rank": 32,
        "gate_rank": 128,
    }


def _rad_rwkv7(base: BaseShape) -> dict[str, Any]:
    def rank(exponent: float, multiplier: float) -> int:
        return max(1, round(math.pow(base.hidden_size, exponent) * multiplier / 32)) * 32

    return {
        "head_dim": base.head_dim,
        "num_heads": base.num_attention_heads,
        "num_key_value_heads": base.num_key_value_heads,
        "qkv_bias": base.qkv_bias,
        "qk_norm": base.qk_norm,
        "rope": True,
        "token_shift": False,
        "gate": "low-rank",
        "output_norm": "none",
        "bonus": False,
        "value_residual": "differentiable",
        "state_balancing": True,
        "init_from_teacher": True,
        "decay_rank": rank(0.5, 1.8),
        "rate_rank": rank(0.5, 1.8),
        "value_rank": rank(0.5, 1.3),
        "gate_rank": rank(0.8, 0.6),
    }


def active_mlp(preset: str) -> bool:
    """Whether stage 2 of `preset` trains the MLPs (Table 1 of arXiv 2501.15570; RADLADS trains every parameter)."""
    return preset not in ("arwkv", "arwkv-from-32b")


def options_as_dict(options: TimeMixOptions) -> dict[str, Any]:
    """Plain values by field name, as stored in config.json."""
    return dataclasses.asdict(options)
