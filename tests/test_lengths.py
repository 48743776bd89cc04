"""Code lengths are right, and the same in whatever order they are summed."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext

import numpy as np
import pytest

from flowarchive.lengths import STEP_BITS, log2_sum, log_table

TOLERANCE = 1.2 / (1 << STEP_BITS)


def test_logarithms_of_powers_are_whole():
    assert [log2_sum(1 << n) for n in range(63)] == list(range(63))
    assert log2_sum([]) == 0


@pytest.mark.parametrize("bits", [2, 11, 24, 53, 63])
def test_logarithms_are_close(bits):
    """Of numbers at both ends of octaves, and between, against decimal arithmetic."""
    getcontext().prec = 40
    random = np.random.default_rng(bits)
    numbers = [*random.integers(1, 1 << bits, 200, dtype=np.uint64).tolist(), (1 << bits) - 1]
    for number in numbers:
        exact = float(Decimal(number).ln() / Decimal(2).ln())
        assert abs(log2_sum(number) - exact) <= TOLERANCE


@pytest.mark.parametrize("kind", [np.uint32, np.int64, np.uint64])
def test_sums_do_not_depend_on_their_order(kind):
    """Nor on how an array is cut: sums and differences are exact."""
    random = np.random.default_rng(1)
    numbers = random.integers(1, 1 << 31, 4096).astype(kind)
    whole = log2_sum(numbers)
    assert whole == log2_sum(numbers[::-1])
    assert whole == sum(log2_sum(part) for part in np.split(numbers, 64))
    assert whole == math.fsum(log2_sum(number) for number in numbers[::-1])
    assert (whole * (1 << STEP_BITS)).is_integer()


def test_the_table_ends_where_the_next_octave_begins():
    table = log_table()
    assert (table[0], table[-1]) == (0, 1 << STEP_BITS)
    assert (np.diff(table) > 0).all()
