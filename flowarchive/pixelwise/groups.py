"""Planes as pixels: which planes make pixels together, and how much these repeat.

A pixel is one number: its samples, 16 bits each, the first lowest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowarchive.frames import Plane

Int64 = NDArray[np.int64]

LANES = 1
"""Of the message: no decision is made before the one before it."""

SAMPLE_BITS = 16

LEFT, RIGHT, ABOVE = 3, 2, 2
"""Pixels beyond the edges that a walk looks at."""

SAMPLED_ROWS = 4
"""Of so many rows, `repetition` looks at one."""


@dataclass(frozen=True)
class Group:
    """Planes of one shape that make pixels together.

    Attributes:
        planes: Their numbers among the chunk's planes, in the order of coding.
        shape: (rows, columns).
        leads: The first leads the second and third, which are coded as differences to it.
    """

    planes: list[int]
    shape: tuple[int, int]
    leads: bool

    def blank(self) -> Int64:
        """Return pixels of zeros, with the margins that a walk looks at."""
        rows, columns = self.shape
        return np.zeros((ABOVE + rows, LEFT + columns + RIGHT), dtype=np.int64)

    def pixels(self, frame: Sequence[Plane]) -> Int64:
        """Return a frame's pixels, with margins."""
        pixels = self.blank()
        for j, plane in enumerate(self.planes):
            inner(pixels)[:] |= frame[plane].astype(np.int64) << SAMPLE_BITS * j
        return pixels


def inner(pixels: Int64) -> Int64:
    """Return a view of pixels without their margins."""
    return pixels[ABOVE:, LEFT:-RIGHT]


def groups_of(shapes: Sequence[tuple[int, int]], letters: str) -> list[Group]:
    """Return the groups of a frame's planes: next to each other and of one shape.

    Args:
        shapes: (rows, columns) of each plane.
        letters: A component letter for each.
    """
    colors = letters.startswith("RGB")
    groups: list[Group] = []
    for plane in (1, 0, *range(2, len(shapes))) if colors else range(len(shapes)):
        if groups and groups[-1].shape == shapes[plane]:
            groups[-1].planes.append(plane)
        else:
            groups.append(Group([plane], shapes[plane], colors and not groups))
    return groups


def guide_of(first: Int64, shape: tuple[int, int]) -> Int64:
    """Return for each pixel of a later group what the first group has there.

    Args:
        first: Pixels of the first group, int64 [H, W].
        shape: (h, w) of the later group.

    Returns:
        int64 [h, w]: four pixels, the one at (y * H div h, x * W div w), its right, its lower and
        its lower right neighbor, each 2**16 times the one before, modulo 2**64.
    """
    rows, columns = (
        np.arange(part) * full // part for full, part in zip(first.shape, shape, strict=True)
    )
    guide = np.zeros(shape, dtype=np.int64)
    for down, right in ((1, 1), (1, 0), (0, 1), (0, 0)):
        below = np.minimum(rows + down, first.shape[0] - 1)
        beside = np.minimum(columns + right, first.shape[1] - 1)
        guide = (guide << SAMPLE_BITS) + first[np.ix_(below, beside)]
    return guide


def repetition(frames: Sequence[Sequence[Plane]], letters: str) -> float:
    """Return the share of pixels that equal their left, upper or earlier neighbor.

    This is to be quick: of the frames it looks at three, of their rows at some.

    Args:
        frames: Planes of each frame, at least one of each.
        letters: A component letter for each plane.
    """
    groups = groups_of([plane.shape for plane in frames[0]], letters)
    total = equal = 0
    for time in sorted({0, len(frames) // 2, len(frames) - 1}):
        now = _joined(frames[time], groups)
        rows = now[1::SAMPLED_ROWS, 1:]
        like = rows == now[1::SAMPLED_ROWS, :-1]
        like |= rows == now[:-1:SAMPLED_ROWS, 1:]
        if time:
            like |= rows == _joined(frames[time - 1], groups)[1::SAMPLED_ROWS, 1:]
        total, equal = total + like.size, equal + int(like.sum())
    return equal / total if total else 0.0


def _joined(frame: Sequence[Plane], groups: Sequence[Group]) -> Int64:
    """Return the pixels of the last group with what the first one has there.

    Luma alone repeats in any smooth picture; luma and chroma together do not.
    """
    pixels = inner(groups[-1].pixels(frame))
    if len(groups) > 1:
        # Sums of odd multiples: unequal pixels are hardly ever taken for equal ones.
        pixels = pixels * 0x9E3779B1 + guide_of(inner(groups[0].pixels(frame)), groups[-1].shape)
    return pixels
