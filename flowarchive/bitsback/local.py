"""The two local coders behind one interface, and what they ask of a map."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowarchive.ans import MAX_RANGE, Message, pop_uniform_lane, push_uniform_lane
from flowarchive.bitsback.normal import (
    MAX_CELLS,
    MEAN_BITS,
    log2_index,
    normal_tables,
    octave_table,
    pop_normal_lane,
    push_normal_lane,
)
from flowarchive.entropy.plain import find_piece
from flowarchive.errors import InvalidInterval, MessageExhausted
from flowarchive.loops import compiled

Int64 = NDArray[np.int64]
Uint32 = NDArray[np.uint32]
Uint64 = NDArray[np.uint64]

# Elements whose knots are worked out together. A multiple of every lane count: cutting an array
# there does not change what lands in which lane.
_BLOCK = 1 << 12


class Segments(NamedTuple):
    """The straight piece of a map that holds each element, int64 [n] each.

    [x0, x0 + w) is mapped onto [y0, y0 + v), strictly increasing; w and v are in 1..2**32.
    """

    x0: Int64
    w: Int64
    y0: Int64
    v: Int64

    def turned(self) -> Segments:
        """Return the pieces of the inverse map."""
        return Segments(self.y0, self.v, self.x0, self.w)


class Map(Protocol):
    """A strictly increasing, piecewise linear bijection of [0, N) onto [0, M) for each element."""

    def segments(self, x: Int64) -> Segments:
        """Return the pieces that hold int64 [n] of [0, N)."""

    def segments_of(self, y: Int64) -> Segments:
        """Return the pieces whose images hold int64 [n] of [0, M)."""

    def knots(self, part: slice) -> tuple[Int64, Int64]:
        """Return the ends of all pieces of some elements, and their images.

        Args:
            part: Of the n elements.

        Returns:
            int64 [m, K + 1] each, increasing along a row, from 0 to N and from 0 to M; m is 1
            where one row serves all elements.
        """


class LocalCoder(Protocol):
    """What turns the noise of a map's cells into bits of the stack."""

    def forward(self, message: Message, x: ArrayLike, map: Map) -> Int64:
        """Move x to y; the message grows by log2 of how much the map shrinks there.

        Args:
            message: Gives the noise and takes back what tells it; as it was if this raises.
            x: Integers [n] in [0, N).
            map: Of these n elements.

        Returns:
            int64 [n] in [0, M).

        Raises:
            MessageExhausted: The message holds too few bits.
            InvalidInterval: An element is outside its piece of the map.
            ValueError: Shapes or types are wrong.
        """

    def inverse(self, message: Message, y: ArrayLike, map: Map) -> Int64:
        """Move y back to the x it came from, and the message with it; see `forward`."""


class Uniform:
    """The modular scale transform: costs log2(w / v) an element, without approximation.

    References:
        Zhang, Kang, Ryder, Li, "iFlow", 2021, arXiv:2111.00965.
    """

    def __repr__(self) -> str:
        return "Uniform()"

    def forward(self, message: Message, x: ArrayLike, map: Map) -> Int64:
        """Move x to y; see `LocalCoder.forward`."""
        values = _values(x)
        return _scale(message, values, map.segments(values), down=True)

    def inverse(self, message: Message, y: ArrayLike, map: Map) -> Int64:
        """Move y back to x; see `LocalCoder.forward`."""
        values = _values(y)
        return _scale(message, values, map.segments_of(values).turned(), down=False)


class Gaussian:
    """Local bits-back coding with normal noise.

    With f the map of cells' middles and widths s_x, s_y = s_x * v / w around an element:

        pop  y ~ N(f(x), s_y**2)       push x ~ N(f^-1(y), s_x**2)

    each in the piece that holds what is known, x on a shuffled line of slots. The narrower of the
    two widths is 2**(sigma / 32) cells, so that neither grid is too coarse for it. Grids have at
    most 2**31 cells.

    Attributes:
        sigma: Width index of the noise.

    References:
        Ho, Lohn, Abbeel, "Compression with flows via local bits-back coding", 2019,
        arXiv:1905.08500.
    """

    def __init__(self, sigma: int) -> None:
        """Fix the noise; ValueError for an index outside -64..512."""
        if not -64 <= sigma <= 512:
            raise ValueError(f"sigma {sigma} is outside -64..512")
        self.sigma = int(sigma)

    def __repr__(self) -> str:
        return f"Gaussian({self.sigma})"

    def forward(self, message: Message, x: ArrayLike, map: Map) -> Int64:
        """Move x to y; see `LocalCoder.forward`."""
        values, y = _values(x), np.empty(np.size(x), dtype=np.int64)
        parts = _parts(values.size)
        for i in reversed(range(len(parts))):
            knots, images = map.knots(parts[i])
            try:
                y[parts[i]] = self._move(message, values[parts[i]], knots, images, down=True)
            except MessageExhausted:
                for part in parts[i + 1 :]:
                    knots, images = map.knots(part)
                    self._move(message, y[part], images, knots, down=False)
                raise
        return y

    def inverse(self, message: Message, y: ArrayLike, map: Map) -> Int64:
        """Move y back to x; see `LocalCoder.forward`."""
        values, x = _values(y), np.empty(np.size(y), dtype=np.int64)
        parts = _parts(values.size)
        for i in range(len(parts)):
            knots, images = map.knots(parts[i])
            try:
                x[parts[i]] = self._move(message, values[parts[i]], images, knots, down=False)
            except MessageExhausted:
                for part in reversed(parts[:i]):
                    knots, images = map.knots(part)
                    self._move(message, x[part], knots, images, down=True)
                raise
        return x

    def _move(
        self, message: Message, x: Int64, knots: Int64, images: Int64, *, down: bool
    ) -> Int64:
        if x.size and not len(knots) == len(images) in (1, x.size):
            raise ValueError(f"the map has {len(knots)} rows of knots for {x.size} elements")
        top = max(knots.max(initial=0), images.max(initial=0))
        if top > MAX_CELLS:
            raise ValueError(f"a grid of {top} cells is too fine")
        if not _inside(x, knots):
            raise InvalidInterval("an element is outside the map's grid")
        message.reserve(3 * x.size)
        y = np.empty(x.size, dtype=np.int64)
        tables = (*normal_tables(), octave_table())
        first, last = _order(x.size, message.lanes, down)
        state = message.head, message.tail
        size, failed = _blur_rows(
            *state, message.size, first, last, x, knots, images, self.sigma, down, y, *tables
        )
        message.size = size
        if failed >= 0:
            if failed != first:
                back = failed - message.lanes if first < last else failed + message.lanes
                message.size, _ = _blur_rows(
                    *state,
                    size,
                    back,
                    first,
                    y,
                    images,
                    knots,
                    self.sigma,
                    not down,
                    x.copy(),
                    *tables,
                )
            raise _exhausted(message)
        return y


def _values(x: ArrayLike) -> Int64:
    values = np.asarray(x)
    if values.ndim != 1 or (values.dtype.kind not in "iu" and values.size):
        raise ValueError(f"values are integers [n], not {values.dtype} {list(values.shape)}")
    return np.ascontiguousarray(values, dtype=np.int64)


def _parts(count: int) -> list[slice]:
    return [slice(i, min(i + _BLOCK, count)) for i in range(0, count, _BLOCK)]


def _order(count: int, lanes: int, down: bool) -> tuple[int, int]:
    """The first and the last row to be worked on, by their first elements."""
    last = max(count - 1, 0) // lanes * lanes
    return (last, 0) if down else (0, last)


def _exhausted(message: Message) -> MessageExhausted:
    return MessageExhausted(f"a local pop needs more bits than the {message.size} words left")


# One element each way. Only the order of rows tells the two halves of a coder apart: what goes
# through a piece is turned round to come back.


def _scale(message: Message, x: Int64, pieces: Segments, *, down: bool) -> Int64:
    if not all(part.shape == x.shape for part in pieces):
        raise ValueError(f"the map has {pieces.x0.size} pieces for {x.size} elements")
    if not _hold(x, *pieces):
        raise InvalidInterval("an element is outside its piece of the map")
    message.reserve(2 * x.size)
    y = np.empty(x.size, dtype=np.int64)
    first, last = _order(x.size, message.lanes, down)
    state = message.head, message.tail
    message.size, failed = _scale_rows(*state, message.size, first, last, x, *pieces, y)
    if failed >= 0:
        if failed != first:
            back = failed - message.lanes if first < last else failed + message.lanes
            turned = pieces.turned()
            message.size, _ = _scale_rows(
                *state, message.size, back, first, y, *turned, np.empty_like(x)
            )
        raise _exhausted(message)
    return y


@compiled
def _hold(x: Int64, x0: Int64, w: Int64, y0: Int64, v: Int64) -> bool:
    """Whether every piece holds its element and is no longer than 2**32."""
    for i in range(x.size):
        if x[i] < x0[i] or x[i] - x0[i] >= w[i]:
            return False
        if v[i] < 1 or y0[i] < 0 or w[i] > MAX_RANGE or v[i] > MAX_RANGE:
            return False
    return True


@compiled
def _scale_rows(
    head: Uint64,
    tail: Uint32,
    size: int,
    first: int,
    last: int,
    x: Int64,
    x0: Int64,
    w: Int64,
    y0: Int64,
    v: Int64,
    y: Int64,
) -> tuple[int, int]:
    """Move rows `first` to `last` of checked elements through their pieces.

    Returns:
        The new size of the tail, and -1; or, where the words did not suffice, the size before the
        row that failed, and that row; the heads are then what they were before it.
    """
    lanes = head.size
    step = lanes if first <= last else -lanes
    before = np.empty(lanes, np.uint64)
    noise = np.empty(lanes, np.uint64)
    for n in range(abs(last - first) // lanes + 1):
        row = first + n * step
        width = min(lanes, x.size - row)
        left = size
        for lane in range(width - 1, -1, -1):
            i = row + lane
            before[lane] = head[lane]
            # What keeps its length would pop a value and push it again.
            if v[i] == w[i]:
                continue
            h, size, noise[lane] = pop_uniform_lane(head[lane], tail, size, np.uint64(v[i]))
            if size < 0:
                for done in range(lane + 1, width):
                    head[done] = before[done]
                return left, row
            head[lane] = h
        for lane in range(width):
            i = row + lane
            place = x[i] - x0[i]
            if v[i] != w[i]:
                # At most v * (w - 1) + v - 1 < 2**64.
                t = np.uint64(v[i]) * np.uint64(place) + noise[lane]
                quotient = t // np.uint64(w[i])
                rest = t - quotient * np.uint64(w[i])
                head[lane], size = push_uniform_lane(head[lane], tail, size, rest, np.uint64(w[i]))
                place = np.int64(quotient)
            y[i] = y0[i] + place
    return size, -1


@compiled
def _inside(x: Int64, knots: Int64) -> bool:
    for i in range(x.size):
        row = i if knots.shape[0] > 1 else 0
        if x[i] < knots[row, 0] or x[i] >= knots[row, knots.shape[1] - 1]:
            return False
    return True


@compiled
def _aim(
    x: np.int64, knots: Int64, images: Int64, sigma: int, octaves: Int64
) -> tuple[np.int64, np.int64]:
    """The image of a cell's middle, in 1/256 of a cell, and the index of the width around it.

    Where a piece is w long and its image v, w and v below 2**31, (2 * place + 1) * v < 2**63.
    """
    piece = find_piece(x, knots, 0, knots.size - 1)
    w = knots[piece + 1] - knots[piece]
    v = images[piece + 1] - images[piece]
    t = (2 * (x - knots[piece]) + 1) * v
    whole = t // (2 * w)
    part = ((t - whole * 2 * w) << MEAN_BITS) // (2 * w)
    mean = ((images[piece] + whole) << MEAN_BITS) + part
    stretch = log2_index(v, octaves) - log2_index(w, octaves)
    return mean, np.int64(sigma) + max(stretch, np.int64(0))


@compiled
def _blur_rows(
    head: Uint64,
    tail: Uint32,
    size: int,
    first: int,
    last: int,
    x: Int64,
    knots: Int64,
    images: Int64,
    sigma: int,
    down: bool,
    y: Int64,
    packed: Int64,
    reciprocals: Int64,
    reaches: Int64,
    quantiles: Int64,
    spreads: Int64,
    octaves: Int64,
) -> tuple[int, int]:
    """Move rows `first` to `last` of checked elements; see `_scale_rows` for what it returns."""
    lanes = head.size
    step = lanes if first <= last else -lanes
    before = np.empty(lanes, np.uint64)
    each = 1 if knots.shape[0] > 1 else 0
    for n in range(abs(last - first) // lanes + 1):
        row = first + n * step
        width = min(lanes, x.size - row)
        left = size
        for lane in range(width - 1, -1, -1):
            i = row + lane
            before[lane] = head[lane]
            ends, others = knots[i * each], images[i * each]
            mean, spread = _aim(x[i], ends, others, sigma, octaves)
            h, size, y[i] = pop_normal_lane(
                head[lane],
                tail,
                size,
                mean,
                spread,
                others[others.size - 1],
                not down,
                packed,
                reciprocals,
                reaches,
                quantiles,
                spreads,
            )
            if size < 0:
                for done in range(lane + 1, width):
                    head[done] = before[done]
                return left, row
            head[lane] = h
        for lane in range(width):
            i = row + lane
            ends, others = knots[i * each], images[i * each]
            mean, spread = _aim(y[i], others, ends, sigma, octaves)
            head[lane], size = push_normal_lane(
                head[lane],
                tail,
                size,
                x[i],
                mean,
                spread,
                ends[ends.size - 1],
                down,
                packed,
                reciprocals,
                reaches,
            )
    return size, -1
