"""The way through a chunk of the `video` model, which the CPU's walk and a device's both take.

Each step is one inter frame, or intra frames that go together. What is between them is serial and
small, and coded here by one of a chunk's ends: how deep samples are, frames' kinds, their motion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from flowarchive import motion, planes
from flowarchive.entropy import Table
from flowarchive.errors import FormatError
from flowarchive.models.phasewise import Range

MAX_SHIFT = 8

BATCH_SAMPLES = 1 << 20
"""Intra frames go together while they have no more luma samples than this."""

SHIFTS = Table([1] * 16)
NEAR_FRAMES, LIT_FRAMES, BOTH = 15, 14, 13
"""In the place of the shift, which follows: frames are of NEAR_KINDS, or they may have light."""

INTRA, INTER, NEAR = range(3)
"""Frames that stand on their own, are predicted from the past, and from the last frame alone."""

KINDS = Table([1, 1])
NEAR_KINDS = Table([1, 2, 1])


@dataclass(frozen=True)
class Form:
    """What is the same for all frames of a chunk.

    Attributes:
        letters: A component letter for each plane, as in `planes.split`.
        bits: Depth of the samples, 8..16.
        shift: Low bits that networks do not see.
    """

    letters: str
    bits: int
    shift: int = 0

    def samples(self, chroma: bool) -> Range:
        """What a plane may hold; YCoCg-R differences take one bit more."""
        if chroma and self.letters.startswith("RGB"):
            most = (1 << self.bits) - 1
            return Range(-most, most, self.bits, self.shift)
        half = 1 << (self.bits - 1)
        return Range(-half, half - 1, self.bits, self.shift)


class Front(NamedTuple):
    """What a chunk begins with.

    Attributes:
        shift: Low bits that networks do not see.
        near: There may be frames that are predicted from the last one alone.
        lit: Alike, frames that have light.
    """

    shift: int = 0
    near: bool = False
    lit: bool = False


def code_front(code: Callable[[Table, int], int], front: Front, bits: int) -> Front:
    """Code what a chunk begins with.

    Args:
        code: Codes one symbol under a table and returns it.
        front: The encoder's choice; a decoder's does not matter.
        bits: Depth of the samples.

    Raises:
        FormatError: No encoder would say so.
    """
    first = {(1, 0): NEAR_FRAMES, (0, 1): LIT_FRAMES, (1, 1): BOTH}.get(front[1:], front.shift)
    said = code(SHIFTS, first)
    near, lit = said in (NEAR_FRAMES, BOTH), said in (LIT_FRAMES, BOTH)
    if near or lit:
        said = code(SHIFTS, front.shift)
    if said > min(MAX_SHIFT, bits - planes.MIN_BITS):
        raise FormatError(f"networks cannot pass over {said} of {bits} bits")
    return Front(said, near, lit)


class Step(NamedTuple):
    """Frames of a chunk that are coded together.

    Attributes:
        inter: They are predicted from the past; it is one frame then.
        both: From two frames.
        first: The first of them.
        together: How many.
        shift: Low bits that networks do not see.
    """

    inter: bool
    both: bool
    first: int
    together: int
    shift: int


class End(Protocol):
    """An encoder's or a decoder's end of a chunk, as far as it is serial."""

    def front(self, bits: int) -> Front:
        """Code what a chunk begins with; see `code_front`."""

    def kind(self, t: int, kinds: Table) -> int:
        """Code a frame's kind."""

    def light(self, t: int, shape: tuple[int, int], bits: int) -> None:
        """Code a frame's light; see `light.code_light`."""

    def field(
        self, t: int, reference: int, hints: motion.Field, model: motion.VectorModel
    ) -> motion.Field:
        """Code a field of motion."""


def steps(end: End, bits: int, frames: int, blank: planes.Components) -> Iterator[Step]:
    """Say what comes next in a chunk, and code what is between, in the order of decoding.

    Args:
        end: One of a chunk.
        bits: Depth of its samples.
        frames: How many there are.
        blank: One of them, for its planes' shapes.

    Raises:
        FormatError: The bits say what no encoder would.
    """
    luma, count = blank.luma.shape, sum(map(len, blank.parts))
    shift, near, lit = end.front(bits)
    kinds = NEAR_KINDS if near else KINDS
    models = motion.VectorModel(), motion.VectorModel()
    before, known = motion.zero_field(luma), 0  # frames that a field may refer to
    waiting = 0
    for t in range(frames):
        kind = end.kind(t, kinds) if t else INTRA
        if kind != INTRA and not blank.fits_luma:
            raise FormatError("a frame's planes do not fit its motion")
        full = (waiting + 1) * luma[0] * luma[1] > BATCH_SAMPLES
        if waiting and (kind != INTRA or full):
            yield Step(False, False, t - waiting, waiting, shift)
            waiting, before, known = 0, motion.zero_field(luma), 1
        if kind == INTRA:
            waiting += 1
            continue
        both = known > 1 and kind == INTER
        if lit:
            end.light(t, (1 + both, count), bits)
        before = end.field(t, 0, before, models[0])
        if both:
            end.field(t, 1, motion.doubled(before), models[1])
        yield Step(True, both, t, 1, shift)
        known = 2
    if waiting:
        yield Step(False, False, frames - waiting, waiting, shift)
