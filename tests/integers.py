"""The frozen layers in 64-bit and Python integers, written from docs/format.md: slow and plain."""

from __future__ import annotations

import copy
import math
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flowarchive import exact

Array = np.ndarray


def ints(x: Tensor) -> Array:
    """The integers of a tensor, having made sure that they are."""
    array = x.detach().numpy().astype(np.int64)
    assert np.array_equal(array, x.detach().numpy())
    return array


def plain_conv(layer: exact.IntConv2d, x: Array) -> Array:
    """docs/format.md, "Convolution", in 64-bit integers."""
    weight, bias = ints(layer.weight), ints(layer.bias)
    outputs, inputs, k, _ = weight.shape
    padded = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    height, width = x.shape[2:]
    result = np.empty((x.shape[0], outputs, height, width), dtype=np.int64)
    for o in range(outputs):
        first = o // (outputs // layer.groups) * inputs
        total = np.full((x.shape[0], height, width), bias[o])
        for r in range(k):
            for c in range(k):
                seen = padded[:, first : first + inputs, r : r + height, c : c + width]
                total += np.einsum("i,bihw->bhw", weight[o, :, r, c], seen)
        shift = int(layer.shift[o])
        # floor(total / 2**shift + 1/2) = floor((2 * total + 2**shift) / 2**(shift + 1))
        if shift >= 0:
            result[:, o] = (2 * total + (1 << shift)) >> (shift + 1)
        else:
            result[:, o] = total << -shift
    return result.clip(*layer.limits)


def plain_norm(layer: exact.IntGroupNorm, x: Array) -> Array:
    """docs/format.md, "Normalization", in Python integers."""
    result = np.empty_like(x)
    for b, c in np.ndindex(x.shape[:2]):
        size = x.shape[1] // layer.groups
        group = x[b, c // size * size : (c // size + 1) * size]
        n, s, q = group.size, int(group.sum()), int((group * group).sum())
        root = math.isqrt((n * q - s * s + n * n) * 2**32)
        factor = int(layer.gain[c]) * n * 2**28 // root
        offset = int(layer.offset[c]) * 2**12 - s * factor // n
        for i, j in np.ndindex(x.shape[2:]):
            result[b, c, i, j] = (2 * (int(x[b, c, i, j]) * factor + offset) + 2**20) // 2**21
    return result.clip(-128, 127)


def plain_swish(x: Array) -> Array:
    """docs/format.md, "Swish", in decimals."""
    with localcontext() as context:
        context.prec = 60
        table = [
            math.floor(Decimal(i) / (1 + (-Decimal(i) / 32).exp()) + Decimal(1) / 2)
            for i in range(-128, 128)
        ]
    return np.array(table)[x + 128]


class PlainLayer(nn.Module):
    """A frozen layer that computes with the functions above."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        layer: Any = self.layer
        if isinstance(layer, exact.IntConv2d):
            y = plain_conv(layer, ints(x))
        elif isinstance(layer, exact.IntGroupNorm):
            y = plain_norm(layer, ints(x))
        else:
            assert isinstance(layer, exact.IntSwish)
            y = plain_swish(ints(x))
        return torch.from_numpy(y).float()


def plain_network(network: nn.Module) -> nn.Module:
    """A copy of a frozen network in which no layer is computed by the package."""

    def replace(module: nn.Module) -> nn.Module:
        for name, child in module.named_children():
            known = isinstance(child, exact.IntConv2d | exact.IntGroupNorm | exact.IntSwish)
            setattr(module, name, PlainLayer(child) if known else replace(child))
        return module

    return replace(copy.deepcopy(network))
