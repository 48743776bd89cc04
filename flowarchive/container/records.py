"""One record at a time: the layout, the limits, the checksum, and what HEAD and MODEL hold.

type u32 | length u64 | payload | crc u32
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import google_crc32c
import zstandard

from flowarchive.errors import (
    BadMagic,
    ChecksumMismatch,
    FormatError,
    LimitExceeded,
    Truncated,
    UnsupportedVersion,
)

MAGIC = b"\x89FLOW\r\n\n"
VERSION = 1
FEATURES = 0
"""The mandatory features that this reader knows, as bits."""

HEAD = b"HEAD"
MODEL = b"MODL"
CHUNK = b"CHNK"
INDEX = b"INDX"
END = b"END "

MAX_HEAD = 1 << 20
MAX_MODEL = 1 << 26
MAX_CHUNK = 1 << 30
MAX_CHUNKS = 1 << 22

PROLOGUE_FIELDS = struct.Struct("<8sHIH")
PROLOGUE = PROLOGUE_FIELDS.pack(MAGIC, VERSION, FEATURES, 0)
HEADER = struct.Struct("<4sQ")
U32 = struct.Struct("<I")
MODEL_FIELDS = struct.Struct("<32sB")
INDEX_FIELDS = struct.Struct("<QI")
ENTRY_FIELDS = struct.Struct("<QQII")
END_FIELDS = struct.Struct("<QQI16s")

FRAMING = HEADER.size + U32.size
END_SIZE = FRAMING + END_FIELDS.size

LIMITS: dict[bytes, tuple[int, int]] = {
    HEAD: (2, MAX_HEAD),
    MODEL: (MODEL_FIELDS.size, MODEL_FIELDS.size + MAX_MODEL),
    CHUNK: (U32.size, MAX_CHUNK),
    INDEX: (INDEX_FIELDS.size, INDEX_FIELDS.size + ENTRY_FIELDS.size * MAX_CHUNKS),
    END: (END_FIELDS.size, END_FIELDS.size),
}
"""The smallest and the largest payload of each record type, in bytes."""

MODEL_RAW, MODEL_ZSTD = 0, 1
# A zstd block is at least 4 bytes and holds at most 128 KiB.
_ZSTD_BEST_RATIO = 1 << 15
# A stream's declared length is not trusted: memory grows with the bytes that have arrived.
_FIRST_READ = 1 << 20


class Record(NamedTuple):
    """One record of an archive, its checksum verified.

    Attributes:
        type: HEAD, MODEL, CHUNK, INDEX or END.
        offset: Where the record begins in the file, in bytes.
        payload: What it holds; `parse_head` and `parse_model` read two of them.
    """

    type: bytes
    offset: int
    payload: bytes


def parse_head(payload: bytes) -> dict[str, Any]:
    """Read HEAD's payload.

    Raises:
        FormatError: It is not a JSON object in canonical form.
    """
    try:
        return load_head(payload)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"HEAD is malformed: {error}") from None


def parse_model(payload: bytes) -> tuple[bytes, bytes]:
    """Read MODEL's payload: the fingerprint (32 bytes) and the model file.

    Raises:
        FormatError: The payload is malformed.
        LimitExceeded: The model file has more than `MAX_MODEL` bytes.
    """
    sha256, coding = MODEL_FIELDS.unpack_from(payload)
    data = payload[MODEL_FIELDS.size :]
    if coding == MODEL_RAW:
        return sha256, data
    if coding != MODEL_ZSTD:
        raise FormatError(f"model_coding is {coding}, not 0 or 1")
    try:
        size = zstandard.get_frame_parameters(data).content_size
        if size == zstandard.CONTENTSIZE_UNKNOWN or size <= len(data):
            raise FormatError("the model's zstd frame states no size, or no smaller one")
        if size > min(MAX_MODEL, _ZSTD_BEST_RATIO * len(data)):
            raise LimitExceeded(f"the model claims {size} bytes")
        model = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"the model does not decompress: {error}") from None
    return sha256, model


def dump_head(head: Mapping[str, Any]) -> bytes:
    """Return the canonical JSON of HEAD; ValueError if it has none."""
    try:
        text = json.dumps(dict(head), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    except (TypeError, RecursionError) as error:
        raise ValueError(f"HEAD is not JSON: {error}") from None
    return text.encode()


def load_head(payload: bytes) -> dict[str, Any]:
    """Return the object; ValueError unless its canonical form is the payload itself."""

    def integer(text: str) -> int:
        value = int(text)
        if not -(1 << 63) <= value < 1 << 63:
            raise ValueError("an integer does not fit 64 bits")
        return value

    def refuse(text: str) -> None:
        # Other languages print fractions in other ways.
        raise ValueError(f"the number {text} is not an integer")

    text = payload.decode()
    head = json.loads(text, parse_int=integer, parse_float=refuse, parse_constant=refuse)
    if not isinstance(head, dict) or dump_head(head) != payload:
        raise ValueError("not a JSON object in canonical form")
    return head


def leading_count(payload: bytes) -> int:
    """Return the first field of a chunk, the only one that this module reads."""
    count: int = U32.unpack_from(payload)[0]
    return count


def check_prologue(prologue: bytes) -> None:
    """Raise unless the first 16 bytes of the file, or what there is of them, are ours."""
    magic = prologue[: len(MAGIC)]
    if not MAGIC.startswith(magic):
        if b"FLOW" in magic:
            raise BadMagic("the archive was damaged by a transfer in text mode")
        raise BadMagic("not a flowarchive file")
    if len(prologue) < len(PROLOGUE):
        raise Truncated("the archive ends inside its first 16 bytes")
    _, version, features, reserved = PROLOGUE_FIELDS.unpack(prologue)
    if version != VERSION:
        raise UnsupportedVersion(f"the archive has format version {version}, not {VERSION}")
    if features & ~FEATURES or reserved:
        raise UnsupportedVersion(
            f"the archive needs features that this version lacks ({features:#x}, {reserved:#x})"
        )


def parse_header(header: bytes, offset: int) -> tuple[bytes, int]:
    """Return type and payload length of a record, the length within its limits."""
    kind, length = HEADER.unpack(header)
    if kind not in LIMITS:
        raise UnsupportedVersion(
            f"the record at offset {offset} is damaged or of a later format: type {kind!r}"
        )
    check_length(kind, length, offset)
    return kind, length


def check_length(kind: bytes, length: int, offset: int) -> None:
    """Raise unless a payload's length is within the limits of its record type."""
    smallest, largest = LIMITS[kind]
    if length > largest:
        raise LimitExceeded(
            f"{record_name(kind)} at offset {offset} claims {length} bytes, more than {largest}"
        )
    if length < smallest:
        raise FormatError(
            f"{record_name(kind)} at offset {offset} has {length} bytes, less than {smallest}"
        )


def record_name(kind: bytes) -> str:
    """Return the name that docs/format.md gives a record type."""
    return {MODEL: "MODEL", CHUNK: "CHUNK", INDEX: "INDEX"}.get(kind, kind.decode().strip())


def record_crc(header: bytes, payload: bytes) -> int:
    """Return the CRC32C of a record."""
    crc: int = google_crc32c.extend(google_crc32c.value(header), payload)
    return crc


def checked_crc(header: bytes, payload: bytes, stored: bytes, offset: int) -> int:
    """Return the CRC32C of a record, or raise ChecksumMismatch if another is stored."""
    crc = record_crc(header, payload)
    if U32.pack(crc) != stored:
        raise ChecksumMismatch(f"{record_name(header[:4])} at offset {offset} is damaged")
    return crc


def read_exactly(file: BinaryIO, count: int, trusted: bool = False) -> bytes:
    """Read `count` bytes or raise Truncated.

    Args:
        file: A binary stream; short reads are repeated.
        count: Bytes to read.
        trusted: The stream is known to hold that many, so they may be asked for at once.
    """
    data = read_upto(file, count, trusted)
    if len(data) < count:
        raise Truncated("the archive ends before its END record")
    return data


def read_upto(file: BinaryIO, count: int, trusted: bool = False) -> bytes:
    """Read `count` bytes, fewer only where the stream ends."""
    pieces: list[bytes] = []
    have = 0
    while have < count:
        wanted = count - have
        piece = file.read(wanted if trusted else min(wanted, max(have, _FIRST_READ)))
        if piece is None:
            raise BlockingIOError("the input stream has no bytes yet")
        if not piece:
            break
        pieces.append(piece)
        have += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
