"""Layers of a continuous flow in integers: every element moved by a map of `maps`, exactly.

    planes --squeeze--> Grid of 4 channels --ActNorm, Mix, Coupling, ...--> Grid --unsqueeze--> y

A layer works out maps from constants or from channels it does not move, by a frozen network of
`exact` layers, and lets a local coder (`bitsback`) move the others along them. `forward` and
`inverse` are given the message; each is the other read from bottom to top. Nothing is rounded that
could be rounded differently: networks see the grid's own integers.

A message that runs dry in the middle of a layer stays as the coder's last call found it: whoever
wants to go on copies it first.

References:
    Ho, Chen, Srinivas, Duan, Abbeel, "Flow++", 2019, arXiv:1902.00275.
    Kingma, Dhariwal, "Glow", 2018, arXiv:1807.03039, for ActNorm and the LU form of a 1x1
    convolution.
    Dinh, Sohl-Dickstein, Bengio, "Density estimation using Real NVP", 2017, arXiv:1605.08803.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from flowarchive import exact
from flowarchive.ans import Message
from flowarchive.bitsback import TILT_MAX, LocalCoder, Map
from flowarchive.errors import ModelError
from flowarchive.flows.maps import (
    FINENESS,
    MIXTURE_MEAN_MAX,
    MIXTURE_SCALE_MAX,
    SCALE_MAX,
    SHIFT_MAX,
    Affine,
    Mixture,
    cells,
    mixture_weights,
)

Int8 = NDArray[np.int8]
Int64 = NDArray[np.int64]

CHANNELS = 4
"""Of a squeezed plane: samples of even and odd rows and columns."""

SHIFT_UNIT = 256
"""Networks and constants give shifts in 1/256."""

SEEN_UNIT = 16
"""Networks see y in 1/16."""

MIX_BITS = 12
"""Coefficients of `Mix` are in 2**-12."""

MIX_MAX = 1 << 14

OUTPUT_MAX = (1 << 15) - 1
_SHIFT_LIMIT = SHIFT_MAX * SHIFT_UNIT
_SHIFT_GAIN = 4  # a weight of one turns a unit that is seen, 1/16, into one of a shift, 1/256


_ALL = tuple(range(CHANNELS))


class Grid(NamedTuple):
    """Squeezed planes on a flow's grid.

    Attributes:
        values: int64 [n, 4, ceil(h / 2), ceil(w / 2)] in [0, N); N / 2 where there is no sample.
        shape: (h, w) of the planes.
        fineness: Of the grid.
    """

    values: Int64
    shape: tuple[int, int]
    fineness: int

    def take(self, channels: Sequence[int], of: Int64 | None = None) -> Int64:
        """Return the elements of some channels that are there, int64 [m]; `of` other arrays."""
        values = (self.values if of is None else of)[:, channels]
        mask = _present(self.shape)[list(channels)]
        return (values if mask.all() else values[:, mask]).reshape(-1)

    def put(self, channels: Sequence[int], elements: Int64) -> Grid:
        """Return a grid with other elements in some channels, which ascend, as `take` gave them."""
        values = self.values.copy()
        mask = _present(self.shape).copy()
        mask[[c for c in _ALL if c not in channels]] = False
        values[:, mask] = elements.reshape(len(values), -1)
        return self._replace(values=values)

    def seen(self, channels: Sequence[int]) -> Int8:
        """Return what networks see: y in 1/16, int8 [n, 4, ...]; other channels are zero."""
        out = np.zeros(self.values.shape, dtype=np.int8)
        picked = list(channels)
        doubled = 2 * self.values[:, picked] + 1 - cells(self.fineness)
        units = (doubled + (1 << self.fineness - 4)) >> self.fineness - 3
        out[:, picked] = units.clip(-127, 127) * _present(self.shape)[picked]
        return out

    def reals(self) -> Int64:
        """Return twice the elements' distance from the middle, in cells: odd, int64."""
        return 2 * self.values + 1 - cells(self.fineness)


@cache
def _present(shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Where the channels of squeezed planes have a sample, bool [4, ceil(h / 2), ceil(w / 2)]."""
    h, w = shape
    present = np.zeros((CHANNELS, (h + 1) // 2, (w + 1) // 2), dtype=bool)
    for c in range(CHANNELS):
        present[c, : (h + 1 - c // 2) // 2, : (w + 1 - c % 2) // 2] = True
    present.setflags(write=False)
    return present


def squeeze(planes: Int64, fineness: int = FINENESS) -> Grid:
    """Turn planes [n, h, w] of a flow's grid into channels 2 * i + j, of rows i and columns j."""
    n, h, w = planes.shape
    values = np.full((n, *_present((h, w)).shape), cells(fineness) // 2, dtype=np.int64)
    for c in range(CHANNELS):
        part = planes[:, c // 2 :: 2, c % 2 :: 2]
        values[:, c, : part.shape[1], : part.shape[2]] = part
    return Grid(values, (h, w), fineness)


def unsqueeze(grid: Grid) -> Int64:
    """Undo `squeeze`."""
    planes = np.empty((len(grid.values), *grid.shape), dtype=np.int64)
    for c in range(CHANNELS):
        part = planes[:, c // 2 :: 2, c % 2 :: 2]
        part[:] = grid.values[:, c, : part.shape[1], : part.shape[2]]
    return planes


class Layer(Protocol):
    """What a flow is made of."""

    def forward(
        self, message: Message, coder: LocalCoder, grid: Grid, context: Int8 | None
    ) -> Grid:
        """Move a grid, the message making up for what is stretched and shrunk.

        Args:
            message: See `bitsback.LocalCoder`.
            coder: Moves elements.
            grid: The elements.
            context: What else networks see, int8 [n, C, ceil(h / 2), ceil(w / 2)].

        Raises:
            MessageExhausted: The message holds too few bits.
        """

    def inverse(
        self, message: Message, coder: LocalCoder, grid: Grid, context: Int8 | None
    ) -> Grid:
        """Undo `forward`, also what it did to the message."""


def shift_cells(shift: Int64, fineness: int) -> Int64:
    """Turn shifts in 1/256 into cells, halves up."""
    if fineness >= 8:
        return shift << fineness - 8
    return (shift + (1 << 7 - fineness)) >> 8 - fineness


class ActNorm(exact.Frozen):
    """A shift and a scale a channel.

    Buffers:
        shift: int16 [4], within +-768, in 1/256.
        scale: int8 [4], indices within +-24.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(CHANNELS, dtype=torch.int16))
        self.register_buffer("scale", torch.zeros(CHANNELS, dtype=torch.int8))

    def check(self) -> None:
        """Prove the constants to be within their bounds; ModelError otherwise."""
        _check("a shift", self.shift, _SHIFT_LIMIT)
        _check("a scale", self.scale, SCALE_MAX)

    def _map(self, grid: Grid) -> Affine:
        shape = (1, CHANNELS, 1, 1)
        shift = shift_cells(self.shift.numpy().astype(np.int64), grid.fineness).reshape(shape)
        scale = self.scale.numpy().astype(np.int64).reshape(shape)
        shifts, scales = (np.broadcast_to(p, grid.values.shape) for p in (shift, scale))
        return Affine(grid.take(_ALL, shifts), grid.take(_ALL, scales), grid.fineness)

    def forward(
        self, message: Message, coder: LocalCoder, grid: Grid, context: Int8 | None
    ) -> Grid:
        """Move every channel; see `Layer`."""
        return grid.put(_ALL, coder.forward(message, grid.take(_ALL), self._map(grid)))

    def inverse(
        self, message: Message, coder: LocalCoder, grid: Grid, context: Int8 | None
    ) -> Grid:
        """Move every channel back; see `Layer`."""
        return grid.put(_ALL, coder.inverse(message, grid.take(_ALL), self._map(grid)))


class Mix(exact.Frozen):
    """An invertible 1x1 convolution by its LU factors, one channel moved at a time.

    With the channels in a fixed order, the upper factor and the diagonal move channel i to
    scale * y_i + sum of upper[i, j] * y_j over j > i, for i = 0, 1, 2, 3; then the lower factor
    adds the sum of lower[i, j] * y_j over j < i, for i = 3, 2, 1, 0. No sum holds a channel that
    the same factor has moved. Sums are rounded, and clamped to +-3.

    Buffers:
        lower: int16 [4, 4], within +-2**14, in 2**-12; only entries with j < i count.
        upper: Alike, only entries with j > i.
        scale: int8 [4], indices within +-24.

    References:
        Kingma, Dhariwal, "Glow", 2018, arXiv:1807.03039.
    """

    lower: Tensor
    upper: Tensor
    scale: Tensor

    def __init__(self, order: Sequence[int]) -> None:
        """Fix the order of channels, a permutation of 0..3; ValueError for anything else."""
        super().__init__()
        if sorted(order) != list(_ALL):
            raise ValueError(f"{list(order)} is no order of {CHANNELS} channels")
        self.order = tuple(order)
        for name in ("lower", "upper"):
            self.register_buffer(name, torch.zeros(CHANNELS, CHANNELS, dtype=torch.int16))
        self.register_buffer("scale", torch.zeros(CHANNELS, dtype=torch.int8))

    def check(self) -> None:
        """Prove the coefficients to be within their bounds; ModelError otherwise."""
        _check("a coefficient", self.lower, MIX_MAX)
        _check("a coefficient", self.upper, MIX_MAX)
        _check("a scale", self.scale, SCALE_MAX)

    def _map(self, grid: Grid, i: int, upper: bool) -> Affine:
        """The map of the i-th channel in one of the factors."""
        factor = (self.upper if upper else self.lower)[i].numpy().astype(np.int64)
        others = range(i + 1, CHANNELS) if upper else range(i)
        reals = grid.reals()
        total = np.zeros(reals[:, 0].shape, dtype=np.int64)
        # Below 3 * 2**14 * 2**20.
        for j in others:
            total += factor[j] * reals[:, self.order[j]]
        most = SHIFT_MAX << grid.fineness
        shift = ((total + (1 << MIX_BITS)) >> MIX_BITS + 1).clip(-most, most)
        channel = (self.order[i],)
        shifts = np.broadcast_to(shift[:, None], grid.values.shape)
        shift = grid.take(channel, shifts)
        index = int(self.scale[i]) if upper else 0
        return Affine(shift, np.full_like(shift, index), grid.fineness)

    def forward(
        self, message: Message, coder: LocalCoder, grid: Grid, context: Int8 | None
    ) -> Grid:
        """Move one channel after another; see `Layer`."""
        for i, upper in _MIX_STEPS:
            channel, map = (self.order[i],), self._map(grid, i, upper)
            grid = grid.put(channel, coder.forward(message, grid.take(channel), map))
        return grid

    def inverse(
        self, message: Message, coder: LocalCoder, grid: Grid, context: Int8 | None
    ) -> Grid:
        """Move them back, the last first; see `Layer`."""
        for i, upper in reversed(_MIX_STEPS):
            channel, map = (self.order[i],), self._map(grid, i, upper)
            grid = grid.put(channel, coder.inverse(message, grid.take(channel), map))
        return grid


_MIX_STEPS = [(i, True) for i in range(CHANNELS)] + [(i, False) for i in reversed(range(CHANNELS))]


def _check(name: str, values: Tensor, most: int) -> None:
    if int(values.to(torch.int64).abs().max()) > most:
        raise ModelError(f"{name} of a flow is outside +-{most}")


class Conditioner(nn.Module):
    """The network of a coupling, of `exact` layers: twins or frozen.

        seen -> 3x3 -> ReLU -> + (1x1 -> ReLU) -> 1x1 -> + -> outputs
          +------------------- 3x3 ----------------------+

    Args:
        context: Channels beside the squeezed ones.
        outputs: Channels that come out.
        width: Channels in between.
        gain: log2 of the outputs' fineness over the fineness of what is seen, for each output.
    """

    def __init__(self, context: int, outputs: int, width: int, gain: Sequence[int]) -> None:
        super().__init__()
        seen = CHANNELS + context
        wide = exact.WIDE_WEIGHT
        self.begin = exact.Conv2d(seen, width, 3, rectify=True)
        self.block = exact.Conv2d(width, width, 1, rectify=True)
        self.head = exact.Conv2d(width, outputs, 1, gain, OUTPUT_MAX, max_weight=wide)
        self.direct = exact.Conv2d(seen, outputs, 3, gain, OUTPUT_MAX, max_weight=wide)
        for layer in (self.head, self.direct):
            if not layer.weight.is_meta:
                nn.init.zeros_(layer.weight)

    def forward(self, seen: Tensor) -> Tensor:
        """Take [B, 4 + context, h, w], integers in float32, to [B, outputs, h, w], alike."""
        state = self.begin(seen)
        # The layers may work in the memory of what they are given.
        state = functional.hardtanh(
            state + self.block(state.clone()), 0.0, float(exact.ACTIVATION_MAX)
        )
        total: Tensor = self.head(state) + self.direct(seen)
        return total


def coupling_net(context: int, width: int, moved: int, components: int) -> Conditioner:
    """Make the twin of the network of a coupling that moves so many channels; see `Coupling`."""
    each = [0] * components + [_SHIFT_GAIN] * components + [0] * components
    gain = (each or [_SHIFT_GAIN, 0]) * moved
    return Conditioner(context, len(gain), width, gain)


class Coupling(exact.Frozen):
    """Some channels are moved along maps that a network makes of the others and of the context.

    Attributes:
        moved: Channels that are moved, ascending.
        components: K of a `Mixture` map; 0 for `Affine`.
        net: A frozen `Conditioner` whose outputs are, for each moved channel in turn: shift in
            1/256, scale index; or K logarithms of weights in 1/16 octaves, K means in 1/256, K
            width indices.
    """

    def __init__(self, moved: Sequence[int], components: int, net: Conditioner) -> None:
        super().__init__()
        if not moved or sorted(set(moved)) != list(moved) or not set(moved) <= set(_ALL):
            raise ValueError(f"{list(moved)} are no channels to be moved")
        self.moved, self.components = tuple(moved), components
        self.passed = tuple(c for c in _ALL if c not in moved)
        self.net = net

    def _map(self, grid: Grid, context: Int8 | None) -> Map:
        seen = grid.seen(self.passed)
        if context is not None:
            seen = np.concatenate([seen, context], axis=1)
        outputs = _evaluate(self.net, seen)
        n, _, h, w = outputs.shape
        # [parameters, n, 4, h, w], so that the channels' own mask picks elements.
        spread = np.zeros((outputs.shape[1] // len(self.moved), n, CHANNELS, h, w), dtype=np.int64)
        spread[:, :, list(self.moved)] = outputs.reshape(n, len(self.moved), -1, h, w).transpose(
            2, 0, 1, 3, 4
        )
        parameters = np.stack([grid.take(self.moved, p) for p in spread])
        return make_map(parameters, self.components, grid.fineness)

    def forward(
        self, message: Message, coder: LocalCoder, grid: Grid, context: Int8 | None
    ) -> Grid:
        """Move channels; see `Layer`."""
        map = self._map(grid, context)
        return grid.put(self.moved, coder.forward(message, grid.take(self.moved), map))

    def inverse(
        self, message: Message, coder: LocalCoder, grid: Grid, context: Int8 | None
    ) -> Grid:
        """Move channels back; see `Layer`."""
        map = self._map(grid, context)
        return grid.put(self.moved, coder.inverse(message, grid.take(self.moved), map))


def make_map(outputs: Int64, components: int, fineness: int) -> Map:
    """Turn what a coupling's network says into a map.

    Args:
        outputs: int64 [parameters, n]; see `Coupling.net`.
        components: K, or 0 for `Affine`.
        fineness: Of the grid.
    """
    if components == 0:
        shift, scale = outputs
        shifts = shift_cells(shift.clip(-_SHIFT_LIMIT, _SHIFT_LIMIT), fineness)
        return Affine(shifts, scale.clip(-SCALE_MAX, SCALE_MAX), fineness)
    weight, mean, width = outputs.reshape(3, components, -1).transpose(0, 2, 1)
    return Mixture(
        mixture_weights(weight),
        mean.clip(-MIXTURE_MEAN_MAX, MIXTURE_MEAN_MAX),
        width.clip(-MIXTURE_SCALE_MAX, MIXTURE_SCALE_MAX),
        fineness,
    )


class Tilt(exact.Frozen):
    """Chooses the tilts of `bitsback.Dequantizer` by what the decoder knows before: the context.

    Attributes:
        net: A frozen `Conditioner` with an output for each channel.
    """

    def __init__(self, net: Conditioner) -> None:
        super().__init__()
        self.net = net

    def forward(self, context: Int8, shape: tuple[int, int]) -> Int64:
        """Return the tilts of planes of `shape` (h, w), int64 [n, h, w] in -8..8.

        Args:
            context: int8 [n, C, ceil(h / 2), ceil(w / 2)].
            shape: Of a plane.
        """
        nothing = np.zeros((len(context), CHANNELS, *context.shape[2:]), dtype=np.int8)
        tilts = _evaluate(self.net, np.concatenate([nothing, context], axis=1))
        return unsqueeze(Grid(tilts.clip(-TILT_MAX, TILT_MAX), shape, FINENESS))


def _evaluate(net: nn.Module, seen: Int8) -> Int64:
    """What a frozen network says about int8 [n, C, h, w]."""
    with torch.no_grad():
        out: Int64 = net(torch.from_numpy(seen.astype(np.float32))).numpy().astype(np.int64)
    return out


class Flow(exact.Frozen):
    """Layers, one after the other."""

    def __init__(self, layers: Sequence[exact.Frozen]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(
        self, message: Message, coder: LocalCoder, grid: Grid, context: Int8 | None
    ) -> Grid:
        """Apply every layer; see `Layer`."""
        for layer in self.layers:
            grid = layer.forward(message, coder, grid, context)
        return grid

    def inverse(
        self, message: Message, coder: LocalCoder, grid: Grid, context: Int8 | None
    ) -> Grid:
        """Undo every layer, the last first; see `Layer`."""
        for layer in reversed(self.layers):
            grid = layer.inverse(message, coder, grid, context)  # type: ignore[operator]
        return grid
