"""The forward recurrence, chunk after chunk with the state in registers.

One program per sequence, head and VALUES columns of the state: each column is a recurrence of its own.
"""

# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False
# mypy: disallow-untyped-calls=False, disallow-incomplete-defs=False
# Triton compiles these functions; their parameters are pointers and constants that Python's types do not describe.

from __future__ import annotations

import triton
import triton.language as tl

from arwkv_kernels.triton.chunk import (
    LARGEST_EXPONENT,
    centred_decays,
    dot,
    inverse_of_unit_triangular,
    operand,
    sequence_bounds,
)


@triton.jit
def wkv7_forward_kernel(
    r_ptr, w_ptr, k_ptr, v_ptr, a_ptr, b_ptr,
    initial_ptr, final_ptr, o_ptr, u_ptr, checkpoint_ptr, unsafe_ptr, cu_seqlens_ptr,
    T, scale,
    H: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr, VALUES: tl.constexpr,
    KEEP: tl.constexpr,
    OVER_HEAD: tl.constexpr, OVER_TOKENS: tl.constexpr,
):  # fmt: skip
    """Writes o and the final state; with KEEP also u and the state before each chunk, for the backward.

    Sets unsafe[pair] if a chunk's decays leave fp32's range; that pair's results are then for the exact kernel to redo.
    """
    pair = tl.program_id(0).to(tl.int64)
    n, h = pair // H, pair % H
    start, length, checkpoint = sequence_bounds(cu_seqlens_ptr, n, T, CHUNK)
    i, d = tl.arange(0, CHUNK), tl.arange(0, D)
    values = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    square = d[:, None] * D + values[None, :]
    place = i[:, None] * (H * D) + d[None, :]
    place_v = i[:, None] * (H * D) + values[None, :]
    inclusive, strict = i[:, None] >= i[None, :], i[:, None] > i[None, :]
    S = tl.load(initial_ptr + pair * D * D + square)
    outside = 0
    for t in range(0, length, CHUNK):
        origin = ((start + t) * H + h) * D
        real = (i < length - t)[:, None]
        w = tl.load(w_ptr + origin + place, mask=real, other=0.0).to(tl.float32)
        away, before, towards, m = centred_decays(w)
        # Written so that NaN counts as outside.
        outside |= tl.max((~(0.5 * tl.sum(tl.abs(w), 0) <= LARGEST_EXPONENT)).to(tl.int32), 0)
        if KEEP:
            tl.store(checkpoint_ptr + ((checkpoint + t // CHUNK) * H + h) * (D * D) + square, S)
        half = tl.exp(m)
        S *= half[:, None]
        S_wide = operand(S, OVER_HEAD)
        a = tl.load(a_ptr + origin + place, mask=real, other=0.0) * before
        b = tl.load(b_ptr + origin + place, mask=real, other=0.0) * towards
        a_b = tl.where(strict, dot(a, tl.trans(b), OVER_HEAD), 0.0)
        solve = inverse_of_unit_triangular(a_b, CHUNK, OVER_TOKENS)
        k = tl.load(k_ptr + origin + place, mask=real, other=0.0) * towards
        v = tl.load(v_ptr + origin + place_v, mask=real, other=0.0)
        a_k = tl.where(strict, dot(a, tl.trans(k), OVER_HEAD), 0.0)
        u = dot(solve, dot(a_k, v, OVER_TOKENS) + dot(a, S_wide, OVER_HEAD), OVER_TOKENS)
        if KEEP:
            tl.store(u_ptr + origin + place_v, u, mask=real)
        r = tl.load(r_ptr + origin + place, mask=real, other=0.0) * away
        r_k = tl.where(inclusive, dot(r, tl.trans(k), OVER_HEAD), 0.0)
        r_b = tl.where(inclusive, dot(r, tl.trans(b), OVER_HEAD), 0.0)
        o = dot(r, S_wide, OVER_HEAD) + dot(r_k, v, OVER_TOKENS) + dot(r_b, u, OVER_TOKENS)
        tl.store(o_ptr + origin + place_v, o * scale, mask=real)
        S += dot(tl.trans(k), v, OVER_TOKENS) + dot(tl.trans(b), u, OVER_TOKENS)
        S *= half[:, None]
    tl.store(final_ptr + pair * D * D + square, S)
    tl.store(unsafe_ptr + pair, outside)
