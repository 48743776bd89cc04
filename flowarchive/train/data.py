"""Batches of crops from frame sources, held in memory as integer components."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowarchive import planes
from flowarchive.errors import InputError
from flowarchive.frames import Plane
from flowarchive.media import open_source


@dataclass(frozen=True)
class ClipConfig:
    """One source of training frames.

    Attributes:
        path: Anything `flowarchive pack` takes.
        scale: Average blocks of scale x scale samples first, to shed a lossy source's coding noise.
        weight: How often its crops are drawn, relative to the other clips'.
        every: Keep one frame in `every`.
        limit: Keep at most so many frames.
    """

    path: Path
    scale: int = 1
    weight: float = 1.0
    every: int = 1
    limit: int = 1000

    def __post_init__(self) -> None:
        for name in ("scale", "weight", "every", "limit"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} of {self.path} is {getattr(self, name)!r}")


@dataclass(frozen=True)
class Clip:
    """Frames of one source: luma int16 [T, H, W] and chroma int16 [T, 2, h, w] or None."""

    luma: NDArray[np.int16]
    chroma: NDArray[np.int16] | None
    weight: float

    def components(self, t: int) -> planes.Components:
        """Return frame `t` as models see it."""
        chroma = None if self.chroma is None else self.chroma[t].astype(np.int32)
        return planes.Components(self.luma[t].astype(np.int32), chroma)


def load_clip(config: ClipConfig) -> Clip:
    """Read a clip into memory, at 8 bits a sample.

    Raises:
        InputError: The clip holds no frame.
    """
    luma: list[NDArray[np.int16]] = []
    chroma: list[NDArray[np.int16]] = []
    with open_source(config.path) as source:
        video_format = source.format
        excess = video_format.layout.bit_depth - planes.MIN_BITS
        for number, frame in enumerate(source):
            if number % config.every:
                continue
            if len(luma) == config.limit:
                break
            shrunk = [_shrink(plane, config.scale, excess) for plane in frame.planes]
            parts = planes.split(shrunk, video_format.layout.components, planes.MIN_BITS)
            luma.append(parts.luma.astype(np.int16))
            if parts.chroma is not None:
                chroma.append(parts.chroma.astype(np.int16))
    if not luma:
        raise InputError(f"{config.path} holds no frame")
    return Clip(np.stack(luma), np.stack(chroma) if chroma else None, config.weight)


def _shrink(plane: Plane, scale: int, excess: int) -> NDArray[np.uint8]:
    """Drop `excess` low bits, then average blocks of scale x scale samples, rounded half up."""
    h, w = (side // scale * scale for side in plane.shape)
    blocks = (plane[:h, :w] >> excess).reshape(h // scale, scale, w // scale, scale)
    count = scale * scale
    total = blocks.sum(axis=(1, 3), dtype=np.int64)
    return np.asarray((total + count // 2) // count, dtype=np.uint8)


class Crops:
    """Draws random flipped crops from clips, each clip with its weight.

    Args:
        clips: Where from.
        size: Side of a crop; chroma crops have half of it. Clips that are smaller are left out.
        seed: Of the random numbers.

    Raises:
        InputError: No clip is large enough, or none has chroma.
    """

    def __init__(self, clips: Sequence[Clip], size: int, seed: int) -> None:
        self.size = size
        self.random = np.random.default_rng(seed)
        self.luma = [clip for clip in clips if min(clip.luma.shape[1:]) >= size]
        self.chroma = [
            clip
            for clip in clips
            if clip.chroma is not None and min(clip.chroma.shape[2:]) >= size // 2
        ]
        if not self.luma or not self.chroma:
            raise InputError(f"no clip is large enough for crops of {size}, or none has chroma")

    def draw_luma(self, count: int) -> Tensor:
        """Return luma crops, integers in float32 [count, 1, size, size]."""
        crops = []
        for clip in self._pick(self.luma, count):
            frame, y, x = self._place(clip.luma.shape[0], clip.luma.shape[1:], self.size)
            crop = clip.luma[frame, y : y + self.size, x : x + self.size]
            crops.append(self._flip(crop[None]))
        return _tensor(crops)

    def draw_chroma(self, count: int) -> tuple[Tensor, Tensor]:
        """Return chroma crops [count, 2, size/2, size/2] and their luma context [count, 1, ...]."""
        half = self.size // 2
        crops, contexts = [], []
        for clip in self._pick(self.chroma, count):
            assert clip.chroma is not None
            frame, y, x = self._place(clip.chroma.shape[0], clip.chroma.shape[2:], half)
            crop = clip.chroma[frame, :, y : y + half, x : x + half]
            luma = clip.luma[frame]
            fold_h = -(-luma.shape[0] // clip.chroma.shape[2])
            fold_w = -(-luma.shape[1] // clip.chroma.shape[3])
            luma = luma[y * fold_h : (y + half) * fold_h, x * fold_w : (x + half) * fold_w]
            context = planes.luma_context(luma.astype(np.int32), (half, half))
            both = self._flip(np.concatenate([crop, context[None].astype(np.int16)]))
            crops.append(both[:2])
            contexts.append(both[2:])
        return _tensor(crops), _tensor(contexts).clamp(-128, 127)

    def _pick(self, clips: list[Clip], count: int) -> list[Clip]:
        weights = np.array([clip.weight for clip in clips])
        chosen = self.random.choice(len(clips), count, p=weights / weights.sum())
        return [clips[i] for i in chosen]

    def _place(self, frames: int, shape: tuple[int, ...], size: int) -> tuple[int, int, int]:
        y, x = (int(self.random.integers(side - size + 1)) for side in shape)
        return int(self.random.integers(frames)), y, x

    def _flip(self, crop: NDArray[np.int16]) -> NDArray[np.int16]:
        if self.random.random() < 0.5:
            crop = crop[..., ::-1]
        if self.random.random() < 0.25:
            crop = crop[..., ::-1, :]
        return crop


def _tensor(crops: list[NDArray[np.int16]]) -> Tensor:
    return torch.from_numpy(np.stack(crops).astype(np.float32))
