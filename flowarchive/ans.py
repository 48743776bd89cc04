"""The stack of bits: interleaved rANS heads over one shared tail of 32-bit words.

A symbol owns the interval [start, start + freq) of the 2**precision slots of a number line:

    0        start              start + freq            2**precision
    |----------|=====================|----------------------|
                 ^ slot = head mod 2**precision

Pushing it turns the head into the one whose slot lies in that interval, and the head grows by
log2(2**precision / freq) bits; popping undoes that. Every head stays in [2**31, 2**63): one that
would grow out of the top first *spills* its low word onto the tail, one that fell below 2**31
*refills* from it. Both laws hold, and bits-back coding needs the second: pop(push(x)) = x, and
push(pop(bits)) = bits whatever the bits are.

Element i of an array sits in lane i % lanes, so arrays are rows of lanes. The last row is pushed
first; within a row lanes spill in ascending order and refill in descending order.

This module knows lanes, words, intervals and precision. It must not know symbols or models.

References:
    Duda, "Asymmetric numeral systems", 2013, arXiv:1311.2540.
    Giesen, "Interleaved entropy coders", 2014, arXiv:1402.3392.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowarchive.errors import CodingError, InvalidInterval, MessageExhausted
from flowarchive.lengths import log2_sum
from flowarchive.loops import compiled

__all__ = ["HEAD_MIN", "MAX_LANES", "MAX_PRECISION", "MAX_RANGE", "Message"]

HEAD_MIN = 1 << 31
"""The least head; heads stay under HEAD_MIN * 2**32."""

MAX_LANES = 1024
MAX_PRECISION = 31
MAX_RANGE = 1 << 32
"""The largest range of the uniform op."""

# numba turns uint64 mixed with int64 into float64, so every constant below is a uint64.
_HEAD_MIN = np.uint64(HEAD_MIN)
_WORD = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_ONE = np.uint64(1)


@compiled
def push_lane(
    h: np.uint64,
    tail: NDArray[np.uint32],
    size: int,
    start: np.uint64,
    freq: np.uint64,
    precision: int,
) -> tuple[np.uint64, int]:
    """Push a checked interval onto the head `h`; `tail` has room for one more word.

    Returns:
        The new head and size.
    """
    # h >= freq * 2**(63 - precision), written so that it cannot overflow.
    if h >> np.uint64(63 - precision) >= freq:
        tail[size] = np.uint32(h & _LOW)
        size += 1
        h >>= _WORD
    quotient = h // freq
    return (quotient << np.uint64(precision)) + (h - quotient * freq) + start, size


@compiled
def push_rows(
    head: NDArray[np.uint64],
    tail: NDArray[np.uint32],
    size: int,
    start: NDArray[np.uint32],
    freq: NDArray[np.uint32],
    precision: int,
) -> int:
    """Push checked intervals, last row first; `tail` has room for one word an element.

    Returns:
        The new size of the tail.
    """
    lanes = head.size
    count = start.size
    row = (count - 1) // lanes * lanes
    while row >= 0:
        for lane in range(min(lanes, count - row)):
            s = np.uint64(start[row + lane])
            f = np.uint64(freq[row + lane])
            head[lane], size = push_lane(head[lane], tail, size, s, f, precision)
        row -= lanes
    return size


@compiled
def pop_lane(
    h: np.uint64,
    tail: NDArray[np.uint32],
    size: int,
    start: np.uint64,
    freq: np.uint64,
    precision: int,
) -> tuple[np.uint64, int]:
    """Pop from the head `h` a checked interval that holds its slot; the tail keeps its words.

    Returns:
        The new head and size, -1 where there were too few words.
    """
    shift = np.uint64(precision)
    h = freq * (h >> shift) + (h & ((_ONE << shift) - _ONE)) - start
    if h < _HEAD_MIN:
        if size == 0:
            return h, -1
        size -= 1
        h = (h << _WORD) | np.uint64(tail[size])
    return h, size


@compiled
def refill_row(head: NDArray[np.uint64], tail: NDArray[np.uint32], size: int, width: int) -> int:
    """Refill the leading `width` heads that fell below 2**31, in descending lane order.

    Returns:
        The new size of the tail, or -1 where it held too few words.
    """
    for lane in range(width - 1, -1, -1):
        if head[lane] < _HEAD_MIN:
            if size == 0:
                return -1
            size -= 1
            head[lane] = (head[lane] << _WORD) | np.uint64(tail[size])
    return size


@compiled
def _pop_row(
    head: NDArray[np.uint64],
    tail: NDArray[np.uint32],
    size: int,
    start: NDArray[np.uint32],
    freq: NDArray[np.uint32],
    precision: int,
) -> int:
    """Pop one row of checked intervals that hold the slots of their lanes."""
    shift = np.uint64(precision)
    mask = (_ONE << shift) - _ONE
    for lane in range(start.size):
        h = head[lane]
        head[lane] = np.uint64(freq[lane]) * (h >> shift) + (h & mask) - np.uint64(start[lane])
    return refill_row(head, tail, size, start.size)


# The uniform op. With Q = 2**31 div R, heads in [Q, Q * 2**32) times R, plus a value, fill
# [Q * R, Q * R * 2**32) exactly once each, which is the heads' own range but for the sliver between
# Q * R and 2**31. A push spills into the first range and refills out of the sliver; a refill
# only ever takes back the word spilled by the same push, so no push reads older words.
# A range above 2**31 would make Q zero: such a value is coded as its low bit under
# (and the low bit's range is 1 for the last value of an odd range) its high part.


@compiled
def _push_value(
    h: np.uint64, tail: NDArray[np.uint32], size: int, value: np.uint64, span: np.uint64
) -> tuple[np.uint64, int]:
    # h >= Q * 2**32, without the division: floor(a / b) <= c where a < (c + 1) * b.
    if ((h >> _WORD) + _ONE) * span > _HEAD_MIN:
        low = h & _LOW
        h = (h >> _WORD) * span + value
        if h < _HEAD_MIN:
            return (h << _WORD) | low, size
        tail[size] = np.uint32(low)
        return h, size + 1
    return h * span + value, size


@compiled
def _pop_value(
    h: np.uint64, tail: NDArray[np.uint32], size: int, span: np.uint64
) -> tuple[np.uint64, int, np.uint64]:
    # h >= Q * R * 2**32, which is above 2**63 - R * 2**32: mostly, no division is needed to know.
    if (h >> _WORD) + span > _HEAD_MIN and h >> _WORD >= _HEAD_MIN // span * span:
        low = h & _LOW
        h >>= _WORD
        quotient = h // span
        return (quotient << _WORD) | low, size, h - quotient * span
    quotient = h // span
    value = h - quotient * span
    h = quotient
    if h < _HEAD_MIN:
        if size == 0:
            return h, -1, value
        size -= 1
        h = (h << _WORD) | np.uint64(tail[size])
    return h, size, value


@compiled
def push_uniform_lane(
    h: np.uint64, tail: NDArray[np.uint32], size: int, value: np.uint64, span: np.uint64
) -> tuple[np.uint64, int]:
    """Push a value of [0, span), span in 1..2**32, onto the head `h`.

    Returns:
        The new head and size; the tail grows by at most two words, by one if span <= 2**31.
    """
    if span > _HEAD_MIN:
        bit_span = _ONE if value == span - _ONE and span & _ONE else _ONE + _ONE
        h, size = _push_value(h, tail, size, value & _ONE, bit_span)
        value >>= _ONE
        span = (span + _ONE) >> _ONE
    return _push_value(h, tail, size, value, span)


@compiled
def pop_uniform_lane(
    h: np.uint64, tail: NDArray[np.uint32], size: int, span: np.uint64
) -> tuple[np.uint64, int, np.uint64]:
    """Undo `push_uniform_lane`; the tail keeps its words.

    Returns:
        The new head and size, -1 where there were too few words, and the value.
    """
    if span <= _HEAD_MIN:
        return _pop_value(h, tail, size, span)
    h, size, value = _pop_value(h, tail, size, (span + _ONE) >> _ONE)
    if size < 0:
        return h, size, value
    value <<= _ONE
    bit_span = _ONE if value == span - _ONE else _ONE + _ONE
    h, size, bit = _pop_value(h, tail, size, bit_span)
    return h, size, value | bit


@compiled
def _push_uniform_rows(
    head: NDArray[np.uint64],
    tail: NDArray[np.uint32],
    size: int,
    values: NDArray[np.uint64],
    ranges: NDArray[np.uint64],
) -> int:
    lanes = head.size
    count = values.size
    row = (count - 1) // lanes * lanes
    while row >= 0:
        for lane in range(min(lanes, count - row)):
            at = row + lane
            head[lane], size = push_uniform_lane(head[lane], tail, size, values[at], ranges[at])
        row -= lanes
    return size


@compiled
def _pop_uniform_rows(
    head: NDArray[np.uint64],
    tail: NDArray[np.uint32],
    size: int,
    values: NDArray[np.uint64],
    ranges: NDArray[np.uint64],
) -> int:
    lanes = head.size
    count = values.size
    for row in range(0, count, lanes):
        for lane in range(min(lanes, count - row) - 1, -1, -1):
            h, size, value = pop_uniform_lane(head[lane], tail, size, ranges[row + lane])
            if size < 0:
                return size
            head[lane] = h
            values[row + lane] = value
    return size


def _unsigned(
    name: str, values: ArrayLike, most: int, dtype: type[np.uint32] | type[np.uint64]
) -> NDArray[Any]:
    """Give integers [n] as a contiguous `dtype`; others than that have to be in [0, most]."""
    array = np.asarray(values)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise ValueError(f"{name} must be integers [n], not {array.dtype} {list(array.shape)}")
    if array.dtype != dtype and array.size and not (array.min() >= 0 and array.max() <= most):
        raise InvalidInterval(f"{name} leaves [0, {most}]")
    return np.ascontiguousarray(array, dtype=dtype)


@compiled
def _are_intervals(start: NDArray[np.uint32], freq: NDArray[np.uint32], total: int) -> bool:
    """Whether 1 <= freq and start + freq <= total, for every element."""
    end = least = np.uint64(total)
    most = np.uint64(0)
    for i in range(start.size):
        least = min(least, np.uint64(freq[i]))
        most = max(most, np.uint64(start[i]) + np.uint64(freq[i]))
    return bool(least > 0 and most <= end)


def _check_intervals(
    start: ArrayLike, freq: ArrayLike, precision: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Check that 1 <= freq and start + freq <= 2**precision, for every element."""
    total = 1 << _check_precision(precision)
    starts = _unsigned("start", start, total - 1, np.uint32)
    freqs = _unsigned("freq", freq, total, np.uint32)
    if starts.shape != freqs.shape:
        raise ValueError(f"start is {list(starts.shape)}, freq {list(freqs.shape)}")
    if not _are_intervals(starts, freqs, total):
        raise InvalidInterval(f"an interval is empty or leaves [0, 2**{precision})")
    return starts, freqs


def _check_precision(precision: int) -> int:
    if not 1 <= precision <= MAX_PRECISION:
        raise ValueError(f"precision {precision} is not in 1..{MAX_PRECISION}")
    return int(precision)


class Message:
    """A stack of bits: `lanes` rANS heads over one shared tail of 32-bit words.

    Every method that raises leaves the message as it was.

    Attributes:
        head: uint64 [lanes], each in [2**31, 2**63).
        tail: uint32 [capacity]; the first `size` words are live, the last of them is the top.
        size: Live words of the tail.
    """

    head: NDArray[np.uint64]
    tail: NDArray[np.uint32]
    size: int

    def __init__(self, lanes: int) -> None:
        """Make an empty message: every head is 2**31, the tail holds nothing.

        Args:
            lanes: A power of two, 1..1024.

        Raises:
            ValueError: `lanes` is another number.
        """
        if not 1 <= lanes <= MAX_LANES or lanes & (lanes - 1):
            raise ValueError(f"lanes {lanes} is not a power of two in 1..{MAX_LANES}")
        self.head = np.full(lanes, HEAD_MIN, dtype=np.uint64)
        self.tail = np.empty(64, dtype=np.uint32)
        self.size = 0

    def __repr__(self) -> str:
        return f"Message(lanes={self.lanes}, size={self.size}, bits={self.bits:.1f})"

    @property
    def lanes(self) -> int:
        """Number of heads."""
        return self.head.size

    @property
    def bits(self) -> float:
        """Information held beyond the empty message, in bits, as `lengths` sums them."""
        return 32 * self.size + log2_sum(self.head) - 31 * self.lanes

    @property
    def is_drained(self) -> bool:
        """Whether nothing is left: the last thing a decoder checks."""
        return self.size == 0 and bool((self.head == _HEAD_MIN).all())

    def copy(self, words: int | None = None) -> Message:
        """Return a message that shares nothing with this one, with all of the tail or its top."""
        count = self.size if words is None else min(words, self.size)
        twin = Message(self.lanes)
        twin.head[:] = self.head
        twin.reserve(count)
        twin.tail[:count] = self.tail[self.size - count : self.size]
        twin.size = count
        return twin

    def take_over(self, twin: Message, words: int) -> None:
        """Become what a copy of the top `words` has become."""
        self.head[:] = twin.head
        self.size -= min(words, self.size)
        self.reserve(twin.size)
        self.tail[self.size : self.size + twin.size] = twin.tail[: twin.size]
        self.size += twin.size

    def reserve(self, words: int) -> None:
        """Make room for `words` more words on the tail, growing it geometrically."""
        if self.size + words > self.tail.size:
            tail = np.empty(max(self.size + words, 2 * self.tail.size), dtype=np.uint32)
            tail[: self.size] = self.tail[: self.size]
            self.tail = tail

    def push(self, start: ArrayLike, freq: ArrayLike, precision: int) -> None:
        """Push one interval an element, the last row first, so that `pop` meets element 0 first.

        Args:
            start: Left ends, integers [n] for any n, in [0, 2**precision).
            freq: Widths, integers [n], at least 1, start + freq <= 2**precision.
            precision: Bits of the total mass, 1..31.

        Raises:
            InvalidInterval: An interval is empty or leaves [0, 2**precision).
            ValueError: The arrays' shapes or types, or the precision, are wrong.

        References:
            Duda, "Asymmetric numeral systems", 2013, arXiv:1311.2540.
            Giesen, "Interleaved entropy coders", 2014, arXiv:1402.3392.
        """
        starts, freqs = _check_intervals(start, freq, precision)
        self.reserve(starts.size)
        self.size = push_rows(self.head, self.tail, self.size, starts, freqs, precision)

    def pop(self, start: ArrayLike, freq: ArrayLike, precision: int) -> None:
        """Remove from the leading n lanes the symbols that `peek` saw.

        Args:
            start: Left ends, integers [n], n <= lanes, of the intervals that hold the slots.
            freq: Their widths, integers [n].
            precision: Bits of the total mass, 1..31.

        Raises:
            InvalidInterval: An interval is none, or does not hold its lane's slot.
            MessageExhausted: The tail holds too few words.
            ValueError: The arrays' shapes or types, or the precision, are wrong.
        """
        starts, freqs = _check_intervals(start, freq, precision)
        slots = self.peek(starts.size, precision)
        if not ((slots >= starts) & (slots - starts < freqs)).all():
            raise InvalidInterval("an interval does not hold the slot of its lane")
        head = self.head.copy()
        self.commit(head, _pop_row(head, self.tail, self.size, starts, freqs, precision))

    def peek(self, n: int, precision: int) -> NDArray[np.int64]:
        """Return the slots of the leading n lanes.

        Args:
            n: Lanes to look at, 0..lanes.
            precision: Bits of the total mass, 1..31.

        Returns:
            int64 [n], in [0, 2**precision).

        Raises:
            ValueError: `n` or the precision is out of range.
        """
        if not 0 <= n <= self.lanes:
            raise ValueError(f"{n} symbols do not sit in {self.lanes} lanes")
        mask = np.uint64((1 << _check_precision(precision)) - 1)
        return (self.head[:n] & mask).astype(np.int64)

    def commit(self, head: NDArray[np.uint64], size: int) -> None:
        """Take over the outcome of a pop that worked on a copy of the heads.

        Args:
            head: uint64 [lanes], the heads after the pop.
            size: Words left on the tail, -1 where they did not suffice.

        Raises:
            MessageExhausted: `size` is negative; the message stays as it was.
        """
        if size < 0:
            raise MessageExhausted(f"a pop needs more bits than the {self.size} words left")
        self.head[:] = head
        self.size = size

    def push_uniform(self, values: ArrayLike, ranges: ArrayLike) -> None:
        """Push values that are uniform in [0, range), last row first; a bijection for any range.

        Args:
            values: Integers [n] for any n, values[i] in [0, ranges[i]).
            ranges: Integers [n] or one integer, 1..2**32, not necessarily powers of two.

        Raises:
            InvalidInterval: A value is outside its range.
            ValueError: A range is outside 1..2**32, or the shapes differ.

        References:
            Zhang, Kang, Ryder, Li, "iFlow", 2021, arXiv:2111.00965, for the use of such an op.
        """
        spans = self._ranges(ranges, np.size(values))
        pushed = _unsigned("values", values, MAX_RANGE - 1, np.uint64)
        if (pushed >= spans).any():
            raise InvalidInterval("a value is outside its range")
        # Ranges above 2**31 take two steps, each of which may spill.
        self.reserve(2 * pushed.size)
        self.size = _push_uniform_rows(self.head, self.tail, self.size, pushed, spans)

    def pop_uniform(self, ranges: ArrayLike, n: int | None = None) -> NDArray[np.int64]:
        """Pop values that are uniform in [0, range); the mirror image of `push_uniform`.

        Args:
            ranges: Integers [n], or one integer for all n values, 1..2**32.
            n: Number of values; needed where `ranges` is one integer.

        Returns:
            int64 [n], values[i] in [0, ranges[i]).

        Raises:
            MessageExhausted: The tail holds too few words.
            ValueError: A range is outside 1..2**32, or the shapes differ.
        """
        spans = self._ranges(ranges, np.size(ranges) if n is None else n)
        values = np.empty(spans.size, dtype=np.uint64)
        head = self.head.copy()
        self.commit(head, _pop_uniform_rows(head, self.tail, self.size, values, spans))
        return values.astype(np.int64)

    @staticmethod
    def _ranges(ranges: ArrayLike, n: int) -> NDArray[np.uint64]:
        array = np.asarray(ranges)
        if array.dtype.kind not in "iu" and array.size:
            raise ValueError(f"ranges must be integers, not {array.dtype}")
        if array.size and not (array.min() >= 1 and array.max() <= MAX_RANGE):
            raise ValueError(f"a range is outside 1..{MAX_RANGE}")
        if array.shape not in ((), (n,)):
            raise ValueError(f"ranges are {list(array.shape)} for {n} values")
        return np.ascontiguousarray(np.broadcast_to(array, (n,)), dtype=np.uint64)

    def to_bytes(self) -> bytes:
        """Return the heads, then the live words, bottom first; all little-endian."""
        return self.head.astype("<u8").tobytes() + self.tail[: self.size].astype("<u4").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes, lanes: int) -> Message:
        """Read what `to_bytes` wrote.

        Args:
            data: 8 bytes a lane, then 4 bytes a word.
            lanes: A power of two, 1..1024.

        Raises:
            CodingError: The length does not fit, or a head is outside [2**31, 2**63).
            ValueError: `lanes` is no lane count.
        """
        message = cls(lanes)
        size, rest = divmod(len(data) - 8 * lanes, 4)
        if size < 0 or rest:
            raise CodingError(f"{len(data)} bytes are no message of {lanes} lanes")
        message.head[:] = np.frombuffer(data, dtype="<u8", count=lanes)
        if ((message.head < _HEAD_MIN) | (message.head >> np.uint64(63) != 0)).any():
            raise CodingError("a head of the message is outside [2**31, 2**63)")
        message.reserve(size)
        message.tail[:size] = np.frombuffer(data, dtype="<u4", offset=8 * lanes)
        message.size = size
        return message
