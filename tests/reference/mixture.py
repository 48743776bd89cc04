"""Sections "Logistic mixture" and "Table"."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Decimal, localcontext


def _checked(table: list[int], sha256: str) -> list[int]:
    assert hashlib.sha256(struct.pack(f"<{len(table)}i", *table)).hexdigest() == sha256
    return table


def _nearest(value: Decimal) -> int:
    return int(value.to_integral_value(ROUND_HALF_EVEN))


with localcontext() as _context:
    _context.prec = 60
    RECIPROCALS = _checked(
        [_nearest(Decimal(2) ** (24 - Decimal(j) / 8)) for j in range(8)],
        "82e112bc691aecb0be3b9dad463dcb3a7772a586386dcb2867cbccaa5611cae4",
    )
    SIGMOID = _checked(
        [_nearest(2**24 / (1 + (18 - Decimal(i) / 64).exp())) for i in range(2305)],
        "0fe12f1352bcf891e232154126ad4f14001aa5963d9dfcc7746a2db42bb70171",
    )


class LogisticMixture:
    """The slots of the integers `low`..`high` under one symbol's parameters."""

    def __init__(
        self,
        low: int,
        high: int,
        precision: int,
        mean: Sequence[int],
        scale: Sequence[int],
        weight: Sequence[int] = (4096,),
    ) -> None:
        assert all(0 <= s <= 191 for s in scale)
        assert sum(weight) == 4096
        self.low, self.high, self.precision = low, high, precision
        self.components = list(zip(mean, scale, weight, strict=True))

    def edge(self, z: int) -> int:
        """C(z)."""
        if z == self.low:
            return 0
        if z == self.high + 1:
            return 2**self.precision
        total = sum(weight * sig(z, mean, scale) for mean, scale, weight in self.components)
        spare = 2**self.precision - (self.high - self.low + 1)
        return ((total >> 6) * spare >> 30) + z - self.low

    def find(self, slot: int) -> tuple[int, int, int]:
        """The z with C(z) <= slot < C(z + 1), its start and its freq."""
        z, above = self.low, self.high + 1
        while above - z > 1:
            middle = (z + above) // 2
            if self.edge(middle) <= slot:
                z = middle
            else:
                above = middle
        return z, self.edge(z), self.edge(z + 1) - self.edge(z)


def sig(z: int, mean: int, scale: int) -> int:
    """The part of one component that lies under z - 1/2, times 2**24."""
    distance = (2 * z - 1) * 128 - mean
    return interpolated(distance * RECIPROCALS[scale % 8] >> (7 + scale // 8))


def interpolated(argument: int) -> int:
    """The sigmoid of a number in 2**-20, times 2**24."""
    argument = min(max(argument, -18 * 2**20), 18 * 2**20 - 1) + 18 * 2**20
    step, fraction = argument >> 14, argument % 2**14
    return SIGMOID[step] + ((SIGMOID[step + 1] - SIGMOID[step]) * fraction >> 14)


class Table:
    """Section "Table": frozen frequencies whose sum is a power of two."""

    def __init__(self, freqs: Sequence[int]) -> None:
        self.freqs = freqs
        self.precision = sum(freqs).bit_length() - 1

    def find(self, slot: int) -> tuple[int, int, int]:
        """The symbol that owns a slot, its start and its freq."""
        start = 0
        for symbol, freq in enumerate(self.freqs):
            if slot < start + freq:
                return symbol, start, freq
            start += freq
        raise AssertionError
