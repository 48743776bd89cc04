"""The encoder's choice of a motion field, unit by unit, equal to the CPU's to the last vector.

What a vector costs depends on its neighbors above and to the left, so units go in slanting lines,
each line a launch: unit (i, j) belongs to line j + 2 i, and all it looks at to lines before. One
program owns one unit of one chunk, so chunks share launches, whatever their number. The vectors it
tries at once are the rows of its arrays, and the first of the best wins, as if they had been tried
one after the other.

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
from triton_kernels.picture import LIMIT, MARGIN, STARTS, Picture, check_picture, first_looks

MAX_VECTOR = 2047
RATES = 1 << 16

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


@triton.jit(do_not_specialize=["first", "line"])
def search_kernel(
    current, apart, phases, hints, starts, rates, bits, magnitudes, field, first, line,
    rows, columns, units, tall, wide,
    MARGIN: tl.constexpr, LOOKS: tl.constexpr, TRIES: tl.constexpr,
):  # fmt: skip
    """One program chooses the vectors of one unit of a line; see `search`."""
    unit, chunk = first + tl.program_id(0), tl.program_id(1).to(tl.int64)
    current += chunk * apart
    phases += chunk * 16 * tall * wide
    hints += chunk * rows * columns * 2
    field += chunk * rows * columns * 2
    starts += chunk * ((rows + 1) // 2) * units * LOOKS * 2
    i, j = 2 * unit, 2 * (line - 2 * unit)
    near = look_around(field, hints, i, j, columns, bits, 2)
    # Candidates: those around, none, three of the hints, the first looks.
    n = tl.arange(0, TRIES)
    at = tl.where(n < 6 + 3, n - 6, 0)
    below = tl.minimum(tl.where(at == 0, i + 2, tl.where(at == 1, i, i + 1)), rows - 1)
    beside = tl.minimum(tl.where(at == 0, j, tl.where(at == 1, j + 2, j + 1)), columns - 1)
    hinted = (n >= 6) & (n < 9)
    looked = (n >= 9) & (n < 9 + LOOKS)
    source = hints + 2 * (below * columns + beside)
    look = starts + 2 * ((unit * units + line - 2 * unit) * LOOKS + n - 9)
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


@triton.jit
def wanted_kernel(
    current, phases, field, out, rows, columns, tall, wide, MARGIN: tl.constexpr,
    LIMIT: tl.constexpr,
):  # fmt: skip
    """One program finds for a block what a second reference has to be; see `search`."""
    i, j = tl.program_id(0) // columns, tl.program_id(0) % columns
    chunk = tl.program_id(1).to(tl.int64)
    current += chunk * 16 * tall * wide
    phases += chunk * 16 * tall * wide
    field += chunk * rows * columns * 2
    out += chunk * tall * wide
    dy, dx = vector(field, i, j, columns)
    y, x = MARGIN + 8 * i, MARGIN + 8 * j
    plane, v, u = reached(phases, y, x, dy, dx, tall, wide)
    inner = tl.arange(0, 8)[:, None] * wide + tl.arange(0, 8)[None, :]
    first = tl.load(plane + v * wide + u + inner).to(tl.int32)
    value = 2 * tl.load(current + y * wide + x + inner).to(tl.int32) - first
    value = tl.minimum(tl.maximum(value, -LIMIT), LIMIT)
    tl.store(out + y * wide + x + inner, value.to(tl.int16))


def search(
    current: Picture,
    reference: Picture,
    hints: Tensor,
    prices: Prices,
    beside: tuple[Picture, Tensor] | None = None,
) -> Tensor:
    """Choose motion fields.

    Args:
        current: The frames that are to be predicted, one of each chunk.
        reference: The frame that each of them is predicted from, of the same shape.
        hints: The fields that the outcome will be coded with, int16 [chunks, rows, columns, 2].
        prices: Of the model that it will be coded with.
        beside: Other references and their fields, which predict the frames, too.

    Returns:
        int16 [chunks, rows, columns, 2], quarters of a luma sample, at most 2047 in magnitude.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    device = hints.device
    starts = first_looks(current, reference, hints)
    check("rates", prices.rates, torch.float32, [2, RATES], device)
    check("bits", prices.bits, torch.float32, [CONTEXTS, 2], device)
    check("magnitudes", prices.magnitudes, torch.float32, [10, 24], device)
    chunks, rows, columns, _ = hints.shape
    size = current.phases.shape[2:]
    wanted, rates = current.phases[:, 0], prices.rates[0]
    if beside is not None:
        other, known = beside
        check_picture("beside", other, current)
        check("beside", known, torch.int16, list(hints.shape), device, apart=1)
        wanted, rates = hints.new_empty((chunks, *size)), prices.rates[1]
        wanted_kernel[(rows * columns, chunks)](
            current.phases, other.phases, known, wanted, rows, columns, *size,
            MARGIN=MARGIN, LIMIT=LIMIT, **EXACT,
        )  # fmt: skip
    tall, wide = starts.shape[1:3]
    field = torch.zeros_like(hints)
    for line in range(wide + 2 * (tall - 1)):
        first = max(0, -(-(line - wide + 1) // 2))
        count = min(tall - 1, line // 2) - first + 1
        if count > 0:
            search_kernel[(count, chunks)](
                wanted, wanted.stride(0), reference.phases, hints, starts, rates, *prices[1:],
                field, first, line, rows, columns, wide, *size,
                MARGIN=MARGIN, LOOKS=1 + STARTS + 4, TRIES=32, num_warps=8, **EXACT,
            )  # fmt: skip
    return field
