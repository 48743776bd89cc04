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

import numpy as np
from numpy.typing import NDArray

from flowarchive.loops import compiled
from flowarchive.motion.field import BLOCK, Field, check_field

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

_SIDE = 4 * BLOCK


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
    rows = np.empty((_SIDE + TAPS, _RUN * BLOCK), dtype=np.int32)
    patch = np.empty((_SIDE + TAPS, _RUN * BLOCK + TAPS), dtype=np.int32)
    _compensate(
        source, vectors, BLOCK // fold_y, BLOCK // fold_x, 4 // fold_y, 4 // fold_x,
        low << VALUE_BITS, high << VALUE_BITS, target, rows, patch, FILTERS,
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
    rows: Int32,
    patch: Int32,
    filters: Int32,
) -> None:
    """Compensate run by run: blocks of a row that share a vector go together."""
    height, width = plane.shape
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
            inside = y >= BEFORE and x >= BEFORE
            if inside and y + tall + 5 <= height and x + wide + 5 <= width:
                source = plane[
                    y - BEFORE : y + tall + TAPS - BEFORE, x - BEFORE : x + wide + TAPS - BEFORE
                ]
            else:
                _gather(plane, y - BEFORE, x - BEFORE, tall + TAPS, wide + TAPS, patch)
                source = patch[: tall + TAPS, : wide + TAPS]
            _predict(
                source, filters[phase_y], filters[phase_x], phase_y != 0, phase_x != 0,
                low, high, target[top : top + tall, left : left + wide], rows,
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
    source: Int32,
    filter_y: Int32,
    filter_x: Int32,
    between_y: bool,
    between_x: bool,
    low: int,
    high: int,
    target: Int32,
    rows: Int32,
) -> None:
    """Filter one rectangle; `source` begins three samples above and to the left of it."""
    tall, wide = target.shape
    least = np.int32(low)
    most = np.int32(high)
    if between_x:
        first = 0 if between_y else BEFORE
        last = tall + TAPS - 1 if between_y else tall + BEFORE
        a, b, c, d, e, f, g, h = filter_x
        for i in range(first, last):
            s = source[i]
            t = rows[i]
            for j in range(wide):
                t[j] = (
                    a * s[j] + b * s[j + 1] + c * s[j + 2] + d * s[j + 3]
                    + e * s[j + 4] + f * s[j + 5] + g * s[j + 6] + h * s[j + 7]
                )  # fmt: skip
        if not between_y:
            for i in range(tall):
                t = rows[i + BEFORE]
                r = target[i]
                for j in range(wide):
                    r[j] = min(max(np.int32(np.int32(t[j] + 8) >> 4), least), most)
            return
    elif not between_y:
        for i in range(tall):
            s = source[i + BEFORE]
            r = target[i]
            for j in range(wide):
                r[j] = min(max(np.int32(s[j + BEFORE] << 2), least), most)
        return
    a, b, c, d, e, f, g, h = filter_y
    bias = np.int32(512 if between_x else 8)
    shift = np.int32(10 if between_x else 4)
    for i in range(tall):
        r = target[i]
        if between_x:
            for j in range(wide):
                r[j] = (
                    a * rows[i, j] + b * rows[i + 1, j] + c * rows[i + 2, j] + d * rows[i + 3, j]
                    + e * rows[i + 4, j] + f * rows[i + 5, j] + g * rows[i + 6, j]
                    + h * rows[i + 7, j] + bias
                )  # fmt: skip
        else:
            for j in range(wide):
                k = j + BEFORE
                r[j] = (
                    a * source[i, k] + b * source[i + 1, k] + c * source[i + 2, k]
                    + d * source[i + 3, k] + e * source[i + 4, k] + f * source[i + 5, k]
                    + g * source[i + 6, k] + h * source[i + 7, k] + bias
                )  # fmt: skip
        for j in range(wide):
            r[j] = min(max(np.int32(r[j] >> shift), least), most)
