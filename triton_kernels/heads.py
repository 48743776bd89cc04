"""Mixtures out of what a network says of a phase, and of the anchors: the entropy model's integers.

A head gives, for each component, a weight's logarithm in sixteenths of an octave, an offset of the
mean and an offset of the scale. Shares of the weights are whole quotients; what they leave goes to
the first of the heaviest. Scales are corrected by what was learned for their bucket.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.checks import EXACT, check
from triton_kernels.correction import BUCKETS, GROUPS, PHASES

BLOCK = 128
MAX_COMPONENTS = 16
WEIGHT_STEPS = 16

_WEIGHT_BITS = tl.constexpr(12)
_WHOLE = tl.constexpr(1 << 12)
_MOST = tl.constexpr(191)


class Mixtures(NamedTuple):
    """Mixtures of K components, int32 [n, K] each, as `mixture` takes them.

    Attributes:
        mean: In 1/256 of a sample.
        scale: As predicted.
        corrected: What symbols are coded with.
        weight: Their sum is 2**12.
    """

    mean: Tensor
    scale: Tensor
    corrected: Tensor
    weight: Tensor


@triton.jit
def mixtures_kernel(
    head, anchors, offsets, which, table, mean, scale, corrected, weight,
    rows, columns, gh, gw, shift, planes_each, slot, slots,
    K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program makes BLOCK mixtures of a plane's phase; see `mixtures`."""
    i_n = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    known = at < rows * columns
    place = (i_n * gh + at // columns) * gw + at % columns
    said = head + place * (3 * K)
    near = anchors + place * K
    to = (i_n * rows * columns + at) * K
    highest = tl.load(said, known, other=0).to(tl.int32)
    for k in tl.static_range(1, K):
        highest = tl.maximum(highest, tl.load(said + k, known, other=0).to(tl.int32))
    total = tl.zeros((BLOCK,), dtype=tl.int32)
    best = tl.full((BLOCK,), K, dtype=tl.int32)
    for k in tl.static_range(K):
        below = highest - tl.load(said + k, known, other=0).to(tl.int32)
        share = tl.load(table + (below & 15)) >> tl.minimum(below >> 4, 31)
        best = tl.where((below == 0) & (best == K), k, best)
        total += share
    left = tl.full((BLOCK,), _WHOLE, dtype=tl.int32)
    middle = tl.zeros((BLOCK,), dtype=tl.int32)
    heaviest = tl.zeros((BLOCK,), dtype=tl.int32)
    for k in tl.static_range(K):
        below = highest - tl.load(said + k, known, other=0).to(tl.int32)
        share = tl.load(table + (below & 15)) >> tl.minimum(below >> 4, 31)
        share = (share << _WEIGHT_BITS) // total
        index = tl.load(said + 2 * K + k, known, other=0).to(tl.int32) + 8 * shift
        index = tl.minimum(tl.maximum(index, 0), _MOST)
        moved = tl.load(said + K + k, known, other=0).to(tl.int32) << shift
        tl.store(mean + to + k, tl.load(near + k, known, other=0) + moved, known)
        tl.store(scale + to + k, index, known)
        middle += share * index
        left -= share
        heaviest = tl.where(best == k, index, heaviest)
    middle += left * heaviest
    chunk = tl.load(which + i_n // planes_each)
    bucket = middle >> (_WEIGHT_BITS + 2)
    offset = tl.load(offsets + (chunk * slots + slot) * 48 + bucket, known, other=0)
    for k in tl.static_range(K):
        below = highest - tl.load(said + k, known, other=0).to(tl.int32)
        share = tl.load(table + (below & 15)) >> tl.minimum(below >> 4, 31)
        share = (share << _WEIGHT_BITS) // total + tl.where(best == k, left, 0)
        index = tl.load(said + 2 * K + k, known, other=0).to(tl.int32) + 8 * shift
        index = tl.minimum(tl.maximum(index, 0), _MOST) + offset
        tl.store(weight + to + k, share, known)
        tl.store(corrected + to + k, tl.minimum(tl.maximum(index, 0), _MOST), known)


def mixtures(
    head: Tensor,
    anchors: Tensor,
    shape: tuple[int, int],
    offsets: Tensor,
    which: Tensor,
    slot: tuple[int, int],
    shift: int,
    table: Tensor,
) -> Mixtures:
    """Turn a head's integers and anchors into mixtures.

    Args:
        head: int16 [N, gh, gw, 3K]: logarithms of weights, offsets of means, offsets of scales.
        anchors: int32 [N, gh, gw, K].
        shape: Rows and columns that the phase has samples in; the rest of the grid is left out.
        offsets: Corrections, int32 [chunks, GROUPS, phases, BUCKETS].
        which: Whose planes they are, int32 [A], N / A of each.
        slot: Level group and phase.
        shift: Low bits that the network has not seen, 0..8.
        table: int32 [16], floor(2**(15 - i / 16)).

    Returns:
        Mixtures of N * rows * columns samples.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device, a layout or a number is out of range.
    """
    count, gh, gw, components = check("anchors", anchors, torch.int32, [None] * 4).shape
    device, (rows, columns) = anchors.device, shape
    check("head", head, torch.int16, [count, gh, gw, 3 * components], device)
    check("offsets", offsets, torch.int32, [None, GROUPS, PHASES, BUCKETS], device)
    chunks = check("which", which, torch.int32, [None], device).numel()
    check("table", table, torch.int32, [WEIGHT_STEPS], device)
    fits = rows <= gh and columns <= gw and components <= MAX_COMPONENTS
    if not (fits and 0 <= shift <= 8 and slot[0] < GROUPS and slot[1] < PHASES):
        raise ValueError(f"shape {shape}, slot {slot} or shift {shift} is out of range")
    size = count * rows * columns, components
    made = Mixtures(*(torch.empty(size, dtype=torch.int32, device=device) for _ in range(4)))
    if size[0]:
        mixtures_kernel[(triton.cdiv(rows * columns, BLOCK), count)](
            head, anchors, offsets, which, table, *made, rows, columns, gh, gw, shift,
            count // chunks, slot[0] * PHASES + slot[1], GROUPS * PHASES,
            K=components, BLOCK=BLOCK, **EXACT,
        )  # fmt: skip
    return made
