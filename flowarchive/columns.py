"""Columns of integers in few bits: differences from row to row, by an exponential Golomb code.

    column:  order k | first number | difference | difference | ...
    number:  n = zigzag + 2**k  ->  ones, as many as n has bits beyond k + 1 | 0 | n without its top

k is the one that makes its column the shortest, the least of equals, so that there is one encoding
of any columns. The lowest bits of a byte come first, and the last byte is filled with zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise

from flowarchive.errors import FormatError

_ORDER_BITS = 6
_MOST_ONES = 64


def pack(columns: Sequence[Sequence[int]]) -> bytes:
    """Write columns of integers within +-2**60, at least one in each."""
    stream = _Stream()
    for column in columns:
        numbers = [_zigzag(b - a) for a, b in pairwise((0, *column))]
        # A higher order than the largest number has bits is of no use.
        orders = range(min(max(numbers).bit_length() + 1, 1 << _ORDER_BITS))
        order = min(orders, key=lambda k: sum(map(_size(k), numbers)))
        stream.give(order, _ORDER_BITS)
        for number in numbers:
            shifted = number + (1 << order)
            more = shifted.bit_length() - order - 1
            stream.give((1 << more) - 1, more + 1)
            stream.give(shifted ^ (1 << order + more), order + more)
    return stream.whole()


def unpack(take: Callable[[int], bytes], columns: int, rows: int) -> list[list[int]]:
    """Read what `pack` wrote.

    Args:
        take: Gives so many of the next bytes.
        columns: How many there are.
        rows: Numbers in each of them.

    Raises:
        FormatError: The bytes are not the encoding of such columns.
    """
    bits, whole = _Bits(take), []
    for _ in range(columns):
        order = bits.take(_ORDER_BITS)
        whole.append(list(accumulate(_numbers(bits, order, rows))))
    if pack(whole) != bits.taken:
        raise FormatError("columns of a chunk are not written as they should be")
    return whole


def _numbers(bits: _Bits, order: int, rows: int) -> Iterator[int]:
    for _ in range(rows):
        more = 0
        while bits.take(1):
            more += 1
            if more > _MOST_ONES:
                raise FormatError("a number in a column of a chunk has no end")
        value = bits.take(order + more) + (1 << order + more) - (1 << order)
        yield value >> 1 ^ -(value & 1)


def _zigzag(value: int) -> int:
    return 2 * value if value >= 0 else -2 * value - 1


def _size(order: int) -> Callable[[int], int]:
    """How many bits numbers take."""
    return lambda number: 2 * (number + (1 << order)).bit_length() - order - 1


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

    def __init__(self, take: Callable[[int], bytes]) -> None:
        self._take = take
        self.taken = bytearray()
        self._value = self._count = 0

    def take(self, count: int) -> int:
        missing = -(-max(0, count - self._count) // 8)
        piece = self._take(missing)
        self.taken += piece
        self._value |= int.from_bytes(piece, "little") << self._count
        self._count += 8 * missing
        found = self._value & ((1 << count) - 1)
        self._value >>= count
        self._count -= count
        return found
