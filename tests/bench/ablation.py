"""What each part of the `video` model brings: `python tests/bench/ablation.py CLIP...`.

Codes the first frames of each clip with the packaged model (or `--model FILE`) as it is, and with
one part taken away at a time; the networks stay as they were trained. Prints bits a sample by the
integer model, vectors and intra frames included, and what is lost without the part.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from flowarchive import lattice, motion, planes, store
from flowarchive.adaptive import LinearPredictor, ScaleCorrection
from flowarchive.adaptive.correction import BUCKETS
from flowarchive.ans import Message
from flowarchive.media import open_source
from flowarchive.models import plan, video

Patch = Callable[[], Any]


def rounded_vectors(quarters: int) -> Patch:
    """Vectors at multiples of so many quarters of a sample."""
    search = motion.search

    def searched(*arguments: Any) -> motion.Field:
        field = search(*arguments).astype(np.int32)
        rounded = (field + quarters // 2) // quarters * quarters
        return np.clip(rounded, -2044, 2044).astype(np.int16)

    return lambda: mock.patch.object(motion, "search", searched)


def coarse_blocks() -> Any:
    """Keep the first vector of every two by two blocks."""
    search = motion.search

    def searched(*arguments: Any) -> motion.Field:
        field = search(*arguments)
        whole = field[::2, ::2].repeat(2, axis=0).repeat(2, axis=1)
        return np.ascontiguousarray(whole[: field.shape[0], : field.shape[1]])

    return mock.patch.object(motion, "search", searched)


def no_motion() -> Any:
    """Vectors of zero."""
    return mock.patch.object(motion, "search", lambda current, *_: motion.zero_field(current.shape))


def one_reference() -> Any:
    """The last frame alone."""

    def remember(past: Any, frame: planes.Components) -> None:
        past._frames = [frame]

    return mock.patch.object(video._Past, "remember", remember)


def frozen_filters() -> Any:
    """Linear prediction by the model's own filters, which learn nothing."""
    return mock.patch.multiple(LinearPredictor, learn=lambda *_: None, end_frame=lambda *_: None)


def no_linear_anchor() -> Any:
    """In the place of the linear prediction, the first reference's sample."""

    def predict(
        _: Any, plane: Any, first: Any, second: Any, luma: Any, level: int, phase: int, *rest: int
    ) -> Any:
        parity = lattice.PHASES[phase]
        rows, columns = ((side - 2 * lattice.BORDER + 1) // 2 * 2 for side in first.shape)
        top, left = lattice.BORDER + parity.row, lattice.BORDER + parity.column
        return first[top : top + rows : 2, left : left + columns : 2] * (256 // lattice.QUARTERS)

    return mock.patch.object(LinearPredictor, "predict", predict)


def no_correction() -> Any:
    """Scales as the networks predict them."""
    nothing = np.zeros(BUCKETS, dtype=np.int32)
    return mock.patch.object(ScaleCorrection, "offsets", return_value=nothing)


def intra_only() -> Any:
    """Every frame on its own."""
    return mock.patch.object(plan.Plan, "fields", return_value=None)


@contextmanager
def nothing() -> Iterator[None]:
    """The model as it is."""
    yield


VARIANTS: dict[str, Patch] = {
    "whole model": nothing,
    "vectors in half samples": rounded_vectors(2),
    "vectors in whole samples": rounded_vectors(4),
    "blocks of 16 x 16 only": coarse_blocks,
    "no motion": no_motion,
    "one reference": one_reference,
    "filters do not learn": frozen_filters,
    "no linear prediction": no_linear_anchor,
    "no scale correction": no_correction,
    "intra frames only": intra_only,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--model", default="video")
    parser.add_argument("--frames", type=int, default=8)
    options = parser.parse_args()
    model = store.load_model(options.model).network
    names = [path.name.split(".")[0][:14] for path in options.clips]
    print(f"{'':<26}" + "".join(f"{name:>16}" for name in names) + f"{'mean':>9}")
    clips = [read(path, options.frames) for path in options.clips]
    base: list[float] = []
    for name, patch in VARIANTS.items():
        rates = []
        for frames, letters, bits, samples in clips:
            with patch():
                account = model.push_frames(Message(1), frames, letters, bits, 2)
                rates.append(account.ideal_bits / samples)
        base = base or rates
        lost = [100 * (rate / whole - 1) for rate, whole in zip(rates, base, strict=True)]
        cells = "".join(f"{r:>9.4f}{x:>+6.1f}%" for r, x in zip(rates, lost, strict=True))
        print(f"{name:<26}{cells}{sum(lost) / len(lost):>+8.1f}%", flush=True)


def read(path: Path, count: int) -> tuple[list[planes.Components], str, int, int]:
    """Return a clip's first frames as components, with letters, depth and samples."""
    with open_source(path) as source:
        letters = source.format.layout.components
        groups = [frame.planes for frame, _ in zip(source, range(count), strict=False)]
    bits = max(map(planes.bits_needed, groups))
    samples = sum(plane.size for group in groups for plane in group)
    return [planes.split(group, letters, bits) for group in groups], letters, bits, samples


if __name__ == "__main__":
    main()
