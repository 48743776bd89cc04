"""Columns of integers in few bits: differences from row to row, by an exponential Golomb code.

    column:  order k | first number | difference | difference | ...
    number:  n = zigzag + 2**k  ->  ones, as many as n has bits beyond k + 1 | 0 | n without its top

k is the one that makes its column the shortest, the least of equals, so that there is one encoding
of any columns. The lowest bits of a byte come first, and the last byte is filled with zeros.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise

from flowarchive.errors import FormatError, Truncated

_ORDER_BITS = 6
_MOST_ONES = 64
# What a number takes at most, and the bits of a byte before it: 64 ones, a zero, 127 bits.
_WINDOW = 25


def pack(columns: Sequence[Sequence[int]]) -> bytes:
    """Write columns of integers within +-2**60, at least one in each."""
    stream = _Stream()
    for column in columns:
        numbers = [_zigzag(b - a) for a, b in pairwise((0, *column))]
        order = _shortest(numbers)
        stream.give(order, _ORDER_BITS)
        for number in numbers:
            shifted = number + (1 << order)
            more = shifted.bit_length() - order - 1
            stream.give((1 << more) - 1, more + 1)
            stream.give(shifted ^ (1 << order + more), order + more)
    return stream.whole()


def unpack(data: bytes | memoryview, columns: int, rows: int) -> tuple[list[list[int]], int]:
    """Read what `pack` wrote.

    Args:
        data: Begins with it.
        columns: How many there are.
        rows: Numbers in each of them.

    Returns:
        The columns, and how many bytes they take.

    Raises:
        FormatError: The bytes are not the encoding of such columns.
    """
    bits, whole = _Bits(data), []
    for _ in range(columns):
        order = bits.take(_ORDER_BITS)
        numbers = [bits.number(order) for _ in range(rows)]
        if order != _shortest(numbers):
            raise FormatError("a column of a chunk is not written in the shortest way")
        whole.append(list(accumulate(number >> 1 ^ -(number & 1) for number in numbers)))
    return whole, bits.end()


def _shortest(numbers: Sequence[int]) -> int:
    """Return the order that makes a column the shortest, the least of equals."""
    ascending = sorted(numbers)
    most = ascending[-1].bit_length()

    def length(order: int) -> int:
        # A number takes order + 1 bits, and two more for each power of two beyond that it reaches.
        starts = ((1 << power) - (1 << order) for power in range(order + 1, most + 2))
        longer = sum(len(ascending) - bisect_left(ascending, start) for start in starts)
        return len(ascending) * (order + 1) + 2 * longer

    # A higher order than the largest number has bits is of no use.
    return min(range(min(most + 1, 1 << _ORDER_BITS)), key=length)


def _zigzag(value: int) -> int:
    return 2 * value if value >= 0 else -2 * value - 1


class _Stream:
    """Puts bits behind each other, the lowest first; `_Bits` takes them again."""

    def __init__(self) -> None:
        self._given = bytearray()
        self._value = self._count = 0

    def give(self, value: int, count: int) -> None:
        self._value |= value << self._count
        self._count += count
        whole = self._count // 8
        self._given += (self._value & (1 << 8 * whole) - 1).to_bytes(whole, "little")
        self._value >>= 8 * whole
        self._count -= 8 * whole

    def whole(self) -> bytes:
        rest = self._value.to_bytes(-(-self._count // 8), "little")
        return bytes(self._given + rest)


class _Bits:
    """Takes bits from the front of some bytes, the lowest first."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = data
        self._position = 0

    def take(self, count: int) -> int:
        found = self._ahead() & ((1 << count) - 1)
        self._advance(count)
        return found

    def number(self, order: int) -> int:
        ahead = self._ahead()
        more = (~ahead & (ahead + 1)).bit_length() - 1
        if more > _MOST_ONES:
            raise FormatError("a number in a column of a chunk has no end")
        count = order + more
        self._advance(more + 1 + count)
        return (ahead >> more + 1 & (1 << count) - 1) + (1 << count) - (1 << order)

    def end(self) -> int:
        """Take what fills the last byte, and return how many bytes there were."""
        if self.take(-self._position % 8):
            raise FormatError("a chunk's columns are not filled up with zeros")
        return self._position // 8

    def _ahead(self) -> int:
        start = self._position // 8
        return int.from_bytes(self._data[start : start + _WINDOW], "little") >> self._position % 8

    def _advance(self, count: int) -> None:
        self._position += count
        if self._position > 8 * len(self._data):
            raise Truncated("the chunk ends early")
