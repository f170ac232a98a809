"""Stage `dpo`: TRL's DPOTrainer on the student, whose reference is the student that the stage starts from.

The reference's log-probabilities are computed once and stored in a file whose name depends on everything that affects
them, so another run from the same student on the same pairs (other rates, another beta) reads them.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from trl import DPOConfig, DPOTrainer
from trl.trainer import dpo_trainer

from arwkv_store.errors import CorruptShard, UsageError
from arwkv_student.run.durable import put_in_place
from arwkv_student.sharding.fsdp import is_sharded
from arwkv_student.sharding.start import share_out
from arwkv_student.training.tuned_trainer import TunedTrainer

CONFIG = DPOConfig
COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")
REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")


@dataclass(frozen=True)
class ReferenceKey:
    """Everything that affects a reference log-probability. If one field differs, they are computed again."""

    checkpoint: str
    """Hash of the starting student's weights and configuration."""
    template: str
    """Hash of the chat template."""
    truncation: str
    """How a pair that is too long is truncated."""
    precision: str
    """Of the matrix products."""
    tokens: str = ""
    """Hash of the pairs' token ids."""
    mask: str = ""
    """Hash of where each prompt ends: the tokens after it are those that count."""

    def of(self, pairs: Dataset) -> "ReferenceKey":
        """The key of these pairs."""
        tokens, mask = hashlib.sha256(), hashlib.sha256()
        for pair in pairs:
            lengths = [len(pair[name]) for name in COLUMNS]
            tokens.update(json.dumps([pair["prompt_ids"] + pair[name] for name in COLUMNS[1:]]).encode())
            mask.update(json.dumps(lengths).encode())
        return dataclasses.replace(self, tokens=tokens.hexdigest(), mask=mask.hexdigest())

    @property
    def file_name(self) -> str:
        """A name that no other key has."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self)).encode()).hexdigest()[:32] + ".safetensors"


@dataclass(frozen=True)
class ReferenceFolder:
    """The folder of reference log-probabilities, and the part of their key that does not depend on the pairs."""

    path: Path
    key: ReferenceKey

    def read(self, pairs: Dataset) -> tuple[Tensor, Tensor] | None:
        """Log-probabilities [N] of the chosen and the rejected replies, fp32, or None if they are not there yet.

        Raises CorruptShard for a file that cannot be read.
        """
        file = self.path / self.key.of(pairs).file_name
        if not file.is_file():
            return None
        try:
            with safe_open(file, framework="pt") as opened:
                chosen, rejected = (opened.get_tensor(name) for name in REFERENCE)
        except (SafetensorError, OSError) as error:
            raise CorruptShard(f"{file}: {error}; remove it and run the same command again") from error
        if len(chosen) != len(pairs) or len(rejected) != len(pairs):
            raise CorruptShard(f"{file}: {len(chosen)} entries for {len(pairs)} pairs; remove it")
        return chosen, rejected

    def write(self, pairs: Dataset, chosen_N: Tensor, rejected_N: Tensor) -> None:
        """Store them. Raises UsageError if the folder cannot be written."""
        key = self.key.of(pairs)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = self.path / key.file_name
            fresh = file.with_suffix(".new")
            save_file(dict(zip(REFERENCE, (chosen_N, rejected_N), strict=True)), fresh, dataclasses.asdict(key))
            put_in_place(fresh, file)
        except (SafetensorError, OSError) as error:
            raise UsageError(f"{self.path}: {error}; name a folder with --reference") from error


class PreferenceTrainer(TunedTrainer, DPOTrainer):  # type: ignore[misc] # TRL is untyped
    """TRL's trainer over tokenized pairs, with stored reference log-probabilities."""

    def __init__(self, references: ReferenceFolder, **options: Any) -> None:
        self.references = references
        # TRL hashes every weight for a cache whose place `references` takes; with --fsdp only process 0 has weights.
        hash_module, dpo_trainer.hash_module = dpo_trainer.hash_module, lambda _: ""
        try:
            super().__init__(**options)
        finally:
            dpo_trainer.hash_module = hash_module

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        values = self.references.read(dataset)
        if values is None:
            values = self._reference_logps(dataset, batch_size)
            if self.accelerator.is_main_process:
                self.references.write(dataset, *values)
        for column, values_N in zip(REFERENCE, values, strict=True):
            dataset = dataset.add_column(column, values_N.numpy())
        return dataset

    def _reference_logps(self, dataset: Dataset, batch_size: int) -> tuple[Tensor, Tensor]:
        """The starting student's log-probabilities of all replies; every process computes its share."""
        by_length = sorted(range(len(dataset)), key=lambda row: -sum(len(dataset[row][name]) for name in COLUMNS))
        batches = [by_length[at : at + batch_size] for at in range(0, len(by_length), batch_size)]
        if self.args.spread:
            share_out(self.model, self.args.device)  # until then, process 0 alone has weights
        model, own = self.ref_model or self.model, []
        for first in range(0, len(batches), self.accelerator.num_processes):
            # As many batches in each process, which together gather a sharded student's layers.
            rows = batches[min(first + self.accelerator.process_index, len(batches) - 1)]
            batch = self._prepare_inputs(self.data_collator([dataset[row] for row in rows]))
            chosen_B, rejected_B = self.compute_ref_log_probs(model, batch)
            own += list(zip(rows, chosen_B.tolist(), rejected_B.tolist(), strict=True))
        if is_sharded(self.model):
            self.model.reshard()  # without a backward pass the root stays gathered, and the optimizer is to have shares
        chosen_N, rejected_N = torch.empty(len(dataset)), torch.empty(len(dataset))
        for row, chosen, rejected in gather_object(own):
            chosen_N[row], rejected_N[row] = chosen, rejected
        return chosen_N, rejected_N
