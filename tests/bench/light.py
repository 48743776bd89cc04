"""What light brings: `python tests/bench/light.py CLIP...`.

Codes the middle of the first frames of each clip as they are, with flashes, under a light that
flickers, and fading to black, with light and without, by the packaged model or `--model FILE`.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from ablation import Clip, rate, read

from flowarchive import planes, store
from flowarchive.models import plan

BLACK = 16 - 128
"""Of luma, where the samples are bytes."""


def as_it_is(t: int, frame: planes.Components, random: Any) -> planes.Components:
    """The same."""
    return frame


def flashes(t: int, frame: planes.Components, random: Any) -> planes.Components:
    """Every fourth frame alone is lighter by 10 to 40 levels."""
    add = int(random.integers(10, 41)) if t % 4 == 3 else 0
    return lit(frame, 1, add, 1)


def flicker(t: int, frame: planes.Components, random: Any) -> planes.Components:
    """Up to 5 percent of contrast and 10 levels more or less."""
    gain = random.uniform(0.95, 1.05)
    return lit(frame, gain, random.uniform(-10, 10) + 128 * (gain - 1), gain)


def fade(t: int, frame: planes.Components, random: Any) -> planes.Components:
    """From the third frame on to black, in twelve frames."""
    gain = min(max(1 - (t - 2) / 12, 0), 1)
    return lit(frame, gain, BLACK * (1 - gain), gain)


def lit(frame: planes.Components, gain: float, offset: float, colors: float) -> planes.Components:
    """A frame of bytes in another light."""
    parts = [frame.luma * gain + offset]
    parts += [] if frame.chroma is None else [frame.chroma * colors]
    whole = [np.rint(part).clip(-128, 127).astype(np.int32) for part in parts]
    return planes.Components(whole[0], *whole[1:])


def middle(frame: planes.Components, height: int, width: int) -> planes.Components:
    """The middle of a frame, from even rows and columns."""
    rows, columns = frame.luma.shape
    top, left = max(rows - height, 0) // 4 * 2, max(columns - width, 0) // 4 * 2
    cut = []
    for part in frame.parts[:2]:
        fold_y, fold_x = round(rows / part.shape[1]), round(columns / part.shape[2])
        y, x = top // fold_y, left // fold_x
        cut.append(part[:, y : y + height // fold_y, x : x + width // fold_x].copy())
    return planes.Components.of_parts(cut, frame.chroma is not None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--model", default="video")
    parser.add_argument("--frames", type=int, default=16)
    options = parser.parse_args()
    model = store.load_model(options.model).network
    print(f"{'bytes':<34}{'':<10}{'without':>10}{'with':>10}")
    for path in options.clips:
        frames, letters, bits, _ = read(path, options.frames)
        cut = [middle(frame, 288, 352) for frame in frames]
        for change in (as_it_is, flashes, flicker, fade):
            random = np.random.default_rng(1)
            made = [change(t, frame, random) for t, frame in enumerate(cut)]
            clip: Clip = made, letters, bits, 8
            dark = mock.patch.object(plan, "find_lights", lambda frames, _: [None] * len(frames))
            sizes = [rate(model, clip, patch) for patch in (dark, nullcontext())]
            gain = 100 * (sizes[1] / sizes[0] - 1)
            numbers = "".join(f"{size:>10,.0f}" for size in sizes)
            print(f"{path.stem:<34}{change.__name__:<10}{numbers}{gain:>+8.2f} %", flush=True)


if __name__ == "__main__":
    main()
