"""The GPU part of kernels.py: numerics of every configuration first, then times beside what the hardware allows.

A floor is the bytes that must move (inputs and outputs once) over the card's measured copy bandwidth, or the operations
over its measured matmul rate. flash-linear-attention is measured in the same run where it is installed.
"""

from __future__ import annotations

import inspect
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from arwkv_kernels import backend_for, linear_sparse_kl, topk_logsumexp, wkv7, wkv7_step
from kernels import layer_inputs, teacher_of

TESTS = Path(__file__).parent.parent / "tests/kernels/test_gpu.py"
# The lowest log decay of RWKV-7, with which flash-linear-attention takes its tensor-core path.
LOWEST_W = -0.6065306597126334


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


def fla_chunk() -> Callable[..., object] | None:
    """flash-linear-attention's kernel, told the decay's range where it can be told."""
    try:
        from fla.ops.rwkv7 import chunk_rwkv7
    except ImportError:
        return None
    known = inspect.signature(chunk_rwkv7).parameters
    options = {"lower_bound": LOWEST_W} if "lower_bound" in known else {}
    return lambda *inputs: chunk_rwkv7(*inputs, scale=1.0, **options)[0]


def recurrence_rows(bandwidth: float) -> list[str]:
    lines = [
        "| wkv7, bf16 | forward ms | of floor | forward + backward ms | of floor | extra MiB |",
        "|---|---|---|---|---|---|",
    ]
    fla = fla_chunk()
    ours = ("ours", lambda *inputs: wkv7(*inputs)[0])
    for B, T, H, D in ((8, 4096, 64, 64), (8, 4096, 56, 64), (8, 4096, 32, 128)):
        inputs = layer_inputs(B, T, H, D, torch.bfloat16, "cuda")
        tensor_bytes = inputs[0].numel() * 2
        floors = [1e3 * n * tensor_bytes / bandwidth for n in (7, 20)]
        for name, run in (ours, ("flash-linear-attention", fla)):
            if run is None:
                lines.append(f"| {name}: not installed | | | | | |")
                continue

            def train(run: Callable[..., object] = run, inputs: list[torch.Tensor] = inputs) -> None:
                torch.autograd.grad(run(*inputs), inputs, torch.ones_like(inputs[0]))

            with torch.no_grad():
                forward = milliseconds(lambda run=run, inputs=inputs: run(*inputs))
            both = milliseconds(train)
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            train()
            extra = (torch.cuda.max_memory_allocated() - before) / 2**20
            lines.append(
                f"| {name}, B={B} T={T} H={H} D={D} | {forward:.2f} | {floors[0] / forward:.0%} of {floors[0]:.2f} | "
                f"{both:.2f} | {floors[1] / both:.0%} of {floors[1]:.2f} | {extra:.0f} |"
            )
    return lines


def growth_rows() -> list[str]:
    lines = ["| wkv7, bf16, H=32 D=64, forward + backward | ms | ns per token |", "|---|---|---|"]
    for B, T in ((1, 1024), (1, 4096), (1, 16_384), (1, 65_536), (1, 131_072), (4, 4096), (16, 4096), (32, 4096)):
        inputs = layer_inputs(B, T, 32, 64, torch.bfloat16, "cuda")
        d_o = torch.randn_like(inputs[0])
        ms = milliseconds(lambda inputs=inputs, d_o=d_o: torch.autograd.grad(wkv7(*inputs)[0], inputs, d_o), repeats=5)
        lines.append(f"| B={B} T={T} | {ms:.2f} | {1e6 * ms / (B * T):.1f} |")
    return lines


def step_rows(bandwidth: float) -> list[str]:
    lines = ["| wkv7_step, H=64 D=64 | µs | of copy bandwidth |", "|---|---|---|"]
    for B in (1, 16, 64, 256):
        inputs = [x[:, 0] for x in layer_inputs(B, 1, 64, 64, torch.bfloat16, "cuda", gradients=False)]
        state = torch.zeros(B, 64, 64, 64, device="cuda")
        ms = milliseconds(lambda inputs=inputs, state=state: wkv7_step(*inputs, state))
        lines.append(f"| B={B} | {1e3 * ms:.1f} | {1e3 * 2 * state.numel() * 4 / bandwidth / ms:.0%} |")
    return lines


def head_rows(bandwidth: float, flops: float) -> list[str]:
    N, V, C, k = 8192, 152_064, 3584, 64
    teacher = teacher_of(N, V, k, "cuda")
    hidden = torch.randn(N, C, device="cuda", dtype=torch.bfloat16).requires_grad_()
    weight = (torch.randn(V, C, device="cuda") * C**-0.5).bfloat16()
    lines = [
        f"| linear_sparse_kl, bf16, N={N} V={V} C={C} k={k}, forward + backward | ms | of matmul rate | extra GiB |",
        "|---|---|---|---|",
    ]
    for head, products in (("frozen", 2), ("trained", 3)):
        weight.requires_grad_(head == "trained")
        leaves = [hidden] if head == "frozen" else [hidden, weight]

        def train(leaves: list[torch.Tensor] = leaves) -> None:
            torch.autograd.grad(linear_sparse_kl(hidden, weight, *teacher), leaves)

        ms = milliseconds(train, repeats=5)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        train()
        extra = (torch.cuda.max_memory_allocated() - before) / 2**30
        floor = 1e3 * products * 2 * N * V * C / flops
        lines.append(f"| {head} head | {ms:.1f} | {floor / ms:.0%} (floor {floor:.1f}) | {extra:.2f} |")
    weight.requires_grad_(False)
    logits = torch.randn(1024, V, device="cuda")
    with torch.no_grad():
        ms = milliseconds(lambda: topk_logsumexp(logits, k))
        stock = milliseconds(lambda: topk_logsumexp(logits, k, backend="torch"))
    floor = 1e3 * logits.numel() * 4 / bandwidth
    lines += ["", f"| topk_logsumexp, fp32, T=1024 V={V} k={k} | ms | floor ms | in torch ms |", "|---|---|---|---|"]
    return [*lines, f"| ours | {ms:.2f} | {floor:.2f} | {stock:.2f} |"]


def print_gpu_figures(*, check_numerics: bool) -> None:
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/kernels.py --gpu: torch sees no CUDA device")
    import triton

    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}")
    print(backend_for(torch.zeros(1, 1, 1, 64, device="cuda", dtype=torch.bfloat16)), flush=True)
    if check_numerics:
        flags = ["-q", "-c", "/dev/null", "--import-mode=importlib", "-p", "no:cacheprovider", "-W", "ignore"]
        if subprocess.run([sys.executable, "-m", "pytest", *flags, str(TESTS)]).returncode:
            raise SystemExit("benchmarks/kernels.py --gpu: numerics failed; times would mean nothing")
    print(f"first call {first_call_s():.1f} s")
    bandwidth, flops = copy_bytes_per_s(), matmul_flops_per_s()
    print(f"copy {bandwidth / 1e12:.2f} TB/s, bf16 matmul {flops / 1e12:.0f} TFLOP/s\n", flush=True)
    for rows in (
        lambda: recurrence_rows(bandwidth),
        growth_rows,
        lambda: step_rows(bandwidth),
        lambda: head_rows(bandwidth, flops),
    ):
        print("\n".join(rows()) + "\n", flush=True)
        torch.cuda.empty_cache()
