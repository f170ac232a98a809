"""Stage 2: the student's next-token distribution learns the teacher's, from stored sparse logits."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from arwkv_store import DatasetInfo
from arwkv_store.errors import UsageError
from arwkv_student.bases.checkpoint import BaseCheckpoint, open_base
from arwkv_student.data.segments import segments
from arwkv_student.losses.objectives import Objective, distill_loss
from arwkv_student.model.cache import ArwkvCache
from arwkv_student.model.modeling import ArwkvForCausalLM
from arwkv_student.settings import TrainSettings
from arwkv_student.training.stage_trainer import StageTrainer


class DistillTrainer(StageTrainer):
    """KL(teacher ‖ student) over the stored tokens and the tail, or another objective by the settings."""

    objective: Objective

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over the positions that count, of a batch made by `collate`."""
        if self.settings.segment is not None and model.training:
            return self._loss_by_segments(model, inputs, num_items_in_batch, self.settings.segment)
        outputs = model(
            input_ids=inputs["input_ids"],
            cu_seqlens=inputs.get("cu_seqlens"),
            head_loss=distill_loss(inputs, self.objective),
        )
        loss = self.weighed(outputs.loss, inputs, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _loss_by_segments(self, model: Any, inputs: dict[str, Tensor], total: Any, tokens: int) -> Tensor:
        """The same mean. The state passes from segment to segment, gradients do not.

        Each segment's are added before the next one is read, so that memory holds the activations of one.
        """
        inner: ArwkvForCausalLM = self.accelerator.unwrap_model(model)
        cache, before, positions = ArwkvCache(inner.config), torch.zeros((), device=self.args.device), total
        if positions is None:
            positions = inputs[self.counted].sum().float()
        *earlier, last = segments(inputs, tokens)
        for segment in earlier:
            with self.accelerator.no_sync(model):
                loss = self._segment_loss(model, segment, cache, positions)
                self.accelerator.backward(loss)
            before = before + loss.detach()
            cache.detach()
        return before + self._segment_loss(model, last, cache, positions)

    def _segment_loss(self, model: Any, segment: dict[str, Tensor], cache: ArwkvCache, positions: Tensor) -> Tensor:
        output = model(
            input_ids=segment["input_ids"],
            past_key_values=cache,
            use_cache=True,
            head_loss=distill_loss(segment, self.objective),
        )
        return self.weighed(output.loss, segment, positions)


def distill_objective(
    settings: TrainSettings, infos: Sequence[DatasetInfo], base: BaseCheckpoint, device: torch.device, bf16: bool
) -> Objective:
    """The settings' objective for these shards: the exact KL from final hidden states if there are no logits.

    Raises UsageError for an objective that the shards do not allow.
    """
    head = None
    for info in infos:
        _require_unbiased(settings, info)
    if infos[0].capture.logits == "none":
        head = _teacher_head(settings, infos, base).to(device, torch.bfloat16 if bf16 else torch.float32)
    return Objective(
        vocab_size=infos[0].tokenizer.vocab_size,
        divergence=settings.divergence,
        skew=settings.skew,
        token_weight=settings.token_weight,
        temperature=settings.temperature,
        ce_weight=settings.ce_weight,
        teacher_head_VC=head,
        compute_dtype=torch.bfloat16 if bf16 else None,
    )


def _require_unbiased(settings: TrainSettings, info: DatasetInfo) -> None:
    """With draws, only a loss that is linear in the teacher's probabilities is unbiased; no weight depends on them."""
    drawn = info.capture.logits in ("sampled", "hybrid")
    if drawn and (settings.divergence != "forward" or settings.temperature != 1.0):
        raise UsageError(
            f"--divergence {settings.divergence} --temperature {settings.temperature} on {info.capture.logits} logits "
            "would be biased; drawn logits need forward at 1.0 (any --token-weight), all other captures go with all"
        )


def _teacher_head(settings: TrainSettings, infos: Sequence[DatasetInfo], base: BaseCheckpoint) -> Tensor:
    """The frozen head that turns final hidden states into logits: the base's, or --teacher-head's."""
    source = base if settings.teacher_head is None else open_base(settings.teacher_head)
    tied = source.config.get("tie_word_embeddings", False)
    ((_, head_VC),) = source.tensors(["model.embed_tokens.weight" if tied else "lm_head.weight"])
    if len({(t.model, t.revision, t.weights_hash) for t in (info.teacher for info in infos)}) > 1:
        raise UsageError(
            "the final hidden states are from several teachers, but there is one --teacher-head; "
            "give shards of one teacher"
        )
    checked: Tensor = head_VC
    return checked
