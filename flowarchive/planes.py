"""Frames to and from the integer components that models code.

    planes Y [, U, V] [, A]  or  R, G, B [, A | X]
        |  RGB: reversible YCoCg-R
        |  center: subtract half the range, so that zero is the middle
        v
    Components: luma [H, W], chroma [2, h, w], extra ([H, W], ...), all int32

Everything here is integer arithmetic, exactly reversible, for frames of any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowarchive.errors import FormatError
from flowarchive.frames import Plane

Int32 = NDArray[np.int32]

MIN_BITS = 8
SAMPLES_PER_VALUE = 8  # from which it is no accident that other values are missing


@dataclass(frozen=True)
class Components:
    """One frame as models see it.

    Attributes:
        luma: int32 [H, W], the first plane or the Y of YCoCg-R, centered on zero.
        chroma: int32 [2, h, w], U and V centered on zero or Co and Cg; None for gray.
        extra: Alpha or padding planes, int32 [H, W] each, centered on zero.
    """

    luma: Int32
    chroma: Int32 | None = None
    extra: tuple[Int32, ...] = ()

    @property
    def parts(self) -> list[Int32]:
        """The planes that are coded together, int32 [N, h, w]: luma, chroma, each extra plane."""
        chroma = [] if self.chroma is None else [self.chroma]
        return [self.luma[None], *chroma, *(plane[None] for plane in self.extra)]

    @property
    def fits_luma(self) -> bool:
        """Whether no plane is larger than the first, so that its motion can be the frame's."""
        h, w = self.luma.shape
        return all(part.shape[1] <= h and part.shape[2] <= w for part in self.parts)

    @staticmethod
    def of_parts(parts: Sequence[Int32], chroma: bool) -> Components:
        """Undo `parts`, of a frame with or without chroma."""
        rest = parts[2:] if chroma else parts[1:]
        return Components(
            parts[0][0], parts[1] if chroma else None, tuple(plane[0] for plane in rest)
        )


def bits_needed(planes: Sequence[Plane]) -> int:
    """Return the smallest depth from 8 to 16 bits that holds every sample."""
    top = max((int(plane.max()) for plane in planes if plane.size), default=0)
    return max(MIN_BITS, top.bit_length())


def tabulate(
    frames: Sequence[Sequence[Plane]], bits: int
) -> tuple[list[tuple[int, ...] | None], list[list[Plane]], int]:
    """Replace deep samples that have few values by their places in tables of these values.

    Args:
        frames: Each frame's planes.
        bits: Their depth, from `bits_needed`.

    Returns:
        A table of ascending values for each plane, or None; the frames, with places where there
        is a table; and the depth that is left. There are no tables where they would leave it.
    """
    values = [_values(column, bits) for column in zip(*frames, strict=True)] if frames else []
    tables = [None if v is None or v.size > 1 << (bits - 1) else v for v in values]
    left = max(
        (bits if t is None else max(MIN_BITS, (t.size - 1).bit_length()) for t in tables),
        default=bits,
    )
    if left == bits:
        return [None] * len(values), [list(group) for group in frames], bits
    places = [
        [p if t is None else _places(p, t) for t, p in zip(tables, group, strict=True)]
        for group in frames
    ]
    return [None if t is None else tuple(t.tolist()) for t in tables], places, left


def look_up(planes: Sequence[Plane], tables: Sequence[tuple[int, ...] | None]) -> tuple[Plane, ...]:
    """Undo `tabulate` for one frame; no tables at all leave it as it is.

    Raises:
        FormatError: A place is beyond its table.
    """
    out = []
    for plane, table in zip(planes, tables or [None] * len(planes), strict=True):
        if table is not None and int(plane.max()) >= len(table):
            raise FormatError("a decoded sample is beyond its chunk's table")
        out.append(plane if table is None else np.array(table, dtype=np.uint16)[plane])
    return tuple(out)


def _places(plane: Plane, values: NDArray[np.int64]) -> NDArray[np.uint16]:
    return np.searchsorted(values, plane).astype(np.uint16)


def _values(planes: Sequence[Plane], bits: int) -> NDArray[np.int64] | None:
    """The ascending values of a plane in all frames, or None where a table tells nothing.

    Shallow samples have none; and of few samples most values are missing by chance.
    """
    if bits == MIN_BITS:
        return None
    seen = np.zeros(1 << bits, dtype=bool)
    for plane in planes:
        seen[plane] = True
    values = np.flatnonzero(seen)
    samples = sum(plane.size for plane in planes)
    return values if samples >= SAMPLES_PER_VALUE * values.size else None


def split(planes: Sequence[Plane], letters: str, bits: int) -> Components:
    """Turn component planes into centered integers.

    Args:
        planes: At least one plane.
        letters: A component letter for each, as in PixelLayout. Where they begin with neither RGB
            nor YUV, the first plane is luma and every other is extra.
        bits: Depth from `bits_needed`, 8..16; the center is 2**(bits - 1).
    """
    center = 1 << (bits - 1)
    wide = [plane.astype(np.int32) for plane in planes]
    if letters.startswith("RGB"):
        luma, orange, green = _ycocg_forward(*wide[:3])
        chroma = np.stack([orange, green])
        return Components(luma - center, chroma, tuple(p - center for p in wide[3:]))
    wide = [plane - center for plane in wide]
    if letters.startswith("YUV"):
        return Components(wide[0], np.stack(wide[1:3]), tuple(wide[3:]))
    return Components(wide[0], None, tuple(wide[1:]))


def merge(
    components: Components, letters: str, bits: int, dtype: np.dtype[Any]
) -> tuple[Plane, ...]:
    """Undo `split`, into planes of `dtype`.

    Raises:
        FormatError: A sample is outside 0..2**bits - 1: the components are not from `split`.
    """
    center = 1 << (bits - 1)
    extra = [plane + center for plane in components.extra]
    wide = [components.luma + center]
    if components.chroma is not None:
        if letters.startswith("RGB"):
            wide = list(_ycocg_inverse(wide[0], *components.chroma))
        else:
            wide += [plane + center for plane in components.chroma]
    for plane in (*wide, *extra):
        if int(plane.min()) < 0 or int(plane.max()) >> bits:
            raise FormatError(f"a decoded sample does not fit {bits} bits")
    return tuple(plane.astype(dtype) for plane in (*wide, *extra))


def blank(shapes: Sequence[tuple[int, int]], letters: str) -> Components:
    """Return components of zeros that have a frame's shapes.

    Args:
        shapes: (rows, columns) of the frame's planes.
        letters: A component letter for each, as in `split`.
    """
    luma = np.zeros(shapes[0], dtype=np.int32)
    if not letters.startswith(("RGB", "YUV")):
        return Components(luma, None, tuple(np.zeros(s, dtype=np.int32) for s in shapes[1:]))
    chroma = np.zeros((2, *shapes[1]), dtype=np.int32)
    return Components(luma, chroma, tuple(np.zeros(s, dtype=np.int32) for s in shapes[3:]))


def on_grid(luma: Int32, shape: tuple[int, int]) -> Int32:
    """Average planes [N, H, W] down to the chroma planes' grid; see `luma_context`."""
    return np.stack([luma_context(plane, shape) for plane in luma])


def luma_context(luma: Int32, shape: tuple[int, int]) -> Int32:
    """Average luma down to the chroma planes' grid.

    Args:
        luma: int32 [H, W].
        shape: (h, w) of a chroma plane; H and W are at most h and w times a power of two.

    Returns:
        int32 [h, w]; the mean over each chroma sample's block, rounded half up, the last row and
        column repeated where the block sticks out.
    """
    fold_h, fold_w = (_fold(full, part) for full, part in zip(luma.shape, shape, strict=True))
    h, w = shape
    padded = np.pad(
        luma, ((0, h * fold_h - luma.shape[0]), (0, w * fold_w - luma.shape[1])), mode="edge"
    )
    total = sum(padded[y::fold_h, x::fold_w] for y in range(fold_h) for x in range(fold_w))
    count = fold_h * fold_w
    return np.asarray((total + count // 2) >> (count.bit_length() - 1), dtype=np.int32)


def _fold(full: int, part: int) -> int:
    fold = 1
    while part * fold < full:
        fold *= 2
    return fold


def _ycocg_forward(red: Int32, green: Int32, blue: Int32) -> tuple[Int32, Int32, Int32]:
    """YCoCg-R lifting (Malvar and Sullivan, 2003, JVT-I014r3)."""
    orange = red - blue
    middle = blue + (orange >> 1)
    green_chroma = green - middle
    return middle + (green_chroma >> 1), orange, green_chroma


def _ycocg_inverse(luma: Int32, orange: Int32, green_chroma: Int32) -> tuple[Int32, Int32, Int32]:
    """Undo `_ycocg_forward`, read from bottom to top."""
    middle = luma - (green_chroma >> 1)
    green = middle + green_chroma
    blue = middle - (orange >> 1)
    return blue + orange, green, blue
