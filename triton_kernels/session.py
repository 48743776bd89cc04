"""Chunks of the `video` model on a device, from their planes to their words, or the other way.

A session owns what a walk through some chunks needs and keeps it on the device: planes, states,
mixtures, filters, corrections, and intervals or messages. Whoever conducts the walk says which
frames come next; the CPU codes vectors and kinds of frames. What travels is counted:

    packing     up      planes; light, where it changes; what the CPU has coded
                down    motion, once for the chunks; heads and code lengths; words
    unpacking   up      words; for each step heads, motion and light
                down    for each step heads; planes

A *step* codes frames of some chunks side by side, the same number of the same kind of each: chunks
in step share every launch, whatever their number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triton_kernels import (
    correction,
    features,
    filters,
    heads,
    lattice,
    light,
    linear,
    mixture,
    motion,
    plan,
    search,
)
from triton_kernels.flow import Flows
from triton_kernels.link import Link, lay_out
from triton_kernels.network import Network
from triton_kernels.rans import Messages
from triton_kernels.stack import Batch, Entry, Popper, Pusher, Steering

LEVEL_NETS = 3
SCALE_ONE = 40
"""Scale index of a width of one sample step; 8 are an octave."""


class Part(NamedTuple):
    """Planes that are coded together.

    Attributes:
        planes: Of a frame.
        height: Their rows.
        width: Their columns.
        low: The least symbol.
        high: The greatest.
        precision: Of the entropy model.
        chroma: They see luma.
    """

    planes: int
    height: int
    width: int
    low: int
    high: int
    precision: int
    chroma: bool

    @property
    def support(self) -> mixture.Support:
        """Of its symbols."""
        return mixture.Support(self.low, self.high, self.precision)


Lights = Sequence[tuple[int, int, NDArray[np.int32]]]
"""(chunk, frame, its light): a gain and an offset for each reference and plane, int32 [1 or 2,
planes, 2]; see `light.adjust`."""


class Frozen(NamedTuple):
    """Tables of the format, on a device.

    Attributes:
        probabilities: Of the entropy model.
        seen: What channels are made with.
        taps: From `linear.taps`.
        weights: int32 [16], see `heads`.
        costs: int32 [256], see `correction`.
        moves: int32 [16, 8], motion's filters.
        lengths: int64 [1025], see `lengths`.
        prices: Of the search.
        constants: float64 [3], see `filters`.
        cuts: int64 [3], see `plan.is_cut`.
    """

    probabilities: mixture.Tables
    seen: features.Tables
    taps: Tensor
    weights: Tensor
    costs: Tensor
    moves: Tensor
    lengths: Tensor
    prices: search.Prices
    constants: Tensor
    cuts: Tensor


class Model(NamedTuple):
    """A frozen model on a device.

    Attributes:
        nets: "intra_luma", "intra_chroma", "inter_luma", "inter_chroma": networks by level.
        filters: Where filters begin, int32 [GROUPS, PHASES, CLASSES, taps], of luma and chroma.
        flows: Of its phases.
    """

    nets: Mapping[str, Sequence[Network]]
    filters: tuple[Tensor, Tensor]
    flows: Flows | None = None


class _Jobs(NamedTuple):
    """What a step works on: the chunks, ascending, and the first frame of each."""

    chunks: tuple[int, ...]
    frames: tuple[int, ...]
    which: Tensor

    def pairs(self) -> list[tuple[int, int]]:
        """(chunk, frame) of each."""
        return list(zip(self.chunks, self.frames, strict=True))


class Session:
    """Some chunks on a device.

    Args:
        link: To the device.
        frozen: Tables.
        model: Networks and filters.
        parts: Of a frame; luma is the first.
        chunks: How many.
        frames: Of each chunk.
        bits: Depth of the samples, 8..16.
    """

    def __init__(
        self,
        link: Link,
        frozen: Frozen,
        model: Model,
        parts: Sequence[Part],
        chunks: int,
        frames: int,
        bits: int,
    ) -> None:
        self._link, self._frozen, self._model = link, frozen, model
        self._parts, self._chunks, self._frames, self._bits = parts, chunks, frames, bits
        self._numbers = torch.arange(chunks, dtype=torch.int32, device=link.device)
        self._filters = [model.filters[part.chroma] for part in parts]
        self._learned = [
            filters.begin(defaults, chunks, part.planes)
            for part, defaults in zip(parts, self._filters, strict=True)
        ]
        self._corrections = [correction.begin(chunks, link.device) for _ in parts]
        self._end: Pusher | Popper
        luma = parts[0]
        self._luma_shape = luma.height, luma.width
        rows, columns = (-(-side // motion.BLOCK) for side in self._luma_shape)
        shape = chunks, frames, 2, rows, columns, 2
        self._fields = torch.zeros(shape, dtype=torch.int16, device=link.device)
        count = sum(part.planes for part in parts)
        self._lights = light.none(chunks, frames, 2, count, device=link.device)
        self._lit: set[tuple[int, int]] = set()

    # Packing

    def give(self, samples: NDArray[Any], lights: Lights) -> None:
        """Send planes and light.

        Args:
            samples: int16 or int32 [n], of each part all chunks, all frames, all planes.
            lights: Of the frames that have light.
        """
        planes, *found = self._link.send(samples, *(one for _, _, one in lights))
        self._place_planes(planes)
        self._light(lights, found)
        self._end = Pusher(self._frozen.probabilities, self._frozen.lengths, self._chunks)

    def plan(self) -> tuple[NDArray[np.int16], NDArray[np.int8]]:
        """Search all motion, and find the cuts.

        Returns:
            Fields, int16 [chunks, frames, 2, rows, columns, 2], against the last frame and the
            one before, and which frames are cuts, int8 [chunks, frames]. The first frame of a
            chunk is one, and has no field; the second, and one that follows a cut, has no second.
        """
        frozen, lit = self._frozen, {frame for _, frame in self._lit}
        planner = plan.Planner(
            self._planes[0][:, :, 0], self._bits, self._lights[:, :, :, 0], lit,
            frozen.moves[::4].contiguous(), frozen.prices, frozen.cuts, self._fields,
        )  # fmt: skip
        for t in range(1, self._frames):
            planner.search(t)
            jobs = self._jobs(range(self._chunks), [t] * self._chunks)
            moved = self._compensate(0, jobs, back=1, reference=0)
            planner.find_cuts(t, lattice.cut_sums(self._planes[0], self._places(0, jobs), moved))
        fields, found = self._link.fetch(self._fields, planner.cuts)
        return fields, found

    def keep(
        self, chunk: int, frame: int, start: NDArray[Any], freq: NDArray[Any], precision: int
    ) -> None:
        """Keep intervals that the CPU has found, uint32 [n] each, as what is popped next."""
        assert isinstance(self._end, Pusher)
        left, width = (torch.from_numpy(array.astype(np.int32)) for array in (start, freq))
        self._end.keep(chunk, frame, left, width, precision)

    def push(
        self,
        head: NDArray[np.uint64],
        size: NDArray[np.int32],
        words: Sequence[NDArray[Any]],
        least_gain: float,
    ) -> tuple[NDArray[np.uint64], list[NDArray[np.uint32]], list[Entry]]:
        """Push all that was kept; see `stack.Pusher.push`."""
        assert isinstance(self._end, Pusher)
        return self._end.push(self._link, head, size, words, least_gain)

    # Unpacking

    def take(self, words: Sequence[NDArray[np.uint32]], lanes: int) -> None:
        """Send the words of messages, and make room for the planes."""
        (sent,) = self._link.send(lay_out(words))
        head = torch.zeros((self._chunks, lanes), dtype=torch.int64, device=self._device)
        size = torch.zeros(self._chunks, dtype=torch.int32, device=self._device)
        kind = torch.int16 if self._bits < 15 else torch.int32
        count = (
            self._chunks * self._frames * sum(p.planes * p.height * p.width for p in self._parts)
        )
        self._place_planes(torch.zeros(count, dtype=kind, device=self._device))
        self._end = Popper(Messages(head, sent, size), self._frozen.probabilities)

    def set_messages(
        self,
        head: NDArray[np.uint64],
        size: NDArray[np.int32],
        fields: Sequence[tuple[int, int, NDArray[np.int16]]],
        lights: Lights,
    ) -> None:
        """Send heads and sizes as the CPU has left them, and the motion and light it has popped.

        Args:
            head: [chunks, lanes].
            size: [chunks].
            fields: (chunk, frame, int16 [1 or 2, rows, columns, 2]).
            lights: Of the frames that have light.
        """
        assert isinstance(self._end, Popper)
        new_head, new_size, *found = self._link.send(
            head, size, *(f for _, _, f in fields), *(f for _, _, f in lights)
        )
        self._light(lights, found[len(fields) :])
        self._end.messages = Messages(new_head, self._end.messages.tail, new_size)
        self._end.lowest = new_size.clone()
        self._end.largest = int(size.max())
        for (chunk, frame, _), field in zip(fields, found[: len(fields)], strict=True):
            self._fields[chunk, frame, : len(field)] = field

    def messages(
        self,
    ) -> tuple[NDArray[np.uint64], NDArray[np.int32], list[tuple[int, NDArray[np.uint32]]]]:
        """Fetch heads and sizes, and words that flows have pushed.

        Returns:
            Heads, [chunks, lanes]; sizes, [chunks], -1 where words did not suffice; and of each
            chunk where words begin that may be others, and these.
        """
        assert isinstance(self._end, Popper)
        messages = self._end.messages
        head, size, lowest = self._link.fetch(messages.head, messages.size, self._end.lowest)
        words = [(int(n), np.empty(0, dtype=np.uint32)) for n in size]
        begin, end = max(int(lowest.min()), 0), int(size.max())
        if self._model.flows is not None and begin < end:
            (tails,) = self._link.fetch(messages.tail[:, begin:end])
            words = [
                (begin, tail[: max(n - begin, 0)].view(np.uint32))
                for tail, n in zip(tails, size, strict=True)
            ]
        return head.view(np.uint64), size, words

    def planes(self) -> list[NDArray[Any]]:
        """Fetch of each part its planes [chunks, frames, planes, H, W]."""
        return self._link.fetch(*self._planes)

    # Steps

    def code_intra(
        self, chunks: Sequence[int], frames: Sequence[int], count: int, shift: int
    ) -> None:
        """Code frames that stand on their own.

        Args:
            chunks: Ascending.
            frames: The first one of each chunk.
            count: How many go together.
            shift: Low bits that networks do not see.
        """
        self._make_room(count)
        jobs = self._jobs(chunks, frames)
        alone = self._numbers[: len(chunks)]
        for index, part in enumerate(self._parts):
            around = features.Around()
            if part.chroma:
                shape = part.height, part.width
                luma = lattice.on_grid(self._planes[0], self._places(0, jobs, count), shape, 4)
                around = features.Around(light=luma)
            scales = correction.begin(len(chunks), self._device)
            place = self._places(index, jobs, count)
            self._code_top(jobs, index, place, None, shift)
            for level in reversed(range(lattice.level_count(part.height, part.width))):
                self._code_level(jobs, index, place, around, level, shift, scales, alone)

    def code_inter(
        self, chunks: Sequence[int], frames: Sequence[int], both: bool, shift: int
    ) -> None:
        """Code frames that are predicted from the past, and learn from them.

        Args:
            chunks: Ascending.
            frames: The frame of each chunk.
            both: Each has a second reference.
            shift: Low bits that networks do not see.
        """
        self._make_room(1)
        jobs = self._jobs(chunks, frames)
        lumas: list[Tensor] = []
        for index, part in enumerate(self._parts):
            first = self._compensate(index, jobs, back=1, reference=0)
            second = self._compensate(index, jobs, back=2, reference=1) if both else first
            around = features.Around(first, second)
            if part.chroma:
                shape = part.height, part.width
                seen = [lattice.on_grid(self._planes[0], self._places(0, jobs), shape, 4)]
                own = self._numbers[: len(chunks)]
                seen += [lattice.on_grid(luma, own, shape, 1) for luma in lumas]
                around = features.Around(first, second, *seen)
            lumas = lumas or [first, second]
            place, learned = self._places(index, jobs), self._learned[index]
            self._code_top(jobs, index, place, first, shift)
            for level in reversed(range(lattice.level_count(part.height, part.width))):
                self._code_level(
                    jobs, index, place, around, level, shift, self._corrections[index], jobs.which
                )
                linear.learn(
                    self._planes[index], place, around, jobs.which, learned, self._frozen.taps,
                    level, shift,
                )  # fmt: skip
            steps = self._filters[index].to(torch.float64) * 2.0**-14
            filters.end_frame(learned, steps, self._frozen.constants, jobs.which)
            correction.end_frame(self._corrections[index], jobs.which)

    def _make_room(self, frames: int) -> None:
        """Make room on the tails for what flows give back in a step, whatever the bits say.

        A phase's flow may leave a message longer than it was: see `flow.Flow`, which knows how many
        words a sample that are at most. Heads hold less than a word each.
        """
        flows = self._model.flows
        if flows is not None and isinstance(self._end, Popper):
            samples = frames * sum(part.planes * part.height * part.width for part in self._parts)
            lanes = self._end.messages.head.shape[1]
            self._end.reserve(flows.words * samples + lanes)

    def _code_top(
        self, jobs: _Jobs, index: int, place: Tensor, first: Tensor | None, shift: int
    ) -> None:
        """Code what is left above the last level."""
        part = self._parts[index]
        step = 1 << lattice.level_count(part.height, part.width)
        planes = self._planes[index].view(-1, part.height, part.width)
        top = planes[place.long(), ::step, ::step]
        if first is None:
            mean = torch.zeros(top.numel(), dtype=torch.int32, device=self._device)
            scale = SCALE_ONE + 8 * (5 + self._bits - 8)
        else:
            mean, scale = first[:, ::step, ::step].reshape(-1) * 64, SCALE_ONE + 8 * (1 + shift)
        alone = torch.full_like(mean, scale)[:, None], torch.full_like(mean, 1 << 12)[:, None]
        mixtures = mean[:, None].contiguous(), *alone
        symbols = self._end.code(
            Batch(jobs.pairs(), lambda: top.reshape(-1).to(torch.int32), mixtures, part.support)
        )
        if isinstance(self._end, Popper):
            planes[place.long(), ::step, ::step] = symbols.view(top.shape).to(planes.dtype)

    def _code_level(
        self,
        jobs: _Jobs,
        index: int,
        place: Tensor,
        around: features.Around,
        level: int,
        shift: int,
        scales: correction.Corrections,
        which: Tensor,
    ) -> None:
        """Code the three phases of a level; `which` are the chunks' rows in `scales`."""
        part, planes, tables = self._parts[index], self._planes[index], self._frozen.seen
        inter = around.first is not None
        kind = f"{'inter' if inter else 'intra'}_{'chroma' if part.chroma else 'luma'}"
        net = self._model.nets[kind][min(level, LEVEL_NETS - 1)]
        grid = lattice.grid_shape(part.height, part.width, level)
        state, last = None, None
        for phase in range(3):
            channels = features.channels(inter, part.chroma, phase)
            both = torch.empty(
                (len(place), *grid, net.width + channels), dtype=torch.int8, device=self._device
            )
            seen = both[..., net.width :]
            if inter:
                limits = part.low * 256, part.high * 256
                foretold = linear.predict(
                    planes, place, around, jobs.which, self._learned[index], self._frozen.taps,
                    level, phase, shift, limits,
                )  # fmt: skip
                last = features.inter(
                    planes, place, around, foretold, last, level, phase, shift, tables, seen
                )
            else:
                last = features.intra(
                    planes, place, around, last, level, phase, shift, tables, seen
                )
            state, head = net.advance(phase, both, state)
            slot = (min(level, LEVEL_NETS - 1), phase) if inter else (0, 0)
            shape = lattice.phase_shape(part.height, part.width, level, phase)
            made = heads.mixtures(
                head, last, shape, scales.offsets, which, slot, shift, self._frozen.weights
            )
            pairs, read = jobs.pairs(), partial(lattice.take, planes, place, level, phase)
            mixtures, flows = (made.mean, made.corrected, made.weight), self._model.flows
            batch = Batch(pairs, read, mixtures, part.support)
            if flows is None or level >= flows.levels:
                symbols = self._end.code(batch)
            else:
                steering = Steering(
                    flows.phases[kind][phase], flows.grids[part.precision],
                    state[:, : shape[0], : shape[1]],
                )  # fmt: skip
                symbols = self._end.phase(batch, steering)
            if isinstance(self._end, Popper):
                lattice.put(planes, place, level, phase, symbols)
            correction.learn(
                scales, which, slot, symbols, made.mean, made.scale, made.weight,
                self._frozen.probabilities, self._frozen.costs,
            )  # fmt: skip
            if not inter:
                correction.end_frame(scales, which)

    @property
    def _device(self) -> torch.device:
        return self._link.device

    def _jobs(self, chunks: Sequence[int], frames: Sequence[int]) -> _Jobs:
        """Name chunks on the device without sending anything."""
        which = self._numbers
        if len(chunks) < self._chunks:
            which = torch.cat([self._numbers[chunk : chunk + 1] for chunk in chunks])
        return _Jobs(tuple(chunks), tuple(frames), which)

    def _places(self, index: int, jobs: _Jobs, count: int = 1, back: int = 0) -> Tensor:
        """Where the planes of `count` frames of each job lie in their storage, int32 [N]."""
        each = count * self._parts[index].planes
        inner = torch.arange(each, dtype=torch.int32, device=self._device)
        return self._rows(jobs, self._parts[index].planes, back, inner)

    def _rows(self, jobs: _Jobs, size: int, back: int, inner: Tensor) -> Tensor:
        """Rows of a storage [chunks, frames, size] that begin some frames back of each job's."""
        if len(set(jobs.frames)) == 1:
            begin = (jobs.which * self._frames + (jobs.frames[0] - back)) * size
            return (begin[:, None] + inner).reshape(-1)
        begins = (
            jobs.which[n : n + 1] * (self._frames * size) + (frame - back) * size + inner
            for n, frame in enumerate(jobs.frames)
        )
        return torch.cat(list(begins))

    def _compensate(self, index: int, jobs: _Jobs, back: int, reference: int) -> Tensor:
        """Predict a part of each job's frame from the frame some frames back."""
        part = self._parts[index]
        chosen = self._rows(jobs, 2, 0, self._numbers[:1] + reference)
        moved = motion.compensate(
            self._planes[index], self._places(index, jobs, back=back), self._fields, chosen,
            self._frozen.moves, self._luma_shape, part.low, part.high,
        )  # fmt: skip
        if self._lit.isdisjoint(jobs.pairs()):
            return moved
        begin = sum(part.planes for part in self._parts[:index])
        lights = self._lights.flatten(0, 2)[chosen.long(), begin : begin + part.planes]
        return light.adjust(moved, lights.flatten(0, 1), part.low, part.high)

    def _light(self, lights: Lights, sent: Sequence[Tensor]) -> None:
        """Keep the light of frames."""
        for (chunk, frame, _), found in zip(lights, sent, strict=True):
            self._lights[chunk, frame, : len(found)] = found
            self._lit.add((chunk, frame))

    def _place_planes(self, samples: Tensor) -> None:
        self._planes, begin = [], 0
        for part in self._parts:
            shape = self._chunks, self._frames, part.planes, part.height, part.width
            count = self._chunks * self._frames * part.planes * part.height * part.width
            self._planes.append(samples[begin : begin + count].view(shape))
            begin += count
