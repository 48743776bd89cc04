"""Reads an archive by its index, or in order from a pipe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

from flowarchive.container.ledger import Index, Ledger
from flowarchive.container.records import (
    CHUNK,
    END,
    END_FIELDS,
    END_SIZE,
    ENTRY_FIELDS,
    FRAMING,
    HEAD,
    HEADER,
    INDEX,
    INDEX_FIELDS,
    MAX_CHUNKS,
    MODEL,
    PROLOGUE,
    U32,
    Record,
    check_prologue,
    checked_crc,
    leading_count,
    parse_head,
    parse_header,
    parse_model,
    read_exactly,
    read_upto,
    record_name,
)
from flowarchive.errors import ChecksumMismatch, FormatError, TrailingData, Truncated


class Reader:
    """Opens an archive from its end and reads its chunks in any order.

    Opening reads the prologue, END, INDEX and HEAD, and checks that they agree. The file must not
    be used by others meanwhile: its position is moved by every call.

    Args:
        file: A seekable binary file that holds one archive from its first to its last byte.

    Attributes:
        head: What HEAD holds.
        index: The chunks, as `IndexEntry`.
        model_size: Bytes of the MODEL record, 0 if the archive does not hold its model.
        frames: Frames in all chunks.
        size: Bytes of the file.

    Raises:
        FormatError: The bytes are not an archive, not a whole one, or damaged where read.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, os.SEEK_END)
        check_prologue(self._read(0, min(self.size, len(PROLOGUE))))
        end = self._end()
        self.frames: int
        index_offset, self.frames, _, _ = END_FIELDS.unpack(end)
        end_offset = self.size - END_SIZE
        try:
            if index_offset > end_offset:
                raise FormatError("END points behind itself")
            index, index_crc = self._record(INDEX, index_offset, end_offset)
        except FormatError as error:
            raise self._diagnosis(error) from None
        head, head_crc = self._record(HEAD, len(PROLOGUE), index_offset)
        self.head = parse_head(head)

        entries = index[INDEX_FIELDS.size :]
        if len(entries) % ENTRY_FIELDS.size:
            raise FormatError("the index ends inside an entry")
        self._model_offset, self._model_crc = INDEX_FIELDS.unpack_from(index)
        first_chunk: int = ENTRY_FIELDS.unpack_from(entries)[0] if entries else index_offset
        leads = self._model_offset < first_chunk
        self.index = Index(entries, index_offset if leads else self._model_offset)
        self.model_size = 0
        if self._model_offset:
            self.model_size = (first_chunk if leads else index_offset) - self._model_offset

        # Replay the records that the index implies: they must add up to this very INDEX and END.
        ledger = Ledger()
        ledger.add(HEAD, len(head), head_crc)
        if self.model_size and leads:
            ledger.add(MODEL, self.model_size - FRAMING, self._model_crc)
        for entry in self.index:
            ledger.add(CHUNK, entry.size - FRAMING, entry.crc, entry.frame_count)
        if self.model_size and not leads:
            ledger.add(MODEL, self.model_size - FRAMING, self._model_crc)
        ledger.check_index(index)
        ledger.add(INDEX, len(index), index_crc)
        ledger.check_end(end)

    def model(self) -> tuple[bytes, bytes] | None:
        """Return the model's fingerprint (32 bytes) and file, or None if it is not here.

        Raises:
            FormatError: The record is damaged.
        """
        if not self.model_size:
            return None
        payload, crc = self._record(MODEL, self._model_offset, self._model_offset + self.model_size)
        if crc != self._model_crc:
            raise ChecksumMismatch("MODEL is not the record that was indexed")
        return parse_model(payload)

    def chunk(self, i: int) -> bytes:
        """Return the payload of chunk i, 0 <= i < len(index).

        Raises:
            IndexError: There is no chunk i.
            FormatError: The record is damaged, or not the one that was indexed.
        """
        if not 0 <= i < len(self.index):
            raise IndexError(f"the archive has no chunk {i}")
        entry = self.index[i]
        payload, crc = self._record(CHUNK, entry.offset, entry.offset + entry.size)
        if crc != entry.crc:
            raise ChecksumMismatch(f"chunk {i} is not the record that was indexed")
        if leading_count(payload) != entry.frame_count:
            raise FormatError(f"chunk {i} does not have the frames that the index says")
        return payload

    def chunk_front(self, i: int, count: int) -> bytes:
        """Return the first bytes of chunk i's payload, unchecked: they may say what to read.

        Raises:
            IndexError: There is no chunk i.
            Truncated: It has fewer bytes.
        """
        if not 0 <= i < len(self.index):
            raise IndexError(f"the archive has no chunk {i}")
        entry = self.index[i]
        if entry.size - FRAMING < count:
            raise Truncated("the chunk ends early")
        return self._read(entry.offset + HEADER.size, count)

    def check(self) -> None:
        """Read the whole file and check every record; the frames themselves are not decoded.

        Raises:
            FormatError: A record is damaged, missing, or out of order.
        """
        self._file.seek(0)
        for _ in self.stream(self._file):
            pass

    @classmethod
    def stream(cls, file: BinaryIO) -> Iterator[Record]:
        """Yield the records of an archive in order, END last, without seeking.

        Everything that `check` checks is checked here, but each record is yielded before those
        after it have been seen: only when the iterator ends is the archive proved whole.

        Args:
            file: A binary stream at the first byte of an archive; short reads are allowed.

        Raises:
            FormatError: The bytes are not an archive, not a whole one, or damaged.
        """
        check_prologue(read_upto(file, len(PROLOGUE)))
        ledger = Ledger()
        while not ledger.complete:
            offset = ledger.position
            header = read_exactly(file, HEADER.size)
            kind, length = parse_header(header, offset)
            ledger.check_next(kind, length)
            payload = read_exactly(file, length)
            crc = checked_crc(header, payload, read_exactly(file, U32.size), offset)
            frames = 0
            if kind == HEAD:
                parse_head(payload)
            elif kind == MODEL:
                parse_model(payload)
            elif kind == CHUNK:
                frames = leading_count(payload)
            elif kind == INDEX:
                ledger.check_index(payload)
            else:
                ledger.check_end(payload)
                if read_upto(file, 1):
                    raise TrailingData("bytes follow the end of the archive")
            ledger.add(kind, length, crc, frames)
            yield Record(kind, offset, payload)

    def _end(self) -> bytes:
        """Return the payload of END, or find out why there is none at the end of the file."""
        offset = self.size - END_SIZE
        try:
            if offset < len(PROLOGUE):
                raise Truncated("the archive ends before its END record")
            return self._record(END, offset, self.size)[0]
        except FormatError as error:
            raise self._diagnosis(error) from None

    def _diagnosis(self, error: FormatError) -> FormatError:
        """Walk over the record headers to tell what is wrong with the end of the file.

        Args:
            error: What to return if END stands where it should.
        """
        position = len(PROLOGUE)
        # HEAD, MODEL, INDEX and END besides the chunks; a longer row of records is no archive.
        for _ in range(MAX_CHUNKS + 4):
            if position + FRAMING > self.size:
                break
            try:
                kind, length = parse_header(self._read(position, HEADER.size), position)
            except FormatError as unreadable:
                return unreadable
            position += FRAMING + length
            if kind == END and position < self.size:
                return TrailingData(f"{self.size - position} bytes follow the end of the archive")
            if kind == END and position == self.size:
                return error
        return Truncated("the archive ends before its END record")

    def _record(self, kind: bytes, offset: int, end: int) -> tuple[bytes, int]:
        """Return payload and checksum of a record that must fill the bytes from offset to end."""
        header = self._read(offset, HEADER.size)
        found, length = parse_header(header, offset)
        gap = end - (offset + FRAMING + length)
        # HEAD's size is known from no other place; the ledger finds a gap after it.
        if found != kind or gap < 0 or (gap and kind != HEAD):
            raise FormatError(
                f"the record at offset {offset} is not the indexed {record_name(kind)}"
            )
        payload = self._read(offset + HEADER.size, length)
        crc = self._read(offset + HEADER.size + length, U32.size)
        return payload, checked_crc(header, payload, crc, offset)

    def _read(self, offset: int, count: int) -> bytes:
        self._file.seek(offset)
        # The file's size bounds every count, so that no more is reserved than is there.
        return read_exactly(self._file, count, trusted=True)
