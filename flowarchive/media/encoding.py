"""Video files of any of FFmpeg's lossless encoders, for comparison with them.

    Frame, Frame, ... --encode(Encoder)--> path --decode--> planes, planes, ...

An encoder may hold the samples under another name: `nv12` as `yuv420p`, RGB as `gbrp`, 9 bits in a
format of 10. No sample is ever computed; whether all of them come back is for the caller to see.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import cast

import av
import av.error

from flowarchive.errors import InputError, UnsupportedFormat
from flowarchive.frames import PIXEL_LAYOUTS, Frame, Plane, VideoFormat
from flowarchive.media.pixels import fill, native_name, unpack

__all__ = [
    "Encoder",
    "check_encoder",
    "decode",
    "encode",
    "has_decoder",
    "has_encoder",
    "holding_format",
    "library_versions",
]

RATE = Fraction(25)
MAX_TIME = 1 << 31


@dataclass(frozen=True)
class Encoder:
    """One of FFmpeg's encoders and how it is told to lose nothing.

    Attributes:
        name: FFmpeg's name, such as "libx264".
        options: Private and generic options by FFmpeg's names.
    """

    name: str
    options: dict[str, str] = field(default_factory=dict)


def has_encoder(name: str) -> bool:
    """Whether the installed PyAV was built with an encoder."""
    try:
        return bool(av.codec.Codec(name, "w").is_encoder)
    except ValueError:
        return False


def has_decoder(name: str) -> bool:
    """Whether the installed PyAV was built with a decoder."""
    try:
        return bool(av.codec.Codec(name, "r").is_decoder)
    except ValueError:
        return False


def holding_format(name: str, components: str, video_format: VideoFormat) -> str | None:
    """Return the pixel format in which an encoder takes the samples of a format unchanged.

    Args:
        name: FFmpeg's name of the encoder, which must be there.
        components: Letters of the components to hold, in any order of the format's.
        video_format: Of the frames.

    Returns:
        A name from `PIXEL_LAYOUTS`; the format itself where the encoder takes it, else the one with
        the fewest bits that has the same components in the same sampling, a padding component
        aside; None if there is none.
    """
    wanted = video_format.layout
    formats = av.codec.Codec(name, "w").video_formats or []
    names = [f.name for f in formats if f.name in PIXEL_LAYOUTS]
    if video_format.pix_fmt in names and components == wanted.components and "X" not in components:
        return video_format.pix_fmt
    found = []
    for place, candidate in enumerate(names):
        layout = PIXEL_LAYOUTS[candidate]
        same_letters = layout.components.replace("X", "") == components
        same_chroma = "U" not in components or (
            (layout.log2_chroma_w, layout.log2_chroma_h)
            == (wanted.log2_chroma_w, wanted.log2_chroma_h)
        )
        one_size = layout.bit_depth >= wanted.bit_depth and (layout.bit_depth <= 8) == (
            wanted.bit_depth <= 8
        )
        if same_letters and same_chroma and one_size:
            found.append((layout.bit_depth, len(layout.components), place))
    return names[min(found)[2]] if found else None


def check_encoder(encoder: Encoder, video_format: VideoFormat, components: str) -> None:
    """Make sure that an encoder takes frames of a format.

    Args:
        encoder: The encoder, which must be there.
        video_format: Of the frames.
        components: Letters of the components to hold.

    Raises:
        UnsupportedFormat: It does not take these samples, or this size.
    """
    context = cast("av.VideoCodecContext", av.CodecContext.create(encoder.name, "w"))
    _open_encoder(context, encoder, video_format, components)


def encode(
    path: str | os.PathLike[str],
    frames: Iterable[Frame],
    video_format: VideoFormat,
    components: str,
    encoder: Encoder,
) -> None:
    """Write frames to a file whose suffix names the container, at 25 frames a second.

    Args:
        path: The file; one that is there is replaced.
        frames: What to write; their planes are those of `components`.
        video_format: Of the frames.
        components: Letters of the planes.
        encoder: What codes them.

    Raises:
        UnsupportedFormat: The encoder does not take these samples, or this size.
        InputError: FFmpeg failed.
    """
    with _naming(encoder.name), av.open(os.fspath(path), "w") as file:
        stream = cast("av.VideoStream", file.add_stream(encoder.name, rate=RATE))
        pix_fmt = _open_encoder(stream.codec_context, encoder, video_format, components)
        stream.time_base = 1 / RATE
        for number, frame in enumerate(frames):
            picture = av.VideoFrame(video_format.width, video_format.height, pix_fmt)
            fill(picture, frame.planes, components)
            picture.pts, picture.time_base = number, 1 / RATE
            file.mux(_timed(stream.encode(picture)))
        file.mux(_timed(stream.encode(None)))


def _open_encoder(
    context: av.VideoCodecContext, encoder: Encoder, video_format: VideoFormat, components: str
) -> str:
    """Set an encoder up, and return its pixel format."""
    pix_fmt = holding_format(encoder.name, components, video_format)
    if pix_fmt is None:
        raise UnsupportedFormat(
            f"{encoder.name} has no format for the samples of {video_format.pix_fmt}"
        )
    context.width, context.height = video_format.width, video_format.height
    context.pix_fmt = pix_fmt
    context.bit_rate = 0
    context.time_base = 1 / RATE
    context.color_range = 2 if pix_fmt.startswith("yuvj") else video_format.color_range
    context.thread_count = 0
    context.options = dict(encoder.options)
    try:
        context.open()
    except (av.error.FFmpegError, ValueError) as error:
        size = f"{video_format.width}x{video_format.height}"
        raise UnsupportedFormat(f"{encoder.name} does not take {size} {pix_fmt}") from error
    return pix_fmt


def _timed(packets: Sequence[av.Packet[av.VideoStream]]) -> Sequence[av.Packet[av.VideoStream]]:
    """Set the decoding time of a lone frame, which x265 leaves at whatever memory held."""
    for packet in packets:
        if packet.dts is None or abs(packet.dts) > MAX_TIME:
            packet.dts = packet.pts
    return packets


def decode(path: str | os.PathLike[str], components: str) -> Iterator[tuple[Plane, ...]]:
    """Yield the planes of every frame of a video file.

    Args:
        path: The file.
        components: Letters of the planes that are wanted, in this order.

    Yields:
        C-contiguous [rows, columns] planes that own their memory, uint8 or uint16.

    Raises:
        InputError: FFmpeg failed, or a component is not there.
    """
    with _naming(os.fspath(path)), av.open(os.fspath(path)) as file:
        stream = file.streams.video[0]
        stream.thread_type = "AUTO"
        for picture in file.decode(stream):
            name = native_name(picture.format.name)
            found = VideoFormat(picture.width, picture.height, name)
            letters = found.layout.components
            if not set(components) <= set(letters):
                raise InputError(f"{os.fspath(path)} came back as {name}")
            planes = dict(zip(letters, unpack(picture, found), strict=True))
            yield tuple(planes[letter] for letter in components)


def library_versions() -> dict[str, str]:
    """Versions of PyAV and of FFmpeg's codec library."""
    numbers = av.library_versions["libavcodec"]
    return {"av": av.__version__, "libavcodec": ".".join(map(str, numbers))}


@contextmanager
def _naming(name: str) -> Iterator[None]:
    try:
        yield
    except (av.error.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{name}: {reason}") from error
