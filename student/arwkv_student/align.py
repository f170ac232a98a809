"""Stage 1: each time mixer learns to say what the attention it replaces said, from stored attention outputs alone."""

from typing import Any

import torch
from torch import Tensor

from arwkv_student.base_attention import BaseAttention
from arwkv_student.losses import align_loss_L, relative_error_L
from arwkv_student.model import ArwkvForCausalLM
from arwkv_student.stage_trainer import StageTrainer


def train_only_time_mixers(model: ArwkvForCausalLM) -> None:
    """Freeze everything else."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".time_mix." in name)


class AlignTrainer(StageTrainer):
    """L = mean over layers and tokens of ‖a_l − TimeMix_l(LN1_l(h_l))‖₂ / √C (arXiv 2501.15570).

    The stream h_l is the teacher's: h_{l+1} = h_l + a_l + MLP_l(LN2_l(h_l + a_l)), rebuilt by the student's own frozen
    embedding, norms and MLPs. No attention weights are needed.
    """

    relative_error: Tensor | None = None
    base_attention: BaseAttention | None = None
    """Recomputes, a layer at a time, what shards of `boundaries` do not hold."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over layers, of a batch made by `collate`."""
        mixed, teacher = align_outputs(model, inputs, self.base_attention)
        loss = align_loss_L(mixed, teacher, inputs["attention_mask"]).mean()
        if self.state.global_step % self.args.logging_steps == self.args.logging_steps - 1:
            with torch.no_grad():
                self.relative_error = relative_error_L(mixed, teacher, inputs["attention_mask"])
        loss = self.weighed(loss, inputs["attention_mask"].sum())
        return (loss, mixed) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the latest batch's relative error per layer."""
        if self.relative_error is not None and "loss" in logs:
            layers = self.model.config.time_mix_layers
            errors = zip(layers, self.relative_error.tolist(), strict=True)
            logs |= {f"relative_error_{layer}": round(error, 4) for layer, error in errors}
        super().log(logs, start_time)


def align_outputs(
    model: Any, batch: dict[str, Tensor], base_attention: BaseAttention | None = None
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """What each time mixer makes of the teacher's stream, and what its attention made of it, layer by layer.

    From `attention` outputs in the batch; or from `boundaries`, whose attention outputs `base_attention` recomputes.
    """
    inner: ArwkvForCausalLM = model.module if hasattr(model, "module") else model
    layers = inner.config.time_mix_layers
    if base_attention is None:
        mixed = model(input_ids=batch["input_ids"], teacher_attention=batch["attention"]).time_mix_outputs
        return mixed, [batch["attention"][layer] for layer in layers]
    streams = batch["boundaries"].float()
    mixed = model(input_ids=batch["input_ids"], teacher_streams=streams).time_mix_outputs
    with torch.no_grad():
        norms = [inner.model.layers[layer].input_layernorm for layer in layers]
        teacher = [base_attention(layer, norm(streams[layer])) for layer, norm in zip(layers, norms, strict=True)]
    return mixed, teacher
