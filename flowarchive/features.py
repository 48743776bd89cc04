"""What the networks of the video model see of a sample, and the predictions it is anchored on.

For each phase of a level, on the grid of the next level's plane (see `lattice`), an *intra* frame
gives channels and anchors from its own plane, an *inter* frame also from two motion-compensated
references and from an adaptive linear prediction; chroma also from luma.

Neighboring positions are worked on together: every number that they are told by is a *row*, a
vector, and every channel is the difference of two of these, see `_CHANNELS`.

Channels are bytes, a grid of `int8`. Differences to S, the mean of the four nearest known samples,
are in half samples, so that brightness does not matter; magnitudes go through `log_table`. Anchors
are in 1/256 of a sample. `shift` low bits of deeper samples are rounded away from channels, not
from anchors.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from flowarchive.int8 import ZERO, Bytes
from flowarchive.lattice import BORDER, NEIGHBORS, PHASES, with_room
from flowarchive.loops import compiled
from flowarchive.tiles import new_grid
from flowarchive.vectors import INT32, INT64, Value, interleaved, lanes

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

ANCHOR_ONE = 256
"""Anchors are in 1/256 of a sample."""

INTRA_ANCHORS = 4
INTER_ANCHORS = 5

UPDATE_CHANNELS = 16
"""Channels of the second and third phase."""

_SAMPLES = lanes(INT32, NEIGHBORS)
_MOST = 127
_ANCHOR_SHIFT = 6  # from quarters of a sample to anchors
_TABLE_SIZE = 4096

# Rows of numbers: of the plane, of its references R and Q, of luma G and of its references. "Near"
# and so on are the taps of `lattice`, HERE is the sample's own place, and a MEAN that of the near.
_NEAR, _NEAR_R, _NEAR_Q, _CROSS_R, _CROSS_Q = range(0, 20, 4)
_NEAR_G, _CROSS_G, _BEYOND_G, _NEAR_GR = range(20, 36, 4)
_FAR = 36  # eight
_MEAN, _MEAN_R, _MEAN_Q, _MEAN_G, _HERE_R, _HERE_Q, _HERE_G, _HERE_GR, _HERE_GQ = range(44, 53)
_LINEAR, _NEWEST, _LAST, _EIGHTH, _EIGHTH_G = range(53, 58)
_SPREAD, _APART_R, _APART_Q, _APART_G, _PAST_R, _PAST_Q = range(58, 64)
_NOTHING = 64

# Places in a table of distances.
_AT_NEAR, _AT_FAR, _AT_CROSS, _AT_BEYOND, _AT_HERE, _AT_NEWEST = 0, 4, 12, 16, 20, 21
_BEYOND = ((-2, 0), (0, -2), (0, 2), (2, 0))
_HERE = ((0, 0),)
# The newest sample on a grid position: anything, d for c, c for b.
_NEWER = ((0, 0),), ((0, 1),), ((1, -1),)

_PLANE, _R, _Q, _G, _GR, _GQ = range(6)
_PICKED = {
    # The first of some rows: (plane, place of the first distance, how many)
    _NEAR: (_PLANE, _AT_NEAR, 4),
    _NEAR_R: (_R, _AT_NEAR, 4),
    _NEAR_Q: (_Q, _AT_NEAR, 4),
    _CROSS_R: (_R, _AT_CROSS, 4),
    _CROSS_Q: (_Q, _AT_CROSS, 4),
    _NEAR_G: (_G, _AT_NEAR, 4),
    _CROSS_G: (_G, _AT_CROSS, 4),
    _BEYOND_G: (_G, _AT_BEYOND, 4),
    _NEAR_GR: (_GR, _AT_NEAR, 4),
    _FAR: (_PLANE, _AT_FAR, 8),
    _HERE_R: (_R, _AT_HERE, 1),
    _HERE_Q: (_Q, _AT_HERE, 1),
    _HERE_G: (_G, _AT_HERE, 1),
    _HERE_GR: (_GR, _AT_HERE, 1),
    _HERE_GQ: (_GQ, _AT_HERE, 1),
    _NEWEST: (_PLANE, _AT_NEWEST, 1),
}
_MEANS = {_MEAN: _NEAR, _MEAN_R: _NEAR_R, _MEAN_Q: _NEAR_Q, _MEAN_G: _NEAR_G}
_APART = {
    # Mean distances of the first row and the three after it to four others.
    _SPREAD: (_NEAR, *[_MEAN] * 4),
    _APART_R: (_NEAR, *range(_NEAR_R, _NEAR_R + 4)),
    _APART_Q: (_NEAR, *range(_NEAR_Q, _NEAR_Q + 4)),
    _APART_G: (_NEAR_G, *[_HERE_G] * 4),
}
_PAST = {_PAST_R: _NEAR_R, _PAST_Q: _NEAR_Q}
_EIGHTHS = {_EIGHTH: _MEAN, _EIGHTH_G: _HERE_G}

_STEP, _LOG = 0, 1
_Channel = tuple[int, int, int]


def _steps(rows: int, count: int, other: int, apart: int = 0) -> list[_Channel]:
    """Channels of differences of `count` rows, to one row or, `apart`, to as many."""
    return [(_STEP, rows + k, other + k * apart) for k in range(count)]


def _table(*channels: _Channel | list[_Channel]) -> list[_Channel]:
    return [c for some in channels for c in (some if isinstance(some, list) else [some])]


_INTRA_FIRST: list[_Channel | list[_Channel]] = [
    _steps(_NEAR, 4, _MEAN),
    _steps(_FAR, 8, _MEAN),
    (_LOG, _SPREAD, _NOTHING),
    (_LOG, _NEAR, _NEAR + 3),
    (_LOG, _NEAR + 1, _NEAR + 2),
    (_STEP, _EIGHTH, _NOTHING),
]

_CHANNELS = {
    # (inter, chroma, first phase)
    (False, False, True): _table(*_INTRA_FIRST),
    (False, False, False): _table(
        _steps(_NEAR, 4, _MEAN),
        _steps(_FAR, 8, _MEAN),
        (_STEP, _NEWEST, _LAST),
        (_LOG, _SPREAD, _NOTHING),
        (_LOG, _NEAR, _NEAR + 3),
        (_LOG, _NEAR + 1, _NEAR + 2),
    ),
    (False, True, True): _table(
        *_INTRA_FIRST,
        (_STEP, _HERE_G, _MEAN_G),
        _steps(_NEAR_G, 4, _HERE_G),
        _steps(_CROSS_G, 4, _HERE_G),
        (_LOG, _MEAN_G, _HERE_G),
        (_LOG, _APART_G, _NOTHING),
        (_STEP, _EIGHTH_G, _NOTHING),
        _steps(_BEYOND_G, 4, _HERE_G),
    ),
    (False, True, False): _table(
        _steps(_NEAR, 4, _MEAN),
        _steps(_FAR, 4, _MEAN),
        (_STEP, _NEWEST, _LAST),
        (_STEP, _HERE_G, _MEAN_G),
        _steps(_NEAR_G, 4, _HERE_G),
        (_LOG, _SPREAD, _NOTHING),
        (_LOG, _MEAN_G, _HERE_G),
    ),
    (True, False, True): _table(
        _steps(_NEAR, 4, _MEAN),
        (_STEP, _HERE_R, _MEAN),
        (_STEP, _HERE_Q, _MEAN),
        _steps(_NEAR, 4, _NEAR_R, 1),
        _steps(_NEAR, 4, _NEAR_Q, 1),
        _steps(_CROSS_R, 4, _MEAN),
        _steps(_CROSS_Q, 4, _MEAN),
        (_STEP, _LINEAR, _MEAN),
        (_STEP, _HERE_R, _HERE_Q),
        (_LOG, _HERE_R, _MEAN),
        (_LOG, _HERE_R, _HERE_Q),
        (_LOG, _SPREAD, _NOTHING),
        (_LOG, _APART_R, _NOTHING),
        (_LOG, _APART_Q, _NOTHING),
        (_LOG, _LINEAR, _MEAN),
        (_LOG, _LINEAR, _HERE_R),
        (_STEP, _EIGHTH, _NOTHING),
    ),
    (True, False, False): _table(
        _steps(_NEAR, 4, _MEAN),
        (_STEP, _HERE_R, _MEAN),
        (_STEP, _HERE_Q, _MEAN),
        (_STEP, _LINEAR, _MEAN),
        (_STEP, _NEWEST, _LAST),
        (_STEP, _PAST_R, _NOTHING),
        (_STEP, _PAST_Q, _NOTHING),
        (_LOG, _SPREAD, _NOTHING),
        (_LOG, _APART_R, _NOTHING),
        (_LOG, _APART_Q, _NOTHING),
        (_LOG, _HERE_R, _MEAN),
        (_LOG, _LINEAR, _MEAN),
        (_LOG, _NEWEST, _LAST),
    ),
    (True, True, True): _table(
        _steps(_NEAR, 4, _MEAN),
        (_STEP, _HERE_R, _MEAN),
        (_STEP, _HERE_Q, _MEAN),
        _steps(_NEAR, 4, _NEAR_R, 1),
        (_STEP, _PAST_Q, _NOTHING),
        (_STEP, _LINEAR, _MEAN),
        (_STEP, _HERE_R, _HERE_Q),
        (_STEP, _HERE_G, _HERE_GR),
        (_STEP, _HERE_G, _HERE_GQ),
        (_STEP, _HERE_G, _MEAN_G),
        _steps(_NEAR_G, 4, _NEAR_GR, 1),
        _steps(_CROSS_R, 4, _MEAN),
        (_LOG, _HERE_R, _MEAN),
        (_LOG, _HERE_R, _HERE_Q),
        (_LOG, _SPREAD, _NOTHING),
        (_LOG, _APART_R, _NOTHING),
        (_LOG, _LINEAR, _MEAN),
        (_LOG, _HERE_G, _HERE_GR),
        (_LOG, _HERE_G, _MEAN_G),
        (_LOG, _LINEAR, _HERE_R),
    ),
    (True, True, False): _table(
        _steps(_NEAR, 4, _MEAN),
        (_STEP, _HERE_R, _MEAN),
        (_STEP, _HERE_G, _MEAN_G),
        (_STEP, _LINEAR, _MEAN),
        (_STEP, _NEWEST, _LAST),
        (_STEP, _PAST_R, _NOTHING),
        (_STEP, _HERE_G, _HERE_GR),
        (_LOG, _SPREAD, _NOTHING),
        (_LOG, _APART_R, _NOTHING),
        (_LOG, _HERE_G, _HERE_GR),
        (_LOG, _HERE_R, _MEAN),
        (_LOG, _LINEAR, _MEAN),
        (_LOG, _NEWEST, _LAST),
    ),
}
"""What each channel is: a step or a logarithm, of the difference of two rows."""

_KINDS = {kind: number for number, kind in enumerate(_CHANNELS)}


def first_channels(inter: bool, luma: bool) -> int:
    """Return the channels of a level's first phase; `luma` where the plane is not chroma."""
    return len(_CHANNELS[inter, not luma, True])


@cache
def log_table() -> NDArray[np.int8]:
    """Return floor(10 * log2(1 + i)) for i in 0..4095, int8, read-only."""
    table = np.array([((1 + i) ** 10).bit_length() - 1 for i in range(_TABLE_SIZE)], np.int8)
    table.setflags(write=False)
    return table


@cache
def _wide_log_table() -> Int32:
    """Return `log_table` in a type that vectors gather."""
    return log_table().astype(np.int32)


@cache
def _offsets(phase: int, columns: int) -> Int64:
    """Distances, in bytes, to samples of a bordered plane, as `_AT_NEAR` and so on find them."""
    taps = PHASES[phase]
    groups = taps.near, taps.far, taps.cross, _BEYOND, _HERE, _NEWER[phase]
    flat = [4 * (dy * columns + dx) for group in groups for dy, dx in group]
    return np.array(flat, dtype=np.int64)


def intra(
    plane: Int32, luma: Int32 | None, last: Int32, phase: int, shift: int
) -> tuple[Bytes, Int32]:
    """Return channels and anchors of a phase that is predicted from its own frame.

    Args:
        plane: Bordered planes in quarters, int32 [N, h + 2 * BORDER, w + 2 * BORDER].
        luma: For chroma, luma brought to the same grid, [N / 2, ...]; planes 2n and 2n + 1 belong
            to luma n.
        last: The anchors of the phase before, int32 [N, gh, gw, K]; anything for the first.
        phase: 0, 1, 2 of lattice.PHASES.
        shift: Low bits the channels do not see.

    Returns:
        A grid of N planes of gh x gw positions and int32 [N, gh, gw, INTRA_ANCHORS] with gh, gw =
        ceil(h / 2), ceil(w / 2), also where the phase has no sample.
    """
    return _fill(
        plane, (plane, plane), None if luma is None else (luma,) * 3, None, last, phase, shift
    )


def inter(
    plane: Int32,
    references: tuple[Int32, ...],
    luma: tuple[Int32, ...] | None,
    linear: Int32,
    last: Int32,
    phase: int,
    shift: int,
) -> tuple[Bytes, Int32]:
    """Return channels and anchors of a phase that is also predicted from other frames.

    Args:
        plane: As in `intra`.
        references: The two motion-compensated references, alike.
        luma: For chroma, luma and its two references, as in `intra`.
        linear: The adaptive linear prediction, int32 [N, gh, gw] in anchor units.
        last: As in `intra`.
        phase: As in `intra`.
        shift: As in `intra`.

    Returns:
        As `intra`, with INTER_ANCHORS anchors.
    """
    return _fill(plane, references, luma, linear, last, phase, shift)


def _fill(
    plane: Int32,
    references: tuple[Int32, ...],
    luma: tuple[Int32, ...] | None,
    linear: Int32 | None,
    last: Int32,
    phase: int,
    shift: int,
) -> tuple[Bytes, Int32]:
    width = plane.shape[2]
    inter, chroma, taps = linear is not None, luma is not None, PHASES[phase]
    kind = inter, chroma, phase == 0
    return _fill_rows(
        (plane, *references, *(luma or (plane,) * 3)),
        last if linear is None else linear,
        last,
        INTER_ANCHORS if inter else INTRA_ANCHORS,
        len(_CHANNELS[kind]),
        (BORDER + taps.row) * width + BORDER + taps.column,
        _offsets(phase, width),
        _KINDS[kind],
        shift,
        _wide_log_table(),
    )


@compiled
def _fill_rows(
    planes: tuple[Int32, ...],
    linear: Int32,
    last: Int32,
    components: int,
    octets: int,
    origin: int,
    taps: Int64,
    kind: int,
    shift: int,
    logs: Int32,
) -> tuple[Bytes, Int32]:
    """Find channels, four to a word, and anchors, row by row; see `intra`.

    Args:
        planes: Bordered planes, their references, luma that two of them share, and its references.
        linear: As in `inter`; not read for intra frames.
        last: As in `intra`.
        components: How many anchors there are.
        octets: How many channels.
        origin: Where a bordered plane has the phase's first sample.
        taps: See `_offsets`.
        kind: See `_KINDS`.
        shift: As in `intra`.
        logs: See `log_table`.
    """
    count, height, width = planes[0].shape
    gh, gw = (height - 2 * BORDER + 1) // 2, (width - 2 * BORDER + 1) // 2
    words = octets // 4
    anchors = np.empty((count, gh, gw, components), dtype=np.int32)
    seen = new_grid(count, gh + 2, gw + 2, octets)
    last_step = 4 * last.size // (count * gh * gw)
    p, r, q = (with_room(planes[0], gw), with_room(planes[1], gw), with_room(planes[2], gw))
    g, gr, gq = (with_room(planes[3], gw), with_room(planes[4], gw), with_room(planes[5], gw))
    # Their addresses are used below; this refuses arrays that are not contiguous.
    foretold, before = linear.reshape(-1), last.reshape(-1)
    centers, channels = anchors.reshape(-1), seen.reshape(-1).view(np.uint32)
    narrow = gw < NEIGHBORS
    some_centers = np.empty(NEIGHBORS * components, dtype=np.int32)
    some_channels = np.empty(NEIGHBORS * words, dtype=np.uint32)
    for n in range(count):
        for i in range(gh):
            row = (n * gh + i) * gw
            to = ((n * (gh + 2) + i + 1) * (gw + 2) + 1) * words
            for first in range(0, gw, NEIGHBORS):
                # The last tile overlaps the one before, so that it ends where the row does.
                x = max(min(first, gw - NEIGHBORS), 0)
                at = 4 * ((n * height + 2 * i) * width + origin + 2 * x)
                light = 4 * (((n >> 1) * height + 2 * i) * width + origin + 2 * x)
                if narrow:
                    center = some_centers.ctypes.data
                    channel = some_channels.ctypes.data
                else:
                    center = centers.ctypes.data + 4 * (row + x) * components
                    channel = channels.ctypes.data + 4 * (to + x * words)
                _tile(
                    p.ctypes.data + at,
                    r.ctypes.data + at,
                    q.ctypes.data + at,
                    g.ctypes.data + light,
                    gr.ctypes.data + light,
                    gq.ctypes.data + light,
                    foretold.ctypes.data + 4 * (row + x),
                    before.ctypes.data + (row + x) * last_step,
                    last_step,
                    min(gw, NEIGHBORS) - 1,
                    taps.ctypes.data,
                    logs.ctypes.data,
                    shift,
                    center,
                    channel,
                    kind,
                )  # type: ignore[call-arg]
            if narrow:
                begin, size = row * components, gw * components
                centers[begin : begin + size] = some_centers[:size]
                channels[to : to + gw * words] = some_channels[: gw * words]
    return seen, anchors


class _Tile:
    """Writes the code that finds anchors and channels of NEIGHBORS positions.

    Args:
        values: Addresses in the planes, of linear predictions and of anchors of the phase before,
            with the distance in bytes from position to position after the latter and how many
            positions follow the first; of the tables of distances and of logarithms, and the shift.
    """

    def __init__(self, values: list[Value]) -> None:
        *self._planes, linear, last, step, after, self._taps, self._logs, shift = values
        # Where there are fewer positions the last one is looked at again.
        places = after.spread(NEIGHBORS)
        places = places.constant(list(range(NEIGHBORS))).at_most(places)
        self._linear = linear.spread(NEIGHBORS) + places * 4
        self._last = last.spread(NEIGHBORS) + places * step.spread(NEIGHBORS)
        self._shift = shift.to(INT32).spread(NEIGHBORS)
        self._numbers: dict[int, Value] = {}

    def anchors(self, inter: bool) -> list[Value]:
        """The anchors; see `intra` and `inter`."""
        mean = self.number(_MEAN)
        if not inter:
            a, b, c, d = self._four(_NEAR)
            half = _ANCHOR_SHIFT - 1
            return [mean << _ANCHOR_SHIFT, (a + d) << half, (b + c) << half, mean << _ANCHOR_SHIFT]
        here_r, here_q = self.number(_HERE_R), self.number(_HERE_Q)
        moved_r = here_r + (mean - self.number(_MEAN_R))
        moved_q = here_q + (mean - self.number(_MEAN_Q))
        quarters = (mean, here_r, moved_r, moved_q)
        return [self._linear.gather(INT32), *(value << _ANCHOR_SHIFT for value in quarters)]

    def channels(self, channels: list[_Channel]) -> list[Value]:
        """The channels, four to a word."""
        octets = [
            (self._step if kind == _STEP else self._log)(self.number(a) - self.number(b))
            for kind, a, b in channels
        ]
        return [
            a + (b << 8) + ((c << 16) + (d << 24))
            for a, b, c, d in zip(*(octets[k::4] for k in range(4)), strict=True)
        ]

    def number(self, row: int) -> Value:
        """A row of numbers by its name."""
        if row not in self._numbers:
            self._numbers[row] = self._find(row)
        return self._numbers[row]

    def _find(self, row: int) -> Value:
        for first, (plane, tap, count) in _PICKED.items():
            if first <= row < first + count:
                return self._pick(self._planes[plane], tap + row - first)
        if row in _MEANS:
            return _quarter(self._four(_MEANS[row]))
        if row in _APART:
            first, *others = _APART[row]
            pairs = zip(self._four(first), map(self.number, others), strict=True)
            return _quarter([(a - b).magnitude() for a, b in pairs])
        if row in _PAST:
            pairs = zip(self._four(_NEAR), self._four(_PAST[row]), strict=True)
            return _quarter([a - b for a, b in pairs])
        if row in _EIGHTHS:
            return self.number(_EIGHTHS[row]) >> 3
        if row == _NOTHING:
            return self._shift.constant(0)
        foretold = {_LINEAR: self._linear, _LAST: self._last}[row]
        return foretold.gather(INT32) >> _ANCHOR_SHIFT

    def _four(self, first: int) -> list[Value]:
        return [self.number(first + k) for k in range(4)]

    def _pick(self, plane: Value, tap: int) -> Value:
        """Every second sample of a plane from a tap on."""
        address = plane + (self._taps + 8 * tap).load(INT64)
        # The second load begins one sample earlier, so that nothing behind the last is read.
        first = address.load(_SAMPLES)
        second = (address + 4 * (NEIGHBORS - 1)).load(_SAMPLES)
        evens = [*range(0, NEIGHBORS, 2), *range(NEIGHBORS + 1, 2 * NEIGHBORS, 2)]
        return first.picked(evens, second)

    def _step(self, difference: Value) -> Value:
        """A difference in quarters as a channel, in halves of a sample."""
        half = difference.constant(1) << self._shift
        value = (difference + half) >> (self._shift + 1)
        return value.clamped(-_MOST, _MOST) + ZERO

    def _log(self, difference: Value) -> Value:
        """The logarithm of a difference's magnitude as a channel."""
        value = (difference.magnitude() >> self._shift).clamped(0, _TABLE_SIZE - 1)
        places = self._logs.spread(NEIGHBORS) + value.to(lanes(INT64, NEIGHBORS)) * 4
        return places.gather(INT32) + ZERO


def _quarter(four: list[Value]) -> Value:
    """A quarter of the sum of four numbers, rounded down."""
    a, b, c, d = four
    return (a + b + (c + d)) >> 2


@intrinsic
def _tile(
    typing: Any, plane: Any, ref1: Any, ref2: Any, luma: Any, luma1: Any, luma2: Any, linear: Any,
    last: Any, last_step: Any, after: Any, taps: Any, logs: Any, shift: Any, anchors: Any,
    seen: Any, kind: Any,
) -> Any:  # fmt: skip
    """Find anchors and channels of NEIGHBORS positions; see `_Tile` and `_KINDS`."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        *values, anchors, seen, number = (Value(builder, value) for value in args)
        for kind, channels in _CHANNELS.items():
            with number.equals(_KINDS[kind]):
                tile = _Tile(values)
                found = tile.anchors(kind[0]), tile.channels(channels)
                for start, vectors in zip((anchors, seen), found, strict=True):
                    for n, vector in enumerate(interleaved(vectors)):
                        (start + 4 * NEIGHBORS * n).store(vector)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 16), write
