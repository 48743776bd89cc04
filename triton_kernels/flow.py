"""The continuous flow of a phase on a device: symbols' intervals, a flow's grid, uniform bits.

    a place in each interval, popped  ->  logit  ->  couplings  ->  logistic base

Every step is `flows.phase`'s on the CPU: networks in int8, maps by straight lines between integer
knots, and bits off the stack and back onto it that make moving along a line lose nothing. Flows of
some messages go together, as many elements of each.

Of the layers there are only affine couplings here, which is what the packaged model has, and places
do not lean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from triton_kernels import convolution, mixture, rans, uniform
from triton_kernels.network import MOST, SHORT_MOST
from triton_kernels.rans import Messages
from triton_kernels.uniform import Pieces

PARTS = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Row and column of each part of a square of a phase's samples."""

RANGE, CORE = 17, 8
SCALE_MAX, SHIFT_MAX = 24, 3
SEEN_BITS, SHIFT_BITS = 4, 8

BLOCK = 1 << 12
"""Elements between whose places and whose steps along the logit nothing else is coded."""

Arrays = tuple[Tensor, Tensor, Tensor]


class Grid(NamedTuple):
    """Tables of a flow's grid, on a device.

    Attributes:
        fineness: Of the grid.
        core: int64 [49], half of an affine map's core by its scale.
        precision: Of the symbols' intervals.
        knots: int64 [K + 1], the logit's, in u.
        images: int64 [K + 1], where they are on the grid.
    """

    fineness: int
    core: Tensor
    precision: int
    knots: Tensor
    images: Tensor


class Coupling(NamedTuple):
    """An affine coupling.

    Attributes:
        moved: Parts that are moved, ascending.
        begin: 3x3, of the parts that stay and the context.
        block: 1x1, added to what it sees.
        head: 1x1, of the state and the parts.
    """

    moved: tuple[int, ...]
    begin: convolution.Layer
    block: convolution.Layer
    head: convolution.Layer


class Flow:
    """A phase's flow.

    Args:
        context: Weight, bias and shift of the layer that makes contexts of squares' states.
        couplings: The parts that each moves, and its layers: begin, block and head.
        device: Where they are to work.

    Raises:
        ValueError: A layer has a shape that no kernel covers.
    """

    def __init__(
        self,
        context: Arrays,
        couplings: Sequence[tuple[tuple[int, ...], Arrays, Arrays, Arrays]],
        device: torch.device,
    ) -> None:
        inner, outer = (0, MOST), (-SHORT_MOST - 1, SHORT_MOST)
        self._context = convolution.pack(*context, inner, device)
        self._couplings = [
            Coupling(
                moved,
                convolution.pack(*begin, inner, device),
                convolution.pack(*block, inner, device),
                convolution.pack(*head, outer, device),
            )
            for moved, begin, block, head in couplings
        ]

    def context(self, states: Tensor) -> Tensor:
        """Return the context of a phase's squares.

        Args:
            states: int8 [N, rows, columns, C].

        Returns:
            int8 [N, h, w, channels], of (rows + 1) // 2 by (columns + 1) // 2 squares.
        """
        count, rows, columns, size = states.shape
        h, w = (rows + 1) // 2, (columns + 1) // 2
        squares = states.new_zeros((count, h, w, len(PARTS) * size))
        for n in range(len(PARTS)):
            part = part_of(states, n)
            squares[:, : part.shape[1], : part.shape[2], n * size : (n + 1) * size] = part
        out = states.new_empty((count, h, w, self._context.weight.shape[1]))
        return convolution.convolve(squares, self._context, out)

    def push(
        self,
        messages: Messages,
        start: Tensor,
        freq: Tensor,
        grid: Grid,
        context: Tensor,
        shape: tuple[int, int, int],
    ) -> Messages:
        """Push symbols, with bits that come back when they are popped.

        Args:
            messages: Give and take bits; each tail has room for two words a symbol. Unspecified
                afterwards.
            start: Left ends of the symbols' intervals, int64 [n], message after message.
            freq: Their widths, alike.
            grid: Tables.
            context: Of all planes, from `context`.
            shape: (planes, rows, columns) of all messages together.

        Returns:
            The messages; size -1 where there were too few words.
        """
        lowest = messages.size.clone()
        begin, width = (values.view(len(messages.size), -1) for values in (start, freq))
        y = torch.empty_like(begin)
        for block in reversed(blocks(y.shape[1])):
            inside = flat(width[:, block])
            bounds = bounds_of(messages, inside.numel())
            places, messages = uniform.pop_uniform(messages, inside, bounds)
            u = flat(begin[:, block]) + places
            moved = uniform.move(
                messages, lowest, u, logit_pieces(u, grid, False), bounds, down=True
            )
            y[:, block] = moved.view(len(y), -1)
        y = y.view(shape)
        for coupling in self._couplings:
            squares = parameters(y, coupling, context, grid)
            for n, part in enumerate(coupling.moved):
                values = part_of(y, part)
                line, bounds = flat(values), bounds_of(messages, values.numel())
                pieces = affine_pieces(line, *cut(squares, n, values), grid, False)
                moved = uniform.move(messages, lowest, line, pieces, bounds, down=True)
                values[:] = moved.view(values.shape)
        y = y.reshape(-1)
        pieces, bounds = logit_pieces(y, grid, True), bounds_of(messages, y.numel())
        uniform.push_uniform(messages, y - pieces.y0, pieces.v, bounds)
        each = y.numel() // len(messages.size)
        sizes = torch.full_like(bounds[1:], each), torch.full_like(bounds[1:], grid.precision)
        rans.push(
            messages, pieces.x0.int(), pieces.w.int(), torch.stack((bounds[:-1], *sizes), 1),
            torch.arange(len(bounds), device=bounds.device),
        )  # fmt: skip
        return messages

    def pop(
        self,
        messages: Messages,
        mixtures: Arrays,
        support: mixture.Support,
        tables: mixture.Tables,
        grid: Grid,
        context: Tensor,
        shape: tuple[int, int, int],
    ) -> tuple[Tensor, Messages, Tensor]:
        """Undo `push`.

        Args:
            messages: As in `push`.
            mixtures: Of the symbols, int32 [n, K]; see `mixture.intervals`.
            support: Of all symbols.
            tables: From `mixture.tables`.
            grid: As in `push`.
            context: As in `push`.
            shape: As in `push`.

        Returns:
            The symbols, int32 [n]; the messages; and their least sizes on the way, above which
            words may be others. Where a size is -1, symbols are noise.
        """
        count = shape[0] * shape[1] * shape[2]
        bounds = bounds_of(messages, count)
        k, messages = rans.pop_table(messages, grid.knots, grid.precision, bounds, count)
        low = grid.images[k]
        places, messages = uniform.pop_uniform(messages, grid.images[k + 1] - low, bounds)
        y, lowest = (places + low).view(shape), messages.size.clone()
        for coupling in reversed(self._couplings):
            squares = parameters(y, coupling, context, grid)
            for n, part in reversed(list(enumerate(coupling.moved))):
                values = part_of(y, part)
                line, bounds = flat(values), bounds_of(messages, values.numel())
                pieces = affine_pieces(line, *cut(squares, n, values), grid, True)
                moved = uniform.move(messages, lowest, line, pieces.turned(), bounds, down=False)
                values[:] = moved.view(values.shape)
        y = y.view(len(messages.size), -1)
        symbols = torch.empty(y.shape, dtype=torch.int32, device=y.device)
        each = [values.view(*y.shape, values.shape[1]) for values in mixtures]
        for block in blocks(y.shape[1]):
            line = flat(y[:, block])
            bounds = bounds_of(messages, line.numel())
            pieces = logit_pieces(line, grid, True).turned()
            u = uniform.move(messages, lowest, line, pieces, bounds, down=False)
            mean, scale, weight = (v[:, block].flatten(0, 1).contiguous() for v in each)
            found, start, freq = mixture.lookup(u, mean, scale, weight, support, tables)
            symbols[:, block] = found.view(len(y), -1)
            uniform.push_uniform(messages, u - start, freq, bounds)
        return symbols.view(-1), messages, lowest


class Flows(NamedTuple):
    """The flows of a model.

    Attributes:
        levels: That have them, from the finest.
        phases: By the name of the networks, of the three phases.
        grids: By the precision of symbols' intervals.
    """

    levels: int
    phases: Mapping[str, Sequence[Flow]]
    grids: Mapping[int, Grid]


def part_of(planes: Tensor, part: int) -> Tensor:
    """Return a part of all squares of planes [N, rows, columns, ...]; a view."""
    row, column = PARTS[part]
    return planes[:, row::2, column::2]


def flat(values: Tensor) -> Tensor:
    """Return values in a row, one after the other."""
    return values.reshape(-1).contiguous()


def blocks(count: int) -> list[slice]:
    """Cut a message's elements."""
    return [slice(i, min(i + BLOCK, count)) for i in range(0, count, BLOCK)]


def bounds_of(messages: Messages, count: int) -> Tensor:
    """Return whose elements are whose, of messages that have as many each, int64 [messages + 1]."""
    number = len(messages.size)
    return torch.arange(number + 1, device=messages.size.device) * (count // max(number, 1))


def parameters(y: Tensor, coupling: Coupling, context: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return a coupling's shifts in cells and scale indices, int64 [N, h, w, moved], of squares."""
    half = RANGE << grid.fineness
    count, h, w, _ = context.shape
    seen = context.new_zeros((count, h, w, len(PARTS)))
    for part in range(len(PARTS)):
        if part not in coupling.moved:
            steps = (part_of(y, part) - half) >> (grid.fineness - SEEN_BITS)
            seen[:, : steps.shape[1], : steps.shape[2], part] = steps.clamp(-MOST, MOST)
    state = context.new_empty((count, h, w, coupling.begin.weight.shape[1]))
    convolution.convolve(torch.cat((seen, context), 3), coupling.begin, state)
    grown = torch.empty_like(state)
    convolution.convolve(state, coupling.block, grown, residual=state, limits=(0, MOST))
    out = context.new_empty((count, h, w, 2 * len(coupling.moved)), dtype=torch.int16)
    convolution.convolve(torch.cat((grown, seen), 3), coupling.head, out)
    shifts, scales = out.long().split(len(coupling.moved), 3)
    most = SHIFT_MAX << grid.fineness
    shifts = ((shifts << grid.fineness) >> SHIFT_BITS).clamp(-most, most)
    return shifts, scales.clamp(-SCALE_MAX, SCALE_MAX)


def cut(squares: tuple[Tensor, Tensor], n: int, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the n-th shifts and scales of the squares that have some values, flat."""
    _, rows, columns = values.shape
    shifts, scales = (flat(each[:, :rows, :columns, n]) for each in squares)
    return shifts, scales


def affine_pieces(z: Tensor, shift: Tensor, scale: Tensor, grid: Grid, of_image: bool) -> Pieces:
    """Return the pieces of affine maps that hold z, or whose images do."""
    low, high = (RANGE - CORE) << grid.fineness, (RANGE + CORE) << grid.fineness
    total = (2 * RANGE) << grid.fineness
    half = grid.core[scale + SCALE_MAX]
    left = (RANGE << grid.fineness) + shift - half
    right = left + 2 * half
    below = z < (left if of_image else low)
    above = z >= (right if of_image else high)

    def choose(first: Tensor | int, second: Tensor | int, third: Tensor | int) -> Tensor:
        ends = (torch.as_tensor(e, device=z.device) for e in (first, second, third))
        one, two, three = (torch.broadcast_to(end, z.shape) for end in ends)
        return torch.where(below, one, torch.where(above, three, two))

    return Pieces(
        choose(0, low, high),
        choose(low, high - low, total - high),
        choose(0, left, right),
        choose(left, right - left, total - right),
    )


def logit_pieces(z: Tensor, grid: Grid, of_image: bool) -> Pieces:
    """Return the pieces of the logit that hold z, or whose images do."""
    line = grid.images if of_image else grid.knots
    k = (torch.searchsorted(line, z, right=True) - 1).clamp(0, len(line) - 2)
    x0, y0 = grid.knots[k], grid.images[k]
    return Pieces(x0, grid.knots[k + 1] - x0, y0, grid.images[k + 1] - y0)
