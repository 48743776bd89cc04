"""What the `chain` model brings to the training loop: couplings, on what `video` leaves of clips.

A walk through a clip with the packaged networks gives every phase's intervals and states. What is
trained is how a place in an interval, drawn anew each time, moves: the bits that moving it saves
are the loss, so that couplings that do nothing stand at zero.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowarchive import motion
from flowarchive.ans import Message
from flowarchive.codec import Recorder
from flowarchive.entropy import LogisticMixture
from flowarchive.errors import InputError
from flowarchive.flows.couplings import Couplings, Surroundings
from flowarchive.flows.layers import PARTS
from flowarchive.flows.twins import dequantize, gain_bits
from flowarchive.int8 import ZERO, Bytes
from flowarchive.models.chain import ChainModel
from flowarchive.train.config import PartConfig
from flowarchive.train.couplings import ChainTwin, FlowTwin
from flowarchive.train.data import Clip, load_clip
from flowarchive.train.twins import frozen_tensors

Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]

FRAMES = 6
"""Frames of a walk; the predictors have learned from the first of them."""

PIECES_PER_CLIP = 4
PRECISION = 24
"""Of mixtures at 8 bits."""


class Example(NamedTuple):
    """One plane of a phase.

    Attributes:
        start: Left ends of its samples' intervals, float64 [rows, columns] in [0, 1).
        width: Of the intervals, float64, alike.
        states: The phase's, bytes [rows, columns, C].
    """

    start: Float64
    width: Float64
    states: Bytes

    def cut(self, rows: slice, columns: slice) -> Example:
        """Return some rows and columns."""
        at = rows, columns
        return Example(self.start[at], self.width[at], self.states[at])


class Batch(NamedTuple):
    """Crops of one phase, ready for its flow.

    Attributes:
        name: Of the networks the flow goes with.
        phase: Which of their phases.
        start: Left ends of the intervals of squares' parts, float64 [B, 4, h, w] in [0, 1).
        width: Of the intervals, alike.
        noise: Places in them, alike.
        states: Of the parts side by side, float32 [B, 4 * C, h, w].
    """

    name: str
    phase: int
    start: Tensor
    width: Tensor
    noise: Tensor
    states: Tensor


class FlowPart:
    """The couplings of all phases.

    Args:
        config: What they are trained with.
        cache: Not needed.
    """

    name = "flow"
    prefixes: tuple[str, ...] = ("flows.",)

    def __init__(self, config: PartConfig, cache: Path) -> None:
        self.config = config

    def open(self, model: nn.Module, step: int) -> None:
        """Walk through the clips; see `loop.Part`.

        Raises:
            InputError: A kind of phase has no example.
        """
        assert isinstance(model, ChainTwin)
        settings = self.config.training
        self._random = np.random.default_rng(settings.seed + step)
        walk = _Walk(model)
        self._examples: dict[tuple[str, int], list[Example]] = {}
        for config in self.config.clips:
            for piece in _pieces(load_clip(config), 2 * settings.crop, self._random):
                for key, found in walk.examples(piece):
                    self._examples.setdefault(key, []).append(found)
        self._held_out = [
            (f"{config.path.stem} {key[0]} {key[1]}", key, found)
            for config in self.config.validation
            for key, found in walk.examples(_middle(load_clip(config), 2 * settings.crop))
        ]
        self._keys = {
            part: [key for key in walk.keys if key[0].endswith(part)] for part in ("luma", "chroma")
        }
        for key in walk.keys:
            if key not in self._examples:
                raise InputError(f"no clip has an example of {key[0]}")
        if step == 0:
            for key in walk.keys:
                batch = self._draw([key])
                flow = flow_of(model, batch)
                context = flow.context(batch.states)
                flow.start(place(batch, flow.tilts(context))[0], context)

    def draw(self) -> tuple[Batch, Batch]:
        """Draw a batch of luma and one of chroma."""
        luma, chroma = (self._draw(keys) for keys in self._keys.values())
        return luma, chroma

    def _draw(self, keys: list[tuple[str, int]]) -> Batch:
        key = keys[self._random.integers(len(keys))]
        examples, side = self._examples[key], self.config.training.crop // 2
        # Crops of a batch have one size, which the smallest of its examples allows.
        chosen = [examples[i] for i in self._random.integers(len(examples), size=self._count)]
        side = min(side, *(min(example.start.shape) for example in chosen)) // 2 * 2
        return lay_out(key, [self._crop(example, side) for example in chosen], self._random)

    @property
    def _count(self) -> int:
        return self.config.training.batch

    def _crop(self, example: Example, side: int) -> Example:
        """A crop at random, flipped at random."""
        rows, columns = example.start.shape
        # Squares stay what they are.
        y, x = (2 * self._random.integers((size - side) // 2 + 1) for size in (rows, columns))
        flips = [slice(None, None, -1 if flip else 1) for flip in self._random.random(2) < 0.5]
        return example.cut(slice(y, y + side), slice(x, x + side)).cut(*flips)

    def bits(self, model: nn.Module, batch: tuple[Batch, Batch], fake: bool) -> dict[str, Tensor]:
        """Return what the couplings cost a sample beyond the mixtures alone; less than 0 pays."""
        return {
            part: -gain(flow_of(model, crops), crops).mean()
            for part, crops in zip(("luma", "chroma"), batch, strict=True)
        }

    @torch.no_grad()
    def validate(self, model: nn.Module, fake: bool) -> dict[str, float]:
        """Return the same of held-out clips, by their phases."""
        random = np.random.default_rng(0)
        rates: dict[str, list[float]] = {}
        for name, key, example in self._held_out:
            rows, columns = (side // 2 * 2 for side in example.start.shape)
            whole = example.cut(slice(rows), slice(columns))
            batch = lay_out(key, [whole], random)
            rates.setdefault(name, []).append(-float(gain(flow_of(model, batch), batch).mean()))
        return {name: sum(found) / len(found) for name, found in rates.items()}


class _Collector(Recorder):
    """An end of a walk that keeps what the walk knows of every phase with a flow."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Couplings, Example]] = []

    def code(self, model: object, symbols: Int32, *parameters: object) -> Int32:
        """Keep nothing."""
        return symbols

    def field(
        self,
        field: motion.Field | None,
        luma_shape: tuple[int, int],
        hints: motion.Field,
        model: motion.VectorModel,
    ) -> motion.Field:
        """Let the vectors' model learn; keep nothing."""
        done = super().field(field, luma_shape, hints, model)
        self._kept.clear()
        return done

    def phase(
        self,
        model: LogisticMixture,
        symbols: Int32,
        parameters: tuple[Int32, Int32, Int32],
        around: Surroundings | None,
    ) -> Int32:
        """Keep a phase's planes."""
        if around is not None:
            shape = around.states.shape[:3]
            start, freq = (
                part.reshape(shape) / float(model.total)
                for part in model.interval(symbols, *parameters)
            )
            for plane in zip(start, freq, around.states.copy(), strict=True):
                self.found.append((around.couplings, Example(*plane)))
        return symbols


class _Walk(ChainModel):
    """A model of a twin's networks, through which clips are walked.

    Attributes:
        keys: Name and phase of all couplings.
    """

    def __init__(self, twin: ChainTwin) -> None:
        super().__init__(twin.config, frozen_tensors(copy.deepcopy(twin)))
        self._names = {
            id(couplings): (name, phase)
            for name, group in self.couplings.items()
            for phase, couplings in enumerate(group)
        }
        self.keys = list(self._names.values())

    def examples(self, clip: Clip) -> Iterator[tuple[tuple[str, int], Example]]:
        """Yield the phases of a clip's frames, and of its first frame alone."""
        frames = [clip.components(t) for t in range(len(clip.luma))]
        for part in (frames, frames[:1]):
            self._collector = _Collector()
            self.push_frames(Message(1), part, clip.letters, 8)
            for couplings, example in self._collector.found:
                yield self._names[id(couplings)], example

    def recorder(self) -> Recorder:
        """Return the collector."""
        return self._collector


def _pieces(clip: Clip, side: int, random: np.random.Generator) -> Iterator[Clip]:
    """Yield some frames of a clip, cut out at random places."""
    for _ in range(PIECES_PER_CLIP):
        t = int(random.integers(max(len(clip.luma) - FRAMES, 0) + 1))
        yield _cut(clip.frames(t, t + FRAMES), side, random.random(2))


def _middle(clip: Clip, side: int) -> Clip:
    return _cut(clip.frames(0, FRAMES), side, np.array([0.5, 0.5]))


def _cut(clip: Clip, side: int, place: Float64) -> Clip:
    """Cut a square out of luma, and what lies under it out of chroma."""
    size = np.array(clip.luma.shape[1:])
    fold = np.ones(2, dtype=int)
    if clip.chroma is not None:
        fold = np.maximum(size // np.array(clip.chroma.shape[2:]), 1)
    sides = np.minimum(side, size) // (2 * fold) * (2 * fold)
    y, x = ((size - sides) * place).astype(int) // fold * fold
    luma = clip.luma[:, y : y + sides[0], x : x + sides[1]]
    chroma = None
    if clip.chroma is not None:
        (y, x), (h, w) = (y // fold[0], x // fold[1]), sides // fold
        chroma = clip.chroma[..., y : y + h, x : x + w]
    return Clip(luma, chroma, clip.weight, clip.rgb)


def lay_out(
    key: tuple[str, int], examples: Sequence[Example], random: np.random.Generator
) -> Batch:
    """Lay out the parts of squares, with a place in every interval."""
    start, width = (np.stack([_parts(example[i]) for example in examples]) for i in range(2))
    states = []
    for example in examples:
        known = _parts(example.states.astype(np.float32) - ZERO)
        states.append(known.transpose(0, 3, 1, 2).reshape(-1, *known.shape[1:3]))
    arrays = start, width, random.random(start.shape), np.stack(states)
    return Batch(*key, *map(torch.from_numpy, arrays))


def _parts(grid: NDArray[Any]) -> NDArray[Any]:
    """Lay out [2 * h, 2 * w, ...] as the parts of squares, [4, h, w, ...]."""
    return np.stack([grid[row::2, column::2] for row, column in PARTS])


def flow_of(model: nn.Module, batch: Batch) -> FlowTwin:
    """Return the flow that a batch goes with."""
    found = model.get_submodule(f"flows.{batch.name}.{batch.phase}")
    assert isinstance(found, FlowTwin)
    return found


def gain(flow: FlowTwin, batch: Batch) -> Tensor:
    """Return the bits that a flow saves on each sample, [B, 4, h, w]."""
    context = flow.context(batch.states)
    y, tilted = place(batch, flow.tilts(context))
    return gain_bits(y, *flow(y, context)) - tilted / math.log(2)


def place(batch: Batch, tilts: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return where samples are on the grid, and what their leaning costs, in nats."""
    whole = 1 << PRECISION
    return dequantize(batch.start * whole, batch.width * whole, PRECISION, batch.noise, tilts)
