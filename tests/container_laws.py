"""The law of the container: damaged bytes are refused, whichever way they are read.

`check_container` takes archives of any kind, and readers that decode the frames too. The small
archives of the container's own tests are made here, and taken apart without the code under test.
"""

from __future__ import annotations

import hashlib
import io
import random
import struct
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import google_crc32c

from flowarchive.container import END, Reader, Writer
from flowarchive.errors import FormatError

ReadAll = Callable[[BinaryIO], object]


def read_by_index(file: BinaryIO) -> object:
    """Open and read every part by the index: all bytes of the file, though not in order."""
    reader = Reader(file)
    return [reader.head, reader.model(), *(reader.chunk(i) for i in range(len(reader.index)))]


def read_checked(file: BinaryIO) -> object:
    """Open and check the whole file."""
    reader = Reader(file)
    reader.check()
    return reader


def read_as_stream(file: BinaryIO) -> object:
    """Read every record in order."""
    return list(Reader.stream(file))


READERS: tuple[ReadAll, ...] = (read_by_index, read_checked, read_as_stream)


class SuspiciousFile(io.BytesIO):
    """Fails a reader that believes a length: it asks for too much at once, or reads for ever."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.largest = max(len(data), 1 << 20)
        self.budget = 64 * len(data) + 4096

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert 0 <= size <= self.largest, f"a read of {size} bytes was asked for"
        data = super().read(size)
        self.budget -= max(len(data), 1)
        assert self.budget > 0, "the reader reads the same bytes again and again"
        return data


def refusal(data: bytes, read: ReadAll) -> FormatError | None:
    """Return the error that `read` refuses the bytes with, None if it takes them."""
    found: FormatError | None = None
    try:
        read(SuspiciousFile(data))
    except FormatError as error:
        found = error
    assert found is None or str(found).count("\n") == 0 < len(str(found)), "not one line of text"
    return found


def check_container(
    archive: bytes,
    readers: Iterable[ReadAll] = READERS,
    cuts: Iterable[int] | None = None,
    bits: Iterable[int] | None = None,
) -> None:
    """Assert that no truncation and no flipped bit of an archive is taken for an archive.

    Args:
        archive: The bytes of a whole archive, small if every position is to be tried.
        readers: Functions that read everything; each must take the archive itself.
        cuts: Lengths to truncate to, all by default.
        bits: Bits to flip, bit 0 of byte 0 first, all by default.
    """
    cuts = range(len(archive)) if cuts is None else list(cuts)
    bits = range(8 * len(archive)) if bits is None else list(bits)
    for read in readers:
        assert refusal(archive, read) is None, "the archive itself is refused"
        for cut in cuts:
            assert refusal(archive[:cut], read), f"cut to {cut} bytes it is taken as whole"
        for bit in bits:
            damaged = bytearray(archive)
            damaged[bit // 8] ^= 1 << bit % 8
            assert refusal(bytes(damaged), read), f"bit {bit} flips unnoticed"


HEAD_FIELDS = {"format": {"pix_fmt": "gray"}, "model": None, "chunk_frames": 3}
SHA256 = bytes(range(32))


def payload(frames: int, size: int, seed: int = 0) -> bytes:
    """A chunk of `size` bytes, of which the container knows the first four."""
    return struct.pack("<I", frames) + random.Random(seed).randbytes(size - 4)


CHUNKS = [(payload(3, 11, 1), 3), (payload(3, 11, 2), 3), (payload(1, 4), 1)]


def build(
    chunks: Iterable[tuple[bytes, int]] = tuple(CHUNKS),
    model: bytes | None = None,
    leading: bool = False,
    head: dict[str, Any] = HEAD_FIELDS,
) -> bytes:
    """An archive of these chunks, its model (if any) before or after them."""
    file = io.BytesIO()
    with Writer(file, head) as archive:
        if model is not None and leading:
            archive.model(SHA256, model)
        for data, frames in chunks:
            archive.chunk(data, frames)
        if model is not None and not leading:
            archive.model(SHA256, model)
    assert archive.bytes_written == len(file.getvalue())
    return file.getvalue()


def split(archive: bytes) -> list[tuple[bytes, bytes]]:
    """(type, payload) of every record, found without the code under test."""
    parts, position = [], 16
    while position < len(archive):
        kind, length = struct.unpack_from("<4sQ", archive, position)
        parts.append((kind, archive[position + 12 : position + 12 + length]))
        position += 16 + length
    return parts


def join(parts: list[tuple[bytes, bytes]]) -> bytes:
    """An archive with right checksums and a right digest, whatever else is wrong with it."""
    archive, crcs = archive_prologue(), archive_prologue()
    for kind, data in parts:
        if kind == END:
            data = data[:20] + hashlib.blake2b(crcs, digest_size=16).digest()
        record = struct.pack("<4sQ", kind, len(data)) + data
        crc = struct.pack("<I", google_crc32c.value(record))
        crcs += crc
        archive += record + crc
    return archive


def archive_prologue(version: int = 1, features: int = 0, reserved: int = 0) -> bytes:
    """The first 16 bytes, written down once more."""
    return b"\x89FLOW\r\n\n" + struct.pack("<HIH", version, features, reserved)


def flip(data: bytes, position: int, value: int = 1) -> bytes:
    """The data with one byte changed."""
    return data[:position] + bytes([data[position] ^ value]) + data[position + 1 :]


MODELS = {"none": (None, False), "first": (b"m" * 99, True), "last": (b"m" * 99, False)}
