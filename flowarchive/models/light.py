"""Light that changes from frame to frame: fades, flashes, the flicker of old film.

A frame's light says of each of its references, and of each plane, how what is predicted from it is
brought to the frame's own light:

    value  ->  clamp((value * gain + ONE / 2) // ONE + offset)        in quarters of a sample

The encoder compares means of blocks, which small motion hardly changes; a decoder is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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

FOLD = 4  # samples in each direction of a sample of the small pictures that are looked at
FEW = 8  # fewer blocks of 2 x 2 of these tell nothing
ROUNDS, AWAY = 4, 3  # of a fit, and from how many times the median on a block is left out
# Light has changed where it moves blocks by so many steps of 8 bits, and so much of what is left.
STEP, SHARE = 0.5, 0.5
# With it, blocks of so many small samples find what is so much nearer to them, this far away.
SIDE, BETTER, REACH = 4, 0.96, 6


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
    small = [[_folded(plane) for part in frame.parts for plane in part] for frame in frames]
    lights: list[Light | None] = [None]
    for t in range(1, len(frames)):
        pasts = small[t - 1], small[max(t - 2, 0)]
        light = [[_fit(*pair, unit) for pair in zip(small[t], past, strict=True)] for past in pasts]
        found = np.array(light, dtype=np.int32)
        lights.append(found if is_lit(found) else None)
    return lights


@compiled
def _folded(plane: Int32) -> Int32:
    """The sums of a plane's squares of FOLD samples, of an even number of whole ones."""
    rows, columns = (plane.shape[0] // (2 * FOLD) * 2, plane.shape[1] // (2 * FOLD) * 2)
    sums = np.zeros((rows, columns), dtype=np.int32)
    for y in range(rows * FOLD):
        row = plane[y]
        for j in range(columns):
            for x in range(j * FOLD, (j + 1) * FOLD):
                sums[y // FOLD, j] += row[x]
    return sums


@compiled
def _fit(own: Int32, past: Int32, unit: int) -> tuple[int, int]:
    """The gain and the offset that give blocks the mean and the contrast that they have now.

    Contrasts are compared, as motion would bias a regression; what has changed on its own is left
    out. At last, motion has to explain less than light does.
    """
    a, b = _blocks(own), _blocks(past)
    if a.size < FEW:
        return ONE, 0
    kept = np.ones(a.size, dtype=np.bool_)
    gain, offset, change, left = ONE, 0.0, 0.0, 0.0
    for _ in range(ROUNDS):
        now, then = a[kept], b[kept]
        gain = ONE if then.std() == 0 else min(round(ONE * now.std() / then.std()), LIMIT - 1)
        offset = now.mean() - gain / ONE * then.mean()
        change = np.hypot(now.mean() - then.mean(), now.std() - then.std())
        apart = np.abs(a - gain / ONE * b - offset)
        kept = apart <= AWAY * np.median(apart) + unit / QUARTERS
        left = apart[kept].mean()
    if change <= max(STEP * unit, SHARE * left):
        return ONE, 0
    lit = gain / ONE * past + FOLD**2 * offset
    if _apart(own, lit) > BETTER * _apart(own, 1.0 * past):
        return ONE, 0
    most = LIMIT // 2
    return gain, unit * min(max(round(offset * QUARTERS / unit), -most), most - 1)


@compiled
def _blocks(small: Int32) -> Float64:
    """The means of blocks, of the sums of squares."""
    sums = small[::2, ::2] + small[1::2, ::2] + small[::2, 1::2] + small[1::2, 1::2]
    return sums.ravel() / (2 * FOLD) ** 2


@compiled
def _apart(own: Int32, past: NDArray[Any]) -> float:
    """How far a small picture is from another, each block from where that is nearest to it."""
    total = 0.0
    rows, columns = own.shape
    for i in range(0, rows - SIDE + 1, SIDE):
        for j in range(0, columns - SIDE + 1, SIDE):
            least = np.inf
            for v in range(max(i - REACH, 0), min(i + REACH, rows - SIDE) + 1):
                for u in range(max(j - REACH, 0), min(j + REACH, columns - SIDE) + 1):
                    apart = 0.0
                    for y in range(SIDE):
                        for x in range(SIDE):
                            apart += abs(own[i + y, j + x] - past[v + y, u + x])
                    least = min(least, apart)
            total += least
    return total
