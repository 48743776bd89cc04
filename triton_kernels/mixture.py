"""The cumulative of a discretized logistic mixture, in integers: intervals of given symbols.

With N = high - low + 1 symbols, total = 2**precision, and S the weighted sum of the components'
sigmoids at the left edge of z, scaled to 2**36:

    C(low) = 0,   C(z) = ((S >> 6) * (total - N) >> 30) + z - low,   C(high + 1) = total

The sigmoid is a frozen table with integer interpolation. 64 signed bits hold every step: a distance
is below 2**32, times a reciprocal at most 2**56; S is at most 2**36, and its product below 2**61.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.checks import EXACT, check

BLOCK = 256
MAX_PRECISION = 31
MAX_COMPONENTS = 16

# The grids of the parameters and of the table, as the format has them.
_ONE = tl.constexpr(256)  # of a mean, a symbol step
_HALF = tl.constexpr(128)
_LIMIT = tl.constexpr(18 << 20)  # of the table, in arguments of 2**-20
_STEP_BITS = tl.constexpr(14)
_STEP_MASK = tl.constexpr((1 << 14) - 1)
_DELTA_BITS = tl.constexpr(20)
_DELTA_MASK = tl.constexpr((1 << 20) - 1)
_SUM_DROP = tl.constexpr(6)
_SUM_BITS = tl.constexpr(30)
TABLE_SIZE = 2 * 18 * 64


class Tables(NamedTuple):
    """The frozen tables on a device; made by `tables`.

    Attributes:
        packed: int64 [2304]: an entry of the sigmoid, and in its low 20 bits the step to the next.
        reciprocals: int64 [8]: of the scales of one octave.
    """

    packed: Tensor
    reciprocals: Tensor


class Support(NamedTuple):
    """What a mixture is cut into.

    Attributes:
        low: The least symbol, at least -2**20.
        high: The greatest, at most 2**20 and low + 2**19 - 1.
        precision: Bits of the total mass, 1..31, 2**precision > high - low.
    """

    low: int
    high: int
    precision: int


def tables(sigmoid: Tensor, reciprocals: Tensor, device: torch.device) -> Tables:
    """Send the frozen tables to a device.

    Args:
        sigmoid: int32 [2305], rising to 2**24.
        reciprocals: int64 [8], at most 2**24.
        device: Where they are looked up.

    Raises:
        TypeError: A table has another type.
        ValueError: A table has another shape.
    """
    entries = check("sigmoid", sigmoid, torch.int32, [TABLE_SIZE + 1]).to(torch.int64)
    check("reciprocals", reciprocals, torch.int64, [8])
    packed = (entries[:-1] << _DELTA_BITS.value) | entries.diff()
    return Tables(packed.to(device), reciprocals.to(device))


@triton.jit
def sigmoid_of(distance, reciprocal, shift, packed):
    """Interpolate 2**24 * sigmoid(distance / 256 / scale)."""
    argument = (distance * reciprocal) >> shift
    argument = tl.minimum(tl.maximum(argument, -_LIMIT), _LIMIT - 1) + _LIMIT
    pair = tl.load(packed + (argument >> _STEP_BITS))
    part = (pair & _DELTA_MASK) * (argument & _STEP_MASK)
    return (pair >> _DELTA_BITS) + (part >> _STEP_BITS)


@triton.jit
def component(mean, scale, weight, reciprocals, at, known):
    """Load a component: mean, reciprocal scale, shift and weight, int64."""
    index = tl.load(scale + at, known, other=0).to(tl.int64)
    return (
        tl.load(mean + at, known, other=0).to(tl.int64),
        tl.load(reciprocals + (index & 7)),
        7 + (index >> 3),
        tl.load(weight + at, known, other=0).to(tl.int64),
    )


@triton.jit
def cumulative(total, z, low, high, precision):
    """Turn weighted sums of sigmoids at the left edges of z into C(z), z from low to high + 1."""
    whole = tl.full((1,), 1, tl.int64) << precision
    mass = whole - (high - low + 1)
    inner = (((total >> _SUM_DROP) * mass) >> _SUM_BITS) + z - low
    return tl.where(z == low, 0, tl.where(z == high + 1, whole, inner))


@triton.jit
def search(
    slot, mean, scale, weight, packed, reciprocals, at, known, low, high, precision,
    ROWS: tl.constexpr, K: tl.constexpr, ROUNDS: tl.constexpr, WAYS_BITS: tl.constexpr,
):  # fmt: skip
    """Find the symbols whose intervals hold some slots, int64 [ROWS]; `at` is where mixtures begin.

    A round asks for WAYS symbols at once which of them begin at or below the slot: their count
    says where the next round, WAYS times finer, looks. The first of them is always below.

    Returns:
        The symbols, and the left ends and widths of their intervals.
    """
    way = tl.arange(0, 1 << WAYS_BITS)[None, :].to(tl.int64)
    z = tl.zeros((ROWS,), dtype=tl.int64) + low
    # Loops stay loops: unrolled, all components would sit in registers at once.
    for n in tl.range(ROUNDS, loop_unroll_factor=1):
        step = WAYS_BITS * (ROUNDS - 1 - n)
        tried = z[:, None] + (way << step)
        total = tl.zeros((ROWS, 1 << WAYS_BITS), dtype=tl.int64)
        for k in tl.range(K, loop_unroll_factor=1, disable_licm=True):
            m, reciprocal, shift, share = component(mean, scale, weight, reciprocals, at + k, known)
            distance = (2 * tried - 1) * _HALF - m[:, None]
            total += share[:, None] * sigmoid_of(
                distance, reciprocal[:, None], shift[:, None], packed
            )
        below = (tried <= high) & (cumulative(total, tried, low, high, precision) <= slot[:, None])
        z += (tl.sum(below.to(tl.int64), 1) - 1) << step
    left = tl.zeros((ROWS,), dtype=tl.int64)
    right = tl.zeros((ROWS,), dtype=tl.int64)
    for k in tl.range(K, loop_unroll_factor=1, disable_licm=True):
        m, reciprocal, shift, share = component(mean, scale, weight, reciprocals, at + k, known)
        distance = (2 * z - 1) * _HALF - m
        left += share * sigmoid_of(distance, reciprocal, shift, packed)
        right += share * sigmoid_of(distance + _ONE, reciprocal, shift, packed)
    begin = cumulative(left, z, low, high, precision)
    return z, begin, cumulative(right, z + 1, low, high, precision) - begin


@triton.jit
def intervals_kernel(
    symbols, mean, scale, weight, packed, reciprocals, start, freq, count, low, high, precision,
    K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program works BLOCK symbols out; see `intervals`."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    known = at < count
    z = tl.load(symbols + at, known, other=0).to(tl.int64)
    left = tl.zeros((BLOCK,), dtype=tl.int64)
    right = tl.zeros((BLOCK,), dtype=tl.int64)
    for k in range(K):
        m, reciprocal, shift, share = component(mean, scale, weight, reciprocals, at * K + k, known)
        distance = (2 * z - 1) * _HALF - m
        left += share * sigmoid_of(distance, reciprocal, shift, packed)
        right += share * sigmoid_of(distance + _ONE, reciprocal, shift, packed)
    begin = cumulative(left, z, low, high, precision)
    end = cumulative(right, z + 1, low, high, precision)
    tl.store(start + at, begin.to(tl.int32), known)
    tl.store(freq + at, (end - begin).to(tl.int32), known)


def check_tables(tables: Tables, device: torch.device) -> None:
    """Check the frozen tables.

    Raises:
        TypeError: A table has another type.
        ValueError: A shape, a device or a layout is another.
    """
    check("packed", tables.packed, torch.int64, [TABLE_SIZE], device)
    check("reciprocals", tables.reciprocals, torch.int64, [8], device)


def check_parameters(
    mean: Tensor, scale: Tensor, weight: Tensor, support: Support, tables: Tables
) -> int:
    """Check the parameters of n symbols and the tables; return K.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device, a layout or the support is out of range.
    """
    count, components = check("mean", mean, torch.int32, [None, None]).shape
    check("scale", scale, torch.int32, [count, components], mean.device)
    check("weight", weight, torch.int32, [count, components], mean.device)
    check_tables(tables, mean.device)
    if not 1 <= components <= MAX_COMPONENTS:
        raise ValueError(f"{components} components are not in 1..{MAX_COMPONENTS}")
    low, high, precision = support
    fits = -(1 << 20) <= low <= high <= 1 << 20 and high - low < 1 << 19
    if not (fits and 1 <= precision <= MAX_PRECISION and high - low < 1 << precision):
        raise ValueError(f"{support} is empty, too large or too far out")
    return components


def intervals(
    symbols: Tensor,
    mean: Tensor,
    scale: Tensor,
    weight: Tensor,
    support: Support,
    tables: Tables,
) -> tuple[Tensor, Tensor]:
    """Return (start, freq) of symbols under their mixtures.

    Args:
        symbols: int32 [n] in [low, high].
        mean: int32 [n, K], in 1/256 of a symbol step.
        scale: int32 [n, K] in 0..191; index i stands for 2**(i / 8 - 5) symbol steps.
        weight: int32 [n, K], at least 0, each row's sum 2**12.
        support: Of all symbols.
        tables: From `tables`.

    Returns:
        int32 [n] each.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device, a layout or the support is out of range.
    """
    components = check_parameters(mean, scale, weight, support, tables)
    count = check("symbols", symbols, torch.int32, [mean.shape[0]], mean.device).numel()
    start, freq = torch.empty_like(symbols), torch.empty_like(symbols)
    if count:
        intervals_kernel[(triton.cdiv(count, BLOCK),)](
            symbols, mean, scale, weight, *tables, start, freq, count, *support,
            K=components, BLOCK=BLOCK, **EXACT,
        )  # fmt: skip
    return start, freq
