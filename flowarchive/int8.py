"""Convolutions of bytes, the same integers on every machine.

Channels are bytes whose zero is ZERO, so that they hold -128..127, and stand last. A *grid* of them
`[N, h + 2, w + 2, C]` has a border of zeros. A convolution may take two grids, as if their channels
stood side by side; nothing is joined. Its sums are int32, and `check_bound` proves that they are
even below 2**24. Then

    y = clamp(floor(sum * 2**-shift + 1/2))

becomes bytes, which may be added to those of another grid, or int16 numbers. `tiles` has the
machine code that does it.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from flowarchive import tiles
from flowarchive.errors import ModelError, NotReproducible
from flowarchive.tiles import (
    BLOCK,
    LANES,
    QUAD,
    SHORT_MOST,
    aligned,
    convolve,
    has_amx,
    new_grid,
)

Bytes = NDArray[np.uint8]
Int16 = NDArray[np.int16]
_T = TypeVar("_T", np.uint8, np.int16)
_L = TypeVar("_L", np.int8, np.int32)

ZERO = tiles.ZERO
"""The byte that means 0."""

EXACT_LIMIT = 1 << 24
MIN_SHIFT, MAX_SHIFT = -32, 24


def check_bound(weight: NDArray[Any], bias: NDArray[Any]) -> None:
    """Prove that a convolution's sums stay below 2**24, for any bytes.

    Args:
        weight: Integers [O, I, k, k].
        bias: Integers [O].

    Raises:
        NotReproducible: A channel breaks the bound.
    """
    total = np.abs(weight.astype(np.int64)).sum(axis=(1, 2, 3)) * ZERO
    most = int((total + np.abs(bias.astype(np.int64))).max())
    if most >= EXACT_LIMIT:
        raise NotReproducible(f"a channel's sums may reach {most}, the limit is 2**24")


def grid(count: int, rows: int, columns: int, channels: int) -> Bytes:
    """Make a border of zeros around nothing yet: [count, rows + 2, columns + 2, quads of bytes]."""
    return new_grid(count, rows + 2, columns + 2, -(-channels // QUAD) * QUAD)


def inside(cells: NDArray[_T]) -> NDArray[_T]:
    """Return a grid without its border."""
    return cells[:, 1:-1, 1:-1]


def signed(cells: Bytes) -> NDArray[np.int8]:
    """Return what the bytes of a grid mean, int8 [N, h, w, C]."""
    return (inside(cells) ^ np.uint8(ZERO)).view(np.int8)


def _lined(values: NDArray[_L]) -> NDArray[_L]:
    """Copy an array to the beginning of a line."""
    copy = aligned(values.nbytes, 0).view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


class Convolution:
    """A zero-padded convolution with a kernel of 1 x 1 or 3 x 3.

    Attributes:
        amx: Whether AMX does it.

    Args:
        weight: int8 [O, I, k, k], or int16 within +-2**14.
        bias: int32 [O].
        shift: int8 [O], MIN_SHIFT..MAX_SHIFT; a negative one shifts left.
        first: How many of the I channels the first of two grids brings; None for one grid.

    Raises:
        NotReproducible: Sums may be too large.
        ModelError: A shift is out of its range.
    """

    def __init__(
        self,
        weight: NDArray[Any],
        bias: NDArray[np.int32],
        shift: NDArray[np.int8],
        first: int | None = None,
    ) -> None:
        check_bound(weight, bias)
        if shift.min() < MIN_SHIFT or shift.max() > MAX_SHIFT:
            raise ModelError(f"a convolution's shift is outside {MIN_SHIFT}..{MAX_SHIFT}")
        self.outputs, self._side = weight.shape[0], weight.shape[2]
        # A single tap is too little work to be worth AMX's way through memory.
        self.amx = self._side > 1 and has_amx()
        self._wide = weight.dtype != np.int8
        lanes = LANES if self._wide else 2 * LANES
        tiles = -(-self.outputs // lanes)

        def cut(values: NDArray[Any]) -> NDArray[Any]:
            """Values of each output, by tile."""
            whole = np.zeros((tiles * lanes, *values.shape[1:]), dtype=values.dtype)
            whole[: self.outputs] = values
            return whole.reshape(tiles, lanes, *values.shape[1:])

        sources = [weight] if first is None else [weight[:, :first], weight[:, first:]]
        self._channels = [-(-source.shape[1] // QUAD) * QUAD for source in sources]
        block = BLOCK if self.amx else 1
        runs = [-(-self._side * n // (QUAD * block)) * block for n in self._channels]
        self._runs = runs[0], sum(runs[1:])
        quad = 2 * LANES * QUAD
        self._weight = _lined(np.zeros((tiles, self._side * sum(runs) * quad), dtype=np.int8))
        start = 0
        for source, channels, run in zip(sources, self._channels, runs, strict=True):
            whole = np.zeros((self.outputs, self._side, self._side, channels), dtype=weight.dtype)
            whole[..., : source.shape[1]] = source.transpose(0, 2, 3, 1)
            digits = [cut(whole)]
            if self._wide:  # 256 * high + low, a vector of each
                high = (digits[0] + 128) >> 8
                digits = [high, digits[0] - 256 * high]
            taps = np.concatenate(digits, axis=1).astype(np.int8)
            taps = taps.reshape(tiles, 2 * LANES, self._side, -1, QUAD).transpose(0, 2, 3, 1, 4)
            stop = start + self._side * run * quad
            room = self._weight[:, start:stop].reshape(tiles, self._side, run, 2 * LANES, QUAD)
            room[:, :, : taps.shape[2]] = taps
            start = stop
        # A tile begins with biases, halves to round, and less what zeros' bytes add too much.
        right = np.maximum(shift, 0).astype(np.int32)
        zeros = ZERO * weight.astype(np.int64).sum(axis=(1, 2, 3))
        begin = cut(bias + ((1 << right) >> 1) - zeros)
        # What a left shift may be given, so that it stays in 32 bits and passes the same limits.
        left = np.clip(-shift.astype(np.int32), 0, 15)
        bound = np.where(left > 0, SHORT_MOST + 1, np.iinfo(np.int32).max)
        ends = np.stack([begin, cut(bound), cut(left), cut(right)], axis=1)
        if self._wide:
            ends = np.concatenate([np.zeros_like(ends), ends], axis=2)
        self._ends = _lined(ends.astype(np.int32))

    def to_bytes(self, grids: tuple[Bytes, ...], plus: Bytes | None = None) -> Bytes:
        """Convolve into a new grid of 0..MOST; added to `plus`, and clamped to that."""
        return self._convolve(grids, plus, -(-self.outputs // QUAD) * QUAD)

    def to_shorts(self, grids: tuple[Bytes, ...]) -> Int16:
        """Convolve into int16 [N, h + 2, w + 2, O or more], inside a border that means nothing."""
        return self._convolve(grids, None, len(self._weight) * 2 * LANES).view(np.int16)

    def _convolve(self, grids: tuple[Bytes, ...], plus: Bytes | None, channels: int) -> Bytes:
        assert [cells.shape[3] for cells in grids] == self._channels
        layer = *self._runs, self._side, self._weight, self._ends, self._wide, self.amx
        added = grids[0] if plus is None else plus
        return convolve(grids[0], grids[-1], *layer, added, plus is not None, channels)
