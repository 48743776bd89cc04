"""The training twins of the `chain` model and of its couplings, `flows.couplings`."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowarchive import exact, store
from flowarchive.errors import ModelError
from flowarchive.flows.couplings import MOVED, PARTS, SEEN_BITS, SHIFT_BITS, CouplingShape
from flowarchive.flows.maps import SCALE_MAX, SCALES_PER_OCTAVE, SHIFT_MAX
from flowarchive.flows.phases import PHASES, Tensors
from flowarchive.models.chain import coupling_shapes
from flowarchive.models.video import VideoModel
from flowarchive.tiles import MOST, SHORT_MOST

BASE = "video"
"""The packaged model whose networks a `chain` model takes over."""

_SHIFT_GAIN = SHIFT_BITS - SEEN_BITS  # a weight of one turns a part into a shift of its size


class CouplingTwin(nn.Module):
    """Training twin of `Couplings`.

    Args:
        shape: What it is built like.
    """

    def __init__(self, shape: CouplingShape) -> None:
        super().__init__()
        weights = shape.weights()

        def layer(name: str) -> exact.Conv2d:
            outputs, inputs, kernel, _ = weights[name]
            return exact.Conv2d(inputs, outputs, kernel, rectify=True)

        def head(name: str) -> exact.Conv2d:
            outputs, inputs, kernel, _ = weights[name]
            gain = [_SHIFT_GAIN] * (outputs // 2) + [0] * (outputs // 2)
            wide = exact.WIDE_WEIGHT
            made = exact.Conv2d(inputs, outputs, kernel, gain, SHORT_MOST, max_weight=wide)
            nn.init.zeros_(made.weight)
            return made

        count = range(len(MOVED))
        self.context = layer("context")
        self.begin = nn.ModuleList(layer(f"begin.{n}") for n in count)
        self.block = nn.ModuleList(layer(f"block.{n}") for n in count)
        self.head = nn.ModuleList(head(f"head.{n}") for n in count)

    def forward(self, y: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """Move the parts of squares.

        Args:
            y: The parts, real, [B, 4, h, w].
            states: The phase's states of the four parts side by side, integers, [B, 4 * C, h, w].

        Returns:
            The moved parts, and the logarithm of each one's derivative, in nats.
        """
        context = self.context(states)
        ladj = torch.zeros_like(y)
        for moved, begin, block, head in zip(MOVED, self.begin, self.block, self.head, strict=True):
            steps = y * (1 << SEEN_BITS)
            seen = (steps + (torch.floor(steps) - steps).detach()).clamp(-MOST, MOST)
            stays = torch.tensor([part not in moved for part in range(len(PARTS))])
            seen = seen * stays[:, None, None]
            state = begin(torch.cat([seen, context], 1))
            state = functional.hardtanh(state + block(state), 0.0, float(MOST))
            out = head(torch.cat([state, seen], 1))
            shift = (out[:, : len(moved)] / (1 << SHIFT_BITS)).clamp(-SHIFT_MAX, SHIFT_MAX)
            index = out[:, len(moved) :].clamp(-SCALE_MAX, SCALE_MAX)
            slope = index * (math.log(2) / SCALES_PER_OCTAVE)
            at = list(moved)
            y, ladj = y.clone(), ladj.clone()
            y[:, at] = y[:, at] * torch.exp(slope) + shift
            ladj[:, at] = slope
        return y, ladj


class ChainTwin(nn.Module):
    """Training twin of `ChainModel`: couplings, beside the packaged networks they go with.

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
                name: nn.ModuleList(CouplingTwin(shape) for _ in range(PHASES))
                for name, shape in coupling_shapes(config).items()
            }
        )
        base = store.load_packaged(BASE)
        assert isinstance(base.network, VideoModel)
        self.taken: Tensors = base.network.tensors
        wanted = VideoModel.layout(config["video"])
        if wanted != {name: (values.dtype, values.shape) for name, values in self.taken.items()}:
            raise ModelError(f"the packaged model {BASE!r} is built otherwise")
