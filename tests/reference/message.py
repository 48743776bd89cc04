"""Section "Message": the decoder's half of the stack of bits."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Protocol

from reference.refusal import demand


class EntropyModel(Protocol):
    """Tells to which symbol a slot belongs."""

    precision: int

    def find(self, slot: int) -> tuple[int, int, int]:
        """The (symbol, start, freq) with start <= slot < start + freq."""
        ...


class Message:
    """`lanes` heads over one tail of words.

    Attributes:
        head: One integer for each lane, in [2**31, 2**63).
        tail: The words, the top of the stack last.
    """

    def __init__(self, data: bytes, lanes: int) -> None:
        size, rest = divmod(len(data) - 8 * lanes, 4)
        demand(size >= 0 and rest == 0, "a message of this length", "CodingError")
        self.head = list(struct.unpack_from(f"<{lanes}Q", data))
        self.tail = list(struct.unpack_from(f"<{size}I", data, 8 * lanes))
        demand(all(2**31 <= h < 2**63 for h in self.head), "a head out of range", "CodingError")

    def is_empty(self) -> bool:
        """Whether everything has been taken out."""
        return not self.tail and all(h == 2**31 for h in self.head)

    def pop_array(self, models: Sequence[EntropyModel]) -> list[int]:
        """Section "Order": pop one symbol under each model."""
        symbols = [0] * len(models)
        lanes = len(self.head)
        for row in range(0, len(models), lanes):
            for lane in reversed(range(min(lanes, len(models) - row))):
                symbols[row + lane] = self._pop(lane, models[row + lane])
        return symbols

    def begin_array(self) -> Array:
        """Begin to pop an array whose models depend on the elements before."""
        return Array(self)

    def pop_uniform_array(self, ranges: Sequence[int]) -> list[int]:
        """Sections "Order" and "Uniform values": pop one value in [0, R) for each R."""
        values = [0] * len(ranges)
        lanes = len(self.head)
        for row in range(0, len(ranges), lanes):
            for lane in reversed(range(min(lanes, len(ranges) - row))):
                values[row + lane] = self.pop_uniform(lane, ranges[row + lane])
        return values

    def push_uniform_array(self, values: Sequence[int], ranges: Sequence[int]) -> None:
        """The mirror image of `pop_uniform_array`."""
        lanes = len(self.head)
        for row in reversed(range(0, len(ranges), lanes)):
            for lane in range(min(lanes, len(ranges) - row)):
                self.push_uniform(lane, values[row + lane], ranges[row + lane])

    def _pop(self, lane: int, model: EntropyModel) -> int:
        """Section "Intervals"."""
        symbol = self.take(lane, model)
        self.refill(lane)
        return symbol

    def take(self, lane: int, model: EntropyModel) -> int:
        """The part of a pop that does not touch the tail."""
        h = self.head[lane]
        slot = h % 2**model.precision
        symbol, start, freq = model.find(slot)
        self.head[lane] = freq * (h // 2**model.precision) + slot - start
        return symbol

    def push(self, lane: int, start: int, freq: int, precision: int) -> None:
        """Section "Intervals": push onto one lane."""
        if self.head[lane] >= freq * 2 ** (63 - precision):
            self.tail.append(self.head[lane] % 2**32)
            self.head[lane] //= 2**32
        h = self.head[lane]
        self.head[lane] = h // freq * 2**precision + start + h % freq

    def pop_uniform(self, lane: int, size: int) -> int:
        """Section "Uniform values": pop from one lane."""
        if size > 2**31:
            high = self.pop_uniform(lane, (size + 1) // 2)
            return 2 * high + self.pop_uniform(lane, 1 if 2 * high + 1 == size else 2)
        h = self.head[lane]
        if h >= 2**31 // size * size * 2**32:
            self.tail.append(h % 2**32)
            h //= 2**32
        self.head[lane] = h // size
        self.refill(lane)
        return h % size

    def push_uniform(self, lane: int, value: int, size: int) -> None:
        """Section "Uniform values": push onto one lane; `size` is at most 2**31."""
        if self.head[lane] >= 2**31 // size * 2**32:
            self.tail.append(self.head[lane] % 2**32)
            self.head[lane] //= 2**32
        self.head[lane] = self.head[lane] * size + value
        self.refill(lane)

    def refill(self, lane: int) -> None:
        """The part of a pop that does."""
        if self.head[lane] < 2**31:
            demand(bool(self.tail), "a word is needed and none is left", "MessageExhausted")
            self.head[lane] = self.head[lane] * 2**32 + self.tail.pop()


class Array:
    """An array that is popped element by element: lanes take their words at the end of a row."""

    def __init__(self, message: Message) -> None:
        self.message, self.lane = message, 0

    def pop(self, model: EntropyModel) -> int:
        """The next element."""
        symbol = self.message.take(self.lane, model)
        self.lane += 1
        if self.lane == len(self.message.head):
            self.end()
        return symbol

    def end(self) -> None:
        """End the row."""
        for lane in reversed(range(self.lane)):
            self.message.refill(lane)
        self.lane = 0
