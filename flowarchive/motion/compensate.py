"""Motion compensation: a plane seen through a field of vectors, in quarters of a sample value.

A vector in quarters of a luma sample is a vector in 1/4, 1/8 or 1/16 of a sample of a plane that
is 1, 2 or 4 times smaller; all are counted in sixteenths here. Between samples stand the
eight-tap DCT interpolation filters, horizontally and then vertically, without a rounding between:

    gain 64 * 64  ->  + 512 >> 10  ->  clamp to [4 low, 4 high]

Two fractional bits of the value are kept, as rounding them away costs rate. Samples outside the
plane are those of its edge.

References:
    Ugur et al., "Motion compensated prediction and interpolation filter design in H.265/HEVC",
    2013, IEEE J-STSP 7(6), for the filters at quarters.
    ITU-T H.266, 2020, table 27, for the ones between.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from flowarchive.loops import compiled
from flowarchive.motion.field import BLOCK, Field, check_field
from flowarchive.vectors import INT32, Value, lanes

Int32 = NDArray[np.int32]

TAPS = 8
BEFORE = 3
"""Taps of a filter, and how many of them stand before the sample it starts from."""

VALUE_BITS = 2
"""Fractional bits of a compensated value."""

MAX_SAMPLE = 1 << 16
"""Largest magnitude of a sample: its sums with two filters stay within 32 bits."""

_HALF = (
    (0, 0, 0, 64, 0, 0, 0, 0),
    (0, 1, -3, 63, 4, -2, 1, 0),
    (-1, 2, -5, 62, 8, -3, 1, 0),
    (-1, 3, -8, 60, 13, -4, 1, 0),
    (-1, 4, -10, 58, 17, -5, 1, 0),
    (-1, 4, -11, 52, 26, -8, 3, -1),
    (-1, 3, -9, 47, 31, -10, 4, -1),
    (-1, 4, -11, 45, 34, -10, 4, -1),
    (-1, 4, -11, 40, 40, -11, 4, -1),
)

FILTERS: Int32 = np.array(
    [*_HALF, *(_HALF[16 - phase][::-1] for phase in range(9, 16))], dtype=np.int32
)
"""int32 [16, 8]: the filter for each sixteenth of a sample; each row sums to 64."""

_RUN = 8
"""Most blocks of a row that are compensated at once."""

# Samples of a row that are filtered at a time, and the room that they need to be read.
_LANES = 16
_ROOM = _LANES + TAPS
_SAMPLES = lanes(INT32, _LANES)


def compensate(
    plane: Int32, field: Field, luma_shape: tuple[int, int], low: int, high: int
) -> Int32:
    """Predict a plane from the same plane of a reference frame.

    Args:
        plane: int32 [h, w] of the reference, each sample at most 2**16 in magnitude.
        field: The frame's motion against that reference.
        luma_shape: (H, W); h and w are H and W divided by 1, 2 or 4 and rounded up.
        low: The least value a sample can have.
        high: The greatest.

    Returns:
        int32 [h, w] in [4 low, 4 high]: four times the predicted samples.

    Raises:
        ValueError: A shape, a type, a vector or the range is wrong.
    """
    vectors = check_field("field", field, luma_shape)
    if plane.dtype != np.int32 or plane.ndim != 2:
        raise ValueError(f"plane is {plane.dtype} {list(plane.shape)}, not int32 [h, w]")
    if not -MAX_SAMPLE <= low <= high <= MAX_SAMPLE:
        raise ValueError(f"samples of [{low}, {high}] are none, or too large")
    fold_y, fold_x = (_fold(full, part) for full, part in zip(luma_shape, plane.shape, strict=True))
    source = np.ascontiguousarray(plane)
    target = np.empty_like(source)
    _compensate(
        source, vectors, BLOCK // fold_y, BLOCK // fold_x, 4 // fold_y, 4 // fold_x,
        low << VALUE_BITS, high << VALUE_BITS, target, FILTERS,
    )  # fmt: skip
    return target


def _fold(full: int, part: int) -> int:
    """Return by how much a plane is smaller than luma in one direction."""
    for fold in (1, 2, 4):
        if -(-full // fold) == part:
            return fold
    raise ValueError(f"{part} samples are no subsampling of {full} by 1, 2 or 4")


@compiled
def _compensate(
    plane: Int32,
    field: Field,
    block_y: int,
    block_x: int,
    scale_y: int,
    scale_x: int,
    low: int,
    high: int,
    target: Int32,
    filters: Int32,
) -> None:
    """Compensate run by run: blocks of a row that share a vector go together."""
    height, width = plane.shape
    rows = np.empty((BLOCK + TAPS, _LANES), dtype=np.int32)
    patch = np.empty((BLOCK + TAPS, _RUN * BLOCK + _ROOM), dtype=np.int32)
    for i in range(field.shape[0]):
        top = i * block_y
        tall = min(block_y, height - top)
        if tall <= 0:
            break
        j = 0
        while j < field.shape[1]:
            dy = int(field[i, j, 0])
            dx = int(field[i, j, 1])
            left = j * block_x
            j += 1
            end = j + _RUN - 1
            while j < min(end, field.shape[1]) and field[i, j, 0] == dy and field[i, j, 1] == dx:
                j += 1
            wide = min(j * block_x, width) - left
            if wide <= 0:
                break
            dy *= scale_y
            dx *= scale_x
            y = top + (dy >> 4)
            x = left + (dx >> 4)
            phase_y = dy & 15
            phase_x = dx & 15
            begin = (y - BEFORE) * width + x - BEFORE
            stop = begin + (tall + TAPS - 1) * width + wide + _ROOM
            if y >= BEFORE and x >= BEFORE and x + wide + 5 <= width and stop <= plane.size:
                source, pitch = plane.ctypes.data + 4 * begin, 4 * width
            else:
                _gather(plane, y - BEFORE, x - BEFORE, tall + TAPS, wide + TAPS, patch)
                source, pitch = patch.ctypes.data, 4 * patch.shape[1]
            for c in range(0, wide, _LANES):
                to = target.ctypes.data + 4 * (top * width + left + c)
                _predict(
                    source + 4 * c, pitch, filters[phase_y], filters[phase_x], low, high,
                    to, 4 * width, tall, min(wide - c, _LANES), rows,
                )  # fmt: skip


@compiled
def _gather(plane: Int32, y: int, x: int, tall: int, wide: int, patch: Int32) -> None:
    """Copy a rectangle of the plane, repeating its edges."""
    height, width = plane.shape
    for i in range(tall):
        row = min(max(y + i, 0), height - 1)
        for j in range(wide):
            patch[i, j] = plane[row, min(max(x + j, 0), width - 1)]


@compiled
def _predict(
    source: int,
    pitch: int,
    filter_y: Int32,
    filter_x: Int32,
    low: int,
    high: int,
    target: int,
    target_pitch: int,
    tall: int,
    wide: int,
    rows: Int32,
) -> None:
    """Filter up to _LANES columns.

    Args:
        source: Address of the sample that is BEFORE samples above and to the left of the first.
        pitch: From one row to the next, in bytes.
        filter_y: int32 [TAPS], from top to bottom.
        filter_x: Alike, from left to right.
        low: The least value.
        high: The greatest.
        target: Address of the first value.
        target_pitch: From one row to the next, in bytes.
        tall: How many rows.
        wide: How many columns.
        rows: int32 [tall + TAPS, _LANES], overwritten.
    """
    start = rows.ctypes.data
    for i in range(tall + TAPS - 1):
        row = start + 4 * _LANES * i
        _filter_across(row, source + pitch * i, filter_x.ctypes.data)  # type: ignore[call-arg]
    for i in range(tall):
        row, out = start + 4 * _LANES * i, target + target_pitch * i
        _filter_down(out, row, filter_y.ctypes.data, low, high, wide)  # type: ignore[call-arg]


def _filtered(source: Value, step: int, taps: Value) -> Value:
    """_LANES samples, filtered with those that follow `step` bytes apart."""
    products = [
        (source + step * k).load(_SAMPLES) * (taps + 4 * k).load(INT32).spread(_LANES)
        for k in range(TAPS)
    ]
    total = products[0]
    for product in products[1:]:
        total += product
    return total


@intrinsic
def _filter_across(typing: Any, out: Any, source: Any, taps: Any) -> Any:
    """Write sums of _LANES columns; the arguments are addresses."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        out, source, taps = (Value(builder, value) for value in args)
        out.store(_filtered(source, 4, taps))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 3), write


@intrinsic
def _filter_down(
    typing: Any, out: Any, source: Any, taps: Any, low: Any, high: Any, count: Any
) -> Any:
    """Write the values of `count` columns; the first three arguments are addresses."""

    def write(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        out, source, taps, low, high, count = (Value(builder, value) for value in args)
        least, most = (bound.to(INT32).spread(_LANES) for bound in (low, high))
        value = (_filtered(source, 4 * _LANES, taps) + 512) >> 10
        out.store_first(value.clamped(least, most), count)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6), write
