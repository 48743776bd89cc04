"""Exact increasing maps of a grid of integers, element by element: piecewise linear and onto.

    u in [0, 2**precision)   --Logit-->   y in [0, N)   --Affine, Mixture-->   y in [0, N)

The grid has a pitch of 2**-fineness and N = 34 * 2**fineness cells over -17..17: cell y is the real
number (y + 0.5 - N / 2) / 2**fineness in its middle. Every map keeps the ends of the grid where
they are, so that nothing has to be clamped, whatever the parameters.

All knots come from frozen tables and integer arithmetic. `bitsback` moves elements along the maps.

References:
    Ho, Chen, Srinivas, Duan, Abbeel, "Flow++", 2019, arXiv:1902.00275, for the mixture map.
    Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017, arXiv:1605.08803.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowarchive.ans import Message
from flowarchive.bitsback import Segments
from flowarchive.entropy import WEIGHT_BITS, Table
from flowarchive.entropy.cumulative import RECIPROCALS, interpolate_sigmoid, search_tables
from flowarchive.entropy.plain import find_piece
from flowarchive.lengths import log2_sum
from flowarchive.loops import compiled

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

RANGE = 17
"""The grid covers -17..17."""

FINENESS = 10
MIN_FINENESS, MAX_FINENESS = 4, 14

# Below 22 bits, knots at the far left would meet.
MIN_PRECISION, MAX_PRECISION = 22, 28

LOGIT_RANGE = 12
LOGIT_STEPS = 16
"""Logit has knots at -12..12 in steps of 1/16."""

CORE = 8
"""Affine is affine over -8..8."""

SCALES_PER_OCTAVE = 32
SCALE_MAX = 24
"""Scale index i, -24..24, stands for a slope of 2**(i / 32)."""

SHIFT_MAX = 3
"""Largest magnitude of an affine shift, in real units."""

MIXTURE_STEPS = 2
MIXTURE_PIECES = 2 * RANGE * MIXTURE_STEPS
"""Mixture has knots in steps of 1/2."""

MIXTURE_MEAN_MAX = 2047
"""Largest magnitude of a component's mean, in 1/256."""

MIXTURE_SCALE_MAX = 16
"""Width index i of a component, -16..16, stands for 2**(i / 8)."""

# A mixture's images are worked out in 2**-14, and are 1/64 of the identity: its slope is at least
# about that, and no parameters can make two knots meet.
_IMAGE_BITS = 14
_IMAGE_STEP = (1 << _IMAGE_BITS) // MIXTURE_STEPS
_BLEND_BITS = 6
_CURVE_PRECISION = 24
# What a bucket of the search in a curve's knots spans: 1/4096 of the grid.
_BUCKET_BITS = 12
# A mixture's weights: 16 steps are an octave.
_WEIGHT_STEPS = 16


def cells(fineness: int) -> int:
    """Return N; ValueError for a fineness outside 4..14."""
    if not MIN_FINENESS <= fineness <= MAX_FINENESS:
        raise ValueError(f"fineness {fineness} is outside {MIN_FINENESS}..{MAX_FINENESS}")
    return 2 * RANGE << fineness


@compiled
def _find_piece(x: np.int64, knots: Int64, firsts: Int64, shift: int) -> np.int64:
    """Return the piece k with knots[k] <= x < knots[k + 1]."""
    bucket = np.uint64(x >> shift)
    last = firsts[bucket + np.uint64(1)]
    return np.int64(find_piece(x, knots, firsts[bucket], last + 1))


@compiled
def _gather(
    x: Int64,
    knots: Int64,
    images: Int64,
    firsts: Int64,
    shift: int,
    x0: Int64,
    w: Int64,
    y0: Int64,
    v: Int64,
) -> None:
    for i in range(x.size):
        k = _find_piece(min(max(x[i], knots[0]), knots[-1] - 1), knots, firsts, shift)
        x0[i], w[i] = knots[k], knots[k + 1] - knots[k]
        y0[i], v[i] = images[k], images[k + 1] - images[k]


def _empty(count: int) -> Segments:
    return Segments(*(np.empty(count, dtype=np.int64) for _ in range(4)))


class _Side:
    """Knots on one side of a curve, and where a search among them begins."""

    def __init__(self, knots: Int64) -> None:
        self.knots = knots
        self.shift = max(int(knots[-1] - 1).bit_length() - _BUCKET_BITS, 0)
        buckets = np.arange(((int(knots[-1]) - 1) >> self.shift) + 2) << self.shift
        at = np.searchsorted(knots, np.minimum(buckets, knots[-1] - 1), side="right") - 1
        self.firsts = at.astype(np.int64)

    def segments(self, x: Int64, images: Int64) -> Segments:
        found = _empty(x.size)
        _gather(x, self.knots, images, self.firsts, self.shift, *found)
        return found


class Logit:
    """The logit, the same for all elements: u in [0, 2**precision) to the grid.

    The knots are at -12..12 in steps of 1/16, where u = round(2**precision * sigmoid(y)), with one
    more piece to each end of the grid. With u the position in a symbol's own cumulative, this is
    the mixture's cumulative followed by a logit, as in Flow++; inverted, it is the base: `Base`.

    Attributes:
        precision: 22..28.
        fineness: 4..14.
    """

    def __init__(self, precision: int, fineness: int = FINENESS) -> None:
        """Build the knots; ValueError where a parameter is out of range."""
        if not MIN_PRECISION <= precision <= MAX_PRECISION:
            raise ValueError(f"precision {precision} is outside {MIN_PRECISION}..{MAX_PRECISION}")
        total = cells(fineness)
        self.precision, self.fineness = precision, fineness
        inner = (RANGE - LOGIT_RANGE << fineness) + (
            np.arange(2 * LOGIT_RANGE * LOGIT_STEPS + 1) << fineness
        ) // LOGIT_STEPS
        u = [0, *logit_knots(precision), 1 << precision]
        self._u = _Side(np.array(u, dtype=np.int64))
        self._y = _Side(np.concatenate([[0], inner, [total]]).astype(np.int64))

    def __repr__(self) -> str:
        return f"Logit({self.precision}, {self.fineness})"

    def segments(self, x: Int64) -> Segments:
        """Return the pieces that hold u, int64 [n]."""
        return self._u.segments(x, self._y.knots)

    def segments_of(self, y: Int64) -> Segments:
        """Return the pieces whose images hold y, int64 [n]."""
        return self._y.segments(y, self._u.knots).turned()

    def knots(self, part: slice) -> tuple[Int64, Int64]:
        """Return all knots and their images, int64 [1, 387] each."""
        return self._u.knots[None], self._y.knots[None]

    @property
    def tables(self) -> tuple[Int64, Int64, Int64, int]:
        """What loops need to follow the curve from u: knots, images, first pieces, shift."""
        return self._u.knots, self._y.knots, self._u.firsts, self._u.shift


@cache
def logit_knots(precision: int) -> tuple[int, ...]:
    """Return round(2**precision * sigmoid(k / 16)) for k in -192..192, in decimal arithmetic."""
    with localcontext() as context:
        context.prec = 40
        reach = LOGIT_RANGE * LOGIT_STEPS
        return tuple(
            round((1 << precision) / (1 + (Decimal(-k) / LOGIT_STEPS).exp()))
            for k in range(-reach, reach + 1)
        )


class Base:
    """The prior of y: the logistic distribution as `Logit` has it, u being uniform.

    A y costs precision - log2(w / v) bits, w long in u and v on the grid being the piece it is in.
    """

    def __init__(self, logit: Logit) -> None:
        knots, images, _, _ = logit.tables
        self._logit, self._pieces, self._images = logit, Table(np.diff(knots)), images

    def push(self, message: Message, y: ArrayLike) -> None:
        """Push y, integers [n] in [0, N); InvalidInterval for others."""
        values = np.ascontiguousarray(y, dtype=np.int64)
        pieces = self._logit.segments_of(values)
        message.push_uniform(values - pieces.y0, pieces.v)
        message.push(pieces.x0, pieces.w, self._logit.precision)

    def pop(self, message: Message, n: int) -> Int64:
        """Pop int64 [n] in [0, N); MessageExhausted where the message holds too few bits."""
        k = self._pieces.pop(message, n)
        places = message.pop_uniform(self._images[k + 1] - self._images[k])
        return places + self._images[k]

    def bits(self, y: ArrayLike) -> float:
        """Return the ideal code length of y, as `lengths` sums them."""
        values = np.ascontiguousarray(y, dtype=np.int64)
        pieces = self._logit.segments_of(values)
        lost = log2_sum(pieces.v) - log2_sum(pieces.w)
        return values.size * self._logit.precision + lost


@cache
def core_table(fineness: int) -> Int64:
    """Return round(8 * 2**fineness * 2**(i / 32)) for i in -24..24: half of the core's image."""
    with localcontext() as context:
        context.prec = 40
        slopes = [2 ** (Decimal(i) / SCALES_PER_OCTAVE) for i in range(-SCALE_MAX, SCALE_MAX + 1)]
        table = np.array([round((CORE << fineness) * slope) for slope in slopes], dtype=np.int64)
    table.setflags(write=False)
    return table


class Affine:
    """y goes to s * y + t over -8..8, and linearly from there to the grid's ends.

    Attributes:
        fineness: Of the grid.
    """

    def __init__(self, shift: ArrayLike, scale: ArrayLike, fineness: int = FINENESS) -> None:
        """Take the parameters of n elements.

        Args:
            shift: t in cells, integers [n] in +-3 * 2**fineness.
            scale: Integers [n] in -24..24; index i stands for s = 2**(i / 32).
            fineness: 4..14.

        Raises:
            ValueError: A parameter is out of its range.
        """
        self.fineness, self._total = fineness, cells(fineness)
        shifts = np.asarray(shift, dtype=np.int64)
        scales = np.asarray(scale, dtype=np.int64)
        if shifts.shape != scales.shape or shifts.ndim != 1:
            raise ValueError(f"shift is {list(shifts.shape)}, scale {list(scales.shape)}")
        if shifts.size and np.abs(shifts).max() > SHIFT_MAX << fineness:
            raise ValueError(f"a shift is outside +-{SHIFT_MAX}")
        if scales.size and np.abs(scales).max() > SCALE_MAX:
            raise ValueError(f"a scale index is outside +-{SCALE_MAX}")
        half = core_table(fineness)[scales + SCALE_MAX]
        self._left = (RANGE << fineness) + shifts - half
        self._right = self._left + 2 * half

    def segments(self, x: Int64) -> Segments:
        """Return the pieces that hold int64 [n]."""
        found = _empty(x.size)
        ends = self._ends
        _three(x, *self._check(x), *ends, *found, False)
        return found

    def segments_of(self, y: Int64) -> Segments:
        """Return the pieces whose images hold int64 [n]."""
        found = _empty(y.size)
        _three(y, *self._check(y), *self._ends, *found, True)
        return found

    def knots(self, part: slice) -> tuple[Int64, Int64]:
        """Return the four knots of some elements, and their images."""
        left, right = self._left[part], self._right[part]
        images = np.empty((left.size, 4), dtype=np.int64)
        images[:, 0], images[:, 1], images[:, 2], images[:, 3] = 0, left, right, self._total
        low, high, total = self._ends
        row = np.array([0, low, high, total], dtype=np.int64)
        return np.repeat(row[None], left.size, axis=0), images

    @property
    def _ends(self) -> tuple[int, int, int]:
        return RANGE - CORE << self.fineness, RANGE + CORE << self.fineness, self._total

    def _check(self, x: Int64) -> tuple[Int64, Int64]:
        if x.shape != self._left.shape:
            raise ValueError(f"the map is of {self._left.size} elements, not {list(x.shape)}")
        return self._left, self._right


@compiled
def _three(
    z: Int64,
    left: Int64,
    right: Int64,
    low: int,
    high: int,
    total: int,
    x0: Int64,
    w: Int64,
    y0: Int64,
    v: Int64,
    of_image: bool,
) -> None:
    for i in range(z.size):
        first = left[i] if of_image else low
        second = right[i] if of_image else high
        if z[i] < first:
            x0[i], w[i], y0[i], v[i] = 0, low, 0, left[i]
        elif z[i] < second:
            x0[i], w[i], y0[i], v[i] = low, high - low, left[i], right[i] - left[i]
        else:
            x0[i], w[i], y0[i], v[i] = high, total - high, right[i], total - right[i]


class Mixture:
    """The cumulative of a mixture of K logistics followed by the logit, between knots 1/2 apart.

    The image of a knot is 63/64 of logit(sum of weight * sigmoid((knot - mean) / scale)) and 1/64
    of the knot itself.

    Attributes:
        fineness: Of the grid.

    References:
        Ho, Chen, Srinivas, Duan, Abbeel, "Flow++", 2019, arXiv:1902.00275.
    """

    def __init__(
        self, weight: ArrayLike, mean: ArrayLike, scale: ArrayLike, fineness: int = FINENESS
    ) -> None:
        """Take the parameters of n elements and K components.

        Args:
            weight: Integers [n, K], at least 0, each row's sum 2**12.
            mean: Integers [n, K] in +-2047, in 1/256.
            scale: Integers [n, K] in -16..16; index i stands for 2**(i / 8).
            fineness: 4..14.

        Raises:
            ValueError: A parameter is out of its range.
        """
        self.fineness, self._total = fineness, cells(fineness)
        arrays = [np.ascontiguousarray(p, dtype=np.int64) for p in (weight, mean, scale)]
        weights, means, scales = arrays
        if weights.ndim != 2 or not weights.shape == means.shape == scales.shape:
            raise ValueError("weight, mean and scale are integers [n, K]")
        if weights.size and (weights.min() < 0 or (weights.sum(1) != 1 << WEIGHT_BITS).any()):
            raise ValueError(f"weights are at least 0 and sum to {1 << WEIGHT_BITS} in each row")
        if means.size and np.abs(means).max() > MIXTURE_MEAN_MAX:
            raise ValueError(f"a mean is outside +-{MIXTURE_MEAN_MAX}")
        if scales.size and np.abs(scales).max() > MIXTURE_SCALE_MAX:
            raise ValueError(f"a scale index is outside +-{MIXTURE_SCALE_MAX}")
        self._parameters = weights, means, scales

    def segments(self, x: Int64) -> Segments:
        """Return the pieces that hold int64 [n]."""
        return self._segments(x, False)

    def segments_of(self, y: Int64) -> Segments:
        """Return the pieces whose images hold int64 [n]."""
        return self._segments(y, True)

    def _segments(self, z: Int64, of_image: bool) -> Segments:
        if z.shape != self._parameters[0].shape[:1]:
            raise ValueError(f"the map is not of {list(z.shape)} elements")
        found = _empty(z.size)
        weight, mean, scale = self._parameters
        packed, reciprocals, curve, heights, firsts, shift = _mixture_tables()
        _mixture_pieces(
            z,
            weight,
            mean,
            scale,
            self._total,
            packed,
            reciprocals,
            curve,
            heights,
            firsts,
            shift,
            *found,
            of_image,
        )
        return found

    def knots(self, part: slice) -> tuple[Int64, Int64]:
        """Return the 69 knots of some elements, and their images."""
        weight, mean, scale = (p[part] for p in self._parameters)
        images = np.empty((len(weight), MIXTURE_PIECES + 1), dtype=np.int64)
        _mixture_knots(weight, mean, scale, self._total, *_mixture_tables(), images)
        row = np.arange(MIXTURE_PIECES + 1) * (self._total // MIXTURE_PIECES)
        return np.repeat(row[None], len(weight), axis=0), images


@cache
def _mixture_tables() -> tuple[Int64, Int64, Int64, Int64, Int64, int]:
    """Packed sigmoid, reciprocals, and the logit curve: knots, images, first pieces, shift."""
    packed = search_tables()[0]
    return (packed, np.array(RECIPROCALS, dtype=np.int64), *mixture_curve().tables)


def mixture_curve() -> Logit:
    """Return the curve that mixtures' images are found by, whatever a flow's own is."""
    return Logit(_CURVE_PRECISION, MAX_FINENESS)


@compiled
def _mixture_image(
    k: np.int64,
    weight: Int64,
    mean: Int64,
    scale: Int64,
    total: int,
    packed: Int64,
    reciprocals: Int64,
    curve: Int64,
    heights: Int64,
    firsts: Int64,
    shift: int,
) -> np.int64:
    """Return the image of knot k, 0..68, for one element; it is at least k."""
    if k == 0:
        return np.int64(0)
    if k == MIXTURE_PIECES:
        return np.int64(total)
    knot = (k - MIXTURE_PIECES // 2) * (256 // MIXTURE_STEPS)
    below = np.int64(0)
    for j in range(weight.size):
        # In 2**-20: 1/256 of a unit, times 2**24 over the scale.
        octave = 12 + (scale[j] >> 3)
        reciprocal = reciprocals[np.uint64(scale[j] & 7)]
        below += weight[j] * interpolate_sigmoid(knot - mean[j], reciprocal, octave, packed)
    below = min(below >> WEIGHT_BITS, np.int64((1 << _CURVE_PRECISION) - 1))
    piece = _find_piece(below, curve, firsts, shift)
    w = curve[piece + 1] - curve[piece]
    v = heights[piece + 1] - heights[piece]
    height = heights[piece] + (below - curve[piece]) * v // w
    blend = (((1 << _BLEND_BITS) - 1) * height + k * _IMAGE_STEP) >> _BLEND_BITS
    # One cell for every piece, and the others by height.
    return np.int64(k + blend * (total - MIXTURE_PIECES) // (MIXTURE_PIECES * _IMAGE_STEP))


@compiled
def _mixture_pieces(
    z: Int64,
    weight: Int64,
    mean: Int64,
    scale: Int64,
    total: int,
    packed: Int64,
    reciprocals: Int64,
    curve: Int64,
    heights: Int64,
    firsts: Int64,
    shift: int,
    x0: Int64,
    w: Int64,
    y0: Int64,
    v: Int64,
    of_image: bool,
) -> None:
    step = total // MIXTURE_PIECES
    for i in range(z.size):
        p, m, s = weight[i], mean[i], scale[i]
        if of_image:
            bottom, left = np.int64(0), np.int64(0)
            top, right = np.int64(MIXTURE_PIECES), np.int64(total)
            while top - bottom > 1:
                middle = (bottom + top) >> 1
                image = _mixture_image(
                    middle, p, m, s, total, packed, reciprocals, curve, heights, firsts, shift
                )
                if image <= z[i]:
                    bottom, left = middle, image
                else:
                    top, right = middle, image
        else:
            bottom = min(max(z[i] // step, np.int64(0)), np.int64(MIXTURE_PIECES - 1))
            left = _mixture_image(
                bottom, p, m, s, total, packed, reciprocals, curve, heights, firsts, shift
            )
            right = _mixture_image(
                bottom + 1, p, m, s, total, packed, reciprocals, curve, heights, firsts, shift
            )
        x0[i], w[i], y0[i], v[i] = bottom * step, step, left, right - left


@compiled
def _mixture_knots(
    weight: Int64,
    mean: Int64,
    scale: Int64,
    total: int,
    packed: Int64,
    reciprocals: Int64,
    curve: Int64,
    heights: Int64,
    firsts: Int64,
    shift: int,
    images: Int64,
) -> None:
    for i in range(images.shape[0]):
        p, m, s = weight[i], mean[i], scale[i]
        for k in range(images.shape[1]):
            images[i, k] = _mixture_image(
                np.int64(k), p, m, s, total, packed, reciprocals, curve, heights, firsts, shift
            )


@cache
def _weight_table() -> Int64:
    """Return floor(2**(15 - i / 16)) for i in 0..15, in decimal arithmetic."""
    with localcontext() as context:
        context.prec = 40
        table = [int(2 ** (15 - Decimal(i) / _WEIGHT_STEPS)) for i in range(_WEIGHT_STEPS)]
    return np.array(table, dtype=np.int64)


def mixture_weights(logit: ArrayLike) -> Int64:
    """Return weights that sum to 2**12 in each row, the largest taking what rounding leaves.

    Args:
        logit: Integers [n, K], in 1/16 of an octave.
    """
    logits = np.asarray(logit, dtype=np.int64)
    best = logits.argmax(1, keepdims=True)
    away = np.take_along_axis(logits, best, 1) - logits
    shares = _weight_table()[away % _WEIGHT_STEPS] >> np.minimum(away // _WEIGHT_STEPS, 31)
    weights: Int64 = (shares << WEIGHT_BITS) // shares.sum(1, keepdims=True)
    rest = (1 << WEIGHT_BITS) - weights.sum(1, keepdims=True)
    np.put_along_axis(weights, best, np.take_along_axis(weights, best, 1) + rest, 1)
    return weights
