"""What both walks through a chunk of the `video` model begin with: the CPU's and a device's."""

from __future__ import annotations

from dataclasses import dataclass

from flowarchive import planes
from flowarchive.entropy import Table
from flowarchive.errors import FormatError
from flowarchive.models.phasewise import Range

MAX_SHIFT = 8

BATCH_SAMPLES = 1 << 20
"""Intra frames go together while they have no more luma samples than this."""

SHIFTS = Table([1] * 16)
KINDS = Table([1, 1])


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


def check_shift(shift: int, bits: int) -> int:
    """Check how many low bits networks do not see.

    Raises:
        FormatError: No encoder would say so.
    """
    if shift > min(MAX_SHIFT, bits - planes.MIN_BITS):
        raise FormatError(f"networks cannot pass over {shift} of {bits} bits")
    return shift
