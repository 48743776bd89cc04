"""The training twins of the `video` model and of its networks, `flows.phases`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowarchive import exact
from flowarchive.flows.phases import PHASES, Shape, Tensors
from flowarchive.models.idf import IdfModel
from flowarchive.models.video import filter_shapes, net_shapes
from flowarchive.tiles import SHORT_MOST
from flowarchive.train.couplings import ChainTwin

OFFSET_GAIN = 7  # a weight of one turns half a sample of a channel into half a sample of offset


class PhaseTwin(nn.Module):
    """Training twin of `PhaseNet`.

    Args:
        shape: What it is built like.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        gain = [0] * shape.anchors + [OFFSET_GAIN] * shape.anchors + [0] * shape.anchors

        def layer(name: str) -> exact.Conv2d:
            outputs, inputs, kernel, _ = shape.weights()[name]
            if name.startswith("heads"):
                head = exact.Conv2d(
                    inputs, outputs, kernel, gain, SHORT_MOST, max_weight=exact.WIDE_WEIGHT
                )
                nn.init.zeros_(head.weight)
                return head
            return exact.Conv2d(inputs, outputs, kernel, rectify=True)

        self.begin = layer("begin")
        self.blocks = nn.ModuleList(layer(f"blocks.{n}") for n in range(shape.blocks))
        self.updates = nn.ModuleList(layer(f"updates.{n}") for n in range(PHASES - 1))
        self.heads = nn.ModuleList(layer(f"heads.{n}") for n in range(PHASES))

    def advance(self, phase: int, seen: Tensor, state: Tensor | None) -> Tensor:
        """Take a phase's channels [N, C, h, w] in and return the new state."""
        if state is None:
            state = self.begin(seen)
            for block in self.blocks:
                state = _add(state, block(state))
            return state
        return _add(state, self.updates[phase - 1](torch.cat([state, seen], 1)))


class VideoTwin(nn.Module):
    """Training twin of `VideoModel`.

    Args:
        config: As `VideoModel` has it.

    Raises:
        ModelError: The config is malformed.
    """

    luma_filters: Tensor
    chroma_filters: Tensor

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.nets = nn.ModuleDict(
            {
                name: nn.ModuleList(map(PhaseTwin, shapes))
                for name, shapes in net_shapes(config).items()
            }
        )
        for name, shape in filter_shapes().items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.int16))


TWINS: dict[str, type[nn.Module]] = {"idf": IdfModel, "video": VideoTwin, "chain": ChainTwin}
"""What is trained, by the kind of model it becomes."""


def frozen_tensors(twin: nn.Module) -> Tensors:
    """Freeze a model of twins, in place, and return its integers, also those it took over."""
    taken: Tensors = getattr(twin, "taken", {})
    frozen = exact.freeze(twin).state_dict().items()
    return {**taken, **{name: tensor.numpy() for name, tensor in frozen}}


def _add(state: Tensor, change: Tensor) -> Tensor:
    """Add what is not negative to what is not negative, clamped."""
    return functional.hardtanh(state + change, 0.0, float(exact.ACTIVATION_MAX))
