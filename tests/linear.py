"""Adaptive linear prediction in Python integers and floats: slow and plain."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from flowarchive.lattice import BORDER, PHASES, phase_shape

Array = np.ndarray
Filters = list[list[float]]

PATCH = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)] + [(0, -2), (0, 2), (-2, 0), (2, 0)]
PLUS = [(0, 0), (0, -1), (0, 1), (-1, 0), (1, 0)]
HALVINGS = [1, 3, 5, 7]
CLASSES = 16


class Sample(NamedTuple):
    base: int
    features: list[int]
    target: int
    kind: int
    weight: int


def sample(planes: list[Array], phase: int, shift: int, y: int, x: int) -> Sample:
    """What is known of a sample of a phase, and it itself; three planes or, for chroma, six."""
    taps = PHASES[phase]
    row, column = BORDER + 2 * y + taps.row, BORDER + 2 * x + taps.column

    def value(n: int, dy: int = 0, dx: int = 0) -> int:
        return int(planes[n][row + dy, column + dx])

    def mean(n: int) -> int:
        return (sum(value(n, *tap) for tap in taps.near) + 2) // 4

    def feature(difference: int) -> int:
        return min(max((difference + 2**shift // 2) // 2**shift, -1023), 1023)

    base = mean(0)
    found = [feature(value(0, *tap) - base) for tap in taps.near + taps.far]
    found += [feature(value(n, *tap) - base) for n in (1, 2) for tap in PATCH]
    if len(planes) == 6:
        found += [feature(value(3, *tap) - value(4, *tap)) for tap in PLUS]
        found += [feature(value(3) - value(5)), feature(value(3) - mean(3))]
    near = found[:4]
    spread = sum(map(abs, near))
    wide = sum(spread >= edge for edge in (32, 80, 160))
    kind = 4 * wide + 2 * (abs(feature(value(1) - mean(1))) >= 16)
    kind += abs(near[0] - near[3]) > abs(near[1] - near[2])
    halvings = sum(spread >= edge for edge in (21, 44, 70, 103, 149, 213, 303))
    weight = 2 ** (HALVINGS[wide] - halvings)
    return Sample(base, found, feature(value(0) - base), kind, weight)


def predictions(
    planes: list[Array], phase: int, shift: int, low: int, high: int, weights: Array
) -> Array:
    """Predictions on a phase's whole grid; `weights` of the slot, [CLASSES, taps]."""
    h, w = (side - 2 * BORDER for side in planes[0].shape)
    out = np.empty(((h + 1) // 2, (w + 1) // 2), dtype=np.int32)
    for y, x in np.ndindex(out.shape):
        seen = sample(planes, phase, shift, y, x)
        total = sum(int(a) * b for a, b in zip(weights[seen.kind], seen.features, strict=True))
        value = 64 * seen.base + (total + 2 ** (8 - shift) // 2) // 2 ** (8 - shift)
        out[y, x] = min(max(value, low), high)
    return out


def equations(planes: list[Array], phase: int, shift: int, rows: range) -> list[list[int]]:
    """The sums of some rows of a phase, [CLASSES][products]."""
    h, w = (side - 2 * BORDER for side in planes[0].shape)
    size = 39 if len(planes) == 3 else 46
    sums = [[0] * (size * (size + 1) // 2 + 1) for _ in range(CLASSES)]
    for y in rows:
        for x in range(phase_shape((h, w), PHASES[phase])[1]):
            seen = sample(planes, phase, shift, y, x)
            values = [*seen.features, seen.target]
            pairs = [values[k] * values[j] for k in range(size) for j in range(k + 1)]
            of_class = sums[seen.kind]
            for i, product in enumerate([*pairs, 1]):
                of_class[i] += seen.weight * product
    return sums


def fade(faded: list[list[float]], sums: list[list[int]], decay: float) -> list[list[float]]:
    """Older sums and new ones, [CLASSES][products], in squared steps."""
    units = [1 / (16 * 2 ** HALVINGS[c // 4]) for c in range(CLASSES)]
    return [
        [a * decay + b * unit for a, b in zip(old, new, strict=True)]
        for old, new, unit in zip(faded, sums, units, strict=True)
    ]


def solve(
    faded: list[list[float]], defaults: Array, global_ridge: float, class_ridge: float
) -> Array:
    """The filters of a slot, [CLASSES, taps]."""
    size = defaults.shape[1]
    start = [[int(d) / 2**14 for d in of_class] for of_class in defaults]
    rests = [_rest(m, w) for m, w in zip(faded, start, strict=True)]
    pairs = size * (size + 1) // 2
    shared, right = [_ordered(c) for c in zip(*faded, strict=True)][:pairs], []
    right = [_ordered(c) for c in zip(*rests, strict=True)]
    common = _system(shared, right, global_ridge)
    weights = np.empty(defaults.shape, dtype=np.int32)
    for c, products in enumerate(faded):
        filters = [a + b for a, b in zip(start[c], common, strict=True)]
        rest = _rest(products, filters)
        errors = products[pairs + size]
        for k in range(size):
            errors -= filters[k] * (products[pairs + k] + rest[k])
        samples = 16.0 * products[pairs + size + 1]
        variance = (max(errors, 0.0) + 16.0 * 4.0) / (samples + 16.0)
        change = _system(products[:pairs], rest, max(class_ridge * variance, 1.0))
        for k in range(size):
            value = math.floor((filters[k] + change[k]) * 2**14 + 0.5)
            weights[c, k] = min(max(value, -32767), 32767)
    return weights


def _ordered(values: tuple[float, ...]) -> float:
    total = values[0]
    for value in values[1:]:
        total += value
    return total


def _rest(products: list[float], filters: list[float]) -> list[float]:
    size = len(filters)
    out = []
    for k in range(size):
        rest = products[size * (size + 1) // 2 + k]
        for j in range(size):
            high, low = max(j, k), min(j, k)
            rest -= products[high * (high + 1) // 2 + low] * filters[j]
        out.append(rest)
    return out


def _system(products: list[float], right: list[float], ridge: float) -> list[float]:
    size = len(right)
    lower: list[list[float]] = []
    inverse: list[float] = []
    for i in range(size):
        row: list[float] = []
        for j in range(i + 1):
            value = products[i * (i + 1) // 2 + j]
            if j == i:
                value += ridge
            of_j = lower[j] if j < i else [a * b for a, b in zip(row, inverse, strict=True)]
            for k in range(j):
                value -= row[k] * of_j[k]
            row.append(value)
        lower.append([row[j] * inverse[j] for j in range(i)])
        inverse.append(1.0 / row[i])
    x = list(right)
    for i in range(size):
        for k in range(i):
            x[i] -= lower[i][k] * x[k]
    for i in reversed(range(size)):
        x[i] *= inverse[i]
        for k in range(i + 1, size):
            x[i] -= lower[k][i] * x[k]
    return x
