"""Stages 1 and 2: the stages that the shards allow, their starting students, and their trainers."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel

from arwkv_store import Dataset
from arwkv_store.errors import UsageError
from arwkv_student.bases.attention import BaseAttention
from arwkv_student.bases.attention_function import attend_by_blocks
from arwkv_student.bases.checkpoint import BaseCheckpoint, open_base
from arwkv_student.bases.convert import config_of, untrained_student
from arwkv_student.bases.layers import chosen_layers
from arwkv_student.bases.tokenizer import copy_tokenizer
from arwkv_student.data.collate import ShardSamples
from arwkv_student.data.mixture import ContextSchedule
from arwkv_student.data.shards import (
    ShardSet,
    aligned_from,
    columns_of,
    one_kind,
    open_shard_sets,
    open_shards,
    require_counted,
    require_entropy,
    require_fitting_head,
    require_fitting_hidden_states,
    require_same_tokenizer,
)
from arwkv_student.evaluation.held_out import HeldOutShards
from arwkv_student.model.decoder_layer import ArwkvDecoderLayer
from arwkv_student.model.loading import (
    accelerator,
    checkpoint_hash,
    computes_in_bf16,
    kept_attention,
    load_any_student,
    load_student,
)
from arwkv_student.model.modeling import ArwkvForCausalLM
from arwkv_student.model.time_mix import TimeMix
from arwkv_student.model.time_mix_options import TRANSFORMER
from arwkv_student.run.provenance import origin
from arwkv_student.run.run_folder import RunFolder
from arwkv_student.settings import NOT_COMPARED, ONLY_TUNING, AdvancedTimeMixer, TrainSettings
from arwkv_student.sharding.start import read_in_process_0
from arwkv_student.suppressed_rows import suppress_padding_rows
from arwkv_student.training.align import AlignTrainer, EarlyStop
from arwkv_student.training.calibrate import calibrate, calibration_batches
from arwkv_student.training.distill import DistillTrainer, distill_objective
from arwkv_student.training.parameters import choose_trained, hold_frozen_in_bf16
from arwkv_student.training.plan import StagePlan, samples_per_step, steps_and_tokens


@dataclass(frozen=True)
class ShardStages:
    """The stages that a run's shards allow, on a student of its base."""

    settings: TrainSettings
    base: BaseCheckpoint
    head: BaseCheckpoint
    """Whose head reads final hidden states: the base, or --teacher-head."""
    sets: Sequence[ShardSet]
    names: Sequence[str]
    held_out: HeldOutShards | None

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that must not change when a run continues: settings, and all inputs by content, not by place."""
        settings = self.settings
        ignored = NOT_COMPARED | ONLY_TUNING
        start = None if settings.start_from is None else Path(settings.start_from)
        return {
            **{name: value for name, value in dataclasses.asdict(settings).items() if name not in ignored},
            **{
                f"shards_{number}_{name}": value
                for number, shards in enumerate(self.sets)
                for name, value in shards.content().items()
            },
            "samples_per_step": samples_per_step(settings),
            "base_config": self.base.config,
            "base": self.base.identity(),
            "teacher_head": None if self.head is self.base else self.head.identity(),
            "start": None if start is None else origin(start, checkpoint_hash(start)),
        }

    def trainer(self, stage: str, run: RunFolder) -> AlignTrainer | DistillTrainer:
        """The stage's trainer, over its starting student and its shards."""
        settings, read = self.settings, partial(self._starting_student, stage, run)
        model = read_in_process_0(read) if settings.fsdp else read()
        for part in (module for module in model.modules() if isinstance(module, TimeMix | ArwkvDecoderLayer)):
            part.fuse = settings.fuse
        datasets, weights = self._open(stage, time_mix_layers(model))
        plan = plan_stage(stage, settings, datasets, weights)
        return make_trainer(model, datasets, run, plan, settings, self.base, self.held_out)

    def complete(self, student: Path) -> None:
        """The base's tokenizer, and which rows of the head are none of its tokens."""
        copy_tokenizer(self.base.folder, student)
        suppress_padding_rows(student)

    def _starting_student(self, stage: str, run: RunFolder) -> PreTrainedModel:
        if stage != self.names[0]:
            return load_any_student(run.stage(self.names[self.names.index(stage) - 1]))
        if self.settings.start_from is not None:
            started = load_any_student(Path(self.settings.start_from))
            if stage == "align":
                _require_width_of_base(started, self.settings, self.base)
            if isinstance(started, ArwkvForCausalLM):
                _take_preset(started, self.settings, self.base)
            return started
        if stage == "distill" and run.finished("align"):
            return load_student(run.stage("align"))
        student = untrained_student(self.base, self.settings, self.settings.seed)
        if self.settings.init == "calibrated" and run.last_checkpoint(stage) is None:
            self._calibrate(student, run)
        return student

    def _open(self, stage: str, mixed: Sequence[int]) -> tuple[list[Dataset], list[float]]:
        """The datasets that a stage reads, with the columns that it needs, and the weight of each."""
        chosen = serving(self.sets, stage, self.settings)
        entropy = stage == "distill" and self.settings.token_weight == "entropy"
        datasets = [shards.open(columns_of(stage, shards.info, mixed, entropy=entropy)) for shards in chosen]
        for shards, dataset in zip(chosen, datasets, strict=True):
            if entropy:
                require_entropy(dataset, shards.uri)
        return datasets, [shards.weight for shards in chosen]

    def _calibrate(self, student: ArwkvForCausalLM, run: RunFolder) -> None:
        """Fit the time mixers to stage 1's data, and log how close each layer comes."""
        settings, mixed, device = self.settings, student.config.time_mix_layers, accelerator()
        datasets, weights = self._open("align", mixed)
        batches = calibration_batches(
            ShardSamples(*datasets), weights, settings.batch_size, settings.calibration_tokens, settings.seed
        )
        attention = _base_attention(self.base, datasets, mixed, bf16=computes_in_bf16(settings.dtype))
        with torch.autocast(device.type, torch.bfloat16, enabled=computes_in_bf16(settings.dtype)):
            found = calibrate(student.to(device), self.base, batches, attention and attention.to(device))
        student.to("cpu")
        if PartialState().is_main_process:
            run.forget_after("calibrate", -1)
            errors = {f"relative_error_{layer}": round(error, 4) for layer, error in found.relative_errors.items()}
            run.write_metrics("calibrate", step=0, untrained_loss=round(found.untrained_loss, 4), **errors)


def open_shard_stages(settings: TrainSettings) -> ShardStages:
    """Open base, head and shards. Raises UsageError or NotFound for what is missing or does not fit together."""
    if not settings.base:
        raise UsageError("--base is missing; name the checkpoint that the student starts from, such as Qwen2.5-0.5B")
    start = None if settings.start_from is None else Path(settings.start_from)
    if start is not None and settings.init == "calibrated":
        raise UsageError("--init calibrated and --start-from name two starts; leave one of them out")
    keeps_attention = _keeps_attention(settings, start)
    base = open_base(settings.base, any_family=keeps_attention)
    if isinstance(settings.layers, Path):
        settings = dataclasses.replace(settings, layers=chosen_layers(base, settings.layers))
    run = RunFolder(settings.out)
    sets = open_shard_sets(settings.shards, settings.shard_weights, run.recorded_shards(), run.identity)
    head = base if settings.teacher_head is None else open_base(settings.teacher_head)
    for shards in sets:
        require_same_tokenizer(f"base {base.name}", base.folder, shards.info, shards.uri)
        if start is not None:
            require_same_tokenizer(f"--start-from {start}", start, shards.info, shards.uri)
    mixed = [] if keeps_attention else config_of(base, settings).time_mix_layers
    names = _names(settings, base, head, sets, mixed)
    return ShardStages(settings, base, head, sets, names, _held_out(settings, base))


def _keeps_attention(settings: TrainSettings, start: Path | None) -> bool:
    """Whether the student has preset `transformer`: by the flag, or in `start`."""
    asked = settings.preset == TRANSFORMER
    keeps = asked if start is None else kept_attention(start)
    if keeps != asked and settings.preset is not None:
        there = "keeps its attention (preset transformer)" if keeps else "has time mixers"
        raise UsageError(
            f"--preset {settings.preset} --start-from {start}: the student there {there}; leave --preset out"
        )
    if keeps and settings.segment is not None:
        raise UsageError("--segment: a student of preset transformer has no state to pass on; leave it out")
    given = [field.name for field in fields(AdvancedTimeMixer) if keeps and getattr(settings, field.name) is not None]
    if given:
        flag = "--" + given[0].replace("_", "-")
        raise UsageError(f"{flag}: a student of preset transformer has no time mixer; leave it out")
    return keeps


def time_mix_layers(model: PreTrainedModel) -> list[int]:
    """The layers that mix time; none with preset `transformer`."""
    return model.config.time_mix_layers if isinstance(model, ArwkvForCausalLM) else []


def _names(
    settings: TrainSettings,
    base: BaseCheckpoint,
    head: BaseCheckpoint,
    sets: Sequence[ShardSet],
    mixed: Sequence[int],
) -> list[str]:
    """The stages to run; `head` is the checkpoint whose head reads final hidden states, `mixed` the mixing layers.

    Raises UsageError if the shards do not allow a requested stage, or a set would not be read.
    """
    possible = [stage for stage in ("align", "distill") if any(shards.serves(stage) for shards in sets)]
    if not mixed:
        possible = [stage for stage in possible if stage != "align"]
        if settings.stage == "align":
            raise UsageError(
                "--stage align: no layer of the student mixes time (--preset transformer or --layers none), so that it "
                "has nothing to learn there; choose --stage distill"
            )
        if settings.init == "calibrated":
            raise UsageError(
                "--init calibrated: no layer of the student mixes time (--preset transformer or --layers none); "
                "leave it out"
            )
    stages = possible if settings.stage == "auto" else [str(settings.stage)]
    for stage in ("align", "distill") if settings.stage == "auto" else ():
        tokens = getattr(settings, f"{stage}_tokens")
        if tokens is not None and stage not in stages:
            raise UsageError(
                f"--{stage}-tokens {tokens}: --stage auto runs what the shards are made for, which is not {stage}; run "
                f"--stage {stage} by itself, or leave it out"
            )
    read = stages if settings.init == "preset" or "align" in stages else ["align", *stages]
    used: set[str] = set()
    for stage in read or ["distill"]:
        for shards in serving(sets, stage, settings):
            used.add(shards.uri)
            if stage == "align":
                if aligned_from(shards.info) != "tokens":
                    require_fitting_hidden_states(base, shards.info, shards.uri, mixed)
                continue
            require_counted(shards)
            if shards.info.capture.logits == "none":
                flag = "--base" if head is base else "--teacher-head"
                require_fitting_head(flag, head, shards.info, shards.uri)
    for shards in sets:
        if shards.uri not in used:
            raise UsageError(f"--shards {shards.uri}: stage {', '.join(read)} reads nothing from it; leave it out")
    return stages


def serving(sets: Sequence[ShardSet], stage: str, settings: TrainSettings) -> list[ShardSet]:
    """The sets that a stage reads, at least one, which are compatible.

    Those that are made for it; stage align reads the tokens of any other set if there is none.
    """
    chosen = [shards for shards in sets if shards.serves(stage)]
    if not chosen and stage == "align":
        chosen = list(sets)
    if not chosen:
        uris = ", ".join(settings.shards)
        raise UsageError(f"{uris} holds no logits to distill from; capture with --logits top-k")
    one_kind(chosen, stage)
    return chosen


def _held_out(settings: TrainSettings, base: BaseCheckpoint) -> HeldOutShards | None:
    if settings.eval_shards is None:
        return None
    dataset = open_shards(settings.eval_shards, ["logits", "token_stats"], flag="--eval-shards")
    require_same_tokenizer(f"base {base.name}", base.folder, dataset.info, settings.eval_shards)
    return HeldOutShards(dataset, base.folder, settings.batch_size, computes_in_bf16(settings.dtype))


def _require_width_of_base(student: PreTrainedModel, settings: TrainSettings, base: BaseCheckpoint) -> None:
    own, other = (
        tuple(getattr(config, name) for name in ("hidden_size", "num_hidden_layers"))
        for config in (student.config, base.family_config)
    )
    if own != other:
        raise UsageError(
            f"--start-from {settings.start_from} has hidden size {own[0]} and {own[1]} layers, --base {base.name} "
            f"{other[0]} and {other[1]}; stage align needs the base that the student was made from"
        )


def _take_preset(student: ArwkvForCausalLM, settings: TrainSettings, base: BaseCheckpoint) -> None:
    """Set the student's preset, which decides what trains. Raises UsageError if it has another time mixer."""
    if settings.preset is None:
        return
    options = (student.config.time_mix_options, config_of(base, settings).time_mix_options)
    own, asked = map(dataclasses.asdict, options)
    # The initial values of a mixer are not part of its structure.
    differences = [
        f"{name}: {own[name]!r} there, {asked[name]!r} asked"
        for name in own
        if own[name] != asked[name] and name != "init_from_teacher"
    ]
    if differences:
        raise UsageError(
            f"--start-from {settings.start_from}: {'; '.join(differences)}; use the options that it was made with, or "
            "leave out --preset"
        )
    student.config.preset = settings.preset


def make_trainer(
    model: PreTrainedModel,
    datasets: Sequence[Dataset],
    run: RunFolder,
    plan: StagePlan,
    settings: TrainSettings,
    base: BaseCheckpoint,
    held_out: HeldOutShards | None = None,
) -> AlignTrainer | DistillTrainer:
    """The trainer of one stage; parameters that the stage does not train are frozen."""
    bf16 = computes_in_bf16(settings.dtype)
    common = (model, ShardSamples(*datasets), run, plan, settings, bf16, held_out)
    infos = [dataset.info for dataset in datasets]
    attend_by_blocks(model)
    choose_trained(model, "time-mix" if plan.name == "align" else settings.trained)
    if bf16:
        hold_frozen_in_bf16(model)
    if plan.name == "align":
        aligner = AlignTrainer(*common)
        aligner.add_callback(EarlyStop(settings.align_stop_error, settings.align_stop_plateau))
        attention = _base_attention(base, datasets, model.config.time_mix_layers, bf16=bf16)
        aligner.base_attention = None if attention is None else attention.to(aligner.args.device)
        return aligner
    trainer = DistillTrainer(*common)
    trainer.objective = distill_objective(settings, infos, base, trainer.args.device, bf16)
    return trainer


def _base_attention(
    base: BaseCheckpoint, datasets: Sequence[Dataset], mixed: Sequence[int], *, bf16: bool
) -> BaseAttention | None:
    """What computes the attention outputs that shards of boundaries, or of tokens alone, do not hold; else None."""
    if aligned_from(datasets[0].info) == "attention":
        return None
    return BaseAttention(base, mixed, torch.bfloat16 if bf16 else torch.float32)


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
    budget = settings.align_tokens if is_align else settings.distill_tokens
    steps, tokens = steps_and_tokens(settings, mean, mean * sum(map(len, datasets)), budget)
    return StagePlan(
        stage,
        steps,
        settings.align_lr if is_align else settings.distill_lr,
        tokens,
        None if is_align else settings.rest_lr,
        schedule,
        tuple(weights),
    )
