"""Sums of absolute differences of blocks, for many samples or many places at a time.

Encoder only. The search is made of little else, and no compiler finds vectors in these loops; so
they are spelled in them. All sums fit 16 bits without a sign, or are added in wider lanes.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from flowarchive.loops import compiled
from flowarchive.vectors import INT16, INT32, INT64, Value, lanes

SIDE = 8
"""Rows and columns of a block."""

NARROW, WIDE = 16, 32
"""How many places beside each other can be looked at."""

KEYS = 5
"""Keys of each place: one for each quarter of the block, then one for all of it."""

KEY_BITS = 10
"""Low bits of a key, which name the place; above them is what it costs."""

Int16 = NDArray[np.int16]
Int32 = NDArray[np.int32]


def _column_sums(a: Value, pitch: Value, b: Value, stride: Value, columns: int) -> Value:
    """Sum |a - b| over the SIDE rows of each column."""
    kind = lanes(INT16, columns)
    total = (a.load(kind) - b.load(kind)).magnitude()
    for row in range(1, SIDE):
        total += ((a + pitch * row).load(kind) - (b + stride * row).load(kind)).magnitude()
    return total


def _halved(vector: Value, times: int) -> Value:
    """Add neighboring lanes, so many times."""
    for _ in range(times):
        count = vector.kind.count
        vector = vector.picked(list(range(0, count, 2))) + vector.picked(list(range(1, count, 2)))
    return vector


@intrinsic
def _sum_block(typing: Any, a: Any, pitch: Any, b: Any, stride: Any) -> Any:
    """Sum over a block; the arguments are two addresses, each with the bytes of a row."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, pitch, b, stride = (Value(builder, value) for value in args)
        sums = _column_sums(a, pitch, b, stride, SIDE)
        return _halved(sums.to(lanes(INT32, SIDE)), 3).bits(INT32).to(INT64).value

    return types.int64(*[types.int64] * 4), write


@intrinsic
def _sum_unit(typing: Any, out: Any, a: Any, pitch: Any, b: Any, stride: Any) -> Any:
    """Sum over four blocks, two of them above the others, and write the int32 sums."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        out, a, pitch, b, stride = (Value(builder, value) for value in args)
        above = _column_sums(a, pitch, b, stride, 2 * SIDE)
        a, b = a + pitch * SIDE, b + stride * SIDE
        sums = above.picked(list(range(4 * SIDE)), _column_sums(a, pitch, b, stride, 2 * SIDE))
        none = sums.bits(lanes(INT32, 2 * SIDE)).constant(0)
        out.store(_halved(none.plus_pair_products(sums, sums.constant(1), context), 2))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), write


def _row_of_keys(count: int) -> Any:
    """Make a function that looks at `count` places beside each other."""

    def row_of_keys(typing: Any, out: Any, block: Any, b: Any, stride: Any, fees: Any) -> Any:
        def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            out, block, b, stride, fees = (Value(builder, value) for value in args)
            narrow, wide = lanes(INT16, count), lanes(INT32, count)
            quarters = []
            for top, left in ((0, 0), (0, 4), (4, 0), (4, 4)):
                total = b.load(narrow).constant(0)
                for row, column in product(range(top, top + 4), range(left, left + 4)):
                    twice = (block + 4 * (SIDE * row + column)).load(INT32)
                    sample = twice.spread(count // 2).bits(narrow)
                    found = (b + stride * row + 2 * column).load(narrow)
                    total += (sample - found).magnitude()
                quarters.append(total.to(wide))
            whole = quarters[0] + quarters[1] + quarters[2] + quarters[3]
            for k, cost in enumerate([*quarters, whole]):
                fee = (fees + (4 * count if cost is whole else 0)).load(wide)
                (out + 4 * count * k).store((cost << KEY_BITS) + fee)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), write

    return intrinsic(row_of_keys)


_narrow_keys = _row_of_keys(NARROW)
_wide_keys = _row_of_keys(WIDE)


def _least_of(count: int) -> Any:
    def least_of(typing: Any, keys: Any, pitch: Any, rows: Any) -> Any:
        def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            keys, pitch, rows = (Value(builder, value) for value in args)
            kind = lanes(INT32, count)
            least = keys.load(kind).variable()
            with rows.range() as row:
                least.set(least.get().at_most((keys + pitch * row).load(kind)))
            function = ir.FunctionType(INT32, [kind])
            found = least.get().call(f"llvm.vector.reduce.smin.v{count}i32", function, least.get())
            return found.to(INT64).value

        return types.int64(*[types.int64] * 3), write

    return intrinsic(least_of)


_least_narrow = _least_of(NARROW)
_least_wide = _least_of(WIDE)


@compiled
def block_difference(a: Int16, b: Int16, y: int, x: int, plane: int, v: int, u: int) -> int:
    """Return the sum of |a - b| over the block of 8 x 8 at (y, x) in a and (v, u) in a plane of b.

    Both arrays, [h, w] and [planes, h, w], are C-contiguous and hold the whole block; the sum of
    any column's differences fits 15 bits.
    """
    pitch, stride = 2 * a.shape[1], 2 * b.shape[2]
    place = b.ctypes.data + (plane * b.shape[1] + v) * stride + 2 * u
    return int(_sum_block(a.ctypes.data + y * pitch + 2 * x, pitch, place, stride))  # type: ignore[call-arg]


@compiled
def unit_differences(
    a: Int16, b: Int16, y: int, x: int, plane: int, v: int, u: int, sums: Int32, n: int
) -> None:
    """Sum over four such blocks, of 16 x 16 samples in all, into row n of int32 [.., 4]."""
    pitch, stride = 2 * a.shape[1], 2 * b.shape[2]
    place = b.ctypes.data + (plane * b.shape[1] + v) * stride + 2 * u
    out = sums.ctypes.data + 16 * n
    _sum_unit(out, a.ctypes.data + y * pitch + 2 * x, pitch, place, stride)  # type: ignore[call-arg]


@compiled
def find_keys(a: Int16, y: int, x: int, b: Int16, v: int, u: int, fees: Int32, keys: Int32) -> None:
    """Compare the block at (y, x) in a with all places of b from (v, u) on.

    Args:
        a: int16 [h, w]; the sums of differences fit 16 bits, those of a quarter 15.
        y: Row of the block.
        x: Its column.
        b: Like a; C-contiguous, and holds the places, and as much beyond as they are blocks.
        v: Row of the first place.
        u: Its column.
        fees: int32 [rows, 2, NARROW or WIDE]: what is added to the keys of quarters, and of blocks.
        keys: int32 [rows, KEYS, as many]: takes the sums in steps of 2**KEY_BITS, and the fees.
    """
    samples = np.empty(SIDE * SIDE, dtype=np.int32)
    for r in range(SIDE):
        for c in range(SIDE):
            # Twice, as registers are filled with 32 bits faster than with 16.
            samples[SIDE * r + c] = (int(a[y + r, x + c]) & 0xFFFF) * 0x10001
    rows, _, count = fees.shape
    stride = 2 * b.shape[1]
    for row in range(rows):
        place = b.ctypes.data + (v + row) * stride + 2 * u
        out = keys.ctypes.data + 4 * KEYS * count * row
        fee = fees.ctypes.data + 8 * count * row
        if count == NARROW:
            _narrow_keys(out, samples.ctypes.data, place, stride, fee)
        else:
            _wide_keys(out, samples.ctypes.data, place, stride, fee)


@compiled
def least_key(keys: Int32, k: int) -> int:
    """Return the least of the keys k of all places."""
    rows, _, count = keys.shape
    start = keys.ctypes.data + 4 * count * k
    if count == NARROW:
        return int(_least_narrow(start, 4 * KEYS * count, rows))
    return int(_least_wide(start, 4 * KEYS * count, rows))
