"""`student train`: the stages that the shards allow, one after another, each resumable by the same command."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState

from arwkv_store import Dataset
from arwkv_store.errors import UsageError
from arwkv_student.bases.attention import BaseAttention
from arwkv_student.bases.checkpoint import BaseCheckpoint, open_base
from arwkv_student.bases.convert import convert, copy_tokenizer, student_config
from arwkv_student.data.collate import ShardSamples
from arwkv_student.data.mixture import ContextSchedule
from arwkv_student.data.shards import (
    ShardSet,
    columns_of,
    one_kind,
    open_shard_sets,
    open_shards,
    require_counted,
    require_fitting_head,
    require_fitting_hidden_states,
    require_same_tokenizer,
)
from arwkv_student.model.configuration import ArwkvConfig
from arwkv_student.model.loading import checkpoint_hash, computes_in_bf16, load_student, require_student
from arwkv_student.model.modeling import ArwkvForCausalLM
from arwkv_student.model.time_mix import TimeMix
from arwkv_student.settings import NOT_COMPARED, TimeMixSettings, TrainSettings, TuneSettings
from arwkv_student.training.align import AlignTrainer, EarlyStop, train_only_time_mixers
from arwkv_student.training.distill import DistillTrainer, choose_trained, distill_objective
from arwkv_student.training.held_out import HeldOutShards
from arwkv_student.training.provenance import origin
from arwkv_student.training.run_folder import RunFolder
from arwkv_student.training.trainer import ResumableTrainer, StagePlan


def train(settings: TrainSettings) -> dict[str, Any]:
    """Run or continue the run in `settings.out`; returns each stage's summary. RUN itself holds the last student."""
    if settings.stage in ("sft", "dpo"):
        from arwkv_student.training.tuning import tune

        return tune(settings)
    base = open_base(settings.base) if settings.base else None
    if base is None:
        raise UsageError("--base is missing; name the Qwen2 checkpoint the student starts from, such as Qwen2.5-0.5B")
    sets = open_shard_sets(settings.shards, settings.shard_weights)
    head = base if settings.teacher_head is None else open_base(settings.teacher_head)
    start = None if settings.start_from is None else Path(settings.start_from)
    if start is not None:
        require_student(start)
    for shards in sets:
        require_same_tokenizer(f"base {base.name}", base.folder, shards.info, shards.uri)
        if start is not None:
            require_same_tokenizer(f"--start-from {start}", start, shards.info, shards.uri)
    stages = _stages(settings, base, head, sets)
    run, processes = RunFolder(settings.out), PartialState(cpu=not torch.accelerator.is_available())
    with run.claimed(_identity(settings, base, head, sets), processes):
        held_out = _held_out(settings, base)
        summaries = {}
        for position, stage in enumerate(stages):
            summaries[stage] = run.finished(stage) or _run_stage(
                stage, run, settings, base, stages[:position], sets, held_out
            )
            processes.wait_for_everyone()
        if processes.is_main_process:
            run.publish(stages[-1])
        processes.wait_for_everyone()
    return {"out": str(settings.out), "stages": summaries}


def _stages(settings: TrainSettings, base: BaseCheckpoint, head: BaseCheckpoint, sets: Sequence[ShardSet]) -> list[str]:
    """The stages to run; `head` is the checkpoint whose head reads final hidden states.

    Raises UsageError where the shards do not allow what is asked, or a set would go unread.
    """
    mixed = _student_config(base, settings).time_mix_layers
    possible = [stage for stage in ("align", "distill") if any(shards.serves(stage) for shards in sets)]
    stages = possible if settings.stage == "auto" else [str(settings.stage)]
    for stage in stages or ["distill"]:
        for shards in serving(sets, stage, settings):
            if stage == "align":
                require_fitting_hidden_states(base, shards.info, shards.uri, mixed)
                continue
            require_counted(shards.uri)
            if shards.info.capture.logits == "none":
                flag = "--base" if head is base else "--teacher-head"
                require_fitting_head(flag, head, shards.info, shards.uri)
    for shards in sets:
        if not any(shards.serves(stage) for stage in stages):
            raise UsageError(f"--shards {shards.uri}: stage {', '.join(stages)} reads nothing of it; leave it out")
    return stages


def serving(sets: Sequence[ShardSet], stage: str, settings: TrainSettings) -> list[ShardSet]:
    """The sets that a stage reads, at least one, which fit together."""
    chosen = [shards for shards in sets if shards.serves(stage)]
    if not chosen:
        uris = ", ".join(settings.shards)
        if stage == "align":
            raise UsageError(f"{uris} holds hidden states 'none'; stage align needs --hidden-states attention")
        raise UsageError(f"{uris} holds no logits to distill from; capture with --logits top-k")
    one_kind(chosen, stage)
    return chosen


def _identity(
    settings: TrainSettings, base: BaseCheckpoint, head: BaseCheckpoint, sets: Sequence[ShardSet]
) -> dict[str, Any]:
    """What makes a continued run the same run: settings, and what it starts from by content rather than by place."""
    ignored = NOT_COMPARED | {field.name for field in dataclasses.fields(TuneSettings)}
    compared = {name: value for name, value in dataclasses.asdict(settings).items() if name not in ignored}
    start = None if settings.start_from is None else Path(settings.start_from)
    content = {
        f"shards_{number}_{name}": value
        for number, shards in enumerate(sets)
        for name, value in shards.content().items()
    }
    return (
        compared
        | content
        | {
            "samples_per_step": settings.batch_size * settings.gradient_accumulation * world_size(),
            "base_config": base.config,
            "base": base.identity(),
            "teacher_head": None if head is base else head.identity(),
            "start": None if start is None else origin(start, checkpoint_hash(start)),
        }
    )


def _held_out(settings: TrainSettings, base: BaseCheckpoint) -> HeldOutShards | None:
    if settings.eval_shards is None:
        return None
    dataset = open_shards(settings.eval_shards, ["logits", "token_stats"], flag="--eval-shards")
    require_same_tokenizer(f"base {base.name}", base.folder, dataset.info, settings.eval_shards)
    return HeldOutShards(dataset, base.folder, settings.batch_size, computes_in_bf16(settings.dtype))


def _run_stage(
    stage: str,
    run: RunFolder,
    settings: TrainSettings,
    base: BaseCheckpoint,
    before: list[str],
    sets: Sequence[ShardSet],
    held_out: HeldOutShards | None,
) -> dict[str, Any]:
    transformers.set_seed(settings.seed)
    model = _starting_student(stage, run, settings, base, before)
    for mixer in (module for module in model.modules() if isinstance(module, TimeMix)):
        mixer.fuse = settings.fuse
    chosen = serving(sets, stage, settings)
    mixed = model.config.time_mix_layers
    datasets = [open_shards(shards.uri, columns_of(stage, shards.info, mixed)) for shards in chosen]
    plan = plan_stage(stage, settings, datasets, [shards.weight for shards in chosen])
    trainer = make_trainer(model, datasets, run, plan, settings, base, held_out)
    loss_mean = train_to_the_end(trainer, run, stage)
    steps, tokens = trainer.state.global_step, trainer.state.num_input_tokens_seen
    summary: dict[str, Any] = {"steps": steps, "tokens": tokens, "loss_mean": loss_mean}
    if held_out is not None:
        summary["eval"] = trainer.log_of_run.write_evaluation(model, steps, tokens)
    processes = PartialState()
    if processes.is_main_process:
        copy_tokenizer(base.folder, run.stage(stage))
        run.finish(stage, summary)
    processes.wait_for_everyone()
    return summary


def train_to_the_end(trainer: ResumableTrainer, run: RunFolder, stage: str) -> float:
    """Train from the newest whole checkpoint on, and leave the student in the stage's folder; the mean loss."""
    processes = PartialState()
    with processes.main_process_first():
        checkpoint = run.last_checkpoint(stage)
    if processes.is_main_process:
        run.forget_after(stage, int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0)
    processes.wait_for_everyone()
    result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    trainer.save_model(str(run.stage(stage)))
    # A pickle of this run's settings: nobody needs it to use the student.
    (run.stage(stage) / "training_args.bin").unlink(missing_ok=True)
    return float(result.training_loss)


def _starting_student(
    stage: str, run: RunFolder, settings: TrainSettings, base: BaseCheckpoint, before: list[str]
) -> ArwkvForCausalLM:
    if before:
        return load_student(run.stage(before[-1]))
    if settings.start_from is not None:
        student = load_student(Path(settings.start_from))
        _take_preset(student, settings, base)
        return student
    if stage == "distill" and run.finished("align"):
        return load_student(run.stage("align"))
    return untrained_student(base, settings, settings.seed)


def _take_preset(student: ArwkvForCausalLM, settings: TrainSettings, base: BaseCheckpoint) -> None:
    """Make the preset the student's: what trains. Raises UsageError where it asks for another time mixer."""
    if settings.preset is None:
        return
    options = (student.config.time_mix_options, _student_config(base, settings).time_mix_options)
    own, asked = map(dataclasses.asdict, options)
    # How a mixer began is no part of what it is.
    differences = [
        f"{name}: {own[name]!r} there, {asked[name]!r} asked"
        for name in own
        if own[name] != asked[name] and name != "init_from_teacher"
    ]
    if differences:
        raise UsageError(
            f"--start-from {settings.start_from}: {'; '.join(differences)}; give the options it was made with, or no "
            "--preset"
        )
    student.config.preset = settings.preset


def make_trainer(
    model: ArwkvForCausalLM,
    datasets: Sequence[Dataset],
    run: RunFolder,
    plan: StagePlan,
    settings: TrainSettings,
    base: BaseCheckpoint,
    held_out: HeldOutShards | None = None,
) -> AlignTrainer | DistillTrainer:
    """The trainer of one stage, with the parameters frozen that the stage leaves alone."""
    bf16 = computes_in_bf16(settings.dtype)
    common = (model, ShardSamples(*datasets), run, plan, settings, bf16, held_out)
    infos = [dataset.info for dataset in datasets]
    if plan.name == "align":
        train_only_time_mixers(model)
        aligner = AlignTrainer(*common)
        aligner.add_callback(EarlyStop(settings.align_stop_error, settings.align_stop_plateau))
        if infos[0].capture.hidden_states == "boundaries":
            attention = BaseAttention(base, model.config.time_mix_layers)
            aligner.base_attention = attention.to(aligner.args.device)
        return aligner
    choose_trained(model, settings.trained)
    trainer = DistillTrainer(*common)
    trainer.objective = distill_objective(settings, infos, base, trainer.args.device, bf16)
    return trainer


def plan_stage(
    stage: str, settings: TrainSettings, datasets: Sequence[Dataset], weights: Sequence[float] = (1.0,)
) -> StagePlan:
    """Steps from --steps, or the stage's tokens, or epochs; at least one."""
    is_align = stage == "align"
    contexts = (settings.align_context,) if is_align and settings.align_context else ()
    schedule = ContextSchedule.of(
        contexts if is_align else settings.context, None if is_align else settings.context_shares
    )
    means = [schedule.mean_tokens(dataset.tokens / len(dataset)) for dataset in datasets]
    mean = sum(weight * tokens for weight, tokens in zip(weights, means, strict=True)) / sum(weights)
    per_step = settings.batch_size * settings.gradient_accumulation * world_size() * mean
    stored = mean * sum(map(len, datasets))
    budget = settings.align_tokens if is_align else settings.distill_tokens
    budget = budget or settings.tokens or round((settings.epochs or 1.0) * stored)
    steps = settings.steps or max(1, math.ceil(budget / per_step - 1e-9))
    return StagePlan(
        stage,
        steps,
        settings.align_lr if is_align else settings.distill_lr,
        round(steps * per_step),
        None if is_align else settings.rest_lr,
        schedule,
        tuple(weights),
    )


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
    preset, layers = chosen.pop("preset") or "arwkv", chosen.pop("layers")
    return student_config(base, preset, chosen, layers)
