"""One sample: a tokenized sequence and the teacher's outputs for it.

Shape legend: T tokens of the sample, N stored entries (the sum of the counts), C model width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from arwkv_store.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

_BF16_EXPONENT = 0x7F80
ROUNDING_NATS = 1e-3
"""Allowed rounding of a float32 normalizer: a log-probability may be above 0, or an entropy below 0, by this much."""


@dataclass(frozen=True)
class SparseLogits:
    """A sparse next-token distribution per position; entry t is the teacher's distribution of token t+1."""

    counts: NDArray[np.int32]
    """[T] entries kept at each position."""
    ids: NDArray[np.int32]
    """[N] token ids, positions in order; top-k entries by descending log-probability, then any sampled tail. Those of a
    position differ; that is not checked, since it would cost a tenth of the encoding, or a third where ragged."""
    logprobs: NDArray[np.float32]
    """[N] log-probabilities in nats, normalized over the tokenizer's real vocabulary; finite."""
    tail_logprob: NDArray[np.float32]
    """[T] log(1 - sum exp(logprobs)); -inf where the entries hold all the mass."""


@dataclass(frozen=True)
class Sample:
    """One sequence of a dataset. Optional fields are None (or absent from `hidden`) where not captured or not read."""

    sample_id: int
    tokens: NDArray[np.int32]
    """[T]"""
    loss_mask: NDArray[np.bool_]
    """[T] whether predicting tokens[t] counts; the loss of entry t uses loss_mask[t+1]."""
    source: str = ""
    """Where the text came from: a file, a line, a conversation."""
    logits: SparseLogits | None = None
    entropy: NDArray[np.float32] | None = None
    """[T] entropy in nats of the teacher's full distribution."""
    true_logprob: NDArray[np.float32] | None = None
    """[T-1] log p(tokens[t+1] | tokens[..t])."""
    hidden: Mapping[str, NDArray[ml_dtypes.bfloat16]] = field(default_factory=dict)
    """"attn.7", "boundary.7" or "final" -> [T, C]."""

    def to_torch(self) -> "dict[str, Tensor]":
        """The same as tensors: tokens (int64) and loss_mask [T]; hidden states [T, C] by name, in torch's own bfloat16.

        Where they are there: counts, tail_logprob [T], ids (int64), logprobs [N], entropy [T], true_logprob [T-1].
        Tensors share memory with writable arrays. Needs torch, which the rest of the store does not.
        """
        arrays: dict[str, NDArray[Any] | None] = {
            "tokens": self.tokens.astype(np.int64),
            "loss_mask": self.loss_mask,
            "entropy": self.entropy,
            "true_logprob": self.true_logprob,
            **self.hidden,
        }
        if self.logits is not None:
            arrays |= {**vars(self.logits), "ids": self.logits.ids.astype(np.int64)}
        return {name: _tensor(array) for name, array in arrays.items() if array is not None}


def _tensor(array: NDArray[Any]) -> "Tensor":
    import torch

    own = array if array.flags.writeable and array.flags.c_contiguous else array.copy(order="C")
    if own.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(own.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(own)


def validate_sample(sample: Sample, vocab_size: int) -> None:
    """Raise UsageError, naming the sample and the field, unless every shape and value can be stored and trusted."""
    T = len(sample.tokens)
    where = f"sample {sample.sample_id}"
    if T == 0:
        raise UsageError(f"{where}: no tokens; leave empty samples out")
    _expect(where, "tokens", sample.tokens, (T,))
    _expect(where, "loss_mask", sample.loss_mask, (T,))
    if sample.tokens.min() < 0 or sample.tokens.max() >= vocab_size:
        raise UsageError(f"{where}: tokens outside 0..{vocab_size - 1}; was it tokenized with the teacher's tokenizer?")
    if sample.logits is not None:
        _validate_logits(where, sample.logits, T, vocab_size)
    if (sample.entropy is None) != (sample.true_logprob is None):
        raise UsageError(f"{where}: entropy and true_logprob are stored together; give both or neither")
    if sample.entropy is not None and sample.true_logprob is not None:
        _expect(where, "entropy", sample.entropy, (T,))
        _expect(where, "true_logprob", sample.true_logprob, (T - 1,))
        _expect_below(where, "entropy", -sample.entropy, sign=-1)
        _expect_below(where, "true_logprob", sample.true_logprob)
        if np.isinf(sample.entropy).any():
            raise UsageError(f"{where}: entropy holds infinity; check the teacher's output before storing")
    for name, value in sample.hidden.items():
        if value.ndim != 2 or value.shape[0] != T:
            raise UsageError(f"{where}: hidden {name!r} has shape {value.shape}, expected ({T}, width)")
        if value.dtype != ml_dtypes.bfloat16:
            raise UsageError(f"{where}: hidden {name!r} is {value.dtype}; give it as ml_dtypes.bfloat16")
        exponent = np.ascontiguousarray(value).view(np.uint16) & np.uint16(_BF16_EXPONENT)
        if (exponent == _BF16_EXPONENT).any():
            raise UsageError(f"{where}: hidden {name!r} holds NaN or infinity; check the teacher before storing")


def _validate_logits(where: str, logits: SparseLogits, T: int, vocab_size: int) -> None:
    N = int(logits.counts.sum(dtype=np.int64))
    _expect(where, "logits.counts", logits.counts, (T,))
    _expect(where, "logits.ids", logits.ids, (N,))
    _expect(where, "logits.logprobs", logits.logprobs, (N,))
    _expect(where, "logits.tail_logprob", logits.tail_logprob, (T,))
    if logits.counts.min() < 0:
        raise UsageError(f"{where}: logits.counts holds {logits.counts.min()}; counts are at least 0")
    if N and (logits.ids.min() < 0 or logits.ids.max() >= vocab_size):
        raise UsageError(f"{where}: logits.ids outside 0..{vocab_size - 1}; mask the padded rows of the teacher's head")
    if N and not np.isfinite(logits.logprobs).all():
        raise UsageError(f"{where}: logits.logprobs holds NaN or infinity; check the teacher's output before storing")
    _expect_below(where, "logits.logprobs", logits.logprobs)
    _expect_below(where, "logits.tail_logprob", logits.tail_logprob)


def _expect(where: str, what: str, value: NDArray[np.generic], shape: tuple[int, ...]) -> None:
    if value.shape != shape:
        raise UsageError(f"{where}: {what} has shape {value.shape}, expected {shape}")


def _expect_below(where: str, what: str, value: NDArray[np.float32], sign: int = 1) -> None:
    """Refuse NaN and values above 0 by more than rounding; the message shows the value times `sign`."""
    # -inf passes: in a log-probability it is a probability of zero.
    if value.size and not value.max() <= ROUNDING_NATS:
        worst = sign * float(value.max())
        bound = "at most" if sign > 0 else "at least"
        raise UsageError(f"{where}: {what} holds {worst:.4g}, {bound} 0 is possible; check the teacher before storing")
