"""Layers of a phase's flow that are dearer than affine couplings: mixes, couplings by mixtures.

Nothing that a part's map depends on is moved by it. So what is serial need not make the maps: one
launch finds, for all samples of a part side by side, the straight piece that each is on, and
another, with one program a message, only moves them.

    row, mixture    samples, and a layer's integers  ->  pieces
    move            pieces, samples, messages        ->  samples, messages

Pieces are int32 [4, samples of the part]: where each begins and how long it is, before the move and
after it. `maps` says what samples, `turn` and squares are; a norm is `maps.affine` with one output
for all squares.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.checks import EXACT, SERIAL, check
from triton_kernels.convolution import clamp
from triton_kernels.lengths import ENTRIES
from triton_kernels.maps import (
    _RANGE,
    _SCALE_MAX,
    _SHIFT_MAX,
    CORE_SCALES,
    PARTS,
    Grid,
    affine_piece,
    keep_along,
    move_along,
    piece,
)
from triton_kernels.mixture import TABLE_SIZE, sigmoid_of
from triton_kernels.rans import Messages, check_messages, enter, leave, warps

MAX_COMPONENTS = 8
ROW = 8
"""Integers of a row of a mix, of which five are used."""

CURVE = 386
"""Pieces of the logit that images of mixtures are found by."""

STEEPEST = 7
"""No map by mixtures takes a piece to 2**7 times its length: there are 68, of one length."""

BLOCK = 128
WEIGHT_STEPS = 16

_PIECES = tl.constexpr(68)
_ROUNDS = tl.constexpr(7)  # that halve so many pieces
_MIDDLE, _KNOT = tl.constexpr(34), tl.constexpr(128)
_MEAN_MAX, _WIDTH_MAX = tl.constexpr(2047), tl.constexpr(16)
_WIDTH_SHIFT = tl.constexpr(12)
_WEIGHT_BITS, _WHOLE = tl.constexpr(12), tl.constexpr(1 << 12)
_SHORT_LOW = tl.constexpr(-(1 << 15))
_TOP = tl.constexpr((1 << 24) - 1)
_BLEND_BITS, _BLEND, _IMAGE_STEP = tl.constexpr(6), tl.constexpr(63), tl.constexpr(1 << 13)
_MIX_SHIFT, _MIX_HALF = tl.constexpr(13), tl.constexpr(1 << 12)


class Tables(NamedTuple):
    """Tables of maps by mixtures, on a device.

    Attributes:
        packed: See `mixture.Tables`.
        reciprocals: Alike.
        weights: int32 [16], floor(2**(15 - i / 16)).
        knots: int64 [387], the logit's of precision 24.
        images: int64 [387], where they are on a grid of fineness 14.
    """

    packed: Tensor
    reciprocals: Tensor
    weights: Tensor
    knots: Tensor
    images: Tensor


@triton.jit
def place_of(e, rows, columns, down, right):
    """Where sample e of a part stands: its plane, and the row and column of its square."""
    part_h, part_w = (rows - down + 1) // 2, (columns - right + 1) // 2
    area = part_h * part_w
    return e // area, e % area // part_w, e % part_w


@triton.jit
def store_piece(pieces, stride, e, x0, w, y0, v, known):
    """Keep the pieces of some samples."""
    tl.store(pieces + e, x0.to(tl.int32), known)
    tl.store(pieces + stride + e, w.to(tl.int32), known)
    tl.store(pieces + 2 * stride + e, y0.to(tl.int32), known)
    tl.store(pieces + 3 * stride + e, v.to(tl.int32), known)


@triton.jit
def row_kernel(
    y, row, core, pieces, count, rows, columns, down, right, fineness,
    FORWARD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program finds the pieces of BLOCK samples of a part; see `row`."""
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    known = e < count
    i_n, r, c = place_of(e, rows, columns, down, right)
    plane = y + i_n.to(tl.int64) * rows * columns
    middle = _RANGE << fineness
    total = tl.zeros((BLOCK,), tl.int64)
    for part in tl.static_range(4):
        factor = tl.load(row + part).to(tl.int64)
        i, j = 2 * r + part // 2, 2 * c + part % 2
        there = known & (i < rows) & (j < columns)
        other = tl.load(plane + i * columns + j, there, other=0)
        # Twice the distance from the middle.
        total += tl.where(there, factor * (2 * (other - middle) + 1), 0)
    most = _SHIFT_MAX << fineness
    shift = clamp((total + _MIX_HALF) >> _MIX_SHIFT, -most, most)
    half = tl.load(core + tl.load(row + 4) + _SCALE_MAX)
    z = tl.load(plane + (2 * r + down) * columns + 2 * c + right, known, other=0)
    x0, w, y0, v = affine_piece(z, shift, half, fineness, FORWARD)
    store_piece(pieces, count, e, x0, w, y0, v, known)


@triton.jit
def image(
    k, weight, mean, reciprocal, shift, total, packed, knots, images,
    CURVE: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Where knots k, 0..68, of maps of components [BLOCK, K] are on a grid of `total` cells."""
    distance = ((k - _MIDDLE) * _KNOT)[:, None] - mean
    below = tl.sum(weight * sigmoid_of(distance, reciprocal, shift, packed), 1) >> _WEIGHT_BITS
    below = tl.minimum(below, _TOP)
    x0, w, y0, v = piece(knots, images, below, CURVE, STEPS)
    height = y0 + (below - x0) * v // w
    blend = (height * _BLEND + k * _IMAGE_STEP) >> _BLEND_BITS
    inner = k + blend * (total - _PIECES) // (_PIECES * _IMAGE_STEP)
    return tl.where(k == 0, 0, tl.where(k == _PIECES, total, inner))


@triton.jit
def mixture_kernel(
    y, outputs, packed, reciprocals, weights, knots, images, pieces, count, rows, columns, down,
    right, squares_h, squares_w, parameter, moved_parts, fineness,
    FORWARD: tl.constexpr, COMPONENTS: tl.constexpr, K: tl.constexpr, CURVE: tl.constexpr,
    STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program finds the pieces of BLOCK samples of a part; see `mixture`."""
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    known = e < count
    i_n, r, c = place_of(e, rows, columns, down, right)
    squares = (i_n.to(tl.int64) * squares_h + r) * squares_w + c
    component = tl.arange(0, K)[None, :]
    source = outputs + ((squares * 3 * COMPONENTS)[:, None] + component) * moved_parts + parameter
    real = known[:, None] & (component < COMPONENTS)

    # Weights: shares of the whole, and to the first of the heaviest what rounding leaves.
    logs = tl.load(source, real, other=_SHORT_LOW).to(tl.int32)
    away = tl.max(logs, 1)[:, None] - logs
    heaviest = tl.min(tl.where(away == 0, component, K), 1)[:, None]
    share = tl.load(weights + (away & 15)) >> tl.minimum(away >> 4, 31)
    share = tl.where(component < COMPONENTS, share, 0) << _WEIGHT_BITS
    weight = share // (tl.sum(share, 1) >> _WEIGHT_BITS)[:, None]
    lacking = (tl.sum(weight, 1) - _WHOLE)[:, None]
    weight = (weight - tl.where(component == heaviest, lacking, 0)).to(tl.int64)

    step = COMPONENTS * moved_parts
    mean = tl.load(source + step, real, other=0).to(tl.int64)
    mean = clamp(mean, -_MEAN_MAX, _MEAN_MAX)
    width = clamp(tl.load(source + 2 * step, real, other=0).to(tl.int32), -_WIDTH_MAX, _WIDTH_MAX)
    reciprocal = tl.load(reciprocals + (width & 7))
    shift = ((width >> 3) + _WIDTH_SHIFT).to(tl.int64)

    cells = (tl.zeros((BLOCK,), tl.int64) + 2 * _RANGE) << fineness
    length = cells // _PIECES
    place = (i_n.to(tl.int64) * rows + 2 * r + down) * columns + 2 * c + right
    z = tl.load(y + place, known, other=0)
    if FORWARD:
        k = clamp(z // length, 0, _PIECES - 1)
        left = image(k, weight, mean, reciprocal, shift, cells, packed, knots, images, CURVE, STEPS)
        end = image(
            k + 1, weight, mean, reciprocal, shift, cells, packed, knots, images, CURVE, STEPS
        )
        store_piece(pieces, count, e, k * length, length, left, end - left, known)
    else:
        k, left = tl.zeros((BLOCK,), tl.int64), tl.zeros((BLOCK,), tl.int64)
        top, end = tl.zeros((BLOCK,), tl.int64) + _PIECES, cells
        # The last round may have nothing left to halve: then it finds what it has.
        for _ in tl.range(_ROUNDS, loop_unroll_factor=1):
            tried = (k + top) >> 1
            at = image(
                tried, weight, mean, reciprocal, shift, cells, packed, knots, images, CURVE, STEPS
            )
            below = at <= z
            k, left = tl.where(below, tried, k), tl.where(below, at, left)
            top, end = tl.where(below, top, tried), tl.where(below, end, at)
        store_piece(pieces, count, e, left, end - left, k * length, length, known)


@triton.jit
def move_kernel(
    head, tail, size, along, y, pieces, table, count, turn, planes, rows, columns, down, right,
    capacity,
    FORWARD: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """One program moves one part of one message's squares; see `move`."""
    i_m, lane, h, live, words = enter(head, tail, size, capacity, LANES)
    least = live
    shrinks = tl.zeros((LANES,), tl.int64)
    each = planes * ((rows - down + 1) // 2) * ((columns - right + 1) // 2)
    # 32 bits, as all samples are counted in: a row's divisions are serial.
    begin = (tl.load(turn + i_m) * each).to(tl.int32)
    stop = (tl.load(turn + i_m + 1) * each).to(tl.int32)
    left = (stop - begin + LANES - 1) // LANES
    row = begin + (left - 1) * LANES if FORWARD else begin
    while (left > 0) & (live >= 0):
        e = row + lane
        known = e < stop
        i_n, r, c = place_of(e, rows, columns, down, right)
        place = y + (i_n * rows + 2 * r + down) * columns + 2 * c + right
        x0 = tl.load(pieces + e, known, other=0).to(tl.int64)
        w = tl.load(pieces + count + e, known, other=1).to(tl.int64)
        y0 = tl.load(pieces + 2 * count + e, known, other=0).to(tl.int64)
        v = tl.load(pieces + 3 * count + e, known, other=1).to(tl.int64)
        z = tl.load(place, known, other=0)
        h, live, least, shrinks = move_along(
            h, words, live, least, shrinks, capacity, place, z, x0, w, y0, v, table, known, FORWARD
        )
        row += -LANES if FORWARD else LANES
        left -= 1
    leave(head, size, h, live, LANES)
    keep_along(along, least, shrinks, FORWARD)


def row(y: Tensor, part: int, constants: Tensor, grid: Grid, forward: bool) -> Tensor:
    """Find the pieces that a row of a mix moves a part along.

    Args:
        y: On the grid, int64 [taking part, planes, rows, columns].
        part: That is moved.
        constants: int32 [8]: the factors of the four parts, in 2**-12, 0 of those that the row does
            not have; and a scale index, -24..24.
        grid: Tables.
        forward: As an encoder does.

    Returns:
        int32 [4, n]; see the module.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    pieces = _pieces(y, part)
    check("constants", constants, torch.int32, [ROW], y.device)
    check("core", grid.core, torch.int64, [CORE_SCALES], y.device)
    count = pieces.shape[1]
    if count:
        row_kernel[(triton.cdiv(count, BLOCK),)](
            y, constants, grid.core, pieces, count, *y.shape[2:], *PARTS[part], grid.fineness,
            FORWARD=forward, BLOCK=BLOCK, **EXACT,
        )  # fmt: skip
    return pieces


def mixture(
    y: Tensor,
    outputs: Tensor,
    parts: tuple[int, int, int],
    tables: Tables,
    fineness: int,
    forward: bool,
) -> Tensor:
    """Find the pieces that a coupling by mixtures moves a part along.

    Args:
        y: On the grid, int64 [taking part, planes, rows, columns].
        outputs: Of squares, int16 [all planes, (rows + 1) // 2, (columns + 1) // 2, 3K * moved]:
            logarithms of weights, means and widths of K components.
        parts: The part; its place among those that the coupling moves; and their number.
        tables: See above.
        fineness: Of the grid.
        forward: As an encoder does.

    Returns:
        int32 [4, n]; see the module.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another, or there are too many components.
    """
    part, parameter, moved = parts
    pieces = _pieces(y, part)
    taking, planes, rows, columns = y.shape
    squares = (rows + 1) // 2, (columns + 1) // 2
    size = check("outputs", outputs, torch.int16, [taking * planes, *squares, None], y.device)
    components = size.shape[3] // (3 * moved)
    if not 1 <= components <= MAX_COMPONENTS or size.shape[3] != 3 * components * moved:
        raise ValueError(f"{size.shape[3]} outputs are not of {moved} mixtures")
    check("packed", tables.packed, torch.int64, [TABLE_SIZE], y.device)
    check("reciprocals", tables.reciprocals, torch.int64, [8], y.device)
    check("weights", tables.weights, torch.int32, [WEIGHT_STEPS], y.device)
    for name, line in (("knots", tables.knots), ("images", tables.images)):
        check(name, line, torch.int64, [CURVE + 1], y.device)
    count = pieces.shape[1]
    if count:
        mixture_kernel[(triton.cdiv(count, BLOCK),)](
            y, outputs, *tables, pieces, count, rows, columns, *PARTS[part], *squares, parameter,
            moved, fineness, FORWARD=forward, COMPONENTS=components,
            K=triton.next_power_of_2(components), CURVE=CURVE,
            STEPS=(CURVE - 1).bit_length(), BLOCK=BLOCK, **EXACT,
        )  # fmt: skip
    return pieces


def move(
    messages: Messages,
    along: Tensor,
    y: Tensor,
    pieces: Tensor,
    part: int,
    turn: Tensor,
    grid: Grid,
    forward: bool,
) -> None:
    """Move one part of all squares along pieces, in place.

    Args:
        messages: Give the choices and take back what tells them, in place; each tail has room for a
            word a sample. Their sizes become -1 where it, or words, do not suffice.
        along: What is kept on the way; see `maps.affine`.
        y: On the grid, int64 [taking part, planes, rows, columns].
        pieces: Of the part's samples, from `row` or `mixture`.
        part: That is moved.
        turn: Who takes part; see `maps`.
        grid: Tables.
        forward: As an encoder does, the last row first; the inverse begins with the first.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    number, lanes, capacity = check_messages(messages)
    device = messages.head.device
    _, planes, rows, columns = check("y", y, torch.int64, [None] * 4, device).shape
    down, right = PARTS[part]
    count = y[:, :, down::2, right::2].numel()
    check("pieces", pieces, torch.int32, [4, count], device)
    check("turn", turn, torch.int64, [number + 1], device)
    check("along", along, torch.int64 if forward else torch.int32, [number], device)
    check("lengths", grid.lengths, torch.int64, [ENTRIES], device)
    if count:
        move_kernel[(number,)](
            *messages, along, y, pieces, grid.lengths, count, turn, planes, rows, columns, down,
            right, capacity, FORWARD=forward, LANES=lanes, num_warps=warps(lanes), **SERIAL,
        )  # fmt: skip


def _pieces(y: Tensor, part: int) -> Tensor:
    """Room for the pieces of a part's samples."""
    check("y", y, torch.int64, [None] * 4)
    down, right = PARTS[part]
    count = y[:, :, down::2, right::2].numel()
    return torch.empty((4, count), dtype=torch.int32, device=y.device)
