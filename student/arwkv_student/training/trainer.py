"""What stages 1 and 2 share: `transformers.Trainer` over shards, in an order that a restart does not change."""

import importlib.util
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from arwkv_store.commands.progress import Progress
from arwkv_store.errors import UsageError
from arwkv_student.data.collate import ShardSamples, collate, collate_packed
from arwkv_student.data.mixture import ContextSchedule, DrawSampler
from arwkv_student.model.modeling import ArwkvForCausalLM
from arwkv_student.settings import TrainSettings
from arwkv_student.training.fsdp import (
    is_sharded,
    load_optimizer_state,
    load_weights,
    shard,
    whole_optimizer_state,
    whole_weights,
)
from arwkv_student.training.held_out import HeldOutShards
from arwkv_student.training.run_folder import WHOLE, RunFolder, sync_files, write_json

# Figures of a stage's own that go to the metrics: stage 1's errors, and what TRL says of SFT and DPO.
LOGGED = ("relative_error", "mean_token_accuracy", "rewards/", "logps/")
# Of two dimensions, and no matrices: the token shift's mix [6, C] and the bonus [H, D].
STACKED_VECTORS = (".shift_mix", ".bonus")


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


class RunLog(TrainerCallback):  # type: ignore[misc] # transformers is untyped
    """Figures to RUN/metrics.jsonl, the bar, and held-out evaluations."""

    def __init__(self, run: RunFolder, plan: StagePlan, held_out: HeldOutShards | None, eval_every: int | None) -> None:
        self.run, self.plan, self.held_out, self.eval_every = run, plan, held_out, eval_every
        self.progress: Progress | None = None
        self.last_loss, self.last_tokens, self.last_time = "", 0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.last_tokens, self.last_time = state.num_input_tokens_seen, time.monotonic()
        self.bar_tokens = state.num_input_tokens_seen
        if state.is_world_process_zero:
            self.progress = Progress(self.plan.name, self.plan.tokens, done_tokens=self.bar_tokens)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if self.progress is not None:
            self.progress.advance(state.num_input_tokens_seen - self.bar_tokens, note=self.last_loss)
            self.bar_tokens = state.num_input_tokens_seen
        every = self.eval_every
        if (
            self.held_out is not None
            and every
            and state.global_step % every == 0
            and state.global_step < state.max_steps
        ):
            self.write_evaluation(model, state.global_step, state.num_input_tokens_seen)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs is None or "loss" not in logs or not state.is_world_process_zero:
            return
        now, tokens = time.monotonic(), state.num_input_tokens_seen
        self.last_loss = f"loss {logs['loss']:.4f}"
        self.write(
            step=state.global_step,
            tokens=tokens,
            loss=logs["loss"],
            lr=logs["learning_rate"],
            grad_norm=logs.get("grad_norm"),
            tokens_per_s=round((tokens - self.last_tokens) / max(now - self.last_time, 1e-9), 1),
            **{name: value for name, value in logs.items() if name.startswith(LOGGED)},
        )
        self.last_tokens, self.last_time = tokens, now

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.progress is not None:
            self.progress.__exit__(None, None, None)

    def write_evaluation(self, model: ArwkvForCausalLM, step: int, tokens: int) -> dict[str, float]:
        """Evaluate on held-out shards, in every process, since a sharded model needs all; process 0 writes."""
        assert self.held_out is not None
        figures, texts = self.held_out.figures(model), self.held_out.texts(model)
        if PartialState().is_main_process:
            with self.run.samples.open("a") as file:
                for text in texts:
                    file.write(json.dumps({"stage": self.plan.name, "step": step, **text}) + "\n")
            self.write(step=step, tokens=tokens, **{f"eval_{name}": value for name, value in figures.items()})
        self.last_time = time.monotonic()
        return figures

    def write(self, **figures: Any) -> None:
        """Add one line to the metrics."""
        with self.run.metrics.open("a") as file:
            file.write(json.dumps({"stage": self.plan.name, **figures}) + "\n")


class ResumableTrainer(Trainer):  # type: ignore[misc] # transformers is untyped
    """What every stage's Trainer does alike: rates by parameter, checkpoints that say when they are whole."""

    plan: StagePlan
    optimizer: torch.optim.Optimizer | None = None

    def _move_model_to_device(self, model: torch.nn.Module, device: torch.device) -> None:
        """Not with --fsdp: the whole of it need not fit there, and `shard` places it a layer at a time."""
        if not self.args.spread:
            super()._move_model_to_device(model, device)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW over time mixers and the rest, each with its rate; vectors do not decay."""
        optimizer: torch.optim.Optimizer | None = self.optimizer
        if optimizer is None:
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            groups = parameter_groups(self.model if model is None else model, self.plan, self.args.weight_decay)
            optimizer = self.optimizer = optimizer_class(groups, **options)
        assert optimizer is not None
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if is_sharded(self.model):
            state_dict = whole_weights(self.model)
        if self.args.should_save:
            super()._save(output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if is_sharded(self.model):
            load_weights(self.model, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """By parameter name, whole: the next process count, sharded or not, can go on from it."""
        state = whole_optimizer_state(self.model, self._own_optimizer())
        if self.args.should_save:
            torch.save(state, Path(output_dir) / "optimizer.pt")
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_optimizer_state(self.model, self._own_optimizer(), Path(checkpoint) / "optimizer.pt")
            self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True))

    def _own_optimizer(self) -> torch.optim.Optimizer:
        """Without accelerate's wrapper."""
        assert self.optimizer is not None, "the optimiser is made before a checkpoint is read or written"
        own: torch.optim.Optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return own

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # each process leaves its random state there
        if self.args.should_save:
            step = self.state.global_step
            checkpoint = Path(self.args.output_dir) / f"checkpoint-{step}"
            sync_files(checkpoint)
            write_json(checkpoint / WHOLE, {"step": step})


class StageTrainer(ResumableTrainer):
    """Stages 1 and 2: a Trainer over `collate`d samples of shards."""

    counted = "predicts"
    """The field of a batch that is true where a position counts in the loss."""

    def __init__(
        self,
        model: ArwkvForCausalLM,
        samples: ShardSamples,
        run: RunFolder,
        plan: StagePlan,
        settings: TrainSettings,
        bf16: bool,
        held_out: HeldOutShards | None = None,
    ) -> None:
        self.log_of_run = RunLog(run, plan, held_out, settings.eval_every)
        self.plan, self.settings, self.samples = plan, settings, samples
        super().__init__(
            model=model,
            args=training_arguments(run.stage(plan.name), plan, settings, bf16),
            train_dataset=samples,
            data_collator=collate_packed if settings.packing else collate,
            callbacks=[self.log_of_run, *reporters(run.path, plan.name, settings)],
        )
        self.remove_callback(PrinterCallback)
        self.loss_is_scaled_for_ga = True
        if settings.fsdp:
            shard(model, self.args.device)
            # Trainer's word for a model that looks after its own placement and gradients.
            self.is_distributed_loading_by_transformers = True

    def _get_train_sampler(self, train_dataset: Any = None) -> DrawSampler:
        args = self.args
        per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        rows = [dataset.shard_rows for dataset in self.samples.datasets]
        return DrawSampler(rows, self.plan.weights, args.max_steps, per_step, args.data_seed, self.plan.schedule)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """Positions that count in this step, over its batches and all processes."""
        counts = [batch[self.counted].sum() for batch in batch_samples]
        count = torch.stack(counts).sum().float().to(device) if counts else torch.zeros((), device=device)
        total: Tensor = self.accelerator.reduce(count, reduction="sum")
        return total

    def weighed(self, loss: Tensor, batch: dict[str, Tensor], total: Tensor | None) -> Tensor:
        """A mean over the batch's positions that counts for its share of the step's `total`.

        Batches add up, and processes are averaged: however a step's samples are split, the step's loss is the mean
        over all of their positions.
        """
        if total is None:
            return loss
        weighed: Tensor = loss * (batch[self.counted].sum() * self.args.world_size / total.clamp_min(1.0))
        return weighed

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        raise NotImplementedError("a stage says what its loss is")


def parameter_groups(model: torch.nn.Module, plan: StagePlan, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters that train, by learning rate and by whether they decay."""
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.dim() >= 2 and not name.endswith(STACKED_VECTORS)
            groups.setdefault((".time_mix." in name, decays), []).append(parameter)
    rest = plan.learning_rate if plan.rest_learning_rate is None else plan.rest_learning_rate
    return [
        {"params": some, "lr": plan.learning_rate if mixes else rest, "weight_decay": weight_decay * decays}
        for (mixes, decays), some in groups.items()
    ]


def tensorboard_writer(folder: Path) -> Any:
    """Event files in this folder."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


def reporters(run: Path, stage: str, settings: TrainSettings) -> list[TrainerCallback]:
    """Where figures go besides metrics.jsonl. Raises UsageError for a tracker whose package is missing."""
    return [_reporter(kind, run, stage) for kind in settings.report_to]


def _reporter(kind: str, run: Path, stage: str) -> TrainerCallback:
    if kind == "tensorboard":
        return TensorBoardCallback(tensorboard_writer(run / "tensorboard" / stage))
    if importlib.util.find_spec(kind) is None:
        raise UsageError(
            f"--report-to {kind}: the package {kind} is not installed; pip install {kind}, or leave it out"
        )
    reporter: TrainerCallback = get_reporting_integration_callbacks([kind])[0]()
    return reporter


def training_arguments(
    out: Path,
    plan: StagePlan,
    settings: TrainSettings,
    bf16: bool,
    kind: type[TrainingArguments] = TrainingArguments,
    **more: Any,
) -> TrainingArguments:
    """The settings in transformers' terms; `kind` and `more` where a stage's trainer has its own."""
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
