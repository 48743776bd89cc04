"""Synthetic frames and files for the tests of media."""

from __future__ import annotations

import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from flowarchive.frames import Frame, VideoFormat

# Bits of the samples that have fewer than their layout.
NARROW = {
    "rgb555le": {"R": 5, "G": 5, "B": 5, "X": 1},
    "bgr555le": {"R": 5, "G": 5, "B": 5, "X": 1},
    "rgb565le": {"R": 5, "G": 6, "B": 5},
    "bgr565le": {"R": 5, "G": 6, "B": 5},
}


def make_frames(video_format: VideoFormat, padding: int | None = None) -> list[Frame]:
    """Noise over the whole range, a ramp and the largest value, at times 0, 2 and 4.

    A padding component holds `padding` if that is given.
    """
    rng = np.random.default_rng(7)
    noise, ramp, top = [], [], []
    shapes = zip(video_format.layout.components, video_format.plane_shapes, strict=True)
    for letter, (rows, columns) in shapes:
        name = video_format.pix_fmt
        bits = NARROW.get(name, {}).get(letter, video_format.layout.bit_depth)
        planes = [
            rng.integers(0, 1 << bits, (rows, columns)),
            (np.arange(rows)[:, None] * 3 + np.arange(columns) + ord(letter)) % (1 << bits),
            np.full((rows, columns), (1 << bits) - 1),
        ]
        if letter == "X" and padding is not None:
            planes = [np.full_like(p, padding) for p in planes]
        for target, plane in zip((noise, ramp, top), planes, strict=True):
            target.append(plane.astype(video_format.dtype))
    return [Frame(tuple(planes), 2 * i) for i, planes in enumerate((noise, ramp, top))]


def picture(planes: Iterable[NDArray[Any]], pix_fmt: str) -> av.VideoFrame:
    """An FFmpeg picture of planes in FFmpeg's own order, one component a plane."""
    planes = list(planes)
    result = av.VideoFrame(planes[0].shape[1], planes[0].shape[0], pix_fmt)
    for plane, target in zip(planes, result.planes, strict=True):
        rows = np.frombuffer(target, np.uint8).reshape(-1, target.line_size)
        data = np.ascontiguousarray(plane).view(np.uint8).reshape(plane.shape[0], -1)
        rows[: data.shape[0], : data.shape[1]] = data
    return result


def noise_pictures(
    count: int, width: int, height: int, pix_fmt: str = "yuv420p", seed: int = 0
) -> list[av.VideoFrame]:
    """Pictures full of noise, so that every byte of a file that holds them matters."""
    rng = np.random.default_rng(seed)
    pictures = []
    for i in range(count):
        frame = av.VideoFrame(width, height, pix_fmt)
        for plane in frame.planes:
            np.frombuffer(plane, np.uint8)[:] = rng.integers(0, 256, plane.buffer_size)
        frame.pts, frame.time_base = i, Fraction(1, 25)
        pictures.append(frame)
    return pictures


def write_video(
    path: Path,
    codec: str,
    pictures: list[av.VideoFrame],
    muxer: str | None = None,
    container_options: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Encode pictures with FFmpeg, one a 25th of a second."""
    with av.open(str(path), "w", format=muxer, container_options=container_options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = pictures[0].width, pictures[0].height
        stream.pix_fmt = pictures[0].format.name
        stream.codec_context.options = options or {}
        for frame in pictures:
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def encode_image(frame: av.VideoFrame, codec: str) -> bytes:
    """One picture as the bytes of an image file."""
    context = av.CodecContext.create(codec, "w")
    context.width, context.height = frame.width, frame.height
    context.pix_fmt, context.time_base = frame.format.name, Fraction(1, 25)
    context.thread_count = 1
    packets = [*context.encode(frame), *context.encode(None)]
    return b"".join(bytes(p) for p in packets)


def cut(path: Path, size: int) -> None:
    """Keep the first `size` bytes of a file."""
    os.truncate(path, size)


def flip(path: Path, offset: int) -> None:
    """Flip a bit of one byte of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)
