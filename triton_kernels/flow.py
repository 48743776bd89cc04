"""The continuous flow of a phase on a device: symbols' intervals, a flow's grid, uniform bits.

    a place in each interval, popped  ->  logit  ->  couplings  ->  logistic base

Every step is `flows.phase`'s on the CPU: networks in int8, maps by straight lines between integer
knots, and bits off the stack and back onto it that make moving along a line lose nothing. Flows of
some messages go together, as many samples of each; `turn` says which, see `maps`.

Of the layers there are only affine couplings here, which is what the packaged model has, and places
do not lean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from triton_kernels import convolution, lengths, maps, mixture
from triton_kernels.dequantize import dequantize, quantize
from triton_kernels.maps import PARTS, Grid
from triton_kernels.network import MOST, SHORT_MOST
from triton_kernels.rans import Messages

Arrays = tuple[Tensor, Tensor, Tensor]


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


class Cost(NamedTuple):
    """What pushing phases took and gave, int64 [messages] each, in steps of 2**-20 bits.

    Attributes:
        ideal: -log2 p of the symbols by the flow.
        popped: What dequantization took.
        lowest: The messages' least heights between what moves samples.
    """

    ideal: Tensor
    popped: Tensor
    lowest: Tensor


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
        """Return what networks see of a phase's squares: room for the parts, and the context.

        Args:
            states: int8 [N, rows, columns, C].

        Returns:
            int8 [N, h, w, 4 + channels], of (rows + 1) // 2 by (columns + 1) // 2 squares.
        """
        count, rows, columns, size = states.shape
        h, w = (rows + 1) // 2, (columns + 1) // 2
        squares = states.new_zeros((count, h, w, len(PARTS) * size))
        for n, (row, column) in enumerate(PARTS):
            part = states[:, row::2, column::2]
            squares[:, : part.shape[1], : part.shape[2], n * size : (n + 1) * size] = part
        out = states.new_empty((count, h, w, len(PARTS) + self._context.weight.shape[1]))
        convolution.convolve(squares, self._context, out[..., len(PARTS) :])
        return out

    def push(
        self,
        messages: Messages,
        start: Tensor,
        freq: Tensor,
        logs: Tensor,
        turn: Tensor,
        grid: Grid,
        context: Tensor,
        shape: tuple[int, int, int, int],
    ) -> Cost:
        """Push symbols, with bits that come back when they are popped.

        Args:
            messages: Give and take bits, in place; each tail has room for two words a symbol. Sizes
                become -1 where there are too few words, and what else there is is unspecified.
            start: Left ends of the symbols' intervals, int32 [n], message after message.
            freq: Their widths, alike.
            logs: The sums of the widths' logarithms, int64 [messages], in steps.
            turn: Who takes part; see `maps`.
            grid: Tables.
            context: Of all planes, from `context`.
            shape: (messages taking part, planes of each, rows, columns).

        Returns:
            What it took and gave; numbers of who does not take part say nothing.
        """
        start, freq = start.view(shape[0], -1), freq.view(shape[0], -1)
        line = dequantize(messages, start, freq, turn, grid)
        lowest = lengths.heights(messages, grid.lengths)
        ideal = maps.shrinks(line, turn, grid) - logs
        y = line.view(shape)
        for coupling in self._couplings:
            outputs = _parameters(y, coupling, context, grid)
            for n, part in enumerate(coupling.moved):
                parts = part, n, len(coupling.moved)
                maps.affine(messages, ideal, y, outputs, parts, turn, grid, forward=True)
            lowest = torch.minimum(lowest, lengths.heights(messages, grid.lengths))
        ideal -= maps.shrinks(line, turn, grid)
        ideal += (turn.diff() * line.shape[1] * grid.precision) << lengths.STEP_BITS
        maps.push_base(messages, line, turn, grid)
        return Cost(ideal, logs, lowest)

    def pop(
        self,
        messages: Messages,
        lowest: Tensor,
        mixtures: Arrays,
        support: mixture.Support,
        tables: mixture.Tables,
        turn: Tensor,
        grid: Grid,
        context: Tensor,
        shape: tuple[int, int, int, int],
    ) -> Tensor:
        """Undo `push`.

        Args:
            messages: As in `push`; each tail has room for a word a symbol.
            lowest: int32 [messages], lowered to the least sizes on the way, above which words may
                be others.
            mixtures: Of the symbols, int32 [n, K]; see `mixture.intervals`.
            support: Of all symbols.
            tables: From `mixture.tables`.
            turn: As in `push`.
            grid: As in `push`.
            context: As in `push`.
            shape: As in `push`.

        Returns:
            The symbols, int32 [n]; noise where a size has become -1.
        """
        count = shape[1] * shape[2] * shape[3]
        line = maps.pop_base(messages, turn, (shape[0], count), grid)
        y = line.view(shape)
        for coupling in reversed(self._couplings):
            outputs = _parameters(y, coupling, context, grid)
            for n, part in reversed(list(enumerate(coupling.moved))):
                parts = part, n, len(coupling.moved)
                maps.affine(messages, lowest, y, outputs, parts, turn, grid, forward=False)
        return quantize(messages, lowest, line, mixtures, support, tables, turn, grid)


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


def _parameters(y: Tensor, coupling: Coupling, context: Tensor, grid: Grid) -> Tensor:
    """Return what a coupling's network says of squares, int16 [N, h, w, 2 * moved]."""
    squares, width = context.shape[:3], coupling.begin.weight.shape[1]
    both = context.new_empty((*squares, width + len(PARTS)))
    maps.see(y, coupling.moved, context[..., : len(PARTS)], both[..., width:], grid.fineness)
    state = convolution.convolve(context, coupling.begin, context.new_empty((*squares, width)))
    convolution.convolve(state, coupling.block, both[..., :width], residual=state, limits=(0, MOST))
    out = context.new_empty((*squares, coupling.head.weight.shape[1]), dtype=torch.int16)
    return convolution.convolve(both, coupling.head, out)
