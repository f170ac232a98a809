"""The summary of a row of logits as loops that numba compiles for a CPU: the likeliest columns and the masses, in two
passes over the row; the second pass reads it from the cache.

The k largest are at or above a threshold that k of the row's group maxima reach. The kept columns are then set to 0, so
that the tail is summed only over the others. exp is the polynomial of Cephes (Moshier 1992, expf), within 2 units in
the last place, because a call of the C library would prevent vector instructions.

T rows, V columns, K kept; a row is a contiguous slice of `flat`, `stride` after the one before.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, register_jitable
from numpy.typing import NDArray
from torch import Tensor

from arwkv_kernels.jit import compile_loop

STRUCK_OUT = np.float32(-1e30)
"""Its exp is 0, and 0 · it is 0."""
LARGEST_GROUP = 128
BISECTIONS = 24
COLUMNS_PER_SUM = 4096
"""Added in fp32; their sums are added in fp64."""

_LOG2_E, _LOWEST, _ONE = np.float32(1.4426950408889634), np.float32(-104.0), np.float32(1.0)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_C0, _C1, _C2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_C3, _C4, _C5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_SMALLEST_EXPONENT = np.float32(-127.0)

# Any, here and below: numba's dispatchers, types and builders publish no types.


class RowSummary(NamedTuple):
    """All [T, 1] but the last two."""

    maximum_T: Tensor
    sum_T: Tensor
    moment_T: Tensor
    rest_T: Tensor
    top_TK: Tensor
    columns_TK: Tensor


def summarize_rows(logits_TV: Tensor, k: int) -> RowSummary:
    """With m the row's maximum: Σ exp(x - m), Σ exp(x - m)(x - m), the same first sum over what is not kept, and the k
    largest in descending order (the lower column first where equal).

    `logits_TV` is fp32 on the CPU with contiguous rows, and its memory is overwritten. The sums of a row with NaN are
    NaN.
    """
    T, V = logits_TV.shape
    flat = torch.as_strided(logits_TV, (max((T - 1) * logits_TV.stride(0) + V, 0),), (1,)).numpy()
    group = max(min(V // (4 * k), LARGEST_GROUP) // 8 * 8, 1)
    top_TK, columns_TK = np.empty((T, k), np.float32), np.empty((T, k), np.int32)
    sums = [np.empty((T, 1), np.float32) for _ in range(4)]
    threads = min(torch.get_num_threads(), max(T, 1))
    bounds = [T * thread // threads for thread in range(threads + 1)]

    def run(first: int, last: int) -> None:
        _summarize(flat, logits_TV.stride(0), V, group, top_TK, columns_TK, *sums, first, last)

    if threads == 1:
        run(0, T)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, *zip(*itertools.pairwise(bounds), strict=True)))
    return RowSummary(*map(torch.from_numpy, (*sums, top_TK, columns_TK)))


def _as_float(_: Any, bits: Any) -> Any:
    """For numba: the fp32 number with these 32 bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


as_float = intrinsic(_as_float)


# Part of its caller: of a function of its own numba keeps two copies, and runs one where it has just compiled them and
# the other where it found them on the disk, whose sums differ in the last bit.
@register_jitable(inline="always")  # type: ignore[untyped-decorator]  # numba publishes no types
def _masses(row: NDArray[np.float32], maximum: np.float32) -> tuple[np.float32, np.float32]:
    """Σ exp(x - m) and Σ exp(x - m)(x - m)."""
    mass, moment = np.float32(0), np.float32(0)
    for column in range(len(row)):
        x = row[column] - maximum
        x = _LOWEST if x < _LOWEST else x
        exponent = np.rint(x * _LOG2_E)
        f = x - exponent * _LN2_HIGH
        f = f - exponent * _LN2_LOW
        p = ((((_C0 * f + _C1) * f + _C2) * f + _C3) * f + _C4) * f + _C5
        p = p * f * f + f + _ONE
        exponent = _SMALLEST_EXPONENT if exponent < _SMALLEST_EXPONENT else exponent
        e = p * as_float((np.int32(exponent) + np.int32(127)) << np.int32(23))
        mass += e
        moment += e * x
    return mass, moment


def _group_maxima(row: NDArray[np.float32], group: int, maxima: NDArray[np.float32]) -> None:
    """Group g holds columns g, g + G, g + 2G, … so that eight ranges of the row are compared at the same time."""
    G = len(maxima)
    maxima[:] = row[:G]
    for first in range(0, group * G, 8 * G):
        r0, r1, r2, r3 = row[first:][:G], row[first + G :][:G], row[first + 2 * G :][:G], row[first + 3 * G :][:G]
        later = row[first + 4 * G :]
        r4, r5, r6, r7 = later[:G], later[G:][:G], later[2 * G :][:G], later[3 * G :][:G]
        for g in range(G):
            # Plain comparisons: max() would check for NaN and prevent vector instructions.
            a, b, c, d = r0[g], r2[g], r4[g], r6[g]
            a = r1[g] if r1[g] > a else a
            b = r3[g] if r3[g] > b else b
            c = r5[g] if r5[g] > c else c
            d = r7[g] if r7[g] > d else d
            a = b if b > a else a
            c = d if d > c else c
            a = c if c > a else a
            maxima[g] = a if a > maxima[g] else maxima[g]


def _threshold(maxima: NDArray[np.float32], k: int) -> Any:
    """A value that at least k of them reach, and hardly more: by bisection, which counts without branches."""
    low, high = maxima[0], maxima[0]
    for g in range(len(maxima)):
        low = maxima[g] if maxima[g] < low else low
        high = maxima[g] if maxima[g] > high else high
    for _ in range(BISECTIONS):
        middle = np.float32(0.5) * low + np.float32(0.5) * high
        reached = np.int32(0)
        for g in range(len(maxima)):
            reached += maxima[g] >= middle
        if reached < k:
            high = middle
        else:
            low = middle
            if reached <= k + k // 4:
                break
    return low


def _candidates(
    row: NDArray[np.float32],
    group: int,
    maxima: NDArray[np.float32],
    threshold: np.float32,
    values: NDArray[np.float32],
    columns: NDArray[np.int32],
) -> int:
    """Gather the columns that reach the threshold; returns their number. Every column is written, without branches."""
    found, G = 0, len(maxima)
    for g in range(G):
        if maxima[g] >= threshold:
            for member in range(group):
                column = member * G + g
                values[found], columns[found] = row[column], column
                found += row[column] >= threshold
    for column in range(group * G, len(row)):
        values[found], columns[found] = row[column], column
        found += row[column] >= threshold
    return found


def _rank(
    values: NDArray[np.float32],
    columns: NDArray[np.int32],
    top: NDArray[np.float32],
    top_columns: NDArray[np.int32],
) -> None:
    """Put each candidate at the place given by the number of better ones: quadratic, but without branches."""
    top[:] = np.nan
    top_columns[:] = 0
    for i in range(len(values)):
        value, column, better = values[i], columns[i], np.int32(0)
        for j in range(len(values)):
            better += (values[j] > value) | ((values[j] == value) & (columns[j] < column))
        if better < len(top):
            top[better], top_columns[better] = value, column


def _narrow(values: NDArray[np.float32], columns: NDArray[np.int32], k: int) -> int:
    """If ties leave many candidates: keep those above the k-th value, then equal ones, lowest columns first."""
    order = np.argsort(columns)
    in_order_values, in_order_columns = values[order], columns[order]
    limit = np.partition(values, len(values) - k)[len(values) - k]
    above = 0
    for i in range(len(values)):
        above += values[i] > limit
    equal, kept = k - above, 0
    for i in range(len(order)):
        value = in_order_values[i]
        if value > limit or (value == limit and equal > 0):
            equal -= value == limit
            values[kept], columns[kept] = value, in_order_columns[i]
            kept += 1
    return kept


_group_maxima, _candidates = compile_loop(_group_maxima), compile_loop(_candidates)
_threshold, _rank, _narrow = compile_loop(_threshold), compile_loop(_rank), compile_loop(_narrow)


@compile_loop
def _summarize(  # type: ignore[no-untyped-def]  # compiled by numba
    flat, stride, V, group, top_TK, columns_TK, maximum_T, sum_T, moment_T, rest_T, first, last
):
    k = top_TK.shape[1]
    maxima = np.empty(V // group, np.float32)
    values, columns = np.empty(V + 1, np.float32), np.empty(V + 1, np.int32)
    for t in range(first, last):
        row = flat[t * stride :][:V]
        if group == 1:
            maxima[:] = row
        else:
            _group_maxima(row, group, maxima)
        found = _candidates(row, group, maxima, _threshold(maxima, k), values, columns)
        if found > 4 * k + 64:
            found = _narrow(values[:found], columns[:found], k)
        _rank(values[:found], columns[:found], top_TK[t], columns_TK[t])
        for i in range(k):
            row[columns_TK[t, i]] = STRUCK_OUT
        maximum = top_TK[t, 0]
        mass, moment = np.float64(0), np.float64(0)
        for start in range(0, V, COLUMNS_PER_SUM):
            some_mass, some_moment = _masses(row[start:][:COLUMNS_PER_SUM], maximum)
            mass += some_mass
            moment += some_moment
        rest_T[t, 0] = mass
        for i in range(k):
            x = np.float64(top_TK[t, i]) - np.float64(maximum)
            mass += np.exp(x)
            moment += np.exp(x) * x
        maximum_T[t, 0], sum_T[t, 0], moment_T[t, 0] = maximum, mass, moment
