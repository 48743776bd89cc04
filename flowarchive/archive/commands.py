"""What the command line calls: pack, unpack, verify, info, models."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

import flowarchive.archive.reader as reader
from flowarchive import media
from flowarchive.account import Statement
from flowarchive.archive.writer import ArchiveWriter
from flowarchive.errors import ChecksumMismatch, InputError, InputNotFound, OutputExists
from flowarchive.frames import Frame, VideoFormat

SUFFIX = ".flow"
UNPACKED = {".npy": ".npy", ".y4m": ".y4m", "folder": os.sep}  # by the source's kind; others .mkv

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class PackReport:
    """What `pack` did; see `archive.writer.Totals` for the fields it shares.

    Attributes:
        output: The archive.
        frames: Frames packed.
        format: What they are.
        samples: Samples of all planes of all frames.
        raw_bytes: What they take uncoded.
        archive_bytes: Size of the archive.
        ideal_bits: Ideal code length by the frozen integer model.
        chunks: Chunks.
        chunks_stored: Chunks that nothing made smaller but zstd, or not even that.
        chunks_pixelwise: Chunks coded pixel by pixel, without the model.
        model_name: Name of the model.
        model_embedded: The model is inside the archive.
        source_bytes: Size of the source, None where unknown.
        lossy_source: The source's own coding had lost samples before.
        seconds: Time it took.
    """

    output: Path
    frames: int
    format: VideoFormat
    samples: int
    raw_bytes: int
    archive_bytes: int
    ideal_bits: float
    chunks: int
    chunks_stored: int
    chunks_pixelwise: int
    model_name: str
    model_embedded: bool
    source_bytes: int | None
    lossy_source: bool
    seconds: float


@dataclass(frozen=True)
class UnpackReport:
    """What `unpack` wrote, how many frames of what format, and the time it took."""

    output: Path
    frames: int
    format: VideoFormat
    seconds: float


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found good, and whether it was compared with the source too."""

    frames: int
    chunks: int
    seconds: float
    source_checked: bool


def pack(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    model: str | None = None,
    codec: str | None = None,
    chunk_frames: int | None = None,
    embed_model: str = "auto",
    jobs: int | None = None,
    device: str = "cpu",
    force: bool = False,
    progress: Progress | None = None,
) -> PackReport:
    """Pack the decoded frames of a video, folder of images or array.

    Args:
        source: Anything `media.open_source` reads.
        output: The archive; None for the source's name with `.flow`.
        model: A model of the package by name, or a model file.
        codec: Instead of a model: "idf" (the default) takes the package's `video`, "chain" its
            `chain`, "auto" the one that makes the first chunk smaller.
        chunk_frames: Frames that are coded, and read, together; None to suit their size.
        embed_model: "auto" puts the model inside where it takes at most 1 % of the archive or is
            not one of the package; "always", "never".
        jobs: Worker threads, None for all cores; the archive does not depend on it.
        device: "cpu"; "cuda", a GPU or an error; "auto", a GPU where there is one. The archive does
            not depend on it.
        force: Replace the output.
        progress: Called with the frames done, and the frames there are if that is known.

    Raises:
        InputError: The source cannot be read, holds no frame, or changed meanwhile.
        OutputExists: The output exists and `force` is not given.
        ModelError: There is no such model, or it is not exact here.
        ValueError: Both a model and a codec are given, or there is no such codec.
    """
    started = time.monotonic()
    if not os.fspath(source):
        raise InputNotFound("the source has no name")
    path = Path(source)
    target = _packed_name(path) if output is None else Path(output)
    _check_apart(path, target)
    with media.open_source(path) as frames:
        description = {
            "kind": "folder" if path.is_dir() else path.suffix.lower(),
            "bytes": frames.source_bytes,
            "lossy": frames.lossy,
        }
        with ArchiveWriter(
            target,
            frames.format,
            model=model,
            codec=codec,
            chunk_frames=chunk_frames,
            embed_model=embed_model,
            jobs=jobs,
            device=device,
            force=force,
            source=description,
            progress=progress and (lambda done: progress(done, frames.frame_count)),
        ) as archive:
            count = 0
            for frame in frames:
                archive.append(frame)
                count += 1
            if not count:
                raise InputError(f"{path} holds no frame")
    totals, video_format = archive.totals, archive.format
    return PackReport(
        output=archive.path,
        frames=totals.frames,
        format=video_format,
        samples=totals.frames * video_format.samples_per_frame,
        raw_bytes=totals.frames * video_format.bytes_per_frame,
        archive_bytes=totals.archive_bytes,
        ideal_bits=totals.ideal_bits,
        chunks=totals.chunks,
        chunks_stored=totals.chunks_stored,
        chunks_pixelwise=totals.chunks_pixelwise,
        model_name=archive.model.name,
        model_embedded=totals.model_embedded,
        source_bytes=frames.source_bytes,
        lossy_source=frames.lossy,
        seconds=time.monotonic() - started,
    )


def unpack(
    archive: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    jobs: int | None = None,
    model_file: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    force: bool = False,
    progress: Progress | None = None,
) -> UnpackReport:
    """Write the frames of an archive to a file or folder, each checked against its hash.

    Args:
        archive: The archive.
        output: See `media.open_sink`; None for the archive's name and the kind its source had.
        jobs: Worker threads, None for all cores.
        model_file: See `open`.
        device: See `open`.
        force: Replace the output.
        progress: Called with the frames done and the frames there are.

    Raises:
        FormatError: The archive is damaged.
        UnsupportedFormat: The output's kind cannot hold the frames unchanged.
        OutputExists: The output exists and `force` is not given.
    """
    started = time.monotonic()
    with reader.open(archive, jobs=jobs, model_file=model_file, device=device) as frames:
        name = _unpacked_name(frames) if output is None else os.fspath(output)
        _check_apart(frames.path, Path(name))
        with media.open_sink(name, frames.format, force) as sink:
            for done, frame in enumerate(frames, 1):
                sink.write(frame)
                if progress is not None:
                    progress(done, len(frames))
        return UnpackReport(Path(name), len(frames), frames.format, time.monotonic() - started)


def verify(
    archive: str | os.PathLike[str],
    *,
    source: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    model_file: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> VerifyReport:
    """Decode a whole archive and check every frame against its hash.

    Args:
        archive: The archive.
        source: Also compare every sample and timestamp with what is read from here.
        jobs: Worker threads, None for all cores.
        model_file: See `open`.
        device: See `open`.
        progress: Called with the frames done and the frames there are.

    Raises:
        FormatError: The archive is damaged.
        ChecksumMismatch: A frame is not the one that was packed, or not the source's.
    """
    started = time.monotonic()
    with reader.open(archive, jobs=jobs, model_file=model_file, device=device) as frames:
        frames.container.check()
        if source is None:
            for done, _ in enumerate(frames, 1):
                if progress is not None:
                    progress(done, len(frames))
        else:
            with media.open_source(source) as other:
                if other.format != frames.format:
                    raise ChecksumMismatch(f"{source} has another format than the archive")
                for done, (ours, theirs) in enumerate(zip_longest(frames, other), 1):
                    if ours is None or theirs is None or not _equal(ours, theirs):
                        raise ChecksumMismatch(f"frame {done - 1} is not the frame of {source}")
                    if progress is not None:
                        progress(done, len(frames))
        return VerifyReport(
            len(frames),
            len(frames.container.index),
            time.monotonic() - started,
            source is not None,
        )


def info(archive: str | os.PathLike[str]) -> dict[str, Any]:
    """Describe an archive as a JSON object, from its HEAD and index; no frame is decoded.

    Chunks that used bits-back have an `account` in bits, and so has the archive then.

    Raises:
        FormatError: The archive is damaged.
    """
    with reader.open(archive) as frames:
        records, video_format = frames.container, frames.format
        samples = len(frames) * video_format.samples_per_frame
        accounts = [frames.account(i) for i in range(len(records.index))]
        return {
            "archive": str(frames.path),
            "bytes": records.size,
            "frames": len(frames),
            "samples": samples,
            "raw_bytes": len(frames) * video_format.bytes_per_frame,
            "bits_per_sample": 8 * records.size / max(1, samples),
            "promise": "samples",
            "format": video_format.to_json(),
            "source": frames.head.get("source"),
            "model": {**frames.head["model"], "embedded_bytes": records.model_size},
            "chunk_frames": frames.head.get("chunk_frames"),
            **_total_account([account for account in accounts if account is not None]),
            "chunks": [
                {
                    "offset": entry.offset,
                    "bytes": entry.size,
                    "first_frame": entry.first_frame,
                    "frames": entry.frame_count,
                    **_account(account),
                }
                for entry, account in zip(records.index, accounts, strict=True)
            ],
        }


def models() -> list[dict[str, Any]]:
    """Describe every model in the package as a JSON object."""
    from flowarchive import store  # brings models in, which `info` does without

    return [{"name": name, **facts} for name, facts in store.packaged_models().items()]


def _account(account: Statement | None) -> dict[str, Any]:
    """What `info` says of a chunk's bits, and of each frame's."""
    if account is None:
        return {}
    sums = _total_account([account])["account"]
    del sums["chunks"]
    frames = [{**asdict(frame), "net": frame.net} for frame in account.frames]
    return {"account": {**sums, "frames": frames}}


def _total_account(accounts: Sequence[Statement]) -> dict[str, Any]:
    """The same of all chunks that have an account, with the largest seed and peak of any."""
    if not accounts:
        return {}
    every = [frame for account in accounts for frame in account.frames]
    sums = {
        "chunks": len(accounts),
        "seed": max(account.seed for account in accounts),
        "peak": max(account.peak for account in accounts),
        "integer": sum(frame.integer for frame in every),
        "popped": sum(frame.popped for frame in every),
        "pushed": sum(frame.pushed for frame in every),
        "net": sum(account.net_bits for account in accounts),
        "ideal": sum(account.ideal_bits for account in accounts),
        "overhead": sum(account.overhead_bits for account in accounts),
    }
    return {"account": sums}


def _equal(ours: Frame, theirs: Frame) -> bool:
    return ours.pts == theirs.pts and all(map(np.array_equal, ours.planes, theirs.planes))


def _check_apart(source: Path, output: Path) -> None:
    """Refuse an output that is the input, or lies inside it; `force` must not destroy it."""
    same = output.exists() and source.exists() and output.samefile(source)
    if same or (source.is_dir() and source.resolve() in output.resolve().parents):
        raise OutputExists(f"{output} is the input itself, or inside it")


def _packed_name(source: Path) -> Path:
    source = source.resolve() if source.name in ("", "..") else source
    name = source.name if source.is_dir() else source.stem
    return source.with_name(name + SUFFIX)


def _unpacked_name(archive: reader.Archive) -> str:
    source = archive.head.get("source")
    kind = source.get("kind") if isinstance(source, dict) else None
    suffixes = (UNPACKED.get(str(kind), ".mkv"), ".mkv", ".yuv")
    suffix = next(s for s in suffixes if media.can_hold(s, archive.format))
    return str(archive.path.with_suffix("")) + suffix
