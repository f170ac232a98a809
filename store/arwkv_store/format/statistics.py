"""Statistics of a shard, computed when it is committed, and their sum over a dataset.

All values merge exactly or from histograms, so a dataset's statistics follow from the manifests alone.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from arwkv_store.format.hidden_names import hidden_column
from arwkv_store.format.sample import Sample

ENTROPY_BIN_NATS = 0.25
ENTROPY_BINS = 52
"""The last bin also counts values above 13 nats, the entropy of a uniform choice among 442,413 tokens."""
TAIL_BIN_NATS = 0.125
TAIL_BINS = 240
"""Bins of -log(tail mass) from 0; the last also counts masses below e^-30."""


class ShardStats(BaseModel):
    """Statistics of one part. Means are over `positions` (logits), or `scored_tokens` (true tokens that count)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int = 0
    tokens: int = 0
    positions: int = 0
    """Positions with logits."""
    entropy_positions: int = 0
    entropy_mean: float | None = None
    """Nats, of the teacher's full distribution."""
    entropy_histogram: tuple[int, ...] = ()
    """Positions per bin of 0.25 nats; bins after the last used one are left out."""
    mean_k: float | None = None
    tail_mass_mean: float | None = None
    tail_mass_p50: float | None = None
    tail_mass_p99: float | None = None
    tail_histogram: tuple[int, ...] = ()
    """Positions per bin of 0.125 nats of -log(tail mass); bins after the last used one are left out."""
    scored_tokens: int = 0
    teacher_nll_mean: float | None = None
    """Nats per true token that counts (loss_mask)."""
    teacher_perplexity: float | None = None
    length_histogram: dict[str, int] = Field(default_factory=dict)
    """Samples by length: key "1024" counts lengths 513..1024."""
    bytes_by_column: dict[str, int] = Field(default_factory=dict)
    """Stored bytes of each heavy column's cells, and of "rows" for the light columns together."""
    hidden_rms: dict[str, float] = Field(default_factory=dict)
    hidden_worst_channel_error: dict[str, float] = Field(default_factory=dict)
    """Largest relative L2 error of a channel; 0 for a lossless codec."""
    nan_count: int = 0
    """Always 0: a sample with a NaN is refused."""

    @property
    def bytes_per_token(self) -> dict[str, float]:
        """Stored bytes per token by column."""
        return {column: size / max(self.tokens, 1) for column, size in self.bytes_by_column.items()}

    @classmethod
    def merged(cls, parts: Iterable["ShardStats"]) -> Self:
        """The statistics of all parts together."""
        every = list(parts)
        tails = _summed(part.tail_histogram for part in every)
        nll = _mean((part.teacher_nll_mean, part.scored_tokens) for part in every)
        return cls(
            samples=sum(part.samples for part in every),
            tokens=sum(part.tokens for part in every),
            positions=sum(part.positions for part in every),
            entropy_positions=sum(part.entropy_positions for part in every),
            entropy_mean=_mean((part.entropy_mean, part.entropy_positions) for part in every),
            entropy_histogram=_summed(part.entropy_histogram for part in every),
            mean_k=_mean((part.mean_k, part.positions) for part in every),
            tail_mass_mean=_mean((part.tail_mass_mean, part.positions) for part in every),
            tail_mass_p50=_tail_quantile(tails, 0.50),
            tail_mass_p99=_tail_quantile(tails, 0.99),
            tail_histogram=tails,
            scored_tokens=sum(part.scored_tokens for part in every),
            teacher_nll_mean=nll,
            teacher_perplexity=_perplexity(nll),
            length_histogram=_added(part.length_histogram for part in every),
            bytes_by_column=_added(part.bytes_by_column for part in every),
            hidden_rms=_merged_rms(every),
            hidden_worst_channel_error=_largest(part.hidden_worst_channel_error for part in every),
        )


class DatasetStats(ShardStats):
    """The statistics of all committed parts, and how many of the planned parts those are."""

    shards: int = 0
    parts: int = 0
    size_bytes: int = 0


def sample_stats(sample: Sample) -> ShardStats:
    """The statistics of one sample, as if it were a shard; values that depend on codecs are left out."""
    T = len(sample.tokens)
    nll, scored = _nll(sample)
    logits, entropy = sample.logits, sample.entropy
    tail = np.zeros(0, np.float32) if logits is None else logits.tail_logprob
    tails = () if logits is None else _histogram(-tail, TAIL_BIN_NATS, TAIL_BINS)
    return ShardStats(
        samples=1,
        tokens=T,
        positions=0 if logits is None else T,
        entropy_positions=0 if entropy is None else T,
        entropy_mean=None if entropy is None else float(entropy.mean(dtype=np.float64)),
        entropy_histogram=() if entropy is None else _histogram(entropy, ENTROPY_BIN_NATS, ENTROPY_BINS),
        mean_k=None if logits is None else float(logits.counts.mean()),
        tail_mass_mean=None if logits is None else float(np.exp(tail, dtype=np.float64).mean()),
        tail_mass_p50=_tail_quantile(tails, 0.50),
        tail_mass_p99=_tail_quantile(tails, 0.99),
        tail_histogram=tails,
        scored_tokens=scored,
        teacher_nll_mean=nll,
        teacher_perplexity=_perplexity(nll),
        length_histogram={str(1 << (T - 1).bit_length()): 1},
        hidden_rms={hidden_column(name): _rms(states) for name, states in sample.hidden.items()},
    )


def _nll(sample: Sample) -> tuple[float | None, int]:
    if sample.true_logprob is None:
        return None, 0
    counted = sample.true_logprob[sample.loss_mask[1:]]
    # A true token outside the real vocabulary's support has probability 0; it would make every mean infinite.
    counted = counted[np.isfinite(counted)]
    return (float(-counted.mean(dtype=np.float64)), len(counted)) if len(counted) else (None, 0)


def _rms(states: NDArray[np.generic]) -> float:
    flat = states.astype(np.float32).reshape(-1)
    # Squares of finite bf16 values can overflow float32: scale by the largest.
    largest = float(np.abs(flat).max(initial=0))
    if largest == 0:
        return 0.0
    flat /= np.float32(largest)
    return largest * math.sqrt(float(np.dot(flat, flat)) / len(flat))


def _histogram(values: NDArray[np.float32], width: float, bins: int) -> tuple[int, ...]:
    index = np.clip(values / width, 0, bins - 1).astype(np.int64)
    return tuple(np.bincount(index).tolist())


def _tail_quantile(histogram: Sequence[int], fraction: float) -> float | None:
    """Tail mass below which `fraction` of the positions lie, to the middle of its bin (±6%)."""
    if not histogram:
        return None
    # Bins run from large tails to small ones.
    above = np.cumsum(histogram)
    index = int(np.searchsorted(above, (1 - fraction) * above[-1], side="right"))
    return math.exp(-(min(index, len(histogram) - 1) + 0.5) * TAIL_BIN_NATS)


def _perplexity(nll: float | None) -> float | None:
    return None if nll is None else math.exp(min(nll, 700.0))


def _mean(weighted: Iterable[tuple[float | None, int]]) -> float | None:
    known = [(mean, weight) for mean, weight in weighted if mean is not None and weight]
    total = sum(weight for _, weight in known)
    return math.fsum(mean * weight for mean, weight in known) / total if total else None


def _summed(histograms: Iterable[Sequence[int]]) -> tuple[int, ...]:
    known = [histogram for histogram in histograms if histogram]
    return tuple(map(sum, itertools.zip_longest(*known, fillvalue=0)))


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for count in counts:
        for key, value in count.items():
            total[key] = total.get(key, 0) + value
    return dict(sorted(total.items(), key=lambda item: (len(item[0]), item[0]) if item[0].isdigit() else (0, item[0])))


def _merged_rms(parts: Sequence[ShardStats]) -> dict[str, float]:
    columns = sorted({column for part in parts for column in part.hidden_rms})
    squares = {
        column: _mean((part.hidden_rms[column] ** 2, part.tokens) for part in parts if column in part.hidden_rms)
        for column in columns
    }
    return {column: math.sqrt(square or 0.0) for column, square in squares.items()}


def _largest(errors: Iterable[Mapping[str, float]]) -> dict[str, float]:
    largest: dict[str, float] = {}
    for error in errors:
        for column, value in error.items():
            largest[column] = max(largest.get(column, 0.0), value)
    return dict(sorted(largest.items()))
