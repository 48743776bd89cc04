"""Cut examples/clip.mkv out of OpenCV's box.mp4: 24 filmed frames, one in four, halved in size.

Usage: python examples/make_clip.py box.mp4 examples/clip.mkv      (see examples/README.md)
"""

from __future__ import annotations

import sys
from fractions import Fraction
from itertools import islice

import av
import numpy as np

# Neighbors in the source share blocks that H.264 copied, which no camera would give.
FIRST, STEP, FRAMES = 150, 4, 24


def halve(plane: np.ndarray) -> np.ndarray:
    """Average 2x2 samples (area scaling), which also takes out most of what H.264 left."""
    p = plane.astype(np.uint16)
    return ((p[::2, ::2] + p[1::2, ::2] + p[::2, 1::2] + p[1::2, 1::2] + 2) >> 2).astype(np.uint8)


def main(source: str, target: str) -> None:
    """Write FFV1 version 3 in Matroska at 7.5 frames a second (the times of the source jump)."""
    with av.open(source) as src, av.open(target, "w", options={"fflags": "+bitexact"}) as out:
        stream = out.add_stream(
            "ffv1", rate=Fraction(15, 2), options={"level": "3", "slicecrc": "1", "g": "1"}
        )
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        for frame in islice(src.decode(video=0), FIRST, FIRST + STEP * FRAMES, STEP):
            stacked = frame.to_ndarray()  # [480 + 240, 640]: luma, then U and V
            planes = [stacked[:480], *stacked[480:].reshape(2, 240, 320)]
            small = np.concatenate([halve(plane).reshape(-1, 320) for plane in planes])
            out.mux(stream.encode(av.VideoFrame.from_ndarray(small, format="yuv420p")))
        out.mux(stream.encode(None))


if __name__ == "__main__":
    main(*sys.argv[1:])
