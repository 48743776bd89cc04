"""What the networks of the video model see of a sample, and the predictions it is anchored on.

For each phase of a level, on the grid of the next level's plane (see `lattice`), an *intra* frame
gives channels and anchors from its own plane, an *inter* frame also from two motion-compensated
references and from an adaptive linear prediction; chroma also from luma.

The numbers that a row of positions is told by are worked out side by side, each a row of its own;
every channel is the difference of two of them, see `_CHANNELS`.

Channels are bytes, a grid of `int8`. Differences to S, the mean of the four nearest known samples,
are in half samples, so that brightness does not matter; magnitudes go through `log_table`. Anchors
are in 1/256 of a sample. `shift` low bits of deeper samples are rounded away from channels, not
from anchors.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from flowarchive import int8
from flowarchive.int8 import ZERO, Bytes
from flowarchive.lattice import BORDER, PHASES
from flowarchive.loops import compiled

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Words = NDArray[np.uint32]

ANCHOR_ONE = 256
"""Anchors are in 1/256 of a sample."""

INTRA_ANCHORS = 4
INTER_ANCHORS = 5

UPDATE_CHANNELS = 16
"""Channels of the second and third phase."""

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
_ROWS = 65

_BEYOND = np.array([(-2, 0), (0, -2), (0, 2), (2, 0)], dtype=np.int64)

_STEP, _LOG = 0, 1
_Channel = tuple[int, int, int]


def _steps(rows: int, count: int, other: int, apart: int = 0) -> list[_Channel]:
    """Channels of differences of `count` rows, to one row or, `apart`, to as many."""
    return [(_STEP, rows + k, other + k * apart) for k in range(count)]


def _table(*channels: _Channel | list[_Channel]) -> Int64:
    flat = [c for some in channels for c in (some if isinstance(some, list) else [some])]
    return np.array(flat, dtype=np.int64)


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
    """Flat distances of the near 4, far 8, cross 4 and beyond 4 samples in a bordered plane."""
    taps = PHASES[phase]
    groups = taps.near, taps.far, taps.cross, _BEYOND.tolist()
    flat = [dy * columns + dx for group in groups for dy, dx in group]
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
    count, height, width = plane.shape
    inter, taps = linear is not None, PHASES[phase]
    channels = _CHANNELS[inter, luma is not None, phase == 0]
    gh, gw = (height - 2 * BORDER + 1) // 2, (width - 2 * BORDER + 1) // 2
    anchors = np.empty((count, gh, gw, INTER_ANCHORS if inter else INTRA_ANCHORS), dtype=np.int32)
    seen = int8.grid(count, gh, gw, len(channels))
    p, r, q, g, gr, gq = (
        array.reshape(-1) for array in (plane, *references, *(luma or (plane,) * 3))
    )
    _fill_rows(
        p,
        r,
        q,
        g,
        gr,
        gq,
        (last if linear is None else linear).reshape(-1),
        last.reshape(-1),
        anchors.reshape(-1),
        seen.view(np.uint32).reshape(-1),
        (count, gh, gw),
        (height, width),
        (inter, luma is not None, phase, shift),
        (BORDER + taps.row) * width + BORDER + taps.column,
        _offsets(phase, width),
        channels,
        _wide_log_table(),
        np.empty(_ROWS * gw, dtype=np.int32),
        np.empty(len(channels) * gw, dtype=np.uint8),
        np.empty(gw, dtype=np.uint32),
    )
    return seen, anchors


@compiled
def _fill_rows(
    p: Int32,
    r: Int32,
    q: Int32,
    g: Int32,
    gr: Int32,
    gq: Int32,
    linear: Int32,
    last: Int32,
    anchors: Int32,
    seen: Words,
    shape: tuple[int, int, int],
    plane_shape: tuple[int, int],
    kind: tuple[bool, bool, int, int],
    origin: int,
    taps: Int64,
    channels: Int64,
    logs: Int32,
    rows: Int32,
    octets: Bytes,
    words: Words,
) -> None:
    """Fill anchors and channels, four to a word, row by row; all arrays are flat.

    Args:
        p: Bordered planes.
        r: Their first references.
        q: Their second ones.
        g: Luma; two planes share it.
        gr: Its first reference.
        gq: Its second one.
        linear: As in `inter`; not read for intra frames.
        last: As in `intra`.
        anchors: [N, gh, gw, K].
        seen: [N, gh + 2, gw + 2, channels / 4].
        shape: N, gh, gw.
        plane_shape: Of a bordered plane.
        kind: Whether there are references, whether there is luma; phase and shift, as in `intra`.
        origin: Where a bordered plane has the phase's first sample.
        taps: See `_offsets`.
        channels: See `_CHANNELS`.
        logs: See `log_table`.
        rows: Scratch, [_ROWS * gw].
        octets: Scratch, [channels * gw].
        words: Scratch, [gw].
    """
    count, gh, gw = shape
    height, width = plane_shape
    inter, chroma, phase, shift = kind
    last_step = last.size // (count * gh * gw)
    rows[_NOTHING * gw : (_NOTHING + 1) * gw] = 0
    for n in range(count):
        for i in range(gh):
            at = (n * height + 2 * i) * width + origin
            first = (n * gh + i) * gw
            for k in range(4):
                _pick(rows, _NEAR + k, p, at + taps[k], gw)
            _mean(rows, _MEAN, _NEAR, gw)
            _apart(rows, _SPREAD, _NEAR, _MEAN, 0, gw)
            if phase == 0:
                _move(rows, _EIGHTH, rows, _MEAN * gw, 1, 3, gw)
            else:
                # The newest sample on this grid position: d for c, c for b.
                _pick(rows, _NEWEST, p, at + (1 if phase == 1 else width - 1), gw)
                _move(rows, _LAST, last, first * last_step, last_step, _ANCHOR_SHIFT, gw)
            if inter:
                for k in range(4):
                    _pick(rows, _NEAR_R + k, r, at + taps[k], gw)
                    _pick(rows, _NEAR_Q + k, q, at + taps[k], gw)
                    if phase == 0:
                        _pick(rows, _CROSS_R + k, r, at + taps[12 + k], gw)
                        _pick(rows, _CROSS_Q + k, q, at + taps[12 + k], gw)
                _pick(rows, _HERE_R, r, at, gw)
                _pick(rows, _HERE_Q, q, at, gw)
                _mean(rows, _MEAN_R, _NEAR_R, gw)
                _mean(rows, _MEAN_Q, _NEAR_Q, gw)
                _apart(rows, _APART_R, _NEAR, _NEAR_R, 1, gw)
                _apart(rows, _APART_Q, _NEAR, _NEAR_Q, 1, gw)
                _past(rows, _PAST_R, _NEAR, _NEAR_R, gw)
                _past(rows, _PAST_Q, _NEAR, _NEAR_Q, gw)
                _move(rows, _LINEAR, linear, first, 1, _ANCHOR_SHIFT, gw)
                _anchor_inter(anchors, first, rows, linear, gw)
            else:
                for k in range(8):
                    _pick(rows, _FAR + k, p, at + taps[4 + k], gw)
                _anchor_intra(anchors, first, rows, gw)
            if chroma:
                at = ((n >> 1) * height + 2 * i) * width + origin
                for k in range(4):
                    _pick(rows, _NEAR_G + k, g, at + taps[k], gw)
                    if inter:
                        _pick(rows, _NEAR_GR + k, gr, at + taps[k], gw)
                    elif phase == 0:
                        _pick(rows, _CROSS_G + k, g, at + taps[12 + k], gw)
                        _pick(rows, _BEYOND_G + k, g, at + taps[16 + k], gw)
                _pick(rows, _HERE_G, g, at, gw)
                _mean(rows, _MEAN_G, _NEAR_G, gw)
                if inter:
                    _pick(rows, _HERE_GR, gr, at, gw)
                    _pick(rows, _HERE_GQ, gq, at, gw)
                elif phase == 0:
                    _apart(rows, _APART_G, _NEAR_G, _HERE_G, 0, gw)
                    _move(rows, _EIGHTH_G, rows, _HERE_G * gw, 1, 3, gw)
            for c in range(channels.shape[0]):
                a, b = channels[c, 1] * gw, channels[c, 2] * gw
                if channels[c, 0] == _STEP:
                    _step(octets, c * gw, rows, a, b, shift, gw)
                else:
                    _log(octets, c * gw, rows, a, b, shift, logs, gw)
            to = ((n * (gh + 2) + i + 1) * (gw + 2) + 1) * (channels.shape[0] // 4)
            for c in range(0, channels.shape[0], 4):
                _join(seen, to + c // 4, channels.shape[0] // 4, octets, c * gw, words, gw)


# Flat arrays are indexed by uint64, so that no index is tested for being negative, and sums are
# int32, so that vectors hold twice as many.
_TWO, _EIGHT = np.uint64(2), np.uint32(8)


@compiled
def _pick(rows: Int32, row: int, plane: Int32, at: int, count: int) -> None:
    """Copy plane[at], plane[at + 2] ... to a row."""
    to, begin = np.uint64(row * count), np.uint64(at)
    for x in range(np.uint64(count)):
        rows[to + x] = plane[begin + _TWO * x]


@compiled
def _move(rows: Int32, row: int, values: Int32, at: int, step: int, bits: int, count: int) -> None:
    """Shift values[at], values[at + step] ... right into a row."""
    to, begin, by = np.uint64(row * count), np.uint64(at), np.uint64(step)
    for x in range(np.uint64(count)):
        rows[to + x] = values[begin + by * x] >> np.int32(bits)


@compiled
def _mean(rows: Int32, row: int, first: int, count: int) -> None:
    """Write the mean of four rows to a row, rounded down."""
    to, width, a = np.uint64(row * count), np.uint64(count), np.uint64(first * count)
    b, c, d = a + width, a + width + width, a + width + width + width
    for x in range(width):
        total = np.int32(rows[a + x] + rows[b + x]) + np.int32(rows[c + x] + rows[d + x])
        rows[to + x] = np.int32(total) >> np.int32(2)


@compiled
def _apart(rows: Int32, row: int, first: int, other: int, step: int, count: int) -> None:
    """Write the mean distance of four rows to another, or with a step of 1 to as many."""
    to, width = np.uint64(row * count), np.uint64(count)
    for x in range(width):
        rows[to + x] = 0
    for k in range(4):
        a, b = np.uint64((first + k) * count), np.uint64((other + step * k) * count)
        for x in range(width):
            rows[to + x] += abs(np.int32(rows[a + x] - rows[b + x]))
    for x in range(width):
        rows[to + x] >>= np.int32(2)


@compiled
def _past(rows: Int32, row: int, first: int, other: int, count: int) -> None:
    """Write the mean difference of four rows to four others, rounded down."""
    to, width = np.uint64(row * count), np.uint64(count)
    for x in range(width):
        rows[to + x] = 0
    for k in range(4):
        a, b = np.uint64((first + k) * count), np.uint64((other + k) * count)
        for x in range(width):
            rows[to + x] += np.int32(rows[a + x] - rows[b + x])
    for x in range(width):
        rows[to + x] >>= np.int32(2)


@compiled
def _anchor_intra(anchors: Int32, first: int, rows: Int32, count: int) -> None:
    """Write the anchors of a row of positions; see `intra`."""
    for x in range(count):
        to = np.uint64((first + x) * INTRA_ANCHORS)
        mean = rows[np.uint64(_MEAN * count + x)] << _ANCHOR_SHIFT
        near = np.uint64(_NEAR * count + x)
        wide = np.uint64(count)
        outer = rows[near] + rows[near + wide + wide + wide]
        inner = rows[near + wide] + rows[near + wide + wide]
        anchors[to] = mean
        anchors[to + np.uint64(1)] = outer << (_ANCHOR_SHIFT - 1)
        anchors[to + np.uint64(2)] = inner << (_ANCHOR_SHIFT - 1)
        anchors[to + np.uint64(3)] = mean


@compiled
def _anchor_inter(anchors: Int32, first: int, rows: Int32, linear: Int32, count: int) -> None:
    """Write the anchors of a row of positions; see `inter`."""
    for x in range(count):
        to = np.uint64((first + x) * INTER_ANCHORS)
        mean = rows[np.uint64(_MEAN * count + x)]
        here_r, here_q = rows[np.uint64(_HERE_R * count + x)], rows[np.uint64(_HERE_Q * count + x)]
        change_r = mean - rows[np.uint64(_MEAN_R * count + x)]
        change_q = mean - rows[np.uint64(_MEAN_Q * count + x)]
        anchors[to] = linear[np.uint64(first + x)]
        anchors[to + np.uint64(1)] = mean << _ANCHOR_SHIFT
        anchors[to + np.uint64(2)] = here_r << _ANCHOR_SHIFT
        anchors[to + np.uint64(3)] = (here_r + change_r) << _ANCHOR_SHIFT
        anchors[to + np.uint64(4)] = (here_q + change_q) << _ANCHOR_SHIFT


@compiled
def _step(out: Bytes, to: int, rows: Int32, first: int, other: int, shift: int, count: int) -> None:
    """Write the difference of two rows, in quarters, as a channel, in halves of a sample."""
    begin, a, b = np.uint64(to), np.uint64(first), np.uint64(other)
    half, down = np.int32((1 << (shift + 1)) >> 1), np.int32(shift + 1)
    for x in range(np.uint64(count)):
        value = np.int32(np.int32(rows[a + x] - rows[b + x]) + half) >> down
        value = min(max(np.int32(value), np.int32(-_MOST)), np.int32(_MOST))
        out[begin + x] = np.uint8(value + np.int32(ZERO))


@compiled
def _log(
    out: Bytes, to: int, rows: Int32, first: int, other: int, shift: int, table: Int32, count: int
) -> None:
    """Write the logarithm of the distance of two rows, in quarters, as a channel."""
    begin, a, b = np.uint64(to), np.uint64(first), np.uint64(other)
    for x in range(np.uint64(count)):
        value = abs(np.int32(rows[a + x] - rows[b + x])) >> np.int32(shift)
        out[begin + x] = table[np.uint64(min(value, np.int32(_TABLE_SIZE - 1)))] + ZERO


@compiled
def _join(
    out: Words, to: int, step: int, octets: Bytes, first: int, words: Words, count: int
) -> None:
    """Put four channels side by side: a word to each position."""
    width, a = np.uint64(count), np.uint64(first)
    b, c, d = a + width, a + width + width, a + width + width + width
    for x in range(width):
        low = np.uint32(octets[a + x]) | (np.uint32(octets[b + x]) << _EIGHT)
        high = np.uint32(octets[c + x]) | (np.uint32(octets[d + x]) << _EIGHT)
        words[x] = np.uint32(low) | (np.uint32(high) << (_EIGHT + _EIGHT))
    begin, by = np.uint64(to), np.uint64(step)
    for x in range(width):
        out[begin + by * x] = words[x]
