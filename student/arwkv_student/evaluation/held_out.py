"""Held-out shards during training: figures for RUN/metrics.jsonl, and texts for RUN/samples.jsonl."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from arwkv_store import Dataset, Sample
from arwkv_student.data.mixture import truncated
from arwkv_student.evaluation.fidelity import evaluate

TEXTS, TEXT_TOKENS = 3, 96


@dataclass(frozen=True)
class HeldOutShards:
    """A held-out dataset with logits, and the settings of its evaluation."""

    dataset: Dataset
    tokenizer_folder: Path
    batch_size: int
    bf16: bool

    def figures(self, model: PreTrainedModel) -> dict[str, float]:
        """See `evaluate`."""
        return evaluate(model, self.dataset, batch_size=self.batch_size, bf16=self.bf16)

    @torch.no_grad()
    def texts(self, model: PreTrainedModel) -> list[dict[str, str]]:
        """Outputs of teacher and student for the first samples: `prompt`, half of the text, then `teacher` and
        `student`.

        Each is the model's likeliest token at each position of the other half, given the stored text before it. So the
        teacher need not run, and both models always have the same text before them.
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
