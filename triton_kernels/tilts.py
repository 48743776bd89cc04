"""Places in intervals that lean to one side, popped and pushed a row of lanes at a time.

Where an interval starts, a place is one of eight stretches, under its mass, and then a number that
is uniform in it: `bitsback.dequantize` does both in one lane before the next lane begins. Only one
of the two steps takes a word, or puts one, as of any number: the least mass is 50 of 2**12, and no
interval is longer than 2**28. So a head that the first step leaves low is at least 50 * 2**19, with
its word at least 50 * 2**51, and a stretch of 2**25 at most leaves 50 * 2**26 of that, which is not
low. A push is the mirror image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.checks import check
from triton_kernels.rans import _HEAD_MIN, _LOW, _WORD, divide, put, refill
from triton_kernels.uniform import pop_step, push_step

TILTS, ENDS = 17, 9
MOST = 8

_MOST = tl.constexpr(8)
_STRETCHES = tl.constexpr(8)
_BITS, _MASK = tl.constexpr(12), tl.constexpr((1 << 12) - 1)
_LEAST = tl.constexpr(256)  # what is shorter does not lean


class Lean(NamedTuple):
    """How places lean.

    Attributes:
        tilts: int8, -8..8 for each place.
        starts: int64 [17, 9], of each tilt where its stretches begin in 2**12, and 2**12.
    """

    tilts: Tensor
    starts: Tensor


@triton.jit
def stretch(span, n, starts, row):
    """Stretch n of intervals: its begin and length, and the begin and mass of its code."""
    left = span * n // _STRETCHES
    start = tl.load(starts + row + n)
    return left, span * (n + 1) // _STRETCHES - left, start, tl.load(starts + row + n + 1) - start


@triton.jit
def tilt_row(tilts, at, span, known):
    """Where the tilts of a row of lanes are in `starts`, and which lanes lean."""
    tilt = tl.load(tilts + at, known, other=0).to(tl.int32)
    return (tilt + _MOST) * (_STRETCHES + 1), known & (tilt != 0) & (span >= _LEAST)


@triton.jit
def pop_places(h, words, live, span, tilts, starts, at, known):
    """Pop a row of places in [0, span), whose tilts are at `at`: heads, size, and the places."""
    row, leaning = tilt_row(tilts, at, span, known)
    slot = h & _MASK
    n = tl.zeros_like(slot)
    for k in tl.static_range(1, _STRETCHES):
        n += (tl.load(starts + row + k) <= slot).to(tl.int64)
    left, length, start, mass = stretch(span, n, starts, row)
    left, length = tl.where(leaning, left, 0), tl.where(leaning, length, span)
    g = tl.where(leaning, mass * (h >> _BITS) + slot - start, h)
    first = leaning & (g < _HEAD_MIN)
    _, _, second = pop_step(g, length)
    second = known & second & ~first
    word, live = refill(tl.zeros_like(h), words, live, first | second)
    after, number, _ = pop_step(tl.where(first, (g << _WORD) | word, g), length)
    after = tl.where(second, (after << _WORD) | word, after)
    return tl.where(known, after, h), live, left + number


@triton.jit
def push_places(h, words, live, capacity, place, span, tilts, starts, at, known):
    """Push a row of places in [0, span), whose tilts are at `at`: heads and size."""
    row, leaning = tilt_row(tilts, at, span, known)
    n = tl.zeros_like(place)
    for k in tl.static_range(1, _STRETCHES):
        n += (span * k // _STRETCHES <= place).to(tl.int64)
    left, length, start, mass = stretch(span, n, starts, row)
    place, length = tl.where(leaning, place - left, place), tl.where(leaning, length, span)
    g, first = push_step(h, place, length)
    # g >= mass * 2**(63 - bits), written so that it cannot overflow.
    second = leaning & ((g >> (63 - _BITS)) >= mass)
    word = tl.where(first, h, g) & _LOW
    live = put(word, words, live, capacity, known & (first | second))
    after = tl.where(second, g >> _WORD, g)
    quotient = divide(after, mass)
    after = (quotient << _BITS) + (after - quotient * mass) + start
    return tl.where(known, tl.where(leaning, after, g), h), live


def check_lean(lean: Lean, shape: Sequence[int | None], device: torch.device) -> Lean:
    """Check how places of such a shape lean, and give it back.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    check("tilts", lean.tilts, torch.int8, shape, device)
    check("starts", lean.starts, torch.int64, [TILTS, ENDS], device)
    return lean
