"""Couplings: what moves one half of the channels by what a network says of the other.

Three forms, each with its inverse, all in integers, none of which loses anything:

    additive    moved + t, t a rounded translation: the network's last layer does it in passing
    affine      y = (R x + r) div 2**n + offset, and (R x + r) mod 2**n is left over
    piecewise   the same with a width v / w for each segment between two integer knots

Scaling by R / 2**n cannot be a map of integers onto integers. So it takes a number r in [0, R) with
x and gives one in [0, 2**n) with y: the pairs (x, r) and (y, rest) are two spellings of one t. The
numbers come off the stack of bits and go back onto it, which costs log2(2**n / R) bits, exactly.

References:
    van den Berg et al., "IDF++", 2020, arXiv:2006.12459, for the additive form.
    Zhang, Kang, Ryder, Li, "iFlow", 2021, arXiv:2111.00965, for the others.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.checks import check, check_pixels
from triton_kernels.convolution import Layer, blocks, check_layer, clamp, requantize, sums

BLOCK = 1024
MAX_SCALE_BITS = 31


@triton.jit
def couple_kernel(
    x, weight, bias, shift, linear, mask, moved, y,
    x_pitch, linear_pitch, mask_pitch, moved_pitch, y_pitch,
    height, width, positions, low, high, drop, sign,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, SIDE: tl.constexpr, WIDE: tl.constexpr,
    ADD: tl.constexpr, MASK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A convolution whose outputs go nowhere but into what they move; see `couple`."""
    o_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = sums(
        x, weight, o_m, x_pitch, height, width, positions,
        INPUTS, OUTPUTS, SIDE, WIDE, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    channel = o_n < OUTPUTS
    known = (o_m < positions)[:, None] & channel[None, :]
    total += tl.load(bias + o_n, channel, other=0)[None, :]
    t = requantize(total, tl.load(shift + o_n, channel, other=0)[None, :], low, high)
    if ADD:
        beside = tl.load(linear + o_m[:, None] * linear_pitch + o_n[None, :], known, other=0)
        t = clamp(t + beside.to(tl.int32), low, high)
    t = (t + ((1 << drop) >> 1)) >> drop
    if MASK:
        # Frames of a batch share the mask of their padding.
        at = mask + (o_m % (height * width))[:, None] * mask_pitch + o_n[None, :]
        t *= tl.load(at, known, other=0).to(tl.int32)
    before = tl.load(moved + o_m[:, None] * moved_pitch + o_n[None, :], known, other=0)
    tl.store(y + o_m[:, None] * y_pitch + o_n[None, :], before + sign * t, known)


def couple(
    x: Tensor,
    layer: Layer,
    moved: Tensor,
    y: Tensor,
    fraction: int,
    inverse: bool = False,
    linear: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Add the rounded outputs of a convolution to the channels that a coupling moves.

    Args:
        x: What the last layer sees, int8 [N, h, w, I].
        layer: The last layer, from `convolution.pack`, with O outputs.
        moved: int32 [N, h, w, O].
        y: Receives what becomes of it, int32 [N, h, w, O]; may be `moved`.
        fraction: Bits of the outputs below a step of `moved`, 0..15.
        inverse: Subtract, which undoes it.
        linear: Outputs of a layer beside this one, int16 [N, h, w, O]; the sum is clamped again.
        mask: int8 [1, h, w, O], 0 where a sample is padding and stays what it is.

    Returns:
        y.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device, a layout or the fraction is another.
    """
    if not 0 <= fraction <= 15:
        raise ValueError(f"fraction {fraction} is not in 0..15")
    digits, outputs, _, inputs = layer.weight.shape
    check_layer(layer, x.device)
    pitch = check_pixels("x", x, torch.int8, [None, None, None, inputs])
    shape = [*x.shape[:3], outputs]
    moved_pitch = check_pixels("moved", moved, torch.int32, shape, x.device)
    y_pitch = check_pixels("y", y, torch.int32, shape, x.device)
    linear_pitch = mask_pitch = 0
    if linear is not None:
        linear_pitch = check_pixels("linear", linear, torch.int16, shape, x.device)
    if mask is not None:
        mask_pitch = check_pixels("mask", mask, torch.int8, [1, *shape[1:]], x.device)
    positions = x.shape[0] * x.shape[1] * x.shape[2]
    if not positions:
        return y
    tile = blocks(inputs, outputs, digits)
    grid = triton.cdiv(positions, tile["BLOCK_M"]), triton.cdiv(outputs, tile["BLOCK_N"])
    couple_kernel[grid](
        x, layer.weight, layer.bias, layer.shift,
        moved if linear is None else linear, moved if mask is None else mask, moved, y,
        pitch, linear_pitch, mask_pitch, moved_pitch, y_pitch,
        x.shape[1], x.shape[2], positions, layer.low, layer.high, fraction, -1 if inverse else 1,
        INPUTS=inputs, OUTPUTS=outputs, SIDE=layer.side, WIDE=digits == 2,
        ADD=linear is not None, MASK=mask is not None, **tile,
    )  # fmt: skip
    return y


@triton.jit
def divide(t, by):
    """Divide int64 by a positive one, rounding down: the quotient and what is left, not below 0."""
    quotient = t // by
    left = t - quotient * by
    below = left < 0
    return tl.where(below, quotient - 1, quotient), tl.where(below, left + by, left)


@triton.jit
def affine_kernel(
    x, scale, offset, extra, y, rest, count, bits, INVERSE: tl.constexpr, BLOCK: tl.constexpr
):
    """See `affine`."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    known = at < count
    value, number = tl.load(x + at, known, other=0), tl.load(extra + at, known, other=0)
    factor, moved = tl.load(scale + at, known, other=1), tl.load(offset + at, known, other=0)
    if INVERSE:
        quotient, left = divide(((value - moved) << bits) + number, factor)
    else:
        t = factor * value + number
        quotient = (t >> bits) + moved
        left = t - ((t >> bits) << bits)
    tl.store(y + at, quotient, known)
    tl.store(rest + at, left, known)


def affine(
    x: Tensor, scale: Tensor, offset: Tensor, extra: Tensor, bits: int, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Scale by `scale` / 2**bits and move, elementwise.

    Forward, t = scale * x + extra, y = t div 2**bits + offset, rest = t mod 2**bits. Inverse,
    t = 2**bits * (x - offset) + extra, y = t div scale, rest = t mod scale. Divisions round down.

    Args:
        x: int64 [n]; products with `scale`, or with 2**bits, stay within 63 bits.
        scale: int64 [n], at least 1.
        offset: int64 [n].
        extra: int64 [n], in [0, scale); inverse, in [0, 2**bits).
        bits: 0..31.
        inverse: Undo it.

    Returns:
        y and rest, int64 [n]; rest in [0, 2**bits), inverse in [0, scale).

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another, or `bits` is out of range.
    """
    if not 0 <= bits <= MAX_SCALE_BITS:
        raise ValueError(f"bits {bits} are not in 0..{MAX_SCALE_BITS}")
    count = check("x", x, torch.int64, [None]).numel()
    for name, tensor in (("scale", scale), ("offset", offset), ("extra", extra)):
        check(name, tensor, torch.int64, [count], x.device)
    y, rest = torch.empty_like(x), torch.empty_like(x)
    if count:
        affine_kernel[(triton.cdiv(count, BLOCK),)](
            x, scale, offset, extra, y, rest, count, bits, INVERSE=inverse, BLOCK=BLOCK
        )
    return y, rest


@triton.jit
def piecewise_kernel(
    x, knots, images, extra, y, rest, count, KNOTS: tl.constexpr, BLOCK: tl.constexpr
):
    """See `piecewise`."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    known = at < count
    value = tl.load(x + at, known, other=0)
    row = at.to(tl.int64) * KNOTS
    # The last knot that was passed; outside the knots a segment is one wide on both sides.
    knot, image = tl.load(knots + row, known, other=0), tl.load(images + row, known, other=0)
    a, b = knot, image
    width, image_width = tl.full((BLOCK,), 1, tl.int64), tl.full((BLOCK,), 1, tl.int64)
    for k in range(1, KNOTS):
        end = tl.load(knots + row + k, known, other=0)
        image_end = tl.load(images + row + k, known, other=0)
        inside = (value >= knot) & (value < end)
        width = tl.where(inside, end - knot, width)
        image_width = tl.where(inside, image_end - image, image_width)
        knot, image = end, image_end
        a, b = tl.where(value >= knot, knot, a), tl.where(value >= knot, image, b)
    number = tl.load(extra + at, known, other=0)
    quotient, left = divide(image_width * (value - a) + number, width)
    tl.store(y + at, b + quotient, known)
    tl.store(rest + at, left, known)


def piecewise(x: Tensor, knots: Tensor, images: Tensor, extra: Tensor) -> tuple[Tensor, Tensor]:
    """Map through straight lines between integer points, a row of them for each element.

    Of a segment of width w from knot a, whose image from b has width v: t = v * (x - a) + extra,
    y = b + t div w, rest = t mod w. Below the first knot and from the last on, w and v are 1. The
    inverse is the same with knots and images exchanged, and `rest` for `extra`.

    Args:
        x: int64 [n]; products with a width stay within 63 bits.
        knots: int64 [n, K], strictly increasing in each row, K at least 1.
        images: int64 [n, K], alike.
        extra: int64 [n], in [0, v).

    Returns:
        y and rest, int64 [n]; rest in [0, w).

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    count = check("x", x, torch.int64, [None]).numel()
    points = check("knots", knots, torch.int64, [count, None], x.device).shape[1]
    check("images", images, torch.int64, [count, points], x.device)
    check("extra", extra, torch.int64, [count], x.device)
    if points < 1:
        raise ValueError("a line has at least one knot")
    y, rest = torch.empty_like(x), torch.empty_like(x)
    if count:
        piecewise_kernel[(triton.cdiv(count, BLOCK),)](
            x, knots, images, extra, y, rest, count, KNOTS=points, BLOCK=BLOCK
        )
    return y, rest
