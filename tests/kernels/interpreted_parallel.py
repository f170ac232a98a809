"""The chunk-parallel form under Triton's interpreter. test_triton.py runs this in a process with TRITON_INTERPRET=1."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from interpreted import BF16, FP16, FP32, AssertClose, MakeCase, _AfterRounding, _no_operand, _rounding_dot

from arwkv_kernels.triton import chunk, configs
from arwkv_kernels.triton.parallel import autograd, solve, tokens, walks

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def parallel() -> Iterator[None]:
    with configs.form("parallel"):
        yield


@pytest.fixture
def few_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device with so many multiprocessors that the walk leaves the output to a kernel of its own."""
    monkeypatch.setattr(autograd, "multiprocessors", lambda device: 1_000_000)


@pytest.fixture
def fp32_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut as for fp32 inputs on a card. The interpreter's products are fp32 anyway."""
    monkeypatch.setattr(autograd, "PARALLEL", configs.PARALLEL_FP32)


@pytest.fixture
def as_a_card_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operands and what is stored are rounded by hand; T is stored in fp32."""
    for module in (chunk, solve, walks, tokens):
        monkeypatch.setattr(module, "dot", _rounding_dot)
        if hasattr(module, "operand"):
            monkeypatch.setattr(module, "operand", _no_operand)
    monkeypatch.setattr(autograd, "FP32", autograd.HALF._replace(stored=torch.float32))
    for name, stored in (
        ("wkv7_output_kernel", ("u_ptr", "state_ptr")),
        ("wkv7_span_gradients_kernel", ("u_ptr", "state_ptr", "dy_ptr", "dZ_ptr")),
    ):
        monkeypatch.setattr(autograd, name, _AfterRounding(getattr(autograd, name), stored))


def repeated_keys(make_case: MakeCase, T: int, D: int) -> Any:
    """One key for all tokens, wholly replaced each time, and decays near 1."""
    case = make_case(T, D, H=1, B=1).to(torch.float64)
    case.tensors[1].data.mul_(0.01)
    case.tensors[4].data.copy_(case.tensors[4].data[:, :1].expand_as(case.tensors[4]))
    case.tensors[5].data.copy_(-case.tensors[4].data)
    return case


SHAPES: list[tuple[int, int, list[int] | None]] = [
    (1, 32, None), (31, 64, None), (32, 32, None), (33, 32, None), (63, 64, None), (64, 32, None), (65, 64, None),
    (130, 64, None), (97, 128, None), (52, 32, [0, 1, 18, 18, 34, 52]), (200, 32, [0, 65, 65, 129, 200]),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("cut", [None, "few_sequences", "fp32_configurations"])
@pytest.mark.parametrize(("T", "D", "offsets"), SHAPES)
def test_outputs_and_gradients_match_fp64(
    T: int, D: int, offsets: list[int] | None, cut: str | None,
    make_case: MakeCase, assert_close: AssertClose, request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    if cut:
        request.getfixturevalue(cut)
    case = make_case(T, D, H=1, offsets=offsets).to(torch.float32)
    assert_close(case.results("triton", 0.7), case.to(torch.float64).results("reference", 0.7), FP32)


def test_packed_sequences_match_fp64(make_case: MakeCase, assert_close: AssertClose) -> None:
    case = make_case(36, H=1, offsets=[0, 1, 1, 36]).to(torch.float32)
    assert_close(case.results("triton"), case.to(torch.float64).results("reference"), FP32)


@pytest.mark.slow
@pytest.mark.usefixtures("few_sequences")
def test_few_sequences_give_the_same_output_without_a_gradient(make_case: MakeCase) -> None:
    case = make_case(70, H=1, B=1).to(torch.float32)
    with torch.no_grad():
        o, final = case.run("triton", 0.7)
    expected_o, expected_final = case.run("triton", 0.7)
    assert o.equal(expected_o)
    assert final.equal(expected_final)


@pytest.mark.usefixtures("fp32_configurations")
@pytest.mark.parametrize(("T", "D"), [(33, 32), (17, 128)])
def test_fp32_configurations_match_fp64(T: int, D: int, make_case: MakeCase, assert_close: AssertClose) -> None:
    case = make_case(T, D, B=1, H=1).to(torch.float32)
    assert_close(case.results("triton", 0.7), case.to(torch.float64).results("reference", 0.7), FP32)


@pytest.mark.slow
@pytest.mark.usefixtures("fp32_configurations")
@pytest.mark.parametrize("lowest_w", [-4.0, -60.0, -torch.inf])
def test_fp32_configurations_take_every_decay(lowest_w: float, make_case: MakeCase, assert_close: AssertClose) -> None:
    case = make_case(70, 128, H=1, B=1, lowest_w=lowest_w).to(torch.float32)
    assert_close(case.results("triton"), case.to(torch.float64).results("reference"), FP32)


@pytest.mark.usefixtures("fp32_configurations")
def test_fp32_values_leave_the_other_inputs_their_types(make_case: MakeCase) -> None:
    """Their gradients are added up over slices of columns in fp32, and rounded once."""
    case = make_case(20, 128, B=1, H=1).to(torch.float32)
    whole = case.results("triton")
    tensors = tuple(x if i in (1, 3, 6) else x.detach().bfloat16().requires_grad_() for i, x in enumerate(case.tensors))
    results = type(case)(tensors).results("triton")
    for name in "rkab":
        assert results[name].dtype == torch.bfloat16
        assert (results[name].float() - whole[name]).abs().max() < 0.03 * whole[name].abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("lowest_w", [0.0, -4.0, -60.0, -4000.0, -torch.inf])
def test_every_decay_is_correct_and_finite(lowest_w: float, make_case: MakeCase, assert_close: AssertClose) -> None:
    case = make_case(35, H=1, B=1, lowest_w=lowest_w).to(torch.float32)
    assert_close(case.results("triton"), case.to(torch.float64).results("reference"), FP32)


@pytest.mark.slow
def test_one_pair_out_of_range_leaves_the_others_in_chunks(make_case: MakeCase, assert_close: AssertClose) -> None:
    case = make_case(40).to(torch.float64)
    case.tensors[1].data[1, 37, 0, 5] = -3000.0
    assert_close(case.to(torch.float32).results("triton"), case.results("reference"), FP32)


@pytest.mark.slow
def test_a_retained_graph_gives_the_same_gradients_again(make_case: MakeCase) -> None:
    case = make_case(40, H=1, B=1).to(torch.float32)
    o, _ = case.run("triton")
    first = torch.autograd.grad(o.square().sum(), case.tensors, retain_graph=True)
    again = torch.autograd.grad(o.square().sum(), case.tensors)
    assert all(x.equal(y) for x, y in zip(first, again, strict=True))


@pytest.mark.usefixtures("few_sequences", "as_a_card_rounds")
def test_a_card_keeps_repeated_keys_under_slow_decay(make_case: MakeCase, assert_close: AssertClose) -> None:
    """Also where few sequences leave the output to a kernel of its own."""
    low = repeated_keys(make_case, 70, 32).to(torch.bfloat16)
    o, final = low.to(torch.float32).run("triton")
    expected = low.to(torch.float64).results("reference")
    assert_close({"o": o.bfloat16(), "final": final}, {n: expected[n] for n in ("o", "final")}, 1e-2)


@pytest.mark.slow
@pytest.mark.usefixtures("as_a_card_rounds")
@pytest.mark.parametrize(("T", "D"), [(256, 32), (256, 64), (130, 128)])
def test_a_card_keeps_long_runs_of_repeated_keys(
    T: int, D: int, make_case: MakeCase, assert_close: AssertClose
) -> None:
    low = repeated_keys(make_case, T, D).to(torch.bfloat16)
    results = low.to(torch.float32).results("triton")
    rounded = {n: x if n in ("final", "state") else x.bfloat16() for n, x in results.items()}
    expected = low.to(torch.float64).results("reference")
    assert_close(rounded, {n: expected[n] for n in ("o", "final", "r", "w", "k", "v", "state")}, 1e-2)
    # a and b meet no other direction here: their gradients are differences of large terms.
    assert_close(rounded, {n: expected[n] for n in "ab"}, 3e-2)


@pytest.mark.slow
@pytest.mark.usefixtures("as_a_card_rounds")
@pytest.mark.parametrize(
    ("T", "D", "dtype", "options"),
    [
        (15, 32, torch.float16, {}),
        (65, 32, torch.bfloat16, {}),
        (128, 32, torch.bfloat16, {}),
        (65, 64, torch.float16, {}),
        (200, 64, torch.bfloat16, {}),
        (65, 128, torch.bfloat16, {"B": 1}),
        (70, 64, torch.bfloat16, {"B": 1, "lowest_w": -2.4}),
        (200, 32, torch.bfloat16, {"offsets": [0, 1, 18, 18, 200]}),
    ],
)
def test_a_cards_rounding_stays_within_the_error_asked_of_it(
    T: int, D: int, dtype: torch.dtype, options: dict[str, Any], make_case: MakeCase, assert_close: AssertClose
) -> None:
    case = make_case(T, D, **options).to(dtype)
    results = case.to(torch.float32).results("triton")
    expected = case.to(torch.float64).results("reference")
    assert not torch.allclose(results["o"].double(), expected["o"], rtol=0, atol=1e-5), "nothing was rounded"
    kept, tolerance = ("final", "state"), BF16 if dtype == torch.bfloat16 else FP16
    assert_close({n: x if n in kept else x.to(dtype) for n, x in results.items()}, expected, tolerance)


def test_an_unknown_form_is_refused() -> None:
    with (
        pytest.raises(ValueError, match='form "chunked" is not known; choose one of serial, parallel'),
        configs.form("chunked"),
    ):
        pass
