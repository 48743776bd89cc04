"""Pack frames that no file holds, such as a camera's: 16-bit gray arrays, one at a time.

Usage: python examples/custom_source.py depth.flow
"""

from __future__ import annotations

import sys
from fractions import Fraction

import numpy as np

import flowarchive
from flowarchive import Frame, VideoFormat


def depth_image(number: int) -> np.ndarray:
    """A slanted plane in millimeters, with the noise of a sensor."""
    rows, columns = np.mgrid[0:60, 0:80]
    noise = np.random.default_rng(number).normal(0, 2, rows.shape)
    return (1000 + 4 * rows + 3 * columns + 10 * number + noise).astype(np.uint16)


def main(path: str) -> None:
    """Write eight frames, read them back, and compare."""
    images = [depth_image(number) for number in range(8)]
    video_format = VideoFormat(width=80, height=60, pix_fmt="gray16le", time_base=Fraction(1, 30))
    with flowarchive.create(path, video_format) as writer:
        for number, image in enumerate(images):
            writer.append(Frame((image,), pts=number))
    with flowarchive.open(path) as archive:
        equal = all(np.array_equal(f.planes[0], i) for f, i in zip(archive, images, strict=True))
    if not equal:
        raise SystemExit(f"{path}: the frames differ")
    print(f"{path}: {len(images)} frames of 16-bit depth, equal")


if __name__ == "__main__":
    main(*sys.argv[1:])
