"""Batches from shards: samples padded to one length, or packed into one row.

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
from arwkv_store.dataset.sampler import ShardSampler
from arwkv_student.data.mixture import Pick, truncated


class OrderSampler(torch.utils.data.Sampler[int]):
    """The first `count` indices of the store's endless order, one by one, as transformers' Trainer needs them.

    The order is a pure function of (seed, epoch): worker count, world size and restarts do not change it. Epochs follow
    one another without a gap.
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
    """Shard sets as torch's map-style dataset, read by `Pick`."""

    def __init__(self, *datasets: Dataset) -> None:
        self.datasets = datasets

    def __len__(self) -> int:
        return sum(map(len, self.datasets))

    def __getitem__(self, pick: Pick) -> Sample:
        return truncated(self.datasets[pick.shard_set][pick.sample], pick.context)

    def length(self, pick: Pick) -> int:
        """Tokens of the sample that `pick` gives."""
        tokens = self.datasets[pick.shard_set].length(pick.sample)
        return tokens if pick.context is None else min(tokens, pick.context)


def collate(samples: Sequence[Sample], packing: bool = False, *, few_lengths: bool = False) -> dict[str, Tensor]:
    """Pad to the longest sample, on the right; or pack all into one row (B = 1), which adds cu_seqlens [n + 1].

    With `few_lengths`, T is rounded up to `rounded_length`; of a packed row, the rest is one more document.

    input_ids, attention_mask [B, T]; predicts [B, T]: whether entry t counts, that is, the prediction of token t+1.
    Where captured: attention, boundaries [L, B, T, C] bf16 (layers in order), final [B, T, C]; counts, tail_logprob
    [B·T] (0 where padded), ids, logprobs [N] in the order of positions; true_logprob, entropy (of the teacher) [B, T].

    entropy_gap [B·T], for shards of draws (no tail) with a known teacher entropy: the entropy of the draws minus the
    teacher's. KL(draws ‖ student) plus this is an unbiased estimate of KL(teacher ‖ student).
    """
    grid = _Grid(samples, packing, few_lengths)
    batch = {
        "input_ids": grid.filled([sample.tokens for sample in samples]),
        "attention_mask": grid.filled([np.ones(len(sample.tokens), np.int64) for sample in samples]),
        "predicts": grid.filled([np.append(sample.loss_mask[1:], False) for sample in samples], torch.bool),
    }
    if packing:
        ends = [*itertools.accumulate(grid.lengths)]
        padding = [grid.shape[1]] if ends[-1] < grid.shape[1] else []
        batch["cu_seqlens"] = torch.tensor([0, *ends, *padding], dtype=torch.int32)
    for field in (_logits(samples, grid), _token_stats(samples, grid), _entropy_gap(samples, grid)):
        batch |= field
    return batch | _hidden(samples, grid)


def rounded_length(tokens: int) -> int:
    """At most an eighth more than `tokens` (63 more below 512): eight lengths from one power of two to the next."""
    step = max(64, 1 << max((tokens - 1).bit_length() - 4, 0))
    return -(-tokens // step) * step


class _Grid:
    """The place of each sample in the batch: its own row, or a range of the single row."""

    def __init__(self, samples: Sequence[Sample], packing: bool, few_lengths: bool) -> None:
        self.lengths = [len(sample.tokens) for sample in samples]
        if packing:
            rows, tokens = 1, sum(self.lengths)
            ends = itertools.accumulate(self.lengths)
            self.starts = [(0, end - length) for end, length in zip(ends, self.lengths, strict=True)]
        else:
            rows, tokens = len(samples), max(self.lengths)
            self.starts = [(row, 0) for row in range(len(samples))]
        self.shape = (rows, rounded_length(tokens) if few_lengths else tokens)

    def filled(self, values: Sequence[NDArray[np.generic]], dtype: torch.dtype = torch.int64) -> Tensor:
        """[B, T, …] with each sample's values at its place and 0 elsewhere."""
        return self.laid([torch.from_numpy(np.ascontiguousarray(value)) for value in values], dtype)

    def laid(self, values: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """The same from tensors."""
        grid = torch.zeros(*self.shape, *values[0].shape[1:], dtype=dtype)
        for (row, start), value in zip(self.starts, values, strict=True):
            grid[row, start : start + len(value)] = value
        return grid


def _logits(samples: Sequence[Sample], grid: _Grid) -> dict[str, Tensor]:
    logits = [sample.logits for sample in samples if sample.logits is not None]
    if len(logits) < len(samples):
        return {}
    return {
        "counts": grid.filled([entry.counts for entry in logits]).flatten(),
        "tail_logprob": grid.filled([entry.tail_logprob for entry in logits], torch.float32).flatten(),
        "ids": torch.from_numpy(np.concatenate([entry.ids for entry in logits])).long(),
        "logprobs": torch.from_numpy(np.concatenate([entry.logprobs for entry in logits])),
    }


def _token_stats(samples: Sequence[Sample], grid: _Grid) -> dict[str, Tensor]:
    fields = {}
    for name in ("true_logprob", "entropy"):
        values = [getattr(sample, name) for sample in samples]
        if all(value is not None for value in values):
            fields[name] = grid.filled(values, torch.float32)
    return fields


def _entropy_gap(samples: Sequence[Sample], grid: _Grid) -> dict[str, Tensor]:
    pairs = [(sample.logits, sample.entropy) for sample in samples]
    if all(logits is None or entropy is None or np.isfinite(logits.tail_logprob).all() for logits, entropy in pairs):
        return {}
    gaps = []
    for logits, entropy in pairs:
        assert logits is not None, "a batch in which only some samples have logits"
        logprobs = logits.logprobs.astype(np.float64)
        sums = np.append(0.0, np.cumsum(np.exp(logprobs) * logprobs))
        ends = np.cumsum(logits.counts)
        own = sums[ends - logits.counts] - sums[ends]
        known = np.full(len(own), np.nan) if entropy is None else entropy
        gaps.append(np.where(np.isfinite(logits.tail_logprob) | np.isnan(known), 0.0, own - known))
    return {"entropy_gap": grid.filled(gaps, torch.float32).flatten()}


def _hidden(samples: Sequence[Sample], grid: _Grid) -> dict[str, Tensor]:
    """Each kind of hidden state in the samples: attention and boundaries [L, B, T, C], final [B, T, C]; bf16."""
    names = sorted(samples[0].hidden, key=lambda name: (name.split(".")[0], int(name.partition(".")[2] or 0)))
    layers: dict[str, list[Tensor]] = {}
    for name in names:
        states = [np.ascontiguousarray(sample.hidden[name]).view(np.int16) for sample in samples]
        laid = grid.laid([torch.from_numpy(state).view(torch.bfloat16) for state in states], torch.bfloat16)
        layers.setdefault(name.split(".")[0], []).append(laid)
    fields = {"attn": "attention", "boundary": "boundaries", "final": "final"}
    return {fields[kind]: states[0] if kind == "final" else torch.stack(states) for kind, states in layers.items()}
