"""Held-out shards during training: figures for RUN/metrics.jsonl, and texts to read in RUN/samples.jsonl."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from arwkv_store import Dataset, Sample
from arwkv_student.data.mixture import truncated
from arwkv_student.evaluation.shards import evaluate

TEXTS, TEXT_TOKENS = 3, 96


@dataclass(frozen=True)
class HeldOutShards:
    """A held-out dataset with logits, and how a student is put to it."""

    dataset: Dataset
    tokenizer_folder: Path
    batch_size: int
    bf16: bool

    def figures(self, model: PreTrainedModel) -> dict[str, float]:
        """See `evaluate`."""
        return evaluate(model, self.dataset, batch_size=self.batch_size, bf16=self.bf16)

    @torch.no_grad()
    def texts(self, model: PreTrainedModel) -> list[dict[str, str]]:
        """What teacher and student say to the first samples: `prompt`, half of the text, then `teacher` and `student`.

        Each says its likeliest token at each place of the other half, given the stored text up to there. So nothing
        need run the teacher, and the two do not drift apart.
        """
        tokenizer = AutoTokenizer.from_pretrained(self.tokenizer_folder)
        was_training = model.training
        model.eval()
        samples = [truncated(self.dataset[row], TEXT_TOKENS) for row in range(min(TEXTS, len(self.dataset)))]
        found = [self._text(model, tokenizer, sample) for sample in samples]
        model.train(was_training)
        return found

    def _text(self, model: PreTrainedModel, tokenizer: Any, sample: Sample) -> dict[str, str]:
        assert sample.logits is not None, "`figures` refuses shards without logits"
        begins = (len(sample.tokens) + 1) // 2
        places = slice(begins - 1, len(sample.tokens) - 1)
        counts = sample.logits.counts
        first_T = (counts.cumsum() - counts)[places][counts[places] > 0]
        ids_1T = torch.from_numpy(sample.tokens).long()[None].to(model.device)
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            logits_TV = model(input_ids=ids_1T, use_cache=False).logits[0, places]
        said = logits_TV[:, : self.dataset.info.tokenizer.vocab_size].argmax(-1)
        return {
            "prompt": tokenizer.decode(sample.tokens[:begins]),
            "teacher": tokenizer.decode(sample.logits.ids[first_T]),
            "student": tokenizer.decode(said.tolist()),
        }
