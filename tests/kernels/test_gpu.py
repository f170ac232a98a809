"""Numerics of every shipped Triton configuration on the card itself. `benchmarks/kernels.py --gpu` runs these first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from arwkv_kernels import backend_for, linear_sparse_kl, topk_logprobs, topk_logsumexp, wkv7_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

MakeCase = Callable[..., Any]
AssertClose = Callable[[dict[str, Tensor], dict[str, Tensor], float], None]
# fp16 is multiplied in bf16, so its error is bf16's, and not hidden by the rounding of what it is compared with.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1.2e-2}


@pytest.fixture(params=["serial", "parallel"])
def form(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each form of the recurrence in chunks."""
    pytest.importorskip("triton")
    from arwkv_kernels.triton import configs

    with configs.form(request.param):
        yield


def on_gpu(case: Any) -> Any:
    tensors = tuple(x.detach().cuda().requires_grad_() for x in case.tensors)
    offsets = None if case.cu_seqlens is None else case.cu_seqlens.cuda()
    return replace(case, tensors=tensors, cu_seqlens=offsets)


def check(case: Any, dtype: torch.dtype, assert_close: AssertClose) -> None:
    low = case.to(dtype)
    results = {name: x.cpu() for name, x in on_gpu(low).results("triton").items()}
    assert_close(results, low.to(torch.float64).results("reference"), TOLERANCES[dtype])


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("D", [32, 64, 128])
@pytest.mark.parametrize("T", [1, 15, 16, 17, 63, 64, 65, 200])
def test_outputs_and_gradients(
    T: int, D: int, dtype: torch.dtype, make_case: MakeCase, assert_close: AssertClose
) -> None:
    check(make_case(T, D), dtype, assert_close)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("H", [2, 256])
def test_repeated_keys_under_slow_decay(D: int, H: int, make_case: MakeCase, assert_close: AssertClose) -> None:
    """One key for all tokens, wholly replaced each time; with fewer and with more heads than multiprocessors."""
    case = make_case(130, D, B=1, H=H).to(torch.float64)
    case.tensors[1].data.mul_(0.01)
    case.tensors[4].data.copy_(case.tensors[4].data[:, :1].expand_as(case.tensors[4]))
    case.tensors[5].data.copy_(-case.tensors[4].data)
    low = case.to(torch.bfloat16)
    o, _ = on_gpu(low).run("triton")
    with torch.no_grad():
        expected, _ = low.to(torch.float64).run("reference")
    assert_close({"o": o.cpu()}, {"o": expected}, 1e-2)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("D", [32, 64])
def test_more_heads_than_multiprocessors(D: int, make_case: MakeCase, assert_close: AssertClose) -> None:
    check(make_case(70, D, H=128), torch.bfloat16, assert_close)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("dtype", list(TOLERANCES))
def test_packed(dtype: torch.dtype, make_case: MakeCase, assert_close: AssertClose) -> None:
    check(make_case(200, 64, offsets=[0, 1, 18, 18, 64, 200]), dtype, assert_close)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("lowest_w", [0.0, -4.0, -60.0, -4000.0, -torch.inf])
def test_every_decay(lowest_w: float, make_case: MakeCase, assert_close: AssertClose) -> None:
    check(make_case(70, 64, lowest_w=lowest_w), torch.bfloat16, assert_close)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_time_mixer_runs_the_chunk_kernels(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast, against itself in fp32 on a CPU."""
    time_mix = pytest.importorskip("arwkv_student.model.time_mix")
    config = pytest.importorskip("arwkv_student.model.time_mix_options")
    from arwkv_kernels.triton import wkv7 as launches

    launched: list[torch.dtype] = []
    note = launches._Launch.__init__

    def spy(launch: Any, inputs: Any, sequences: int) -> None:
        note(launch, inputs, sequences)
        launched.append(inputs.v.dtype)

    monkeypatch.setattr(launches._Launch, "__init__", spy)
    shape = config.BaseShape(hidden_size=256, num_attention_heads=4, num_key_value_heads=2, head_dim=64)
    options = config.preset_options("arwkv", shape)
    mixer = time_mix.TimeMix(options, 256, layer=1, num_layers=2)
    mixer.initialize()
    torch.nn.init.normal_(mixer.output.weight, std=0.05)
    x, v_first = torch.randn(2, 50, 256), torch.randn(2, 50, options.key_value_width)
    angles = torch.rand(2, 50, 64)
    context = time_mix.TimeMixContext(cos_sin_BTD=(angles.cos(), angles.sin()))
    whole = mixer(x, v_first, context)[0]
    context = time_mix.TimeMixContext(cos_sin_BTD=(angles.cos().cuda(), angles.sin().cuda()))
    with torch.autocast("cuda", dtype):
        y = mixer.cuda()(x.cuda(), v_first.cuda(), context)[0]
    y.float().sum().backward()
    assert launched == [dtype, dtype]
    assert ((y.cpu().float() - whole).norm() / whole.norm()).item() < 0.03


def test_step() -> None:
    inputs = [torch.randn(4, 3, 64, device="cuda") * 0.3 for _ in range(6)]
    inputs[1] = -inputs[1].abs()
    state = torch.randn(4, 3, 64, 64, device="cuda")
    assert backend_for(inputs[0], operation="wkv7_step").name == "triton"
    for got, want in zip(wkv7_step(*inputs, state), wkv7_step(*inputs, state, backend="torch"), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    slots = torch.tensor([6, 1, 0, 3], device="cuda", dtype=torch.int32)
    states = torch.randn(8, 3, 64, 64, device="cuda")
    expected = wkv7_step(*inputs, states[slots])
    in_place = (wkv7_step(*inputs, states, slots=slots)[0], states[slots])
    for got, want in zip(in_place, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tail", ["bucket", "renormalize", "drop"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sparse_kl(tail: str, dtype: torch.dtype) -> None:
    tokens, width, vocabulary, k = 70, 128, 5000, 33
    hidden = torch.randn(tokens, width, device="cuda").to(dtype).requires_grad_()
    weight = (torch.randn(vocabulary, width, device="cuda") * width**-0.5).to(dtype).requires_grad_()
    top = (2 * torch.randn(tokens, vocabulary, device="cuda")).log_softmax(-1).topk(k)
    teacher = (top.indices.flatten(), top.values.flatten(), torch.full((tokens,), k, device="cuda"))
    tail_logprob = torch.log1p(-top.values.exp().sum(-1))
    results = []
    for device, precision in (("cuda", dtype), ("cpu", torch.float64)):
        leaves = [x.detach().to(device, precision).requires_grad_() for x in (hidden, weight)]
        parts = [x.to(device) for x in (*teacher, tail_logprob)]
        loss = linear_sparse_kl(*leaves, *parts, tail=tail, token_chunk=32)
        results.append([x.detach().cpu().double() for x in (loss, *torch.autograd.grad(loss, leaves))])
    for got, want in zip(*results, strict=True):
        assert ((got - want).abs().max() / want.abs().max()).item() <= (1e-4 if dtype == torch.float32 else 8e-3)


def test_topk_logsumexp() -> None:
    logits = torch.randn(65, 152_064, device="cuda") * 3
    for got, want in zip(topk_logsumexp(logits, 64), topk_logsumexp(logits, 64, backend="torch"), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)


def test_topk_logprobs() -> None:
    logits = torch.randn(65, 152_064, device="cuda") * 3
    next_ids = torch.randint(-1, 152_064, (65,), device="cuda")
    for got, want in zip(
        topk_logprobs(logits, 64, next_ids), topk_logprobs(logits, 64, next_ids, backend="torch"), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)
