"""A made-up teacher with the statistics that decide sizes: Zipf-like, entropy 1.6 nats, top-64 mass 0.96."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from arwkv_store import SparseLogits

VOCAB_SIZE = 152_064
KINDS = 96
RANK_JITTER_NATS = 0.15


@dataclass(frozen=True)
class Teacher:
    """Positions fall into KINDS, from almost certain to wide open: p(rank) ~ (rank + shift)^-exponent."""

    logits_KV: NDArray[np.float64]

    @classmethod
    def made(cls) -> "Teacher":
        """The teacher of the published figures."""
        rng = np.random.default_rng(0)
        exponent = np.clip(rng.normal(2.6, 1.0, KINDS), 1.2, None)
        shift = rng.uniform(0, 0.6, KINDS)
        rank = np.arange(1, VOCAB_SIZE + 1)
        return cls(22.0 - exponent[:, None] * np.log(rank[None, :] + shift[:, None]))

    def describe(self) -> dict[str, float]:
        """Mean entropy in nats and mean mass of the 64 likeliest ids."""
        p_KV = np.exp(self.logits_KV - _logsumexp(self.logits_KV)[:, None])
        entropy = -(p_KV * np.log(p_KV)).sum(1).mean()
        return {"entropy_nats": float(entropy), "top64_mass": float(p_KV[:, :64].sum(1).mean())}

    def top_k(self, T: int, k: int, *, head_dtype: str, ids: str, seed: int) -> SparseLogits:
        """`T` positions' k likeliest ids. `ids` is "uniform" over the vocabulary or "zipf" (frequent ids are small)."""
        rng = np.random.default_rng(seed)
        kind = rng.integers(0, KINDS, T)
        logits_Tk = self.logits_KV[kind, :k] + rng.normal(0, RANK_JITTER_NATS, (T, k))
        logits_Tk = -np.sort(-logits_Tk, axis=1).astype(np.float32)
        if head_dtype == "bfloat16":
            logits_Tk = logits_Tk.astype(ml_dtypes.bfloat16).astype(np.float32)
        rest_K = _logsumexp(self.logits_KV[:, k:])
        normalizer_T = np.logaddexp(_logsumexp(logits_Tk.astype(np.float64)), rest_K[kind])
        logprobs_Tk = logits_Tk - normalizer_T.astype(np.float32)[:, None]
        tail_T = (rest_K[kind] - normalizer_T).astype(np.float32)
        return SparseLogits(np.full(T, k, np.int32), _ids(rng, T * k, ids), logprobs_Tk.reshape(-1), tail_T)

    def sampled(self, T: int, draws: int, *, head_k: int, ids: str, seed: int) -> SparseLogits:
        """Hits of `draws` draws a position; with `head_k`, the likeliest ids and what the draws say of the tail."""
        rng = np.random.default_rng(seed)
        p_KV = np.exp(self.logits_KV - _logsumexp(self.logits_KV)[:, None])
        cumulative_KV = np.cumsum(p_KV, axis=1)
        counts, logprobs, tails = [], [], []
        for kind in rng.integers(0, KINDS, T):
            ranks, hits = np.unique(np.searchsorted(cumulative_KV[kind], rng.random(draws)), return_counts=True)
            hits = np.sort(hits[ranks >= head_k])[::-1]
            tail = np.log1p(-cumulative_KV[kind, head_k - 1]) if head_k else 0.0
            drawn = tail + np.log(hits / max(hits.sum(), 1))
            logprobs += [np.log(p_KV[kind, :head_k]), drawn]
            counts.append(head_k + len(hits))
            tails.append(-np.inf if len(hits) else tail)
        flat = np.concatenate(logprobs).astype(np.float32)
        return SparseLogits(np.array(counts, np.int32), _ids(rng, len(flat), ids), flat, np.array(tails, np.float32))


def adaptive(logits: SparseLogits, top_p: float) -> SparseLogits:
    """The fewest likeliest entries with mass at least `top_p`; what is left out joins the tail."""
    T = len(logits.counts)
    p_Tk = np.exp(logits.logprobs.astype(np.float64)).reshape(T, -1)
    k = p_Tk.shape[1]
    counts = np.minimum((np.cumsum(p_Tk, axis=1) < top_p).sum(1) + 1, k)
    kept = np.arange(k) < counts[:, None]
    dropped_T = np.where(kept, 0, p_Tk).sum(1)
    tail = np.log(np.exp(logits.tail_logprob.astype(np.float64)) + dropped_T).astype(np.float32)
    flat = kept.reshape(-1)
    return SparseLogits(counts.astype(np.int32), logits.ids[flat], logits.logprobs[flat], tail)


def kl_nats(teacher: SparseLogits, stored: SparseLogits) -> float:
    """Mean KL from the teacher to what was stored, over the kept ids and the tail as one more outcome."""
    p, p_tail = _normalized(teacher)
    q, q_tail = _normalized(stored)
    entries = p * np.log(p / q)
    with np.errstate(divide="ignore", invalid="ignore"):
        tails = np.where(p_tail > 0, p_tail * np.log(p_tail / q_tail), 0.0)
    return float((entries.sum() + tails.sum()) / len(teacher.counts))


def _normalized(logits: SparseLogits) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    p, tail = np.exp(logits.logprobs.astype(np.float64)), np.exp(logits.tail_logprob.astype(np.float64))
    starts = np.cumsum(logits.counts) - logits.counts
    total = np.add.reduceat(p, starts) + tail
    return p / np.repeat(total, logits.counts), tail / total


def _ids(rng: np.random.Generator, n: int, distribution: str) -> NDArray[np.int32]:
    if distribution == "uniform":
        return rng.integers(0, VOCAB_SIZE, n).astype(np.int32)
    # Byte-pair ids count up as their pairs get rarer: log-uniform ids are Zipf's law with exponent 1.
    return np.floor(np.exp(rng.random(n) * np.log(VOCAB_SIZE))).astype(np.int32) - 1


def _logsumexp(values: NDArray[np.float64]) -> NDArray[np.float64]:
    highest = values.max(1)
    return np.asarray(highest + np.log(np.exp(values - highest[:, None]).sum(1)))
