"""Sources of frames: videos through FFmpeg, folders of images, NumPy arrays.

Samples are handed out as the decoder made them. What cannot be read whole is an error that names
the file and the frame: nothing is skipped, concealed or converted.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import av
import av.error
import numpy as np
from numpy.typing import NDArray

from flowarchive.errors import InputError, InputNotFound, SourceChanged, UnsupportedFormat
from flowarchive.frames import Frame, Plane, VideoFormat
from flowarchive.media.damage import ffv1_slices_are_intact, missing_bytes
from flowarchive.media.pixels import native_name, unpack

__all__ = ["ArraySource", "FolderSource", "VideoSource"]

# Codecs that FFmpeg lists as both lossy and lossless and that are lossless as they are met.
_MOSTLY_LOSSLESS = frozenset({"jpegls", "tiff", "exr"})


class _Source:
    """What all sources share; see `flowarchive.frames.FrameSource`."""

    format: VideoFormat
    frame_count: int | None = None
    source_bytes: int | None = None
    lossy: bool = False

    def __iter__(self) -> Iterator[Frame]:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Free what was opened; closing twice is allowed."""


class VideoSource(_Source):
    """The first video stream of a file that FFmpeg reads, in presentation order.

    The decoder is told to stop at damage. It works on the slices of a picture in parallel, not on
    pictures: with threads of its own for each picture FFmpeg loses the errors, and with them the
    pictures, that come up while the last ones are drained.

    Attributes:
        frame_count: What a .y4m, .mp4 or .mov file says, which an edit list may cut; else None.
        source_bytes: Size of the file.
        lossy: The codec is a lossy one, or one that is mostly used so (H.264, HEVC, AV1 ...).
        ignored_streams: Type and codec of the other streams of the file, such as "audio aac".

    Raises:
        InputNotFound: There is no such file, or it may not be read.
        UnsupportedFormat: Its pixel format or size is not supported; while iterating, one of them
            or the color description changes.
        InputError: It is empty, unreadable, has no video stream or no frame, ends too early, or
            (while iterating) a frame is damaged.
        SourceChanged: The file is not the one that was opened when its last frame has been read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._state = _file_state(self._path)
        self.source_bytes = self._state[0]
        if self.source_bytes == 0:
            raise InputError(f"{path} is empty")
        self._delivered = 0
        self._container = self._open()
        try:
            self._stream = self._choose_stream()
            self._frames = self._decode()
            with self._naming():
                first = next(self._frames, None)
            if first is None:
                raise InputError(f"{path}: its video stream holds no frame")
            self._first: Frame | None = first
        except BaseException:
            self._container.close()
            raise

    def _open(self) -> av.container.InputContainer:
        # The prefix keeps a name such as "pipe:0.mkv" from being taken for a protocol, the white
        # list keeps a play list from opening other hosts, and the pattern type keeps "%03d.png"
        # from being taken for a sequence.
        name = "file:" + os.path.abspath(self._path)
        options = {"protocol_whitelist": "file", "pattern_type": "none"}
        with self._naming():
            return av.open(name, options=options, metadata_errors="replace")

    def _choose_stream(self) -> av.VideoStream:
        """Pick the first video stream that is not a cover picture, and set its decoder up."""
        streams = self._container.streams
        cover = av.stream.Disposition.attached_pic
        videos = [s for s in streams.video if not s.disposition & cover]
        if not videos:
            raise InputError(f"{self._path} has no video stream")
        stream = videos[0]
        self.ignored_streams = tuple(
            f"{s.type} {s.codec_context.name if s.codec_context else 'of unknown codec'}"
            for s in streams
            if s is not stream
        )
        # PyAV has no context for a codec without a decoder.
        if not stream.codec_context:
            raise InputError(f"{self._path}: there is no decoder for its video stream")
        stream.thread_type = "SLICE"
        stream.codec_context.options = {"err_detect": "crccheck+bitstream+buffer+explode"}
        # Other containers count what they do not hold: AVI, for one, its dropped frames.
        if self._container.format.name.startswith("mov"):
            self.frame_count = stream.frames or None
        with open(self._path, "rb") as file:
            missing = missing_bytes(file, self._container.format.name)
        if missing:
            raise InputError(f"{self._path} ends {missing} bytes too early")
        return stream

    def __iter__(self) -> Iterator[Frame]:
        if self._first is not None:
            first, self._first = self._first, None
            yield first
        while True:
            with self._naming():
                frame = next(self._frames, None)
            if frame is None:
                break
            yield frame
        if _file_state(self._path) != self._state:
            raise SourceChanged(f"{self._path} was changed while it was read")

    def _decode(self) -> Generator[Frame]:
        """Demux, check and decode; errors of FFmpeg pass through."""
        stream, end = self._stream, 0
        context, is_y4m = stream.codec_context, self._container.format.name == "yuv4mpegpipe"
        # Version 3 of FFV1 has a configuration record, and slices that tell their size.
        is_sliced_ffv1 = context.name == "ffv1" and bool(context.extradata)
        checked: bool | None = None
        for packet in self._container.demux(stream):
            if packet.is_corrupt:
                raise self._damaged("its data is incomplete")
            if is_sliced_ffv1 and packet.size:
                intact, checked = ffv1_slices_are_intact(bytes(packet), checked)
                if not intact:
                    raise self._damaged("the checksum of a slice is wrong")
            if is_y4m and packet.pos is not None:
                if end == 0:
                    self.frame_count = self._count_y4m(packet.pos, packet.size)
                end = packet.pos + packet.size
            for picture in packet.decode():
                if picture.is_corrupt:
                    raise self._damaged("the decoder found errors in it")
                yield self._frame(picture)
        # FFmpeg drops an incomplete last frame, or all that follows a wrong frame header.
        if is_y4m and end != self._state[0]:
            raise self._damaged("it is incomplete")

    def _count_y4m(self, position: int, size: int) -> int | None:
        """Count the frames of a .y4m file by its size, if all have the header "FRAME"."""
        header = len(b"FRAME\n")
        frames, rest = divmod(self._state[0] - position + header, size + header)
        return None if rest else frames

    def _damaged(self, reason: str) -> InputError:
        return InputError(f"{self._path}: frame {self._delivered} is damaged: {reason}")

    def _frame(self, picture: av.VideoFrame) -> Frame:
        """Turn a decoded picture into a frame of the sequence's format."""
        found = self._format_of(picture)
        if self._delivered == 0:
            self.format = found
            self.lossy = _is_lossy(self._stream.codec_context, found)
        elif found != self.format:
            raise UnsupportedFormat(
                f"{self._path}: frame {self._delivered} is {_describe(found, self.format)}, "
                f"the video began with {_describe(self.format, found)}"
            )
        planes = unpack(picture, self.format)
        depth = self.format.layout.bit_depth
        if depth % 8 and any(int(plane.max()) >> depth for plane in planes):
            raise self._damaged(f"a sample does not fit {depth} bits")
        self._delivered += 1
        return Frame(planes, picture.pts)

    def _format_of(self, picture: av.VideoFrame) -> VideoFormat:
        stream = self._stream
        rate = stream.average_rate or stream.guessed_rate
        ratio = stream.sample_aspect_ratio
        try:
            return VideoFormat(
                width=picture.width,
                height=picture.height,
                pix_fmt=native_name(picture.format.name),
                time_base=Fraction(stream.time_base or 0),
                rate=Fraction(rate) if rate else None,
                sample_aspect_ratio=Fraction(ratio) if ratio else None,
                color_range=int(picture.color_range),
                color_primaries=int(picture.color_primaries),
                color_trc=int(picture.color_trc),
                colorspace=int(picture.colorspace),
            )
        except UnsupportedFormat as error:
            raise UnsupportedFormat(f"{self._path}: {error}") from error

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Turn FFmpeg's errors into ours, in one line."""
        try:
            yield
        except (FileNotFoundError, PermissionError) as error:
            raise InputNotFound(f"cannot read {self._path}: {error.strerror}") from error
        except (av.error.FFmpegError, OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            if self._delivered or hasattr(self, "_stream"):
                raise self._damaged(reason) from error
            raise InputError(f"{self._path} is not a video or image: {reason}") from error

    def close(self) -> None:
        """Free the decoder and the file; closing twice is allowed."""
        self._frames.close()
        self._container.close()


class FolderSource(_Source):
    """A folder of images of one size and pixel format, in natural order: 2.png before 10.png.

    Files whose name begins with a dot are ignored; every other one must be an image. The format's
    time base is 1/25 s, for want of a rate; the color description is the first image's.

    Attributes:
        frame_count: Number of the images.
        source_bytes: Sum of their sizes.
        lossy: The first image's codec is lossy; set as soon as a later one's is.

    Raises:
        InputNotFound: There is no such folder, or it may not be read.
        UnsupportedFormat: The first image's pixel format is not supported.
        InputError: The folder is empty; (while iterating) a file is no image, or is not of the
            first one's size and pixel format, or the folder holds another folder.
        SourceChanged: A file changed while it was read, or files came or went.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._files = self._list()
        if not self._files:
            raise InputError(f"{path} holds no images")
        self.frame_count = len(self._files)
        self.source_bytes = sum(_file_state(file)[0] for file in self._files)
        with VideoSource(self._files[0]) as image:
            rate = VideoFormat(1, 1, "gray").time_base
            self.format = _with_time_base(image.format, rate)
            self.lossy = image.lossy

    def _list(self) -> list[Path]:
        try:
            names = [name for name in os.listdir(self._path) if not name.startswith(".")]
        except OSError as error:
            raise InputNotFound(f"cannot read {self._path}: {error.strerror}") from error
        return [self._path / name for name in sorted(names, key=_natural)]

    def __iter__(self) -> Iterator[Frame]:
        for number, file in enumerate(self._files):
            with VideoSource(file) as image:
                found = image.format
                ours = self.format
                if (found.width, found.height, found.pix_fmt) != (
                    ours.width,
                    ours.height,
                    ours.pix_fmt,
                ):
                    raise InputError(
                        f"{file} is {_describe(found, ours)}, "
                        f"the folder began with {_describe(ours, found)}"
                    )
                frame, *more = image
                if more:
                    raise InputError(f"{file} holds more than one image")
                self.lossy = self.lossy or image.lossy
            yield Frame(frame.planes, number)
        if self._list() != self._files:
            raise SourceChanged(f"files came or went in {self._path} while it was read")


class ArraySource(_Source):
    """The frames of a .npy file: [T, H, W] or [T, H, W, C], uint8 or uint16, C = 1..4.

    One component is gray, two are gray and alpha, three R, G, B, four R, G, B, A. The file is
    mapped, not read. The format's time base is 1/25 s, for want of a rate.

    Raises:
        InputNotFound: There is no such file, or it may not be read.
        UnsupportedFormat: The array's shape or type is not one of these.
        InputError: The file is not a .npy file, is cut short, or holds no frame.
        SourceChanged: The file is not the one that was opened when its last frame has been read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._state = _file_state(self._path)
        self.source_bytes = self._state[0]
        try:
            # Not `np.load`, which would also take archives and pickles.
            array: NDArray[Any] = np.lib.format.open_memmap(self._path, mode="r")
        except (ValueError, OSError, EOFError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{path} is not a readable .npy file: {reason}") from error
        shape = list(array.shape)
        if array.ndim == 3:
            array = array[..., np.newaxis]
        formats = {
            1: ("gray", "gray16le"),
            2: ("ya8", "ya16le"),
            3: ("rgb24", "rgb48le"),
            4: ("rgba", "rgba64le"),
        }
        # The array's byte order is free: dtype.kind and size, not equality.
        kind = (array.dtype.kind, array.dtype.itemsize)
        if array.ndim != 4 or array.shape[-1] not in formats or kind not in (("u", 1), ("u", 2)):
            raise UnsupportedFormat(
                f"{path} is {array.dtype} {shape}: frames are uint8 or uint16 "
                "[T, H, W] or [T, H, W, C] with C = 1..4"
            )
        if array.size == 0:
            raise InputError(f"{path} holds no frames")
        self._array = array
        self.frame_count = array.shape[0]
        pix_fmt = formats[array.shape[-1]][array.dtype.itemsize - 1]
        self.format = VideoFormat(array.shape[2], array.shape[1], pix_fmt)

    def __iter__(self) -> Iterator[Frame]:
        dtype = self.format.dtype
        for number, picture in enumerate(self._pictures()):
            planes: list[Plane] = [
                np.array(picture[..., c], dtype=dtype, order="C") for c in range(picture.shape[-1])
            ]
            yield Frame(tuple(planes), number)
        if _file_state(self._path) != self._state:
            raise SourceChanged(f"{self._path} was changed while it was read")

    def _pictures(self) -> Iterator[NDArray[Any]]:
        """Yield each frame's samples [H, W, C], read rather than mapped where they lie together.

        A file that is cut while it is mapped would end the process.
        """
        if not isinstance(self._array, np.memmap) or not self._array.flags.c_contiguous:
            yield from self._array
            return
        shape, size = self._array.shape[1:], self._array[0].nbytes
        with self._path.open("rb") as file:
            file.seek(self._array.offset)
            for _ in range(self._array.shape[0]):
                data = file.read(size)
                if len(data) < size:
                    raise SourceChanged(f"{self._path} was changed while it was read")
                yield np.frombuffer(data, self._array.dtype).reshape(shape)


def _is_lossy(context: Any, video_format: VideoFormat) -> bool:
    """Whether the codec of a stream loses samples, as far as its name tells."""
    codec = context.codec
    if not codec.lossy or codec.canonical_name in _MOSTLY_LOSSLESS:
        return False
    # The lossless kind of WebP is the one in RGB.
    is_lossless_webp = codec.canonical_name == "webp" and "R" in video_format.layout.components
    return not is_lossless_webp


def _describe(ours: VideoFormat, other: VideoFormat) -> str:
    """Size and pixel format, and with them the color description where only that differs."""
    text = f"{ours.width}x{ours.height} {ours.pix_fmt}"
    if (ours.width, ours.height, ours.pix_fmt) == (other.width, other.height, other.pix_fmt):
        numbers = (ours.color_range, ours.color_primaries, ours.color_trc, ours.colorspace)
        text += f" with color description {'/'.join(map(str, numbers))}"
    return text


def _with_time_base(video_format: VideoFormat, time_base: Fraction) -> VideoFormat:
    fields = {**video_format.__dict__, "time_base": time_base, "rate": None}
    return VideoFormat(**fields)


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """A sort key that compares the numbers in a name by value."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(p), "") if i % 2 else (-1, p) for i, p in enumerate(parts)], name


def _file_state(path: Path) -> tuple[int, int]:
    """Size and time of change of a regular file."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is not a regular file")
        with open(path, "rb"):
            return status.st_size, status.st_mtime_ns
    except OSError as error:
        raise InputNotFound(f"cannot read {path}: {error.strerror}") from error
