"""The frames that every codec gets, held in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np

from flowarchive import media
from flowarchive.errors import InputError
from flowarchive.frames import Frame, Plane, VideoFormat

FILLERS = "AX"


@dataclass(frozen=True)
class Clip:
    """A sequence of frames and the file it can be read from.

    Attributes:
        name: The file's name without its suffix.
        path: A source of just these frames.
        format: Of the frames.
        frames: All of them.
    """

    name: str
    path: Path
    format: VideoFormat
    frames: Sequence[Frame]

    @property
    def samples(self) -> int:
        """Samples of all planes of all frames."""
        return len(self.frames) * self.format.samples_per_frame

    @property
    def raw_bytes(self) -> int:
        """What the frames take uncoded."""
        return len(self.frames) * self.format.bytes_per_frame

    @cached_property
    def fillers(self) -> dict[str, int]:
        """Alpha and padding with one value in the whole clip, which nobody codes."""
        values = {}
        for place, letter in enumerate(self.format.layout.components):
            value = int(self.frames[0].planes[place].flat[0])
            if letter in FILLERS and all((f.planes[place] == value).all() for f in self.frames):
                values[letter] = value
        return values

    @property
    def components(self) -> str:
        """Letters of the components that are coded."""
        return "".join(c for c in self.format.layout.components if c not in self.fillers)

    def coded_frames(self) -> Iterator[Frame]:
        """Yield the frames without the components that nobody codes."""
        letters = self.format.layout.components
        for frame in self.frames:
            pairs = zip(letters, frame.planes, strict=True)
            yield Frame(tuple(p for c, p in pairs if c not in self.fillers), frame.pts)

    def complete(self, coded: Sequence[Plane]) -> tuple[Plane, ...]:
        """Put the components that nobody codes back among a frame's others."""
        parts = iter(coded)
        return tuple(
            np.full(shape, self.fillers[c], self.format.dtype) if c in self.fillers else next(parts)
            for c, shape in zip(
                self.format.layout.components, self.format.plane_shapes, strict=True
            )
        )


def read_clip(path: Path, limit: int | None, scratch: Path) -> Clip:
    """Read a clip into memory, and cut it if it is longer than wanted.

    Args:
        path: Anything `media.open_source` reads.
        limit: Frames to read at most; None for all.
        scratch: A folder for the file of a clip that was cut.

    Raises:
        InputError: The source cannot be read, holds no frame, or no file can hold the cut.
    """
    with media.open_source(path) as source:
        reading = iter(source)
        frames = list(islice(reading, limit))
        is_cut = next(reading, None) is not None
        video_format = source.format
    if not frames:
        raise InputError(f"{path} holds no frame")
    name = (path.name if path.is_dir() else path.stem) or path.resolve().name
    if not is_cut:
        return Clip(name, path, video_format, frames)
    kinds = [kind for kind in (".mkv", ".y4m", ".npy") if media.can_hold(kind, video_format)]
    if not kinds:
        raise InputError(f"{path}: no file holds the first {limit} frames unchanged")
    with media.open_sink(scratch / f"{name}{kinds[0]}", video_format) as sink:
        for frame in frames:
            sink.write(frame)
    with media.open_source(scratch / f"{name}{kinds[0]}") as source:
        return Clip(name, scratch / f"{name}{kinds[0]}", source.format, list(source))
