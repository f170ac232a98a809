"""Stage 3, `student train --stage sft|dpo`: a trained student on conversations or preferences."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import PrinterCallback

from arwkv_store.errors import NotFound, UsageError
from arwkv_store.format.file_hash import sha256_of_file
from arwkv_student.bases.attention_function import attend_by_blocks
from arwkv_student.bases.tokenizer import copy_tokenizer, open_tokenizer
from arwkv_student.data.conversation_rows import read_rows
from arwkv_student.model.loading import checkpoint_hash, computes_in_bf16, load_any_student, model_type
from arwkv_student.run.durable import replace_text
from arwkv_student.run.end_of_turn import add_end_token, end_of_turn
from arwkv_student.run.provenance import origin
from arwkv_student.run.run_folder import RunFolder
from arwkv_student.settings import ONLY_TUNING, TrainSettings
from arwkv_student.sharding.start import read_in_process_0, share_out
from arwkv_student.suppressed_rows import suppress_padding_rows
from arwkv_student.training.lora import lora_config
from arwkv_student.training.parameters import choose_trained, hold_frozen_in_bf16
from arwkv_student.training.plan import StagePlan, samples_per_step, steps_and_tokens, training_arguments
from arwkv_student.training.run_log import RunLog, reporters
from arwkv_student.training.tuned_trainer import HeldOut, TunedTrainer

# Settings of stages 1 and 2 that are used here too.
SHARED = {"stage", "steps", "tokens", "epochs", "rest_lr", "lr_floor", "warmup", "weight_decay", "max_grad_norm"}
SHARED |= {"trained", "dtype", "packing", "seed"}


@dataclass(frozen=True)
class Start:
    """The starting student of the stage."""

    folder: Path
    checkpoint: str
    """Hash of its weights and configuration."""
    tokenizer: Any
    template: str
    """Hash of the chat template."""
    end_of_turn: int | None
    """The template's."""

    def rows(self, settings: TrainSettings, file: str, flag: str) -> Dataset:
        """The rows of a JSONL file; see `read_rows`."""
        tokens = (self.tokenizer, self.folder, settings.max_length)
        return read_rows(settings.stage, Path(file), flag, *tokens, settings.workers)


def open_start(settings: TrainSettings) -> Start:
    """The student that the stage starts from. Raises UsageError or NotFound for what is missing."""
    if settings.start_from is None:
        raise UsageError(f"--start-from is missing; stage {settings.stage} tunes a trained student: name its folder")
    if settings.data is None:
        raise UsageError(f"--data is missing; stage {settings.stage} reads a JSONL file")
    if settings.packing and settings.stage == "dpo":
        raise UsageError("--packing does not work with stage dpo; leave it out")
    folder = Path(settings.start_from)
    model_type(folder)
    checkpoint = checkpoint_hash(folder)
    tokenizer = open_tokenizer(f"model {folder}", folder)
    if settings.chat_template is not None:
        try:
            tokenizer.chat_template = Path(settings.chat_template).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise NotFound(f"--chat-template {settings.chat_template}: {error}; name a Jinja file in UTF-8") from error
    template = hashlib.sha256(json.dumps(tokenizer.chat_template).encode()).hexdigest()
    return Start(folder, checkpoint, tokenizer, template, end_of_turn(tokenizer))


@dataclass(frozen=True)
class Tuning:
    """Stage 3 of a run: one stage, on a trained student and its rows."""

    settings: TrainSettings
    start: Start
    rows: Dataset
    held_out: Dataset | None

    @property
    def names(self) -> tuple[str]:
        """`sft` or `dpo`."""
        return (self.settings.stage,)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that must not change when a run continues, and in `start` the origin of its student."""
        settings = dataclasses.asdict(self.settings)
        return {
            **{name: value for name, value in settings.items() if name in ONLY_TUNING | SHARED},
            "samples_per_step": samples_per_step(self.settings),
            "data_hash": sha256_of_file(Path(str(self.settings.data))),
            "template_hash": self.start.template,
            "start": origin(self.start.folder, self.start.checkpoint),
        }

    def trainer(self, stage: str, run: RunFolder) -> TunedTrainer:
        """TRL's trainer for the stage."""
        return make_tuner(self.settings, self.start, run, self.rows, self.held_out)

    def complete(self, student: Path) -> None:
        """The starting student's tokenizer, the chat template, and the token that ends its turns."""
        copy_tokenizer(self.start.folder, student)
        suppress_padding_rows(student)
        if self.settings.chat_template is not None:
            replace_text(student / "chat_template.jinja", str(self.start.tokenizer.chat_template))
        if self.start.end_of_turn is not None:
            add_end_token(student, self.start.end_of_turn)


def open_tuning(settings: TrainSettings) -> Tuning:
    """Open the starting student and the data. Raises UsageError or NotFound for what is missing."""
    start = open_start(settings)
    with PartialState().local_main_process_first():  # the others find its rows in the cache
        rows = start.rows(settings, str(settings.data), "--data")
        held_out = None if settings.eval_data is None else start.rows(settings, settings.eval_data, "--eval-data")
    return Tuning(settings, start, rows, held_out)


def make_tuner(
    settings: TrainSettings, start: Start, run: RunFolder, rows: Dataset, held_out: Dataset | None = None
) -> TunedTrainer:
    """TRL's trainer for the stage, over tokenized rows."""
    plan = _plan(settings, rows)
    read = partial(load_any_student, start.folder)
    model = read_in_process_0(read) if settings.fsdp else read()
    attend_by_blocks(model)
    choose_trained(model, "all" if settings.trained == "preset" else settings.trained)
    bf16 = computes_in_bf16(settings.dtype)
    log = RunLog(run, plan, None, None)
    told = HeldOut(log, held_out is not None)
    common: dict[str, Any] = {
        "model": model,
        "train_dataset": rows,
        "eval_dataset": held_out,
        "processing_class": start.tokenizer,
        "peft_config": None if settings.lora_rank is None else lora_config(model, settings),
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
    trainer.plan, trainer.held_out, trainer.start = plan, told, start.folder
    if settings.lora_rank is not None and bf16:
        hold_frozen_in_bf16(trainer.model)
    trainer.remove_callback(PrinterCallback)
    if settings.fsdp:
        share_out(model, trainer.args.device)
        trainer.is_distributed_loading_by_transformers = True
    return trainer


def _plan(settings: TrainSettings, rows: Dataset) -> StagePlan:
    stored = sum(map(_tokens, rows))
    steps, tokens = steps_and_tokens(settings, stored / len(rows), stored)
    rate = settings.sft_lr if settings.stage == "sft" else settings.dpo_lr
    return StagePlan(settings.stage, steps, rate, tokens, settings.rest_lr)


def _tokens(row: dict[str, list[int]]) -> int:
    """Tokens that the student reads: a pair's prompt twice."""
    if "input_ids" in row:
        return len(row["input_ids"])
    return 2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])
