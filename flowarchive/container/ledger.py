"""The account of an archive: which record may follow which, and what INDEX and END must say."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from flowarchive.container.records import (
    CHUNK,
    END,
    END_FIELDS,
    ENTRY_FIELDS,
    FRAMING,
    HEAD,
    INDEX,
    INDEX_FIELDS,
    MAX_CHUNKS,
    MODEL,
    PROLOGUE,
    U32,
    check_length,
    record_name,
)
from flowarchive.errors import ChecksumMismatch, FormatError, LimitExceeded


class IndexEntry(NamedTuple):
    """Where one chunk is.

    Attributes:
        offset: Offset of its record in the file, in bytes.
        first_frame: Frames in all chunks before it.
        frame_count: Frames in it, at least 1.
        crc: CRC32C of its record.
        size: Bytes its record takes in the file.
    """

    offset: int
    first_frame: int
    frame_count: int
    crc: int
    size: int


class Index:
    """The entries of an archive's chunks: `len`, subscripts from 0, iteration."""

    def __init__(self, entries: bytes, end: int) -> None:
        self._entries = entries
        self._end = end  # offset of the first byte after the last chunk

    def __len__(self) -> int:
        return len(self._entries) // ENTRY_FIELDS.size

    def __getitem__(self, i: int) -> IndexEntry:
        i = range(len(self))[i]
        offset, first_frame, frame_count, crc = ENTRY_FIELDS.unpack_from(
            self._entries, i * ENTRY_FIELDS.size
        )
        end = self._end
        if i + 1 < len(self):
            end = ENTRY_FIELDS.unpack_from(self._entries, (i + 1) * ENTRY_FIELDS.size)[0]
        return IndexEntry(offset, first_frame, frame_count, crc, end - offset)

    def __iter__(self) -> Iterator[IndexEntry]:
        return (self[i] for i in range(len(self)))

    def find(self, frame: int) -> int:
        """Return the number of the chunk that holds a frame.

        Args:
            frame: Number of the frame, from 0.

        Raises:
            IndexError: The archive has no such frame.
        """
        i = bisect_right(range(len(self)), frame, key=lambda k: self[k].first_frame) - 1
        if i < 0 or frame >= self[i].first_frame + self[i].frame_count:
            raise IndexError(f"the archive has no frame {frame}")
        return i


class Ledger:
    """What the records so far add up to: the rules of their order, the index and the end.

    The writer writes what the ledger says and the readers compare, so that there is one account
    of an archive and not three.

    Attributes:
        position: Bytes so far, the offset of the next record.
        frames: Frames in the chunks so far.
    """

    def __init__(self) -> None:
        self.position = len(PROLOGUE)
        self.frames = 0
        self._last = b""
        self._entries = bytearray()
        self._model = (0, 0)
        self._index_offset = 0
        self._digest = hashlib.blake2b(PROLOGUE, digest_size=16)

    @property
    def chunks(self) -> int:
        """Number of chunks so far."""
        return len(self._entries) // ENTRY_FIELDS.size

    @property
    def complete(self) -> bool:
        """Whether END has been entered."""
        return self._last == END

    def may_add(self, kind: bytes) -> bool:
        """Whether a record of this type may come next."""
        if kind == MODEL:
            return self._last in (HEAD, CHUNK) and self._model == (0, 0)
        if kind == CHUNK:
            return self._last in (HEAD, CHUNK) or (self._last == MODEL and not self.chunks)
        if kind == INDEX:
            return self._last in (HEAD, MODEL, CHUNK)
        return self._last == {HEAD: b"", END: INDEX}[kind]

    def check_next(self, kind: bytes, length: int) -> None:
        """Raise unless a record of this type and payload length may come next."""
        check_length(kind, length, self.position)
        if not self.may_add(kind):
            raise FormatError(f"{record_name(kind)} at offset {self.position} is out of order")
        if kind == CHUNK and self.chunks == MAX_CHUNKS:
            raise LimitExceeded(f"an archive holds at most {MAX_CHUNKS} chunks")
        if kind == INDEX and length != INDEX_FIELDS.size + len(self._entries):
            raise FormatError(f"the index does not have {self.chunks} chunks")

    def add(self, kind: bytes, length: int, crc: int, frames: int = 0) -> None:
        """Enter a record that stands at `position`, if it may stand there."""
        self.check_next(kind, length)
        if kind == MODEL:
            self._model = (self.position, crc)
        elif kind == CHUNK:
            if not frames:
                raise FormatError(f"the chunk at offset {self.position} has no frames")
            self._entries += ENTRY_FIELDS.pack(self.position, self.frames, frames, crc)
            self.frames += frames
        elif kind == INDEX:
            self._index_offset = self.position
        self._last = kind
        self._digest.update(U32.pack(crc))
        self.position += FRAMING + length

    def check_index(self, payload: bytes) -> None:
        """Raise unless INDEX says what the records before it add up to."""
        if payload != self.index_payload():
            raise FormatError("the index disagrees with the records")

    def check_end(self, payload: bytes) -> None:
        """Raise unless END says what all records before it add up to."""
        expected = self.end_payload()
        if payload[:-16] != expected[:-16]:
            raise FormatError("the record END disagrees with the records before it")
        if payload != expected:
            raise ChecksumMismatch("the digest in END is not that of the records")

    def index_payload(self) -> bytes:
        """Return what INDEX holds, now that all chunks are entered."""
        return INDEX_FIELDS.pack(*self._model) + self._entries

    def end_payload(self) -> bytes:
        """Return what END holds, now that INDEX is entered."""
        return END_FIELDS.pack(self._index_offset, self.frames, self.chunks, self._digest.digest())
