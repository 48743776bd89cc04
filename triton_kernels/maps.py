"""What a phase's flow moves samples along on its grid, each in one launch: couplings, the base.

    logit of a place in an interval (`dequantize`)  ->  affine couplings  ->  logistic base

A kernel makes the straight pieces of its map where it needs them, of a layer's integers or of the
grid's knots, and moves its numbers along them: between a layer's outputs and the moved numbers
nothing is stored. Rows of lanes follow one another, as each begins with the heads of the last one.

`turn` says who takes part: int64 [messages + 1], of each message how many before it do. Samples lie
message after message, of those alone, in planes of `area` samples, each message with as many.

A message that has failed, of size -1, is not worked on further; what stands in its place is noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.checks import EXACT, SERIAL, check, check_pixels
from triton_kernels.convolution import clamp
from triton_kernels.lengths import ENTRIES, log2
from triton_kernels.rans import (
    _HEAD_MIN,
    MAX_PRECISION,
    Messages,
    check_messages,
    divide,
    enter,
    leave,
    refill,
    spill,
    warps,
)
from triton_kernels.uniform import move_row, pop_row, push_row

PARTS = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Row and column of each part of a square of a phase's samples."""

CORE_SCALES = 49
SQUARES = 256  # or samples, that a program looks at together
PROGRAMS = 64  # that sum what a message's samples shrink by

_RANGE, _CORE = tl.constexpr(17), tl.constexpr(8)
_SCALE_MAX, _SHIFT_MAX = tl.constexpr(24), tl.constexpr(3)
_SEEN_BITS, _SHIFT_BITS = tl.constexpr(4), tl.constexpr(8)
_SEEN_MOST = tl.constexpr(127)


class Grid(NamedTuple):
    """Tables of a flow's grid, on a device.

    Attributes:
        fineness: Of the grid.
        core: int64 [49], half of an affine map's core by its scale.
        precision: Of the symbols' intervals.
        knots: int64 [K + 1], the logit's, in u: ascending from 0 to 2**precision, none twice.
        images: int64 [K + 1], where they are on the grid, alike.
        lengths: int64 [1025], see `lengths`.
    """

    fineness: int
    core: Tensor
    precision: int
    knots: Tensor
    images: Tensor
    lengths: Tensor


@triton.jit
def find(line, z, pieces, STEPS: tl.constexpr):
    """Find k with line[k] <= z < line[k + 1], of `pieces`, by their ends."""
    k = tl.zeros_like(z).to(tl.int32)
    for n in tl.static_range(STEPS):
        tried = k + (1 << (STEPS - 1 - n))
        inside = tried < pieces
        k = tl.where(inside & (tl.load(line + tried, inside, other=0) <= z), tried, k)
    return k


@triton.jit
def piece(line, other, z, pieces, STEPS: tl.constexpr):
    """The piece of a curve that holds z: begin and length on `line`, and on the other side."""
    k = find(line, z, pieces, STEPS)
    x0, y0 = tl.load(line + k), tl.load(other + k)
    return x0, tl.load(line + k + 1) - x0, y0, tl.load(other + k + 1) - y0


@triton.jit
def affine_piece(z, shift, half, fineness, FORWARD: tl.constexpr):
    """The piece of an affine map, or of its inverse, that holds z; see `piece`."""
    one = tl.full((1,), 1, tl.int64) << fineness
    low, high, total = (_RANGE - _CORE) * one, (_RANGE + _CORE) * one, 2 * _RANGE * one
    left = _RANGE * one + shift - half
    right = left + 2 * half
    if FORWARD:
        below, above = z < low, z >= high
    else:
        below, above = z < left, z >= right
    x0 = tl.where(below, 0, tl.where(above, high, low))
    w = tl.where(below, low, tl.where(above, total - high, high - low))
    y0 = tl.where(below, 0, tl.where(above, right, left))
    v = tl.where(below, left, tl.where(above, total - right, right - left))
    if FORWARD:
        return x0, w, y0, v
    return y0, v, x0, w


@triton.jit
def shrinks_kernel(
    y, turn, knots, images, table, out, each, pieces, STEPS: tl.constexpr, PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program looks at a part of one message's samples; see `shrinks`."""
    i_m, i_p = tl.program_id(0), tl.program_id(1)
    begin = tl.load(turn + i_m) * each
    end = tl.load(turn + i_m + 1) * each
    total = tl.zeros((BLOCK,), tl.int64)
    row = begin + i_p * BLOCK
    while row < end:
        at = row + tl.arange(0, BLOCK)
        known = at < end
        _, w, _, v = piece(images, knots, tl.load(y + at, known, other=0), pieces, STEPS)
        total += tl.where(known, log2(v, table) - log2(w, table), 0)
        row += PARTS * BLOCK
    tl.store(out + i_m * PARTS + i_p, tl.sum(total, 0))


@triton.jit
def move_along(
    h, words, live, least, shrinks, capacity, place, z, x0, w, y0, v, table, known,
    FORWARD: tl.constexpr,
):  # fmt: skip
    """Move a row of samples z, which lie at `place`, along their pieces, and keep what it took."""
    h, live, least, moved = move_row(h, words, live, least, capacity, z, x0, w, y0, v, known)
    tl.store(place, moved, known)
    if FORWARD:
        shrinks += tl.where(known, log2(w, table) - log2(v, table), 0)
    return h, live, least, shrinks


@triton.jit
def keep_along(along, least, shrinks, FORWARD: tl.constexpr):
    """Keep what moving one message's samples took; see `affine`."""
    i_m = tl.program_id(0)
    before = tl.load(along + i_m)
    tl.store(along + i_m, before + tl.sum(shrinks, 0) if FORWARD else tl.minimum(before, least))


@triton.jit
def affine_kernel(
    head, tail, size, along, y, outputs, core, table, turn, planes, rows, columns, down, right,
    squares_h, squares_w, parameter, moved_parts, fineness, capacity,
    FORWARD: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """One program moves one part of one message's squares; see `affine`."""
    i_m, lane, h, live, words = enter(head, tail, size, capacity, LANES)
    least = live
    shrinks = tl.zeros((LANES,), tl.int64)
    plane = tl.load(turn + i_m) * planes
    part_h, part_w = (rows - down + 1) // 2, (columns - right + 1) // 2
    area = part_h * part_w
    count = (tl.load(turn + i_m + 1) * planes - plane) * area
    left = (count + LANES - 1) // LANES
    row = (left - 1) * LANES if FORWARD else left * 0
    most = _SHIFT_MAX << fineness
    while (left > 0) & (live >= 0):
        at = row + lane
        known = at < count
        i_n = plane + at // area
        r = at % area // part_w
        c = at % part_w
        place = y + (i_n * rows + 2 * r + down) * columns + 2 * c + right
        source = outputs + ((i_n * squares_h + r) * squares_w + c) * (2 * moved_parts) + parameter
        shift = tl.load(source, known, other=0).to(tl.int32)
        scale = tl.load(source + moved_parts, known, other=0).to(tl.int32)
        shift = clamp((shift << fineness) >> _SHIFT_BITS, -most, most).to(tl.int64)
        half = tl.load(core + clamp(scale, -_SCALE_MAX, _SCALE_MAX) + _SCALE_MAX)
        z = tl.load(place, known, other=0)
        x0, w, y0, v = affine_piece(z, shift, half, fineness, FORWARD)
        h, live, least, shrinks = move_along(
            h, words, live, least, shrinks, capacity, place, z, x0, w, y0, v, table, known, FORWARD
        )
        row += -LANES if FORWARD else LANES
        left -= 1
    leave(head, size, h, live, LANES)
    keep_along(along, least, shrinks, FORWARD)


@triton.jit
def push_base_kernel(
    head, tail, size, y, turn, knots, images, each, pieces, precision, capacity,
    STEPS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """One program pushes the samples of one message; see `push_base`."""
    i_m, lane, h, live, words = enter(head, tail, size, capacity, LANES)
    begin = tl.load(turn + i_m) * each
    end = tl.load(turn + i_m + 1) * each
    last = begin + (end - begin + LANES - 1) // LANES * LANES
    row = last
    while (row > begin) & (live >= 0):
        row -= LANES
        known = row + lane < end
        z = tl.load(y + row + lane, known, other=0)
        k = find(images, z, pieces, STEPS)
        low = tl.load(images + k)
        span = tl.load(images + k + 1) - low
        h, live = push_row(h, words, live, capacity, z - low, span, known)
        tl.store(y + row + lane, k.to(tl.int64), known)
    tl.debug_barrier()
    row = last
    while (row > begin) & (live >= 0):
        row -= LANES
        known = row + lane < end
        k = tl.load(y + row + lane, known, other=0)
        start = tl.load(knots + k)
        freq = tl.load(knots + k + 1) - start
        full = known & ((h >> (63 - precision)) >= freq)
        g, live = spill(h, words, live, capacity, full)
        quotient = divide(g, freq)
        h = tl.where(known, (quotient << precision) + (g - quotient * freq) + start, h)
    leave(head, size, h, live, LANES)


@triton.jit
def pop_base_kernel(
    head, tail, size, y, turn, knots, images, each, pieces, precision, capacity,
    STEPS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """One program pops the samples of one message; see `pop_base`."""
    i_m, lane, h, live, words = enter(head, tail, size, capacity, LANES)
    begin = tl.load(turn + i_m) * each
    end = tl.load(turn + i_m + 1) * each
    row = begin
    while (row < end) & (live >= 0):
        known = row + lane < end
        slot = h & ((tl.full((1,), 1, tl.int64) << precision) - 1)
        k = find(knots, slot, pieces, STEPS)
        start = tl.load(knots + k)
        freq = tl.load(knots + k + 1) - start
        h = tl.where(known, freq * (h >> precision) + slot - start, h)
        h, live = refill(h, words, live, known & (h < _HEAD_MIN))
        tl.store(y + row + lane, k.to(tl.int64), known)
        row += LANES
    tl.debug_barrier()
    row = begin
    while (row < end) & (live >= 0):
        known = row + lane < end
        k = tl.load(y + row + lane, known, other=0)
        low = tl.load(images + k)
        h, live, place = pop_row(h, words, live, tl.load(images + k + 1) - low, known)
        tl.store(y + row + lane, low + place, known)
        row += LANES
    leave(head, size, h, live, LANES)


@triton.jit
def seen_kernel(
    y, first, second, first_pitch, second_pitch, rows, columns, squares_h, squares_w, squares,
    fineness, MOVED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program looks at BLOCK squares; see `see`."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    r, c = at // squares_w % squares_h, at % squares_w
    plane = y + (at // (squares_h * squares_w)).to(tl.int64) * rows * columns
    for part in tl.static_range(4):
        i, j = 2 * r + part // 2, 2 * c + part % 2
        there = (at < squares) & (i < rows) & (j < columns) & ((MOVED >> part) % 2 == 0)
        middle = _RANGE << fineness
        z = tl.load(plane + i * columns + j, there, other=middle) - middle
        steps = clamp(z >> (fineness - _SEEN_BITS), -_SEEN_MOST, _SEEN_MOST).to(tl.int8)
        tl.store(first + at * first_pitch + part, steps, at < squares)
        tl.store(second + at * second_pitch + part, steps, at < squares)


def shrinks(y: Tensor, turn: Tensor, grid: Grid) -> Tensor:
    """Return what the logit shrinks samples by, where they have come to.

    Args:
        y: On the grid, int64 [taking part, n].
        turn: Who takes part; see the module.
        grid: Tables.

    Returns:
        int64 [messages], sums in steps of 2**-20 bits; 0 of who does not take part.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    device = check("y", y, torch.int64, [None, None]).device
    number = check("turn", turn, torch.int64, [None], device).numel() - 1
    pieces = _check_grid(grid, device)
    out = torch.empty((number, PROGRAMS), dtype=torch.int64, device=device)
    if number:
        shrinks_kernel[(number, PROGRAMS)](
            y, turn, grid.knots, grid.images, grid.lengths, out, y.shape[1], pieces,
            STEPS=(pieces - 1).bit_length(), PARTS=PROGRAMS, BLOCK=SQUARES, **EXACT,
        )  # fmt: skip
    return out.sum(1)


def affine(
    messages: Messages,
    along: Tensor,
    y: Tensor,
    outputs: Tensor,
    parts: tuple[int, int, int],
    turn: Tensor,
    grid: Grid,
    forward: bool,
) -> None:
    """Move one part of all squares by what a coupling's last layer says of them, in place.

    Args:
        messages: Give the choices and take back what tells them, in place; each tail has room for a
            word a sample. Their sizes become -1 where it, or words, do not suffice.
        along: What is kept on the way. Forward, int64 [messages], to which the steps of 2**-20 bits
            are added that samples shrink by; back, int32 [messages], lowered to the least sizes.
        y: On the grid, int64 [taking part, planes, rows, columns].
        outputs: Of squares, int16 [all planes, (rows + 1) // 2, (columns + 1) // 2, 2 * moved]:
            shifts in 1/256, then scale indices.
        parts: The part; its place among those that the coupling moves; and their number.
        turn: As in `shrinks`.
        grid: Tables.
        forward: As an encoder does, the last row first; the inverse begins with the first.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    shape = check_line(messages, y, [None] * 4, turn, grid)
    check("along", along, torch.int64 if forward else torch.int32, [shape.number], y.device)
    taking, planes, rows, columns = y.shape
    part, parameter, moved = parts
    squares = (rows + 1) // 2, (columns + 1) // 2
    check("outputs", outputs, torch.int16, [taking * planes, *squares, 2 * moved], y.device)
    check("core", grid.core, torch.int64, [CORE_SCALES], y.device)
    down, right = PARTS[part]
    if y[:, :, down::2, right::2].numel():
        affine_kernel[(shape.number,)](
            *messages, along, y, outputs, grid.core, grid.lengths, turn, planes, rows, columns,
            down, right, *squares, parameter, moved, grid.fineness, shape.capacity,
            FORWARD=forward, LANES=shape.lanes, num_warps=warps(shape.lanes), **SERIAL,
        )  # fmt: skip


def push_base(messages: Messages, y: Tensor, turn: Tensor, grid: Grid) -> None:
    """Push samples under the logistic base: the places in their pieces, then the pieces.

    Args:
        messages: Grow, in place; each tail has room for two words a sample.
        y: On the grid, int64 [taking part, n]; unspecified afterwards.
        turn: As in `shrinks`.
        grid: Tables.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    shape = check_line(messages, y, [None] * 2, turn, grid)
    if y.numel():
        push_base_kernel[(shape.number,)](
            *messages, y, turn, grid.knots, grid.images, y.shape[1], shape.pieces, grid.precision,
            shape.capacity, STEPS=shape.steps, LANES=shape.lanes, num_warps=warps(shape.lanes),
            **SERIAL,
        )  # fmt: skip


def pop_base(messages: Messages, turn: Tensor, size: tuple[int, int], grid: Grid) -> Tensor:
    """Pop samples under the logistic base; the mirror image of `push_base`.

    Args:
        messages: Shrink, in place. Their sizes become -1 where words do not suffice.
        turn: As in `shrinks`.
        size: How many take part, and their samples.
        grid: Tables.

    Returns:
        int64 [taking part, n], on the grid.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    y = torch.zeros(size, dtype=torch.int64, device=messages.head.device)
    shape = check_line(messages, y, [None] * 2, turn, grid)
    if y.numel():
        pop_base_kernel[(shape.number,)](
            *messages, y, turn, grid.knots, grid.images, y.shape[1], shape.pieces, grid.precision,
            shape.capacity, STEPS=shape.steps, LANES=shape.lanes, num_warps=warps(shape.lanes),
            **SERIAL,
        )  # fmt: skip
    return y


def see(y: Tensor, moved: tuple[int, ...], first: Tensor, second: Tensor, fineness: int) -> None:
    """Write what networks see of the parts that stay, in steps of 1/16, to two places.

    Args:
        y: On the grid, int64 [taking part, planes, rows, columns].
        moved: Parts that do not stay; they are seen as zero, like those that are missing.
        first: int8 [all planes, (rows + 1) // 2, (columns + 1) // 2, 4].
        second: Alike.
        fineness: Of the grid.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    taking, planes, rows, columns = check("y", y, torch.int64, [None] * 4).shape
    squares = (rows + 1) // 2, (columns + 1) // 2
    shape = taking * planes, *squares, len(PARTS)
    pitches = [
        check_pixels(name, place, torch.int8, shape, y.device)
        for name, place in (("first", first), ("second", second))
    ]
    count = first[..., 0].numel()
    if count:
        seen_kernel[(triton.cdiv(count, SQUARES),)](
            y, first, second, *pitches, rows, columns, *squares, count, fineness,
            MOVED=sum(1 << part for part in moved), BLOCK=SQUARES, **EXACT,
        )  # fmt: skip


class Shape(NamedTuple):
    """What launchers tell kernels of messages and of a grid.

    Attributes:
        number: Of messages.
        lanes: Of each.
        capacity: Of a tail.
        pieces: Of the logit.
        steps: Of a search among them.
    """

    number: int
    lanes: int
    capacity: int
    pieces: int
    steps: int


def check_line(
    messages: Messages, y: Tensor, sizes: Sequence[None], turn: Tensor, grid: Grid
) -> Shape:
    """Check messages, samples y of such sizes, who takes part, and a grid's tables."""
    number, lanes, capacity = check_messages(messages)
    device = messages.head.device
    check("y", y, torch.int64, sizes, device)
    check("turn", turn, torch.int64, [number + 1], device)
    pieces = _check_grid(grid, device)
    return Shape(number, lanes, capacity, pieces, (pieces - 1).bit_length())


def _check_grid(grid: Grid, device: torch.device) -> int:
    """Check a grid's tables; return how many pieces the logit has."""
    ends = check("knots", grid.knots, torch.int64, [None], device).numel()
    check("images", grid.images, torch.int64, [ends], device)
    check("lengths", grid.lengths, torch.int64, [ENTRIES], device)
    if ends < 2 or not 1 <= grid.precision <= MAX_PRECISION:
        raise ValueError(f"{ends} knots of precision {grid.precision} are no curve")
    return ends - 1
