"""The laws: what every implementation of an idea must satisfy, called from the test files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from flowarchive.ans import Message
from flowarchive.errors import InvalidInterval, MessageExhausted
from flowarchive.lengths import STEP_BITS

HEAD_MIN = 1 << 31
HEAD_END = 1 << 63
WORD = 1 << 32


class PlainMessage:
    """The stack of docs/format.md, "Message", in Python integers: slow, and plainly right."""

    least = HEAD_MIN
    word = WORD

    def __init__(self, head: list[int], tail: list[int]) -> None:
        self.head = list(head)
        self.tail = list(tail)

    def to_bytes(self) -> bytes:
        heads = b"".join(h.to_bytes(8, "little") for h in self.head)
        return heads + b"".join(w.to_bytes(4, "little") for w in self.tail)

    def _rows(self, count: int) -> list[range]:
        lanes = len(self.head)
        return [range(i, min(i + lanes, count)) for i in range(0, count, lanes)]

    def push(self, start: list[int], freq: list[int], precision: int) -> None:
        for row in reversed(self._rows(len(start))):
            for lane, i in enumerate(row):
                if self.head[lane] >= freq[i] * (self.least * self.word >> precision):
                    self._spill(lane)
                quotient, rest = divmod(self.head[lane], freq[i])
                self.head[lane] = quotient * 2**precision + start[i] + rest

    def pop(self, start: list[int], freq: list[int], precision: int) -> None:
        for lane in reversed(range(len(start))):
            quotient, slot = divmod(self.head[lane], 2**precision)
            self.head[lane] = freq[lane] * quotient + slot - start[lane]
            self._refill(lane)

    def push_uniform(self, values: list[int], ranges: list[int]) -> None:
        for row in reversed(self._rows(len(values))):
            for lane, i in enumerate(row):
                value, span = values[i], ranges[i]
                if span > self.least:
                    self._push_value(lane, value % 2, min(2, span - value // 2 * 2))
                    value, span = value // 2, (span + 1) // 2
                self._push_value(lane, value, span)

    def pop_uniform(self, ranges: list[int]) -> list[int]:
        values = [0] * len(ranges)
        for row in self._rows(len(ranges)):
            for lane, i in reversed(list(enumerate(row))):
                span = ranges[i]
                if span > self.least:
                    high = self._pop_value(lane, (span + 1) // 2)
                    values[i] = 2 * high + self._pop_value(lane, min(2, span - 2 * high))
                else:
                    values[i] = self._pop_value(lane, span)
        return values

    def _push_value(self, lane: int, value: int, span: int) -> None:
        if self.head[lane] >= self.least // span * self.word:
            self._spill(lane)
        self.head[lane] = self.head[lane] * span + value
        self._refill(lane)

    def _pop_value(self, lane: int, span: int) -> int:
        if self.head[lane] >= self.least // span * span * self.word:
            self._spill(lane)
        self.head[lane], value = divmod(self.head[lane], span)
        self._refill(lane)
        return value

    def _spill(self, lane: int) -> None:
        self.tail.append(self.head[lane] % self.word)
        self.head[lane] //= self.word

    def _refill(self, lane: int) -> None:
        if self.head[lane] < self.least:
            self.head[lane] = self.head[lane] * self.word + self.tail.pop()


def message_of(head: list[int], tail: list[int]) -> Message:
    """A message with given heads and words."""
    return Message.from_bytes(PlainMessage(head, tail).to_bytes(), len(head))


def pop_rows(message: Message, start: np.ndarray, freq: np.ndarray, precision: int) -> None:
    """Pop many rows by `peek` and `pop`, checking that every slot is in its interval."""
    for row in range(0, len(start), message.lanes):
        s, f = start[row : row + message.lanes], freq[row : row + message.lanes]
        slots = message.peek(len(s), precision)
        assert ((s <= slots) & (slots < s + f)).all()
        message.pop(s, f, precision)


@st.composite
def _intervals(draw: Any, most: int) -> tuple[list[int], list[int], int]:
    precision = draw(st.integers(1, 31))
    total = 1 << precision
    starts, freqs = [], []
    for _ in range(draw(st.integers(0, most))):
        freq = draw(st.one_of(st.sampled_from([1, total]), st.integers(1, total)))
        starts.append(draw(st.integers(0, total - freq)))
        freqs.append(freq)
    return starts, freqs, precision


_HEADS = st.one_of(
    st.sampled_from([HEAD_MIN, HEAD_END - 1]),
    st.integers(HEAD_MIN, HEAD_END - 1),
    st.integers(31, 62).map(lambda n: 1 << n),
)
_RANGES = st.one_of(
    st.integers(1, 20),
    st.integers(1, WORD),
    st.sampled_from([HEAD_MIN - 1, HEAD_MIN, HEAD_MIN + 1, WORD - 1, WORD]),
)


def check_message(lanes: int, examples: int = 25) -> None:
    """Message equals Python integers bit for bit under any mix of operations, and both laws hold.

    Heads are forced to both ends of their range and to both sides of spill bounds; pops that find
    the tail too short must raise MessageExhausted and change nothing.
    """

    class Machine(RuleBasedStateMachine):
        @initialize(
            head=st.lists(_HEADS, min_size=lanes, max_size=lanes),
            tail=st.lists(st.integers(0, WORD - 1), max_size=4),
        )
        def begin(self, head: list[int], tail: list[int]) -> None:
            self.plain = PlainMessage(head, tail)
            self.message = message_of(head, tail)

        @rule(lane=st.integers(0, lanes - 1), head=_HEADS)
        def force(self, lane: int, head: int) -> None:
            self.plain.head[lane] = head
            self.message.head[lane] = head

        @rule(intervals=_intervals(3 * lanes), bounds=st.data())
        def push(self, intervals: tuple[list[int], list[int], int], bounds: st.DataObject) -> None:
            start, freq, precision = intervals
            # The first element pushed of each lane meets its spill bound from either side.
            for lane in range(lanes):
                own = freq[lane::lanes]
                offset = bounds.draw(st.sampled_from([None, -1, 0]))
                if own and offset is not None:
                    bound = own[-1] << (63 - precision)
                    self.force(lane, min(max(bound + offset, HEAD_MIN), HEAD_END - 1))
            before = self.message.to_bytes()
            self.message.push(start, freq, precision)
            self.plain.push(start, freq, precision)
            back = self.message.copy()
            pop_rows(back, np.array(start, int), np.array(freq, int), precision)
            assert back.to_bytes() == before

        @rule(width=st.integers(0, lanes), precision=st.integers(1, 31), data=st.data())
        def pop(self, width: int, precision: int, data: st.DataObject) -> None:
            start, freq = [], []
            for head in self.plain.head[:width]:
                slot = head % 2**precision
                start.append(data.draw(st.integers(0, slot)))
                freq.append(data.draw(st.integers(slot - start[-1] + 1, 2**precision - start[-1])))
            before = self.message.to_bytes()
            assert self.message.peek(width, precision).tolist() == [
                head % 2**precision for head in self.plain.head[:width]
            ]
            try:
                self.plain.pop(start, freq, precision)
            except IndexError:
                self._exhausted(before, lambda: self.message.pop(start, freq, precision))
                return
            self.message.pop(start, freq, precision)
            back = self.message.copy()
            back.push(start, freq, precision)
            assert back.to_bytes() == before

        @rule(ranges=st.lists(_RANGES, max_size=3 * lanes), data=st.data())
        def push_uniform(self, ranges: list[int], data: st.DataObject) -> None:
            values = [
                data.draw(st.one_of(st.sampled_from([0, r - 1]), st.integers(0, r - 1)))
                for r in ranges
            ]
            before = self.message.to_bytes()
            self.message.push_uniform(values, ranges)
            self.plain.push_uniform(values, ranges)
            back = self.message.copy()
            assert back.pop_uniform(ranges).tolist() == values
            assert back.to_bytes() == before

        @rule(ranges=st.lists(_RANGES, max_size=3 * lanes))
        def pop_uniform(self, ranges: list[int]) -> None:
            before = self.message.to_bytes()
            try:
                values = self.plain.pop_uniform(ranges)
            except IndexError:
                self._exhausted(before, lambda: self.message.pop_uniform(ranges))
                return
            assert self.message.pop_uniform(ranges).tolist() == values
            back = self.message.copy()
            back.push_uniform(values, ranges)
            assert back.to_bytes() == before

        def _exhausted(self, before: bytes, pop: Any) -> None:
            with pytest.raises(MessageExhausted):
                pop()
            assert self.message.to_bytes() == before
            self.plain = PlainMessage(
                [int(h) for h in self.message.head],
                [int(w) for w in self.message.tail[: self.message.size]],
            )

        @invariant()
        def same_bytes(self) -> None:
            assert self.message.to_bytes() == self.plain.to_bytes()
            assert all(HEAD_MIN <= h < HEAD_END for h in self.plain.head)

    run_state_machine_as_test(
        Machine, settings=settings(settings.default, max_examples=examples, stateful_step_count=20)
    )


def check_entropy_model(
    model: Any, low: int, high: int, *row: list[int], slots: np.ndarray | None = None
) -> None:
    """The intervals of the support [low, high] tile [0, total), and pop inverts them.

    Args:
        model: An entropy model, all of whose symbols in [low, high] have mass.
        low: The least symbol.
        high: The greatest symbol.
        *row: The model's parameters for one symbol: lists of K integers.
        slots: Slots to look up; all of them where None.
    """
    support = np.arange(low, high + 1)
    start, freq = (a.astype(np.int64) for a in model.interval(support, *_repeat(row, len(support))))
    assert freq.min() >= 1
    assert start[0] == 0
    assert np.array_equal(start[1:], (start + freq)[:-1])
    assert start[-1] + freq[-1] == model.total
    for outside in (low - 1, high + 1):
        with pytest.raises(InvalidInterval):
            model.interval(np.array([outside]), *_repeat(row, 1))

    slots = np.arange(model.total) if slots is None else slots
    expected = support[np.searchsorted(start, slots, side="right") - 1]
    # Heads in the middle of their range, whose remainder is the slot.
    heads = (1 << 61) // model.total * model.total + slots
    for first in range(0, len(slots), 1024):
        head, symbols = heads[first : first + 1024], expected[first : first + 1024]
        message = Message(1024)
        message.head[: len(head)] = head
        message.reserve(1024)
        message.tail[:1024] = 0xDEADBEEF
        message.size = 1024
        before = message.to_bytes()
        parameters = _repeat(row, len(head))
        found = model.pop(message, *(parameters or [len(head)]))
        assert np.array_equal(found, symbols)
        model.push(message, found, *parameters)
        assert message.to_bytes() == before


def _repeat(row: tuple[list[int], ...], count: int) -> list[np.ndarray]:
    return [np.repeat(np.array([values]), count, axis=0) for values in row]


def check_rate(
    model: Any, lanes: int, symbols: np.ndarray, *parameters: np.ndarray, epsilon: float
) -> None:
    """The coded length is the ideal one, up to `epsilon` bits a symbol and the heads."""
    ideal = model.bits(symbols, *parameters)
    _, freq = model.interval(symbols, *parameters)
    # Lengths are whole steps of 2**-20 bits.
    exact = -np.log2(freq / model.total).sum()
    assert ideal == pytest.approx(exact, abs=2 * freq.size / (1 << STEP_BITS))
    message = Message(lanes)
    model.push(message, symbols, *parameters)
    assert abs(message.bits - ideal) <= epsilon * len(symbols)
    assert 8 * len(message.to_bytes()) <= ideal + epsilon * len(symbols) + 64 * lanes
    found = model.pop(message, *(parameters or [len(symbols)]))
    assert np.array_equal(found, symbols)
    assert message.is_drained
