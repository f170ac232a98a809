"""The settings in transformers' terms."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from arwkv_student.settings import TrainSettings
from arwkv_student.training.plan import StagePlan


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
        optim="adamw_torch_fused",
        adam_beta1=0.9,
        adam_beta2=0.95,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=bf16,
        use_cpu=on_cpu,
        gradient_checkpointing=settings.gradient_checkpointing,
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
    arguments.spread = settings.fsdp
    return arguments
