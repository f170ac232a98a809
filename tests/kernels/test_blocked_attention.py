"""Attention by blocks of queries gives what the whole matrix of scores gives, forward and backward."""

import pytest
import torch
from torch import Tensor

from arwkv_kernels import blocked_attention as blocked_attention_module
from arwkv_kernels.blocked_attention import QUERIES, blocked_attention

B, D = 2, 16
SCALE = D**-0.5


def whole(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor) -> Tensor:
    shared = q_BHTD.shape[1] // k_BKTD.shape[1]
    k_BHTD, v_BHTD = (x.repeat_interleave(shared, dim=1) for x in (k_BKTD, v_BKTD))
    T = q_BHTD.shape[2]
    later_TT = torch.ones(T, T, dtype=torch.bool).triu(1)
    return (SCALE * q_BHTD @ k_BHTD.mT).masked_fill(later_TT, -torch.inf).softmax(-1) @ v_BHTD


@pytest.fixture(params=[False, True], ids=["by blocks", "torch's forward pass"])
def with_matrix_units(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds of processor, whichever runs this."""
    monkeypatch.setattr(blocked_attention_module, "_has_matrix_units", lambda: request.param)


@pytest.mark.usefixtures("with_matrix_units")
@pytest.mark.parametrize("length", [1, QUERIES - 1, QUERIES, QUERIES + 1, 3 * QUERIES + 5])
@pytest.mark.parametrize("heads", [(2, 2), (6, 2), (4, 1)])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 2e-6), (torch.bfloat16, 0.01)])
def test_values_and_gradients_are_those_of_the_whole_matrix(
    length: int, heads: tuple[int, int], dtype: torch.dtype, most: float
) -> None:
    torch.manual_seed(0)
    # As the projections of a layer make them: heads beside one another.
    drawn = [torch.randn(B, length, n, D).transpose(1, 2) for n in (heads[0], heads[1], heads[1])]
    given = [x.to(dtype).requires_grad_() for x in drawn]
    exact = [x.detach().double().requires_grad_() for x in given]
    upper_BHTD = torch.randn(B, heads[0], length, D).to(dtype)
    ours, expected = blocked_attention(*given, SCALE), whole(*exact)
    assert (ours.dtype, ours.shape) == (dtype, upper_BHTD.shape)
    gradients = torch.autograd.grad(ours, given, upper_BHTD)
    expected_gradients = torch.autograd.grad(expected, exact, upper_BHTD.double())
    for found, true in zip((ours, *gradients), (expected, *expected_gradients), strict=True):
        assert (found.double() - true).norm() <= most * true.norm() + 1e-12
