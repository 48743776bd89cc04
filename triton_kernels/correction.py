"""Scales put right by what they cost on decoded symbols: costs summed, offsets found.

Every second, third ... symbol adds to its bucket what it costs with its scales half an octave
smaller, as predicted, and half an octave larger: int64 sums, in any order. At the end of a frame
older costs fade, and a parabola through the three says what the next frame's scales get.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.checks import EXACT, check
from triton_kernels.mixture import Tables, check_tables, sigmoid_of

BLOCK = 128
GROUPS, PHASES, BUCKETS = 3, 3, 48
MOST_SYMBOLS = 1 << 11
LOGS = 256

_STEP = tl.constexpr(4)
_MOST_OFFSET = tl.constexpr(12)
_RELUCTANCE = tl.constexpr(500)
_MOST_SCALE = tl.constexpr(191)
_WEIGHT_BITS = tl.constexpr(12)
_SIG_BITS = tl.constexpr(24)


class Corrections(NamedTuple):
    """What the scales of some chunks have cost, and what they get.

    Attributes:
        costs: int64 [chunks, GROUPS, PHASES, BUCKETS, 3] in 1/256 bit, of older frames.
        new: Alike, of this one.
        offsets: int32 [chunks, GROUPS, PHASES, BUCKETS].
        age: int32 [chunks], frames that have ended.
    """

    costs: Tensor
    new: Tensor
    offsets: Tensor
    age: Tensor


@triton.jit
def costs_kernel(
    symbols, mean, scale, weight, which, age, packed, reciprocals, logs, new,
    count, stride, slot, slots, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program adds the costs of BLOCK symbols of a chunk; see `learn`."""
    chunk = tl.load(which + tl.program_id(1))
    nth = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    at = tl.load(age + chunk) % stride + nth * stride
    known = at < count
    at = tl.program_id(1).to(tl.int64) * count + at
    left = (2 * tl.load(symbols + at, known, other=0).to(tl.int64) - 1) * 128
    middle = tl.zeros((BLOCK,), dtype=tl.int32)
    for k in tl.static_range(K):
        share = tl.load(weight + at * K + k, known, other=0)
        middle += tl.load(scale + at * K + k, known, other=0) * share
    bucket = new + ((chunk * slots + slot) * 48 + (middle >> (_WEIGHT_BITS + 2))) * 3
    for n in tl.static_range(3):
        total = tl.zeros((BLOCK,), dtype=tl.int64)
        for k in tl.static_range(K):
            index = tl.load(scale + at * K + k, known, other=0) + _STEP * (n - 1)
            index = tl.minimum(tl.maximum(index, 0), _MOST_SCALE)
            reciprocal, shift = tl.load(reciprocals + (index & 7)), 7 + (index >> 3).to(tl.int64)
            distance = left - tl.load(mean + at * K + k, known, other=0)
            inside = sigmoid_of(distance + 256, reciprocal, shift, packed)
            inside -= sigmoid_of(distance, reciprocal, shift, packed)
            total += tl.load(weight + at * K + k, known, other=0) * inside
        # No symbol has a probability under 2**-24.
        chance = (total >> _WEIGHT_BITS).to(tl.int32) + 1
        level = tl.zeros((BLOCK,), dtype=tl.int32)
        for octave in tl.static_range(1, 26):
            level += (chance >> octave != 0).to(tl.int32)
        value = (chance << tl.maximum(8 - level, 0)) >> tl.maximum(level - 8, 0)
        cost = ((_SIG_BITS - level) << 8) - tl.load(logs + value - 256, known, other=0)
        tl.atomic_add(bucket + n, cost.to(tl.int64), known)


@triton.jit
def offsets_kernel(costs, new, offsets, which, buckets, BLOCK: tl.constexpr):
    """One program fades a chunk's costs, and finds offsets; see `end_frame`."""
    chunk = tl.load(which + tl.program_id(1)).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    known = at < buckets
    place = (chunk * buckets + at) * 3
    less = fade(costs, new, place, known)
    same = fade(costs, new, place + 1, known)
    more = fade(costs, new, place + 2, known)
    curvature = less - 2 * same + more + _RELUCTANCE
    # Half of STEP * (less - more) / curvature, rounded half up: a quotient that is not negative,
    # or one that is, rounded down.
    above = _STEP * (less - more) + curvature
    below = 2 * tl.maximum(curvature, 1)
    vertex = tl.where(above < 0, -((below - 1 - above) // below), above // below)
    best = tl.where(curvature > 0, vertex, tl.where(more < less, _STEP, -_STEP))
    best = tl.minimum(tl.maximum(best, -_MOST_OFFSET), _MOST_OFFSET)
    tl.store(offsets + chunk * buckets + at, best.to(tl.int32), known)


@triton.jit
def fade(costs, new, place, known):
    """Let an older cost, which is not negative, fade by a fifth, and add the frame's."""
    old = tl.load(costs + place, known, other=0)
    cost = old - old // 5 + tl.load(new + place, known, other=0)
    tl.store(costs + place, cost, known)
    tl.store(new + place, tl.zeros_like(cost), known)
    return cost


def begin(chunks: int, device: torch.device) -> Corrections:
    """Return no offsets for some chunks."""
    shape = chunks, GROUPS, PHASES, BUCKETS
    return Corrections(
        torch.zeros((*shape, 3), dtype=torch.int64, device=device),
        torch.zeros((*shape, 3), dtype=torch.int64, device=device),
        torch.zeros(shape, dtype=torch.int32, device=device),
        torch.zeros(chunks, dtype=torch.int32, device=device),
    )


def _check(corrections: Corrections, which: Tensor) -> int:
    """Check what both launchers take; return how many chunks are meant."""
    shape, device = [None, GROUPS, PHASES, BUCKETS], which.device
    chunks = check("costs", corrections.costs, torch.int64, [*shape, 3], device).shape[0]
    check("new", corrections.new, torch.int64, [chunks, *shape[1:], 3], device)
    check("offsets", corrections.offsets, torch.int32, [chunks, *shape[1:]], device)
    check("age", corrections.age, torch.int32, [chunks], device)
    return check("which", which, torch.int32, [None]).numel()


def learn(
    corrections: Corrections,
    which: Tensor,
    slot: tuple[int, int],
    symbols: Tensor,
    mean: Tensor,
    scale: Tensor,
    weight: Tensor,
    tables: Tables,
    logs: Tensor,
) -> None:
    """Sum what symbols cost with three sets of scales.

    Args:
        corrections: `new` grows.
        which: Whose symbols they are, int32 [A]; n / A of each chunk, no chunk twice.
        slot: Level group and phase.
        symbols: int32 [n], in [-2**19, 2**19].
        mean: int32 [n, K].
        scale: int32 [n, K], as predicted, 0..191.
        weight: int32 [n, K]; a row's sum is 2**12.
        tables: From `mixture.tables`.
        logs: int32 [256], floor(256 * log2(1 + i / 256)).

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device, a layout or the slot is out of range.
    """
    chunks = _check(corrections, which)
    device = which.device
    total, components = check("mean", mean, torch.int32, [None, None], device).shape
    check("scale", scale, torch.int32, mean.shape, device)
    check("weight", weight, torch.int32, mean.shape, device)
    check("symbols", symbols, torch.int32, [total], device)
    check("logs", logs, torch.int32, [LOGS], device)
    check_tables(tables, device)
    if not (0 <= slot[0] < GROUPS and 0 <= slot[1] < PHASES):
        raise ValueError(f"there is no slot {slot}")
    count = total // max(chunks, 1)
    stride = max(1, -(-count // MOST_SYMBOLS))
    if total:
        costs_kernel[(triton.cdiv(-(-count // stride), BLOCK), chunks)](
            symbols, mean, scale, weight, which, corrections.age, *tables, logs, corrections.new,
            count, stride, slot[0] * PHASES + slot[1], GROUPS * PHASES,
            K=components, BLOCK=BLOCK, **EXACT,
        )  # fmt: skip


def end_frame(corrections: Corrections, which: Tensor) -> None:
    """Let older costs fade by a fifth, add the frame's, and find the next frame's offsets.

    Args:
        corrections: Those of some chunks change.
        which: Whose frame ends, int32 [A].

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    chunks = _check(corrections, which)
    buckets = GROUPS * PHASES * BUCKETS
    if chunks:
        offsets_kernel[(triton.cdiv(buckets, BLOCK), chunks)](
            *corrections[:3], which, buckets, BLOCK=BLOCK, **EXACT
        )
        corrections.age.index_add_(0, which, torch.ones_like(which))
