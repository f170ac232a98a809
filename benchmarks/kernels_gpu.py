"""The GPU part of kernels.py: numerics of every configuration first, then times beside what the hardware allows.

A floor is the bytes that must move (inputs and outputs once) over the card's measured copy bandwidth, or the operations
over its measured matmul rate. flash-linear-attention is measured in the same run where it is installed.
"""

from __future__ import annotations

import functools
import inspect
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from arwkv_kernels import backend_for, linear_sparse_kl, topk_logsumexp, wkv7, wkv7_step
from arwkv_kernels.triton import configs
from figures import Rows
from kernels import element_wise, layer_inputs, teacher_of

TESTS = Path(__file__).parent.parent / "tests/kernels/test_gpu.py"
# The lowest log decay of RWKV-7, with which flash-linear-attention takes its tensor-core path.
LOWEST_W = -0.6065306597126334
# The head of a 7B model: predictions, vocabulary, width, stored entries.
N, V, C, K = 8192, 152_064, 3584, 64


def milliseconds(run: Callable[[], object], repeats: int = 20) -> float:
    """Median over `repeats` runs, by CUDA events, after three that do not count."""
    for _ in range(3):
        run()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for begin, end in events:
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in events)


def copy_bytes_per_s() -> float:
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / (milliseconds(lambda: target.copy_(source)) / 1e3)


def matmul_flops_per_s() -> float:
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / (milliseconds(lambda: left @ right) / 1e3)


def first_call_s() -> float:
    """Seconds of the first forward and backward, compilation among them unless Triton's cache has it."""
    inputs = layer_inputs(1, 64, 2, 64, torch.bfloat16, "cuda")
    begin = time.perf_counter()
    wkv7(*inputs)[0].sum().backward()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def in_form(form: str, *inputs: torch.Tensor) -> torch.Tensor:
    with configs.form(form):
        return wkv7(*inputs)[0]


def contestants() -> dict[str, Callable[..., torch.Tensor]]:
    """Ours in each form, and flash-linear-attention's kernel, told the decay's range where it can be told."""
    ours: dict[str, Callable[..., torch.Tensor]] = {
        f"ours, {name}": functools.partial(in_form, name) for name in configs.FORMS
    }
    try:
        from fla.ops.rwkv7 import chunk_rwkv7
    except ImportError:
        return ours
    if "lower_bound" in inspect.signature(chunk_rwkv7).parameters:
        name, options = "flash-linear-attention", {"lower_bound": LOWEST_W}
    else:
        name, options = "flash-linear-attention (has no lower_bound)", {}
    return ours | {name: lambda *inputs: chunk_rwkv7(*inputs, scale=1.0, **options)[0]}


def agreement(D: int) -> Rows:
    """Largest difference from the fp64 reference over its largest entry, of the output and of each gradient."""
    inputs = layer_inputs(2, 200, 4, D, torch.bfloat16, "cuda")
    d_o = torch.randn_like(inputs[0])

    def results(run: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        o = run(*inputs)
        return [x.double() for x in (o.detach(), *torch.autograd.grad(o, inputs, d_o.to(o.dtype)))]

    expected = results(lambda *inputs: wkv7(*(x.double() for x in inputs), backend="reference")[0])
    rows = []
    for name, run in contestants().items():
        errors = [(x - y).abs().max() / y.abs().max() for x, y in zip(results(run), expected, strict=True)]
        rows.append(
            {"contestant": name}
            | {n: e.item() for n, e in zip(["o", *(f"d{n}" for n in "rwkvab")], errors, strict=True)}
        )
    return rows


def recurrence(bandwidth: float) -> Rows:
    rows = []
    for B, T, H, D in ((8, 4096, 64, 64), (8, 4096, 56, 64), (8, 4096, 32, 128)):
        inputs = layer_inputs(B, T, H, D, torch.bfloat16, "cuda")
        tensor_bytes = inputs[0].numel() * 2
        floors = [1e3 * n * tensor_bytes / bandwidth for n in (7, 20)]
        for name, run in contestants().items():

            def train(run: Callable[..., torch.Tensor] = run, inputs: list[torch.Tensor] = inputs) -> None:
                torch.autograd.grad(run(*inputs), inputs, torch.ones_like(inputs[0]))

            with torch.no_grad():
                forward = milliseconds(lambda run=run, inputs=inputs: run(*inputs))
            both = milliseconds(train)
            rows.append(
                {
                    "contestant": name,
                    "shape": f"B={B} T={T} H={H} D={D}",
                    "forward ms": forward,
                    "forward floor ms": floors[0],
                    "forward + backward ms": both,
                    "its floor ms": floors[1],
                    "share of the floor": floors[1] / both,
                    "extra MiB": extra_bytes(train) / 2**20,
                }
            )
    return rows


def forms() -> Rows:
    """Forward and backward of both forms, in turn, and which is better at a shape: what a head size should train in."""
    rows = []
    for B, T, H, D in (
        (8, 4096, 64, 64), (1, 4096, 32, 64), (1, 131_072, 32, 64), (32, 512, 32, 64),
        (8, 4096, 32, 128), (1, 4096, 16, 128), (1, 131_072, 16, 128), (32, 512, 16, 128),
    ):  # fmt: skip
        inputs = layer_inputs(B, T, H, D, torch.bfloat16, "cuda")
        d_o = torch.randn_like(inputs[0])
        ms = {
            name: milliseconds(lambda n=name, x=inputs, g=d_o: torch.autograd.grad(in_form(n, *x), x, g), repeats=10)
            for name in configs.FORMS
        }
        better = min(ms, key=lambda name: ms[name])
        rows.append(
            {"shape": f"B={B} T={T} H={H} D={D}"}
            | {f"{name} ms": each for name, each in ms.items()}
            | {"better": better, "by": max(ms.values()) / ms[better]}
        )
    return rows


def precisions() -> Rows:
    """What fp32 inputs cost beside bf16, forward and backward."""
    rows = []
    for B, T, H, D in ((8, 4096, 64, 64), (1, 4096, 32, 64), (8, 4096, 32, 128)):
        ms = []
        for dtype in (torch.bfloat16, torch.float32):
            inputs = layer_inputs(B, T, H, D, dtype, "cuda")
            d_o = torch.randn_like(inputs[0])
            ms.append(milliseconds(lambda x=inputs, g=d_o: torch.autograd.grad(wkv7(*x)[0], x, g), repeats=10))
        rows.append({"shape": f"B={B} T={T} H={H} D={D}", "bf16 ms": ms[0], "fp32 ms": ms[1], "ratio": ms[1] / ms[0]})
    return rows


def growth() -> Rows:
    rows = []
    for B, T in ((1, 1024), (1, 4096), (1, 16_384), (1, 65_536), (1, 131_072), (4, 4096), (16, 4096), (32, 4096)):
        inputs = layer_inputs(B, T, 32, 64, torch.bfloat16, "cuda")
        d_o = torch.randn_like(inputs[0])
        ms = milliseconds(lambda inputs=inputs, d_o=d_o: torch.autograd.grad(wkv7(*inputs)[0], inputs, d_o), repeats=5)
        rows.append({"B": B, "T": T, "ms": ms, "ns per token": 1e6 * ms / (B * T)})
    return rows


def step(bandwidth: float) -> Rows:
    rows = []
    for B in (1, 16, 64, 256):
        inputs = [x[:, 0] for x in layer_inputs(B, 1, 64, 64, torch.bfloat16, "cuda", gradients=False)]
        state = torch.zeros(B, 64, 64, 64, device="cuda")
        ms = milliseconds(lambda inputs=inputs, state=state: wkv7_step(*inputs, state))
        floor = 1e3 * 2 * state.numel() * 4 / bandwidth
        rows.append({"B": B, "H": 64, "µs": 1e3 * ms, "share of copy bandwidth": floor / ms})
    return rows


def head(flops: float) -> Rows:
    teacher = teacher_of(N, V, K, "cuda")
    hidden = torch.randn(N, C, device="cuda", dtype=torch.bfloat16).requires_grad_()
    weight = (torch.randn(V, C, device="cuda") * C**-0.5).bfloat16()
    rows = []
    for name, products in (("frozen", 2), ("trained", 3)):
        weight.requires_grad_(name == "trained")
        leaves = [hidden] if name == "frozen" else [hidden, weight]

        def train(leaves: list[torch.Tensor] = leaves) -> None:
            torch.autograd.grad(linear_sparse_kl(hidden, weight, *teacher), leaves)

        ms, floor = milliseconds(train, repeats=5), 1e3 * products * 2 * N * V * C / flops
        rows.append(
            {
                "head": name,
                "ms": ms,
                "floor ms": floor,
                "share of matmul rate": floor / ms,
                "extra GiB": extra_bytes(train) / 2**30,
            }
        )
    return rows


def capture(bandwidth: float) -> Rows:
    logits = torch.randn(1024, V, device="cuda")
    floor = 1e3 * logits.numel() * 4 / bandwidth
    with torch.no_grad():
        return [
            {
                "backend": backend,
                "ms": milliseconds(lambda backend=backend: topk_logsumexp(logits, K, backend=backend)),
                "reading once, ms": floor,
            }
            for backend in ("triton", "torch")
        ]


def extra_bytes(run: Callable[[], object]) -> int:
    """The allocator's peak during `run`, over what was there before."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def numerics() -> str:
    """ "passed", or how many cases of tests/kernels/test_gpu.py failed."""
    flags = ["-q", "-c", "/dev/null", "--import-mode=importlib", "-p", "no:cacheprovider", "-W", "ignore"]
    run = subprocess.run([sys.executable, "-m", "pytest", *flags, str(TESTS)], stdout=subprocess.PIPE, text=True)
    print(run.stdout, flush=True)
    if run.returncode == 0:
        return "passed"
    failed = re.findall(r"(\d+) (?:failed|error)", run.stdout)
    return f"{sum(map(int, failed))} failed" if failed else f"did not run (pytest's exit code {run.returncode})"


def gpu_tables(card: dict[str, Any], *, check_numerics: bool) -> dict[str, Callable[[], Rows]]:
    """What to measure; `card` is told what it is, and whether every configuration's numerics passed."""
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/kernels.py --gpu: torch sees no CUDA device")
    import triton

    card |= {"card": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}
    card["backend"] = str(backend_for(torch.zeros(1, 1, 1, 64, device="cuda", dtype=torch.bfloat16)))
    card["numerics"] = numerics() if check_numerics else "skipped"
    card["first call s"] = first_call_s()
    card["copy bytes/s"], card["bf16 matmul flop/s"] = bandwidth, flops = copy_bytes_per_s(), matmul_flops_per_s()
    return {
        "wkv7, bf16, B=2 T=200 H=4 D=64, error against fp64": lambda: agreement(64),
        "wkv7, bf16, B=2 T=200 H=4 D=128, error against fp64": lambda: agreement(128),
        "wkv7, bf16, the form that is better at a shape, forward + backward": forms,
        "wkv7, bf16": lambda: recurrence(bandwidth),
        "wkv7, fp32 beside bf16, forward + backward": precisions,
        "wkv7, bf16, H=32 D=64, forward + backward": growth,
        "wkv7_step, D=64": lambda: step(bandwidth),
        f"linear_sparse_kl, bf16, N={N} V={V} C={C} k={K}, forward + backward": lambda: head(flops),
        f"topk_logsumexp, fp32, T=1024 V={V} k={K}": lambda: capture(bandwidth),
        "time mixer, B=8 T=2048 C=2048, bf16, forward + backward": lambda: element_wise(
            "cuda", 8, 2048, 2048, bf16=True
        ),
    }
