"""The networks of one level: three phases in a row, each with a state that grows by what is known.

    channels of d -> 3x3 -> [+ 3x3] * blocks -> state -----> head d
    channels of c, state -> 3x3 -> + state -> state -------> head c
    channels of b, state -> 3x3 -> + state -> state -------> head b

A head is a 1x1 convolution of the state and of the phase's channels. For each component of the
phase's mixture it gives a weight's logarithm, an offset of the mean and an offset of the scale.

Here are the integers that code; `train.twins` has the networks they are frozen from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowarchive import int8
from flowarchive.device import Kernels, Network
from flowarchive.features import UPDATE_CHANNELS
from flowarchive.int8 import Bytes, Int16

if TYPE_CHECKING:
    from flowarchive.flows.couplings import Couplings

PHASES = 3
Tensors = Mapping[str, NDArray[Any]]
Layout = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
"""The type and the shape of every tensor, by name."""


class Shape(NamedTuple):
    """What a network is built like.

    Attributes:
        channels: Of the first phase.
        anchors: Components of the mixture.
        width: Channels of the state.
        blocks: Residual convolutions before the first head.
    """

    channels: int
    anchors: int
    width: int
    blocks: int

    @property
    def seen(self) -> tuple[int, int, int]:
        """Channels of the three phases."""
        return self.channels, UPDATE_CHANNELS, UPDATE_CHANNELS

    def weights(self) -> dict[str, tuple[int, int, int, int]]:
        """The shape of every layer's weights, by the layer's name."""
        width, outputs = self.width, 3 * self.anchors
        return {
            "begin": (width, self.channels, 3, 3),
            **{f"blocks.{n}": (width, width, 3, 3) for n in range(self.blocks)},
            **{f"updates.{n}": (width, width + UPDATE_CHANNELS, 3, 3) for n in range(PHASES - 1)},
            **{f"heads.{n}": (outputs, width + seen, 1, 1) for n, seen in enumerate(self.seen)},
        }

    def layout(self, prefix: str) -> Layout:
        """The tensors of a network whose names begin with `prefix`."""
        return layout_of(self.weights(), prefix)

    def macs(self) -> int:
        """Multiplications for one position of the level's grid."""
        return sum(int(np.prod(shape)) for shape in self.weights().values())


def layout_of(weights: Mapping[str, tuple[int, ...]], prefix: str) -> Layout:
    """Return the tensors of layers, by the shapes of their weights; those of heads are wide."""
    found: Layout = {}
    for name, shape in weights.items():
        kind = np.dtype(np.int16 if name.startswith("head") else np.int8)
        found[f"{prefix}{name}.weight"] = kind, shape
        found[f"{prefix}{name}.bias"] = np.dtype(np.int32), shape[:1]
        found[f"{prefix}{name}.shift"] = np.dtype(np.int8), shape[:1]
    return found


def layer_of(tensors: Tensors, name: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return a layer's weight, bias and shift."""
    return tensors[f"{name}.weight"], tensors[f"{name}.bias"], tensors[f"{name}.shift"]


class PhaseNet:
    """State and heads of a level's three phases, in bytes.

    Attributes:
        couplings: Of the three phases' flows; None where they have none.
        network: On a device; None for the CPU.

    Args:
        shape: What it is built like.
        tensors: What `Shape.layout` names.
        prefix: What the names begin with.

    Raises:
        NotReproducible: A layer's sums may be too large.
        ModelError: An integer is out of its range.
    """

    def __init__(self, shape: Shape, tensors: Tensors, prefix: str) -> None:
        def layer(name: str, first: int | None = None) -> int8.Convolution:
            return int8.Convolution(*layer_of(tensors, prefix + name), first)

        self.shape = shape
        self._tensors, self._prefix = tensors, prefix
        self.network: Network | None = None
        self.couplings: Sequence[Couplings] | None = None
        self.reach = shape.blocks + 3  # rows and columns around a position that its last head sees
        self._begin = layer("begin")
        self._blocks = [layer(f"blocks.{n}") for n in range(shape.blocks)]
        self._updates = [layer(f"updates.{n}", shape.width) for n in range(PHASES - 1)]
        self._heads = [layer(f"heads.{n}", shape.width) for n in range(PHASES)]

    def use(self, kernels: Kernels | None) -> None:
        """Send the network to a device; None for the CPU."""
        if kernels is None:
            self.network = None
            return
        layers: dict[str, list[tuple[Any, Any, Any]]] = {}
        for name in self.shape.weights():
            layer = layer_of(self._tensors, self._prefix + name)
            layers.setdefault(name.split(".")[0], []).append(layer)
        self.network = kernels.network(layers)

    def advance(self, phase: int, seen: Bytes, state: Bytes | None) -> tuple[Bytes, Int16]:
        """Take a phase's channels in.

        Args:
            phase: 0, 1, 2; they have to come in this order.
            seen: The phase's channels, a grid; see `int8`.
            state: What the phase before gave; None for the first.

        Returns:
            The new state, a grid, and the head's integers, int16 [N, h + 2, w + 2, 3 * anchors or
            more], inside a border that means nothing.
        """
        if state is None:
            state = self._begin.to_bytes((seen,))
            for block in self._blocks:
                state = block.to_bytes((state,), state)
        else:
            state = self._updates[phase - 1].to_bytes((state, seen), state)
        return state, self._heads[phase].to_shorts((state, seen))

    def answer(self, phase: int, seen: Bytes, state: Any) -> tuple[Any, Int16]:
        """Do what `advance` does, on the device where the network is; it keeps its own state."""
        if self.network is None:
            return self.advance(phase, seen, state)
        channels = self.shape.seen[phase]
        kept, head = self.network.advance(phase, int8.signed(seen)[..., :channels], state)
        return kept, np.pad(head, ((0, 0), (1, 1), (1, 1), (0, 0)))
