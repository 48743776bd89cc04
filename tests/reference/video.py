"""Sections "The walk" and "Coding of planes": the frames of a chunk, popped with a video model."""

from __future__ import annotations

from reference.adaptive import Predictor, group_of
from reference.chain import pop_phase
from reference.features import inter, intra
from reference.lattice import (
    PHASES,
    Around,
    grid,
    level_count,
    phase_shape,
    places,
    put,
    take,
)
from reference.message import Message
from reference.mixture import LogisticMixture, Table
from reference.model import Model
from reference.motion import VectorModel, compensate, doubled, pop_field, zero_field
from reference.networks import Plane, Planes, clamp
from reference.phases import PhaseNet
from reference.planes import Integers, Shape, on_grid
from reference.refusal import demand
from reference.scales import Correction, mixture_of

Light = tuple[int, int]

BATCH_SAMPLES = 2**20


class Past:
    """What a decoder remembers of an inter frame's part: its filters and its correction."""

    def __init__(self, predictors: list[Predictor]) -> None:
        self.predictors = predictors
        self.correction = Correction()


class Walk:
    """A chunk's way.

    Args:
        message: Gives the bits.
        model: The model file.
        letters: Of the coded planes.
        shapes: (height, width) of each of them.
        bits: The chunk's.
    """

    def __init__(
        self, message: Message, model: Model, letters: str, shapes: list[Shape], bits: int
    ) -> None:
        self.message, self.model, self.bits = message, model, bits
        self.shapes = shapes
        (self.shift,) = message.pop_array([Table([1] * 16)])
        self.kinds = Table([1, 1])
        said = self.shift
        if said >= 13:
            (self.shift,) = message.pop_array([Table([1] * 16)])
        if said in (13, 15):
            self.kinds = Table([1, 2, 1])
        self.has_light = said in (13, 14)
        demand(self.shift <= min(8, bits - 8), "shift")
        # The parts of a frame, by the numbers of their planes.
        self.has_chroma = letters[:3] in ("YUV", "RGB")
        rest = range(3 if self.has_chroma else 1, len(letters))
        self.parts = [[0], *([[1, 2]] if self.has_chroma else []), *([n] for n in rest)]
        self.ranges = []
        self.past = []
        for number, part in enumerate(self.parts):
            low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
            if self._is_chroma(number) and letters.startswith("RGB"):
                low, high = 1 - 2**bits, 2**bits - 1
            self.ranges.append((low, high))
            filters = nested(model, "chroma_filters" if self._is_chroma(number) else "luma_filters")
            self.past.append(Past([Predictor(filters, self.shift, low, high) for _ in part]))
        self.remembered: list[Planes] = []
        self.field = zero_field(*shapes[0])
        self.vectors = VectorModel(), VectorModel()

    def _is_chroma(self, part: int) -> bool:
        return self.has_chroma and part == 1

    def pop_frames(self, count: int) -> list[Integers]:
        """Section "The walk"."""
        frames: list[Planes] = []
        group = 0
        height, width = self.shapes[0]
        for t in range(count):
            kind = self.message.pop_array([self.kinds])[0] if t > 0 else 0
            if group and (kind > 0 or (group + 1) * height * width > BATCH_SAMPLES):
                frames += self._pop_group(group)
                group = 0
            if kind > 0:
                if kind == 2:
                    del self.remembered[1:]
                frames.append(self._pop_inter())
            else:
                group += 1
        if group:
            frames += self._pop_group(group)
        return [self._integers(planes) for planes in frames]

    def _integers(self, planes: Planes) -> Integers:
        if self.has_chroma:
            return planes[0], planes[1:3], planes[3:]
        return planes[0], [], planes[1:]

    def _pop_group(self, count: int) -> list[Planes]:
        frames: list[Planes] = [[] for _ in range(count)]
        for number, part in enumerate(self.parts):
            lumas = None
            if self._is_chroma(number):
                lumas = [
                    [on_grid(quarters(frame[0]), self.shapes[1])] for frame in frames for _ in part
                ]
            planes = self._pop_planes(number, count * len(part), lumas, None)
            for frame in frames:
                frame += planes[: len(part)]
                del planes[: len(part)]
        self.remembered = [frames[-1]]
        self.field = zero_field(*self.shapes[0])
        return frames

    def _pop_inter(self) -> Planes:
        luma_shape = self.shapes[0]
        for h, w in self.shapes:
            demand(h <= luma_shape[0] and w <= luma_shape[1], "an inter frame of such planes")
        lights = self._pop_light(len(self.remembered))
        fields = [pop_field(self.message, self.field, self.vectors[0])]
        if len(self.remembered) == 2:
            fields.append(pop_field(self.message, doubled(fields[0]), self.vectors[1]))
        self.field = fields[0]
        frame: Planes = []
        lumas_before: Planes = []
        for number, part in enumerate(self.parts):
            references = [
                [
                    lit(
                        compensate(reference[n], field, luma_shape, *self.ranges[number]),
                        light[n],
                        *self.ranges[number],
                    )
                    for reference, field, light in zip(self.remembered, fields, lights, strict=True)
                ]
                for n in part
            ]
            references = [[*pair, pair[0]][:2] for pair in references]
            lumas = None
            if self._is_chroma(number):
                seen = [quarters(frame[0]), *lumas_before]
                lumas = [[on_grid(plane, self.shapes[1]) for plane in seen]] * 2
            planes = self._pop_planes(number, len(part), lumas, references)
            past = self.past[number]
            for n, predictor in enumerate(past.predictors):
                beside = lumas[n] if lumas else []
                predictor.learn([quarters(planes[n]), *references[n], *beside])
            past.correction.take_turn()
            frame += planes
            lumas_before = lumas_before or references[0]
        self.remembered = [frame, *self.remembered[:1]]
        return frame

    def _pop_light(self, references: int) -> list[list[Light]]:
        """Section "Light": of each reference and plane."""
        planes = len(self.shapes)
        lights = [[(1024, 0)] * planes for _ in range(references)]
        if not self.has_light or self.message.pop_array([Table([1, 1])]) == [0]:
            return lights
        are_lit = self.message.pop_array([Table([1, 1])] * (references * planes))
        numbers = self.message.pop_array([Table([1] * 4096)] * (2 * sum(are_lit)))
        for i, is_lit in enumerate(are_lit):
            if is_lit:
                gain, level = numbers[:2]
                del numbers[:2]
                lights[i // planes][i % planes] = gain, (level - 2048) * 2 ** (self.bits - 8)
        return lights

    def _pop_planes(
        self, number: int, count: int, lumas: list[Planes] | None, references: list[Planes] | None
    ) -> Planes:
        """Section "Coding of planes".

        Args:
            number: Which part.
            count: N.
            lumas: For each plane of chroma G and, with references, GR and GQ, in quarters.
            references: For each plane the two references; None for intra frames.
        """
        height, width = self.shapes[self.parts[number][0]]
        low, high = self.ranges[number]
        bounds = low, high, 24 + (self.bits - 8) // 2
        planes = [[[0] * width for _ in range(height)] for _ in range(count)]
        levels = level_count(height, width)
        tops = [take(plane, levels) for plane in planes]
        models = []
        for n in range(count):
            for y, row in enumerate(tops[n]):
                for x in range(len(row)):
                    mean, scale = 0, 80 + 8 * (self.bits - 8)
                    if references is not None:
                        step = 2**levels
                        mean, scale = 64 * references[n][0][y * step][x * step], 48 + 8 * self.shift
                    models.append(LogisticMixture(*bounds, [mean], [scale]))
        symbols = iter(self.message.pop_array(models))
        for n in range(count):
            put(planes[n], levels, [[4 * next(symbols) for _ in row] for row in tops[n]])
        kind = ("intra" if references is None else "inter") + (
            "_chroma" if self._is_chroma(number) else "_luma"
        )
        past = self.past[number]
        correction = Correction() if references is None else past.correction
        for level in reversed(range(levels)):
            parts = [take(plane, level) for plane in planes]
            seen_levels = [
                [[take(plane, level) for plane in group] for group in groups] if groups else None
                for groups in (lumas, references)
            ]
            nets = [PhaseNet(self.model.tensors, self.model.config, kind, level) for _ in parts]
            last = [[[0] * grid(p)[1] for _ in range(grid(p)[0])] for p in parts]
            for p, phase in enumerate(PHASES):
                mixtures = []
                for n, part in enumerate(parts):
                    own = [groups[n] if groups else None for groups in seen_levels]
                    predictor = None if references is None else past.predictors[n]
                    mixtures += self._mixtures(p, level, part, own, predictor, nets[n], last[n])
                slot = (0, 0) if references is None else (group_of(level), p)
                models = [LogisticMixture(*bounds, *correction.correct(slot, m)) for m in mixtures]
                if self._goes_by_flow(level):
                    assert self.model.flow is not None
                    flow = f"flows.{kind}.{p}", self.model.flow
                    states = [net.state for net in nets]
                    shape = phase_shape(parts[0], phase)
                    popped = pop_phase(
                        self.message, self.model.tensors, *flow, models, states, shape
                    )
                else:
                    popped = self.message.pop_array(models)
                correction.learn(slot, popped, mixtures)
                if references is None:
                    correction.take_turn()
                rest = iter(popped)
                for part in parts:
                    for i, j in places(part, phase):
                        part[2 * i + phase.row][2 * j + phase.column] = 4 * next(rest)
            for plane, part in zip(planes, parts, strict=True):
                put(plane, level, part)
        return [[[v // 4 for v in row] for row in plane] for plane in planes]

    def _goes_by_flow(self, level: int) -> bool:
        """Section "The way of a phase" of a chain."""
        if self.model.flow is None or level > 1:
            return False
        return self.message.pop_array([Table([1, 1])]) == [1]

    def _mixtures(
        self,
        p: int,
        level: int,
        part: Plane,
        others: list[Planes | None],
        predictor: Predictor | None,
        net: PhaseNet,
        last: Plane,
    ) -> list:
        """The mixtures of a phase of one plane; `last` has anchor 0, of this phase afterwards."""
        phase = PHASES[p]
        lumas, references = others
        rows, columns = grid(part)
        channels = []
        anchors = {}
        for i in range(rows):
            channels.append([])
            for j in range(columns):
                here = Around(part, phase, i, j)
                g = [Around(plane, phase, i, j) for plane in lumas or []]
                if references is None:
                    seen, anchors[i, j] = intra(
                        here, g[0] if g else None, p, self.shift, last[i][j]
                    )
                else:
                    assert predictor is not None
                    rq = [Around(plane, phase, i, j) for plane in references]
                    linear = predictor.predict([here, *rq, *g], level, p)
                    seen, anchors[i, j] = inter(
                        here, rq, g or None, linear, p, self.shift, last[i][j]
                    )
                channels[i].append(seen)
                last[i][j] = anchors[i, j][0]
        head = net.head(
            p, [[[seen[c] for seen in row] for row in channels] for c in range(len(seen))]
        )
        return [
            mixture_of([plane[i][j] for plane in head], anchors[i, j], self.shift)
            for i, j in places(part, phase)
        ]


def lit(plane: Plane, light: Light, low: int, high: int) -> Plane:
    """A compensated plane in the light of a frame."""
    gain, offset = light
    return [
        [clamp(((v * gain + 512) >> 10) + offset, 4 * low, 4 * high) for v in row] for row in plane
    ]


def quarters(plane: Plane) -> Plane:
    """A plane in quarters."""
    return [[4 * v for v in row] for row in plane]


def nested(model: Model, name: str) -> list[list[list[list[int]]]]:
    """A tensor of filters as lists, [group][phase][class][tap]."""
    tensor = model.tensors[name]
    values = iter(tensor.values)
    a, b, c, d = tensor.shape
    return [
        [[[next(values) for _ in range(d)] for _ in range(c)] for _ in range(b)] for _ in range(a)
    ]
