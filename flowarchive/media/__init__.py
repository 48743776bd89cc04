"""Frames from and to files of other programs; the only importer of PyAV.

    path --open_source--> FrameSource: Frame, Frame, ...
    Frame, Frame, ... --open_sink--> path

What comes out of a source is what the decoder made, at native depth, in component planes. See
`flowarchive.frames` for the two protocols.
"""

from __future__ import annotations

import os
from pathlib import Path

from flowarchive.errors import UnsupportedFormat
from flowarchive.frames import FrameSink, FrameSource, VideoFormat
from flowarchive.media.sinks import ArraySink, FolderSink, MatroskaSink, RawSink, Y4mSink
from flowarchive.media.sources import ArraySource, FolderSource, VideoSource

__all__ = ["can_hold", "open_sink", "open_source"]


_FILE_SINKS = {".y4m": Y4mSink, ".mkv": MatroskaSink, ".yuv": RawSink, ".npy": ArraySink}


def open_source(path: str | os.PathLike[str]) -> FrameSource:
    """Open a video, an image, a folder of images or a .npy file for reading.

    Args:
        path: A folder, a file with the suffix .npy, or any other file that FFmpeg reads.

    Returns:
        A source whose `format` is known; a `VideoSource`, `FolderSource` or `ArraySource`.

    Raises:
        InputNotFound: There is no such file or folder, or it may not be read.
        UnsupportedFormat: Its pixel format, array shape or size is not supported.
        InputError: It is empty, damaged, or not a video, image or array.
    """
    source = Path(path)
    if source.is_dir():
        return FolderSource(source)
    if source.suffix.lower() == ".npy":
        return ArraySource(source)
    return VideoSource(source)


def open_sink(
    path: str | os.PathLike[str],
    format: VideoFormat,
    force: bool = False,
) -> FrameSink:
    """Open an output for frames of one format; its suffix says which kind.

    Args:
        path: .y4m, .mkv (FFV1), .yuv (bare component planes), .npy, or a folder of PNG files: a
            name without a suffix, or with a slash at the end.
        format: What every frame will be.
        force: Replace what is there already.

    Returns:
        A context manager whose output takes its name when the block ends without an error.

    Raises:
        UnsupportedFormat: The suffix is unknown, or such a file cannot hold the format unchanged.
        OutputExists: The output exists and `force` is not given, or it is of another kind.
        InputNotFound: The output's folder does not exist or may not be written.
    """
    name = os.fspath(path)
    suffix = Path(name).suffix.lower()
    if name.endswith(("/", os.sep)) or not suffix or Path(name).is_dir():
        return FolderSink(path, format, force)
    if suffix not in _FILE_SINKS:
        raise UnsupportedFormat(
            f"{name}: frames go to {', '.join(_FILE_SINKS)} or a folder of PNG, not to {suffix}"
        )
    return _FILE_SINKS[suffix](path, format, force)


def can_hold(suffix: str, format: VideoFormat) -> bool:
    """Whether `open_sink` takes a format unchanged; a suffix of `os.sep` is a folder."""
    return _FILE_SINKS.get(suffix, FolderSink).holds(format)
