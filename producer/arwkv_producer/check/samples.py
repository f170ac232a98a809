"""Builds the store's Sample from a captured prompt's rows, and refuses incomplete or infinite values."""

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from arwkv_producer.teacher.handover import Rows
from arwkv_store import Sample, SparseLogits
from arwkv_store.errors import ArwkvError
from arwkv_store.format.schema import CaptureInfo


class BadCapture(ArwkvError):
    """The teacher's answer for a sample is incomplete or not finite; the sample is named and nothing is committed."""


class GaveUp(BadCapture):
    """Too many samples in a row were bad; the remaining ones will probably fail too."""


def to_sample(
    sample_id: int,
    tokens: NDArray[np.int32],
    loss_mask: NDArray[np.bool_],
    source: str,
    rows: Rows,
    expected: Sequence[str],
    capture: CaptureInfo,
) -> Sample:
    """Build the Sample of T `tokens` from its rows, by the settings of `capture`.

    Raises BadCapture if one of the `expected` rows is missing, has another length or is not finite.
    """
    where = f"sample {sample_id} ({source})"
    arrays = {name: _as_numpy(tensor) for name, tensor in rows.items()}
    for name in expected:
        _require_complete(where, name, arrays, len(tokens))
    hidden = {name: arrays[name] for name in expected if name == "final" or "." in name}
    if "ids" not in arrays:
        return Sample(sample_id=sample_id, tokens=tokens, loss_mask=loss_mask, source=source, hidden=hidden)
    return Sample(
        sample_id=sample_id,
        tokens=tokens,
        loss_mask=loss_mask,
        source=source,
        logits=_logits(arrays, capture),
        # Stored together: an engine that gives no entropy gives neither.
        entropy=arrays["entropy"] if "entropy" in expected else None,
        true_logprob=arrays["true_logprob"][:-1] if "entropy" in expected else None,
        hidden=hidden,
    )


def _logits(arrays: Mapping[str, NDArray[Any]], capture: CaptureInfo) -> SparseLogits:
    if capture.logits == "sampled":
        return sampled_logits(arrays["drawn"])
    if capture.logits == "hybrid":
        return hybrid_logits(arrays["ids"], arrays["logprobs"], arrays["tail_logprob"], arrays["drawn"])
    return sparse_logits(arrays["ids"], arrays["logprobs"], arrays["tail_logprob"], capture.top_p)


def sampled_logits(drawn_TS: NDArray[np.int32]) -> SparseLogits:
    """How often each token was drawn: probability hits / S, unbiased; no tail."""
    counts_T, ids, hits = _hits(drawn_TS)
    logprobs = np.log(hits / drawn_TS.shape[1]).astype(np.float32)
    return SparseLogits(counts_T, ids, logprobs, np.full(len(drawn_TS), -np.inf, np.float32))


def hybrid_logits(
    ids_TK: NDArray[np.int32],
    logprobs_TK: NDArray[np.float32],
    tail_logprob_T: NDArray[np.float32],
    drawn_TS: NDArray[np.int32],
) -> SparseLogits:
    """The top k as they are, then the tail's draws, each with its share hits / S of the tail's exact mass: unbiased."""
    T, K = ids_TK.shape
    counts_T, ids, hits = _hits(drawn_TS)
    positions = np.repeat(np.arange(T), counts_T)
    logprobs = (tail_logprob_T[positions] + np.log(hits / drawn_TS.shape[1])).astype(np.float32)
    drawn = np.isfinite(logprobs)  # where the top k hold all the mass, what was drawn means nothing
    positions = np.concatenate([np.repeat(np.arange(T), K), positions[drawn]])
    order = np.argsort(positions, kind="stable")
    return SparseLogits(
        np.bincount(positions, minlength=T).astype(np.int32),
        np.concatenate([ids_TK.reshape(-1), ids[drawn]])[order],
        np.concatenate([logprobs_TK.reshape(-1), logprobs[drawn]])[order],
        np.full(T, -np.inf, np.float32),
    )


def _hits(drawn_TS: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
    """The number of different drawn tokens per position; then flat, most frequent first: the tokens and their hits."""
    T = len(drawn_TS)
    flat = np.arange(T, dtype=np.int64)[:, None] << 32 | drawn_TS
    found, hits = np.unique(flat, return_counts=True)
    order = np.lexsort((found, -hits, found >> 32))
    counts_T = np.bincount(found >> 32, minlength=T).astype(np.int32)
    return counts_T, (found[order] & 0xFFFFFFFF).astype(np.int32), hits[order]


def sparse_logits(
    ids_TK: NDArray[np.int32],
    logprobs_TK: NDArray[np.float32],
    tail_logprob_T: NDArray[np.float32],
    top_p: float | None,
) -> SparseLogits:
    """All K candidates of each position or, with `top_p`, the fewest likeliest that hold that mass (at most K).

    The tail includes candidates that are not kept: log(Σ p + tail), summed from the smallest.
    """
    T, K = ids_TK.shape
    if top_p is None:
        counts_T = np.full(T, K, np.int32)
        return SparseLogits(counts_T, ids_TK.reshape(-1), logprobs_TK.reshape(-1), tail_logprob_T)
    probabilities_TK = np.exp(logprobs_TK.astype(np.float64))
    below_TK = np.cumsum(probabilities_TK, axis=1) - probabilities_TK < top_p
    below_TK[:, 0] = True
    counts_T = below_TK.sum(axis=1).astype(np.int32)
    kept_TK = np.arange(K) < counts_T[:, None]
    unkept_T = np.where(kept_TK, 0.0, probabilities_TK)[:, ::-1].sum(axis=1) + np.exp(tail_logprob_T.astype(np.float64))
    with np.errstate(divide="ignore"):  # no tail at all: log 0 = -inf
        tail_T = np.where(counts_T == K, tail_logprob_T, np.log(unkept_T)).astype(np.float32)
    return SparseLogits(counts_T, ids_TK[kept_TK], logprobs_TK[kept_TK], tail_T)


def _as_numpy(tensor: Any) -> NDArray[Any]:
    import torch

    if tensor.dtype == torch.bfloat16:
        bits: NDArray[Any] = tensor.view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    array: NDArray[Any] = tensor.numpy()
    return array


def _require_complete(where: str, name: str, arrays: Mapping[str, NDArray[Any]], T: int) -> None:
    if name not in arrays:
        raise BadCapture(f"{where}: the teacher returned no {name}; run the same command again")
    if len(arrays[name]) != T:
        raise BadCapture(f"{where}: {len(arrays[name])} rows of {name} for {T} tokens; is prefix caching off?")
    values = arrays[name]
    if values.dtype == np.int32:
        return
    # A tail of probability zero (-inf) is a value; any other infinity, and NaN, is a fault.
    bad = np.isnan(values) | (values == np.inf) if name == "tail_logprob" else ~np.isfinite(values.astype(np.float32))
    if bad.any():
        position = int(np.argwhere(bad)[0][0])
        raise BadCapture(
            f"{where}: {name} at token {position} is {values[position].flat[0]!s}; try --dtype float32 or bfloat16"
        )
