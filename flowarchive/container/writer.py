"""Appends records to a file or a pipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, BinaryIO

import zstandard

from flowarchive.container.ledger import Ledger
from flowarchive.container.records import (
    CHUNK,
    END,
    FRAMING,
    HEAD,
    HEADER,
    INDEX,
    LIMITS,
    MAX_MODEL,
    MODEL,
    MODEL_FIELDS,
    MODEL_RAW,
    MODEL_ZSTD,
    PROLOGUE,
    U32,
    dump_head,
    load_head,
    record_crc,
    record_name,
)
from flowarchive.errors import LimitExceeded


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
        payload = dump_head(head)
        load_head(payload)
        self._file = file
        self._ledger = Ledger()
        self._broken = False
        if len(payload) > LIMITS[HEAD][1]:
            raise LimitExceeded(f"HEAD takes {len(payload)} bytes, more than {LIMITS[HEAD][1]}")
        self._put(PROLOGUE)
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
        self._record(MODEL, _model_payload(sha256, data))

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
        if frames < 1 or payload[: U32.size] != U32.pack(frames):
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
            raise ValueError(f"{record_name(kind)} is out of order")
        self._ledger.check_next(kind, len(payload))
        header = HEADER.pack(kind, len(payload))
        crc = record_crc(header, payload)
        # A write that fails half-way leaves a file that no later record can repair.
        self._broken = True
        self._put(header)
        self._put(payload)
        self._put(U32.pack(crc))
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


def model_size(sha256: bytes, data: bytes) -> int:
    """Return the bytes that `Writer.model` would add to an archive."""
    return FRAMING + len(_model_payload(sha256, data))


def _model_payload(sha256: bytes, data: bytes) -> bytes:
    if len(sha256) != 32:
        raise ValueError(f"a fingerprint has 32 bytes, not {len(sha256)}")
    if len(data) > MAX_MODEL:
        raise LimitExceeded(f"the model has {len(data)} bytes, more than {MAX_MODEL}")
    packed = zstandard.ZstdCompressor(level=19).compress(data)
    if len(packed) < len(data):
        return MODEL_FIELDS.pack(sha256, MODEL_ZSTD) + packed
    return MODEL_FIELDS.pack(sha256, MODEL_RAW) + data
