"""Read single frames and slices of an archive: only the chunks they lie in are decoded.

Usage: python examples/read_frames.py clip.flow
"""

from __future__ import annotations

import sys

import flowarchive


def main(path: str) -> None:
    """Print the format, the last frame, and the brightness of every fourth frame."""
    with flowarchive.open(path) as archive:
        print(f"{len(archive)} frames of {archive.format}")
        print(f"last: {archive[-1]}")
        for number, frame in zip(range(0, len(archive), 4), archive[::4], strict=True):
            print(f"frame {number}: pts {frame.pts}, mean luma {frame.planes[0].mean():.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
