"""Every codec on every clip: bytes, seconds, and whether every sample came back.

The clip's frames are in memory when the clock starts. Encoding ends when the files are written;
decoding when the last frame's planes are in memory, the time of comparing them left out. For a
program, and for our presets, that is the whole process.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from flowarchive import media
from flowarchive.bench.clip import Clip, read_clip
from flowarchive.bench.codecs import FFV1, VP9, X264, X265, ZSTD, Codec
from flowarchive.bench.presets import Preset, presets
from flowarchive.bench.tools import AV1, JXL
from flowarchive.errors import FlowArchiveError, InputError
from flowarchive.frames import VideoFormat
from flowarchive.media import encoding

CODECS: dict[str, Codec] = {c.name: c for c in (FFV1, X264, X265, AV1, VP9, JXL, ZSTD)}
NOTHING = "none"
LIBRARIES = ("numpy", "numba", "torch", "zstandard")

Progress = Callable[[int, int | None], None]


class Status(StrEnum):
    """What became of a codec on a clip; only a verified one has a size."""

    verified = "verified"
    differs = "differs"
    failed = "failed"
    unsupported = "unsupported"
    missing = "missing"


@dataclass(frozen=True)
class Measurement:
    """One codec on one clip.

    Attributes:
        codec: Name of the codec or preset.
        status: What became of it.
        reason: Why it is not verified; None if it is.
        bytes: Size of its files, None unless verified.
        encode_seconds: Wall time to the files, None unless verified.
        decode_seconds: Wall time to the planes, None unless verified.
    """

    codec: str
    status: Status
    reason: str | None = None
    bytes: int | None = None
    encode_seconds: float | None = None
    decode_seconds: float | None = None


@dataclass(frozen=True)
class ClipResult:
    """All codecs on one clip.

    Attributes:
        clip: The clip's name.
        format: Of its frames.
        frames: Number of its frames.
        samples: Samples of all planes of all frames.
        raw_bytes: What they take uncoded.
        measurements: One a codec, in the order of the report's codecs.
    """

    clip: str
    format: VideoFormat
    frames: int
    samples: int
    raw_bytes: int
    measurements: tuple[Measurement, ...]


@dataclass(frozen=True)
class CodecInfo:
    """What a report says of a codec, whatever the clip.

    Attributes:
        name: What a table calls it.
        is_preset: One of ours.
        settings: The command.
        container: What its files are.
        version: Of what does the work, None where it cannot be told.
        missing: Why this machine cannot run it, None if it can.
    """

    name: str
    is_preset: bool
    settings: str
    container: str
    version: str | None
    missing: str | None


@dataclass(frozen=True)
class Report:
    """A whole run.

    Attributes:
        machine: Processor, cores, load when the run began, versions.
        codecs: Every codec and preset that was asked for.
        clips: Those that are finished.
        clips_wanted: How many there will be.
    """

    machine: dict[str, object]
    codecs: tuple[CodecInfo, ...]
    clips: tuple[ClipResult, ...]
    clips_wanted: int

    @property
    def mismatches(self) -> list[str]:
        """A line for every clip whose samples a preset did not give back."""
        return self._lines(Status.differs)

    @property
    def failures(self) -> list[str]:
        """A line for every clip on which a preset ended with an error."""
        return self._lines(Status.failed)

    def _lines(self, status: Status) -> list[str]:
        presets = {codec.name for codec in self.codecs if codec.is_preset}
        return [
            f"{found.codec} on {clip.clip}: {found.reason}"
            for clip in self.clips
            for found in clip.measurements
            if found.status is status and found.codec in presets
        ]


def choose(codecs: Sequence[str], models: Sequence[str], device: str = "cpu") -> list[Codec]:
    """Look codecs and presets up by name: the presets first.

    Args:
        codecs: Names from `CODECS`; empty for all, "none" for none.
        models: Names of packaged models; empty for all, "none" for none.
        device: Where presets run; see `archive.pack`.

    Raises:
        InputError: A name is not known.
    """
    # Looking presets up loads their models.
    ours: dict[str, Codec] = {} if set(models) == {NOTHING} else dict(presets(device))
    return [*_named(models, ours, "preset"), *_named(codecs, CODECS, "codec")]


def _named(names: Sequence[str], known: dict[str, Codec], kind: str) -> list[Codec]:
    wanted = [name for name in names if name != NOTHING]
    for name in wanted:
        if name not in known:
            raise InputError(f"there is no {kind} {name!r}; there are {', '.join(known)}, none")
    if not names:
        return list(known.values())
    return [known[name] for name in dict.fromkeys(wanted)]


def measure(
    clips: Sequence[str | os.PathLike[str]],
    codecs: Sequence[Codec],
    frames: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Report]:
    """Measure codecs on clips.

    Args:
        clips: Anything `media.open_source` reads; a clip is held in memory whole.
        codecs: What to measure, in the order of the report.
        frames: Frames of each clip at most; None for all.
        progress: Called with the measurements done, and those there are.

    Yields:
        The report of the clips so far: before the first, when all clips have been found to open,
        and after each.

    Raises:
        InputError: A clip cannot be read.
    """
    infos = tuple(_describe(codec) for codec in codecs)
    machine = _machine()
    done: list[ClipResult] = []
    for path in clips:
        with media.open_source(path):
            pass
    yield Report(machine, infos, (), len(clips))
    with tempfile.TemporaryDirectory(prefix="flowarchive-bench-") as name:
        for path in clips:
            scratch = Path(name) / f"{len(done)}"
            scratch.mkdir()
            clip = read_clip(Path(path), frames, scratch)
            found: list[Measurement] = []
            for codec, info in zip(codecs, infos, strict=True):
                found.append(_measure_one(clip, codec, info.missing, scratch / "coded"))
                if progress is not None:
                    progress(len(done) * len(codecs) + len(found), len(clips) * len(codecs))
            done.append(
                ClipResult(
                    clip.name,
                    clip.format,
                    len(clip.frames),
                    clip.samples,
                    clip.raw_bytes,
                    tuple(found),
                )
            )
            shutil.rmtree(scratch)
            yield Report(machine, infos, tuple(done), len(clips))


def _measure_one(clip: Clip, codec: Codec, missing: str | None, folder: Path) -> Measurement:
    """Run one codec on one clip, in a folder of its own."""
    if missing is not None:
        return Measurement(codec.name, Status.missing, missing)
    refusal = codec.refuses(clip)
    if refusal is not None:
        return Measurement(codec.name, Status.unsupported, refusal)
    folder.mkdir()
    try:
        started = time.perf_counter()
        codec.encode(clip, folder)
        encode_seconds = time.perf_counter() - started
        size = sum(path.stat().st_size for path in folder.iterdir())
        decode_seconds, reason = _verify(clip, codec, folder)
    except FlowArchiveError as error:
        return Measurement(codec.name, Status.failed, str(error))
    finally:
        shutil.rmtree(folder)
    if reason is not None:
        return Measurement(codec.name, Status.differs, reason)
    return Measurement(codec.name, Status.verified, None, size, encode_seconds, decode_seconds)


def _verify(clip: Clip, codec: Codec, folder: Path) -> tuple[float, str | None]:
    """Decode, and return the seconds that took and what differs from the clip."""
    seconds, decoded = 0.0, 0
    reason = None
    frames = codec.decode(clip, folder)
    while True:
        started = time.perf_counter()
        planes = next(frames, None)
        seconds += time.perf_counter() - started
        if planes is None:
            break
        if reason is None and decoded < len(clip.frames):
            wanted = clip.frames[decoded].planes
            equal = len(planes) == len(clip.components) and all(
                map(np.array_equal, clip.complete(planes), wanted)
            )
            reason = None if equal else f"frame {decoded} is not the frame that was coded"
        decoded += 1
    if reason is None and decoded != len(clip.frames):
        reason = f"{decoded} frames came back of {len(clip.frames)}"
    return seconds, reason


def _describe(codec: Codec) -> CodecInfo:
    missing = codec.missing()
    return CodecInfo(
        codec.name,
        isinstance(codec, Preset),
        codec.settings,
        codec.container,
        None if missing else codec.version(),
        missing,
    )


def _machine() -> dict[str, object]:
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in LIBRARIES},
            **encoding.library_versions(),
        },
    }


def _processor() -> str:
    """The processor's name where Linux tells it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
