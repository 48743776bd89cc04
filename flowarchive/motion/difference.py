"""The sum of absolute differences of two blocks, eight samples at a time.

Encoder only. numba's own vectorizer leaves this loop scalar, at five times the time, and the
search is made of little else; so the eight rows are spelled in the compiler's vector operations,
which it turns into whatever the processor has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from flowarchive.loops import compiled

SIDE = 8
"""Rows and columns of a block."""

Int16 = NDArray[np.int16]

_NARROW = ir.VectorType(ir.IntType(16), SIDE)


def _differences(builder: Any, arguments: Any, rows: int, total: Any) -> tuple[Any, Any]:
    """Add |a - b| of some rows to a vector; return it and the arguments of the rows below."""
    left, pitch, right, stride = arguments
    zero = ir.Constant(_NARROW, [0] * SIDE)
    for _ in range(rows):
        s = builder.load(builder.inttoptr(left, _NARROW.as_pointer()), align=2)
        t = builder.load(builder.inttoptr(right, _NARROW.as_pointer()), align=2)
        d = builder.sub(s, t)
        minus = builder.sub(zero, d)
        total = builder.add(total, builder.select(builder.icmp_signed(">", d, minus), d, minus))
        left = builder.add(left, pitch)
        right = builder.add(right, stride)
    return total, (left, pitch, right, stride)


def _reduced(builder: Any, vector: Any, kind: str) -> Any:
    """Return the sum of a vector's elements."""
    function = ir.FunctionType(vector.type.element, [vector.type])
    name = f"llvm.vector.reduce.add.{kind}"
    return builder.call(
        cast(Any, cgutils).get_or_insert_function(builder.module, function, name), [vector]
    )


def _sum_rows(typing: Any, a: Any, pitch: Any, b: Any, stride: Any) -> Any:
    """Sum over eight rows of eight int16 at two addresses, whose rows are bytes apart."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        total, _ = _differences(builder, arguments, SIDE, ir.Constant(_NARROW, [0] * SIDE))
        wide = builder.zext(total, ir.VectorType(ir.IntType(32), SIDE))
        return builder.zext(_reduced(builder, wide, "v8i32"), ir.IntType(64))

    return types.int64(types.int64, types.int64, types.int64, types.int64), generate


def _sum_quarters(typing: Any, a: Any, pitch: Any, b: Any, stride: Any) -> Any:
    """Sum each quarter of the eight rows; the four sums are 16 bits of the outcome each."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        packed = ir.Constant(ir.IntType(64), 0)
        for below in (0, 1):
            total, arguments = _differences(
                builder, arguments, SIDE // 2, ir.Constant(_NARROW, [0] * SIDE)
            )
            for right in (0, 1):
                picked = ir.Constant(
                    ir.VectorType(ir.IntType(32), 4), [4 * right + lane for lane in range(4)]
                )
                quarter = builder.shuffle_vector(total, total, picked)
                sum_ = builder.zext(_reduced(builder, quarter, "v4i16"), ir.IntType(64))
                shift = ir.Constant(ir.IntType(64), 16 * (2 * below + right))
                packed = builder.or_(packed, builder.shl(sum_, shift))
        return packed

    return types.int64(types.int64, types.int64, types.int64, types.int64), generate


_rows = cast(Callable[[int, int, int, int], int], intrinsic(_sum_rows))
_quarters = cast(Callable[[int, int, int, int], int], intrinsic(_sum_quarters))


@compiled
def block_difference(a: Int16, b: Int16, y: int, x: int, v: int, u: int) -> int:
    """Return the sum of |a - b| over the block of 8 x 8 at (y, x) in a and (v, u) in b.

    Both arrays are C-contiguous and hold the whole block; the sum of any column's differences
    fits 15 bits.
    """
    pitch = 2 * a.shape[1]
    stride = 2 * b.shape[1]
    return _rows(
        a.ctypes.data + y * pitch + 2 * x, pitch, b.ctypes.data + v * stride + 2 * u, stride
    )


@compiled
def quarter_differences(a: Int16, b: Int16, y: int, x: int, v: int, u: int) -> int:
    """Return the sums over the four quarters of such a block, packed in 16 bits each.

    The upper left one is in the lowest bits, the upper right one follows. Each fits 15 bits.
    """
    pitch = 2 * a.shape[1]
    stride = 2 * b.shape[1]
    return _quarters(
        a.ctypes.data + y * pitch + 2 * x, pitch, b.ctypes.data + v * stride + 2 * u, stride
    )
