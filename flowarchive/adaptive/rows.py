"""The rows of a phase: predictions of their samples, and the products of their features in sums.

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

from flowarchive.adaptive.samples import (
    CHROMA_TAPS,
    LUMA_TAPS,
    PARITY,
    PITCH,
    distances,
    find_row,
)
from flowarchive.lattice import BORDER, NEIGHBORS, Int32, with_room
from flowarchive.loops import compiled
from flowarchive.vectors import INT16, INT32, INT64, Value, has_vnni, lanes

Int16 = NDArray[np.int16]
Int64 = NDArray[np.int64]

CLASSES = 16

PREDICTION_ONE = 256
"""Predictions are in 1/256 of a sample step."""

WEIGHT_BITS = 14
WEIGHT_LIMIT = (1 << 15) - 1
"""Weights are in units of 2**-14 and stay under 2."""

# Samples of one class that are multiplied at a time. Their features are at most 1023 and weights
# at most 4, so that a sum of 512 products is at most 512 * 4 * 1023**2 = 2143291392 < 2**31.
BATCH = 512
_LANES = 16
# A feature of one sample stands next to that of another, to be multiplied together.
_PAIR = 2
# Features that are multiplied with all others at a time.
_ROWS = 8
_OLD_ROWS = 2  # with fewer and smaller registers
_SUMS, _PAIRS = lanes(INT32, _LANES), lanes(INT16, _PAIR * _LANES)
_HALF, _EIGHT = lanes(INT16, _LANES), lanes(INT32, 8)


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
    p, a, b = with_room(plane, columns), with_room(ref1, columns), with_room(ref2, columns)
    l0, l1, l2 = with_room(luma, columns), with_room(luma1, columns), with_room(luma2, columns)
    table = distances(width, phase)
    room = max(columns, NEIGHBORS)
    samples = np.empty(room * PITCH, dtype=np.int16)
    amounts = np.empty(room, dtype=np.int16)
    classes = np.empty(room, dtype=np.int32)
    base = np.empty(room, dtype=np.int32)
    totals = np.empty(room, dtype=np.int32)
    # No weight for the target and what is behind it.
    filters = np.zeros(CLASSES * PITCH, dtype=np.int16)
    for c in range(CLASSES):
        for k in range(taps):
            filters[c * PITCH + k] = weights[c, k]
    down = 8 - shift
    half = (1 << down) >> 1
    result = out.reshape(-1)
    for y in range(first, last):
        find_row(
            samples, amounts, classes, base, p, a, b, l0, l1, l2,
            table, columns, width, taps, phase, shift, y,
        )  # fmt: skip
        for tile in range(0, columns, NEIGHBORS):
            x = max(min(tile, columns - NEIGHBORS), 0)
            _filter(
                totals.ctypes.data + 4 * x,
                samples.ctypes.data + 2 * x * PITCH,
                filters.ctypes.data,
                classes.ctypes.data + 4 * x,
            )  # type: ignore[call-arg]
        to = y * columns
        for x in range(columns):
            value = 64 * base[x] + ((totals[x] + half) >> down)
            result[to + x] = min(max(value, low), high)


@intrinsic
def _filter(typing: Any, out: Any, samples: Any, filters: Any, classes: Any) -> Any:
    """Sum the products of the features of NEIGHBORS samples with the filters of their classes.

    The arguments are addresses: of int32 sums; of features; of filters, int16 [CLASSES, PITCH]; and
    of classes.
    """

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        out, samples, filters, classes = (Value(builder, value) for value in args)
        sums = []
        for n in range(NEIGHBORS):
            weights = filters + (classes + 4 * n).load(INT32).to(INT64) * (2 * PITCH)
            total = Value(builder, ir.Constant(_EIGHT, [0] * 8))
            for at in range(0, 2 * PITCH, 2 * _LANES):
                features = (samples + 2 * n * PITCH + at).load(_HALF)
                total = total.plus_pair_products(features, (weights + at).load(_HALF), context)
            sums.append(total)
        evens, odds = ([n + odd for n in (0, 2, 8, 10, 4, 6, 12, 14)] for odd in range(2))
        halves = [*range(4), *range(8, 12)], [*range(4, 8), *range(12, 16)]
        for first, second in ((evens, odds), (evens, odds), halves):
            pairs = zip(sums[::2], sums[1::2], strict=True)
            sums = [a.picked(first, b) + a.picked(second, b) for a, b in pairs]
        for n, eight in enumerate(sums):
            (out + 32 * n).store(eight)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), write


@compiled
def add_rows(
    sums: Int64,
    batches: Int16,
    amounts: Int16,
    filled: Int64,
    paired: Int16,
    totals: Int32,
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
        batches: int16 [CLASSES, BATCH * PITCH], features of samples that are not in the sums yet.
        amounts: int16 [CLASSES, BATCH], their weights.
        filled: int64 [CLASSES], how many they are.
        paired: int16 [2, BATCH * PITCH], overwritten.
        totals: int32 [PITCH, PITCH], overwritten.
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
    columns = (width - 2 * BORDER + 1 - PARITY[phase, 1]) // 2
    taps = _taps(sums.shape[1])
    p, a, b = with_room(plane, columns), with_room(ref1, columns), with_room(ref2, columns)
    l0, l1, l2 = with_room(luma, columns), with_room(luma1, columns), with_room(luma2, columns)
    table = distances(width, phase)
    room = max(columns, NEIGHBORS)
    samples = np.empty(room * PITCH, dtype=np.int16)
    weights = np.empty(room, dtype=np.int16)
    classes = np.empty(room, dtype=np.int32)
    base = np.empty(room, dtype=np.int32)
    for y in range(first, last, stride):
        find_row(
            samples, weights, classes, base, p, a, b, l0, l1, l2,
            table, columns, width, taps, phase, shift, y,
        )  # fmt: skip
        for x in range(columns):
            c = classes[x]
            n = filled[c]
            amounts[c, n] = weights[x]
            place = (c * BATCH + n) * PITCH
            _copy(batches.ctypes.data + 2 * place, samples.ctypes.data + 2 * x * PITCH)  # type: ignore[call-arg]
            filled[c] = n + 1
            if n + 1 == BATCH:
                _add_products(sums[c], batches[c], amounts[c], BATCH, paired, totals)
                filled[c] = 0


@intrinsic
def _copy(typing: Any, out: Any, sample: Any) -> Any:
    """Copy the features of a sample; the arguments are addresses."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        out, sample = (Value(builder, value) for value in args)
        for n in range(PITCH // _LANES):
            (out + 2 * _LANES * n).store((sample + 2 * _LANES * n).load(_HALF))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), write


@compiled
def add_rest(
    sums: Int64, batches: Int16, amounts: Int16, filled: Int64, paired: Int16, totals: Int32
) -> None:
    """Add what `add_rows` left in the batches to the sums, and empty them."""
    for c in range(CLASSES):
        n = filled[c]
        if n > 0:
            _add_products(sums[c], batches[c], amounts[c], n, paired, totals)
            filled[c] = 0


@compiled
def _add_products(
    sums: Int64, batch: Int16, amounts: Int16, count: int, paired: Int16, totals: Int32
) -> None:
    """Add the weighted products of every two features of a batch of `count` samples."""
    pairs = (count + 1) // _PAIR
    if count % _PAIR > 0:
        amounts[count] = 0  # What lies behind the samples from earlier counts nothing.
    for i in range(count):
        sums[-1] += amounts[i]
    start, weighted, target = paired.ctypes.data, paired[1].ctypes.data, totals.ctypes.data
    _pair(start, weighted, batch.ctypes.data, amounts.ctypes.data, pairs)  # type: ignore[call-arg]
    features = _taps(sums.size) + 1
    for a in range(0, features, _ROWS):
        vectors = a // _LANES + 1
        at = weighted + a * 4, start, pairs, target + a * PITCH * 4
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
def _pair(typing: Any, out: Any, weighted: Any, batch: Any, amounts: Any, pairs: Any) -> Any:
    """Put each feature next to that of another sample, as it is and weighted.

    The arguments are addresses, and how many pairs of samples there are.
    """

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        out, weighted, batch, amounts, pairs = (Value(builder, value) for value in args)
        woven = [lane for n in range(_LANES) for lane in (n, _LANES + n)]
        with pairs.range() as i:
            amount = (amounts + i * 4).load(INT32).spread(_LANES).bits(_PAIRS)
            here = i * (4 * PITCH)
            for n in range(PITCH // _LANES):
                first = batch + here + 2 * _LANES * n
                both = first.load(_HALF).picked(woven, (first + 2 * PITCH).load(_HALF))
                (out + here + 4 * _LANES * n).store(both)
                (weighted + here + 4 * _LANES * n).store(both * amount)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), write


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
