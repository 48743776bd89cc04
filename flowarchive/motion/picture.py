"""A luma plane made ready for the motion search: interpolated once, then only compared.

Encoder only: nothing here decides what a decoder computes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowarchive.loops import compiled
from flowarchive.motion.compensate import FILTERS

MARGIN = 32
"""Samples by which a picture is continued on each side, its edges repeated."""

UNIT = 16
"""Side of the largest block that shares a vector; pictures are continued to whole units."""

SEARCH_BITS = 8
"""Depth that the search looks at."""

DETAIL_LIMIT = (1 << 11) - 1
"""The largest magnitude of a sample of `Picture.phases`."""

MIDDLE, COARSE = 2, 4
"""How much smaller its first looks are."""


class Picture:
    """A luma plane's detail in all its quarter positions, and small copies of the plane.

    Detail is a sample less half the mean of its four neighbors. What blocks differ in slowly will
    be told by a sample's own surroundings, and says little of where it came from.

    Attributes:
        shape: (H, W) of the luma plane.
        phases: int16 [16, h, w]; phases[4 * py + px] is the detail shifted by (py, px) quarters,
            in eighths of a sample value, MARGIN samples continued on each side.
        middle: int16 [h / 2, w / 2]: the means of 2 x 2 samples, in quarters.
        coarse: int16 [h / 4, w / 4]: the means of 4 x 4.
    """

    shape: tuple[int, int]
    phases: NDArray[np.int16]
    middle: NDArray[np.int16]
    coarse: NDArray[np.int16]

    def __init__(self, luma: NDArray[Any], bits: int) -> None:
        """Interpolate a plane.

        Args:
            luma: Centered integers [H, W].
            bits: Their depth, 8..16.
        """
        height, width = luma.shape
        self.shape = (height, width)
        drop = max(bits - SEARCH_BITS, 0)
        detail = _continued(_detail(np.ascontiguousarray(luma, dtype=np.int32), drop))
        self.phases = np.empty((16, *detail.shape), dtype=np.int16)
        _interpolate(detail, FILTERS[::4].astype(np.int16), self.phases)
        self.middle = _folded(_continued((luma >> drop).astype(np.int16)), MIDDLE)
        self.coarse = _folded(self.middle, 2) >> 2


def _continued(plane: NDArray[np.int16]) -> NDArray[np.int16]:
    """Continue a plane to whole units, and by MARGIN samples on each side."""
    more_y, more_x = (-side % UNIT for side in plane.shape)
    return np.pad(plane, ((MARGIN, MARGIN + more_y), (MARGIN, MARGIN + more_x)), mode="edge")


@compiled
def _detail(luma: NDArray[np.int32], drop: int) -> NDArray[np.int16]:
    """Return twice the detail; samples beyond an edge are those at it."""
    height, width = luma.shape
    out = np.empty((height, width), dtype=np.int16)
    for y in range(height):
        here, above, below = luma[y], luma[max(y - 1, 0)], luma[min(y + 1, height - 1)]
        for x in range(width):
            around = above[x] + below[x] + here[max(x - 1, 0)] + here[min(x + 1, width - 1)]
            out[y, x] = (8 * here[x] - around + 2) >> (2 + drop)
    return out


def _folded(plane: NDArray[np.int16], side: int) -> NDArray[np.int16]:
    """Sum squares of `side` samples."""
    total = np.zeros_like(plane[::side, ::side])
    for y in range(side):
        for x in range(side):
            total += plane[y::side, x::side]
    return total


@compiled
def _interpolate(
    plane: NDArray[np.int16], filters: NDArray[np.int16], phases: NDArray[np.int16]
) -> None:
    """Fill the sixteen quarter positions; the outermost samples repeat what stands beside them."""
    height, width = plane.shape
    row = np.empty((4, height, width), dtype=np.int16)
    for phase in range(1, 4):
        a, b, c, d, e, f, g, h = filters[phase]
        for y in range(height):
            s = plane[y]
            t = row[phase, y]
            for x in range(width - 7):
                # Two of the six bits of gain are dropped here: 10 + 7 bits would not fit.
                total = np.int32(
                    a * s[x] + b * s[x + 1] + c * s[x + 2] + d * s[x + 3]
                    + e * s[x + 4] + f * s[x + 5] + g * s[x + 6] + h * s[x + 7] + 2
                )  # fmt: skip
                t[x + 3] = np.int16(total >> 2)
            for x in range(3):
                t[x] = t[3]
            for x in range(width - 4, width):
                t[x] = t[width - 5]
    for y in range(height):
        for x in range(width):
            row[0, y, x] = plane[y, x] << 4
    for phase_x in range(4):
        source = row[phase_x]
        for y in range(height):
            r = phases[phase_x, y]
            s = source[y]
            for x in range(width):
                r[x] = _limited(np.int32(s[x] + 2) >> 2)
        for phase_y in range(1, 4):
            a, b, c, d, e, f, g, h = filters[phase_y]
            target = phases[4 * phase_y + phase_x]
            for y in range(height):
                top = min(max(y - 3, 0), height - 8)
                r = target[y]
                for x in range(width):
                    r[x] = _limited(
                        np.int32(
                            a * source[top, x] + b * source[top + 1, x] + c * source[top + 2, x]
                            + d * source[top + 3, x] + e * source[top + 4, x]
                            + f * source[top + 5, x] + g * source[top + 6, x]
                            + h * source[top + 7, x] + 128
                        ) >> 8
                    )  # fmt: skip


@compiled
def _limited(value: Any) -> np.int16:
    """Clamp a sample, so that the differences of a column of eight fit 15 bits."""
    return np.int16(min(max(value, -DETAIL_LIMIT), DETAIL_LIMIT))
