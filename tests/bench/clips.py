"""Bits a sample beside FFV1: `python tests/bench/clips.py CLIP...`.

Packs each clip with the packaged model, verifies it against the source, and codes the same frames
with FFV1 (version 3, range coder with its larger context, 4 slices, every frame on its own).
Sizes are those of the files, .flow and .mkv, whole; a star marks an archive with stored chunks.
"""

from __future__ import annotations

import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av

import flowarchive
from flowarchive import media
from flowarchive.frames import Frame, VideoFormat
from flowarchive.media.pixels import fill

OPTIONS = {"level": "3", "coder": "2", "context": "1", "slices": "4", "g": "1", "slicecrc": "1"}
HEADER = (
    f"{'clip':<28}{'format':<14}{'frames':>6}{'raw':>11}{'FFV1':>10}{'flow':>10}{'FFV1 b/s':>10}"
    f"{'flow b/s':>10}{'ideal':>9}{'flow/FFV1':>10}{'pack f/s':>9}{'verify f/s':>11}"
)


def ffv1_bytes(frames: list[Frame], video_format: VideoFormat, path: Path) -> int | None:
    """Return the size of an FFV1 file of the frames, or None if FFV1 has no such format."""
    name = video_format.pix_fmt
    letters = video_format.layout.components
    if letters.startswith("RGB") and video_format.layout.bit_depth == 8:
        name = "bgra" if letters == "RGBA" else "bgr0"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("ffv1", rate=Fraction(25))
        stream.width, stream.height = video_format.width, video_format.height
        try:
            stream.pix_fmt = name
            stream.codec_context.options = OPTIONS
            stream.codec_context.open()
        except (ValueError, av.error.FFmpegError):
            return None
        for number, frame in enumerate(frames):
            picture = av.VideoFrame(video_format.width, video_format.height, name)
            fill(picture, frame.planes, letters)
            picture.pts = number
            file.mux(stream.encode(picture))
        file.mux(stream.encode(None))
    return path.stat().st_size


def main(clips: list[Path]) -> None:
    print(HEADER)
    totals = [0, 0]
    with tempfile.TemporaryDirectory() as folder:
        for clip in clips:
            archive = Path(folder) / "clip.flow"
            packed = flowarchive.pack(clip, archive, force=True)
            started = time.monotonic()
            flowarchive.verify(archive, source=clip)
            seconds = time.monotonic() - started
            with media.open_source(clip) as source:
                ffv1 = ffv1_bytes(list(source), source.format, Path(folder) / "clip.mkv")
            print(row(clip, packed, ffv1, seconds), flush=True)
            if ffv1 is not None:
                totals[0] += ffv1
                totals[1] += packed.archive_bytes
    print(f"all: FFV1 {totals[0]:,} bytes, flow {totals[1]:,}, {totals[1] / totals[0]:.4f} of it")


def row(clip: Path, packed: flowarchive.PackReport, ffv1: int | None, seconds: float) -> str:
    """Lay out one line of the table."""
    eighth = packed.samples / 8
    theirs = ["-", "-", "-"]
    if ffv1 is not None:
        theirs = [f"{ffv1:,}", f"{ffv1 / eighth:.4f}", f"{packed.archive_bytes / ffv1:.4f}"]
    stored = "*" if packed.chunks_stored else ""
    return (
        f"{clip.stem[:27]:<28}{packed.format.pix_fmt:<14}{packed.frames:>6}{packed.raw_bytes:>11,}"
        f"{theirs[0]:>10}{packed.archive_bytes:>10,}{theirs[1]:>10}"
        f"{packed.archive_bytes / eighth:>10.4f}{packed.ideal_bits / packed.samples:>9.4f}"
        f"{theirs[2]:>10}{packed.frames / packed.seconds:>9.2f}{packed.frames / seconds:>11.2f}"
        f"{stored}"
    )


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
