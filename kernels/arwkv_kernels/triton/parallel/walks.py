"""The two walks over the chunks of a sequence, one for the state and one, in reverse, for its gradient.

Both hold the transposed state Z = Sᵀ [V, K], so that it is always the first operand of a product as it lies in the
registers, and no result is ever transposed:

    uᵀ = (Z exp(m) âᵀ + vᵀ tril₋(â k̂ᵀ)ᵀ) Tᵀ          Z' = exp(m) (exp(m) Z + vᵀ k̂ + uᵀ b̂)
    dyᵀ = (dZ' exp(m) b̂ᵀ + doᵀ tril(r̂ b̂ᵀ)) T          dZ = exp(m) (exp(m) dZ' + doᵀ r̂ + dyᵀ â)

One program per sequence, head and VALUES rows of Z: each row is a recurrence of its own. A step takes CHUNK tokens; Z
is kept once a span of SPAN tokens.
"""

# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False
# mypy: disallow-untyped-calls=False, disallow-incomplete-defs=False
# Triton compiles these functions; their parameters are pointers and constants that Python's types do not describe.

from __future__ import annotations

import triton
import triton.language as tl

from arwkv_kernels.triton.chunk import centred_decays, dot, operand, sequence_bounds


@triton.jit
def wkv7_walk_kernel(
    r_ptr, w_ptr, k_ptr, v_ptr, a_ptr, b_ptr, solve_ptr,
    initial_ptr, final_ptr, o_ptr, u_ptr, state_ptr, unsafe_ptr, cu_seqlens_ptr,
    T, scale,
    H: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr, SPAN: tl.constexpr, VALUES: tl.constexpr,
    KEEP: tl.constexpr, OUTPUT: tl.constexpr,
    OVER_HEAD: tl.constexpr, OVER_TOKENS: tl.constexpr, SOLVING: tl.constexpr,
):  # fmt: skip
    """Writes the final state; with OUTPUT also o; with KEEP u, and Z before each span [P, H, V, K]."""
    pair = tl.program_id(0).to(tl.int64)
    if tl.load(unsafe_ptr + pair) != 0:
        return
    n, h = pair // H, pair % H
    start, length, row = sequence_bounds(cu_seqlens_ptr, n, T, SPAN)
    i, d = tl.arange(0, CHUNK), tl.arange(0, D)
    values = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    place = i[:, None] * (H * D) + d[None, :]
    place_v = values[:, None] + i[None, :] * (H * D)
    before_this, up_to_this = i[:, None] < i[None, :], i[:, None] <= i[None, :]
    # K along rows, V along columns in memory.
    square = pair * (D * D) + d[None, :] * D + values[:, None]
    Z = tl.load(initial_ptr + square)
    for t in range(0, length, CHUNK):
        origin = ((start + t) * H + h) * D
        real, real_v = (i < length - t)[:, None], (i < length - t)[None, :]
        if KEEP:
            kept = ((row + t // SPAN) * H + h) * (D * D) + values[:, None] * D + d[None, :]
            tl.store(state_ptr + kept, Z, mask=t % SPAN == 0)
        w = tl.load(w_ptr + origin + place, mask=real, other=0.0).to(tl.float32)
        away, before, towards, m = centred_decays(w)
        half = tl.exp(m)[None, :]
        Z *= half
        Z_wide = operand(Z, OVER_HEAD)
        a = operand(tl.load(a_ptr + origin + place, mask=real, other=0.0) * before, OVER_HEAD)
        k = operand(tl.load(k_ptr + origin + place, mask=real, other=0.0) * towards, OVER_HEAD)
        b = operand(tl.load(b_ptr + origin + place, mask=real, other=0.0) * towards, OVER_HEAD)
        v = tl.load(v_ptr + origin + place_v, mask=real_v, other=0.0)
        solve = tl.load(
            solve_ptr + ((row * SPAN + t) // CHUNK * H + h) * (CHUNK * CHUNK) + i[:, None] + i[None, :] * CHUNK
        )
        k_a = tl.where(before_this, dot(k, tl.trans(a), OVER_HEAD), 0.0)
        u = dot(dot(Z_wide, tl.trans(a), OVER_HEAD) + dot(v, k_a, OVER_TOKENS), solve, SOLVING)
        if KEEP:
            tl.store(u_ptr + origin + place_v, u, mask=real_v)
        if OUTPUT:
            r = operand(tl.load(r_ptr + origin + place, mask=real, other=0.0) * away, OVER_HEAD)
            k_r = tl.where(up_to_this, dot(k, tl.trans(r), OVER_HEAD), 0.0)
            b_r = tl.where(up_to_this, dot(b, tl.trans(r), OVER_HEAD), 0.0)
            o = dot(Z_wide, tl.trans(r), OVER_HEAD) + dot(v, k_r, OVER_TOKENS) + dot(u, b_r, OVER_TOKENS)
            tl.store(o_ptr + origin + place_v, o * scale, mask=real_v)
        Z += dot(v, k, OVER_HEAD) + dot(u, b, OVER_HEAD)
        Z *= half
    tl.store(final_ptr + square, Z)


@triton.jit
def wkv7_reverse_walk_kernel(
    r_ptr, w_ptr, a_ptr, b_ptr, solve_ptr, unsafe_ptr, cu_seqlens_ptr,
    d_o_ptr, d_final_ptr, dy_ptr, dZ_ptr, d_initial_ptr,
    T, scale,
    H: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr, SPAN: tl.constexpr, VALUES: tl.constexpr,
    OVER_HEAD: tl.constexpr, OVER_TOKENS: tl.constexpr, SOLVING: tl.constexpr,
):  # fmt: skip
    """Writes dZ' after every span [P, H, V, K], dy of every token, and the initial state's gradient."""
    pair = tl.program_id(0).to(tl.int64)
    if tl.load(unsafe_ptr + pair) != 0:
        return
    n, h = pair // H, pair % H
    start, length, row = sequence_bounds(cu_seqlens_ptr, n, T, SPAN)
    i, d = tl.arange(0, CHUNK), tl.arange(0, D)
    values = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    place = i[:, None] * (H * D) + d[None, :]
    place_v = values[:, None] + i[None, :] * (H * D)
    up_to_this = i[:, None] >= i[None, :]
    square = pair * (D * D) + d[None, :] * D + values[:, None]
    dZ = tl.load(d_final_ptr + square)
    last = (length + CHUNK - 1) // CHUNK - 1
    for back in range(0, last + 1):
        t = (last - back) * CHUNK
        origin = ((start + t) * H + h) * D
        real, real_v = (i < length - t)[:, None], (i < length - t)[None, :]
        kept = ((row + t // SPAN) * H + h) * (D * D) + values[:, None] * D + d[None, :]
        tl.store(dZ_ptr + kept, dZ, mask=(back == 0) | ((t + CHUNK) % SPAN == 0))
        w = tl.load(w_ptr + origin + place, mask=real, other=0.0).to(tl.float32)
        away, before, towards, m = centred_decays(w)
        half = tl.exp(m)[None, :]
        dZ *= half
        r = operand(tl.load(r_ptr + origin + place, mask=real, other=0.0) * away, OVER_HEAD)
        a = operand(tl.load(a_ptr + origin + place, mask=real, other=0.0) * before, OVER_HEAD)
        b = operand(tl.load(b_ptr + origin + place, mask=real, other=0.0) * towards, OVER_HEAD)
        d_o = tl.load(d_o_ptr + origin + place_v, mask=real_v, other=0.0) * scale
        solve = tl.load(
            solve_ptr + ((row * SPAN + t) // CHUNK * H + h) * (CHUNK * CHUNK) + i[:, None] * CHUNK + i[None, :]
        )
        r_b = tl.where(up_to_this, dot(r, tl.trans(b), OVER_HEAD), 0.0)
        dy = dot(dot(dZ, tl.trans(b), OVER_HEAD) + dot(d_o, r_b, OVER_TOKENS), solve, SOLVING)
        tl.store(dy_ptr + origin + place_v, dy, mask=real_v)
        dZ += dot(d_o, r, OVER_HEAD) + dot(dy, a, OVER_HEAD)
        dZ *= half
    tl.store(d_initial_ptr + square, dZ)
