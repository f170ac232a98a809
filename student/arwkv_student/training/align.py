"""Stage 1: each time mixer learns the outputs of the attention it replaces, from stored hidden states alone."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from arwkv_student.bases.attention import BaseAttention
from arwkv_student.losses.objectives import align_loss_L, error_and_size_2L
from arwkv_student.model.modeling import ArwkvForCausalLM
from arwkv_student.training.stage_trainer import StageTrainer

LEAST_FALL = 0.01
"""A loss that has fallen by less than this share counts as constant."""


class AlignTrainer(StageTrainer):
    """L = mean over layers and tokens of ‖a_l − TimeMix_l(LN1_l(h_l))‖₂ / √C (arXiv 2501.15570), or another loss by the
    settings.

    The residual stream h_l is the teacher's: h_{l+1} = h_l + a_l + MLP_l(LN2_l(h_l + a_l)), rebuilt by the student's
    own frozen embedding, norms and MLPs. No attention weights are needed.
    """

    counted = "attention_mask"
    base_attention: BaseAttention | None = None
    """Recomputes, a layer at a time, what shards of `boundaries` do not hold."""
    error_and_size_2L: Tensor | None = None

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over layers, of a batch made by `collate`."""
        settings, mask = self.settings, inputs["attention_mask"]
        mixed, teacher = align_outputs(model, inputs, self.base_attention)
        losses = align_loss_L(mixed, teacher, mask, settings.align_loss, layer_scaled=settings.align_layer_scaled)
        if self.state.global_step % self.args.logging_steps == self.args.logging_steps - 1:
            with torch.no_grad():
                self.error_and_size_2L = error_and_size_2L(mixed, teacher, mask)
        loss = self.weighed(losses.mean(), inputs, num_items_in_batch)
        return (loss, mixed) if return_outputs else loss

    def _run_epoch(self, *arguments: Any, **named: Any) -> None:
        """No further step if the checkpoint's log shows that the stage has ended."""
        if not self.control.should_training_stop:
            super()._run_epoch(*arguments, **named)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add each layer's relative error in the latest batch: ‖a_l − TimeMix_l‖ / ‖a_l‖, 1 for a zero-output mixer."""
        if self.error_and_size_2L is not None and "loss" in logs:
            # In every process, because all must stop at the same step.
            error_L, size_L = self.accelerator.reduce(self.error_and_size_2L, reduction="sum")
            layers, relative_L = self.model.config.time_mix_layers, (error_L / size_L.clamp_min(1e-24)).sqrt()
            errors = zip(layers, relative_L.tolist(), strict=True)
            logs |= {f"relative_error_{layer}": round(error, 4) for layer, error in errors}
            self.error_and_size_2L = None
        super().log(logs, start_time)


class EarlyStop(TrainerCallback):  # type: ignore[misc] # transformers is untyped
    """Ends the stage by its log, so that a continued run ends at the same step."""

    def __init__(self, most_error: float | None, plateau_steps: int | None) -> None:
        self.most_error, self.plateau_steps = most_error, plateau_steps

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A run may have died between the checkpoint of its last step and the stage's end."""
        if state.log_history:
            self.on_log(args, state, control)

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if reached(state.log_history, self.most_error) or stands_still(state.log_history, self.plateau_steps):
            control.should_training_stop = True


def reached(history: Sequence[dict[str, float]], most_error: float | None) -> bool:
    """Whether the newest entry's relative errors are all at most this."""
    errors = [value for name, value in history[-1].items() if name.startswith("relative_error_")]
    return most_error is not None and bool(errors) and max(errors) <= most_error


def stands_still(history: Sequence[dict[str, float]], steps: int | None) -> bool:
    """Whether the loss has not fallen by `LEAST_FALL` in this many steps."""
    best, best_step, step = float("inf"), 0.0, 0.0
    for entry in history:
        if "loss" not in entry:
            continue
        step = entry["step"]
        if entry["loss"] < best * (1 - LEAST_FALL):
            best, best_step = entry["loss"], step
    return steps is not None and step - best_step >= steps


def align_outputs(
    model: Any, batch: dict[str, Tensor], base_attention: BaseAttention | None = None
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """The output of each time mixer on the teacher's residual stream, and of the teacher's attention, layer by layer.

    From `attention` outputs of the layers up to the last that mixes time; or from `boundaries` of the layers that do
    (or of all), whose attention outputs `base_attention` recomputes.
    """
    inner: ArwkvForCausalLM = model.module if hasattr(model, "module") else model
    layers = inner.config.time_mix_layers
    common = {"input_ids": batch["input_ids"], "cu_seqlens": batch.get("cu_seqlens")}
    if base_attention is None:
        mixed = model(**common, teacher_attention=batch["attention"]).time_mix_outputs
        return mixed, [batch["attention"][layer] for layer in layers]
    stored = batch["boundaries"].float()
    of_layer = dict(zip(layers, stored, strict=True)) if len(stored) == len(layers) else dict(enumerate(stored))
    # A layer that keeps its attention is not used, so any stream may take its place.
    streams = [of_layer.get(layer, stored[0]) for layer in range(inner.config.num_hidden_layers)]
    mixed = model(**common, teacher_streams=streams).time_mix_outputs
    return mixed, [base_attention(layer, of_layer[layer], batch.get("cu_seqlens")) for layer in layers]
