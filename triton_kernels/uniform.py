"""Numbers that are uniform in any range, on the stack of bits: a bijection, whatever the range.

And with them, moving numbers along a line from w to v of them, which the kernels of `maps` do: a
number popped under v chooses, one pushed under w tells the choice, row by row.

With Q = 2**31 div R, heads in [Q, Q * 2**32) times R, plus a number, fill [Q * R, Q * R * 2**32)
exactly once each: the heads' own range but for the sliver between Q * R and 2**31. A push spills
into the first range and refills out of the sliver, with the word it has just spilled. A range above
2**31 would make Q zero: such a number is coded as its low bit under its high part. At most one
of the two steps spills, or refills, in either direction.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.checks import SERIAL, check
from triton_kernels.rans import (
    _HEAD_MIN,
    _LOW,
    _WORD,
    Messages,
    check_messages,
    divide,
    enter,
    leave,
    put,
    refill,
    warps,
)


@triton.jit
def quotient_of(span):
    """Q of a range in 1..2**31, by a division of 32 bits, which is not a call as one of 64 is."""
    one = tl.full((1,), 1 << 31, tl.uint32)
    return (one // span.to(tl.uint32)).to(tl.int64)


@triton.jit
def push_step(h, value, span):
    """Push one number: the head after, and whether the word of the head before is spilled."""
    # h >= Q * 2**32, as a shift.
    full = (h >> _WORD) >= quotient_of(span)
    g = tl.where(full, h >> _WORD, h) * span + value
    back = full & (g < _HEAD_MIN)
    return tl.where(back, (g << _WORD) | (h & _LOW), g), full & (g >= _HEAD_MIN)


@triton.jit
def pop_step(h, span):
    """Pop one number: the head after, the number, and whether the head has to be refilled."""
    above = (h >> _WORD) >= quotient_of(span) * span
    g = tl.where(above, h >> _WORD, h)
    quotient = divide(g, span)
    value = g - quotient * span
    low = (quotient < _HEAD_MIN) & ~above
    return tl.where(above, (quotient << _WORD) | (h & _LOW), quotient), value, low


@triton.jit
def push_row(h, words, live, capacity, value, span, known):
    """Push a row of numbers in [0, span), span in 1..2**31: heads and size after."""
    after, spilled = push_step(h, value, span)
    live = put(h & _LOW, words, live, capacity, known & spilled)
    return tl.where(known, after, h), live


@triton.jit
def pop_row(h, words, live, span, known):
    """Pop a row of numbers in [0, span): heads and size after, and the numbers."""
    after, number, low = pop_step(h, span)
    after, live = refill(after, words, live, known & low)
    return tl.where(known, after, h), live, number


@triton.jit
def move_row(h, words, live, least, capacity, x, x0, w, y0, v, known):
    """Move a row of numbers from lines [x0, x0 + w) to lines [y0, y0 + v), as `bitsback.Uniform`.

    Products of w and v are below 2**62, and both are in 1..2**31. What is not known stays.

    Returns:
        Heads, size, the least size so far, and the numbers.
    """
    # What keeps its length would pop a number and push it again.
    moving = known & (w != v)
    span, width = tl.where(moving, v, 1), tl.where(moving, w, 1)
    h, live, number = pop_row(h, words, live, span, moving)
    least = tl.minimum(least, live)
    t = span * (x - x0) + number
    quotient = divide(t, width)
    h, live = push_row(h, words, live, capacity, t - quotient * width, width, moving)
    return h, live, least, y0 + quotient


@triton.jit
def push_uniform_kernel(head, tail, size, values, ranges, bounds, capacity, LANES: tl.constexpr):
    """One program pushes the numbers of one message, the last row first; see `push_uniform`."""
    i_m, lane, h, live, words = enter(head, tail, size, capacity, LANES)
    begin = tl.load(bounds + i_m)
    end = tl.load(bounds + i_m + 1)
    row = begin + (end - begin + LANES - 1) // LANES * LANES
    while (row > begin) & (live >= 0):
        row -= LANES
        known = row + lane < end
        value = tl.load(values + row + lane, known, other=0)
        span = tl.load(ranges + row + lane, known, other=1)
        large = span > _HEAD_MIN
        odd_end = (value == span - 1) & ((span & 1) == 1)
        # Where the range is small, the low bit is a number in a range of 1, which changes nothing.
        bit_span = tl.where(large & ~odd_end, 2, 1).to(tl.int64)
        g, first = push_step(h, tl.where(large, value & 1, 0), bit_span)
        value = tl.where(large, value >> 1, value)
        span = tl.where(large, (span + 1) >> 1, span)
        after, second = push_step(g, value, span)
        word = tl.where(first, h, g) & _LOW
        live = put(word, words, live, capacity, known & (first | second))
        h = tl.where(known, after, h)
    leave(head, size, h, live, LANES)


def push_uniform(messages: Messages, values: Tensor, ranges: Tensor, bounds: Tensor) -> None:
    """Push numbers that are uniform in [0, range), in place; each message's first is met first.

    Args:
        messages: Grow; each tail has room for a word a number. One whose size is -1 stays.
        values: int64 [n], values[i] in [0, ranges[i]).
        ranges: int64 [n], 1..2**32.
        bounds: int64 [messages + 1]: whose the numbers are, from 0 to n.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    count, lanes, capacity = check_messages(messages)
    device = messages.head.device
    check("values", values, torch.int64, [None], device)
    check("ranges", ranges, torch.int64, list(values.shape), device)
    check("bounds", bounds, torch.int64, [count + 1], device)
    if count:
        push_uniform_kernel[(count,)](
            *messages,
            values,
            ranges,
            bounds,
            capacity,
            LANES=lanes,
            num_warps=warps(lanes),
            **SERIAL,
        )


@triton.jit
def pop_uniform_kernel(
    head, tail, size, ranges, bounds, values, out_head, out_size, capacity, LANES: tl.constexpr
):
    """One program pops the numbers of one message; see `pop_uniform`."""
    i_m, lane, h, live, words = enter(head, tail, size, capacity, LANES)
    end = tl.load(bounds + i_m + 1)
    row = tl.load(bounds + i_m)
    while row < end:
        known = row + lane < end
        span = tl.load(ranges + row + lane, known, other=1)
        large = span > _HEAD_MIN
        g, value, low = pop_step(h, tl.where(large, (span + 1) >> 1, span))
        value = tl.where(large, value << 1, value)
        odd_end = (value == span - 1) & large
        bit_span = tl.where(large & ~odd_end, 2, 1).to(tl.int64)
        # A head that is refilled by the first step is none that the second one leaves low: so it is
        # known who needs a word before any word is.
        _, _, late = pop_step(g, bit_span)
        late = late & ~low
        needed = (known & (low | late)).to(tl.int32)
        asked = tl.sum(needed, 0)
        place = live - asked + tl.cumsum(needed, 0) - needed
        word = tl.load(words + place, (needed > 0) & (place >= 0), other=0).to(tl.int64) & _LOW
        live = tl.maximum(live - asked, -1)
        g, bit, _ = pop_step(tl.where(low, (g << _WORD) | word, g), bit_span)
        g = tl.where(late, (g << _WORD) | word, g)
        tl.store(values + row + lane, value + bit, known)
        h = tl.where(known, g, h)
        row = tl.where(live < 0, end, row + LANES)
    leave(out_head, out_size, h, live, LANES)


def pop_uniform(messages: Messages, ranges: Tensor, bounds: Tensor) -> tuple[Tensor, Messages]:
    """Pop numbers that are uniform in [0, range); the mirror image of `push_uniform`.

    Args:
        messages: Stay as they are.
        ranges: int64 [n], 1..2**32.
        bounds: int64 [messages + 1]: whose the numbers are, from 0 to n.

    Returns:
        The numbers, int64 [n], and what is left; the tail is shared. Where a size is -1, the
        message's numbers are noise.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    count, lanes, capacity = check_messages(messages)
    device = messages.head.device
    check("ranges", ranges, torch.int64, [None], device)
    check("bounds", bounds, torch.int64, [count + 1], device)
    values = torch.empty_like(ranges)
    left = messages.forked()
    if count:
        pop_uniform_kernel[(count,)](
            *messages, ranges, bounds, values, left.head, left.size, capacity,
            LANES=lanes, num_warps=warps(lanes), **SERIAL,
        )  # fmt: skip
    return values, left
