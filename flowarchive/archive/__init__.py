"""Whole archives: packing, unpacking, verifying, and reading frames out of one.

Here frames, models and the container meet, and nowhere else:

    commands   pack, unpack, verify, info, models: what the command line calls
    writer     create, ArchiveWriter: frames in
    reader     open, Archive: frames out
    chunks     a group of frames to a Chunk and back, by way of a model and one message
    parallel   several chunks at a time, in order
"""

from flowarchive.archive.commands import (
    PackReport,
    UnpackReport,
    VerifyReport,
    info,
    models,
    pack,
    unpack,
    verify,
)
from flowarchive.archive.reader import Archive, Frames, open
from flowarchive.archive.writer import ArchiveWriter, create

__all__ = [
    "Archive",
    "ArchiveWriter",
    "Frames",
    "PackReport",
    "UnpackReport",
    "VerifyReport",
    "create",
    "info",
    "models",
    "open",
    "pack",
    "unpack",
    "verify",
]
