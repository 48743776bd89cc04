"""The classical codecs in one interface: those that PyAV brings, and zstd.

A codec writes its files into a folder that is empty before; their size is its result. Whether all
samples come back is for `run` to see, which compares every plane of every frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import zstandard

from flowarchive.bench.clip import Clip
from flowarchive.errors import InputError, UnsupportedFormat
from flowarchive.frames import Plane, VideoFormat
from flowarchive.media import encoding

ZSTD_LEVEL = 19


class Codec(Protocol):
    """Something that makes files of a clip and frames of the files."""

    @property
    def name(self) -> str:
        """What a table calls it."""

    @property
    def settings(self) -> str:
        """How it is told what to do, as its users write it."""

    @property
    def container(self) -> str:
        """What its files are."""

    def missing(self) -> str | None:
        """Why this machine cannot run the codec, None if it can."""

    def version(self) -> str | None:
        """Version of what does the work, where it can be told."""

    def refuses(self, clip: Clip) -> str | None:
        """Why the codec cannot hold a clip's samples unchanged, None if it can."""

    def encode(self, clip: Clip, folder: Path) -> None:
        """Write the clip's files into an empty folder.

        Raises:
            InputError: The codec failed.
        """

    def decode(self, clip: Clip, folder: Path) -> Iterator[Sequence[Plane]]:
        """Yield the planes of the clip's components for every frame, from the files alone.

        Raises:
            InputError: The codec failed.
        """


@dataclass(frozen=True)
class FFmpegCodec:
    """Encoders of the installed PyAV, and the decoder that FFmpeg chooses for their files.

    Attributes:
        name: What a table calls it.
        settings: The options as FFmpeg's users write them.
        encoders: The first that takes a clip codes it.
        container: Suffix of the file.
    """

    name: str
    settings: str
    encoders: tuple[encoding.Encoder, ...]
    container: str = "mkv"

    def missing(self) -> str | None:
        """Which encoders the installed PyAV lacks."""
        names = dict.fromkeys(encoder.name for encoder in self.encoders)
        absent = [name for name in names if not encoding.has_encoder(name)]
        return f"the installed PyAV has no encoder {' and '.join(absent)}" if absent else None

    def version(self) -> str | None:
        """Version of FFmpeg's codec library."""
        return f"libavcodec {encoding.library_versions()['libavcodec']}"

    def refuses(self, clip: Clip) -> str | None:
        """Why none of the encoders takes the clip's components, depth and size."""
        reasons = []
        for encoder in self.encoders:
            try:
                encoding.check_encoder(encoder, clip.format, clip.components)
            except UnsupportedFormat as error:
                reasons.append(str(error))
            else:
                return None
        return "; ".join(dict.fromkeys(reasons))

    def encode(self, clip: Clip, folder: Path) -> None:
        """Write one file."""
        for encoder in self.encoders:
            with suppress(UnsupportedFormat):
                encoding.encode(
                    self._path(folder), clip.coded_frames(), clip.format, clip.components, encoder
                )
                return
        raise UnsupportedFormat(f"{self.name} does not take {clip.format.pix_fmt}")

    def decode(self, clip: Clip, folder: Path) -> Iterator[Sequence[Plane]]:
        """Read the file."""
        yield from encoding.decode(self._path(folder), clip.components)

    def _path(self, folder: Path) -> Path:
        return folder / f"clip.{self.container}"


@dataclass(frozen=True)
class ZstdCodec:
    """The raw planes of all frames in one zstd frame."""

    name: str = "zstd"
    settings: str = f"zstd -{ZSTD_LEVEL}"
    container: str = "zst"

    def missing(self) -> str | None:
        """Never: the package depends on it."""
        return None

    def version(self) -> str | None:
        """Version of the zstd library."""
        return "zstd " + ".".join(map(str, zstandard.ZSTD_VERSION))

    def refuses(self, clip: Clip) -> str | None:
        """Never: bytes are bytes."""
        return None

    def encode(self, clip: Clip, folder: Path) -> None:
        """Write one file."""
        compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
        size = clip.raw_bytes - sum(
            frame.planes[clip.format.layout.components.index(letter)].nbytes
            for frame in clip.frames
            for letter in clip.fillers
        )
        with (
            (folder / "clip.zst").open("wb") as file,
            compressor.stream_writer(file, size=size, closefd=False) as writer,
        ):
            for frame in clip.coded_frames():
                for plane in frame.planes:
                    writer.write(_little_endian(plane))

    def decode(self, clip: Clip, folder: Path) -> Iterator[Sequence[Plane]]:
        """Read the file."""
        with (
            (folder / "clip.zst").open("rb") as file,
            zstandard.ZstdDecompressor().stream_reader(file) as reader,
        ):
            shapes = [
                shape
                for letter, shape in zip(
                    clip.format.layout.components, clip.format.plane_shapes, strict=True
                )
                if letter in clip.components
            ]
            for _ in clip.frames:
                yield [read_plane(reader.read, shape, clip.format) for shape in shapes]


def read_plane(
    read: Callable[[int], bytes], shape: tuple[int, int], video_format: VideoFormat
) -> Plane:
    """Read one little-endian plane [rows, columns].

    Args:
        read: Reads up to so many bytes, fewer only at the end.
        shape: Of the plane.
        video_format: Says how wide a sample is.

    Raises:
        InputError: There are fewer bytes.
    """
    dtype = video_format.dtype.newbyteorder("<")
    size = shape[0] * shape[1] * dtype.itemsize
    data = read(size)
    if len(data) < size:
        raise InputError("the decoded data is too short")
    return np.frombuffer(data, dtype).reshape(shape).astype(video_format.dtype, copy=False)


def _little_endian(plane: Plane) -> bytes:
    return plane.astype(plane.dtype.newbyteorder("<"), copy=False).tobytes()


_FFV1_OPTIONS = {"level": "3", "coder": "2", "context": "1"}
_X264_OPTIONS = {"qp": "0", "preset": "veryslow"}
_X265_OPTIONS = {"preset": "veryslow", "x265-params": "lossless=1:log-level=none"}

FFV1 = FFmpegCodec(
    "ffv1",
    "ffmpeg -c:v ffv1 -level 3 -coder 2 -context 1 -slices 4",
    # Four slices do not fit some odd sizes; FFmpeg then chooses their number.
    (
        encoding.Encoder("ffv1", {**_FFV1_OPTIONS, "slices": "4"}),
        encoding.Encoder("ffv1", _FFV1_OPTIONS),
    ),
)
X264 = FFmpegCodec(
    "x264",
    "ffmpeg -c:v libx264 (libx264rgb for RGB) -qp 0 -preset veryslow",
    (encoding.Encoder("libx264", _X264_OPTIONS), encoding.Encoder("libx264rgb", _X264_OPTIONS)),
)
X265 = FFmpegCodec(
    "x265",
    "ffmpeg -c:v libx265 -preset veryslow -x265-params lossless=1",
    (encoding.Encoder("libx265", _X265_OPTIONS),),
)
VP9 = FFmpegCodec(
    "vp9",
    "ffmpeg -c:v libvpx-vp9 -lossless 1",
    (encoding.Encoder("libvpx-vp9", {"lossless": "1"}),),
)
ZSTD = ZstdCodec()
