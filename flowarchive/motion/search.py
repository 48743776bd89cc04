"""The encoder's choice of a motion field. Decoders never run this; nothing here is normative.

    far and near vectors on smaller pictures -> candidates -> steps of 2, 1, 1/2, 1/4 samples
    -> the same for each block of the unit -> whole or split, by bits

A block of 64 samples whose details differ by m on average is taken to cost 64 log2(m + 2) bits, a
vector what the model would ask for it at the start of the frame. A second reference is chosen by
how well the mean of both predicts, so that it adds to the first one.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from flowarchive.loops import compiled
from flowarchive.motion.decisions import (
    CLASS,
    CLASSES,
    HIGH,
    PRECISION,
    SPREADS,
    ZERO,
    is_repeated,
    look_around,
    split_context,
    spread_class,
)
from flowarchive.motion.difference import (
    KEY_BITS,
    KEYS,
    NARROW,
    WIDE,
    block_difference,
    find_keys,
    least_key,
    unit_differences,
)
from flowarchive.motion.field import MAX_VECTOR, Field, check_field, zero_field
from flowarchive.motion.picture import COARSE, DETAIL_LIMIT, MARGIN, MIDDLE, Picture
from flowarchive.motion.vectors import VectorModel

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int16 = NDArray[np.int16]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

_FLOOR = 2.0
_ALONE, _BOTH = (
    (64 * np.log2((np.arange(1 << 16) + 0.5) / (64 * unit) + _FLOOR)).astype(np.float32)
    for unit in (2, 4)
)
"""float32 [2**16]: bits of a block by a quarter of its sum of differences, in eighths; and by that
of the differences between one reference and what it takes to make the mean of both right.
"""

_REACH = 10
"""How far the coarse search looks in each direction, in samples of the coarse picture."""

_SPAN = 7
"""How far the middle search looks around the hint, in samples of the middle picture."""

_STARTS = 3
"""Vectors that the middle search gives for a unit: of separate minima."""

_ROOM = 16
"""Samples around the smaller pictures that these two searches look at."""

_PLACE = (1 << KEY_BITS) - 1
"""The part of a key that is a place."""

_NEVER = 1 << 29
"""What is added to the key of no place."""

_FAR = 1e30

_NOTHING = 1 << 40
"""No vector."""

_SEEN = 1 << 10
"""Vectors of a unit whose sums of differences are kept."""

_TRIES = 5 + 1 + 3 + 1 + _STARTS + 4
"""Vectors that are tried for a unit: around it, none, of the hints, and of the first looks."""

_MOVES = np.array(
    [(-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1)], dtype=np.int64
)


def search(
    current: Picture,
    reference: Picture,
    hints: Field | None = None,
    model: VectorModel | None = None,
    beside: tuple[Picture, Field] | None = None,
) -> Field:
    """Choose a motion field.

    Args:
        current: The frame that is to be predicted.
        reference: The frame that it is predicted from, of the same shape.
        hints: The field that the outcome will be coded with; zero by default.
        model: The model that it will be coded with, before it learns from it; not changed.
        beside: Another reference and its field, which predict the frame, too.

    Returns:
        int16 [rows, columns, 2]; the same on every run and in every thread.

    Raises:
        ValueError: The pictures' shapes differ, or the hints are not of them.
    """
    if current.shape != reference.shape:
        raise ValueError(f"pictures are {current.shape} and {reference.shape}")
    expected = check_field(
        "hints", zero_field(current.shape) if hints is None else hints, current.shape
    )
    field = np.zeros_like(expected)
    units = -(-field.shape[0] // 2), -(-field.shape[1] // 2)
    # For each unit: from the coarse search, from the middle one, and one for each of its blocks.
    starts = np.zeros((*units, 1 + _STARTS + 4, 2), dtype=np.int16)
    _search_coarse(current.coarse, reference.coarse, starts)
    _search_middle(current.middle, reference.middle, expected, starts)
    bits, lengths = _new_lengths() if model is None else _lengths(model)
    wanted, rates = current.phases[0], _ALONE
    if beside is not None:
        first = check_field("beside", beside[1], current.shape)
        wanted, rates = _wanted(wanted, beside[0].phases, first), _BOTH
    _search(wanted, reference.phases, expected, starts, rates, bits, lengths, field)
    return field


def prices(model: VectorModel | None = None) -> tuple[Float32, Float32, Float32]:
    """Return the bits of blocks, of decisions and of magnitudes that `search` reckons with.

    Those of blocks are float32 [2, 2**16], for a single reference and for a second one.
    """
    return np.stack([_ALONE, _BOTH]), *_prices(VectorModel() if model is None else model)


def _prices(model: VectorModel) -> tuple[Float32, Float32]:
    """Return the bits of a yes and a no, [CONTEXTS, 2], and of magnitudes, [10, 2 CLASSES].

    A magnitude of class k counts as 2 k + the bit below its highest.
    """
    yes = model.probabilities() / (1 << PRECISION)
    bits = -np.log2(np.stack([yes, 1 - yes], axis=1))
    decided = bits[CLASS:HIGH].reshape(2 * SPREADS, CLASSES, 2)
    passed = np.cumsum(decided[:, :, 0], axis=1) - decided[:, :, 0]
    level = np.arange(CLASSES)
    stopped = decided[:, :, 1] * (level < CLASSES - 1)
    high = bits[HIGH:, ::-1] * (level > 0)[:, None]
    rest = np.maximum(level - 1, 0)[:, None]
    magnitudes = (passed + stopped)[:, :, None] + high + rest + 1
    return (
        bits.astype(np.float32),
        np.ascontiguousarray(magnitudes.reshape(2 * SPREADS, 2 * CLASSES), dtype=np.float32),
    )


def _lengths(model: VectorModel) -> tuple[Float32, Float32]:
    """Return the bits of decisions, and of each length, [2 * 10, 2 * MAX_VECTOR + 1].

    Of the two rows of each component and spread, the second is for where dy is zero.
    """
    bits, magnitudes = _prices(model)
    length = np.arange(1, 2 * MAX_VECTOR + 1)
    level = np.frexp(length)[1] - 1
    column = 2 * level + (length >> np.maximum(level - 1, 0) & 1) * (level > 0)
    zeros = bits[ZERO : ZERO + 4 * SPREADS]
    found = np.empty((4 * SPREADS, 2 * MAX_VECTOR + 1), dtype=np.float32)
    found[:, 0] = zeros[:, 0]
    found[:, 1:] = zeros[:, 1:] + magnitudes.repeat(2, axis=0)[:, column]
    return bits, found


@cache
def _new_lengths() -> tuple[Float32, Float32]:
    """Return `_lengths` of a model that has learned nothing."""
    return _lengths(VectorModel())


@compiled
def _fees(reach: int, count: int, part: int, whole: int) -> Int32:
    """Return what `find_keys` adds within a reach: what it costs to be away, and the place."""
    side = 2 * reach + 1
    fees = np.full((side, 2, count), _NEVER, dtype=np.int32)
    for a in range(side):
        for b in range(side):
            away = abs(a - reach) + abs(b - reach)
            fees[a, 0, b] = ((part * away) << KEY_BITS) + a * count + b
            fees[a, 1, b] = ((whole * away) << KEY_BITS) + a * count + b
    return fees


@compiled
def _continued(plane: Int16) -> Int16:
    """Return a plane with its edges repeated _ROOM times on each side."""
    height, width = plane.shape
    out = np.empty((height + 2 * _ROOM, width + 2 * _ROOM), dtype=np.int16)
    for y in range(out.shape[0]):
        row = plane[min(max(y - _ROOM, 0), height - 1)]
        out[y, :_ROOM] = row[0]
        out[y, _ROOM : _ROOM + width] = row
        out[y, _ROOM + width :] = row[width - 1]
    return out


@compiled
def _search_coarse(current: Int16, reference: Int16, starts: Int16) -> None:
    """Find a vector for each unit on the coarse pictures, by the area of 8 x 8 around it."""
    margin = MARGIN // COARSE
    fees = _fees(_REACH, WIDE, 0, 8)
    keys = np.empty((fees.shape[0], KEYS, WIDE), dtype=np.int32)
    # What lies outside is like the edge, and farther away: it never is the best.
    around = _continued(reference)
    for i in range(starts.shape[0]):
        for j in range(starts.shape[1]):
            y = margin + 4 * i - 2
            x = margin + 4 * j - 2
            v, u = y - _REACH + _ROOM, x - _REACH + _ROOM
            find_keys(current, y, x, around, v, u, fees, keys)
            a, b = divmod(least_key(keys, 4) & _PLACE, WIDE)
            starts[i, j, 0, 0] = 16 * (a - _REACH)
            starts[i, j, 0, 1] = 16 * (b - _REACH)


@compiled
def _search_middle(current: Int16, reference: Int16, hints: Field, starts: Int16) -> None:
    """Find vectors for each unit, and for each block of it, around the hint."""
    margin = MARGIN // MIDDLE
    height, width = current.shape
    fees = _fees(_SPAN, NARROW, 4, 20)
    side = fees.shape[0]
    keys = np.empty((side, KEYS, NARROW), dtype=np.int32)
    around = _continued(reference)
    for i in range(starts.shape[0]):
        for j in range(starts.shape[1]):
            y = margin + 8 * i
            x = margin + 8 * j
            top = y + ((hints[2 * i, 2 * j, 0] + 4) >> 3) - _SPAN
            left = x + ((hints[2 * i, 2 * j, 1] + 4) >> 3) - _SPAN
            # Farther out all places are alike.
            v = min(max(top, -_ROOM), height - 8) + _ROOM
            u = min(max(left, -_ROOM), width - 8) + _ROOM
            find_keys(current, y, x, around, v, u, fees, keys)
            for k in range(4):
                a, b = divmod(least_key(keys, k) & _PLACE, NARROW)
                _note(starts, i, j, 1 + _STARTS + k, top + a - y, left + b - x)
            for n in range(_STARTS):
                a, b = divmod(least_key(keys, 4) & _PLACE, NARROW)
                _note(starts, i, j, 1 + n, top + a - y, left + b - x)
                for r in range(max(a - 1, 0), min(a + 2, side)):
                    for c in range(max(b - 1, 0), min(b + 2, side)):
                        keys[r, 4, c] = _NEVER


@compiled
def _note(starts: Int16, i: int, j: int, n: int, dy: int, dx: int) -> None:
    """Keep a vector in samples of the middle picture."""
    starts[i, j, n, 0] = min(max(8 * dy, -MAX_VECTOR), MAX_VECTOR)
    starts[i, j, n, 1] = min(max(8 * dx, -MAX_VECTOR), MAX_VECTOR)


@compiled
def _reached(
    y: int, x: int, dy: int, dx: int, side: int, height: int, width: int
) -> tuple[int, int, int]:
    """Return in which of the phases, and where, the square lies that a vector leads to."""
    # Outside the margins all samples of a row or a column are those of the edge.
    v = min(max(y + (dy >> 2), 0), height - side)
    u = min(max(x + (dx >> 2), 0), width - side)
    return 4 * (dy & 3) + (dx & 3), v, u


@compiled
def _wanted(current: Int16, phases: Int16, field: Field) -> Int16:
    """Return what a second reference has to be for the mean with the first one to be right."""
    height, width = current.shape
    out = current.copy()
    for i in range(field.shape[0]):
        for j in range(field.shape[1]):
            y, x = MARGIN + 8 * i, MARGIN + 8 * j
            dy, dx = int(field[i, j, 0]), int(field[i, j, 1])
            plane, v, u = _reached(y, x, dy, dx, 8, height, width)
            for r in range(8):
                for c in range(8):
                    value = 2 * int(current[y + r, x + c]) - phases[plane, v + r, u + c]
                    out[y + r, x + c] = min(max(value, -DETAIL_LIMIT), DETAIL_LIMIT)
    return out


@compiled
def _bits(rates: Float32, total: int) -> float:
    """Return the bits of a block by its sum of differences."""
    return float(rates[min(total >> 2, rates.size - 1)])


@compiled
def _pack(dy: int, dx: int) -> int:
    """Return one number for a vector."""
    return (dy << 16) ^ (dx & 0xFFFF)


@compiled
def _slot(dy: int, dx: int) -> int:
    """Return where what is known of a vector is kept; its neighbors are elsewhere."""
    return (dy & 31) << 5 | dx & 31


@compiled
def _name(i: int, j: int, dy: int, dx: int) -> int:
    """Return one number for a vector of a unit."""
    return (i << 48) ^ (j << 32) ^ (_pack(dy, dx) & 0xFFFFFFFF)


@compiled
def _price_candidates(
    near: Int64, contexts: Int64, bits: Float32, known: Int64, prices: Float64
) -> None:
    """Fill in what `_vector_bits` asks of what lies around a block.

    Args:
        near: See `look_around`.
        contexts: See `look_around`.
        bits: See `_prices`.
        known: int64 [6]: takes the candidates, nothing for those that were there before, and for
            each component the row of `lengths`.
        prices: float64 [5]: takes what each candidate costs, and last what refusing all does.
    """
    refused = 0.0
    for m in range(4):
        known[m] = _NOTHING
        if not is_repeated(near, m):
            known[m] = _pack(near[m, 0], near[m, 1])
            prices[m] = refused + bits[contexts[m], 0]
            refused += bits[contexts[m], 1]
    prices[4] = refused
    for k in range(2):
        known[4 + k] = 2 * (k * SPREADS + spread_class(near, k))


@compiled
def _vector_bits(
    dy: int, dx: int, near: Int64, known: Int64, prices: Float64, lengths: Float32
) -> float:
    """Return the bits of a vector; without branches, which nobody could predict."""
    away_y, away_x = abs(dy - near[4, 0]), abs(dx - near[4, 1])
    total = prices[4] + lengths[known[4], away_y] + lengths[known[5] + (away_y == 0), away_x]
    packed = _pack(dy, dx)
    for m in range(3, -1, -1):
        total = prices[m] if known[m] == packed else total
    return float(total)


@compiled
def _search(
    current: Int16,
    phases: Int16,
    hints: Field,
    starts: Int16,
    rates: Float32,
    bits: Float32,
    lengths: Float32,
    field: Field,
) -> None:
    rows, columns, _ = field.shape
    near = np.zeros((5, 2), dtype=np.int64)
    contexts = np.zeros(4, dtype=np.int64)
    known = np.zeros(6, dtype=np.int64)
    prices = np.zeros(5, dtype=np.float64)
    tries = np.zeros((_TRIES, 2), dtype=np.int64)
    sums = np.zeros((_SEEN, 4), dtype=np.int32)
    seen = np.full((2, _SEEN), _NOTHING, dtype=np.int64)
    height, width = current.shape
    least = np.zeros(4, dtype=np.float64)
    chosen = np.zeros((4, 2), dtype=np.int64)
    for i in range(0, rows, 2):
        for j in range(0, columns, 2):
            y = MARGIN + 8 * i
            x = MARGIN + 8 * j
            look_around(field, hints, i, j, 2, near, contexts)
            _price_candidates(near, contexts, bits, known, prices)
            tries[:5] = near
            tries[5] = 0
            for t in range(3):
                r = min(i + (2, 0, 1)[t], rows - 1)
                c = min(j + (0, 2, 1)[t], columns - 1)
                tries[6 + t, 0] = hints[r, c, 0]
                tries[6 + t, 1] = hints[r, c, 1]
            tries[9:] = starts[i // 2, j // 2]
            least[:] = _FAR
            best = _FAR
            by = 0
            bx = 0
            cy = 0
            cx = 0
            step = 8
            move = -_TRIES
            turns = 0
            while step > 0:
                # First the candidates, then the neighbors of the best so far.
                if move < 0:
                    dy = tries[move + _TRIES, 0]
                    dx = tries[move + _TRIES, 1]
                else:
                    dy = cy + step * _MOVES[move, 0]
                    dx = cx + step * _MOVES[move, 1]
                move += 1
                n = _slot(dy, dx)
                name = _name(i, j, dy, dx)
                # What was tried before is no better now.
                if max(abs(dy), abs(dx)) <= MAX_VECTOR and seen[0, n] != name:
                    seen[0, n] = name
                    total = _vector_bits(dy, dx, near, known, prices, lengths)
                    plane, v, u = _reached(y, x, dy, dx, 16, height, width)
                    unit_differences(current, phases, y, x, plane, v, u, sums, n)
                    for k in range(4):
                        if i + (k >> 1) < rows and j + (k & 1) < columns:
                            part = _bits(rates, sums[n, k])
                            total += part
                            if part < least[k]:
                                least[k] = part
                                chosen[k, 0] = dy
                                chosen[k, 1] = dx
                    if total < best:
                        best = total
                        by = dy
                        bx = dx
                if move == 0 or move == 8:
                    if move == 8:
                        turns += 1
                        if (by == cy and bx == cx) or turns == 12:
                            step >>= 1
                            turns = 0
                    move = 0
                    cy = by
                    cx = bx
            context = split_context(field, hints, i, j)
            _fill(field, i, j, by, bx)
            if rows - i > 1 or columns - j > 1:
                _split(
                    current, phases, hints, rates, bits, lengths, field, i, j,
                    best + bits[context, 1], float(bits[context, 0]), chosen,
                    near, contexts, known, prices, seen, sums,
                )  # fmt: skip


@compiled
def _fill(field: Field, i: int, j: int, dy: int, dx: int) -> None:
    for r in range(i, min(i + 2, field.shape[0])):
        for c in range(j, min(j + 2, field.shape[1])):
            field[r, c, 0] = dy
            field[r, c, 1] = dx


@compiled
def _split(
    current: Int16,
    phases: Int16,
    hints: Field,
    rates: Float32,
    bits: Float32,
    lengths: Float32,
    field: Field,
    i: int,
    j: int,
    whole: float,
    total: float,
    chosen: Int64,
    near: Int64,
    contexts: Int64,
    known: Int64,
    prices: Float64,
    seen: Int64,
    sums: Int32,
) -> None:
    """Give the blocks of a unit their own vectors where that is cheaper than `whole`."""
    rows, columns, _ = field.shape
    height, width = current.shape
    wy = int(field[i, j, 0])
    wx = int(field[i, j, 1])
    for k in range(4):
        r = i + (k >> 1)
        c = j + (k & 1)
        if r >= rows or c >= columns:
            continue
        y = MARGIN + 8 * r
        x = MARGIN + 8 * c
        look_around(field, hints, r, c, 1, near, contexts)
        _price_candidates(near, contexts, bits, known, prices)
        best = _FAR
        by = 0
        bx = 0
        cy = 0
        cx = 0
        step = 4
        move = -6
        turns = 0
        while step > 0:
            if move >= 0:
                dy = cy + step * _MOVES[move, 0]
                dx = cx + step * _MOVES[move, 1]
            elif move >= -4:
                dy = near[move + 4, 0]
                dx = near[move + 4, 1]
            elif move == -5:
                dy = wy
                dx = wx
            else:
                dy = chosen[k, 0]
                dx = chosen[k, 1]
            move += 1
            n = _slot(dy, dx)
            name = _name(r, c, dy, dx)
            if max(abs(dy), abs(dx)) <= MAX_VECTOR and seen[1, n] != name:
                seen[1, n] = name
                if seen[0, n] != _name(i, j, dy, dx):
                    plane, v, u = _reached(y, x, dy, dx, 8, height, width)
                    difference = block_difference(current, phases, y, x, plane, v, u)
                else:
                    difference = sums[n, k]
                cost = _vector_bits(dy, dx, near, known, prices, lengths)
                cost += _bits(rates, difference)
                if cost < best:
                    best = cost
                    by = dy
                    bx = dx
            if move == 0 or move == 8:
                if move == 8:
                    turns += 1
                    if (by == cy and bx == cx) or turns == 4:
                        step >>= 1
                        turns = 0
                move = 0
                cy = by
                cx = bx
        total += best
        field[r, c, 0] = by
        field[r, c, 1] = bx
    if total >= whole:
        _fill(field, i, j, wy, wx)
