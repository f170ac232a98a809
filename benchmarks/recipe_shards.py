"""The datasets of `benchmarks/recipe.py`: one pass of a teacher over the text, kept in every way that is compared.

The captures that are compared at equal bytes take the largest parameter whose logits cost no more than `exact` does:
the final hidden states, from which the teacher's own head makes every logit again.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from arwkv_store import CaptureInfo, DatasetInfo, Sample, create_dataset, open_dataset

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "student"))

from teacher_shards import dataset_info, documents, live_forward, stored_logits, tokenize

SAMPLES_PER_PART = 256
SAMPLES_TO_MEASURE = 16
TOP_P, TOP_K = 0.98, 64
CODECS = {"top-k": "compact", "adaptive": "compact"}


@dataclass(frozen=True)
class Kept:
    """One way to keep what the teacher says."""

    logits: str
    parameter: int = TOP_K
    """Entries of top-k and adaptive; draws of sampled and hybrid."""
    head: int = 8
    """Exact entries of hybrid."""
    hidden: str = "none"

    def stored(self, logprobs_TV: torch.Tensor, key: int) -> Any:
        """The sparse logits."""
        top_k = self.head if self.logits == "hybrid" else self.parameter
        return stored_logits(logprobs_TV, self.logits, key, top_k=top_k, draws=self.parameter, top_p=TOP_P)

    def capture_info(self, layers: int, context: int) -> CaptureInfo:
        """The same in the dataset's terms."""
        drawn = self.logits in ("sampled", "hybrid")
        top_k = {"hybrid": self.head, "sampled": None, "none": None}.get(self.logits, self.parameter)
        return CaptureInfo(
            logits=self.logits,
            top_k=top_k,
            top_p=TOP_P if self.logits == "adaptive" else None,
            samples=self.parameter if drawn else None,
            logits_codec=CODECS.get(self.logits, self.logits),
            hidden_states=self.hidden,
            layers=tuple(range(layers)) if self.hidden == "attention" else (),
            hidden_dtype="none" if self.hidden == "none" else "bf16",
            max_length=context,
        )


EXACT = Kept("none", hidden="final")


@dataclass(frozen=True)
class Text:
    """A teacher, and the samples it reads."""

    teacher: Path
    model: PreTrainedModel
    vocabulary: dict[str, int]
    chunks: Sequence[Sequence[int]]
    context: int

    @classmethod
    def of(cls, teacher: Path, corpus: Path, tokens: int, context: int) -> "Text":
        """Samples of exactly `context` tokens, the first `tokens` of them."""
        chunks = [chunk for chunk in tokenize(teacher, documents(corpus), context) if len(chunk) == context]
        model = AutoModelForCausalLM.from_pretrained(teacher).eval()
        vocabulary = AutoTokenizer.from_pretrained(teacher).get_vocab()
        order = np.random.default_rng(0).permutation(len(chunks))[: tokens // context]
        return cls(teacher, model, vocabulary, [chunks[at] for at in order], context)

    def info(self, kept: Kept) -> DatasetInfo:
        """The identity of a dataset of all samples."""
        capture = kept.capture_info(self.model.config.num_hidden_layers, self.context)
        return dataset_info(self.teacher, self.model, self.vocabulary, capture, self.chunks, SAMPLES_PER_PART)

    def samples(self, kept: Mapping[str, Kept], first: int, count: int) -> Iterator[dict[str, Sample]]:
        """Each sample in every way it is kept."""
        for sample_id in range(first, min(first + count, len(self.chunks))):
            yield self._sample(kept, sample_id)

    def _sample(self, kept: Mapping[str, Kept], sample_id: int) -> dict[str, Sample]:
        tokens_T = torch.tensor(self.chunks[sample_id])
        dense, attention, streams = live_forward(self.model, tokens_T[None])
        logprobs_TV = dense[0, :, : len(self.vocabulary)].float().log_softmax(-1)
        hidden = {
            "attention": {f"attn.{layer}": value[0] for layer, value in enumerate(attention)},
            "final": {"final": streams[-1][0]},
            "none": {},
        }
        entropy = -(logprobs_TV.exp() * logprobs_TV).sum(-1).numpy()
        true = logprobs_TV[:-1].gather(1, tokens_T[1:, None]).squeeze(1).numpy()
        return {
            name: Sample(
                sample_id=sample_id,
                tokens=tokens_T.int().numpy(),
                loss_mask=np.ones(len(tokens_T), bool),
                logits=way.stored(logprobs_TV, sample_id),
                entropy=None if way.logits == "none" else entropy,
                true_logprob=None if way.logits == "none" else true,
                hidden={key: x.float().numpy().astype(ml_dtypes.bfloat16) for key, x in hidden[way.hidden].items()},
            )
            for name, way in kept.items()
        }


def make_datasets(text: Text, kept: Mapping[str, Kept], out: Path) -> None:
    """Write `out/NAME` for each way; parts that are there stay."""
    writers = {name: create_dataset(out / name, text.info(way)) for name, way in kept.items()}
    for part in sorted({part for writer in writers.values() for part in writer.missing_parts()}):
        rows = list(text.samples(kept, part * SAMPLES_PER_PART, SAMPLES_PER_PART))
        for name, writer in writers.items():
            writer.write_shard(part, [row[name] for row in rows])
        print(f"{out}: part {part + 1} of {writer.info.corpus.parts}", file=sys.stderr)


def bytes_per_token(dataset: Path) -> float:
    """Stored bytes of the logits (or of the final hidden states, where they stand for them) per token."""
    stats = open_dataset(dataset, columns=[]).stats()
    sizes = stats.bytes_by_column
    return (sizes.get("logits") or sizes["hidden.final"]) / stats.tokens


def equal_bytes(text: Text) -> dict[str, Kept]:
    """Each capture of logits with the largest parameter that costs no more bytes than the final hidden states."""
    with tempfile.TemporaryDirectory() as folder:

        def size(way: Kept) -> float:
            out = Path(folder) / f"{way.logits}-{way.parameter}"
            rows = list(text.samples({"it": way}, 0, SAMPLES_TO_MEASURE))
            create_dataset(out, text.info(way)).write_shard(0, [row["it"] for row in rows])
            return bytes_per_token(out)

        budget = size(EXACT)
        return {
            logits: Kept(logits, _largest(range(5, 801, 5), logits, size, budget))
            for logits in ("top-k", "adaptive", "sampled", "hybrid")
        }


def _largest(parameters: Sequence[int], logits: str, size: Callable[[Kept], float], budget: float) -> int:
    """The largest parameter whose cost is within the budget, found by halving."""
    low, high = 0, len(parameters)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(Kept(logits, parameters[middle])) <= budget else (low, middle)
    return parameters[low]
