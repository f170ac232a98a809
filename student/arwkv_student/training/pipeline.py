"""`student train`: the stages of a run, one after another, each resumable by the same command."""

from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from accelerate import PartialState

from arwkv_student.run.run_folder import RunFolder
from arwkv_student.settings import TrainSettings
from arwkv_student.training.lora import require_lora
from arwkv_student.training.resumable_trainer import ResumableTrainer
from arwkv_student.training.shard_stages import open_shard_stages


class Stages(Protocol):
    """The stages of a run: stages 1 and 2 on shards, or stage 3 on conversations."""

    @property
    def names(self) -> Sequence[str]:
        """In order; each starts from the student of the previous stage."""

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that must not change when a run continues."""

    def trainer(self, stage: str, run: RunFolder) -> ResumableTrainer:
        """The stage's trainer, over its starting student and its data."""

    def complete(self, student: Path) -> None:
        """Add the tokenizer and other files to a trained student's folder."""


def train(settings: TrainSettings) -> dict[str, Any]:
    """Run or continue the run in `settings.out`; returns each stage's summary. RUN itself holds the last student."""
    processes = PartialState(cpu=not torch.accelerator.is_available())
    stages = _stages(settings)
    defaults = {field.name: field.default for field in fields(settings) if field.default is not MISSING}
    folder = RunFolder(settings.out)
    with folder.claimed(stages.identity, processes, defaults), folder.announced(processes) as run:
        summaries = {}
        for stage in stages.names:
            summaries[stage] = run.finished(stage) or _run_stage(stage, stages, run, settings.seed)
            processes.wait_for_everyone()
        if processes.is_main_process:
            run.publish(stages.names[-1])
        processes.wait_for_everyone()
    return {"out": str(settings.out), "stages": summaries}


def _stages(settings: TrainSettings) -> Stages:
    if settings.lora_rank is not None:
        require_lora(settings)
    if settings.stage in ("sft", "dpo"):
        from arwkv_student.training.tuning import open_tuning  # TRL takes seconds to load

        return open_tuning(settings)
    return open_shard_stages(settings)


def _run_stage(stage: str, stages: Stages, run: RunFolder, seed: int) -> dict[str, Any]:
    """Train one stage to its end and leave its student, tokenizer and summary in the stage's folder."""
    transformers.set_seed(seed)
    trainer = stages.trainer(stage, run)
    trainer.complete = stages.complete
    loss_mean = _train_to_the_end(trainer, run, stage)
    summary = {
        "steps": trainer.state.global_step,
        "tokens": trainer.state.num_input_tokens_seen,
        "loss_mean": loss_mean,
        **trainer.findings(),
    }
    processes = PartialState()
    if processes.is_main_process:
        stages.complete(run.stage(stage))
        run.finish(stage, summary)
    processes.wait_for_everyone()
    return summary


def _train_to_the_end(trainer: ResumableTrainer, run: RunFolder, stage: str) -> float:
    """Train from the newest complete checkpoint, and save the student in the stage's folder; returns the mean loss."""
    processes = PartialState()
    with processes.main_process_first():
        checkpoint = run.last_checkpoint(stage)
    if processes.is_main_process:
        run.forget_after(stage, int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0)
    processes.wait_for_everyone()
    result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.save_student(run.stage(stage))
    return float(result.training_loss)
