"""Entries of others as a sparse distribution: sorted, normalized, with the mass that they leave.

Shapes: P positions of a sample, N entries of all of them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from arwkv_store.errors import UsageError
from arwkv_store.format.sample import SparseLogits

MOST_MASS = 1.5
"""Approximated log-probabilities of a position may sum to a little more than 1; logits sum to any number."""
LOWEST_LOGPROB = -900.0
"""Entries below it have a probability of 0 in every arithmetic; others fill a position up with them."""


@dataclass(frozen=True)
class Entries:
    """What a source keeps of each position of one sample, in any order."""

    counts: NDArray[np.int64]
    """[P]"""
    ids: NDArray[np.int64]
    """[N]"""
    values: NDArray[np.float32]
    """[N] log-probabilities in nats, or logits."""


@dataclass
class Derived:
    """What was not in the source and had to be computed, over all samples so far."""

    positions: int = 0
    normalized: int = 0
    """Positions whose log-probabilities summed to more than 1 and were divided by their sum."""
    largest_mass: float = 0.0
    next_hits: int = 0
    same_hits: int = 0
    """Positions whose entries hold the next token, and the token of the position itself."""


def at_positions(entries: Entries, T: int, rule: str, where: str) -> Entries:
    """The entries of T positions by the store's rule: entry t is the distribution of token t+1.

    A source may leave out the position of the last token, whose next token is unknown. With `rule` "same-token" its
    entry t is that of token t, so the first one is left out.
    """
    P = len(entries.counts)
    if P not in (T, T - 1):
        raise UsageError(f"{where}: {P} positions for {T} tokens; a capture has one for each, or one less")
    counts, first = entries.counts, 0
    if rule == "same-token" and P == T:
        counts, first = counts[1:], int(counts[0])
    counts = np.concatenate([counts, np.zeros(T - len(counts), counts.dtype)])
    return Entries(counts, entries.ids[first:], entries.values[first:])


def sparse_logits(entries: Entries, kind: str, derived: Derived, where: str) -> SparseLogits:
    """The entries by descending log-probability, and the log of the mass that they leave.

    `kind` is "logprobs", normalized over the whole vocabulary, or "logits", which are normalized over the entries alone
    and leave nothing. Raises UsageError for NaN, and for log-probabilities that are none.
    """
    P = len(entries.counts)
    values = entries.values.astype(np.float64)
    if np.isnan(values).any():
        raise UsageError(f"{where}: values hold NaN; leave this row out")
    position = np.repeat(np.arange(P), entries.counts)
    if kind == "logits":
        values = values - _highest(values, position, P)[position]
    kept = values > LOWEST_LOGPROB
    order = np.lexsort((-values[kept], position[kept]))
    position, values, ids = position[kept], values[kept][order], entries.ids[kept][order]
    mass = np.bincount(position, np.exp(np.minimum(values, 60.0)), minlength=P)
    if kind == "logprobs" and mass.max(initial=0) > MOST_MASS:
        raise UsageError(
            f"{where}: the probabilities of position {int(mass.argmax())} sum to {mass.max():.4g}; "
            "if the values are logits, import them with --values logits"
        )
    above = (mass > 1) if kind == "logprobs" else mass > 0
    divisor = np.where(above, mass, 1.0)
    with np.errstate(divide="ignore"):
        tail = np.where(above, -np.inf, np.log1p(-np.minimum(np.where(above, 0.0, mass), 1.0)))
    counted = np.bincount(position, minlength=P)
    derived.positions += int((counted > 0).sum())
    derived.normalized += int(above.sum()) if kind == "logprobs" else 0
    derived.largest_mass = max(derived.largest_mass, float(mass.max(initial=0)) if kind == "logprobs" else 0.0)
    return SparseLogits(
        counts=counted.astype(np.int32),
        ids=ids.astype(np.int32),
        logprobs=(values - np.log(divisor)[position]).astype(np.float32),
        tail_logprob=tail.astype(np.float32),
    )


def count_hits(logits: SparseLogits, tokens: NDArray[np.int32], derived: Derived) -> None:
    """Count the positions whose entries hold the next token, and their own."""
    position = np.repeat(np.arange(len(tokens)), logits.counts)
    inside = position < len(tokens) - 1
    position, ids = position[inside], logits.ids[inside]
    derived.next_hits += int((ids == tokens[1:][position]).sum())
    derived.same_hits += int((ids == tokens[position]).sum())


def require_rule(derived: Derived, rule: str, source: str) -> None:
    """Raise UsageError where most entries hold the token of their own position, and few the next one."""
    if derived.same_hits > max(derived.next_hits, derived.positions // 2):
        other = "same-token" if rule == "next-token" else "next-token"
        raise UsageError(
            f"{source}: {derived.same_hits:,} of {derived.positions:,} positions keep their own token and "
            f"{derived.next_hits:,} the next one, so entry t is not the distribution of token t+1; "
            f"import with --position-rule {other}"
        )


def _highest(values: NDArray[np.float64], position: NDArray[np.int64], P: int) -> NDArray[np.float64]:
    highest = np.full(P, -np.inf)
    np.maximum.at(highest, position, values)
    return np.where(np.isfinite(highest), highest, 0.0)
