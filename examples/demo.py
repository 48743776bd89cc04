"""Pack a clip, show what it took, unpack it, and prove that the planes are equal.

The proof uses PyAV and NumPy alone: the clip and the unpacked file are decoded side by side.

Usage: python examples/demo.py [CLIP [FOLDER]]      (default: examples/clip.mkv build/demo)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from fractions import Fraction
from itertools import zip_longest
from pathlib import Path

import av
import numpy as np

import flowarchive
from flowarchive import Frame, VideoFormat

ROOT = Path(__file__).resolve().parent.parent


def decode(path: Path) -> Iterator[tuple[Fraction, list[np.ndarray]]]:
    """Yield each frame's time and its planes, as rows of bytes without their padding."""
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            planes = []
            for plane in frame.planes:
                rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
                planes.append(rows[:, : plane.width * (plane.line_size // plane.width)])
            yield frame.pts * frame.time_base, planes


def warm_up(path: Path) -> None:
    """Code three small frames, so that Numba's one-time compilation is not timed."""
    video_format = VideoFormat(64, 64, "yuv420p")
    planes = tuple(np.zeros(shape, np.uint8) for shape in video_format.plane_shapes)
    planes[0][::2] = planes[1][::2] = planes[2][::2] = 1
    with flowarchive.create(path, video_format, force=True) as writer:
        for _ in range(3):
            writer.append(Frame(planes))
    with flowarchive.open(path) as archive:
        archive[0]
    path.unlink()


def main(clip: Path, folder: Path) -> int:
    """Run the demo; 0 when every plane of every frame came back."""
    folder.mkdir(parents=True, exist_ok=True)
    warm_up(folder / "warm-up.flow")
    packed = flowarchive.pack(clip, folder / f"{clip.stem}.flow", force=True)
    unpacked = flowarchive.unpack(packed.output, folder / f"{clip.stem}.mkv", force=True)
    rows = [
        ("frames", f"{packed.frames}"),
        ("size", f"{packed.format.width} x {packed.format.height} {packed.format.pix_fmt}"),
        ("raw bytes", f"{packed.raw_bytes:,}"),
        ("source bytes", f"{clip.stat().st_size:,}"),
        ("archive bytes", f"{packed.archive_bytes:,}"),
        ("chunks", f"{packed.chunks} ({packed.chunks_stored} stored)"),
        ("bits/sample", f"{8 * packed.archive_bytes / packed.samples:.4f}"),
        ("ideal bits/sample", f"{packed.ideal_bits / packed.samples:.4f}"),
        ("pack", f"{packed.frames / packed.seconds:.2f} frames/s"),
        ("unpack", f"{unpacked.frames / unpacked.seconds:.2f} frames/s"),
    ]
    for name, value in rows:
        print(f"  {name:<18}{value:>24}")

    planes = 0
    for number, (old, new) in enumerate(zip_longest(decode(clip), decode(unpacked.output))):
        equal = old is not None and new is not None and old[0] == new[0]
        if not equal or not all(np.array_equal(a, b) for a, b in zip(old[1], new[1], strict=True)):
            print(f"frame {number} differs", file=sys.stderr)
            return 1
        planes += len(old[1])
    print(f"  {planes} planes of {packed.frames} frames equal, their times too")
    print(f"  {clip} -> {packed.output} -> {unpacked.output}")
    return 0


if __name__ == "__main__":
    arguments = [Path(argument) for argument in sys.argv[1:]]
    defaults = [ROOT / "examples" / "clip.mkv", ROOT / "build" / "demo"]
    sys.exit(main(*arguments, *defaults[len(arguments) :]))
