"""The CPU's selection against torch.topk."""

import pytest
import torch

from arwkv_producer.top_k import top_k


@pytest.mark.parametrize("columns", [16, 100, 2048, 2049, 5000, 32_003])
@pytest.mark.parametrize("k", [1, 16])
def test_top_k_is_torchs(columns: int, k: int) -> None:
    values = torch.randn(9, columns, generator=torch.Generator().manual_seed(columns))
    top, at = top_k(values, k)
    expected = values.topk(k, dim=-1)
    torch.testing.assert_close(top, expected.values, atol=0, rtol=0)
    torch.testing.assert_close(at, expected.indices)


def test_ties_are_kept_as_often_as_they_fit() -> None:
    values = torch.zeros(2, 4096)
    values[:, 100:200] = 1.0
    top, at = top_k(values, 64)
    assert (top == 1.0).all()
    assert all(len(set(row.tolist())) == 64 and min(row) >= 100 and max(row) < 200 for row in at)
