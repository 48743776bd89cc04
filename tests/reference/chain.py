"""docs/format-chain.md: config and tensors of a chain model, and phases popped by their flow."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Any

from reference.message import Message
from reference.mixture import LogisticMixture
from reference.networks import Planes, Tensors, Wanted, clamp, convolution, wanted_convolution
from reference.phases import KINDS, NetConfig, known_answer

MOVED = [[1, 2], [3], [0]]
BLOCK = 4096
Piece = tuple[int, int, int, int]


@dataclass
class FlowShape:
    """The object `flow` of a config."""

    context: int
    width: int
    fineness: int

    def __post_init__(self) -> None:
        for value, least, most in (
            (self.context, 1, 256),
            (self.width, 1, 256),
            (self.fineness, 4, 14),
        ):
            if type(value) is not int:
                raise TypeError("a size that is no integer")
            if not least <= value <= most:
                raise ValueError("a size out of range")


def read_flow(fields: dict[str, Any]) -> FlowShape:
    """The part of a config that a `video` model has not."""
    if fields.keys() != {"video", "flow"}:
        raise KeyError("other keys than video and flow")
    return FlowShape(**fields["flow"])


def wanted_flows(config: dict[str, NetConfig], flow: FlowShape) -> Wanted:
    """Type and shape of the couplings' tensors."""
    result: Wanted = {}
    width, context = flow.width, flow.context
    for kind in KINDS:
        for p in range(3):
            name = f"flows.{kind}.{p}"
            states = 4 * config[kind].width
            result |= wanted_convolution(f"{name}.context", "I8", context, states, 1)
            for n, moved in enumerate(MOVED):
                result |= wanted_convolution(f"{name}.begin.{n}", "I8", width, 4 + context, 3)
                result |= wanted_convolution(f"{name}.block.{n}", "I8", width, width, 1)
                outputs = 2 * len(moved)
                result |= wanted_convolution(f"{name}.head.{n}", "I16", outputs, width + 4, 1)
    return result


def _nearest(value: Decimal) -> int:
    return int(value.to_integral_value(ROUND_HALF_EVEN))


def knots(precision: int) -> list[int]:
    """Section "Grid and pieces": u."""
    with localcontext() as context:
        context.prec = 60
        inner = [_nearest(2**precision / (1 + (-Decimal(j - 192) / 16).exp())) for j in range(385)]
    return [0, *inner, 2**precision]


def images(fineness: int) -> list[int]:
    """Section "Grid and pieces": v."""
    unit = 2**fineness
    return [0, *(5 * unit + j * unit // 16 for j in range(385)), 34 * unit]


def core(fineness: int) -> list[int]:
    """CORE[-24], ..., CORE[24]."""
    with localcontext() as context:
        context.prec = 60
        return [_nearest(8 * 2**fineness * Decimal(2) ** (Decimal(i) / 32)) for i in range(-24, 25)]


def piece_of(edges: Sequence[int], number: int) -> int:
    """The k with edges[k] <= number < edges[k + 1]."""
    return next(k for k in range(len(edges) - 1) if number < edges[k + 1])


class Pieces:
    """Pieces of the curve, of which a table is made for the base."""

    def __init__(self, u: list[int], precision: int) -> None:
        self.u, self.precision = u, precision

    def find(self, slot: int) -> tuple[int, int, int]:
        """The piece that owns a slot, its start and its freq."""
        k = piece_of(self.u, slot)
        return k, self.u[k], self.u[k + 1] - self.u[k]


def move(message: Message, numbers: list[int], pieces: list[Piece]) -> list[int]:
    """Section "Moving along a piece"; a piece is (a, A, b, B)."""
    lanes = len(message.head)
    result = [s - a + b for s, (a, _, b, _) in zip(numbers, pieces, strict=True)]
    for row in range(0, len(numbers), lanes):
        noise = {}
        own = pieces[row : row + lanes]
        stretched = [lane for lane, (_, old, _, new) in enumerate(own) if old != new]
        for lane in reversed(stretched):
            noise[lane] = message.pop_uniform(lane, own[lane][3])
        for lane in stretched:
            a, length, b, other = own[lane]
            t = other * (numbers[row + lane] - a) + noise[lane]
            message.push_uniform(lane, t % length, length)
            result[row + lane] = b + t // length
    return result


class Couplings:
    """The networks of a phase's flow.

    Args:
        tensors: The model's.
        name: Their prefix.
        fineness: f.
    """

    def __init__(self, tensors: Tensors, name: str, fineness: int) -> None:
        self.tensors, self.name, self.fineness = tensors, name, fineness

    def context(self, states: Planes, rows: int, columns: int) -> Planes:
        """The context of one plane's squares."""
        parts = [
            squares([row[:columns] for row in channel[:rows]], part)
            for part in range(4)
            for channel in states
        ]
        return self._convolve("context", parts)

    def steer(self, n: int, y: list[list[int]], context: Planes) -> tuple[Planes, Planes]:
        """`shift` and `scale` of one plane, [moved part][row][column] each."""
        f = self.fineness
        seen = []
        for part in range(4):
            if part in MOVED[n]:
                seen.append([[0] * len(context[0][0]) for _ in context[0]])
                continue
            steps = [[clamp((v - 17 * 2**f) >> (f - 4), -127, 127) for v in row] for row in y]
            seen.append(squares(steps, part))
        h = self._convolve(f"begin.{n}", seen + context)
        change = self._convolve(f"block.{n}", h)
        h = [
            [[min(127, a + b) for a, b in zip(*rows, strict=True)] for rows in zip(*c, strict=True)]
            for c in zip(h, change, strict=True)
        ]
        out = convolution(self.tensors, f"{self.name}.head.{n}", h + seen, -32768, 32767)
        moved, most = len(MOVED[n]), 3 * 2**f
        shift = [[[clamp((v * 2**f) >> 8, -most, most) for v in r] for r in p] for p in out[:moved]]
        scale = [[[clamp(v, -24, 24) for v in row] for row in p] for p in out[moved:]]
        return shift, scale

    def _convolve(self, layer: str, planes: Planes) -> Planes:
        return convolution(self.tensors, f"{self.name}.{layer}", planes, 0, 127)


def squares(plane: list[list[int]], part: int) -> list[list[int]]:
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


def pop_phase(
    message: Message,
    tensors: Tensors,
    name: str,
    fineness: int,
    models: list[LogisticMixture],
    states: list[Planes],
    shape: tuple[int, int],
) -> list[int]:
    """Section "Popping by a flow".

    Args:
        message: Gives and takes bits.
        tensors: The model's.
        name: Prefix of the couplings.
        fineness: f.
        models: The mixtures of the samples.
        states: For each plane the phase's state.
        shape: Rows and columns of the phase in each plane.
    """
    rows, columns = shape
    precision = models[0].precision
    u, v = knots(precision), images(fineness)
    chosen = message.pop_array([Pieces(u, precision)] * len(models))
    places = message.pop_uniform_array([v[k + 1] - v[k] for k in chosen])
    numbers = iter([v[k] + place for k, place in zip(chosen, places, strict=True)])
    planes = [[[next(numbers) for _ in range(columns)] for _ in range(rows)] for _ in states]
    couplings = Couplings(tensors, name, fineness)
    contexts = [couplings.context(state, rows, columns) for state in states]
    unit, table = 2**fineness, core(fineness)
    for n in (2, 1, 0):
        steering = [couplings.steer(n, *pair) for pair in zip(planes, contexts, strict=True)]
        for m in reversed(range(len(MOVED[n]))):
            a, b = divmod(MOVED[n][m], 2)
            spots = [
                (plane, i, j)
                for plane in range(len(planes))
                for i in range(a, rows, 2)
                for j in range(b, columns, 2)
            ]
            pieces: list[Piece] = []
            for plane, i, j in spots:
                shift, scale = (values[m][i // 2][j // 2] for values in steering[plane])
                left = 17 * unit + shift - table[scale + 24]
                ends = [0, left, left + 2 * table[scale + 24], 34 * unit]
                others = [0, 9 * unit, 25 * unit, 34 * unit]
                pieces.append(between(ends, others, planes[plane][i][j]))
            old = [planes[plane][i][j] for plane, i, j in spots]
            new = move(message, old, pieces)
            for (plane, i, j), number in zip(spots, new, strict=True):
                planes[plane][i][j] = number
    y = [number for plane in planes for row in plane for number in row]
    samples = []
    for first in range(0, len(y), BLOCK):
        block = y[first : first + BLOCK]
        moved = move(message, block, [between(v, u, number) for number in block])
        own = models[first : first + BLOCK]
        found = [model.find(s) for model, s in zip(own, moved, strict=True)]
        message.push_uniform_array(
            [s - start for s, (_, start, _) in zip(moved, found, strict=True)],
            [freq for _, _, freq in found],
        )
        samples += [z for z, _, _ in found]
    return samples


def between(ends: Sequence[int], others: Sequence[int], number: int) -> Piece:
    """The piece between two rows of knots that holds a number."""
    k = piece_of(ends, number)
    return ends[k], ends[k + 1] - ends[k], others[k], others[k + 1] - others[k]


def known_chain_answer(tensors: Tensors, config: dict[str, NetConfig], flow: FlowShape) -> str:
    """Section "Model file": what a program tests its arithmetic with."""
    digest = hashlib.blake2b(known_answer(tensors, config).encode(), digest_size=16)
    for kind in KINDS:
        for p in range(3):
            width = config[kind].width
            number = 1
            y = [[0] * 13 for _ in range(13)]
            states = [[[0] * 13 for _ in range(13)] for _ in range(width)]
            for i in range(13):
                for j in range(13):
                    for c in range(width + 1):
                        number = number * 48271 % (2**31 - 1)
                        if c:
                            states[c - 1][i][j] = number % 128
                        else:
                            y[i][j] = number % (34 * 2**10)
            couplings = Couplings(tensors, f"flows.{kind}.{p}", 10)
            context = couplings.context(states, 13, 13)
            for n in range(3):
                for values in couplings.steer(n, y, context):
                    flat = [v for plane in values for row in plane for v in row]
                    digest.update(struct.pack(f"<{len(flat)}q", *flat))
    return digest.hexdigest()
