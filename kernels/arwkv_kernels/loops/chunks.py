"""The gradient of the recurrence in chunks of 16 tokens, as products of small matrices.

With P_t the product of a chunk's decays up to token t, P that of all of them, S the chunk's first state, and

    R = r P_t    A = a P_{t−1}    K = k / P_t    B = b / P_t    (a row for each token)

the recurrence is that of docs/kernels.md, "The chunk form", but not centred:

    U = (I − tril₋(A Bᵀ))⁻¹ (A S + tril₋(A Kᵀ) V)
    O = R S + tril(R Kᵀ) V + tril(R Bᵀ) U        S' = P (S + Kᵀ V + Bᵀ U)

Forward (tokens.py) has kept U. With E = P dS', the gradient of what P multiplies,

    dY = (I − tril₋(A Bᵀ))⁻ᵀ (B E + tril(R Bᵀ)ᵀ dO)        dS = E + Rᵀ dO + Aᵀ dY
    dV = K E + tril(R Kᵀ)ᵀ dO + tril₋(A Kᵀ)ᵀ dY
    dR = dO Sᵀ + tril(dO Vᵀ) K + tril(dO Uᵀ) B    dA = dY Sᵀ + tril₋(dY Vᵀ) K + tril₋(dY Uᵀ) B
    dK = V Eᵀ + tril(dO Vᵀ)ᵀ R + tril₋(dY Vᵀ)ᵀ A    dB = U Eᵀ + tril(dO Uᵀ)ᵀ R + tril₋(dY Uᵀ)ᵀ A

The logarithm of P_t takes part in R, K and B of its token, in A of the next, and the last one in S', so its gradient is

    R dR − K dK − B dB + A' dA'  (of the next token),  and at the end rowsum(S' dS')

and that of a token's log decay is the sum of these over the tokens from it on. R and A, K and B, V and U, dO and dY lie
one above the other, so that each line above is one or two products. 1 / P_t must be finite, and where a decay is
strong, the terms of its gradient cancel: such decays are for tokens.py.

Arrays are those of tokens.py. What the loop works on lies on the stack.
"""

from __future__ import annotations

from functools import cache

from numba import carray
from numba.extending import register_jitable

from arwkv_kernels.jit import compile_loop
from arwkv_kernels.loops.intrinsics import product, stack_space, transpose
from arwkv_kernels.loops.tokens import CHUNK, Loop


@register_jitable(inline="always")
def _keep_causal(products):  # type: ignore[no-untyped-def]  # compiled by numba
    """Of products [A or dY, R or dO; K or V, B or U] those with earlier tokens, and of R and dO the token's own."""
    for t in range(CHUNK):
        for s in range(CHUNK):
            if s >= t:
                products[t, s] = 0
                products[t, CHUNK + s] = 0
            if s > t:
                products[CHUNK + t, s] = 0
                products[CHUNK + t, CHUNK + s] = 0


@cache
def backward_loop(head_size: int) -> Loop:
    """Writes the gradients of pairs first..last-1, from the states before each chunk; `w` holds decays exp(w)."""
    D = head_size
    square, rows, both, places = D * D, 2 * CHUNK * D, 2 * CHUNK, (CHUNK + 1) * D
    pairs = both * both

    def backward(  # type: ignore[no-untyped-def]  # compiled by numba
        r, w, k, v, a, b, us, d_o, d_final, checkpoints,
        dr, dw, dk, dv, da, db, d_initial, offsets, first_checkpoint, first, last,
    ):  # fmt: skip
        heads = r.shape[1]
        zero, one = r.dtype.type(0), r.dtype.type(1)
        p_S, p_E, p_transposed = stack_space(square, r), stack_space(square, r), stack_space(square, r)
        p_queries, p_keys, p_values = stack_space(rows, r), stack_space(rows, r), stack_space(rows, r)
        p_narrow, p_ups, p_results = stack_space(rows, r), stack_space(rows, r), stack_space(rows, r)
        p_products, p_up_products = stack_space(pairs, r), stack_space(pairs, r)
        p_d_queries, p_d_keys = stack_space(rows, r), stack_space(rows, r)
        S, S_row = carray(p_S, (D, D)), carray(p_S, (square,))
        E, E_row = carray(p_E, (D, D)), carray(p_E, (square,))
        queries, keys, values = carray(p_queries, (both, D)), carray(p_keys, (both, D)), carray(p_values, (both, D))
        ups, results = carray(p_ups, (both, D)), carray(p_results, (both, D))
        products, up_products = carray(p_products, (both, both)), carray(p_up_products, (both, both))
        d_queries, d_keys = carray(p_d_queries, (both, D)), carray(p_d_keys, (both, D))
        # P[t]: the decays of the tokens before t; inverse[t]: 1 over those up to t itself.
        P, inverse = carray(stack_space(places, r), (CHUNK + 1, D)), carray(stack_space(places, r), (CHUNK + 1, D))
        y, later = carray(stack_space(D, r), (D,)), carray(stack_space(D, r), (D,))
        for n in range(first // heads, (last - 1) // heads + 1):
            begin, end = offsets[n], offsets[n + 1]
            low, high = max(first - n * heads, 0), min(last - n * heads, heads)
            for h in range(low, high):
                for entry in range(square):
                    d_initial[n, h, entry] = d_final[n, h, entry]
            for part in range((end - begin - 1) // CHUNK, -1, -1):
                start, row = begin + part * CHUNK, first_checkpoint[n] + part
                count = min(CHUNK, end - start)
                for h in range(low, high):
                    for i in range(D):
                        P[0, i] = 1
                    for t in range(count):
                        for i in range(D):
                            P[t + 1, i] = P[t, i] * w[start + t, h, i]
                            inverse[t, i] = one / P[t + 1, i]
                        for i in range(D):
                            queries[t, i] = a[start + t, h, i] * P[t, i]
                            queries[CHUNK + t, i] = r[start + t, h, i] * P[t + 1, i]
                        for i in range(D):
                            keys[t, i] = k[start + t, h, i] * inverse[t, i]
                            keys[CHUNK + t, i] = b[start + t, h, i] * inverse[t, i]
                        for j in range(D):
                            values[t, j] = v[start + t, h, j]
                            values[CHUNK + t, j] = us[start + t, h, j]
                            ups[CHUNK + t, j] = d_o[start + t, h, j]
                    for t in range(count, CHUNK):
                        for i in range(D):
                            P[t + 1, i] = P[t, i]
                            queries[t, i], queries[CHUNK + t, i] = zero, zero
                            keys[t, i], keys[CHUNK + t, i] = zero, zero
                            values[t, i], values[CHUNK + t, i], ups[CHUNK + t, i] = zero, zero, zero
                    for entry in range(square):
                        S_row[entry] = checkpoints[row, h, entry]
                    for i in range(D):
                        decay, total = P[CHUNK, i], zero
                        for j in range(D):
                            e = d_initial[n, h, i * D + j] * decay
                            E[i, j] = e
                            total += e * S[i, j]
                        later[i] = total

                    transpose(p_narrow, p_keys, both, D)
                    product(p_products, 0, p_queries, 0, D, 1, p_narrow, 0, both, both, D, 0)
                    _keep_causal(products)
                    # K E above B E. Then tril(R Bᵀ)ᵀ dO joins the lower half, from which dY is solved for.
                    product(p_results, 0, p_keys, 0, D, 1, p_E, 0, both, D, D, 0)
                    product(
                        p_results, CHUNK * D, p_products, CHUNK * both + CHUNK, 1, both, p_ups, CHUNK * D,
                        CHUNK, D, CHUNK, 1,
                    )  # fmt: skip
                    for t in range(CHUNK - 1, -1, -1):
                        for j in range(D):
                            y[j] = results[CHUNK + t, j]
                        for s in range(t + 1, CHUNK):
                            a_b = products[s, CHUNK + t]
                            for j in range(D):
                                y[j] += a_b * ups[s, j]
                        for j in range(D):
                            ups[t, j] = y[j]
                    product(p_results, 0, p_products, 0, 1, both, p_ups, 0, CHUNK, D, both, 1)

                    transpose(p_narrow, p_values, both, D)
                    product(p_up_products, 0, p_ups, 0, D, 1, p_narrow, 0, both, both, D, 0)
                    _keep_causal(up_products)
                    transpose(p_transposed, p_S, D, D)
                    product(p_d_queries, 0, p_ups, 0, D, 1, p_transposed, 0, both, D, D, 0)
                    product(p_d_queries, 0, p_up_products, 0, both, 1, p_keys, 0, both, D, both, 1)
                    transpose(p_transposed, p_E, D, D)
                    product(p_d_keys, 0, p_values, 0, D, 1, p_transposed, 0, both, D, D, 0)
                    for t in range(both):
                        for i in range(D):
                            later[i] += keys[t, i] * d_keys[t, i]
                    product(p_d_keys, 0, p_up_products, 0, 1, both, p_queries, 0, both, D, both, 1)
                    product(p_E, 0, p_queries, 0, 1, D, p_ups, 0, D, D, both, 1)
                    for entry in range(square):
                        d_initial[n, h, entry] = E_row[entry]

                    for t in range(count - 1, -1, -1):
                        for j in range(D):
                            dv[start + t, h, j] = results[t, j]
                        for i in range(D):
                            dr[start + t, h, i] = d_queries[CHUNK + t, i] * P[t + 1, i]
                        for i in range(D):
                            da[start + t, h, i] = d_queries[t, i] * P[t, i]
                        for i in range(D):
                            dk[start + t, h, i] = d_keys[t, i] * inverse[t, i]
                        for i in range(D):
                            db[start + t, h, i] = d_keys[CHUNK + t, i] * inverse[t, i]
                        for i in range(D):
                            later[i] += queries[CHUNK + t, i] * d_queries[CHUNK + t, i]
                            later[i] -= keys[t, i] * d_keys[t, i] + keys[CHUNK + t, i] * d_keys[CHUNK + t, i]
                            y[i] = later[i]
                            later[i] += queries[t, i] * d_queries[t, i]
                        for i in range(D):
                            dw[start + t, h, i] = y[i]

    return compile_loop(backward)
