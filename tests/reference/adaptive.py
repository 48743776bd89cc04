"""Section "Adaptive prediction": filters that learn from inter frames."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from reference.lattice import PHASES, Around, level_count, places, take
from reference.networks import clamp

Plane = list[list[int]]
Floats = list[float]

BLOCK = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
PATCH = [*BLOCK, (0, -2), (0, 2), (-2, 0), (2, 0)]
PLUS = [(0, 0), (0, -1), (0, 1), (-1, 0), (1, 0)]
HALVINGS = (1, 3, 5, 7)
CLASSES, GROUPS = 16, 3


class Taps(NamedTuple):
    """What is known of one sample: B, f, the class and `spread`."""

    base: int
    taps: list[int]
    kind: int
    spread: int


def near(x: Around) -> int:
    """The rounded mean of the four nearest samples."""
    return (sum(x.near()) + 2) >> 2


def value(v: int, shift: int) -> int:
    """V(v)."""
    return clamp((v + 2**shift // 2) >> shift, -1023, 1023)


def group_of(level: int) -> int:
    """The group of a level."""
    return min(level, GROUPS - 1)


def look(planes: list[Around], shift: int) -> Taps:
    """The taps and the class of a sample; P, R, Q and, for chroma, G, GR, GQ."""
    p, r, q = planes[:3]
    base = near(p)
    steps = [v - base for v in p.near() + p.far()]
    steps += [x.at(*offset) - base for x in (r, q) for offset in PATCH]
    if len(planes) > 3:
        g, gr, gq = planes[3:]
        steps += [g.at(*offset) - gr.at(*offset) for offset in PLUS]
        steps += [g.at() - gq.at(), g.at() - near(g)]
    f = [value(step, shift) for step in steps]
    spread = sum(map(abs, f[:4]))
    wide = sum(spread >= edge for edge in (32, 80, 160))
    kind = 4 * wide + 2 * (abs(value(r.at() - near(r), shift)) >= 16)
    kind += abs(f[0] - f[3]) > abs(f[1] - f[2])
    return Taps(base, f, kind, spread)


class Predictor:
    """The filters of one plane.

    Args:
        filters: The tensor to begin with, [group][phase][class][tap].
        shift: The chunk's.
        low: Of the plane's samples.
        high: Alike.
    """

    def __init__(
        self, filters: list[list[list[list[int]]]], shift: int, low: int, high: int
    ) -> None:
        self.defaults = self.filters = filters
        self.size = len(filters[0][0][0])
        self.shift, self.low, self.high = shift, low, high
        self.frame = 0
        count = (self.size + 1) * (self.size + 2) // 2 + 1
        self.old = {
            (group, phase): [[0.0] * count for _ in range(CLASSES)]
            for group in range(GROUPS)
            for phase in range(len(PHASES))
        }

    def predict(self, planes: list[Around], level: int, phase: int) -> int:
        """The adaptive prediction of one sample."""
        seen = look(planes, self.shift)
        w = self.filters[group_of(level)][phase][seen.kind]
        total = sum(a * b for a, b in zip(w, seen.taps, strict=True))
        prediction = 64 * seen.base + ((total + 2 ** (8 - self.shift) // 2) >> (8 - self.shift))
        return clamp(prediction, 256 * self.low, 256 * self.high)

    def learn(self, planes: list[Plane]) -> None:
        """Section "Learning": from whole planes in quarters, in the order of `look`."""
        sums = {slot: [[0] * len(of_class) for of_class in old] for slot, old in self.old.items()}
        for level in range(level_count(len(planes[0]), len(planes[0][0]))):
            parts = [take(plane, level) for plane in planes]
            for number, phase in enumerate(PHASES):
                every = places(parts[0], phase)
                n = len(every)
                stride = max(1, min(4, -(-n // 2**14)), -(-n // 2**17))
                for i, j in every:
                    if i % stride == self.frame % stride:
                        around = [Around(part, phase, i, j) for part in parts]
                        self._add(sums[group_of(level), number], around)
        new = []
        for group in range(GROUPS):
            new.append([])
            for number in range(len(PHASES)):
                old = self.old[group, number]
                for c, of_class in enumerate(sums[group, number]):
                    unit = 1 / (16 * 2 ** HALVINGS[c // 4])
                    old[c] = [a * 0.85 + b * unit for a, b in zip(old[c], of_class, strict=True)]
                new[group].append(self._solve(old, self.defaults[group][number]))
        self.filters = new
        self.frame += 1

    def _add(self, sums: list[list[int]], around: list[Around]) -> None:
        seen = look(around, self.shift)
        g = [*seen.taps, value(around[0].at() - seen.base, self.shift)]
        halvings = sum(seen.spread >= edge for edge in (21, 44, 70, 103, 149, 213, 303))
        weight = 2 ** (HALVINGS[seen.kind // 4] - halvings)
        of_class, at = sums[seen.kind], 0
        for k, a in enumerate(g):
            a *= weight
            for b in g[: k + 1]:
                of_class[at] += a * b
                at += 1
        of_class[at] += weight

    def _solve(self, old: list[Floats], filters: list[list[int]]) -> list[list[int]]:
        """Section "Solving", of one group and phase."""
        if not any(map(any, old)):
            return filters  # What comes out where all sums are 0, sooner.
        t = self.size
        pairs = t * (t + 1) // 2
        d = [[w / 2**14 for w in of_class] for of_class in filters]
        rests = [rest(m, w) for m, w in zip(old, d, strict=True)]
        x = solve(
            [in_order(column) for column in zip(*(m[:pairs] for m in old), strict=True)],
            [in_order(column) for column in zip(*rests, strict=True)],
            30.0,
        )
        result = []
        for m, of_class in zip(old, d, strict=True):
            s = [a + b for a, b in zip(of_class, x, strict=True)]
            if not any(m):
                result.append([rounded(w) for w in s])  # What comes out, sooner.
                continue
            r = rest(m, s)
            e = m[pairs + t]
            for k in range(t):
                e -= s[k] * (m[pairs + k] + r[k])
            variance = (max(e, 0.0) + 64.0) / (16.0 * m[pairs + t + 1] + 16.0)
            z = solve(m[:pairs], r, max(200.0 * variance, 1.0))
            result.append([rounded(a + b) for a, b in zip(s, z, strict=True)])
        return result


def rounded(w: float) -> int:
    """A weight of a filter."""
    return clamp(math.floor(w * 2**14 + 0.5), -32767, 32767)


def in_order(values: Iterable[float]) -> float:
    """A sum from left to right; the built-in one is more exact than it may be."""
    first, *others = values
    for v in others:
        first += v
    return first


def rest(m: Floats, w: Floats) -> Floats:
    """What the filters of a class leave of its equations."""
    t = len(w)
    result = []
    for k in range(t):
        r = m[t * (t + 1) // 2 + k]
        for j in range(t):
            high, low = max(j, k), min(j, k)
            r -= m[high * (high + 1) // 2 + low] * w[j]
        result.append(r)
    return result


def solve(m: Floats, b: Floats, ridge: float) -> Floats:
    """The procedure at the end of section "Solving"."""
    t = len(b)
    lower: list[Floats] = []
    inverse: Floats = []
    for i in range(t):
        u: Floats = []
        lower.append([])
        for j in range(i + 1):
            v = m[i * (i + 1) // 2 + j]
            if j == i:
                v += ridge
            for k in range(j):
                v -= u[k] * lower[j][k]
            u.append(v)
            if j < i:
                lower[i].append(v * inverse[j])
            else:
                inverse.append(1.0 / v)
    x = list(b)
    for i in range(t):
        for k in range(i):
            x[i] -= lower[i][k] * x[k]
    for i in reversed(range(t)):
        x[i] *= inverse[i]
        for k in range(i + 1, t):
            x[i] -= lower[k][i] * x[k]
    return x
