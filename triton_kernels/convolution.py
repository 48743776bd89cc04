"""Convolutions of int8 by int8 into int32, requantized: the integers of exact networks.

    y = clamp(floor(sum * 2**-shift + 1/2), low, high)      look-up table      residual added

An implicit matrix product: rows are positions, columns are output channels, and the long side runs
over the taps of the kernel and, within a tap, over the input channels. `tl.dot` sums it in int32
on the integer tensor cores. Sums are below 2**24 by the models' own proof, so nothing overflows
and the order of the additions is nobody's business.

Activations are int8 [N, h, w, C], zero outside the picture; no zero point is needed. Weights of
16 bits are two int8 digits, 256 * high + low, with an accumulator each.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from triton_kernels.checks import EXACT, check, check_pixels

LEAST_K = 32
"""Products of bytes that one tensor-core instruction adds up, at least."""

LIMIT = 1 << 15
"""Outputs are int16; no limit of a layer lies outside."""


class Layer(NamedTuple):
    """A frozen convolution, laid out for these kernels; made by `pack`.

    Attributes:
        weight: int8 [digits, O, taps, I], so that products lie side by side.
        bias: int32 [O].
        shift: int32 [O].
        side: Of the kernel, 1 or 3.
        low: The least output.
        high: The greatest.
    """

    weight: Tensor
    bias: Tensor
    shift: Tensor
    side: int
    low: int
    high: int


def pack(
    weight: Tensor, bias: Tensor, shift: Tensor, limits: tuple[int, int], device: torch.device
) -> Layer:
    """Lay a frozen convolution out and send it to a device.

    Args:
        weight: int8, or int16 within +-(2**15 - 129), [O, I, k, k], k 1 or 3; I is 1 for a
            depthwise one. Sums of its products with activations are below 2**24.
        bias: int32 [O].
        shift: int8 [O], -32..24; a negative one shifts left.
        limits: Of the outputs, within 16 signed bits.
        device: Where it is to work.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape or a limit is out of these ranges.
    """
    outputs, inputs, side, _ = weight.shape
    if side not in (1, 3) or not -LIMIT <= limits[0] <= limits[1] < LIMIT:
        raise ValueError(f"a kernel of side {side} with limits {limits} is not covered")
    wide = weight.dtype == torch.int16
    check("weight", weight, torch.int16 if wide else torch.int8, [None, None, side, side])
    check("bias", bias, torch.int32, [outputs])
    check("shift", shift, torch.int8, [outputs])
    digits = [weight]
    if wide:
        high = (weight + 128) >> 8
        digits = [high, weight - 256 * high]
    taps = torch.stack(digits).permute(0, 1, 3, 4, 2).reshape(-1, outputs, side * side, inputs)
    return Layer(
        taps.to(torch.int8).contiguous().to(device),
        bias.to(device),
        shift.to(device, torch.int32),
        side,
        *limits,
    )


@triton.jit
def clamp(value, low, high):
    """Bring integers into [low, high]."""
    return tl.minimum(tl.maximum(value, low), high)


@triton.jit
def requantize(total, shift, low, high):
    """Compute clamp(floor(total * 2**-shift + 1/2), low, high) of |total| < 2**24 in 32 bits."""
    right = tl.maximum(shift, 0)
    half = (1 << right) >> 1
    down = (total + half) >> right
    # Limits are within 16 bits, so what is shifted left may be cut to them before and after.
    left = clamp(-shift, 0, 15)
    up = clamp(total, -32768, 32767) << left
    return clamp(tl.where(shift > 0, down, up), low, high)


@triton.jit
def tap_offset(tap, side: tl.constexpr):
    """Rows and columns from a position to what a tap of it sees."""
    return tap // side - side // 2, tap % side - side // 2


@triton.jit
def sums(
    x, weight, place, pitch, height, width, positions,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, SIDE: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sum the products of BLOCK_M positions, int32 [BLOCK_M, BLOCK_N]."""
    row = (place // width) % height
    column = place % width
    o_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    o_k = tl.arange(0, BLOCK_K)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    high = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for tap in range(SIDE * SIDE):
        down, right = tap_offset(tap, SIDE)
        inside = (place < positions) & (row + down >= 0) & (row + down < height)
        inside = inside & (column + right >= 0) & (column + right < width)
        source = (place + down * width + right) * pitch
        for first in tl.static_range(0, INPUTS, BLOCK_K):
            k = first + o_k
            a = tl.load(
                x + source[:, None] + k[None, :], inside[:, None] & (k < INPUTS)[None, :], other=0
            )
            # [BLOCK_K, BLOCK_N] whose columns lie in memory as they are multiplied.
            at = weight + o_n[None, :] * (SIDE * SIDE * INPUTS) + tap * INPUTS + k[:, None]
            known = (k < INPUTS)[:, None] & (o_n < OUTPUTS)[None, :]
            if WIDE:
                b = tl.load(at, known, other=0)
                high = tl.dot(a, b, high, out_dtype=tl.int32)
                at += OUTPUTS * SIDE * SIDE * INPUTS
            b = tl.load(at, known, other=0)
            total = tl.dot(a, b, total, out_dtype=tl.int32)
    if WIDE:
        total += high << 8
    return total


@triton.jit
def convolution_kernel(
    x, weight, bias, shift, table, residual, y, x_pitch, residual_pitch, y_pitch,
    height, width, positions, low, high, least, most,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, SIDE: tl.constexpr, WIDE: tl.constexpr,
    LOOK_UP: tl.constexpr, ADD: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program makes BLOCK_N channels of BLOCK_M positions; see `convolve`."""
    o_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = sums(
        x, weight, o_m, x_pitch, height, width, positions,
        INPUTS, OUTPUTS, SIDE, WIDE, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    channel = o_n < OUTPUTS
    total += tl.load(bias + o_n, channel, other=0)[None, :]
    value = requantize(total, tl.load(shift + o_n, channel, other=0)[None, :], low, high)
    if LOOK_UP:
        value = tl.load(table + value + 128).to(tl.int32)
    known = (o_m < positions)[:, None] & channel[None, :]
    if ADD:
        before = tl.load(residual + o_m[:, None] * residual_pitch + o_n[None, :], known, other=0)
        value = clamp(value + before.to(tl.int32), least, most)
    at = y + o_m[:, None] * y_pitch + o_n[None, :]
    tl.store(at, value.to(y.dtype.element_ty), known)


@triton.jit
def depthwise_kernel(
    x, weight, bias, shift, y, x_pitch, y_pitch, height, width, positions, low, high,
    C: tl.constexpr, SIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A channel sees itself alone: nothing to multiply as matrices; see `convolve_depthwise`."""
    o_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = (o_m // width) % height
    column = o_m % width
    channel = o_n < C
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    total += tl.load(bias + o_n, channel, other=0)[None, :]
    for tap in range(SIDE * SIDE):
        down, right = tap_offset(tap, SIDE)
        inside = (o_m < positions) & (row + down >= 0) & (row + down < height)
        inside = inside & (column + right >= 0) & (column + right < width)
        at = x + (o_m + down * width + right)[:, None] * x_pitch + o_n[None, :]
        a = tl.load(at, inside[:, None] & channel[None, :], other=0).to(tl.int32)
        b = tl.load(weight + o_n * (SIDE * SIDE) + tap, channel, other=0).to(tl.int32)
        total += a * b[None, :]
    value = requantize(total, tl.load(shift + o_n, channel, other=0)[None, :], low, high)
    at = y + o_m[:, None] * y_pitch + o_n[None, :]
    tl.store(at, value.to(y.dtype.element_ty), (o_m < positions)[:, None] & channel[None, :])


def blocks(inputs: int, outputs: int, digits: int) -> dict[str, int]:
    """Choose the tile of a product; no result depends on it.

    Args:
        inputs: Channels of a tap.
        outputs: Channels that come out.
        digits: Of a weight.

    Returns:
        BLOCK_M, BLOCK_N and BLOCK_K, and num_warps.
    """
    columns = min(max(16, triton.next_power_of_2(outputs)), 64)
    return {
        "BLOCK_M": 128,
        "BLOCK_N": columns,
        "BLOCK_K": 64 if inputs % 64 == 0 else LEAST_K,
        "num_warps": 4 if columns * digits < 32 else 8,
    }


def check_layer(layer: Layer, device: torch.device) -> int:
    """Check what `pack` made, in case it was made for another device; return its outputs.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    _, outputs, _, inputs = layer.weight.shape
    check("weight", layer.weight, torch.int8, [None, outputs, layer.side**2, inputs], device)
    check("bias", layer.bias, torch.int32, [outputs], device)
    check("shift", layer.shift, torch.int32, [outputs], device)
    return outputs


def _check(x: Tensor, layer: Layer, y: Tensor, inputs: int) -> tuple[int, int]:
    """Check what goes in and what comes out; return the distances of their pixels."""
    outputs = check_layer(layer, x.device)
    kind = y.dtype if y.dtype in (torch.int8, torch.int16) else torch.int16
    return (
        check_pixels("x", x, torch.int8, [None, None, None, inputs]),
        check_pixels("y", y, kind, [*x.shape[:3], outputs], x.device),
    )


def convolve(
    x: Tensor,
    layer: Layer,
    y: Tensor,
    table: Tensor | None = None,
    residual: Tensor | None = None,
    limits: tuple[int, int] = (-128, 127),
) -> Tensor:
    """Convolve, requantize, look up, add.

    Args:
        x: Activations, int8 [N, h, w, I].
        layer: From `pack`, with I inputs and O outputs.
        y: Receives the outputs, int8 or int16 [N, h, w, O]; shares no memory with x. int8 where
            what comes out fits.
        table: int8 [256]: what becomes of -128..127; for a layer that is clamped to these.
        residual: int8 [N, h, w, O] that is added after; may be y, in place.
        limits: What the sum with the residual is clamped to.

    Returns:
        y.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    digits, outputs, _, inputs = layer.weight.shape
    pitches = _check(x, layer, y, inputs)
    limits_fit = layer.low >= -128 and layer.high <= 127
    if table is not None:
        check("table", table, torch.int8, [256], x.device)
        if not limits_fit:
            raise ValueError(f"outputs of [{layer.low}, {layer.high}] are no index of a table")
    pitch = 0
    if residual is not None:
        pitch = check_pixels("residual", residual, torch.int8, y.shape, x.device)
        limits_fit = limits[0] >= -128 and limits[1] <= 127
    if y.dtype == torch.int8 and not limits_fit:
        raise ValueError("outputs do not fit int8")
    positions = y.shape[0] * y.shape[1] * y.shape[2]
    if not positions:
        return y
    tile = blocks(inputs, outputs, digits)
    grid = triton.cdiv(positions, tile["BLOCK_M"]), triton.cdiv(outputs, tile["BLOCK_N"])
    convolution_kernel[grid](
        x, layer.weight, layer.bias, layer.shift,
        layer.bias if table is None else table, x if residual is None else residual, y,
        pitches[0], pitch, pitches[1], x.shape[1], x.shape[2], positions,
        layer.low, layer.high, *limits,
        INPUTS=inputs, OUTPUTS=outputs, SIDE=layer.side, WIDE=digits == 2,
        LOOK_UP=table is not None, ADD=residual is not None, **tile, **EXACT,
    )  # fmt: skip
    return y


def convolve_depthwise(x: Tensor, layer: Layer, y: Tensor) -> Tensor:
    """Convolve every channel with its own kernel; no model has such a layer yet.

    Args:
        x: Activations, int8 [N, h, w, C].
        layer: From `pack`, of int8 weights [C, 1, k, k].
        y: Receives the outputs, int8 or int16 [N, h, w, C]; shares no memory with x.

    Returns:
        y.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    digits, channels, _, inputs = layer.weight.shape
    if inputs != 1 or digits != 1:
        raise ValueError("a depthwise layer has int8 weights and one input a channel")
    pitches = _check(x, layer, y, channels)
    if y.dtype == torch.int8 and not (layer.low >= -128 and layer.high <= 127):
        raise ValueError("outputs do not fit int8")
    positions = y.shape[0] * y.shape[1] * y.shape[2]
    if not positions:
        return y
    tile = {"BLOCK_M": 64, "BLOCK_N": min(max(4, triton.next_power_of_2(channels)), 64)}
    grid = triton.cdiv(positions, tile["BLOCK_M"]), triton.cdiv(channels, tile["BLOCK_N"])
    depthwise_kernel[grid](
        x, layer.weight, layer.bias, layer.shift, y, *pitches,
        x.shape[1], x.shape[2], positions, layer.low, layer.high,
        C=channels, SIDE=layer.side, **tile, **EXACT,
    )  # fmt: skip
    return y
