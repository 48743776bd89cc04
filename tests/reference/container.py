"""Sections "Prologue" to "Limits": the records of a file, read in order, and their checks."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from typing import Any

import zstandard

from reference.layouts import LAYOUTS
from reference.refusal import Refused, demand

MAGIC = b"\x89FLOW\r\n\n"
MAX_CHUNKS = 2**22
MAX_MODEL = 2**26
MAX_WINDOW = 128 * 2**20
# type: (smallest, largest) length of the payload
LENGTHS = {
    b"HEAD": (2, 2**20),
    b"MODL": (33, 33 + MAX_MODEL),
    b"CHNK": (4, 2**30),
    b"INDX": (12, 12 + 24 * MAX_CHUNKS),
    b"END ": (36, 36),
}
# The order of the types, one letter each, as a regular expression.
ORDER = re.compile(r"H(MC*|C*M?)IE")


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


CRC_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """The Castagnoli CRC, reflected: 0x82F63B78 is 0x1EDC6F41 with its bits in reverse."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


@dataclass
class Record:
    """One record of the file.

    Attributes:
        kind: Its type, four bytes.
        offset: Where it begins.
        payload: What it holds.
        crc: Its checksum, which is right.
    """

    kind: bytes
    offset: int
    payload: bytes
    crc: int


@dataclass
class Container:
    """What a file holds, undecoded.

    Attributes:
        head: The fields of HEAD.
        model: The model file, None if it is not inside.
        chunks: The payloads of the CHUNK records.
    """

    head: dict[str, Any]
    model: bytes | None
    chunks: list[bytes]


def read_container(data: bytes) -> Container:
    """Read a whole file and check everything but the insides of chunks."""
    read_prologue(data)
    records = read_records(data)
    demand(ORDER.fullmatch("".join(chr(r.kind[0]) for r in records)) is not None, "order")
    of = {kind: [r for r in records if r.kind == kind] for kind in LENGTHS}
    head = read_head(of[b"HEAD"][0].payload)
    check_index(records, of[b"INDX"][0].payload)
    check_end(data, records)
    models = [read_model(r.payload, head) for r in of[b"MODL"]]
    return Container(head, models[0] if models else None, [r.payload for r in of[b"CHNK"]])


def read_prologue(data: bytes) -> None:
    """Section "Prologue"."""
    demand(data[:8] == MAGIC[: len(data)], "the first bytes are not MAGIC", "BadMagic")
    demand(len(data) >= 16, "the file ends in the prologue", "Truncated")
    version, features, reserved = struct.unpack_from("<HIH", data, 8)
    demand((version, features, reserved) == (1, 0, 0), "another version", "UnsupportedVersion")


def read_records(data: bytes) -> list[Record]:
    """Section "Record": all records up to END, which must be the end of the file."""
    records: list[Record] = []
    offset = 16
    while not records or records[-1].kind != b"END ":
        demand(len(data) >= offset + 12, "the file ends before END", "Truncated")
        kind, length = struct.unpack_from("<4sQ", data, offset)
        demand(kind in LENGTHS, f"record type {kind!r}", "UnsupportedVersion")
        smallest, largest = LENGTHS[kind]
        demand(length <= largest, "a record is too long", "LimitExceeded")
        demand(length >= smallest, "a record is too short")
        end = offset + 12 + length
        demand(len(data) >= end + 4, "the file ends in a record", "Truncated")
        (crc,) = struct.unpack_from("<I", data, end)
        demand(crc == crc32c(data[offset:end]), "a record's crc", "ChecksumMismatch")
        records.append(Record(kind, offset, data[offset + 12 : end], crc))
        offset = end + 4
    demand(offset == len(data), "bytes follow END", "TrailingData")
    return records


def canonical(value: Any) -> bytes:
    """The canonical form of a JSON value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8")


def _integer(text: str) -> int:
    demand(len(text) <= 20 and -(2**63) <= int(text) < 2**63, "an integer out of range")
    return int(text)


def _no_number(text: str) -> None:
    raise Refused("FormatError", f"{text} is no integer")


def read_head(payload: bytes) -> dict[str, Any]:
    """Section "HEAD"."""
    try:
        head = json.loads(
            payload.decode("utf-8"),
            parse_int=_integer,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
        demand(canonical(head) == payload, "HEAD is not canonical")
    except (ValueError, RecursionError) as error:
        raise Refused("FormatError", "HEAD is no JSON") from error
    demand(isinstance(head, dict), "HEAD is no object")
    check_video_format(head.get("format"))
    model = head.get("model")
    demand(isinstance(model, dict) and isinstance(model.get("name"), str), "model")
    sha256 = model.get("sha256")
    demand(isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256) is not None, "sha256")
    demand(is_integer(head.get("chunk_frames"), 1, 2**63), "chunk_frames")
    demand(isinstance(head.get("producer", ""), str), "producer")
    demand(isinstance(head.get("source", {}), dict), "source")
    return head


def is_integer(value: Any, least: int, most: int) -> bool:
    """Whether a JSON value is an integer in a range."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def check_video_format(video: Any) -> None:
    """Section "HEAD", the table of VideoFormat."""
    demand(isinstance(video, dict), "format is no object")

    def is_ratio(value: Any) -> bool:
        return (
            isinstance(value, list)
            and len(value) == 2
            and all(is_integer(v, 1, 2**63) for v in value)
            and gcd(*value) == 1
        )

    rules: dict[str, Callable[[Any], bool]] = {
        "width": lambda v: is_integer(v, 1, 65536),
        "height": lambda v: is_integer(v, 1, 65536),
        "pix_fmt": lambda v: isinstance(v, str) and v in LAYOUTS,
        "time_base": is_ratio,
        "rate": lambda v: v is None or is_ratio(v),
        "sample_aspect_ratio": lambda v: v is None or is_ratio(v),
        "color_range": lambda v: is_integer(v, 0, 2),
        "color_primaries": lambda v: is_integer(v, 0, 2**63),
        "color_trc": lambda v: is_integer(v, 0, 2**63),
        "colorspace": lambda v: is_integer(v, 0, 2**63),
    }
    demand(video.keys() == rules.keys(), "the keys of format", "UnsupportedFormat")
    for key, rule in rules.items():
        demand(rule(video[key]), key, "UnsupportedFormat")


def read_model(payload: bytes, head: dict[str, Any]) -> bytes:
    """Section "MODEL"."""
    sha256, coding, data = payload[:32], payload[32], payload[33:]
    demand(coding in (0, 1), "model_coding")
    if coding == 1:
        size = len(data)
        data = read_zstd(data, MAX_MODEL)
        demand(size < len(data), "model_coding 1 that saves nothing")
    demand(len(data) <= MAX_MODEL, "the model is too large", "LimitExceeded")
    named = sha256.hex() == head["model"]["sha256"]
    demand(named, "another model than HEAD's", "FingerprintMismatch")
    demand(hashlib.sha256(data).digest() == sha256, "the model's sha256", "FingerprintMismatch")
    return data


def read_zstd(data: bytes, limit: int, size: int | None = None) -> bytes:
    """Section "zstd": the contents, of `size` bytes if that is given."""
    try:
        parameters = zstandard.get_frame_parameters(data)
        stated = parameters.content_size
        demand(stated != zstandard.CONTENTSIZE_UNKNOWN, "a zstd frame without its size")
        demand(parameters.dict_id == 0, "a zstd frame with a dictionary")
        demand(parameters.window_size <= MAX_WINDOW, "a zstd window")
        demand(size is None or stated == size, "a zstd frame of another size")
        demand(stated <= limit, "a zstd frame is too large", "LimitExceeded")
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).decompressobj()
        contents = decompressor.decompress(data)
    except zstandard.ZstdError as error:
        raise Refused("FormatError", "a zstd frame is damaged") from error
    demand(decompressor.eof and not decompressor.unused_data, "a zstd frame's end")
    demand(len(contents) == stated, "a zstd frame's size")
    return contents


def check_index(records: list[Record], payload: bytes) -> None:
    """Section "INDEX": it says what the records say."""
    models = [r for r in records if r.kind == b"MODL"]
    model = (models[0].offset, models[0].crc) if models else (0, 0)
    expected = struct.pack("<QI", *model)
    first_frame = 0
    for record in records:
        if record.kind == b"CHNK":
            (count,) = struct.unpack_from("<I", record.payload)
            expected += struct.pack("<QQII", record.offset, first_frame, count, record.crc)
            first_frame += count
    demand(payload == expected, "INDEX disagrees with the records")


def check_end(data: bytes, records: list[Record]) -> None:
    """Section "END": it says what the records say."""
    *before, index, end = records
    counts = [struct.unpack_from("<I", r.payload)[0] for r in before if r.kind == b"CHNK"]
    offset, frames, chunks, digest = struct.unpack("<QQI16s", end.payload)
    expected = (index.offset, sum(counts), len(counts))
    demand((offset, frames, chunks) == expected, "END disagrees with the records")
    crcs = b"".join(struct.pack("<I", r.crc) for r in (*before, index))
    computed = hashlib.blake2b(data[:16] + crcs, digest_size=16).digest()
    demand(digest == computed, "the digest of END", "ChecksumMismatch")
