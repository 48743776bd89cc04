"""Adaptive linear prediction: samples of a phase under their classes' filters, and what to learn.

Row k of a sample's features is a difference: of a sample of the plane or of a reference to S, the
mean of the four nearest known samples; or, for chroma, of luma to another luma. A table says which.
A class says how far the four nearest lie from S, whether the reference changes S much, and along
which direction they differ more; the filter of the class weighs the features.

Normal equations are products of each two features, summed over the samples of a class: features
have 11 bits and weighted ones 13, two signed bytes each, so the tensor cores sum them in four
products of matrices. A program adds a few samples at a time to the sums of the slot, in int64, in
any order: integers have one sum.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.checks import EXACT, check
from triton_kernels.features import Around, position
from triton_kernels.lattice import (
    TAPS,
    check_level,
    check_storage,
    grid_shape,
    phase_shape,
    plane_of,
    sample,
)

BLOCK = 128
LEARNED = 64
"""Samples a program learns from: products of so many stay below 2**31."""

CLASSES, PHASES, GROUPS = 16, 3, 3
LUMA_TAPS, CHROMA_TAPS = 38, 45
ROWS = 64
"""Features of a sample and its target, and rows of nothing."""

MAX_SHIFT = 8
MANY_SAMPLES, MAX_STRIDE, MOST_SAMPLES = 1 << 14, 4, 1 << 17

_MOST = tl.constexpr((1 << 10) - 1)
_CHANGE = tl.constexpr(16)


class Filters(NamedTuple):
    """What the planes of some chunks have learned; see `filters`.

    Attributes:
        weights: int32 [chunks, planes, GROUPS, PHASES, CLASSES, taps] in 2**-14.
        sums: int64 [chunks, planes, GROUPS, PHASES, CLASSES, products], of this frame.
        age: int32 [chunks], frames learned from.
        faded: float64, like the sums: of older frames, in squared steps.
    """

    weights: Tensor
    sums: Tensor
    age: Tensor
    faded: Tensor


_PATCH = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)] + [(0, -2), (0, 2), (-2, 0), (2, 0)]
_PLUS = [(0, 0), (0, -1), (0, 1), (-1, 0), (1, 0)]


def taps(device: torch.device) -> Tensor:
    """Return int32 [3, 64, 3]: of each feature of each phase its source and (dy, dx).

    Sources are 0 the plane, 1 and 2 the references, 3 luma less its first reference, 4 less its
    second, 5 less its own mean.
    """
    rest = [(source, *at) for source in (1, 2) for at in _PATCH]
    rest += [(3, *at) for at in _PLUS] + [(4, 0, 0), (5, 0, 0)]
    rows = [[(0, *at) for at in phase[:12]] + rest for phase in TAPS]
    table = torch.tensor([row + [(0, 0, 0)] * (ROWS - len(row)) for row in rows])
    return table.to(device, torch.int32)


def products(taps: int) -> int:
    """Return how many sums a class has: products of features and target, and one of the weights."""
    return (taps + 1) * (taps + 2) // 2 + 1


@triton.jit
def apart(value, base, shift):
    """A feature: a difference in quarters without its low bits, clamped."""
    rest = (value - base + ((1 << shift) >> 1)) >> shift
    return tl.minimum(tl.maximum(rest, -_MOST), _MOST)


@triton.jit
def mean_of_near(plane, taps, y, x, level, height, width, known, GAIN: tl.constexpr):
    """The means of the four nearest samples, rounded half up, of GAIN times the plane."""
    total = tl.zeros_like(y) + 2
    for k in tl.static_range(4):
        dy, dx = tl.load(taps + 3 * k + 1), tl.load(taps + 3 * k + 2)
        total += GAIN * sample(plane, y + dy, x + dx, level, height, width, known)
    return total >> 2


@triton.jit
def classify(plane, first, taps, base, y, x, level, height, width, shift, known):
    """Tell each sample's spread and its class."""
    near = tl.zeros_like(y)
    outer = tl.zeros_like(y)
    inner = tl.zeros_like(y)
    for k in tl.static_range(4):
        dy, dx = tl.load(taps + 3 * k + 1), tl.load(taps + 3 * k + 2)
        value = apart(4 * sample(plane, y + dy, x + dx, level, height, width, known), base, shift)
        near += tl.abs(value)
        if k == 0 or k == 3:
            outer += value if k == 0 else -value
        else:
            inner += value if k == 1 else -value
    here = sample(first, y, x, level, height, width, known)
    change = apart(here, mean_of_near(first, taps, y, x, level, height, width, known, 1), shift)
    wide = (near >= 32).to(tl.int32) + (near >= 80) + (near >= 160)
    sharp = (tl.abs(change) >= _CHANGE).to(tl.int32)
    return near, 4 * wide + 2 * sharp + (tl.abs(outer) > tl.abs(inner))


@triton.jit
def predict_kernel(
    planes, place, first, second, light, light_first, light_second, which, weights, taps, out,
    height, width, level, shift, low, high, planes_each, slot, size,
    PHASE: tl.constexpr, TAPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program predicts BLOCK positions of a plane's phase; see `predict`."""
    i_n = tl.program_id(1).to(tl.int64)
    at, known, y, x, count = position(level, height, width, PHASE, BLOCK)
    p = plane_of(planes, place, i_n, height, width)
    r, q = first + i_n * height * width, second + i_n * height * width
    folded = (i_n >> 1) * height * width
    g, gr, gq = light + folded, light_first + folded, light_second + folded
    taps += PHASE * (3 * 64)
    base = mean_of_near(p, taps, y, x, level, height, width, known, 4)
    _, kind = classify(p, r, taps, base, y, x, level, height, width, shift, known)
    learner = tl.load(which + i_n // planes_each) * planes_each + i_n % planes_each
    of_class = weights + learner * size + slot + kind * TAPS
    total = tl.zeros((BLOCK,), dtype=tl.int32)
    for k in range(12):
        dy, dx = tl.load(taps + 3 * k + 1), tl.load(taps + 3 * k + 2)
        value = 4 * sample(p, y + dy, x + dx, level, height, width, known)
        total += tl.load(of_class + k, known, other=0) * apart(value, base, shift)
    for k in range(12, 25):
        dy, dx = tl.load(taps + 3 * k + 1), tl.load(taps + 3 * k + 2)
        value = sample(r, y + dy, x + dx, level, height, width, known)
        total += tl.load(of_class + k, known, other=0) * apart(value, base, shift)
        value = sample(q, y + dy, x + dx, level, height, width, known)
        total += tl.load(of_class + 13 + k, known, other=0) * apart(value, base, shift)
    if TAPS > 38:
        for k in range(38, 43):
            dy, dx = tl.load(taps + 3 * k + 1), tl.load(taps + 3 * k + 2)
            value = sample(g, y + dy, x + dx, level, height, width, known)
            other = sample(gr, y + dy, x + dx, level, height, width, known)
            total += tl.load(of_class + k, known, other=0) * apart(value, other, shift)
        value = sample(g, y, x, level, height, width, known)
        other = sample(gq, y, x, level, height, width, known)
        total += tl.load(of_class + 43, known, other=0) * apart(value, other, shift)
        other = mean_of_near(g, taps, y, x, level, height, width, known, 1)
        total += tl.load(of_class + 44, known, other=0) * apart(value, other, shift)
    down = 8 - shift
    result = 64 * base + ((total + ((1 << down) >> 1)) >> down)
    result = tl.minimum(tl.maximum(result, low), high)
    tl.store(out + i_n * count + at, result, known)


@triton.jit
def learn_kernel(
    planes, place, first, second, light, light_first, light_second, which, age, taps, sums,
    height, width, level, shift, planes_each, group, stride_d, stride_c, stride_b,
    TAPS: tl.constexpr, PRODUCTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program adds BLOCK samples of a plane's phase to the sums of their slot; see `learn`."""
    phase = tl.program_id(1)
    i_n = tl.program_id(2).to(tl.int64)
    row, column = (phase != 2).to(tl.int32), (phase != 1).to(tl.int32)
    h = (height + (1 << level) - 1) >> level
    w = (width + (1 << level) - 1) >> level
    rows, columns = (h + 1 - row) >> 1, (w + 1 - column) >> 1
    stride = tl.where(phase == 0, stride_d, tl.where(phase == 1, stride_c, stride_b))
    chunk = tl.load(which + i_n // planes_each)
    learner = chunk * planes_each + i_n % planes_each
    begin = tl.load(age + chunk) % stride
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    line = begin + at // columns * stride
    known = line < rows
    y, x = 2 * line + row, 2 * (at % columns) + column
    p = plane_of(planes, place, i_n, height, width)
    r, q = first + i_n * height * width, second + i_n * height * width
    folded = (i_n >> 1) * height * width
    g, gr, gq = light + folded, light_first + folded, light_second + folded
    taps += phase * (3 * 64)
    base = mean_of_near(p, taps, y, x, level, height, width, known, 4)
    near, kind = classify(p, r, taps, base, y, x, level, height, width, shift, known)
    halvings = (near >= 21).to(tl.int32) + (near >= 44) + (near >= 70) + (near >= 103)
    halvings += (near >= 149).to(tl.int32) + (near >= 213) + (near >= 303)
    amount = tl.where(known, 1 << (2 * (kind >> 2) + 1 - halvings), 0)
    # Features and, behind them, the target; [64, BLOCK].
    k = tl.arange(0, 64)[:, None]
    source = tl.load(taps + 3 * k)
    v, u = y[None, :] + tl.load(taps + 3 * k + 1), x[None, :] + tl.load(taps + 3 * k + 2)
    # A target stands behind the features: it is at the sample itself, source 0.
    source = tl.where(k < TAPS, source, tl.where(k == TAPS, 0, 7))
    v, u = tl.where(k < TAPS, v, y[None, :]), tl.where(k < TAPS, u, x[None, :])
    inside = known[None, :]
    value = 4 * sample(p, v, u, level, height, width, inside & (source == 0))
    value += sample(r, v, u, level, height, width, inside & (source == 1))
    value += sample(q, v, u, level, height, width, inside & (source == 2))
    other = tl.where(source < 3, base[None, :], 0)
    if TAPS > 38:
        value += sample(g, v, u, level, height, width, inside & (source > 2) & (source < 6))
        other += sample(gr, v, u, level, height, width, inside & (source == 3))
        other += sample(gq, v, u, level, height, width, inside & (source == 4))
        mean = mean_of_near(g, taps, y, x, level, height, width, known, 1)
        other += tl.where(source == 5, mean[None, :], 0)
    feature = tl.where(inside & (source < 6), apart(value, other, shift), 0)
    high = ((feature + 128) >> 8).to(tl.int8)
    low = (feature - (((feature + 128) >> 8) << 8)).to(tl.int8)
    i, j = k, tl.arange(0, 64)[None, :]
    kept = (i <= TAPS) & (j <= i)
    for c in range(16):
        mine = tl.where(kind == c, amount, 0)
        total = tl.sum(mine, 0)
        if total > 0:
            weighted = feature * mine[None, :]
            upper = (weighted + 128) >> 8
            lower = (weighted - (upper << 8)).to(tl.int8)
            upper = upper.to(tl.int8)
            # Of digits no sum is near 2**31, so that nothing saturates on the way.
            both = tl.dot(upper, tl.trans(high), out_dtype=tl.int32) << 8
            both += tl.dot(upper, tl.trans(low), out_dtype=tl.int32)
            both += tl.dot(lower, tl.trans(high), out_dtype=tl.int32)
            both = (both << 8) + tl.dot(lower, tl.trans(low), out_dtype=tl.int32)
            slot = sums + (((learner * 3 + group) * 3 + phase) * 16 + c) * PRODUCTS
            tl.atomic_add(slot + i * (i + 1) // 2 + j, both.to(tl.int64), kept)
            tl.atomic_add(slot + PRODUCTS - 1, total.to(tl.int64))


def check_filters(learned: Filters, taps: int, device: torch.device) -> int:
    """Check what has been learned; return the planes of a chunk.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    shape = [None, None, GROUPS, PHASES, CLASSES]
    shape[:2] = check("weights", learned.weights, torch.int32, [*shape, taps], device).shape[:2]
    check("sums", learned.sums, torch.int64, [*shape, products(taps)], device)
    check("age", learned.age, torch.int32, shape[:1], device)
    check("faded", learned.faded, torch.float64, [*shape, products(taps)], device)
    return learned.weights.shape[1]


def _check(
    planes: Tensor, place: Tensor, around: Around, which: Tensor, learned: Filters, taps: Tensor,
    level: int, shift: int,
) -> tuple[int, int, int, tuple[Tensor | None, ...]]:  # fmt: skip
    """Check what both launchers take; return N, planes of a frame, taps, and the pointers."""
    count, height, width = check_storage(planes, place)
    device = planes.device
    size = CHROMA_TAPS if around.light is not None else LUMA_TAPS
    each = check_filters(learned, size, device)
    if count != each * len(check("which", which, torch.int32, [None], device)):
        raise ValueError(f"{count} planes are not {each} of each of {len(which)} chunks")
    check("taps", taps, torch.int32, [PHASES, ROWS, 3], device)
    for name in ("first", "second"):
        check(name, getattr(around, name), torch.int32, [count, height, width], device)
    if around.light is not None:
        for name in ("light", "light_first", "light_second"):
            check(name, getattr(around, name), torch.int32, [count // 2, height, width], device)
    if not 0 <= shift <= MAX_SHIFT:
        raise ValueError(f"shift {shift} is not in 0..{MAX_SHIFT}")
    check_level(level)
    lights = around[2:] if around.light is not None else (around.first,) * 3
    return count, each, size, (*around[:2], *lights)


def predict(
    planes: Tensor,
    place: Tensor,
    around: Around,
    which: Tensor,
    learned: Filters,
    taps: Tensor,
    level: int,
    phase: int,
    shift: int,
    limits: tuple[int, int],
) -> Tensor:
    """Predict one phase of a level.

    Args:
        planes: Storage, int16 or int32 [..., H, W], the phases before this one known.
        place: Which of its planes, int32 [N]: the planes of one frame of each of some chunks.
        around: Of an inter frame.
        which: Whose frames they are, int32 [A]: N / A planes of a chunk's frame learn in a row.
        learned: What the planes of all chunks have learned.
        taps: From `taps`.
        level: 0..5.
        phase: 0, 1, 2.
        shift: Low bits to round away, 0..8.
        limits: The least and the greatest prediction.

    Returns:
        int32 [N, gh, gw] in 1/256 of a sample.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device, a layout or a number is out of range.
    """
    count, each, size, pointers = _check(planes, place, around, which, learned, taps, level, shift)
    height, width = planes.shape[-2:]
    gh, gw = grid_shape(height, width, level)
    out = torch.empty((count, gh, gw), dtype=torch.int32, device=planes.device)
    if out.numel():
        slot = min(level, GROUPS - 1) * PHASES + phase
        predict_kernel[(triton.cdiv(gh * gw, BLOCK), count)](
            planes, place, *pointers, which, learned.weights, taps, out,
            height, width, level, shift, *limits, each, slot * CLASSES * size,
            learned.weights[0, 0].numel(),
            PHASE=phase, TAPS=size, BLOCK=BLOCK, **EXACT,
        )  # fmt: skip
    return out


def row_stride(rows: int, columns: int) -> int:
    """Return how many rows of a phase there are to each that is learned from."""
    count = rows * columns
    return max(1, min(MAX_STRIDE, -(-count // MANY_SAMPLES)), -(-count // MOST_SAMPLES))


def learn(
    planes: Tensor,
    place: Tensor,
    around: Around,
    which: Tensor,
    learned: Filters,
    taps: Tensor,
    level: int,
    shift: int,
) -> None:
    """Add the normal equations of a finished level to the sums.

    Args:
        planes: As in `predict`, all phases known.
        place: See there.
        around: See there.
        which: See there; no chunk twice.
        learned: Its sums grow.
        taps: See there.
        level: 0..5.
        shift: See there.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device, a layout or a number is out of range.
    """
    count, each, size, pointers = _check(planes, place, around, which, learned, taps, level, shift)
    height, width = planes.shape[-2:]
    if not count:
        return
    shapes = [phase_shape(height, width, level, phase) for phase in range(PHASES)]
    strides = [row_stride(*shape) for shape in shapes]
    most = max(-(-shape[0] // by) * shape[1] for shape, by in zip(shapes, strides, strict=True))
    learn_kernel[(triton.cdiv(most, LEARNED), PHASES, count)](
        planes, place, *pointers, which, learned.age, taps, learned.sums,
        height, width, level, shift, each, min(level, GROUPS - 1), *strides,
        TAPS=size, PRODUCTS=products(size), BLOCK=LEARNED, num_warps=8, **EXACT,
    )  # fmt: skip
