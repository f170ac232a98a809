"""From shards to batches: samples padded to one length, in an order that only (seed, epoch) decides.

Shape legend: B batch, T time, L layers, C model width, N stored entries of the batch.
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arwkv_store import Dataset, Sample
from arwkv_store.sampler import ShardSampler


class OrderSampler(torch.utils.data.Sampler[int]):
    """The first `count` indices of the store's endless order, one by one, as transformers' Trainer wants them.

    The order is a pure function of (seed, epoch), so worker count, world size and restarts change nothing; epochs
    follow one another without a gap.
    """

    def __init__(self, shard_rows: Sequence[int] | NDArray[np.int64], count: int, seed: int) -> None:
        self.count = count
        epochs = math.ceil(count / int(np.sum(shard_rows)))
        self._order = ShardSampler(shard_rows, batch_size=1, epochs=epochs, seed=seed)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return (index for (index,) in itertools.islice(iter(self._order), self.count))


class ShardSamples(torch.utils.data.Dataset[Sample]):
    """A dataset of shards as torch's map-style dataset."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[index]


def collate(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Pad to the longest sample, on the right.

    input_ids, attention_mask [B, T]; predicts [B, T]: whether entry t counts, that is, whether predicting token t+1
    does. Where captured: attention [L, B, T, C] bf16 (layers in order); counts, tail_logprob [B·T] (0 where padded),
    ids, logprobs [N] in the order of positions; true_logprob [B, T].
    """
    length = max(len(sample.tokens) for sample in samples)
    grid = (len(samples), length)
    batch = {
        "input_ids": torch.zeros(grid, dtype=torch.int64),
        "attention_mask": torch.zeros(grid, dtype=torch.int64),
        "predicts": torch.zeros(grid, dtype=torch.bool),
    }
    for row, sample in enumerate(samples):
        tokens = len(sample.tokens)
        batch["input_ids"][row, :tokens] = torch.from_numpy(sample.tokens)
        batch["attention_mask"][row, :tokens] = 1
        batch["predicts"][row, : tokens - 1] = torch.from_numpy(sample.loss_mask[1:])
    for field in (_logits(samples, length), _true_logprob(samples, length), _hidden(samples, length)):
        batch |= field
    return batch


def _logits(samples: Sequence[Sample], length: int) -> dict[str, Tensor]:
    logits = [sample.logits for sample in samples if sample.logits is not None]
    if len(logits) < len(samples):
        return {}
    counts = torch.zeros(len(samples), length, dtype=torch.int64)
    tail = torch.zeros(len(samples), length, dtype=torch.float32)
    for row, entry in enumerate(logits):
        counts[row, : len(entry.counts)] = torch.from_numpy(entry.counts)
        tail[row, : len(entry.counts)] = torch.from_numpy(entry.tail_logprob)
    return {
        "counts": counts.flatten(),
        "tail_logprob": tail.flatten(),
        "ids": torch.from_numpy(np.concatenate([entry.ids for entry in logits])).long(),
        "logprobs": torch.from_numpy(np.concatenate([entry.logprobs for entry in logits])),
    }


def _true_logprob(samples: Sequence[Sample], length: int) -> dict[str, Tensor]:
    if any(sample.true_logprob is None for sample in samples):
        return {}
    true_logprob = torch.zeros(len(samples), length, dtype=torch.float32)
    for row, sample in enumerate(samples):
        assert sample.true_logprob is not None
        true_logprob[row, : len(sample.true_logprob)] = torch.from_numpy(sample.true_logprob)
    return {"true_logprob": true_logprob}


def _hidden(samples: Sequence[Sample], length: int) -> dict[str, Tensor]:
    """Each kind of hidden state in the samples: attention and boundary [L, B, T, C], final [B, T, C]; bf16."""
    names = sorted(samples[0].hidden, key=lambda name: (name.split(".")[0], int(name.partition(".")[2] or 0)))
    layers: dict[str, list[Tensor]] = {}
    for name in names:
        width = samples[0].hidden[name].shape[1]
        padded = torch.zeros(len(samples), length, width, dtype=torch.bfloat16)
        for row, sample in enumerate(samples):
            states = np.ascontiguousarray(sample.hidden[name])
            padded[row, : len(states)] = torch.from_numpy(states.view(np.int16)).view(torch.bfloat16)
        layers.setdefault(name.split(".")[0], []).append(padded)
    fields = {"attn": "attention", "boundary": "boundaries", "final": "final"}
    return {fields[kind]: states[0] if kind == "final" else torch.stack(states) for kind, states in layers.items()}
