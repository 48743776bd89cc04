"""The exceptions of flowarchive, and the exit code the command line gives each branch.

FlowArchiveError
  InputError               what we were given cannot be packed or written            6
    UnsupportedFormat      a pixel format, size or file type outside the list         6
    InputNotFound          there is no such file, or no permission to read it        10
    OutputExists           the output is there already, and `force` was not given     7
    SourceChanged          the source changed while it was read                       9
  FormatError              the archive's bytes are wrong                              4
    BadMagic               not an archive at all, or damaged by a text-mode copy      6
    UnsupportedVersion     a version or a mandatory feature this reader lacks         6
    Truncated              the archive ends before its END record                     4
    TrailingData           bytes follow the END record                                4
    ChecksumMismatch       a record or a frame is not what was written                4
    LimitExceeded          a length or a size above the documented caps               8
  ModelError               the model is not the one                                   6
    ModelNotFound          no model of that name, file or fingerprint                 6
    FingerprintMismatch    the model's bytes have another SHA-256                     4
    NotReproducible        the model or this machine fails the exactness check       13
  DeviceError              the device that was asked for is not there                13
  CodingError              the bits are wrong                                         4
    MessageExhausted       a pop from a message that holds too few bits               4
    InvalidInterval        an interval outside [0, 2**precision), or an empty one     4
"""

from __future__ import annotations

__all__ = [
    "BadMagic",
    "ChecksumMismatch",
    "CodingError",
    "DeviceError",
    "FingerprintMismatch",
    "FlowArchiveError",
    "FormatError",
    "InputError",
    "InputNotFound",
    "InvalidInterval",
    "LimitExceeded",
    "MessageExhausted",
    "ModelError",
    "ModelNotFound",
    "NotReproducible",
    "OutputExists",
    "SourceChanged",
    "TrailingData",
    "Truncated",
    "UnsupportedFormat",
    "UnsupportedVersion",
]


class FlowArchiveError(Exception):
    """Base of every error this package raises on purpose; its text is one clear line."""

    exit_code = 1


class InputError(FlowArchiveError):
    """What we were given cannot be packed or written."""

    exit_code = 6


class UnsupportedFormat(InputError):
    """A pixel format, frame size or file type outside the documented list."""


class InputNotFound(InputError):
    """There is no such file, or it may not be read."""

    exit_code = 10


class OutputExists(InputError):
    """The output is there already and `force` was not given."""

    exit_code = 7


class SourceChanged(InputError):
    """The source changed while it was being read."""

    exit_code = 9


class FormatError(FlowArchiveError):
    """The archive's bytes are wrong."""

    exit_code = 4


class BadMagic(FormatError):
    """The file is not an archive, or a text-mode transfer damaged it."""

    exit_code = 6


class UnsupportedVersion(FormatError):
    """The archive needs a format version or a mandatory feature this reader lacks."""

    exit_code = 6


class Truncated(FormatError):
    """The archive ends before its END record."""


class TrailingData(FormatError):
    """Bytes follow the END record."""


class ChecksumMismatch(FormatError):
    """A record's checksum or a frame's hash is not the one that was written."""


class LimitExceeded(FormatError):
    """A length or a size is above the documented caps."""

    exit_code = 8


class ModelError(FlowArchiveError):
    """The model is not the one the archive or the user named."""

    exit_code = 6


class ModelNotFound(ModelError):
    """No model of that name, file or fingerprint is at hand."""


class FingerprintMismatch(ModelError):
    """The model's bytes have another SHA-256 than the one that was asked for."""

    exit_code = 4


class NotReproducible(ModelError):
    """The model's known answer does not come out on this machine."""

    exit_code = 13


class DeviceError(FlowArchiveError):
    """The device that was asked for is not there, or has no kernels for the model."""

    exit_code = 13


class CodingError(FlowArchiveError):
    """The bits on the stack are wrong."""

    exit_code = 4


class MessageExhausted(CodingError):
    """A pop asked for more bits than the message holds."""


class InvalidInterval(CodingError):
    """An interval is empty or lies outside [0, 2**precision)."""
