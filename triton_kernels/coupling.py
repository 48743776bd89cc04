"""Additive couplings: what moves one half of the channels by what a network says of the other.

The network's last layer does it in passing: moved + t, t a rounded translation.

References:
    van den Berg et al., "IDF++", 2020, arXiv:2006.12459.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.checks import EXACT, check_pixels
from triton_kernels.convolution import Layer, blocks, check_layer, clamp, requantize, sums


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
        ADD=linear is not None, MASK=mask is not None, **tile, **EXACT,
    )  # fmt: skip
    return y
