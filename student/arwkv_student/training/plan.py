"""How long a stage is and how fast it learns."""

import math
import os
from dataclasses import dataclass, field

from arwkv_student.data.mixture import ContextSchedule
from arwkv_student.settings import TrainSettings


@dataclass(frozen=True)
class StagePlan:
    """One stage's length and rate."""

    name: str
    steps: int
    learning_rate: float
    tokens: int
    """Tokens that the steps are expected to hold."""
    rest_learning_rate: float | None = None
    """Of the parameters that are no time mixer's; None: the same."""
    schedule: ContextSchedule = field(default_factory=ContextSchedule)
    """How many tokens of a sample each step reads."""
    weights: tuple[float, ...] = (1.0,)
    """Share of the samples from each shard set."""


def world_size() -> int:
    """Processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def samples_per_step(settings: TrainSettings) -> int:
    """Samples per optimizer step, over all processes and batches."""
    return settings.batch_size * settings.gradient_accumulation * world_size()


def steps_and_tokens(
    settings: TrainSettings, tokens_per_sample: float, stored_tokens: float, stage_tokens: int | None = None
) -> tuple[int, int]:
    """Steps (at least one) from --steps, or else the stage's tokens, --tokens or --epochs; and the tokens they hold."""
    per_step = samples_per_step(settings) * tokens_per_sample
    budget = stage_tokens or settings.tokens or round((settings.epochs or 1.0) * stored_tokens)
    steps = settings.steps or max(1, math.ceil(budget / per_step - 1e-9))
    return steps, round(steps * per_step)
