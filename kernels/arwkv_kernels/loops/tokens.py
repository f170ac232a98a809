"""The recurrence token by token, and its gradient where decays are too strong for chunks.py.

A state row i (a key) is contiguous over the values j, so every inner loop is a vector operation; two rows are processed
at a time to halve the traffic of the sums over i, and Sᵀ a is summed in two chains, which wait less for one another.
A sequence is read in chunks of 16 tokens, all heads of a chunk after one another, because tokens of one head alone lie
far apart. Forward keeps the state before each chunk, and every u = Sᵀ a. The backward pass below needs chunks of one
token: it goes from the last token to the first with dS, the gradient of the state after the token, and the state S
before it:

    dS += r doᵀ;  dk = dS v;  dv = dSᵀ k;  db = dS u;  du = dSᵀ b;  dw = exp w ⊙ rowsum(dS ⊙ S);  da = S du
    dr = exp w ⊙ S do + b (uᵀ do) + k (vᵀ do);  dS = diag(exp w) dS + a duᵀ

Arrays are C-contiguous and of one dtype: tokens [M, H, D], all sequences end to end; states [N, H, K·V]; checkpoints
[P, H, K·V], those of sequence n from row `first_checkpoint[n]` on. Loops are built once per head size, because LLVM
vectorizes fixed lengths well; the rows they work on live on the stack, because LLVM must know they do not overlap. For
the same reason no loop over a row writes an array of tokens and reads another.
Whole states are copied as one row: LLVM made scattered stores of a copy by rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numba

from arwkv_kernels.jit import compile_loop
from arwkv_kernels.loops.intrinsics import stack_space

CHUNK = 16

Loop = Callable[..., None]


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
    """Writes the gradients of pairs first..last-1 where forward's chunks had one token each."""
    D = head_size
    square = D * D

    def backward(  # type: ignore[no-untyped-def]  # compiled by numba
        r, w, k, v, a, b, us, d_o, d_final, checkpoints,
        dr, dw, dk, dv, da, db, d_initial, offsets, first_checkpoint, first, last,
    ):  # fmt: skip
        heads = r.shape[1]
        zero = r.dtype.type(0)
        space = stack_space(square, r)
        dS = numba.carray(space, (D, D))
        d_state = numba.carray(space, (square,))
        kept = stack_space(square, r)
        S, S_row = numba.carray(kept, (D, D)), numba.carray(kept, (square,))
        u = numba.carray(stack_space(D, r), (D,))
        du = numba.carray(stack_space(D, r), (D,))
        v_now = numba.carray(stack_space(D, r), (D,))
        dv_now = numba.carray(stack_space(D, r), (D,))
        do_now = numba.carray(stack_space(D, r), (D,))
        for pair in range(first, last):
            n, h = pair // heads, pair % heads
            for entry in range(square):
                d_state[entry] = d_final[n, h, entry]
            for t in range(offsets[n + 1] - 1, offsets[n] - 1, -1):
                for entry in range(square):
                    S_row[entry] = checkpoints[first_checkpoint[n] + t - offsets[n], h, entry]
                for j in range(D):
                    u[j] = us[t, h, j]
                    du[j] = 0
                    dv_now[j] = 0
                    v_now[j] = v[t, h, j]
                    do_now[j] = d_o[t, h, j]
                u_do, v_do = zero, zero
                for j in range(D):
                    u_do += u[j] * do_now[j]
                    v_do += v_now[j] * do_now[j]
                for i in range(D):
                    r_i, b_i, k_i = r[t, h, i], b[t, h, i], k[t, h, i]
                    dk_i, db_i, dw_i, dr_i = zero, zero, zero, zero
                    for j in range(D):
                        d = dS[i, j] + r_i * do_now[j]
                        dS[i, j] = d
                        dk_i += d * v_now[j]
                        db_i += d * u[j]
                        dw_i += d * S[i, j]
                        dr_i += S[i, j] * do_now[j]
                        du[j] += b_i * d
                        dv_now[j] += k_i * d
                    dk[t, h, i] = dk_i
                    db[t, h, i] = db_i
                    dw[t, h, i] = w[t, h, i] * dw_i
                    dr[t, h, i] = w[t, h, i] * dr_i + b_i * u_do + k_i * v_do
                for j in range(D):
                    dv[t, h, j] = dv_now[j]
                for i in range(D):
                    w_i, a_i, da_i = w[t, h, i], a[t, h, i], zero
                    for j in range(D):
                        da_i += S[i, j] * du[j]
                        dS[i, j] = w_i * dS[i, j] + a_i * du[j]
                    da[t, h, i] = da_i
            for entry in range(square):
                d_initial[n, h, entry] = d_state[entry]

    return compile_loop(backward)
