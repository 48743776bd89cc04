"""The `video` model: an integer flow with a memory.

Every plane is factored out phase by phase, level by level (see `lattice`); a phase's samples are
coded under mixtures anchored on predictions (see `features`), which small exact networks correct:

    intra frames    from the plane itself; chroma also from luma
    inter frames    also from two motion-compensated frames and from an adaptive linear prediction

One walk over a chunk serves both directions: a `codec.Recorder` keeps intervals, a `codec.Reader`
pops symbols. Frames are walked through in display order; consecutive intra frames go together, so
that small pictures are not many small pieces of work.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from flowarchive import adaptive, features, int8, lattice, motion, planes
from flowarchive.account import Account
from flowarchive.adaptive import LinearPredictor, ScaleCorrection
from flowarchive.ans import Message
from flowarchive.codec import Coder, Reader, Recorder
from flowarchive.device import Kernels
from flowarchive.entropy import Table
from flowarchive.errors import ModelError
from flowarchive.flows.phases import Layout, PhaseNet, Shape, Tensors
from flowarchive.models.answer import noise
from flowarchive.models.form import INTRA, Form, Front, code_front, steps
from flowarchive.models.light import Light, adjust, code_light
from flowarchive.models.offload import Device
from flowarchive.models.phasewise import LEVEL_NETS, Range, References, Walk, code_planes
from flowarchive.models.plan import Plan

Int32 = NDArray[np.int32]

COARSE_WIDTH = 32
"""Most channels a state has from the third level on, where there are few samples."""


class _End:
    """The CPU's end of a chunk; see `form.End`.

    Args:
        coder: The end of a walk.
        luma: Shape of frames' luma.
        plan: The encoder's choices; None for a decoder.

    Attributes:
        fields: The motion of the frame that comes next.
        lit: Its light.
    """

    def __init__(self, coder: Coder, luma: tuple[int, int], plan: Plan | None) -> None:
        self._coder, self._luma, self._plan = coder, luma, plan
        self._known: tuple[motion.Field, motion.Field] | None = None
        self.fields: list[motion.Field] = []
        self.lit: Light | None = None

    def front(self, bits: int) -> Front:
        if self._plan is None:
            return code_front(self._code, Front(), bits)
        self._plan.fields(0)  # has none, but begins to search for the next
        return code_front(self._code, self._plan.choice.front, bits)

    def kind(self, t: int, kinds: Table) -> int:
        if self._plan is None:
            return self._code(kinds, INTRA)
        self._known = self._plan.fields(t)
        return self._code(kinds, self._plan.choice.kind(t, self._known is None))

    def light(self, t: int, shape: tuple[int, int], bits: int) -> None:
        known = None if self._plan is None else self._plan.choice.lights[t]
        self.lit = code_light(self._coder.code, known, shape, bits)

    def field(
        self, t: int, reference: int, hints: motion.Field, model: motion.VectorModel
    ) -> motion.Field:
        known = None if self._known is None else self._known[reference]
        field = self._coder.field(known, self._luma, hints, model)
        self.fields = [*self.fields[:reference], field]
        return field

    def _code(self, table: Table, symbol: int) -> int:
        return int(self._coder.code(table, np.array([symbol], dtype=np.int32))[0])


class _Past:
    """What both sides remember of a chunk's frames so far.

    Attributes:
        learning: What the predictors of each part are still learning in another thread.
    """

    def __init__(self, shape: tuple[int, int], predictors: list[list[LinearPredictor]]) -> None:
        self.learning: list[list[Future[None]]] = [[] for _ in predictors]
        self._shape, self._predictors = shape, predictors
        self._corrections = [ScaleCorrection() for _ in predictors]
        self._frames: list[planes.Components] = []

    def cut(self, frame: planes.Components) -> None:
        """Begin anew with an intra frame; what has been learned stays."""
        self._frames = [frame]

    def remember(self, frame: planes.Components) -> None:
        """Keep a frame as the newest of two."""
        self._frames = [frame, *self._frames[:1]]

    def compensate(
        self,
        walk: Walk,
        part: int,
        fields: list[motion.Field],
        light: Light | None,
        samples: Range,
    ) -> list[list[Future[Int32]]]:
        """Begin to compensate the planes of one of `Components.parts` in each of the frames."""
        begin = sum(map(len, self._predictors[:part]))  # in the light, whose planes are in a row
        return [
            [
                walk.start(
                    _compensate, plane, field, self._shape, samples,
                    None if light is None else light[reference, begin + n],
                )
                for n, plane in enumerate(self._frames[reference].parts[part])
            ]
            for reference, field in enumerate(fields)
        ]  # fmt: skip

    def references(self, part: int, moving: list[list[Future[Int32]]]) -> References:
        """Return compensated planes, with predictors that have learned."""
        moved = [np.stack([plane.result() for plane in group]) for group in moving]
        learning = self.learning[part]
        while learning:
            learning.pop().result()
        learned = self._predictors[part], self._corrections[part]
        return References(moved[0], moved[-1], *learned, learning)


def _compensate(
    plane: Int32, field: motion.Field, luma: tuple[int, int], samples: Range, lit: Int32 | None
) -> Int32:
    """Predict a plane from a reference's, in the light of the frame."""
    moved = motion.compensate(plane, field, luma, samples.low, samples.high)
    return moved if lit is None else adjust(moved, lit, samples.low, samples.high)


class VideoModel:
    """Networks and first filters of the `video` model.

    Args:
        config: For "intra" and "inter" a table, {"luma": {"width", "blocks"}, "chroma": alike}.
        tensors: What `layout` names.

    Raises:
        ModelError: The config is malformed, or an integer is out of its range.
        NotReproducible: A bound is broken.
    """

    has_memory = True
    has_kernels = True

    def __init__(self, config: dict[str, Any], tensors: Tensors) -> None:
        self._device: Device | None = None
        self.tensors = tensors
        self.nets = {
            name: [
                PhaseNet(shape, tensors, _prefix(name, level)) for level, shape in enumerate(shapes)
            ]
            for name, shapes in net_shapes(config).items()
        }
        self._filters = tuple(tensors[name].astype(np.int32) for name in filter_shapes())
        if max(np.abs(filters).max() for filters in self._filters) > adaptive.WEIGHT_LIMIT:
            raise ModelError("a filter's weight is out of its range")

    @staticmethod
    def layout(config: dict[str, Any]) -> Layout:
        """Return the type and shape of every tensor; see `models.Model`."""
        found: Layout = {}
        for name, shapes in net_shapes(config).items():
            for level, shape in enumerate(shapes):
                found |= shape.layout(_prefix(name, level))
        return found | {name: (np.dtype(np.int16), size) for name, size in filter_shapes().items()}

    @classmethod
    def of_tensors(cls, config: dict[str, Any], tensors: Tensors) -> VideoModel:
        """Build the model; see `models.Model`."""
        return cls(config, tensors)

    def use(self, kernels: Kernels | None) -> None:
        """Have a device do the hot operations from now on; None for the CPU."""
        for nets in self.nets.values():
            for net in nets:
                net.use(kernels)
        self._device = None if kernels is None else self._on(kernels)

    def _on(self, kernels: Kernels) -> Device:
        return Device(kernels, self.nets, self._filters)

    def for_rehearsal(self) -> Self:
        """Return the model; see `models.Model`."""
        return self

    def recorder(self) -> Recorder:
        """Return an encoder's end of a walk."""
        return Recorder()

    def reader(self, message: Message) -> Reader:
        """Return a decoder's end of a walk."""
        return Reader(message)

    def push_frames(
        self,
        message: Message,
        frames: Sequence[planes.Components],
        letters: str,
        bits: int,
        threads: int = 1,
    ) -> Account:
        """Push a chunk's frames; see `models.Model`."""
        if self._device and self._device.holds(frames[0], len(frames)):
            return self._device.push_frames(message, frames, letters, bits)
        recorder = self.recorder()
        with _threads(threads) as executor:
            recorder.executor = executor
            plan = Plan(frames, bits, executor)
            walk = Walk(recorder, threads, executor)
            for done, _ in enumerate(self._walk(walk, frames, letters, bits, plan), 1):
                recorder.frame = done
        account = Account(len(frames), message.bits)
        recorder.push(message, account)
        return account

    def pop_frames(
        self,
        message: Message,
        count: int,
        shapes: Sequence[tuple[int, int]],
        letters: str,
        bits: int,
        threads: int = 1,
    ) -> Iterator[planes.Components]:
        """Pop `count` frames; see `models.Model`."""
        unknown = planes.blank(shapes, letters)
        if self._device and self._device.holds(unknown, count):
            yield from self._device.pop_frames(message, [unknown] * count, letters, bits)
            return
        with _threads(threads) as executor:
            walk = Walk(self.reader(message), threads, executor)
            yield from self._walk(walk, [unknown] * count, letters, bits, None)

    def _walk(
        self,
        walk: Walk,
        frames: Sequence[planes.Components],
        letters: str,
        bits: int,
        plan: Plan | None,
    ) -> Iterator[planes.Components]:
        """Code frames in display order; a `Reader`, without a plan, sees only their shapes."""
        luma = frames[0].luma.shape
        past, end = _Past(luma, self._predictors(frames[0])), _End(walk.coder, luma, plan)
        for step in steps(end, bits, len(frames), frames[0]):
            form = Form(letters, bits, step.shift)
            together = frames[step.first : step.first + step.together]
            if step.inter:
                yield self._code_inter(walk, together[0], (end.fields, end.lit), past, form)
            else:
                yield from self._code_intra(walk, together, past, form)

    def _code_intra(
        self, walk: Walk, frames: Sequence[planes.Components], past: _Past, form: Form
    ) -> list[planes.Components]:
        """Code frames that stand on their own."""
        nets = self.nets["intra_luma"], self.nets["intra_chroma"]
        lumas = np.stack([frame.luma for frame in frames])
        lumas = code_planes(walk, nets[0], lumas, None, None, form.samples(False))
        chromas: Sequence[Int32 | None] = [None] * len(frames)
        if frames[0].chroma is not None:
            known = np.concatenate([frame.chroma for frame in frames])
            context = (planes.on_grid(lumas * lattice.QUARTERS, known.shape[1:]),)
            known = code_planes(walk, nets[1], known, context, None, form.samples(True))
            chromas = list(known.reshape(len(frames), 2, *known.shape[1:]))
        extras = [
            code_planes(walk, nets[0], np.stack(group), None, None, form.samples(False))
            for group in zip(*(frame.extra for frame in frames), strict=True)
        ]
        done = [
            planes.Components(lumas[n], chromas[n], tuple(extra[n] for extra in extras))
            for n in range(len(frames))
        ]
        past.cut(done[-1])
        return done

    def _code_inter(
        self,
        walk: Walk,
        frame: planes.Components,
        moved: tuple[list[motion.Field], Light | None],
        past: _Past,
        form: Form,
    ) -> planes.Components:
        """Code a frame that is predicted from the past, and let the predictors learn from it."""
        has_chroma = frame.chroma is not None
        ranges = [form.samples(part == 1 and has_chroma) for part in range(len(frame.parts))]
        moving = [past.compensate(walk, part, *moved, held) for part, held in enumerate(ranges)]
        lights = past.references(0, moving[0])

        def code(way: Walk, part: int, luma: Int32 | None = None) -> Int32:
            """Code a part; chroma knows luma."""
            references, seen = past.references(part, moving[part]) if part else lights, None
            if luma is not None:
                sources = luma * lattice.QUARTERS, lights.first, lights.second
                shape = frame.parts[part].shape[1:]
                seen = tuple(planes.on_grid(source, shape) for source in sources)
            nets = self.nets["inter_luma" if luma is None else "inter_chroma"]
            return code_planes(way, nets, frame.parts[part], seen, references, ranges[part])

        side = walk.beside() if has_chroma else None
        if side is None:
            done = [code(walk, 0)]
            if has_chroma:
                done.append(code(walk, 1, done[0]))
        else:  # who knows luma codes chroma meanwhile
            other = walk.beside()
            assert other is not None
            chroma = walk.start(code, other, 1, frame.parts[0])
            done = [code(side, 0), chroma.result()]
        done += [code(walk, part) for part in range(len(done), len(frame.parts))]
        coded = planes.Components.of_parts(done, has_chroma)
        past.remember(coded)
        return coded

    def _predictors(self, frame: planes.Components) -> list[list[LinearPredictor]]:
        """Fresh predictors for the planes of each of `Components.parts`."""
        luma, chroma = self._filters
        return [
            [
                LinearPredictor(chroma if part == 1 and frame.chroma is not None else luma)
                for _ in group
            ]
            for part, group in enumerate(frame.parts)
        ]

    def macs_per_sample(self) -> dict[str, int]:
        """Return the networks' multiplications for a sample of each kind, each way."""
        costs = {}
        for name, nets in self.nets.items():
            levels = [nets[min(level, LEVEL_NETS - 1)] for level in range(lattice.MAX_LEVELS)]
            costs[name] = round(
                sum(net.shape.macs() / 4 ** (level + 1) for level, net in enumerate(levels))
            )
        return costs

    def known_answer(self) -> str:
        """Return what the networks make of `noise`; see `models.Model`."""
        digest = hashlib.blake2b(digest_size=16)
        for filters in self._filters:
            digest.update(filters.astype("<i4").tobytes())
        nets = [net for levels in self.nets.values() for net in levels]
        side = 13
        numbers = noise(side * side * sum(sum(net.shape.seen) for net in nets)) % 255 - 127
        at = 0
        for net in nets:
            state = None
            for phase, channels in enumerate(net.shape.seen):
                seen = int8.grid(1, side, side, channels)
                values = numbers[at : at + channels * side * side].reshape(channels, side, side)
                int8.inside(seen)[0, :, :, :channels] = values.transpose(1, 2, 0) + int8.ZERO
                state, out = net.answer(phase, seen, state)
                head = int8.inside(out)[0, :, :, : 3 * net.shape.anchors].transpose(2, 0, 1)
                digest.update(head.astype("<i4").tobytes())
                at += channels * side * side
        return digest.hexdigest()


def filter_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes of the first filters of luma and of chroma."""
    slots = adaptive.LEVEL_GROUPS, len(lattice.PHASES), adaptive.CLASSES
    taps = {"luma": adaptive.LUMA_TAPS, "chroma": adaptive.CHROMA_TAPS}
    return {f"{name}_filters": (*slots, count) for name, count in taps.items()}


def net_shapes(config: dict[str, Any]) -> dict[str, list[Shape]]:
    """Return the networks that a config asks for, those of the LEVEL_NETS groups of levels.

    Raises:
        ModelError: The config is malformed.
    """
    try:
        _check_keys(config, "intra", "inter")
        for kind in ("intra", "inter"):
            _check_keys(config[kind], "luma", "chroma")
        return {
            f"{kind}_{part}": _shapes(kind, part, **config[kind][part])
            for kind in ("intra", "inter")
            for part in ("luma", "chroma")
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the model's config is malformed: {error}") from error


def _check_keys(table: dict[str, Any], *names: str) -> None:
    if set(table) != set(names):
        raise ValueError(f"a table holds {sorted(table)}, not {sorted(names)}")


def _shapes(kind: str, part: str, width: int, blocks: int) -> list[Shape]:
    for name, value, least, most in (("width", width, 1, 256), ("blocks", blocks, 0, 16)):
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"{name} is {value!r}, not in {least}..{most}")
    inter = kind == "inter"
    channels = features.first_channels(inter, part == "luma")
    anchors = features.INTER_ANCHORS if inter else features.INTRA_ANCHORS
    widths = (width, width, min(width, COARSE_WIDTH))
    return [Shape(channels, anchors, size, blocks) for size in widths]


def _prefix(name: str, level: int) -> str:
    """What the names of a network's tensors begin with."""
    return f"nets.{name}.{level}."


@contextmanager
def _threads(count: int) -> Iterator[Executor | None]:
    """Threads that work on a chunk; None where there is but one."""
    if count == 1:
        yield None
        return
    # The caller takes a part itself, so that two are left for what goes on beside the walk.
    with ThreadPoolExecutor(count + 1, "flowarchive-part") as executor:
        yield executor
