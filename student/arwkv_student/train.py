"""`student train`: the stages that the shards allow, one after another, each resumable by the same command."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState

from arwkv_store import Dataset, DatasetInfo
from arwkv_store.errors import NotFound, UsageError
from arwkv_student.align import AlignTrainer, train_only_time_mixers
from arwkv_student.base import BaseCheckpoint, open_base
from arwkv_student.base_attention import BaseAttention
from arwkv_student.convert import convert, copy_tokenizer, student_config
from arwkv_student.data import ShardSamples
from arwkv_student.distill import DistillTrainer, choose_trained, distill_objective
from arwkv_student.evaluate import evaluate
from arwkv_student.model import ArwkvConfig, ArwkvForCausalLM
from arwkv_student.run_folder import RunFolder
from arwkv_student.settings import NOT_COMPARED, TimeMixSettings, TrainSettings, TuneSettings
from arwkv_student.shards import columns_of, open_shards, require_fitting_hidden_states, require_same_tokenizer
from arwkv_student.stage_trainer import Evaluate, ResumableTrainer, StagePlan


def train(settings: TrainSettings) -> dict[str, Any]:
    """Run or continue the run in `settings.out`; returns each stage's summary. RUN itself holds the last student."""
    if settings.stage in ("sft", "dpo"):
        from arwkv_student.tuning import tune

        return tune(settings)
    base = open_base(settings.base) if settings.base else None
    if base is None:
        raise UsageError("--base is missing; name the Qwen2 checkpoint the student starts from, such as Qwen2.5-0.5B")
    dataset = open_shards(settings.shards, columns=[])
    info = dataset.info
    require_same_tokenizer(base, info, settings.shards)
    stages = _stages(settings, base, info)
    _student_config(base, settings)
    run, processes = RunFolder(settings.out), PartialState(cpu=not torch.accelerator.is_available())
    with processes.main_process_first():
        run.claim(_identity(settings, base, dataset))
    held_out = _held_out(settings, base)
    summaries = {}
    for position, stage in enumerate(stages):
        summaries[stage] = run.finished(stage) or _run_stage(stage, run, settings, base, stages[:position], held_out)
        processes.wait_for_everyone()
    if processes.is_main_process:
        run.publish(stages[-1])
    processes.wait_for_everyone()
    return {"out": str(settings.out), "stages": summaries}


def _stages(settings: TrainSettings, base: BaseCheckpoint, info: DatasetInfo) -> list[str]:
    hidden_states = info.capture.hidden_states
    has_hidden = hidden_states in ("attention", "boundaries")
    has_logits = info.capture.logits != "none" or hidden_states == "final"
    stages = [settings.stage] if settings.stage != "auto" else ["align"] * has_hidden + ["distill"] * has_logits
    if not stages or (stages == ["distill"] and not has_logits):
        raise UsageError(f"{settings.shards} holds no logits to distill from; capture with --logits top-k")
    if "align" in stages:
        require_fitting_hidden_states(base, info, settings.shards)
    return list(stages)


def _identity(settings: TrainSettings, base: BaseCheckpoint, dataset: Dataset) -> dict[str, Any]:
    """What makes a continued run the same run: settings, the base, and the shards by content rather than by place."""
    ignored = NOT_COMPARED | {field.name for field in dataclasses.fields(TuneSettings)}
    compared = {name: value for name, value in dataclasses.asdict(settings).items() if name not in ignored}
    shards = dataset.info
    return compared | {
        "samples_per_step": settings.batch_size * settings.gradient_accumulation * world_size(),
        "base_config": base.config,
        "shards_teacher": shards.teacher.model_dump(mode="json"),
        "shards_corpus": shards.corpus.fingerprint,
        "shards_capture": shards.capture.model_dump(mode="json"),
        "shards_samples": len(dataset),
    }


def _held_out(settings: TrainSettings, base: BaseCheckpoint) -> Evaluate | None:
    if settings.eval_shards is None:
        return None
    dataset = open_shards(settings.eval_shards, ["logits", "token_stats"], flag="--eval-shards")
    require_same_tokenizer(base, dataset.info, settings.eval_shards)
    bf16 = uses_bf16(settings.dtype)
    return lambda model: evaluate(model, dataset, batch_size=settings.batch_size, bf16=bf16)


def _run_stage(
    stage: str,
    run: RunFolder,
    settings: TrainSettings,
    base: BaseCheckpoint,
    before: list[str],
    held_out: Evaluate | None,
) -> dict[str, Any]:
    transformers.set_seed(settings.seed)
    model = _starting_student(stage, run, settings, base, before)
    dataset = open_shards(settings.shards, columns_of(stage, open_shards(settings.shards, []).info))
    plan = plan_stage(stage, settings, dataset)
    trainer = make_trainer(model, dataset, run, plan, settings, base, held_out)
    loss_mean = train_to_the_end(trainer, run, stage)
    processes = PartialState()
    tokens = trainer.state.num_input_tokens_seen
    summary = {"steps": plan.steps, "tokens": tokens, "loss_mean": loss_mean}
    if processes.is_main_process:
        copy_tokenizer(base.folder, run.stage(stage))
        if held_out is not None:
            summary["eval"] = trainer.log_of_run.write_evaluation(model, plan.steps, tokens)
        run.finish(stage, summary)
    processes.wait_for_everyone()
    return summary


def train_to_the_end(trainer: ResumableTrainer, run: RunFolder, stage: str) -> float:
    """Train from the last whole checkpoint, or from the start, and save the stage's student; returns the mean loss."""
    processes = PartialState()
    with processes.main_process_first():
        checkpoint = run.last_checkpoint(stage)
    if processes.is_main_process:
        run.forget_metrics_after(stage, int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0)
    processes.wait_for_everyone()
    result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.save_model(str(run.stage(stage)))
    return float(result.training_loss)


def _starting_student(
    stage: str, run: RunFolder, settings: TrainSettings, base: BaseCheckpoint, before: list[str]
) -> ArwkvForCausalLM:
    if before:
        return load_student(run.stage(before[-1]))
    if settings.start_from is not None:
        return load_student(Path(settings.start_from))
    if stage == "distill" and run.finished("align"):
        return load_student(run.stage("align"))
    return untrained_student(base, settings, settings.seed)


def make_trainer(
    model: ArwkvForCausalLM,
    dataset: Dataset,
    run: RunFolder,
    plan: StagePlan,
    settings: TrainSettings,
    base: BaseCheckpoint,
    held_out: Evaluate | None = None,
) -> AlignTrainer | DistillTrainer:
    """The trainer of one stage, with the parameters frozen that the stage leaves alone."""
    bf16 = uses_bf16(settings.dtype)
    common = (model, ShardSamples(dataset), run, plan, settings, bf16, held_out)
    if plan.name == "align":
        train_only_time_mixers(model)
        aligner = AlignTrainer(*common)
        if dataset.info.capture.hidden_states == "boundaries":
            attention = BaseAttention(base, model.config.time_mix_layers)
            aligner.base_attention = attention.to(aligner.args.device)
        return aligner
    choose_trained(model, settings.trained)
    trainer = DistillTrainer(*common)
    trainer.objective = distill_objective(settings, dataset.info, base, trainer.args.device, bf16)
    return trainer


def plan_stage(stage: str, settings: TrainSettings, dataset: Dataset) -> StagePlan:
    """Steps from --steps, or the stage's tokens, or epochs; at least one."""
    stored = dataset.tokens
    per_step = settings.batch_size * settings.gradient_accumulation * world_size() * stored / len(dataset)
    budget = settings.align_tokens if stage == "align" else settings.distill_tokens
    budget = budget or settings.tokens or round((settings.epochs or 1.0) * stored)
    steps = settings.steps or max(1, math.ceil(budget / per_step - 1e-9))
    rate = settings.align_lr if stage == "align" else settings.distill_lr
    return StagePlan(stage, steps, rate, round(steps * per_step), settings.rest_lr if stage == "distill" else None)


def world_size() -> int:
    """Processes that train together."""
    import os

    return int(os.environ.get("WORLD_SIZE", "1"))


def untrained_student(base: BaseCheckpoint, settings: TimeMixSettings, seed: int) -> ArwkvForCausalLM:
    """The student before any stage: `base` with fresh time mixers."""
    transformers.set_seed(seed)
    return convert(base, _student_config(base, settings)).model


def _student_config(base: BaseCheckpoint, settings: TimeMixSettings) -> ArwkvConfig:
    chosen = {field.name: getattr(settings, field.name) for field in dataclasses.fields(TimeMixSettings)}
    preset, layers = chosen.pop("preset"), chosen.pop("layers")
    return student_config(base, preset, chosen, layers)


def load_student(folder: Path) -> ArwkvForCausalLM:
    """A trained student, in the precision it was saved in. Raises NotFound or UsageError where there is none."""
    config = folder / "config.json"
    if not config.is_file():
        raise NotFound(f"model {folder}: no config.json there; name the folder of a run, or one of its stages")
    model_type = json.loads(config.read_text()).get("model_type")
    if model_type != "arwkv":
        raise UsageError(f"model {folder}: model type {model_type!r}, not 'arwkv'; train one with --base")
    model: ArwkvForCausalLM = ArwkvForCausalLM.from_pretrained(folder)
    return model


def uses_bf16(dtype: str) -> bool:
    """Whether matrix products run in bf16: as asked, or where the processor multiplies it natively."""
    if dtype != "auto":
        return dtype == "bf16"
    if torch.accelerator.is_available():
        return bool(torch.cuda.is_available() and torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
