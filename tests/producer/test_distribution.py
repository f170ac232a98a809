"""What is kept of a distribution, against float64 over the full vocabulary; tensor parallelism played by a loop."""

import pytest
import torch
from torch import Tensor

from arwkv_producer import distribution
from arwkv_producer.distribution import Distribution, summarise

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
    kept = summarise(logits.clone(), K, next_ids())
    values, ids = full.topk(K, dim=-1)
    torch.testing.assert_close(kept.ids_TK.long(), ids)
    torch.testing.assert_close(kept.logprobs_TK.double(), values, atol=1e-5, rtol=0)
    torch.testing.assert_close(kept.entropy_T.double(), -(full.exp() * full).sum(-1), atol=1e-5, rtol=1e-5)
    true = full.gather(1, next_ids().clamp_min(0)[:, None]).squeeze(1)
    torch.testing.assert_close(kept.true_logprob_T.double(), torch.where(next_ids() < 0, 0.0, true), atol=1e-5, rtol=0)


def test_tail_keeps_its_relative_precision_where_one_minus_p_cancels() -> None:
    logits = peaked_and_flat_logits()
    full = exact(logits)
    tail = full.scatter(1, full.topk(K, dim=-1).indices, -torch.inf).logsumexp(-1)
    assert tail.exp().min() < 1e-7, "the rows should include a tail that 1 - P cannot hold in fp32"
    kept = summarise(logits.clone(), K, next_ids())
    torch.testing.assert_close(kept.tail_logprob_T.double(), tail, atol=2e-5, rtol=0)


def test_k_that_covers_the_vocabulary_leaves_no_tail() -> None:
    kept = summarise(peaked_and_flat_logits()[:, :K].clone(), K, torch.full((T,), -1))
    assert torch.isneginf(kept.tail_logprob_T).all()


def split_over_ranks(logits: Tensor, bounds: list[int], k: int) -> list[Distribution]:
    """Each rank's answer. The gather is played in two passes: first record what every rank sends, then answer it."""
    sent: list[Tensor] = []

    def record(packed: Tensor) -> Tensor:
        sent.append(packed)
        return packed

    starts = [0, *bounds[:-1]]
    for start, end in zip(starts, bounds, strict=True):
        summarise(logits[:, start:end].clone(), k, next_ids(), first_id=start, gather=record)
    everything = torch.cat(sent, dim=-1)
    return [
        summarise(logits[:, start:end].clone(), k, next_ids(), first_id=start, gather=lambda packed: everything)
        for start, end in zip(starts, bounds, strict=True)
    ]


def test_a_gpu_is_told_the_same_as_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels' own numerics are tests/kernels'; this is what is made of their answer."""
    logits = peaked_and_flat_logits()
    expected = summarise(logits.clone(), K, next_ids())
    monkeypatch.setattr(distribution, "_compiled", distribution._on_gpu)
    alone = summarise(logits.clone(), K, next_ids())
    for kept in (alone, *split_over_ranks(logits, [300, 600, V], K)):
        assert kept.ids_TK.equal(expected.ids_TK)
        for name in ("logprobs_TK", "tail_logprob_T", "entropy_T", "true_logprob_T"):
            torch.testing.assert_close(getattr(kept, name), getattr(expected, name), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bounds", [[500, V], [300, 600, V], [V - 3, V]], ids=["two", "three", "fewer columns than k"])
def test_ranks_agree_with_one_device(bounds: list[int]) -> None:
    logits = peaked_and_flat_logits()
    alone = summarise(logits.clone(), K, next_ids())
    for kept in split_over_ranks(logits, bounds, K):
        torch.testing.assert_close(kept.ids_TK, alone.ids_TK)
        for name in ("logprobs_TK", "tail_logprob_T", "entropy_T", "true_logprob_T"):
            torch.testing.assert_close(getattr(kept, name), getattr(alone, name), atol=1e-5, rtol=1e-5)
