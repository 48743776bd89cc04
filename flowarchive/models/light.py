"""Light that changes from frame to frame: fades, flashes, the flicker of old film.

A frame's light says of each of its references, and of each plane, how what is predicted from it is
brought to the frame's own light:

    value  ->  clamp((value * gain + ONE / 2) // ONE + offset)        in quarters of a sample

The encoder compares means of blocks, which small motion hardly changes; a decoder is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from flowarchive import planes
from flowarchive.entropy import Table
from flowarchive.lattice import QUARTERS
from flowarchive.loops import compiled

Int32 = NDArray[np.int32]
Float64 = NDArray[np.float64]

Light = Int32
"""int32 [references, planes, 2]: gains in 1/ONE, 0..LIMIT - 1, and offsets in quarters of a sample,
2**(bits - 8) times -LIMIT / 2..LIMIT / 2 - 1."""

ONE = 1 << 10
LIMIT = 1 << 12

LIT = Table([1, 1])
NUMBERS = Table([1] * LIMIT)

BLOCK = 8  # samples in each direction of the means
FEW = 8  # blocks that tell nothing
ROUNDS, AWAY = 4, 3  # of a fit, and from how many times the median on a block is left out
# Light has changed where it moves blocks by so many steps of 8 bits, and so much of what is left.
STEP, SHARE = 0.5, 0.5


def adjust(values: Int32, lit: Int32, low: int, high: int) -> Int32:
    """Bring values to another light.

    Args:
        values: int32, in quarters of a sample, at most 2**18 in magnitude.
        lit: A gain and an offset, as in `Light`.
        low: The least sample.
        high: The greatest.
    """
    gain, offset = lit
    adjusted: Int32 = ((values * gain + ONE // 2) >> (ONE.bit_length() - 1)) + offset
    return np.clip(adjusted, low * QUARTERS, high * QUARTERS)


def is_lit(lit: Int32) -> bool:
    """Whether gains and offsets change anything."""
    return bool((lit != (ONE, 0)).any())


def adjust_luma(luma: Int32, lit: Int32, bits: int) -> Int32:
    """Bring a reference's luma to the light of a frame, for the search for motion."""
    half = 1 << (bits - 1)
    return (adjust(luma * QUARTERS, lit, -half, half - 1) + QUARTERS // 2) // QUARTERS


def code_light(
    code: Callable[[Table, Int32], Int32],
    light: Light | None,
    shape: tuple[int, int],
    bits: int,
) -> Light | None:
    """Code the light of a frame.

    Args:
        code: Codes an array of symbols under a table and returns it.
        light: The encoder's choice; a decoder's does not matter.
        shape: How many references the frame has, and how many planes.
        bits: Depth of the samples.
    """
    unit = 1 << (bits - planes.MIN_BITS)
    found = np.empty((*shape, 2), dtype=np.int32)
    found[:] = ONE, 0
    known = found if light is None else light[: shape[0]]
    if not code(LIT, np.array([is_lit(known)], dtype=np.int32))[0]:
        return None
    lit = code(LIT, (known != (ONE, 0)).any(axis=2).ravel().astype(np.int32)) > 0
    numbers = known.reshape(-1, 2)[lit]
    numbers = code(NUMBERS, (numbers // (1, unit) + (0, LIMIT // 2)).ravel().astype(np.int32))
    found.reshape(-1, 2)[lit] = (numbers.reshape(-1, 2) - (0, LIMIT // 2)) * (1, unit)
    return found


def find_lights(frames: Sequence[planes.Components], bits: int) -> list[Light | None]:
    """Say how the light of frames differs from that of the last one and the one before.

    Args:
        frames: In display order.
        bits: Depth of their samples.

    Returns:
        Of each frame its light, of two references, or None where it is that of both.
    """
    if not frames[0].fits_luma:
        return [None] * len(frames)
    unit = 1 << (bits - planes.MIN_BITS)
    means = [[_means(plane) for part in frame.parts for plane in part] for frame in frames]
    lights: list[Light | None] = [None]
    for t in range(1, len(frames)):
        pasts = means[t - 1], means[max(t - 2, 0)]
        light = [[_fit(*pair, unit) for pair in zip(means[t], past, strict=True)] for past in pasts]
        found = np.array(light, dtype=np.int32)
        lights.append(found if (found != (ONE, 0)).any() else None)
    return lights


@compiled
def _means(plane: Int32) -> Float64:
    """The means of a plane's whole blocks."""
    rows, columns = plane.shape[0] // BLOCK, plane.shape[1] // BLOCK
    sums = np.zeros((rows, columns), dtype=np.int64)
    for y in range(rows * BLOCK):
        row = plane[y]
        for j in range(columns):
            total = np.int32(0)
            for x in range(j * BLOCK, (j + 1) * BLOCK):
                total += row[x]
            sums[y // BLOCK, j] += total
    return sums.ravel() / BLOCK**2


@compiled
def _fit(own: Float64, past: Float64, unit: int) -> tuple[int, int]:
    """The gain and the offset that give blocks the mean and the contrast that they have now.

    Contrasts are compared, as motion would bias a regression; what has changed on its own is left
    out.
    """
    if own.size < FEW:
        return ONE, 0
    kept = np.ones(own.size, dtype=np.bool_)
    gain, offset, change, left = ONE, 0.0, 0.0, 0.0
    for _ in range(ROUNDS):
        a, b = own[kept], past[kept]
        gain = ONE if b.std() == 0 else min(round(ONE * a.std() / b.std()), LIMIT - 1)
        offset = a.mean() - gain / ONE * b.mean()
        change = np.hypot(a.mean() - b.mean(), a.std() - b.std())
        apart = np.abs(own - gain / ONE * past - offset)
        kept = apart <= AWAY * np.median(apart) + unit / QUARTERS
        left = apart[kept].mean()
    if change <= max(STEP * unit, SHARE * left):
        return ONE, 0
    most = LIMIT // 2
    return gain, unit * min(max(round(offset * QUARTERS / unit), -most), most - 1)
