"""References brought to the light of a frame: integers one by one, which PyTorch does as well."""

from __future__ import annotations

import torch
from torch import Tensor

BITS = 10
"""Gains are in 2**-BITS."""


def none(*shape: int, device: torch.device) -> Tensor:
    """Gains and offsets that change nothing, int32 [..., 2]."""
    lights = torch.zeros((*shape, 2), dtype=torch.int32, device=device)
    lights[..., 0] = 1 << BITS
    return lights


def adjust(values: Tensor, lights: Tensor, low: int, high: int) -> Tensor:
    """Bring values to another light.

    Args:
        values: int32 [N, H, W], in quarters of a sample, at most 2**18 in magnitude.
        lights: A gain, 0..2**12 - 1, and an offset in quarters for each plane, int32 [N, 2].
        low: The least sample.
        high: The greatest.
    """
    gain, offset = lights[:, :, None, None].unbind(1)
    adjusted = ((values * gain + (1 << (BITS - 1))) >> BITS) + offset
    return adjusted.clamp(4 * low, 4 * high)
