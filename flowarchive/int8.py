"""Convolutions of bytes: the integers of `exact`, several times faster where the processor can.

A convolution takes uint8 `[N, h, w, I]` whose zero is a *zero point*: 0 where nothing is negative,
or SIGNED. Its sums are int32 inside the processor and below 2**24 outside, as `exact.check_bound`
has proved, so both ways to compute them give what float32 gives:

    oneDNN's int8 convolution, by torch     fast on large grids, tens of microseconds a call
    `_sums`, compiled here                  a microsecond a call

Both want the dot products of bytes that VNNI brought (and AMX). Before it, oneDNN added pairs of
products in 16 bits, which saturate: there, and where `available` finds any other difference from
float32, nothing here is used. No result depends on that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from flowarchive.ans import compiled

Bytes = NDArray[np.uint8]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]

SIGNED = 128
"""The zero point of bytes that hold -128..127."""

SWITCH = "FLOWARCHIVE_INT8"
"""An environment variable that says 0 to compute in float32 everywhere."""

MOST = 127
MAX_FUSED_SHIFT = 14
MAX_FUSED_BIAS = 1 << 22
SMALL = 12 << 20  # multiplications below which a call of oneDNN costs more than it saves
WORTHWHILE = 8 << 20  # multiplications from which a layer that is given floats comes here
POSITIONS, LANES = 6, 16  # of the compiled kernel's tile; two vectors of lanes
QUAD = 4  # bytes in a dot product

_state = {"off": False}


def available() -> bool:
    """Whether layers compute in bytes here; the same integers come out if they do not."""
    return not _state["off"] and os.environ.get(SWITCH) != "0" and _is_exact()


@contextmanager
def switched_off() -> Iterator[None]:
    """Compute in float32, for tests."""
    before, _state["off"] = _state["off"], True
    try:
        yield
    finally:
        _state["off"] = before


class Convolution:
    """A zero-padded convolution of bytes.

    Args:
        weight: int8, or int16 within +-2**14, [O, I, k, k].
        bias: int32 [O].
        shift: int8 [O], as `exact.IntConv2d` has it.
        limits: Of the outputs.
        zero: The inputs' zero point.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, shift: Tensor, limits: tuple[int, int], zero: int
    ) -> None:
        self.limits, self.zero = limits, zero
        self.outputs, self.inputs, self.kernel, _ = weight.shape
        self._bias = bias.numpy().astype(np.int32)
        self._shift = shift.numpy().astype(np.int32)
        self._factor = np.ldexp(np.float32(1), -self._shift)
        # Wide weights are 256 * high + low: a layer with twice the outputs.
        self._wide = weight.dtype != torch.int8
        if self._wide:
            high = (weight + 128) >> 8
            weight = torch.cat([high, weight - 256 * high])
        self._weight = weight.to(torch.int8).contiguous()
        self._small = _small_operands(self._weight.numpy(), zero)
        self._packs: dict[bool, tuple[Tensor, Tensor, Tensor, Tensor | None]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Convolution:
        """Nothing here changes but caches."""
        return self

    @property
    def fuses(self) -> bool:
        """Whether `to_bytes` gives exact's integers; see docs/determinism.md."""
        return (
            not self._wide
            and self.limits == (0, MOST)
            and int(self._shift.max()) <= MAX_FUSED_SHIFT
            and int(np.abs(self._bias.astype(np.int64)).max()) < MAX_FUSED_BIAS
        )

    @property
    def adds_up(self) -> bool:
        """Whether the sums of a wide layer's digits stay exact in float32, too."""
        return not self._wide or self._weight[0].numel() * 128 * 128 < 1 << 24

    def to_bytes(self, x: Bytes) -> Bytes:
        """Convolve uint8 [N, h, w, I] into requantized and rectified uint8 [N, h, w, O]."""
        if self._is_small(x):
            sums, row = self._sums(x)
            out = np.empty((*x.shape[:3], self.outputs), dtype=np.uint8)
            _to_bytes(sums, row, self._bias, self._factor, out)
            return out
        y: Bytes = _array(self._onednn(x, True))
        return y

    def to_floats(self, x: Bytes) -> Float32:
        """Convolve uint8 [N, h, w, I] into requantized float32 [N, h, w, O]."""
        out = np.empty((*x.shape[:3], self.outputs), dtype=np.float32)
        if self._is_small(x):
            sums, row = self._sums(x)
        else:
            y = _array(self._onednn(x, False))
            sums, row = y.reshape(-1, y.shape[3]), (x.shape[1], x.shape[2])
        _to_floats(sums, row, self._bias, self._factor, *self.limits, self._wide, out)
        return out

    def _is_small(self, x: Bytes) -> bool:
        return x.size * self._weight.shape[0] * self.kernel**2 < SMALL

    def _sums(self, x: Bytes) -> tuple[Int32, tuple[int, int]]:
        """Sums without the bias, int32, and how many rows and columns an item of them has."""
        weight, correction = self._small
        count, h, w, _ = x.shape
        side = self.kernel - 1
        size = count * (h + side) * (w + side)
        quads = weight.shape[2]
        if side or quads * QUAD != x.shape[3] or size < POSITIONS:
            padded = np.empty((size + POSITIONS + side * (w + side + 1), quads), dtype=np.uint32)
            _pad(x, side // 2, self.zero, padded.view(np.uint8))
        else:
            padded = x.reshape(size, -1).view(np.uint32)
        sums = np.empty((-(-size // POSITIONS) * POSITIONS, correction.size), dtype=np.int32)
        _sums(padded, self.kernel, w + side, size, weight, correction, sums)
        return sums, (h + side, w + side)

    def _onednn(self, x: Bytes, fused: bool) -> Tensor:
        """Let oneDNN convolve bytes into requantized bytes, or into sums in float32."""
        if fused not in self._packs:
            self._packs[fused] = self._pack(fused)
        packed, scale, zeros, bias = self._packs[fused]
        side = [self.kernel // 2] * 2
        end: tuple[Any, ...] = (torch.float32, "none", [])
        if fused:
            end = torch.uint8, "hardtanh", [0.0, float(MOST)]
        y: Tensor = torch.ops.onednn.qconv2d_pointwise.default(
            torch.from_numpy(x).permute(0, 3, 1, 2), 1.0, self.zero, packed, scale, zeros, bias,
            [1, 1], side, [1, 1], 1, 1.0, 0, *end, "",
        )  # fmt: skip
        return y

    def _pack(self, fused: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        outputs = self._weight.shape[0]
        scale, bias = torch.ones(outputs), None
        if fused:
            # Rounding half to even becomes half up a quarter of a sum's step further on.
            quarter = np.where(self._shift >= 0, np.float32(0.25), np.float32(0))
            scale = torch.from_numpy(self._factor)
            bias = torch.from_numpy((self._bias.astype(np.float32) + quarter) * self._factor)
        side = [self.kernel // 2] * 2
        packed = torch.ops.onednn.qconv_prepack(
            self._weight, scale, 1.0, self.zero, [1, 1], side, [1, 1], 1, [1, self.inputs, 64, 64]
        )
        return packed, scale, torch.zeros(outputs, dtype=torch.int32), bias


def _array(y: Tensor) -> Any:
    return y.permute(0, 2, 3, 1).contiguous().numpy()


def from_signed(x: NDArray[Any]) -> Bytes:
    """Integers -128..127 of any type as bytes whose zero point is SIGNED."""
    out = np.empty(x.shape, dtype=np.uint8)
    _from_signed(x.reshape(-1), out.reshape(-1))
    return out


@cache
def _is_exact() -> bool:
    """Whether the processor has VNNI, and oneDNN's sums do not saturate."""
    if not getattr(torch.cpu, "_is_vnni_supported", bool)():
        return False
    try:
        return all(
            _agrees(outputs, inputs, kernel, size, zero)
            for zero in (0, SIGNED)
            for outputs, inputs, kernel, size in (
                (32, 16, 3, (1, 1)),
                (32, 32, 3, (33, 17)),
                (64, 80, 3, (9, 21)),
                (30, 96, 1, (7, 35)),
                (7, 5, 3, (5, 6)),
            )
        )
    except (AttributeError, RuntimeError, TypeError):  # a torch without these operators
        return False


def _agrees(outputs: int, inputs: int, kernel: int, size: tuple[int, int], zero: int) -> bool:
    """Compare both ways with float64, where sums are the largest, and everywhere between."""
    random = np.random.default_rng(outputs)
    weight = random.integers(-128, 128, (outputs, inputs, kernel, kernel), dtype=np.int8)
    weight[::4], weight[1::4], weight[2::8] = 127, -128, 1
    shift = torch.from_numpy(random.integers(-1, MAX_FUSED_SHIFT + 1, outputs, dtype=np.int8))
    bias = torch.from_numpy(random.integers(-99999, 99999, outputs, dtype=np.int32))
    layer = Convolution(torch.from_numpy(weight), bias, shift, (0, MOST), zero)
    largest = 255 if zero or weight[0].size < 500 else MOST
    for x in (
        np.full((2, *size, inputs), largest, dtype=np.uint8),
        np.zeros((2, *size, inputs), dtype=np.uint8),
        random.integers(0, largest + 1, (2, *size, inputs), dtype=np.uint8),
    ):
        y = torch.from_numpy(x).permute(0, 3, 1, 2).double() - zero
        y = functional.conv2d(y, torch.from_numpy(weight).double(), padding=kernel // 2)
        sums = layer._onednn(x, False)
        rows = _array(y + bias.double()[:, None, None]) * np.ldexp(1.0, -layer._shift)
        expected = np.floor(rows + 0.5).clip(0, MOST)
        if not (
            torch.equal(sums.double(), y)
            and np.array_equal(_array(layer._onednn(x, True)), expected)
        ):
            return False
    return True


def _small_operands(weight: NDArray[np.int8], zero: int) -> tuple[NDArray[np.int8], Int32]:
    """Weights as `_dot_products` wants them, and what the zero point makes of each sum."""
    outputs, inputs, kernel, _ = weight.shape
    lanes = 2 * LANES
    blocks, quads = -(-outputs // lanes), -(-inputs // QUAD)
    full = np.zeros((blocks * lanes, quads * QUAD, kernel**2), dtype=np.int8)
    full[:outputs, :inputs] = weight.reshape(outputs, inputs, -1)
    correction = full.astype(np.int32).sum(axis=(1, 2)) * -zero
    full = full.reshape(blocks, lanes, quads, QUAD, kernel**2).transpose(0, 4, 2, 1, 3)
    return np.ascontiguousarray(full), correction.astype(np.int32)


@intrinsic
def _dot_products(
    typing: Any, x: Any, step: Any, row: Any, side: Any, quads: Any, weight: Any, out: Any,
    out_step: Any,
) -> Any:  # fmt: skip
    """Add dot products of bytes to a tile of POSITIONS x 2 * LANES int32.

    The arguments are addresses and distances in bytes: of the first input and the next position's,
    of a row below; the side of the kernel and how many quads of inputs a tap has; of the weights
    [side * side, quads, 2 * LANES, QUAD], of the tile and the next position's lanes.
    """
    whole = ir.IntType(64)
    alloca: Any = cgutils.alloca_once_value
    declare: Any = cgutils.get_or_insert_function
    vector = ir.VectorType(ir.IntType(32), LANES)
    octets = ir.VectorType(ir.IntType(8), LANES * QUAD)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, step, row, side, quads, weight, out, out_step = args
        has_vnni = "+avx512vnni" in context.codegen()._tm_features

        def number(value: int) -> Any:
            return ir.Constant(whole, value)

        def at(address: Any, kind: Any) -> Any:
            return builder.inttoptr(address, kind.as_pointer())

        def load(address: Any, kind: Any) -> Any:
            value = builder.load(at(address, kind))
            value.align = 1
            return value

        def pick(octets_: Any, k: int, extend: Any) -> Any:
            lanes = ir.Constant(vector, [QUAD * lane + k for lane in range(LANES)])
            undefined = ir.Constant(octets, ir.Undefined)
            return extend(builder.shuffle_vector(octets_, undefined, lanes), vector)

        def dot(total: Any, bytes_: Any, weights: Any) -> Any:
            if has_vnni:
                kind = ir.FunctionType(vector, [vector] * 3)
                name = "llvm.x86.avx512.vpdpbusd.512"
                function = declare(builder.module, kind, name)
                return builder.call(function, [total, bytes_, weights])
            ours, theirs = builder.bitcast(bytes_, octets), builder.bitcast(weights, octets)
            for k in range(QUAD):
                product = builder.mul(pick(ours, k, builder.zext), pick(theirs, k, builder.sext))
                total = builder.add(total, product)
            return total

        places = [
            builder.add(builder.add(out, builder.mul(out_step, number(p))), number(64 * half))
            for p in range(POSITIONS)
            for half in range(2)
        ]
        totals = [alloca(builder, load(place, vector)) for place in places]
        current = alloca(builder, weight)
        with cgutils.for_range(builder, side) as down, cgutils.for_range(builder, side) as right:
            tap = builder.add(builder.mul(down.index, row), builder.mul(right.index, step))
            tap = builder.add(x, tap)
            with cgutils.for_range(builder, quads) as quad:
                address = builder.load(current)
                halves = [load(builder.add(address, number(64 * h)), vector) for h in range(2)]
                builder.store(builder.add(address, number(128)), current)
                source = builder.add(tap, builder.mul(quad.index, number(QUAD)))
                for p in range(POSITIONS):
                    four = load(builder.add(source, builder.mul(step, number(p))), ir.IntType(32))
                    undefined = ir.Constant(vector, ir.Undefined)
                    spread = builder.insert_element(undefined, four, ir.Constant(ir.IntType(32), 0))
                    zeros = ir.Constant(vector, [0] * LANES)
                    spread = builder.shuffle_vector(spread, undefined, zeros)
                    for half in range(2):
                        total = totals[2 * p + half]
                        builder.store(dot(builder.load(total), spread, halves[half]), total)
        for place, total in zip(places, totals, strict=True):
            builder.store(builder.load(total), at(place, vector)).align = 1
        return context.get_dummy_value()

    return types.void(*[types.intp] * 8), generate


@compiled
def _sums(
    padded: NDArray[np.uint32],
    side: int,
    columns: int,
    size: int,
    weight: NDArray[np.int8],
    correction: Int32,
    sums: Int32,
) -> None:
    """Convolve at every position of a padded grid, those near its seams for nothing."""
    lanes = 2 * LANES
    step = padded.shape[1] * QUAD
    for first in range(0, sums.shape[0], POSITIONS):
        # The last tile would read behind the end: it begins earlier and repeats some positions.
        start = min(first, padded.shape[0] - POSITIONS) if side == 1 else first
        for p in range(POSITIONS):
            sums[start + p] = correction
        for block in range(weight.shape[0]):
            _dot_products(
                padded[start:].ctypes.data,
                step,
                step * columns,
                side,
                weight.shape[2],
                weight[block].ctypes.data,
                sums[start, block * lanes :].ctypes.data,
                sums.shape[1] * 4,
            )  # type: ignore[call-arg]


@compiled
def _pad(x: Bytes, border: int, zero: int, out: Bytes) -> None:
    """Put items one below the other, each with a border."""
    count, h, w, channels = x.shape
    columns = w + 2 * border
    out[:] = zero
    for n in range(count):
        for i in range(h):
            at = (n * (h + 2 * border) + border + i) * columns + border
            for j in range(w):
                for c in range(channels):
                    out[at + j, c] = x[n, i, j, c]


@compiled
def _to_bytes(sums: Int32, row: tuple[int, int], bias: Int32, factor: Float32, out: Bytes) -> None:
    half, highest = np.float32(0.5), np.float32(MOST)
    for n in range(out.shape[0]):
        for i in range(out.shape[1]):
            for j in range(out.shape[2]):
                source = sums[(n * row[0] + i) * row[1] + j]
                target = out[n, i, j]
                for c in range(target.size):
                    v = np.floor(np.float32(source[c] + bias[c]) * factor[c] + half)
                    target[c] = np.uint8(np.int32(min(max(v, np.float32(0)), highest)))


@compiled
def _to_floats(
    sums: NDArray[Any],
    row: tuple[int, int],
    bias: Int32,
    factor: Float32,
    low: int,
    high: int,
    wide: bool,
    out: Float32,
) -> None:
    half, lowest, highest = np.float32(0.5), np.float32(low), np.float32(high)
    outputs = out.shape[3]
    for n in range(out.shape[0]):
        for i in range(out.shape[1]):
            for j in range(out.shape[2]):
                source = sums[(n * row[0] + i) * row[1] + j]
                target = out[n, i, j]
                for c in range(outputs):
                    total = np.int32(source[c])
                    if wide:
                        total = (total << 8) + np.int32(source[outputs + c])
                    v = np.floor(np.float32(total + bias[c]) * factor[c] + half)
                    target[c] = min(max(v, lowest), highest)


@compiled
def _from_signed(x: NDArray[Any], out: Bytes) -> None:
    for i in range(x.size):
        out[i] = np.uint8(np.int32(x[i]) + SIGNED)
