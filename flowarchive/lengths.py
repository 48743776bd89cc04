"""How long numbers are, in bits: logarithms in whole steps of 2**-20, the same on every machine.

Such a sum is exact in a float64 while it stays below 2**33 bits, and so are sums and differences of
these. No order of summation and no processor changes one: two machines that compare two lengths,
or write one down, do so alike.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowarchive.loops import compiled

__all__ = ["STEP_BITS", "log2_sum", "log_table"]

Int64 = NDArray[np.int64]

STEP_BITS = 20
"""Lengths are multiples of 2**-20 bits."""

_PIECE_BITS = 10
# The highest bit of a number is brought here.
_TOP = 62


@cache
def log_table() -> Int64:
    """Return round(2**20 * log2(1 + i / 1024)) for i in 0..1024, int64, read-only."""
    table = np.array([_log2(i) for i in range(1 << _PIECE_BITS)] + [1 << STEP_BITS])
    table.setflags(write=False)
    return table


def _log2(i: int) -> int:
    """An entry of the table, bit by bit: squaring a number doubles its logarithm."""
    one, extra, found = 60, 2, 0
    number = ((1 << _PIECE_BITS) + i) << (one - _PIECE_BITS)
    for _ in range(STEP_BITS + extra):
        number = number * number >> one
        over = number >> (one + 1)
        number >>= over
        found = 2 * found + over
    return (found + (1 << extra >> 1)) >> extra


def log2_sum(numbers: ArrayLike) -> float:
    """Return the sum of log2 of integers in 1..2**63 - 1, each to 1.2e-6."""
    whole: NDArray[Any] = np.ascontiguousarray(numbers).astype(np.int64, copy=False)
    return float(_sum(whole.ravel(), log_table()) / (1 << STEP_BITS))


@compiled
def _sum(numbers: Int64, table: Int64) -> np.int64:
    """The sum in steps, each logarithm interpolated between entries of the table."""
    total = np.int64(0)
    for number in numbers:
        exponent, mantissa = np.int64(_TOP), number
        for power in (32, 16, 8, 4, 2, 1):
            if mantissa >> (_TOP + 1 - power) == 0:
                mantissa <<= power
                exponent -= power
        i = (mantissa >> (_TOP - _PIECE_BITS)) & ((1 << _PIECE_BITS) - 1)
        part = (mantissa >> (_TOP - _PIECE_BITS - STEP_BITS)) & ((1 << STEP_BITS) - 1)
        step = (table[i + 1] - table[i]) * part + (1 << STEP_BITS >> 1) >> STEP_BITS
        total += (exponent << STEP_BITS) + table[i] + step
    return total
