"""The compiled summary against torch in float64, on rows that are wide, narrow, tied, peaked and bad."""

import pytest
import torch

from arwkv_producer.numerics.compiled_summary import summarize_rows
from arwkv_producer.numerics.distribution import summarize


def check(logits: torch.Tensor, k: int) -> None:
    found = summarize_rows(logits.clone(), k)
    values, columns = logits.topk(k, dim=-1)
    torch.testing.assert_close(found.top_TK, values, atol=0, rtol=0)
    torch.testing.assert_close(found.columns_TK.long(), columns)
    shifted = logits.double() - values[:, :1].double()
    weights = shifted.exp()
    rest = weights.scatter(1, columns, 0.0).sum(-1, keepdim=True)
    # x - m is rounded to fp32 before its exp is taken: at 100 nats apart that is 4e-6 of the result.
    for one, other in ((found.sum_T, weights), (found.moment_T, weights * shifted)):
        torch.testing.assert_close(one.double(), other.sum(-1, keepdim=True), atol=1e-30, rtol=1e-5)
    torch.testing.assert_close(found.rest_T.double(), rest, atol=1e-36, rtol=1e-5)


@pytest.mark.parametrize("columns", [16, 17, 500, 2048, 5000, 32_003])
@pytest.mark.parametrize("k", [1, 16])
@pytest.mark.parametrize("spread", [0.01, 1.0, 20.0])
def test_summary_is_torchs(columns: int, k: int, spread: float) -> None:
    check(torch.randn(9, columns, generator=torch.Generator().manual_seed(columns)) * spread, k)


def test_rows_may_lie_apart_in_memory() -> None:
    padded = torch.randn(7, 5032, generator=torch.Generator().manual_seed(1))
    guard = padded[:, 5000:].clone()
    whole = padded.clone()
    found = summarize_rows(padded[:, :5000], 16)
    torch.testing.assert_close(found.top_TK, whole[:, :5000].topk(16, dim=-1).values, atol=0, rtol=0)
    torch.testing.assert_close(padded[:, 5000:], guard, atol=0, rtol=0)


@pytest.mark.parametrize("columns", [300, 4096, 40_000])
def test_of_equal_columns_the_lowest_are_kept(columns: int) -> None:
    logits = torch.zeros(2, columns)
    logits[:, 100:200] = 1.0
    found = summarize_rows(logits.clone(), 64)
    assert found.columns_TK.tolist() == [list(range(100, 164))] * 2
    assert summarize_rows(torch.zeros(1, columns), 4).columns_TK.tolist() == [[0, 1, 2, 3]]


def test_threads_and_row_counts_change_no_bit() -> None:
    logits = torch.randn(11, 3000, generator=torch.Generator().manual_seed(2))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        shared = summarize_rows(logits.clone(), 8)
    finally:
        torch.set_num_threads(before)
    for row in range(11):
        for one, other in zip(shared, summarize_rows(logits[row : row + 1].clone(), 8), strict=True):
            torch.testing.assert_close(one[row : row + 1], other, atol=0, rtol=0)


@pytest.mark.parametrize("columns", [300, 40_000])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", [0, 7, 299])
def test_a_bad_logit_makes_no_finite_summary(columns: int, bad: float, where: int) -> None:
    logits = torch.randn(3, columns, generator=torch.Generator().manual_seed(3))
    logits[1, where] = bad
    kept = summarize(logits, 8, torch.full((3,), -1))
    assert not kept.logprobs_TK[1].isfinite().any()
    assert kept.logprobs_TK[[0, 2]].isfinite().all()
    assert not kept.entropy_T[1].isfinite()


def test_a_row_of_nothing_but_nan_is_survived() -> None:
    kept = summarize(torch.full((2, 5000), torch.nan), 8, torch.full((2,), -1))
    assert kept.logprobs_TK.isnan().all()
