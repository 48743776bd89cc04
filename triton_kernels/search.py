"""The encoder's choice of a motion field, unit by unit, equal to the CPU's to the last vector.

What a vector costs depends on its neighbors above and to the left, so units go in slanting lines,
each line a launch: unit (i, j) belongs to line j + 2 i, and all it looks at to lines before. One
program owns one unit of one chunk, so chunks share launches, whatever their number. The vectors it
tries at once are the rows of its arrays, and the first of the best wins, as if they had been tried
one after the other. Of a frame's first field a unit of the second one needs the units around it: it
goes LAG lines behind, in the same launches.

Bits are sums of float32 table entries in float64, added in the CPU's order; nothing is multiplied,
so there is nothing to contract.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.checks import EXACT, check
from triton_kernels.picture import (
    LIMIT,
    LOOKS,
    MARGIN,
    SPAN,
    STARTS,
    Picture,
    closer_looks,
    first_looks,
)

MAX_VECTOR = 2047
RATES = 1 << 16
LAG = 3
"""Lines between the two fields of a frame: a unit's hints are of those right of it and below."""

# Contexts of decisions, as the format numbers them.
_SPLIT = tl.constexpr(0)
_MERGE = tl.constexpr(6)
_ZERO = tl.constexpr(78)
_SPREADS = tl.constexpr(5)
_FAR = tl.constexpr(1e30)
MOST = 2047
_MOST = tl.constexpr(MOST)
_TRIES = tl.constexpr(17)  # around a unit, none, of the hints, and of the first looks
CONTEXTS = 78 + 20 + 2 + 120 + 12


class Prices(NamedTuple):
    """What decisions cost, in bits.

    Attributes:
        rates: float32 [2, 2**16]: of a block, by a quarter of its sum of differences; for a single
            reference and for a second one.
        bits: float32 [CONTEXTS, 2]: of a yes and a no.
        magnitudes: float32 [10, 24]: of a magnitude's class and the bit below its highest.
    """

    rates: Tensor
    bits: Tensor
    magnitudes: Tensor


@triton.jit
def vector(field, i, j, columns):
    """Load the vector of a block."""
    at = field + 2 * (i * columns + j)
    return tl.load(at).to(tl.int32), tl.load(at + 1).to(tl.int32)


@triton.jit
def middle_of(a, b, c):
    """The median of three."""
    return tl.maximum(tl.minimum(a, b), tl.minimum(tl.maximum(a, b), c))


@triton.jit
def close(ay, ax, by, bx):
    """Whether two vectors are at most a sample apart."""
    return (tl.abs(ay - by) + tl.abs(ax - bx) <= 4).to(tl.int32)


@triton.jit
def same(ay, ax, by, bx):
    """Whether two vectors are equal."""
    return ((ay == by) & (ax == bx)).to(tl.int32)


@triton.jit
def spread_class(a, b, c, d):
    """How much four candidates differ, 0..4."""
    high = tl.maximum(tl.maximum(a, b), tl.maximum(c, d))
    spread = high - tl.minimum(tl.minimum(a, b), tl.minimum(c, d))
    one = (spread > 0).to(tl.int32) + (spread > 2).to(tl.int32)
    return one + (spread > 6).to(tl.int32) + (spread > 16).to(tl.int32)


@triton.jit
def look_around(field, hints, i, j, columns, bits, size: tl.constexpr):
    """The candidates of a vector, y and x of each, and what a yes to each of them costs.

    Returns:
        The hint, left, above, above right and their median; int64 spreads; prices in float64, last
        that of refusing all four.
    """
    hy, hx = vector(hints, i, j, columns)
    ly, lx = hy, hx
    like = 2
    if j > 0:
        ly, lx = vector(field, i, j - 1, columns)
        gy, gx = vector(hints, i, j - 1, columns)
        like += same(ly, lx, gy, gx) - 1
    ay, ax = ly, lx
    if i > 0:
        ay, ax = vector(field, i - 1, j, columns)
        gy, gx = vector(hints, i - 1, j, columns)
        like += same(ay, ax, gy, gx) - 1
    ry, rx = ay, ax
    # Right of a unit's last block, nothing is known yet.
    ahead = (j + size < columns) & ((size == 2) | ((i & j & 1) == 0))
    if (i > 0) & ahead:
        ry, rx = vector(field, i - 1, j + size, columns)
    if (i > 0) & (ahead == 0) & (j > 0):
        ry, rx = vector(field, i - 1, j - 1, columns)
    base = _MERGE + (size - 1) * 9 + like * 3
    alike = same(hy, hx, ly, lx) + same(hy, hx, ay, ax) + same(hy, hx, ry, rx)
    second = same(ly, lx, ay, ax) + same(ly, lx, ry, rx)
    third = tl.where(same(ay, ax, ry, rx) > 0, 2, close(ly, lx, ay, ax))
    fourth = close(ly, lx, ry, rx) + close(ay, ax, ry, rx)
    refused = tl.load(bits).to(tl.float64) * 0
    # A candidate that was asked about before is not asked about again.
    p0 = refused + tl.load(bits + 2 * (base + tl.minimum(alike, 2)))
    refused += tl.load(bits + 2 * (base + tl.minimum(alike, 2)) + 1)
    p1 = p0
    if same(ly, lx, hy, hx) == 0:
        p1 = refused + tl.load(bits + 2 * (base + 18 + second))
        refused += tl.load(bits + 2 * (base + 18 + second) + 1)
    p2 = p0
    if same(ay, ax, hy, hx) + same(ay, ax, ly, lx) == 0:
        p2 = refused + tl.load(bits + 2 * (base + 36 + third))
        refused += tl.load(bits + 2 * (base + 36 + third) + 1)
    p3 = p0
    if same(ry, rx, hy, hx) + same(ry, rx, ly, lx) + same(ry, rx, ay, ax) == 0:
        p3 = refused + tl.load(bits + 2 * (base + 54 + fourth))
        refused += tl.load(bits + 2 * (base + 54 + fourth) + 1)
    my, mx = middle_of(ly, ay, ry), middle_of(lx, ax, rx)
    sy, sx = spread_class(hy, ly, ay, ry), spread_class(hx, lx, ax, rx)
    return hy, hx, ly, lx, ay, ax, ry, rx, my, mx, sy, sx, p0, p1, p2, p3, refused


@triton.jit
def difference_bits(difference, row, context, bits, magnitudes):
    """What the difference of one component from the median costs."""
    size = tl.abs(difference)
    level = tl.zeros_like(size)
    for n in tl.static_range(1, 12):
        level += (size >> n != 0).to(tl.int32)
    second = tl.where(level > 0, (size >> tl.maximum(level - 1, 0)) & 1, 0)
    moved = tl.load(bits + 2 * context + 1) + tl.load(magnitudes + row * 24 + 2 * level + second)
    return tl.where(difference == 0, tl.load(bits + 2 * context), moved)


@triton.jit
def vector_bits(dy, dx, near, bits, magnitudes):
    """What each of some vectors costs among the candidates that `look_around` gave."""
    hy, hx, ly, lx, ay, ax, ry, rx, my, mx, sy, sx, p0, p1, p2, p3, refused = near
    still = (dy == my).to(tl.int32)
    total = refused + difference_bits(dy - my, sy, _ZERO + 2 * sy + dy * 0, bits, magnitudes)
    row = _SPREADS + sx
    total += difference_bits(dx - mx, row, _ZERO + 2 * row + still, bits, magnitudes)
    total = tl.where((dy == ry) & (dx == rx), p3, total)
    total = tl.where((dy == ay) & (dx == ax), p2, total)
    total = tl.where((dy == ly) & (dx == lx), p1, total)
    return tl.where((dy == hy) & (dx == hx), p0, total)


@triton.jit
def reached(phases, y, x, dy, dx, tall, wide):
    """In which of the phases, and where, the blocks lie that vectors lead to."""
    # Outside the margins all samples of a row or a column are those of the edge.
    v = tl.minimum(tl.maximum(y + (dy >> 2), 0), tall - 8)
    u = tl.minimum(tl.maximum(x + (dx >> 2), 0), wide - 8)
    return phases + (4 * (dy & 3) + (dx & 3)).to(tl.int64) * tall * wide, v, u


@triton.jit
def block_bits(current, phases, rates, y, x, dy, dx, tall, wide):
    """What is left of a block of 8 x 8 at (y, x) of the continued picture under each vector."""
    plane, v, u = reached(phases, y, x, dy, dx, tall, wide)
    column = tl.arange(0, 8)[None, :]
    total = tl.zeros_like(dy)
    for row in range(8):
        ours = tl.load(current + (y + row) * wide + x + column).to(tl.int32)
        theirs = tl.load(plane[:, None] + ((v + row) * wide + u)[:, None] + column)
        total += tl.sum(tl.abs(ours - theirs.to(tl.int32)), 1)
    return tl.load(rates + tl.minimum(total >> 2, 65535)).to(tl.float64)


@triton.jit
def pick(value, n, at):
    """The entry number `at` of a row."""
    return tl.sum(tl.where(n == at, value, 0), 0)


@triton.jit
def best_of(total, n):
    """The least of some bits, and the first that has it."""
    least = tl.min(total, 0)
    return least, tl.min(tl.where(total == least, n, 1 << 20), 0)


@triton.jit
def differs(field, i, j, rows, columns):
    """Whether the blocks of the unit at (i, j) have more than one vector, 0 or 1."""
    fy, fx = vector(field, i, j, columns)
    apart = 0
    for k in range(1, 4):
        r, c = i + k // 2, j + k % 2
        if (r < rows) & (c < columns):
            ny, nx = vector(field, r, c, columns)
            apart = tl.maximum(apart, 1 - same(fy, fx, ny, nx))
    return apart


@triton.jit
def moves(n, cy, cx, step):
    """Eight neighbors of a vector: up, down, left, right, and the corners."""
    my = tl.where(n < 2, 2 * n - 1, tl.where(n < 4, 0, tl.where(n < 6, -1, 1)))
    mx = tl.where(n < 2, 0, tl.where(n < 4, 2 * n - 5, 2 * (n & 1) - 1))
    return cy + step * my, cx + step * mx


@triton.jit
def store_unit(field, i, j, rows, columns, dy, dx):
    """Give all blocks of a unit one vector."""
    k = tl.arange(0, 4)
    r, c = i + k // 2, j + k % 2
    known = (r < rows) & (c < columns)
    at = field + 2 * (r * columns + c)
    tl.store(at, tl.zeros((4,), tl.int16) + dy.to(tl.int16), known)
    tl.store(at + 1, tl.zeros((4,), tl.int16) + dx.to(tl.int16), known)
    # What one thread has stored, all of this program go on to read.
    tl.debug_barrier()


@triton.jit
def try_unit(
    current, phases, rates, bits, magnitudes, near, dy, dx, known, i, j, rows, columns, tall, wide,
    margin, n, least, chosen_y, chosen_x,
):  # fmt: skip
    """Cost vectors for a unit; keep for each of its blocks the best there has been."""
    k = tl.arange(0, 4)
    ty, tx = tl.where(known, dy, 0), tl.where(known, dx, 0)
    total = vector_bits(ty, tx, near, bits, magnitudes)
    for block in range(4):
        r, c = i + block // 2, j + block % 2
        if (r < rows) & (c < columns):
            part = block_bits(
                current, phases, rates, margin + 8 * r, margin + 8 * c, ty, tx, tall, wide
            )
            total += part
            low, first = best_of(tl.where(known, part, 2 * _FAR), n)
            better = (k == block) & (low < least)
            chosen_y = tl.where(better, pick(ty, n, first), chosen_y)
            chosen_x = tl.where(better, pick(tx, n, first), chosen_x)
            least = tl.where(better, low, least)
    low, first = best_of(tl.where(known, total, 2 * _FAR), n)
    return low, pick(ty, n, first), pick(tx, n, first), least, chosen_y, chosen_x


@triton.jit
def within(dy, dx):
    """Which vectors may be tried."""
    return (tl.abs(dy) <= _MOST) & (tl.abs(dx) <= _MOST)


@triton.jit
def double(field, doubled, i, j, rows, columns):
    """Hand a unit's vectors on as hints for a reference that is twice as far away."""
    k = tl.arange(0, 4)
    r, c = i + k // 2, j + k % 2
    known = (r < rows) & (c < columns)
    at = 2 * (r * columns + c)
    for part in tl.static_range(2):
        twice = 2 * tl.load(field + at + part, known, other=0).to(tl.int32)
        twice = tl.minimum(tl.maximum(twice, -_MOST), _MOST)
        tl.store(doubled + at + part, twice.to(tl.int16), known)


@triton.jit
def want(current, phases, field, wanted, r, c, columns, tall, wide, margin, LIMIT: tl.constexpr):
    """Find for a block what a second reference has to be: twice the frame less the first one."""
    dy, dx = vector(field, r, c, columns)
    y, x = margin + 8 * r, margin + 8 * c
    plane, v, u = reached(phases, y, x, dy, dx, tall, wide)
    inner = tl.arange(0, 8)[:, None] * wide + tl.arange(0, 8)[None, :]
    first = tl.load(plane + v * wide + u + inner).to(tl.int32)
    value = 2 * tl.load(current + y * wide + x + inner).to(tl.int32) - first
    value = tl.minimum(tl.maximum(value, -LIMIT), LIMIT)
    tl.store(wanted + y * wide + x + inner, value.to(tl.int16))


@triton.jit(do_not_specialize=["line"])
def search_kernel(
    wanted, own_middle, last_middle, older_middle, last, older, hints, starts, rates, bits,
    magnitudes, fields, line, rows, columns, units, tall, wide,
    MARGIN: tl.constexpr, SPAN: tl.constexpr, STARTS: tl.constexpr, LOOKS: tl.constexpr,
    LIMIT: tl.constexpr, RATES: tl.constexpr, LAG: tl.constexpr, CLOSER: tl.constexpr,
    TRIES: tl.constexpr,
):  # fmt: skip
    """One program chooses the vectors of one unit of a line in a reference; see `search`."""
    chunk, second = tl.program_id(1).to(tl.int64), tl.program_id(2)
    line -= LAG * second
    unit = tl.maximum(line - units + 2, 0) // 2 + tl.program_id(0)
    if (2 * unit <= line) & (2 * unit < rows):
        i, j = 2 * unit, 2 * (line - 2 * unit)
        blocks, area = rows * columns * 2, tall.to(tl.int64) * wide
        mine = second * tl.num_programs(1) + chunk
        doubled = hints + (mine + tl.num_programs(1)) * blocks
        hints += mine * blocks
        field = fields + mine * blocks
        starts += (mine * ((rows + 1) // 2) * units + unit * units + j // 2) * LOOKS * 2
        current, phases, middle = wanted + mine * area, last, last_middle
        if second > 0:
            phases, middle = older, older_middle
            for block in range(4):
                r, c = i + block // 2, j + block % 2
                if (r < rows) & (c < columns):
                    want(
                        wanted + chunk * area, last + chunk * 16 * area, fields + chunk * blocks,
                        current, r, c, columns, tall, wide, MARGIN, LIMIT,
                    )  # fmt: skip
        phases += chunk * 16 * area
        closer_looks(
            own_middle + chunk * (area // 4), middle + chunk * (area // 4), hints, starts, unit,
            j // 2, tall // 2, wide // 2, columns, MARGIN // 2, SPAN, STARTS, CLOSER,
        )  # fmt: skip
        # What one thread has stored, all of this program go on to read.
        tl.debug_barrier()
        choose_unit(
            current, phases, hints, starts, rates + second * RATES, bits, magnitudes, field, i, j,
            rows, columns, tall, wide, MARGIN, LOOKS, TRIES,
        )  # fmt: skip
        if second + 1 < tl.num_programs(2):
            double(field, doubled, i, j, rows, columns)


@triton.jit
def choose_unit(
    current, phases, hints, starts, rates, bits, magnitudes, field, i, j, rows, columns, tall, wide,
    MARGIN: tl.constexpr, LOOKS: tl.constexpr, TRIES: tl.constexpr,
):  # fmt: skip
    """Give the blocks of a unit one vector, or one each where that takes fewer bits."""
    near = look_around(field, hints, i, j, columns, bits, 2)
    # Candidates: those around, none, three of the hints, the first looks.
    n = tl.arange(0, TRIES)
    at = tl.where(n < 6 + 3, n - 6, 0)
    below = tl.minimum(tl.where(at == 0, i + 2, tl.where(at == 1, i, i + 1)), rows - 1)
    beside = tl.minimum(tl.where(at == 0, j, tl.where(at == 1, j + 2, j + 1)), columns - 1)
    hinted = (n >= 6) & (n < 9)
    looked = (n >= 9) & (n < 9 + LOOKS)
    source = hints + 2 * (below * columns + beside)
    look = starts + 2 * (n - 9)
    dy = tl.load(source, hinted, other=0).to(tl.int32) + tl.load(look, looked, other=0)
    dx = tl.load(source + 1, hinted, other=0).to(tl.int32) + tl.load(look + 1, looked, other=0)
    for k in tl.static_range(5):
        dy = tl.where(n == k, near[2 * k], dy)
        dx = tl.where(n == k, near[2 * k + 1], dx)
    least = tl.zeros((4,), tl.float64) + _FAR
    chosen_y, chosen_x = tl.zeros((4,), tl.int32), tl.zeros((4,), tl.int32)
    best, by, bx, least, chosen_y, chosen_x = try_unit(
        current, phases, rates, bits, magnitudes, near, dy, dx, (n < 9 + LOOKS) & within(dy, dx),
        i, j, rows, columns, tall, wide, MARGIN, n, least, chosen_y, chosen_x,
    )  # fmt: skip
    m = tl.arange(0, 8)
    step, turns = 8, 0
    while step > 0:
        my, mx = moves(m, by, bx, step)
        low, ty, tx, least, chosen_y, chosen_x = try_unit(
            current, phases, rates, bits, magnitudes, near, my, mx, within(my, mx),
            i, j, rows, columns, tall, wide, MARGIN, m, least, chosen_y, chosen_x,
        )  # fmt: skip
        turns += 1
        if low < best:
            best, by, bx = low, ty, tx
            if turns == 12:
                step, turns = step >> 1, 0
        else:
            step, turns = step >> 1, 0
    context = _SPLIT + 3 * differs(hints, i, j, rows, columns)
    if j > 0:
        context += differs(field, i, j - 2, rows, columns)
    if i > 0:
        context += differs(field, i - 2, j, rows, columns)
    store_unit(field, i, j, rows, columns, by, bx)
    if (rows - i > 1) | (columns - j > 1):
        whole = best + tl.load(bits + 2 * context + 1)
        total = tl.load(bits + 2 * context).to(tl.float64)
        # Its blocks one by one, each seeing what became of those before.
        for block in range(4):
            r, c = i + block // 2, j + block % 2
            if (r < rows) & (c < columns):
                cost = choose_block(
                    current, phases, hints, rates, bits, magnitudes, field, r, c, columns,
                    tall, wide, MARGIN, by, bx,
                    pick(chosen_y, tl.arange(0, 4), block),
                    pick(chosen_x, tl.arange(0, 4), block),
                )  # fmt: skip
                total += cost
        if total >= whole:
            store_unit(field, i, j, rows, columns, by, bx)


@triton.jit
def choose_block(
    current, phases, hints, rates, bits, magnitudes, field, r, c, columns, tall, wide,
    margin, wy, wx, fy, fx,
):  # fmt: skip
    """Give a block the best vector around its own first, the unit's, and its neighbors'.

    Returns:
        What it costs, in bits.
    """
    near = look_around(field, hints, r, c, columns, bits, 1)
    m = tl.arange(0, 8)
    dy, dx = tl.where(m == 0, fy, wy), tl.where(m == 0, fx, wx)
    for k in tl.static_range(4):
        dy = tl.where(m == 2 + k, near[2 * k], dy)
        dx = tl.where(m == 2 + k, near[2 * k + 1], dx)
    y, x = margin + 8 * r, margin + 8 * c
    cost = vector_bits(dy, dx, near, bits, magnitudes)
    cost += block_bits(current, phases, rates, y, x, dy, dx, tall, wide)
    best, at = best_of(tl.where(m < 6, cost, 2 * _FAR), m)
    by, bx = pick(dy, m, at), pick(dx, m, at)
    step, turns = 4, 0
    while step > 0:
        my, mx = moves(m, by, bx, step)
        known = within(my, mx)
        ty, tx = tl.where(known, my, 0), tl.where(known, mx, 0)
        cost = vector_bits(ty, tx, near, bits, magnitudes)
        cost += block_bits(current, phases, rates, y, x, ty, tx, tall, wide)
        low, at = best_of(tl.where(known, cost, 2 * _FAR), m)
        turns += 1
        if low < best:
            best, by, bx = low, pick(ty, m, at), pick(tx, m, at)
            if turns == 4:
                step, turns = step >> 1, 0
        else:
            step, turns = step >> 1, 0
    place = field + 2 * (r * columns + c)
    tl.store(place, by.to(tl.int16))
    tl.store(place + 1, bx.to(tl.int16))
    tl.debug_barrier()
    return best


def search(
    current: Picture,
    last: Picture,
    hints: Tensor,
    prices: Prices,
    older: Picture | None = None,
) -> Tensor:
    """Choose motion fields against one reference, or against two of which the other is the older.

    The second field is chosen by what the first one leaves of the frame, with twice its vectors for
    hints.

    Args:
        current: The frames that are to be predicted, one of each chunk.
        last: The frames before.
        hints: The fields that the first ones will be coded with, int16 [chunks, rows, columns, 2].
        prices: Of the model that they will be coded with.
        older: The frames before those.

    Returns:
        int16 [1 or 2, chunks, rows, columns, 2], quarters of a luma sample, at most 2047 in
        magnitude.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    device, references = hints.device, [last] if older is None else [last, older]
    starts = first_looks(current, references, hints)
    check("rates", prices.rates, torch.float32, [2, RATES], device)
    check("bits", prices.bits, torch.float32, [CONTEXTS, 2], device)
    check("magnitudes", prices.magnitudes, torch.float32, [10, 24], device)
    count, chunks, tall, wide = starts.shape[:4]
    _, rows, columns, _ = hints.shape
    size = current.phases.shape[2:]
    # Those of the second field are found on the way.
    wanted, given = hints.new_empty((count, chunks, *size)), hints.new_empty((count, *hints.shape))
    wanted[0], given[0] = current.phases[:, 0], hints
    fields = torch.zeros_like(given)
    for line in range(wide + 2 * (tall - 1) + LAG * (count - 1)):
        search_kernel[(min(tall, (wide + 1) // 2), chunks, count)](
            wanted, current.middle, last.middle, references[-1].middle, last.phases,
            references[-1].phases, given, starts, *prices, fields, line, rows, columns, wide, *size,
            MARGIN=MARGIN, SPAN=SPAN, STARTS=STARTS, LOOKS=LOOKS, LIMIT=LIMIT, RATES=RATES, LAG=LAG,
            CLOSER=triton.next_power_of_2((2 * SPAN + 1) ** 2), TRIES=32, **EXACT,
        )  # fmt: skip
    return fields
