"""What training minimizes: bits of samples under logistic mixtures, with their gradient at hand.

A head says 3K numbers about a sample: logarithms of weights, offsets of means, offsets of scales;
see `models.phasewise`, which turns the same numbers into the coder's integers. The gradient is
written out, because it costs a fifth of what a graph of the same steps does.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowarchive.entropy import SCALES_PER_OCTAVE
from flowarchive.features import ANCHOR_ONE
from flowarchive.models.mixtures import SCALE_MAX, WEIGHT_STEPS
from flowarchive.models.phasewise import SCALE_ONE

FLOOR = 2.0**-20
"""Added to every probability, as the coder's least frequency is."""

_LN2 = math.log(2.0)


class _MixtureBits(torch.autograd.Function):
    """See `mixture_bits`; the gradient is computed on the way forward."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, head: Tensor, distance: Tensor) -> Tensor:
        k = distance.shape[1]
        weight = torch.softmax(head[:, :k] * (_LN2 / WEIGHT_STEPS), 1)
        index = head[:, 2 * k :]
        inside = (index > 0) & (index < SCALE_MAX)
        inverse = torch.exp((SCALE_ONE - index.clamp(0, SCALE_MAX)) * (_LN2 / SCALES_PER_OCTAVE))
        away = distance - head[:, k : 2 * k] * (1 / ANCHOR_ONE)
        sign = torch.where(away < 0, -1.0, 1.0)
        # A logistic is symmetric: on the left both of its ends are small, and their difference
        # is exact.
        left = -away.abs()
        upper, lower = (left + 0.5) * inverse, (left - 0.5) * inverse
        above, below = torch.sigmoid(upper), torch.sigmoid(lower)
        part = above - below
        steep_above, steep_below = above * (1 - above), below * (1 - below)
        mixed = (weight * part).sum(1, keepdim=True)
        total = mixed + FLOOR
        outer = weight * (-1 / (total * _LN2))
        gradient = torch.empty_like(head)
        gradient[:, :k] = outer * (part - mixed) * (_LN2 / WEIGHT_STEPS)
        slope = (steep_above - steep_below) * inverse * sign
        gradient[:, k : 2 * k] = outer * slope * (1 / ANCHOR_ONE)
        narrowed = steep_below * lower - steep_above * upper
        gradient[:, 2 * k :] = outer * inside * narrowed * (_LN2 / SCALES_PER_OCTAVE)
        ctx.save_for_backward(gradient)
        return -torch.log2(total[:, 0])

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient * grads[0][:, None], None


def mixture_bits(head: Tensor, distance: Tensor) -> Tensor:
    """Return the bits of each sample.

    Args:
        head: What a head says, float32 [n, 3K], in its integers' units.
        distance: From each anchor to the sample, float32 [n, K], in sample steps.

    Returns:
        float32 [n].
    """
    return _MixtureBits.apply(head, distance)  # type: ignore[no-any-return,no-untyped-call]
