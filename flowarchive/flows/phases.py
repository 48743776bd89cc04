"""The networks of one level: three phases in a row, each with a state that grows by what is known.

    channels of d -> 3x3 -> [+ 3x3] * blocks -> state -----> head d
    channels of c, state -> 3x3 -> + state -> state -------> head c
    channels of b, state -> 3x3 -> + state -> state -------> head b

A head is a 1x1 convolution of the state and of the phase's channels. For each component of the
phase's mixture it gives a weight's logarithm, an offset of the mean and an offset of the scale.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from flowarchive import exact, int8
from flowarchive.ans import compiled
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
        heads = [
            exact.Conv2d(
                width + seen, 3 * anchors, 1, gain, OUTPUT_MAX, max_weight=exact.WIDE_WEIGHT
            )
            for seen in (channels, UPDATE_CHANNELS, UPDATE_CHANNELS)
        ]
        self.heads = nn.ModuleList(heads)
        for head in heads:
            if not head.weight.is_meta:
                nn.init.zeros_(head.weight)
        self._fast: _InBytes | None = None

    def forward(self, phase: int, seen: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Take a phase's channels in.

        Args:
            phase: 0, 1, 2; they have to come in this order.
            seen: The phase's channels [N, C, h, w], int8 or float.
            state: What the phase before gave, which may be worked in; None for the first.

        Returns:
            The new state, for the next phase only, and the head's integers [N, 3 * anchors, h, w].
        """
        if int8.available() and (fast := self._in_bytes()) is not None:
            both = fast.advance(phase, seen, state)
            return both, fast.head(phase, both)
        seen = seen if seen.is_floating_point() else seen.to(torch.float32)
        state = self.advance(phase, seen, state)
        return state, self.heads[phase](torch.cat([state, seen], 1))

    def advance(self, phase: int, seen: Tensor, state: Tensor | None) -> Tensor:
        """Return the new state alone, never in bytes; see `forward`."""
        if state is None:
            state = self.begin(seen)
            for block in self.blocks:
                state = _add(state, block(state))
            return state
        return _add(state, self.updates[phase - 1](torch.cat([state, seen], 1)))

    def _in_bytes(self) -> _InBytes | None:
        """What frozen layers compute in bytes; None if they are not frozen, or cannot."""
        if not isinstance(self.begin, exact.IntConv2d):
            return None
        if self._fast is None:
            self._fast = _InBytes(self)
        return self._fast if self._fast.exact else None

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


class _InBytes:
    """The frozen layers of a `PhaseNet` in `int8`: every activation is a byte.

    A state of the first layers has its zero at 0. The next phase's bytes, state and channels side
    by side, have it at int8.SIGNED; they are the state that is passed on.
    """

    def __init__(self, net: PhaseNet) -> None:
        def layer(of: nn.Module, zero: int) -> int8.Convolution:
            assert isinstance(of, exact.IntConv2d)
            of.check()
            return int8.Convolution(of.weight, of.bias, of.shift, of.limits, zero)

        self.begin = layer(net.begin, int8.SIGNED)
        self.blocks = [layer(block, 0) for block in net.blocks]
        self.updates = [layer(update, int8.SIGNED) for update in net.updates]
        self.heads = [layer(head, int8.SIGNED) for head in net.heads]
        self.exact = all(part.fuses for part in (self.begin, *self.blocks, *self.updates))
        self.exact &= all(head.adds_up for head in self.heads)

    def advance(self, phase: int, seen: Tensor, state: Tensor | None) -> Tensor:
        """Return the state and the phase's channels, side by side."""
        given: NDArray[Any] = seen.permute(0, 2, 3, 1).contiguous().numpy()
        shape = (*given.shape[:3], self.begin.outputs + given.shape[3])
        if state is None:
            last = self.begin.to_bytes(int8.from_signed(given))
            for block in self.blocks:
                _grow(last, block.to_bytes(last), int8.MOST)
            both = np.empty(shape, dtype=np.uint8)
            _join(last, 0, given, both)
            return torch.from_numpy(both)
        both = state.numpy()
        if both.shape == shape:
            _see(given, both)
        else:
            last, both = both, np.empty(shape, dtype=np.uint8)
            _join(last, int8.SIGNED, given, both)
        _grow(both, self.updates[phase - 1].to_bytes(both), int8.SIGNED + int8.MOST)
        return torch.from_numpy(both)

    def head(self, phase: int, both: Tensor) -> Tensor:
        """A head's integers, for what `advance` returned."""
        return torch.from_numpy(self.heads[phase].to_floats(both.numpy())).permute(0, 3, 1, 2)


@compiled
def _grow(state: int8.Bytes, change: int8.Bytes, most: int) -> None:
    """Add a change to the leading channels, clamped."""
    rows = state.reshape(-1, state.shape[3])
    changes = change.reshape(-1, change.shape[3])
    for i in range(changes.shape[0]):
        for c in range(changes.shape[1]):
            # Bytes all the way, so that many go through the processor at once.
            more = min(changes[i, c], np.uint8(most - rows[i, c]))
            rows[i, c] = np.uint8(rows[i, c] + more)


@compiled
def _join(state: int8.Bytes, zero: int, seen: NDArray[Any], both: int8.Bytes) -> None:
    """Put a state, whose zero is `zero`, and channels side by side, both signed."""
    states = state.reshape(-1, state.shape[3])
    channels = seen.reshape(-1, seen.shape[3])
    rows = both.reshape(-1, both.shape[3])
    width = rows.shape[1] - channels.shape[1]
    up = np.uint8(int8.SIGNED - zero)
    for i in range(rows.shape[0]):
        for c in range(width):
            rows[i, c] = np.uint8(states[i, c] + up)
        for c in range(channels.shape[1]):
            rows[i, width + c] = np.uint8(np.int32(channels[i, c]) + int8.SIGNED)


@compiled
def _see(seen: NDArray[Any], both: int8.Bytes) -> None:
    """Put a phase's channels behind a state, in place of the last ones."""
    channels = seen.reshape(-1, seen.shape[3])
    rows = both.reshape(-1, both.shape[3])
    width = rows.shape[1] - channels.shape[1]
    for i in range(rows.shape[0]):
        for c in range(channels.shape[1]):
            rows[i, width + c] = np.uint8(np.int32(channels[i, c]) + int8.SIGNED)
