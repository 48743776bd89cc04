"""What both walks through a chunk of the `video` model begin with: the CPU's and a device's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flowarchive import planes
from flowarchive.entropy import Table
from flowarchive.errors import FormatError
from flowarchive.models.phasewise import Range

MAX_SHIFT = 8

BATCH_SAMPLES = 1 << 20
"""Intra frames go together while they have no more luma samples than this."""

SHIFTS = Table([1] * 16)
NEAR_FRAMES = 15
"""In the place of the shift: that follows, and frames are of NEAR_KINDS."""

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


def code_front(
    code: Callable[[Table, int], int], shift: int, has_near: bool, bits: int
) -> tuple[int, Table]:
    """Code what a chunk begins with: how many low bits networks do not see, and what kinds it has.

    Args:
        code: Codes one symbol under a table and returns it.
        shift: The encoder's choice; a decoder's does not matter.
        has_near: Alike, whether there are frames that are predicted from the last one alone.
        bits: Depth of the samples.

    Raises:
        FormatError: No encoder would say so.
    """
    said, kinds = code(SHIFTS, NEAR_FRAMES if has_near else shift), KINDS
    if said == NEAR_FRAMES:
        said, kinds = code(SHIFTS, shift), NEAR_KINDS
    if said > min(MAX_SHIFT, bits - planes.MIN_BITS):
        raise FormatError(f"networks cannot pass over {said} of {bits} bits")
    return said, kinds
