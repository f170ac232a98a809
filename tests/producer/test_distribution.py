"""What is kept of a distribution, against float64 over the full vocabulary; tensor parallelism played by threads."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from arwkv_kernels import topk_logprobs
from arwkv_producer.numerics import distribution
from arwkv_producer.numerics.distribution import OUTSIDE_VOCABULARY, Distribution, Draws, summarize
from arwkv_producer.numerics.sampling import uniforms

T, V, K = 40, 1031, 16


def peaked_and_flat_logits() -> Tensor:
    """[T, V] rows from nearly uniform to all but certain."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(T, V, generator=generator) * torch.linspace(0.01, 12.0, T)[:, None]


def next_ids() -> Tensor:
    ids = torch.randint(0, V, (T,), generator=torch.Generator().manual_seed(4))
    ids[7] = -1
    return ids


def exact(logits: Tensor) -> Tensor:
    return logits.double().log_softmax(-1)


def test_distribution_matches_the_full_one_in_float64() -> None:
    logits = peaked_and_flat_logits()
    full = exact(logits)
    kept = summarize(logits.clone(), K, next_ids())
    values, ids = full.topk(K, dim=-1)
    torch.testing.assert_close(kept.ids_TK.long(), ids)
    torch.testing.assert_close(kept.logprobs_TK.double(), values, atol=1e-5, rtol=0)
    torch.testing.assert_close(kept.entropy_T.double(), -(full.exp() * full).sum(-1), atol=1e-5, rtol=1e-5)
    true = full.gather(1, next_ids().clamp_min(0)[:, None]).squeeze(1)
    torch.testing.assert_close(kept.true_logprob_T.double(), torch.where(next_ids() < 0, 0.0, true), atol=1e-5, rtol=0)


def test_summary_of_a_gpu_says_the_same() -> None:
    logits = peaked_and_flat_logits()
    kept = summarize(logits.clone(), K, next_ids())
    on_gpu = topk_logprobs(logits, K, next_ids(), backend="torch")
    summary = (kept.logprobs_TK, kept.ids_TK, kept.tail_logprob_T, kept.entropy_T, kept.true_logprob_T)
    for got, want in zip(on_gpu, summary, strict=True):
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)


def test_tail_keeps_its_relative_precision_where_one_minus_p_cancels() -> None:
    logits = peaked_and_flat_logits()
    full = exact(logits)
    tail = full.scatter(1, full.topk(K, dim=-1).indices, -torch.inf).logsumexp(-1)
    assert tail.exp().min() < 1e-7, "the rows should include a tail that 1 - P cannot hold in fp32"
    kept = summarize(logits.clone(), K, next_ids())
    torch.testing.assert_close(kept.tail_logprob_T.double(), tail, atol=2e-5, rtol=0)


def test_k_that_covers_the_vocabulary_leaves_no_tail() -> None:
    kept = summarize(peaked_and_flat_logits()[:, :K].clone(), K, torch.full((T,), -1))
    assert torch.isneginf(kept.tail_logprob_T).all()


def split_over_ranks(logits: Tensor, bounds: Sequence[int], k: int, draws: Draws | None = None) -> list[Distribution]:
    """Each rank's answer, a thread each; `bounds` are the columns where the ranks' shares end."""
    everyone = threading.Barrier(len(bounds), timeout=60)
    sent: dict[int, Tensor] = {}

    def rank(number: int, start: int, end: int) -> Distribution:
        def gather(packed: Tensor) -> Tensor:
            sent[number] = packed
            everyone.wait()
            gathered = torch.cat([sent[other] for other in range(len(bounds))], dim=-1)
            everyone.wait()
            return gathered

        share = logits[:, start:end].clone()
        return summarize(share, k, next_ids(), draws=draws, first_id=start, gather=gather)

    with ThreadPoolExecutor(len(bounds)) as threads:
        return list(threads.map(rank, range(len(bounds)), [0, *bounds[:-1]], bounds))


def test_a_gpu_is_told_the_same_as_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels' own numerics are tests/kernels'; this is what is made of their answer."""
    logits = peaked_and_flat_logits()
    expected = summarize(logits.clone(), K, next_ids())
    monkeypatch.setattr(distribution, "_compiled", distribution._on_gpu)
    alone = summarize(logits.clone(), K, next_ids())
    for kept in (alone, *split_over_ranks(logits, [300, 600, V], K)):
        assert kept.ids_TK.equal(expected.ids_TK)
        for name in ("logprobs_TK", "tail_logprob_T", "entropy_T", "true_logprob_T"):
            torch.testing.assert_close(getattr(kept, name), getattr(expected, name), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bounds", [[500, V], [300, 600, V], [V - 3, V]], ids=["two", "three", "fewer columns than k"])
def test_ranks_agree_with_one_device(bounds: list[int]) -> None:
    logits = peaked_and_flat_logits()
    alone = summarize(logits.clone(), K, next_ids())
    for kept in split_over_ranks(logits, bounds, K):
        torch.testing.assert_close(kept.ids_TK, alone.ids_TK)
        for name in ("logprobs_TK", "tail_logprob_T", "entropy_T", "true_logprob_T"):
            torch.testing.assert_close(getattr(kept, name), getattr(alone, name), atol=1e-5, rtol=1e-5)


def drawn_by(draws_per_row: int, mode: str) -> Draws:
    return Draws(uniforms(torch.arange(T), torch.zeros(T), draws_per_row), outside_top_k=mode == "hybrid")


@pytest.mark.parametrize("mode", ["sampled", "hybrid"])
@pytest.mark.parametrize("bounds", [[700, V], [100, 600, V]], ids=["two", "three"])
def test_ranks_draw_from_the_whole_distribution(bounds: list[int], mode: str) -> None:
    """400,000 draws: the chi-square statistic stays within 5 standard deviations of its mean."""
    row = torch.randn(V, generator=torch.Generator().manual_seed(8)) * 0.5
    draws = drawn_by(10_000, mode)
    first, *others = split_over_ranks(row.expand(T, -1), bounds, K, draws)
    assert all(other.drawn_TS.equal(first.drawn_TS) for other in others)
    masses = exact(row).exp()
    if mode == "hybrid":
        masses[row.topk(K).indices] = 0.0
    hits = np.bincount(first.drawn_TS.flatten().numpy(), minlength=V)
    possible = masses.numpy() > 0
    assert hits[~possible].sum() == 0
    expected = (masses / masses.sum()).numpy()[possible] * hits.sum()
    statistic = ((hits[possible] - expected) ** 2 / expected).sum()
    freedom = possible.sum() - 1
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("mode", ["sampled", "hybrid"])
@pytest.mark.parametrize("bounds", [[700, V], [100, 600, V], [V - 3, V]], ids=["two", "three", "fewer columns than k"])
def test_ranks_draw_what_one_device_draws(bounds: list[int], mode: str) -> None:
    """But for numbers that fall between a token's bounds as the one and the other round them."""
    logits, draws = peaked_and_flat_logits(), drawn_by(2000, mode)
    alone = summarize(logits.clone(), K, next_ids(), draws=draws)
    for kept in split_over_ranks(logits, bounds, K, draws):
        assert (kept.drawn_TS != alone.drawn_TS).double().mean() < 2e-4
        assert kept.ids_TK.equal(alone.ids_TK)
        for name in ("logprobs_TK", "tail_logprob_T", "entropy_T", "true_logprob_T"):
            torch.testing.assert_close(getattr(kept, name), getattr(alone, name), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["sampled", "hybrid"])
def test_rank_of_padding_is_never_drawn_from(mode: str) -> None:
    logits = peaked_and_flat_logits()
    logits[:, 300:600] = OUTSIDE_VOCABULARY
    logits[:, 900:] = OUTSIDE_VOCABULARY
    for kept in split_over_ranks(logits, [300, 600, 900, V], K, drawn_by(2000, mode)):
        assert set((kept.drawn_TS // 300).unique().tolist()) == {0, 2}


def test_top_k_of_all_ranks_that_cover_the_vocabulary_leave_no_tail_to_draw_from() -> None:
    """As for one device: what was drawn means nothing there, and -inf says so."""
    logits = peaked_and_flat_logits()[:, : 3 * K]
    logits[:, K:] = OUTSIDE_VOCABULARY
    for kept in split_over_ranks(logits, [K - 5, K, 3 * K], K):
        assert torch.isneginf(kept.tail_logprob_T).all()
    for kept in split_over_ranks(logits, [K - 5, K, 3 * K], K, drawn_by(10, "hybrid")):
        assert torch.isneginf(kept.tail_logprob_T).all()
        assert ((kept.drawn_TS >= 0) & (kept.drawn_TS < 3 * K)).all()
