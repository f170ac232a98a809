"""The recurrence and its gradient as loops that numba compiles; one call handles a range of (sequence, head) pairs.

A state row i (a key) is contiguous over the values j, so every inner loop is a vector operation; two rows are processed
at a time to halve the traffic of the sums over i, and Sᵀ a is summed in two chains, which wait less for one another.
A sequence is read in chunks of 16 tokens, all heads of a chunk after one another, because tokens of one head alone lie
far apart. Forward keeps the state before each chunk, and every u = Sᵀ a. Backward goes from the last chunk to the first
with dS, the gradient of the state after the token:

    dS += r doᵀ;  dk = dS v;  dv = dSᵀ k;  db = dS u;  du = dSᵀ b;  dS = diag(exp w) dS + a duᵀ

What remains needs the states S_m inside a chunk, m tokens after its first state S: dr = S_m do of the m-th token, and
da = S_m du of the one after it. They are not made again, because such a product has a shorter form,

    S_m x = W S x + Σ_{s ≤ m} W_s (b_s (u_sᵀ x) + k_s (v_sᵀ x))

with W_s the product of the decays of the tokens s + 1 to m, and W that of all up to m; and the products with S are
those of one matrix with all tokens of a chunk. The gradient of w is dw = exp w ⊙ rowsum(dS ⊙ S_before) at a chunk's
first token. Both rows are changed by known amounts from token to token, so that

    dw_{t+1} = dw_t + b_t db_t + k_t dk_t − r_t dr_t − a_{t+1} da_{t+1}

A strong decay makes dw small and these terms not, and their rounding would show: then a chunk is one token long.

Arrays are C-contiguous and of one dtype: tokens [M, H, D], all sequences end to end; states [N, H, K·V]; checkpoints
[P, H, K·V], those of sequence n from row `first_checkpoint[n]` on. Loops are built once per head size, because LLVM
vectorizes fixed lengths well; the rows they work on live on the stack, because LLVM must know they do not overlap. For
the same reason no loop over a row writes an array of tokens and reads another.
Whole states are copied as one row: LLVM made scattered stores of a copy by rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from arwkv_kernels.jit import compile_loop

CHUNK = 16
ROWS_AT_ONCE = 2

# Any, here and below: numba's dispatchers, types and builders publish no types.
Loop = Callable[..., None]


def _stack_space(_: Any, length: Any, like: Any) -> Any:
    """For numba: a pointer to `length` (a constant) uninitialized elements of `like`'s dtype on the caller's stack."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = context.get_value_type(like.dtype)
        with builder.goto_entry_block():
            space = builder.alloca(ir.ArrayType(element, length.literal_value))
            space.align = 64
        # LLVM leaves half of an Intel processor's vector registers unused unless a function asks for them (LangRef,
        # "prefer-vector-width"). llvmlite's own `add` knows no attributes of this form.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return builder.bitcast(space, element.as_pointer())

    if not isinstance(length, types.IntegerLiteral):
        return None
    return types.CPointer(like.dtype)(length, like), generate


stack_space = intrinsic(_stack_space)


@cache
def forward_loop(head_size: int) -> Loop:
    """Writes o and the final states of pairs first..last-1; `w` holds decays exp(w).

    With `chunk`, the tokens of a chunk for the backward pass, also the checkpoints and `us`; without, chunk = 0.
    """
    D = head_size
    square = D * D

    def forward(  # type: ignore[no-untyped-def]  # compiled by numba
        r, w, k, v, a, b, initial, final, o, checkpoints, us, chunk, offsets, first_checkpoint, first, last
    ):
        heads = r.shape[1]
        space = stack_space(square, r)
        S = numba.carray(space, (D, D))
        state = numba.carray(space, (square,))
        u = numba.carray(stack_space(D, r), (D,))
        u_odd = numba.carray(stack_space(D, r), (D,))
        v_now = numba.carray(stack_space(D, r), (D,))
        o_now = numba.carray(stack_space(D, r), (D,))
        tokens = chunk if chunk else CHUNK
        for n in range(first // heads, (last - 1) // heads + 1):
            begin, end = offsets[n], offsets[n + 1]
            low, high = max(first - n * heads, 0), min(last - n * heads, heads)
            parts = (end - begin + tokens - 1) // tokens
            for part in range(max(1, parts)):
                start, row = begin + part * tokens, first_checkpoint[n] + part
                for h in range(low, high):
                    if part == 0:
                        for entry in range(square):
                            state[entry] = initial[n, h, entry]
                        if chunk and parts:
                            for entry in range(square):
                                checkpoints[row, h, entry] = state[entry]
                    elif chunk:
                        for entry in range(square):
                            state[entry] = checkpoints[row, h, entry]
                    else:
                        for entry in range(square):
                            state[entry] = final[n, h, entry]
                    for t in range(start, min(start + tokens, end)):
                        for j in range(D):
                            u[j] = 0
                            u_odd[j] = 0
                            o_now[j] = 0
                            v_now[j] = v[t, h, j]
                        for i in range(0, D, 2):
                            a0, a1 = a[t, h, i], a[t, h, i + 1]
                            for j in range(D):
                                u[j] += a0 * S[i, j]
                                u_odd[j] += a1 * S[i + 1, j]
                        for j in range(D):
                            u[j] += u_odd[j]
                        for i in range(0, D, 2):
                            w0, b0, k0, r0 = w[t, h, i], b[t, h, i], k[t, h, i], r[t, h, i]
                            w1, b1, k1, r1 = w[t, h, i + 1], b[t, h, i + 1], k[t, h, i + 1], r[t, h, i + 1]
                            for j in range(D):
                                s0 = w0 * S[i, j] + b0 * u[j] + k0 * v_now[j]
                                s1 = w1 * S[i + 1, j] + b1 * u[j] + k1 * v_now[j]
                                S[i, j] = s0
                                S[i + 1, j] = s1
                                o_now[j] += r0 * s0 + r1 * s1
                        for j in range(D):
                            o[t, h, j] = o_now[j]
                        if chunk:
                            for j in range(D):
                                us[t, h, j] = u[j]
                    if chunk and part + 1 < parts:
                        for entry in range(square):
                            checkpoints[row + 1, h, entry] = state[entry]
                    else:
                        for entry in range(square):
                            final[n, h, entry] = state[entry]

    return compile_loop(forward)


@cache
def step_loop(head_size: int) -> Loop:
    """One token of pairs first..last-1, whose states are changed in place; inputs and o [B, H, D], `w` holds exp(w).

    `states` is one row; the state of head h of sequence n begins at slots[n] · stride + h · D².
    """
    D = head_size
    square = D * D

    def step(r, w, k, v, a, b, states, stride, slots, o, first, last):  # type: ignore[no-untyped-def]  # by numba
        heads = r.shape[1]
        u = numba.carray(stack_space(D, r), (D,))
        v_now = numba.carray(stack_space(D, r), (D,))
        o_now = numba.carray(stack_space(D, r), (D,))
        for pair in range(first, last):
            n, h = pair // heads, pair % heads
            begin = slots[n] * stride + h * square
            S = states[begin : begin + square]
            for j in range(D):
                u[j] = 0
                o_now[j] = 0
                v_now[j] = v[n, h, j]
            for i in range(0, D, 2):
                a0, a1 = a[n, h, i], a[n, h, i + 1]
                for j in range(D):
                    u[j] += a0 * S[i * D + j] + a1 * S[i * D + D + j]
            for i in range(0, D, 2):
                w0, b0, k0, r0 = w[n, h, i], b[n, h, i], k[n, h, i], r[n, h, i]
                w1, b1, k1, r1 = w[n, h, i + 1], b[n, h, i + 1], k[n, h, i + 1], r[n, h, i + 1]
                for j in range(D):
                    s0 = w0 * S[i * D + j] + b0 * u[j] + k0 * v_now[j]
                    s1 = w1 * S[i * D + D + j] + b1 * u[j] + k1 * v_now[j]
                    S[i * D + j] = s0
                    S[i * D + D + j] = s1
                    o_now[j] += r0 * s0 + r1 * s1
            for j in range(D):
                o[n, h, j] = o_now[j]

    return compile_loop(step)


@cache
def backward_loop(head_size: int) -> Loop:
    """Writes the gradients of pairs first..last-1; a checkpoint lies before every `chunk` tokens, at most CHUNK."""
    D = head_size
    square = D * D
    row_of_chunk = D * CHUNK

    def backward(  # type: ignore[no-untyped-def]  # compiled by numba
        r, w, k, v, a, b, us, d_o, d_final, checkpoints,
        dr, dw, dk, dv, da, db, d_initial, chunk, offsets, first_checkpoint, first, last,
    ):  # fmt: skip
        heads = r.shape[1]
        zero = r.dtype.type(0)
        space = stack_space(square, r)
        dS = numba.carray(space, (D, D))
        d_state = numba.carray(space, (square,))
        S_transposed = numba.carray(stack_space(square, r), (D, D))
        dus = numba.carray(stack_space(row_of_chunk, r), (CHUNK, D))
        u = numba.carray(stack_space(D, r), (D,))
        du = numba.carray(stack_space(D, r), (D,))
        v_now = numba.carray(stack_space(D, r), (D,))
        dv_now = numba.carray(stack_space(D, r), (D,))
        do_now = numba.carray(stack_space(D, r), (D,))
        # Of the token after: its decays and a, with which dS goes back over it.
        w_after = numba.carray(stack_space(D, r), (D,))
        a_after = numba.carray(stack_space(D, r), (D,))
        du_after = numba.carray(stack_space(D, r), (D,))
        W = numba.carray(stack_space(D, r), (D,))
        S_do = numba.carray(stack_space(D, r), (D,))
        S_du = numba.carray(stack_space(D, r), (D,))
        dr_now = numba.carray(stack_space(D, r), (D,))
        da_after = numba.carray(stack_space(D, r), (D,))
        dw_now = numba.carray(stack_space(D, r), (D,))
        for n in range(first // heads, (last - 1) // heads + 1):
            begin, end = offsets[n], offsets[n + 1]
            low, high = max(first - n * heads, 0), min(last - n * heads, heads)
            for h in range(low, high):
                for entry in range(square):
                    d_initial[n, h, entry] = d_final[n, h, entry]
            for part in range((end - begin - 1) // chunk, -1, -1):
                start = begin + part * chunk
                stop = min(start + chunk, end)
                row = first_checkpoint[n] + part
                for h in range(low, high):
                    for entry in range(square):
                        d_state[entry] = d_initial[n, h, entry]
                    for i in range(D):
                        w_after[i] = 1
                        a_after[i] = 0
                        du_after[i] = 0
                    for t in range(stop - 1, start - 1, -1):
                        for j in range(D):
                            u[j] = us[t, h, j]
                            du[j] = 0
                            dv_now[j] = 0
                            v_now[j] = v[t, h, j]
                            do_now[j] = d_o[t, h, j]
                        for i in range(0, D, 2):
                            w0, a0, r0, b0, k0 = w_after[i], a_after[i], r[t, h, i], b[t, h, i], k[t, h, i]
                            w1, a1 = w_after[i + 1], a_after[i + 1]
                            r1, b1, k1 = r[t, h, i + 1], b[t, h, i + 1], k[t, h, i + 1]
                            dk0, db0, dk1, db1 = zero, zero, zero, zero
                            for j in range(D):
                                d0 = w0 * dS[i, j] + a0 * du_after[j] + r0 * do_now[j]
                                d1 = w1 * dS[i + 1, j] + a1 * du_after[j] + r1 * do_now[j]
                                dS[i, j] = d0
                                dS[i + 1, j] = d1
                                dk0 += d0 * v_now[j]
                                dk1 += d1 * v_now[j]
                                db0 += d0 * u[j]
                                db1 += d1 * u[j]
                                du[j] += b0 * d0 + b1 * d1
                                dv_now[j] += k0 * d0 + k1 * d1
                            dk[t, h, i] = dk0
                            dk[t, h, i + 1] = dk1
                            db[t, h, i] = db0
                            db[t, h, i + 1] = db1
                        for j in range(D):
                            dv[t, h, j] = dv_now[j]
                        for j in range(D):
                            dus[t - start, j] = du[j]
                            du_after[j] = du[j]
                            w_after[j] = w[t, h, j]
                            a_after[j] = a[t, h, j]
                    for i in range(D):
                        total = zero
                        for j in range(D):
                            total += dS[i, j] * checkpoints[row, h, i * D + j]
                            S_transposed[j, i] = checkpoints[row, h, i * D + j]
                        dw_now[i] = w[start, h, i] * total
                    for i in range(D):
                        for j in range(D):
                            d_initial[n, h, i * D + j] = w_after[i] * dS[i, j] + a_after[i] * du_after[j]
                    for i in range(D):
                        S_du[i] = 0
                    for j in range(D):
                        du_first = dus[0, j]
                        for i in range(D):
                            S_du[i] += S_transposed[j, i] * du_first
                    for i in range(D):
                        da[start, h, i] = S_du[i]
                    for i in range(D):
                        dw[start, h, i] = dw_now[i]
                    for t in range(start, stop):
                        after = t + 1 < stop
                        for i in range(D):
                            W[i] = 1
                            S_do[i] = 0
                            S_du[i] = 0
                            dr_now[i] = 0
                            da_after[i] = 0
                            do_now[i] = d_o[t, h, i]
                            du[i] = dus[t + 1 - start, i] if after else zero
                        for j in range(D):
                            do_j, du_j = do_now[j], du[j]
                            for i in range(D):
                                S_do[i] += S_transposed[j, i] * do_j
                                S_du[i] += S_transposed[j, i] * du_j
                        for s in range(t, start - 1, -1):
                            u_do, v_do, u_du, v_du = zero, zero, zero, zero
                            for j in range(D):
                                u_do += us[s, h, j] * do_now[j]
                                v_do += v[s, h, j] * do_now[j]
                                u_du += us[s, h, j] * du[j]
                                v_du += v[s, h, j] * du[j]
                            for i in range(D):
                                W_b, W_k = W[i] * b[s, h, i], W[i] * k[s, h, i]
                                dr_now[i] += W_b * u_do + W_k * v_do
                                da_after[i] += W_b * u_du + W_k * v_du
                                W[i] *= w[s, h, i]
                        for i in range(D):
                            dr_now[i] += W[i] * S_do[i]
                            da_after[i] += W[i] * S_du[i]
                        for i in range(D):
                            dr[t, h, i] = dr_now[i]
                        if after:
                            for i in range(D):
                                dw_now[i] += b[t, h, i] * db[t, h, i] + k[t, h, i] * dk[t, h, i]
                                dw_now[i] -= r[t, h, i] * dr_now[i] + a[t + 1, h, i] * da_after[i]
                            for i in range(D):
                                da[t + 1, h, i] = da_after[i]
                            for i in range(D):
                                dw[t + 1, h, i] = dw_now[i]

    return compile_loop(backward)
