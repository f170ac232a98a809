"""One launch configuration per head size, chosen by hand: no tuning at run time, no slow first call.

To add a head size, add a line, then run the tests (numerics under the interpreter, registers and shared memory from the
compiler) and `benchmarks/kernels.py --gpu`.
"""

from __future__ import annotations

from dataclasses import dataclass


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
