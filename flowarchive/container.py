"""The bytes of an archive: records, checksums, the index, and the two ways to read them.

    prologue | HEAD | [MODEL] | CHUNK ... | [MODEL] | INDEX | END
               type u32 | length u64 | payload | crc u32        (each record)

`Writer` appends records and keeps the ledger that becomes INDEX and END. `Reader` opens a file
from its end and reads any chunk alone; `Reader.stream` reads the same bytes in order from a pipe.
The layout is docs/format.md. This module knows nothing of what is in a chunk but its number of
frames, and nothing of frames, tensors or models.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import google_crc32c
import zstandard

from flowarchive.errors import (
    BadMagic,
    ChecksumMismatch,
    FormatError,
    LimitExceeded,
    TrailingData,
    Truncated,
    UnsupportedVersion,
)
from flowarchive.files import atomic_output

__all__ = [
    "CHUNK",
    "END",
    "HEAD",
    "INDEX",
    "MAGIC",
    "MODEL",
    "VERSION",
    "Index",
    "IndexEntry",
    "Reader",
    "Record",
    "Writer",
    "atomic_output",
    "parse_head",
    "parse_model",
]

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

_PROLOGUE = struct.Struct("<8sHIH")
_RECORD = struct.Struct("<4sQ")
_U32 = struct.Struct("<I")
_MODEL = struct.Struct("<32sB")
_INDEX = struct.Struct("<QI")
_ENTRY = struct.Struct("<QQII")
_END = struct.Struct("<QQI16s")

_FRAMING = _RECORD.size + _U32.size
_END_SIZE = _FRAMING + _END.size

LIMITS: dict[bytes, tuple[int, int]] = {
    HEAD: (2, MAX_HEAD),
    MODEL: (_MODEL.size, _MODEL.size + MAX_MODEL),
    CHUNK: (_U32.size, MAX_CHUNK),
    INDEX: (_INDEX.size, _INDEX.size + _ENTRY.size * MAX_CHUNKS),
    END: (_END.size, _END.size),
}
"""The smallest and the largest payload of each record type, in bytes."""

_MODEL_RAW, _MODEL_ZSTD = 0, 1
# A zstd block is at least 4 bytes and holds at most 128 KiB.
_ZSTD_BEST_RATIO = 1 << 15
# A stream's declared length is not trusted: memory grows with the bytes that have arrived.
_FIRST_READ = 1 << 20


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


class Index:
    """The entries of an archive's chunks: `len`, subscripts from 0, iteration."""

    def __init__(self, entries: bytes, end: int) -> None:
        self._entries = entries
        self._end = end  # offset of the first byte after the last chunk

    def __len__(self) -> int:
        return len(self._entries) // _ENTRY.size

    def __getitem__(self, i: int) -> IndexEntry:
        i = range(len(self))[i]
        offset, first_frame, frame_count, crc = _ENTRY.unpack_from(self._entries, i * _ENTRY.size)
        end = self._end
        if i + 1 < len(self):
            end = _ENTRY.unpack_from(self._entries, (i + 1) * _ENTRY.size)[0]
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


class _Ledger:
    """What the records so far add up to: the rules of their order, the index and the end.

    The writer writes what the ledger says and the readers compare, so that there is one account
    of an archive and not three.
    """

    def __init__(self) -> None:
        self.position = _PROLOGUE.size
        self.frames = 0
        self._last = b""
        self._entries = bytearray()
        self._model = (0, 0)
        self._index_offset = 0
        prologue = _PROLOGUE.pack(MAGIC, VERSION, FEATURES, 0)
        self._digest = hashlib.blake2b(prologue, digest_size=16)

    @property
    def chunks(self) -> int:
        return len(self._entries) // _ENTRY.size

    @property
    def complete(self) -> bool:
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
        _check_length(kind, length, self.position)
        if not self.may_add(kind):
            raise FormatError(f"{_name(kind)} at offset {self.position} is out of order")
        if kind == CHUNK and self.chunks == MAX_CHUNKS:
            raise LimitExceeded(f"an archive holds at most {MAX_CHUNKS} chunks")
        if kind == INDEX and length != _INDEX.size + len(self._entries):
            raise FormatError(f"the index does not have {self.chunks} chunks")

    def add(self, kind: bytes, length: int, crc: int, frames: int = 0) -> None:
        """Enter a record that stands at `position`, if it may stand there."""
        self.check_next(kind, length)
        if kind == MODEL:
            self._model = (self.position, crc)
        elif kind == CHUNK:
            if not frames:
                raise FormatError(f"the chunk at offset {self.position} has no frames")
            self._entries += _ENTRY.pack(self.position, self.frames, frames, crc)
            self.frames += frames
        elif kind == INDEX:
            self._index_offset = self.position
        self._last = kind
        self._digest.update(_U32.pack(crc))
        self.position += _FRAMING + length

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
        return _INDEX.pack(*self._model) + self._entries

    def end_payload(self) -> bytes:
        return _END.pack(self._index_offset, self.frames, self.chunks, self._digest.digest())


class Writer:
    """Writes an archive record by record.

    Used as a context manager it closes the archive when the block ends without an error; after
    an error the archive has no END and no reader takes it for complete.

    Args:
        file: A binary file or stream, written in order from where it is; it is not closed. It
            need not be seekable.
        head: What HEAD holds: a JSON object of strings, integers, booleans, None, lists, dicts.

    Raises:
        ValueError: `head` is no such object.
        LimitExceeded: `head` takes more than `MAX_HEAD` bytes.
    """

    def __init__(self, file: BinaryIO, head: Mapping[str, Any]) -> None:
        payload = _dump_head(head)
        _load_head(payload)
        self._file = file
        self._ledger = _Ledger()
        self._broken = False
        if len(payload) > LIMITS[HEAD][1]:
            raise LimitExceeded(f"HEAD takes {len(payload)} bytes, more than {LIMITS[HEAD][1]}")
        self._put(_PROLOGUE.pack(MAGIC, VERSION, FEATURES, 0))
        self._record(HEAD, payload)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()

    @property
    def bytes_written(self) -> int:
        """Bytes of the archive so far, the prologue included."""
        return self._ledger.position

    @property
    def frames(self) -> int:
        """Frames in the chunks so far."""
        return self._ledger.frames

    def model(self, sha256: bytes, data: bytes) -> None:
        """Write the model, before the first chunk or after the last one.

        Args:
            sha256: The model's fingerprint, 32 bytes.
            data: The model file, at most `MAX_MODEL` bytes; compressed here where that helps.

        Raises:
            LimitExceeded: The model is too large.
            ValueError: The fingerprint is not 32 bytes, or there is a model already.
        """
        if len(sha256) != 32:
            raise ValueError(f"a fingerprint has 32 bytes, not {len(sha256)}")
        if len(data) > MAX_MODEL:
            raise LimitExceeded(f"the model has {len(data)} bytes, more than {MAX_MODEL}")
        packed = zstandard.ZstdCompressor(level=19).compress(data)
        if len(packed) < len(data):
            payload = _MODEL.pack(sha256, _MODEL_ZSTD) + packed
        else:
            payload = _MODEL.pack(sha256, _MODEL_RAW) + data
        self._record(MODEL, payload)

    def chunk(self, payload: bytes, frames: int) -> None:
        """Write one chunk.

        Args:
            payload: The chunk, at most `MAX_CHUNK` bytes. It begins with its number of frames,
                u32, as `Chunk.to_bytes` writes it.
            frames: That number, at least 1.

        Raises:
            LimitExceeded: The chunk is too large, or there are too many.
            ValueError: The payload does not say `frames`, or no chunk may come now.
        """
        if frames < 1 or payload[: _U32.size] != _U32.pack(frames):
            raise ValueError(f"the payload does not begin with its {frames} frames")
        self._record(CHUNK, payload, frames)

    def close(self) -> None:
        """Write INDEX and END and flush the file; a second call does nothing.

        Raises:
            ValueError: An earlier write failed.
        """
        if self._ledger.complete:
            return
        self._record(INDEX, self._ledger.index_payload())
        self._record(END, self._ledger.end_payload())
        self._file.flush()

    def _record(self, kind: bytes, payload: bytes, frames: int = 0) -> None:
        if self._broken:
            raise ValueError("an earlier write of this archive failed")
        if not self._ledger.may_add(kind):
            raise ValueError(f"{_name(kind)} is out of order")
        self._ledger.check_next(kind, len(payload))
        header = _RECORD.pack(kind, len(payload))
        crc = _crc(header, payload)
        # A write that fails half-way leaves a file that no later record can repair.
        self._broken = True
        self._put(header)
        self._put(payload)
        self._put(_U32.pack(crc))
        self._broken = False
        self._ledger.add(kind, len(payload), crc, frames)

    def _put(self, data: bytes) -> None:
        """Write all bytes; a raw stream may take fewer than it is given."""
        view = memoryview(data)
        while view:
            taken = self._file.write(view)
            if not taken:
                raise BlockingIOError("the output stream takes no more bytes")
            view = view[taken:]


class Reader:
    """Opens an archive from its end and reads its chunks in any order.

    Opening reads the prologue, END, INDEX and HEAD, and checks that they agree. The file must not
    be used by others meanwhile: its position is moved by every call.

    Args:
        file: A seekable binary file that holds one archive from its first to its last byte.

    Attributes:
        head: What HEAD holds.
        index: The chunks, as `IndexEntry`.
        frames: Frames in all chunks.
        size: Bytes of the file.

    Raises:
        FormatError: The bytes are not an archive, not a whole one, or damaged where read.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, os.SEEK_END)
        _check_prologue(self._read(0, min(self.size, _PROLOGUE.size)))
        end = self._end()
        index_offset, self.frames, _, _ = _END.unpack(end)
        end_offset = self.size - _END_SIZE
        if not _PROLOGUE.size <= index_offset <= end_offset:
            raise self._diagnosis()
        index, index_crc = self._record(INDEX, index_offset, end_offset)
        head, head_crc = self._record(HEAD, _PROLOGUE.size, index_offset)
        self.head = parse_head(head)
        model_offset, model_crc = _INDEX.unpack_from(index)
        entries = index[_INDEX.size :]
        first = _ENTRY.unpack_from(entries)[0] if entries else index_offset
        model_leads = model_offset < first
        self.index = Index(entries, index_offset if model_leads else model_offset)
        model_end: int = first if model_leads else index_offset
        self.model_size = model_end - model_offset if model_offset else 0
        self._model_offset, self._model_crc = model_offset, model_crc

        # Replay the records that the index implies: they must add up to this very index and END.
        ledger = _Ledger()
        ledger.add(HEAD, len(head), head_crc)
        if model_offset and model_leads:
            ledger.add(MODEL, self.model_size - _FRAMING, model_crc)
        for entry in self.index:
            ledger.add(CHUNK, entry.size - _FRAMING, entry.crc, entry.frame_count)
        if model_offset and not model_leads:
            ledger.add(MODEL, self.model_size - _FRAMING, model_crc)
        ledger.check_index(index)
        if ledger.position != index_offset:
            raise FormatError("the index leaves a gap before itself")
        ledger.add(INDEX, len(index), index_crc)
        ledger.check_end(end)

    def __len__(self) -> int:
        """Number of chunks."""
        return len(self.index)

    @property
    def has_model(self) -> bool:
        """Whether the archive holds its model."""
        return self.model_size > 0

    def model(self) -> tuple[bytes, bytes] | None:
        """Return the model's fingerprint (32 bytes) and file, or None if it is not here.

        Raises:
            FormatError: The record is damaged.
        """
        if not self._model_offset:
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
        if _frame_count(payload) != entry.frame_count:
            raise FormatError(f"chunk {i} does not have the frames that the index says")
        return payload

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
        _check_prologue(_read_upto(file, _PROLOGUE.size))
        ledger = _Ledger()
        while not ledger.complete:
            offset = ledger.position
            header = _read_exactly(file, _RECORD.size)
            kind, length = _parse_header(header, offset)
            ledger.check_next(kind, length)
            payload = _read_exactly(file, length)
            crc = _checked_crc(header, payload, _read_exactly(file, _U32.size), offset)
            frames = 0
            if kind == HEAD:
                parse_head(payload)
            elif kind == MODEL:
                parse_model(payload)
            elif kind == CHUNK:
                frames = _frame_count(payload)
            elif kind == INDEX:
                ledger.check_index(payload)
            else:
                ledger.check_end(payload)
                if _read_upto(file, 1):
                    raise TrailingData("bytes follow the end of the archive")
            ledger.add(kind, length, crc, frames)
            yield Record(kind, offset, payload)

    def _end(self) -> bytes:
        """Return the payload of END, or find out why there is none at the end of the file."""
        offset = self.size - _END_SIZE
        if offset < _PROLOGUE.size:
            raise self._diagnosis()
        record = self._read(offset, _END_SIZE)
        header, payload = record[: _RECORD.size], record[_RECORD.size : -_U32.size]
        if header != _RECORD.pack(END, _END.size):
            raise self._diagnosis()
        try:
            _checked_crc(header, payload, record[-_U32.size :], offset)
        except ChecksumMismatch:
            raise self._diagnosis() from None
        return payload

    def _diagnosis(self) -> FormatError:
        """Walk over the record headers to tell what is wrong with the end of the file."""
        position = _PROLOGUE.size
        while position + _FRAMING <= self.size:
            try:
                kind, length = _parse_header(self._read(position, _RECORD.size), position)
            except FormatError as error:
                return error
            position += _FRAMING + length
            if kind == END and position < self.size:
                return TrailingData(f"{self.size - position} bytes follow the end of the archive")
            if kind == END and position == self.size:
                return ChecksumMismatch("the record END is damaged")
        return Truncated("the archive ends before its END record")

    def _record(self, kind: bytes, offset: int, end: int) -> tuple[bytes, int]:
        """Return payload and checksum of a record that must fill the bytes from offset to end."""
        header = self._read(offset, _RECORD.size)
        found, length = _parse_header(header, offset)
        gap = end - (offset + _FRAMING + length)
        # HEAD's size is known from no other place; the ledger finds a gap after it.
        if found != kind or gap < 0 or (gap and kind != HEAD):
            raise FormatError(f"the record at offset {offset} is not the indexed {_name(kind)}")
        payload = self._read(offset + _RECORD.size, length)
        crc = self._read(offset + _RECORD.size + length, _U32.size)
        return payload, _checked_crc(header, payload, crc, offset)

    def _read(self, offset: int, count: int) -> bytes:
        self._file.seek(offset)
        # The file's size bounds every count, so that no more is reserved than is there.
        return _read_exactly(self._file, count, trusted=True)


def parse_head(payload: bytes) -> dict[str, Any]:
    """Read HEAD's payload.

    Raises:
        FormatError: It is not a JSON object in canonical form.
    """
    try:
        return _load_head(payload)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"HEAD is malformed: {error}") from None


def parse_model(payload: bytes) -> tuple[bytes, bytes]:
    """Read MODEL's payload: the fingerprint (32 bytes) and the model file.

    Raises:
        FormatError: The payload is malformed.
        LimitExceeded: The model file has more than `MAX_MODEL` bytes.
    """
    sha256, coding = _MODEL.unpack_from(payload)
    data = payload[_MODEL.size :]
    if coding == _MODEL_RAW:
        return sha256, data
    if coding != _MODEL_ZSTD:
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


def _dump_head(head: Mapping[str, Any]) -> bytes:
    text = json.dumps(dict(head), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return text.encode()


def _load_head(payload: bytes) -> dict[str, Any]:
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
    if not isinstance(head, dict) or _dump_head(head) != payload:
        raise ValueError("not a JSON object in canonical form")
    return head


def _frame_count(payload: bytes) -> int:
    """Return the first field of a chunk, the only one that this module reads."""
    count: int = _U32.unpack_from(payload)[0]
    return count


def _check_prologue(prologue: bytes) -> None:
    magic = prologue[: len(MAGIC)]
    if not MAGIC.startswith(magic):
        if magic[1:5] == MAGIC[1:5]:
            raise BadMagic("the archive was damaged by a transfer in text mode")
        raise BadMagic("not a flowarchive file")
    if len(prologue) < _PROLOGUE.size:
        raise Truncated("the archive ends inside its first 16 bytes")
    _, version, features, reserved = _PROLOGUE.unpack(prologue)
    if version != VERSION:
        raise UnsupportedVersion(f"the archive has format version {version}, not {VERSION}")
    if features & ~FEATURES or reserved:
        raise UnsupportedVersion(
            f"the archive needs features that this version lacks ({features:#x}, {reserved:#x})"
        )


def _parse_header(header: bytes, offset: int) -> tuple[bytes, int]:
    """Return type and payload length of a record, the length within its limits."""
    kind, length = _RECORD.unpack(header)
    if kind not in LIMITS:
        raise UnsupportedVersion(
            f"the record at offset {offset} is damaged or of a later format: type {kind!r}"
        )
    _check_length(kind, length, offset)
    return kind, length


def _check_length(kind: bytes, length: int, offset: int) -> None:
    smallest, largest = LIMITS[kind]
    if length > largest:
        raise LimitExceeded(
            f"{_name(kind)} at offset {offset} claims {length} bytes, more than {largest}"
        )
    if length < smallest:
        raise FormatError(
            f"{_name(kind)} at offset {offset} has {length} bytes, less than {smallest}"
        )


def _name(kind: bytes) -> str:
    return {MODEL: "MODEL", CHUNK: "CHUNK", INDEX: "INDEX"}.get(kind, kind.decode().strip())


def _crc(header: bytes, payload: bytes) -> int:
    crc: int = google_crc32c.extend(google_crc32c.value(header), payload)
    return crc


def _checked_crc(header: bytes, payload: bytes, stored: bytes, offset: int) -> int:
    crc = _crc(header, payload)
    if _U32.pack(crc) != stored:
        raise ChecksumMismatch(f"the record {header[:4]!r} at offset {offset} is damaged")
    return crc


def _read_exactly(file: BinaryIO, count: int, trusted: bool = False) -> bytes:
    """Read `count` bytes or raise Truncated.

    Args:
        file: A binary stream; short reads are repeated.
        count: Bytes to read.
        trusted: The stream is known to hold that many, so they may be asked for at once.
    """
    data = _read_upto(file, count, trusted)
    if len(data) < count:
        raise Truncated("the archive ends before its END record")
    return data


def _read_upto(file: BinaryIO, count: int, trusted: bool = False) -> bytes:
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
