"""Frames from and to files of other programs; the only importer of PyAV.

    path --open_source--> FrameSource: Frame, Frame, ...
    Frame, Frame, ... --open_sink--> path

What comes out of a source is what the decoder made, at native depth, in component planes. See
`flowarchive.frames` for the two protocols.
"""

from __future__ import annotations

import os
from pathlib import Path

from flowarchive.frames import FrameSource
from flowarchive.media.sources import ArraySource, FolderSource, VideoSource

__all__ = ["open_source"]


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
