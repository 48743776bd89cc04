"""What each part of the `video` model brings: `python tests/bench/ablation.py CLIP...`.

Codes the first frames of each clip with the packaged model (or `--model FILE`) as it is, and with
one part taken away at a time; the networks stay as they were trained. Prints bits a sample by the
integer model, vectors and intra frames included, and what is lost without the part.

Two rows put filters that are fitted to the chunk as a whole in the place of those that learn from
frame to frame: without the bytes that an archive would have to spend on them, and with them, as
zstd has them, in steps of 2**-9.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import zstandard

from flowarchive import lattice, motion, planes, store
from flowarchive.adaptive import (
    WEIGHT_LIMIT,
    DefaultFilters,
    LinearPredictor,
    ScaleCorrection,
)
from flowarchive.adaptive.correction import BUCKETS
from flowarchive.ans import Message
from flowarchive.media import open_source
from flowarchive.models import plan

Patch = Callable[[], Any]

FILTER_STEP = 1 << 5
"""Of filters that are stored, in 2**-14."""


def rounded_vectors(quarters: int) -> Patch:
    """Vectors at multiples of so many quarters of a sample."""
    search = motion.search

    def searched(*arguments: Any, **options: Any) -> motion.Field:
        field = search(*arguments, **options).astype(np.int32)
        rounded = (field + quarters // 2) // quarters * quarters
        return np.clip(rounded, -2044, 2044).astype(np.int16)

    return lambda: mock.patch.object(motion, "search", searched)


def coarse_blocks() -> Any:
    """Keep the first vector of every two by two blocks."""
    search = motion.search

    def searched(*arguments: Any, **options: Any) -> motion.Field:
        field = search(*arguments, **options)
        whole = field[::2, ::2].repeat(2, axis=0).repeat(2, axis=1)
        return np.ascontiguousarray(whole[: field.shape[0], : field.shape[1]])

    return mock.patch.object(motion, "search", searched)


def no_motion() -> Any:
    """Vectors of zero."""
    return mock.patch.object(
        motion, "search", lambda current, *_, **__: motion.zero_field(current.shape)
    )


def by_samples() -> Any:
    """Blocks compared as they are, not by their detail."""
    return mock.patch.object(
        motion.picture, "_detail", lambda luma, drop: (luma >> drop << 1).astype(np.int16)
    )


def apart() -> Any:
    """The second reference chosen as if there were no first one."""
    search = motion.search
    return mock.patch.object(motion, "search", lambda *parts, beside=None: search(*parts))


def one_reference() -> Any:
    """The last frame alone: every frame is a near one."""
    return mock.patch.object(plan, "find_near", lambda frames: [True] * len(frames))


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


def fitted_filters(fits: list[DefaultFilters]) -> Generator[Any]:
    """Two patches: one that lets `fits` learn what the predictors do, and one with their filters.

    Predictors come in the same order in every run.
    """
    begin, learn, end = LinearPredictor.__init__, LinearPredictor.learn, LinearPredictor.end_frame
    owners: dict[int, DefaultFilters] = {}

    def begun(self: Any, defaults: Any, *rest: Any) -> None:
        begin(self, defaults, *rest)
        owners[id(self)] = DefaultFilters(defaults.shape[-1])
        fits.append(owners[id(self)])

    def learned(self: Any, *arguments: Any) -> None:
        owners[id(self)].learn(*arguments)
        learn(self, *arguments)

    def ended(self: Any) -> None:
        owners[id(self)].end_frame()
        end(self)

    yield mock.patch.multiple(LinearPredictor, __init__=begun, learn=learned, end_frame=ended)
    filters = iter([coarse(fit.fit()) for fit in fits])

    def frozen(self: Any, _: Any, *rest: Any) -> None:
        begin(self, next(filters), *rest)

    still = frozen_filters()
    with still:
        yield mock.patch.object(LinearPredictor, "__init__", frozen)


def coarse(filters: Any) -> Any:
    """Round filters to steps of 2**-9."""
    rounded = (filters + (FILTER_STEP >> 1)) // FILTER_STEP * FILTER_STEP
    return np.clip(rounded, -WEIGHT_LIMIT, WEIGHT_LIMIT).astype(np.int32)


@contextmanager
def nothing() -> Iterator[None]:
    """The model as it is."""
    yield


VARIANTS: dict[str, Patch] = {
    "whole model": nothing,
    "vectors in half samples": rounded_vectors(2),
    "vectors in whole samples": rounded_vectors(4),
    "blocks of 16 x 16 only": coarse_blocks,
    "blocks compared by samples": by_samples,
    "second reference apart": apart,
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

    def show(name: str, rates: list[float]) -> None:
        base.extend(rates[len(base) :])
        lost = [100 * (rate / whole - 1) for rate, whole in zip(rates, base, strict=True)]
        cells = "".join(f"{r:>9.4f}{x:>+6.1f}%" for r, x in zip(rates, lost, strict=True))
        print(f"{name:<26}{cells}{sum(lost) / len(lost):>+8.1f}%", flush=True)

    for name, patch in VARIANTS.items():
        show(name, [rate(model, clip, patch()) for clip in clips])
    fitted, stored = [], []
    for clip in clips:
        fits: list[DefaultFilters] = []
        patches = fitted_filters(fits)
        rate(model, clip, next(patches))
        fitted.append(rate(model, clip, next(patches)))
        patches.close()
        steps = [coarse(fit.fit()) // FILTER_STEP for fit in fits]
        flat = np.concatenate([filters.ravel() for filters in steps]).astype(np.int16)
        size = len(zstandard.compress(flat.tobytes(), 19))
        stored.append(fitted[-1] + 8 * size / clip[3])
    show("filters fitted to a chunk", fitted)
    show("and stored in it", stored)


Clip = tuple[list[planes.Components], str, int, int]


def rate(model: Any, clip: Clip, patch: Any) -> float:
    """Bits a sample of a clip by a model with a patch."""
    frames, letters, bits, samples = clip
    with patch:
        account = model.push_frames(Message(1), frames, letters, bits, 2)
    return float(account.ideal_bits / samples)


def read(path: Path, count: int) -> Clip:
    """Return a clip's first frames as components, with letters, depth and samples."""
    with open_source(path) as source:
        letters = source.format.layout.components
        groups = [frame.planes for frame, _ in zip(source, range(count), strict=False)]
    bits = max(map(planes.bits_needed, groups))
    samples = sum(plane.size for group in groups for plane in group)
    return [planes.split(group, letters, bits) for group in groups], letters, bits, samples


if __name__ == "__main__":
    main()
