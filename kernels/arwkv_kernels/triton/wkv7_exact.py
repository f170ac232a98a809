"""Token-by-token kernels for the pairs whose decays the chunk form cannot hold: right for every decay, and slow.

Each program looks at its pair's flag first, so that where no pair is flagged the launch costs a few microseconds and no
answer has to travel to the host. The backward replays a chunk from its checkpoint for every token (CHUNK²/2 steps).
"""

# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False
# mypy: disallow-untyped-calls=False, disallow-incomplete-defs=False
# Triton compiles these functions; their parameters are pointers and constants that Python's types do not describe.

from __future__ import annotations

import triton
import triton.language as tl

from arwkv_kernels.triton.chunk import sequence_bounds


@triton.jit
def _row(pointer, place):
    return tl.load(pointer + place).to(tl.float32)


@triton.jit
def _advance(S, w_ptr, k_ptr, v_ptr, a_ptr, b_ptr, place):
    """The state after the token at `place`."""
    u = tl.sum(_row(a_ptr, place)[:, None] * S, 0)
    S = tl.exp(_row(w_ptr, place))[:, None] * S + _row(b_ptr, place)[:, None] * u[None, :]
    return S + _row(k_ptr, place)[:, None] * _row(v_ptr, place)[None, :]


@triton.jit
def wkv7_exact_forward_kernel(
    r_ptr, w_ptr, k_ptr, v_ptr, a_ptr, b_ptr,
    initial_ptr, final_ptr, o_ptr, checkpoint_ptr, unsafe_ptr, cu_seqlens_ptr,
    T, scale,
    H: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0).to(tl.int64)
    if tl.load(unsafe_ptr + pair) == 0:
        return
    n, h = pair // H, pair % H
    start, length, checkpoint = sequence_bounds(cu_seqlens_ptr, n, T, CHUNK)
    d = tl.arange(0, D)
    square = d[:, None] * D + d[None, :]
    S = tl.load(initial_ptr + pair * D * D + square)
    for t in range(0, length):
        if KEEP:  # noqa: SIM102 - the outer test is made at compile time
            if t % CHUNK == 0:
                tl.store(checkpoint_ptr + ((checkpoint + t // CHUNK) * H + h) * D * D + square, S)
        place = ((start + t) * H + h) * D + d
        S = _advance(S, w_ptr, k_ptr, v_ptr, a_ptr, b_ptr, place)
        tl.store(o_ptr + place, tl.sum(_row(r_ptr, place)[:, None] * S, 0) * scale)
    tl.store(final_ptr + pair * D * D + square, S)


@triton.jit
def wkv7_exact_backward_kernel(
    r_ptr, w_ptr, k_ptr, v_ptr, a_ptr, b_ptr,
    checkpoint_ptr, unsafe_ptr, cu_seqlens_ptr,
    d_o_ptr, d_final_ptr,
    dr_ptr, dw_ptr, dk_ptr, dv_ptr, da_ptr, db_ptr, d_initial_ptr,
    T, scale,
    H: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0).to(tl.int64)
    if tl.load(unsafe_ptr + pair) == 0:
        return
    n, h = pair // H, pair % H
    start, length, checkpoint = sequence_bounds(cu_seqlens_ptr, n, T, CHUNK)
    d = tl.arange(0, D)
    square = d[:, None] * D + d[None, :]
    dS = tl.load(d_final_ptr + pair * D * D + square)
    for back in range(0, length):
        t = length - 1 - back
        first = t // CHUNK * CHUNK
        row = checkpoint + t // CHUNK
        S = tl.load(checkpoint_ptr + (row * H + h) * D * D + square).to(tl.float32)
        for s in range(first, t):
            S = _advance(S, w_ptr, k_ptr, v_ptr, a_ptr, b_ptr, ((start + s) * H + h) * D + d)
        place = ((start + t) * H + h) * D + d
        a, b, decay = _row(a_ptr, place), _row(b_ptr, place), tl.exp(_row(w_ptr, place))
        k, v, d_o = _row(k_ptr, place), _row(v_ptr, place), _row(d_o_ptr, place) * scale
        u = tl.sum(a[:, None] * S, 0)
        # The state after the token times do, without a third state in registers.
        dr = decay * tl.sum(S * d_o[None, :], 1) + b * tl.sum(u * d_o, 0) + k * tl.sum(v * d_o, 0)
        tl.store(dr_ptr + place, dr)
        dS += _row(r_ptr, place)[:, None] * d_o[None, :]
        du = tl.sum(b[:, None] * dS, 0)
        tl.store(dk_ptr + place, tl.sum(dS * v[None, :], 1))
        tl.store(dv_ptr + place, tl.sum(dS * k[:, None], 0))
        tl.store(db_ptr + place, tl.sum(dS * u[None, :], 1))
        tl.store(dw_ptr + place, tl.sum(dS * S, 1) * decay)
        tl.store(da_ptr + place, tl.sum(S * du[None, :], 1))
        dS = decay[:, None] * dS + a[:, None] * du[None, :]
    tl.store(d_initial_ptr + pair * D * D + square, dS)
