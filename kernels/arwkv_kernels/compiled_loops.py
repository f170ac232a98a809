"""The recurrence and its gradient as loops that numba compiles; one call handles a range of (sequence, head) pairs.

A state row i (a key) is contiguous over the values j, so every inner loop is a vector operation; two rows are processed
at a time to halve the traffic of the sums over i, and Sᵀ a is summed in two chains, which wait less for one another.
Forward keeps the state before every 16th token; backward recomputes 16 tokens from it, then processes them in reverse
with dS, the gradient of the state after the token (S before it, u = Sᵀ a):

    dS += r doᵀ;  dr = S_after do;  dk = dS v;  dv = dSᵀ k;  db = dS u;  dw = exp w ⊙ rowsum(dS ⊙ S);  du = dSᵀ b
    da = S du;    dS = diag(exp w) dS + a duᵀ

Arrays are C-contiguous and of one dtype: tokens [M, H, D], all sequences end to end; states [N, H, K·V]; checkpoints
[P, H, K·V], those of sequence n from row `first_checkpoint[n]` on. Loops are built once per head size, because LLVM
vectorizes fixed lengths well; the rows they work on live on the stack, because LLVM must know they do not overlap.
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

STEPS_PER_CHECKPOINT = 16
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
    """Writes o, the final states and, with `keep`, the checkpoints of pairs first..last-1; `w` holds decays exp(w)."""
    D = head_size
    square = D * D

    def forward(  # type: ignore[no-untyped-def]  # compiled by numba
        r, w, k, v, a, b, initial, final, o, checkpoints, keep, offsets, first_checkpoint, first, last
    ):
        heads = r.shape[1]
        space = stack_space(square, r)
        S = numba.carray(space, (D, D))
        state = numba.carray(space, (square,))
        u = numba.carray(stack_space(D, r), (D,))
        u_odd = numba.carray(stack_space(D, r), (D,))
        v_now = numba.carray(stack_space(D, r), (D,))
        o_now = numba.carray(stack_space(D, r), (D,))
        for pair in range(first, last):
            n, h = pair // heads, pair % heads
            for entry in range(square):
                state[entry] = initial[n, h, entry]
            for t in range(offsets[n], offsets[n + 1]):
                step = t - offsets[n]
                if keep and step % STEPS_PER_CHECKPOINT == 0:
                    row = first_checkpoint[n] + step // STEPS_PER_CHECKPOINT
                    for entry in range(square):
                        checkpoints[row, h, entry] = state[entry]
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
    """Writes the gradients of pairs first..last-1.

    `history`, scratch [STEPS_PER_CHECKPOINT + 1, K, V], gets the state before each replayed token and after the last.
    """
    D = head_size
    square = D * D
    replayed = D * STEPS_PER_CHECKPOINT

    def backward(  # type: ignore[no-untyped-def]  # compiled by numba
        r, w, k, v, a, b, d_o, d_final, checkpoints, history,
        dr, dw, dk, dv, da, db, d_initial, offsets, first_checkpoint, first, last,
    ):  # fmt: skip
        heads = r.shape[1]
        zero = r.dtype.type(0)
        states = history.reshape(-1)
        space = stack_space(square, r)
        dS = numba.carray(space, (D, D))
        d_state = numba.carray(space, (square,))
        us = numba.carray(stack_space(replayed, r), (STEPS_PER_CHECKPOINT, D))
        u = numba.carray(stack_space(D, r), (D,))
        u_odd = numba.carray(stack_space(D, r), (D,))
        du = numba.carray(stack_space(D, r), (D,))
        v_now = numba.carray(stack_space(D, r), (D,))
        dv_now = numba.carray(stack_space(D, r), (D,))
        do_now = numba.carray(stack_space(D, r), (D,))
        for pair in range(first, last):
            n, h = pair // heads, pair % heads
            length = offsets[n + 1] - offsets[n]
            for entry in range(square):
                d_state[entry] = d_final[n, h, entry]
            for part in range((length - 1) // STEPS_PER_CHECKPOINT, -1, -1):
                start = offsets[n] + part * STEPS_PER_CHECKPOINT
                steps = min(STEPS_PER_CHECKPOINT, offsets[n + 1] - start)
                for entry in range(square):
                    states[entry] = checkpoints[first_checkpoint[n] + part, h, entry]
                for step in range(steps):
                    t = start + step
                    for j in range(D):
                        u[j] = 0
                        u_odd[j] = 0
                        v_now[j] = v[t, h, j]
                        do_now[j] = d_o[t, h, j]
                    for i in range(0, D, 2):
                        a0, a1 = a[t, h, i], a[t, h, i + 1]
                        for j in range(D):
                            u[j] += a0 * history[step, i, j]
                            u_odd[j] += a1 * history[step, i + 1, j]
                    for j in range(D):
                        u[j] += u_odd[j]
                        us[step, j] = u[j]
                    for i in range(0, D, 2):
                        w0, b0, k0, dr0 = w[t, h, i], b[t, h, i], k[t, h, i], zero
                        w1, b1, k1, dr1 = w[t, h, i + 1], b[t, h, i + 1], k[t, h, i + 1], zero
                        for j in range(D):
                            s0 = w0 * history[step, i, j] + b0 * u[j] + k0 * v_now[j]
                            s1 = w1 * history[step, i + 1, j] + b1 * u[j] + k1 * v_now[j]
                            history[step + 1, i, j] = s0
                            history[step + 1, i + 1, j] = s1
                            dr0 += s0 * do_now[j]
                            dr1 += s1 * do_now[j]
                        dr[t, h, i] = dr0
                        dr[t, h, i + 1] = dr1
                for step in range(steps - 1, -1, -1):
                    t = start + step
                    for j in range(D):
                        u[j] = us[step, j]
                        du[j] = 0
                        dv_now[j] = 0
                        v_now[j] = v[t, h, j]
                        do_now[j] = d_o[t, h, j]
                    for i in range(0, D, 2):
                        r0, b0, k0, dk0, db0 = r[t, h, i], b[t, h, i], k[t, h, i], zero, zero
                        r1, b1, k1, dk1, db1 = r[t, h, i + 1], b[t, h, i + 1], k[t, h, i + 1], zero, zero
                        for j in range(D):
                            d0 = dS[i, j] + r0 * do_now[j]
                            d1 = dS[i + 1, j] + r1 * do_now[j]
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
                    for i in range(0, D, 2):
                        w0, a0, da0, dw0 = w[t, h, i], a[t, h, i], zero, zero
                        w1, a1, da1, dw1 = w[t, h, i + 1], a[t, h, i + 1], zero, zero
                        for j in range(D):
                            da0 += history[step, i, j] * du[j]
                            da1 += history[step, i + 1, j] * du[j]
                            dw0 += history[step, i, j] * dS[i, j]
                            dw1 += history[step, i + 1, j] * dS[i + 1, j]
                            dS[i, j] = w0 * dS[i, j] + a0 * du[j]
                            dS[i + 1, j] = w1 * dS[i + 1, j] + a1 * du[j]
                        da[t, h, i] = da0
                        da[t, h, i + 1] = da1
                        dw[t, h, i] = dw0 * w0
                        dw[t, h, i + 1] = dw1 * w1
                    for j in range(D):
                        dv[t, h, j] = dv_now[j]
            for entry in range(square):
                d_initial[n, h, entry] = d_state[entry]

    return compile_loop(backward)
