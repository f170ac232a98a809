"""What the walks leave to all chunks at once: the output where sequences are few, and the gradients of the inputs.

The notation is wkv7_backward.py's; Z = Sᵀ and dZ lie transposed in memory [V, K], as products with tokens take them.
Both are kept once a span of several chunks: the state between two chunks of a span is made again from the span's own.
"""

# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False
# mypy: disallow-untyped-calls=False, disallow-incomplete-defs=False
# Triton compiles these functions; their parameters are pointers and constants that Python's types do not describe.

from __future__ import annotations

import triton
import triton.language as tl

from arwkv_kernels.triton.chunk import centred_decays, dot, operand, sequence_bounds


@triton.jit
def _tokens(ptr, place, real):
    return tl.load(ptr + place, mask=real, other=0.0)


@triton.jit
def _carried(Z, length, origin, begin, stop, w_ptr, x_ptr, y_ptr, p_ptr, q_ptr, keys, values, scale,
             STRIDE: tl.constexpr, CHUNK: tl.constexpr, FORWARD: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Z [V, KEYS] carried over the chunks of tokens begin..stop of a span.

    FORWARD: Z' = exp(m) (exp(m) Z + vᵀ k̂ + uᵀ b̂), x and y being v and u, p and q being k and b. Else the gradient, from
    the last chunk to the first: dZ = exp(m) (exp(m) dZ' + scale doᵀ r̂ + dyᵀ â), with do, dy, r and a.
    """
    i = tl.arange(0, CHUNK)
    for at in range(begin, stop, CHUNK):
        t = at if FORWARD else begin + stop - CHUNK - at
        real, real_v = (i < length - t)[:, None], (i < length - t)[None, :]
        place = origin + (t + i[:, None]) * STRIDE + keys[None, :]
        place_v = origin + (t + i[None, :]) * STRIDE + values[:, None]
        away, before, towards, m = centred_decays(_tokens(w_ptr, place, real).to(tl.float32))
        half = tl.exp(m)[None, :]
        Z *= half
        x, y = _tokens(x_ptr, place_v, real_v) * scale, _tokens(y_ptr, place_v, real_v)
        p, q = _tokens(p_ptr, place, real), _tokens(q_ptr, place, real)
        if FORWARD:
            Z += dot(x, p * towards, PRECISION) + dot(y, q * towards, PRECISION)
        else:
            Z += dot(x, p * away, PRECISION) + dot(y, q * before, PRECISION)
        Z *= half
    return Z


@triton.jit
def wkv7_output_kernel(
    r_ptr, w_ptr, k_ptr, v_ptr, b_ptr, o_ptr, u_ptr, state_ptr, unsafe_ptr, cu_seqlens_ptr, sequence_ptr,
    T, scale,
    H: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr, SPAN: tl.constexpr, KEYS: tl.constexpr,
    OVER_HEAD: tl.constexpr, OVER_TOKENS: tl.constexpr,
):  # fmt: skip
    """Per span and head: o = scale (r̂ exp(m) S + tril(r̂ k̂ᵀ) v + tril(r̂ b̂ᵀ) u)."""
    row = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1)
    n = tl.load(sequence_ptr + row)
    start, length, first_row = sequence_bounds(cu_seqlens_ptr, n, T, SPAN)
    span = (row - first_row).to(tl.int32) * SPAN
    if (span >= length) | (tl.load(unsafe_ptr + n * H + h) != 0):
        return
    i, values = tl.arange(0, CHUNK), tl.arange(0, D)
    inclusive = i[:, None] >= i[None, :]
    origin = (start * H + h) * D
    for t in range(span, span + SPAN, CHUNK):
        real = (i < length - t)[:, None]
        place = origin + (t + i[:, None]) * (H * D)
        o = tl.zeros([CHUNK, D], tl.float32)
        r_k = tl.zeros([CHUNK, CHUNK], tl.float32)
        r_b = tl.zeros([CHUNK, CHUNK], tl.float32)
        for first_key in range(0, D, KEYS):
            keys = first_key + tl.arange(0, KEYS)
            square = (row * H + h) * (D * D) + values[:, None] * D + keys[None, :]
            Z = _carried(
                tl.load(state_ptr + square).to(tl.float32), length, origin, span, t,
                w_ptr, v_ptr, u_ptr, k_ptr, b_ptr, keys, values, 1.0, H * D, CHUNK, True, OVER_HEAD,
            )  # fmt: skip
            w = _tokens(w_ptr, place + keys[None, :], real).to(tl.float32)
            away, _, towards, m = centred_decays(w)
            r = operand(_tokens(r_ptr, place + keys[None, :], real) * away, OVER_HEAD)
            o += dot(r, tl.trans(operand(Z * tl.exp(m)[None, :], OVER_HEAD)), OVER_HEAD)
            r_k += dot(r, tl.trans(_tokens(k_ptr, place + keys[None, :], real) * towards), OVER_HEAD)
            r_b += dot(r, tl.trans(_tokens(b_ptr, place + keys[None, :], real) * towards), OVER_HEAD)
        o += dot(tl.where(inclusive, r_k, 0.0), _tokens(v_ptr, place + values[None, :], real), OVER_TOKENS)
        o += dot(tl.where(inclusive, r_b, 0.0), _tokens(u_ptr, place + values[None, :], real), OVER_TOKENS)
        tl.store(o_ptr + place + values[None, :], o * scale, mask=real)


@triton.jit
def _add(pointers, x, real, first_value, SLICED: tl.constexpr):
    """Store x, from the second slice of columns on added to what the slices before it left."""
    if SLICED:
        x += tl.load(pointers, mask=real & (first_value > 0), other=0.0)
    tl.store(pointers, x, mask=real)


@triton.jit
def wkv7_span_gradients_kernel(
    r_ptr, w_ptr, k_ptr, v_ptr, a_ptr, b_ptr,
    u_ptr, state_ptr, unsafe_ptr, cu_seqlens_ptr, sequence_ptr,
    d_o_ptr, dy_ptr, dZ_ptr,
    dr_ptr, dw_ptr, dk_ptr, dv_ptr, da_ptr, db_ptr,
    T, scale,
    H: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr, SPAN: tl.constexpr,
    KEYS: tl.constexpr, VALUES: tl.constexpr,
    OVER_HEAD: tl.constexpr, OVER_TOKENS: tl.constexpr,
):  # fmt: skip
    """Per span and head: the six inputs' gradients, chunk after chunk, for KEYS channels and VALUES columns at a time.

    Each column of the state is a recurrence of its own, so all gradients but v's are sums over columns, which VALUES
    below D adds up in memory. dy may lie in dv's memory: a chunk's dv is written when no one needs its dy any more.
    """
    row = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1)
    n = tl.load(sequence_ptr + row)
    start, length, first_row = sequence_bounds(cu_seqlens_ptr, n, T, SPAN)
    span = (row - first_row).to(tl.int32) * SPAN
    if (span >= length) | (tl.load(unsafe_ptr + n * H + h) != 0):
        return
    i = tl.arange(0, CHUNK)
    inclusive, strict = i[:, None] >= i[None, :], i[:, None] > i[None, :]
    inclusive_T, strict_T = i[:, None] <= i[None, :], i[:, None] < i[None, :]
    origin = (start * H + h) * D
    for first_value in range(0, D, VALUES):
        values = first_value + tl.arange(0, VALUES)
        if VALUES < D:
            tl.debug_barrier()
        for t in range(span, span + SPAN, CHUNK):
            real = (i < length - t)[:, None]
            place = origin + (t + i[:, None]) * (H * D) + values[None, :]
            v = operand(_tokens(v_ptr, place, real), OVER_HEAD)
            u = operand(_tokens(u_ptr, place, real), OVER_HEAD)
            dy = operand(_tokens(dy_ptr, place, real), OVER_HEAD)
            d_o = operand(_tokens(d_o_ptr, place, real) * scale, OVER_HEAD)
            o_v = tl.where(inclusive, dot(d_o, tl.trans(v), OVER_HEAD), 0.0)
            o_u = tl.where(inclusive, dot(d_o, tl.trans(u), OVER_HEAD), 0.0)
            y_v = tl.where(strict, dot(dy, tl.trans(v), OVER_HEAD), 0.0)
            y_u = tl.where(strict, dot(dy, tl.trans(u), OVER_HEAD), 0.0)
            v_o = tl.where(inclusive_T, dot(v, tl.trans(d_o), OVER_HEAD), 0.0)
            u_o = tl.where(inclusive_T, dot(u, tl.trans(d_o), OVER_HEAD), 0.0)
            v_y = tl.where(strict_T, dot(v, tl.trans(dy), OVER_HEAD), 0.0)
            u_y = tl.where(strict_T, dot(u, tl.trans(dy), OVER_HEAD), 0.0)
            dv = tl.zeros([CHUNK, VALUES], tl.float32)
            k_r = tl.zeros([CHUNK, CHUNK], tl.float32)
            k_a = tl.zeros([CHUNK, CHUNK], tl.float32)
            for first_key in range(0, D, KEYS):
                keys = first_key + tl.arange(0, KEYS)
                place_k = origin + (t + i[:, None]) * (H * D) + keys[None, :]
                square = (row * H + h) * (D * D) + values[:, None] * D + keys[None, :]
                Z = _carried(
                    tl.load(state_ptr + square).to(tl.float32), length, origin, span, t,
                    w_ptr, v_ptr, u_ptr, k_ptr, b_ptr, keys, values, 1.0, H * D, CHUNK, True, OVER_HEAD,
                )  # fmt: skip
                dZ = _carried(
                    tl.load(dZ_ptr + square).to(tl.float32), length, origin, t + CHUNK, span + SPAN,
                    w_ptr, d_o_ptr, dy_ptr, r_ptr, a_ptr, keys, values, scale, H * D, CHUNK, False, OVER_HEAD,
                )  # fmt: skip
                away, before, towards, m = centred_decays(_tokens(w_ptr, place_k, real).to(tl.float32))
                half = tl.exp(m)[None, :]
                Z, dZ = Z * half, dZ * half
                crossing = tl.sum(Z * dZ, 0)
                Z, dZ = operand(Z, OVER_HEAD), operand(dZ, OVER_HEAD)
                r = _tokens(r_ptr, place_k, real) * away
                k = _tokens(k_ptr, place_k, real) * towards
                a = _tokens(a_ptr, place_k, real) * before
                b = _tokens(b_ptr, place_k, real) * towards

                dr = dot(operand(_tokens(d_o_ptr, place, real) * scale, OVER_HEAD), Z, OVER_HEAD)
                dr += dot(o_v, k, OVER_TOKENS) + dot(o_u, b, OVER_TOKENS)
                crossed_after = r * dr
                _add(dr_ptr + place_k, dr * away, real, first_value, VALUES < D)

                da = dot(operand(_tokens(dy_ptr, place, real), OVER_HEAD), Z, OVER_HEAD)
                da += dot(y_v, k, OVER_TOKENS) + dot(y_u, b, OVER_TOKENS)
                crossed_before = a * da
                _add(da_ptr + place_k, da * before, real, first_value, VALUES < D)

                dk = dot(operand(_tokens(v_ptr, place, real), OVER_HEAD), dZ, OVER_HEAD)
                crossing += tl.sum(k * dk, 0)
                dk += dot(v_o, r, OVER_TOKENS) + dot(v_y, a, OVER_TOKENS)
                crossed_after -= k * dk
                _add(dk_ptr + place_k, dk * towards, real, first_value, VALUES < D)

                db = dot(operand(_tokens(u_ptr, place, real), OVER_HEAD), dZ, OVER_HEAD)
                crossing += tl.sum(b * db, 0)
                db += dot(u_o, r, OVER_TOKENS) + dot(u_y, a, OVER_TOKENS)
                crossed_after -= b * db
                _add(db_ptr + place_k, db * towards, real, first_value, VALUES < D)

                crossed = crossed_after + crossed_before
                from_here = tl.sum(crossed, 0)[None, :] - tl.cumsum(crossed, 0) + crossed_after
                _add(dw_ptr + place_k, from_here + crossing[None, :], real, first_value, VALUES < D)

                k_r += dot(k, tl.trans(r), OVER_HEAD)
                k_a += dot(k, tl.trans(a), OVER_HEAD)
                dv += dot(k, tl.trans(dZ), OVER_HEAD)
            d_o = operand(_tokens(d_o_ptr, place, real) * scale, OVER_HEAD)
            dv += dot(tl.where(inclusive_T, k_r, 0.0), d_o, OVER_TOKENS)
            dv += dot(tl.where(strict_T, k_a, 0.0), _tokens(dy_ptr, place, real), OVER_TOKENS)
            tl.debug_barrier()
            tl.store(dv_ptr + place, dv, mask=real)
