"""The Triton kernels under Triton's interpreter. test_triton.py runs this in a process with TRITON_INTERPRET=1.

The interpreter takes about a millisecond a program, so shapes are tiny.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from arwkv_kernels import backend_for, linear_sparse_kl, topk_logprobs, topk_logsumexp, wkv7_step
from arwkv_kernels import wkv7 as run_wkv7
from arwkv_kernels.arguments import WkvInputs
from arwkv_kernels.reference import wkv7_recurrence
from arwkv_kernels.triton import chunk, sparse_kl, wkv7, wkv7_backward, wkv7_forward
from arwkv_kernels.triton import topk_logsumexp as topk_launch
from arwkv_kernels.triton import wkv7_step as wkv7_step_launch

assert os.environ.get("TRITON_INTERPRET") == "1", "run test_triton.py"

MakeCase = Callable[..., Any]
AssertClose = Callable[[dict[str, Tensor], dict[str, Tensor], float], None]
FP32, BF16, FP16 = 1e-5, 8e-3, 1.2e-2

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
def _rounded(x, DROPPED: tl.constexpr):  # type: ignore[no-untyped-def]  # compiled by Triton
    """x without its last DROPPED bits: 16 leave a bf16, 13 a tf32."""
    bits = x.to(tl.float32).to(tl.int32, bitcast=True)
    return ((bits + (1 << (DROPPED - 1))) & -(1 << DROPPED)).to(tl.float32, bitcast=True)


@triton.jit
def _rounding_dot(x, y, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]  # compiled by Triton
    dropped: tl.constexpr = 16 if PRECISION == "bf16" else 13
    return tl.dot(_rounded(x, dropped), _rounded(y, dropped))


@triton.jit
def _no_operand(x, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]  # compiled by Triton
    return x.to(tl.float32)


class _AfterRounding:
    """A kernel's launcher that first rounds what a card would have kept in bf16: u, states, dy and their gradients."""

    def __init__(self, kernel: Any, stored: tuple[str, ...]) -> None:
        self.kernel, self.places = kernel, [kernel.arg_names.index(name) for name in stored]

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **constants: Any) -> None:
            for place in self.places:
                arguments[place].copy_(arguments[place].bfloat16())
            self.kernel[grid](*arguments, **constants)

        return launch


@pytest.fixture
def as_a_card_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter has no bf16 or tf32 arithmetic: operands and what is stored are rounded by hand."""
    for module in (chunk, wkv7_forward, wkv7_backward):
        monkeypatch.setattr(module, "dot", _rounding_dot)
        monkeypatch.setattr(module, "operand", _no_operand)
    monkeypatch.setattr(wkv7, "PRODUCTS", {"OVER_HEAD": "bf16", "OVER_TOKENS": "tf32"})
    stored = _AfterRounding(wkv7.wkv7_token_gradients_kernel, ("u_ptr", "checkpoint_ptr", "dy_ptr", "dS_ptr"))
    monkeypatch.setattr(wkv7, "wkv7_token_gradients_kernel", stored)


@pytest.mark.usefixtures("as_a_card_rounds")
@pytest.mark.parametrize(
    ("T", "D", "dtype", "options"),
    [
        (15, 32, torch.float16, {}),
        (65, 32, torch.bfloat16, {}),
        pytest.param(65, 64, torch.float16, {}, marks=pytest.mark.slow),
        (16, 128, torch.bfloat16, {}),
        (70, 64, torch.bfloat16, {"B": 1, "lowest_w": -4.0}),
        pytest.param(70, 32, torch.bfloat16, {"offsets": [0, 1, 18, 18, 70]}, marks=pytest.mark.slow),
    ],
)
def test_a_cards_rounding_stays_within_the_error_asked_of_it(
    T: int, D: int, dtype: torch.dtype, options: dict[str, Any], make_case: MakeCase, assert_close: AssertClose
) -> None:
    """The gate of test_gpu.py, with the cases nearest to it."""
    case = make_case(T, D, **options).to(dtype)
    results = case.to(torch.float32).results("triton")
    expected = case.to(torch.float64).results("reference")
    assert not torch.allclose(results["o"].double(), expected["o"], rtol=0, atol=1e-5), "nothing was rounded"
    kept, tolerance = ("final", "state"), BF16 if dtype == torch.bfloat16 else FP16
    assert_close({n: x if n in kept else x.to(dtype) for n, x in results.items()}, expected, tolerance)


def test_mixed_input_types_keep_theirs(make_case: MakeCase) -> None:
    """Under autocast the decay stays fp32 while projections are bf16."""
    case = make_case(17, H=1).to(torch.float32)
    tensors = tuple(x if i in (1, 6) else x.detach().bfloat16().requires_grad_() for i, x in enumerate(case.tensors))
    results = type(case)(tensors).results("triton")
    assert results["o"].dtype == results["v"].dtype == torch.bfloat16
    assert results["w"].dtype == results["final"].dtype == torch.float32


class _Guarded:
    """Stands in for torch.empty and torch.empty_like: NaN inside, and NaN for a while before and behind."""

    BAND = 4096

    def __init__(self) -> None:
        self.allocations: list[tuple[Tensor, int]] = []

    def empty(self, *size: Any, dtype: torch.dtype, device: Any = None) -> Tensor:
        shape = torch.Size(size[0] if isinstance(size[0], (tuple, list)) else size)
        return self._inside(shape, dtype)

    def empty_like(self, x: Tensor, **_: Any) -> Tensor:
        return self._inside(x.shape, x.dtype)

    def copy(self, x: Tensor) -> Tensor:
        return self._inside(x.shape, x.dtype).copy_(x.detach()).requires_grad_()

    def _inside(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        whole = torch.full((shape.numel() + 2 * self.BAND,), torch.nan, dtype=dtype)
        self.allocations.append((whole, shape.numel()))
        return whole[self.BAND : self.BAND + shape.numel()].view(shape)

    def assert_untouched(self) -> None:
        for whole, size in self.allocations:
            assert whole[: self.BAND].isnan().all(), f"written before a buffer of {size}"
            assert whole[self.BAND + size :].isnan().all(), f"written behind a buffer of {size}"


@pytest.mark.parametrize("deep", [False, True])
def test_kernels_write_all_of_their_buffers_and_nothing_beside(
    deep: bool, make_case: MakeCase, assert_close: AssertClose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs, outputs and what is kept lie in larger allocations of NaN. `deep`: through the exact kernels."""
    case = make_case(20, offsets=[0, 17, 20], lowest_w=-60.0 if deep else -0.6).to(torch.float32)
    expected = case.results("triton")
    guards = _Guarded()
    guarded = type(case)(tuple(guards.copy(x) for x in case.tensors), case.cu_seqlens)
    monkeypatch.setattr(torch, "empty", guards.empty)
    monkeypatch.setattr(torch, "empty_like", guards.empty_like)
    results = guarded.results("triton")
    monkeypatch.undo()
    assert len(guards.allocations) > 16
    guards.assert_untouched()
    assert_close(results, expected, 1e-6)


@pytest.mark.parametrize("at", [1, 16, 23])
def test_split_equals_whole(at: int, make_case: MakeCase, assert_close: AssertClose) -> None:
    case = make_case(37, H=1).to(torch.float32)
    *inputs, state = case.tensors
    whole, whole_final = case.run("triton")
    options: dict[str, Any] = {"output_final_state": True, "backend": "triton"}
    first, middle = run_wkv7(*(x[:, :at] for x in inputs), initial_state=state, **options)
    second, final = run_wkv7(*(x[:, at:] for x in inputs), initial_state=middle, **options)
    assert final is not None
    assert_close({"o": torch.cat([first, second], 1), "final": final}, {"o": whole, "final": whole_final}, FP32)


def test_steps_equal_whole(make_case: MakeCase, assert_close: AssertClose) -> None:
    case = make_case(19, H=1).to(torch.float32)
    *inputs, state = (x.detach() for x in case.tensors)
    outputs = []
    for step in zip(*(x.unbind(1) for x in inputs), strict=True):
        o, state = wkv7_step(*step, state, scale=0.5, backend="triton")
        outputs.append(o)
    whole, final = case.run("triton", scale=0.5)
    assert_close({"o": torch.stack(outputs, 1), "final": state}, {"o": whole, "final": final}, FP32)


def test_offsets_may_be_a_view_of_any_integers(make_case: MakeCase, assert_close: AssertClose) -> None:
    case = make_case(40, offsets=[0, 17, 40], H=1).to(torch.float32)
    view = torch.tensor([[0, 999], [17, 999], [40, 999]], dtype=torch.int32)[:, 0]
    assert_close(replace(case, cu_seqlens=view).results("triton"), case.results("triton"), 1e-6)


def test_decays_that_grow_and_cancel_take_the_exact_path(make_case: MakeCase, assert_close: AssertClose) -> None:
    """On a card w is not read: +60 and then -60 add up to nothing, but no factor between them fits fp32."""
    case = make_case(16, H=1, B=1).to(torch.float64)
    case.tensors[1].data.zero_()
    case.tensors[1].data[:, 0] = 60.0
    case.tensors[1].data[:, 1:15] = -60.0 / 14
    *inputs, state = (x.detach() for x in case.tensors)
    expected = wkv7_recurrence(WkvInputs(*inputs), state, 1.0)
    got = wkv7.wkv7_triton(WkvInputs(*(x.float() for x in inputs)), state.float(), None, 1.0)
    assert_close(dict(zip("os", got, strict=True)), dict(zip("os", expected, strict=True)), FP32)


def test_a_second_derivative_is_refused(make_case: MakeCase) -> None:
    case = make_case(3, H=1, B=1).to(torch.float32)
    (gradient,) = torch.autograd.grad(case.run("triton")[0].square().sum(), case.tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


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


def test_step_in_place_matches_torch() -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(3, 2, 32, generator=generator) * 0.3 for _ in range(6)]
    inputs[1] = -inputs[1].abs()
    pages = torch.randn(6, 2 * 32 * 32 + 9, generator=generator)
    slots, results = torch.tensor([4, 0, 5], dtype=torch.int32), []
    for backend in ("triton", "torch"):
        own = pages.clone()
        states = own[:, : 2 * 32 * 32].view(6, 2, 32, 32)
        results.append((wkv7_step(*inputs, states, slots=slots, scale=0.5, backend=backend)[0], own))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    untouched = torch.tensor([1, 2, 3])
    assert torch.equal(results[0][1][untouched], pages[untouched])


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


def test_rows_of_more_candidates_than_a_program_holds_run_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    hidden, weight = torch.randn(2, 8, generator=generator), torch.randn(50, 8, generator=generator)
    teacher = (torch.arange(9).repeat(2), torch.full((18,), -3.0), torch.full((2,), 9), torch.full((2,), -0.6))
    expected = linear_sparse_kl(hidden, weight, *teacher, backend="torch")
    monkeypatch.setattr(sparse_kl, "MOST_CANDIDATES", 8)
    monkeypatch.setattr(sparse_kl, "rows_in_triton", None)
    torch.testing.assert_close(linear_sparse_kl(hidden, weight, *teacher, backend="triton"), expected)


@pytest.mark.parametrize("columns", [100, 4500, 60_000])
@pytest.mark.parametrize("k", [1, 7, 64, 100])
def test_topk_logsumexp_matches_torch(k: int, columns: int) -> None:
    logits = 3 * torch.randn(3, columns, generator=torch.Generator().manual_seed(k))
    logits[1, columns // 2 :] -= 200  # nearly all the mass in one half
    results = (topk_logsumexp(logits, k, backend=backend) for backend in ("triton", "torch"))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ids", [torch.int64, torch.int32])
def test_topk_logprobs_matches_torch(ids: torch.dtype) -> None:
    logits = 3 * torch.randn(5, 5000, generator=torch.Generator().manual_seed(1))
    logits[4, 7] = 200.0  # no entropy
    next_ids = torch.tensor([0, 4999, -1, 5000, 7], dtype=ids)
    fused, plain = (topk_logprobs(logits, 8, next_ids, backend=backend) for backend in ("triton", "torch"))
    for name, got, want in zip(fused._fields, fused, plain, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5, msg=name)
    expected = logits.log_softmax(1)[[0, 1, 4], [0, 4999, 7]]
    torch.testing.assert_close(fused.next_logprob_T[[0, 1, 4]], expected, rtol=1e-5, atol=1e-5)
    assert fused.next_logprob_T[2] == 0.0
    assert fused.next_logprob_T[3] < -1e29


def test_topk_logsumexp_of_columns_that_are_none_and_of_strided_rows() -> None:
    logits = torch.randn(2, 9000, generator=torch.Generator().manual_seed(0))
    logits[:, 10:] = -torch.inf
    top = topk_logsumexp(logits[:, :8000], 10, backend="triton")
    assert top.ids_TK.sort(1).values.tolist() == [list(range(10))] * 2
    assert top.tail_logprob_T.tolist() == [-torch.inf] * 2
    torch.testing.assert_close(top.logsumexp_T, logits.logsumexp(1))


def test_topk_logsumexp_keeps_the_same_of_a_row_alone_as_among_others() -> None:
    """Also of the many equal logits here."""
    logits = (2 * torch.randn(3, 5000, generator=torch.Generator().manual_seed(0))).round()
    together = topk_logsumexp(logits, 64, backend="triton")
    for row in range(3):
        for one, among in zip(topk_logsumexp(logits[row : row + 1], 64, backend="triton"), together, strict=True):
            assert one[0].equal(among[row])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_topk_logsumexp_says_what_is_not_finite(value: float) -> None:
    logits = torch.randn(2, 5000)
    logits[1, 4321] = value
    top = topk_logsumexp(logits, 64, backend="triton")
    assert top.logsumexp_T.isnan().tolist() == [False, True]


@contextlib.contextmanager
def _noted(devices: list[str], x: Tensor) -> Iterator[None]:
    devices.append(x.device.type)
    yield


def test_every_launch_is_on_the_device_of_its_tensors(make_case: MakeCase, monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str] = []
    for module in (wkv7, wkv7_step_launch, sparse_kl, topk_launch):
        monkeypatch.setattr(module, "device_of", functools.partial(_noted, devices))
    case = make_case(2, B=1, H=1).to(torch.float32)
    *inputs, state = (x.detach() for x in case.tensors)
    case.results("triton")
    wkv7_step(*(x[:, 0] for x in inputs), state, backend="triton")
    topk_logsumexp(torch.randn(2, 50), 3, backend="triton")
    teacher = (torch.arange(4), torch.full((4,), -3.0), torch.full((1,), 4), torch.full((1,), -0.2))
    linear_sparse_kl(torch.randn(1, 8), torch.randn(50, 8), *teacher, backend="triton")
    assert len(devices) == 5


def test_auto_does_not_take_the_interpreter_for_a_backend() -> None:
    assert backend_for(torch.zeros(1, 1, 1, 32)).name == "cpu"
