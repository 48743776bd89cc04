"""The networks that steer a phase's couplings, in bytes.

A phase's samples are cut into squares of 2 x 2, whose four *parts* are

    0 1
    2 3

Each coupling moves some parts, steered by the others, which stay, and by what the phase's own
network knows:

    the phase's state, a square's four side by side -> 1x1 -> context
    parts that stay, context -> 3x3 -> [+ 1x1] -> with the parts -> 1x1 -> a shift and a scale for
                                                                    each part that moves

Here are the integers that code; `train.couplings` has the networks they are frozen from.

References:
    Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017, arXiv:1605.08803.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowarchive import int8
from flowarchive.flows.maps import SCALE_MAX, SHIFT_MAX, cells
from flowarchive.flows.phases import Layout, Tensors, layer_of, layout_of
from flowarchive.int8 import Bytes
from flowarchive.tiles import MOST

Int64 = NDArray[np.int64]

PARTS = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Row and column of each part in its square."""

MOVED = ((1, 2), (3,), (0,))
"""The parts that each coupling moves, in the order in which an encoder takes them."""

SEEN_BITS = 4
"""Networks see parts in steps of 1/16."""

SHIFT_BITS = 8
"""Networks give shifts in 1/256."""


class CouplingShape(NamedTuple):
    """What the networks of a phase's couplings are built like.

    Attributes:
        state: Channels of the phase's state.
        context: Channels that are made of a square's states.
        width: Channels of the hidden layers.
    """

    state: int
    context: int
    width: int

    def weights(self) -> dict[str, tuple[int, int, int, int]]:
        """The shape of every layer's weights, by the layer's name."""
        parts, width = len(PARTS), self.width
        found = {"context": (self.context, parts * self.state, 1, 1)}
        for n, moved in enumerate(MOVED):
            found[f"begin.{n}"] = width, parts + self.context, 3, 3
            found[f"block.{n}"] = width, width, 1, 1
            found[f"head.{n}"] = 2 * len(moved), width + parts, 1, 1
        return found

    def layout(self, prefix: str) -> Layout:
        """The tensors of these networks, whose names begin with `prefix`."""
        return layout_of(self.weights(), prefix)

    def macs(self) -> int:
        """Multiplications for one square."""
        return sum(int(np.prod(shape)) for shape in self.weights().values())


class Couplings:
    """The networks of one phase's couplings.

    Args:
        shape: What they are built like.
        tensors: What `CouplingShape.layout` names.
        prefix: What the names begin with.

    Raises:
        NotReproducible: A layer's sums may be too large.
        ModelError: An integer is out of its range.
    """

    def __init__(self, shape: CouplingShape, tensors: Tensors, prefix: str) -> None:
        def layer(name: str, first: int | None = None) -> int8.Convolution:
            return int8.Convolution(*layer_of(tensors, prefix + name), first)

        self.shape = shape
        self._context = layer("context")
        self._begin = [layer(f"begin.{n}", len(PARTS)) for n in range(len(MOVED))]
        self._block = [layer(f"block.{n}") for n in range(len(MOVED))]
        self._head = [layer(f"head.{n}", shape.width) for n in range(len(MOVED))]

    def around(self, states: Bytes) -> Surroundings:
        """Return what a flow has to know of a phase with such states."""
        return Surroundings(self, states)

    def context(self, states: Bytes) -> Bytes:
        """Return the context of a phase's squares, a grid.

        Args:
            states: The phase's, bytes [N, rows, columns, C or more] without a border.
        """
        count, rows, columns, _ = states.shape
        size = self.shape.state
        squares = int8.grid(count, (rows + 1) // 2, (columns + 1) // 2, len(PARTS) * size)
        squares[:] = int8.ZERO  # where the last squares are not whole
        for n, (row, column) in enumerate(PARTS):
            part = states[:, row::2, column::2, :size]
            at = int8.inside(squares)[:, : part.shape[1], : part.shape[2]]
            at[..., n * size : (n + 1) * size] = part
        return self._context.to_bytes((squares,))

    def steer(self, n: int, y: Int64, context: Bytes, fineness: int) -> tuple[Int64, Int64]:
        """Return how the n-th coupling moves its parts.

        Args:
            n: 0..2.
            y: The phase's samples on the flow's grid, int64 [N, rows, columns].
            context: See `context`.
            fineness: Of the flow's grid.

        Returns:
            Shifts in cells and scale indices, as `maps.Affine` takes them, int64 [moved, N, h, w]
            each, for whole squares.
        """
        count, h, w = context.shape[0], context.shape[1] - 2, context.shape[2] - 2
        seen = int8.grid(count, h, w, len(PARTS))
        seen[:] = int8.ZERO
        for part, (row, column) in enumerate(PARTS):
            if part in MOVED[n]:
                continue
            steps = (y[:, row::2, column::2] - cells(fineness) // 2) >> (fineness - SEEN_BITS)
            at = int8.inside(seen)[:, : steps.shape[1], : steps.shape[2], part]
            at[:] = np.clip(steps, -MOST, MOST) + int8.ZERO
        state = self._begin[n].to_bytes((seen, context))
        state = self._block[n].to_bytes((state,), state)
        out = int8.inside(self._head[n].to_shorts((state, seen))).transpose(3, 0, 1, 2)
        moved = len(MOVED[n])
        shifts = (out[:moved].astype(np.int64) << fineness) >> SHIFT_BITS
        most = SHIFT_MAX << fineness
        scales = out[moved : 2 * moved].astype(np.int64)
        return np.clip(shifts, -most, most), np.clip(scales, -SCALE_MAX, SCALE_MAX)


class Surroundings(NamedTuple):
    """What a phase's network knows of it, for its flow.

    Attributes:
        couplings: The phase's networks.
        states: Bytes [N, rows, columns, C or more].
    """

    couplings: Couplings
    states: Bytes

    def steering(self) -> Steering:
        """Work out what steers the flow."""
        count, rows, columns, _ = self.states.shape
        context = self.couplings.context(self.states)
        return Steering(self.couplings, context, (count, rows, columns))


class Steering(NamedTuple):
    """What steers the flow of a phase.

    Attributes:
        couplings: The phase's networks.
        context: What they make of the phase's states.
        shape: (planes, rows, columns) of the phase.
    """

    couplings: Couplings
    context: Bytes
    shape: tuple[int, int, int]
