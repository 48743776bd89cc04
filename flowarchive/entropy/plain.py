"""Entropy models without parameters: uniform symbols, and frozen tables of frequencies."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowarchive.ans import MAX_PRECISION, MAX_RANGE, Message, refill_row
from flowarchive.entropy.cumulative import Int32, Int64, Uint32, Uint64, Whole
from flowarchive.errors import InvalidInterval
from flowarchive.lengths import log2_sum
from flowarchive.loops import compiled


class Uniform:
    """Symbols that are uniform in [0, range), for any range from 1 to 2**32.

    Attributes:
        range: The number of symbols, which is also the number of slots.
    """

    def __init__(self, range: int) -> None:
        """Fix the range; ValueError outside 1..2**32."""
        if not 1 <= range <= MAX_RANGE:
            raise ValueError(f"range {range} is outside 1..{MAX_RANGE}")
        self.range = int(range)

    def __repr__(self) -> str:
        return f"Uniform({self.range})"

    @property
    def total(self) -> int:
        """Slots of the number line; no power of two in general."""
        return self.range

    def push(self, message: Message, symbols: ArrayLike) -> None:
        """Push integers [n] in [0, range), the last row first; InvalidInterval for others."""
        message.push_uniform(symbols, self.range)

    def pop(self, message: Message, n: int) -> NDArray[np.int64]:
        """Pop int64 [n]; MessageExhausted where the message holds too few bits."""
        return message.pop_uniform(self.range, n)

    def interval(self, symbols: ArrayLike) -> tuple[Uint32, Uint32]:
        """Return (start, freq) = (symbol, 1), uint32 [n]; InvalidInterval outside the range."""
        values = np.asarray(symbols)
        if values.size and not (values.min() >= 0 and values.max() < self.range):
            raise InvalidInterval(f"a symbol is outside [0, {self.range})")
        return values.astype(np.uint32), np.ones(values.shape, dtype=np.uint32)

    def bits(self, symbols: ArrayLike) -> float:
        """Return the ideal code length of integers [n]; for reports only."""
        return code_length(self.interval(symbols)[1], self.range)


class Table:
    """A frozen table of frequencies over the symbols 0..len(freqs) - 1.

    Attributes:
        precision: Bits of the total mass, log2 of the frequencies' sum.
    """

    def __init__(self, freqs: ArrayLike) -> None:
        """Freeze the table.

        Args:
            freqs: Integers [symbols], at least 0, whose sum is a power of two, 2**1..2**31. A
                symbol of frequency 0 is outside the support.

        Raises:
            ValueError: The frequencies are negative or their sum is no such power of two.
        """
        table = np.asarray(freqs)
        if table.ndim != 1 or table.dtype.kind not in "iu" or not table.size:
            raise ValueError(f"freqs must be integers [symbols], not {list(table.shape)}")
        if table.min() < 0 or table.max() > 1 << MAX_PRECISION or table.size > 1 << MAX_PRECISION:
            raise ValueError("a frequency is negative or above 2**31")
        self._cumulative = np.concatenate([[0], np.cumsum(table, dtype=np.int64)])
        total = int(self._cumulative[-1])
        self.precision = total.bit_length() - 1
        if not 1 <= self.precision <= MAX_PRECISION or total != 1 << self.precision:
            raise ValueError(f"the frequencies' sum {total} is not one of 2**1..2**31")

    def __repr__(self) -> str:
        return f"Table({np.diff(self._cumulative).tolist()})"

    @property
    def total(self) -> int:
        """Slots of the number line, 2**precision."""
        return 1 << self.precision

    def push(self, message: Message, symbols: ArrayLike) -> None:
        """Push integers [n], the last row first; InvalidInterval for a symbol without mass."""
        start, freq = self.interval(symbols)
        message.push(start, freq, self.precision)

    def pop(self, message: Message, n: int) -> Int32:
        """Pop int32 [n]; MessageExhausted where the message holds too few bits."""
        symbols = np.empty(n, dtype=np.int32)
        head = message.head.copy()
        size = _pop_table(
            head, message.tail, message.size, symbols, self._cumulative, self.precision
        )
        message.commit(head, size)
        return symbols

    def interval(self, symbols: ArrayLike) -> tuple[Uint32, Uint32]:
        """Return (start, freq), uint32 [n] each; InvalidInterval for a symbol without mass."""
        values = as_int32("symbols", symbols)
        if values.size and not (values.min() >= 0 and values.max() < self._cumulative.size - 1):
            raise InvalidInterval(f"a symbol is outside [0, {self._cumulative.size - 1})")
        start = self._cumulative[values]
        freq = self._cumulative[values + 1] - start
        if not freq.all():
            raise InvalidInterval("a symbol has frequency 0")
        return start.astype(np.uint32), freq.astype(np.uint32)

    def bits(self, symbols: ArrayLike) -> float:
        """Return the ideal code length of integers [n]; for reports only."""
        return code_length(self.interval(symbols)[1], self.total)


def as_int32(name: str, values: ArrayLike) -> Int32:
    """Give integers as a contiguous int32 array; ValueError where that would change one."""
    array = np.asarray(values)
    if array.dtype == np.int32 and array.flags.c_contiguous:
        return array
    if array.dtype.kind not in "iu" and array.size:
        raise ValueError(f"{name} must be integers, not {array.dtype}")
    narrow = np.ascontiguousarray(array, dtype=np.int32)
    if not np.can_cast(array.dtype, np.int32) and not np.array_equal(narrow, array):
        raise ValueError(f"{name} does not fit 32 signed bits")
    return narrow


def code_length(freq: Uint32, total: int) -> float:
    """Return the sum of -log2(freq / total), as `lengths` sums them."""
    return freq.size * log2_sum(total) - log2_sum(freq)


@compiled
def find_piece(value: Whole, knots: Int64, bottom: Whole, top: Whole) -> Whole:
    """Return the k in bottom..top - 1 with knots[k] <= value < knots[k + 1].

    Args:
        value: At least knots[bottom]; knots[top] is taken to be above it, and is not read.
        knots: int64, ascending.
        bottom: The least k to be found.
        top: The greatest, and one more.
    """
    while top - bottom > 1:
        middle = (bottom + top) >> 1
        if knots[middle] <= value:
            bottom = middle
        else:
            top = middle
    return bottom


@compiled
def _pop_table(
    head: Uint64, tail: Uint32, size: int, symbols: Int32, cumulative: Int64, precision: int
) -> int:
    lanes = head.size
    shift = np.uint64(precision)
    mask = np.uint64((1 << precision) - 1)
    for base in range(0, symbols.size, lanes):
        width = min(lanes, symbols.size - base)
        for lane in range(width):
            slot = np.int64(head[lane] & mask)
            # An empty interval is never found.
            symbol = find_piece(slot, cumulative, 0, cumulative.size - 1)
            symbols[base + lane] = symbol
            left = cumulative[symbol]
            freq = np.uint64(cumulative[symbol + 1] - left)
            head[lane] = freq * (head[lane] >> shift) + np.uint64(slot - left)
        size = refill_row(head, tail, size, width)
        if size < 0:
            break
    return size
