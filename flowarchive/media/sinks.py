"""Sinks of frames: files and folders that other programs read, lossless all of them.

    sink            holds                                        frame times
    .y4m            YUV and gray without alpha, no 4:4:0, 4:1:0  rate only
    .mkv (FFV1)     all but 5- and 6-bit RGB and ya16le          rounded to 1 ms
    .yuv            everything, as bare component planes         none
    .npy            everything whose planes are of one size      none
    folder of PNG   gray and RGB of 8 or 16 bits, with alpha     none

A sink may name the samples differently from the source (`nv12` comes back as `yuv420p`), but it
never changes one: what cannot be held is `UnsupportedFormat`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self

import av
import av.error
import numpy as np

from flowarchive.errors import InputError, OutputExists, UnsupportedFormat
from flowarchive.files import atomic_output, atomic_path
from flowarchive.frames import Frame, PixelLayout, VideoFormat
from flowarchive.media.matroska import NAME_BYTES, set_display_ratio
from flowarchive.media.pixels import fill, has_bit_fields, native_name, unpack

__all__ = ["SINKS", "ArraySink", "FolderSink", "MatroskaSink", "RawSink", "Y4mSink"]


class _Sink:
    """What all sinks share; see `flowarchive.frames.FrameSink`.

    Raises:
        UnsupportedFormat: This kind of sink cannot hold the format.
        OutputExists: The output exists and `force` is not given.
        InputNotFound: The output's folder does not exist or may not be written.
    """

    label: ClassVar[str]

    def __init__(
        self, path: str | os.PathLike[str], video_format: VideoFormat, force: bool = False
    ) -> None:
        if not self.holds(video_format):
            able = [sink.label for sink in SINKS if sink.holds(video_format)]
            raise UnsupportedFormat(
                f"{self.label} cannot hold {video_format.width}x{video_format.height} "
                f"{video_format.pix_fmt} unchanged; these can: {', '.join(able)}"
            )
        self.format = video_format
        self.frames_written = 0
        self._path = Path(path)
        self._stack = ExitStack()
        self._is_open = True
        try:
            self._start(force)
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise

    @classmethod
    def holds(cls, video_format: VideoFormat) -> bool:
        """Whether every sample of this format comes back from this kind of sink."""
        raise NotImplementedError

    def write(self, frame: Frame) -> None:
        """Append a frame.

        Raises:
            UnsupportedFormat: The frame is not of the sink's format.
            InputError: The frame cannot be written, such as for a time before the last one's.
        """
        frame.check(self.format)
        self._write(frame)
        self.frames_written += 1

    def close(self) -> None:
        """Finish the output and give it its name; closing twice is allowed."""
        self.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        if not self._is_open:
            return
        self._is_open = False
        if error[0] is None:
            with self._stack:
                self._finish()
        else:
            self._stack.__exit__(*error)

    def _start(self, force: bool) -> None:
        raise NotImplementedError

    def _write(self, frame: Frame) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        """Complete what `_start` opened, before it takes its name."""


class _FileSink(_Sink):
    """A sink that writes one file."""

    _file: BinaryIO

    def _start(self, force: bool) -> None:
        self._file = self._stack.enter_context(atomic_output(self._path, force))

    def _write_planes(self, frame: Frame) -> None:
        for plane in frame.planes:
            # The cast is a copy only where the machine is big-endian or the plane is not in order.
            data = np.ascontiguousarray(plane, dtype=plane.dtype.newbyteorder("<"))
            self._file.write(data.data)


class Y4mSink(_FileSink):
    """YUV4MPEG2: planar YUV and gray at a constant rate.

    Kept: size, rate, sample aspect ratio, color range. Not kept: times, the other color numbers.
    """

    label = ".y4m"

    @classmethod
    def holds(cls, video_format: VideoFormat) -> bool:
        """Whether the format is gray or YUV without alpha in a sampling that has a name here."""
        return _y4m_chroma(video_format.layout) is not None

    def _start(self, force: bool) -> None:
        super()._start(force)
        f = self.format
        rate, ratio = f.rate or Fraction(0), f.sample_aspect_ratio or Fraction(0)
        tags = [
            f"YUV4MPEG2 W{f.width} H{f.height} F{_pair(rate)} I? A{_pair(ratio)}",
            f"C{_y4m_chroma(f.layout)}",
        ]
        color_range = 2 if f.pix_fmt.startswith("yuvj") else f.color_range
        if color_range:
            tags.append("XCOLORRANGE=" + ("FULL" if color_range == 2 else "LIMITED"))
        self._file.write(" ".join(tags).encode() + b"\n")

    def _write(self, frame: Frame) -> None:
        self._file.write(b"FRAME\n")
        self._write_planes(frame)


class RawSink(_FileSink):
    """The component planes of every frame one after the other, little-endian, nothing else."""

    label = ".yuv"

    @classmethod
    def holds(cls, video_format: VideoFormat) -> bool:
        """Whether the format is known, that is always."""
        return True

    def _write(self, frame: Frame) -> None:
        self._write_planes(frame)


class ArraySink(_FileSink):
    """A .npy file: [T, H, W] for one component, else [T, H, W, C], uint8 or uint16.

    The order of the last axis is that of the format's components; their names are not kept.
    """

    label = ".npy"

    _HEADER_BYTES = 128

    @classmethod
    def holds(cls, video_format: VideoFormat) -> bool:
        """Whether all planes are of one size."""
        return len(set(video_format.plane_shapes)) == 1

    def _start(self, force: bool) -> None:
        super()._start(force)
        self._file.write(self._header())

    def _write(self, frame: Frame) -> None:
        if len(frame.planes) == 1:
            self._write_planes(frame)
            return
        pixels = np.stack(frame.planes, axis=-1)
        self._file.write(pixels.astype(pixels.dtype.newbyteorder("<"), copy=False).data)

    def _finish(self) -> None:
        self._file.seek(0)
        self._file.write(self._header())

    def _header(self) -> bytes:
        """The .npy header, as long for the final number of frames as for none."""
        f = self.format
        shape: tuple[int, ...] = (self.frames_written, f.height, f.width)
        if len(f.layout.components) > 1:
            shape += (len(f.layout.components),)
        descr = np.lib.format.dtype_to_descr(f.dtype.newbyteorder("<"))
        fields = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
        length = self._HEADER_BYTES - 10
        text = fields.encode().ljust(length - 1) + b"\n"
        return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + text


MAX_RATIO = (1 << 31) - 1  # what FFmpeg's ratios hold
MAX_COLOR = 255


class MatroskaSink(_FileSink):
    """FFV1 version 3 in Matroska, every frame on its own and every slice with a checksum.

    A few shapes that FFmpeg does not code right so, or not at all, are in version 1, which has no
    checksums.

    Kept: times to 1 ms (shifted to begin at zero if the first is negative), rate, sample aspect
    ratio, color description. RGB of 8 bits comes back as `bgr0` (with a padding component of zeros)
    or `bgra`, of 16 bits as `gbrp16le` or `gbrap16le`, `yuvj420p` as `yuv420p` of full range. A
    padding component must be zero, since FFV1 does not store it.
    """

    label = ".mkv"

    _container: av.container.OutputContainer

    @classmethod
    def holds(cls, video_format: VideoFormat) -> bool:
        """Whether FFV1 has a format with the same components and depth, and takes the size."""
        f = video_format
        ratios = [r for r in (f.time_base, f.rate, f.sample_aspect_ratio) if r is not None]
        numbers = [n for ratio in ratios for n in (ratio.numerator, ratio.denominator)]
        colors = (f.color_primaries, f.color_trc, f.colorspace)
        if max(numbers) > MAX_RATIO or max(colors) > MAX_COLOR:
            return False
        return _ffv1_options(video_format) is not None

    def _start(self, force: bool) -> None:
        super()._start(force)
        f = self.format
        # The same frames give the same bytes: no random identifier, no version of the library.
        options = {"fflags": "+bitexact"}
        self._container = av.open(self._file, "w", format="matroska", options=options)
        # PyAV writes a nominal rate in any case, 24 if none is given.
        ticks = 1 / f.time_base
        rate = f.rate or (ticks if ticks <= 240 else Fraction(25))
        stream = self._container.add_stream("ffv1", rate=rate)
        context = stream.codec_context
        stream.width, stream.height, stream.pix_fmt = f.width, f.height, _ffv1_name(f)
        # Both, since the muxer takes the stream's and the encoder its own.
        context.time_base = stream.time_base = f.time_base
        if f.sample_aspect_ratio:
            # The place of the aspect ratio, which `_finish` writes.
            stream.metadata["title"] = "-" * NAME_BYTES
        context.color_range = 2 if f.pix_fmt.startswith("yuvj") else f.color_range
        context.color_primaries = f.color_primaries
        context.color_trc = f.color_trc
        context.colorspace = f.colorspace
        context.options = _ffv1_options(f) or {}
        self._stream = stream
        with self._naming():
            self._container.start_encoding()

    def _write(self, frame: Frame) -> None:
        f = self.format
        letters = f.layout.components
        planes = frame.planes
        if letters.endswith("X"):
            if planes[-1].any():
                raise UnsupportedFormat(
                    f".mkv cannot hold {f.pix_fmt} with padding other than zero; "
                    "these can: .yuv, .npy"
                )
            letters, planes = letters[:-1], planes[:-1]
        picture = av.VideoFrame(f.width, f.height, _ffv1_name(f))
        fill(picture, planes, letters)
        picture.time_base = f.time_base
        picture.pts = frame.pts if frame.pts is not None else self._count_ticks()
        with self._naming():
            self._container.mux(self._stream.encode(picture))

    def _count_ticks(self) -> int:
        """The time of a frame whose source names none: by its number, in ticks."""
        period = 1 / (self.format.rate * self.format.time_base) if self.format.rate else 1
        return round(self.frames_written * period)

    def _finish(self) -> None:
        with self._naming():
            self._container.mux(self._stream.encode(None))
            self._container.close()
        f = self.format
        if f.sample_aspect_ratio:
            ratio = f.sample_aspect_ratio * Fraction(f.width, f.height)
            set_display_ratio(self._file, ratio.limit_denominator(1 << 24))

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except av.error.FFmpegError as error:
            raise InputError(
                f"cannot write frame {self.frames_written} to {self._path}: {error.strerror}"
            ) from error


class FolderSink(_Sink):
    """A folder of numbered PNG files: 000000.png, 000001.png, ...

    With `force`, or if it is empty, a folder is replaced that holds nothing but such files.
    """

    label = "a folder of PNG"

    _NAMES: ClassVar = {
        ("Y", 8): "gray",
        ("Y", 16): "gray16be",
        ("YA", 8): "ya8",
        ("YA", 16): "ya16be",
        ("RGB", 8): "rgb24",
        ("RGB", 16): "rgb48be",
        ("RGBA", 8): "rgba",
        ("RGBA", 16): "rgba64be",
    }

    @classmethod
    def holds(cls, video_format: VideoFormat) -> bool:
        """Whether PNG has the components at this depth."""
        layout = video_format.layout
        return (layout.components, layout.bit_depth) in cls._NAMES and not has_bit_fields(
            video_format.pix_fmt
        )

    def _start(self, force: bool) -> None:
        if self._path.is_dir():
            names = os.listdir(self._path)
            foreign = [name for name in names if not re.fullmatch(r"[0-9]{6,}\.png", name)]
            if force and foreign:
                raise OutputExists(f"{self._path} holds other files, such as {min(foreign)}")
            force = force or not names
        self._folder = self._stack.enter_context(atomic_path(self._path, force))
        self._folder.mkdir()
        f = self.format
        context = av.CodecContext.create("png", "w")
        context.width, context.height = f.width, f.height
        self._pix_fmt = self._NAMES[f.layout.components, f.layout.bit_depth]
        context.pix_fmt = self._pix_fmt
        context.time_base = Fraction(1, 25)
        context.sample_aspect_ratio = f.sample_aspect_ratio or Fraction(0)
        # One thread, so that every picture comes out at once.
        context.thread_count = 1
        context.options = {"pred": "mixed"}
        self._context = context

    def _write(self, frame: Frame) -> None:
        f = self.format
        picture = av.VideoFrame(f.width, f.height, self._pix_fmt)
        fill(picture, frame.planes, f.layout.components)
        picture.pts = self.frames_written
        (packet,) = self._context.encode(picture)
        with open(self._folder / f"{self.frames_written:06d}.png", "xb") as file:
            file.write(bytes(packet))
            file.flush()
            os.fsync(file.fileno())


SINKS: tuple[type[_Sink], ...] = (Y4mSink, MatroskaSink, RawSink, ArraySink, FolderSink)


def _pair(fraction: Fraction) -> str:
    """A rational number as .y4m writes it, 0:0 for unknown."""
    return f"{fraction.numerator}:{fraction.denominator}" if fraction else "0:0"


def _y4m_chroma(layout: PixelLayout) -> str | None:
    """The value of the C tag, with the extension by which FFmpeg tells the depth."""
    depth = "" if layout.bit_depth == 8 else str(layout.bit_depth)
    if layout.components == "Y":
        # FFmpeg does not read 14 bits.
        return None if depth == "14" else f"mono{depth}"
    samplings = {(1, 1): "420", (1, 0): "422", (0, 0): "444", (2, 0): "411"}
    sampling = samplings.get((layout.log2_chroma_w, layout.log2_chroma_h))
    if layout.components != "YUV" or sampling is None or (sampling == "411" and depth):
        return None
    if depth:
        return f"{sampling}p{depth} XYSCSS={sampling}P{depth}"
    # The place of the chroma samples is not known; this is what FFmpeg says then.
    return "420jpeg XYSCSS=420JPEG" if sampling == "420" else f"{sampling} XYSCSS={sampling}"


_FFV1_TWINS = {
    "nv12": "yuv420p",
    "nv21": "yuv420p",
    "nv16": "yuv422p",
    "yuyv422": "yuv422p",
    "uyvy422": "yuv422p",
    "nv24": "yuv444p",
    "gbrp": "bgr0",
    "rgb24": "bgr0",
    "bgr24": "bgr0",
    "rgb0": "bgr0",
    "0rgb": "bgr0",
    "0bgr": "bgr0",
    "gbrap": "bgra",
    "rgba": "bgra",
    "argb": "bgra",
    "abgr": "bgra",
    "bgr48le": "rgb48le",
    "bgra64le": "rgba64le",
}


def _ffv1_name(video_format: VideoFormat) -> str:
    """The format that holds the same samples in FFV1, or the format itself."""
    name = video_format.pix_fmt
    if name.startswith("yuvj"):
        return name.replace("yuvj", "yuv")
    return _FFV1_TWINS.get(name, name)


def _ffv1_options(video_format: VideoFormat) -> dict[str, str] | None:
    """The encoder's options, None if it does not take the format."""
    version3 = {"level": "3", "slicecrc": "1", "g": "1"}
    # FFmpeg's own number of slices fails for some narrow pictures, a single slice for large ones,
    # and either for a few, such as 1x1000. Version 1 has no slices.
    for options in (version3, {**version3, "slices": "1"}, {"level": "1", "g": "1"}):
        context = av.CodecContext.create("ffv1", "w")
        context.width, context.height = video_format.width, video_format.height
        context.time_base = Fraction(1, 25)
        context.options = options
        try:
            context.pix_fmt = _ffv1_name(video_format)
            context.open()
        except (av.error.FFmpegError, ValueError):
            continue
        is_common = options is version3 and video_format.layout.log2_chroma_w < 2
        if is_common or _is_lossless(context):
            return options
    return None


def _is_lossless(encoder: av.VideoCodecContext) -> bool:
    """Whether a picture of noise survives.

    FFmpeg cuts 4:1:1 and 4:1:0 into slices whose chroma, in many sizes, is not that of their luma.
    What survives depends on the place of the slices alone, hence on the size.
    """
    rng = np.random.default_rng(0)
    picture = av.VideoFrame(encoder.width, encoder.height, encoder.pix_fmt or "")
    coded = VideoFormat(encoder.width, encoder.height, native_name(picture.format.name))
    letters = coded.layout.components.replace("X", "")
    top = 1 << coded.layout.bit_depth
    shapes = coded.plane_shapes[: len(letters)]
    planes = tuple(rng.integers(0, top, shape, dtype=coded.dtype) for shape in shapes)
    fill(picture, planes, letters)
    picture.pts = 0
    packets = [*encoder.encode(picture), *encoder.encode(None)]
    decoder = av.CodecContext.create("ffv1", "r")
    decoder.width, decoder.height, decoder.pix_fmt = picture.width, picture.height, encoder.pix_fmt
    decoder.extradata = encoder.extradata
    decoded = [f for packet in (*packets, None) for f in decoder.decode(packet)]
    if len(decoded) != 1:
        return False
    # 16-bit RGB comes back planar, a padding component comes back besides.
    found = VideoFormat(coded.width, coded.height, native_name(decoded[0].format.name))
    pairs = zip(unpack(decoded[0], found), planes, strict=False)
    return all(np.array_equal(a, b) for a, b in pairs)
