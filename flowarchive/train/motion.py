"""Frames beside what they are predicted from: motion-compensated once, kept on disk.

What takes the time of an inter frame is its motion search and the adaptive prediction; networks
under training do not change either. So both are done once for each clip, just as a packing would
do them (see `models.video`), and kept as two arrays a clip:

    NAME.luma.npy      int16 [T, 4, H, W]       the frame, its two references, all in quarters of
    NAME.chroma.npy    int16 [T, 2, 4, h, w]    a sample step, and its linear prediction, in 1/64

NAME ends in a hash of all that the arrays depend on, so that a cache serves every run whose config
names the same clip in the same way. The first filters of the linear prediction are fitted to some
of the clips before, and kept alike.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from flowarchive import adaptive, lattice, motion, planes
from flowarchive.errors import InputError
from flowarchive.features import ANCHOR_ONE
from flowarchive.lattice import PHASES, QUARTERS
from flowarchive.models.plan import Plan
from flowarchive.train.data import Clip, ClipConfig, load_clip, turned

Int16 = NDArray[np.int16]
Int32 = NDArray[np.int32]

VERSION = 4
"""Of the cache; to be counted up by whoever changes search, compensation or prediction."""

FIT_FRAMES = 6
"""Of each clip that first filters are fitted to."""

LINEAR_STEP = 4
"""Predictions are kept in so many units of 1/256 of a sample step: then they fit int16."""

FRAME, FIRST, SECOND, LINEAR = range(4)


class Filters(NamedTuple):
    """What adaptive prediction begins with; see `adaptive.DefaultFilters.fit`."""

    luma: Int32
    chroma: Int32


class Learner(Protocol):
    """What sums up normal equations: a predictor, or the fitting of first filters."""

    def learn(
        self,
        plane: Int32,
        ref1: Int32,
        ref2: Int32,
        luma: tuple[Int32, Int32, Int32] | None,
        level: int,
        shift: int,
    ) -> None:
        """Sum those of a level."""

    def end_frame(self) -> None:
        """Learn what has been summed."""


@dataclass(frozen=True)
class Examples:
    """The inter frames of a clip.

    Attributes:
        luma: int16 [T, 4, H, W]; see the module.
        chroma: int16 [T, 2, 4, h, w], or None.
        weight: See ClipConfig.
    """

    luma: Int16
    chroma: Int16 | None
    weight: float = 1.0


class Moved(NamedTuple):
    """An inter frame.

    Attributes:
        fields: Its motion against the last frame and, where there is one, the frame before.
        parts: For luma and for chroma, the planes and their two references, int32 [3, N, h, w] in
            quarters.
    """

    fields: tuple[motion.Field, ...]
    parts: list[Int32]


def compensated(clip: Clip) -> Iterator[Moved | None]:
    """Search and compensate a clip's motion as a packing would; yields None for intra frames."""
    frames = [clip.components(t) for t in range(len(clip.luma))]
    plan = Plan(frames, planes.MIN_BITS)
    shape = frames[0].luma.shape
    past: list[planes.Components] = []
    for t, frame in enumerate(frames):
        fields = plan.fields(t)
        if fields is None:
            past = [frame]
            yield None
            continue
        parts = []
        for part, known in enumerate(frame.parts):
            whole = [known * QUARTERS]
            for old, field in zip(past, fields, strict=False):
                moved = [
                    motion.compensate(plane, field, shape, *clip.limits(part == 1))
                    for plane in old.parts[part]
                ]
                whole.append(np.stack(moved))
            # After a cut there is but one frame to look back to.
            parts.append(np.stack([*whole, whole[-1]][:3]))
        yield Moved(fields[: len(past)], parts)
        past = [frame, *past[:1]]


def teach(
    parts: Sequence[Int32], learners: Sequence[Learner], clip: Clip, predict: bool
) -> list[Int32]:
    """Predict a frame's planes, then let predictors learn from them.

    Args:
        parts: From `compensated`.
        learners: One for each plane; where `predict` holds, LinearPredictors.
        clip: The frame's.
        predict: Whether predictions are wanted.

    Returns:
        For each part the predictions, int32 [N, h, w] in 1/256 of a sample step; zeros where none
        are wanted.
    """
    linear = []
    at = 0
    for part, group in enumerate(parts):
        _, count, height, width = group.shape
        found = np.zeros((count, height, width), dtype=np.int32)
        low, high = (ANCHOR_ONE * limit for limit in clip.limits(part == 1))
        luma = planes.on_grid(parts[0][:, 0], (height, width)) if part else None
        for level in range(lattice.level_count((height, width))):
            plane, first, second = (lattice.bordered(member, level) for member in group)
            lights = None if luma is None else lattice.bordered(luma, level)
            for n in range(count):
                learner = learners[at + n]
                light = None if lights is None else (lights[0], lights[1], lights[2])
                view = plane[n], first[n], second[n], light
                if predict:
                    assert isinstance(learner, adaptive.LinearPredictor)
                    for index, phase in enumerate(PHASES):
                        rows = slice(phase.row << level, None, 2 << level)
                        columns = slice(phase.column << level, None, 2 << level)
                        here = found[n, rows, columns]
                        grid = learner.predict(*view, level, index, 0, low, high)
                        here[:] = grid[: here.shape[0], : here.shape[1]]
                learner.learn(*view, level, 0)
        # Both planes of chroma may teach the same learner: to it they are one frame.
        for learner in dict.fromkeys(learners[at : at + count]):
            learner.end_frame()
        at += count
        linear.append(found)
    return linear


def make_predictors(filters: Filters) -> list[adaptive.LinearPredictor]:
    """Return fresh predictors of a frame's three planes."""
    return [
        adaptive.LinearPredictor(values.astype(np.int32))
        for values in (filters.luma, filters.chroma, filters.chroma)
    ]


def make_examples(clip: Clip, filters: Filters) -> Examples | None:
    """Make what networks of inter frames learn from; None where a clip has no inter frame."""
    learners = make_predictors(filters)
    luma, chroma = [], []
    for moved in compensated(clip):
        if moved is None:
            continue
        linear = [p // LINEAR_STEP for p in teach(moved.parts, learners, clip, predict=True)]
        whole = [
            np.concatenate([group, last[None]]).swapaxes(0, 1).astype(np.int16)
            for group, last in zip(moved.parts, linear, strict=True)
        ]
        luma.append(whole[0][0])
        chroma += whole[1:]
    if not luma:
        return None
    return Examples(np.stack(luma), np.stack(chroma) if chroma else None, clip.weight)


def fit_filters(clips: Iterator[Clip]) -> Filters:
    """Fit the first filters to the motion of clips."""
    luma = adaptive.DefaultFilters(adaptive.LUMA_TAPS)
    chroma = adaptive.DefaultFilters(adaptive.CHROMA_TAPS)
    for clip in clips:
        for moved in compensated(clip):
            if moved is not None:
                teach(moved.parts, [luma, chroma, chroma], clip, predict=False)
    return Filters(luma.fit(), chroma.fit())


class Cache:
    """Filters and examples in a folder.

    Args:
        folder: Made where it is missing.
        seed: Of the flips and the noise of moving pictures.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        folder.mkdir(parents=True, exist_ok=True)

    def filters(self, clips: Sequence[ClipConfig]) -> Filters:
        """Return the first filters for some clips.

        Raises:
            InputError: A clip cannot be read.
        """
        chosen = [clip for clip in clips if clip.fit] or list(clips)
        base = self.folder / f"filters-{_digest(self.seed, *map(_identity, chosen))}"
        paths = [base.with_name(f"{base.name}.{part}.npy") for part in Filters._fields]
        if not all(path.exists() for path in paths):
            found = fit_filters(
                self._load(replace(clip, limit=min(clip.limit, FIT_FRAMES))) for clip in chosen
            )
            for path, values in zip(paths, found, strict=True):
                _save(path, values)
        return Filters(*(np.load(path) for path in paths))

    def examples(self, config: ClipConfig, filters: Filters, vary: bool) -> Examples:
        """Return a clip's examples, mapped from disk.

        Args:
            config: The clip.
            filters: What linear prediction begins with.
            vary: Flip the clip in space and time, and add its noise.

        Raises:
            InputError: The clip cannot be read, or no frame of it follows from another.
        """
        digest = _digest(self.seed, _identity(config), vary, *(f.tobytes().hex() for f in filters))
        base = f"{config.path.stem}-{digest}"
        paths = [self.folder / f"{base}.{part}.npy" for part in ("luma", "chroma")]
        if not paths[0].exists():
            made = make_examples(self._load(config) if vary else load_clip(config), filters)
            if made is None:
                raise InputError(f"no frame of {config.path} follows from another")
            if made.chroma is not None:
                _save(paths[1], made.chroma)
            _save(paths[0], made.luma)  # last: with it the clip is complete
        luma, chroma = (np.load(path, mmap_mode="r") if path.exists() else None for path in paths)
        assert luma is not None
        return Examples(luma, chroma, config.weight)

    def _load(self, config: ClipConfig) -> Clip:
        """Read a clip and turn it, always in the same way."""
        chance = int(_digest(self.seed, _identity(replace(config, limit=1))), 16)
        return turned(load_clip(config), np.random.default_rng(chance), config.noise)


def _identity(config: ClipConfig) -> dict[str, Any]:
    """All of a clip that its examples depend on; not where its folder is."""
    fields = asdict(config)
    for name in ("path", "weight", "fit"):
        del fields[name]
    return {"name": config.path.name, **fields}


def _digest(*values: Any) -> str:
    text = json.dumps([VERSION, *values], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _save(path: Path, values: NDArray[Any]) -> None:
    """Write an array that appears complete or not at all, whoever else writes the same."""
    part = path.with_name(f"{path.name}.{np.random.default_rng().integers(1 << 62):x}.part")
    with part.open("wb") as file:
        np.save(file, values, allow_pickle=False)
    part.replace(path)
