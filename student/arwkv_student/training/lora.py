"""LoRA for stage 3, through PEFT: low-rank adapters of the layers' matrices train, everything else stays as it is."""

import importlib.util
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from arwkv_store.errors import UsageError
from arwkv_student.model.loading import load_any_student
from arwkv_student.run.durable import sync_files
from arwkv_student.settings import TrainSettings

ADAPTER = "adapter"
"""Folder of the trained adapter inside the stage's folder, in PEFT's form."""


def require_lora(settings: TrainSettings) -> None:
    """Raise UsageError for what does not go with --lora-rank, or without PEFT."""
    if settings.stage not in ("sft", "dpo"):
        raise UsageError(f"--lora-rank {settings.lora_rank}: stage {settings.stage} has no adapters, only sft and dpo")
    if settings.fsdp:
        raise UsageError(
            f"--lora-rank {settings.lora_rank} --fsdp: adapters are small and are not sharded; leave out --fsdp"
        )
    if importlib.util.find_spec("peft") is None:
        raise UsageError("--lora-rank needs PEFT, which is not installed; pip install 'arwkv[train]'")


def lora_config(model: PreTrainedModel, settings: TrainSettings) -> Any:
    """PEFT's configuration: an adapter for every matrix of the layers that trains without --lora-rank.

    Of no kind of task while it trains: TRL hands what PEFT adds for causal language models to a student's layers.
    """
    from peft import LoraConfig

    targets = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and ".layers." in name and module.weight.requires_grad
    ]
    if not targets:
        raise UsageError(f"--trained {settings.trained} --lora-rank {settings.lora_rank}: no matrix of a layer trains")
    rank = int(settings.lora_rank or 0)
    alpha = 2.0 * rank if settings.lora_alpha is None else settings.lora_alpha
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets)


def save_merged(start: Path, student: Path) -> None:
    """Write the student in `start` to `student`, with the adapter in `student`/adapter added to its weights."""
    from peft import PeftModel

    adapter = student / ADAPTER
    sync_files(adapter)
    PeftModel.from_pretrained(load_any_student(start), adapter).merge_and_unload().save_pretrained(student)
