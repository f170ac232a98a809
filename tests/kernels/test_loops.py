"""The pieces that compiled loops are made of, each beside numpy."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest
from numpy.typing import NDArray

from arwkv_kernels.loops.intrinsics import product, stack_space, transpose


def on_stack(M: int, N: int, K: int, row: int, column: int, add: int) -> Any:
    """C = A B or C += A B, the matrices behind three elements each."""
    a_length, b_length, c_length = 3 + M * K, 3 + K * N, 3 + M * N

    @numba.njit  # type: ignore[untyped-decorator]  # numba publishes no types
    def run(a: Any, b: Any, c: Any) -> None:
        p_a, p_b, p_c = stack_space(a_length, a), stack_space(b_length, a), stack_space(c_length, a)
        a_now, b_now = numba.carray(p_a, (a_length,)), numba.carray(p_b, (b_length,))
        c_now = numba.carray(p_c, (c_length,))
        for i in range(a_length - 3):
            a_now[3 + i] = a[i]
        for i in range(b_length - 3):
            b_now[3 + i] = b[i]
        for i in range(c_length - 3):
            c_now[3 + i] = c[i]
        product(p_c, 3, p_a, 3, row, column, p_b, 3, M, N, K, add)
        for i in range(c_length - 3):
            c[i] = c_now[3 + i]

    return run


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("M", "N", "K"), [(32, 64, 16), (16, 20, 2), (6, 2, 32)])
@pytest.mark.parametrize("add", [0, 1])
@pytest.mark.parametrize("transposed", [False, True])
def test_product_matches_numpy(M: int, N: int, K: int, add: int, transposed: bool, dtype: Any) -> None:
    chance = np.random.default_rng(0)
    a, b, c = (chance.standard_normal(shape).astype(dtype) for shape in ((M, K), (K, N), (M, N)))
    expected = a @ b + add * c
    stored: NDArray[Any] = np.ascontiguousarray(a.T if transposed else a)
    strides = (1, M) if transposed else (K, 1)
    on_stack(M, N, K, *strides, add)(stored.ravel(), b.ravel(), c.ravel())
    np.testing.assert_allclose(c, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("rows", "columns"), [(32, 64), (20, 20), (2, 6)])
def test_transpose_matches_numpy(rows: int, columns: int, dtype: Any) -> None:
    length = rows * columns

    @numba.njit  # type: ignore[untyped-decorator]  # numba publishes no types
    def run(x: Any, y: Any) -> None:
        source, target = stack_space(length, x), stack_space(length, x)
        before, after = numba.carray(source, (length,)), numba.carray(target, (length,))
        for i in range(length):
            before[i] = x[i]
        transpose(target, source, rows, columns)
        for i in range(length):
            y[i] = after[i]

    x = np.arange(length, dtype=dtype)
    y = np.empty_like(x)
    run(x, y)
    assert (y.reshape(columns, rows) == x.reshape(rows, columns).T).all()
