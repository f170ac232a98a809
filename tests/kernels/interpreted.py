"""The Triton kernels under Triton's interpreter. test_triton.py runs this in a process with TRITON_INTERPRET=1.

The interpreter takes about a millisecond a program, so shapes are tiny.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from arwkv_kernels import backend_for, linear_sparse_kl, topk_logsumexp, wkv7_step
from arwkv_kernels.triton import wkv7_backward, wkv7_forward

assert os.environ.get("TRITON_INTERPRET") == "1", "run test_triton.py"

MakeCase = Callable[..., Any]
AssertClose = Callable[[dict[str, Tensor], dict[str, Tensor], float], None]
FP32, BF16 = 1e-5, 8e-3

# Decays out of range overflow in the chunk kernels on purpose: their results are thrown away.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.mark.parametrize(("T", "D"), [(1, 32), (15, 64), (16, 32), (17, 128), (33, 32), (65, 64)])
def test_outputs_and_gradients_match_fp64(T: int, D: int, make_case: MakeCase, assert_close: AssertClose) -> None:
    case = make_case(T, D, H=1).to(torch.float32)
    assert_close(case.results("triton", 0.7), case.to(torch.float64).results("reference", 0.7), FP32)


def test_packed_sequences(make_case: MakeCase, assert_close: AssertClose) -> None:
    case = make_case(52, offsets=[0, 1, 18, 18, 34, 52]).to(torch.float32)
    assert_close(case.results("triton"), case.to(torch.float64).results("reference"), FP32)


@pytest.mark.parametrize("lowest_w", [0.0, -4.0, -60.0, -4000.0, -torch.inf])
def test_every_decay_is_correct_and_finite(lowest_w: float, make_case: MakeCase, assert_close: AssertClose) -> None:
    case = make_case(19, H=1, lowest_w=lowest_w).to(torch.float32)
    assert_close(case.results("triton"), case.to(torch.float64).results("reference"), FP32)


def test_one_pair_out_of_range_leaves_the_others_in_chunks(make_case: MakeCase, assert_close: AssertClose) -> None:
    case = make_case(20).to(torch.float64)
    case.tensors[1].data[1, 7, 0, 5] = -3000.0
    assert_close(case.to(torch.float32).results("triton"), case.results("reference"), FP32)


def test_repeated_keys_do_not_cancel_in_the_solve(make_case: MakeCase, assert_close: AssertClose) -> None:
    """One key for all tokens, wholly replaced each time: powers of the triangular matrix would reach thousands."""
    case = make_case(33, H=1).to(torch.float64)
    case.tensors[1].data.mul_(0.01)
    case.tensors[4].data.copy_(case.tensors[4].data[:, :1].expand_as(case.tensors[4]))
    case.tensors[5].data.copy_(-case.tensors[4].data)
    assert_close(case.to(torch.float32).results("triton"), case.results("reference"), FP32)


@triton.jit
def _rounded(x):  # type: ignore[no-untyped-def]  # compiled by Triton
    bits = x.to(tl.float32).to(tl.int32, bitcast=True)
    return ((bits + 0x8000) & -65536).to(tl.float32, bitcast=True)


@triton.jit
def _dot_in_bf16(x, y, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]  # compiled by Triton
    return tl.dot(_rounded(x), _rounded(y))


@pytest.mark.parametrize("D", [64, 128])
def test_products_rounded_to_bf16_stay_within_bf16_error(
    D: int, make_case: MakeCase, assert_close: AssertClose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interpreter has no bf16 arithmetic; here the operands of every product are rounded by hand."""
    monkeypatch.setattr(wkv7_forward, "dot", _dot_in_bf16)
    monkeypatch.setattr(wkv7_backward, "dot", _dot_in_bf16)
    case = make_case(70, D, B=1, H=1).to(torch.float32)
    results = case.results("triton")
    expected = case.to(torch.float64).results("reference")
    assert not torch.allclose(results["o"].double(), expected["o"], rtol=0, atol=1e-5), "nothing was rounded"
    assert_close(results, expected, BF16)


def test_mixed_input_types_keep_theirs(make_case: MakeCase) -> None:
    """Under autocast the decay stays fp32 while projections are bf16."""
    case = make_case(17, H=1).to(torch.float32)
    tensors = tuple(x if i in (1, 6) else x.detach().bfloat16().requires_grad_() for i, x in enumerate(case.tensors))
    results = type(case)(tensors).results("triton")
    assert results["o"].dtype == results["v"].dtype == torch.bfloat16
    assert results["w"].dtype == results["final"].dtype == torch.float32


def test_uninitialised_memory_never_shows(make_case: MakeCase, assert_close: AssertClose) -> None:
    """`torch.empty` hands out NaN here."""
    case = make_case(40, offsets=[0, 17, 40]).to(torch.float32)
    expected = case.results("triton")
    torch.use_deterministic_algorithms(True)
    try:
        assert_close(case.results("triton"), expected, 1e-6)
    finally:
        torch.use_deterministic_algorithms(False)


def test_step_matches_torch() -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(2, 3, 64, generator=generator) * 0.3 for _ in range(6)]
    inputs[1] = -inputs[1].abs()
    state = torch.randn(2, 3, 64, 64, generator=generator)
    before = state.clone()
    for got, want in zip(
        wkv7_step(*inputs, state, scale=0.5, backend="triton"),
        wkv7_step(*inputs, state, scale=0.5, backend="torch"),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert torch.equal(state, before)


@pytest.mark.parametrize("tail", ["bucket", "renormalize", "drop"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("sharpness", [1.0, 100.0])
def test_sparse_kl_matches_torch(tail: str, temperature: float, sharpness: float) -> None:
    generator = torch.Generator().manual_seed(2)
    counts = torch.tensor([1, 0, 5, 3, 50, 49, 7])
    hidden = (torch.randn(7, 8, generator=generator) * sharpness).requires_grad_()
    weight = torch.randn(50, 8, generator=generator).requires_grad_()
    ids = torch.cat([torch.randperm(50, generator=generator)[: int(n)] for n in counts])
    logprobs = torch.cat([torch.randn(int(n), generator=generator).log_softmax(0) - 0.5 for n in counts])
    tail_logprob = torch.full((7,), -0.5).exp().neg().log1p()
    results = []
    for backend in ("torch", "triton"):
        loss = linear_sparse_kl(
            hidden, weight, ids, logprobs, counts, tail_logprob,
            tail=tail, temperature=temperature, mask=torch.arange(7) != 3, token_chunk=4, backend=backend,
        )  # fmt: skip
        results.append((loss, *torch.autograd.grad(loss, (hidden, weight))))
    for got, want in zip(results[1], results[0], strict=True):
        assert torch.isfinite(got).all()
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [1, 7, 64])
def test_topk_logsumexp_matches_torch(k: int) -> None:
    logits = torch.randn(3, 4500, generator=torch.Generator().manual_seed(k))
    logits[:, 4400:] = -torch.inf
    for got, want in zip(
        topk_logsumexp(logits, k, backend="triton"), topk_logsumexp(logits, k, backend="torch"), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_auto_does_not_take_the_interpreter_for_a_backend() -> None:
    assert backend_for(torch.zeros(1, 1, 1, 32)).name == "cpu"
