"""The samples of each step and their lengths: several shard sets by weight, contexts that grow over the steps.

Everything is a pure function of seed, weights, schedule and position in the run: worker count, world size and restarts
do not change it.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from arwkv_store import Dataset, Sample, SparseLogits
from arwkv_store.dataset.sampler import ShardSampler
from arwkv_store.errors import UsageError


class Pick(NamedTuple):
    """One sample of a batch: its shard set, its index there, and the number of its tokens (None: all)."""

    shard_set: int
    sample: int
    context: int | None


@dataclass(frozen=True)
class ContextSchedule:
    """Sample lengths over a stage: `contexts[i]` tokens for `shares[i]` of the steps, one after another."""

    contexts: tuple[int, ...] = ()
    shares: tuple[float, ...] = ()

    @classmethod
    def of(cls, contexts: Sequence[int], shares: Sequence[float] | None) -> "ContextSchedule":
        """Equal shares by default. Raises UsageError for invalid lengths or shares."""
        if any(context < 2 for context in contexts):
            raise UsageError(f"--context {' '.join(map(str, contexts))}: too short; give at least 2 tokens")
        given = tuple(shares) if shares is not None else (1.0,) * len(contexts)
        if len(given) != len(contexts) or any(share <= 0 for share in given):
            raise UsageError(
                f"--context-shares {given}: give a positive share for each of the {len(contexts)} contexts"
            )
        return cls(tuple(contexts), tuple(share / sum(given) for share in given))

    def at(self, step: int, steps: int) -> int | None:
        """Maximum number of tokens of a sample at this step; None: no limit."""
        ends = itertools.accumulate(self.shares)
        for context, end in zip(self.contexts, ends, strict=True):
            if step < round(end * steps):
                return context
        return self.contexts[-1] if self.contexts else None

    def mean_tokens(self, tokens: float) -> float:
        """Mean length of samples of `tokens` tokens after truncation, over the steps."""
        if not self.contexts:
            return tokens
        return sum(share * min(context, tokens) for context, share in zip(self.contexts, self.shares, strict=True))


class MixtureSampler(torch.utils.data.Sampler[Pick]):
    """`steps` times `per_step` picks, one by one, as transformers' Trainer needs them.

    Each set has its own endless order. Position p is given to the set that is furthest behind its share of the p picks
    so far, so every part of the run is close to the weights. With the numbers of samples as weights, an epoch has every
    sample once. Parts of remote `datasets` are fetched before their samples are picked.
    """

    def __init__(
        self,
        shard_rows: Sequence[Sequence[int] | NDArray[np.int64]],
        weights: Sequence[float],
        steps: int,
        per_step: int,
        seed: int,
        schedule: ContextSchedule | None = None,
        datasets: Sequence[Dataset] = (),
    ) -> None:
        self._rows, self._steps, self._per_step = shard_rows, steps, per_step
        self._shares = [weight / sum(weights) for weight in weights]
        self._seed, self._schedule, self._datasets = seed, schedule or ContextSchedule(), datasets

    def __len__(self) -> int:
        return self._steps * self._per_step

    def __iter__(self) -> Iterator[Pick]:
        orders = [self._order(shard_set) for shard_set in range(len(self._rows))]
        picked = [0] * len(orders)
        for position in range(len(self)):
            lags = [share * (position + 1) - count for share, count in zip(self._shares, picked, strict=True)]
            chosen = max(range(len(lags)), key=lags.__getitem__)
            picked[chosen] += 1
            context = self._schedule.at(position // self._per_step, self._steps)
            yield Pick(chosen, next(orders[chosen]), context)

    def _order(self, shard_set: int) -> Iterator[int]:
        rows = self._rows[shard_set]
        epochs = math.ceil(len(self) / int(np.sum(rows)))
        order = ShardSampler(rows, batch_size=1, epochs=epochs, seed=self._seed + (shard_set << 32))
        # A set is never a whole pick ahead of its share.
        picks = math.ceil(self._shares[shard_set] * len(self)) + 1
        indices = (index for (index,) in itertools.islice(order, picks))
        return self._datasets[shard_set].read_soon(indices) if self._datasets else indices


def truncated(sample: Sample, tokens: int | None) -> Sample:
    """The sample's first tokens with the teacher's outputs, which do not depend on the later tokens."""
    if tokens is None or len(sample.tokens) <= tokens:
        return sample
    logits = sample.logits
    if logits is not None:
        counts = logits.counts[:tokens]
        kept = int(counts.sum())
        logits = SparseLogits(counts, logits.ids[:kept], logits.logprobs[:kept], logits.tail_logprob[:tokens])
    return Sample(
        sample_id=sample.sample_id,
        tokens=sample.tokens[:tokens],
        loss_mask=sample.loss_mask[:tokens],
        source=sample.source,
        logits=logits,
        entropy=None if sample.entropy is None else sample.entropy[:tokens],
        true_logprob=None if sample.true_logprob is None else sample.true_logprob[: tokens - 1],
        hidden={name: states[:tokens] for name, states in sample.hidden.items()},
    )
