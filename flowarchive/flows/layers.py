"""Layers of a continuous flow: samples on the flow's grid, moved along exact maps.

A phase's samples are cut into squares of 2 x 2, whose four *parts* are

    0 1
    2 3

A layer is a row of steps. Each step moves some parts along maps that it makes of constants and of
what it does not move; `flows.phase` has a local coder move them. Nothing is rounded that could be
rounded differently: networks and sums see the grid's own integers.

    Norm        a shift and a scale for each part
    Mix         an invertible matrix over the parts, by its LU factors
    Coupling    some parts by what a network makes of the others and of a context

References:
    Kingma, Dhariwal, "Glow", 2018, arXiv:1807.03039, for the first two.
    Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017, arXiv:1605.08803.
    Ho, Chen, Srinivas, Duan, Abbeel, "Flow++", 2019, arXiv:1902.00275, for couplings by mixtures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from flowarchive import int8
from flowarchive.bitsback import Map
from flowarchive.errors import ModelError
from flowarchive.flows.maps import (
    MIXTURE_MEAN_MAX,
    MIXTURE_SCALE_MAX,
    SCALE_MAX,
    SHIFT_MAX,
    Affine,
    Mixture,
    cells,
    mixture_weights,
)
from flowarchive.int8 import Bytes
from flowarchive.tiles import MOST

Int64 = NDArray[np.int64]

PARTS = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Row and column of each part in its square."""

SEEN_BITS = 4
"""Networks see parts in steps of 1/16."""

SHIFT_BITS = 8
"""Networks and constants give shifts in 1/256."""

MIX_BITS = 12
"""Coefficients of `Mix` are in 2**-12."""

MIX_MAX = 1 << 14


def part_of(y: Int64, part: int) -> Int64:
    """Return a part of all squares of planes [N, rows, columns]; a view."""
    row, column = PARTS[part]
    return y[:, row::2, column::2]


class Step(Protocol):
    """Some parts, and what they are moved along."""

    def maps(self, y: Int64, context: Bytes, fineness: int) -> list[tuple[int, Map]]:
        """Return the parts that move, in the order in which an encoder takes them, and their maps.

        Args:
            y: The phase's samples on the flow's grid, int64 [N, rows, columns]; what moves is not
                looked at.
            context: What else is known of squares, a grid of bytes.
            fineness: Of the flow's grid.
        """


class Layer(Protocol):
    """What a flow is made of.

    Attributes:
        steps: In the order in which an encoder takes them.
    """

    @property
    def steps(self) -> Sequence[Step]:
        """See the class."""

    def answer(self, y: Int64, context: Bytes, fineness: int) -> Int64:
        """Return integers that differ where the layer does; for known answers."""


class Norm:
    """A shift and a scale for each part.

    Args:
        shift: Integers [4] within +-768, in 1/256.
        scale: Indices [4] within +-24.

    Raises:
        ModelError: A constant is out of its range.
    """

    def __init__(self, shift: NDArray[Any], scale: NDArray[Any]) -> None:
        self._shift = _bounded("a shift", shift, SHIFT_MAX << SHIFT_BITS)
        self._scale = _bounded("a scale", scale, SCALE_MAX)

    @property
    def steps(self) -> Sequence[Step]:
        """One for all parts."""
        return (self,)

    def maps(self, y: Int64, context: Bytes, fineness: int) -> list[tuple[int, Map]]:
        """Return a map for each part; see `Step`."""
        found: list[tuple[int, Map]] = []
        for part, scale in enumerate(self._scale):
            count = part_of(y, part).size
            shift = shift_cells(self._shift[part], fineness)
            found.append((part, Affine(np.full(count, shift), np.full(count, scale), fineness)))
        return found

    def answer(self, y: Int64, context: Bytes, fineness: int) -> Int64:
        """Return the constants."""
        return np.concatenate([self._shift, self._scale])


class Mix:
    """An invertible matrix over the parts by its LU factors, one part moved at a time.

    With the parts in a fixed order, the upper factor and the diagonal move the i-th to
    scale * y_i + sum of upper[i, j] * y_j over j > i, for i = 0, 1, 2, 3; then the lower factor
    adds the sum of lower[i, j] * y_j over j < i, for i = 3, 2, 1, 0. No sum holds a part that the
    same factor has moved. Sums are rounded, and clamped to +-3; a part that is missing counts 0.

    Args:
        order: Of the parts, a permutation of 0..3.
        lower: Integers [4, 4] within +-2**14, in 2**-12; only entries with j < i count.
        upper: Alike, only entries with j > i.
        scale: Indices [4] within +-24, in this order.

    Raises:
        ModelError: A constant is out of its range.
    """

    def __init__(
        self,
        order: Sequence[int],
        lower: NDArray[Any],
        upper: NDArray[Any],
        scale: NDArray[Any],
    ) -> None:
        lower, upper = (_bounded("a coefficient", c, MIX_MAX) for c in (lower, upper))
        scales = _bounded("a scale", scale, SCALE_MAX)
        self._constants = lower, upper, scales
        last = len(order) - 1
        rows = [(i, upper[i], range(i + 1, last + 1), int(scales[i])) for i in range(last + 1)]
        rows += [(i, lower[i], range(i), 0) for i in reversed(range(last + 1))]
        self.steps: Sequence[Step] = [
            _Row(order[i], {order[j]: int(factors[j]) for j in others}, index)
            for i, factors, others, index in rows
        ]

    def answer(self, y: Int64, context: Bytes, fineness: int) -> Int64:
        """Return the constants."""
        return np.concatenate([constant.reshape(-1) for constant in self._constants])


class _Row(NamedTuple):
    """One row of a factor of `Mix`: a part, the factors of others, and a scale."""

    part: int
    factors: dict[int, int]
    scale: int

    def maps(self, y: Int64, context: Bytes, fineness: int) -> list[tuple[int, Map]]:
        """Return the map of the part; see `Step`."""
        count, rows, columns = part_of(y, self.part).shape
        total = np.zeros((count, rows, columns), dtype=np.int64)
        for part, factor in self.factors.items():
            other = part_of(y, part)[:, :rows, :columns]
            at = total[:, : other.shape[1], : other.shape[2]]
            # Twice the distance from the middle; sums stay below 3 * 2**14 * 2**20.
            at += factor * (2 * other + 1 - cells(fineness))
        most = SHIFT_MAX << fineness
        shift = ((total + (1 << MIX_BITS)) >> MIX_BITS + 1).clip(-most, most).reshape(-1)
        return [(self.part, Affine(shift, np.full_like(shift, self.scale), fineness))]


class Coupling:
    """Some parts are moved along maps that a network makes of the others and of the context.

        parts that stay, context -> 3x3 -> [+ 1x1] -> with the parts -> 1x1 -> parameters

    Parameters are, each for all parts that move: a shift in 1/256 and a scale index; or, of K
    components, K logarithms of weights in 1/16 octaves, K means in 1/256, K width indices.

    Args:
        moved: Parts that are moved, ascending.
        components: K of a `Mixture` map; 0 for `Affine`.
        layers: Begin, block and head.
    """

    def __init__(
        self,
        moved: Sequence[int],
        components: int,
        layers: tuple[int8.Convolution, int8.Convolution, int8.Convolution],
    ) -> None:
        self._moved, self._components = tuple(moved), components
        self._begin, self._block, self._head = layers

    @property
    def steps(self) -> Sequence[Step]:
        """One, as what moves steers nothing."""
        return (self,)

    def maps(self, y: Int64, context: Bytes, fineness: int) -> list[tuple[int, Map]]:
        """Return the maps of the parts; see `Step`."""
        parameters = self.answer(y, context, fineness)
        found: list[tuple[int, Map]] = []
        for part, whole in zip(self._moved, parameters.swapaxes(0, 1), strict=True):
            _, rows, columns = part_of(y, part).shape
            there = np.ascontiguousarray(whole[:, :, :rows, :columns])
            found.append((part, self._map(there.reshape(len(there), -1), fineness)))
        return found

    def answer(self, y: Int64, context: Bytes, fineness: int) -> Int64:
        """Return the maps' parameters, int64 [parameters, moved, N, h, w], for whole squares."""
        seen = _seen(y, self._moved, context, fineness)
        state = self._begin.to_bytes((seen, context))
        state = self._block.to_bytes((state,), state)
        count = parameter_count(self._components) * len(self._moved)
        out = int8.inside(self._head.to_shorts((state, seen)))[..., :count].transpose(3, 0, 1, 2)
        whole = out.astype(np.int64).reshape(-1, len(self._moved), *out.shape[1:])
        if self._components:
            return whole
        most = SHIFT_MAX << fineness
        shift = shift_cells(whole[0], fineness).clip(-most, most)
        return np.stack([shift, whole[1].clip(-SCALE_MAX, SCALE_MAX)])

    def _map(self, parameters: Int64, fineness: int) -> Map:
        if not self._components:
            return Affine(parameters[0], parameters[1], fineness)
        weight, mean, width = parameters.reshape(3, self._components, -1).transpose(0, 2, 1)
        return Mixture(
            mixture_weights(weight),
            mean.clip(-MIXTURE_MEAN_MAX, MIXTURE_MEAN_MAX),
            width.clip(-MIXTURE_SCALE_MAX, MIXTURE_SCALE_MAX),
            fineness,
        )


def parameter_count(components: int) -> int:
    """Return how many parameters a part's map has."""
    return 3 * components or 2


def shift_cells(shift: Int64, fineness: int) -> Int64:
    """Turn shifts in 1/256 into cells, rounded down."""
    return (shift << fineness) >> SHIFT_BITS


def _seen(y: Int64, moved: Sequence[int], context: Bytes, fineness: int) -> Bytes:
    """What a network sees of the parts that stay, a grid of bytes."""
    count, rows, columns = context.shape[0], context.shape[1] - 2, context.shape[2] - 2
    seen = int8.grid(count, rows, columns, len(PARTS))
    seen[:] = int8.ZERO
    for part in range(len(PARTS)):
        if part not in moved:
            steps = (part_of(y, part) - cells(fineness) // 2) >> (fineness - SEEN_BITS)
            at = int8.inside(seen)[:, : steps.shape[1], : steps.shape[2], part]
            at[:] = np.clip(steps, -MOST, MOST) + int8.ZERO
    return seen


def _bounded(name: str, values: NDArray[Any], most: int) -> Int64:
    found = values.astype(np.int64)
    if np.abs(found).max() > most:
        raise ModelError(f"{name} of a flow is outside +-{most}")
    return found
