"""IDF++, an integer discrete flow: its layers, its training objective, its exact inverse.

    x -> squeeze -> [permute -> couple -> permute back] * K -> split -> z_1 under p(z_1 | kept)
                                                                 |
                                                                kept -> squeeze -> ... -> z_L

Every number that decides a bit is an integer from `exact`; a flow moves integers to integers and
needs no log-determinant. Samples and latents are integers in float32 (exact below 2**24). Networks
see samples on an 8-bit grid: `shift` low bits of deeper samples are rounded away before a network
and multiplied back into what it says, so one set of weights serves 8 to 16 bits.

Frames whose sides are no multiple of 2**levels are padded with zeros that a mask holds at zero in
every layer: they are never coded.

References:
    van den Berg, Gritsenko, Dehghani, Sonderby, Salimans, "IDF++: Analyzing and improving integer
    discrete flows for lossless compression", 2020, arXiv:2006.12459.
    Hoogeboom, Peters, van den Berg, Welling, "Integer discrete flows", 2019, arXiv:1905.07376.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowarchive import exact
from flowarchive.errors import ModelError

FRACTION = 8  # fractional bits of translations and means, in 8-bit sample steps
OUTPUT_MAX = (1 << 15) - 1  # translations and means stay within +-128 sample steps
SCALES_PER_OCTAVE = 8
SCALE_ONE = 40  # scale index of a width of one sample step (entropy's table begins at 2**-5)
SCALE_START = SCALE_ONE + 16
SCALE_MAX = 191
WEIGHT_BITS = 12  # mixture weights sum to 2**WEIGHT_BITS
MAX_MEAN = (1 << 23) - 1  # magnitude of a mixture's mean: 32 bits hold it at 16 bits a sample
MAX_MOVES = 6  # couplings that move one sample: the coder's support holds what becomes of it
FLOOR = 2.0**-24  # probability every symbol has at least, by the integer model


@dataclass(frozen=True)
class FlowConfig:
    """Shape of one integer flow; each rung of the paper's ladder is a field.

    Attributes:
        channels: Planes the flow codes together.
        context: Planes it sees but does not code, on the same grid (0 or 1).
        levels: Squeezes; all but the last factor half of the channels out.
        couplings: Coupling steps a level (K).
        depth: Dense layers of a conditioner.
        width: Channels each dense layer adds.
        mixtures: Logistic components of the top prior.
        rezero: Scale every translation, mean and log-scale by a scalar that starts at zero.
        inverse_permutation: Undo each coupling's permutation after it.
        group_norm: GroupNorm and Swish in the conditioners; otherwise ReLU alone.
        groups: Groups of a GroupNorm.
    """

    channels: int
    context: int = 0
    levels: int = 3
    couplings: int = 4
    depth: int = 2
    width: int = 16
    mixtures: int = 5
    rezero: bool = True
    inverse_permutation: bool = True
    group_norm: bool = True
    groups: int = 4

    def __post_init__(self) -> None:
        limits = {
            "channels": 4, "context": 1, "levels": 8, "couplings": 64, "depth": 32, "width": 1024,
            "mixtures": 16, "groups": 64,
        }  # fmt: skip
        for name, limit in limits.items():
            value = getattr(self, name)
            if type(value) is not int or not int(name != "context") <= value <= limit:
                raise ValueError(f"{name} is {value!r}, may be up to {limit}")
        for name in ("rezero", "inverse_permutation", "group_norm"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name} is {getattr(self, name)!r}, not true or false")
        if self.moves > MAX_MOVES:
            raise ValueError(f"{self.levels} levels of {self.couplings} couplings reach too far")
        if self.group_norm and self.width % self.groups:
            raise ValueError(f"a width of {self.width} is no multiple of {self.groups} groups")

    @property
    def multiple(self) -> int:
        """Sides of the padded planes are multiples of this."""
        return 1 << self.levels

    @property
    def widest(self) -> int:
        """The most channels that a network holds side by side, inputs and what layers made."""
        return 3 * self.channels + 4 * self.context + self.depth * self.width

    @property
    def moves(self) -> int:
        """How many couplings can move one sample."""
        return self.levels * -(-self.couplings // 4)

    @property
    def reach(self) -> int:
        """How far the couplings can move a sample, in 8-bit sample steps."""
        return self.moves * 128


@dataclass(frozen=True)
class Latent:
    """What one level hands to the coder: symbols and the parameters of their distribution.

    Attributes:
        z: Integers [B, C, h, w].
        mean: In 2**-FRACTION symbol steps, [B, C, h, w, K].
        scale: Index into the table of scales, alike.
        weight: In 2**-WEIGHT_BITS, alike; None for a single component.
        mask: [1, C, h, w], zero where a sample is padding; None where nothing is.
    """

    z: Tensor
    mean: Tensor
    scale: Tensor
    weight: Tensor | None
    mask: Tensor | None


class Conditioner(nn.Module):
    """DenseNet between activations and the integers that steer a coupling or a prior.

    Each dense layer is 1x1, norm, activation, 3x3, norm, activation on everything before it. A
    head adds a 3x3 convolution of the inputs, a linear prediction beside the hidden layers, to a
    1x1 convolution of what the layers made: convolutions pay for whole blocks of 16 outputs on a
    CPU, so a 3x3 over all of it would cost more than the layers.
    """

    def __init__(self, config: FlowConfig, inputs: int, heads: dict[str, tuple[int, int]]) -> None:
        super().__init__()
        self.inputs = inputs
        self.layers = nn.ModuleList()
        for number in range(config.depth):
            channels = inputs + number * config.width
            first = _convolution(config, channels, 1)
            self.layers.append(nn.Sequential(*first, *_convolution(config, config.width, 3)))
        self.linear, self.dense = nn.ModuleDict(), nn.ModuleDict()
        for name, (outputs, gain) in heads.items():
            for part, channels, kernel in (
                (self.linear, inputs, 3),
                (self.dense, config.depth * config.width, 1),
            ):
                head = exact.Conv2d(
                    channels,
                    outputs,
                    kernel,
                    gain,
                    OUTPUT_MAX,
                    max_weight=exact.WIDE_WEIGHT,
                    rezero=config.rezero,
                )
                if not config.rezero:
                    nn.init.zeros_(head.weight)
                part[name] = head

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map activations [B, I, h, w] to the heads' integers, in the heads' order."""
        seen = x
        for layer in self.layers:
            seen = torch.cat([seen, layer(seen)], 1)
        made = seen[:, self.inputs :].contiguous(memory_format=torch.channels_last)
        return [
            exact.clamp(linear(x) + dense(made), -OUTPUT_MAX - 1, OUTPUT_MAX)
            for linear, dense in zip(self.linear.values(), self.dense.values(), strict=True)
        ]


def _convolution(config: FlowConfig, inputs: int, kernel: int) -> list[nn.Module]:
    if not config.group_norm:
        return [exact.Conv2d(inputs, config.width, kernel, rectify=True)]
    return [
        exact.Conv2d(inputs, config.width, kernel, exact.NORM_INPUT_GAIN, exact.NORM_INPUT_MAX),
        exact.GroupNorm(config.groups, config.width),
        exact.Swish(),
    ]


class Coupling(nn.Module):
    """Adds a rounded translation, seen from three quarters of the channels, to the fourth.

    The permutation brings quarter 3 - turn, modulo 4, to the end.
    """

    def __init__(self, config: FlowConfig, channels: int, turn: int) -> None:
        super().__init__()
        self.moved = channels // 4
        self.first = channels - self.moved * (turn % 4 + 1)
        self.permute_back = config.inverse_permutation
        inputs = channels - self.moved + 4 * config.context
        self.conditioner = Conditioner(config, inputs, {"translation": (self.moved, FRACTION)})

    def permute(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Part [B, C, h, w] into the kept quarters and the one to be moved."""
        before, moved, after = x.tensor_split([self.first, self.first + self.moved], 1)
        return torch.cat([before, after], 1), moved

    def _unpermute(self, kept: Tensor, moved: Tensor) -> Tensor:
        before, after = kept.tensor_split([self.first], 1)
        return torch.cat([before, moved, after], 1)

    def _translation(
        self, kept: Tensor, context: Tensor | None, mask: Tensor | None, shift: int
    ) -> Tensor:
        (t,) = self.conditioner(_see(kept, context, shift))
        t = exact.round_half_up(t * 2.0 ** (shift - FRACTION))
        return t if mask is None else t * self.permute(mask)[1]

    def forward(self, x: Tensor, context: Tensor | None, mask: Tensor | None, shift: int) -> Tensor:
        """Map integers [B, C, h, w] to integers."""
        kept, moved = self.permute(x)
        moved = moved + self._translation(kept, context, mask, shift)
        return self._unpermute(kept, moved) if self.permute_back else torch.cat([kept, moved], 1)

    def inverse(self, x: Tensor, context: Tensor | None, mask: Tensor | None, shift: int) -> Tensor:
        """Undo `forward`."""
        kept, moved = self.permute(x) if self.permute_back else x.tensor_split([-self.moved], 1)
        moved = moved - self._translation(kept, context, mask, shift)
        return self._unpermute(kept, moved)

    def mask_after(self, mask: Tensor | None) -> Tensor | None:
        """Return the mask of what `forward` returns."""
        if mask is None or self.permute_back:
            return mask
        return torch.cat(self.permute(mask), 1)


class Prior(nn.Module):
    """Logistic distribution of the factored-out half of a level, seen from the kept half."""

    def __init__(self, config: FlowConfig, channels: int) -> None:
        super().__init__()
        self.conditioner = Conditioner(
            config,
            channels + 4 * config.context,
            {"mean": (channels, FRACTION), "scale": (channels, 0)},
        )

    def forward(self, kept: Tensor, context: Tensor | None, shift: int) -> tuple[Tensor, Tensor]:
        """Return means and scale indices [B, C, h, w, 1]."""
        mean, scale = self.conditioner(_see(kept, context, shift))
        scale = exact.clamp(scale + (SCALE_START + SCALES_PER_OCTAVE * shift), 0, SCALE_MAX)
        return (mean * 2.0**shift)[..., None], scale[..., None]


class Mixture(exact.Twin):
    """Training twin of the top prior: a mixture of logistics for each channel."""

    def __init__(self, channels: int, mixtures: int) -> None:
        super().__init__()
        means = [128 * k / (mixtures - 1) - 64 if mixtures > 1 else 0.0 for k in range(mixtures)]
        self.mean = nn.Parameter(torch.tensor([means] * channels))
        self.log_scale = nn.Parameter(torch.full((channels, mixtures), 4.0))
        self.logit = nn.Parameter(torch.zeros(channels, mixtures))

    def parameters_for(self, shift: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return means, scale indices and weights [C, K] on the coder's grids."""
        mean, scale = self.mean * (1 << FRACTION), self.log_scale * SCALES_PER_OCTAVE + SCALE_ONE
        weight = functional.softmax(self.logit, -1) * (1 << WEIGHT_BITS)
        if self.fake:
            mean, scale = exact.round_half_up(mean), exact.round_half_up(scale)
            weight = weight + (_whole_weights(weight.detach()) - weight).detach()
        return _at_depth(mean, scale, weight, shift)

    def hollow(self) -> IntMixture:
        """Return a table of this one's shape, its integers yet to come."""
        return IntMixture(*self.mean.shape)

    def freeze(self) -> IntMixture:
        """Return the frozen table."""
        frozen = self.hollow()
        with torch.no_grad():
            frozen.mean.copy_(exact.round_half_up(self.mean * (1 << FRACTION)))
            scale = exact.round_half_up(self.log_scale * SCALES_PER_OCTAVE + SCALE_ONE)
            frozen.scale.copy_(scale)
            weight = functional.softmax(self.logit, -1) * (1 << WEIGHT_BITS)
            frozen.weight.copy_(_whole_weights(weight))
        frozen.check()
        return frozen


class IntMixture(exact.Frozen):
    """Frozen top prior: integer means, scale indices and weights [C, K]."""

    mean: Tensor
    scale: Tensor
    weight: Tensor

    def __init__(self, channels: int, mixtures: int) -> None:
        super().__init__()
        for name in ("mean", "scale", "weight"):
            self.register_buffer(name, torch.zeros(channels, mixtures, dtype=torch.int32))

    def check(self) -> None:
        """Raise ModelError unless means are in range and weights at least 0, with the right sum."""
        if int(self.mean.to(torch.int64).abs().max()) > MAX_MEAN:
            raise ModelError(f"a mixture's mean is outside +-{MAX_MEAN}")
        weight = self.weight.to(torch.int64)
        if int(weight.min()) < 0 or bool((weight.sum(-1) != 1 << WEIGHT_BITS).any()):
            raise ModelError("a mixture's weights are not shares of one whole")

    def parameters_for(self, shift: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return means, scale indices and weights [C, K] on the coder's grids."""
        return _at_depth(self.mean.float(), self.scale.float(), self.weight.float(), shift)


def _at_depth(
    mean: Tensor, scale: Tensor, weight: Tensor, shift: int
) -> tuple[Tensor, Tensor, Tensor]:
    scale = exact.clamp(scale + SCALES_PER_OCTAVE * shift, 0, SCALE_MAX)
    return mean * 2.0**shift, scale, weight


def _whole_weights(weight: Tensor) -> Tensor:
    """Round the rows of [C, K] to integers of at least 1 that sum to 2**WEIGHT_BITS."""
    whole = torch.floor(weight + 0.5).clamp_min(1)
    top = whole.argmax(-1, keepdim=True)
    missing = (1 << WEIGHT_BITS) - whole.sum(-1, keepdim=True)
    return whole.scatter_add(-1, top, missing)


def _see(x: Tensor, context: Tensor | None, shift: int) -> Tensor:
    """Bring samples to the activations a network takes: 8-bit steps, clamped."""
    if shift:
        x = torch.floor(x * 2.0**-shift + 0.5)
    x = x.clamp(exact.ACTIVATION_MIN, exact.ACTIVATION_MAX)
    x = x if context is None else torch.cat([x, context], 1)
    return x.contiguous(memory_format=torch.channels_last)  # the faster layout for convolutions


PHASES = ((0, 0), (1, 1), (0, 1), (1, 0))


def squeeze(x: Tensor) -> Tensor:
    """Turn [B, C, 2h, 2w] into [B, 4C, h, w], the checkerboard's phases first."""
    return torch.cat([x[..., i::2, j::2] for i, j in PHASES], 1)


def unsqueeze(x: Tensor) -> Tensor:
    """Undo `squeeze`."""
    batch, channels, h, w = x.shape
    y = x.new_empty(batch, channels // 4, 2 * h, 2 * w)
    for (i, j), phase in zip(PHASES, x.chunk(4, 1), strict=True):
        y[..., i::2, j::2] = phase
    return y


class Level(nn.Module):
    """One scale of the flow: the couplings and the prior of the latent it leaves behind."""

    prior: Prior | Mixture | IntMixture

    def __init__(self, config: FlowConfig, channels: int, top: bool) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(
            Coupling(config, channels, turn) for turn in range(config.couplings)
        )
        self.top = top
        self.prior = Mixture(channels, config.mixtures) if top else Prior(config, channels // 2)

    @property
    def steps(self) -> list[Coupling]:
        """The couplings, in forward order."""
        return cast("list[Coupling]", list(self.couplings))

    def distribution(
        self, kept: Tensor, context: Tensor | None, shift: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return means, scales [B, C, h, w, K] and weights of this level's latent.

        At the top `kept` only gives the batch and the positions.
        """
        if isinstance(self.prior, Prior):
            mean, scale = self.prior(kept, context, shift)
            return mean, scale, None
        batch, _, h, w = kept.shape
        mean, scale, weight = (
            p[None, :, None, None].expand(batch, -1, h, w, -1)
            for p in self.prior.parameters_for(shift)
        )
        return mean, scale, weight


class IntegerFlow(nn.Module):
    """An integer discrete flow over `channels` planes of one grid."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        self.levels = nn.ModuleList()
        channels = config.channels
        for level in range(config.levels):
            top = level == config.levels - 1
            channels *= 4
            self.levels.append(Level(config, channels, top))
            channels //= 2

    @property
    def scales(self) -> list[Level]:
        """The levels, finest first."""
        return cast("list[Level]", list(self.levels))

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, shift: int = 0
    ) -> list[Latent]:
        """Map samples to latents and the parameters of their distributions, finest level first.

        Args:
            x: Integers [B, channels, H, W], sides multiples of `config.multiple`.
            context: Activations [B, 1, H, W] or None.
            mask: [1, channels, H, W], one where a sample is real; None where all are.
            shift: Bits of a sample beyond 8.
        """
        latents = []
        contexts, masks = self._contexts(context), self._masks(mask)
        for level, seen, (steps, mask_z) in zip(self.scales, contexts, masks, strict=True):
            x = squeeze(x)
            for coupling, step in zip(level.steps, steps, strict=True):
                x = coupling(x, seen, step, shift)
            kept, z = (x, x) if level.top else x.chunk(2, 1)
            mean, scale, weight = level.distribution(kept, seen, shift)
            latents.append(Latent(z, mean, scale, weight, mask_z))
            x = kept
        return latents

    def inverse(
        self,
        read: Callable[[Latent], Tensor],
        shape: tuple[int, int, int],
        context: Tensor | None = None,
        mask: Tensor | None = None,
        shift: int = 0,
    ) -> Tensor:
        """Undo `forward`, asking `read` for each level's latent, the top first.

        Args:
            read: Takes a Latent whose `z` is empty, gives its z, integers [B, C, h, w].
            shape: (B, H, W) of the samples.
            context: As in `forward`.
            mask: As in `forward`.
            shift: As in `forward`.

        Returns:
            Integers [B, channels, H, W].
        """
        contexts, masks = self._contexts(context), self._masks(mask)
        batch, h, w = shape[0], shape[1] >> self.config.levels, shape[2] >> self.config.levels
        x = torch.empty(batch, 0, h, w)
        for level, seen, (steps, mask_z) in reversed(
            list(zip(self.scales, contexts, masks, strict=True))
        ):
            mean, scale, weight = level.distribution(x, seen, shift)
            z = read(Latent(x.new_empty(0), mean, scale, weight, mask_z))
            x = z if level.top else torch.cat([x, z], 1)
            for coupling, step in zip(reversed(level.steps), reversed(steps), strict=True):
                x = coupling.inverse(x, seen, step, shift)
            x = unsqueeze(x)
        return x

    def bits(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return the ideal code length in bits of each item of a batch of 8-bit samples, [B]."""
        return torch.stack([_bits(latent) for latent in self(x, context, mask)]).sum(0)

    def macs_per_sample(self) -> float:
        """Return the multiplications a frozen flow spends on each sample."""
        total = 0.0
        for number, level in enumerate(self.scales, 1):
            layers = [m for m in level.modules() if isinstance(m, exact.IntConv2d)]
            total += sum(layer.macs() for layer in layers) / 4**number
        return total / self.config.channels

    def _contexts(self, context: Tensor | None) -> list[Tensor | None]:
        """Squeeze the context for every level, averaged down by two from one to the next."""
        contexts: list[Tensor | None] = []
        for _ in self.levels:
            contexts.append(None if context is None else squeeze(context))
            if context is not None:
                context = torch.floor(functional.avg_pool2d(context, 2) + 0.5)
        return contexts

    def _masks(self, mask: Tensor | None) -> list[tuple[list[Tensor | None], Tensor | None]]:
        """For every level the mask each coupling sees, and the mask of the latent."""
        masks: list[tuple[list[Tensor | None], Tensor | None]] = []
        for level in self.scales:
            mask = None if mask is None else squeeze(mask)
            steps = []
            for coupling in level.steps:
                steps.append(mask)
                mask = coupling.mask_after(mask)
            kept, z = (mask, mask) if level.top or mask is None else mask.chunk(2, 1)
            masks.append((steps, z))
            mask = kept
        return masks


def _bits(latent: Latent) -> Tensor:
    """Ideal code length [B] of a latent in float arithmetic, for training."""
    z = latent.z[..., None]
    width = torch.exp2(latent.scale / SCALES_PER_OCTAVE - SCALE_ONE / SCALES_PER_OCTAVE)
    center = (z - latent.mean * 2.0**-FRACTION) / width
    half = 0.5 / width
    # log(sigmoid(a) - sigmoid(b)) = log sigmoid(a) + log sigmoid(-b) + log(1 - exp(b - a))
    log_p = (
        functional.logsigmoid(center + half)
        + functional.logsigmoid(half - center)
        + torch.log(-torch.expm1(-2 * half))
    )
    if latent.weight is not None:
        log_p = torch.logsumexp(log_p + torch.log(latent.weight * 2.0**-WEIGHT_BITS), -1)
    else:
        log_p = log_p[..., 0]
    nats = -torch.logaddexp(log_p, log_p.new_tensor(math.log(FLOOR)))
    if latent.mask is not None:
        nats = nats * latent.mask
    return nats.flatten(1).sum(1) / math.log(2)
