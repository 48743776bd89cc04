"""What the encoder chooses for a chunk: which frames are intra frames, and the motion of others."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor, Future
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowarchive import motion, planes
from flowarchive.loops import compiled
from flowarchive.models.form import INTER, INTRA, MAX_SHIFT, NEAR, Front
from flowarchive.models.light import Light, adjust, adjust_luma, find_lights, is_lit

Int32 = NDArray[np.int32]

SEEN_FRAMES = 8  # of a chunk, to choose the shift by
CALM = 5  # mean difference of neighbors, in sample steps, that networks still see whole
SIGHT = 4  # one sample in so many may differ from the last frame's
# A frame is cut where its past is so many sixteenths as far as its own neighbors, and either leaves
# so many of what it has over these, or is very far, as where a light flashes.
CUT, LEFT, FAR = 20, 15, 32


class Choice(NamedTuple):
    """What the encoder chooses by a look at a chunk's frames.

    Attributes:
        shift: See `choose_shift`.
        near: See `find_near`.
        lights: See `find_lights`.
    """

    shift: int
    near: list[bool]
    lights: list[Light | None]

    @property
    def front(self) -> Front:
        """What the chunk begins with."""
        return Front(self.shift, any(self.near), any(light is not None for light in self.lights))

    def kind(self, t: int, cut: bool) -> int:
        """The kind of a frame."""
        return INTRA if cut else NEAR if self.near[t] else INTER


def choose(frames: Sequence[planes.Components], bits: int) -> Choice:
    """Choose what needs no search."""
    return Choice(choose_shift(frames, bits), find_near(frames), find_lights(frames, bits))


class Plan:
    """The encoder's choices for a chunk of frames.

    Args:
        frames: In display order.
        bits: Depth of their samples.
        executor: Searches ahead of who asks; None to search when asked.

    Attributes:
        choice: What needed no search.
    """

    def __init__(
        self,
        frames: Sequence[planes.Components],
        bits: int,
        executor: Executor | None = None,
    ) -> None:
        self.choice = choose(frames, bits)
        self._frames, self._bits, self._executor = frames, bits, executor
        self._pictures: dict[int, motion.Picture] = {}
        self._found: list[tuple[motion.Field, motion.Field] | None] = [None]
        self._ahead: Future[None] | None = None

    def fields(self, t: int) -> tuple[motion.Field, motion.Field] | None:
        """Return a frame's motion against the last frame and the one before; None for a cut.

        Frames have to be asked for in display order.
        """
        if not self._frames[t].fits_luma:
            return None
        if self._ahead is not None:
            self._ahead.result()
        while len(self._found) <= t:
            self._search()
        if self._executor is not None and t + 1 < len(self._frames):
            self._ahead = self._executor.submit(self._search)
        return self._found[t]

    def _search(self) -> None:
        """Search the next frame's motion."""
        t = len(self._found)
        luma = self._frames[t].luma
        before = self._found[t - 1]
        hints = motion.zero_field(luma.shape) if before is None else before[0]
        picture = self._picture(t)
        past = self._past(t, 0)
        first = motion.search(picture, past, hints)
        if _is_cut(luma, self._compensated(t, first)):
            self._found.append(None)
        elif before is None or self.choice.near[t]:
            self._found.append((first, first))
        else:
            older = self._past(t, 1)
            second = motion.search(picture, older, motion.doubled(first), beside=(past, first))
            self._found.append((first, second))
        self._pictures.pop(t - 2, None)

    def _past(self, t: int, reference: int) -> motion.Picture:
        """A reference in the light of a frame, to be searched."""
        back, light = t - 1 - reference, self.choice.lights[t]
        if light is None or not is_lit(light[reference, 0]):
            return self._picture(back)
        luma = adjust_luma(self._frames[back].luma, light[reference, 0], self._bits)
        return motion.Picture(luma, self._bits)

    def _compensated(self, t: int, field: motion.Field) -> Int32:
        """What a frame's luma is predicted to be from the last frame, in quarters."""
        last, light = self._frames[t - 1].luma, self.choice.lights[t]
        low, high = -(1 << (self._bits - 1)), (1 << (self._bits - 1)) - 1
        values = motion.compensate(last, field, last.shape, low, high)
        return values if light is None else adjust(values, light[0, 0], low, high)

    def _picture(self, t: int) -> motion.Picture:
        if t not in self._pictures:
            self._pictures[t] = motion.Picture(self._frames[t].luma, self._bits)
        return self._pictures[t]


def find_near(frames: Sequence[planes.Components]) -> list[bool]:
    """Say which frames almost repeat the last one, so that the one before has nothing to add."""
    lumas = [frame.luma for frame in frames]
    near = [
        bool(SIGHT * np.count_nonzero(last != luma) <= luma.size) for last, luma in pairwise(lumas)
    ]
    return [False, False, *near[1:]][: len(frames)]


def choose_shift(frames: Sequence[planes.Components], bits: int) -> int:
    """Choose how many low bits of deep samples are noise that networks need not see."""
    most = min(MAX_SHIFT, bits - planes.MIN_BITS)
    if most == 0 or frames[0].luma.shape[1] < 2:
        return 0
    # A fade's black frames say nothing of the others.
    chosen = frames[:: max(1, len(frames) // SEEN_FRAMES)]
    step = max(float(np.abs(np.diff(frame.luma, axis=1)).mean()) for frame in chosen)
    shift = 0
    while shift < most and step > CALM * 2 << shift:
        shift += 1
    return shift


@compiled
def _is_cut(luma: Int32, compensated: Int32) -> bool:
    """Whether the past says less about a frame than its own neighbors do.

    Where noise outweighs everything, a sample is nearer to the mean of its neighbors than to the
    past; the past then still has something to say, if what it lets stand out over its neighbors
    does so here.
    """
    own, past, both = 0.0, 0.0, 0.0
    for y in range(1, luma.shape[0] - 1, 2):
        for x in range(1, luma.shape[1] - 1, 2):
            detail = luma[y, x] - _mean(luma, y, x)
            known = (compensated[y, x] - _mean(compensated, y, x)) / 4
            own += abs(detail)
            past += abs(luma[y, x] - compensated[y, x] / 4)
            both += abs(detail - known / 2)
    # Sums of 32nds, none of which is rounded.
    return 16 * past > CUT * own and (16 * both > LEFT * own or 16 * past > FAR * own)


@compiled
def _mean(plane: Int32, y: int, x: int) -> float:
    """The mean of a sample's four neighbors."""
    return float(plane[y - 1, x] + plane[y + 1, x] + plane[y, x - 1] + plane[y, x + 1]) / 4
