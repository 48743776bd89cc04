"""The order of a plane's samples on a GPU, without the borders and the copies of the CPU's.

A level's plane is every (2**level)th sample of every (2**level)th row of the whole one, and what
the CPU's border would repeat is the nearest sample of the same parity: two shifts and two
comparisons an index. So kernels read whole planes at any level where they lie, and a phase is put
back to where it belongs.

    storage   int16 or int32 [frames, H, W], samples; plane n of a launch is storage[place[n]]
    others    int32 [N, H, W], quarters of a sample: compensated planes, and luma on chroma's grid
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.checks import EXACT, check

BLOCK = 256
MAX_LEVELS = 6
PHASES = ((1, 1), (1, 0), (0, 1))
"""Parities of the rows and columns of the three phases."""

_STRAIGHT = ((-1, 0), (0, -1), (0, 1), (1, 0))
_DIAGONAL = ((-1, -1), (-1, 1), (1, -1), (1, 1))
_AROUND = ((-1, -2), (-1, 2), (1, -2), (1, 2), (-2, -1), (-2, 1), (2, -1), (2, 1))
_WIDE = ((-3, -1), (-3, 1), (3, -1), (3, 1), (-1, -3), (1, -3), (-1, 3), (1, 3))
_AHEAD = ((-2, -1), (-2, 1), (2, -1), (2, 1))
_NEXT = ((-2, 0), (0, -2), (0, 2), (2, 0))
TAPS = (
    (*_DIAGONAL, *_WIDE, *_STRAIGHT),
    (*_STRAIGHT, *_AROUND, *_DIAGONAL),
    (*_STRAIGHT, *_DIAGONAL, *_AHEAD, *_NEXT),
)
"""(dy, dx) of each phase's four nearest known samples, eight more, and four that are not known."""

MAX_FOLD = 8


@triton.jit
def mirrored(i, size):
    """The nearest index of the same parity in 0..size - 1, of one at most four outside; size >= 2.

    Further out, which no sample that is kept asks for, it is inside as well.
    """
    return tl.where(i < 0, i & 1, tl.where(i < size, i, size - 2 + ((i - size) & 1)))


@triton.jit
def sample(plane, y, x, level, height, width, known):
    """Load samples (y, x) of a level's plane out of a whole one, int32."""
    h = (height + (1 << level) - 1) >> level
    w = (width + (1 << level) - 1) >> level
    at = (mirrored(y, h) << level) * width + (mirrored(x, w) << level)
    return tl.load(plane + at, known, other=0).to(tl.int32)


@triton.jit
def plane_of(planes, place, n, height, width):
    """Where plane n of a launch begins in its storage."""
    return planes + tl.load(place + n).to(tl.int64) * height * width


@triton.jit
def phase_kernel(
    planes, place, symbols, height, width, level, rows, columns, row, column,
    PUT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program moves BLOCK samples of a plane's phase; see `take` and `put`."""
    i_n = tl.program_id(1)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    known = at < rows * columns
    y, x = row + 2 * (at // columns), column + 2 * (at % columns)
    there = plane_of(planes, place, i_n, height, width) + (y << level) * width + (x << level)
    here = symbols + i_n.to(tl.int64) * rows * columns + at
    if PUT:
        value = tl.load(here, known, other=0)
        tl.store(there, value.to(planes.dtype.element_ty), known)
    else:
        tl.store(here, tl.load(there, known, other=0).to(tl.int32), known)


@triton.jit
def fold_kernel(
    planes, place, out, height, width, h, w, down, right,
    GAIN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program makes BLOCK samples of a smaller plane; see `on_grid`."""
    i_n = tl.program_id(1)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    known = at < h * w
    y, x = (at // w) << down, (at % w) << right
    plane = plane_of(planes, place, i_n, height, width)
    total = tl.zeros((BLOCK,), dtype=tl.int32)
    for i in range(1 << down):
        for j in range(1 << right):
            there = tl.minimum(y + i, height - 1) * width + tl.minimum(x + j, width - 1)
            total += tl.load(plane + there, known, other=0).to(tl.int32)
    bits = down + right
    value = (GAIN * total + ((1 << bits) >> 1)) >> bits
    tl.store(out + i_n.to(tl.int64) * h * w + at, value, known)


@triton.jit
def cut_kernel(planes, place, moved, sums, height, width, BLOCK: tl.constexpr):
    """One program sums differences at BLOCK samples of a plane; see `cut_sums`."""
    i_n = tl.program_id(1)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = (width - 1) // 2
    known = at < (height - 1) // 2 * columns
    y, x = 1 + 2 * (at // columns), 1 + 2 * (at % columns)
    plane = plane_of(planes, place, i_n, height, width) + y * width + x
    past = moved + i_n.to(tl.int64) * height * width + y * width + x
    # All of it in 32nds of a sample.
    here = 32 * tl.load(plane, known, other=0).to(tl.int32)
    there = 8 * tl.load(past, known, other=0)
    detail = here - 8 * four_around(plane, width, known)
    both = detail - (there >> 1) + four_around(past, width, known)
    tl.atomic_add(sums + 3 * i_n, total_of(here - there, known))
    tl.atomic_add(sums + 3 * i_n + 1, total_of(detail, known))
    tl.atomic_add(sums + 3 * i_n + 2, total_of(both, known))


@triton.jit
def four_around(plane, width, known):
    """Sum the four neighbors of samples."""
    above, below = tl.load(plane - width, known, other=0), tl.load(plane + width, known, other=0)
    left, right = tl.load(plane - 1, known, other=0), tl.load(plane + 1, known, other=0)
    return above.to(tl.int32) + below + (left.to(tl.int32) + right)


@triton.jit
def total_of(values, known):
    """Sum magnitudes."""
    return tl.sum(tl.where(known, tl.abs(values), 0).to(tl.int64), 0)


def check_storage(planes: Tensor, place: Tensor) -> tuple[int, int, int]:
    """Check planes in storage; return how many a launch has, and their rows and columns.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    kind = planes.dtype if planes.dtype == torch.int16 else torch.int32
    _, height, width = check("planes", planes.flatten(0, -3), kind, [None] * 3, apart=1).shape
    check("place", place, torch.int32, [None], planes.device)
    return len(place), height, width


def check_level(level: int) -> int:
    """Check a level.

    Raises:
        ValueError: It is out of range.
    """
    if not 0 <= level < MAX_LEVELS:
        raise ValueError(f"level {level} is not in 0..{MAX_LEVELS - 1}")
    return level


def level_count(height: int, width: int) -> int:
    """Return how many levels a plane is split into."""
    levels = 0
    while levels < MAX_LEVELS and min(level_shape(height, width, levels)) >= 2:
        levels += 1
    return levels


def level_shape(height: int, width: int, level: int) -> tuple[int, int]:
    """Return the rows and columns of a level's plane."""
    return -(-height >> level), -(-width >> level)


def phase_shape(height: int, width: int, level: int, phase: int) -> tuple[int, int]:
    """Return the rows and columns of a phase of a level."""
    h, w = level_shape(height, width, level)
    return (h + 1 - PHASES[phase][0]) // 2, (w + 1 - PHASES[phase][1]) // 2


def grid_shape(height: int, width: int, level: int) -> tuple[int, int]:
    """Return the rows and columns of the grid that a level's phases share."""
    h, w = level_shape(height, width, level)
    return (h + 1) // 2, (w + 1) // 2


def _move(
    planes: Tensor, place: Tensor, level: int, phase: int, symbols: Tensor, put: bool
) -> None:
    count, height, width = check_storage(planes, place)
    check_level(level)
    rows, columns = phase_shape(height, width, level, phase)
    check("symbols", symbols, torch.int32, [count * rows * columns], planes.device)
    if symbols.numel():
        phase_kernel[(triton.cdiv(rows * columns, BLOCK), count)](
            planes, place, symbols, height, width, level, rows, columns, *PHASES[phase],
            PUT=put, BLOCK=BLOCK, **EXACT,
        )  # fmt: skip


def take(planes: Tensor, place: Tensor, level: int, phase: int) -> Tensor:
    """Return a phase's samples.

    Args:
        planes: Storage, int16 or int32 [..., H, W].
        place: Which of its planes, int32 [N].
        level: 0..MAX_LEVELS - 1.
        phase: 0, 1, 2.

    Returns:
        int32 [n], plane after plane.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device, a layout or the level is out of range.
    """
    count, height, width = check_storage(planes, place)
    rows, columns = phase_shape(height, width, check_level(level), phase)
    symbols = torch.empty(count * rows * columns, dtype=torch.int32, device=planes.device)
    _move(planes, place, level, phase, symbols, put=False)
    return symbols


def put(planes: Tensor, place: Tensor, level: int, phase: int, symbols: Tensor) -> None:
    """Undo `take`."""
    _move(planes, place, level, phase, symbols, put=True)


def on_grid(planes: Tensor, place: Tensor, shape: tuple[int, int], gain: int) -> Tensor:
    """Average planes down to a smaller grid, the last row and column repeated.

    Args:
        planes: int16 or int32 [..., H, W].
        place: Which of them, int32 [N].
        shape: (h, w); H and W are at most h and w times a power of two up to MAX_FOLD.
        gain: What samples are multiplied by before.

    Returns:
        int32 [N, h, w], means rounded half up.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    count, height, width = check_storage(planes, place)
    folds = [_fold(*sides) for sides in zip((height, width), shape, strict=True)]
    out = torch.empty((count, *shape), dtype=torch.int32, device=planes.device)
    if out.numel():
        fold_kernel[(triton.cdiv(shape[0] * shape[1], BLOCK), count)](
            planes, place, out, height, width, *shape, *folds, GAIN=gain, BLOCK=BLOCK, **EXACT
        )
    return out


def cut_sums(planes: Tensor, place: Tensor, moved: Tensor) -> Tensor:
    """Sum how far samples are from their past and neighbors; see `models.plan` for what it says.

    Args:
        planes: Storage, int16 or int32 [..., H, W].
        place: Which of its planes, int32 [N].
        moved: The same planes predicted from the past, int32 [N, H, W] in quarters.

    Returns:
        int64 [N, 3] in 32nds of a sample, over every second sample of every second row: distances
        to the past, to the mean of the four neighbors, and how much of the latter is left when half
        of what the past has of it is known.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    count, height, width = check_storage(planes, place)
    check("moved", moved, torch.int32, [count, height, width], planes.device)
    sums = torch.zeros((count, 3), dtype=torch.int64, device=planes.device)
    blocks = triton.cdiv(((height - 1) // 2) * ((width - 1) // 2), BLOCK)
    if blocks and count:
        cut_kernel[(blocks, count)](planes, place, moved, sums, height, width, BLOCK=BLOCK, **EXACT)
    return sums


def _fold(full: int, part: int) -> int:
    """Return log2 of by how much a plane is smaller in one direction."""
    for bits in range(MAX_FOLD.bit_length()):
        if part << bits >= full:
            return bits
    raise ValueError(f"{part} samples are no subsampling of {full} by up to {MAX_FOLD}")
