"""The flags of stage distill's loss; no torch here."""

from dataclasses import dataclass
from typing import Annotated, Literal

from arwkv_store.commands.command_line import unset


@dataclass(frozen=True, kw_only=True)
class Distill:
    """Stage 2: the student learns the teacher's next-token distribution."""

    divergence: Literal["forward", "reverse", "adaptive", "jsd", "tvd", "skewed-forward", "skewed-reverse"] = "forward"
    """From teacher to student: KL in either direction, `adaptive` mixes both; Jensen-Shannon; total variation; KL to a
    mixture of both."""
    skew: float = 0.1
    """Share of the first distribution in the mixture that a skewed divergence compares it with."""
    token_weight: Literal["equal", "entropy", "error"] = "equal"
    """Weight of each position: the teacher's entropy, or the student's error 1 − q of the true next token."""
    temperature: float = 1.0
    """Temperature of both distributions."""
    ce_weight: float = 0.0
    """Share of the cross-entropy with the true tokens in the loss."""
    trained: Literal["preset", "all", "frozen-mlp", "time-mix", "spare-recall"] = "preset"
    """Which parameters train. Presets `arwkv` and `arwkv-from-32b` freeze the MLPs; the others train all.
    `spare-recall`: all but receptance and key, and in layers that attend query and key."""
    teacher_head: Annotated[str | None, unset("NAME", "default: the base's head")] = None
    """Checkpoint whose head reads shards of final hidden states."""
