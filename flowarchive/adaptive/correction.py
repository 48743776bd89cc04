"""Secondary estimation: predicted scales put right by what they cost on decoded symbols.

Symbols are told apart by slot and by *bucket*, half an octave of the mixture's mean scale index.
For each bucket three sums fade from frame to frame: what its symbols cost with the scales as
predicted, half an octave smaller, and half an octave larger. The parabola through the three has
its least value at the offset that the next frame's scales get:

    cost |  x                 x      in steps of 1/8 octave
         |      .         .
         |          . x
         +--|---------|---^-----|--
           -4         0  offset 4

This module knows mixtures and integers. It must not know where the scales come from.

References:
    Mahoney, "Adaptive weighing of context models for lossless data compression", 2005, for
    secondary estimation.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from flowarchive.adaptive.predictor import LEVEL_GROUPS
from flowarchive.ans import compiled
from flowarchive.entropy.cumulative import (
    RECIPROCALS,
    SCALE_COUNT,
    SIG_BITS,
    SIG_RANGE,
    SIG_STEPS,
    WEIGHT_BITS,
    sigmoid_table,
)
from flowarchive.lattice import PHASES

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Whole = int | np.int32 | np.int64

BUCKET_BITS = 2
BUCKET_SCALES = 1 << BUCKET_BITS
"""Scale indices of a bucket: half an octave."""

BUCKETS = SCALE_COUNT // BUCKET_SCALES

STEP = 4
"""How far from the predicted scales the costs are taken."""

MAX_OFFSET = 12
MOST_SYMBOLS = 1 << 11
"""Of more symbols every second, third ... is learned from."""

# Added to the curvature of a parabola, in 1/256 bit: some 20 symbols that call for no offset.
_RELUCTANCE = 500

_RECIPROCALS = np.array(RECIPROCALS, dtype=np.int64)
# Probabilities of 24 bits; costs are in 1/256 bit.
_COST_BITS = 8
# Arguments of the sigmoid are in 2**-20, a step of its table is 2**14 of them.
_STEP_BITS = 14
_LIMIT = (SIG_RANGE * SIG_STEPS) << _STEP_BITS
# From the product of a distance and a reciprocal to an argument, at scale index 0.
_SHIFT = 7


class ScaleCorrection:
    """Offsets of the scale index by slot and bucket, learned from decoded symbols.

    Parameters are those of `entropy.LogisticMixture`, [n, K]; scales are always the predicted
    ones, without the offsets.
    """

    def __init__(self) -> None:
        """Begin with no offsets."""
        slots = (LEVEL_GROUPS, len(PHASES), BUCKETS)
        self._costs = np.zeros((*slots, 3), dtype=np.int64)
        self._new = np.zeros_like(self._costs)
        self._offsets = np.zeros(slots, dtype=np.int32)
        self._frame = 0

    def offsets(self, group: int, phase: int) -> Int32:
        """Return what to add to the scales of each bucket's mixtures before they are clamped.

        Args:
            group: Level group of the symbols.
            phase: Their phase.

        Returns:
            int32 [BUCKETS] in -MAX_OFFSET..MAX_OFFSET.
        """
        offsets: Int32 = self._offsets[group, phase]
        return offsets

    def learn(
        self, group: int, phase: int, symbols: Int32, mean: Int32, scale: Int32, weight: Int32
    ) -> None:
        """Sum what symbols cost with three sets of scales.

        Args:
            group: Level group of the symbols.
            phase: Their phase.
            symbols: int32 [n], decoded.
            mean: int32 [n, K] in 1/256 of a symbol step.
            scale: int32 [n, K], as predicted, 0..191.
            weight: int32 [n, K].
        """
        stride = max(1, -(-symbols.size // MOST_SYMBOLS))
        add_costs(
            self._new[group, phase],
            symbols,
            mean,
            scale,
            weight,
            self._frame % stride,
            symbols.size,
            stride,
            sigmoid_table(),
            log_table(),
        )

    def end_frame(self) -> None:
        """Let older costs fade by a fifth, add the frame's, and find the next frame's offsets."""
        self._costs = self._costs - self._costs // 5 + self._new
        self._new[:] = 0
        less, same, more = (self._costs[..., i] for i in range(3))
        curvature = less - 2 * same + more + _RELUCTANCE
        # Half of STEP * (less - more) / curvature, rounded half up.
        vertex = (STEP * (less - more) + curvature) // (2 * np.maximum(curvature, 1))
        # Where the parabola has no least value, its lower end.
        ends = np.where(more < less, STEP, -STEP)
        best = np.where(curvature > 0, vertex, ends)
        self._offsets = best.clip(-MAX_OFFSET, MAX_OFFSET).astype(np.int32)
        self._frame += 1


@cache
def log_table() -> Int32:
    """Return floor(256 * log2(1 + i / 256)) for i in 0..255, int32, read-only."""
    table = [((256 + i) ** 256).bit_length() - 1 - 8 * 256 for i in range(256)]
    frozen = np.array(table, dtype=np.int32)
    frozen.setflags(write=False)
    return frozen


@compiled
def _bucket(scale: Int32, weight: Int32, at: Whole) -> Whole:
    """Return the bucket of a mixture: its mean scale index, in steps of BUCKET_SCALES."""
    total = 0
    for k in range(scale.shape[1]):
        total += scale[at, k] * weight[at, k]
    return (total >> WEIGHT_BITS) // BUCKET_SCALES


@compiled
def _sigmoid(distance: Whole, reciprocal: Whole, shift: Whole, table: Int32) -> Whole:
    """Interpolate 2**24 * sigmoid(distance / 256 / scale), as the entropy model does."""
    place = (distance * reciprocal) >> shift
    place = min(max(place, -_LIMIT), _LIMIT - 1) + _LIMIT
    # Unsigned indices spare numba's test for negative ones.
    i = np.uint64(place >> _STEP_BITS)
    rest = (table[i + np.uint64(1)] - table[i]) * (place & ((1 << _STEP_BITS) - 1))
    sigmoid: np.int64 = table[i] + (rest >> _STEP_BITS)
    return sigmoid


@compiled
def add_costs(
    costs: Int64,
    symbols: Int32,
    mean: Int32,
    scale: Int32,
    weight: Int32,
    first: int,
    last: int,
    stride: int,
    sigmoid: Int32,
    logs: Int32,
) -> None:
    """Add what symbols first, first + stride ... before last cost to `costs`.

    Args:
        costs: int64 [BUCKETS, 3] in 1/256 bit, for scales STEP smaller, as they are, and larger.
            Sums are exact: symbols may come in any order, and in parts with costs of their own.
        symbols: int32 [n].
        mean: int32 [n, K].
        scale: int32 [n, K].
        weight: int32 [n, K].
        first: The first symbol.
        last: The one to stop before.
        stride: From one to the next.
        sigmoid: `entropy.sigmoid_table`.
        logs: `log_table`.
    """
    for i in range(first, last, stride):
        bucket = _bucket(scale, weight, i)
        left = (2 * np.int64(symbols[i]) - 1) * 128
        for n in range(3):
            total = 0
            for k in range(mean.shape[1]):
                index = min(max(scale[i, k] + STEP * (n - 1), 0), SCALE_COUNT - 1)
                reciprocal, shift = _RECIPROCALS[index & 7], _SHIFT + (index >> 3)
                distance = left - mean[i, k]
                inside = _sigmoid(distance + 256, reciprocal, shift, sigmoid)
                inside -= _sigmoid(distance, reciprocal, shift, sigmoid)
                total += weight[i, k] * inside
            # No symbol has a probability under 2**-24.
            costs[bucket, n] += _cost((total >> WEIGHT_BITS) + 1, logs)


@compiled
def _cost(probability: Whole, logs: Int32) -> Whole:
    """Return -256 * log2(probability / 2**24), of 1..2**24 + 1, rounded up."""
    value, octave = probability, 0
    while value < 256:
        value, octave = value << 1, octave - 1
    while value > 511:
        value, octave = value >> 1, octave + 1
    return ((SIG_BITS - octave - 8) << _COST_BITS) - np.int64(logs[value - 256])
