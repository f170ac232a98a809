"""Draws: repeatable, spread over all samples and positions, and unbiased on flat and peaked distributions."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from arwkv_producer.check.samples import hybrid_logits, sampled_logits
from arwkv_producer.numerics.distribution import Draws, summarize
from arwkv_producer.numerics.sampling import draw, uniforms
from arwkv_store import SparseLogits

T, V, S, BUCKETS = 1000, 1000, 1000, 10


@pytest.fixture(params=[0.1, 1.0, 4.0], ids=["flat", "natural", "peaked"])
def logits(request: pytest.FixtureRequest) -> torch.Tensor:
    """[V] one distribution, tokens ordered from the rarest."""
    return torch.randn(V, generator=torch.Generator().manual_seed(5)).sort().values * request.param


def row_numbers(rows: int, draws: int) -> torch.Tensor:
    return uniforms(torch.arange(rows) // 7, torch.arange(rows) % 7, draws)


def bucket_masses(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    return probabilities.reshape(BUCKETS, -1).sum(axis=1)


def total_variation(logits: torch.Tensor, kept: SparseLogits) -> float:
    """Between the mean of the T estimates and the distribution, over frequency buckets."""
    mean = np.bincount(kept.ids, weights=np.exp(kept.logprobs.astype(np.float64)), minlength=V) / T
    return float(np.abs(bucket_masses(mean) - bucket_masses(logits.double().softmax(0).numpy())).sum() / 2)


def test_sampled_estimates_are_unbiased(logits: torch.Tensor) -> None:
    draws = Draws(row_numbers(T, S), outside_top_k=False)
    kept = summarize(logits.expand(T, -1).clone(), 1, torch.full((T,), -1), draws=draws)
    assert total_variation(logits, sampled_logits(kept.drawn_TS.numpy())) < 0.002


def test_hybrid_estimates_are_unbiased_and_hold_all_the_mass(logits: torch.Tensor) -> None:
    draws = Draws(row_numbers(T, S), outside_top_k=True)
    kept = summarize(logits.expand(T, -1).clone(), 16, torch.full((T,), -1), draws=draws)
    rows = (kept.ids_TK, kept.logprobs_TK, kept.tail_logprob_T, kept.drawn_TS)
    sparse = hybrid_logits(*(tensor.numpy() for tensor in rows))
    assert total_variation(logits, sparse) < 0.002
    ends = np.cumsum(sparse.counts)
    masses = np.add.reduceat(np.exp(sparse.logprobs.astype(np.float64)), ends - sparse.counts)
    np.testing.assert_allclose(masses, 1.0, atol=1e-4)
    for ids in np.split(sparse.ids, ends[:-1])[:50]:
        assert len(set(ids)) == len(ids)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mode", ["sampled", "hybrid"])
def test_a_million_positions_with_few_draws_each_are_unbiased(logits: torch.Tensor, mode: str) -> None:
    """50 draws from everything, 8 from outside the 16 likeliest: what a production run draws."""
    hybrid, rows, blocks = mode == "hybrid", 10_000, 100
    total = np.zeros(V)
    for block in range(blocks):
        keys = torch.arange(block * rows, (block + 1) * rows)
        draws = Draws(uniforms(keys // 100, keys % 100, 8 if hybrid else 50), outside_top_k=hybrid)
        kept = summarize(logits.expand(rows, -1).clone(), 16, torch.full((rows,), -1), draws=draws)
        if hybrid:
            tensors = (kept.ids_TK, kept.logprobs_TK, kept.tail_logprob_T, kept.drawn_TS)
            sparse = hybrid_logits(*(tensor.numpy() for tensor in tensors))
        else:
            sparse = sampled_logits(kept.drawn_TS.numpy())
        total += np.bincount(sparse.ids, weights=np.exp(sparse.logprobs.astype(np.float64)), minlength=V)
    mean = bucket_masses(total / (rows * blocks))
    assert np.abs(mean - bucket_masses(logits.double().softmax(0).numpy())).sum() / 2 < 0.002


def test_draws_fit_the_distribution_by_chi_square() -> None:
    """999,999 draws over 600 tokens: the statistic stays within 5 standard deviations of its mean."""
    weights = torch.rand(600, generator=torch.Generator().manual_seed(6)) + 0.05
    drawn = draw(weights.expand(999, -1).contiguous(), row_numbers(999, 1001)).flatten()
    expected = (weights.double() / weights.double().sum() * len(drawn)).numpy()
    statistic = ((np.bincount(drawn.numpy(), minlength=600) - expected) ** 2 / expected).sum()
    assert abs(statistic - 599) < 5 * np.sqrt(2 * 599)


def test_tokens_without_weight_are_never_drawn() -> None:
    weights = torch.zeros(50, 700)
    weights[:, 3::97] = 1e-30
    drawn = draw(weights, row_numbers(50, 400))
    assert set(drawn.unique().tolist()) == set(range(3, 700, 97))


def test_numbers_depend_on_sample_position_and_draw_alone() -> None:
    numbers = uniforms(torch.tensor([1, 1, 2]), torch.tensor([0, 1, 0]), 5)
    assert numbers.unique().numel() == 15
    assert ((numbers >= 0) & (numbers < 1)).all()
    torch.testing.assert_close(uniforms(torch.tensor([2]), torch.tensor([0]), 5)[0], numbers[2], atol=0, rtol=0)


def test_position_without_a_tail_keeps_its_head_only() -> None:
    draws = Draws(row_numbers(2, 3), outside_top_k=True)
    kept = summarize(torch.zeros(2, 4), 4, torch.full((2,), -1), draws=draws)
    rows = (kept.ids_TK, kept.logprobs_TK, kept.tail_logprob_T, kept.drawn_TS)
    assert hybrid_logits(*(tensor.numpy() for tensor in rows)).counts.tolist() == [4, 4]
