"""The layers of `continuous` under training: the same functions of real numbers, with gradients.

    twin (training)   ActNormTwin   MixTwin   CouplingTwin   FlowTwin   TiltTwin
    frozen (coding)   ActNorm       Mix       Coupling       Flow       Tilt

A twin takes y [B, 4, h, w], real, and context [B, C, h, w], integers, both float32, to the moved y
and its log-derivative an element, in nats. In `fake` mode it uses the frozen layer's integers as
parameters; it never rounds y to the grid, which costs nothing that matters. With y_0 where the
mixture's own cumulative puts a sample, and b the logistic density, a flow costs

    log2(2**precision / freq) - log2 of (b(y) * derivative / b(y_0)) + log2(tilted / uniform)

bits, so that one that does nothing costs what the mixture says.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowarchive import exact
from flowarchive.bitsback import TILT_LEAST, TILT_MAX, TILT_PARTS, TILT_UNIT
from flowarchive.flows.continuous import (
    CHANNELS,
    MIX_BITS,
    MIX_MAX,
    SEEN_UNIT,
    SHIFT_UNIT,
    ActNorm,
    Conditioner,
    Coupling,
    Flow,
    Mix,
    Tilt,
    coupling_net,
)
from flowarchive.flows.maps import (
    CORE,
    LOGIT_RANGE,
    MAX_FINENESS,
    MIXTURE_MEAN_MAX,
    MIXTURE_PIECES,
    MIXTURE_SCALE_MAX,
    MIXTURE_STEPS,
    RANGE,
    SCALE_MAX,
    SCALES_PER_OCTAVE,
    SHIFT_MAX,
    Logit,
)

_LN2 = math.log(2.0)
_LOGISTIC_WIDTH = math.pi / math.sqrt(3.0)
_TAIL = 1 / (1 + math.exp(LOGIT_RANGE))
_FIRST_SPREAD = 128  # of the means of a fresh mixture map, in 1/256


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
    return low + (y - left) * slope, torch.log(slope)


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
        y_0, float32, and the logarithm of the tilted density over the uniform one, in nats.
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
    return y.float(), torch.log(mass * TILT_PARTS).float()


def _whole(x: Tensor, unit: float, most: int, fake: bool) -> Tensor:
    """Give x in 1/unit, within +-most, rounded in fake mode."""
    units = exact.clamp(x * unit, -most, most)
    return exact.round_half_up(units) if fake else units


class ActNormTwin(exact.Twin):
    """Twin of `ActNorm`; its first step in training mode makes the channels logistic in width."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(CHANNELS))
        self.scale = nn.Parameter(torch.zeros(CHANNELS))  # in octaves
        self.ready: Tensor
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))

    def _quantized(self, fake: bool = True) -> tuple[Tensor, Tensor]:
        shift = _whole(self.shift, SHIFT_UNIT, SHIFT_MAX * SHIFT_UNIT, fake)
        return shift, _whole(self.scale, SCALES_PER_OCTAVE, SCALE_MAX, fake)

    def forward(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Move y; see the module."""
        if self.training and not bool(self.ready):
            self._begin(y.detach())
        shift, scale = self._quantized(self.fake)
        shape = (1, CHANNELS, 1, 1)
        return move_affine(y, (shift / SHIFT_UNIT).reshape(shape), scale.reshape(shape))

    def _begin(self, y: Tensor) -> None:
        with torch.no_grad():
            spread = y.std(dim=(0, 2, 3)).clamp_min(1e-3)
            self.scale.copy_(torch.log2(_LOGISTIC_WIDTH / spread).clamp(-0.75, 0.75))
            self.shift.copy_((-y.mean(dim=(0, 2, 3)) * torch.exp2(self.scale)).clamp(-3, 3))
            self.ready.fill_(True)

    def hollow(self) -> ActNorm:
        """Return the integer layer, its integers yet to come."""
        return ActNorm()

    def freeze(self) -> ActNorm:
        """Return the integer layer."""
        frozen = self.hollow()
        with torch.no_grad():
            shift, scale = self._quantized()
            frozen.shift.copy_(shift)
            frozen.scale.copy_(scale)
        frozen.check()
        return frozen


class MixTwin(exact.Twin):
    """Twin of `Mix`; the identity at the start.

    Args:
        order: Of the channels, a permutation of 0..3.
    """

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        self.order = tuple(order)
        self.lower = nn.Parameter(torch.zeros(CHANNELS, CHANNELS))
        self.upper = nn.Parameter(torch.zeros(CHANNELS, CHANNELS))
        self.scale = nn.Parameter(torch.zeros(CHANNELS))  # in octaves

    def _quantized(self, fake: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        one = 1 << MIX_BITS
        lower, upper = (_whole(c, one, MIX_MAX, fake) for c in (self.lower, self.upper))
        return lower, upper, _whole(self.scale, SCALES_PER_OCTAVE, SCALE_MAX, fake)

    def forward(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Move y; see the module."""
        lower, upper, scale = self._quantized(self.fake)
        channels = [y[:, c] for c in self.order]
        total = [torch.zeros_like(c) for c in channels]

        def move(i: int, factors: Tensor, others: Sequence[int], index: Tensor) -> None:
            shift = torch.zeros_like(channels[i])
            for j in others:
                shift = shift + factors[i, j] / (1 << MIX_BITS) * channels[j]
            shift = exact.clamp(shift, -SHIFT_MAX, SHIFT_MAX)
            channels[i], ladj = move_affine(channels[i], shift, index)
            total[i] = total[i] + ladj

        for i in range(CHANNELS):
            move(i, upper, range(i + 1, CHANNELS), scale[i])
        for i in reversed(range(CHANNELS)):
            move(i, lower, range(i), torch.zeros(()))
        back = [self.order.index(c) for c in range(CHANNELS)]
        return torch.stack([channels[i] for i in back], 1), torch.stack([total[i] for i in back], 1)

    def hollow(self) -> Mix:
        """Return the integer layer, its integers yet to come."""
        return Mix(self.order)

    def freeze(self) -> Mix:
        """Return the integer layer."""
        frozen = self.hollow()
        with torch.no_grad():
            for buffer, values in zip(
                (frozen.lower, frozen.upper, frozen.scale), self._quantized(), strict=True
            ):
                buffer.copy_(values)
        frozen.check()
        return frozen


class CouplingTwin(exact.Twin):
    """Twin of `Coupling`; the identity at the start, or near it if it is a mixture.

    Args:
        moved: Channels that are moved, ascending.
        context: Channels of context.
        width: Of the network.
        components: K of a `Mixture` map; 0 for `Affine`.
    """

    def __init__(
        self, moved: Sequence[int], context: int = 0, width: int = 32, components: int = 0
    ) -> None:
        super().__init__()
        self.moved, self.components = tuple(moved), components
        self.passed = tuple(c for c in range(CHANNELS) if c not in moved)
        self.net = coupling_net(context, width, len(self.moved), components)
        bias = self.net.head.bias
        if components > 1 and not bias.is_meta:
            # Components that all begin alike would stay so.
            first = torch.linspace(-_FIRST_SPREAD, _FIRST_SPREAD, components)
            with torch.no_grad():
                means = bias.reshape(len(self.moved), 3, components)[:, 1]
                means.copy_(first / (exact.UNIT * SHIFT_UNIT / SEEN_UNIT))

    def forward(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Move y; see the module."""
        mask = torch.zeros(1, CHANNELS, 1, 1)
        mask[:, list(self.passed)] = 1
        seen = _whole(y * mask, SEEN_UNIT, exact.ACTIVATION_MAX, self.fake)
        out = self.net(seen if context is None else torch.cat([seen, context], 1))
        picked = list(self.moved)
        n, _, h, w = out.shape
        # [parameters, n, moved, h, w]
        parameters = out.reshape(n, len(picked), -1, h, w).permute(2, 0, 1, 3, 4)
        if self.components == 0:
            most = SHIFT_MAX * SHIFT_UNIT
            shift = exact.clamp(parameters[0], -most, most) / SHIFT_UNIT
            scale = exact.clamp(parameters[1], -SCALE_MAX, SCALE_MAX)
            part, slope = move_affine(y[:, picked], shift, scale)
        else:
            weight, mean, width = parameters.unflatten(0, (3, self.components)).movedim(1, -1)
            mean = exact.clamp(mean, -MIXTURE_MEAN_MAX, MIXTURE_MEAN_MAX)
            width = exact.clamp(width, -MIXTURE_SCALE_MAX, MIXTURE_SCALE_MAX)
            part, slope = move_mixture(y[:, picked], weight, mean, width)
        at = torch.tensor(picked)
        return y.index_copy(1, at, part), torch.zeros_like(y).index_copy(1, at, slope)

    def hollow(self) -> Coupling:
        """Return the integer layer, its integers yet to come."""
        return Coupling(self.moved, self.components, _net(exact.hollow(copy.deepcopy(self.net))))

    def freeze(self) -> Coupling:
        """Return the integer layer."""
        return Coupling(self.moved, self.components, _net(exact.freeze(copy.deepcopy(self.net))))


class TiltTwin(exact.Twin):
    """Twin of `Tilt`; no tilt at the start.

    Args:
        context: Channels of context.
        width: Of the network.
    """

    def __init__(self, context: int, width: int = 16) -> None:
        super().__init__()
        self.net = Conditioner(context, CHANNELS, width, [0] * CHANNELS)

    def forward(self, context: Tensor) -> Tensor:
        """Return tilts [B, 4, h, w] within +-8."""
        nothing = context.new_zeros(len(context), CHANNELS, *context.shape[2:])
        return exact.clamp(self.net(torch.cat([nothing, context], 1)), -TILT_MAX, TILT_MAX)

    def hollow(self) -> Tilt:
        """Return the integer layer, its integers yet to come."""
        return Tilt(_net(exact.hollow(copy.deepcopy(self.net))))

    def freeze(self) -> Tilt:
        """Return the integer layer."""
        return Tilt(_net(exact.freeze(copy.deepcopy(self.net))))


class FlowTwin(exact.Twin):
    """Twin of `Flow`.

    Args:
        layers: Twins of its layers.
    """

    def __init__(self, layers: Sequence[exact.Twin]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Move y by every layer; see the module."""
        total = torch.zeros_like(y)
        for layer in self.layers:
            y, ladj = layer(y, context)
            total = total + ladj
        return y, total

    def hollow(self) -> Flow:
        """Return the integer layers, their integers yet to come."""
        return Flow([layer.hollow() for layer in self.layers])  # type: ignore[operator]

    def freeze(self) -> Flow:
        """Return the integer layers."""
        return Flow([layer.freeze() for layer in self.layers])  # type: ignore[operator]


def _net(module: nn.Module) -> Conditioner:
    assert isinstance(module, Conditioner)
    return module
