"""What the networks of the video model see of a sample, and the predictions it is anchored on.

For each phase of a level, on the grid of the next level's plane (see `lattice`), an *intra* frame
gives channels and anchors from its own plane, an *inter* frame also from two motion-compensated
references and from an adaptive linear prediction; chroma also from luma.

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
from flowarchive.ans import compiled
from flowarchive.int8 import ZERO, Bytes
from flowarchive.lattice import BORDER, PHASES

Int8 = NDArray[np.int8]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

ANCHOR_ONE = 256
"""Anchors are in 1/256 of a sample."""

INTRA_ANCHORS = 4
INTER_ANCHORS = 5

UPDATE_CHANNELS = 16
"""Channels of the second and third phase."""

_MOST = 127
_ANCHOR_SHIFT = 6  # from quarters of a sample to anchors
_TABLE_SIZE = 4096


def first_channels(inter: bool, luma: bool) -> int:
    """Return the channels of a level's first phase; `luma` where the plane is not chroma."""
    return 16 if luma and not inter else 32


@cache
def log_table() -> Int8:
    """Return floor(10 * log2(1 + i)) for i in 0..4095, int8, read-only."""
    table = np.array([((1 + i) ** 10).bit_length() - 1 for i in range(_TABLE_SIZE)], dtype=np.int8)
    table.setflags(write=False)
    return table


@cache
def _offsets(phase: int, columns: int) -> tuple[Int64, Int64, Int64]:
    """Flat distances of the near, far and cross samples in a bordered plane `columns` wide."""
    taps = PHASES[phase]
    near, far, cross = (
        np.array([dy * columns + dx for dy, dx in group], dtype=np.int64)
        for group in (taps.near, taps.far, taps.cross)
    )
    return near, far, cross


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
    _, rows, columns = plane.shape
    seen, anchors = _room(plane, phase, first_channels(False, luma is None), INTRA_ANCHORS)
    _intra(
        plane.reshape(-1, rows * columns),
        (plane if luma is None else luma).reshape(-1, rows * columns),
        last,
        *_geometry(phase, columns),
        luma is not None,
        shift,
        log_table(),
        seen,
        anchors,
    )
    return seen, anchors


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
    _, rows, columns = plane.shape
    seen, anchors = _room(plane, phase, first_channels(True, luma is None), INTER_ANCHORS)
    p, r, q = (x.reshape(-1, rows * columns) for x in (plane, *references))
    g, gr, gq = (x.reshape(-1, rows * columns) for x in luma or (plane, *references))
    _inter(
        p,
        r,
        q,
        g,
        gr,
        gq,
        linear,
        last,
        *_geometry(phase, columns),
        luma is not None,
        shift,
        log_table(),
        seen,
        anchors,
    )
    return seen, anchors


def _room(plane: Int32, phase: int, first: int, anchors: int) -> tuple[Bytes, Int32]:
    """Empty channels and anchors on the phase's grid; `first` channels in the first phase."""
    count, rows, columns = plane.shape
    shape = count, (rows - 2 * BORDER + 1) // 2, (columns - 2 * BORDER + 1) // 2
    seen = int8.grid(*shape, UPDATE_CHANNELS if phase else first)
    return seen, np.empty((*shape, anchors), dtype=np.int32)


def _geometry(phase: int, columns: int) -> tuple[int, int, int, Int64, Int64, Int64, int]:
    """What both loops ask of a phase in a bordered plane `columns` wide."""
    taps = PHASES[phase]
    return phase, taps.row, taps.column, *_offsets(phase, columns), columns


@compiled
def _difference(value: np.int64, shift: int) -> np.int64:
    """A difference in quarters as a channel, in halves of a sample."""
    half = (value + ((1 << (shift + 1)) >> 1)) >> (shift + 1)
    return min(max(half, np.int64(-_MOST)), np.int64(_MOST)) + ZERO


@compiled
def _log(value: np.int64, shift: int, table: Int8) -> np.int64:
    """A magnitude in quarters as a channel."""
    return np.int64(table[min(abs(value) >> shift, np.int64(_TABLE_SIZE - 1))]) + ZERO


@compiled
def _intra(
    planes: Int32,
    lumas: Int32,
    last: Int32,
    phase: int,
    row: int,
    column: int,
    near: Int64,
    far: Int64,
    cross: Int64,
    columns: int,
    chroma: bool,
    shift: int,
    table: Int8,
    seen: Bytes,
    anchors: Int32,
) -> None:
    count, gh, gw, _ = anchors.shape
    channels, out = seen.shape[3], seen.reshape(-1)
    for n in range(count):
        p = planes[n]
        g = lumas[n >> 1] if chroma else lumas[n]
        for i in range(gh):
            for j in range(gw):
                to = (((n * (gh + 2) + i + 1) * (gw + 2)) + j + 1) * channels
                at = (BORDER + 2 * i + row) * columns + BORDER + 2 * j + column
                x0, x1, x2, x3 = (
                    np.int64(p[at + near[0]]),
                    np.int64(p[at + near[1]]),
                    np.int64(p[at + near[2]]),
                    np.int64(p[at + near[3]]),
                )
                mean = (x0 + x1 + x2 + x3) >> 2
                spread = (abs(x0 - mean) + abs(x1 - mean) + abs(x2 - mean) + abs(x3 - mean)) >> 2
                anchors[n, i, j, 0] = mean << _ANCHOR_SHIFT
                anchors[n, i, j, 1] = (x0 + x3) << (_ANCHOR_SHIFT - 1)
                anchors[n, i, j, 2] = (x1 + x2) << (_ANCHOR_SHIFT - 1)
                anchors[n, i, j, 3] = mean << _ANCHOR_SHIFT
                out[to + 0] = _difference(x0 - mean, shift)
                out[to + 1] = _difference(x1 - mean, shift)
                out[to + 2] = _difference(x2 - mean, shift)
                out[to + 3] = _difference(x3 - mean, shift)
                if phase == 0:
                    for k in range(8):
                        out[to + 4 + k] = _difference(p[at + far[k]] - mean, shift)
                    out[to + 12] = _log(spread, shift, table)
                    out[to + 13] = _log(x0 - x3, shift, table)
                    out[to + 14] = _log(x1 - x2, shift, table)
                    out[to + 15] = _difference(mean >> 3, shift)
                    if chroma:
                        here = np.int64(g[at])
                        total = np.int64(0)
                        slope = np.int64(0)
                        for k in range(4):
                            difference = g[at + near[k]] - here
                            total += difference
                            slope += abs(difference)
                            out[to + 17 + k] = _difference(difference, shift)
                            out[to + 21 + k] = _difference(g[at + cross[k]] - here, shift)
                        out[to + 16] = _difference(-(total >> 2), shift)
                        out[to + 25] = _log(total >> 2, shift, table)
                        out[to + 26] = _log(slope >> 2, shift, table)
                        out[to + 27] = _difference(here >> 3, shift)
                        out[to + 28] = _difference(g[at - 2 * columns] - here, shift)
                        out[to + 29] = _difference(g[at - 2] - here, shift)
                        out[to + 30] = _difference(g[at + 2] - here, shift)
                        out[to + 31] = _difference(g[at + 2 * columns] - here, shift)
                    continue
                # The newest sample on this grid position: d for c, c for b.
                newest = at + 1 if phase == 1 else at + columns - 1
                new = np.int64(p[newest]) - (last[n, i, j, 0] >> _ANCHOR_SHIFT)
                if chroma:
                    here = np.int64(g[at])
                    total = np.int64(0)
                    for k in range(4):
                        difference = g[at + near[k]] - here
                        total += difference
                        out[to + 4 + k] = _difference(p[at + far[k]] - mean, shift)
                        out[to + 10 + k] = _difference(difference, shift)
                    out[to + 8] = _difference(new, shift)
                    out[to + 9] = _difference(-(total >> 2), shift)
                    out[to + 14] = _log(spread, shift, table)
                    out[to + 15] = _log(total >> 2, shift, table)
                else:
                    for k in range(8):
                        out[to + 4 + k] = _difference(p[at + far[k]] - mean, shift)
                    out[to + 12] = _difference(new, shift)
                    out[to + 13] = _log(spread, shift, table)
                    out[to + 14] = _log(x0 - x3, shift, table)
                    out[to + 15] = _log(x1 - x2, shift, table)


@compiled
def _inter(
    planes: Int32,
    firsts: Int32,
    seconds: Int32,
    lumas: Int32,
    luma_firsts: Int32,
    luma_seconds: Int32,
    linear: Int32,
    last: Int32,
    phase: int,
    row: int,
    column: int,
    near: Int64,
    far: Int64,
    cross: Int64,
    columns: int,
    chroma: bool,
    shift: int,
    table: Int8,
    seen: Bytes,
    anchors: Int32,
) -> None:
    count, gh, gw, _ = anchors.shape
    channels, out = seen.shape[3], seen.reshape(-1)
    for n in range(count):
        p, r, q = planes[n], firsts[n], seconds[n]
        m = n >> 1 if chroma else n
        g, gr, gq = lumas[m], luma_firsts[m], luma_seconds[m]
        for i in range(gh):
            for j in range(gw):
                to = (((n * (gh + 2) + i + 1) * (gw + 2)) + j + 1) * channels
                at = (BORDER + 2 * i + row) * columns + BORDER + 2 * j + column
                total = np.int64(0)
                total_r = np.int64(0)
                total_q = np.int64(0)
                apart_r = np.int64(0)
                apart_q = np.int64(0)
                for k in range(4):
                    x = np.int64(p[at + near[k]])
                    xr = np.int64(r[at + near[k]])
                    xq = np.int64(q[at + near[k]])
                    total += x
                    total_r += xr
                    total_q += xq
                    apart_r += abs(x - xr)
                    apart_q += abs(x - xq)
                mean = total >> 2
                spread = np.int64(0)
                for k in range(4):
                    difference = p[at + near[k]] - mean
                    spread += abs(difference)
                    out[to + k] = _difference(difference, shift)
                spread >>= 2
                here_r = np.int64(r[at])
                here_q = np.int64(q[at])
                anchor = np.int64(linear[n, i, j])
                prediction = anchor >> _ANCHOR_SHIFT
                anchors[n, i, j, 0] = anchor
                anchors[n, i, j, 1] = mean << _ANCHOR_SHIFT
                anchors[n, i, j, 2] = here_r << _ANCHOR_SHIFT
                anchors[n, i, j, 3] = (here_r + mean - (total_r >> 2)) << _ANCHOR_SHIFT
                anchors[n, i, j, 4] = (here_q + mean - (total_q >> 2)) << _ANCHOR_SHIFT
                step_r = here_r - mean
                step_q = here_q - mean
                step_a = prediction - mean
                out[to + 4] = _difference(step_r, shift)
                light = np.int64(0)
                light_q = np.int64(0)
                detail = np.int64(0)
                if chroma:
                    light = np.int64(g[at]) - gr[at]
                    light_q = np.int64(g[at]) - gq[at]
                    for k in range(4):
                        detail += g[at + near[k]]
                    detail = g[at] - (detail >> 2)
                if phase == 0:
                    out[to + 5] = _difference(step_q, shift)
                    for k in range(4):
                        x = np.int64(p[at + near[k]])
                        out[to + 6 + k] = _difference(x - r[at + near[k]], shift)
                    if chroma:
                        out[to + 10] = _difference((total - total_q) >> 2, shift)
                        out[to + 11] = _difference(step_a, shift)
                        out[to + 12] = _difference(here_r - here_q, shift)
                        out[to + 13] = _difference(light, shift)
                        out[to + 14] = _difference(light_q, shift)
                        out[to + 15] = _difference(detail, shift)
                        for k in range(4):
                            beside = at + near[k]
                            out[to + 16 + k] = _difference(np.int64(g[beside]) - gr[beside], shift)
                            out[to + 20 + k] = _difference(r[at + cross[k]] - mean, shift)
                        out[to + 29] = _log(light, shift, table)
                        out[to + 30] = _log(detail, shift, table)
                        out[to + 28] = _log(step_a, shift, table)
                        out[to + 31] = _log(prediction - here_r, shift, table)
                    else:
                        for k in range(4):
                            x = np.int64(p[at + near[k]])
                            out[to + 10 + k] = _difference(x - q[at + near[k]], shift)
                            out[to + 14 + k] = _difference(r[at + cross[k]] - mean, shift)
                            out[to + 18 + k] = _difference(q[at + cross[k]] - mean, shift)
                        out[to + 22] = _difference(step_a, shift)
                        out[to + 23] = _difference(here_r - here_q, shift)
                        out[to + 28] = _log(apart_q >> 2, shift, table)
                        out[to + 29] = _log(step_a, shift, table)
                        out[to + 30] = _log(prediction - here_r, shift, table)
                        out[to + 31] = _difference(mean >> 3, shift)
                    out[to + 24] = _log(step_r, shift, table)
                    out[to + 25] = _log(here_r - here_q, shift, table)
                    out[to + 26] = _log(spread, shift, table)
                    out[to + 27] = _log(apart_r >> 2, shift, table)
                    continue
                newest = at + 1 if phase == 1 else at + columns - 1
                new = np.int64(p[newest]) - (last[n, i, j, 0] >> _ANCHOR_SHIFT)
                out[to + 6] = _difference(step_a, shift)
                out[to + 7] = _difference(new, shift)
                out[to + 8] = _difference((total - total_r) >> 2, shift)
                out[to + 10] = _log(spread, shift, table)
                out[to + 11] = _log(apart_r >> 2, shift, table)
                out[to + 13] = _log(step_r, shift, table)
                out[to + 14] = _log(step_a, shift, table)
                out[to + 15] = _log(new, shift, table)
                if chroma:
                    out[to + 5] = _difference(detail, shift)
                    out[to + 9] = _difference(light, shift)
                    out[to + 12] = _log(light, shift, table)
                else:
                    out[to + 5] = _difference(step_q, shift)
                    out[to + 9] = _difference((total - total_q) >> 2, shift)
                    out[to + 12] = _log(apart_q >> 2, shift, table)
