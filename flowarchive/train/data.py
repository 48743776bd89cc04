"""Clips for training: frames of a source, held in memory as integer components of 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flowarchive import planes
from flowarchive.errors import InputError
from flowarchive.frames import Plane
from flowarchive.media import open_source

Int16 = NDArray[np.int16]
Random = np.random.Generator


@dataclass(frozen=True)
class ClipConfig:
    """One source of training frames.

    Attributes:
        path: Anything `flowarchive pack` takes.
        scale: Average blocks of scale x scale samples first, to shed a lossy source's coding noise.
        weight: How often its crops are drawn, relative to the other clips'.
        first: Leave out so many frames.
        every: Then keep one frame in `every`.
        limit: Keep at most so many frames.
        yuv: Turn RGB into YUV 4:2:0, as cameras and encoders do.
        noise: Standard deviation of noise added to moving pictures, in sample steps.
        fit: Fit the first filters to this clip's motion; where no clip says so, to every clip's.
    """

    path: Path
    scale: int = 1
    weight: float = 1.0
    first: int = 0
    every: int = 1
    limit: int = 1000
    yuv: bool = False
    noise: float = 0.0
    fit: bool = False

    def __post_init__(self) -> None:
        for name in ("scale", "weight", "every", "limit"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} of {self.path} is {getattr(self, name)!r}")
        for name in ("first", "noise"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} of {self.path} is {getattr(self, name)!r}")


@dataclass(frozen=True)
class Clip:
    """Frames of one source.

    Attributes:
        luma: int16 [T, H, W].
        chroma: int16 [T, 2, h, w], or None.
        weight: See ClipConfig.
        rgb: Chroma is that of YCoCg-R, with one bit more.
    """

    luma: Int16
    chroma: Int16 | None
    weight: float
    rgb: bool = False

    def components(self, t: int) -> planes.Components:
        """Return frame `t` as models see it."""
        chroma = None if self.chroma is None else self.chroma[t].astype(np.int32)
        return planes.Components(self.luma[t].astype(np.int32), chroma)

    @property
    def letters(self) -> str:
        """A component letter for each plane, as in `planes.split`."""
        return "Y" if self.chroma is None else "RGB" if self.rgb else "YUV"

    def frames(self, start: int, stop: int) -> Clip:
        """Return the clip of some of the frames."""
        chroma = None if self.chroma is None else self.chroma[start:stop]
        return Clip(self.luma[start:stop], chroma, self.weight, self.rgb)

    def limits(self, chroma: bool) -> tuple[int, int]:
        """Return the least and the greatest sample that luma, or chroma, may hold."""
        return (-255, 255) if chroma and self.rgb else (-128, 127)


def load_clip(config: ClipConfig) -> Clip:
    """Read a clip into memory, at 8 bits a sample.

    Raises:
        InputError: The clip holds no frame, or is to be turned into YUV and is not RGB.
    """
    luma: list[Int16] = []
    chroma: list[Int16] = []
    with open_source(config.path) as source:
        layout = source.format.layout
        excess = layout.bit_depth - planes.MIN_BITS
        rgb = layout.components.startswith("RGB")
        for number, frame in enumerate(source):
            if number < config.first or (number - config.first) % config.every:
                continue
            if len(luma) == config.limit:
                break
            shrunk = [_shrink(plane, config.scale, excess) for plane in frame.planes]
            parts = planes.split(shrunk, layout.components, planes.MIN_BITS)
            luma.append(parts.luma.astype(np.int16))
            if parts.chroma is not None:
                chroma.append(parts.chroma.astype(np.int16))
    if not luma:
        raise InputError(f"{config.path} holds no frame")
    clip = Clip(np.stack(luma), np.stack(chroma) if chroma else None, config.weight, rgb)
    if config.yuv:
        if not rgb:
            raise InputError(f"{config.path} is not RGB")
        return to_yuv420(clip)
    return clip if config.scale == 1 else _aligned(clip)


def _shrink(plane: Plane, scale: int, excess: int) -> NDArray[np.uint8]:
    """Drop `excess` low bits, then average blocks of scale x scale samples, rounded half up."""
    h, w = (side // scale * scale for side in plane.shape)
    blocks = (plane[:h, :w] >> excess).reshape(h // scale, scale, w // scale, scale)
    count = scale * scale
    total = blocks.sum(axis=(1, 3), dtype=np.int64)
    return np.asarray((total + count // 2) // count, dtype=np.uint8)


def _aligned(clip: Clip) -> Clip:
    """Cut away the luma that stands out over chroma by more than rounding, once both are shrunk."""
    if clip.chroma is None:
        return clip
    h, w = clip.luma.shape[1:]
    rows, columns = clip.chroma.shape[2:]
    # 253 rows over 126 are two to one, and one too many.
    h, w = min(h, round(h / rows) * rows), min(w, round(w / columns) * columns)
    return Clip(clip.luma[:, :h, :w], clip.chroma, clip.weight, clip.rgb)


def to_yuv420(clip: Clip) -> Clip:
    """Turn YCoCg-R into YUV 4:2:0 with BT.601's weights and its narrow range."""
    assert clip.chroma is not None
    luma = clip.luma.astype(np.int32)
    orange, green = (clip.chroma[:, c].astype(np.int32) for c in range(2))
    middle = luma - (green >> 1)
    blue = middle - (orange >> 1)
    r, g, b = (
        np.clip(plane + 128, 0, 255).astype(np.float32)
        for plane in (blue + orange, middle + green, blue)
    )
    y = 0.299 * r + 0.587 * g + 0.114 * b
    h, w = (side // 2 * 2 for side in y.shape[1:])
    pair = []
    for difference in (0.564 * (b - y), 0.713 * (r - y)):
        blocks = difference[:, :h, :w].reshape(-1, h // 2, 2, w // 2, 2)
        pair.append(np.rint(blocks.mean(axis=(2, 4)) * (224 / 255)))
    narrow = np.rint(y[:, :h, :w] * (219 / 255) + 16 - 128)
    return Clip(narrow.astype(np.int16), np.stack(pair, 1).astype(np.int16), clip.weight)


def turned(clip: Clip, random: Random, noise: float) -> Clip:
    """Flip a clip at random in space and time, and add noise; chroma goes with luma.

    Args:
        clip: The clip.
        random: Whence the choices.
        noise: Standard deviation of the noise, in sample steps.
    """
    back, across, down = random.random(3) < (0.5, 0.5, 0.3)

    def turn(frames: Int16, chroma: bool) -> Int16:
        frames = frames[:: -1 if back else 1]
        frames = frames[..., :: -1 if down else 1, :: -1 if across else 1]
        if noise:
            loud = np.rint(frames + random.normal(0, noise, frames.shape))
            frames = loud.clip(*clip.limits(chroma)).astype(np.int16)
        return np.ascontiguousarray(frames)

    chroma = None if clip.chroma is None else turn(clip.chroma, True)
    return Clip(turn(clip.luma, False), chroma, clip.weight, clip.rgb)
