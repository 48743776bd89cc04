"""The encoder's choice of a motion field. Decoders never run this; nothing here is normative.

    coarse vectors on 4 x smaller pictures -> candidates -> diamonds of 2, 1, 1/2, 1/4 samples
    -> the same in quarters of the unit -> whole or split, by bits

A block of 64 samples with mean absolute difference m is taken to cost 64 log2(m + 0.4) bits.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from flowarchive.ans import compiled
from flowarchive.motion.field import MAX_VECTOR, Field, check_field, zero_field
from flowarchive.motion.picture import COARSE, MARGIN, Picture

Float32 = NDArray[np.float32]
Int16 = NDArray[np.int16]
Int64 = NDArray[np.int64]

_FLOOR = 0.4
_RATES: Float32 = (64 * np.log2((np.arange(1 << 16) + 0.5) / 64 + _FLOOR)).astype(np.float32)
"""float32 [2**16]: bits of a block by a quarter of its sum of differences, in quarters."""

_REACH = 10
"""How far the coarse search looks in each direction, in samples of the coarse picture."""


def search(current: Picture, reference: Picture, predictor: Field | None = None) -> Field:
    """Choose a motion field.

    Args:
        current: The frame that is to be predicted.
        reference: The frame that it is predicted from, of the same shape.
        predictor: The field that the outcome will be coded with; zero by default.

    Returns:
        int16 [rows, columns, 2]; the same on every machine and in every thread.
    """
    if current.shape != reference.shape:
        raise ValueError(f"pictures are {current.shape} and {reference.shape}")
    if predictor is None:
        predictor = zero_field(current.shape)
    hint = check_field("predictor", predictor, current.shape)
    field = np.zeros_like(hint)
    units = -(-field.shape[0] // 2), -(-field.shape[1] // 2)
    coarse = np.zeros((*units, 2), dtype=np.int16)
    _search_coarse(current.coarse, reference.coarse, coarse)
    merge_bits, bits = _crude_costs()
    _search(current.phases[0], reference.phases, hint, coarse, _RATES, merge_bits, bits, field)
    return field


def _crude_costs() -> tuple[Float32, Float32]:
    bits = np.array(
        [1.0] + [2 + 1.6 * math.log2(d + 1) for d in range(1, 2 * MAX_VECTOR + 1)],
        dtype=np.float32,
    )
    return np.array([0.7, 2.0, 3.0, 4.0, 4.0], dtype=np.float32), bits


@compiled
def _search_coarse(current: Int16, reference: Int16, vectors: Int16) -> None:
    """Find a vector for each unit on the coarse pictures, by the area of 8 x 8 around it."""
    margin = MARGIN // COARSE
    height, width = current.shape
    for i in range(vectors.shape[0]):
        for j in range(vectors.shape[1]):
            y = margin + 4 * i - 2
            x = margin + 4 * j - 2
            best = np.int32(1 << 30)
            for dy in range(-_REACH, _REACH + 1):
                if y + dy < 0 or y + dy > height - 8:
                    continue
                for dx in range(-_REACH, _REACH + 1):
                    if x + dx < 0 or x + dx > width - 8:
                        continue
                    total = np.int32(_difference(current, reference, y, x, y + dy, x + dx))
                    total += np.int32(8 * (abs(dy) + abs(dx)))
                    if total < best:
                        best = total
                        vectors[i, j, 0] = 16 * dy
                        vectors[i, j, 1] = 16 * dx


@compiled
def _difference(a: Int16, b: Int16, y: int, x: int, v: int, u: int) -> int:
    """Return the sum of absolute differences of two 8 x 8 blocks."""
    total = np.int32(0)
    for r in range(8):
        s = a[y + r, x : x + 8]
        t = b[v + r, u : u + 8]
        for c in range(8):
            d = np.int32(s[c]) - np.int32(t[c])
            total += np.int32(abs(np.int32(d)))
    return int(total)


@compiled
def _block_bits(
    current: Int16, phases: Int16, rates: Float32, y: int, x: int, dy: int, dx: int
) -> float:
    """Return the bits of the 8 x 8 block at (y, x) of the continued picture."""
    height, width = current.shape
    v = min(max(y + (dy >> 2), 0), height - 8)
    u = min(max(x + (dx >> 2), 0), width - 8)
    plane = phases[4 * (dy & 3) + (dx & 3)]
    return np.float64(rates[min(_difference(current, plane, y, x, v, u) >> 2, rates.size - 1)])


@compiled
def _near(d: int, e: int) -> int:
    return abs(int(d) - int(e))


@compiled
def _vector_bits(
    dy: int, dx: int, merges: Int64, count: int, merge_bits: Float32, bits: Float32
) -> float:
    """Return what a vector costs beside its neighbors; `merges` is [5, 2], the last the median."""
    for m in range(count):
        if merges[m, 0] == dy and merges[m, 1] == dx:
            return np.float64(merge_bits[m])
    return np.float64(merge_bits[4] + bits[_near(dy, merges[4, 0])] + bits[_near(dx, merges[4, 1])])


@compiled
def _median(a: int, b: int, c: int) -> int:
    return max(min(a, b), min(max(a, b), c))


@compiled
def _find_merges(field: Field, hint: Field, i: int, j: int, size: int, merges: Int64) -> None:
    """Fill in the hint, the left, upper and upper right vectors and the median."""
    columns = field.shape[1]
    for k in range(2):
        merges[0, k] = hint[i, j, k]
        merges[1, k] = field[i, j - 1, k] if j > 0 else merges[0, k]
        merges[2, k] = field[i - 1, j, k] if i > 0 else merges[1, k]
        if i > 0 and j + size < columns:
            merges[3, k] = field[i - 1, j + size, k]
        else:
            merges[3, k] = merges[2, k]
        merges[4, k] = _median(merges[1, k], merges[2, k], merges[3, k])


@compiled
def _search(
    current: Int16,
    phases: Int16,
    hint: Field,
    coarse: Int16,
    rates: Float32,
    merge_bits: Float32,
    bits: Float32,
    field: Field,
) -> None:
    rows, columns, _ = field.shape
    merges = np.zeros((5, 2), dtype=np.int64)
    tries = np.zeros((12, 2), dtype=np.int64)
    part = np.zeros(4, dtype=np.float64)
    least = np.zeros(4, dtype=np.float64)
    chosen = np.zeros((4, 2), dtype=np.int64)
    for i in range(0, rows, 2):
        for j in range(0, columns, 2):
            y = MARGIN + 8 * i
            x = MARGIN + 8 * j
            _find_merges(field, hint, i, j, 2, merges)
            count = 0
            for m in range(5):
                tries[count] = merges[m]
                count += 1
            tries[count, 0] = coarse[i // 2, j // 2, 0]
            tries[count, 1] = coarse[i // 2, j // 2, 1]
            count += 1
            tries[count] = 0
            count += 1
            if i + 2 < rows:
                tries[count, 0] = hint[i + 2, j, 0]
                tries[count, 1] = hint[i + 2, j, 1]
                count += 1
            if j + 2 < columns:
                tries[count, 0] = hint[i, j + 2, 0]
                tries[count, 1] = hint[i, j + 2, 1]
                count += 1
            least[:] = 1e30
            best = 1e30
            by = 0
            bx = 0
            step = 8
            move = 0
            turns = 0
            cy = 0
            cx = 0
            t = 0
            phase = 0
            while True:
                # Phase 0 tries the candidates, phase 1 the neighbors of the best so far.
                if phase == 0:
                    if t == count:
                        phase = 1
                        cy = by
                        cx = bx
                        continue
                    dy = tries[t, 0]
                    dx = tries[t, 1]
                    t += 1
                else:
                    if move == 8:
                        turns += 1
                        if (by == cy and bx == cx) or turns == 12:
                            step >>= 1
                            turns = 0
                            if step == 0:
                                break
                        cy = by
                        cx = bx
                        move = 0
                    dy = cy + step * _MOVES[move, 0]
                    dx = cx + step * _MOVES[move, 1]
                    move += 1
                if max(abs(dy), abs(dx)) > MAX_VECTOR:
                    continue
                total = _vector_bits(dy, dx, merges, 4, merge_bits, bits)
                for k in range(4):
                    if i + (k >> 1) < rows and j + (k & 1) < columns:
                        part[k] = _block_bits(
                            current, phases, rates, y + 8 * (k >> 1), x + 8 * (k & 1), dy, dx
                        )
                        total += part[k]
                    else:
                        part[k] = 0
                for k in range(4):
                    if part[k] < least[k]:
                        least[k] = part[k]
                        chosen[k, 0] = dy
                        chosen[k, 1] = dx
                if total < best:
                    best = total
                    by = dy
                    bx = dx
            _fill(field, i, j, by, bx)
            _split(
                current, phases, hint, rates, merge_bits, bits, field, i, j, best, chosen, merges
            )


_MOVES = np.array(
    [(-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1)], dtype=np.int64
)


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
    hint: Field,
    rates: Float32,
    merge_bits: Float32,
    bits: Float32,
    field: Field,
    i: int,
    j: int,
    whole: float,
    chosen: Int64,
    merges: Int64,
) -> None:
    """Give the four blocks of a unit their own vectors where that is cheaper."""
    rows, columns, _ = field.shape
    wy = int(field[i, j, 0])
    wx = int(field[i, j, 1])
    total = 4.0
    for k in range(4):
        r = i + (k >> 1)
        c = j + (k & 1)
        if r >= rows or c >= columns:
            continue
        y = MARGIN + 8 * r
        x = MARGIN + 8 * c
        _find_merges(field, hint, r, c, 1, merges)
        best = 1e30
        by = 0
        bx = 0
        for t in range(6):
            dy = chosen[k, 0]
            dx = chosen[k, 1]
            if t < 4:
                dy = merges[t, 0]
                dx = merges[t, 1]
            elif t == 4:
                dy = wy
                dx = wx
            cost = _block_bits(current, phases, rates, y, x, dy, dx)
            cost += _vector_bits(dy, dx, merges, 4, merge_bits, bits)
            if cost < best:
                best = cost
                by = dy
                bx = dx
        step = 4
        turns = 0
        while step > 0:
            cy = by
            cx = bx
            for move in range(8):
                dy = cy + step * _MOVES[move, 0]
                dx = cx + step * _MOVES[move, 1]
                if max(abs(dy), abs(dx)) > MAX_VECTOR:
                    continue
                cost = _vector_bits(dy, dx, merges, 4, merge_bits, bits)
                cost += _block_bits(current, phases, rates, y, x, dy, dx)
                if cost < best:
                    best = cost
                    by = dy
                    bx = dx
            turns += 1
            if (by == cy and bx == cx) or turns == 4:
                step >>= 1
                turns = 0
        total += best
        field[r, c, 0] = by
        field[r, c, 1] = bx
    if total >= whole:
        _fill(field, i, j, wy, wx)
