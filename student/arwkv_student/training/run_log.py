"""Reports of a running training: RUN/metrics.jsonl, a bar, held-out evaluations, TensorBoard, other trackers."""

import contextlib
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel, TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from arwkv_store.commands.progress import Progress
from arwkv_store.errors import UsageError
from arwkv_student.evaluation.held_out import HeldOutShards
from arwkv_student.run.run_folder import RunFolder
from arwkv_student.settings import TrainSettings
from arwkv_student.training.plan import StagePlan

# Further figures for the metrics: stage 1's errors, and TRL's figures of SFT and DPO.
LOGGED = ("relative_error", "mean_token_accuracy", "rewards/", "logps/")


class RunLog(TrainerCallback):  # type: ignore[misc] # transformers is untyped
    """Figures to RUN/metrics.jsonl, the bar, and held-out evaluations."""

    evaluated: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    """What holds while held-out shards are evaluated: the trainer's average weights, with --ema."""

    def __init__(self, run: RunFolder, plan: StagePlan, held_out: HeldOutShards | None, eval_every: int | None) -> None:
        self.run, self.plan, self.held_out, self.eval_every = run, plan, held_out, eval_every
        self.progress: Progress | None = None
        self.last_loss, self.last_tokens, self.last_time = "", 0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.last_tokens, self.last_time = state.num_input_tokens_seen, time.monotonic()
        self.bar_tokens = state.num_input_tokens_seen
        if state.is_world_process_zero:
            self.progress = Progress(self.plan.name, self.plan.tokens, done_tokens=self.bar_tokens)
            self.run.say(stage=self.plan.name, done=state.global_step, total=state.max_steps, tokens=self.bar_tokens)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if self.progress is not None:
            self.progress.advance(state.num_input_tokens_seen - self.bar_tokens, note=self.last_loss)
            self.bar_tokens = state.num_input_tokens_seen
            speed = self.progress.tokens_per_s
            left_s = max(self.plan.tokens - self.bar_tokens, 0) / speed if speed else None
            self.run.say(done=state.global_step, tokens=self.bar_tokens, tokens_per_s=speed or None, left_s=left_s)
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

    def write_evaluation(self, model: PreTrainedModel, step: int, tokens: int) -> dict[str, float]:
        """Evaluate on held-out shards, in every process, since a sharded model needs all; process 0 writes."""
        assert self.held_out is not None
        with self.evaluated():
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
        self.run.write_metrics(self.plan.name, **figures)


class _EventFiles(TensorBoardCallback):  # type: ignore[misc] # transformers is untyped
    """TensorBoard's event files, written by the main process; a continued run replaces the steps that it repeats."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder, self._step = folder, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self._step = state.global_step
        super().on_train_begin(args, state, control, **more)

    def _init_summary_writer(self, args: Any) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.tb_writer = SummaryWriter(str(self._folder), purge_step=self._step + 1)


def reporters(run: Path, stage: str, settings: TrainSettings) -> list[TrainerCallback]:
    """Further places for figures, besides metrics.jsonl. Raises UsageError for a tracker whose package is missing."""
    return [_reporter(kind, run, stage) for kind in settings.report_to]


def _reporter(kind: str, run: Path, stage: str) -> TrainerCallback:
    if kind == "tensorboard":
        return _EventFiles(run / "tensorboard" / stage)
    if importlib.util.find_spec(kind) is None:
        raise UsageError(
            f"--report-to {kind}: the package {kind} is not installed; pip install {kind}, or leave it out"
        )
    reporter: TrainerCallback = get_reporting_integration_callbacks([kind])[0]()
    return reporter
