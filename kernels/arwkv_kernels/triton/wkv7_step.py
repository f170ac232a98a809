"""One token of the recurrence per call, for decoding: reads each state once and writes it once.

One program per batch row, head and VALUES columns of the state.
"""

# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False
# mypy: disallow-untyped-calls=False, disallow-incomplete-defs=False
# Triton compiles these functions; their parameters are pointers and constants that Python's types do not describe.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from arwkv_kernels.arguments import WkvInputs
from arwkv_kernels.triton.launch import device_of

# 64 x 32 fp32 are 8 KiB a program: enough bytes in flight, and twice the programs of a whole state.
VALUES = 32
WARPS = 4


@triton.jit
def wkv7_step_kernel(
    r_ptr, w_ptr, k_ptr, v_ptr, a_ptr, b_ptr, state_ptr, o_ptr, new_state_ptr, slots_ptr, stride, heads, scale,
    D: tl.constexpr, VALUES: tl.constexpr, IN_PLACE: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0).to(tl.int64)
    at = pair * (D * D)
    if IN_PLACE:
        at = tl.load(slots_ptr + pair // heads).to(tl.int64) * stride + (pair % heads) * (D * D)
    d = tl.arange(0, D)
    values = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    square = d[:, None] * D + values[None, :]
    S = tl.load(state_ptr + at + square)
    r = tl.load(r_ptr + pair * D + d).to(tl.float32)
    w = tl.load(w_ptr + pair * D + d).to(tl.float32)
    k = tl.load(k_ptr + pair * D + d).to(tl.float32)
    v = tl.load(v_ptr + pair * D + values).to(tl.float32)
    a = tl.load(a_ptr + pair * D + d).to(tl.float32)
    b = tl.load(b_ptr + pair * D + d).to(tl.float32)
    u = tl.sum(a[:, None] * S, 0)
    S = tl.exp(w)[:, None] * S + b[:, None] * u[None, :] + k[:, None] * v[None, :]
    tl.store(new_state_ptr + at + square, S)
    tl.store(o_ptr + pair * D + values, tl.sum(r[:, None] * S, 0) * scale)


def wkv7_step_triton(inputs: WkvInputs, state_BHKV: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Inputs [B, H, D], fp32 state [B, H, K, V]; no gradient. Returns (o [B, H, D] in v's dtype, new state)."""
    tokens = [x.contiguous() for x in inputs]
    state_BHKV = state_BHKV.contiguous()
    o, new_state = torch.empty_like(tokens[3]), torch.empty_like(state_BHKV)
    B, H, D = o.shape
    with device_of(o):
        wkv7_step_kernel[(B * H, D // VALUES)](
            *tokens, state_BHKV, o, new_state, o, 0, H, scale, D=D, VALUES=VALUES, IN_PLACE=False, num_warps=WARPS
        )  # fmt: skip
    return o, new_state


def wkv7_step_triton_in_place(inputs: WkvInputs, state_SHKV: Tensor, slots_B: Tensor, scale: float) -> Tensor:
    """As `wkv7_step_triton`, from and into the slots [B] of fp32 states [S, H, K, V]; returns o."""
    tokens = [x.contiguous() for x in inputs]
    o, stride = torch.empty_like(tokens[3]), state_SHKV.stride(0)
    B, H, D = o.shape
    with device_of(o):
        wkv7_step_kernel[(B * H, D // VALUES)](
            *tokens, state_SHKV, o, state_SHKV, slots_B, stride, H, scale,
            D=D, VALUES=VALUES, IN_PLACE=True, num_warps=WARPS,
        )  # fmt: skip
    return o
