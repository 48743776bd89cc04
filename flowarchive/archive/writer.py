"""Frames in: an archive that is written chunk by chunk while they arrive."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowarchive import container, files
from flowarchive.archive.chunks import encode_chunk, frames_per_chunk
from flowarchive.archive.parallel import OrderedPool, threads_per_chunk, worker_count
from flowarchive.chunk import Chunk, Coding
from flowarchive.frames import Frame, VideoFormat

if TYPE_CHECKING:
    from flowarchive.store import StoredModel

# The package's models that each codec chooses from.
CODECS = {"idf": ("video",), "chain": ("chain",), "auto": ("video", "chain")}
DEFAULT_CODEC = "idf"
EMBED_CHOICES = ("auto", "always", "never")
MODEL_RATIO = 4  # more than any compressor makes of weights
EMBED_SHARE = 100  # `auto` embeds a packaged model if it takes at most 1 part in 100


@dataclass
class Totals:
    """What an archive came to.

    Attributes:
        frames: Frames packed.
        chunks: Chunks they went into.
        chunks_stored: Chunks that nothing made smaller but zstd, or not even that.
        chunks_pixelwise: Chunks coded pixel by pixel, without the model.
        ideal_bits: Code length by the integer models, stored chunks by their size.
        archive_bytes: Size of the file.
        model_embedded: The model is inside.
    """

    frames: int = 0
    chunks: int = 0
    chunks_stored: int = 0
    chunks_pixelwise: int = 0
    ideal_bits: float = 0.0
    archive_bytes: int = 0
    model_embedded: bool = False


class ArchiveWriter:
    """Packs frames as they are appended; the archive takes its name when it is closed.

    A context manager: leaving the block closes the archive, leaving it by an error discards it.
    Memory is bounded by a few chunks, however long the sequence.

    Attributes:
        path: The archive's name.
        format: What every frame has to be.
        model: The model that codes them; where the codec is "auto", settled by the first chunk.
        totals: What has been written; complete when the archive is closed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        video_format: VideoFormat,
        *,
        model: str | None = None,
        codec: str | None = None,
        chunk_frames: int | None = None,
        embed_model: str = "auto",
        jobs: int | None = None,
        device: str = "cpu",
        force: bool = False,
        source: Mapping[str, Any] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        if embed_model not in EMBED_CHOICES:
            raise ValueError(f"embed_model is {embed_model!r}, not one of {EMBED_CHOICES}")
        if codec is not None and codec not in CODECS:
            raise ValueError(f"codec is {codec!r}, not one of {tuple(CODECS)}")
        if codec is not None and model is not None:
            raise ValueError("a codec chooses among the package's models: name one or the other")
        self.path, self.format, self.totals = Path(path), video_format, Totals()
        self._embed_model, self._progress = embed_model, progress
        self._group: list[Frame] = []
        self._stack = ExitStack()
        with ExitStack() as stack:
            # The output is claimed before a model is loaded, so that a taken name fails at once.
            file = stack.enter_context(files.atomic_output(self.path, force))
            self._candidates = _load_models(model, codec, device)
            has_memory = any(model.network.has_memory for model in self._candidates)
            self._chunk_frames = frames_per_chunk(video_format, chunk_frames, has_memory)
            workers = worker_count(jobs)
            self._threads = threads_per_chunk(workers, has_memory)
            self._pool = OrderedPool(self._encode, workers // self._threads)
            stack.callback(self._pool.close)
            self._file, self._source = file, dict(source or {})
            if len(self._candidates) == 1:
                self._settle(self._candidates[0])
            self._stack = stack.pop_all()
        self._open = True

    def __enter__(self) -> ArchiveWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self.close()
        else:
            self._abandon(error)

    def append(self, frame: Frame) -> None:
        """Take the next frame; its planes must not be changed afterwards.

        Raises:
            UnsupportedFormat: The frame is not of the archive's format.
            ValueError: The archive is closed.
        """
        if not self._open:
            raise ValueError("the archive is closed")
        frame.check(self.format)
        self._group.append(frame)
        if len(self._group) == self._chunk_frames:
            self._flush()

    def close(self) -> None:
        """Code what is left, complete the archive and give it its name; twice is allowed."""
        if not self._open:
            return
        try:
            if self._group:
                self._flush()
            if len(self._candidates) > 1:  # no frame has come to settle it
                self._settle(self._candidates[0])
            self._write(self._pool.drain())
            if self._embed_model == "auto" and self._should_embed():
                self._embed()
            self._writer.close()
            self.totals.archive_bytes = self._writer.bytes_written
        except BaseException as error:
            self._abandon((type(error), error, error.__traceback__))
            raise
        self._open = False
        self._stack.close()

    def _abandon(self, error: tuple[Any, Any, Any]) -> None:
        if self._open:
            self._open = False
            self._stack.__exit__(*error)

    def _settle(self, model: StoredModel) -> None:
        """Choose the model and write what stands before the chunks."""
        self.model, self._candidates = model, [model]
        head = {
            "format": self.format.to_json(),
            "model": {"name": model.name, "sha256": model.fingerprint.hex()},
            "chunk_frames": self._chunk_frames,
            "source": self._source,
        }
        self._writer = container.Writer(self._file, head)
        if self._embed_model == "always":
            self._embed()

    def _flush(self) -> None:
        group, self._group = self._group, []
        if len(self._candidates) > 1:
            self._choose(group)
        else:
            self._write(self._pool.submit((self.model, group)))

    def _choose(self, group: list[Frame]) -> None:
        """Code the first chunk with every candidate; the one that makes it smallest goes on."""
        results: list[tuple[Chunk, float]] = []
        for model in self._candidates:
            results += self._pool.submit((model, group))
        results += self._pool.drain()
        sizes = [len(chunk.to_bytes()) for chunk, _ in results]
        best = sizes.index(min(sizes))
        self._settle(self._candidates[best])
        self._write(iter([results[best]]))

    def _encode(self, work: tuple[StoredModel, list[Frame]]) -> tuple[Chunk, float]:
        model, frames = work
        return encode_chunk(frames, self.format, model.network, self._threads)

    def _write(self, results: Iterator[tuple[Chunk, float]]) -> None:
        for chunk, ideal_bits in results:
            self._writer.chunk(chunk.to_bytes(), chunk.frame_count)
            self.totals.frames += chunk.frame_count
            self.totals.chunks += 1
            self.totals.chunks_stored += chunk.is_stored
            self.totals.chunks_pixelwise += chunk.coding == Coding.PIXELS
            self.totals.ideal_bits += ideal_bits
            if self._progress is not None:
                self._progress(self.totals.frames)

    def _should_embed(self) -> bool:
        from flowarchive import store

        if self.totals.chunks_stored + self.totals.chunks_pixelwise == self.totals.chunks:
            return False
        # An archive that no installation could open would be worth nothing.
        if not store.is_packaged(self.model.fingerprint):
            return True
        least = len(self.model.data) // MODEL_RATIO
        if least * EMBED_SHARE > self._writer.bytes_written + least:
            return False  # without the time that compressing it takes
        cost = container.model_size(self.model.fingerprint, self.model.data)
        return cost * EMBED_SHARE <= self._writer.bytes_written + cost

    def _embed(self) -> None:
        self._writer.model(self.model.fingerprint, self.model.data)
        self.totals.model_embedded = True


def create(
    path: str | os.PathLike[str], video_format: VideoFormat, **options: Any
) -> ArchiveWriter:
    """Open a new archive for frames of one format.

    Args:
        path: The archive to write.
        video_format: What every appended frame will be.
        **options: `model` (a name or file) or `codec` (see `pack`), `chunk_frames`, `embed_model`
            ("auto", "always" or "never"), `jobs` (worker threads, None for all cores), `device`
            (see `pack`), `force` (replace `path`).

    Returns:
        A context manager with `append(frame)`.

    Raises:
        OutputExists: `path` exists and `force` is not given.
        ModelNotFound: There is no such model.
    """
    return ArchiveWriter(path, video_format, **options)


def _load_models(model: str | None, codec: str | None, device: str) -> list[StoredModel]:
    """The model that was named, or those that the codec chooses from, on a device."""
    from flowarchive import store  # brings models in, which reading an index does without

    if model is not None:
        loaded = [store.load_model(model)]
    else:
        loaded = [store.load_packaged(name) for name in CODECS[codec or DEFAULT_CODEC]]
    for one in loaded:
        store.place(one, device)
    return loaded
