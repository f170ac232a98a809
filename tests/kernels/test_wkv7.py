from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from arwkv_kernels import compiled, wkv7, wkv7_step
from arwkv_kernels.arguments import require_offsets

MakeCase = Callable[..., Any]
AssertClose = Callable[[dict[str, Tensor], dict[str, Tensor], float], None]
BACKENDS = ("torch", "cpu")
FP32, BF16 = 1e-5, 8e-3


@pytest.mark.parametrize("D", [32, 64, 128])
@pytest.mark.parametrize("T", [1, 15, 16, 17, 63, 64, 65, 200])
def test_outputs_and_gradients_match_fp64(T: int, D: int, make_case: MakeCase, assert_close: AssertClose) -> None:
    case = make_case(T, D, B=1 if D == 128 else 2, H=1 if D == 128 else 2).to(torch.float32)
    expected = case.to(torch.float64).results("reference")
    for backend in BACKENDS:
        assert_close(case.results(backend), expected, FP32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bf16_inputs_are_computed_in_fp32(backend: str, make_case: MakeCase, assert_close: AssertClose) -> None:
    case = make_case(65).to(torch.bfloat16)
    results = case.results(backend)
    assert results["o"].dtype == results["w"].dtype == torch.bfloat16
    assert results["final"].dtype == results["state"].dtype == torch.float32
    assert_close(results, case.to(torch.float64).results("reference"), BF16)


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_sequences_do_not_see_each_other(backend: str, make_case: MakeCase, assert_close: AssertClose) -> None:
    offsets = [0, 1, 18, 18, 64, 100]
    packed = make_case(100, offsets=offsets).to(torch.float32)
    assert_close(packed.results(backend), packed.to(torch.float64).results("reference"), FP32)
    *inputs, state = packed.tensors
    alone, alone_final = wkv7(
        *(x[:, 18:64] for x in inputs), initial_state=state[3:4], output_final_state=True, backend="reference"
    )
    o, final = packed.run(backend)
    assert alone_final is not None
    assert_close({"o": o[:, 18:64], "final": final[3:4]}, {"o": alone, "final": alone_final}, FP32)
    torch.testing.assert_close(final[2], state[2])


@settings(max_examples=25, deadline=None)
@given(
    T=st.integers(2, 70),
    cut=st.floats(0.01, 0.99),
    D=st.sampled_from([2, 6, 16, 32]),
    backend=st.sampled_from(BACKENDS),
)
def test_split_anywhere_equals_whole(
    T: int, cut: float, D: int, backend: str, make_case: MakeCase, assert_close: AssertClose
) -> None:
    case = make_case(T, D).to(torch.float32)
    *inputs, state = case.tensors
    at = max(1, int(T * cut))
    whole, whole_final = case.run(backend)
    first, middle = wkv7(*(x[:, :at] for x in inputs), initial_state=state, output_final_state=True, backend=backend)
    second, final = wkv7(*(x[:, at:] for x in inputs), initial_state=middle, output_final_state=True, backend=backend)
    assert final is not None
    assert_close({"o": torch.cat([first, second], 1), "final": final}, {"o": whole, "final": whole_final}, FP32)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_steps_equal_whole(backend: str, make_case: MakeCase, assert_close: AssertClose) -> None:
    case = make_case(20).to(torch.float32)
    *inputs, state = (x.detach() for x in case.tensors)
    outputs = []
    for step in zip(*(x.unbind(1) for x in inputs), strict=True):
        before = state.clone()
        o, after = wkv7_step(*step, state, scale=0.5, backend=backend)
        assert torch.equal(state, before)
        outputs.append(o)
        state = after
    whole, final = case.run("cpu", scale=0.5)
    assert_close({"o": torch.stack(outputs, 1), "final": state}, {"o": whole, "final": final}, FP32)


@pytest.mark.parametrize("backend", ["torch", "cpu"])
@pytest.mark.parametrize(("heads", "D"), [(3, 64), (40, 96)])  # the second is shared among threads
def test_step_in_place_changes_these_slots_alone(
    backend: str, heads: int, D: int, assert_close: AssertClose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States lie in pages that hold other things too."""
    monkeypatch.setattr(compiled.torch, "get_num_threads", lambda: 3)
    generator = torch.Generator().manual_seed(2)
    *inputs, w = (torch.randn(4, heads, D, generator=generator) * 0.3 for _ in range(6))
    inputs.insert(1, -w.abs())
    pages = torch.randn(7, heads * D * D + 5, generator=generator)
    before, slots = pages.clone(), torch.tensor([5, 0, 6, 2], dtype=torch.int32)
    states = pages[:, : heads * D * D].view(7, heads, D, D)
    expected, after = wkv7_step(*inputs, states[slots.long()].clone(), scale=0.5, backend="torch")
    o, same = wkv7_step(*inputs, states, slots=slots, scale=0.5, backend=backend)
    assert same is states
    assert_close({"o": o, "states": states[slots.long()]}, {"o": expected, "states": after}, FP32)
    assert torch.equal(pages[:, heads * D * D :], before[:, heads * D * D :])
    others = torch.tensor([1, 3, 4])
    assert torch.equal(pages[others], before[others])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"slots": torch.tensor([0, 5])}, "slots"),
        ({"slots": torch.tensor([0.0, 1.0])}, "integers"),
        ({"state": torch.zeros(5, 2, 8, 8, dtype=torch.bfloat16)}, "contiguous fp32"),
        ({"state": torch.zeros(5, 2, 8, 8).mT}, "contiguous fp32"),
        ({"state": torch.zeros(5, 3, 8, 8)}, "shape"),
        ({"state": torch.zeros(5, 2, 8, 8, requires_grad=True)}, "gradient"),
    ],
)
def test_step_in_place_refuses_what_it_cannot_change(change: dict[str, torch.Tensor], said: str) -> None:
    given = {"state": torch.zeros(5, 2, 8, 8), "slots": torch.tensor([0, 1])} | change
    with pytest.raises(ValueError, match=said):
        wkv7_step(*[torch.zeros(2, 2, 8) for _ in range(6)], given["state"], slots=given["slots"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lowest_w", [0.0, -2.0, -5.0, -60.0, -4000.0, -torch.inf])
def test_every_decay_is_correct_and_finite(
    lowest_w: float, backend: str, make_case: MakeCase, assert_close: AssertClose
) -> None:
    case = make_case(40, 16, lowest_w=lowest_w).to(torch.float32)
    assert_close(case.results(backend), case.to(torch.float64).results("reference"), FP32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_some_dead_channels_among_slow_ones(backend: str, make_case: MakeCase, assert_close: AssertClose) -> None:
    case = make_case(70, 16).to(torch.float64)
    w = case.tensors[1].detach().clone()
    w[:, ::7, :, ::3] = -4000.0
    case.tensors[1].data.copy_(w)
    assert_close(case.to(torch.float32).results(backend), case.results("reference"), FP32)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
@pytest.mark.parametrize("offsets", [None, [0, 3, 19]])
def test_gradients_pass_gradcheck(backend: str, offsets: list[int] | None, make_case: MakeCase) -> None:
    case = make_case(19, 2, B=1, H=1, offsets=offsets)

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return type(case)(tensors, case.cu_seqlens).run(backend, scale=0.7)

    assert torch.autograd.gradcheck(run, case.tensors, fast_mode=False)


@pytest.mark.parametrize("backend", BACKENDS)
def test_uninitialized_memory_never_shows(backend: str, make_case: MakeCase, assert_close: AssertClose) -> None:
    """`torch.empty` hands out NaN here, and the inputs are views with NaN all round."""
    case = make_case(33).to(torch.float32)
    expected = case.results(backend)
    bands, views = [], []
    for x in case.tensors:
        band = torch.full([n + 2 for n in x.shape], torch.nan)
        inner = band[tuple(slice(1, -1) for _ in x.shape)]
        inner.copy_(x.detach())
        bands.append((band, band.clone()))
        views.append(inner.requires_grad_())
    torch.use_deterministic_algorithms(True)
    try:
        poisoned = type(case)(tuple(views)).results(backend)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_close(poisoned, expected, 1e-6)
    for after, before in bands:
        torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)


def test_threads_change_nothing(make_case: MakeCase) -> None:
    case = make_case(50, offsets=[0, 7, 30, 50]).to(torch.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = case.results("cpu")
        torch.set_num_threads(3)
        together = case.results("cpu")
    finally:
        torch.set_num_threads(before)
    for name, want in alone.items():
        assert torch.equal(together[name], want), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_lower_the_precision(backend: str, make_case: MakeCase) -> None:
    case = make_case(40).to(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered, _ = case.run(backend)
    assert torch.equal(lowered, case.run(backend)[0])


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_no_tokens_leave_the_state_as_it_was(backend: str, make_case: MakeCase) -> None:
    case = make_case(0)
    o, final = case.run(backend)
    assert o.shape == (2, 0, 2, 32)
    torch.testing.assert_close(final, case.tensors[-1])


def test_final_state_comes_only_when_asked(make_case: MakeCase) -> None:
    *inputs, _ = make_case(5).to(torch.float32).tensors
    assert wkv7(*inputs)[1] is None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("w", [1.5, torch.nan])
def test_a_step_refuses_the_decays_that_a_sequence_does(w: float, backend: str, make_case: MakeCase) -> None:
    *inputs, state = (x.detach() for x in make_case(1).to(torch.float32).tensors)
    inputs[1] = torch.full_like(inputs[1], w)
    with pytest.raises(ValueError, match="w reaches"):
        wkv7_step(*(x[:, 0] for x in inputs), state, backend=backend)


def test_nothing_is_kept_where_no_backward_can_follow(make_case: MakeCase, monkeypatch: pytest.MonkeyPatch) -> None:
    case, kept = make_case(20).to(torch.float32), []
    loop_of = compiled.tokens.forward_loop

    def spy(size: int) -> Callable[..., None]:
        return lambda *arrays: (kept.append(arrays[9].size), loop_of(size)(*arrays))[1]

    monkeypatch.setattr(compiled.tokens, "forward_loop", spy)
    case.run("cpu")
    assert max(kept) > 0
    kept.clear()
    with torch.no_grad():
        case.run("cpu")
    assert max(kept) == 0


def test_a_second_derivative_of_the_compiled_loops_is_refused(make_case: MakeCase) -> None:
    case = make_case(3).to(torch.float32)
    (gradient,) = torch.autograd.grad(case.run("cpu")[0].square().sum(), case.tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_offsets_are_also_checked_where_the_host_does_not_read_them() -> None:
    for offsets in ([0, 30], [20, 40], [0, 30, 20, 40]):
        with pytest.raises(RuntimeError, match="must rise from 0 to T=40"):
            require_offsets(40, torch.tensor(offsets))
    require_offsets(40, torch.tensor([0, 20, 20, 40]))


def _change(case: Any, index: int, value: Tensor) -> Any:
    return type(case)(tuple(value if i == index else x for i, x in enumerate(case.tensors)), case.cu_seqlens)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda c: _change(c, 2, c.tensors[2][:, :3]), r"k has shape \(2, 3, 2, 32\)"),
        (lambda c: _change(c, 6, c.tensors[6][:1]), r"state has shape \(1, 2, 32, 32\)"),
        (lambda c: _change(c, 1, c.tensors[1].abs() + 1.5), r"w reaches .* at most 0"),
        (lambda c: _change(c, 1, c.tensors[1] * torch.nan), r"w reaches nan"),
        (lambda c: _change(c, 3, c.tensors[3].int()), r"v is torch.int32"),
        (lambda c: type(c)(c.tensors, torch.tensor([0, 5])), r"batch 2; cu_seqlens needs batch 1"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_arguments_are_refused_in_words(
    broken: Callable[[Any], Any], words: str, backend: str, make_case: MakeCase
) -> None:
    with pytest.raises(ValueError, match=words):
        broken(make_case(5).to(torch.float32)).run(backend)


@pytest.mark.parametrize("offsets", [[0, 3, 2, 5], [1, 5], [0, 4], [5], [0.0, 5.0]])
def test_offsets_that_do_not_rise_to_the_end_are_refused(offsets: list[int], make_case: MakeCase) -> None:
    *inputs, _ = make_case(5, B=1).to(torch.float32).tensors
    with pytest.raises(ValueError, match="cu_seqlens"):
        wkv7(*inputs, cu_seqlens=torch.tensor(offsets))
