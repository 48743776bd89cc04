"""The continuous flow of a phase on a device: symbols' intervals, a flow's grid, uniform bits.

    a place in each interval, popped  ->  logit  ->  layers  ->  logistic base

Every step is `flows.phase`'s on the CPU: networks in int8, maps by straight lines between integer
knots, and bits off the stack and back onto it that make moving along a line lose nothing. Flows of
some messages go together, as many samples of each; `turn` says which, see `maps`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from triton_kernels import convolution, layers, lengths, maps, mixture, tilts
from triton_kernels.dequantize import dequantize, quantize
from triton_kernels.maps import PARTS, Grid
from triton_kernels.rans import Messages
from triton_kernels.steps import INNER, OUTER, Arrays, LayerArrays

_WORD = 32
_LOGIT_BITS, _TILT_BITS = 18, 4


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
        given: Its layers, in the order in which an encoder takes them.
        tables: Of maps by mixtures.
        tilt: The layer that makes tilts of contexts, and `starts` of `tilts.Lean`; None where
            places do not lean.
        device: Where it is to work.

    Attributes:
        words: Of a message for each sample: popping never gives back more, nor do layers take more.

    Raises:
        ValueError: A layer has a shape that no kernel covers.
    """

    def __init__(
        self,
        context: Arrays,
        given: Sequence[LayerArrays],
        tables: layers.Tables,
        tilt: tuple[Arrays, Tensor] | None,
        device: torch.device,
    ) -> None:
        self._context = convolution.pack(*context, INNER, device)
        self._steps = [step for layer in given for step in layer.steps(tables, device)]
        self._tilt: tuple[convolution.Layer, Tensor] | None = None
        if tilt is not None:
            layer, starts = tilt
            self._tilt = convolution.pack(*layer, OUTER, device), starts.to(device)
        bits = _LOGIT_BITS + _TILT_BITS + sum(layer.given for layer in given)
        self.words = -(-bits // _WORD)

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

    def lean(self, context: Tensor, shape: tuple[int, int, int, int]) -> tilts.Lean | None:
        """Return how places of [messages taking part, n] samples lean; None where none does.

        Args:
            context: Of all planes, from `context`.
            shape: See `push`.
        """
        if self._tilt is None:
            return None
        layer, starts = self._tilt
        said = context.new_empty((*context.shape[:3], len(PARTS)), dtype=torch.int16)
        convolution.convolve(context[..., len(PARTS) :], layer, said)
        said.clamp_(-tilts.MOST, tilts.MOST)
        found = context.new_empty((len(context), *shape[2:]))
        for n, (row, column) in enumerate(PARTS):
            part = found[:, row::2, column::2]
            part[:] = said[:, : part.shape[1], : part.shape[2], n]
        return tilts.Lean(found.view(shape[0], -1), starts)

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
            messages: Give and take bits, in place; each tail has room for a word a symbol, and for
                `words` more. Sizes become -1 where there are too few words, and what else there is
                is unspecified.
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
        lean = self.lean(context, shape)
        held = None if lean is None else lengths.heights(messages, grid.lengths)
        start, freq = start.view(shape[0], -1), freq.view(shape[0], -1)
        line = dequantize(messages, start, freq, lean, turn, grid)
        lowest = lengths.heights(messages, grid.lengths)
        shrinks = maps.shrinks(line, turn, grid)
        popped = logs if held is None else held - lowest + shrinks
        ideal = shrinks - popped
        y = line.view(shape)
        for step in self._steps:
            for move in step.moves(y, context, turn, grid):
                move(messages, ideal, True)
            lowest = torch.minimum(lowest, lengths.heights(messages, grid.lengths))
        ideal -= maps.shrinks(line, turn, grid)
        ideal += (turn.diff() * line.shape[1] * grid.precision) << lengths.STEP_BITS
        maps.push_base(messages, line, turn, grid)
        return Cost(ideal, popped, lowest)

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
            messages: As in `push`; each tail has room for `words` a symbol.
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
        for step in reversed(self._steps):
            for move in reversed(step.moves(y, context, turn, grid)):
                move(messages, lowest, False)
        lean = self.lean(context, shape)
        return quantize(messages, lowest, line, mixtures, support, tables, lean, turn, grid)


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

    @property
    def words(self) -> int:
        """See `Flow`; of all of them."""
        return max(phase.words for group in self.phases.values() for phase in group)
