"""Stage 1: each time mixer learns the outputs of the attention it replaces: stored, or the base's own from tokens."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


LayerLoss = Callable[[int, Tensor, Tensor], Tensor]
"""(layer, output of its time mixer [B, T, C], of the teacher's attention [B, T, C]) -> its loss."""


@dataclass(frozen=True)
class BatchTargets:
    """The `AttentionTargets` of a batch made by `collate`, from what its shards hold.

    From attention outputs of the layers up to the last that mixes time, which rebuild the residual stream. From
    boundaries, the streams themselves, of the layers that mix time or of all: `base_attention` computes the outputs.
    From tokens alone, it computes them on the stream that they rebuild.
    """

    batch: Mapping[str, Tensor]
    layers: Sequence[int]
    """Those that mix time."""
    base_attention: BaseAttention | None
    layer_loss: LayerLoss

    @property
    def rebuilds(self) -> bool:
        return "boundaries" not in self.batch

    def stream(self, layer: int, rebuilt_BTC: Tensor) -> Tensor:
        if self.rebuilds:
            return rebuilt_BTC
        stored = self.batch["boundaries"]
        return stored[self.layers.index(layer) if len(stored) == len(self.layers) else layer].to(rebuilt_BTC.dtype)

    def attention(self, layer: int, stream_BTC: Tensor) -> Tensor | None:
        if self.base_attention is None:
            return self.batch["attention"][layer]
        if layer not in self.layers:
            return None
        attention_BTC: Tensor = self.base_attention(layer, stream_BTC, self.batch.get("cu_seqlens"))
        return attention_BTC

    def loss(self, layer: int, mixed_BTC: Tensor, attention_BTC: Tensor) -> Tensor:
        return self.layer_loss(layer, mixed_BTC, attention_BTC)


class AlignTrainer(StageTrainer):
    """L = mean over layers and tokens of ‖a_l − TimeMix_l(LN1_l(h_l))‖₂ / √C (arXiv 2501.15570), or another loss by the
    settings.

    The residual stream h_l is the teacher's: h_{l+1} = h_l + a_l + MLP_l(LN2_l(h_l + a_l)), rebuilt by the student's
    own frozen embedding, norms and MLPs. Where a_l is not stored, it is the base's own attention on h_l.
    """

    counted = "attention_mask"
    base_attention: BaseAttention | None = None
    """Computes, a layer at a time, the attention outputs that the shards do not hold."""
    error_and_size_2L: Tensor | None = None

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over layers, of a batch made by `collate`."""
        settings, mask = self.settings, inputs["attention_mask"]
        logs = self.state.global_step % self.args.logging_steps == self.args.logging_steps - 1
        measured: list[Tensor] = []

        def layer_loss(_layer: int, mixed: Tensor, attention: Tensor) -> Tensor:
            if logs:
                with torch.no_grad():
                    measured.append(error_and_size_2L([mixed], [attention], mask))
            scaled = settings.align_layer_scaled
            return align_loss_L([mixed], [attention], mask, settings.align_loss, layer_scaled=scaled)[0]

        losses_L = align_losses(model, inputs, self.base_attention, layer_loss)
        if logs:
            self.error_and_size_2L = torch.cat(measured, dim=1)
        loss = self.weighed(losses_L.mean(), inputs, num_items_in_batch)
        return (loss, losses_L) if return_outputs else loss

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


def align_losses(
    model: Any, batch: Mapping[str, Tensor], base_attention: BaseAttention | None, layer_loss: LayerLoss
) -> Tensor:
    """`layer_loss` of every layer that mixes time, [L], in their order, and each one's gradient with it."""
    inner: ArwkvForCausalLM = model.module if hasattr(model, "module") else model
    targets = BatchTargets(batch, inner.config.time_mix_layers, base_attention, layer_loss)
    losses_L: Tensor = model(input_ids=batch["input_ids"], cu_seqlens=batch.get("cu_seqlens"), targets=targets).losses_L
    return losses_L


def align_outputs(
    model: Any, batch: Mapping[str, Tensor], base_attention: BaseAttention | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """The output of each time mixer on the teacher's residual stream, and of the teacher's attention; all at once."""
    mixed, attention = [], []

    def keep(_layer: int, mixed_BTC: Tensor, attention_BTC: Tensor) -> Tensor:
        mixed.append(mixed_BTC)
        attention.append(attention_BTC)
        return mixed_BTC.new_zeros(())

    align_losses(model, batch, base_attention, keep)
    return mixed, attention
