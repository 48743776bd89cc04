"""The stack of bits on a GPU: one program owns one message, its lanes work side by side.

    head    int64 [messages, lanes], each in [2**31, 2**63)
    tail    int32 [messages, capacity], words of 32 bits whatever their sign
    size    int32 [messages], live words; -1 stands for a message that has failed: a pop has found
            too few words, or a push no room. Nothing is ever read or written beyond a tail.

Rows of a message follow one another, because each begins with the heads that the last one left:
parallelism comes from lanes and from many messages at a launch. A row's spilled words stand in
lane order, each at the number of spills in the lanes before it: a prefix sum. A refill reads them
in the exact reverse.

Symbols of many messages lie one after the other; those of message m are bounds[m] to
bounds[m + 1]. Element i of a message sits in lane i % lanes; the last row is pushed first.

References:
    Duda, "Asymmetric numeral systems", 2013, arXiv:1311.2540.
    Giesen, "Interleaved entropy coders", 2014, arXiv:1402.3392.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.checks import SERIAL, check
from triton_kernels.mixture import Support, Tables, check_parameters, search

MAX_LANES = 1024
MAX_PRECISION = 31
_HEAD_MIN = tl.constexpr(1 << 31)
_WORD = tl.constexpr(32)
_LOW = tl.constexpr((1 << 32) - 1)


class Messages(NamedTuple):
    """Messages on a device; see the module.

    Attributes:
        head: int64 [messages, lanes].
        tail: int32 [messages, capacity].
        size: int32 [messages].
    """

    head: Tensor
    tail: Tensor
    size: Tensor

    def forked(self) -> Messages:
        """Return messages with heads and sizes of their own; the tail is shared."""
        return Messages(self.head.clone(), self.tail, self.size.clone())


@triton.jit
def enter(head, tail, size, capacity, LANES: tl.constexpr):
    """A program's message: its number, its lanes and their heads, its size, and its words."""
    i_m = tl.program_id(0)
    lane = tl.arange(0, LANES)
    h = tl.load(head + i_m * LANES + lane)
    live = tl.load(size + i_m)
    return i_m, lane, h, live, tail + i_m.to(tl.int64) * capacity


@triton.jit
def leave(head, size, h, live, LANES: tl.constexpr):
    """Keep a program's message as it is now."""
    i_m = tl.program_id(0)
    tl.store(head + i_m * LANES + tl.arange(0, LANES), h)
    tl.store(size + i_m, live)


@triton.jit
def put(words, tail, size, capacity, spilled):
    """Put the words of the lanes that spill onto the tail, in lane order; none if one has no room.

    Returns:
        The size after, -1 where that fails, or something before has.
    """
    count = spilled.to(tl.int32)
    total = tl.sum(count, 0)
    # The place of the first who spills is the size: there is none below 0 where it fits.
    fits = (size >= 0) & (size <= capacity - total)
    place = size + tl.cumsum(count, 0) - count
    room = tl.where(fits, capacity, -1)
    tl.store(tail + place, words.to(tl.int32), spilled & (place < room))
    return tl.where(fits, size + total, -1)


@triton.jit
def spill(head, tail, size, capacity, full):
    """Move the low word of every full head onto the tail; see `put`."""
    return tl.where(full, head >> _WORD, head), put(head & _LOW, tail, size, capacity, full)


@triton.jit
def refill(head, tail, size, low):
    """Give every low head the next word from the top of the tail, the last lane first."""
    count = low.to(tl.int32)
    needed = tl.sum(count, 0)
    place = size - needed + tl.cumsum(count, 0) - count
    word = tl.load(tail + place, low & (place >= 0), other=0).to(tl.int64) & _LOW
    return tl.where(low, (head << _WORD) | word, head), tl.maximum(size - needed, -1)


@triton.jit
def divide(number, divisor):
    """Divide numbers of at least 0; without signs, that takes fewer registers."""
    return (number.to(tl.uint64) // divisor.to(tl.uint64)).to(tl.int64)


@triton.jit
def push_kernel(head, tail, size, start, freq, segments, bounds, capacity, LANES: tl.constexpr):
    """One program pushes the segments of one message, the last one first; see `push`."""
    i_m, lane, h, live, words = enter(head, tail, size, capacity, LANES)
    first = tl.load(bounds + i_m)
    segment = tl.load(bounds + i_m + 1)
    while (segment > first) & (live >= 0):
        segment -= 1
        begin = tl.load(segments + 3 * segment)
        count = tl.load(segments + 3 * segment + 1)
        precision = tl.load(segments + 3 * segment + 2)
        row = (count + LANES - 1) // LANES * LANES
        while row > 0:
            row -= LANES
            known = row + lane < count
            f = tl.load(freq + begin + row + lane, known, other=1).to(tl.int64)
            s = tl.load(start + begin + row + lane, known, other=0).to(tl.int64)
            # h >= freq * 2**(63 - precision), written so that it cannot overflow.
            g, live = spill(h, words, live, capacity, known & ((h >> (63 - precision)) >= f))
            quotient = divide(g, f)
            h = tl.where(known, (quotient << precision) + (g - quotient * f) + s, h)
    leave(head, size, h, live, LANES)


def push(messages: Messages, start: Tensor, freq: Tensor, segments: Tensor, bounds: Tensor) -> None:
    """Push intervals onto messages, in place, so that a pop meets each message's first one first.

    Args:
        messages: Grow; each tail has room for one word an interval. One whose size is -1 stays.
        start: Left ends, int32 [n], in [0, 2**precision).
        freq: Widths, int32 [n], at least 1, start + freq <= 2**precision.
        segments: int64 [s, 3]: where intervals that begin a row of lanes begin, how many they are,
            and their precision, 1..31.
        bounds: int64 [messages + 1]: which segments are whose.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    count, lanes, capacity = check_messages(messages)
    device = messages.head.device
    check("start", start, torch.int32, [None], device)
    check("freq", freq, torch.int32, list(start.shape), device)
    check("segments", segments, torch.int64, [None, 3], device)
    check("bounds", bounds, torch.int64, [count + 1], device)
    if count:
        push_kernel[(count,)](
            *messages, start, freq, segments, bounds, capacity,
            LANES=lanes, num_warps=warps(lanes), **SERIAL,
        )  # fmt: skip


@triton.jit
def pop_kernel(
    head, tail, size, start, freq, out_head, out_size, count, capacity, precision,
    LANES: tl.constexpr,
):  # fmt: skip
    """One program pops one row of one message; see `pop`."""
    i_m, lane, h, live, words = enter(head, tail, size, capacity, LANES)
    known = lane < count
    f = tl.load(freq + i_m * count + lane, known, other=0).to(tl.int64)
    s = tl.load(start + i_m * count + lane, known, other=0).to(tl.int64)
    slot = h & ((tl.full((1,), 1, tl.int64) << precision) - 1)
    h = tl.where(known, f * (h >> precision) + slot - s, h)
    h, live = refill(h, words, live, known & (h < _HEAD_MIN))
    leave(out_head, out_size, h, live, LANES)


def pop(messages: Messages, start: Tensor, freq: Tensor, precision: int) -> Messages:
    """Remove from the leading lanes of every message the symbols that were seen in their slots.

    Args:
        messages: Stay as they are.
        start: Left ends of the intervals that hold the slots, int32 [messages, k], k <= lanes.
        freq: Their widths, int32 [messages, k].
        precision: Bits of the total mass, 1..31.

    Returns:
        What is left; the tail is shared.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device, a layout or the precision is out of range.
    """
    count, lanes, capacity = check_messages(messages)
    width = check("start", start, torch.int32, [count, None], messages.head.device).shape[1]
    check("freq", freq, torch.int32, [count, width], messages.head.device)
    if not (width <= lanes and 1 <= precision <= MAX_PRECISION):
        raise ValueError(f"{width} symbols of precision {precision} do not sit in {lanes} lanes")
    left = messages.forked()
    if count and width:
        pop_kernel[(count,)](
            *messages, start, freq, left.head, left.size, width, capacity, precision,
            LANES=lanes, num_warps=warps(lanes), **SERIAL,
        )  # fmt: skip
    return left


@triton.jit
def pop_symbols_kernel(
    head, tail, size, mean, scale, weight, packed, reciprocals, bounds, symbols, out_head,
    out_size, capacity, low, high, precision,
    LANES: tl.constexpr, K: tl.constexpr, ROUNDS: tl.constexpr, WAYS_BITS: tl.constexpr,
):  # fmt: skip
    """One program finds and pops the symbols of one message; see `pop_symbols`."""
    i_m, lane, h, live, words = enter(head, tail, size, capacity, LANES)
    end = tl.load(bounds + i_m + 1)
    row = tl.load(bounds + i_m)
    while row < end:
        known = row + lane < end
        slot = h & ((tl.full((1,), 1, tl.int64) << precision) - 1)
        z, begin, width = search(
            slot, mean, scale, weight, packed, reciprocals, (row + lane) * K, known,
            low, high, precision, LANES, K, ROUNDS, WAYS_BITS,
        )  # fmt: skip
        tl.store(symbols + row + lane, z.to(tl.int32), known)
        h = tl.where(known, width * (h >> precision) + slot - begin, h)
        h, live = refill(h, words, live, known & (h < _HEAD_MIN))
        row = tl.where(live < 0, end, row + LANES)
    leave(out_head, out_size, h, live, LANES)


def pop_symbols(
    messages: Messages,
    mean: Tensor,
    scale: Tensor,
    weight: Tensor,
    bounds: Tensor,
    support: Support,
    tables: Tables,
) -> tuple[Tensor, Messages]:
    """Pop symbols under their mixtures: the search and the pop in one, nothing between travels.

    Args:
        messages: Stay as they are.
        mean: As in `mixture.intervals`, int32 [n, K].
        scale: Alike.
        weight: Alike.
        bounds: int64 [messages + 1]: whose the symbols are, from 0 to n.
        support: Of all symbols.
        tables: From `mixture.tables`.

    Returns:
        The symbols, int32 [n], and what is left; the tail is shared. Where a size is -1, the
        message's symbols are noise.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device, a layout or the support is out of range.
    """
    count, lanes, capacity = check_messages(messages)
    device = messages.head.device
    components = check_parameters(mean, scale, weight, support, tables)
    if mean.device != device:
        raise ValueError(f"mean is on {mean.device}, not on {device}")
    check("bounds", bounds, torch.int64, [count + 1], device)
    symbols = torch.empty(mean.shape[0], dtype=torch.int32, device=device)
    left = messages.forked()
    span = (support.high - support.low).bit_length()
    ways = ways_bits(lanes)
    if count:
        pop_symbols_kernel[(count,)](
            *messages, mean, scale, weight, *tables, bounds, symbols, left.head, left.size,
            capacity, *support, LANES=lanes, K=components,
            ROUNDS=triton.cdiv(span, ways), WAYS_BITS=ways,
            num_warps=warps((lanes << ways) // 4, 16), **SERIAL,
        )  # fmt: skip
    return symbols, left


def check_messages(messages: Messages) -> tuple[int, int, int]:
    """Check messages; return how many they are, their lanes, and the room of a tail.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    count, lanes = check("head", messages.head, torch.int64, [None, None]).shape
    if not 1 <= lanes <= MAX_LANES or lanes & (lanes - 1):
        raise ValueError(f"lanes {lanes} is not a power of two in 1..{MAX_LANES}")
    tail = check("tail", messages.tail, torch.int32, [count, None], messages.head.device)
    check("size", messages.size, torch.int32, [count], messages.head.device)
    return count, lanes, tail.shape[1]


def warps(lanes: int, most: int = 8) -> int:
    """Choose how many warps work on so many lanes; no result depends on it."""
    return min(max(lanes // 32, 1), most)


def ways_bits(lanes: int) -> int:
    """Choose log2 of how many symbols a round of the search looks at; no result depends on it.

    A row takes as long as its rounds, so that few lanes, which leave the processor idle, should
    look at many symbols at once.
    """
    return 4 if lanes <= 128 else 2 if lanes <= 512 else 1
