"""Section "Networks": the layers of a conditioner on lists of integers, and their tensors.

A plane is a list of rows, an array of planes a list of channels.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal, localcontext
from math import isqrt
from typing import Any

Plane = list[list[int]]
Planes = list[Plane]


@dataclass
class FlowConfig:
    """The table of the document."""

    levels: int = 3
    couplings: int = 4
    depth: int = 2
    width: int = 16
    mixtures: int = 5
    inverse_permutation: bool = True
    group_norm: bool = True
    groups: int = 4
    rezero: bool = True


@dataclass
class Tensor:
    """A tensor's shape, and its values with the last index fastest."""

    shape: list[int]
    values: list[int]


Tensors = dict[str, Tensor]


Wanted = dict[str, tuple[str, list[int]]]


def wanted(flow: str, config: FlowConfig, channels: int, context: int) -> Wanted:
    """Type and shape of every tensor of a flow, by name."""
    result: Wanted = {}
    for level in range(config.levels):
        channels *= 4
        name = f"{flow}.levels.{level}"
        moved = channels // 4
        for k in range(config.couplings):
            heads = {"translation": moved}
            inputs = channels - moved + context
            part = f"{name}.couplings.{k}.conditioner"
            result |= wanted_conditioner(part, config, inputs, heads)
        if level == config.levels - 1:
            for kind in ("mean", "scale", "weight"):
                result[f"{name}.prior.{kind}"] = ("I32", [channels, config.mixtures])
        else:
            channels //= 2
            heads = {"mean": channels, "scale": channels}
            part = f"{name}.prior.conditioner"
            result |= wanted_conditioner(part, config, channels + context, heads)
    return result


def wanted_convolution(name: str, dtype: str, outputs: int, inputs: int, k: int) -> Wanted:
    """Type and shape of the tensors of a convolution, by name."""
    return {
        f"{name}.weight": (dtype, [outputs, inputs, k, k]),
        f"{name}.bias": ("I32", [outputs]),
        f"{name}.shift": ("I8", [outputs]),
    }


def wanted_conditioner(name: str, config: FlowConfig, inputs: int, heads: dict[str, int]) -> Wanted:
    """Type and shape of every tensor of a conditioner, by name."""
    result: Wanted = {}

    def add_convolution(part: str, *sizes: Any) -> None:
        result.update(wanted_convolution(f"{name}.{part}", *sizes))

    width = config.width
    for d in range(config.depth):
        add_convolution(f"layers.{d}.0", "I8", width, inputs + d * width, 1)
        add_convolution(f"layers.{d}.{3 if config.group_norm else 1}", "I8", width, width, 3)
        for layer in (1, 4) if config.group_norm else ():
            result[f"{name}.layers.{d}.{layer}.gain"] = ("I32", [width])
            result[f"{name}.layers.{d}.{layer}.offset"] = ("I32", [width])
    for head, outputs in heads.items():
        add_convolution(f"linear.{head}", "I16", outputs, inputs, 3)
        add_convolution(f"dense.{head}", "I16", outputs, config.depth * width, 1)
    return result


def clamp(x: int, least: int = -128, most: int = 127) -> int:
    """The nearest of least..most to x."""
    return min(max(x, least), most)


def scaled(x: int, shift: int) -> int:
    """floor(x / 2**shift + 1/2), for a shift of either sign."""
    if shift > 0:
        return (x + 2 ** (shift - 1)) >> shift
    return x << -shift


def each(planes: Planes) -> Iterator[tuple[int, int, int]]:
    """Every (channel, row, column), in the order in which samples are coded."""
    for c, plane in enumerate(planes):
        for y, row in enumerate(plane):
            for x in range(len(row)):
                yield c, y, x


def convolution(tensors: Tensors, name: str, planes: Planes, least: int, most: int) -> Planes:
    """Section "Convolution"."""
    weight = tensors[f"{name}.weight"]
    bias, shift = tensors[f"{name}.bias"].values, tensors[f"{name}.shift"].values
    outputs, inputs, k, _ = weight.shape
    assert inputs == len(planes)
    height, width, edge = len(planes[0]), len(planes[0][0]), k // 2
    # Zeros all around, so that no index leaves the plane.
    blank = [[0] * (width + 2 * edge)] * edge
    padded = [[*blank, *([0] * edge + row + [0] * edge for row in p), *blank] for p in planes]
    result = []
    for o in range(outputs):
        sums = [[bias[o]] * width for _ in range(height)]
        for i in range(inputs):
            for r in range(k):
                for c in range(k):
                    w = weight.values[((o * inputs + i) * k + r) * k + c]
                    for y in range(height):
                        row, source = sums[y], padded[i][y + r]
                        for x in range(width):
                            row[x] += w * source[x + c]
        result.append([[clamp(scaled(s, shift[o]), least, most) for s in row] for row in sums])
    return result


def normalization(tensors: Tensors, name: str, planes: Planes, groups: int) -> Planes:
    """Section "Normalization"."""
    gain, offset = tensors[f"{name}.gain"].values, tensors[f"{name}.offset"].values
    size = len(planes) // groups
    result = []
    for c, plane in enumerate(planes):
        group = planes[c // size * size : (c // size + 1) * size]
        samples = [s for p in group for row in p for s in row]
        n, total, squares = len(samples), sum(samples), sum(s * s for s in samples)
        root = isqrt((n * squares - total**2 + n**2) * 2**32)
        factor = gain[c] * n * 2**28 // root
        moved = offset[c] * 2**12 - total * factor // n
        result.append([[clamp(scaled(s * factor + moved, 20)) for s in row] for row in plane])
    return result


def _swish_table() -> list[int]:
    with localcontext() as context:
        context.prec = 60
        exact = [Decimal(i) / (1 + (Decimal(-i) / 32).exp()) for i in range(-128, 128)]
        table = [int((e + Decimal("0.5")).to_integral_value(ROUND_FLOOR)) for e in exact]
    digest = hashlib.sha256(struct.pack("<256i", *table)).hexdigest()
    assert digest == "3b3aae100f70de66351ec9aab87719a4cc3cadb29981c64be45624f4021fba37"
    return table


SWISH = _swish_table()


def swish(planes: Planes) -> Planes:
    """Section "Swish"."""
    return [[[SWISH[s + 128] for s in row] for row in plane] for plane in planes]


def conditioner(
    tensors: Tensors, name: str, config: FlowConfig, seen: Planes, heads: list[str]
) -> dict[str, Planes]:
    """Section "Conditioner": the heads of the network `name` for its input."""
    entered = len(seen)
    for d in range(config.depth):
        layer = f"{name}.layers.{d}"
        if config.group_norm:
            made = convolution(tensors, f"{layer}.0", seen, -2048, 2047)
            made = swish(normalization(tensors, f"{layer}.1", made, config.groups))
            made = convolution(tensors, f"{layer}.3", made, -2048, 2047)
            made = swish(normalization(tensors, f"{layer}.4", made, config.groups))
        else:
            made = convolution(tensors, f"{layer}.0", seen, 0, 127)
            made = convolution(tensors, f"{layer}.1", made, 0, 127)
        seen = seen + made
    result = {}
    for head in heads:
        linear = convolution(tensors, f"{name}.linear.{head}", seen[:entered], -32768, 32767)
        dense = convolution(tensors, f"{name}.dense.{head}", seen[entered:], -32768, 32767)
        for c, y, x in each(linear):
            linear[c][y][x] = clamp(linear[c][y][x] + dense[c][y][x], -32768, 32767)
        result[head] = linear
    return result
