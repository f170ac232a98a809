"""Stage 2: the student's next-token distribution learns the teacher's, from stored sparse logits."""

from typing import Any

import torch
from torch import Tensor

from arwkv_student.config import active_mlp
from arwkv_student.losses import distill_loss
from arwkv_student.model import ArwkvForCausalLM
from arwkv_student.stage_trainer import StageTrainer


def choose_trained(model: ArwkvForCausalLM, trained: str) -> None:
    """Freeze what stage 2 leaves alone: nothing ("all"), the MLPs ("frozen-mlp"), or all but the time mixers."""
    if trained == "preset":
        trained = "all" if active_mlp(model.config.preset) else "frozen-mlp"
    for name, parameter in model.named_parameters():
        trains = {"all": True, "frozen-mlp": ".mlp." not in name, "time-mix": ".time_mix." in name}[trained]
        parameter.requires_grad_(trains)


class DistillTrainer(StageTrainer):
    """KL(teacher ‖ student) over the stored tokens and one bucket for the rest of the vocabulary."""

    vocab_size: int
    temperature: float = 1.0

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over the positions that count, of a batch made by `collate`."""
        loss_of_head = distill_loss(
            inputs,
            self.vocab_size,
            temperature=self.temperature,
            compute_dtype=torch.bfloat16 if self.bf16 else None,
        )
        outputs = model(input_ids=inputs["input_ids"], head_loss=loss_of_head)
        return (outputs.loss, outputs) if return_outputs else outputs.loss
