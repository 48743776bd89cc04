"""Frames out: an archive that decodes only the chunks that are touched."""

from __future__ import annotations

import builtins
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, overload

from flowarchive import container
from flowarchive.account import Statement
from flowarchive.archive.chunks import decode_chunk
from flowarchive.archive.parallel import ordered_map, threads_per_chunk, worker_count
from flowarchive.chunk import FRONT_SIZE, Chunk, Coding, has_account
from flowarchive.errors import (
    FingerprintMismatch,
    FlowArchiveError,
    FormatError,
    InputNotFound,
)
from flowarchive.frames import Frame, VideoFormat

if TYPE_CHECKING:
    from flowarchive.store import StoredModel

KEPT_CHUNKS = 2


class Archive(Sequence[Frame]):
    """The frames of an archive: `len`, `[i]`, slices and iteration.

    Only the chunks that are touched are read and decoded, each is checked against its hashes,
    and memory is bounded by a few chunks. A context manager that closes the file.

    Attributes:
        path: The archive.
        format: What every frame is.
        head: What the archive says of itself; see docs/format.md, HEAD.
        container: The records, for those who want their sizes.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        jobs: int | None = None,
        model_file: str | os.PathLike[str] | None = None,
        device: str = "cpu",
    ) -> None:
        self._device = device
        self.path = Path(path)
        self._model_file = None if model_file is None else os.fspath(model_file)
        self._jobs = worker_count(jobs)
        self._lock = Lock()
        self._model: StoredModel | None = None
        self._kept: OrderedDict[int, list[Frame]] = OrderedDict()
        try:
            self._file = builtins.open(self.path, "rb")  # noqa: SIM115 (closed by close)
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            raise InputNotFound(f"{self.path}: {error.strerror}") from None
        try:
            self.container = container.Reader(self._file)
            self.head = self.container.head
            self.format = VideoFormat.from_json(self._field("format", dict))
            self._model_name, self._fingerprint = self._named_model()
            if self._field("chunk_frames", int) < 1:
                raise FormatError("HEAD does not hold a proper 'chunk_frames'")
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._kept.clear()
        self._file.close()

    def __len__(self) -> int:
        return self.container.frames

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> Frames: ...
    def __getitem__(self, index: int | slice) -> Frame | Frames:
        if isinstance(index, slice):
            return Frames(self, range(len(self))[index])
        index = range(len(self))[index]
        chunk = self.container.index.find(index)
        return self._frames(chunk)[index - self.container.index[chunk].first_frame]

    def __iter__(self) -> Iterator[Frame]:
        """Yield every frame in order, several chunks decoded at a time."""
        return iter(self[:])

    @property
    def model(self) -> StoredModel:
        """The model that decodes this archive: the one inside, the file, or the package's."""
        with self._lock:
            if self._model is None:
                from flowarchive import store  # brings models in, which an index does without

                record = self.container.model()
                if record is not None and record[0] != self._fingerprint:
                    raise FingerprintMismatch("MODEL is not the model that HEAD names")
                embedded = None if record is None else record[1]
                model = store.find_model(
                    self._fingerprint, embedded, self._model_name, self._model_file
                )
                store.place(model, self._device)
                self._model = model
            return self._model

    def chunk(self, i: int) -> Chunk:
        """Read chunk i without decoding its frames."""
        with self._lock:
            payload = self.container.chunk(i)
        return Chunk.from_bytes(payload)

    def account(self, i: int) -> Statement | None:
        """Read the account of chunk i, None where it used no bits-back."""
        with self._lock:
            front = self.container.chunk_front(i, FRONT_SIZE)
        return self.chunk(i).account if has_account(front) else None

    def decode(self, i: int) -> list[Frame]:
        """Decode chunk i.

        Raises:
            FormatError: The chunk is damaged, or a frame is not the one that was packed.
            CodingError: The same, found while popping.
        """
        try:
            chunk = self.chunk(i)
            if chunk.coding != Coding.MODEL:
                return decode_chunk(chunk, self.format, None)
            network = self.model.network
            threads = threads_per_chunk(self._jobs, network.has_memory)
            return decode_chunk(chunk, self.format, network, threads)
        except FlowArchiveError as error:
            first = self.container.index[i].first_frame
            raise type(error)(f"chunk {i} (from frame {first}): {error}") from error

    def walk(self, chunks: Sequence[int]) -> Iterator[tuple[int, list[Frame]]]:
        """Yield (i, frames) of several chunks in order, decoded in parallel."""
        return ordered_map(lambda i: (i, self.decode(i)), chunks, self._jobs)

    def _frames(self, chunk: int) -> list[Frame]:
        with self._lock:
            if chunk in self._kept:
                self._kept.move_to_end(chunk)
                return self._kept[chunk]
        frames = self.decode(chunk)
        with self._lock:
            self._kept[chunk] = frames
            while len(self._kept) > KEPT_CHUNKS:
                self._kept.popitem(last=False)
        return frames

    def _named_model(self) -> tuple[str, bytes]:
        model = self._field("model", dict)
        name, digits = model.get("name"), model.get("sha256")
        if not isinstance(name, str) or not isinstance(digits, str):
            raise FormatError("HEAD does not name a model")
        if len(digits) != 64 or set(digits) - set("0123456789abcdef"):
            raise FormatError("HEAD does not hold the model's fingerprint")
        return name, bytes.fromhex(digits)

    def _field(self, name: str, kind: type) -> Any:
        value = self.head.get(name)
        if type(value) is not kind:
            raise FormatError(f"HEAD does not hold a proper {name!r}")
        return value


class Frames(Sequence[Frame]):
    """A slice of an archive, decoded as it is read."""

    def __init__(self, archive: Archive, positions: range) -> None:
        self._archive, self._positions = archive, positions

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> Frames: ...
    def __getitem__(self, index: int | slice) -> Frame | Frames:
        if isinstance(index, slice):
            return Frames(self._archive, self._positions[index])
        return self._archive[self._positions[index]]

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames in order, several chunks decoded at a time."""
        index = self._archive.container.index
        wanted = [(index.find(position), position) for position in self._positions]
        chunks = list(dict.fromkeys(chunk for chunk, _ in wanted))
        queue = iter(wanted)
        ahead = next(queue, None)
        for chunk, frames in self._archive.walk(chunks):
            while ahead is not None and ahead[0] == chunk:
                yield frames[ahead[1] - index[chunk].first_frame]
                ahead = next(queue, None)


def open(
    path: str | os.PathLike[str],
    *,
    jobs: int | None = None,
    model_file: str | os.PathLike[str] | None = None,
    device: str = "cpu",
) -> Archive:
    """Open an archive for reading.

    Args:
        path: The archive.
        jobs: Worker threads of iteration, None for all cores.
        model_file: The model file, for an archive that neither holds its model nor names one of
            the package.
        device: "cpu"; "cuda", a GPU or an error; "auto", a GPU where there is one.

    Raises:
        InputNotFound: There is no such file.
        FormatError: It is not a whole, undamaged archive as far as its index tells.
    """
    return Archive(path, jobs, model_file, device)
