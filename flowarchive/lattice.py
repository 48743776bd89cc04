"""The order in which a plane's samples become known: levels of four phases each.

A plane of level l holds every (2**l)th sample of every (2**l)th row. Its even samples in even
rows are the plane of level l + 1; the other three phases follow, one at a time, each seeing all
that came before:

    a d are (row, column) parities (0, 0) and (1, 1)        a b a b
    c b are                        (1, 0) and (0, 1)        c d c d
                                                            a b a b
    order:  a (level l + 1)  ->  d  ->  c  ->  b            c d c d

Planes stand in the middle of a border of `BORDER` samples which repeats the nearest sample of the
same parity, so that the neighbors of a phase are of the same phases everywhere.

Values are held in quarters of a sample step: the mean of four neighbors is then exact, and a
motion-compensated sample keeps two bits of its fraction.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowarchive.loops import compiled

Int32 = NDArray[np.int32]

QUARTERS = 4
BORDER = 4
MAX_LEVELS = 6

NEIGHBORS = 16
"""Samples of a phase that are worked on at a time."""


class Phase(NamedTuple):
    """One of the three phases that are coded on each level.

    Attributes:
        row: Parity of its rows.
        column: Parity of its columns.
        near: (dy, dx) of the four nearest known samples, opposite ones at 0, 3 and at 1, 2.
        far: (dy, dx) of eight more known samples around.
        cross: (dy, dx) of the four nearest samples that are not known.
    """

    row: int
    column: int
    near: tuple[tuple[int, int], ...]
    far: tuple[tuple[int, int], ...]
    cross: tuple[tuple[int, int], ...]


_STRAIGHT = ((-1, 0), (0, -1), (0, 1), (1, 0))
_DIAGONAL = ((-1, -1), (-1, 1), (1, -1), (1, 1))
_AROUND = ((-1, -2), (-1, 2), (1, -2), (1, 2), (-2, -1), (-2, 1), (2, -1), (2, 1))

PHASES = (
    Phase(
        1,
        1,
        _DIAGONAL,
        ((-3, -1), (-3, 1), (3, -1), (3, 1), (-1, -3), (1, -3), (-1, 3), (1, 3)),
        _STRAIGHT,
    ),
    Phase(1, 0, _STRAIGHT, _AROUND, _DIAGONAL),
    Phase(
        0,
        1,
        _STRAIGHT,
        (*_DIAGONAL, (-2, -1), (-2, 1), (2, -1), (2, 1)),
        ((-2, 0), (0, -2), (0, 2), (2, 0)),
    ),
)
"""d, c, b in the order in which they become known."""


def level_count(shape: tuple[int, int]) -> int:
    """Return how many levels a plane of (rows, columns) is split into, 0..MAX_LEVELS."""
    count, (rows, columns) = 0, shape
    while count < MAX_LEVELS and min(rows, columns) >= 2:
        count, rows, columns = count + 1, (rows + 1) // 2, (columns + 1) // 2
    return count


def phase_shape(shape: tuple[int, int], phase: Phase) -> tuple[int, int]:
    """Return (rows, columns) of a phase inside a level's plane of `shape`."""
    return (shape[0] + 1 - phase.row) // 2, (shape[1] + 1 - phase.column) // 2


def bordered(planes: Int32, level: int) -> Int32:
    """Take a level's planes out of whole ones and put borders around them.

    Args:
        planes: int32 [N, H, W] in quarters.
        level: Which level.

    Returns:
        int32 [N, h + 2 * BORDER, w + 2 * BORDER].
    """
    step = 1 << level
    taken = planes[:, ::step, ::step]
    count, h, w = taken.shape
    out = np.empty((count, h + 2 * BORDER, w + 2 * BORDER), dtype=np.int32)
    out[:, BORDER : BORDER + h, BORDER : BORDER + w] = taken
    extend(out)
    return out


@compiled
def extend(planes: Int32) -> None:
    """Fill the borders of int32 [N, h + 2 * BORDER, w + 2 * BORDER], h and w at least 2."""
    count, rows, columns = planes.shape
    top, bottom = BORDER, rows - BORDER
    left, right = BORDER, columns - BORDER
    for n in range(count):
        for y in range(top, bottom):
            for x in range(BORDER):
                planes[n, y, x] = planes[n, y, left + (x & 1)]
                planes[n, y, right + x] = planes[n, y, right - 2 + (x & 1)]
        for y in range(BORDER):
            for x in range(columns):
                planes[n, y, x] = planes[n, top + (y & 1), x]
                planes[n, bottom + y, x] = planes[n, bottom - 2 + (y & 1), x]


@compiled
def take(planes: Int32, row: int, column: int, samples: Int32) -> None:
    """Write a phase's samples, of bordered planes in quarters, to int32 [N, rows, columns]."""
    for n in range(samples.shape[0]):
        for y in range(samples.shape[1]):
            for x in range(samples.shape[2]):
                value = planes[n, BORDER + row + 2 * y, BORDER + column + 2 * x]
                samples[n, y, x] = value // QUARTERS


@compiled
def put(planes: Int32, row: int, column: int, samples: Int32) -> None:
    """Undo `take`, and fill the borders anew."""
    for n in range(samples.shape[0]):
        for y in range(samples.shape[1]):
            for x in range(samples.shape[2]):
                value = samples[n, y, x] * QUARTERS
                planes[n, BORDER + row + 2 * y, BORDER + column + 2 * x] = value
    extend(planes)


@compiled
def with_room(planes: Int32, columns: int) -> Int32:
    """Return planes, flat, such that NEIGHBORS samples can be read wherever one is.

    Args:
        planes: Bordered, int32 of any shape.
        columns: Of a phase.
    """
    flat = planes.reshape(-1)
    if columns >= NEIGHBORS:
        return flat
    larger = np.empty(flat.size + 2 * NEIGHBORS, dtype=np.int32)
    larger[: flat.size] = flat
    return larger
