"""A lossless video archiver with learned integer flows.

The public names are loaded when they are first asked for, so that importing the package costs
nothing: no torch, no av, no numba until a frame is coded.

Example:
    >>> import flowarchive
    >>> flowarchive.VideoFormat(640, 360, "yuv420p").samples_per_frame
    345600
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowarchive.archive import (
        Archive,
        ArchiveWriter,
        PackReport,
        UnpackReport,
        VerifyReport,
        create,
        info,
        models,
        open,  # noqa: A004 - flowarchive.open is meant to read like open
        pack,
        unpack,
        verify,
    )
    from flowarchive.errors import (
        BadMagic,
        ChecksumMismatch,
        CodingError,
        FingerprintMismatch,
        FlowArchiveError,
        FormatError,
        InputError,
        InputNotFound,
        InvalidInterval,
        LimitExceeded,
        MessageExhausted,
        ModelError,
        ModelNotFound,
        NotReproducible,
        OutputExists,
        SourceChanged,
        TrailingData,
        Truncated,
        UnsupportedFormat,
        UnsupportedVersion,
    )
    from flowarchive.frames import Frame, VideoFormat

__version__ = "0.1.0"

__all__ = [
    "Archive",
    "ArchiveWriter",
    "BadMagic",
    "ChecksumMismatch",
    "CodingError",
    "FingerprintMismatch",
    "FlowArchiveError",
    "FormatError",
    "Frame",
    "InputError",
    "InputNotFound",
    "InvalidInterval",
    "LimitExceeded",
    "MessageExhausted",
    "ModelError",
    "ModelNotFound",
    "NotReproducible",
    "OutputExists",
    "PackReport",
    "SourceChanged",
    "TrailingData",
    "Truncated",
    "UnpackReport",
    "UnsupportedFormat",
    "UnsupportedVersion",
    "VerifyReport",
    "VideoFormat",
    "__version__",
    "create",
    "info",
    "models",
    "open",
    "pack",
    "unpack",
    "verify",
]

_IN_ARCHIVE = frozenset(
    "Archive ArchiveWriter PackReport UnpackReport VerifyReport "
    "create info models open pack unpack verify".split()
)
_IN_FRAMES = frozenset({"Frame", "VideoFormat"})


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _IN_ARCHIVE:
        home = "flowarchive.archive"
    elif name in _IN_FRAMES:
        home = "flowarchive.frames"
    else:
        home = "flowarchive.errors"
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
