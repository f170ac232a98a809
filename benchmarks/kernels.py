"""Measures the kernels. On a CPU: the recurrence against the obvious loop, and the sparse KL's time and memory.

    OMP_NUM_THREADS=1 python benchmarks/kernels.py    the CPU's figures
    python benchmarks/kernels.py --gpu                numerics of every configuration, then the GPU's figures

Prints Markdown tables, and JSON with `--json-out FILE`, each as soon as it is known. Contestants take turns within a
round; a ratio is the median over rounds of the ratios within a round. Needs the project installed (`make setup`, or
`pip install -e .`), numba and triton with it, and measures flash-linear-attention where that is installed.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arwkv_kernels import linear_sparse_kl, wkv7, wkv7_step
from arwkv_kernels.blocked_attention import blocked_attention
from arwkv_kernels.memory import keep_freed_memory
from arwkv_kernels.precision import multiplies_bf16
from figures import Rows, print_table, race, ratio, write_json

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from process_memory import allocated_peak_bytes


def layer_inputs(
    B: int, T: int, H: int, D: int, dtype: torch.dtype = torch.float32, device: str = "cpu", *, gradients: bool = True
) -> list[Tensor]:
    """r, w, k, v, a, b as a trained layer makes them."""
    generator = torch.Generator(device).manual_seed(0)

    def normal() -> Tensor:
        return torch.randn(B, T, H, D, generator=generator, device=device)

    removed = torch.nn.functional.normalize(normal(), dim=-1)
    w = -0.6065306597126334 * torch.sigmoid(2 * normal())
    inputs = (normal(), w, normal() / D**0.5, normal(), -removed, removed * torch.sigmoid(normal()))
    return [x.to(dtype).requires_grad_(gradients) for x in inputs]


def unbind_loop(*inputs: Tensor) -> Tensor:
    """The recurrence as one would first write it."""
    B, _, H, D = inputs[0].shape
    state = torch.zeros(B, H, D, D)
    outputs = []
    for r, w, k, v, a, b in zip(*(x.unbind(1) for x in inputs), strict=True):
        removed = torch.einsum("bhk,bhkv->bhv", a, state)
        state = w.exp()[..., None] * state + b[..., None] * removed[..., None, :] + k[..., None] * v[..., None, :]
        outputs.append(torch.einsum("bhk,bhkv->bhv", r, state))
    return torch.stack(outputs, 1)


def recurrence() -> Rows:
    inputs = layer_inputs(2, 512, 4, 64)
    times = race(
        {
            "the `unbind` loop": lambda: unbind_loop(*inputs).sum().backward(),
            '`backend="torch"` (chunked)': lambda: wkv7(*inputs, backend="torch")[0].sum().backward(),
            '`backend="cpu"` (compiled)': lambda: wkv7(*inputs, backend="cpu")[0].sum().backward(),
        }
    )
    loop = times["the `unbind` loop"]
    return [
        {"contestant": name, "ms": 1e3 * statistics.median(each), "times the loop's speed": ratio(loop, each)}
        for name, each in times.items()
    ]


def growth() -> Rows:
    rows = []
    for B, T in ((1, 1024), (1, 8192), (1, 32_768), (1, 131_072), (4, 1024), (16, 1024)):
        inputs = layer_inputs(B, T, 4, 64)
        seconds = min(race({"": lambda inputs=inputs: wkv7(*inputs)[0].sum().backward()}, rounds=3)[""])
        rows.append({"B": B, "T": T, "ms": 1e3 * seconds, "ns per token and head": 1e9 * seconds / (B * T * 4)})
    return rows


def step() -> Rows:
    state, inputs = torch.zeros(1, 14, 64, 64), [x[:, 0] for x in layer_inputs(1, 1, 14, 64, gradients=False)]
    seconds = min(race({"": lambda: wkv7_step(*inputs, state)}, rounds=50)[""])
    return [{"B": 1, "H": 14, "ms": 1e3 * seconds}]


def step_in_place() -> Rows:
    """Decoding among the states of a server: changed where they lie, against gathered, stepped and put back."""
    rows = []
    for batch in (1, 8, 32):
        states, slots = torch.zeros(64, 14, 64, 64), torch.randperm(64)[:batch]
        inputs = [x[0] for x in layer_inputs(1, batch, 14, 64, gradients=False)]

        def gathered(inputs: Any = inputs, states: Tensor = states, slots: Tensor = slots) -> None:
            _, states[slots] = wkv7_step(*inputs, states[slots])

        def in_place(inputs: Any = inputs, states: Tensor = states, slots: Tensor = slots) -> None:
            wkv7_step(*inputs, states, slots=slots)

        seconds = race({"gathered": gathered, "in place": in_place}, rounds=50)
        ratio = statistics.median(a / b for a, b in zip(seconds["in place"], seconds["gathered"], strict=True))
        best = {name: 1e3 * min(times) for name, times in seconds.items()}
        rows.append({"B": batch, "H": 14, **{f"{name}, ms": ms for name, ms in best.items()}, "ratio": ratio})
    return rows


def element_wise(device: str = "cpu", B: int = 4, T: int = 512, C: int = 512, *, bf16: bool) -> Rows:
    """A whole time mixer, its element-wise parts eager and compiled, forward and backward."""
    from arwkv_student.model.time_mix import TimeMix, TimeMixContext
    from arwkv_student.model.time_mix_options import BaseShape, preset_options

    rows = []
    shape = BaseShape(hidden_size=C, num_attention_heads=C // 64, num_key_value_heads=2, head_dim=64)
    for preset in ("arwkv", "arwkv-gate-active-mlp", "rad-rwkv7"):
        options = preset_options(preset, shape)
        mixer = TimeMix(options, C, layer=1, num_layers=8).to(device)
        mixer.initialize()
        x = torch.randn(B, T, C, device=device, requires_grad=True)
        v_first = torch.randn(B, T, options.key_value_width, device=device)
        angles = torch.rand(B, T, 64, device=device)
        context = TimeMixContext(cos_sin_BTD=(angles.cos(), angles.sin()))

        def train(fuse: bool, mixer: Any = mixer, x: Tensor = x, v: Tensor = v_first, context: Any = context) -> None:
            mixer.fuse = fuse
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                y, _, _ = mixer(x, v, context)
            y.float().sum().backward()
            if device == "cuda":
                torch.cuda.synchronize()

        begin = time.perf_counter()
        train(True)
        first_s = time.perf_counter() - begin
        times = race({"eager": lambda train=train: train(False), "compiled": lambda train=train: train(True)})
        rows.append(
            {
                "preset": preset,
                "products": "bf16" if bf16 else "fp32",
                "eager ms": 1e3 * statistics.median(times["eager"]),
                "compiled ms": 1e3 * statistics.median(times["compiled"]),
                "speed-up": ratio(times["eager"], times["compiled"]),
                "first call s": first_s,
            }
        )
    return rows


def changing_lengths(steps: int = 1000, longest: int = 512, C: int = 256) -> Rows:
    """A time mixer's steps on rows of changing lengths as `student train --fuse` rounds them, forward and backward.

    Medians in µs per token of the first and the last hundred steps, those that compile left out by the median.
    """
    from arwkv_student.data.collate import rounded_length
    from arwkv_student.model.time_mix import TimeMix, TimeMixContext
    from arwkv_student.model.time_mix_options import BaseShape, preset_options

    options = preset_options("arwkv-gate-active-mlp", BaseShape(C, C // 64, 2, 64))
    mixer = TimeMix(options, C, layer=1, num_layers=8)
    mixer.initialize()
    rows = []
    for name, fuse, length in (("eager", False, int), ("compiled, rounded", True, rounded_length)):
        chance, us_per_token, mixer.fuse = random.Random(0), [], fuse
        for _ in range(steps):
            tokens = chance.randint(longest // 2 + 1, longest)
            T = length(tokens)
            x, v = torch.randn(1, T, C, requires_grad=True), torch.randn(1, T, options.key_value_width)
            angles = torch.rand(1, T, 64)
            begin = time.perf_counter()
            y, _, _ = mixer(x, v, TimeMixContext(cos_sin_BTD=(angles.cos(), angles.sin())))
            y.sum().backward()
            us_per_token.append(1e6 * (time.perf_counter() - begin) / tokens)
        first, last = statistics.median(us_per_token[:100]), statistics.median(us_per_token[-100:])
        rows.append({"lengths": name, "first 100 steps": first, "last 100 steps": last, "ratio": last / first})
    return rows


def teacher_of(tokens: int, vocabulary: int, k: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ids, logprobs, counts, tail_logprob of a made-up teacher, a few rows at a time."""
    generator = torch.Generator(device).manual_seed(1)
    ids, logprobs = [], []
    for start in range(0, tokens, 256):
        rows = min(256, tokens - start)
        dense = (2 * torch.randn(rows, vocabulary, generator=generator, device=device)).log_softmax(-1)
        top = dense.topk(k)
        ids.append(top.indices)
        logprobs.append(top.values)
    logprobs_TK = torch.cat(logprobs)
    tail = torch.log1p(-logprobs_TK.exp().sum(-1).clamp(max=1 - 1e-6))
    return torch.cat(ids).flatten(), logprobs_TK.flatten(), torch.full((tokens,), k, device=device), tail


def naive_sparse_kl(hidden: Tensor, weight: Tensor, ids: Tensor, logprobs: Tensor, tail: Tensor) -> Tensor:
    """The loss with all logits at once, as one would first write it."""
    ids_TK, logprobs_TK = (x.view(hidden.shape[0], -1) for x in (ids, logprobs))
    student_TK = (hidden @ weight.T).float().log_softmax(-1).gather(-1, ids_TK)
    student_tail = torch.log1p(-student_TK.exp().sum(-1).clamp(max=1 - 1e-6))
    kl = (logprobs_TK.exp() * (logprobs_TK - student_TK)).sum(-1) + tail.exp() * (tail - student_tail)
    return kl.mean()


def attention() -> Rows:
    """Attention of layers that keep it, in bf16: torch's, the whole matrix of scores, and by blocks of queries."""
    rows = []
    for B, H, K, T, D in ((32, 6, 2, 128, 32), (2, 9, 3, 256, 64), (4, 8, 2, 512, 64), (1, 14, 2, 2048, 64)):
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randn(B, T, heads, D, generator=generator) for heads in (H, K, K)]
        inputs = [x.transpose(1, 2).bfloat16().requires_grad_() for x in drawn]
        upper = torch.randn(B, T, H * D, generator=generator).bfloat16()

        def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        def eager(q: Tensor, k: Tensor, v: Tensor, G: int = H // K) -> Tensor:
            scores = q @ k.repeat_interleave(G, 1).mT * q.shape[-1] ** -0.5
            later = torch.full(scores.shape[-2:], -torch.inf, dtype=scores.dtype).triu_(1)
            p = (scores + later).softmax(-1, dtype=torch.float32).to(q.dtype)
            return p @ v.repeat_interleave(G, 1)

        def blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return blocked_attention(q, k, v, q.shape[-1] ** -0.5)

        def trained(attend: Callable[..., Tensor], inputs: list[Tensor] = inputs, upper: Tensor = upper) -> None:
            torch.autograd.grad(attend(*inputs).transpose(1, 2).reshape(upper.shape), inputs, upper)

        ways = {"torch's": fused, "all scores at once": eager, "by blocks": blocks}
        forward = race({name: partial(way, *inputs) for name, way in ways.items()})
        both = race({name: partial(trained, way) for name, way in ways.items()})
        for name in forward:
            rows.append(
                {
                    "attention": f"{name}, B={B} T={T}, {H} and {K} heads of {D}",
                    "forward, ms": 1e3 * statistics.median(forward[name]),
                    "forward + backward, ms": 1e3 * statistics.median(both[name]),
                    "speed-up": ratio(both["torch's"], both[name]),
                }
            )
    return rows


def sparse_kl() -> Rows:
    tokens, vocabulary, width = 1024, 32_000, 256
    ids, logprobs, counts, tail = teacher_of(tokens, vocabulary, 64)
    rows = []
    for head in ("frozen", "trained"):
        hidden = torch.randn(tokens, width, generator=torch.Generator().manual_seed(2)).requires_grad_()
        weight = torch.randn(vocabulary, width, generator=torch.Generator().manual_seed(3)) * width**-0.5
        weight.requires_grad_(head == "trained")

        def naive(hidden: Tensor = hidden, weight: Tensor = weight) -> None:
            hidden.grad = weight.grad = None
            naive_sparse_kl(hidden, weight, ids, logprobs, tail).backward()

        def ours(hidden: Tensor = hidden, weight: Tensor = weight) -> None:
            hidden.grad = weight.grad = None
            linear_sparse_kl(hidden, weight, ids, logprobs, counts, tail).backward()

        times = race({"all logits at once": naive, "ours": ours}, rounds=5)
        peaks = {"all logits at once": allocated_peak_bytes(naive), "ours": allocated_peak_bytes(ours)}
        for name, each in times.items():
            rows.append(
                {
                    "contestant": f"{name}, {head} head",
                    "ms": 1e3 * statistics.median(each),
                    "peak MiB": peaks[name] / 2**20,
                    "time": 1 / ratio(times["all logits at once"], each),
                    "memory": peaks[name] / peaks["all logits at once"],
                }
            )
    return rows


def main() -> int:
    """1 where the numerics of a configuration are off, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gpu", action="store_true", help="measure a CUDA device instead")
    parser.add_argument("--skip-numerics", action="store_true", help="with --gpu: go straight to the timing")
    parser.add_argument("--only", default="", help="the tables whose titles contain this")
    parser.add_argument("--json-out", type=Path, help="write the tables' rows there too")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    keep_freed_memory()  # as `student` does
    if arguments.gpu:
        from kernels_gpu import gpu_tables

        tables = gpu_tables(results, check_numerics=not arguments.skip_numerics)
    else:
        results |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
        tables = CPU_TABLES
    print(results, "\n")
    for title, measure in tables.items():
        if arguments.only in title:
            results[title] = measure()
            print_table(title, results[title])
            write_json(arguments.json_out, results)
    if not arguments.gpu:
        return 0
    print(f"numerics: {results['numerics']}")
    return 0 if results["numerics"] in ("passed", "skipped") else 1


CPU_TABLES: dict[str, Callable[[], Rows]] = {
    "wkv7, forward + backward, B=2 T=512 H=4 D=64": recurrence,
    "compiled wkv7, H=4 D=64, forward + backward": growth,
    "wkv7_step, D=64": step,
    "wkv7_step of some of 64 states, D=64": step_in_place,
    "time mixer, B=4 T=512 C=512, forward + backward": lambda: element_wise(bf16=multiplies_bf16()),
    "time mixer, C=256, rows of 257 to 512 tokens": changing_lengths,
    "attention, bf16": attention,
    "linear_sparse_kl, T=1024 V=32,000 C=256 k=64, forward + backward": sparse_kl,
}

if __name__ == "__main__":
    raise SystemExit(main())
