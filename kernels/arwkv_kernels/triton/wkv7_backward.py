"""The gradient of the recurrence in two kernels: dS from chunk to chunk in reverse, then all else, chunks in parallel.

Notation of chunk.py; dX̂ is the gradient of the centred form X̂, and dR = exp(m) dS' that of R:

    du = tril(r̂ b̂ᵀ)ᵀ do + b̂ dR,      dy = (I - tril₋(â b̂ᵀ))⁻ᵀ du      (y is what u solves for)
    dS = exp(m) (dR + r̂ᵀ do + âᵀ dy)
    dv = tril(r̂ k̂ᵀ)ᵀ do + tril₋(â k̂ᵀ)ᵀ dy + k̂ dR
    dr̂ = tril(do vᵀ) k̂ + tril(do uᵀ) b̂ + do (exp(m) S)ᵀ     dâ the same with dy for do, tril₋
    dk̂ = tril(do vᵀ)ᵀ r̂ + tril₋(dy vᵀ)ᵀ â + v dRᵀ           db̂ the same with u for v

A log decay w_t scales all that crosses token t, so dw_t = Σ_{j≥t} (r̂ dr̂ - k̂ dk̂ - b̂ db̂)_j + Σ_{j>t} (â dâ)_j
+ rowsum(R ⊙ dR). No dot takes a transposed result as its first operand: Triton 3.4 to 3.7.0 miscompiles that on Hopper.
Where both orientations of a product are needed, both are computed.
"""

# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False
# mypy: disallow-untyped-calls=False, disallow-incomplete-defs=False
# Triton compiles these functions; their parameters are pointers and constants that Python's types do not describe.

from __future__ import annotations

import triton
import triton.language as tl

from arwkv_kernels.triton.chunk import centred_decays, dot, inverse_of_unit_triangular, operand, sequence_bounds


@triton.jit
def wkv7_state_gradient_kernel(
    r_ptr, w_ptr, a_ptr, b_ptr, unsafe_ptr, cu_seqlens_ptr,
    d_o_ptr, d_final_ptr, dy_ptr, dS_ptr, d_initial_ptr,
    T, scale,
    H: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr, VALUES: tl.constexpr,
    OVER_HEAD: tl.constexpr, OVER_TOKENS: tl.constexpr,
):  # fmt: skip
    """Per sequence, head and VALUES columns of the state (each column is a recurrence of its own): dS' of every chunk
    [P, H, K, V], dy of every token, and the initial state's gradient."""
    pair = tl.program_id(0).to(tl.int64)
    if tl.load(unsafe_ptr + pair) != 0:
        return
    n, h = pair // H, pair % H
    start, length, checkpoint = sequence_bounds(cu_seqlens_ptr, n, T, CHUNK)
    i, d = tl.arange(0, CHUNK), tl.arange(0, D)
    values = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    square = d[:, None] * D + values[None, :]
    place = i[:, None] * (H * D) + d[None, :]
    place_v = i[:, None] * (H * D) + values[None, :]
    inclusive_T, strict_T = i[:, None] <= i[None, :], i[:, None] < i[None, :]
    dS = tl.load(d_final_ptr + pair * (D * D) + square)
    last = (length + CHUNK - 1) // CHUNK - 1
    for back in range(0, last + 1):
        t = (last - back) * CHUNK
        origin = ((start + t) * H + h) * D
        real = (i < length - t)[:, None]
        tl.store(dS_ptr + ((checkpoint + last - back) * H + h) * (D * D) + square, dS)
        w = tl.load(w_ptr + origin + place, mask=real, other=0.0).to(tl.float32)
        away, before, towards, m = centred_decays(w)
        half = tl.exp(m)
        dS *= half[:, None]
        b = tl.load(b_ptr + origin + place, mask=real, other=0.0) * towards
        a = tl.load(a_ptr + origin + place, mask=real, other=0.0) * before
        b_a = tl.where(strict_T, dot(b, tl.trans(a), OVER_HEAD), 0.0)
        solve = inverse_of_unit_triangular(b_a, CHUNK, OVER_TOKENS)
        r = tl.load(r_ptr + origin + place, mask=real, other=0.0) * away
        d_o = tl.load(d_o_ptr + origin + place_v, mask=real, other=0.0) * scale
        b_r = tl.where(inclusive_T, dot(b, tl.trans(r), OVER_HEAD), 0.0)
        du = dot(b, dS, OVER_HEAD) + dot(b_r, d_o, OVER_TOKENS)
        dy = dot(solve, du, OVER_TOKENS)
        tl.store(dy_ptr + origin + place_v, dy, mask=real)
        dS += dot(tl.trans(r), d_o, OVER_TOKENS) + dot(tl.trans(a), dy, OVER_TOKENS)
        dS *= half[:, None]
    tl.store(d_initial_ptr + pair * (D * D) + square, dS)


@triton.jit
def wkv7_token_gradients_kernel(
    r_ptr, w_ptr, k_ptr, v_ptr, a_ptr, b_ptr,
    u_ptr, checkpoint_ptr, unsafe_ptr, cu_seqlens_ptr, sequence_ptr,
    d_o_ptr, dy_ptr, dS_ptr,
    dr_ptr, dw_ptr, dk_ptr, dv_ptr, da_ptr, db_ptr,
    T, scale,
    H: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr, KEYS: tl.constexpr,
    OVER_HEAD: tl.constexpr, OVER_TOKENS: tl.constexpr,
):  # fmt: skip
    """Per chunk (a row of the checkpoints; `sequence_ptr` says whose) and head: the gradients of the six inputs.

    Works on KEYS rows of the state at a time, and reads tokens again where it needs them: the second read comes from
    the cache, while holding them as operands of several products overflows the registers.
    """
    row = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1)
    n = tl.load(sequence_ptr + row)
    start, length, checkpoint = sequence_bounds(cu_seqlens_ptr, n, T, CHUNK)
    t = (row - checkpoint).to(tl.int32) * CHUNK
    if (t >= length) | (tl.load(unsafe_ptr + n * H + h) != 0):
        return
    i = tl.arange(0, CHUNK)
    inclusive, strict = i[:, None] >= i[None, :], i[:, None] > i[None, :]
    inclusive_T, strict_T = i[:, None] <= i[None, :], i[:, None] < i[None, :]
    origin = ((start + t) * H + h) * D
    state = (row * H + h) * (D * D)
    real = (i < length - t)[:, None]
    values = tl.arange(0, D)[None, :]
    place = i[:, None] * (H * D) + values
    v = operand(tl.load(v_ptr + origin + place, mask=real, other=0.0), OVER_HEAD)
    u = operand(tl.load(u_ptr + origin + place, mask=real, other=0.0), OVER_HEAD)
    dy = operand(tl.load(dy_ptr + origin + place, mask=real, other=0.0), OVER_HEAD)
    d_o = operand(tl.load(d_o_ptr + origin + place, mask=real, other=0.0) * scale, OVER_HEAD)
    o_v = tl.where(inclusive, dot(d_o, tl.trans(v), OVER_HEAD), 0.0)
    o_u = tl.where(inclusive, dot(d_o, tl.trans(u), OVER_HEAD), 0.0)
    y_v = tl.where(strict, dot(dy, tl.trans(v), OVER_HEAD), 0.0)
    y_u = tl.where(strict, dot(dy, tl.trans(u), OVER_HEAD), 0.0)
    v_o = tl.where(inclusive_T, dot(v, tl.trans(d_o), OVER_HEAD), 0.0)
    u_o = tl.where(inclusive_T, dot(u, tl.trans(d_o), OVER_HEAD), 0.0)
    v_y = tl.where(strict_T, dot(v, tl.trans(dy), OVER_HEAD), 0.0)
    u_y = tl.where(strict_T, dot(u, tl.trans(dy), OVER_HEAD), 0.0)
    dv = tl.zeros([CHUNK, D], tl.float32)
    k_r = tl.zeros([CHUNK, CHUNK], tl.float32)
    k_a = tl.zeros([CHUNK, CHUNK], tl.float32)
    for first_key in range(0, D, KEYS):
        keys = first_key + tl.arange(0, KEYS)
        place_k = i[:, None] * (H * D) + keys[None, :]
        square = keys[:, None] * D + values
        w = tl.load(w_ptr + origin + place_k, mask=real, other=0.0).to(tl.float32)
        away, before, towards, m = centred_decays(w)
        half = tl.exp(m)
        r = tl.load(r_ptr + origin + place_k, mask=real, other=0.0) * away
        k = tl.load(k_ptr + origin + place_k, mask=real, other=0.0) * towards
        a = tl.load(a_ptr + origin + place_k, mask=real, other=0.0) * before
        b = tl.load(b_ptr + origin + place_k, mask=real, other=0.0) * towards
        S = tl.load(checkpoint_ptr + state + square) * half[:, None]
        dR = tl.load(dS_ptr + state + square) * half[:, None]
        crossing = tl.sum(S * dR, 1)
        S_T, dR = tl.trans(operand(S, OVER_HEAD)), operand(dR, OVER_HEAD)

        k_r += dot(k, tl.trans(r), OVER_HEAD)
        k_a += dot(k, tl.trans(a), OVER_HEAD)
        dv += dot(k, dR, OVER_HEAD)

        d_o = operand(tl.load(d_o_ptr + origin + place, mask=real, other=0.0) * scale, OVER_HEAD)
        dr = dot(d_o, S_T, OVER_HEAD) + dot(o_v, k, OVER_TOKENS) + dot(o_u, b, OVER_TOKENS)
        crossed_after = r * dr
        tl.store(dr_ptr + origin + place_k, dr * away, mask=real)

        dy = operand(tl.load(dy_ptr + origin + place, mask=real, other=0.0), OVER_HEAD)
        da = dot(dy, S_T, OVER_HEAD) + dot(y_v, k, OVER_TOKENS) + dot(y_u, b, OVER_TOKENS)
        crossed_before = a * da
        tl.store(da_ptr + origin + place_k, da * before, mask=real)

        dR_T = tl.trans(dR)
        v = operand(tl.load(v_ptr + origin + place, mask=real, other=0.0), OVER_HEAD)
        dk = dot(v, dR_T, OVER_HEAD)
        crossing += tl.sum(k * dk, 0)
        dk += dot(v_o, r, OVER_TOKENS) + dot(v_y, a, OVER_TOKENS)
        crossed_after -= k * dk
        tl.store(dk_ptr + origin + place_k, dk * towards, mask=real)

        u = operand(tl.load(u_ptr + origin + place, mask=real, other=0.0), OVER_HEAD)
        db = dot(u, dR_T, OVER_HEAD)
        crossing += tl.sum(b * db, 0)
        db += dot(u_o, r, OVER_TOKENS) + dot(u_y, a, OVER_TOKENS)
        crossed_after -= b * db
        tl.store(db_ptr + origin + place_k, db * towards, mask=real)

        crossed = crossed_after + crossed_before
        from_here = tl.sum(crossed, 0)[None, :] - tl.cumsum(crossed, 0) + crossed_after
        tl.store(dw_ptr + origin + place_k, from_here + crossing[None, :], mask=real)
    k_r = tl.where(inclusive_T, k_r, 0.0)
    k_a = tl.where(strict_T, k_a, 0.0)
    d_o = operand(tl.load(d_o_ptr + origin + place, mask=real, other=0.0) * scale, OVER_HEAD)
    dy = operand(tl.load(dy_ptr + origin + place, mask=real, other=0.0), OVER_HEAD)
    dv += dot(k_r, d_o, OVER_TOKENS) + dot(k_a, dy, OVER_TOKENS)
    tl.store(dv_ptr + origin + place, dv, mask=real)
