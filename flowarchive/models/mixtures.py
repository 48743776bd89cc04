"""The mixtures of a phase: what a network says of every sample, ready for the entropy model."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowarchive.adaptive.correction import BUCKET_BITS
from flowarchive.entropy import SCALE_COUNT, SCALES_PER_OCTAVE, WEIGHT_BITS
from flowarchive.int8 import Int16
from flowarchive.loops import compiled

Int32 = NDArray[np.int32]

SCALE_MAX = SCALE_COUNT - 1
WEIGHT_STEPS = 16  # steps in an octave of a weight's logarithm

# Flat arrays are indexed by uint64, so that no index is tested for being negative.
_ONE = np.uint64(1)


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
            head: int16 [N, gh + 2, gw + 2, 3K or more], inside an unused border: logarithms of
                weights, offsets of means, offsets of scales. What there are no mixtures for is
                left out.
            anchors: int32 [N, gh, gw, K].
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
    count, rows, columns, _ = mean.shape
    size, step = np.uint64(mean.shape[3]), np.uint64(head.shape[3])
    said, anchor = head.reshape(-1), anchors.reshape(-1)
    means, predicted = mean.reshape(-1), scale.reshape(-1)
    used, weights = corrected.reshape(-1), weight.reshape(-1)
    up = np.int32(SCALES_PER_OCTAVE * shift)
    least, most = np.int32(0), np.int32(SCALE_MAX)
    at = np.uint64(0)
    for n in range(count):
        for i in range(rows):
            logs = np.uint64((n * head.shape[1] + i + 1) * head.shape[2] + 1) * step
            near = np.uint64((n * anchors.shape[1] + i) * anchors.shape[2]) * size
            for _ in range(columns):
                highest = np.int32(said[logs])
                for k in range(_ONE, size):
                    highest = max(highest, np.int32(said[logs + k]))
                total = np.int32(0)
                best = np.uint64(0)
                for back in range(size):
                    last = size - _ONE - back
                    below = np.uint32(highest - np.int32(said[logs + last]))
                    best = last if below == 0 else best
                    octaves = min(below >> np.uint32(4), np.uint32(31))
                    share = np.int32(table[below & np.uint32(WEIGHT_STEPS - 1)] >> octaves)
                    weights[at + last] = share
                    total = np.int32(total + share)
                # The quotient of share * 2**WEIGHT_BITS, below 2**27, and total, below 2**18, is
                # an integer or at least 2**-18 below the next one: rounding cannot reach that.
                unit = (1 << WEIGHT_BITS) / np.float64(total)
                left = np.int32(1 << WEIGHT_BITS)
                middle = np.int32(0)
                for k in range(size):
                    share = np.int32(np.float64(weights[at + k]) * unit + 2.0**-20)
                    index = np.int32(np.int32(said[logs + size + size + k]) + up)
                    index = min(max(index, least), most)
                    means[at + k] = anchor[near + k] + (np.int64(said[logs + size + k]) << shift)
                    predicted[at + k] = index
                    weights[at + k] = share
                    middle = np.int32(middle + np.int32(share * index))
                    left = np.int32(left - share)
                weights[at + best] += left
                middle = np.int32(middle + left * predicted[at + best])
                offset = offsets[np.uint32(middle) >> np.uint32(WEIGHT_BITS + BUCKET_BITS)]
                for k in range(size):
                    index = np.int32(predicted[at + k] + offset)
                    used[at + k] = min(max(index, least), most)
                at += size
                logs += step
                near += size
