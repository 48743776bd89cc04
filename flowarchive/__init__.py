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
        open,
        pack,
        unpack,
        verify,
    )
    from flowarchive.archive import models as list_models
    from flowarchive.errors import (
        BadMagic,
        ChecksumMismatch,
        CodingError,
        DeviceError,
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
    "DeviceError",
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
    "list_models",
    "open",
    "pack",
    "unpack",
    "verify",
]

_ERRORS = "flowarchive.errors"
_HOMES = {
    "Archive": "flowarchive.archive",
    "ArchiveWriter": "flowarchive.archive",
    "Frame": "flowarchive.frames",
    "PackReport": "flowarchive.archive",
    "UnpackReport": "flowarchive.archive",
    "VerifyReport": "flowarchive.archive",
    "VideoFormat": "flowarchive.frames",
    "create": "flowarchive.archive",
    "info": "flowarchive.archive",
    "list_models": "flowarchive.archive",
    "open": "flowarchive.archive",
    "pack": "flowarchive.archive",
    "unpack": "flowarchive.archive",
    "verify": "flowarchive.archive",
}
# `flowarchive.models` is the subpackage, so the public function goes by another name.
_RENAMED = {"list_models": "models"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(_HOMES.get(name, _ERRORS))
    value = getattr(home, _RENAMED.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
