"""The cumulative of a logistic mixture in integers, and the search that inverts it.

With N = high - low + 1 symbols, total = 2**precision, and S the weighted sum of the components'
sigmoids at the left edge of z, scaled to 2**36:

    C(low) = 0,   C(z) = ((S >> 6) * (total - N) >> 30) + z - low,   C(high + 1) = total

docs/format.md, "Entropy models", defines every step; here are its frozen tables and loops.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, localcontext
from functools import cache
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from flowarchive.ans import refill_row
from flowarchive.loops import compiled
from flowarchive.vectors import INT32, INT64, Value, lanes

MEAN_BITS = 8
"""Means are in 1/256 of a symbol step."""

WEIGHT_BITS = 12
"""The weights of a mixture sum to 2**12."""

SCALE_COUNT = 192
SCALES_PER_OCTAVE = 8
SCALE_MIN_LOG2 = -5
"""Scale index i stands for 2**(i / 8 - 5) symbol steps."""

SIG_BITS = 24
"""The sigmoid table's one is 2**24."""

SIG_RANGE = 18
SIG_STEPS = 64
"""The sigmoid table covers -18..18 with 64 steps a unit; outside it is 0 and 2**24."""

RECIPROCALS = (16777216, 15384775, 14107901, 12937002, 11863283, 10878679, 9975792, 9147842)
"""round(2**(24 - j / 8)): the reciprocal scales of one octave."""

# Arguments of the sigmoid are in 2**-20; a step of its table is 2**14 of them.
_ARGUMENT_BITS = 20
_STEP_BITS = 14
_STEP_MASK = (1 << _STEP_BITS) - 1
_LIMIT = SIG_RANGE << _ARGUMENT_BITS
# Bits dropped from the weighted sum of sigmoids, and those that are left of it.
_SUM_DROP = 6
_SUM_BITS = SIG_BITS + WEIGHT_BITS - _SUM_DROP

# A table entry and the difference to the next one share a 64-bit word, to be read at once.
DELTA_BITS = 20
_DELTA_MASK = (1 << DELTA_BITS) - 1

# The first guess of a search comes from a table of 2**10 quantiles, in units of 2**-10.
_GUESS_BITS = 10
# Scales of the first guess are in 2**-13 of a symbol step; means, and so guesses, in 2**-8.
_GUESS_SCALE_BITS = 13
_GUESS_SHIFT = 10 + _GUESS_SCALE_BITS - MEAN_BITS
# Newton steps before a search falls back on halving.
_NEWTON_STEPS = 8
# Symbols whose sums are worked out together, in vectors of so many.
_GROUP, LANES = 256, 8

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Uint32 = NDArray[np.uint32]
Uint64 = NDArray[np.uint64]
# numba makes every one of these a 64-bit signed integer.
Whole = int | np.int64


@cache
def sigmoid_table() -> Int32:
    """Return the frozen sigmoid, round(2**24 / (1 + exp(18 - i / 64))) for i in 0..2304.

    Integers of 160 bits, correctly rounded, make it the same everywhere; libm's exp would not.

    Returns:
        int32 [2305], read-only.
    """
    one = 1 << 160
    with localcontext() as context:
        context.prec = 60
        step, power = (round(one * Decimal(x).exp()) for x in (-1 / SIG_STEPS, SIG_RANGE))
    entries = []
    for _ in range(2 * SIG_RANGE * SIG_STEPS + 1):  # power is one * exp(18 - i / 64)
        entries.append(((one << SIG_BITS + 1) // (one + power) + 1) >> 1)
        power = power * step >> 160
    table = np.array(entries, dtype=np.int32)
    table.setflags(write=False)
    return table


@cache
def search_tables() -> tuple[Int64, Int64, Int64, Int64]:
    """Return what the loops read: packed sigmoid, reciprocals, quantiles, scales.

    The first two are the frozen tables. The last two only choose where a search begins, never
    what it finds, so floats may make them.
    """
    sigmoid = sigmoid_table().astype(np.int64)
    packed = (sigmoid[:-1] << DELTA_BITS) | np.diff(sigmoid)
    arguments = (np.arange(sigmoid.size) - SIG_RANGE * SIG_STEPS) * (1024 // SIG_STEPS)
    middles = (np.arange(1 << _GUESS_BITS) + 0.5) * 2.0 ** (SIG_BITS - _GUESS_BITS)
    quantiles = np.rint(np.interp(middles, sigmoid, arguments)).astype(np.int64)
    exponents = np.arange(SCALE_COUNT) / SCALES_PER_OCTAVE + SCALE_MIN_LOG2
    scales = np.rint(2.0 ** (exponents + _GUESS_SCALE_BITS)).astype(np.int64)
    return packed, np.array(RECIPROCALS, dtype=np.int64), quantiles, scales


@compiled
def interpolate_sigmoid(distance: Whole, reciprocal: Whole, shift: Whole, packed: Int64) -> Whole:
    """Interpolate 2**24 * sigmoid(distance / 256 / scale)."""
    argument = (distance * reciprocal) >> shift
    argument = min(max(argument, -_LIMIT), _LIMIT - 1) + _LIMIT
    # Unsigned indices spare numba's test for negative ones; these lie in 0..2303.
    pair: np.int64 = packed[np.uint64(argument >> _STEP_BITS)]
    return (pair >> DELTA_BITS) + (((pair & _DELTA_MASK) * (argument & _STEP_MASK)) >> _STEP_BITS)


# Why 64 signed bits hold everything, with |z| <= 2**20, any int32 mean, any precision to 31:
#   distance = (2z - 1) * 128 - mean       < 2**32 in magnitude
#   distance * reciprocal                  <= 2**56, as reciprocal <= 2**24
#   S = sum of weight * sigmoid            <= 2**36, as the weights sum to 2**12
#   (S >> 6) * (total - N)                 < 2**61
# C increases strictly from 0 to total: clamp, shifts and interpolation are monotone in z, and
# z - low adds one a symbol. Its inner values lie between its ends, since the first term is at
# least 0 and at most total - N, and z - low is 1..N - 1 there.


@compiled
def _ends(
    z: Int64,
    row: Int64,
    count: int,
    components: int,
    mean: Int32,
    scale: Int32,
    weight: Int32,
    low: int,
    high: int,
    total: int,
    packed: Int64,
    reciprocals: Int64,
    left: Int64,
    right: Int64,
) -> None:
    """Write C(z) and C(z + 1) of `count` symbols to `left` and `right`.

    Args:
        z: Symbols in [low, high].
        row: The parameters' row of each.
        count: How many of the leading entries to work on.
        components: K.
        mean: [n * K], as the rest flat.
        scale: [n * K].
        weight: [n * K].
        low: The least symbol.
        high: The greatest symbol.
        total: 2**precision.
        packed: From `search_tables`.
        reciprocals: From `search_tables`.
        left: Receives C(z).
        right: Receives C(z + 1).
    """
    size = 8 * LANES
    whole = count // LANES
    for block in range(whole):
        _find_ends(
            z.ctypes.data + block * size,
            row.ctypes.data + block * size,
            components,
            mean.ctypes.data,
            scale.ctypes.data,
            weight.ctypes.data,
            low,
            high,
            total,
            packed.ctypes.data,
            reciprocals.ctypes.data,
            left.ctypes.data + block * size,
            right.ctypes.data + block * size,
        )  # type: ignore[call-arg]
    # A search ends with a few symbols, for which whole vectors take longer.
    mass = total - (high - low + 1)
    for j in range(whole * LANES, count):
        below = np.int64(0)
        upto = np.int64(0)
        for k in range(components):
            at = np.uint64(row[j] * components + k)
            index = np.int64(scale[at])
            reciprocal = reciprocals[np.uint64(index & 7)]
            shift = 7 + (index >> 3)
            distance = ((2 * z[j] - 1) << 7) - np.int64(mean[at])
            share = np.int64(weight[at])
            below += share * interpolate_sigmoid(distance, reciprocal, shift, packed)
            upto += share * interpolate_sigmoid(distance + 256, reciprocal, shift, packed)
        place = z[j] - low
        left[j] = 0 if z[j] == low else (((below >> _SUM_DROP) * mass) >> _SUM_BITS) + place
        upto = (((upto >> _SUM_DROP) * mass) >> _SUM_BITS) + place + 1
        right[j] = total if z[j] == high else upto


@intrinsic
def _find_ends(
    typing: Any, z: Any, row: Any, components: Any, mean: Any, scale: Any, weight: Any, low: Any,
    high: Any, total: Any, packed: Any, reciprocals: Any, left: Any, right: Any,
) -> Any:  # fmt: skip
    """Write the ends of LANES symbols; arrays are addresses, see `_ends`."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _write_ends(*(Value(builder, value) for value in args))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 13), write


def _write_ends(
    z: Value, row: Value, components: Value, mean: Value, scale: Value, weight: Value, low: Value,
    high: Value, total: Value, packed: Value, reciprocals: Value, left: Value, right: Value,
) -> None:  # fmt: skip
    """Write the code of `_find_ends`."""
    whole = lanes(INT64, LANES)
    symbols = z.load(whole)
    rows = row.load(whole) * (components * 4).spread(LANES)
    arrays = scale, weight, mean
    bounds = low, high, total
    write_ends(
        symbols,
        components,
        lambda k: [((array + k * 4).spread(LANES) + rows).gather(INT32) for array in arrays],
        bounds,
        (packed, reciprocals),
        (left, right),
    )


def write_ends(
    symbols: Value,
    components: Value,
    parameters: Callable[[Value], list[Value]],
    bounds: tuple[Value, Value, Value],
    tables: tuple[Value, Value],
    ends: tuple[Value, Value],
) -> None:
    """Write the code of C(z) and C(z + 1) of LANES symbols.

    Args:
        symbols: int64.
        components: K.
        parameters: Gives scales, weights and means of a component, int32.
        bounds: The least symbol, the greatest, and 2**precision.
        tables: Addresses of the packed sigmoid and of the reciprocals.
        ends: Addresses of what is written.
    """
    whole = symbols.kind
    low, high, total = bounds
    sigmoids, octave = (table.spread(LANES) for table in tables)
    edge = (symbols * 2 - 1) * 128
    sums = [symbols.constant(0).variable() for _ in range(2)]
    with components.range() as k:
        index, share, center = (value.to(whole) for value in parameters(k))
        reciprocal, shift = (octave + (index & 7) * 8).gather(INT64), (index >> 3) + 7
        for n, end in enumerate(sums):
            distance = edge - center + 256 * n
            sigmoid = write_sigmoid(distance, reciprocal, shift, sigmoids)
            end.set(end.get() + share * sigmoid)
    mass = (total - (high - low + 1)).spread(LANES)
    place = symbols - low.spread(LANES)
    below, upto = (
        (((end.get() >> _SUM_DROP) * mass) >> _SUM_BITS) + place + n for n, end in enumerate(sums)
    )
    left, right = ends
    nothing, all_ = symbols.constant(0), total.spread(LANES)
    left.store(below.unless(symbols, "==", low.spread(LANES), nothing))
    right.store(upto.unless(symbols, "==", high.spread(LANES), all_))


def write_sigmoid(distance: Value, reciprocal: Value, shift: Value, packed: Value) -> Value:
    """Write the code of `interpolate_sigmoid`, for vectors; `packed` is its table's address."""
    argument = ((distance * reciprocal) >> shift).clamped(-_LIMIT, _LIMIT - 1) + _LIMIT
    pair = (packed + (argument >> _STEP_BITS) * 8).gather(INT64)
    rest = (pair & _DELTA_MASK) * (argument & _STEP_MASK)
    return (pair >> DELTA_BITS) + (rest >> _STEP_BITS)


@compiled
def find_intervals(
    symbols: Int32,
    components: int,
    mean: Int32,
    scale: Int32,
    weight: Int32,
    low: int,
    high: int,
    precision: int,
    packed: Int64,
    reciprocals: Int64,
    start: Uint32,
    freq: Uint32,
) -> None:
    """Write the intervals of symbols in [low, high]; parameters are checked and flat."""
    z = np.empty(_GROUP, np.int64)
    row = np.empty(_GROUP, np.int64)
    left = np.empty(_GROUP, np.int64)
    right = np.empty(_GROUP, np.int64)
    total = 1 << precision
    for base in range(0, symbols.size, _GROUP):
        count = min(_GROUP, symbols.size - base)
        for j in range(count):
            z[j] = symbols[base + j]
            row[j] = base + j
        _ends(
            z,
            row,
            count,
            components,
            mean,
            scale,
            weight,
            low,
            high,
            total,
            packed,
            reciprocals,
            left,
            right,
        )
        for j in range(count):
            start[base + j] = left[j]
            freq[base + j] = right[j] - left[j]


@intrinsic
def _try_first(
    typing: Any, heads: Any, precision: Any, components: Any, mean: Any, scale: Any, weight: Any,
    low: Any, high: Any, packed: Any, reciprocals: Any, quantiles: Any, spreads: Any, room: Any,
    slots: Any, z: Any, left: Any, right: Any,
) -> Any:  # fmt: skip
    """Write slots, first guesses and their ends of LANES neighbors.

    Arrays are addresses, see `pop_symbols`, those of parameters of the first neighbor's row; `room`
    is int32 [3 * K, LANES], overwritten.
    """

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _write_first(*(Value(builder, value) for value in args))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 17), write


def _write_first(
    heads: Value, precision: Value, components: Value, mean: Value, scale: Value, weight: Value,
    low: Value, high: Value, packed: Value, reciprocals: Value, quantiles: Value, spreads: Value,
    room: Value, slots: Value, z: Value, left: Value, right: Value,
) -> None:  # fmt: skip
    """Write the code of `_try_first`."""
    whole, narrow = lanes(INT64, LANES), lanes(INT32, LANES)
    total = precision.constant(1) << precision
    slot = heads.load(whole) & (total - 1).spread(LANES)
    slots.store(slot)
    part = (slot << _GUESS_BITS) >> precision.spread(LANES)
    quantile = (quantiles.spread(LANES) + part * 8).gather(INT64)
    rows = quantile.constant(list(range(LANES))) * (components * 4).spread(LANES)
    guess = quantile.constant(0).variable()
    place = 4 * LANES
    with components.range() as k:
        found = [
            ((array + k * 4).spread(LANES) + rows).gather(INT32) for array in (scale, weight, mean)
        ]
        for n, values in enumerate(found):
            (room + (k * 3 + n) * place).store(values)
        index, share, center = (values.to(whole) for values in found)
        spread = (spreads.spread(LANES) + index * 8).gather(INT64)
        guess.set(guess.get() + share * (center + ((quantile * spread) >> _GUESS_SHIFT)))
    symbols = ((guess.get() >> WEIGHT_BITS) + 128) >> MEAN_BITS
    symbols = symbols.clamped(low.spread(LANES), high.spread(LANES))
    z.store(symbols)
    write_ends(
        symbols,
        components,
        lambda k: [(room + (k * 3 + n) * place).load(narrow) for n in range(3)],
        (low, high, total),
        (packed, reciprocals),
        (left, right),
    )


@compiled
def pop_symbols(
    head: Uint64,
    tail: Uint32,
    size: int,
    symbols: Int32,
    components: int,
    mean: Int32,
    scale: Int32,
    weight: Int32,
    low: int,
    high: int,
    precision: int,
    packed: Int64,
    reciprocals: Int64,
    quantiles: Int64,
    spreads: Int64,
) -> int:
    """Pop symbols; parameters are checked and flat.

    A symbol z is right when C(z) <= slot < C(z + 1). Both ends are computed at each try, since
    the right symbol needs both for its pop, and a wrong one gives a Newton step with its own
    frequency for the slope. The bracket [bottom, top] keeps every try in the support and makes
    the search end.

    Returns:
        The new size of the tail, or -1 where it held too few words.
    """
    lanes = head.size
    z = np.empty(lanes, np.int64)
    row = np.empty(lanes, np.int64)
    left = np.empty(lanes, np.int64)
    right = np.empty(lanes, np.int64)
    bottom = np.empty(lanes, np.int64)
    top = np.empty(lanes, np.int64)
    slots = np.empty(lanes, np.int64)
    room = np.empty(3 * components * LANES, np.int32)
    total = 1 << precision
    shift = np.uint64(precision)
    mask = np.uint64(total - 1)
    for base in range(0, symbols.size, lanes):
        width = min(lanes, symbols.size - base)
        whole = width // LANES * LANES
        # The mean of the components' own quantiles is near the mixture's quantile.
        for first in range(0, whole, LANES):
            start = 4 * (base + first) * components
            _try_first(
                head.ctypes.data + 8 * first,
                precision,
                components,
                mean.ctypes.data + start,
                scale.ctypes.data + start,
                weight.ctypes.data + start,
                low,
                high,
                packed.ctypes.data,
                reciprocals.ctypes.data,
                quantiles.ctypes.data,
                spreads.ctypes.data,
                room.ctypes.data,
                slots.ctypes.data + 8 * first,
                z.ctypes.data + 8 * first,
                left.ctypes.data + 8 * first,
                right.ctypes.data + 8 * first,
            )  # type: ignore[call-arg]
        for lane in range(width):
            row[lane] = base + lane
            bottom[lane] = low
            top[lane] = high
        for lane in range(whole, width):
            slot = np.int64(head[lane] & mask)
            slots[lane] = slot
            quantile = quantiles[np.uint64((slot << _GUESS_BITS) >> precision)]
            guess = np.int64(0)
            for k in range(components):
                at = np.uint64((base + lane) * components + k)
                spread = spreads[np.uint64(scale[at])]
                near = np.int64(mean[at]) + ((quantile * spread) >> _GUESS_SHIFT)
                guess += np.int64(weight[at]) * near
            symbol = int(((guess >> WEIGHT_BITS) + 128) >> MEAN_BITS)
            z[lane] = min(max(symbol, low), high)

        # The symbols still searched for stand at the front of the arrays.
        searched = width
        known = whole
        tries = 0
        while searched > 0:
            _ends(
                z[known:],
                row[known:],
                searched - known,
                components,
                mean,
                scale,
                weight,
                low,
                high,
                total,
                packed,
                reciprocals,
                left[known:],
                right[known:],
            )
            missed = 0
            for j in range(searched):
                lane = row[j] - base
                slot = slots[lane]
                freq = np.uint64(right[j] - left[j])
                if left[j] <= slot and slot < right[j]:
                    symbols[row[j]] = z[j]
                    head[lane] = freq * (head[lane] >> shift) + np.uint64(slot - left[j])
                    continue
                if slot < left[j]:
                    first = bottom[j]
                    last = z[j] - 1
                    step = last - np.int64(np.uint64(left[j] - slot - 1) // freq)
                else:
                    first = z[j] + 1
                    last = top[j]
                    step = first + np.int64(np.uint64(slot - right[j]) // freq)
                if step < first or step > last or tries >= _NEWTON_STEPS:
                    step = (first + last) >> 1
                z[missed] = step
                bottom[missed] = first
                top[missed] = last
                row[missed] = row[j]
                missed += 1
            searched = missed
            known = 0
            tries += 1
        size = refill_row(head, tail, size, width)
        if size < 0:
            break
    return size


@compiled
def are_parameters(scale: Int32, weight: Int32) -> bool:
    """Whether scales are indices of the table, and weights at least 0 and 2**12 in each row."""
    rows, components = weight.shape
    # Their addresses are used below; this refuses arrays that are not contiguous.
    index, share = scale.reshape(-1), weight.reshape(-1)
    wrong = np.zeros(LANES, dtype=np.int64)
    whole = rows // LANES * LANES
    for i in range(0, whole, LANES):
        at = 4 * i * components
        _check_rows(index.ctypes.data + at, share.ctypes.data + at, components, wrong.ctypes.data)  # type: ignore[call-arg]
    for i in range(whole, rows):
        total = np.int64(0)
        for k in range(components):
            total += weight[i, k]
            wrong[0] |= scale[i, k] < 0 or scale[i, k] >= SCALE_COUNT or weight[i, k] < 0
        wrong[0] |= total != 1 << WEIGHT_BITS
    return not wrong.any()


@intrinsic
def _check_rows(typing: Any, scale: Any, weight: Any, components: Any, wrong: Any) -> Any:
    """Set bits in `wrong`, int64 [LANES], where `are_parameters` refuses one of as many rows.

    Arrays are addresses.
    """

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        scale, weight, components, wrong = (Value(builder, value) for value in args)
        before = wrong.load(lanes(INT64, LANES))
        rows = before.constant(list(range(LANES))) * (components * 4).spread(LANES)
        total, negative = (before.constant(0).variable() for _ in range(2))
        with components.range() as k:
            index, share = (
                ((array + k * 4).spread(LANES) + rows).gather(INT32).to(before.kind)
                for array in (scale, weight)
            )
            total.set(total.get() + share)
            negative.set(
                negative.get() | index | (before.constant(SCALE_COUNT - 1) - index) | share
            )
        wrong.store(before | (total.get() - (1 << WEIGHT_BITS)) | (negative.get() >> 63))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 4), write
