"""Sections "Layers" to "Mixes": what moves the parts of squares, and by which maps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from reference.maps import Map, affine, mixture
from reference.networks import (
    Plane,
    Planes,
    Tensors,
    Wanted,
    clamp,
    convolution,
    wanted_convolution,
)
from reference.scales import weights_of

PARTS = 4


@dataclass
class Layer:
    """A layer of a config."""

    kind: str
    moved: list[int] = field(default_factory=list)
    components: int = 0
    order: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        for numbers in (self.moved, self.order, [self.components]):
            if type(numbers) is not list or any(type(number) is not int for number in numbers):
                raise TypeError("a layer of other things than integers")
        parts = [part for part in range(PARTS) if part in self.moved]
        good = {
            "coupling": parts == self.moved != [] and self.order == [],
            "norm": self.moved == self.order == [] and self.components == 0,
            "mix": sorted(self.order) == list(range(PARTS))
            and self.moved == []
            and self.components == 0,
        }
        if not good[self.kind] or not 0 <= self.components <= 8:
            raise ValueError("a layer that is none")


CONSTANTS = {
    "norm": {"shift": ("I16", [PARTS], 768), "scale": ("I8", [PARTS], 24)},
    "mix": {
        "lower": ("I16", [PARTS, PARTS], 2**14),
        "upper": ("I16", [PARTS, PARTS], 2**14),
        "scale": ("I8", [PARTS], 24),
    },
}
"""Type, shape and largest magnitude of what the layers of a kind have instead of networks."""

COUPLINGS = [Layer("coupling", moved) for moved in ([1, 2], [3], [0])]


def wanted_layer(name: str, n: int, layer: Layer, width: int, context: int) -> Wanted:
    """Type and shape of the tensors of layer n, whose names begin with `name`."""
    if layer.kind != "coupling":
        constants = CONSTANTS[layer.kind].items()
        return {f"{name}.{layer.kind}.{n}.{c}": (dtype, size) for c, (dtype, size, _) in constants}
    outputs = (3 * layer.components or 2) * len(layer.moved)
    return {
        **wanted_convolution(f"{name}.begin.{n}", "I8", width, PARTS + context, 3),
        **wanted_convolution(f"{name}.block.{n}", "I8", width, width, 1),
        **wanted_convolution(f"{name}.head.{n}", "I16", outputs, width + PARTS, 1),
    }


Maps = list[list[Map]]
"""Those of the squares of one plane."""


class Step:
    """Parts that are moved one after the other by maps that are known before the first of them.

    Args:
        tensors: The model's.
        name: Their prefix.
        n: Which layer it belongs to.
        layer: The layer.
        fineness: f.
    """

    def __init__(self, tensors: Tensors, name: str, n: int, layer: Layer, fineness: int) -> None:
        self.tensors, self.name, self.n, self.layer = tensors, name, n, layer
        self.fineness = fineness

    def maps(self, y: Plane, context: Planes) -> list[tuple[int, Maps]]:
        """Each part of one plane that moves, the first one first, and its maps."""
        raise NotImplementedError

    def constant(self, which: str) -> list[int]:
        """The elements of one of the layer's constants."""
        return self.tensors[f"{self.name}.{self.layer.kind}.{self.n}.{which}"].values


class Norm(Step):
    """Section "Norms"."""

    def maps(self, y: Plane, context: Planes) -> list[tuple[int, Maps]]:
        """See `Step`."""
        found = []
        for part in reversed(range(PARTS)):
            shift = (self.constant("shift")[part] * 2**self.fineness) >> 8
            own = affine(shift, self.constant("scale")[part], self.fineness)
            found.append((part, [[own for _ in row] for row in context[0]]))
        return found


class MixRow(Step):
    """Section "Mixes": one part.

    Args:
        *layer: Those of a `Step`.
        i: Which part, in the layer's order.
        factor: `lower` or `upper`.
    """

    def __init__(self, *layer: Any, i: int, factor: str) -> None:
        super().__init__(*layer)
        self.i, self.factor = i, factor

    def maps(self, y: Plane, context: Planes) -> list[tuple[int, Maps]]:
        """See `Step`."""
        unit, order = 2**self.fineness, self.layer.order
        others = range(self.i) if self.factor == "lower" else range(self.i + 1, PARTS)
        row = self.constant(self.factor)[PARTS * self.i :]
        scale = 0 if self.factor == "lower" else self.constant("scale")[self.i]
        # What is missing is nothing.
        far = [[2 * v + 1 - 34 * unit for v in row] for row in y]
        terms = [[[row[j] * v for v in line] for line in squares(far, order[j])] for j in others]
        maps = []
        for lines in zip(*terms, context[0], strict=True):
            totals = [sum(numbers[:-1]) for numbers in zip(*lines, strict=True)]
            shifts = [clamp((t + 2**12) >> 13, -3 * unit, 3 * unit) for t in totals]
            maps.append([affine(shift, scale, self.fineness) for shift in shifts])
        return [(order[self.i], maps)]


class Coupling(Step):
    """Section "Couplings"."""

    def maps(self, y: Plane, context: Planes) -> list[tuple[int, Maps]]:
        """See `Step`."""
        parameters, moved = self.parameters(y, context), self.layer.moved
        found = []
        for m in reversed(range(len(moved))):
            rows = zip(*parameters[m :: len(moved)], strict=True)
            maps = [[self._map(own) for own in zip(*row, strict=True)] for row in rows]
            found.append((moved[m], maps))
        return found

    def parameters(self, y: Plane, context: Planes) -> Planes:
        """All `shift` and all `scale` of one plane; or `out`, where K is not 0."""
        f, moved = self.fineness, self.layer.moved
        steps = [[clamp((v - 17 * 2**f) >> (f - 4), -127, 127) for v in row] for row in y]
        nothing = [[0] * len(row) for row in context[0]]
        seen = [nothing if part in moved else squares(steps, part) for part in range(PARTS)]
        h = self._convolve("begin", seen + context, 0, 127)
        change = self._convolve("block", h, 0, 127)
        h = [
            [[min(127, a + b) for a, b in zip(*rows, strict=True)] for rows in zip(*c, strict=True)]
            for c in zip(h, change, strict=True)
        ]
        out = self._convolve("head", h + seen, -32768, 32767)
        if self.layer.components:
            return out
        m, most = len(moved), 3 * 2**f
        shift = [[[clamp((v * 2**f) >> 8, -most, most) for v in r] for r in p] for p in out[:m]]
        return shift + [[[clamp(v, -24, 24) for v in row] for row in p] for p in out[m:]]

    def _convolve(self, part: str, planes: Planes, least: int, most: int) -> Planes:
        return convolution(self.tensors, f"{self.name}.{part}.{self.n}", planes, least, most)

    def _map(self, own: tuple[int, ...]) -> Map:
        k = self.layer.components
        if k == 0:
            return affine(*own, self.fineness)
        mean = [clamp(value, -2047, 2047) for value in own[k : 2 * k]]
        width = [clamp(value, -16, 16) for value in own[2 * k :]]
        return mixture(weights_of(list(own[:k])), mean, width, self.fineness)


def steps_of(tensors: Tensors, name: str, layers: list[Layer], fineness: int) -> list[Step]:
    """The steps of all layers, the first to be undone first."""
    found: list[Step] = []
    for n in reversed(range(len(layers))):
        own = tensors, name, n, layers[n], fineness
        if layers[n].kind == "mix":
            found += [MixRow(*own, i=i, factor="lower") for i in range(PARTS)]
            found += [MixRow(*own, i=i, factor="upper") for i in reversed(range(PARTS))]
        else:
            found.append((Norm if layers[n].kind == "norm" else Coupling)(*own))
    return found


def answer_of(
    tensors: Tensors, name: str, n: int, layer: Layer, y: Plane, context: Planes
) -> list[int]:
    """What layer n adds to the known answer of a model."""
    if layer.kind == "coupling":
        planes = Coupling(tensors, name, n, layer, 10).parameters(y, context)
        return [v for plane in planes for row in plane for v in row]
    constants = CONSTANTS[layer.kind]
    return [v for c in constants for v in tensors[f"{name}.{layer.kind}.{n}.{c}"].values]


def squares(plane: Plane, part: int) -> Plane:
    """One part of all squares, 0 where it is missing."""
    rows, columns = len(plane), len(plane[0])
    a, b = divmod(part, 2)
    return [
        [
            plane[i + a][j + b] if i + a < rows and j + b < columns else 0
            for j in range(0, columns, 2)
        ]
        for i in range(0, rows, 2)
    ]
