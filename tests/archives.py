"""Archives for tests: written, compared and looked into."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

import flowarchive
from flowarchive import media
from flowarchive.chunk import Coding
from flowarchive.frames import Frame, VideoFormat

VIDEO = VideoFormat(20, 14, "yuv420p10le", rate=Fraction(25))


def same(ours: Frame, theirs: Frame) -> bool:
    return (
        ours.pts == theirs.pts
        and len(ours.planes) == len(theirs.planes)
        and all(
            a.dtype == b.dtype and np.array_equal(a, b)
            for a, b in zip(ours.planes, theirs.planes, strict=True)
        )
    )


def write_archive(
    path: Path, model: str, frames: list[Frame], video_format: VideoFormat = VIDEO, **options: Any
) -> Path:
    options = {"embed_model": "always", "chunk_frames": 3, **options}
    with flowarchive.create(path, video_format, model=model, **options) as archive:
        for frame in frames:
            archive.append(frame)
    return path


def write_source(path: Path, video_format: VideoFormat, frames: list[Frame]) -> Path:
    with media.open_sink(path, video_format) as sink:
        for frame in frames:
            sink.write(frame)
    return path


def codings(path: Path) -> list[Coding]:
    with flowarchive.open(path) as archive:
        return [Coding(archive.chunk(i).coding) for i in range(len(archive.container.index))]


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def gray_frames(count: int) -> list[Frame]:
    random = np.random.default_rng(2)
    return [Frame((random.integers(0, 256, (9, 9)).astype(np.uint8),), i) for i in range(count)]
