"""The networks of one level: three phases in a row, each with a state that grows by what is known.

    channels of d -> 3x3 -> [+ 3x3] * blocks -> state -----> head d
    channels of c, state -> 3x3 -> + state -> state -------> head c
    channels of b, state -> 3x3 -> + state -> state -------> head b

A head is a 1x1 convolution of the state and of the phase's channels. For each component of the
phase's mixture it gives a weight's logarithm, an offset of the mean and an offset of the scale.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowarchive import exact
from flowarchive.features import UPDATE_CHANNELS

OUTPUT_MAX = (1 << 15) - 1
OFFSET_GAIN = 7  # a weight of one turns half a sample of a channel into half a sample of offset


class PhaseNet(nn.Module):
    """State and heads of a level's three phases.

    Args:
        channels: Of the first phase.
        anchors: Components of the mixture.
        width: Channels of the state.
        blocks: Residual convolutions before the first head.
    """

    def __init__(self, channels: int, anchors: int, width: int, blocks: int) -> None:
        super().__init__()
        self.channels = channels
        self.reach = blocks + 3  # rows and columns around a position that its last head sees
        self.begin = exact.Conv2d(channels, width, 3, rectify=True)
        self.blocks = nn.ModuleList(
            exact.Conv2d(width, width, 3, rectify=True) for _ in range(blocks)
        )
        self.updates = nn.ModuleList(
            exact.Conv2d(width + UPDATE_CHANNELS, width, 3, rectify=True) for _ in range(2)
        )
        gain = [0] * anchors + [OFFSET_GAIN] * anchors + [0] * anchors
        self.heads = nn.ModuleList(
            exact.Conv2d(
                width + seen, 3 * anchors, 1, gain, OUTPUT_MAX, max_weight=exact.WIDE_WEIGHT
            )
            for seen in (channels, UPDATE_CHANNELS, UPDATE_CHANNELS)
        )
        for head in self.heads:
            if not head.weight.is_meta:
                nn.init.zeros_(head.weight)

    def forward(self, phase: int, seen: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Take a phase's channels in.

        Args:
            phase: 0, 1, 2; they have to come in this order.
            seen: The phase's channels [N, C, h, w].
            state: What the phase before gave; None for the first.

        Returns:
            The new state and the head's integers [N, 3 * anchors, h, w].
        """
        state = self.advance(phase, seen, state)
        return state, self.heads[phase](torch.cat([state, seen], 1))

    def advance(self, phase: int, seen: Tensor, state: Tensor | None) -> Tensor:
        """Return the new state alone; see `forward`."""
        if state is None:
            state = self.begin(seen)
            for block in self.blocks:
                state = _add(state, block(state))
            return state
        return _add(state, self.updates[phase - 1](torch.cat([state, seen], 1)))

    def macs(self) -> int:
        """Multiplications for one position of the level's grid."""
        return sum(
            parameter.numel()
            for name, parameter in self.state_dict().items()
            if name.endswith("weight")
        )


def _add(state: Tensor, change: Tensor) -> Tensor:
    """Add what is not negative to what is not negative, clamped."""
    return functional.hardtanh(state + change, 0.0, float(exact.ACTIVATION_MAX))
