"""The training twins of the `chain` model and of its flows' layers, `flows.layers`.

    twin (training)   NormTwin   MixTwin   FlowTwin
    frozen (coding)   Norm       Mix       flows.couplings.Couplings, and its Couplings

A twin takes y [B, 4, h, w], real, to the moved y and its log-derivative an element, in nats. In
`fake` mode it uses the frozen layer's integers as parameters; it never rounds y to the grid, which
costs nothing that matters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowarchive import exact, store
from flowarchive.bitsback import TILT_MAX
from flowarchive.errors import ModelError
from flowarchive.flows.couplings import CouplingShape, LayerShape
from flowarchive.flows.layers import MIX_BITS, MIX_MAX, PARTS, SEEN_BITS, SHIFT_BITS
from flowarchive.flows.maps import (
    MIXTURE_MEAN_MAX,
    MIXTURE_SCALE_MAX,
    SCALE_MAX,
    SCALES_PER_OCTAVE,
    SHIFT_MAX,
)
from flowarchive.flows.phases import PHASES, Tensors
from flowarchive.flows.twins import move_affine, move_mixture
from flowarchive.models.chain import coupling_shapes
from flowarchive.models.video import VideoModel
from flowarchive.tiles import MOST, SHORT_MOST

BASE = "video"
"""The packaged model whose networks a `chain` model takes over."""

_SHIFT_GAIN = SHIFT_BITS - SEEN_BITS  # a weight of one turns a part into a shift of its size
_LOGISTIC_WIDTH = math.pi / math.sqrt(3.0)
_FIRST_SPREAD = 128  # of the means of a fresh mixture map, in 1/256


class Constants(exact.Frozen):
    """Integers that a frozen layer has in the place of a network."""

    def __init__(self, **values: Tensor) -> None:
        super().__init__()
        for name, value in values.items():
            self.register_buffer(name, value)


class NormTwin(exact.Twin):
    """Twin of `Norm`; the identity before it has begun."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(len(PARTS)))
        self.scale = nn.Parameter(torch.zeros(len(PARTS)))  # in octaves

    def _quantized(self, fake: bool = True) -> tuple[Tensor, Tensor]:
        unit = 1 << SHIFT_BITS
        shift = _whole(self.shift, unit, SHIFT_MAX * unit, fake)
        return shift, _whole(self.scale, SCALES_PER_OCTAVE, SCALE_MAX, fake)

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Move y; see the module."""
        shift, scale = (part.reshape(1, -1, 1, 1) for part in self._quantized(self.fake))
        return move_affine(y, shift / (1 << SHIFT_BITS), scale)

    @torch.no_grad()
    def begin(self, y: Tensor) -> None:
        """Make the parts of y logistic in width, and their means zero."""
        spread = y.std(dim=(0, 2, 3)).clamp_min(1e-3)
        self.scale.copy_(torch.log2(_LOGISTIC_WIDTH / spread).clamp(-0.75, 0.75))
        self.shift.copy_((-y.mean(dim=(0, 2, 3)) * torch.exp2(self.scale)).clamp(-3, 3))

    def freeze(self) -> Constants:
        """Return the integers."""
        shift, scale = (part.detach() for part in self._quantized())
        return Constants(shift=shift.to(torch.int16), scale=scale.to(torch.int8))


class MixTwin(exact.Twin):
    """Twin of `Mix`; the identity at the start.

    Args:
        order: Of the parts, a permutation of 0..3.
    """

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        self.order, parts = tuple(order), len(PARTS)
        self.lower = nn.Parameter(torch.zeros(parts, parts))
        self.upper = nn.Parameter(torch.zeros(parts, parts))
        self.scale = nn.Parameter(torch.zeros(parts))  # in octaves

    def _quantized(self, fake: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        one = 1 << MIX_BITS
        lower, upper = (_whole(c, one, MIX_MAX, fake) for c in (self.lower, self.upper))
        return lower, upper, _whole(self.scale, SCALES_PER_OCTAVE, SCALE_MAX, fake)

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
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

        for i in range(len(PARTS)):
            move(i, upper, range(i + 1, len(PARTS)), scale[i])
        for i in reversed(range(len(PARTS))):
            move(i, lower, range(i), torch.zeros(()))
        back = [self.order.index(c) for c in range(len(PARTS))]
        return torch.stack([channels[i] for i in back], 1), torch.stack([total[i] for i in back], 1)

    def freeze(self) -> Constants:
        """Return the integers."""
        lower, upper, scale = (part.detach() for part in self._quantized())
        return Constants(
            lower=lower.to(torch.int16), upper=upper.to(torch.int16), scale=scale.to(torch.int8)
        )


class FlowTwin(nn.Module):
    """Twin of `Couplings`: all layers of a phase's flow.

    Couplings do nothing at the start, or next to nothing where they are mixtures.

    Args:
        shape: What it is built like.
    """

    def __init__(self, shape: CouplingShape) -> None:
        super().__init__()
        weights = shape.weights()
        self.layers = shape.layers
        self.context = _layer(weights["context"])
        self.begin, self.block, self.head = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        self.norm, self.mix = nn.ModuleDict(), nn.ModuleDict()
        for n, layer in enumerate(shape.layers):
            if layer.kind == "norm":
                self.norm[str(n)] = NormTwin()
            elif layer.kind == "mix":
                self.mix[str(n)] = MixTwin(layer.order)
            else:
                self.begin[str(n)] = _layer(weights[f"begin.{n}"])
                self.block[str(n)] = _layer(weights[f"block.{n}"])
                self.head[str(n)] = _coupling_head(weights[f"head.{n}"], layer)
        if shape.tilted:
            self.head["tilt"] = _head(weights["head.tilt"], [0] * len(PARTS))

    def forward(self, y: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Move the parts of squares.

        Args:
            y: The parts, real, [B, 4, h, w].
            context: What `context` makes of the phase's states, four side by side.

        Returns:
            The moved parts, and the logarithm of each one's derivative, in nats.
        """
        total = torch.zeros_like(y)
        for n in range(len(self.layers)):
            y, ladj = self._move(n, y, context)
            total = total + ladj
        return y, total

    def start(self, y: Tensor, context: Tensor) -> None:
        """Let norms begin with what a batch tells them."""
        for n, layer in enumerate(self.layers):
            if layer.kind == "norm":
                self.norm[str(n)].begin(y)  # type: ignore[operator]
            with torch.no_grad():
                y, _ = self._move(n, y, context)

    def tilts(self, context: Tensor) -> Tensor | None:
        """Return how places lean, [B, 4, h, w] within +-8; None where none does."""
        if "tilt" not in self.head:
            return None
        return exact.clamp(self.head["tilt"](context), -TILT_MAX, TILT_MAX)

    def parameters_of(self, n: int, seen: Tensor, context: Tensor) -> Tensor:
        """Return what a coupling's network says, [parameters, B, moved, h, w], in integers' units.

        Args:
            n: Which layer.
            seen: The parts as `see` gives them, zero where they are not to be seen.
            context: See `forward`.
        """
        state = self.begin[str(n)](torch.cat([seen, context], 1))
        state = functional.hardtanh(state + self.block[str(n)](state), 0.0, float(MOST))
        out: Tensor = self.head[str(n)](torch.cat([state, seen], 1))
        count, _, h, w = out.shape
        return out.reshape(count, -1, len(self.layers[n].moved), h, w).movedim(1, 0)

    def _move(self, n: int, y: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Move y by the n-th layer."""
        layer = self.layers[n]
        if layer.kind != "coupling":
            moved: tuple[Tensor, Tensor] = getattr(self, layer.kind)[str(n)](y)
            return moved
        stays = torch.tensor([part not in layer.moved for part in range(len(PARTS))])
        parameters = self.parameters_of(n, see(y) * stays[:, None, None], context)
        at = list(layer.moved)
        if layer.components == 0:
            part, slope = move_affine(y[:, at], *within_bounds(parameters))
        else:
            shape = 3, layer.components, *parameters.shape[1:]
            weight, mean, width = parameters.reshape(shape).movedim(1, -1)
            mean = exact.clamp(mean, -MIXTURE_MEAN_MAX, MIXTURE_MEAN_MAX)
            width = exact.clamp(width, -MIXTURE_SCALE_MAX, MIXTURE_SCALE_MAX)
            part, slope = move_mixture(y[:, at], weight, mean, width)
        where = torch.tensor(at)
        return y.index_copy(1, where, part), torch.zeros_like(y).index_copy(1, where, slope)


def see(y: Tensor) -> Tensor:
    """Return what networks see of reals: steps of 1/16, rounded down, bounded."""
    steps = y * (1 << SEEN_BITS)
    return (steps + (torch.floor(steps) - steps).detach()).clamp(-MOST, MOST)


def within_bounds(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Return the real shift of an affine map, and its scale index."""
    shift = (parameters[0] / (1 << SHIFT_BITS)).clamp(-SHIFT_MAX, SHIFT_MAX)
    return shift, parameters[1].clamp(-SCALE_MAX, SCALE_MAX)


class ChainTwin(nn.Module):
    """Training twin of `ChainModel`: flows, beside the packaged networks they go with.

    Args:
        config: As `ChainModel` has it.

    Attributes:
        config: The same.
        taken: The integers of the packaged model.

    Raises:
        ModelError: The config is malformed, or the packaged model is of another one.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.flows = nn.ModuleDict(
            {
                name: nn.ModuleList(FlowTwin(shape) for _ in range(PHASES))
                for name, shape in coupling_shapes(config).items()
            }
        )
        base = store.load_packaged(BASE)
        assert isinstance(base.network, VideoModel)
        self.taken: Tensors = base.network.tensors
        wanted = VideoModel.layout(config["video"])
        if wanted != {name: (values.dtype, values.shape) for name, values in self.taken.items()}:
            raise ModelError(f"the packaged model {BASE!r} is built otherwise")


def _layer(weight: tuple[int, int, int, int]) -> exact.Conv2d:
    outputs, inputs, kernel, _ = weight
    return exact.Conv2d(inputs, outputs, kernel, rectify=True)


def _head(weight: tuple[int, int, int, int], gain: Sequence[int]) -> exact.Conv2d:
    outputs, inputs, kernel, _ = weight
    made = exact.Conv2d(inputs, outputs, kernel, gain, SHORT_MOST, max_weight=exact.WIDE_WEIGHT)
    nn.init.zeros_(made.weight)
    return made


def _coupling_head(weight: tuple[int, int, int, int], layer: LayerShape) -> exact.Conv2d:
    k, moved = layer.components, len(layer.moved)
    group = moved * max(k, 1)
    logits = [0] * group if k else []
    made = _head(weight, [*logits, *[_SHIFT_GAIN] * group, *[0] * group])
    if k > 1:
        # Components that all begin alike would stay so.
        first = torch.linspace(-_FIRST_SPREAD, _FIRST_SPREAD, k)
        with torch.no_grad():
            means = made.bias.reshape(3, k, moved)[1]
            means.copy_(first[:, None] / (exact.UNIT << _SHIFT_GAIN))
    return made


def _whole(x: Tensor, unit: float, most: int, fake: bool) -> Tensor:
    """Give x in 1/unit, within +-most, rounded in fake mode."""
    units = exact.clamp(x * unit, -most, most)
    return exact.round_half_up(units) if fake else units
