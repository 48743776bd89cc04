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
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from flowarchive.adaptive.predictor import LEVEL_GROUPS
from flowarchive.entropy.cumulative import (
    SCALE_COUNT,
    SIG_BITS,
    WEIGHT_BITS,
    search_tables,
    write_sigmoid,
)
from flowarchive.lattice import PHASES
from flowarchive.loops import compiled
from flowarchive.vectors import FLOAT64, INT32, INT64, Value, lanes

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

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

# Costs are in 1/256 bit.
_COST_BITS = 8
# From the product of a distance and a reciprocal to an argument, at scale index 0.
_SHIFT = 7
# Of a float64: bits of the fraction behind the first _COST_BITS, and what is added to exponents.
_FRACTION_REST = 52 - _COST_BITS
_EXPONENT_BIAS = 1023
# Symbols whose costs are worked out together.
_LANES = 8


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
        self._scratch = new_scratch()
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
            *cost_tables(),
            self._scratch,
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


@cache
def cost_tables() -> tuple[Int64, Int64, Int64]:
    """Return what `add_costs` reads: packed sigmoid, reciprocals, logarithms."""
    packed, reciprocals = search_tables()[:2]
    return packed, reciprocals, log_table().astype(np.int64)


def new_scratch() -> Int64:
    """Return room for `add_costs` to work in; what is in it does not matter."""
    return np.empty((4, _LANES), dtype=np.int64)


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
    packed: Int64,
    reciprocals: Int64,
    logs: Int64,
    scratch: Int64,
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
        packed: From `cost_tables`.
        reciprocals: From `cost_tables`.
        logs: `log_table`, as int64.
        scratch: `new_scratch`, overwritten.
    """
    components, size = mean.shape[1], mean.itemsize
    # Their addresses are used below; this refuses arrays that are not contiguous.
    z, center, width, share = (
        symbols.reshape(-1),
        mean.reshape(-1),
        scale.reshape(-1),
        weight.reshape(-1),
    )
    for i in range(first, last, stride * _LANES):
        count = min(_LANES, (last - i + stride - 1) // stride)
        row = i * components * size
        _find_costs(
            z.ctypes.data + i * size,
            stride * size,
            center.ctypes.data + row,
            width.ctypes.data + row,
            share.ctypes.data + row,
            stride * components * size,
            components,
            count - 1,
            packed.ctypes.data,
            reciprocals.ctypes.data,
            logs.ctypes.data,
            scratch.ctypes.data,
        )  # type: ignore[call-arg]
        for j in range(count):
            bucket = np.uint64((scratch[3, j] >> WEIGHT_BITS) // BUCKET_SCALES)
            for n in range(3):
                costs[bucket, n] += scratch[n, j]


@intrinsic
def _find_costs(
    typing: Any, symbols: Any, symbol_step: Any, mean: Any, scale: Any, weight: Any, step: Any,
    components: Any, last: Any, packed: Any, reciprocals: Any, logs: Any, out: Any,
) -> Any:  # fmt: skip
    """Find what _LANES symbols cost with three sets of scales.

    The arguments are addresses, and distances in bytes: of the first of the symbols, and to the
    next; of their parameters; K; how many symbols there are after the first; of the tables; and of
    the output, int64 [4, _LANES], costs and then the sums of scale * weight.
    """

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _write_costs(*(Value(builder, value) for value in args))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 12), write


def _write_costs(
    symbols: Value, symbol_step: Value, mean: Value, scale: Value, weight: Value, step: Value,
    components: Value, last: Value, packed: Value, reciprocals: Value, logs: Value, out: Value,
) -> None:  # fmt: skip
    """Write the code of `_find_costs`."""
    many = last.spread(_LANES)
    zero, whole = many.constant(0), many.kind
    # Where there are fewer symbols the last one is looked at again.
    places = many.constant(list(range(_LANES))).at_most(many)
    at = symbols.spread(_LANES) + places * symbol_step.spread(_LANES)
    edge = (at.gather(INT32).to(whole) * 2 - 1) * 128
    rows = places * step.spread(_LANES)
    tables = packed.spread(_LANES), reciprocals.spread(_LANES)
    totals = [zero.variable() for _ in range(3)]
    middle = zero.variable()
    with components.range() as k:
        index, share, center = (
            ((array + k * 4).spread(_LANES) + rows).gather(INT32).to(whole)
            for array in (scale, weight, mean)
        )
        middle.set(middle.get() + share * index)
        left = edge - center
        for n, total in enumerate(totals):
            inside = _inside(left, index + STEP * (n - 1), *tables)
            total.set(total.get() + share * inside)
    for n, total in enumerate(totals):
        cost = _cost(total.get(), logs.spread(_LANES))
        (out + 8 * _LANES * n).store(cost)
    (out + 8 * _LANES * 3).store(middle.get())


def _inside(left: Value, scale: Value, packed: Value, reciprocals: Value) -> Value:
    """2**24 times what components give to symbols whose left edges are `left` from them."""
    index = scale.clamped(0, SCALE_COUNT - 1)
    reciprocal = (reciprocals + (index & 7) * 8).gather(INT64)
    shift = (index >> 3) + _SHIFT
    below, upto = (write_sigmoid(edge, reciprocal, shift, packed) for edge in (left, left + 256))
    return upto - below


def _cost(total: Value, logs: Value) -> Value:
    """-256 * log2 of probabilities in 2**-36, rounded up."""
    # No symbol has a probability under 2**-24. A float64 holds it exactly: its exponent and the
    # first bits of its fraction stand together.
    value = ((total >> WEIGHT_BITS) + 1).to(lanes(FLOAT64, _LANES)).bits(total.kind)
    leading = value >> _FRACTION_REST
    octave = (leading >> _COST_BITS) - _EXPONENT_BIAS
    log = (logs + (leading & 255) * 8).gather(INT64)
    return ((octave.constant(SIG_BITS) - octave) << _COST_BITS) - log
