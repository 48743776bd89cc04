"""The decisions that spell a field of vectors, and the contexts their probabilities belong to.

One walk serves both directions, so that they cannot disagree: writing, it notes the interval of
each decision; reading, it finds the decision in the head of the next lane.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flowarchive.ans import refill_row
from flowarchive.loops import compiled
from flowarchive.motion.field import MAX_VECTOR, Field

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Uint32 = NDArray[np.uint32]
Uint64 = NDArray[np.uint64]

PRECISION = 15
"""Bits of the mass of a decision, and of a probability."""

LEAST = 24
"""The least frequency of a decision."""

FAST, SLOW = 4, 7
"""The two rates: a probability moves by 1/16 and by 1/128 of its error."""

CLASSES = 12
"""Classes of a magnitude: class k holds 2**k to 2**(k + 1) - 1."""

SPREADS = 5
"""Classes of how much the vectors around a block differ."""

# Contexts: where each kind of decision begins. A size is 0 for a block, 1 for a unit.
SPLIT = 0  # [hints of the unit differ, neighbors that are split]
MERGE = SPLIT + 2 * 3  # [kind, size, neighbors that are like their hints, likeness]
ZERO = MERGE + 4 * 2 * 3 * 3  # [component, spread, dy is zero]
SIGN = ZERO + 2 * SPREADS * 2  # [component]
CLASS = SIGN + 2  # [component, spread, class]
HIGH = CLASS + 2 * SPREADS * CLASSES  # [class]: the bit below the highest
CONTEXTS = HIGH + CLASSES

DECISIONS = 1 + 4 + 2 * (2 + 2 * CLASSES)
"""Most decisions of a block."""

TOO_LONG = -2
"""What stands for the size of the tail after a vector above MAX_VECTOR; -1 is a tail too short."""

_HALF = 1 << (PRECISION - 1)
_TOTAL = 1 << PRECISION


@compiled
def walk(
    field: Field,
    hints: Field,
    state: Int32,
    reading: bool,
    cursor: Int64,
    start: Uint32,
    freq: Uint32,
    head: Uint64,
) -> None:
    """Write a field as intervals, or read it from the heads.

    Args:
        field: int16 [rows, columns, 2]: given or filled in.
        hints: Like it.
        state: int32 [CONTEXTS, 2]: learns.
        reading: The direction.
        cursor: int64 [2]: decisions so far; reading, the live words of the tail or a failure.
        start: uint32 [n]: writing, left ends; reading, the tail.
        freq: uint32 [n]: writing, widths.
        head: uint64 [lanes]: reading, the heads.
    """
    rows, columns, _ = field.shape
    near = np.zeros((5, 2), dtype=np.int64)
    contexts = np.zeros(4, dtype=np.int64)
    vector = np.zeros(2, dtype=np.int64)
    for i in range(0, rows, 2):
        for j in range(0, columns, 2):
            tall = min(2, rows - i)
            wide = min(2, columns - j)
            split = False
            if tall * wide > 1:
                split = not reading and differs(field, i, j)
                context = split_context(field, hints, i, j)
                split = _decide(split, context, state, reading, cursor, start, freq, head)
            if not split:
                _walk_vector(
                    field, hints, i, j, 2, near, contexts, vector,
                    state, reading, cursor, start, freq, head,
                )  # fmt: skip
                for r in range(i, i + tall):
                    for c in range(j, j + wide):
                        field[r, c, 0] = vector[0]
                        field[r, c, 1] = vector[1]
            else:
                for r in range(i, i + tall):
                    for c in range(j, j + wide):
                        _walk_vector(
                            field, hints, r, c, 1, near, contexts, vector,
                            state, reading, cursor, start, freq, head,
                        )  # fmt: skip
                        field[r, c, 0] = vector[0]
                        field[r, c, 1] = vector[1]
            if cursor[1] < 0:
                return
    if reading and cursor[0] % head.size:
        cursor[1] = refill_row(head, start, cursor[1], cursor[0] % head.size)


@compiled
def _walk_vector(
    field: Field,
    hints: Field,
    i: int,
    j: int,
    size: int,
    near: Int64,
    contexts: Int64,
    vector: Int64,
    state: Int32,
    reading: bool,
    cursor: Int64,
    start: Uint32,
    freq: Uint32,
    head: Uint64,
) -> None:
    """Walk one vector: at the block (i, j), of a block or of a unit."""
    look_around(field, hints, i, j, size, near, contexts)
    vector[0] = field[i, j, 0]
    vector[1] = field[i, j, 1]
    for m in range(4):
        if is_repeated(near, m):
            continue
        same = near[m, 0] == vector[0] and near[m, 1] == vector[1]
        if _decide(same, contexts[m], state, reading, cursor, start, freq, head):
            vector[0] = near[m, 0]
            vector[1] = near[m, 1]
            return
    still = 0
    for k in range(2):
        spread = spread_class(near, k)
        difference = vector[k] - near[4, k]
        context = ZERO + (k * SPREADS + spread) * 2 + still
        if _decide(difference == 0, context, state, reading, cursor, start, freq, head):
            difference = 0
            still = 1
        else:
            negative = _decide(difference < 0, SIGN + k, state, reading, cursor, start, freq, head)
            magnitude = abs(difference)
            level = 0
            context = CLASS + (k * SPREADS + spread) * CLASSES
            while level < CLASSES - 1 and _decide(
                magnitude >> (level + 1) != 0, context + level,
                state, reading, cursor, start, freq, head,
            ):  # fmt: skip
                level += 1
            value = 1
            for bit in range(level - 1, -1, -1):
                chance = HIGH + level if bit == level - 1 else -1
                one = _decide(
                    (magnitude >> bit) & 1 != 0, chance, state, reading, cursor, start, freq, head
                )
                value = 2 * value + (1 if one else 0)
            difference = -value if negative else value
        vector[k] = near[4, k] + difference
        if abs(vector[k]) > MAX_VECTOR:
            vector[k] = 0
            # After a failure the rest of the unit is noise: the first one is reported.
            if cursor[1] >= 0:
                cursor[1] = TOO_LONG


@compiled
def _decide(
    yes: bool,
    context: int,
    state: Int32,
    reading: bool,
    cursor: Int64,
    start: Uint32,
    freq: Uint32,
    head: Uint64,
) -> bool:
    """Write or read one decision, and learn from it; the context -1 is an even chance."""
    chance = probability(state, context)
    if reading:
        lane = cursor[0] % head.size
        slot = int(head[lane] & np.uint64(_TOTAL - 1))
        yes = slot < chance
    left = 0 if yes else chance
    width = chance if yes else _TOTAL - chance
    if reading:
        head[lane] = np.uint64(width) * (head[lane] >> np.uint64(PRECISION)) + np.uint64(
            slot - left
        )
        if lane == head.size - 1 and cursor[1] >= 0:
            cursor[1] = refill_row(head, start, cursor[1], head.size)
    else:
        start[cursor[0]] = left
        freq[cursor[0]] = width
    cursor[0] += 1
    if context >= 0:
        goal = _TOTAL if yes else 0
        state[context, 0] += (goal - state[context, 0]) >> FAST
        state[context, 1] += (goal - state[context, 1]) >> SLOW
    return yes


@compiled
def probability(state: Int32, context: int) -> int:
    """Return the frequency of a yes."""
    if context < 0:
        return _HALF
    mean = (int(state[context, 0]) + int(state[context, 1])) >> 1
    return min(max(mean, LEAST), _TOTAL - LEAST)


@compiled
def differs(field: Field, i: int, j: int) -> bool:
    """Whether the blocks of the unit at (i, j) have more than one vector."""
    for r in range(i, min(i + 2, field.shape[0])):
        for c in range(j, min(j + 2, field.shape[1])):
            if field[r, c, 0] != field[i, j, 0] or field[r, c, 1] != field[i, j, 1]:
                return True
    return False


@compiled
def split_context(field: Field, hints: Field, i: int, j: int) -> int:
    """Return the context of the split of the unit at (i, j)."""
    context = SPLIT + (3 if differs(hints, i, j) else 0)
    if j > 0 and differs(field, i, j - 2):
        context += 1
    if i > 0 and differs(field, i - 2, j):
        context += 1
    return context


@compiled
def _same(near: Int64, a: int, b: int) -> bool:
    return bool(near[a, 0] == near[b, 0] and near[a, 1] == near[b, 1])


@compiled
def _close(near: Int64, a: int, b: int) -> bool:
    return bool(abs(near[a, 0] - near[b, 0]) + abs(near[a, 1] - near[b, 1]) <= 4)


@compiled
def is_repeated(near: Int64, m: int) -> bool:
    """Whether a candidate was asked about before."""
    repeated = False
    for n in range(m):
        repeated |= _same(near, m, n)
    return repeated


@compiled
def look_around(
    field: Field, hints: Field, i: int, j: int, size: int, near: Int64, contexts: Int64
) -> None:
    """Find the candidates of a vector, the median, and each candidate's context.

    Args:
        field: Filled in up to here.
        hints: Like it.
        i: Row of the block, or of the unit's first block.
        j: Its column.
        size: 1 for a block, 2 for a unit.
        near: int64 [5, 2]: takes the hint, left, above, above right, and the median of the three.
        contexts: int64 [4]: takes the contexts of the first four.
    """
    columns = field.shape[1]
    like = 0
    for k in range(2):
        near[0, k] = hints[i, j, k]
        near[1, k] = field[i, j - 1, k] if j > 0 else near[0, k]
        near[2, k] = field[i - 1, j, k] if i > 0 else near[1, k]
        # Right of a unit's last block, nothing is known yet.
        if i > 0 and j + size < columns and (size == 2 or not (i & 1 and j & 1)):
            near[3, k] = field[i - 1, j + size, k]
        elif i > 0 and j > 0:
            near[3, k] = field[i - 1, j - 1, k]
        else:
            near[3, k] = near[2, k]
        a = min(near[1, k], near[2, k])
        b = max(near[1, k], near[2, k])
        near[4, k] = max(a, min(b, near[3, k]))
    if j == 0 or (
        field[i, j - 1, 0] == hints[i, j - 1, 0] and field[i, j - 1, 1] == hints[i, j - 1, 1]
    ):
        like += 1
    if i == 0 or (
        field[i - 1, j, 0] == hints[i - 1, j, 0] and field[i - 1, j, 1] == hints[i - 1, j, 1]
    ):
        like += 1
    alike = 0
    for m in range(1, 4):
        if _same(near, 0, m):
            alike += 1
    base = MERGE + (size - 1) * 9 + like * 3
    contexts[0] = base + min(alike, 2)
    contexts[1] = base + 18 + (1 if _same(near, 1, 2) else 0) + (1 if _same(near, 1, 3) else 0)
    contexts[2] = base + 36 + (2 if _same(near, 2, 3) else (1 if _close(near, 1, 2) else 0))
    contexts[3] = base + 54 + (1 if _close(near, 1, 3) else 0) + (1 if _close(near, 2, 3) else 0)


@compiled
def spread_class(near: Int64, k: int) -> int:
    """Return how much the component k differs among the four candidates, 0..4."""
    low = min(min(near[0, k], near[1, k]), min(near[2, k], near[3, k]))
    high = max(max(near[0, k], near[1, k]), max(near[2, k], near[3, k]))
    spread = high - low
    if spread == 0:
        return 0
    if spread <= 2:
        return 1
    if spread <= 6:
        return 2
    return 3 if spread <= 16 else 4
