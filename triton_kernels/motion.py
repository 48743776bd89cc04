"""Motion compensation: a plane seen through a field of vectors, with the eight-tap filters.

Every sample works for itself: its block's vector says which 8 x 8 samples it is made of, both
filters at once, without a rounding between:

    gain 64 * 64  ->  + 512 >> 10  ->  clamp

A filter between no samples is 64 at one tap, so the same sum serves vectors of whole samples.
Samples outside the plane are those of its edge.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.checks import EXACT, check
from triton_kernels.lattice import check_storage, plane_of

BLOCK = 8
"""Luma samples in each direction that share a vector."""

TAPS = 8
TILE = 256


@triton.jit
def filtered(plane, filter_y, filter_x, y, x, height, width, known):
    """Sum 8 x 8 samples from three above and left of (y, x) under two filters; gain 64 * 64."""
    tap = tl.arange(0, 8)[None, :]
    column = tl.minimum(tl.maximum(x[:, None] + tap - 3, 0), width - 1)
    weight = tl.load(filter_x[:, None] + tap, known[:, None], other=0)
    total = tl.zeros_like(y)
    for i in range(8):
        row = tl.minimum(tl.maximum(y + i - 3, 0), height - 1) * width
        samples = tl.load(plane + row[:, None] + column, known[:, None], other=0)
        line = tl.sum(weight * samples.to(tl.int32), 1)
        total += tl.load(filter_y + i, known, other=0) * line
    return total


@triton.jit
def compensate_kernel(
    planes, place, fields, chosen, filters, target, height, width, rows, columns, planes_each,
    fold_y, fold_x, low, high, TILE: tl.constexpr,
):  # fmt: skip
    """One program makes TILE samples of one plane; see `compensate`."""
    i_n = tl.program_id(1).to(tl.int64)
    field = fields + tl.load(chosen + i_n // planes_each).to(tl.int64) * rows * columns * 2
    at = tl.program_id(0) * TILE + tl.arange(0, TILE)
    known = at < height * width
    y, x = at // width, at % width
    block = (y * fold_y // 8) * columns + x * fold_x // 8
    # In sixteenths of this plane's samples.
    dy = tl.load(field + 2 * block, known, other=0).to(tl.int32) * (4 // fold_y)
    dx = tl.load(field + 2 * block + 1, known, other=0).to(tl.int32) * (4 // fold_x)
    total = filtered(
        plane_of(planes, place, i_n, height, width),
        filters + (dy & 15) * 8, filters + (dx & 15) * 8,
        y + (dy >> 4), x + (dx >> 4), height, width, known,
    )  # fmt: skip
    value = tl.minimum(tl.maximum((total + 512) >> 10, low), high)
    tl.store(target + i_n * height * width + at, value, known)


def compensate(
    planes: Tensor,
    place: Tensor,
    fields: Tensor,
    chosen: Tensor,
    filters: Tensor,
    luma_shape: tuple[int, int],
    low: int,
    high: int,
) -> Tensor:
    """Predict planes from the same planes of reference frames.

    Args:
        planes: int16 or int32 [..., h, w], each sample at most 2**16 in magnitude; h * w is at
            most 2**28.
        place: Which of them, int32 [N].
        fields: int16 [..., rows, columns, 2], quarters of a luma sample, at most 2047 in magnitude.
        chosen: Which of them, int32 [A]: N / A planes in a row share a field.
        filters: int32 [16, 8], a filter for each sixteenth of a sample.
        luma_shape: (H, W); h and w are H and W divided by 1, 2 or 4 and rounded up.
        low: The least value a sample can have.
        high: The greatest.

    Returns:
        int32 [N, h, w] in [4 low, 4 high]: four times the predicted samples.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    count, height, width = check_storage(planes, place)
    rows, columns = (-(-size // BLOCK) for size in luma_shape)
    device = planes.device
    check("fields", fields.flatten(0, -4), torch.int16, [None, rows, columns, 2], device)
    actions = check("chosen", chosen, torch.int32, [None], device).numel()
    check("filters", filters, torch.int32, [16, TAPS], device)
    folds = _fold(luma_shape[0], height), _fold(luma_shape[1], width)
    target = torch.empty((count, height, width), dtype=torch.int32, device=device)
    if target.numel():
        compensate_kernel[(triton.cdiv(height * width, TILE), count)](
            planes, place, fields, chosen, filters, target, height, width, rows, columns,
            count // actions, *folds, 4 * low, 4 * high, TILE=TILE, **EXACT,
        )  # fmt: skip
    return target


def _fold(full: int, part: int) -> int:
    """Return by how much a plane is smaller than luma in one direction."""
    for fold in (1, 2, 4):
        if -(-full // fold) == part:
            return fold
    raise ValueError(f"{part} samples are no subsampling of {full} by 1, 2 or 4")
