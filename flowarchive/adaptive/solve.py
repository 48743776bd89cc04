"""Filters out of sums: float64 operations whose order is fixed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from flowarchive.adaptive.rows import CLASSES, WEIGHT_BITS, WEIGHT_LIMIT
from flowarchive.adaptive.samples import MOST_HALVINGS
from flowarchive.lattice import Int32
from flowarchive.loops import compiled
from flowarchive.vectors import FLOAT64, Value, lanes

# The mean squared error of a class is taken to be this until there are more samples than that.
_FIRST_VARIANCE = 4.0
_FIRST = 16.0

# Systems that are solved side by side, one in each lane of a vector, and rows of each that are
# worked on at a time, so that additions need not wait for each other.
_LANES = 8
_ROWS = 4
_VECTOR = lanes(FLOAT64, _LANES)
_SIZE = 8 * _LANES

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


def no_sums(phases: int, products: int) -> Float64:
    """Return sums for `fade_and_solve` to begin with.

    Returns:
        float64 zeros [blocks, products, lanes]; lanes of blocks are the classes of each phase.
    """
    return np.zeros((phases * CLASSES // _LANES, products, _LANES))


@compiled
def fade_and_solve(
    faded: Float64,
    sums: Int64,
    defaults: Int32,
    weights: Int32,
    decay: float,
    global_ridge: float,
    class_ridge: float,
) -> None:
    """Fade a level group's older sums, add and clear the new ones, and solve for its weights.

    For each phase, with M the products of features, b those with the target and d the default
    filter of a class, all in steps: (sum over classes of M + ridge) g = sum of (b - M d), then for
    each class (M + ridge) (w - d - g) = b - M (d + g).

    Every element is the result of the same float64 operations in the same order wherever this
    runs; systems are solved side by side, so that vectors need not change that order.

    A class's ridge is `class_ridge` times its mean squared error, as its filter d + g has it.

    Nothing here can be infinite or divide by zero. M is a sum of squares: its trace is at most
    that of 45 taps of 2**8 steps, 2**19 samples (of four levels), and 7 frames that have not
    faded, 2**43.3 in all. Rounding then moves a pivot, which without it is at least the ridge, by
    less than 1/4; ridges are at least 1.

    Args:
        faded: float64 of `no_sums`, the older sums in squared steps.
        sums: int64 [phases, CLASSES, products] of `rows.add_rows`; zero on return.
        defaults: int32 [phases, CLASSES, taps].
        weights: int32 [phases, CLASSES, taps], written.
        decay: What the older sums still count.
        global_ridge: See `LinearPredictor`.
        class_ridge: See there.
    """
    classes, size = weights.shape[1:]
    blocks, last = len(faded), size * (size + 1) // 2
    # Of a block M and b, its last row; zeros for rows that fill up the last _ROWS.
    rows = (size + _ROWS) // _ROWS * _ROWS
    triangle = np.zeros((rows * (rows + 1) // 2, _LANES))
    reduced = np.empty((_ROWS + 1, rows, _LANES))
    filters = np.empty((blocks, size, _LANES))
    rests = np.empty((blocks, rows, _LANES))
    ridges = np.empty(_LANES)
    for n in range(blocks * _LANES):
        for k in range(size):
            weight = defaults[n // classes, n % classes, k]
            filters[n // _LANES, k, n % _LANES] = weight * (1.0 / (1 << WEIGHT_BITS))
    _fade(faded, sums, decay)
    for block in range(blocks):
        _find_rest(rests[block], faded[block], filters[block])
    common = triangle[last:]
    _sum_classes(triangle, faded, last)
    _sum_classes(common, rests, size)
    ridges[:] = global_ridge
    _solve(triangle, reduced, ridges, size)
    for n in range(blocks * _LANES):
        for k in range(size):
            filters[n // _LANES, k, n % _LANES] += common[k, n // classes]
    for block in range(blocks):
        of_block, rest, start = faded[block], rests[block], filters[block]
        _find_rest(rest, of_block, start)
        for n in range(_LANES):
            errors = of_block[last + size, n]
            for k in range(size):
                errors -= start[k, n] * (of_block[last + k, n] + rest[k, n])
            # The weights have the unit of the products, a sixteenth.
            samples = 16.0 * of_block[last + size + 1, n]
            variance = (max(errors, 0.0) + _FIRST * _FIRST_VARIANCE) / (samples + _FIRST)
            ridges[n] = max(class_ridge * variance, 1.0)
        triangle[:last] = of_block[:last]
        triangle[last : last + size] = rest[:size]
        _solve(triangle, reduced, ridges, size)
        for n in range(_LANES):
            system = block * _LANES + n
            for k in range(size):
                value = (start[k, n] + triangle[last + k, n]) * (1 << WEIGHT_BITS)
                value = min(max(np.floor(value + 0.5), -WEIGHT_LIMIT), WEIGHT_LIMIT)
                weights[system // classes, system % classes, k] = np.int32(value)


@compiled
def _fade(faded: Float64, sums: Int64, decay: float) -> None:
    """Let older sums fade, and add and clear the new ones."""
    units = np.empty(CLASSES)
    for c in range(CLASSES):
        # Features are in quarters: 16 units of their products are one squared step.
        units[c] = 1.0 / (16 << MOST_HALVINGS[c >> 2])
    for block in range(len(faded)):
        phase, first = block * _LANES // CLASSES, block * _LANES % CLASSES
        for i in range(faded.shape[1]):
            for n in range(_LANES):
                new = sums[phase, first + n, i] * units[first + n]
                faded[block, i, n] = faded[block, i, n] * decay + new
    sums[:] = 0


@compiled
def _sum_classes(out: Float64, values: Float64, count: int) -> None:
    """Sum `count` numbers of each phase over its classes, the first class first."""
    for i in range(count):
        out[i] = 0.0
        for phase in range(len(values) * _LANES // CLASSES):
            block = phase * CLASSES // _LANES
            total = values[block, i, 0]
            for c in range(1, CLASSES):
                total += values[block + c // _LANES, i, c % _LANES]
            out[i, phase] = total


@compiled
def _find_rest(rest: Float64, packed: Float64, filters: Float64) -> None:
    """Set `rest` to b - M w of the systems of a block."""
    size = len(filters)
    out, a, b = rest.ctypes.data, packed.ctypes.data, filters.ctypes.data
    for k in range(0, size, _ROWS):
        _rest_of_rows(out + k * _SIZE, a, b, size, k)  # type: ignore[call-arg]


@compiled
def _solve(triangle: Float64, reduced: Float64, ridges: Float64, size: int) -> None:
    """Solve (M + ridge) x = b in each lane; x takes the place of b, and M is overwritten.

    M = L D L' with a unit diagonal in L, row by row. `reduced` receives of the rows at hand L D,
    and the inverse of D. With b for one more row of M the same steps make (D L')**-1 b of it.
    """
    start = triangle.ctypes.data
    rows = reduced.shape[1]
    for k in range(rows):
        for n in range(_LANES):
            # What comes of the diagonal behind M does not matter, but it is to be a number.
            at = k * (k + 3) // 2
            triangle[at, n] = triangle[at, n] + ridges[n] if k < size else 1.0
    for i in range(0, size + 1, _ROWS):
        _factor(start, reduced.ctypes.data, rows * _SIZE, i)  # type: ignore[call-arg]
    x = start + size * (size + 1) // 2 * _SIZE
    for i in range(size - 2, -1, -1):
        _substitute(x, start, size, i)  # type: ignore[call-arg]


def _row(start: Value, i: Value) -> Value:
    """The address of row i of a triangle."""
    return start + ((i * (i + 1)) >> 1) * _SIZE


@intrinsic
def _rest_of_rows(typing: Any, out: Any, triangle: Any, filters: Any, size: Any, first: Any) -> Any:
    """Set _ROWS vectors of `out` to b - M w, where there are so many.

    The arguments are addresses: of these vectors; of M and b, row by row to the diagonal; and of
    w; then how many rows M has, and the first row.
    """

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        out, triangle, filters, size, first = (Value(builder, value) for value in args)
        # Where rows run out, others are worked on, and nobody looks at that.
        rows = [(first + r).at_most(size) for r in range(_ROWS)]
        starts = [_row(triangle, row) for row in rows]
        target = _row(triangle, size)
        totals = [(target + row * _SIZE).load(_VECTOR).variable() for row in rows]

        def subtract(j: Value, places: list[Value]) -> None:
            factor = (filters + j * _SIZE).load(_VECTOR)
            for total, place in zip(totals, places, strict=True):
                total.set(total.get() - place.load(_VECTOR) * factor)

        with first.range() as j:
            subtract(j, [start + j * _SIZE for start in starts])
        with (size - first).range() as more:
            j = first + more
            here = _row(triangle, j)
            # Of (i, j) and (j, i) the one that there is.
            subtract(
                j,
                [
                    (here + row * _SIZE).unless(j, "<", row, start + j * _SIZE)
                    for row, start in zip(rows, starts, strict=True)
                ],
            )
        for r, total in enumerate(totals):
            (out + r * _SIZE).store(total.get())
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), write


@intrinsic
def _factor(typing: Any, triangle: Any, reduced: Any, step: Any, first: Any) -> Any:
    """Replace _ROWS rows of M by those of L, when all rows before them have been.

    The arguments are the addresses of `triangle` and `reduced` as `_solve` has them, the distance
    in bytes between rows of the latter, and the first row.
    """

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        triangle, reduced, step, first = (Value(builder, value) for value in args)
        rows = [_row(triangle, first + r) for r in range(_ROWS)]
        changed = [reduced + step * r for r in range(_ROWS)]
        inverses = reduced + step * _ROWS

        def reduce(j: Value, start: Value, some: range) -> list[Value]:
            """Work out L D in a column of some of the rows."""
            totals = [(rows[r] + j * _SIZE).load(_VECTOR).variable() for r in some]
            with j.range() as k:
                factor = (start + k * _SIZE).load(_VECTOR)
                for r, total in zip(some, totals, strict=True):
                    total.set(total.get() - (changed[r] + k * _SIZE).load(_VECTOR) * factor)
            found = [total.get() for total in totals]
            for r, value in zip(some, found, strict=True):
                (changed[r] + j * _SIZE).store(value)
            return found

        def scale(j: Value, some: range, values: list[Value], inverse: Value) -> None:
            for r, value in zip(some, values, strict=True):
                (rows[r] + j * _SIZE).store(value * inverse)

        every = range(_ROWS)
        with first.range() as j:
            found = reduce(j, _row(triangle, j), every)
            scale(j, every, found, (inverses + j * _SIZE).load(_VECTOR))
        for i in every:
            j = first + i
            diagonal, *found = reduce(j, rows[i], every[i:])
            inverse = diagonal.constant(1.0) / diagonal
            (inverses + j * _SIZE).store(inverse)
            scale(j, every[i + 1 :], found, inverse)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), write


@intrinsic
def _substitute(typing: Any, x: Any, triangle: Any, size: Any, i: Any) -> Any:
    """Subtract from vector i of x the products of those behind it with column i of L.

    The arguments are addresses, how many vectors x has, and i.
    """

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, triangle, size, i = (Value(builder, value) for value in args)
        total = (x + i * _SIZE).load(_VECTOR).variable()
        with (size - i - 1).range() as more:
            k = i + 1 + more
            factor = (_row(triangle, k) + i * _SIZE).load(_VECTOR)
            total.set(total.get() - factor * (x + k * _SIZE).load(_VECTOR))
        (x + i * _SIZE).store(total.get())
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), write
