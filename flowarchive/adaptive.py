"""Linear prediction that learns from the decoded past, one more anchor of the mixture.

Every sample of a phase is predicted from the known samples around it and from the two
motion-compensated references, by the filter of its class:

    taps - S --features--> clamped integers f --filter of the class--> A = S + sum(w * f)

S is the mean of the four nearest known samples. A class is a pair of: how far these four lie from
S, and how far the reference moves S. Encoder and decoder learn the filters from the same finished
planes: `learn` sums the normal equations, exactly; `end_frame` lets old sums fade, and solves them
in strictly ordered IEEE arithmetic. Nothing is stored.

Filters and sums belong to a *slot*: a level group (0, 1, 2 and above) and a phase of `lattice`.
Planes are bordered, in quarters of a sample step; their `shift` low bits are rounded away before
anything is multiplied.

This module knows lattices and integers. It must not know motion, networks or symbols.

References:
    Wu, Barthel and Zhang, "Piecewise 2D autoregression for predictive image coding", 1998, and
    Meyer and Tischer, "TMW", 1997, for least squares on the decoded past.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowarchive.ans import compiled
from flowarchive.lattice import BORDER, PHASES, Int32, phase_shape

__all__ = [
    "CHROMA_TAPS",
    "CLASSES",
    "LEVEL_GROUPS",
    "LUMA_TAPS",
    "PREDICTION_ONE",
    "DefaultFilters",
    "LinearPredictor",
    "level_group",
]

Int16 = NDArray[np.int16]
Int64 = NDArray[np.int64]
Uint64 = NDArray[np.uint64]
Float64 = NDArray[np.float64]
Whole = int | np.int32 | np.int64
Planes = tuple[Int32, Int32, Int32]

LEVEL_GROUPS = 3
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

SAMPLES_PER_PHASE = 1 << 14
"""Of larger phases every second, third ... row is learned from."""

# Sum of the four nearest samples' distances to S, in quarters: 2, 5 and 10 steps each.
_SPREAD_EDGES = (32, 80, 160)
# Distance of the reference's sample to the mean of its four, in quarters: 1.5, 4 and 9 steps.
_CHANGE_EDGES = (6, 16, 36)
# Spreads from which a sample counts half, a quarter ...: 1 / (1 + e**2 / 4), e in steps.
_WEIGHT_EDGES = (21, 44, 70, 103, 149, 213, 303)
# The most halvings in each spread class; within it weights are 1, 2 or 4 times what they leave.
_MOST_HALVINGS = (1, 3, 5, 7)

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
_BATCH = 512
# Samples of a row that are appended at a time.
_SEGMENT = 128
# From one row of a batch to the next. At powers of two they would drive each other out of the
# cache.
_PITCH = np.uint64(_BATCH + 32)
# Batches are filled up with samples of no weight to a multiple of this: loops have no scalar rest.
_LANES = 64

DECAY = 0.85
GLOBAL_RIDGE = 30.0
CLASS_RIDGE = 800.0


def level_group(level: int) -> int:
    """Return which of the LEVEL_GROUPS a level belongs to."""
    return min(level, LEVEL_GROUPS - 1)


class LinearPredictor:
    """The filters of one component plane, adapted from frame to frame.

    `luma` of the methods is None for a plane of LUMA_TAPS, else three planes like `plane` and the
    references: luma brought to this plane's grid, and its two compensated references.

    Attributes:
        weights: The filters, int32 [LEVEL_GROUPS, 3, CLASSES, taps] in 2**-14.
    """

    def __init__(
        self,
        defaults: Int32,
        decay: float = DECAY,
        global_ridge: float = GLOBAL_RIDGE,
        class_ridge: float = CLASS_RIDGE,
    ) -> None:
        """Begin with given filters.

        Args:
            defaults: int32 [LEVEL_GROUPS, 3, CLASSES, LUMA_TAPS or CHROMA_TAPS], at most
                WEIGHT_LIMIT.
            decay: What a frame's sums count one frame later.
            global_ridge: How strongly the change common to all classes is held to zero.
            class_ridge: How strongly a class's change is held to the common one.
        """
        taps = defaults.shape[-1]
        slots = (LEVEL_GROUPS, len(PHASES), CLASSES)
        if defaults.shape != (*slots, taps) or taps not in (LUMA_TAPS, CHROMA_TAPS):
            raise ValueError(f"filters are {list(slots)} + [taps], not {list(defaults.shape)}")
        if int(np.abs(defaults).max()) > WEIGHT_LIMIT:
            raise ValueError(f"a weight is larger than {WEIGHT_LIMIT}")
        self._constants = (decay, global_ridge, class_ridge)
        self._defaults = np.ascontiguousarray(defaults, dtype=np.int32)
        self.weights = self._defaults.copy()
        pairs = (taps + 1) * (taps + 2) // 2
        self._sums = np.zeros((*slots, pairs), dtype=np.int64)
        self._faded = np.zeros((LEVEL_GROUPS, pairs, len(PHASES) * CLASSES))
        self._batches = _Batches(taps)
        self._levels: list[_Level] = []
        self._frame = 0

    def predict(
        self,
        plane: Int32,
        ref1: Int32,
        ref2: Int32,
        luma: Planes | None,
        level: int,
        phase: int,
        shift: int,
        low: int,
        high: int,
    ) -> Int32:
        """Predict one phase of a level.

        Args:
            plane: int32 [h + 8, w + 8], bordered, in quarters; the phases before this one known.
            ref1: The compensated reference, alike.
            ref2: The other one, or the same.
            luma: See the class.
            level: Which level `plane` is of.
            phase: Index into `lattice.PHASES`.
            shift: Low bits to round away, 0..8.
            low: The least prediction, in 1/256 of a sample step.
            high: The greatest.

        Returns:
            int32 [phase rows, phase columns] in 1/256 of a sample step.
        """
        h, w = plane.shape[0] - 2 * BORDER, plane.shape[1] - 2 * BORDER
        out = np.empty(phase_shape((h, w), PHASES[phase]), dtype=np.int32)
        weights = self.weights[level_group(level), phase]
        context = plane, ref1, ref2, *(luma or (plane, plane, plane))
        predict_rows(out, *context, phase, shift, low, high, weights, 0, out.shape[0])
        return out

    def learn(
        self, plane: Int32, ref1: Int32, ref2: Int32, luma: Planes | None, level: int, shift: int
    ) -> None:
        """Sum the normal equations of a finished level.

        Args:
            plane: int32 [h + 8, w + 8], bordered, in quarters, all phases known.
            ref1: As it was given to `predict`, and so the rest.
            ref2: See `predict`.
            luma: See the class.
            level: See `predict`.
            shift: See `predict`.
        """
        self._levels.append(_Level((plane, ref1, ref2, *(luma or (plane,) * 3)), level, shift))

    def end_frame(self) -> None:
        """Learn from the frame's levels, and solve for the next frame's filters."""
        _sum_levels(self._sums, self._batches, self._levels, self._frame)
        for group in range(LEVEL_GROUPS):
            fade_and_solve(
                self._faded[group],
                self._sums[group],
                self._defaults[group],
                self.weights[group],
                *self._constants,
            )
        self._levels.clear()
        self._frame += 1


class DefaultFilters:
    """Filters fitted to many frames at once, for predictors to begin with."""

    def __init__(self, taps: int) -> None:
        """Begin with no frames.

        Args:
            taps: LUMA_TAPS or CHROMA_TAPS.
        """
        slots = (LEVEL_GROUPS, len(PHASES), CLASSES)
        self._taps = taps
        self._sums = np.zeros((*slots, (taps + 1) * (taps + 2) // 2), dtype=np.int64)
        self._batches = _Batches(taps)
        self._levels: list[_Level] = []
        self._frame = 0

    def learn(
        self, plane: Int32, ref1: Int32, ref2: Int32, luma: Planes | None, level: int, shift: int
    ) -> None:
        """Sum the normal equations of a level, as `LinearPredictor.learn` does."""
        self._levels.append(_Level((plane, ref1, ref2, *(luma or (plane,) * 3)), level, shift))

    def end_frame(self) -> None:
        """Sum the normal equations of the frame's levels."""
        _sum_levels(self._sums, self._batches, self._levels, self._frame)
        self._levels.clear()
        self._frame += 1

    def fit(self, global_ridge: float = 10.0, class_ridge: float = 100.0) -> Int32:
        """Return the filters, int32 [LEVEL_GROUPS, 3, CLASSES, taps] in 2**-14."""
        filters = np.zeros((*self._sums.shape[:3], self._taps), dtype=np.int32)
        for group in range(LEVEL_GROUPS):
            nothing = np.zeros((self._sums.shape[3], len(PHASES) * CLASSES))
            fade_and_solve(
                nothing,
                self._sums[group].copy(),
                filters[group].copy(),
                filters[group],
                0.0,
                global_ridge,
                class_ridge,
            )
        return filters


class _Level(NamedTuple):
    """A finished level, to be learned from."""

    planes: tuple[Int32, Int32, Int32, Int32, Int32, Int32]
    level: int
    shift: int


class _Batches:
    """Samples of a slot by class, waiting for enough of them to be multiplied."""

    def __init__(self, taps: int) -> None:
        self.features = np.empty((CLASSES, (taps + 1) * int(_PITCH)), dtype=np.int16)
        self.amounts = np.empty((CLASSES, _BATCH), dtype=np.int16)
        self.filled = np.zeros(CLASSES, dtype=np.int64)

    def arrays(self) -> tuple[Int16, Int16, Int64]:
        return self.features, self.amounts, self.filled


def _sum_levels(sums: Int64, batches: _Batches, levels: list[_Level], frame: int) -> None:
    """Add the normal equations of a frame's levels to those of their slots."""
    for slot in np.ndindex(LEVEL_GROUPS, len(PHASES)):
        group, phase = slot
        for planes, level, shift in levels:
            if level_group(level) == group:
                h, w = planes[0].shape[0] - 2 * BORDER, planes[0].shape[1] - 2 * BORDER
                rows, columns = phase_shape((h, w), PHASES[phase])
                stride = max(1, -(-rows * columns // SAMPLES_PER_PHASE))
                first = frame % stride
                add_rows(sums[slot], *batches.arrays(), *planes, phase, shift, first, rows, stride)
        add_rest(sums[slot], *batches.arrays())


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
    columns = np.uint64(spread.size)
    for x in range(columns):
        near = np.int32(abs(features[x])) + np.int32(abs(features[columns + x]))
        near += np.int32(abs(features[_TWO * columns + x]))
        near += np.int32(abs(features[_TWO * columns + columns + x]))
        change = np.int32(abs(features[to + x]))
        wide, far = np.int32(0), np.int32(0)
        for edge in _SPREAD_EDGES:
            wide += near >= edge
        for edge in _CHANGE_EDGES:
            far += change >= edge
        spread[x] = near
        classes[x] = 4 * wide + far


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
        sums: int64 [CLASSES, pairs].
        batches: int16 [CLASSES, (taps + 1) * _PITCH], samples that are not in the sums yet.
        amounts: int16 [CLASSES, _BATCH], their weights.
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
    taps = batches.shape[1] // np.int64(_PITCH) - 1
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
        if filled[c] + more[c] > _BATCH:
            _add_batch(sums[c], batches[c], amounts[c], filled[c])
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
        amounts[c, n] = 1 << (_MOST_HALVINGS[c >> _TWO] - halvings)
        place[i] = c * np.uint64(batches.shape[1]) + np.uint64(n)
        filled[c] = n + 1
    end = np.uint64(features.size)
    while start < end:
        for i in range(count):
            flat[place[i]] = features[start + i]
            place[i] += _PITCH
        start += columns


@compiled
def add_rest(sums: Int64, batches: Int16, amounts: Int16, filled: Int64) -> None:
    """Add what `add_rows` left in the batches to the sums, and empty them."""
    for c in range(CLASSES):
        n = filled[c]
        if n > 0:
            _add_batch(sums[c], batches[c], amounts[c], n)
            filled[c] = 0


@compiled
def _add_batch(sums: Int64, batch: Int16, amounts: Int16, count: int) -> None:
    """Add the weighted products of every two features of a batch of `count` samples."""
    # What lies behind them from earlier counts nothing.
    padded = (count + _LANES - 1) // _LANES * _LANES
    amounts[count:padded] = 0
    weighted = np.empty(_BATCH, dtype=np.int16)
    samples, pair, end = np.uint64(padded), np.uint64(0), np.uint64(batch.size)
    a = np.uint64(0)
    while a < end:
        for i in range(samples):
            weighted[i] = batch[a + i] * amounts[i]
        b = np.uint64(0)
        while b <= a:
            # This shape of a loop becomes multiply-and-add instructions of 16-bit pairs.
            total = np.int32(0)
            for i in range(samples):
                product = np.int32(np.int32(weighted[i]) * np.int32(batch[b + i]))
                total = np.int32(total + product)
            sums[pair] += total
            pair += _ONE
            b += _PITCH
        a += _PITCH


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

    Nothing here can be infinite or divide by zero. M is a sum of squares: its trace is at most
    that of 45 taps of 2**8 steps, 4 levels of 2**14 samples, and 7 frames that have not faded,
    2**41 in all. Rounding then moves a pivot, which without it is at least the ridge, by less
    than 1/8; ridges are at least 1.

    Args:
        faded: float64 [pairs, phases * CLASSES], the older sums in squared steps.
        sums: int64 [phases, CLASSES, pairs]; zero on return.
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
    common = np.empty((size, phases))
    shared = np.empty((pairs, phases))
    for i in range(faded.shape[0]):
        for n in range(phases):
            for c in range(classes):
                # Features are in quarters: 16 units of their products are one squared step.
                unit = 1.0 / (16 << _MOST_HALVINGS[c >> 2])
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
    _solve(shared, common, global_ridge)
    for k in range(size):
        for lane in range(lanes):
            start[k, lane] += common[k, lane // classes]
    _rest(right, faded, start)
    lower[:] = faded[:pairs]
    _solve(lower, right, class_ridge)
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
def _solve(products: Float64, target: Float64, ridge: float) -> None:
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
                    row[to + n] += ridge
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
    out: Float64, to: Whole, a: Float64, at: Whole, b: Float64, begin: Whole, count: int
) -> None:
    """Subtract a product, two roundings, from each of `count` elements."""
    i, j, k = np.uint64(to), np.uint64(at), np.uint64(begin)
    for n in range(np.uint64(count)):
        out[i + n] -= a[j + n] * b[k + n]
