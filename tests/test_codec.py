"""The two ends of a walk: what one has recorded the other reads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowarchive import motion
from flowarchive.account import Account
from flowarchive.ans import Message
from flowarchive.codec import Coder, Reader, Recorder
from flowarchive.entropy import LogisticMixture, Table, Uniform
from flowarchive.errors import InvalidInterval, MessageExhausted

SHAPE = (40, 56)
TABLE, BINARY = Table([3, 1, 4]), Table([1, 1])
MIXTURE = LogisticMixture(-128, 127, 24)


def walk(coder: Coder, steps: list[str], seed: int, known: bool) -> list[list[int]]:
    """Code some steps; without `known` there are only zeros to look at."""
    random = np.random.default_rng(seed)
    vectors, hints = motion.VectorModel(), motion.zero_field(SHAPE)
    pictures = [motion.Picture(p, 8) for p in random.integers(-128, 128, (2, *SHAPE), np.int32)]
    out = []
    for step in steps:
        count = int(random.integers(0, 50))
        if step == "field":
            field = motion.search(*pictures, hints)
            hints = coder.field(field if known else None, SHAPE, hints, vectors)
            out.append([int(v) for part in hints for v in np.ravel(part)])
            continue
        model, most, parameters = TABLE, 3, ()
        if step == "binary":
            model, most = BINARY, 2
        if step == "mixture":
            mean = random.integers(-5000, 5000, (count, 2)).astype(np.int32)
            scale = random.integers(0, 192, (count, 2)).astype(np.int32)
            weight = np.full((count, 2), 2048, np.int32)
            model, most, parameters = MIXTURE, 127, (mean, scale, weight)
        symbols = random.integers(0, most, count).astype(np.int32)
        given = symbols if known else np.zeros_like(symbols)
        out.append(coder.code(model, given, *parameters).tolist())
        assert not known or out[-1] == symbols.tolist()
    return out


@given(
    st.lists(st.sampled_from(["table", "binary", "mixture", "field"]), max_size=6),
    st.integers(0, 99),
    st.sampled_from([1, 2, 16]),
)
def test_a_reader_reads_what_a_recorder_has_pushed(steps, seed, lanes):
    recorder, message = Recorder(), Message(lanes)
    message.push_uniform(np.arange(20), 1 << 20)  # what lies under it stays
    before, held = message.to_bytes(), message.bits
    written = walk(recorder, steps, seed, known=True)
    assert message.to_bytes() == before
    account = Account(1, held)
    recorder.push(message, account)
    slack = 1e-3 * account.ideal_bits + 32 * lanes
    assert abs(message.bits - held - account.ideal_bits) <= slack
    assert walk(Reader(message), steps, seed, known=False) == written
    assert message.to_bytes() == before


def test_a_recorder_forgets_what_it_has_pushed():
    recorder, message = Recorder(), Message(1)
    recorder.code(TABLE, np.array([0, 2], np.int32))
    recorder.push(message, Account(1))
    before = message.to_bytes()
    recorder.push(message, Account(1))
    assert message.to_bytes() == before


def test_a_symbol_without_mass_and_an_empty_message_are_errors():
    with pytest.raises(InvalidInterval):
        Recorder().code(TABLE, np.array([3], np.int32))
    with pytest.raises(MessageExhausted):
        Reader(Message(1)).code(TABLE, np.zeros(9, np.int32))
    with pytest.raises(MessageExhausted):
        Reader(Message(1)).code(Uniform(1 << 32), np.zeros(9, np.int32))
