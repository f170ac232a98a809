"""A teacher's sparse distributions, laid out for one chunk of tokens at a time.

T positions, N stored candidates in all, t positions of a chunk, K the chunk's largest count, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

TAILS = ("bucket", "renormalize", "drop")


@dataclass(frozen=True)
class ChunkSettings:
    """Which positions count and how they are compared; see `linear_sparse_kl`."""

    positions: Tensor
    token_chunk: int
    tail: str
    temperature: float
    in_triton: bool


@dataclass(frozen=True)
class TeacherChunk:
    """The teacher at t positions: candidates padded to K, probabilities softened by the temperature."""

    positions_t: Tensor
    ids_tK: Tensor
    """Padding repeats the row's first candidate, so that it can be gathered and never adds a new id."""
    real_tK: Tensor
    log_p_tK: Tensor
    """-inf at padding."""
    log_p_tail_t: Tensor
    """-inf where there is no tail: the candidates are the whole vocabulary, or are compared among themselves."""


@dataclass(frozen=True)
class SparseTeacher:
    """Flat candidates [N] in the order of positions, with counts [T]; see `linear_sparse_kl`."""

    ids_N: Tensor
    logprobs_N: Tensor
    counts_T: Tensor
    tail_logprob_T: Tensor

    def check(self, vocabulary: int, hidden_shape: torch.Size) -> None:
        """Refuse shapes that disagree, ids outside the vocabulary, and an id stored twice at one position."""
        T, N = hidden_shape[0], self.ids_N.shape[0]
        if self.counts_T.shape != (T,) or self.tail_logprob_T.shape != (T,) or self.logprobs_N.shape != (N,):
            raise ValueError(
                f"linear_sparse_kl: hidden {tuple(hidden_shape)}, counts {tuple(self.counts_T.shape)}, tail_logprob "
                f"{tuple(self.tail_logprob_T.shape)}, ids {tuple(self.ids_N.shape)}, logprobs "
                f"{tuple(self.logprobs_N.shape)}; expected [T, C], [T], [T], [N], [N]"
            )
        total, fewest = (int(self.counts_T.sum()), int(self.counts_T.min())) if T else (0, 0)
        if total != N or fewest < 0:
            raise ValueError(f"linear_sparse_kl: counts sum to {total} (least {fewest}), but there are {N} ids")
        if N == 0:
            return
        lowest, highest = (int(x) for x in torch.aminmax(self.ids_N))
        if lowest < 0 or highest >= vocabulary:
            raise ValueError(f"linear_sparse_kl: ids span {lowest}..{highest}, but the head has {vocabulary} rows")
        keys_N = torch.repeat_interleave(self.counts_T.long()) * vocabulary + self.ids_N
        sorted_N = keys_N.sort().values
        twice = sorted_N[1:][sorted_N.diff() == 0]
        if twice.numel():
            position, token = divmod(int(twice[0]), vocabulary)
            raise ValueError(f"linear_sparse_kl: id {token} is stored twice at position {position}; merge its mass")

    def chunks(self, settings: ChunkSettings, vocabulary: int, dtype: torch.dtype) -> Iterator[TeacherChunk]:
        """The chosen positions, `token_chunk` at a time, with log-probabilities in `dtype`."""
        starts_T = self.counts_T.long().cumsum(0) - self.counts_T
        # One more entry, so that a position without candidates has something to read.
        ids_N, logprobs_N = (torch.cat([x, x.new_zeros(1)]) for x in (self.ids_N.long(), self.logprobs_N.to(dtype)))
        for positions_t in torch.split(settings.positions, settings.token_chunk):
            counts_t = self.counts_T[positions_t].long()
            rank_K = torch.arange(max(1, int(counts_t.max())), device=positions_t.device)
            real_tK = rank_K < counts_t[:, None]
            places_tK = starts_T[positions_t, None] + torch.where(real_tK, rank_K, 0)
            log_p_tail_t = self.tail_logprob_T[positions_t].to(dtype)
            if settings.tail == "renormalize":
                log_p_tail_t = torch.full_like(log_p_tail_t, -torch.inf)
            log_p_tK, log_p_tail_t = soften(
                logprobs_N[places_tK].masked_fill(~real_tK, -torch.inf),
                log_p_tail_t.masked_fill(counts_t == vocabulary, -torch.inf),
                settings.temperature,
            )
            yield TeacherChunk(positions_t, ids_N[places_tK], real_tK, log_p_tK, log_p_tail_t)


def soften(log_p_tK: Tensor, log_p_tail_t: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """p^(1/temperature), normalized over the candidates and the tail as one more outcome; -inf stays -inf."""
    together = torch.cat([log_p_tK, log_p_tail_t[:, None]], dim=1) / temperature
    normalizer = together.logsumexp(1, keepdim=True)
    together = together - normalizer.masked_fill(normalizer.isinf(), 0.0)
    return together[:, :-1], together[:, -1]
