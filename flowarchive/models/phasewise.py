"""Planes coded phase by phase: channels, network, mixture, symbols, for each level in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from flowarchive import features, int8, lattice
from flowarchive.adaptive import LinearPredictor, ScaleCorrection, level_group
from flowarchive.codec import Coder
from flowarchive.entropy import (
    SCALE_MIN_LOG2,
    SCALES_PER_OCTAVE,
    LogisticMixture,
)
from flowarchive.flows.phases import PhaseNet
from flowarchive.int8 import Bytes
from flowarchive.lattice import BORDER, PHASES, QUARTERS
from flowarchive.models.mixtures import Mixtures

if TYPE_CHECKING:
    from flowarchive.flows.couplings import Surroundings

Int32 = NDArray[np.int32]

LEVEL_NETS = 3
SCALE_ONE = -SCALE_MIN_LOG2 * SCALES_PER_OCTAVE  # scale index of a width of one sample step
INTRA_TOP = SCALE_ONE + 5 * SCALES_PER_OCTAVE
INTER_TOP = SCALE_ONE + SCALES_PER_OCTAVE

PART_POSITIONS = 1 << 12  # positions of a grid from which threads share the work

_P = TypeVar("_P")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Walk:
    """One way through a chunk.

    Attributes:
        coder: Knows the symbols, or reads them.
        threads: How many parts a plane is cut into; results do not depend on it.
        executor: Runs the parts; None for one thread.
    """

    coder: Coder
    threads: int = 1
    executor: Executor | None = None

    def map(self, function: Callable[[_P], _R], parts: Sequence[_P]) -> list[_R]:
        """Apply a function to every part."""
        if self.executor is None:
            return [function(part) for part in parts]
        others = [self.executor.submit(function, part) for part in parts[1:]]
        return [function(parts[0]), *(other.result() for other in others)]

    def beside(self) -> Walk | None:
        """Return a way for what comes next, of one thread; None where that has to wait."""
        coder = None if self.executor is None else self.coder.beside()
        return None if coder is None else Walk(coder, 1, self.executor)

    def start(self, function: Callable[..., _R], *arguments: Any) -> Future[_R]:
        """Call a function, in another thread where there is one."""
        if self.executor is not None:
            return self.executor.submit(function, *arguments)
        done: Future[_R] = Future()
        done.set_result(function(*arguments))
        return done


@dataclass(frozen=True)
class Range:
    """The samples a plane may hold, and how deep they are.

    Attributes:
        low: The least sample.
        high: The greatest.
        bits: Depth of the frame's samples, 8..16.
        shift: Low bits that networks do not see.
    """

    low: int
    high: int
    bits: int
    shift: int

    @cached_property
    def coder(self) -> LogisticMixture:
        """The entropy model that holds every sample."""
        return LogisticMixture(self.low, self.high, 24 + (self.bits - 8) // 2)


@dataclass(frozen=True)
class References:
    """What an inter frame's planes are predicted from.

    Attributes:
        first: The planes of the last frame, compensated, int32 [N, h, w] in quarters.
        second: Alike, of the frame before; or the first again.
        predictors: The adaptive predictor of each plane.
        correction: Corrects the scales of all these planes.
        learning: Receives what these go on to learn from, once the planes are coded.
    """

    first: Int32
    second: Int32
    predictors: Sequence[LinearPredictor]
    correction: ScaleCorrection
    learning: list[Future[None]]


def code_planes(
    walk: Walk,
    nets: Sequence[PhaseNet],
    known: Int32,
    luma: tuple[Int32, ...] | None,
    references: References | None,
    samples: Range,
) -> Int32:
    """Code planes that go together.

    Args:
        walk: The end of the walk, and its threads.
        nets: Of the LEVEL_NETS groups of levels.
        known: Samples int32 [N, h, w]; a `Reader` looks at the shape alone.
        luma: For chroma, luma on the same grid in quarters, [N / 2, h, w], and with references
            theirs.
        references: None for intra frames.
        samples: What the planes may hold.

    Returns:
        The samples, int32 [N, h, w].
    """
    correction = ScaleCorrection() if references is None else references.correction
    whole = known * QUARTERS
    lessons: list[_Lesson] = []
    _code_top(walk.coder, samples.coder, whole, references, samples)
    for level in reversed(range(lattice.level_count(known.shape[1:]))):
        net = nets[min(level, LEVEL_NETS - 1)]
        views = _Views(whole, level, luma, references)
        lessons.append(_code_level(walk, correction, net, views, level, samples))
        step = 1 << level
        whole[:, ::step, ::step] = views.plane[:, BORDER:-BORDER, BORDER:-BORDER]
    if references is not None:
        references.learning.append(walk.start(_learn, references, lessons, samples.shift))
    return whole // QUARTERS


class _Lesson(NamedTuple):
    """A level that has been coded, to be learned from.

    Attributes:
        level: Which level.
        views: What it was predicted from.
        costs: For each phase what `ScaleCorrection.learn` takes.
    """

    level: int
    views: _Views
    costs: list[tuple[int, int, Int32, Int32, Int32, Int32]]


def _learn(references: References, lessons: list[_Lesson], shift: int) -> None:
    """Let predictors and correction learn from the levels that have been coded."""
    for level, views, costs in lessons:
        for n, predictor in enumerate(references.predictors):
            predictor.learn(*views.of_plane(n), level, shift)
        for arguments in costs:
            references.correction.learn(*arguments)
    for predictor in references.predictors:
        predictor.end_frame()
    references.correction.end_frame()


class _Views:
    """A level of everything that its samples are predicted from, with borders."""

    def __init__(
        self,
        whole: Int32,
        level: int,
        luma: tuple[Int32, ...] | None,
        references: References | None,
    ) -> None:
        self.plane = lattice.bordered(whole, level)
        self.luma = None if luma is None else tuple(lattice.bordered(p, level) for p in luma)
        self.references: tuple[Int32, Int32] | None = None
        self.predictors: Sequence[LinearPredictor] = ()
        if references is not None:
            first = lattice.bordered(references.first, level)
            same = references.second is references.first
            second = first if same else lattice.bordered(references.second, level)
            self.references, self.predictors = (first, second), references.predictors

    def cut(self, planes: slice, rows: slice) -> _Views:
        """Return a part of the planes, or of the rows of a single plane; nothing is copied."""
        part = copy(self)
        fold = 1 if self.luma is None else len(self.plane) // len(self.luma[0])
        lumas = slice(planes.start // fold, -(-planes.stop // fold))
        part.plane = self.plane[planes, rows]
        if self.luma is not None:
            part.luma = tuple(plane[lumas, rows] for plane in self.luma)
        if self.references is not None:
            first, second = self.references
            part.references = first[planes, rows], second[planes, rows]
            part.predictors = self.predictors[planes]
        return part

    def of_plane(self, n: int) -> tuple[Int32, Int32, Int32, tuple[Int32, Int32, Int32] | None]:
        """Plane, references and luma of the n-th plane, as `adaptive` takes them."""
        assert self.references is not None
        first, second = self.references
        luma = None
        if self.luma is not None:
            luma = self.luma[0][n // 2], self.luma[1][n // 2], self.luma[2][n // 2]
        return self.plane[n], first[n], second[n], luma


def _code_top(
    coder: Coder,
    mixture: LogisticMixture,
    whole: Int32,
    references: References | None,
    samples: Range,
) -> None:
    """Code what is left above the last level, in place, from the reference or from nothing."""
    step = 1 << lattice.level_count(whole.shape[1:])
    top = whole[:, ::step, ::step]
    if references is None:
        mean = np.zeros(top.size, dtype=np.int32)
        scale = INTRA_TOP + SCALES_PER_OCTAVE * (samples.bits - 8)
    else:
        mean = references.first[:, ::step, ::step].reshape(-1) * (256 // QUARTERS)
        scale = INTER_TOP + SCALES_PER_OCTAVE * samples.shift
    symbols = (top // QUARTERS).reshape(-1)
    scales = np.full(top.size, scale, dtype=np.int32)
    top[:] = coder.code(mixture, symbols, mean, scales).reshape(top.shape) * QUARTERS


def _code_level(
    walk: Walk,
    correction: ScaleCorrection,
    net: PhaseNet,
    views: _Views,
    level: int,
    samples: Range,
) -> _Lesson:
    """Code the three phases of a level, in place."""
    plane, intra = views.plane, views.references is None
    h, w = plane.shape[1] - 2 * BORDER, plane.shape[2] - 2 * BORDER
    parts = [
        _Part(views, net, level, samples, *bounds)
        for bounds in _bounds(len(plane), (h + 1) // 2, (w + 1) // 2, net.reach, walk.threads)
    ]
    lesson = _Lesson(level, views, [])
    for index, phase in enumerate(PHASES):
        slot = (0, 0) if intra else (level_group(level), index)
        shape = len(plane), *lattice.phase_shape((h, w), phase)
        mixtures = Mixtures.of_shape(*shape, net.shape.anchors)
        offsets = correction.offsets(*slot)
        walk.map(lambda part: part.predict(index, offsets, mixtures), parts)  # noqa: B023
        symbols = np.empty(shape, dtype=np.int32)
        lattice.take(plane, phase.row, phase.column, symbols)
        mean, scale, corrected, weight = (array.reshape(-1, array.shape[3]) for array in mixtures)
        around = _surroundings(net, index, parts, shape)
        symbols = walk.coder.phase(
            samples.coder, symbols.reshape(-1), (mean, corrected, weight), around
        )
        lattice.put(plane, phase.row, phase.column, symbols.reshape(shape))
        lesson.costs.append((*slot, symbols, mean, scale, weight))
        if intra:  # there is no frame before to have learned from, but a phase
            correction.learn(*lesson.costs.pop())
            correction.end_frame()
    return lesson


def _surroundings(
    net: PhaseNet, index: int, parts: Sequence[_Part], shape: tuple[int, ...]
) -> Surroundings | None:
    """What a phase's network knows of it, where there is a flow."""
    if net.couplings is None:
        return None
    count, rows, columns = shape
    states = np.concatenate([part.states() for part in parts], axis=int(count == 1))
    return net.couplings[index].around(states[:, :rows, :columns])


def _bounds(
    count: int, rows: int, columns: int, reach: int, threads: int
) -> list[tuple[int, int, int, int]]:
    """Cut planes, or a single plane's rows, into one part a thread: (plane, plane, row, row)."""
    if threads == 1 or count * rows * columns < PART_POSITIONS:
        return [(0, count, 0, rows)]
    if count > 1:
        pair = 2 if count > 2 and count % 2 == 0 else 1  # planes that share a luma plane stay so
        cuts = [count // pair * i // threads * pair for i in range(threads + 1)]
        return [(a, b, 0, rows) for a, b in pairwise(cuts) if a < b]
    cuts = [rows * i // threads for i in range(threads + 1)]
    return [(0, 1, a, b) for a, b in pairwise(cuts) if a < b]


class _Part:
    """Some planes, or some rows, of a level, and what the network knows of them.

    Rows are worked on with as many more on each side as the network reaches, so that where the
    cuts are makes no difference.
    """

    def __init__(
        self,
        views: _Views,
        net: PhaseNet,
        level: int,
        samples: Range,
        first_plane: int,
        last_plane: int,
        first_row: int,
        last_row: int,
    ) -> None:
        self._height = views.plane.shape[1] - 2 * BORDER
        self._columns = views.plane.shape[2] - 2 * BORDER
        grid = (self._height + 1) // 2
        begin, end = max(first_row - net.reach, 0), min(last_row + net.reach, grid)
        rows = slice(2 * begin, min(2 * end, self._height) + 2 * BORDER)
        self._views = views.cut(slice(first_plane, last_plane), rows)
        self._kept = slice(first_row - begin, last_row - begin)
        self._planes, self._rows = slice(first_plane, last_plane), slice(first_row, last_row)
        self._net, self._level, self._samples = net, level, samples
        self._state: Bytes | None = None
        # The first phase looks at no anchors of one before.
        shape = last_plane - first_plane, end - begin, (self._columns + 1) // 2, 1
        self._last = np.empty(shape, dtype=np.int32)

    def predict(self, index: int, offsets: Int32, mixtures: Mixtures) -> None:
        """Write the mixtures of a phase, with scales corrected by `offsets`, to their place."""
        views, shift = self._views, self._samples.shift
        if views.references is None:
            luma = None if views.luma is None else views.luma[0]
            seen, anchors = features.intra(views.plane, luma, self._last, index, shift)
        else:
            linear = self._linear(index)
            seen, anchors = features.inter(
                views.plane, views.references, views.luma, linear, self._last, index, shift
            )
        self._state, head = self._net.advance(index, seen, self._state)
        self._last = anchors
        kept = self._kept
        mixtures.cut(self._planes, self._rows).fill(
            head[:, kept.start : kept.stop + 2], anchors[:, kept], offsets, shift
        )

    def states(self) -> Bytes:
        """The kept rows' states, bytes [N, rows, columns, C]."""
        assert self._state is not None
        return int8.inside(self._state)[:, self._kept]

    def _linear(self, index: int) -> Int32:
        """The adaptive predictions of a phase, on the grid of all phases."""
        out = np.empty(self._last.shape[:3], dtype=np.int32)
        samples = self._samples
        low, high = samples.low * features.ANCHOR_ONE, samples.high * features.ANCHOR_ONE
        for n, predictor in enumerate(self._views.predictors):
            out[n] = predictor.predict(
                *self._views.of_plane(n), self._level, index, samples.shift, low, high
            )
        return out
