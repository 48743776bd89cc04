"""docs/format-chain.md: config and tensors of a chain model, and phases popped by their flow."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from decimal import Decimal, localcontext
from itertools import pairwise
from typing import Any

from reference.layers import COUPLINGS, Layer, answer_of, squares, steps_of, wanted_layer
from reference.maps import Piece, between, images, knots, move
from reference.message import Message
from reference.mixture import LogisticMixture, Table
from reference.networks import (
    Plane,
    Planes,
    Tensors,
    Wanted,
    clamp,
    convolution,
    wanted_convolution,
)
from reference.phases import KINDS, NetConfig, known_answer

BLOCK = 4096


def _lean(tilt: int) -> list[int]:
    """Section "Tilts": LEAN[tilt]."""
    with localcontext() as context:
        context.prec = 60
        shares = [(Decimal(tilt * k) / 16).exp() for k in range(8)]
        lean = [1 + int(4088 * share / sum(shares)) for share in shares]
    lean[0 if tilt < 0 else 7] += 4096 - sum(lean)
    return lean


LEAN = {tilt: Table(_lean(tilt)) for tilt in range(-8, 9) if tilt}


@dataclass
class FlowShape:
    """The object `flow` of a config."""

    context: int
    width: int
    fineness: int
    layers: list[Layer]
    tilted: bool

    def __post_init__(self) -> None:
        for value, least, most in (
            (self.context, 1, 256),
            (self.width, 1, 256),
            (self.fineness, 4, 14),
            (len(self.layers), 1, 16),
        ):
            if type(value) is not int:
                raise TypeError("a size that is no integer")
            if not least <= value <= most:
                raise ValueError("a size out of range")
        if type(self.tilted) is not bool:
            raise TypeError("tilted is neither true nor false")


def read_flow(fields: dict[str, Any]) -> FlowShape:
    """The part of a config that a `video` model has not."""
    if fields.keys() != {"video", "flow"}:
        raise KeyError("other keys than video and flow")
    flow = {"tilted": False, **fields["flow"]}
    layers = [Layer(**table) for table in flow["layers"]] if "layers" in flow else COUPLINGS
    return FlowShape(**{**flow, "layers": layers})


def wanted_flows(config: dict[str, NetConfig], flow: FlowShape) -> Wanted:
    """Type and shape of the flows' tensors."""
    result: Wanted = {}
    width, context = flow.width, flow.context
    for kind in KINDS:
        for p in range(3):
            name = f"flows.{kind}.{p}"
            states = 4 * config[kind].width
            result |= wanted_convolution(f"{name}.context", "I8", context, states, 1)
            for n, layer in enumerate(flow.layers):
                result |= wanted_layer(name, n, layer, width, context)
            if flow.tilted:
                result |= wanted_convolution(f"{name}.head.tilt", "I16", 4, context, 1)
    return result


def context_of(tensors: Tensors, name: str, states: Planes, rows: int, columns: int) -> Planes:
    """The context of one plane's squares."""
    parts = [
        squares([row[:columns] for row in channel[:rows]], part)
        for part in range(4)
        for channel in states
    ]
    return convolution(tensors, f"{name}.context", parts, 0, 127)


def tilts_of(
    tensors: Tensors, name: str, flow: FlowShape, context: Planes, rows: int, columns: int
) -> Plane:
    """Section "Tilts": how places of one plane lean; 0 where none does."""
    if not flow.tilted:
        return [[0] * columns for _ in range(rows)]
    out = convolution(tensors, f"{name}.head.tilt", context, -32768, 32767)
    return [
        [clamp(out[2 * (r % 2) + c % 2][r // 2][c // 2], -8, 8) for c in range(columns)]
        for r in range(rows)
    ]


def pop_phase(
    message: Message,
    tensors: Tensors,
    name: str,
    flow: FlowShape,
    models: list[LogisticMixture],
    states: list[Planes],
    shape: tuple[int, int],
) -> list[int]:
    """Section "Popping by a flow".

    Args:
        message: Gives and takes bits.
        tensors: The model's.
        name: Prefix of the flow's.
        flow: Of the config.
        models: The mixtures of the samples.
        states: For each plane the phase's state.
        shape: Rows and columns of the phase in each plane.
    """
    rows, columns = shape
    precision = models[0].precision
    u, v = knots(precision), images(flow.fineness)
    pieces = Table([b - a for a, b in pairwise(u)])
    chosen = message.pop_array([pieces] * len(models))
    places = message.pop_uniform_array([v[k + 1] - v[k] for k in chosen])
    numbers = iter([v[k] + place for k, place in zip(chosen, places, strict=True)])
    planes = [[[next(numbers) for _ in range(columns)] for _ in range(rows)] for _ in states]
    contexts = [context_of(tensors, name, state, rows, columns) for state in states]
    for step in steps_of(tensors, name, flow.layers, flow.fineness):
        known = [step.maps(*pair) for pair in zip(planes, contexts, strict=True)]
        for moves in zip(*known, strict=True):
            a, b = divmod(moves[0][0], 2)
            spots = [
                (plane, i, j)
                for plane in range(len(planes))
                for i in range(a, rows, 2)
                for j in range(b, columns, 2)
            ]
            old = [planes[plane][i][j] for plane, i, j in spots]
            own: list[Piece] = []
            for (plane, i, j), number in zip(spots, old, strict=True):
                own.append(between(*moves[plane][1][i // 2][j // 2], number))
            for (plane, i, j), number in zip(spots, move(message, old, own), strict=True):
                planes[plane][i][j] = number
    y = [number for plane in planes for row in plane for number in row]
    tilts = [
        tilt
        for context in contexts
        for row in tilts_of(tensors, name, flow, context, rows, columns)
        for tilt in row
    ]
    samples = []
    for first in range(0, len(y), BLOCK):
        block = slice(first, first + BLOCK)
        moved = move(message, y[block], [between(v, u, number) for number in y[block]])
        found = [model.find(s) for model, s in zip(models[block], moved, strict=True)]
        inside = [s - start for s, (_, start, _) in zip(moved, found, strict=True)]
        push_places(message, inside, [freq for _, _, freq in found], tilts[block])
        samples += [z for z, _, _ in found]
    return samples


def push_places(message: Message, places: list[int], freqs: list[int], tilts: list[int]) -> None:
    """Sections "Symbols" and "Tilts": push places in intervals."""
    lanes = len(message.head)
    for row in reversed(range(0, len(places), lanes)):
        for lane in range(min(lanes, len(places) - row)):
            place, freq, tilt = places[row + lane], freqs[row + lane], tilts[row + lane]
            if tilt == 0 or freq < 256:
                message.push_uniform(lane, place, freq)
                continue
            ends = [freq * e // 8 for e in range(9)]
            e = next(e for e in range(8) if place < ends[e + 1])
            message.push_uniform(lane, place - ends[e], ends[e + 1] - ends[e])
            table = LEAN[tilt]
            message.push(lane, sum(table.freqs[:e]), table.freqs[e], table.precision)


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
            name = f"flows.{kind}.{p}"
            context = context_of(tensors, name, states, 13, 13)
            answers = [
                answer_of(tensors, name, n, layer, y, context)
                for n, layer in enumerate(flow.layers)
            ]
            if flow.tilted:
                answers += tilts_of(tensors, name, flow, context, 13, 13)
            for answer in answers:
                digest.update(struct.pack(f"<{len(answer)}q", *answer))
    return digest.hexdigest()
