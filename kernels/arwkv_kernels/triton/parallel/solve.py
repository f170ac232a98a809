"""What a chunk's tokens owe to each other: T = (I - tril₋(â b̂ᵀ))⁻¹, for all chunks at once.

T does not depend on the state. It is kept in fp32: products with it cancel where a key repeats and decays are slow, and
a T rounded to bf16 puts the gradients of a and b off by a tenth there.
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
    sequence_bounds,
)


@triton.jit
def wkv7_solve_kernel(
    w_ptr, a_ptr, b_ptr, solve_ptr, unsafe_ptr, cu_seqlens_ptr, sequence_ptr, T,
    H: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr, SPAN: tl.constexpr,
    OVER_HEAD: tl.constexpr, SOLVING: tl.constexpr,
):  # fmt: skip
    """Per chunk and head: T [P, SPAN / CHUNK, H, CHUNK, CHUNK], row-major. `sequence_ptr` [P] says whose a span is.

    Sets unsafe[pair] if the chunk's decays leave fp32's range; that pair's results are then for the exact kernels.
    """
    chunk = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1)
    row = chunk * CHUNK // SPAN
    n = tl.load(sequence_ptr + row)
    start, length, first_row = sequence_bounds(cu_seqlens_ptr, n, T, SPAN)
    t = (chunk * CHUNK - first_row * SPAN).to(tl.int32)
    if t >= length:
        return
    i, d = tl.arange(0, CHUNK), tl.arange(0, D)
    place = ((start + t) * H + h) * D + i[:, None] * (H * D) + d[None, :]
    real = (i < length - t)[:, None]
    w = tl.load(w_ptr + place, mask=real, other=0.0).to(tl.float32)
    # Written so that NaN counts as outside.
    outside = tl.max((~(0.5 * tl.sum(tl.abs(w), 0) <= LARGEST_EXPONENT)).to(tl.int32), 0)
    tl.store(unsafe_ptr + n * H + h, 1, mask=outside != 0)
    _, before, towards, _ = centred_decays(w)
    a = tl.load(a_ptr + place, mask=real, other=0.0) * before
    b = tl.load(b_ptr + place, mask=real, other=0.0) * towards
    a_b = tl.where(i[:, None] > i[None, :], dot(a, tl.trans(b), OVER_HEAD), 0.0)
    square = (chunk * H + h) * (CHUNK * CHUNK) + i[:, None] * CHUNK + i[None, :]
    tl.store(solve_ptr + square, inverse_of_unit_triangular(a_b, CHUNK, SOLVING))
