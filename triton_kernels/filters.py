"""Filters out of sums: the CPU's float64 operations, each element's in the CPU's order.

For each phase, with M the products of features, b those with the target and d the default filter
of a class: (sum over classes of M + ridge) g = sum of (b - M d), then for each class
(M + ridge) (w - d - g) = b - M (d + g).

The CPU goes row by row through many systems side by side. Here a program holds a few whole
matrices, and takes a column's share from all that is right of it at once: every element still
loses the same products, in the same order, and nothing is contracted or summed otherwise. Float64
is IEEE's on every GPU that Triton compiles for, a division included.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.checks import EXACT, check
from triton_kernels.linear import (
    CLASSES,
    GROUPS,
    PHASES,
    ROWS,
    Filters,
    check_filters,
    products,
)

SLOTS = GROUPS * PHASES * CLASSES
SYSTEMS = 1
"""Systems a program solves side by side; no result depends on it."""

_SCALE = tl.constexpr(float(1 << 14))
_LIMIT = tl.constexpr(float((1 << 15) - 1))


@triton.jit
def slot_of(n, which, planes_each):
    """The slot, among those of all planes, of the n-th slot of the planes that end a frame."""
    plane, slot = n // 144, n % 144
    learner = tl.load(which + plane // planes_each) * planes_each + plane % planes_each
    return learner.to(tl.int64) * 144 + slot


@triton.jit
def fade_kernel(
    faded, sums, constants, which, planes_each, PRODUCTS: tl.constexpr, BLOCK: tl.constexpr
):
    """One program fades a slot's sums of the past, and takes the frame's in."""
    slot = slot_of(tl.program_id(0), which, planes_each)
    k = tl.arange(0, BLOCK)
    at = slot * PRODUCTS + k
    known = k < PRODUCTS
    # Features are in quarters: 16 units of their products are one squared step.
    unit = 1.0 / (16 << (2 * (slot % 16 >> 2) + 1)).to(tl.float64)
    old = tl.load(faded + at, known, other=0) * tl.load(constants)
    tl.store(faded + at, old + tl.load(sums + at, known, other=0).to(tl.float64) * unit, known)
    tl.store(sums + at, tl.zeros((BLOCK,), tl.int64), known)


@triton.jit
def triangle(i, j):
    """Where the product of rows i and j stands."""
    high, low = tl.maximum(i, j), tl.minimum(i, j)
    return high * (high + 1) // 2 + low


@triton.jit
def rest(faded, start, known, TAPS: tl.constexpr, ROWS: tl.constexpr):
    """Return b - M w of some systems, [systems, ROWS]; `faded` and `start` point to each."""
    k = tl.arange(0, ROWS)[None, :]
    inside = known[:, None] & (k < TAPS)
    out = tl.load(faded[:, None] + triangle(k * 0 + TAPS, k), inside, other=0)
    for j in range(TAPS):
        weight = tl.load(start + j, known, other=0)
        out -= tl.load(faded[:, None] + triangle(k, k * 0 + j), inside, other=0) * weight[:, None]
    return out


@triton.jit
def solve(matrix, target, TAPS: tl.constexpr, ROWS: tl.constexpr):
    """Solve M x = target of some systems; [systems, ROWS, ROWS] and [systems, ROWS].

    L D L' with a unit diagonal in L, whose strict lower triangle takes M's place.
    """
    i = tl.arange(0, ROWS)[None, :, None]
    j = tl.arange(0, ROWS)[None, None, :]
    k = tl.arange(0, ROWS)[None, :]
    inverse = target * 0.0
    for n in range(TAPS):
        # L D, of which the diagonal is D.
        column = tl.sum(tl.where(j == n, matrix, 0.0), 2)
        pivot = 1.0 / tl.sum(tl.where(k == n, column, 0.0), 1)
        inverse = tl.where(k == n, pivot[:, None], inverse)
        unit = column * pivot[:, None]
        lower = (i > n) & (j > n) & (j <= i)
        matrix = tl.where(lower, matrix - column[:, :, None] * unit[:, None, :], matrix)
        matrix = tl.where((j == n) & (i > n), unit[:, :, None], matrix)
    for n in range(TAPS):
        known = tl.sum(tl.where(k == n, target, 0.0), 1)
        unit = tl.sum(tl.where(j == n, matrix, 0.0), 2)
        target = tl.where(k > n, target - unit * known[:, None], target)
    target = target * inverse
    for back in range(TAPS):
        n = TAPS - 1 - back
        known = tl.sum(tl.where(k == n, target, 0.0), 1)
        unit = tl.sum(tl.where(i == n, matrix, 0.0), 1)
        target = tl.where(k < n, target - unit * known[:, None], target)
    return target


@triton.jit
def common_kernel(
    faded, defaults, common, constants, which, systems, planes_each,
    TAPS: tl.constexpr, PRODUCTS: tl.constexpr, ROWS: tl.constexpr, SYSTEMS: tl.constexpr,
):  # fmt: skip
    """One program finds what is common to the classes of SYSTEMS phases of a level group."""
    n = tl.program_id(0) * SYSTEMS + tl.arange(0, SYSTEMS)
    known = n < systems
    slot = slot_of(tl.where(known, 16 * n, 0), which, planes_each)
    k = tl.arange(0, ROWS)[None, :]
    i, j = tl.arange(0, ROWS)[None, :, None], tl.arange(0, ROWS)[None, None, :]
    inside = known[:, None, None] & (i < TAPS) & (j <= i)
    matrix = tl.zeros((SYSTEMS, ROWS, ROWS), tl.float64)
    target = tl.zeros((SYSTEMS, ROWS), tl.float64)
    for c in range(16):
        of_class = faded + (slot + c) * PRODUCTS
        matrix += tl.load(of_class[:, None, None] + triangle(i, j), inside, other=0)
        target += rest(of_class, defaults + (slot + c) % 144 * TAPS, known, TAPS, ROWS)
    matrix = tl.where((i == j) & (i < TAPS), matrix + tl.load(constants + 1), matrix)
    found = solve(matrix, target, TAPS, ROWS)
    tl.store(common + n[:, None] * ROWS + k, found, known[:, None])


@triton.jit
def class_kernel(
    faded, defaults, common, start, weights, constants, which, systems, planes_each,
    TAPS: tl.constexpr, PRODUCTS: tl.constexpr, ROWS: tl.constexpr, SYSTEMS: tl.constexpr,
):  # fmt: skip
    """One program finds the filters of SYSTEMS classes."""
    n = tl.program_id(0) * SYSTEMS + tl.arange(0, SYSTEMS)
    known = n < systems
    slot = slot_of(tl.where(known, n, 0), which, planes_each)
    k = tl.arange(0, ROWS)[None, :]
    i, j = tl.arange(0, ROWS)[None, :, None], tl.arange(0, ROWS)[None, None, :]
    inside = known[:, None] & (k < TAPS)
    first = tl.load(defaults + (slot % 144)[:, None] * TAPS + k, inside, other=0)
    first += tl.load(common + (n // 16)[:, None] * ROWS + k, inside, other=0)
    place = start + n * ROWS
    tl.store(place[:, None] + k, first, known[:, None])
    # What one thread has stored, all of this program go on to read.
    tl.debug_barrier()
    of_class = faded + slot * PRODUCTS
    target = rest(of_class, place, known, TAPS, ROWS)
    last: tl.constexpr = TAPS * (TAPS + 1) // 2
    errors = tl.load(of_class + last + TAPS, known, other=0)
    for m in range(TAPS):
        both = tl.load(of_class + last + m, known, other=0)
        both += tl.sum(tl.where(k == m, target, 0.0), 1)
        errors -= tl.load(place + m, known, other=0) * both
    # The weights have the unit of the products, a sixteenth.
    samples = 16.0 * tl.load(of_class + last + TAPS + 1, known, other=0)
    variance = (tl.maximum(errors, 0.0) + 64.0) / (samples + 16.0)
    ridge = tl.maximum(tl.load(constants + 2) * variance, 1.0)
    lower = known[:, None, None] & (i < TAPS) & (j <= i)
    matrix = tl.load(of_class[:, None, None] + triangle(i, j), lower, other=0)
    matrix = tl.where((i == j) & (i < TAPS), matrix + ridge[:, None, None], matrix)
    value = tl.floor((first + solve(matrix, target, TAPS, ROWS)) * _SCALE + 0.5)
    value = tl.minimum(tl.maximum(value, -_LIMIT), _LIMIT).to(tl.int32)
    tl.store(weights + slot[:, None] * TAPS + k, value, inside)


def begin(defaults: Tensor, chunks: int, planes: int) -> Filters:
    """Return what the planes of some chunks have learned before their first frame.

    Args:
        defaults: int32 [GROUPS, PHASES, CLASSES, taps].
        chunks: How many.
        planes: Of each of them.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape or a layout is another.
    """
    taps = defaults.shape[-1]
    check("defaults", defaults, torch.int32, [GROUPS, PHASES, CLASSES, taps])
    shape, device = (chunks, planes, GROUPS, PHASES, CLASSES, products(taps)), defaults.device
    return Filters(
        defaults.expand(*shape[:-1], taps).contiguous(),
        torch.zeros(shape, dtype=torch.int64, device=device),
        torch.zeros(chunks, dtype=torch.int32, device=device),
        torch.zeros(shape, dtype=torch.float64, device=device),
    )


def end_frame(learned: Filters, defaults: Tensor, constants: Tensor, which: Tensor) -> None:
    """Fade older sums, add and clear the frame's, and solve for the next frame's filters.

    Args:
        learned: Those of some chunks change.
        defaults: Where filters begin, float64 [GROUPS, PHASES, CLASSES, taps], in steps.
        constants: float64 [3]: what older sums still count, the ridge of what is common and,
            per squared error, that of a class.
        which: The chunks whose frame ends, int32 [A].

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    device, taps = defaults.device, defaults.shape[-1]
    each = check_filters(learned, taps, device)
    check("defaults", defaults, torch.float64, [GROUPS, PHASES, CLASSES, taps])
    check("constants", constants, torch.float64, [3], device)
    planes = check("which", which, torch.int32, [None], device).numel() * each
    if not planes:
        return
    size = products(taps)
    fade_kernel[(planes * SLOTS,)](
        learned.faded, learned.sums, constants, which, each,
        PRODUCTS=size, BLOCK=triton.next_power_of_2(size), **EXACT,
    )  # fmt: skip
    systems = planes * SLOTS // CLASSES
    common = torch.empty((systems, ROWS), dtype=torch.float64, device=device)
    common_kernel[(triton.cdiv(systems, SYSTEMS),)](
        learned.faded, defaults, common, constants, which, systems, each,
        TAPS=taps, PRODUCTS=size, ROWS=ROWS, SYSTEMS=SYSTEMS, num_warps=8, **EXACT,
    )  # fmt: skip
    systems = planes * SLOTS
    start = torch.empty((systems, ROWS), dtype=torch.float64, device=device)
    class_kernel[(triton.cdiv(systems, SYSTEMS),)](
        learned.faded, defaults, common, start, learned.weights, constants, which, systems, each,
        TAPS=taps, PRODUCTS=size, ROWS=ROWS, SYSTEMS=SYSTEMS, num_warps=8, **EXACT,
    )  # fmt: skip
    learned.age.index_add_(0, which, torch.ones_like(which))
