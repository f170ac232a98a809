"""What numba's Python lacks: memory on the stack, and a product of small matrices that stays in vector registers."""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import config
from numba.core import cgutils, types
from numba.extending import intrinsic

# A product is summed in tiles of four rows of two vector registers: eight sums hide the latency of each.
ROWS = 4
UNROLLED = 2

# Any, here and below: numba's types and llvmlite's builders publish no types.


def _tile_bytes() -> int:
    """Bytes of a tile's row, for the processor that numba compiles for."""
    asked = config.CPU_FEATURES
    wide = binding.get_host_cpu_features().get("avx512f", False) if asked is None else "+avx512f" in asked
    return 128 if wide else 64


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


def _product(
    _: Any, C: Any, c_at: Any, A: Any, a_at: Any, a_row: Any, a_column: Any, B: Any, b_at: Any,
    M: Any, N: Any, K: Any, add: Any,
) -> Any:  # fmt: skip
    """For numba: C [M, N] = A [M, K] B [K, N], or with `add` C += A B.

    `C`, `A` and `B` are pointers, `c_at` … the elements before a matrix. The rows of C and of B follow one another; A's
    element (i, k) lies at i · a_row + k · a_column. K is even. All but the pointers and the places are constants.
    """
    constants = (a_row, a_column, M, N, K, add)
    if not all(isinstance(x, types.IntegerLiteral) for x in constants):
        return None
    row, column, rows, columns, depth, onto = (x.literal_value for x in constants)
    signature = types.void(C, types.intp, A, types.intp, a_row, a_column, B, types.intp, M, N, K, add)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        c, c_at, a, a_at, _, _, b, b_at = arguments[:8]
        index, element = context.get_value_type(types.intp), context.get_value_type(C.dtype)
        size = context.get_abi_sizeof(element)
        lanes, height = _largest_divisor(columns, _tile_bytes() // size), _largest_divisor(rows, ROWS)
        vector = ir.VectorType(element, lanes)
        nothing, all_first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), lanes), None)

        def number(x: int) -> Any:
            return ir.Constant(index, x)

        def place(pointer: Any, at: Any, stride: int, offset: int = 0) -> Any:
            return builder.gep(pointer, [builder.add(builder.mul(at, number(stride)), number(offset))])

        def vector_at(pointer: Any) -> Any:
            found = builder.load(builder.bitcast(pointer, vector.as_pointer()))
            found.align = size
            return found

        def everywhere(x: Any) -> Any:
            return builder.shuffle_vector(
                builder.insert_element(nothing, x, ir.Constant(ir.IntType(32), 0)), nothing, all_first
            )

        def times_plus(x: Any, y: Any, z: Any) -> Any:
            return builder.fadd(builder.fmul(x, y, flags=("contract",)), z, flags=("contract",))

        c, a, b = builder.gep(c, [c_at]), builder.gep(a, [a_at]), builder.gep(b, [b_at])
        with (
            cgutils.for_range_slice(builder, number(0), number(columns), number(lanes), index) as (j, _),
            cgutils.for_range_slice(builder, number(0), number(rows), number(height), index) as (i, _),
        ):
            targets = [builder.gep(place(c, i, columns, m * columns), [j]) for m in range(height)]
            sums = [vector_at(target) if onto else ir.Constant(vector, None) for target in targets]
            left, right, before = place(a, i, row), builder.gep(b, [j]), builder.block
            again, done = builder.append_basic_block("product"), builder.append_basic_block("product.done")
            builder.branch(again)
            builder.position_at_end(again)
            k, totals = builder.phi(index), [builder.phi(vector) for _ in sums]
            k.add_incoming(number(0), before)
            found: list[Any] = totals
            for step in range(UNROLLED):
                at = builder.add(k, number(step))
                y = vector_at(place(right, at, columns))
                xs = [builder.load(place(left, at, column, m * row)) for m in range(height)]
                found = [times_plus(everywhere(x), y, total) for x, total in zip(xs, found, strict=True)]
            after = builder.add(k, number(UNROLLED))
            k.add_incoming(after, again)
            for total, first, last in zip(totals, sums, found, strict=True):
                total.add_incoming(first, before)
                total.add_incoming(last, again)
            builder.cbranch(builder.icmp_signed("<", after, number(depth)), again, done)
            builder.position_at_end(done)
            for target, last in zip(targets, found, strict=True):
                builder.store(last, builder.bitcast(target, vector.as_pointer())).align = size
        return context.get_dummy_value()

    return signature, generate


def _largest_divisor(length: int, most: int) -> int:
    """The largest power of two that divides `length`, and is at most `most`."""
    return min(length & -length, most)


product = intrinsic(_product)


def _transpose(_: Any, target: Any, source: Any, rows: Any, columns: Any) -> Any:
    """For numba: target [columns, rows] = sourceᵀ, of source [rows, columns]; both are pointers."""
    if not all(isinstance(x, types.IntegerLiteral) for x in (rows, columns)):
        return None
    height, width = rows.literal_value, columns.literal_value

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        index, element = context.get_value_type(types.intp), context.get_value_type(target.dtype)
        size = context.get_abi_sizeof(element)
        side = min(_largest_divisor(height, 8), _largest_divisor(width, 8))
        vector, lane = ir.VectorType(element, side), ir.IntType(32)
        # Interleaving row i with row i + side / 2, as often as side can be halved, transposes a square.
        pairs = [[n // 2 + side * (n % 2) + half * side // 2 for n in range(side)] for half in (0, 1)]
        low, high = (ir.Constant(ir.VectorType(lane, side), [ir.Constant(lane, n) for n in half]) for half in pairs)

        def place(pointer: Any, row: Any, offset: int, column: Any, length: int) -> Any:
            at = builder.mul(builder.add(row, ir.Constant(index, offset)), ir.Constant(index, length))
            return builder.bitcast(builder.gep(pointer, [builder.add(at, column)]), vector.as_pointer())

        with (
            cgutils.for_range_slice(builder, *(ir.Constant(index, x) for x in (0, height, side)), index) as (i, _),
            cgutils.for_range_slice(builder, *(ir.Constant(index, x) for x in (0, width, side)), index) as (j, _),
        ):
            found = []
            for m in range(side):
                found.append(builder.load(place(arguments[1], i, m, j, width)))
                found[-1].align = size
            for _round in range(side.bit_length() - 1):
                halves = zip(found[: side // 2], found[side // 2 :], strict=True)
                found = [builder.shuffle_vector(x, y, part) for x, y in halves for part in (low, high)]
            for m, row in enumerate(found):
                builder.store(row, place(arguments[0], j, m, i, height)).align = size
        return context.get_dummy_value()

    return types.void(target, source, rows, columns), generate


transpose = intrinsic(_transpose)
