"""What the forward and the backward kernel share: one chunk's tokens, its centred decays, and the triangular inverse.

With g the running sum of log decays inside a chunk of C tokens and m half its total, every decay between two tokens
factors as exp(g_i - m)·exp(m - g_j) and none of the factors exceeds exp(½ Σ|w|). Scaling the state by exp(m) on entry
and on exit then makes all products of a chunk plain ones:

    R  = exp(m) S + k̂ᵀ v + b̂ᵀ u,   S' = exp(m) R        r̂ = r exp(g - m),  â = a exp(g - w - m)
    u  = (I - tril₋(â b̂ᵀ))⁻¹ (tril₋(â k̂ᵀ) v + â exp(m) S)     k̂ = k exp(m - g),  b̂ = b exp(m - g)
    o  = r̂ exp(m) S + tril(r̂ k̂ᵀ) v + tril(r̂ b̂ᵀ) u
"""

# mypy: disallow-untyped-decorators=False, disallow-untyped-defs=False
# mypy: disallow-untyped-calls=False, disallow-incomplete-defs=False
# Triton compiles these functions; their parameters are pointers and constants that Python's types do not describe.

from __future__ import annotations

import triton
import triton.language as tl

# exp(2·40) is the largest product of two factors; fp32 ends at exp(88).
LARGEST_EXPONENT = tl.constexpr(40.0)


@triton.jit
def sequence_bounds(cu_seqlens_ptr, n, T, CHUNK: tl.constexpr):
    """First token, number of tokens and first checkpoint of sequence n; bad offsets are held inside 0..T.

    Checkpoints need no prefix sum: those of sequence n start at start // CHUNK + n, which never overlaps a neighbour's.
    """
    start = tl.minimum(tl.maximum(tl.load(cu_seqlens_ptr + n).to(tl.int64), 0), T)
    stop = tl.minimum(tl.maximum(tl.load(cu_seqlens_ptr + n + 1).to(tl.int64), start), T)
    return start, (stop - start).to(tl.int32), start // CHUNK + n


@triton.jit
def operand(x, PRECISION: tl.constexpr):
    """x as a product of that precision takes it: bf16, or fp32 for "tf32" and "ieee"."""
    if PRECISION == "bf16":
        return x.to(tl.bfloat16)
    else:  # noqa: RET505 - Triton compiles one of the two
        return x.to(tl.float32)


@triton.jit
def dot(x, y, PRECISION: tl.constexpr):
    """x @ y in fp32, from operands rounded to bf16 (8 bits) or tf32 (11), or whole ("ieee")."""
    if PRECISION == "bf16":
        return tl.dot(x.to(tl.bfloat16), y.to(tl.bfloat16))
    else:  # noqa: RET505 - Triton compiles one of the two
        return tl.dot(x.to(tl.float32), y.to(tl.float32), input_precision=PRECISION)


@triton.jit
def _join_blocks(X, A, C: tl.constexpr, SIZE: tl.constexpr, PRECISION: tl.constexpr):
    """From inverted diagonal blocks of SIZE to blocks of twice that."""
    i = tl.arange(0, C)[:, None]
    j = tl.arange(0, C)[None, :]
    between = tl.where((i // (2 * SIZE) == j // (2 * SIZE)) & (i // SIZE != j // SIZE), A, 0.0)
    return X + dot(X, dot(between, X, PRECISION), PRECISION)


@triton.jit
def inverse_of_unit_triangular(A, C: tl.constexpr, PRECISION: tl.constexpr):
    """(I - A)⁻¹ for a strictly triangular A [C, C], C 16, 32 or 64, by doubling the size of inverted diagonal blocks.

    [[P, 0], [-M, Q]]⁻¹ = [[P⁻¹, 0], [Q⁻¹ M P⁻¹, Q⁻¹]]: each intermediate is a block of the answer. The shorter
    product (I + A)(I + A²)(I + A⁴)… is not used: for repeated keys its powers grow like binomials and cancel.
    """
    i = tl.arange(0, C)[:, None]
    j = tl.arange(0, C)[None, :]
    X = tl.where(i == j, 1.0, 0.0) + tl.where(i // 2 == j // 2, A, 0.0)
    X = _join_blocks(X, A, C, 2, PRECISION)
    X = _join_blocks(X, A, C, 4, PRECISION)
    X = _join_blocks(X, A, C, 8, PRECISION)
    if C > 16:
        X = _join_blocks(X, A, C, 16, PRECISION)
    if C > 32:
        X = _join_blocks(X, A, C, 32, PRECISION)
    return X


@triton.jit
def centred_decays(w):
    """For log decays w [C, D]: exp(g - m), exp(g - w - m), exp(m - g) [C, D] and m [D]."""
    g = tl.cumsum(w, 0)
    m = 0.5 * tl.sum(w, 0)
    return tl.exp(g - m[None, :]), tl.exp(g - w - m[None, :]), tl.exp(m[None, :] - g), m
