"""What is known of samples: their features and classes, worked out in vectors of neighbors."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from flowarchive.lattice import BORDER, NEIGHBORS, PHASES, Int32
from flowarchive.loops import compiled
from flowarchive.vectors import INT16, INT32, INT64, Value, lanes

Int16 = NDArray[np.int16]
Int64 = NDArray[np.int64]

LUMA_TAPS = 38
CHROMA_TAPS = 45

MAX_SHIFT = 8

FEATURE_LIMIT = (1 << 10) - 1
"""The largest magnitude of a feature. CHROMA_TAPS * FEATURE_LIMIT * WEIGHT_LIMIT < 2**31."""

PITCH = 48
"""From the features of a sample to those of the next. Behind the taps stands that of the target."""

# Sum of the four nearest samples' distances to S, in quarters: 2, 5 and 10 steps each.
_SPREAD_EDGES = (32, 80, 160)
# Spreads from which a sample counts half, a quarter ...: 1 / (1 + e**2 / 4), e in steps.
_WEIGHT_EDGES = (21, 44, 70, 103, 149, 213, 303)
MOST_HALVINGS = tuple(1 + 2 * wide for wide in range(4))
"""The most halvings in each spread class; within it weights are 1, 2 or 4 times what they leave."""
# Distance of the reference's sample to the mean of its four, in quarters: 4 steps.
_CHANGE_EDGE = 16
_SPATIAL = np.array([phase.near + phase.far for phase in PHASES], dtype=np.int64)
PARITY = np.array([(phase.row, phase.column) for phase in PHASES], dtype=np.int64)
_PATCH = np.array(
    [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)] + [(0, -2), (0, 2), (-2, 0), (2, 0)],
    dtype=np.int64,
)
_PLUS = np.array([(0, 0), (0, -1), (0, 1), (-1, 0), (1, 0)], dtype=np.int64)

# Places in a table of distances: near and far samples, a patch, a plus.
_NEAR, _AT_PATCH, _AT_PLUS = 0, 12, 25
_DISTANCES = 30

_SAMPLES, _FEATURES = lanes(INT32, NEIGHBORS), lanes(INT16, NEIGHBORS)


@compiled
def distances(width: int, phase: int) -> Int64:
    """Return how far from a sample of a phase, in bytes, those lie that predict it."""
    out = np.empty(_DISTANCES, dtype=np.int64)
    for k in range(len(_SPATIAL[0])):
        out[k] = 4 * (_SPATIAL[phase, k, 0] * width + _SPATIAL[phase, k, 1])
    for k in range(len(_PATCH)):
        out[_AT_PATCH + k] = 4 * (_PATCH[k, 0] * width + _PATCH[k, 1])
    for k in range(len(_PLUS)):
        out[_AT_PLUS + k] = 4 * (_PLUS[k, 0] * width + _PLUS[k, 1])
    return out


@compiled
def find_row(
    samples: Int16,
    amounts: Int16,
    classes: Int32,
    base: Int32,
    plane: Int32,
    ref1: Int32,
    ref2: Int32,
    luma: Int32,
    luma1: Int32,
    luma2: Int32,
    table: Int64,
    columns: int,
    width: int,
    taps: int,
    phase: int,
    shift: int,
    y: int,
) -> None:
    """Find what a row of a phase is predicted from.

    Args:
        samples: int16 [columns * PITCH], or of NEIGHBORS samples if that is more, features.
        amounts: int16 [columns], alike, what the samples count.
        classes: int32 [columns], alike.
        base: int32 [columns], alike, S.
        plane: From `lattice.with_room`, and so the rest.
        ref1: See `plane`.
        ref2: See `plane`.
        luma: See `plane`.
        luma1: See `plane`.
        luma2: See `plane`.
        table: From `distances`.
        columns: Samples of the row.
        width: Samples of a bordered row of the plane.
        taps: LUMA_TAPS or CHROMA_TAPS.
        phase: Index of the phase.
        shift: Low bits to round away.
        y: Row of the phase.
    """
    half = (1 << shift) >> 1
    row = (BORDER + 2 * y + PARITY[phase, 0]) * width + BORDER + PARITY[phase, 1]
    for first in range(0, columns, NEIGHBORS):
        # The last tile overlaps the one before, so that it ends where the row does.
        x = max(min(first, columns - NEIGHBORS), 0)
        at = 4 * (row + 2 * x)
        tile = (
            plane.ctypes.data + at,
            ref1.ctypes.data + at,
            ref2.ctypes.data + at,
            luma.ctypes.data + at,
            luma1.ctypes.data + at,
            luma2.ctypes.data + at,
            table.ctypes.data,
            shift,
            half,
            samples.ctypes.data + 2 * x * PITCH,
            amounts.ctypes.data + 2 * x,
            classes.ctypes.data + 4 * x,
            base.ctypes.data + 4 * x,
        )
        if taps == LUMA_TAPS:
            _luma_tile(*tile)
        else:
            _chroma_tile(*tile)


class _Tile:
    """Writes the code that finds NEIGHBORS samples' features."""

    def __init__(self, planes: list[Value], table: Value, shift: Value, half: Value) -> None:
        self.plane, self.first, self.second, self.luma, self.luma1, self.luma2 = planes
        self._table = table
        self._shift, self._half = (v.to(INT32).spread(NEIGHBORS) for v in (shift, half))

    def load(self, address: Value) -> Value:
        """Every second sample from an address on."""
        # The second load begins one sample earlier, so that nothing behind the last is read.
        first = address.load(_SAMPLES)
        second = (address + 4 * (NEIGHBORS - 1)).load(_SAMPLES)
        evens = [*range(0, NEIGHBORS, 2), *range(NEIGHBORS + 1, 2 * NEIGHBORS, 2)]
        return first.picked(evens, second)

    def around(self, plane: Value, first: int, count: int) -> list[Value]:
        """What lies at some distances of the table."""
        places = (self._table + 8 * (first + k) for k in range(count))
        return [self.load(plane + place.load(INT64)) for place in places]

    def near(self, plane: Value) -> Value:
        """The rounded mean of the four nearest samples."""
        a, b, c, d = self.around(plane, _NEAR, 4)
        return (a + b + 2 + (c + d)) >> 2

    def feature(self, value: Value, other: Value) -> Value:
        """A difference, rounded and clamped."""
        difference = (value - other + self._half) >> self._shift
        return difference.clamped(-FEATURE_LIMIT, FEATURE_LIMIT)

    def features(self, taps: int, base: Value) -> list[Value]:
        """The features tap by tap, and that of the target."""
        values = self.around(self.plane, _NEAR, len(_SPATIAL[0]))
        for reference in (self.first, self.second):
            values += self.around(reference, _AT_PATCH, len(_PATCH))
        pairs = [(value, base) for value in values]
        if taps > LUMA_TAPS:
            plus = (self.around(luma, _AT_PLUS, len(_PLUS)) for luma in (self.luma, self.luma1))
            pairs += zip(*plus, strict=True)
            luma = self.load(self.luma)
            pairs += [(luma, self.load(self.luma2)), (luma, self.near(self.luma))]
        return [self.feature(*pair) for pair in [*pairs, (self.load(self.plane), base)]]

    def classes(self, features: list[Value]) -> tuple[Value, Value]:
        """The classes of samples, and what they count."""
        a, b, c, d = features[:4]
        spread = a.magnitude() + b.magnitude() + (c.magnitude() + d.magnitude())
        change = self.feature(self.load(self.first), self.near(self.first)).magnitude()
        wide, halvings = spread.constant(0), spread.constant(0)
        for edge in _SPREAD_EDGES:
            wide += spread.reaches(edge)
        for edge in _WEIGHT_EDGES:
            halvings += spread.reaches(edge)
        outer, inner = (a - d).magnitude(), (b - c).magnitude()
        kinds = (wide << 2) + (change.reaches(_CHANGE_EDGE) << 1) + outer.reaches(inner + 1)
        # The most halvings of a class, less those of the sample.
        return kinds, spread.constant(1) << ((wide << 1) + 1 - halvings)


def _transposed(rows: list[Value]) -> list[Value]:
    """Transpose 16 vectors of 16 lanes."""
    low, high = ([*range(n, n + 4), *range(n + 8, n + 12)] for n in (0, 4))
    for _ in range(3):  # within the halves of vectors, as processors do it best
        woven = []
        for a, b in zip(rows[0:4] + rows[8:12], rows[4:8] + rows[12:16], strict=True):
            for part in (low, high):
                woven.append(a.picked([lane for n in part for lane in (n, 16 + n)], b))
        rows = woven
    first, second = list(range(8)), list(range(8, 16))
    return [
        a.picked(part + [16 + n for n in part], b)
        for part in (first, second)
        for a, b in zip(rows[:8], rows[8:], strict=True)
    ]


def _tile_of(taps: int) -> Any:
    """Make what finds NEIGHBORS samples' features and classes."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = [Value(builder, value) for value in args]
        table, shift, half, samples, amounts, classes, base = values[6:]
        tile = _Tile(values[:6], table, shift, half)
        mean = tile.near(tile.plane)
        features = tile.features(taps, mean)
        kinds, weights = tile.classes(features)
        base.store(mean)
        classes.store(kinds)
        amounts.store(weights.to(_FEATURES))
        none = Value(builder, ir.Constant(_SAMPLES, [0] * NEIGHBORS))
        features += [none] * (PITCH - len(features))
        for first in range(0, PITCH, NEIGHBORS):
            rows = [value.to(_FEATURES) for value in features[first : first + NEIGHBORS]]
            for n, row in enumerate(_transposed(rows)):
                (samples + 2 * (n * PITCH + first)).store(row)
        return context.get_dummy_value()

    def tile(
        typing: Any, plane: Any, ref1: Any, ref2: Any, luma: Any, luma1: Any, luma2: Any,
        table: Any, shift: Any, half: Any, samples: Any, amounts: Any, classes: Any, base: Any,
    ) -> Any:  # fmt: skip
        return types.void(*[types.intp] * 13), write

    return intrinsic(tile)


_luma_tile, _chroma_tile = _tile_of(LUMA_TAPS), _tile_of(CHROMA_TAPS)
