"""Section "Lattice": levels, phases, and what stands outside a level's plane."""

from __future__ import annotations

from dataclasses import dataclass

Plane = list[list[int]]
Offset = tuple[int, int]

MAX_LEVELS = 6
STRAIGHT = [(-1, 0), (0, -1), (0, 1), (1, 0)]
DIAGONAL = [(-1, -1), (-1, 1), (1, -1), (1, 1)]
ASIDE = [(-1, -2), (-1, 2), (1, -2), (1, 2)]
ABOVE_AND_BELOW = [(-2, -1), (-2, 1), (2, -1), (2, 1)]
FAR = [(-3, -1), (-3, 1), (3, -1), (3, 1), (-1, -3), (1, -3), (-1, 3), (1, 3)]


@dataclass(frozen=True)
class Phase:
    """One row of the document's tables."""

    row: int
    column: int
    near: list[Offset]
    far: list[Offset]


PHASES = [
    Phase(1, 1, DIAGONAL, FAR),
    Phase(1, 0, STRAIGHT, ASIDE + ABOVE_AND_BELOW),
    Phase(0, 1, STRAIGHT, DIAGONAL + ABOVE_AND_BELOW),
]
CROSS = STRAIGHT  # of phase 0; no other needs one


def level_count(height: int, width: int) -> int:
    """L."""
    levels = 0
    while levels < MAX_LEVELS and height >= 2 and width >= 2:
        levels, height, width = levels + 1, (height + 1) // 2, (width + 1) // 2
    return levels


def take(plane: Plane, level: int) -> Plane:
    """A level's plane, copied out of the whole one."""
    return [row[:: 2**level] for row in plane[:: 2**level]]


def put(plane: Plane, level: int, part: Plane) -> None:
    """Put a level's plane back."""
    for row, values in zip(plane[:: 2**level], part, strict=True):
        row[:: 2**level] = values


def grid(plane: Plane) -> tuple[int, int]:
    """Rows and columns of a level's grid."""
    return (len(plane) + 1) // 2, (len(plane[0]) + 1) // 2


def phase_shape(plane: Plane, phase: Phase) -> tuple[int, int]:
    """Rows and columns of a phase's samples."""
    return (len(plane) + 1 - phase.row) // 2, (len(plane[0]) + 1 - phase.column) // 2


def places(plane: Plane, phase: Phase) -> list[tuple[int, int]]:
    """The grid positions where a phase has a sample, in order."""
    rows, columns = phase_shape(plane, phase)
    return [(i, j) for i in range(rows) for j in range(columns)]


def inside(i: int, n: int) -> int:
    """The nearest index of 0..n - 1 that has the parity of `i`."""
    if i < 0:
        return i % 2
    return i if i < n else n - 2 + (i - n) % 2


class Around:
    """The values of a level's plane around one sample of a phase."""

    def __init__(self, plane: Plane, phase: Phase, i: int, j: int) -> None:
        self.plane, self.phase = plane, phase
        self.row, self.column = 2 * i + phase.row, 2 * j + phase.column

    def at(self, dy: int = 0, dx: int = 0) -> int:
        """X(dy, dx)."""
        row = self.plane[inside(self.row + dy, len(self.plane))]
        return row[inside(self.column + dx, len(row))]

    def near(self) -> list[int]:
        """X_0, X_1, X_2, X_3."""
        return [self.at(*offset) for offset in self.phase.near]

    def far(self) -> list[int]:
        """X'_0 ... X'_7."""
        return [self.at(*offset) for offset in self.phase.far]

    def cross(self) -> list[int]:
        """X''_0 ... X''_3."""
        return [self.at(*offset) for offset in CROSS]
