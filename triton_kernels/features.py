"""Channels and anchors of a phase: what networks see of a sample, and what it is anchored on.

Every position of a level's grid works for itself, from whole planes where they lie; see `lattice`.
Channels go, as int8 and side by side, to where the network's first layer reads them. Differences
are in half samples and magnitudes go through a table of logarithms, as the format has them; sums
of four quarters of 17 bits, and anchors, stay below 2**28.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.checks import EXACT, check, check_pixels
from triton_kernels.lattice import (
    TAPS,
    check_level,
    check_storage,
    grid_shape,
    plane_of,
    sample,
)

BLOCK = 128
TABLE_SIZE = 4096
INTRA_ANCHORS, INTER_ANCHORS = 4, 5
MAX_SHIFT = 8

_MOST = tl.constexpr(127)
_TABLE_END = tl.constexpr(4095)
_ANCHOR_BITS = tl.constexpr(6)  # from quarters of a sample to anchors
_FAR, _CROSS = tl.constexpr(4), tl.constexpr(12)


class Tables(NamedTuple):
    """What the format has frozen.

    Attributes:
        taps: int32 [3, 16, 2]: (dy, dx) of each phase's near, far and cross samples, 4 + 8 + 4.
        logs: int8 [4096].
    """

    taps: Tensor
    logs: Tensor


def tables(logs: Tensor, device: torch.device) -> Tables:
    """Send what the format has frozen to a device.

    Args:
        logs: int8 [4096], floor(10 * log2(1 + i)).
        device: Where it is looked up.
    """
    taps = torch.tensor(TAPS, dtype=torch.int32)
    return Tables(taps.to(device), check("logs", logs, torch.int8, [TABLE_SIZE]).to(device))


class Around(NamedTuple):
    """What planes are predicted from beside themselves, int32 in quarters.

    Attributes:
        first: The last frame, compensated, [N, H, W]; None for intra frames.
        second: The one before, or the first again.
        light: For chroma, luma on the same grid, [N / 2, H, W]; None for others.
        light_first: Luma of `first`; None for intra frames.
        light_second: Luma of `second`.
    """

    first: Tensor | None = None
    second: Tensor | None = None
    light: Tensor | None = None
    light_first: Tensor | None = None
    light_second: Tensor | None = None


@triton.jit
def difference(value, shift):
    """A difference in quarters as a channel, in halves of a sample."""
    half = (value + ((1 << (shift + 1)) >> 1)) >> (shift + 1)
    return tl.minimum(tl.maximum(half, -_MOST), _MOST)


@triton.jit
def logarithm(value, shift, logs, known):
    """A magnitude in quarters as a channel."""
    return tl.load(logs + tl.minimum(tl.abs(value) >> shift, _TABLE_END), known, other=0)


@triton.jit
def tap(taps, k):
    """Rows and columns from a sample to one around it."""
    return tl.load(taps + 2 * k), tl.load(taps + 2 * k + 1)


@triton.jit
def position(level, height, width, PHASE: tl.constexpr, BLOCK: tl.constexpr):
    """Which positions of a phase's grid a program has, and where on the level's plane they are."""
    h = (height + (1 << level) - 1) >> level
    w = (width + (1 << level) - 1) >> level
    columns = (w + 1) >> 1
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    known = at < ((h + 1) >> 1) * columns
    y = 2 * (at // columns) + (PHASE != 2)
    x = 2 * (at % columns) + (PHASE != 1)
    return at, known, y, x, ((h + 1) >> 1) * columns


@triton.jit
def newest(p, last, at, y, x, level, height, width, known, K: tl.constexpr, PHASE: tl.constexpr):
    """How far the newest sample of a position is from its first anchor."""
    there = sample(p, y + (PHASE == 2), x + 1 - 2 * (PHASE == 2), level, height, width, known)
    return 4 * there - (tl.load(last + at * K, known, other=0) >> _ANCHOR_BITS)


@triton.jit
def emit(out, channel, value, known):
    """Store one channel."""
    tl.store(out + channel, value.to(tl.int8), known)


@triton.jit
def intra_kernel(
    planes, place, light, last, taps, logs, seen, anchors, pitch, height, width, level, shift,
    PHASE: tl.constexpr, CHROMA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program makes channels and anchors of BLOCK positions of a plane; see `intra`."""
    i_n = tl.program_id(1).to(tl.int64)
    at, known, y, x, count = position(level, height, width, PHASE, BLOCK)
    p = plane_of(planes, place, i_n, height, width)
    g = light + (i_n >> 1) * height * width
    taps += PHASE * 32
    out = seen + (i_n * count + at) * pitch
    to = anchors + (i_n * count + at) * 4
    dy, dx = tap(taps, 0)
    x0 = 4 * sample(p, y + dy, x + dx, level, height, width, known)
    dy, dx = tap(taps, 1)
    x1 = 4 * sample(p, y + dy, x + dx, level, height, width, known)
    dy, dx = tap(taps, 2)
    x2 = 4 * sample(p, y + dy, x + dx, level, height, width, known)
    dy, dx = tap(taps, 3)
    x3 = 4 * sample(p, y + dy, x + dx, level, height, width, known)
    mean = (x0 + x1 + x2 + x3) >> 2
    spread = (tl.abs(x0 - mean) + tl.abs(x1 - mean) + tl.abs(x2 - mean) + tl.abs(x3 - mean)) >> 2
    tl.store(to, mean << _ANCHOR_BITS, known)
    tl.store(to + 1, (x0 + x3) << (_ANCHOR_BITS - 1), known)
    tl.store(to + 2, (x1 + x2) << (_ANCHOR_BITS - 1), known)
    tl.store(to + 3, mean << _ANCHOR_BITS, known)
    emit(out, 0, difference(x0 - mean, shift), known)
    emit(out, 1, difference(x1 - mean, shift), known)
    emit(out, 2, difference(x2 - mean, shift), known)
    emit(out, 3, difference(x3 - mean, shift), known)
    far: tl.constexpr = 4 if CHROMA and PHASE > 0 else 8
    for k in tl.static_range(far):
        dy, dx = tap(taps, _FAR + k)
        value = 4 * sample(p, y + dy, x + dx, level, height, width, known) - mean
        emit(out, 4 + k, difference(value, shift), known)
    if CHROMA:
        here = sample(g, y, x, level, height, width, known)
        total = tl.zeros((BLOCK,), dtype=tl.int32)
        slope = tl.zeros((BLOCK,), dtype=tl.int32)
        for k in tl.static_range(4):
            dy, dx = tap(taps, k)
            apart = sample(g, y + dy, x + dx, level, height, width, known) - here
            total += apart
            slope += tl.abs(apart)
            emit(out, (10 if PHASE > 0 else 17) + k, difference(apart, shift), known)
    if PHASE == 0:
        emit(out, 12, logarithm(spread, shift, logs, known), known)
        emit(out, 13, logarithm(x0 - x3, shift, logs, known), known)
        emit(out, 14, logarithm(x1 - x2, shift, logs, known), known)
        emit(out, 15, difference(mean >> 3, shift), known)
        if CHROMA:
            for k in tl.static_range(4):
                dy, dx = tap(taps, _CROSS + k)
                apart = sample(g, y + dy, x + dx, level, height, width, known) - here
                emit(out, 21 + k, difference(apart, shift), known)
            emit(out, 16, difference(-(total >> 2), shift), known)
            emit(out, 25, logarithm(total >> 2, shift, logs, known), known)
            emit(out, 26, logarithm(slope >> 2, shift, logs, known), known)
            emit(out, 27, difference(here >> 3, shift), known)
            up = sample(g, y - 2, x, level, height, width, known) - here
            left = sample(g, y, x - 2, level, height, width, known) - here
            right = sample(g, y, x + 2, level, height, width, known) - here
            down = sample(g, y + 2, x, level, height, width, known) - here
            emit(out, 28, difference(up, shift), known)
            emit(out, 29, difference(left, shift), known)
            emit(out, 30, difference(right, shift), known)
            emit(out, 31, difference(down, shift), known)
    else:
        before = last + i_n * count * 4
        new = newest(p, before, at, y, x, level, height, width, known, 4, PHASE)
        if CHROMA:
            emit(out, 8, difference(new, shift), known)
            emit(out, 9, difference(-(total >> 2), shift), known)
            emit(out, 14, logarithm(spread, shift, logs, known), known)
            emit(out, 15, logarithm(total >> 2, shift, logs, known), known)
        else:
            emit(out, 12, difference(new, shift), known)
            emit(out, 13, logarithm(spread, shift, logs, known), known)
            emit(out, 14, logarithm(x0 - x3, shift, logs, known), known)
            emit(out, 15, logarithm(x1 - x2, shift, logs, known), known)


@triton.jit
def inter_kernel(
    planes, place, first, second, light, light_first, light_second, linear, last, taps, logs, seen,
    anchors, pitch, height, width, level, shift,
    PHASE: tl.constexpr, CHROMA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program makes channels and anchors of BLOCK positions of a plane; see `inter`."""
    i_n = tl.program_id(1).to(tl.int64)
    at, known, y, x, count = position(level, height, width, PHASE, BLOCK)
    p = plane_of(planes, place, i_n, height, width)
    r = first + i_n * height * width
    q = second + i_n * height * width
    folded = (i_n >> 1) * height * width
    g, gr, gq = light + folded, light_first + folded, light_second + folded
    taps += PHASE * 32
    out = seen + (i_n * count + at) * pitch
    to = anchors + (i_n * count + at) * 5
    total = tl.zeros((BLOCK,), dtype=tl.int32)
    total_r = tl.zeros((BLOCK,), dtype=tl.int32)
    total_q = tl.zeros((BLOCK,), dtype=tl.int32)
    apart_r = tl.zeros((BLOCK,), dtype=tl.int32)
    apart_q = tl.zeros((BLOCK,), dtype=tl.int32)
    detail = tl.zeros((BLOCK,), dtype=tl.int32)
    for k in tl.static_range(4):
        dy, dx = tap(taps, k)
        value = 4 * sample(p, y + dy, x + dx, level, height, width, known)
        value_r = sample(r, y + dy, x + dx, level, height, width, known)
        value_q = sample(q, y + dy, x + dx, level, height, width, known)
        total += value
        total_r += value_r
        total_q += value_q
        apart_r += tl.abs(value - value_r)
        apart_q += tl.abs(value - value_q)
        if CHROMA:
            beside = sample(g, y + dy, x + dx, level, height, width, known)
            detail += beside
            if PHASE == 0:
                beside -= sample(gr, y + dy, x + dx, level, height, width, known)
                emit(out, 16 + k, difference(beside, shift), known)
        if PHASE == 0:
            emit(out, 6 + k, difference(value - value_r, shift), known)
            if not CHROMA:
                emit(out, 10 + k, difference(value - value_q, shift), known)
    mean = total >> 2
    spread = tl.zeros((BLOCK,), dtype=tl.int32)
    for k in tl.static_range(4):
        dy, dx = tap(taps, k)
        apart = 4 * sample(p, y + dy, x + dx, level, height, width, known) - mean
        spread += tl.abs(apart)
        emit(out, k, difference(apart, shift), known)
    spread = spread >> 2
    here_r = sample(r, y, x, level, height, width, known)
    here_q = sample(q, y, x, level, height, width, known)
    anchor = tl.load(linear + i_n * count + at, known, other=0)
    prediction = anchor >> _ANCHOR_BITS
    tl.store(to, anchor, known)
    tl.store(to + 1, mean << _ANCHOR_BITS, known)
    tl.store(to + 2, here_r << _ANCHOR_BITS, known)
    tl.store(to + 3, (here_r + mean - (total_r >> 2)) << _ANCHOR_BITS, known)
    tl.store(to + 4, (here_q + mean - (total_q >> 2)) << _ANCHOR_BITS, known)
    step_r = here_r - mean
    step_q = here_q - mean
    step_a = prediction - mean
    emit(out, 4, difference(step_r, shift), known)
    if CHROMA:
        here = sample(g, y, x, level, height, width, known)
        lit = here - sample(gr, y, x, level, height, width, known)
        detail = here - (detail >> 2)
    if PHASE == 0:
        emit(out, 5, difference(step_q, shift), known)
        for k in tl.static_range(4):
            dy, dx = tap(taps, _CROSS + k)
            value = sample(r, y + dy, x + dx, level, height, width, known) - mean
            emit(out, (20 if CHROMA else 14) + k, difference(value, shift), known)
            if not CHROMA:
                value = sample(q, y + dy, x + dx, level, height, width, known) - mean
                emit(out, 18 + k, difference(value, shift), known)
        if CHROMA:
            lit_q = here - sample(gq, y, x, level, height, width, known)
            emit(out, 10, difference((total - total_q) >> 2, shift), known)
            emit(out, 11, difference(step_a, shift), known)
            emit(out, 12, difference(here_r - here_q, shift), known)
            emit(out, 13, difference(lit, shift), known)
            emit(out, 14, difference(lit_q, shift), known)
            emit(out, 15, difference(detail, shift), known)
            emit(out, 28, logarithm(step_a, shift, logs, known), known)
            emit(out, 29, logarithm(lit, shift, logs, known), known)
            emit(out, 30, logarithm(detail, shift, logs, known), known)
            emit(out, 31, logarithm(prediction - here_r, shift, logs, known), known)
        else:
            emit(out, 22, difference(step_a, shift), known)
            emit(out, 23, difference(here_r - here_q, shift), known)
            emit(out, 28, logarithm(apart_q >> 2, shift, logs, known), known)
            emit(out, 29, logarithm(step_a, shift, logs, known), known)
            emit(out, 30, logarithm(prediction - here_r, shift, logs, known), known)
            emit(out, 31, difference(mean >> 3, shift), known)
        emit(out, 24, logarithm(step_r, shift, logs, known), known)
        emit(out, 25, logarithm(here_r - here_q, shift, logs, known), known)
        emit(out, 26, logarithm(spread, shift, logs, known), known)
        emit(out, 27, logarithm(apart_r >> 2, shift, logs, known), known)
    else:
        new = newest(p, last + i_n * count * 5, at, y, x, level, height, width, known, 5, PHASE)
        emit(out, 6, difference(step_a, shift), known)
        emit(out, 7, difference(new, shift), known)
        emit(out, 8, difference((total - total_r) >> 2, shift), known)
        emit(out, 10, logarithm(spread, shift, logs, known), known)
        emit(out, 11, logarithm(apart_r >> 2, shift, logs, known), known)
        emit(out, 13, logarithm(step_r, shift, logs, known), known)
        emit(out, 14, logarithm(step_a, shift, logs, known), known)
        emit(out, 15, logarithm(new, shift, logs, known), known)
        if CHROMA:
            emit(out, 5, difference(detail, shift), known)
            emit(out, 9, difference(lit, shift), known)
            emit(out, 12, logarithm(lit, shift, logs, known), known)
        else:
            emit(out, 5, difference(step_q, shift), known)
            emit(out, 9, difference((total - total_q) >> 2, shift), known)
            emit(out, 12, logarithm(apart_q >> 2, shift, logs, known), known)


def channels(inter: bool, chroma: bool, phase: int) -> int:
    """Return how many channels a phase has."""
    return 32 if phase == 0 and (inter or chroma) else 16


def _check(
    planes: Tensor, place: Tensor, around: Around, level: int, phase: int, shift: int,
    tables: Tables, seen: Tensor,
) -> tuple[int, tuple[int, int, int], int]:  # fmt: skip
    """Check what both launchers take; return N, the geometry, and the distance of pixels."""
    count, height, width = check_storage(planes, place)
    device = planes.device
    inter = around.first is not None
    for name in ("first", "second"):
        if inter:
            check(name, getattr(around, name), torch.int32, [count, height, width], device)
    if around.light is not None:
        lights = ("light", "light_first", "light_second") if inter else ("light",)
        for name in lights:
            check(name, getattr(around, name), torch.int32, [count // 2, height, width], device)
    check("taps", tables.taps, torch.int32, [3, 16, 2], device)
    check("logs", tables.logs, torch.int8, [TABLE_SIZE], device)
    if not (0 <= phase < 3 and 0 <= shift <= MAX_SHIFT):
        raise ValueError(f"phase {phase} or shift {shift} is out of range")
    gh, gw = grid_shape(height, width, check_level(level))
    many = channels(inter, around.light is not None, phase)
    pitch = check_pixels("seen", seen, torch.int8, [count, gh, gw, many], device)
    return count, (height, width, level), pitch


def intra(
    planes: Tensor,
    place: Tensor,
    around: Around,
    last: Tensor | None,
    level: int,
    phase: int,
    shift: int,
    tables: Tables,
    seen: Tensor,
) -> Tensor:
    """Write the channels of a phase that is predicted from its own frame; return its anchors.

    Args:
        planes: Storage, int16 or int32 [..., H, W].
        place: Which of its planes, int32 [N].
        around: `light` for chroma, nothing else.
        last: The anchors of the phase before; None for the first.
        level: 0..5, of planes with at least two rows and columns on it.
        phase: 0, 1, 2.
        shift: Low bits the channels do not see, 0..8.
        tables: What the format has frozen.
        seen: Receives the channels, int8 [N, gh, gw, C]; may be a part of wider pixels.

    Returns:
        int32 [N, gh, gw, 4].

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device, a layout or a number is out of range.
    """
    count, geometry, pitch = _check(planes, place, around, level, phase, shift, tables, seen)
    anchors = torch.empty((*seen.shape[:3], INTRA_ANCHORS), dtype=torch.int32, device=seen.device)
    before = anchors if last is None else check("last", last, torch.int32, anchors.shape)
    light = anchors if around.light is None else around.light
    if anchors.numel():
        intra_kernel[(triton.cdiv(seen.shape[1] * seen.shape[2], BLOCK), count)](
            planes, place, light, before, *tables, seen, anchors, pitch, *geometry, shift,
            PHASE=phase, CHROMA=around.light is not None, BLOCK=BLOCK, **EXACT,
        )  # fmt: skip
    return anchors


def inter(
    planes: Tensor,
    place: Tensor,
    around: Around,
    linear: Tensor,
    last: Tensor | None,
    level: int,
    phase: int,
    shift: int,
    tables: Tables,
    seen: Tensor,
) -> Tensor:
    """Write the channels of a phase that is also predicted from other frames.

    Args:
        planes: As in `intra`, and so the rest.
        place: See there.
        around: All of it, for planes that are not chroma without lights.
        linear: The adaptive prediction, int32 [N, gh, gw]; see `linear.predict`.
        last: As in `intra`.
        level: As in `intra`.
        phase: As in `intra`.
        shift: As in `intra`.
        tables: As in `intra`.
        seen: As in `intra`.

    Returns:
        The anchors, int32 [N, gh, gw, 5].

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device, a layout or a number is out of range.
    """
    count, geometry, pitch = _check(planes, place, around, level, phase, shift, tables, seen)
    anchors = torch.empty((*seen.shape[:3], INTER_ANCHORS), dtype=torch.int32, device=seen.device)
    before = anchors if last is None else check("last", last, torch.int32, anchors.shape)
    check("linear", linear, torch.int32, seen.shape[:3], seen.device)
    lights = around[2:] if around.light is not None else (around.first,) * 3
    if anchors.numel():
        inter_kernel[(triton.cdiv(seen.shape[1] * seen.shape[2], BLOCK), count)](
            planes, place, *around[:2], *lights, linear, before, *tables, seen, anchors, pitch,
            *geometry, shift, PHASE=phase, CHROMA=around.light is not None, BLOCK=BLOCK, **EXACT,
        )  # fmt: skip
    return anchors
