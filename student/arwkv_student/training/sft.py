"""Stage `sft`: TRL's SFTTrainer on the student; cross-entropy of the replies' tokens."""

from typing import Any

from trl import SFTConfig, SFTTrainer

from arwkv_student.training.tuned_trainer import TunedTrainer

# Rows hold `input_ids` and `labels`, so TRL neither tokenizes nor truncates, and the loss shifts the labels, once.
CONFIG = SFTConfig
OPTIONS: dict[str, Any] = {"max_length": None, "completion_only_loss": False}


class SftTrainer(TunedTrainer, SFTTrainer):  # type: ignore[misc] # TRL is untyped
    """TRL's trainer in the store's order, with this project's checkpoints."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """TRL's loss; the bounds of packed conversations get the student's name for them."""
        if "cu_seq_lens_q" in inputs:
            packed = {name: inputs[name] for name in ("input_ids", "labels", "position_ids")}
            inputs = packed | {"cu_seqlens": inputs["cu_seq_lens_q"]}
        return super().compute_loss(model, inputs, *arguments, **options)
