"""One launch configuration per head size, chosen by hand: no tuning at run time, no slow first call.

To add a head size, add a line, then run the tests (numerics under the interpreter, registers and shared memory from the
compiler) and `benchmarks/kernels.py --gpu`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Wkv7Config:
    """How the kernels of `wkv7` are cut and scheduled."""

    values: int
    """Columns of the state a program of the forward and of the state's gradient holds."""
    keys: int
    """Rows of the state a program of the tokens' gradients holds at one time."""
    forward_warps: int
    state_warps: int
    token_warps: int
    exact_warps: int
    chunk: int = 16
    """Tokens a chunk; one state is kept per chunk."""


WKV7 = {
    32: Wkv7Config(values=32, keys=32, forward_warps=4, state_warps=4, token_warps=4, exact_warps=4),
    64: Wkv7Config(values=64, keys=32, forward_warps=4, state_warps=4, token_warps=4, exact_warps=8),
    128: Wkv7Config(values=32, keys=64, forward_warps=8, state_warps=8, token_warps=8, exact_warps=8),
}


@dataclass(frozen=True)
class ParallelConfig:
    """How the kernels of the chunk-parallel form are cut and scheduled."""

    values: int
    """Columns of the state a program of the walks holds."""
    keys: int
    """Channels a program of the tokens' gradients works on at one time."""
    gradient_values: int
    """Columns of the state it works on at one time."""
    output_keys: int
    """The same of the output kernel, which runs where the walk leaves the output to it."""
    walk_warps: int
    gradient_warps: int
    split: bool = False
    """Whether the walk leaves the output to a kernel of its own."""
    solve_warps: int = 4
    output_warps: int = 4
    exact_warps: int = 8
    chunk: int = 32
    """Tokens a step of the walks."""
    gradient_chunk: int = 16
    """Tokens at one time in the tokens' gradients."""
    span: int = 64
    """Tokens for which one state is kept."""


PARALLEL = {
    32: ParallelConfig(values=32, keys=32, gradient_values=32, output_keys=32, walk_warps=4, gradient_warps=4),
    64: ParallelConfig(values=64, keys=32, gradient_values=64, output_keys=64, walk_warps=4, gradient_warps=4),
    128: ParallelConfig(
        values=64, keys=64, gradient_values=128, output_keys=32,
        walk_warps=8, gradient_warps=8, output_warps=8, split=True,
    ),
}  # fmt: skip
# Where programs of the walks are fewer than multiprocessors, what counts is how many steps a sequence takes.
PARALLEL_FEW = {
    size: replace(PARALLEL[size], split=True, chunk=64, walk_warps=8, solve_warps=8) for size in (32, 64)
} | {128: PARALLEL[128]}
# Of inputs whose v is fp32, with fp32 products. Parts are smaller: nothing is rounded to half the registers.
PARALLEL_FP32 = {
    32: ParallelConfig(
        values=16, keys=32, gradient_values=32, output_keys=32,
        walk_warps=4, gradient_warps=8, split=True,
    ),
    64: ParallelConfig(
        values=32, keys=32, gradient_values=64, output_keys=32,
        walk_warps=8, gradient_warps=8, output_warps=8, split=True,
    ),
    128: ParallelConfig(
        values=32, keys=32, gradient_values=64, output_keys=16,
        walk_warps=8, gradient_warps=8, output_warps=8, split=True, chunk=16,
    ),
}  # fmt: skip

FORMS = ("serial", "parallel")
# The form that each head size trains in. A GPU has measured "serial" only: `benchmarks/kernels.py --gpu` times both.
FORM = dict.fromkeys(WKV7, "serial")


@contextlib.contextmanager
def form(name: str) -> Iterator[None]:
    """Within the block, calls of `wkv7` in chunks use form `name` of `FORMS` for every head size."""
    if name not in FORMS:
        raise ValueError(f'wkv7: form "{name}" is not known; choose one of {", ".join(FORMS)}')
    before = FORM.copy()
    FORM.update(dict.fromkeys(FORM, name))
    try:
        yield
    finally:
        FORM.update(before)
