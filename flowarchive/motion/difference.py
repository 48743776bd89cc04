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

from flowarchive.ans import compiled

SIDE = 8
"""Rows and columns of a block."""

Int16 = NDArray[np.int16]


def _sum_rows(typing: Any, a: Any, pitch: Any, b: Any, stride: Any) -> Any:
    """Sum over eight rows of eight int16 at two addresses, whose rows are bytes apart."""
    narrow = ir.VectorType(ir.IntType(16), SIDE)
    wide = ir.VectorType(ir.IntType(32), SIDE)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left, pitch, right, stride = arguments
        zero = ir.Constant(narrow, [0] * SIDE)
        total = zero
        for _ in range(SIDE):
            s = builder.load(builder.inttoptr(left, narrow.as_pointer()), align=2)
            t = builder.load(builder.inttoptr(right, narrow.as_pointer()), align=2)
            d = builder.sub(s, t)
            minus = builder.sub(zero, d)
            total = builder.add(total, builder.select(builder.icmp_signed(">", d, minus), d, minus))
            left = builder.add(left, pitch)
            right = builder.add(right, stride)
        reduce = cast(Any, cgutils).get_or_insert_function(
            builder.module, ir.FunctionType(ir.IntType(32), [wide]), "llvm.vector.reduce.add.v8i32"
        )
        return builder.zext(builder.call(reduce, [builder.zext(total, wide)]), ir.IntType(64))

    return types.int64(types.int64, types.int64, types.int64, types.int64), generate


_rows = cast(Callable[[int, int, int, int], int], intrinsic(_sum_rows))


@compiled
def block_difference(a: Int16, b: Int16, y: int, x: int, v: int, u: int) -> int:
    """Return the sum of |a - b| over the block of 8 x 8 at (y, x) in a and (v, u) in b.

    Both arrays are C-contiguous and hold the whole block; a row of differences, and the sum of
    any column's, fits 15 bits.
    """
    pitch = 2 * a.shape[1]
    stride = 2 * b.shape[1]
    return _rows(
        a.ctypes.data + y * pitch + 2 * x, pitch, b.ctypes.data + v * stride + 2 * u, stride
    )
