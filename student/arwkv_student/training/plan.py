"""How long a stage is and how fast it learns, and the same in transformers' terms."""

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

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


def training_arguments(
    out: Path,
    plan: StagePlan,
    settings: TrainSettings,
    bf16: bool,
    kind: type[TrainingArguments] = TrainingArguments,
    **more: Any,
) -> TrainingArguments:
    """The arguments of a stage's trainer; `kind` and `more` for its own fields."""
    on_cpu = not torch.accelerator.is_available()
    arguments = kind(
        output_dir=str(out),
        max_steps=plan.steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": settings.lr_floor},
        warmup_steps=round(settings.warmup * plan.steps),
        adam_beta1=0.9,
        adam_beta2=0.95,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=bf16,
        use_cpu=on_cpu,
        # Stage align keeps the activations of one layer anyway.
        gradient_checkpointing=settings.gradient_checkpointing and plan.name != "align",
        logging_steps=settings.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_steps=settings.save_every,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=settings.workers,
        dataloader_persistent_workers=False,
        dataloader_pin_memory=not on_cpu,
        include_num_input_tokens_seen="non_padding",
        ddp_find_unused_parameters=False,
        run_name=f"{settings.out.name}-{plan.name}",
        project="arwkv",
        seed=settings.seed,
        data_seed=settings.seed,
        **more,
    )
    arguments.spread, arguments.optimizer, arguments.ema = settings.fsdp, settings.optimizer, settings.ema
    return arguments
