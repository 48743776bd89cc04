"""What the `video` model brings to the training loop: intra frames and inter frames, two parts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowarchive import exact, lattice, motion, planes
from flowarchive.errors import InputError
from flowarchive.features import ANCHOR_ONE
from flowarchive.lattice import QUARTERS
from flowarchive.models.phasewise import INTER_TOP, INTRA_TOP, Range
from flowarchive.train.config import CROP_MULTIPLE, PartConfig
from flowarchive.train.crops import Crops
from flowarchive.train.data import Clip, load_clip
from flowarchive.train.motion import (
    FIRST,
    FRAME,
    LINEAR,
    LINEAR_STEP,
    SECOND,
    Cache,
    Examples,
    Filters,
    compensated,
    make_predictors,
    teach,
)
from flowarchive.train.phases import Known, Step, bits, steps
from flowarchive.train.twins import VideoTwin

Int16 = NDArray[np.int16]
Int32 = NDArray[np.int32]

LUMA_LEVELS, CHROMA_LEVELS = 4, 3
"""Of crops; what lies above them has hardly any samples."""

CLIP_SAMPLES = 2e6
"""Luma samples from which on a longer clip is drawn as often as any other."""


class Batch(NamedTuple):
    """Crops of luma, and others of chroma, ready for the networks."""

    luma: list[Step]
    chroma: list[Step]


class _Part:
    """What both parts share.

    Args:
        config: What the part is trained with.
        cache: Folder for what is computed once.
    """

    name: str

    def __init__(self, config: PartConfig, cache: Path) -> None:
        self.config, self.cache = config, cache
        self.held_out: list[tuple[str, list[tuple[Known, Known | None]]]] = []

    def bits(self, model: nn.Module, batch: Batch, fake: bool) -> dict[str, Tensor]:
        """Return mean bits per sample of a batch's luma and chroma."""
        autocast = self.config.training.autocast and not fake
        return {
            part: bits(self._nets(model, part), group, autocast) / _samples(group)
            for part, group in batch._asdict().items()
        }

    @torch.no_grad()
    def validate(self, model: nn.Module, fake: bool) -> dict[str, float]:
        """Return bits per sample of whole held-out frames, by clip and plane."""
        autocast = self.config.training.autocast and not fake
        rates = {}
        for name, frames in self.held_out:
            for part, group in zip(("luma", "chroma"), zip(*frames, strict=True), strict=True):
                known = [frame for frame in group if frame is not None]
                if known:
                    nets = self._nets(model, part)
                    total = sum(bits(nets, steps(one), autocast).item() for one in known)
                    count = sum(one.planes.size for one in known)
                    rates[f"{name} {part}"] = total / count
        return rates

    def _nets(self, model: nn.Module, part: str) -> nn.ModuleList:
        nets = model.get_submodule(f"nets.{self.name}_{part}")
        assert isinstance(nets, nn.ModuleList)
        return nets


class IntraPart(_Part):
    """Frames that stand on their own."""

    name = "intra"
    prefixes: tuple[str, ...] = ("nets.intra_",)

    def open(self, model: nn.Module, step: int) -> None:
        """Load the clips; see `loop.Part`."""
        settings = self.config.training
        clips = [load_clip(clip) for clip in self.config.clips]
        self._crops = Crops(clips, settings.crop, settings.seed + step)
        for config in self.config.validation:
            clip = load_clip(config)
            frames = [still(clip, t) for t in range(len(clip.luma))]
            self.held_out.append((config.path.stem, frames))

    def draw(self) -> Batch:
        """Draw a batch."""
        luma, chroma, context = self._crops.draw_stills(self.config.training.batch)
        return Batch(
            steps(Known(luma), LUMA_LEVELS),
            steps(Known(chroma, luma=(context,)), CHROMA_LEVELS),
        )


class InterPart(_Part):
    """Frames that are predicted from others."""

    name = "inter"
    prefixes: tuple[str, ...] = ("nets.inter_", "luma_filters", "chroma_filters")

    def open(self, model: nn.Module, step: int) -> None:
        """Fit the first filters and compensate the clips, or find both in the cache."""
        settings = self.config.training
        cache = Cache(self.cache, settings.seed)
        filters = cache.filters(self.config.clips)
        for name, values in filters._asdict().items():
            model.get_buffer(f"{name}_filters").copy_(torch.from_numpy(values))
        clips = [cache.examples(clip, filters, vary=True) for clip in self.config.clips]
        self._windows = Windows(clips, settings.crop, settings.seed + step)
        for config in self.config.validation:
            found = cache.examples(config, filters, vary=False)
            frames = [moving(found, t) for t in range(len(found.luma))]
            self.held_out.append((config.path.stem, frames))

    def draw(self) -> Batch:
        """Draw a batch."""
        luma, chroma = self._windows.draw(self.config.training.batch)
        return Batch(steps(luma, LUMA_LEVELS), steps(chroma, CHROMA_LEVELS))


class Windows:
    """Draws crops of examples, in their place on the lattice.

    Args:
        clips: Where from.
        size: Side of a crop; chroma crops have half of it. Clips that are smaller are left out.
        seed: Of the random numbers.

    Raises:
        InputError: No clip is large enough, or none has chroma.
    """

    def __init__(self, clips: Sequence[Examples], size: int, seed: int) -> None:
        self.size, self.random = size, np.random.default_rng(seed)
        self.luma = [clip for clip in clips if min(clip.luma.shape[2:]) >= size]
        self.chroma = [
            clip
            for clip in self.luma
            if clip.chroma is not None and min(clip.chroma.shape[3:]) >= size // 2
        ]
        if not self.chroma:
            raise InputError(f"no clip is large enough for crops of {size}, or none has chroma")

    def draw(self, count: int) -> tuple[Known, Known]:
        """Draw luma crops, and as many chroma crops from other places."""
        half = self.size // 2
        lumas = np.stack([self._luma(clip) for clip in self._pick(self.luma, count)])
        pairs = [self._chroma(clip, half) for clip in self._pick(self.chroma, count)]
        chroma = np.concatenate([pair[0] for pair in pairs])
        context = np.stack([pair[1] for pair in pairs], 1)
        return _known(lumas, None), _known(chroma, context)

    def _luma(self, clip: Examples) -> Int16:
        y, x = self._place(clip.luma.shape[2:], self.size)
        t = int(self.random.integers(len(clip.luma)))
        return clip.luma[t, :, y : y + self.size, x : x + self.size]

    def _chroma(self, clip: Examples, half: int) -> tuple[Int16, Int32]:
        """A crop [2, 4, half, half], and luma and its references on its grid."""
        assert clip.chroma is not None
        y, x = self._place(clip.chroma.shape[3:], half)
        t = int(self.random.integers(len(clip.chroma)))
        fold_h = -(-clip.luma.shape[2] // clip.chroma.shape[3])
        fold_w = -(-clip.luma.shape[3] // clip.chroma.shape[4])
        rows = slice(y * fold_h, (y + half) * fold_h)
        columns = slice(x * fold_w, (x + half) * fold_w)
        luma = clip.luma[t, :LINEAR, rows, columns].astype(np.int32)
        context = planes.on_grid(luma, (half, half))
        return clip.chroma[t, :, :, y : y + half, x : x + half], context

    def _pick(self, clips: list[Examples], count: int) -> Iterator[Examples]:
        """Draw longer and larger clips more often, to a point."""
        samples = np.array([clip.luma[:, 0].size for clip in clips])
        weights = np.array([clip.weight for clip in clips])
        weights *= np.minimum(samples / CLIP_SAMPLES, 1.5) + 0.5
        chosen = self.random.choice(len(clips), count, p=weights / weights.sum())
        return (clips[i] for i in chosen)

    def _place(self, shape: tuple[int, ...], size: int) -> tuple[int, int]:
        rows, columns = ((side - size) // CROP_MULTIPLE + 1 for side in shape)
        y, x = int(self.random.integers(rows)), int(self.random.integers(columns))
        return y * CROP_MULTIPLE, x * CROP_MULTIPLE


def still(clip: Clip, t: int) -> tuple[Known, Known | None]:
    """Return luma and chroma of a frame as an intra frame sees them."""
    frame = clip.components(t)
    luma = frame.luma[None] * QUARTERS
    if frame.chroma is None:
        return Known(luma), None
    shape = (frame.chroma.shape[1], frame.chroma.shape[2])
    context = (planes.on_grid(luma, shape),)
    return Known(luma), Known(frame.chroma * QUARTERS, luma=context)


def moving(examples: Examples, t: int) -> tuple[Known, Known | None]:
    """Return luma and chroma of an example as an inter frame sees them."""
    luma = examples.luma[t]
    if examples.chroma is None:
        return _known(luma[None], None), None
    chroma = examples.chroma[t]
    shape = (chroma.shape[2], chroma.shape[3])
    context = planes.on_grid(luma[:LINEAR].astype(np.int32), shape)
    return _known(luma[None], None), _known(chroma, context[:, None])


@torch.no_grad()
def chunk_bits(model: VideoTwin, clip: Clip) -> tuple[tuple[float, float], float]:
    """Measure the training twins on a clip that is coded as one chunk.

    Args:
        model: Of training twins.
        clip: The chunk's frames.

    Returns:
        Bits by the float networks and by the fake-quantized ones, and the bits which do not
        depend on networks: kinds, motion, and what is left above the last level.
    """
    filters = Filters(*(part.numpy() for part in (model.luma_filters, model.chroma_filters)))
    learners = make_predictors(filters)
    vectors = motion.VectorModel(), motion.VectorModel()
    shape = (clip.luma.shape[1], clip.luma.shape[2])
    field = motion.zero_field(shape)
    by_networks, beside = [0.0, 0.0], math.log2(16) + len(clip.luma) - 1
    for t, moved in enumerate(compensated(clip)):
        if moved is None:
            kind, field = "intra", motion.zero_field(shape)
            known = still(clip, t)
        else:
            kind, hints, field = "inter", field, moved.fields[0]
            for found, learned in zip(moved.fields, vectors, strict=False):
                beside += motion.encode_field(found, hints, learned).bits
                hints = motion.doubled(field)
            linear = teach(moved.parts, learners, clip, predict=True)
            known = _of_parts(moved.parts, linear)
        for part, one in zip(("luma", "chroma"), known, strict=True):
            if one is not None:
                beside += _top_bits(one, clip.limits(part == "chroma"))
                nets = model.get_submodule(f"nets.{kind}_{part}")
                assert isinstance(nets, nn.ModuleList)
                made = steps(one)
                for fake in (False, True):
                    exact.set_fake(nets, fake)
                    by_networks[fake] += bits(nets, made).item()
    return (by_networks[0], by_networks[1]), beside


def _top_bits(known: Known, limits: tuple[int, int]) -> float:
    """Bits of what is left above the last level, by the model's own rule."""
    step = 1 << lattice.level_count((known.planes.shape[1], known.planes.shape[2]))
    symbols = known.planes[:, ::step, ::step].reshape(-1) // QUARTERS
    mean, scale = np.zeros_like(symbols), INTRA_TOP
    if known.references is not None:
        mean, scale = known.references[0][:, ::step, ::step].reshape(-1), INTER_TOP
    mixture = Range(*limits, planes.MIN_BITS, 0).coder
    return mixture.bits(symbols, mean * (ANCHOR_ONE // QUARTERS), np.full_like(symbols, scale))


def _of_parts(parts: list[Int32], linear: list[Int32]) -> tuple[Known, Known | None]:
    """Bring what `compensated` and `teach` return to what `steps` takes."""
    luma = Known(parts[0][FRAME], (parts[0][FIRST], parts[0][SECOND]), None, linear[0])
    if len(parts) == 1:
        return luma, None
    planes_, first, second = parts[1]
    context = planes.on_grid(parts[0][:, 0], (planes_.shape[1], planes_.shape[2]))
    lights = tuple(plane[None] for plane in context)
    return luma, Known(planes_, (first, second), lights, linear[1])


def _known(arrays: Int16, context: Int32 | None) -> Known:
    """Take examples [N, 4, h, w] apart, and luma on their grid, int32 [3, M, h, w]."""
    whole = [np.ascontiguousarray(arrays[:, i], dtype=np.int32) for i in range(LINEAR + 1)]
    luma = None if context is None else tuple(map(np.ascontiguousarray, context))
    references = whole[FIRST], whole[SECOND]
    return Known(whole[FRAME], references, luma, whole[LINEAR] * LINEAR_STEP)


def _samples(group: list[Step]) -> int:
    """How many samples some steps code."""
    return sum(step.distance.shape[:3].numel() for step in group)
