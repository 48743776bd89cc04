"""The normal distribution cut into integer cells, for any mean and width.

Cells [z, z + 1) of [0, count) around a mean, in 1/256 of a cell, and a width 2**(i / 32) cells:

    width 64 or more     2**k cells are one block, so that a width is 32..64 blocks; a cell is
                         uniform in its block
    within 8 widths      C(z) = Phi((z - mean) / width) in integers, at least one slot a block
    outside              one slot for all of it together, and a uniform choice

so that every cell of the grid can be coded, whatever the mean, and each push undoes a pop.

A pop that follows a push in the same lane finds the interval that was pushed, in its slot's high
bits: local bits-back would get the same noise again and again, and add up its roundings. So one of
the two lines of slots is *shuffled*: the position in it is multiplied by an odd number, which lets
the low bits, that come from deeper down, decide.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowarchive.ans import Message, pop_lane, pop_uniform_lane, push_lane, push_uniform_lane
from flowarchive.entropy.plain import find_piece
from flowarchive.errors import InvalidInterval
from flowarchive.loops import compiled

Int64 = NDArray[np.int64]
Uint32 = NDArray[np.uint32]
Uint64 = NDArray[np.uint64]

MEAN_BITS = 8
"""Means are in 1/256 of a cell."""

WIDTHS_PER_OCTAVE = 32
"""Width index i stands for 2**(i / 32) cells."""

WIDTH_MIN = -64
"""The least width index that makes a difference, a quarter of a cell."""

MAX_CELLS = 1 << 31
"""Most cells of a grid."""

PRECISION = 24
PHI_BITS = 24
"""The table's one is 2**24."""

PHI_RANGE = 8
PHI_STEPS = 64
"""The table covers -8..8 with 64 steps a unit; outside it is 0 and 2**24."""

# A width has at most 2**6 blocks.
_BLOCK_OCTAVES = 5
_REDUCED_WIDTHS = WIDTHS_PER_OCTAVE * (_BLOCK_OCTAVES + 1) - WIDTH_MIN
_RECIPROCAL_BITS = 24
# Arguments of Phi are in 2**-20; a step of its table is 2**14 of them.
_ARGUMENT_BITS = 20
_STEP_BITS = 14
_STEP_MASK = (1 << _STEP_BITS) - 1
_LIMIT = PHI_RANGE << _ARGUMENT_BITS
_SHIFT = MEAN_BITS + _RECIPROCAL_BITS - _ARGUMENT_BITS
_DELTA_BITS = 20
_DELTA_MASK = (1 << _DELTA_BITS) - 1
_TOTAL = 1 << PRECISION
# The first guess of a search: quantiles of 2**10 parts, in 2**-8, of widths in 2**-8.
_GUESS_BITS = 10
_GUESS_SHIFT = PRECISION - _GUESS_BITS
_ONE = np.uint64(1)
_SLOTS = np.uint64(_TOTAL - 1)
# An odd number near 2**24 over the golden ratio, and its inverse modulo 2**24.
_SHUFFLE = np.uint64(0x9E3779)
_UNSHUFFLE = np.uint64(pow(0x9E3779, -1, _TOTAL))


@cache
def phi_table() -> NDArray[np.int32]:
    """Return the frozen normal cumulative, round(2**24 * Phi(i / 64 - 8)) for i in 0..1024.

    Its power series in decimal arithmetic, correctly rounded, is the same everywhere.

    Returns:
        int32 [1025], read-only.
    """
    with localcontext() as context:
        context.prec = 60
        pi = Decimal("3.14159265358979323846264338327950288419716939937510582097494")
        upper = [_upper_half(Decimal(i) / PHI_STEPS, pi) for i in range(PHI_RANGE * PHI_STEPS + 1)]
        half = Decimal(1) / 2
        areas = [half - area for area in upper[:0:-1]] + [half + area for area in upper]
        entries = [round((1 << PHI_BITS) * area) for area in areas]
    table = np.array(entries, dtype=np.int32)
    table.setflags(write=False)
    return table


def _upper_half(x: Decimal, pi: Decimal) -> Decimal:
    """The area from 0 to x, by the power series of the density."""
    term, total, k = x, Decimal(0), 0
    while abs(term) > Decimal("1e-40"):
        total += term / (2 * k + 1)
        k += 1
        term *= -x * x / (2 * k)
    return total / (2 * pi).sqrt()


@cache
def octave_table() -> Int64:
    """Return round(2**31 * 2**((j - 1/2) / 32)) for j in 0..32: where `log2_index` rounds up."""
    with localcontext() as context:
        context.prec = 40
        entries = [
            round(2 ** (31 + (Decimal(2 * j - 1) / (2 * WIDTHS_PER_OCTAVE))))
            for j in range(WIDTHS_PER_OCTAVE + 1)
        ]
    return np.array(entries, dtype=np.int64)


@cache
def normal_tables() -> tuple[Int64, Int64, Int64, Int64, Int64]:
    """Return what the loops read: packed Phi, reciprocals, reaches, quantiles, spreads.

    The last two only choose where a search begins, never what it finds, so floats may make them.
    """
    phi = phi_table().astype(np.int64)
    packed = (phi[:-1] << _DELTA_BITS) | np.diff(phi)
    with localcontext() as context:
        context.prec = 40
        reciprocals = [
            round(2 ** (_RECIPROCAL_BITS - Decimal(j) / WIDTHS_PER_OCTAVE))
            for j in range(WIDTHS_PER_OCTAVE)
        ]
        widths = [2 ** (Decimal(WIDTH_MIN + j) / WIDTHS_PER_OCTAVE) for j in range(_REDUCED_WIDTHS)]
        reaches = [int(PHI_RANGE * width) + 1 for width in widths]
    middles = (np.arange(1 << _GUESS_BITS) + 0.5) * 2.0 ** (PHI_BITS - _GUESS_BITS)
    arguments = (np.arange(phi.size) / PHI_STEPS - PHI_RANGE) * 256
    quantiles = np.rint(np.interp(middles, phi, arguments)).astype(np.int64)
    spreads = np.rint(np.array([float(width) * 256 for width in widths])).astype(np.int64)
    return packed, np.array(reciprocals), np.array(reaches), quantiles, spreads


@compiled
def log2_index(number: np.int64, octaves: Int64) -> np.int64:
    """Return log2 of 1..2**32 in 1/32, rounded; `octaves` is `octave_table()`."""
    # Exact: 53 bits of a float hold the number.
    bits = np.int64(math.frexp(float(number))[1] - 1)
    mantissa = number << (31 - bits) if bits <= 31 else number >> 1
    step = find_piece(mantissa, octaves, 0, octaves.size)
    return np.int64(bits * WIDTHS_PER_OCTAVE + step)


@compiled
def _frame(
    mean: np.int64, width: np.int64, count: np.int64, reaches: Int64
) -> tuple[np.int64, np.int64, np.int64, np.int64, np.int64, np.int64]:
    """Return a block's bits, the mean in blocks, the reduced width, the window, and all blocks."""
    width = max(width, np.int64(WIDTH_MIN))
    bits = max((width >> 5) - _BLOCK_OCTAVES, np.int64(0))
    blocks = ((count - 1) >> bits) + 1
    center = mean >> bits
    width -= bits << 5
    middle = center >> MEAN_BITS
    reach = reaches[np.uint64(width - WIDTH_MIN)]
    low = max(middle - reach, np.int64(0))
    high = min(middle + reach + 1, blocks)
    return bits, center, width, low, high, blocks


@compiled
def _below(
    z: np.int64,
    center: np.int64,
    width: np.int64,
    low: np.int64,
    high: np.int64,
    blocks: np.int64,
    packed: Int64,
    reciprocals: Int64,
) -> np.int64:
    """C(z): the slots of the window's blocks below z, low <= z <= high."""
    outside = np.int64(1) if high - low < blocks else np.int64(0)
    if z == low:
        return np.int64(0)
    if z == high:
        return _TOTAL - outside
    distance = (z << MEAN_BITS) - center
    argument = (distance * reciprocals[np.uint64(width & 31)]) >> (_SHIFT + (width >> 5))
    argument = min(max(argument, np.int64(-_LIMIT)), np.int64(_LIMIT - 1)) + _LIMIT
    pair = packed[np.uint64(argument >> _STEP_BITS)]
    step = ((pair & _DELTA_MASK) * (argument & _STEP_MASK)) >> _STEP_BITS
    phi = (pair >> _DELTA_BITS) + step
    return np.int64(((phi * (_TOTAL - outside - (high - low))) >> PHI_BITS) + z - low)


@compiled
def push_normal_lane(
    h: np.uint64,
    tail: Uint32,
    size: int,
    z: np.int64,
    mean: np.int64,
    width: np.int64,
    count: np.int64,
    shuffled: bool,
    packed: Int64,
    reciprocals: Int64,
    reaches: Int64,
) -> tuple[np.uint64, int]:
    """Push the cell z of [0, count) onto the head `h`; the tail grows by at most three words."""
    bits, center, width, low, high, blocks = _frame(mean, width, count, reaches)
    block = z >> bits
    if bits > 0:
        first = block << bits
        span = min(np.int64(1) << bits, count - first)
        h, size = push_uniform_lane(h, tail, size, np.uint64(z - first), np.uint64(span))
    if low <= block < high:
        left = _below(block, center, width, low, high, blocks, packed, reciprocals)
        right = _below(block + 1, center, width, low, high, blocks, packed, reciprocals)
    else:
        other = block if block < low else block - (high - low)
        span = blocks - (high - low)
        h, size = push_uniform_lane(h, tail, size, np.uint64(other), np.uint64(span))
        left, right = np.int64(_TOTAL - 1), np.int64(_TOTAL)
    h, size = push_lane(h, tail, size, np.uint64(left), np.uint64(right - left), PRECISION)
    if shuffled:
        h = (h & ~_SLOTS) | ((h * _SHUFFLE) & _SLOTS)
    return h, size


@compiled
def pop_normal_lane(
    h: np.uint64,
    tail: Uint32,
    size: int,
    mean: np.int64,
    width: np.int64,
    count: np.int64,
    shuffled: bool,
    packed: Int64,
    reciprocals: Int64,
    reaches: Int64,
    quantiles: Int64,
    spreads: Int64,
) -> tuple[np.uint64, int, np.int64]:
    """Undo `push_normal_lane`; the tail keeps its words. Size is -1 where they were too few."""
    bits, center, width, low, high, blocks = _frame(mean, width, count, reaches)
    if shuffled:
        h = (h & ~_SLOTS) | ((h * _UNSHUFFLE) & _SLOTS)
    slot = np.int64(h & _SLOTS)
    if high - low < blocks and slot == _TOTAL - 1:
        h, size = pop_lane(h, tail, size, np.uint64(slot), _ONE, PRECISION)
        if size < 0:
            return h, size, slot
        span = blocks - (high - low)
        h, size, other = pop_uniform_lane(h, tail, size, np.uint64(span))
        block = np.int64(other)
        if block >= low:
            block += high - low
    else:
        spread = spreads[np.uint64(width - WIDTH_MIN)]
        away = (quantiles[np.uint64(slot >> _GUESS_SHIFT)] * spread) >> 8
        guess = min(max((center + away) >> MEAN_BITS, low), high - 1)
        # C(block) <= slot < C(top), first in steps that double, then by halving.
        block, left = low, np.int64(0)
        top, right = high, np.int64(_TOTAL)
        step = np.int64(1)
        edge = _below(guess, center, width, low, high, blocks, packed, reciprocals)
        if edge <= slot:
            block, left = guess, edge
            while block + step < top:
                edge = _below(block + step, center, width, low, high, blocks, packed, reciprocals)
                if slot < edge:
                    top, right = block + step, edge
                else:
                    block, left = block + step, edge
                    step *= 2
        else:
            top, right = guess, edge
            while top - step > block:
                edge = _below(top - step, center, width, low, high, blocks, packed, reciprocals)
                if slot < edge:
                    top, right = top - step, edge
                    step *= 2
                else:
                    block, left = top - step, edge
        while top - block > 1:
            middle = (block + top) >> 1
            edge = _below(middle, center, width, low, high, blocks, packed, reciprocals)
            if slot < edge:
                top, right = middle, edge
            else:
                block, left = middle, edge
        if top == high:
            right = _below(high, center, width, low, high, blocks, packed, reciprocals)
        h, size = pop_lane(h, tail, size, np.uint64(left), np.uint64(right - left), PRECISION)
    if size < 0 or bits == 0:
        return h, size, block
    first = block << bits
    span = min(np.int64(1) << bits, count - first)
    h, size, place = pop_uniform_lane(h, tail, size, np.uint64(span))
    return h, size, first + np.int64(place)


@compiled
def _push_rows(
    head: Uint64,
    tail: Uint32,
    size: int,
    values: Int64,
    mean: Int64,
    width: Int64,
    count: int,
    shuffled: bool,
    packed: Int64,
    reciprocals: Int64,
    reaches: Int64,
) -> int:
    lanes = head.size
    row = (values.size - 1) // lanes * lanes
    while row >= 0:
        for lane in range(min(lanes, values.size - row)):
            i = row + lane
            head[lane], size = push_normal_lane(
                head[lane],
                tail,
                size,
                values[i],
                mean[i],
                width[i],
                np.int64(count),
                shuffled,
                packed,
                reciprocals,
                reaches,
            )
        row -= lanes
    return size


@compiled
def _pop_rows(
    head: Uint64,
    tail: Uint32,
    size: int,
    values: Int64,
    mean: Int64,
    width: Int64,
    count: int,
    shuffled: bool,
    packed: Int64,
    reciprocals: Int64,
    reaches: Int64,
    quantiles: Int64,
    spreads: Int64,
) -> int:
    lanes = head.size
    for row in range(0, values.size, lanes):
        for lane in range(min(lanes, values.size - row) - 1, -1, -1):
            i = row + lane
            h, size, values[i] = pop_normal_lane(
                head[lane],
                tail,
                size,
                mean[i],
                width[i],
                np.int64(count),
                shuffled,
                packed,
                reciprocals,
                reaches,
                quantiles,
                spreads,
            )
            if size < 0:
                return size
            head[lane] = h
    return size


class Normal:
    """Normal distributions cut into the cells 0..count - 1, each of which can be coded.

    Attributes:
        count: Cells of the grid, 1..2**31.
        shuffled: Whether the line of slots is shuffled.
    """

    def __init__(self, count: int, shuffled: bool = False) -> None:
        """Fix the grid; ValueError outside 1..2**31."""
        if not 1 <= count <= MAX_CELLS:
            raise ValueError(f"{count} cells are not in 1..{MAX_CELLS}")
        self.count, self.shuffled = int(count), bool(shuffled)

    def push(self, message: Message, values: ArrayLike, mean: ArrayLike, width: ArrayLike) -> None:
        """Push cells, the last row first.

        Args:
            message: Grows; is left as it was when this raises.
            values: Integers [n] in [0, count).
            mean: Integers [n] in [0, 256 * count), in 1/256 of a cell.
            width: Integers [n], indices of widths 2**(i / 32) cells, at most 1023; those below
                -64 are taken for it.

        Raises:
            InvalidInterval: A value is no cell.
            ValueError: The parameters' shapes or ranges are wrong.
        """
        means, widths = self._parameters(mean, width)
        cells = np.ascontiguousarray(values, dtype=np.int64)
        if cells.shape != means.shape:
            raise ValueError(f"values are {list(cells.shape)}, means {list(means.shape)}")
        if cells.size and not (cells.min() >= 0 and cells.max() < self.count):
            raise InvalidInterval(f"a value is outside [0, {self.count})")
        message.reserve(3 * cells.size)
        tables = normal_tables()[:3]
        grid = self.count, self.shuffled
        message.size = _push_rows(
            message.head, message.tail, message.size, cells, means, widths, *grid, *tables
        )

    def pop(self, message: Message, mean: ArrayLike, width: ArrayLike) -> Int64:
        """Pop the cells that `push` pushed with the same parameters.

        Returns:
            int64 [n] in [0, count).

        Raises:
            MessageExhausted: The message holds too few bits; it stays as it was.
            ValueError: The parameters' shapes or ranges are wrong.
        """
        means, widths = self._parameters(mean, width)
        cells = np.empty(means.size, dtype=np.int64)
        head = message.head.copy()
        grid = self.count, self.shuffled
        size = _pop_rows(
            head, message.tail, message.size, cells, means, widths, *grid, *normal_tables()
        )
        message.commit(head, size)
        return cells

    def _parameters(self, mean: ArrayLike, width: ArrayLike) -> tuple[Int64, Int64]:
        means = np.ascontiguousarray(mean, dtype=np.int64)
        widths = np.ascontiguousarray(width, dtype=np.int64)
        if means.ndim != 1 or widths.shape != means.shape:
            raise ValueError(f"mean is {list(means.shape)}, width {list(widths.shape)}")
        if means.size and not (means.min() >= 0 and means.max() < self.count << MEAN_BITS):
            raise ValueError(f"a mean is outside [0, {self.count})")
        if widths.size and widths.max() >= WIDTHS_PER_OCTAVE * 32:
            raise ValueError("a width is 2**32 cells or more")
        return means, widths
