"""Common to stages sft and dpo, on top of TRL's trainers: the project's order and checkpoints, no telemetry."""

from pathlib import Path
from typing import Any

from torch.utils.data import Sampler
from transformers import TrainerCallback

from arwkv_student.data.collate import OrderSampler
from arwkv_student.training.lora import ADAPTER, save_merged
from arwkv_student.training.resumable_trainer import ResumableTrainer
from arwkv_student.training.run_log import RunLog

FIGURES = ("eval_loss", "eval_mean_token_accuracy", "eval_rewards/")


class HeldOut(TrainerCallback):  # type: ignore[misc] # transformers is untyped
    """Writes held-out figures to RUN/metrics.jsonl, always at the last step; keeps the last ones."""

    def __init__(self, log: RunLog, evaluates: bool) -> None:
        self.log, self.evaluates, self.step = log, evaluates, 0
        self.figures: dict[str, float] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.evaluates and state.global_step == state.max_steps:
            control.should_evaluate = True

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **_: Any
    ) -> None:
        self.step = state.global_step
        self.figures = {name: value for name, value in (metrics or {}).items() if name.startswith(FIGURES)}
        if state.is_world_process_zero:
            self.log.write(step=self.step, tokens=state.num_input_tokens_seen, **self.figures)


class TunedTrainer(ResumableTrainer):
    """A base before a TRL trainer: rows in the store's order, no model card, no telemetry."""

    held_out: HeldOut
    start: Path
    """Folder of the student that the stage starts from."""

    def findings(self) -> dict[str, Any]:
        """The number of rows, and the figures on held-out rows, if there are any."""
        found: dict[str, Any] = {"samples": len(self.train_dataset)}
        if self.held_out.evaluates:
            if self.held_out.step != self.plan.steps:
                self.evaluate()
            found["held_out"] = self.held_out.figures
        return found

    def save_student(self, folder: Path) -> None:
        """Of a student with adapters, these alone, and the starting student with them added to its weights."""
        adapted = hasattr(self.model, "peft_config")
        if adapted:
            self.model.peft_config["default"].task_type = "CAUSAL_LM"
        super().save_student(folder / ADAPTER if adapted else folder)
        if adapted and self.args.should_save:
            save_merged(self.start, folder)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        args, rows = self.args, [len(self.train_dataset)]
        per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        order = OrderSampler(rows, args.max_steps * per_step, args.data_seed)
        packs = getattr(args, "padding_free", False)
        return self.dealt(order, lambda row: len(self.train_dataset[row]["input_ids"])) if packs else order

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """`student export` writes the card."""

    def _send_telemetry(self) -> None:
        pass
