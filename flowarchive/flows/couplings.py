"""The layers of a phase's flow, and what they know of the phase, in bytes.

    the phase's state, a square's four side by side -> 1x1 -> context -> layer, layer, ...
                                                              context -> 1x1 -> tilts

Layers are those of `flows.layers`; three affine couplings where a config names none. Tilts, if
there are any, say which way a sample's place in its interval leans. Here are the integers that
code; `train.couplings` has what they are frozen from.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowarchive import int8
from flowarchive.bitsback import TILT_MAX
from flowarchive.flows.layers import PARTS, Coupling, Layer, Mix, Norm, parameter_count, part_of
from flowarchive.flows.phases import Layout, Tensors, layer_of, layout_of
from flowarchive.int8 import Bytes

Int64 = NDArray[np.int64]

MAX_LAYERS = 16
MAX_COMPONENTS = 8


class LayerShape(NamedTuple):
    """Which layer one is.

    Attributes:
        kind: "norm", "mix" or "coupling".
        moved: Of a coupling, the parts it moves, ascending.
        components: Of a coupling, K of its maps' mixtures; 0 where they are affine.
        order: Of a mix, of the parts.
    """

    kind: str
    moved: tuple[int, ...] = ()
    components: int = 0
    order: tuple[int, ...] = ()

    @classmethod
    def read(cls, table: dict[str, Any]) -> LayerShape:
        """Read one from a config; ValueError or TypeError where it is none."""
        shape = cls(**table)
        shape = shape._replace(moved=tuple(shape.moved), order=tuple(shape.order))
        plain = cls(shape.kind)
        parts = set(range(len(PARTS)))
        good = {
            "norm": shape == plain,
            "mix": shape == plain._replace(order=shape.order) and set(shape.order) == parts,
            "coupling": not shape.order and bool(shape.moved) and set(shape.moved) <= parts,
        }
        whole = all(type(n) is int for n in (*shape.moved, *shape.order, shape.components))
        if not (whole and good[shape.kind] and 0 <= shape.components <= MAX_COMPONENTS):
            raise ValueError(f"{table} is no layer of a flow")
        for numbers in (shape.moved, tuple(sorted(shape.order))):
            if list(numbers) != sorted(set(numbers)):
                raise ValueError(f"{table} names a part twice, or not in order")
        return shape


AFFINE = tuple(LayerShape("coupling", moved) for moved in ((1, 2), (3,), (0,)))


class CouplingShape(NamedTuple):
    """What the layers of a phase's flow are built like.

    Attributes:
        state: Channels of the phase's state.
        context: Channels that are made of a square's states.
        width: Channels of the hidden layers.
        layers: In the order in which an encoder takes them.
        tilted: Whether places in intervals lean.
    """

    state: int
    context: int
    width: int
    layers: tuple[LayerShape, ...] = AFFINE
    tilted: bool = False

    def weights(self) -> dict[str, tuple[int, int, int, int]]:
        """The shape of every convolution's weights, by its name."""
        parts, width = len(PARTS), self.width
        found = {"context": (self.context, parts * self.state, 1, 1)}
        for n, layer in enumerate(self.layers):
            if layer.kind == "coupling":
                outputs = parameter_count(layer.components) * len(layer.moved)
                found[f"begin.{n}"] = width, parts + self.context, 3, 3
                found[f"block.{n}"] = width, width, 1, 1
                found[f"head.{n}"] = outputs, width + parts, 1, 1
        if self.tilted:
            found["head.tilt"] = parts, self.context, 1, 1
        return found

    def layout(self, prefix: str) -> Layout:
        """The tensors of these layers, whose names begin with `prefix`."""
        parts = len(PARTS)
        found = layout_of(self.weights(), prefix)
        short, byte = np.dtype(np.int16), np.dtype(np.int8)
        for n, layer in enumerate(self.layers):
            if layer.kind == "norm":
                found[f"{prefix}norm.{n}.shift"] = short, (parts,)
                found[f"{prefix}norm.{n}.scale"] = byte, (parts,)
            elif layer.kind == "mix":
                found[f"{prefix}mix.{n}.lower"] = short, (parts, parts)
                found[f"{prefix}mix.{n}.upper"] = short, (parts, parts)
                found[f"{prefix}mix.{n}.scale"] = byte, (parts,)
        return found

    def macs(self) -> int:
        """Multiplications of the networks for one square."""
        return sum(int(np.prod(shape)) for shape in self.weights().values())


class Couplings:
    """The layers of one phase's flow.

    Attributes:
        shape: What they are built like.
        layers: In the order in which an encoder takes them.

    Args:
        shape: See above.
        tensors: What `CouplingShape.layout` names.
        prefix: What the names begin with.

    Raises:
        NotReproducible: A convolution's sums may be too large.
        ModelError: An integer is out of its range.
    """

    def __init__(self, shape: CouplingShape, tensors: Tensors, prefix: str) -> None:
        def convolution(name: str, first: int | None = None) -> int8.Convolution:
            return int8.Convolution(*layer_of(tensors, prefix + name), first)

        def layer(n: int, shape_: LayerShape) -> Layer:
            if shape_.kind == "norm":
                return Norm(*(tensors[f"{prefix}norm.{n}.{part}"] for part in ("shift", "scale")))
            if shape_.kind == "mix":
                names = ("lower", "upper", "scale")
                constants = (tensors[f"{prefix}mix.{n}.{name}"] for name in names)
                return Mix(shape_.order, *constants)
            layers = (
                convolution(f"begin.{n}", len(PARTS)),
                convolution(f"block.{n}"),
                convolution(f"head.{n}", shape.width),
            )
            return Coupling(shape_.moved, shape_.components, layers)

        self.shape = shape
        self._tensors, self._prefix = tensors, prefix
        self._context = convolution("context")
        self.layers = tuple(layer(n, kind) for n, kind in enumerate(shape.layers))
        self._tilt = convolution("head.tilt") if shape.tilted else None

    def arrays(self) -> tuple[Any, list[tuple[Any, ...]], Any]:
        """Return what a device is sent of a flow.

        Returns:
            The context's weight, bias and shift; of each layer its kind, the parts it moves or
            their order, K, and its constants or those of its convolutions; and the tilts' weight,
            bias and shift, None where places do not lean.
        """

        def layer(name: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
            return layer_of(self._tensors, self._prefix + name)

        def of(n: int, kind: str) -> tuple[Any, ...]:
            if kind == "coupling":
                return tuple(layer(f"{name}.{n}") for name in ("begin", "block", "head"))
            names = ("shift", "scale") if kind == "norm" else ("lower", "upper", "scale")
            return tuple(self._tensors[f"{self._prefix}{kind}.{n}.{name}"] for name in names)

        layers = [
            (shape.kind, shape.moved or shape.order, shape.components, of(n, shape.kind))
            for n, shape in enumerate(self.shape.layers)
        ]
        return layer("context"), layers, layer("head.tilt") if self.shape.tilted else None

    def around(self, states: Bytes) -> Surroundings:
        """Return what a flow has to know of a phase with such states."""
        return Surroundings(self, states)

    def context(self, states: Bytes) -> Bytes:
        """Return the context of a phase's squares, a grid.

        Args:
            states: The phase's, bytes [N, rows, columns, C or more] without a border.
        """
        count, rows, columns, _ = states.shape
        size = self.shape.state
        squares = int8.grid(count, (rows + 1) // 2, (columns + 1) // 2, len(PARTS) * size)
        squares[:] = int8.ZERO  # where the last squares are not whole
        for n, (row, column) in enumerate(PARTS):
            part = states[:, row::2, column::2, :size]
            at = int8.inside(squares)[:, : part.shape[1], : part.shape[2]]
            at[..., n * size : (n + 1) * size] = part
        return self._context.to_bytes((squares,))

    def tilts(self, context: Bytes, shape: tuple[int, int, int]) -> Int64 | None:
        """Return how places lean, int64 [N, rows, columns] in -8..8; None where none does."""
        if self._tilt is None:
            return None
        out = int8.inside(self._tilt.to_shorts((context,))).astype(np.int64)
        tilts = np.empty(shape, dtype=np.int64)
        for n in range(len(PARTS)):
            part = part_of(tilts, n)
            part[:] = out[:, : part.shape[1], : part.shape[2], n].clip(-TILT_MAX, TILT_MAX)
        return tilts


class Surroundings(NamedTuple):
    """What a phase's network knows of it, for its flow.

    Attributes:
        couplings: The flow's layers.
        states: Bytes [N, rows, columns, C or more].
    """

    couplings: Couplings
    states: Bytes

    def steering(self) -> Steering:
        """Work out what steers the flow."""
        count, rows, columns, _ = self.states.shape
        context = self.couplings.context(self.states)
        return Steering(self.couplings, context, (count, rows, columns))


class Steering(NamedTuple):
    """What steers the flow of a phase.

    Attributes:
        couplings: The flow's layers.
        context: What they make of the phase's states.
        shape: (planes, rows, columns) of the phase.
    """

    couplings: Couplings
    context: Bytes
    shape: tuple[int, int, int]
