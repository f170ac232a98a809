"""An engine's answers, played again from a captured dataset."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from arwkv_producer.teacher.engine import DISTRIBUTION
from arwkv_producer.text.corpus import Corpus, CorpusReport
from arwkv_store import Sample, open_dataset


class RecordedEngine:
    """Answers what a real engine answered when the dataset was captured."""

    distribution = DISTRIBUTION

    def __init__(self, recording: str) -> None:
        dataset = open_dataset(recording)
        self._rows = [recorded_rows(dataset[index]) for index in range(len(dataset))]

    def capture(
        self, prompts: Sequence[NDArray[np.int32]], keys: Sequence[int], read: Callable[[int], None]
    ) -> list[dict[str, torch.Tensor]]:
        for prompt in prompts:
            read(len(prompt))
        return [self._rows[key] for key in keys]

    def close(self) -> None:
        pass


def recorded_rows(sample: Sample) -> dict[str, torch.Tensor]:
    assert sample.logits is not None
    assert sample.entropy is not None
    assert sample.true_logprob is not None
    T = len(sample.tokens)
    arrays = {
        "ids": sample.logits.ids.reshape(T, -1),
        "logprobs": sample.logits.logprobs.reshape(T, -1),
        "tail_logprob": sample.logits.tail_logprob,
        "entropy": sample.entropy,
        "true_logprob": np.append(sample.true_logprob, np.float32(0)),
        "drawn": np.zeros((T, 0), np.int32),
    }
    states = {
        name: torch.from_numpy(state.view(np.int16)).view(torch.bfloat16) for name, state in sample.hidden.items()
    }
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()} | states


def plain_corpus(samples: int, T: int) -> Corpus:
    """Samples of T equal tokens, all of which count."""
    return Corpus(
        tokens=np.zeros(samples * T, np.int32),
        loss_mask=np.ones(samples * T, np.bool_),
        starts=np.arange(samples + 1, dtype=np.int64) * T,
        sources=["a.txt"] * samples,
        report=CorpusReport(),
    )
