"""Every logits codec against what it promises: exact to the bit, or within its stated error."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from arwkv_store import SparseLogits, UsageError
from arwkv_store.format.codecs import logits_compact, logits_exact, logits_raw, logits_sampled
from arwkv_store.format.codecs.frames import BadCell
from store_examples import assert_same_array

VOCAB_SIZES = [2, 500, 65_536, 65_537, 152_064, 262_145, 1_000_000]


def _cell(content: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(content, np.uint8)


def _logits(
    T: int, k: int, vocab_size: int, *, ragged: bool = False, head_dtype: str = "float32", seed: int = 0
) -> SparseLogits:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, k + 1, T).astype(np.int32) if ragged else np.full(T, k, np.int32)
    logits = -np.sort(-rng.standard_normal((T, k)).astype(np.float32) * 4 - 12, axis=1)
    if head_dtype == "bfloat16":
        logits = logits.astype(ml_dtypes.bfloat16).astype(np.float32)
    normalizer = (np.log(np.exp(logits).sum(1)) + 0.1).astype(np.float32)
    logprobs = logits - normalizer[:, None]
    kept = np.arange(k) < counts[:, None]
    tail = np.log(np.maximum(1 - (np.exp(logprobs) * kept).sum(1), 0.01)).astype(np.float32)
    ids = rng.integers(0, vocab_size, int(counts.sum())).astype(np.int32)
    return SparseLogits(counts, ids, logprobs[kept], tail)


def _assert_same(read: SparseLogits, written: SparseLogits) -> None:
    for field in dataclasses.fields(SparseLogits):
        assert_same_array(getattr(read, field.name), getattr(written, field.name))


@pytest.mark.parametrize("codec", [logits_exact, logits_raw])
@pytest.mark.parametrize("head_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_lossless_codecs_give_back_every_bit(codec: object, head_dtype: str, ragged: bool, vocab_size: int) -> None:
    for T, k in ((1, 1), (3, 2), (17, 33), (600, 5)):
        written = _logits(T, k, vocab_size, ragged=ragged, head_dtype=head_dtype, seed=T)
        read = codec.decode(_cell(codec.encode(written, k)), T, k)  # type: ignore[attr-defined]  # a module
        _assert_same(read, written)


def test_exact_keeps_any_float_in_any_order() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 4000, dtype=np.uint32).view(np.float32)
    values = np.where(np.isfinite(bits), bits, np.float32(-0.0))
    tail = np.where(rng.random(40) < 0.5, -np.inf, -1.5).astype(np.float32)
    written = SparseLogits(np.full(40, 100, np.int32), np.arange(4000, dtype=np.int32), values, tail)
    _assert_same(logits_exact.decode(_cell(logits_exact.encode(written, 100)), 40, 100), written)


def test_exact_keeps_positions_on_and_off_the_grid_side_by_side() -> None:
    on, off = _logits(300, 8, 500, head_dtype="bfloat16"), _logits(300, 8, 500)
    order = np.random.default_rng(0).permutation(600)

    def mixed(field: str, width: int) -> NDArray[np.generic]:
        both = np.concatenate([getattr(on, field), getattr(off, field)])
        return both.reshape(600, width)[order].reshape(-1)

    written = SparseLogits(mixed("counts", 1), mixed("ids", 8), mixed("logprobs", 8), mixed("tail_logprob", 1))
    _assert_same(logits_exact.decode(_cell(logits_exact.encode(written, 8)), 600, 8), written)


def test_exact_is_much_smaller_for_a_bf16_head() -> None:
    sizes = {
        head: len(logits_exact.encode(_logits(200, 64, 152_064, head_dtype=head), 64))
        for head in ("bfloat16", "float32")
    }
    assert sizes["bfloat16"] < 0.7 * sizes["float32"]


@pytest.mark.parametrize("ragged", [False, True])
def test_compact_stays_within_its_stated_error(ragged: bool) -> None:
    written = _logits(400, 64, 152_064, ragged=ragged)
    read = logits_compact.decode(_cell(logits_compact.encode(written, 64)), 400, 64)
    assert_same_array(read.counts, written.counts)
    assert_same_array(read.ids, written.ids)
    assert np.abs(read.logprobs - written.logprobs).max() <= logits_compact.MAX_ERROR + 1e-6
    np.testing.assert_allclose(read.tail_logprob, written.tail_logprob, rtol=2.0**-11)


def test_compact_barely_moves_the_distribution() -> None:
    written = _logits(400, 64, 152_064)
    read = logits_compact.decode(_cell(logits_compact.encode(written, 64)), 400, 64)
    assert _kl_T(written, read).mean() <= 1e-4


def _kl_T(teacher: SparseLogits, other: SparseLogits) -> NDArray[np.float64]:
    """KL per position over the kept ids and the tail as one more outcome, both normalized."""

    def outcomes(logits: SparseLogits) -> NDArray[np.float64]:
        p = np.exp(np.column_stack([logits.logprobs.reshape(len(logits.counts), -1), logits.tail_logprob]), dtype=float)
        return p / p.sum(1, keepdims=True)

    p, q = outcomes(teacher), outcomes(other)
    return np.asarray((p * np.log(p / q)).sum(1))


def test_compact_keeps_a_tail_of_nothing_and_entries_out_of_order() -> None:
    logprobs = np.array([-0.5, -3.0, -9.0, -2.0, -2.5, -30.0, -1e-7, -80.0], np.float32)
    written = SparseLogits(
        np.array([5, 0, 3], np.int32), np.arange(8, dtype=np.int32), logprobs, np.full(3, -np.inf, np.float32)
    )
    read = logits_compact.decode(_cell(logits_compact.encode(written, 8)), 3, 8)
    assert_same_array(read.tail_logprob, written.tail_logprob)
    assert np.abs(read.logprobs - logprobs).max() <= logits_compact.MAX_ERROR + 1e-6


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
@pytest.mark.parametrize("draws", [1, 50, 300])
def test_sampled_gives_back_every_hit(vocab_size: int, draws: int) -> None:
    rng = np.random.default_rng(draws)
    hits = [np.bincount(rng.zipf(2.0, draws).clip(max=20))[1:] for _ in range(30)]
    hits = [np.sort(position[position > 0])[::-1] for position in hits]
    flat = np.concatenate(hits)
    written = SparseLogits(
        np.array([len(position) for position in hits], np.int32),
        rng.integers(0, vocab_size, len(flat)).astype(np.int32),
        np.log(flat / draws).astype(np.float32),
        np.full(30, -np.inf, np.float32),
    )
    _assert_same(logits_sampled.decode(_cell(logits_sampled.encode(written, draws)), 30, draws), written)


def test_sampled_refuses_what_is_no_count_of_hits() -> None:
    with pytest.raises(UsageError, match=r"not log\(hits / 50\)"):
        logits_sampled.encode(_logits(4, 2, 500), 50)
    missing = SparseLogits(
        np.ones(2, np.int32), np.zeros(2, np.int32), np.log(np.full(2, 0.5, np.float32)), np.zeros(2, np.float32)
    )
    with pytest.raises(UsageError, match="do not add up to 50"):
        logits_sampled.encode(missing, 50)


CODECS = {"exact": logits_exact, "compact": logits_compact, "none": logits_raw}


@pytest.mark.parametrize("name", CODECS)
def test_lying_cells_are_refused_or_decoded_never_worse(name: str) -> None:
    """Bytes changed before they were hashed: a typed error or some values, no crash and no large allocation."""
    codec = CODECS[name]
    content = codec.encode(_logits(50, 16, 152_064, ragged=True), 16)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(1500):
        changed = bytearray(content)
        # Half of the changes hit the header and the counts, where sizes are.
        at = int(rng.integers(0, 24 if rng.random() < 0.5 else len(content)))
        changed[at] ^= 1 << int(rng.integers(0, 8))
        try:
            codec.decode(_cell(bytes(changed)), 50, 16)
        except BadCell:
            refused += 1
    assert refused > 500
