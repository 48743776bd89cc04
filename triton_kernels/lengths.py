"""How long numbers are: logarithms in whole steps of 2**-20 bits, equal to the CPU's.

Lengths decide which way an encoder takes a phase, and stand in an archive's account: sums of steps
are the same in whatever order a device adds them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.checks import EXACT, check
from triton_kernels.rans import Messages, check_messages, warps

ENTRIES = 1025
STEP_BITS = 20
BLOCK = 1024  # numbers that a program looks at together

_STEP_BITS, _PIECE_BITS = tl.constexpr(STEP_BITS), tl.constexpr(10)
_LAST_PIECE, _HALF = tl.constexpr(ENTRIES - 2), tl.constexpr(1 << (STEP_BITS - 1))
# The highest bit of a number is brought here.
_TOP = tl.constexpr(62)


@triton.jit
def log2(number, table):
    """The logarithm of int64 numbers of at least 1, in steps."""
    exponent, mantissa = number * 0 + _TOP, number
    for n in tl.static_range(6):
        low = (mantissa >> (_TOP + 1 - (32 >> n))) == 0
        exponent -= tl.where(low, 32 >> n, 0)
        mantissa = tl.where(low, mantissa << (32 >> n), mantissa)
    i = (mantissa >> (_TOP - _PIECE_BITS)) & _LAST_PIECE
    part = (mantissa >> (_TOP - _PIECE_BITS - _STEP_BITS)) & (2 * _HALF - 1)
    left = tl.load(table + i)
    step = ((tl.load(table + i + 1) - left) * part + _HALF) >> _STEP_BITS
    return (exponent << _STEP_BITS) + left + step


@triton.jit
def heights_kernel(head, size, table, out, LANES: tl.constexpr):
    """One program measures one message; see `heights`."""
    i_m = tl.program_id(0)
    h = tl.load(head + i_m * LANES + tl.arange(0, LANES))
    words = tl.load(size + i_m).to(tl.int64)
    steps = tl.sum(log2(h, table), 0) + ((32 * words - 31 * LANES) << _STEP_BITS)
    tl.store(out + i_m, steps)


@triton.jit
def code_lengths_kernel(freq, segments, table, out, BLOCK: tl.constexpr):
    """One program sums the lengths of one segment's intervals; see `code_lengths`."""
    i_s = tl.program_id(0)
    begin = tl.load(segments + 3 * i_s)
    count = tl.load(segments + 3 * i_s + 1)
    precision = tl.load(segments + 3 * i_s + 2)
    lane = tl.arange(0, BLOCK)
    logs = tl.zeros((BLOCK,), tl.int64)
    at = count * 0
    while at < count:
        # What is not known is 1, whose logarithm is 0.
        width = tl.load(freq + begin + at + lane, at + lane < count, other=1).to(tl.int64)
        logs += log2(width, table)
        at += BLOCK
    tl.store(out + i_s, ((count * precision) << _STEP_BITS) - tl.sum(logs, 0))


def heights(messages: Messages, table: Tensor) -> Tensor:
    """Return the bits that messages hold beyond empty ones, int64 [messages], in steps.

    Args:
        messages: Stay as they are; of one whose size is -1 the number says nothing.
        table: round(2**20 * log2(1 + i / 1024)), int64 [1025].

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    count, lanes, _ = check_messages(messages)
    check("table", table, torch.int64, [ENTRIES], messages.head.device)
    out = torch.empty(count, dtype=torch.int64, device=messages.head.device)
    if count:
        heights_kernel[(count,)](
            messages.head, messages.size, table, out, LANES=lanes, num_warps=warps(lanes), **EXACT
        )
    return out


def code_lengths(freq: Tensor, segments: Tensor, table: Tensor) -> Tensor:
    """Return the code lengths of segments of intervals, int64 [s], in steps.

    Args:
        freq: Widths, int32 [n], at least 1.
        segments: As in `rans.push`, int64 [s, 3]: begins, sizes and precisions.
        table: As in `heights`.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    device = check("freq", freq, torch.int32, [None]).device
    count, _ = check("segments", segments, torch.int64, [None, 3], device).shape
    check("table", table, torch.int64, [ENTRIES], device)
    out = torch.empty(count, dtype=torch.int64, device=device)
    if count:
        code_lengths_kernel[(count,)](freq, segments, table, out, BLOCK=BLOCK, **EXACT)
    return out
