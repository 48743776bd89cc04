"""The stack obeys its laws."""

from __future__ import annotations

import numpy as np
import pytest
from laws import HEAD_END, HEAD_MIN, WORD, PlainMessage, check_message, message_of, pop_rows

from flowarchive.ans import MAX_LANES, Message
from flowarchive.errors import CodingError, InvalidInterval, MessageExhausted


@pytest.mark.parametrize("lanes", [1, 2, 8])
def test_message_is_plain_integers(lanes):
    check_message(lanes)


@pytest.mark.parametrize("lanes", [1, 4, 64, 1024])
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1023, 1024, 1025, 5000])
def test_many_rows(lanes, count):
    rng = np.random.default_rng(count)
    precision = 20
    freq = np.exp2(rng.uniform(0, 20, count)).astype(np.int64)
    start = rng.integers(0, (1 << precision) - freq + 1)
    message = Message(lanes)
    message.push(start, freq, precision)
    plain = PlainMessage([HEAD_MIN] * lanes, [])
    plain.push(start.tolist(), freq.tolist(), precision)
    assert message.to_bytes() == plain.to_bytes()
    ideal = -np.log2(freq / (1 << precision)).sum()
    assert message.bits == pytest.approx(ideal, abs=1e-3 * count)
    pop_rows(message, start, freq, precision)
    assert message.is_drained


LARGE = [HEAD_MIN // 2, HEAD_MIN // 2 + 1, HEAD_MIN - 1, HEAD_MIN, HEAD_MIN + 1, WORD - 1, WORD]


@pytest.mark.parametrize("span", [*range(1, 300), 1000, 1 << 16, *LARGE])
def test_uniform_is_a_bijection(span):
    # Heads around every bound of the op, under a tail of random words.
    rng = np.random.default_rng(span)
    quotient = max(HEAD_MIN // span, 1)
    bounds = [HEAD_MIN, HEAD_END, quotient << 32, (quotient * span) << 32, HEAD_MIN * span]
    heads = {min(max(b + d, HEAD_MIN), HEAD_END - 1) for b in bounds for d in range(-40, 40)}
    heads |= {int(h) for h in rng.integers(HEAD_MIN, HEAD_END, 88, dtype=np.uint64)}
    heads = sorted(heads)
    lanes = 1 << (len(heads) - 1).bit_length()
    heads += [HEAD_MIN] * (lanes - len(heads))
    message = message_of(heads, rng.integers(0, WORD, 2 * lanes).tolist())
    before = message.to_bytes()
    values = message.pop_uniform(span, lanes)
    assert values.min() >= 0
    assert values.max() < span
    message.push_uniform(values, span)
    assert message.to_bytes() == before
    values = rng.integers(0, span, lanes)
    values[:4] = [0, span - 1, 0, span - 1]
    message.push_uniform(values, span)
    assert ((message.head >= HEAD_MIN) & (message.head < np.uint64(HEAD_END))).all()
    assert np.array_equal(message.pop_uniform(span, lanes), values)
    assert message.to_bytes() == before


@pytest.mark.parametrize(("least", "word"), [(4, 8), (5, 16), (7, 16), (8, 16), (8, 32)])
def test_uniform_in_small(least, word):
    # 63-bit heads can only be sampled. With small ones every head, word and value is tried, also
    # ranges above `least`, which take two steps.
    class Small(PlainMessage):
        pass

    Small.least, Small.word = least, word
    for span in range(1, 2 * least + 1):
        seen = set()
        for head in range(least, least * word):
            for value in range(span):
                message = Small([head], [])
                message.push_uniform([value], [span])
                assert least <= message.head[0] < least * word
                seen.add((message.head[0], *message.tail))
                assert message.pop_uniform([span]) == [value]
                assert (message.head, message.tail) == ([head], [])
        assert len(seen) == (least * word - least) * span


def test_uniform_costs_log2_of_the_range():
    rng = np.random.default_rng(0)
    ranges = np.exp2(rng.uniform(0, 32, 20000)).astype(np.int64)
    message = Message(4)
    message.push_uniform(rng.integers(0, ranges), ranges)
    assert message.bits == pytest.approx(np.log2(ranges).sum(), abs=0.02 * len(ranges))


def test_exhaustion_changes_nothing():
    message = message_of([HEAD_MIN, HEAD_END - 1, HEAD_MIN, HEAD_MIN], [7])
    before = message.to_bytes()
    with pytest.raises(MessageExhausted):
        message.pop([0, (1 << 16) - 1, 0, 0], [1, 1, 1, 1], 16)
    with pytest.raises(MessageExhausted):
        message.pop_uniform(1000, 100)
    assert message.to_bytes() == before
    with pytest.raises(MessageExhausted):
        Message(1).pop([0], [1], 1)
    with pytest.raises(MessageExhausted):
        Message(1).pop_uniform([2])


@pytest.mark.parametrize(
    ("start", "freq", "precision"),
    [
        ([0], [0], 8), ([-1], [2], 8), ([255], [2], 8), ([256], [1], 8), ([0], [257], 8),
        ([0, 0], [1, 0], 8), ([1 << 31], [1], 31), ([0], [(1 << 31) + 1], 31), ([2**64], [1], 8),
    ],
)  # fmt: skip
def test_push_refuses_what_is_no_interval(start, freq, precision):
    message = message_of([HEAD_END - 1], [1, 2])
    before = message.to_bytes()
    with pytest.raises((InvalidInterval, ValueError)):
        message.push(start, freq, precision)
    assert message.to_bytes() == before


def test_pop_refuses_an_interval_that_misses_the_slot():
    message = message_of([HEAD_MIN + 5], [])
    for start, freq in [(6, 1), (4, 1), (0, 5)]:
        with pytest.raises(InvalidInterval):
            message.pop([start], [freq], 8)
    message.pop([0], [256], 8)


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.push([0], [1], 0),
        lambda m: m.push([0], [1], 32),
        lambda m: m.push([0], [1, 1], 8),
        lambda m: m.push([[0]], [[1]], 8),
        lambda m: m.push([0.0], [1.0], 8),
        lambda m: m.peek(5, 8),
        lambda m: m.peek(-1, 8),
        lambda m: m.pop([0] * 5, [1] * 5, 8),
        lambda m: m.push_uniform([0], [0]),
        lambda m: m.push_uniform([0], [WORD + 1]),
        lambda m: m.push_uniform([0, 0], [1]),
        lambda m: m.push_uniform([0.5], [1]),
        lambda m: m.pop_uniform([0]),
        lambda m: m.pop_uniform([3.0]),
        lambda m: Message(0),
        lambda m: Message(3),
        lambda m: Message(2 * MAX_LANES),
    ],
)
def test_wrong_arguments(call):
    with pytest.raises(ValueError):  # noqa: PT011
        call(Message(4))


def test_values_outside_their_range():
    for values in ([3], [-1], [WORD]):
        with pytest.raises(InvalidInterval):
            Message(1).push_uniform(values, 3)


def test_bytes():
    message = message_of([HEAD_MIN, HEAD_END - 1], [1, 0xFFFFFFFF])
    assert message.to_bytes().hex() == "0000008000000000ffffffffffffff7f01000000ffffffff"
    assert Message.from_bytes(message.to_bytes(), 2).to_bytes() == message.to_bytes()
    assert not message.is_drained
    assert message.bits == pytest.approx(64 + 32)
    assert Message(1).is_drained
    assert Message(1).bits == 0


@pytest.mark.parametrize("size", [*range(16), 17, 18, 19, 21])
def test_from_bytes_refuses_lengths(size):
    data = (message_of([HEAD_MIN] * 2, [0] * 2).to_bytes())[:size]
    with pytest.raises(CodingError):
        Message.from_bytes(data, 2)


@pytest.mark.parametrize("head", [0, HEAD_MIN - 1, HEAD_END, (1 << 64) - 1])
def test_from_bytes_refuses_heads(head):
    data = HEAD_MIN.to_bytes(8, "little") + head.to_bytes(8, "little")
    with pytest.raises(CodingError):
        Message.from_bytes(data, 2)


def test_copy_shares_nothing():
    message = message_of([HEAD_MIN + 9], [5])
    twin = message.copy()
    message.push([3] * 100, [1] * 100, 16)
    assert twin.to_bytes() == message_of([HEAD_MIN + 9], [5]).to_bytes()


@pytest.mark.parametrize("words", [0, 3, 40, 100, 1000])
def test_a_copy_of_the_top_may_be_taken_over(words):
    rng = np.random.default_rng(words)
    message = Message(4)
    message.push_uniform(rng.integers(0, 1 << 32, 200), 1 << 32)
    whole, top = message.copy(), message.copy(words)
    assert top.size == min(words, message.size)
    ranges = rng.integers(1, 1 << 32, 30)
    for values in (rng.integers(0, ranges), rng.integers(0, 1 << 32, 300)):
        for one in (whole, top):
            if words > 30:
                one.pop_uniform(ranges)
            one.push_uniform(values, 1 << 32)
    message.take_over(top, words)
    assert message.to_bytes() == whole.to_bytes()
    message.push([3], [1], 16)
    assert top.to_bytes() != message.to_bytes()


def test_golden_bytes():
    # 40 intervals of a linear congruential generator; the words as they stand since version 1.
    state, start, freq = 1, [], []
    for _ in range(40):
        state = state * 1103515245 + 12345 & HEAD_MIN - 1
        freq.append(1 + (state >> 8) % 500)
        start.append((state >> 16) % (4096 - 500))
    message = Message(4)
    message.push(start, freq, 12)
    message.push_uniform([5, 123456789, 2**32 - 2, 0, 2], [7, 10**9, 2**32 - 1, 1, 3])
    assert len(message.to_bytes()) == 32 + 4 * message.size
    assert message.to_bytes().hex() == (
        "ec0b3ca7d36924001561545018ff2100ffffff7f47020000566dcb1415010000"
        "661554f9bdad6b7dde0d2df04add3adeaa3892e886cb7fc2"
    )
