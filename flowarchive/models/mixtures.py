"""The mixtures of a phase: what a network says of every sample, ready for the entropy model."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from flowarchive.adaptive.correction import BUCKET_BITS
from flowarchive.entropy import SCALE_COUNT, SCALES_PER_OCTAVE, WEIGHT_BITS
from flowarchive.features import INTER_ANCHORS, INTRA_ANCHORS
from flowarchive.int8 import Int16
from flowarchive.lattice import NEIGHBORS
from flowarchive.loops import compiled
from flowarchive.vectors import FLOAT64, INT32, INT64, Value, interleaved, lanes

Int32 = NDArray[np.int32]

SCALE_MAX = SCALE_COUNT - 1
WEIGHT_STEPS = 16  # steps in an octave of a weight's logarithm


class Mixtures(NamedTuple):
    """Mixtures of K components, int32 [N, rows, columns, K] each, as `LogisticMixture` takes them.

    Attributes:
        mean: In 1/256 of a sample step.
        scale: As predicted.
        corrected: The scales that samples are coded with.
        weight: Their sum is 2**WEIGHT_BITS.
    """

    mean: Int32
    scale: Int32
    corrected: Int32
    weight: Int32

    @classmethod
    def of_shape(cls, *shape: int) -> Mixtures:
        """Make room for [N, rows, columns, K]."""
        return cls(*(np.empty(shape, dtype=np.int32) for _ in cls._fields))

    def cut(self, planes: slice, rows: slice) -> Mixtures:
        """Return a part; nothing is copied."""
        return Mixtures(*(array[planes, rows] for array in self))

    def fill(self, head: Int16, anchors: Int32, offsets: Int32, shift: int) -> None:
        """Turn a head's integers and anchors into mixtures.

        Args:
            head: int16 [N, gh + 2, gw + 2, C], inside an unused border: logarithms of weights,
                offsets of means, offsets of scales; C is even and 3K or more. What there are no
                mixtures for is left out.
            anchors: int32 [N, gh, gw, K], K one of INTRA_ANCHORS and INTER_ANCHORS.
            offsets: Corrections of the scales; see `ScaleCorrection`.
            shift: Low bits the network has not seen.
        """
        _fill(head, anchors, offsets, shift, weight_table(), *self)


@cache
def weight_table() -> Int32:
    """Return floor(2**(15 - i / 16)) for i in 0..15, int32, read-only."""
    # The integer 16th root of 2**(240 - i), by halving.
    table = []
    for i in range(WEIGHT_STEPS):
        low, high = 0, 1 << 16
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if middle**16 <= 1 << (240 - i) else (low, middle)
        table.append(low)
    frozen = np.array(table, dtype=np.int32)
    frozen.setflags(write=False)
    return frozen


@compiled
def _fill(
    head: Int16,
    anchors: Int32,
    offsets: Int32,
    shift: int,
    table: Int32,
    mean: Int32,
    scale: Int32,
    corrected: Int32,
    weight: Int32,
) -> None:
    count, rows, columns, components = mean.shape
    head_step, step = 2 * head.shape[3], 4 * components
    # Their addresses are used below; this refuses arrays that are not contiguous.
    said, near, added = head.reshape(-1), anchors.reshape(-1), offsets.reshape(-1)
    means, predicted = mean.reshape(-1), scale.reshape(-1)
    used, weights = corrected.reshape(-1), weight.reshape(-1)
    narrow = columns < NEIGHBORS
    room = np.empty((4, NEIGHBORS * components), dtype=np.int32)
    for n in range(count):
        for i in range(rows):
            logs = ((n * head.shape[1] + i + 1) * head.shape[2] + 1) * head_step
            anchor = (n * anchors.shape[1] + i) * anchors.shape[2] * step
            row = (n * rows + i) * columns * step
            for first in range(0, columns, NEIGHBORS):
                # The last tile overlaps the one before, so that it ends where the row does.
                x = max(min(first, columns - NEIGHBORS), 0)
                at = row + x * step
                tile = (
                    said.ctypes.data + logs + x * head_step,
                    head_step,
                    near.ctypes.data + anchor + x * step,
                    min(columns, NEIGHBORS) - 1,
                    added.ctypes.data,
                    shift,
                    table.ctypes.data,
                    room[0].ctypes.data if narrow else means.ctypes.data + at,
                    room[1].ctypes.data if narrow else predicted.ctypes.data + at,
                    room[2].ctypes.data if narrow else used.ctypes.data + at,
                    room[3].ctypes.data if narrow else weights.ctypes.data + at,
                )
                if components == INTER_ANCHORS:
                    _inter_tile(*tile)
                else:
                    _intra_tile(*tile)
            if narrow:
                begin, size = (n * rows + i) * columns * components, columns * components
                means[begin : begin + size] = room[0, :size]
                predicted[begin : begin + size] = room[1, :size]
                used[begin : begin + size] = room[2, :size]
                weights[begin : begin + size] = room[3, :size]


class _Tile:
    """Writes the code that makes the mixtures of NEIGHBORS neighbors.

    Args:
        components: K.
        values: Addresses of a head and of anchors, with the distance in bytes from position to
            position after the former and how many positions follow the first after the latter;
            of offsets, with the shift; of the table; and of `Mixtures`.
    """

    def __init__(self, components: int, values: list[Value]) -> None:
        self._components = components
        head, step, anchors, last, self._offsets, shift, self._table, *self._out = values
        places = last.spread(NEIGHBORS)
        # Where there are fewer positions the last one is looked at again.
        places = places.constant(list(range(NEIGHBORS))).at_most(places)
        self._head = head.spread(NEIGHBORS) + places * step.spread(NEIGHBORS)
        self._anchors = anchors.spread(NEIGHBORS) + places * (4 * components)
        self._shift = shift.to(INT32).spread(NEIGHBORS)

    def write(self) -> None:
        """Write the code."""
        logs, moves, widths = self._said()
        mean = [
            (self._anchors + 4 * k).gather(INT32) + (move << self._shift)
            for k, move in enumerate(moves)
        ]
        up = self._shift * SCALES_PER_OCTAVE
        scale = [(width + up).clamped(0, SCALE_MAX) for width in widths]
        weight = self._weights(logs)
        middle = _sum([share * index for share, index in zip(weight, scale, strict=True)])
        offset = self._look_up(self._offsets, middle >> (WEIGHT_BITS + BUCKET_BITS))
        corrected = [(index + offset).clamped(0, SCALE_MAX) for index in scale]
        for start, values in zip(self._out, (mean, scale, corrected, weight), strict=True):
            for n, vector in enumerate(interleaved(values)):
                (start + 4 * NEIGHBORS * n).store(vector)

    def _said(self) -> tuple[list[Value], list[Value], list[Value]]:
        """What the head says of each component: logarithm, offset of the mean, of the scale."""
        count = self._components
        pairs = ((self._head + 2 * n).gather(INT32) for n in range(0, 3 * count, 2))
        flat = [half for pair in pairs for half in ((pair << 16) >> 16, pair >> 16)]
        return flat[:count], flat[count : 2 * count], flat[2 * count : 3 * count]

    def _weights(self, logs: list[Value]) -> list[Value]:
        """Weights by their logarithms; the first of the greatest gets what rounding leaves."""
        highest = logs[0]
        for log in logs[1:]:
            highest = highest.at_least(log)
        below = [highest - log for log in logs]
        shares = [
            self._look_up(self._table, rest & (WEIGHT_STEPS - 1)) >> (rest >> 4).at_most(31)
            for rest in below
        ]
        # The quotient of share * 2**WEIGHT_BITS, below 2**27, and total, below 2**18, is an
        # integer or at least 2**-18 below the next one: rounding cannot reach that.
        floats = lanes(FLOAT64, NEIGHBORS)
        total = _sum(shares).to(floats)
        unit = total.constant(float(1 << WEIGHT_BITS)) / total
        small, whole = total.constant(2.0**-20), highest.kind
        weights = [(share.to(floats) * unit + small).to(whole) for share in shares]
        nothing = highest.constant(0)
        left = highest.constant(1 << WEIGHT_BITS) - _sum(weights)
        for k, rest in enumerate(below):
            weights[k] += nothing.unless(rest, "==", nothing, left)
            left = left.unless(rest, "==", nothing, nothing)
        return weights

    def _look_up(self, table: Value, index: Value) -> Value:
        """Entries of a table of int32."""
        return (table.spread(NEIGHBORS) + index.to(lanes(INT64, NEIGHBORS)) * 4).gather(INT32)


def _sum(values: list[Value]) -> Value:
    total = values[0]
    for value in values[1:]:
        total += value
    return total


def _tile_of(components: int) -> Any:
    """Make what writes the mixtures of NEIGHBORS neighbors; see `_Tile`."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _Tile(components, [Value(builder, value) for value in args]).write()
        return context.get_dummy_value()

    def tile(
        typing: Any, head: Any, step: Any, anchors: Any, last: Any, offsets: Any, shift: Any,
        table: Any, mean: Any, scale: Any, corrected: Any, weight: Any,
    ) -> Any:  # fmt: skip
        return types.void(*[types.intp] * 11), write

    return intrinsic(tile)


_intra_tile, _inter_tile = _tile_of(INTRA_ANCHORS), _tile_of(INTER_ANCHORS)
