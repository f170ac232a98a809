"""Ragged positions: the entries are flat, position after position, and each position has its own count.

When every position has the same count the same arithmetic runs on a [T, k] view, which is several times faster.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arwkv_store.format.codecs.frames import BadCell


@dataclass(frozen=True)
class Segments:
    """Positions that hold at least one entry: `counts` [P] of them, `n` entries in all."""

    counts: NDArray[np.int64]
    n: int
    uniform: bool

    def starts(self) -> NDArray[np.int64]:
        """[P] where each position's first entry lies."""
        starts = np.cumsum(self.counts)
        starts -= self.counts
        return starts

    def shape(self, values: NDArray[Any]) -> NDArray[Any]:
        """Flat entries as the shape this arithmetic runs on."""
        return values.reshape(len(self.counts), -1) if self.uniform and self.n else values

    def spread(self, per_position: NDArray[Any]) -> NDArray[Any]:
        """[P] values, so shaped that they combine with `shape(entries)`."""
        return per_position[:, None] if self.uniform and self.n else np.repeat(per_position, self.counts)

    def reduce(self, operation: np.ufunc, values: NDArray[Any]) -> NDArray[Any]:
        """[P] reduction of entries in `shape` by an associative ufunc."""
        if self.n == 0:
            return np.empty(0, values.dtype)
        if self.uniform:
            return np.asarray(operation.reduce(values, axis=1))
        return np.asarray(operation.reduceat(values, self.starts()))


def segments(counts: NDArray[Any]) -> Segments:
    """The non-empty positions of `counts` [T]."""
    kept = counts[counts > 0].astype(np.int64) if len(counts) and counts.min() == 0 else counts.astype(np.int64)
    uniform = len(kept) > 0 and bool((kept == kept[0]).all())
    return Segments(kept, int(kept.sum()), uniform)


def checked_counts(counts: NDArray[np.uint32], entries: int, limit: int) -> NDArray[np.int32]:
    """Counts read from a cell, as int32. Raises BadCell unless they add up to `entries`, `limit` each at most."""
    total, most = int(counts.sum(dtype=np.int64)), int(counts.max(initial=0))
    if total != entries or most > limit:
        raise BadCell(f"counts up to {most} that add up to {total}; {limit} and {entries} entries are declared")
    return counts.astype(np.int32)


def deltas(values: NDArray[np.uint32], parts: Segments) -> NDArray[np.uint32]:
    """Each entry less the one before it in its position, modulo 2^32; a position's first entry becomes 0."""
    shaped = parts.shape(values)
    if parts.uniform:
        out = np.zeros_like(shaped)
        np.subtract(shaped[:, 1:], shaped[:, :-1], out=out[:, 1:])
        return out.reshape(-1)
    out = np.empty_like(values)
    np.subtract(values[1:], values[:-1], out=out[1:])
    out[parts.starts()] = 0
    return out


def running_sums(differences: NDArray[Any], parts: Segments) -> NDArray[np.uint32]:
    """Inverse of `deltas` up to each position's first value: sums within a position, modulo 2^32, in `shape`."""
    shaped = parts.shape(differences)
    if parts.uniform:
        return np.cumsum(shaped, axis=1, dtype=np.uint32)
    total = np.cumsum(shaped, dtype=np.uint32)
    if len(total):
        total -= np.repeat(total[parts.starts()], parts.counts)
    return total
