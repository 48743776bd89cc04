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
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowarchive import adaptive, exact, features, lattice, motion, planes
from flowarchive.adaptive import LinearPredictor, ScaleCorrection
from flowarchive.ans import Message
from flowarchive.codec import Coder, Reader, Recorder
from flowarchive.entropy import Table
from flowarchive.errors import FormatError, ModelError
from flowarchive.flows.phases import PhaseNet
from flowarchive.models.phasewise import LEVEL_NETS, Range, References, Walk, code_planes
from flowarchive.models.plan import MAX_SHIFT, Plan

Int32 = NDArray[np.int32]

BATCH_SAMPLES = 1 << 20
"""Intra frames go together while they have no more luma samples than this."""

COARSE_WIDTH = 32
"""Most channels a state has from the third level on, where there are few samples."""

_SHIFTS = Table([1] * 16)
_KINDS = Table([1, 1])


@dataclass(frozen=True)
class _Format:
    """What is the same for all frames of a chunk."""

    letters: str
    bits: int
    shift: int

    def samples(self, chroma: bool) -> Range:
        """What a plane may hold; YCoCg-R differences take one bit more."""
        if chroma and self.letters.startswith("RGB"):
            most = (1 << self.bits) - 1
            return Range(-most, most, self.bits, self.shift)
        half = 1 << (self.bits - 1)
        return Range(-half, half - 1, self.bits, self.shift)


class _Past:
    """What both sides remember of a chunk's frames so far.

    Attributes:
        learning: What predictors are still learning in another thread.
    """

    def __init__(self, shape: tuple[int, int], predictors: list[list[LinearPredictor]]) -> None:
        self.learning: list[Future[None]] = []
        self._shape, self._predictors = shape, predictors
        self._corrections = [ScaleCorrection() for _ in predictors]
        self._vectors = motion.VectorModel(), motion.VectorModel()
        self._frames: list[planes.Components] = []
        self._field = motion.zero_field(shape)

    def cut(self, frame: planes.Components) -> None:
        """Begin anew with an intra frame; what has been learned stays."""
        self._frames = [frame]
        self._field = motion.zero_field(self._shape)

    def remember(self, frame: planes.Components) -> None:
        """Keep a frame as the newest of two."""
        self._frames = [frame, *self._frames[:1]]

    def code_fields(
        self, coder: Coder, fields: tuple[motion.Field, motion.Field] | None
    ) -> list[motion.Field]:
        """Code a frame's motion against the one or two frames there are."""
        first, second = fields or (None, None)
        first = coder.field(first, self._shape, self._field, self._vectors[0])
        self._field = first
        if len(self._frames) == 1:
            return [first]
        hints = motion.doubled(first)
        return [first, coder.field(second, self._shape, hints, self._vectors[1])]

    def references(self, part: int, fields: list[motion.Field], samples: Range) -> References:
        """Compensate the planes of one of `Components.parts`, with predictors that have learned."""
        moved = []
        for frame, field in zip(self._frames, fields, strict=True):
            group = [
                motion.compensate(plane, field, self._shape, samples.low, samples.high)
                for plane in frame.parts[part]
            ]
            moved.append(np.stack(group))
        if part == 0:
            while self.learning:
                self.learning.pop().result()
        learned = self._predictors[part], self._corrections[part]
        return References(moved[0], moved[-1], *learned, self.learning)


class VideoModel(nn.Module):
    """Networks and first filters of the `video` model.

    Args:
        config: For "intra" and "inter" a table, {"luma": {"width", "blocks"}, "chroma": alike}.

    Raises:
        ModelError: The config is malformed.
    """

    has_memory = True
    luma_filters: Tensor
    chroma_filters: Tensor

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.nets = nn.ModuleDict()
        try:
            _check_keys(config, "intra", "inter")
            for kind in ("intra", "inter"):
                _check_keys(config[kind], "luma", "chroma")
                for part in ("luma", "chroma"):
                    self.nets[f"{kind}_{part}"] = _build(kind, part, **config[kind][part])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"the model's config is malformed: {error}") from error
        slots = (adaptive.LEVEL_GROUPS, len(lattice.PHASES), adaptive.CLASSES)
        for name, taps in (("luma", adaptive.LUMA_TAPS), ("chroma", adaptive.CHROMA_TAPS)):
            self.register_buffer(f"{name}_filters", torch.zeros(*slots, taps, dtype=torch.int16))

    def push_frames(
        self,
        message: Message,
        frames: Sequence[planes.Components],
        letters: str,
        bits: int,
        threads: int = 1,
    ) -> float:
        """Push a chunk's frames, so that `pop_frames` gives the first one first.

        Args:
            message: Receives the bits.
            frames: The frames' integers.
            letters: A component letter for each plane, as in `planes.split`.
            bits: Depth of the samples, 8..16.
            threads: How many may work on it; the bits do not depend on it.

        Returns:
            The ideal code length in bits by the frozen integer model.
        """
        recorder = Recorder()
        with _threads(threads) as executor:
            plan = Plan(frames, bits, executor)
            walk = Walk(recorder, threads, executor)
            for _ in self._walk(walk, frames, letters, bits, plan):
                pass
        recorder.push(message)
        return recorder.ideal_bits

    def pop_frames(
        self,
        message: Message,
        count: int,
        shapes: Sequence[tuple[int, int]],
        letters: str,
        bits: int,
        threads: int = 1,
    ) -> Iterator[planes.Components]:
        """Pop `count` frames, each as soon as it is complete.

        Args:
            message: Gives the bits back.
            count: How many frames.
            shapes: (rows, columns) of a frame's planes.
            letters: See `push_frames`.
            bits: See `push_frames`.
            threads: See `push_frames`.
        """
        unknown = planes.blank(shapes, letters)
        with _threads(threads) as executor:
            walk = Walk(Reader(message), threads, executor)
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
        coder = walk.coder
        shift = int(coder.code(_SHIFTS, np.array([plan.shift if plan else 0], np.int32))[0])
        if shift > min(MAX_SHIFT, bits - planes.MIN_BITS):
            raise FormatError(f"networks cannot pass over {shift} of {bits} bits")
        form = _Format(letters, bits, shift)
        past = _Past(frames[0].luma.shape, self._predictors(frames[0]))
        group: list[planes.Components] = []  # intra frames that wait to be coded together
        for t, frame in enumerate(frames):
            fields = plan.fields(t) if plan else None
            kind = np.array([fields is not None], dtype=np.int32)
            has_past = t > 0 and bool(coder.code(_KINDS, kind)[0])
            if has_past and not frame.fits_luma:
                raise FormatError("a frame's planes do not fit its motion")
            full = (len(group) + 1) * frame.luma.size > BATCH_SAMPLES
            if group and (has_past or full):
                yield from self._code_intra(walk, group, past, form)
                group.clear()
            if has_past:
                yield self._code_inter(walk, frame, fields, past, form)
            else:
                group.append(frame)
        if group:
            yield from self._code_intra(walk, group, past, form)

    @torch.inference_mode()
    def _code_intra(
        self, walk: Walk, frames: Sequence[planes.Components], past: _Past, form: _Format
    ) -> list[planes.Components]:
        """Code frames that stand on their own."""
        nets = self._levels("intra_luma"), self._levels("intra_chroma")
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

    @torch.inference_mode()
    def _code_inter(
        self,
        walk: Walk,
        frame: planes.Components,
        fields: tuple[motion.Field, motion.Field] | None,
        past: _Past,
        form: _Format,
    ) -> planes.Components:
        """Code a frame that is predicted from the past, and let the predictors learn from it."""
        moved = past.code_fields(walk.coder, fields)
        done: list[Int32] = []
        lights: References | None = None
        for part, known in enumerate(frame.parts):
            chroma = part == 1 and frame.chroma is not None
            references = past.references(part, moved, form.samples(chroma))
            seen = None
            if chroma and lights is not None:
                sources = done[0] * lattice.QUARTERS, lights.first, lights.second
                seen = tuple(planes.on_grid(source, known.shape[1:]) for source in sources)
            nets = self._levels("inter_chroma" if chroma else "inter_luma")
            done.append(code_planes(walk, nets, known, seen, references, form.samples(chroma)))
            lights = lights or references
        coded = planes.Components.of_parts(done, frame.chroma is not None)
        past.remember(coded)
        return coded

    def _levels(self, name: str) -> list[PhaseNet]:
        """The networks of one kind of frame and one part of it, the finest level's first."""
        return [net for net in self.nets[name].children() if isinstance(net, PhaseNet)]

    def _predictors(self, frame: planes.Components) -> list[list[LinearPredictor]]:
        """Fresh predictors for the planes of each of `Components.parts`."""
        luma, chroma = self._filters()
        return [
            [
                LinearPredictor(chroma if part == 1 and frame.chroma is not None else luma)
                for _ in group
            ]
            for part, group in enumerate(frame.parts)
        ]

    def _filters(self) -> tuple[Int32, Int32]:
        """The first filters of luma and of chroma, int32.

        Raises:
            ModelError: A weight is larger than filters may have.
        """
        luma, chroma = (
            filters.numpy().astype(np.int32) for filters in (self.luma_filters, self.chroma_filters)
        )
        if max(np.abs(luma).max(), np.abs(chroma).max()) > adaptive.WEIGHT_LIMIT:
            raise ModelError("a filter's weight is out of its range")
        return luma, chroma

    def macs_per_sample(self) -> dict[str, int]:
        """Return the networks' multiplications for a sample of each kind, each way."""
        costs = {}
        for name in self.nets:
            levels = self._levels(name)
            nets = [levels[min(level, LEVEL_NETS - 1)] for level in range(lattice.MAX_LEVELS)]
            costs[name] = round(
                sum(net.macs() / 4 ** (level + 1) for level, net in enumerate(nets))
            )
        return costs

    @torch.inference_mode()
    def known_answer(self) -> str:
        """Return a BLAKE2b-128 of the integers the frozen networks make of a fixed input.

        The input is `exact.noise`, so that the answer needs nothing but integers. Computed when a
        model is frozen and again before it is used.

        Raises:
            ModelError: The model's first filters are out of their range.
        """
        digest = hashlib.blake2b(digest_size=16)
        for filters in self._filters():
            digest.update(filters.astype("<i4").tobytes())
        noise, side = exact.noise(), 13
        for name in self.nets:
            for net in self._levels(name):
                state = None
                for phase in range(len(lattice.PHASES)):
                    channels = net.channels if phase == 0 else features.UPDATE_CHANNELS
                    values = [next(noise) % 255 - 127 for _ in range(channels * side * side)]
                    seen = torch.tensor(values, dtype=torch.float32)
                    state, out = net(phase, seen.reshape(1, channels, side, side), state)
                    digest.update(out.contiguous().numpy().astype("<i4").tobytes())
        return digest.hexdigest()


def _check_keys(table: dict[str, Any], *names: str) -> None:
    if set(table) != set(names):
        raise ValueError(f"a table holds {sorted(table)}, not {sorted(names)}")


def _build(kind: str, part: str, width: int, blocks: int) -> nn.ModuleList:
    for name, value, least, most in (("width", width, 1, 256), ("blocks", blocks, 0, 16)):
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"{name} is {value!r}, not in {least}..{most}")
    inter = kind == "inter"
    channels = features.first_channels(inter, part == "luma")
    anchors = features.INTER_ANCHORS if inter else features.INTRA_ANCHORS
    widths = (width, width, min(width, COARSE_WIDTH))
    return nn.ModuleList(PhaseNet(channels, anchors, size, blocks) for size in widths)


@contextmanager
def _threads(count: int) -> Iterator[Executor | None]:
    """Threads that work on a chunk; None where there is but one."""
    if count == 1:
        yield None
        return
    with ThreadPoolExecutor(count, "flowarchive-part", exact.use_one_thread) as executor:
        yield executor
