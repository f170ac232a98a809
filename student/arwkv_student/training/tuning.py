"""Stage 3, `student train --stage sft|dpo`: a trained student on conversations or preferences, resumable."""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from datasets import Dataset
from transformers import PrinterCallback

from arwkv_store.errors import NotFound, UsageError
from arwkv_store.format.file_hash import sha256_of_file
from arwkv_student.bases.convert import copy_tokenizer
from arwkv_student.data.conversations import examples, pairs, read_records
from arwkv_student.model.loading import checkpoint_hash, computes_in_bf16, load_student, require_student
from arwkv_student.settings import NOT_COMPARED, TrainSettings, TuneSettings
from arwkv_student.training.distill import choose_trained
from arwkv_student.training.end_of_turn import add_end_token, end_of_turn
from arwkv_student.training.fsdp import shard
from arwkv_student.training.pipeline import train_to_the_end, world_size
from arwkv_student.training.provenance import origin
from arwkv_student.training.run_folder import RunFolder, replace_text
from arwkv_student.training.trainer import RunLog, StagePlan, reporters, training_arguments
from arwkv_student.training.tuned_trainer import HeldOut, TunedTrainer

# Of the settings of stages 1 and 2, those that say something here.
SHARED = {"stage", "steps", "tokens", "epochs", "rest_lr", "lr_floor", "warmup", "weight_decay", "max_grad_norm"}
SHARED |= {"trained", "dtype", "packing", "seed"}


def tune(settings: TrainSettings) -> dict[str, Any]:
    """Run or continue the stage in `settings.out`; returns its summary. RUN itself holds the tuned student."""
    stage, start = settings.stage, open_start(settings)
    rows, held_out = read_rows(settings, start, str(settings.data), "--data"), None
    if settings.eval_data is not None:
        held_out = read_rows(settings, start, settings.eval_data, "--eval-data")
    run, processes = RunFolder(settings.out), PartialState(cpu=not torch.accelerator.is_available())
    with run.claimed(_identity(settings, start), processes):
        summary = run.finished(stage) or _run(settings, start, run, rows, held_out)
        processes.wait_for_everyone()
        if processes.is_main_process:
            run.publish(stage)
        processes.wait_for_everyone()
    return {"out": str(settings.out), "stages": {stage: summary}}


@dataclass(frozen=True)
class Start:
    """What the stage starts from."""

    folder: Path
    checkpoint: str
    """Hash of its weights and configuration."""
    tokenizer: Any
    template: str
    """Hash of the chat template."""
    end_of_turn: int | None
    """The template's."""


def open_start(settings: TrainSettings) -> Start:
    """The student that the stage starts from. Raises UsageError or NotFound for what is missing."""
    if settings.start_from is None:
        raise UsageError(f"--start-from is missing; stage {settings.stage} tunes a trained student: name its folder")
    if settings.data is None:
        raise UsageError(f"--data is missing; stage {settings.stage} reads a JSONL file")
    if settings.packing and settings.stage == "dpo":
        raise UsageError("--packing serves stages align, distill and sft; leave it out for dpo")
    folder = Path(settings.start_from)
    require_student(folder)
    checkpoint = checkpoint_hash(folder)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise NotFound(f"model {folder}: no tokenizer there; copy the base's tokenizer.json beside it") from error
    if settings.chat_template is not None:
        try:
            tokenizer.chat_template = Path(settings.chat_template).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise NotFound(f"--chat-template {settings.chat_template}: {error}; name a Jinja file in UTF-8") from error
    template = hashlib.sha256(json.dumps(tokenizer.chat_template).encode()).hexdigest()
    return Start(folder, checkpoint, tokenizer, template, end_of_turn(tokenizer))


def _identity(settings: TrainSettings, start: Start) -> dict[str, Any]:
    """What makes a continued run the same run, and in `start` how its student came about."""
    own = {field.name for field in dataclasses.fields(TuneSettings)} | SHARED
    compared = {name: value for name, value in dataclasses.asdict(settings).items() if name in own - NOT_COMPARED}
    return compared | {
        "samples_per_step": settings.batch_size * settings.gradient_accumulation * world_size(),
        "data_hash": sha256_of_file(Path(str(settings.data))),
        "template_hash": start.template,
        "start": origin(start.folder, start.checkpoint),
    }


def _run(
    settings: TrainSettings, start: Start, run: RunFolder, rows: Dataset, held_out: Dataset | None
) -> dict[str, Any]:
    stage = settings.stage
    transformers.set_seed(settings.seed)
    trainer = make_tuner(settings, start, run, rows, held_out)
    loss_mean = train_to_the_end(trainer, run, stage)
    summary = {
        "steps": trainer.plan.steps,
        "tokens": trainer.state.num_input_tokens_seen,
        "loss_mean": loss_mean,
        "samples": len(trainer.train_dataset),
    }
    if held_out is not None:
        if trainer.held_out.step != trainer.plan.steps:
            trainer.evaluate()
        summary["held_out"] = trainer.held_out.figures
    processes = PartialState()
    if processes.is_main_process:
        copy_tokenizer(start.folder, run.stage(stage))
        if settings.chat_template is not None:
            replace_text(run.stage(stage) / "chat_template.jinja", str(start.tokenizer.chat_template))
        if start.end_of_turn is not None:
            add_end_token(run.stage(stage), start.end_of_turn)
        run.finish(stage, summary)
    processes.wait_for_everyone()
    return summary


def make_tuner(
    settings: TrainSettings, start: Start, run: RunFolder, rows: Dataset, held_out: Dataset | None = None
) -> TunedTrainer:
    """TRL's trainer for the stage, over tokenised rows."""
    plan = _plan(settings, rows)
    model = load_student(start.folder)
    choose_trained(model, "all" if settings.trained == "preset" else settings.trained)
    bf16 = computes_in_bf16(settings.dtype)
    log = RunLog(run, plan, None, None)
    told = HeldOut(log, held_out is not None)
    common: dict[str, Any] = {
        "model": model,
        "train_dataset": rows,
        "eval_dataset": held_out,
        "processing_class": start.tokenizer,
        "callbacks": [log, told, *reporters(run.path, settings.stage, settings)],
    }
    every = settings.eval_every if held_out is not None else None
    evaluation = {"eval_strategy": "steps" if every else "no", "eval_steps": every}
    evaluation["per_device_eval_batch_size"] = settings.batch_size
    if settings.stage == "sft":
        from arwkv_student.training import sft

        options = sft.OPTIONS | {"padding_free": settings.packing}
        args = training_arguments(run.stage("sft"), plan, settings, bf16, sft.CONFIG, **options, **evaluation)
        trainer: TunedTrainer = sft.SftTrainer(args=args, **common)
    else:
        from arwkv_student.training import dpo as preference

        truncation = f"the first {settings.max_length} tokens"
        key = preference.ReferenceKey(start.checkpoint, start.template, truncation, "bf16" if bf16 else "fp32")
        folder = Path(settings.reference) if settings.reference is not None else start.folder / "reference"
        options = {"beta": settings.dpo_beta, "max_length": settings.max_length, "precompute_ref_log_probs": True}
        args = training_arguments(run.stage("dpo"), plan, settings, bf16, preference.CONFIG, **options, **evaluation)
        trainer = preference.PreferenceTrainer(preference.ReferenceFolder(folder, key), args=args, **common)
    trainer.plan, trainer.held_out = plan, told
    trainer.remove_callback(PrinterCallback)
    if settings.fsdp:
        shard(model, trainer.args.device)
        trainer.is_distributed_loading_by_transformers = True
    return trainer


def read_rows(settings: TrainSettings, start: Start, file: str, flag: str) -> Dataset:
    """The file as TRL's rows. Raises UsageError where nothing is left to learn from."""
    records = read_records(Path(file), flag)
    if settings.stage == "sft":
        from arwkv_student.training import sft

        rows = sft.as_rows(list(examples(records, start.tokenizer, settings.max_length)))
    else:
        from arwkv_student.training import dpo as preference

        rows = preference.as_rows(list(pairs(records, start.tokenizer, settings.max_length)))
    if not len(rows):
        raise UsageError(f"{flag} {file}: no reply within {settings.max_length} tokens; raise --max-length")
    return rows


def _plan(settings: TrainSettings, rows: Dataset) -> StagePlan:
    """Steps from --steps, --tokens or --epochs; at least one."""
    tokens = sum(map(_tokens, rows))
    per_step = settings.batch_size * settings.gradient_accumulation * world_size() * tokens / len(rows)
    budget = settings.tokens or round((settings.epochs or 1.0) * tokens)
    steps = settings.steps or max(1, math.ceil(budget / per_step - 1e-9))
    rate = settings.sft_lr if settings.stage == "sft" else settings.dpo_lr
    return StagePlan(settings.stage, steps, rate, round(steps * per_step), settings.rest_lr)


def _tokens(row: dict[str, list[int]]) -> int:
    """Tokens that the student reads: a pair's prompt twice."""
    if "input_ids" in row:
        return len(row["input_ids"])
    return 2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])
