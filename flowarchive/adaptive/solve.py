"""Filters out of sums: float64 operations whose order is fixed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowarchive.adaptive.rows import CLASSES, MOST_HALVINGS, WEIGHT_BITS, WEIGHT_LIMIT
from flowarchive.ans import compiled
from flowarchive.lattice import Int32

# The mean squared error of a class is taken to be this until there are more samples than that.
_FIRST_VARIANCE = 4.0
_FIRST = 16.0

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


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
        faded: float64 [products, phases * CLASSES], the older sums in squared steps.
        sums: int64 [phases, CLASSES, products] of `rows.add_rows`; zero on return.
        defaults: int32 [phases, CLASSES, taps].
        weights: int32 [phases, CLASSES, taps], written.
        decay: What the older sums still count.
        global_ridge: See `LinearPredictor`.
        class_ridge: See there.
    """
    phases, classes, size = weights.shape
    lanes = phases * classes
    pairs = size * (size + 1) // 2
    start = np.empty((size, lanes))
    right = np.empty((size, lanes))
    lower = np.empty((pairs, lanes))
    ridges = np.empty(lanes)
    common = np.empty((size, phases))
    shared = np.empty((pairs, phases))
    for i in range(faded.shape[0]):
        for n in range(phases):
            for c in range(classes):
                # Features are in quarters: 16 units of their products are one squared step.
                unit = 1.0 / (16 << MOST_HALVINGS[c >> 2])
                lane = n * classes + c
                faded[i, lane] = faded[i, lane] * decay + sums[n, c, i] * unit
    sums[:] = 0
    for n in range(phases):
        for c in range(classes):
            for k in range(size):
                start[k, n * classes + c] = defaults[n, c, k] * (1.0 / (1 << WEIGHT_BITS))
    _rest(right, faded, start)
    _sum_classes(shared, faded)
    _sum_classes(common, right)
    ridges[:phases] = global_ridge
    _solve(shared, common, ridges[:phases])
    for k in range(size):
        for lane in range(lanes):
            start[k, lane] += common[k, lane // classes]
    _rest(right, faded, start)
    lower[:] = faded[:pairs]
    for lane in range(lanes):
        errors = faded[pairs + size, lane]
        for k in range(size):
            errors -= start[k, lane] * (faded[pairs + k, lane] + right[k, lane])
        # The weights have the unit of the products, a sixteenth.
        samples = 16.0 * faded[pairs + size + 1, lane]
        variance = (max(errors, 0.0) + _FIRST * _FIRST_VARIANCE) / (samples + _FIRST)
        ridges[lane] = max(class_ridge * variance, 1.0)
    _solve(lower, right, ridges)
    for k in range(size):
        for lane in range(lanes):
            value = np.floor((start[k, lane] + right[k, lane]) * (1 << WEIGHT_BITS) + 0.5)
            value = min(max(value, -WEIGHT_LIMIT), WEIGHT_LIMIT)
            weights[lane // classes, lane % classes, k] = np.int32(value)


@compiled
def _sum_classes(out: Float64, values: Float64) -> None:
    """Sum the lanes of each phase, the first class first."""
    rows, phases = out.shape
    for i in range(rows):
        for n in range(phases):
            total = values[i, n * CLASSES]
            for c in range(1, CLASSES):
                total += values[i, n * CLASSES + c]
            out[i, n] = total


@compiled
def _rest(out: Float64, products: Float64, filters: Float64) -> None:
    """Set `out` to b - M w, [taps, lanes]."""
    size, lanes = out.shape
    flat, source, weights = out.reshape(-1), products.reshape(-1), filters.reshape(-1)
    last = size * (size + 1) // 2
    for k in range(size):
        out[k] = products[last + k]
        for j in range(size):
            pair = k * (k + 1) // 2 + j if j <= k else j * (j + 1) // 2 + k
            _subtract(flat, k * lanes, source, pair * lanes, weights, j * lanes, lanes)


@compiled
def _solve(products: Float64, target: Float64, ridges: Float64) -> None:
    """Solve (M + ridge) x = target in each lane; both arrays are overwritten, `target` by x.

    M [pairs, lanes] = L D L' with a unit diagonal in L, row by row; the inverse of D takes the
    diagonal's place.
    """
    size, lanes = target.shape
    lower, right = products.reshape(-1), target.reshape(-1)
    # Of the row at hand, L D.
    row = np.empty(size * lanes)
    of_i = 0
    for i in range(size):
        of_j = 0
        for j in range(i + 1):
            at, to = of_i + j * lanes, j * lanes
            row[to : to + lanes] = lower[at : at + lanes]
            if j == i:
                for n in range(lanes):
                    row[to + n] += ridges[n]
            for k in range(j):
                _subtract(row, to, row, k * lanes, lower, of_j + k * lanes, lanes)
            if j < i:
                for n in range(lanes):
                    lower[at + n] = row[to + n] * lower[of_j + to + n]
            else:
                for n in range(lanes):
                    lower[at + n] = 1.0 / row[to + n]
            of_j += (j + 1) * lanes
        of_i += (i + 1) * lanes
    of_i = 0
    for i in range(size):
        for k in range(i):
            _subtract(right, i * lanes, lower, of_i + k * lanes, right, k * lanes, lanes)
        of_i += (i + 1) * lanes
    for i in range(size - 1, -1, -1):
        of_i -= (i + 1) * lanes
        for n in range(lanes):
            right[i * lanes + n] *= lower[of_i + i * lanes + n]
        for k in range(i + 1, size):
            of_k = k * (k + 1) // 2 * lanes
            _subtract(right, i * lanes, lower, of_k + i * lanes, right, k * lanes, lanes)


@compiled
def _subtract(
    out: Float64, to: int, a: Float64, at: int, b: Float64, begin: int, count: int
) -> None:
    """Subtract a product, two roundings, from each of `count` elements."""
    i, j, k = np.uint64(to), np.uint64(at), np.uint64(begin)
    for n in range(np.uint64(count)):
        out[i + n] -= a[j + n] * b[k + n]
