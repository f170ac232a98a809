"""Stage `sft`: TRL's SFTTrainer on the student; cross-entropy of the replies' tokens."""

from collections.abc import Sequence

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from arwkv_student.conversations import Example
from arwkv_student.tuned_trainer import TunedTrainer

# Rows hold `input_ids` and `labels`, so TRL neither tokenises nor cuts, and the loss shifts the labels, once.
CONFIG = SFTConfig
OPTIONS = {"max_length": None, "completion_only_loss": False}


def as_rows(examples: Sequence[Example]) -> Dataset:
    """Examples as TRL takes them once they are tokens: columns `input_ids` and `labels`."""
    columns = {name: [getattr(example, name) for example in examples] for name in ("input_ids", "labels")}
    return Dataset.from_dict(columns)


class SftTrainer(TunedTrainer, SFTTrainer):  # type: ignore[misc] # TRL is untyped
    """TRL's trainer in the store's order, with this project's checkpoints."""
