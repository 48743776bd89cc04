"""The encoder's first looks for motion: quarter positions, and coarse vectors for each unit.

Chunks go side by side, a frame of each: the last axis of every grid is the chunk. All pictures
together may be more than 32 bits count, so where a chunk's begin is counted in 64.

Nothing here decides what a decoder computes; but equal choices make equal archives, so every step
is the CPU's, ties included: the first of the best wins, in the order of rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.checks import EXACT, check

MARGIN = 32
UNIT = 16
MIDDLE, COARSE = 2, 4
REACH, SPAN, STARTS = 10, 7, 3
LOOKS = 1 + STARTS + 4
TILE = 256
SEARCH_BITS = 8
"""Depth that the search looks at."""

LIMIT = 2047
"""The largest magnitude of detail."""


class Picture(NamedTuple):
    """The detail of luma planes in all quarter positions, and two small copies of each plane.

    Attributes:
        phases: int16 [chunks, 16, h, w], in eighths of a sample, MARGIN samples continued on each
            side.
        middle: int16 [chunks, h / 2, w / 2]: means of 2 x 2 samples, in quarters.
        coarse: int16 [chunks, h / 4, w / 4]: means of 4 x 4.
    """

    phases: Tensor
    middle: Tensor
    coarse: Tensor


@triton.jit
def detail_kernel(luma, detail, height, width, drop, TILE: tl.constexpr):
    """One program makes twice the detail of TILE samples: less half the mean of four neighbors."""
    begin = tl.program_id(1).to(tl.int64) * height * width
    luma += begin
    detail += begin
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    known = at < height * width
    y, x = at // width, at % width
    above, below = tl.maximum(y - 1, 0) * width + x, tl.minimum(y + 1, height - 1) * width + x
    left, right = y * width + tl.maximum(x - 1, 0), y * width + tl.minimum(x + 1, width - 1)
    around = tl.load(luma + above, known, other=0) + tl.load(luma + below, known, other=0)
    around += tl.load(luma + left, known, other=0) + tl.load(luma + right, known, other=0)
    value = (8 * tl.load(luma + at, known, other=0) - around + 2) >> (2 + drop)
    tl.store(detail + at, value, known)


@triton.jit
def interpolate_kernel(
    detail, filters, phases, height, width, tall, wide, MARGIN: tl.constexpr,
    LIMIT: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One program makes TILE samples of one of the sixteen quarter positions; see `picture`.

    Far from the plane a row or a column repeats its edge, so that the filters, which need seven
    more samples, may stop short of the continued picture's own edge.
    """
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    phase, chunk = tl.program_id(1), tl.program_id(2)
    detail += chunk.to(tl.int64) * height * width
    phases += (16 * chunk + phase).to(tl.int64) * tall * wide
    known = at < tall * wide
    tap = tl.arange(0, 8)[None, :]
    weight = tl.load(filters + phase % 4 * 8 + tap)
    y = tl.minimum(tl.maximum(at // wide, 3), tall - 5) - 3 - MARGIN
    x = tl.minimum(tl.maximum(at % wide, 3), wide - 5) - 3 - MARGIN
    column = tl.minimum(tl.maximum(x[:, None] + tap, 0), width - 1)
    total = tl.zeros((TILE,), dtype=tl.int32)
    for i in range(8):
        row = tl.minimum(tl.maximum(y + i, 0), height - 1) * width
        samples = tl.load(detail + row[:, None] + column, known[:, None], other=0)
        # Two of the six bits of gain are dropped between the filters.
        line = (tl.sum(weight * samples, 1) + 2) >> 2
        total += tl.load(filters + phase // 4 * 8 + i) * line
    value = tl.minimum(tl.maximum((total + 128) >> 8, -LIMIT), LIMIT)
    tl.store(phases + at, value.to(tl.int16), known)


def picture(luma: Tensor, filters: Tensor, bits: int) -> Picture:
    """Make planes ready for the search.

    Args:
        luma: int32 [chunks, H, W], centered.
        filters: int32 [4, 8], a filter for each quarter of a sample.
        bits: Depth of the samples, 8..16.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another, or the depth is out of range.
    """
    chunks, height, width = check("luma", luma, torch.int32, [None] * 3, apart=1).shape
    check("filters", filters, torch.int32, [4, 8], luma.device)
    if not (chunks and height and width and SEARCH_BITS <= bits <= 16):
        raise ValueError(f"{height} x {width} samples of {bits} bits are no picture")
    drop = bits - SEARCH_BITS
    tall, wide = (-(-size // UNIT) * UNIT + 2 * MARGIN for size in (height, width))
    detail = torch.empty_like(luma)
    detail_kernel[(triton.cdiv(height * width, TILE), chunks)](
        luma, detail, height, width, drop, TILE=TILE, **EXACT
    )
    phases = torch.empty((chunks, 16, tall, wide), dtype=torch.int16, device=luma.device)
    interpolate_kernel[(triton.cdiv(tall * wide, TILE), 16, chunks)](
        detail, filters, phases, height, width, tall, wide,
        MARGIN=MARGIN, LIMIT=LIMIT, TILE=TILE, **EXACT,
    )  # fmt: skip
    rows, columns = (
        torch.arange(-MARGIN, size - MARGIN, device=luma.device).clamp(0, most - 1)
        for size, most in ((tall, height), (wide, width))
    )
    whole = (luma >> drop)[:, rows][:, :, columns]
    folded = whole.view(chunks, tall // MIDDLE, MIDDLE, wide // MIDDLE, MIDDLE)
    middle = folded.sum(dim=(2, 4), dtype=torch.int16)
    folded = middle.view(chunks, tall // COARSE, 2, wide // COARSE, 2)
    return Picture(phases, middle, folded.sum(dim=(2, 4), dtype=torch.int16) >> 2)


def check_picture(name: str, one: Picture, like: Picture) -> tuple[int, int, int]:
    """Check a picture; return of how many chunks it is, and the rows and columns of its phases.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A layout is another, or a shape or a device is not that of `like`.
    """
    chunks, _, tall, wide = like.phases.shape
    shapes = [16, tall, wide], [tall // MIDDLE, wide // MIDDLE], [tall // COARSE, wide // COARSE]
    for field, tensor, shape in zip(one._fields, one, shapes, strict=True):
        every, apart = [chunks, *shape], len(shape) - 1
        check(f"{name}.{field}", tensor, torch.int16, every, like.phases.device, apart)
    return chunks, tall, wide


@triton.jit
def differences(current, reference, y, x, v, u, pitch):
    """Sum |current - reference| over the left and right halves of 4 rows, for each (v, u)."""
    column = tl.arange(0, 8)[None, :]
    left, right = tl.zeros_like(v), tl.zeros_like(v)
    for row in range(4):
        ours = tl.load(current + (y + row) * pitch + x + column).to(tl.int32)
        theirs = tl.load(reference + (v + row)[:, None] * pitch + u[:, None] + column)
        apart = tl.abs(ours - theirs.to(tl.int32))
        left += tl.sum(tl.where(column < 4, apart, 0), 1)
        right += tl.sum(tl.where(column < 4, 0, apart), 1)
    return left, right


@triton.jit
def first_least(value, n):
    """Return the least of some values at least 0, below 2**31, and the first n that has it."""
    key = tl.min((value.to(tl.int64) << 32) | n, 0)
    return (key >> 32).to(tl.int32), (key & 0x7FFFFFFF).to(tl.int32)


@triton.jit
def note(starts, at, dy, dx):
    """Keep a vector in samples of the middle picture, at most 2047 quarters of a luma sample."""
    tl.store(starts + at, tl.minimum(tl.maximum(8 * dy, -2047), 2047).to(tl.int16))
    tl.store(starts + at + 1, tl.minimum(tl.maximum(8 * dx, -2047), 2047).to(tl.int16))


@triton.jit
def coarse_kernel(
    current, reference, starts, tall, wide, units, MARGIN: tl.constexpr, REACH: tl.constexpr,
    LOOKS: tl.constexpr, TRIES: tl.constexpr,
):  # fmt: skip
    """One program finds a unit's vector by the area of 8 x 8 around it; see `first_looks`."""
    unit, chunk = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i, j = unit // units, unit % units
    current += chunk * tall * wide
    reference += chunk * tall * wide
    side: tl.constexpr = 2 * REACH + 1
    y, x = MARGIN + 4 * i - 2, MARGIN + 4 * j - 2
    n = tl.arange(0, TRIES)
    v, u = y - REACH + n // side, x - REACH + n % side
    inside = (n < side * side) & (v >= 0) & (u >= 0) & (v <= tall - 8) & (u <= wide - 8)
    v_in, u_in = tl.where(inside, v, 0), tl.where(inside, u, 0)
    a, b = differences(current, reference, y, x, v_in, u_in, wide)
    c, d = differences(current, reference, y + 4, x, v_in + 4, u_in, wide)
    total = a + b + c + d + 8 * (tl.abs(v - y) + tl.abs(u - x))
    _, best = first_least(tl.where(inside, total, 0x7FFFFFFF), n)
    at = (chunk * tl.num_programs(0) + unit) * LOOKS * 2
    tl.store(starts + at, (16 * (best // side - REACH)).to(tl.int16))
    tl.store(starts + at + 1, (16 * (best % side - REACH)).to(tl.int16))


@triton.jit
def closer_looks(
    current, reference, hints, starts, i, j, tall, wide, columns, MARGIN: tl.constexpr,
    SPAN: tl.constexpr, STARTS: tl.constexpr, TRIES: tl.constexpr,
):  # fmt: skip
    """Find vectors for a unit and each of its blocks, around the hint, in middle pictures."""
    side: tl.constexpr = 2 * SPAN + 1
    far: tl.constexpr = 0x7FFFFFFF
    y, x = MARGIN + 8 * i, MARGIN + 8 * j
    hint = hints + 2 * (2 * i * columns + 2 * j)
    top = y + ((tl.load(hint).to(tl.int32) + 4) >> 3) - SPAN
    left = x + ((tl.load(hint + 1).to(tl.int32) + 4) >> 3) - SPAN
    n = tl.arange(0, TRIES)
    a, b = n // side, n % side
    v = tl.minimum(tl.maximum(top + a, 0), tall - 8)
    u = tl.minimum(tl.maximum(left + b, 0), wide - 8)
    away = 4 * (tl.abs(a - SPAN) + tl.abs(b - SPAN))
    q0, q1 = differences(current, reference, y, x, v, u, wide)
    q2, q3 = differences(current, reference, y + 4, x, v + 4, u, wide)
    known = n < side * side
    for k in tl.static_range(4):
        part = q0 if k == 0 else (q1 if k == 1 else (q2 if k == 2 else q3))
        _, best = first_least(tl.where(known, part + away, far), n)
        note(starts, 2 * (1 + STARTS + k), top + best // side - y, left + best % side - x)
    score = tl.where(known, q0 + q1 + q2 + q3 + 5 * away, far)
    for m in tl.static_range(STARTS):
        _, best = first_least(score, n)
        note(starts, 2 * (1 + m), top + best // side - y, left + best % side - x)
        # The next one is the best that is no neighbor.
        near = (tl.abs(a - best // side) <= 1) & (tl.abs(b - best % side) <= 1)
        score = tl.where(near, far, score)


def first_looks(current: Picture, references: Sequence[Picture], hints: Tensor) -> Tensor:
    """Find vectors from which a search may start.

    Args:
        current: The frames that are to be predicted.
        references: What each of them is predicted from.
        hints: int16 [chunks, rows, columns, 2], a vector for each block of 8 x 8 samples.

    Returns:
        int16 [references, chunks, rows of units, columns of units, LOOKS, 2]: the first of each
        unit from the coarse pictures. The others, three of the middle ones and one for each block
        of the unit, are `closer_looks`'s, and zero.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    chunks, tall, wide = check_picture("current", current, current)
    device = current.phases.device
    shape = [chunks, None, None, 2]
    _, rows, columns, _ = check("hints", hints, torch.int16, shape, device, apart=1).shape
    units = -(-rows // 2), -(-columns // 2)
    if (units[0] * UNIT + 2 * MARGIN, units[1] * UNIT + 2 * MARGIN) != (tall, wide):
        raise ValueError(f"hints of {rows} x {columns} blocks are not for {tall} x {wide} samples")
    starts = hints.new_zeros((len(references), chunks, *units, LOOKS, 2))
    for reference, its in zip(references, starts, strict=True):
        check_picture("reference", reference, current)
        coarse_kernel[(units[0] * units[1], chunks)](
            current.coarse, reference.coarse, its, tall // COARSE, wide // COARSE, units[1],
            MARGIN=MARGIN // COARSE, REACH=REACH, LOOKS=LOOKS,
            TRIES=triton.next_power_of_2((2 * REACH + 1) ** 2), num_warps=8, **EXACT,
        )  # fmt: skip
    return starts
