"""The steps of a flow on a device: which parts move, and what moves them.

A layer is a row of steps, as in `flows.layers` on the CPU, and a step some moves, each of which is
a launch that moves one part of all messages' squares, and launches that find out how.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from triton_kernels import convolution, layers, maps
from triton_kernels.maps import PARTS, Grid
from triton_kernels.network import MOST, SHORT_MOST
from triton_kernels.rans import Messages

Arrays = tuple[Tensor, Tensor, Tensor]
Move = Callable[[Messages, Tensor, bool], None]
"""Moves a part of messages' squares, forward or back; what is kept is said by `maps.affine`."""

INNER, OUTER = (0, MOST), (-SHORT_MOST - 1, SHORT_MOST)
"""What layers are clamped to."""


class Step(Protocol):
    """What some parts are moved by; nothing that moves is looked at."""

    def moves(self, y: Tensor, context: Tensor, turn: Tensor, grid: Grid) -> Sequence[Move]:
        """Return what moves each part, in the order in which an encoder takes them.

        Args:
            y: On the grid, int64 [taking part, planes, rows, columns]; moves are in place.
            context: See `Flow.context`.
            turn: Who takes part; see `maps`.
            grid: Tables.
        """


class Norm:
    """A shift and a scale for each part: what a coupling does that says the same everywhere.

    Args:
        shift: int16 [4], in 1/256.
        scale: int8 [4], indices.
        device: Where it is to work.
    """

    def __init__(self, shift: Tensor, scale: Tensor, device: torch.device) -> None:
        self._outputs = torch.cat([shift, scale.to(torch.int16)]).to(device)

    def moves(self, y: Tensor, context: Tensor, turn: Tensor, grid: Grid) -> Sequence[Move]:
        """Return a move for each part; see `Step`."""
        outputs = self._outputs.expand(*context.shape[:3], -1).contiguous()
        return _affine_moves(y, outputs, range(len(PARTS)), turn, grid)


class Row:
    """A row of a factor of a mix.

    Args:
        part: That is moved.
        constants: See `layers.row`.
    """

    def __init__(self, part: int, constants: Tensor) -> None:
        self._part, self._constants = part, constants

    def moves(self, y: Tensor, context: Tensor, turn: Tensor, grid: Grid) -> Sequence[Move]:
        """Return the part's move; see `Step`."""

        def move(messages: Messages, along: Tensor, forward: bool) -> None:
            pieces = layers.row(y, self._part, self._constants, grid, forward)
            layers.move(messages, along, y, pieces, self._part, turn, grid, forward)

        return [move]


def rows_of_mix(
    order: Sequence[int], lower: Tensor, upper: Tensor, scale: Tensor, device: torch.device
) -> list[Row]:
    """Return the rows of a mix, in the order in which an encoder takes them.

    Args:
        order: Of the parts.
        lower: int16 [4, 4], in 2**-12, in this order; only entries left of the diagonal count.
        upper: Alike, only entries right of it.
        scale: int8 [4], indices.
        device: Where they are to work.
    """
    constants = torch.zeros((2, len(order), layers.ROW), dtype=torch.int32)
    constants[0][:, list(order)] = upper.int().triu(1)
    constants[0][:, len(order)] = scale.int()
    constants[1][:, list(order)] = lower.int().tril(-1)
    first, second = constants.to(device)
    # The lower factor's first row has nothing to add.
    others = reversed(range(1, len(order)))
    return [Row(order[i], first[i]) for i in range(len(order))] + [
        Row(order[i], second[i]) for i in others
    ]


class Coupling:
    """Some parts by what a network makes of the others and of the context.

    Args:
        moved: Parts that are moved, ascending.
        components: K of the mixtures; 0 where maps are affine.
        arrays: Of begin, 3x3, of the parts that stay and the context; of block, 1x1, added to what
            it sees; and of head, 1x1, of the state and the parts.
        tables: Of maps by mixtures.
        device: Where it is to work.
    """

    def __init__(
        self,
        moved: tuple[int, ...],
        components: int,
        arrays: Sequence[Arrays],
        tables: layers.Tables,
        device: torch.device,
    ) -> None:
        begin, block, head = arrays
        self._moved, self._components, self._tables = moved, components, tables
        self._begin = convolution.pack(*begin, INNER, device)
        self._block = convolution.pack(*block, INNER, device)
        self._head = convolution.pack(*head, OUTER, device)

    def moves(self, y: Tensor, context: Tensor, turn: Tensor, grid: Grid) -> Sequence[Move]:
        """Return a move for each part; see `Step`."""
        outputs = self._parameters(y, context, grid.fineness)
        if not self._components:
            return _affine_moves(y, outputs, self._moved, turn, grid)

        def move(n: int, part: int, messages: Messages, along: Tensor, forward: bool) -> None:
            parts = part, n, len(self._moved)
            pieces = layers.mixture(y, outputs, parts, self._tables, grid.fineness, forward)
            layers.move(messages, along, y, pieces, part, turn, grid, forward)

        return [partial(move, n, part) for n, part in enumerate(self._moved)]

    def _parameters(self, y: Tensor, context: Tensor, fineness: int) -> Tensor:
        """Return what the network says of squares, int16 [N, h, w, outputs]."""
        squares, width = context.shape[:3], self._begin.weight.shape[1]
        both = context.new_empty((*squares, width + len(PARTS)))
        maps.see(y, self._moved, context[..., : len(PARTS)], both[..., width:], fineness)
        state = convolution.convolve(context, self._begin, context.new_empty((*squares, width)))
        convolution.convolve(state, self._block, both[..., :width], residual=state, limits=INNER)
        out = context.new_empty((*squares, self._head.weight.shape[1]), dtype=torch.int16)
        return convolution.convolve(both, self._head, out)


def _affine_moves(
    y: Tensor, outputs: Tensor, moved: Sequence[int], turn: Tensor, grid: Grid
) -> list[Move]:
    """Return what moves parts along affine maps; see `maps.affine`."""

    def move(n: int, part: int, messages: Messages, along: Tensor, forward: bool) -> None:
        parts = part, n, len(moved)
        maps.affine(messages, along, y, outputs, parts, turn, grid, forward)

    return [partial(move, n, part) for n, part in enumerate(moved)]


class LayerArrays(NamedTuple):
    """A layer of a flow as it is sent here.

    Attributes:
        kind: "norm", "mix" or "coupling".
        parts: Of a coupling those that it moves, ascending; of a mix its order of all of them.
        components: Of a coupling, K of its mixtures; 0 where its maps are affine.
        arrays: What `Norm`, `rows_of_mix` or `Coupling` takes.
    """

    kind: str
    parts: tuple[int, ...]
    components: int
    arrays: Sequence[Any]

    def steps(self, tables: layers.Tables, device: torch.device) -> Sequence[Step]:
        """Return its steps, in the order in which an encoder takes them."""
        if self.kind == "norm":
            shift, scale = self.arrays
            return [Norm(shift, scale, device)]
        if self.kind == "mix":
            lower, upper, scale = self.arrays
            return rows_of_mix(self.parts, lower, upper, scale, device)
        return [Coupling(self.parts, self.components, self.arrays, tables, device)]

    @property
    def given(self) -> int:
        """Bits of a sample that going back may give, at most: log2 of how steep maps can be."""
        # Slopes of affine maps are below 2; a mix has two for each part.
        return 2 if self.kind == "mix" else layers.STEEPEST if self.components else 1
