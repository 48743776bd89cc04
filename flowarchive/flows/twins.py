"""The maps of a flow as functions of real numbers, with gradients: what its training is made of.

With y_0 where the mixture's own cumulative puts a sample, and b the logistic density, a flow costs

    log2(2**precision / freq) - log2 of (b(y) * derivative / b(y_0)) + log2(tilted / uniform)

bits, so that one that does nothing costs what the mixture says. `train.couplings` has the networks.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from flowarchive.bitsback import TILT_LEAST, TILT_PARTS, TILT_UNIT
from flowarchive.flows.maps import (
    CORE,
    LOGIT_RANGE,
    MAX_FINENESS,
    MIXTURE_PIECES,
    MIXTURE_STEPS,
    RANGE,
    SCALES_PER_OCTAVE,
    Logit,
)

_LN2 = math.log(2.0)
_TAIL = 1 / (1 + math.exp(LOGIT_RANGE))


def log_density(y: Tensor) -> Tensor:
    """Return the logarithm of the logistic density at y, in nats."""
    size = y.abs()
    return -size - 2 * torch.log1p(torch.exp(-size))


def gain_bits(first: Tensor, last: Tensor, ladj: Tensor) -> Tensor:
    """Return the bits a flow saves on each element.

    Args:
        first: y_0, where the mixture's cumulative puts the elements.
        last: Where the flow puts them.
        ladj: The flow's log-derivatives, in nats.
    """
    return (log_density(last) + ladj - log_density(first)) / _LN2


def move_affine(y: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Apply `maps.Affine`.

    Args:
        y: Real.
        shift: Within +-3.
        scale: Indices within +-24, not necessarily whole.

    Returns:
        The moved y, and the logarithm of the slope.
    """
    log_slope = scale * (_LN2 / SCALES_PER_OCTAVE)
    slope = torch.exp(log_slope)
    left = (RANGE + shift - CORE * slope) / (RANGE - CORE)
    right = (RANGE - shift - CORE * slope) / (RANGE - CORE)
    below, above = y < -CORE, y >= CORE
    moved = torch.where(below, (y + RANGE) * left - RANGE, slope * y + shift)
    moved = torch.where(above, RANGE - (RANGE - y) * right, moved)
    ladj = torch.where(below, torch.log(left), log_slope.expand_as(moved))
    return moved, torch.where(above, torch.log(right), ladj)


def move_mixture(y: Tensor, weight: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Apply `maps.Mixture`.

    Args:
        y: Real, [...].
        weight: Logarithms [..., K], in 1/16 of an octave.
        mean: [..., K], in 1/256.
        scale: Width indices [..., K], in 1/8 of an octave.

    Returns:
        The moved y, and the logarithm of the slope.
    """
    shares = torch.log_softmax(weight * (_LN2 / 16), -1)
    steep = torch.exp2(scale / -8)
    piece = torch.floor((y.detach() + RANGE) * MIXTURE_STEPS).clamp(0, MIXTURE_PIECES - 1)
    left = piece / MIXTURE_STEPS - RANGE
    ends = [left, left + 1 / MIXTURE_STEPS]
    low, high = (_mixture_image(end, shares, mean / 256, steep) for end in ends)
    slope = (high - low) * MIXTURE_STEPS
    ladj = torch.log(slope)
    if y.requires_grad:  # steps are flat, but what they follow is not
        half, known = 0.5 / MIXTURE_STEPS, (shares.detach(), mean.detach() / 256, steep.detach())
        below, above = (_mixture_image(y + end, *known) for end in (-half, half))
        smooth = torch.log(above - below)
        ladj = ladj + (smooth - smooth.detach())
    return low + (y - left) * slope, ladj


def _mixture_image(knot: Tensor, shares: Tensor, mean: Tensor, steep: Tensor) -> Tensor:
    away = (knot[..., None] - mean) * steep
    below = torch.logsumexp(shares + functional.logsigmoid(away), -1)
    above = torch.logsumexp(shares + functional.logsigmoid(-away), -1)
    height = below - above
    reach = (RANGE - LOGIT_RANGE) / _TAIL
    height = torch.where(height < -LOGIT_RANGE, torch.exp(below) * reach - RANGE, height)
    height = torch.where(height > LOGIT_RANGE, RANGE - torch.exp(above) * reach, height)
    image = (63 * height + knot) / 64
    return torch.where(knot.abs() >= RANGE, knot, image)


@cache
def _logit_curve(precision: int) -> tuple[Tensor, Tensor]:
    knots, images = Logit(precision, MAX_FINENESS).knots(slice(0))
    u = torch.from_numpy(knots[0].astype(float)) / (1 << precision)
    y = torch.from_numpy(images[0].astype(float)) / (1 << MAX_FINENESS) - RANGE
    return u, y


def move_logit(u: Tensor, precision: int) -> Tensor:
    """Apply `maps.Logit` to float64 u / 2**precision in [0, 1)."""
    knots, images = _logit_curve(precision)
    piece = (torch.searchsorted(knots, u.detach(), right=True) - 1).clamp(0, len(knots) - 2)
    slope = (images[piece + 1] - images[piece]) / (knots[piece + 1] - knots[piece])
    return images[piece] + (u - knots[piece]) * slope


def dequantize(
    start: Tensor, freq: Tensor, precision: int, noise: Tensor, tilt: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Put samples where `bitsback.Dequantizer` does.

    Args:
        start: Left ends of the samples' intervals, float64 [...].
        freq: Their widths.
        precision: Of the intervals.
        noise: float64 [...] in [0, 1), uniform.
        tilt: [...] within +-8; none for zero.

    Returns:
        y_0, float32; and the mean, over all places, of the logarithm of the tilted density over the
        uniform one, in nats: that of a drawn place has no gradient, as a density in steps is flat.
    """
    if tilt is None:
        y = move_logit((start + freq * noise) / (1 << precision), precision)
        return y.float(), torch.zeros_like(y, dtype=torch.float32)
    tilted = torch.where(freq < TILT_LEAST, torch.zeros_like(tilt), tilt).double()
    parts = torch.arange(TILT_PARTS, dtype=torch.float64)
    masses = torch.softmax(tilted[..., None] * parts / TILT_UNIT, -1)
    ends = masses.cumsum(-1)
    part = (ends[..., :-1].detach() <= noise[..., None]).sum(-1, keepdim=True)
    mass = masses.gather(-1, part)[..., 0]
    left = ends.gather(-1, part)[..., 0] - mass
    place = (part[..., 0] + (noise - left) / mass).clamp(0, TILT_PARTS) / TILT_PARTS
    y = move_logit((start + freq * place) / (1 << precision), precision)
    return y.float(), (masses * torch.log(masses * TILT_PARTS)).sum(-1).float()
