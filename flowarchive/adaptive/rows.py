"""The samples of a phase: their features, classes and predictions, and their products in sums.

Everything here is integer arithmetic. Rows of a phase do not depend on each other, so that threads
may share them out: `predict_rows` takes a range, and sums of `add_rows` with arrays of their own
may be added in any order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from flowarchive.lattice import BORDER, PHASES, Int32
from flowarchive.loops import compiled
from flowarchive.vectors import INT16, INT32, Value, has_vnni, lanes

Int16 = NDArray[np.int16]
Int64 = NDArray[np.int64]
Whole = int | np.int32 | np.int64

LUMA_TAPS = 38
CHROMA_TAPS = 45
CLASSES = 16

PREDICTION_ONE = 256
"""Predictions are in 1/256 of a sample step."""

MAX_SHIFT = 8

WEIGHT_BITS = 14
WEIGHT_LIMIT = (1 << 15) - 1
"""Weights are in units of 2**-14 and stay under 2."""

FEATURE_LIMIT = (1 << 10) - 1
"""The largest magnitude of a feature. CHROMA_TAPS * FEATURE_LIMIT * WEIGHT_LIMIT < 2**31."""

# Sum of the four nearest samples' distances to S, in quarters: 2, 5 and 10 steps each.
_SPREAD_EDGES = (32, 80, 160)
# Distance of the reference's sample to the mean of its four, in quarters: 4 steps.
_CHANGE_EDGE = 16
# Spreads from which a sample counts half, a quarter ...: 1 / (1 + e**2 / 4), e in steps.
_WEIGHT_EDGES = (21, 44, 70, 103, 149, 213, 303)
# The most halvings in each spread class; within it weights are 1, 2 or 4 times what they leave.
MOST_HALVINGS = (1, 3, 5, 7)

_SPATIAL = np.array([phase.near + phase.far for phase in PHASES], dtype=np.int64)
_PARITY = np.array([(phase.row, phase.column) for phase in PHASES], dtype=np.int64)
_PATCH = np.array(
    [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)] + [(0, -2), (0, 2), (-2, 0), (2, 0)],
    dtype=np.int64,
)
_PLUS = np.array([(0, 0), (0, -1), (0, 1), (-1, 0), (1, 0)], dtype=np.int64)

# Flat arrays are indexed by uint64, so that no index is tested for being negative.
_ONE = np.uint64(1)
_TWO = np.uint64(2)

# Samples of one class that are multiplied at a time. Their features are at most 1023 and weights
# at most 4, so that a sum of 512 products is at most 512 * 4 * 1023**2 = 2143291392 < 2**31.
BATCH = 512
# Samples of a row that are appended at a time.
_SEGMENT = 128
# Features of a sample that are multiplied, with room to spare: three vectors of them.
PITCH = 48
_LANES = 16
# A feature of one sample stands next to that of another, to be multiplied together.
_PAIR = 2
# Features that are multiplied with all others at a time.
_ROWS = 8
_OLD_ROWS = 2  # with fewer and smaller registers
_SUMS, _PAIRS = lanes(INT32, _LANES), lanes(INT16, _PAIR * _LANES)


def products(taps: int) -> int:
    """Return how many sums a class has.

    These are the products of each two of the features and the target, (0, 0), (1, 0), (1, 1) and
    so on, those with the target last; and one more, of the weights.
    """
    return (taps + 1) * (taps + 2) // 2 + 1


_LUMA_PRODUCTS = products(LUMA_TAPS)


@compiled
def _taps(size: int) -> int:
    """Return of how many taps a class has so many sums."""
    return LUMA_TAPS if size == _LUMA_PRODUCTS else CHROMA_TAPS


@compiled
def _differences(out: Int16, to: Whole, values: Int32, at: Whole, base: Int32, shift: int) -> None:
    """Write the features of values[at], values[at + 2] ... minus `base` to out[to], ..."""
    start, begin = np.uint64(to), np.uint64(at)
    half = (1 << shift) >> 1
    for x in range(np.uint64(base.size)):
        value = np.int32(values[begin + x * _TWO] - base[x])
        if shift > 0:
            value = np.int32((value + half) >> shift)
        out[start + x] = min(max(value, np.int32(-FEATURE_LIMIT)), np.int32(FEATURE_LIMIT))


@compiled
def _every_second(out: Int32, values: Int32, at: Whole) -> None:
    """Copy values[at], values[at + 2] ..."""
    begin = np.uint64(at)
    for x in range(np.uint64(out.size)):
        out[x] = values[begin + x * _TWO]


@compiled
def _mean_of_near(out: Int32, plane: Int32, at: Whole, width: int, phase: int) -> None:
    """Write the means of the four nearest samples, rounded half up."""
    a = np.uint64(at + _SPATIAL[phase, 0, 0] * width + _SPATIAL[phase, 0, 1])
    b = np.uint64(at + _SPATIAL[phase, 1, 0] * width + _SPATIAL[phase, 1, 1])
    c = np.uint64(at + _SPATIAL[phase, 2, 0] * width + _SPATIAL[phase, 2, 1])
    d = np.uint64(at + _SPATIAL[phase, 3, 0] * width + _SPATIAL[phase, 3, 1])
    for x in range(np.uint64(out.size)):
        i = x * _TWO
        total = np.int32(np.int32(plane[a + i] + plane[b + i]) + np.int32(2))
        total = np.int32(total + np.int32(plane[c + i] + plane[d + i]))
        out[x] = np.int32(total >> np.int32(2))


@compiled
def _row_features(
    features: Int16,
    spread: Int32,
    classes: Int32,
    base: Int32,
    scratch: Int32,
    plane: Int32,
    ref1: Int32,
    ref2: Int32,
    luma: Int32,
    luma1: Int32,
    luma2: Int32,
    width: int,
    taps: int,
    phase: int,
    shift: int,
    y: int,
) -> None:
    """Fill what a row of a phase is predicted from; all arrays are flat.

    Args:
        features: int16 [(taps + 1) * columns], tap by tap; the last is that of the target.
        spread: int32 [columns], the sum of the four nearest samples' distances to S.
        classes: int32 [columns].
        base: int32 [columns], S.
        scratch: int32 [columns], overwritten.
        plane: Of rows of `width` samples, and so the rest.
        ref1: See `plane`.
        ref2: See `plane`.
        luma: See `plane`.
        luma1: See `plane`.
        luma2: See `plane`.
        width: Samples of a bordered row.
        taps: LUMA_TAPS or CHROMA_TAPS.
        phase: Index of the phase.
        shift: Low bits to round away.
        y: Row of the phase.
    """
    columns = base.size
    at = (BORDER + 2 * y + _PARITY[phase, 0]) * width + BORDER + _PARITY[phase, 1]
    to = 0
    _mean_of_near(base, plane, at, width, phase)
    for k in range(_SPATIAL.shape[1]):
        tap = at + _SPATIAL[phase, k, 0] * width + _SPATIAL[phase, k, 1]
        _differences(features, to, plane, tap, base, shift)
        to += columns
    for k in range(_PATCH.shape[0]):
        tap = at + _PATCH[k, 0] * width + _PATCH[k, 1]
        _differences(features, to, ref1, tap, base, shift)
        _differences(features, to + _PATCH.shape[0] * columns, ref2, tap, base, shift)
        to += columns
    to += _PATCH.shape[0] * columns
    if taps > LUMA_TAPS:
        for k in range(_PLUS.shape[0]):
            tap = at + _PLUS[k, 0] * width + _PLUS[k, 1]
            _every_second(scratch, luma1, tap)
            _differences(features, to, luma, tap, scratch, shift)
            to += columns
        _every_second(scratch, luma2, at)
        _differences(features, to, luma, at, scratch, shift)
        _mean_of_near(scratch, luma, at, width, phase)
        _differences(features, to + columns, luma, at, scratch, shift)
        to += 2 * columns
    # The place of the target holds the reference's change until the classes are known.
    _mean_of_near(scratch, ref1, at, width, phase)
    _differences(features, to, ref1, at, scratch, shift)
    _classify(features, np.uint64(to), spread, classes)
    _differences(features, to, plane, at, base, shift)


@compiled
def _classify(features: Int16, to: np.uint64, spread: Int32, classes: Int32) -> None:
    """Tell spreads and classes from the near features, and from the reference's changes at `to`."""
    columns = np.uint64(spread.size)
    for x in range(columns):
        a, b = np.int32(features[x]), np.int32(features[columns + x])
        c = np.int32(features[_TWO * columns + x])
        d = np.int32(features[_TWO * columns + columns + x])
        near = abs(a) + abs(b) + abs(c) + abs(d)
        outer, inner = abs(a - d), abs(b - c)
        change = np.int32(abs(features[to + x]))
        wide = np.int32(0)
        for edge in _SPREAD_EDGES:
            wide += near >= edge
        spread[x] = near
        classes[x] = 4 * wide + 2 * (change >= _CHANGE_EDGE) + (outer > inner)


@compiled
def predict_rows(
    out: Int32,
    plane: Int32,
    ref1: Int32,
    ref2: Int32,
    luma: Int32,
    luma1: Int32,
    luma2: Int32,
    phase: int,
    shift: int,
    low: int,
    high: int,
    weights: Int32,
    first: int,
    last: int,
) -> None:
    """Predict rows first..last - 1 of a phase; see `LinearPredictor.predict`."""
    width, taps, columns = plane.shape[1], weights.shape[1], out.shape[1]
    p, a, b = plane.reshape(-1), ref1.reshape(-1), ref2.reshape(-1)
    l0, l1, l2 = luma.reshape(-1), luma1.reshape(-1), luma2.reshape(-1)
    w, result = weights.reshape(-1), out.reshape(-1)
    features = np.empty((taps + 1) * columns, dtype=np.int16)
    spread = np.empty(columns, dtype=np.int32)
    classes = np.empty(columns, dtype=np.int32)
    base = np.empty(columns, dtype=np.int32)
    scratch = np.empty(columns, dtype=np.int32)
    down = 8 - shift
    half = (1 << down) >> 1
    for y in range(first, last):
        _row_features(
            features, spread, classes, base, scratch,
            p, a, b, l0, l1, l2, width, taps, phase, shift, y,
        )  # fmt: skip
        _filter(scratch, features, classes, w, np.uint64(taps))
        to = y * columns
        for x in range(columns):
            value = 64 * base[x] + ((scratch[x] + half) >> down)
            result[to + x] = min(max(value, low), high)


@compiled
def _filter(out: Int32, features: Int16, classes: Int32, weights: Int32, taps: np.uint64) -> None:
    columns = np.uint64(out.size)
    for x in range(columns):
        of_class = np.uint64(classes[x]) * taps
        total = np.int32(0)
        for k in range(taps):
            product = np.int32(weights[of_class + k] * np.int32(features[k * columns + x]))
            total = np.int32(total + product)
        out[x] = total


@compiled
def add_rows(
    sums: Int64,
    batches: Int16,
    amounts: Int16,
    filled: Int64,
    plane: Int32,
    ref1: Int32,
    ref2: Int32,
    luma: Int32,
    luma1: Int32,
    luma2: Int32,
    phase: int,
    shift: int,
    first: int,
    last: int,
    stride: int,
) -> None:
    """Add rows first, first + stride ... before last of a phase to the sums of its slot.

    Sums are exact: rows may come in any order, and in parts with sums of their own.

    Args:
        sums: int64 [CLASSES, products]; see `products`.
        batches: int16 [CLASSES, BATCH * PITCH], samples that are not in the sums yet.
        amounts: int16 [CLASSES, BATCH], their weights.
        filled: int64 [CLASSES], how many they are.
        plane: As in `LinearPredictor.predict`, and so the rest.
        ref1: See there.
        ref2: See there.
        luma: See there.
        luma1: See there.
        luma2: See there.
        phase: Index of the phase.
        shift: Low bits to round away.
        first: The first row.
        last: The row to stop before.
        stride: From one row to the next.
    """
    width = plane.shape[1]
    columns = (width - 2 * BORDER + 1 - _PARITY[phase, 1]) // 2
    taps = _taps(sums.shape[1])
    p, a, b = plane.reshape(-1), ref1.reshape(-1), ref2.reshape(-1)
    l0, l1, l2 = luma.reshape(-1), luma1.reshape(-1), luma2.reshape(-1)
    features = np.empty((taps + 1) * columns, dtype=np.int16)
    spread = np.empty(columns, dtype=np.int32)
    classes = np.empty(columns, dtype=np.int32)
    base = np.empty(columns, dtype=np.int32)
    scratch = np.empty(columns, dtype=np.int32)
    for y in range(first, last, stride):
        _row_features(
            features, spread, classes, base, scratch,
            p, a, b, l0, l1, l2, width, taps, phase, shift, y,
        )  # fmt: skip
        for x in range(0, columns, _SEGMENT):
            end = min(x + _SEGMENT, columns)
            _make_room(sums, batches, amounts, filled, classes[x:end])
            _append(batches, amounts, filled, features, spread, classes, x, end)


@compiled
def _make_room(sums: Int64, batches: Int16, amounts: Int16, filled: Int64, classes: Int32) -> None:
    """Empty the batches that samples of these classes would make overflow."""
    more = np.zeros(CLASSES, dtype=np.int64)
    for c in classes:
        more[c] += 1
    for c in range(CLASSES):
        if filled[c] + more[c] > BATCH:
            _add_products(sums[c], batches[c], amounts[c], filled[c])
            filled[c] = 0


@compiled
def _append(
    batches: Int16,
    amounts: Int16,
    filled: Int64,
    features: Int16,
    spread: Int32,
    classes: Int32,
    first: int,
    last: int,
) -> None:
    """Append samples first..last - 1 of a row to the batches of their classes."""
    flat = batches.reshape(-1)
    start, count, columns = np.uint64(first), np.uint64(last - first), np.uint64(classes.size)
    place = np.empty(_SEGMENT, dtype=np.uint64)
    for i in range(count):
        c = np.uint64(classes[start + i])
        n = filled[c]
        halvings = 0
        for edge in _WEIGHT_EDGES:
            halvings += spread[start + i] >= edge
        amounts[c, n] = 1 << (MOST_HALVINGS[c >> _TWO] - halvings)
        place[i] = np.int64(c) * batches.shape[1] + (n // _PAIR * PITCH * _PAIR + n % _PAIR)
        filled[c] = n + 1
    end, of_tap = np.uint64(features.size), np.uint64(0)
    while start < end:
        for i in range(count):
            flat[place[i] + of_tap] = features[start + i]
        of_tap += np.uint64(_PAIR)
        start += columns


@compiled
def add_rest(sums: Int64, batches: Int16, amounts: Int16, filled: Int64) -> None:
    """Add what `add_rows` left in the batches to the sums, and empty them."""
    for c in range(CLASSES):
        n = filled[c]
        if n > 0:
            _add_products(sums[c], batches[c], amounts[c], n)
            filled[c] = 0


@compiled
def _add_products(sums: Int64, batch: Int16, amounts: Int16, count: int) -> None:
    """Add the weighted products of every two features of a batch of `count` samples."""
    pairs = (count + 1) // _PAIR
    if count % _PAIR > 0:
        amounts[count] = 0  # What lies behind the samples from earlier counts nothing.
    for i in range(count):
        sums[-1] += amounts[i]
    weighted = np.empty(BATCH * PITCH, dtype=np.int16)
    totals = np.empty((PITCH, PITCH), dtype=np.int32)
    start, target = weighted.ctypes.data, totals.ctypes.data
    _weigh(start, batch.ctypes.data, amounts.ctypes.data, pairs)  # type: ignore[call-arg]
    features = _taps(sums.size) + 1
    for a in range(0, features, _ROWS):
        vectors = a // _LANES + 1
        at = start + a * 4, batch.ctypes.data, pairs, target + a * PITCH * 4
        if vectors == 1:
            _multiply_1(*at)
        elif vectors == 2:
            _multiply_2(*at)
        else:
            _multiply_3(*at)
    pair = 0
    for a in range(features):
        for b in range(a + 1):
            sums[pair + b] += totals[a, b]
        pair += a + 1


@intrinsic
def _weigh(typing: Any, out: Any, batch: Any, amounts: Any, pairs: Any) -> Any:
    """Multiply the features of pairs of samples by their weights; the arguments are addresses."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        out, batch, amounts, pairs = (Value(builder, value) for value in args)
        with pairs.range() as i:
            amount = (amounts + i * 4).load(INT32).spread(_LANES).bits(_PAIRS)
            for n in range(PITCH // _LANES):
                at = (i * (PITCH // _LANES) + n) * 64
                (out + at).store((batch + at).load(_PAIRS) * amount)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), write


def _multiplication(vectors: int) -> Any:
    """Make what multiplies _ROWS features with those of some vectors."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, b, pairs, out = (Value(builder, value) for value in args)
        zero = Value(builder, ir.Constant(_SUMS, [0] * _LANES))
        many = _ROWS if has_vnni(context) else _OLD_ROWS
        for first in range(0, _ROWS, many):
            rows = range(first, first + many)
            sums = [[zero.variable() for _ in range(vectors)] for _ in rows]
            with pairs.range() as i:
                here = i * (PITCH * 4)
                others = [(b + here + 64 * n).load(_PAIRS) for n in range(vectors)]
                for r, row in zip(rows, sums, strict=True):
                    factor = (a + here + 4 * r).load(INT32).spread(_LANES).bits(_PAIRS)
                    for total, other in zip(row, others, strict=True):
                        total.set(total.get().plus_pair_products(factor, other, context))
            for r, row in zip(rows, sums, strict=True):
                for n, total in enumerate(row):
                    (out + (r * PITCH + n * _LANES) * 4).store(total.get())
        return context.get_dummy_value()

    def multiply(typing: Any, a: Any, b: Any, pairs: Any, out: Any) -> Any:
        return types.void(*[types.intp] * 4), write

    return intrinsic(multiply)


_multiply_1, _multiply_2, _multiply_3 = (_multiplication(n) for n in range(1, 4))
