"""The filters of a plane, from frame to frame, and those to begin with."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowarchive.adaptive.rows import (
    BATCH,
    CLASSES,
    WEIGHT_LIMIT,
    add_rest,
    add_rows,
    predict_rows,
    products,
)
from flowarchive.adaptive.samples import CHROMA_TAPS, LUMA_TAPS, PITCH
from flowarchive.adaptive.solve import fade_and_solve, no_sums
from flowarchive.lattice import BORDER, PHASES, Int32, phase_shape

Int16 = NDArray[np.int16]
Int64 = NDArray[np.int64]
Planes = tuple[Int32, Int32, Int32]

LEVEL_GROUPS = 3

MANY_SAMPLES = 1 << 14
MAX_STRIDE = 4
MOST_SAMPLES = 1 << 17
"""Of phases with many samples every second row is learned from, then every third and fourth, and
fewer where these are still more than the most.
"""

DECAY = 0.85
GLOBAL_RIDGE = 30.0
CLASS_RIDGE = 200.0


def row_stride(shape: tuple[int, int]) -> int:
    """Return how many rows of a phase there are to each that is learned from."""
    samples = shape[0] * shape[1]
    return max(1, min(MAX_STRIDE, -(-samples // MANY_SAMPLES)), -(-samples // MOST_SAMPLES))


def level_group(level: int) -> int:
    """Return which of the LEVEL_GROUPS a level belongs to."""
    return min(level, LEVEL_GROUPS - 1)


class LinearPredictor:
    """The filters of one component plane, adapted from frame to frame.

    For each level from the top and each phase `predict`, then for each finished level `learn`, then
    `end_frame`.

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
            class_ridge: How strongly a class's change is held to the common one, per squared
                error of the class.
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
        self._sums = np.zeros((*slots, products(taps)), dtype=np.int64)
        self._faded = [no_sums(len(PHASES), products(taps)) for _ in range(LEVEL_GROUPS)]
        self._batches = _Batches()
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
            int32 [gh, gw] in 1/256 of a sample step, gh, gw = ceil(h / 2), ceil(w / 2), also where
            the phase has no sample.
        """
        h, w = plane.shape[0] - 2 * BORDER, plane.shape[1] - 2 * BORDER
        out = np.empty(((h + 1) // 2, (w + 1) // 2), dtype=np.int32)
        weights = self.weights[level_group(level), phase]
        context = plane, ref1, ref2, *(luma or (plane, plane, plane))
        predict_rows(out, *context, phase, shift, low, high, weights, 0, out.shape[0])
        return out

    def learn(
        self, plane: Int32, ref1: Int32, ref2: Int32, luma: Planes | None, level: int, shift: int
    ) -> None:
        """Note a finished level, to be learned from.

        Args:
            plane: int32 [h + 8, w + 8], bordered, in quarters, all phases known. Arrays are not
                copied and must stay as they are until `end_frame`.
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
        self._sums = np.zeros((*slots, products(taps)), dtype=np.int64)
        self._batches = _Batches()
        self._levels: list[_Level] = []
        self._frame = 0

    def learn(
        self, plane: Int32, ref1: Int32, ref2: Int32, luma: Planes | None, level: int, shift: int
    ) -> None:
        """Note a finished level, as `LinearPredictor.learn` does."""
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
            fade_and_solve(
                no_sums(len(PHASES), self._sums.shape[3]),
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

    def __init__(self) -> None:
        """Make room for samples."""
        self.features = np.empty((CLASSES, BATCH * PITCH), dtype=np.int16)
        self.amounts = np.empty((CLASSES, BATCH), dtype=np.int16)
        self.filled = np.zeros(CLASSES, dtype=np.int64)
        self.paired = np.empty((2, BATCH * PITCH), dtype=np.int16)
        self.totals = np.empty((PITCH, PITCH), dtype=np.int32)

    def arrays(self) -> tuple[Int16, Int16, Int64, Int16, Int32]:
        """Return what `add_rows` takes."""
        return self.features, self.amounts, self.filled, self.paired, self.totals


def _sum_levels(sums: Int64, batches: _Batches, levels: list[_Level], frame: int) -> None:
    """Add the normal equations of a frame's levels to those of their slots."""
    arrays = batches.arrays()
    for group in range(LEVEL_GROUPS):
        of_group = [level for level in levels if level_group(level.level) == group]
        for number, phase in enumerate(PHASES):
            of_slot = sums[group, number]
            for planes, _, shift in of_group:
                h, w = planes[0].shape[0] - 2 * BORDER, planes[0].shape[1] - 2 * BORDER
                rows, columns = phase_shape((h, w), phase)
                stride = row_stride((rows, columns))
                add_rows(of_slot, *arrays, *planes, number, shift, frame % stride, rows, stride)
            add_rest(of_slot, *arrays)
