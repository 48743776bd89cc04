"""From symbols to a flow's grid and back: a place in each interval, moved along the logit.

    symbols, by their intervals  ->  a place in each, popped  ->  logit  ->  the grid

Blocks of samples go one after the other, each there and back in two passes of rows. A decoder's
second pass finds the symbol that its slot belongs to and pushes the place back, row by row: slots
never travel, nor intervals.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.checks import SERIAL, check
from triton_kernels.maps import Grid, check_line, piece
from triton_kernels.mixture import Support, Tables, check_parameters, search
from triton_kernels.rans import Messages, enter, leave, warps, ways_bits
from triton_kernels.tilts import Lean, check_lean, pop_places, push_places
from triton_kernels.uniform import move_row, pop_row, push_row

BLOCK = 1 << 12
"""Samples between whose places and whose steps along the logit nothing else is coded."""


@triton.jit
def dequantize_kernel(
    head, tail, size, start, freq, tilts, starts, y, turn, knots, images, each, pieces, capacity,
    STEPS: tl.constexpr, BLOCK: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """One program brings the symbols of one message to the grid; see `dequantize`."""
    i_m, lane, h, live, words = enter(head, tail, size, capacity, LANES)
    begin = tl.load(turn + i_m)
    stop = tl.where(tl.load(turn + i_m + 1) > begin, each, 0)
    start, freq, y = start + begin * each, freq + begin * each, y + begin * each
    while (stop > 0) & (live >= 0):
        first = (stop - 1) // BLOCK * BLOCK
        row = first
        while (row < stop) & (live >= 0):
            known = row + lane < stop
            span = tl.load(freq + row + lane, known, other=1).to(tl.int64)
            if tilts is None:
                h, live, place = pop_row(h, words, live, span, known)
            else:
                to = begin * each + row + lane
                h, live, place = pop_places(h, words, live, span, tilts, starts, to, known)
            tl.store(y + row + lane, tl.load(start + row + lane, known, other=0) + place, known)
            row += LANES
        tl.debug_barrier()
        while (row > first) & (live >= 0):
            row -= LANES
            known = row + lane < stop
            z = tl.load(y + row + lane, known, other=0)
            x0, w, y0, v = piece(knots, images, z, pieces, STEPS)
            h, live, _, moved = move_row(h, words, live, live, capacity, z, x0, w, y0, v, known)
            tl.store(y + row + lane, moved, known)
        stop = first
    leave(head, size, h, live, LANES)


@triton.jit
def quantize_kernel(
    head, tail, size, lowest, y, turn, images, knots, mean, scale, weight, packed, reciprocals,
    tilts, starts, symbols, each, pieces, capacity, low, high, precision,
    STEPS: tl.constexpr, BLOCK: tl.constexpr, LANES: tl.constexpr, K: tl.constexpr,
    ROUNDS: tl.constexpr, WAYS_BITS: tl.constexpr,
):  # fmt: skip
    """One program brings the samples of one message back to symbols; see `quantize`."""
    i_m, lane, h, live, words = enter(head, tail, size, capacity, LANES)
    least = tl.minimum(tl.load(lowest + i_m), live)
    begin = tl.load(turn + i_m)
    stop = tl.where(tl.load(turn + i_m + 1) > begin, each, 0)
    mixtures = begin * each
    y, symbols = y + mixtures, symbols + mixtures
    first = 0
    while (first < stop) & (live >= 0):
        end = tl.minimum(first + BLOCK, stop)
        row = first
        while (row < end) & (live >= 0):
            known = row + lane < end
            z = tl.load(y + row + lane, known, other=0)
            x0, w, y0, v = piece(images, knots, z, pieces, STEPS)
            h, live, least, u = move_row(h, words, live, least, capacity, z, x0, w, y0, v, known)
            tl.store(y + row + lane, u, known)
            row += LANES
        tl.debug_barrier()
        while (row > first) & (live >= 0):
            row -= LANES
            known = row + lane < end
            u = tl.load(y + row + lane, known, other=0)
            symbol, left, span = search(
                u, mean, scale, weight, packed, reciprocals, (mixtures + row + lane) * K, known,
                low, high, precision, LANES, K, ROUNDS, WAYS_BITS,
            )  # fmt: skip
            tl.store(symbols + row + lane, symbol.to(tl.int32), known)
            span = tl.where(known, span, 1)
            if tilts is None:
                h, live = push_row(h, words, live, capacity, u - left, span, known)
            else:
                to = mixtures + row + lane
                h, live = push_places(
                    h, words, live, capacity, u - left, span, tilts, starts, to, known
                )
        first = end
    leave(head, size, h, live, LANES)
    tl.store(lowest + i_m, least)


def dequantize(
    messages: Messages,
    start: Tensor,
    freq: Tensor,
    lean: Lean | None,
    turn: Tensor,
    grid: Grid,
) -> Tensor:
    """Choose a place in each symbol's interval and move it to the grid, block by block.

    Args:
        messages: Give the bits that choose, in place; each tail has room for a word a symbol. Their
            sizes become -1 where it, or words, do not suffice.
        start: Left ends of intervals, int32 [taking part, n].
        freq: Their widths, alike.
        lean: How places do, of as many symbols; None where none does.
        turn: Who takes part; see `maps`.
        grid: Tables.

    Returns:
        int64 [taking part, n], on the grid.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    size = list(check("start", start, torch.int32, [None, None], messages.head.device).shape)
    check("freq", freq, torch.int32, size, start.device)
    tilts, starts = (None, None) if lean is None else check_lean(lean, size, start.device)
    y = torch.zeros(size, dtype=torch.int64, device=start.device)
    shape = check_line(messages, y, [None] * 2, turn, grid)
    if y.numel():
        dequantize_kernel[(shape.number,)](
            *messages, start, freq, tilts, starts, y, turn, grid.knots, grid.images, y.shape[1],
            shape.pieces, shape.capacity, STEPS=shape.steps, BLOCK=BLOCK, LANES=shape.lanes,
            num_warps=warps(shape.lanes), **SERIAL,
        )  # fmt: skip
    return y


def quantize(
    messages: Messages,
    lowest: Tensor,
    y: Tensor,
    mixtures: tuple[Tensor, Tensor, Tensor],
    support: Support,
    tables: Tables,
    lean: Lean | None,
    turn: Tensor,
    grid: Grid,
) -> Tensor:
    """Move samples back along the logit, find the symbols there, and push their places.

    Args:
        messages: As in `dequantize`.
        lowest: int32 [messages], lowered to the least sizes on the way.
        y: On the grid, int64 [taking part, n]; unspecified afterwards.
        mixtures: Mean, scale and weight of the symbols, int32 [taking part * n, K]; see
            `mixture.intervals`.
        support: Of all symbols.
        tables: From `mixture.tables`.
        lean: As in `dequantize`.
        turn: As in `dequantize`.
        grid: Tables.

    Returns:
        The symbols, int32 [taking part * n]; noise where a size has become -1.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device, a layout or the support is out of range.
    """
    shape = check_line(messages, y, [None] * 2, turn, grid)
    check("lowest", lowest, torch.int32, [shape.number], y.device)
    components = check_parameters(*mixtures, support, tables)
    check("mean", mixtures[0], torch.int32, [y.numel(), components], y.device)
    tilts, starts = (None, None) if lean is None else check_lean(lean, list(y.shape), y.device)
    symbols = torch.zeros(y.numel(), dtype=torch.int32, device=y.device)
    ways = ways_bits(shape.lanes)
    if y.numel():
        quantize_kernel[(shape.number,)](
            *messages, lowest, y, turn, grid.images, grid.knots, *mixtures, *tables, tilts, starts,
            symbols, y.shape[1], shape.pieces, shape.capacity, *support, STEPS=shape.steps,
            BLOCK=BLOCK, LANES=shape.lanes, K=components,
            ROUNDS=triton.cdiv((support.high - support.low).bit_length(), ways), WAYS_BITS=ways,
            num_warps=warps((shape.lanes << ways) // 4, 16), **SERIAL,
        )  # fmt: skip
    return symbols
