"""Binary decisions whose probability is mixed from what several contexts have shown.

    slots of the contexts  ->  stretch  ->  weighted sum  ->  squash  ->  probability of a yes
          ^ learn                             ^ learn                          |
          +-----------------------------------+------------- decision <--------+

Each context of a decision owns a *slot*: how often it has seen a yes, and how many decisions it has
seen. The mixer adds up in the logistic domain what the slots say; its weights learn whom to
believe. All of it is integers, so that both directions learn the same.

Three arrays hold everything, because compiled loops pay for each array they hand on:

    memory  int32   stretch | squash | rates | weights | slots
    board   int64   one decision's lines, what its slots say, its contexts; the end of the stack
    stream  uint32  writing, the decisions; reading, the words of the message

References:
    Mahoney, "Adaptive weighing of context models for lossless data compression", 2005, Florida
    Tech. CS-2005-16: logistic mixing, and counts that set the rate of learning.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from flowarchive.entropy.cumulative import SIG_BITS, SIG_RANGE, SIG_STEPS, sigmoid_table
from flowarchive.loops import compiled

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Uint32 = NDArray[np.uint32]

PRECISION = 15
"""Bits of the mass of a decision."""

LINE = 8
"""Slots of a context that lie together."""

INPUTS = 8
"""Most contexts of a decision."""

KNOTS = 1 << 12
"""Entries of the stretch table."""

REACH = 3071
"""The logistic domain is -REACH..REACH, in 1/256."""

LIMIT = 255
"""Decisions that a slot counts."""

SET_COUNT = 448 + 4 * 24 + 40 * 24
"""Sets of weights; see `walk`."""

# Where the parts of the memory begin.
SQUASH = KNOTS
RATES = SQUASH + 2 * REACH + 1
WEIGHTS = RATES + LIMIT + 1
SLOTS = -(-(WEIGHTS + INPUTS * SET_COUNT) // 16) * 16

# Where the parts of the board begin.
SAID = INPUTS
CONTEXTS = 2 * INPUTS
AT = 3 * INPUTS
HEAD = AT + 1
FAILURE = AT + 2
BOARD_SIZE = AT + 3

EXHAUSTED, OUT_OF_RANGE, CONTRADICTED = 1, 2, 3
"""What `board[FAILURE]` becomes."""

COUNT_BITS = 8
CHANCE_BITS = 22
WEIGHT_BITS = 16
FIRST_WEIGHT = 8192

_TOTAL = 1 << PRECISION
_LEAST_HEAD = 1 << 31


@cache
def _tables() -> Int32:
    """Return stretch, squash and rates, int32 [WEIGHTS]."""
    sigmoid = sigmoid_table().astype(np.int64)
    steps = 256 // SIG_STEPS
    knot, part = np.divmod(np.arange(-REACH, REACH + 1) + 256 * SIG_RANGE, steps)
    curve = sigmoid[knot] + (sigmoid[knot + 1] - sigmoid[knot]) * part // steps
    squash = curve >> (SIG_BITS - 16)
    middles = (np.arange(KNOTS) << 4) + 8
    stretch = np.searchsorted(squash, middles).clip(0, 2 * REACH) - REACH
    rates = (1 << 17) // (2 * np.arange(LIMIT + 1) + 3)
    return np.concatenate([stretch, squash, rates]).astype(np.int32)


def new_memory(line_bits: int) -> Int32:
    """Return a memory of 2**line_bits lines that have seen nothing."""
    size = SLOTS + (LINE << line_bits)
    room = np.empty(size + 16, dtype=np.int32)
    # A line of slots is one of the processor's cache only if it begins where those do.
    skip = -(room.ctypes.data // room.itemsize) % 16
    memory = room[skip : skip + size]
    memory[:WEIGHTS] = _tables()
    memory[WEIGHTS:SLOTS] = FIRST_WEIGHT
    memory[SLOTS:] = 1 << (CHANCE_BITS - 1 + COUNT_BITS)
    return memory


@compiled
def decide(
    yes: bool,
    reading: bool,
    inputs: int,
    slot: int,
    first: int,
    second: int,
    memory: Int32,
    board: Int64,
    stream: Uint32,
) -> bool:
    """Write or read one decision, and learn from it.

    Args:
        yes: The decision; reading, anything.
        reading: The direction.
        inputs: Contexts whose lines are on the board.
        slot: Which slot of the lines.
        first: One set of weights.
        second: Another, which is added to it.
        memory: Learns.
        board: See above.
        stream: See above.

    Returns:
        The decision.
    """
    first = WEIGHTS + INPUTS * first
    second = WEIGHTS + INPUTS * second
    total = 0
    for i in range(inputs):
        says = memory[memory[board[i] + slot] >> (COUNT_BITS + CHANCE_BITS - 12)]
        board[SAID + i] = says
        total += says * (memory[first + i] + memory[second + i])
    p = memory[SQUASH + REACH + min(max(total >> WEIGHT_BITS, -REACH), REACH)]
    chance = min(max(p >> (16 - PRECISION), 1), _TOTAL - 1)
    at = board[AT]
    if reading:
        head = board[HEAD]
        here = head & (_TOTAL - 1)
        head >>= PRECISION
        yes = here < chance
        head = head * chance + here if yes else head * (_TOTAL - chance) + here - chance
        if head < _LEAST_HEAD:
            at -= 1
            if at >= 0:
                head = (head << 32) | stream[at]
            else:
                at = 0
                if not board[FAILURE]:
                    board[FAILURE] = EXHAUSTED
        board[HEAD] = head
    else:
        stream[at] = 2 * chance + (1 if yes else 0)
        at += 1
    board[AT] = at
    error = (65535 if yes else 0) - p
    goal = (1 << CHANCE_BITS) - 1 if yes else 0
    for i in range(inputs):
        step = (board[SAID + i] * error + (1 << (WEIGHT_BITS - 1))) >> WEIGHT_BITS
        memory[first + i] += step
        memory[second + i] += step
        place = board[i] + slot
        count = memory[place] & LIMIT
        seen = memory[place] >> COUNT_BITS
        seen += ((goal - seen) * memory[RATES + count]) >> 16
        memory[place] = (seen << COUNT_BITS) | min(count + 1, LIMIT)
    return yes
