"""Tiny models and noisy frames: archives that plain Python decodes in seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from chains import coupling_tensors

import flowarchive
from flowarchive import store
from flowarchive.archive import chunks
from flowarchive.chunk import Coding
from flowarchive.flows.phases import Tensors
from flowarchive.frames import Frame, VideoFormat
from flowarchive.models import chain
from flowarchive.models.idf import IdfModel
from flowarchive.train.twins import VideoTwin, frozen_tensors

SMALL = {"levels": 2, "couplings": 2, "depth": 1, "width": 4, "groups": 2, "mixtures": 2}
SMALLEST = {"levels": 1, "couplings": 1, "width": 1, "groups": 1, "mixtures": 1}
# A width above 32, so that the third network is narrower, would take too many bytes.
VIDEO = {
    "intra": {"luma": {"width": 3, "blocks": 1}, "chroma": {"width": 2, "blocks": 0}},
    "inter": {"luma": {"width": 2, "blocks": 2}, "chroma": {"width": 3, "blocks": 1}},
}
CHAIN = {"video": VIDEO, "flow": {"context": 2, "width": 3, "fineness": 8}}
LAYERS: dict[str, dict[str, Any]] = {
    "norm": {"layers": [{"kind": "norm"}]},
    "mix": {"layers": [{"kind": "mix", "order": [2, 0, 3, 1]}]},
    "mixture": {"layers": [{"kind": "coupling", "moved": [0, 3], "components": 2}]},
    "tilted": {"tilted": True},
}
LAYERS["all"] = {
    "layers": [
        *(LAYERS[name]["layers"][0] for name in ("norm", "mix", "mixture")),
        {"kind": "coupling", "moved": [0, 1, 2], "components": 0},
    ],
    "tilted": True,
}
"""Fields of a chain's flow that make it of other layers."""

BY_FLOW = float("-inf")
"""A `least_gain` with which all goes by flows that has bits to borrow."""


def write_model(path: Path, seed: int = 0, **changes: Any) -> Path:
    """Write a frozen model of random weights, none of which is without effect.

    Args:
        path: The file.
        seed: Of the weights.
        **changes: Fields of FlowConfig other than those of SMALL, for both flows.
    """
    config = {"luma": {**SMALL, **changes}, "chroma": {**SMALL, **changes}}
    network = IdfModel(config)
    generator = torch.Generator().manual_seed(seed)

    def noise(parameter: torch.Tensor, spread: float) -> torch.Tensor:
        return spread * (2 * torch.rand(parameter.shape, generator=generator) - 1)

    with torch.no_grad():
        for name, parameter in network.named_parameters():
            field_name = name.rsplit(".", 1)[1]
            if name.endswith("linear.scale.bias"):
                parameter.copy_(5.6 + noise(parameter, 0.5))  # wide, as the frames' noise is
            elif field_name == "scale":  # ReZero: at zero a network says nothing
                parameter.copy_(0.1 + noise(parameter, 0.05))
            elif field_name == "bias":
                parameter.copy_(noise(parameter, 0.3))
            elif field_name == "log_scale":
                parameter.copy_(3.2 + noise(parameter, 0.3))
            elif field_name == "mean":
                parameter.copy_(noise(parameter, 16.0))
            elif field_name == "logit":
                parameter.copy_(noise(parameter, 1.0))
            elif parameter.dim() == 1:  # a normalization's gain
                parameter.copy_(1.0 + noise(parameter, 0.5))
            else:
                spread = parameter[0].numel() ** -0.5
                parameter.copy_(noise(parameter, spread))
    store.save_model(path, "idf", config, frozen_tensors(network))
    return path


def write_video_model(path: Path, seed: int = 0) -> Path:
    """Write a frozen `video` model of random weights, none of which is without effect."""
    store.save_model(path, "video", VIDEO, video_tensors(seed))
    return path


def write_chain_model(path: Path, seed: int = 0, **flow: Any) -> Path:
    """Write a frozen `chain` model alike, whose config of the flow has these fields too."""
    config = {**CHAIN, "flow": {**CHAIN["flow"], **flow}}
    store.save_model(
        path, "chain", config, {**video_tensors(seed), **coupling_tensors(config, seed)}
    )
    return path


def video_tensors(seed: int) -> Tensors:
    """The integers of such a `video` model."""
    network = VideoTwin(VIDEO)
    generator = torch.Generator().manual_seed(seed)

    def noise(like: torch.Tensor, spread: float) -> torch.Tensor:
        return spread * (2 * torch.rand(like.shape, generator=generator) - 1)

    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("weight"):
                # Most weights are 0: an archive with its model inside should be small.
                kept = torch.rand(parameter.shape, generator=generator) < 0.2
                spread = 2 * parameter[0].numel() ** -0.5
                parameter.copy_(
                    kept * noise(parameter, spread / 4 if ".heads." in name else spread)
                )
                continue
            parameter.copy_(noise(parameter, 0.3))
            if ".heads." in name:
                # Logarithms of weights, offsets of means, and scales of some sample steps.
                weights, offsets, scales = parameter.view(3, -1)
                weights.mul_(2)
                offsets.mul_(0.1)
                scales.add_(1.6)
        for filters in (network.luma_filters, network.chroma_filters):
            flat = filters.view(-1, filters.shape[-1])
            for slot in range(len(flat)):
                # Mostly what the first reference has there, and a little of another tap.
                flat[slot, 16] = 11_000 + 7 * slot
                flat[slot, slot % filters.shape[-1]] += 900 - 11 * slot
    return frozen_tensors(network)


def noisy_frames(
    video: VideoFormat,
    count: int = 2,
    seed: int = 0,
    bits: int | None = None,
    pts: Iterable[int | None] | None = None,
    constant: dict[str, int] | None = None,
) -> list[Frame]:
    """Frames of wide noise around mid-gray, which a model takes for less than zstd does.

    Args:
        video: Their format.
        count: How many.
        seed: Of the noise.
        bits: Significant bits of a sample, those of the format by default.
        pts: Their timestamps, 0, 1, ... by default.
        constant: The value of the planes that have only one, by letter.
    """
    rng = np.random.default_rng(seed)
    layout = video.layout
    bits = layout.bit_depth if bits is None else bits
    unit, top = 1 << (bits - 8), (1 << bits) - 1
    frames = []
    for time in range(count) if pts is None else pts:
        planes = []
        for letter, shape in zip(layout.components, video.plane_shapes, strict=True):
            plane = rng.normal(top / 2, 15 * unit, shape).round().clip(0, top)
            if not frames and not planes and plane.size > 9:
                plane[0, 0], plane[-1, -1] = 0, top
            if constant and letter in constant:
                plane = np.full(shape, constant[letter])
            planes.append(plane.astype(video.dtype))
        frames.append(Frame(tuple(planes), time))
    return frames


@dataclass(frozen=True)
class Case:
    """An archive to make.

    Attributes:
        video: The format.
        kind: Of the model.
        model: Fields of FlowConfig other than those of SMALL; of a chain's flow; none for `video`.
        frames: Arguments of `noisy_frames`, or of `make`.
        options: Arguments of `flowarchive.create`.
        codings: What each chunk must turn out to be.
        make: Other frames than noisy ones.
        shipped: Name of a model of the package, instead of a random one.
        settings: Constants of `archive.chunks` to change, for what takes large frames otherwise.
        least_gain: Bits that a chain's flow has to save; those of random layers mostly lose some.
    """

    video: VideoFormat
    codings: tuple[str, ...] = ("MODEL",)
    kind: str = "idf"
    model: dict[str, Any] = field(default_factory=dict)
    frames: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    make: Callable[..., list[Frame]] | None = None
    shipped: str = ""
    settings: dict[str, int] = field(default_factory=dict)
    least_gain: float = chain.LEAST_GAIN

    def make_frames(self) -> list[Frame]:
        """The frames that go in."""
        return (self.make or noisy_frames)(self.video, **self.frames)

    def write_model(self, path: Path, seed: int) -> Path:
        """Write the random model that it is packed with."""
        if self.kind == "video":
            return write_video_model(path, seed)
        if self.kind == "chain":
            return write_chain_model(path, seed, **self.model)
        return write_model(path, seed, **self.model)


def white_noise(video: VideoFormat) -> list[Frame]:
    """Frames that nothing makes smaller, the second without a timestamp."""
    rng = np.random.default_rng(5)
    top = 1 << video.layout.bit_depth
    return [
        Frame(tuple(rng.integers(0, top, s).astype(video.dtype) for s in video.plane_shapes), time)
        for time in (7, None)
    ]


def stripes(video: VideoFormat) -> list[Frame]:
    """Frames that zstd makes smaller than any model of noise."""
    shapes = video.plane_shapes
    return [
        Frame(tuple((np.indices(s)[1] % 2 * 200 + time).astype(video.dtype) for s in shapes), time)
        for time in range(3)
    ]


def soft_ramps(video: VideoFormat) -> list[Frame]:
    """One frame of slopes with a little noise, as a filmed wall has."""
    rng = np.random.default_rng(8)
    planes = []
    for h, w in video.plane_shapes:
        rows, columns = np.mgrid[:h, :w]
        plane = 60 + 5 * rows + 3 * columns + rng.normal(0, 2, (h, w))
        planes.append(plane.round().clip(0, 255).astype(video.dtype))
    return [Frame(tuple(planes), 0)]


def held(video: VideoFormat) -> list[Frame]:
    """Waves of which every second frame is held, the second time but for a sample."""
    frames = [Frame(frame.planes, 2 * t) for t, frame in enumerate(waves(video, count=3))]
    again = [
        Frame(tuple(plane.copy() for plane in frame.planes), 2 * t + 1)
        for t, frame in enumerate(frames)
    ]
    again[1].planes[0][0, 0] ^= 1
    return [frame for pair in zip(frames, again, strict=True) for frame in pair]


def flicker(video: VideoFormat, holds: int = 1, **options: Any) -> list[Frame]:
    """Waves in another light every time, each of them held for some frames."""
    top, frames = (1 << video.layout.bit_depth) - 1, []
    for time, frame in enumerate(waves(video, **options)):
        gain, offset = ((1, 0), (0.75, 0.2), (0.9, -0.05))[time % 3]
        lit = [(gain * plane + offset * top).clip(0, top) for plane in frame.planes]
        planes = tuple(plane.astype(video.dtype) for plane in lit)
        frames += [Frame(planes, holds * time + n) for n in range(holds)]
    return frames


def waves(
    video: VideoFormat,
    count: int = 4,
    speed: float = 0.75,
    cuts: tuple[int, ...] = (),
    noise: float = 1.0,
    bits: int | None = None,
    step: int = 1,
    constant: dict[str, int] | None = None,
) -> list[Frame]:
    """Frames that a wave runs through, with some noise, so that there is motion to be found.

    Args:
        video: Their format.
        count: How many.
        speed: Luma samples that the wave moves in a frame.
        cuts: Frames at which another wave begins.
        noise: Its spread, in 8-bit sample steps.
        bits: Significant bits of a sample, those of the format by default.
        step: Samples are multiples of this.
        constant: The value of the planes that have only one, by letter.
    """
    rng = np.random.default_rng(4)
    bits = video.layout.bit_depth if bits is None else bits
    unit, top = 1 << (bits - 8), (1 << bits) - 1
    frames = []
    for time in range(count):
        scene = sum(time >= cut for cut in cuts)
        planes = []
        for n, (letter, shape) in enumerate(
            zip(video.layout.components, video.plane_shapes, strict=True)
        ):
            rows, columns = np.mgrid[: shape[0], : shape[1]]
            rows, columns = rows * video.height / shape[0], columns * video.width / shape[1]
            turned = (rows, columns) if scene % 2 else (columns, rows)
            wave = 60 * np.sin((turned[0] - speed * time + 29 * scene) / 5 + n)
            wave += 20 * np.cos((turned[1] + speed / 2 * time + 13 * scene) / 3)
            wave += rng.normal(0, noise, shape)
            plane = (top / 2 + unit * wave).clip(0, top).astype(int) // step * step
            if constant and letter in constant:
                plane = np.full(shape, constant[letter])
            planes.append(plane.astype(video.dtype))
        frames.append(Frame(tuple(planes), time))
    return frames


def drawing(
    video: VideoFormat,
    count: int = 2,
    step: int = 1,
    noise: int = 4,
    constant: dict[str, int] | None = None,
) -> list[Frame]:
    """Frames of a few letters in any order, a patch of noise, and a box that moves.

    Args:
        video: Their format.
        count: How many.
        step: Samples are multiples of this.
        noise: Columns that the patch of noise takes.
        constant: The value of the planes that have only one, by letter.
    """
    rng = np.random.default_rng(6)
    top = (1 << video.layout.bit_depth) - 1
    letters = rng.integers(0, 5, (video.height // 6 + 1, video.width // 5 + 1))
    frames = []
    for time in range(count):
        planes = []
        for n, shape in enumerate(video.plane_shapes):
            rows, columns = np.mgrid[: shape[0], : shape[1]]
            rows, columns = rows * video.height // shape[0], columns * video.width // shape[1]
            letter = letters[rows // 6, columns // 5]
            sign = (letter * (rows % 6 + 2) + columns % 5 * (columns % 5)) % 7 < 3
            plane = np.where(sign & (rows > 4), top // 3, top - top // (n + 5))
            plane[(abs(columns - 9 - time) < 5) & (rows < 9)] = top // (n + 2)
            patch = rng.integers(0, top + 1, shape)
            plane = np.where(columns >= video.width - noise, patch, plane)
            if constant and video.layout.components[n] in constant:
                plane = np.full(shape, constant[video.layout.components[n]])
            planes.append((plane // step * step).astype(video.dtype))
        frames.append(Frame(tuple(planes), time))
    return frames


NTSC = {"time_base": Fraction(1001, 30000), "rate": Fraction(30000, 1001)}
# One of each kind that the document tells apart.
CASES = {
    "gray": Case(
        VideoFormat(9, 6, "gray"),
        model=SMALLEST,
        frames={"count": 3},
    ),
    "yuv420p-19x13": Case(VideoFormat(19, 13, "yuv420p")),
    "yuv420p-relu": Case(
        VideoFormat(18, 10, "yuv420p", **NTSC),
        model={"group_norm": False, "couplings": 5},
        frames={"pts": [-5, None, 1000]},
    ),
    "yuv422p10le-permuted": Case(
        VideoFormat(11, 9, "yuv422p10le", color_range=1),
        model={"inverse_permutation": False, "couplings": 5, "mixtures": 1},
    ),
    "yuv420p10le": Case(
        VideoFormat(16, 8, "yuv420p10le", sample_aspect_ratio=Fraction(4, 3)),
        model={"levels": 3, "groups": 4},
    ),
    "yuv410p-6x5": Case(VideoFormat(6, 5, "yuv410p"), frames={"count": 12}, model={"levels": 1}),
    "rgb24": Case(
        VideoFormat(9, 7, "rgb24"),
        codings=("MODEL", "MODEL"),
        frames={"count": 5},
        options={"chunk_frames": 3},
    ),
    "gray16le-of-12-bits": Case(VideoFormat(13, 6, "gray16le"), frames={"bits": 12}),
    "gray16le": Case(VideoFormat(7, 10, "gray16le"), frames={"pts": [None, None]}),
    "bgr0-constant": Case(VideoFormat(10, 6, "bgr0"), frames={"constant": {"X": 255}}),
    "yuva444p-constant-u": Case(
        VideoFormat(9, 9, "yuva444p"), frames={"constant": {"U": 128}, "count": 3}
    ),
    "yuva420p": Case(VideoFormat(13, 8, "yuva420p")),
    "stored": Case(
        VideoFormat(6, 5, "yuv444p"), model=SMALLEST, codings=("RAW",), make=white_noise
    ),
    "stored-zstd": Case(
        VideoFormat(12, 9, "rgb0"), model=SMALLEST, codings=("ZSTD",), make=stripes
    ),
    "gray10le-lanes": Case(
        VideoFormat(15, 11, "gray10le"),
        frames={"pts": [3, 4, 6]},
        settings={"SAMPLES_PER_LANE": 100, "BYTES_PER_DIGEST_BYTE": 10},
    ),
    "yuv444p-lanes": Case(
        VideoFormat(10, 9, "yuv444p"),
        frames={"pts": [-9, -2, 5]},
        settings={"SAMPLES_PER_LANE": 200, "BYTES_PER_DIGEST_BYTE": 50},
    ),
    "one-sample": Case(VideoFormat(1, 1, "gray16le"), frames={"count": 99}, codings=("MODEL",)),
    "all-constant": Case(
        VideoFormat(5, 4, "ya8"),
        model=SMALLEST,
        codings=("RAW",),
        frames={"constant": {"Y": 16, "A": 0}},
    ),
    "shipped-idf": Case(
        VideoFormat(24, 16, "yuv420p"),
        make=soft_ramps,
        shipped="idf",
        options={"embed_model": "never"},
    ),
    # The first of each was written by an earlier release, with its model of that name.
    **{
        f"shipped-{kind}{release}": Case(
            VideoFormat(*size, "yuv420p"),
            make=soft_ramps,
            kind=kind,
            shipped=kind,
            options={"embed_model": "never"},
        )
        for kind, size in (("video", (24, 16)), ("chain", (48, 32)))
        for release in ("", "-2")
    },
    "no-frames": Case(VideoFormat(5, 4, "gray"), model=SMALLEST, codings=(), frames={"count": 0}),
}
VIDEO_CASES = {
    name: replace(case, kind="video", make=case.make or waves)
    for name, case in {
        "video-gray": Case(VideoFormat(41, 27, "gray"), frames={"speed": 1.25}),
        "video-yuv420p-19x13": Case(VideoFormat(19, 13, "yuv420p")),
        "video-rgb24-cut": Case(VideoFormat(17, 12, "rgb24"), frames={"count": 5, "cuts": (2,)}),
        "video-cuts": Case(VideoFormat(14, 10, "gray"), frames={"count": 5, "cuts": (1, 2, 3)}),
        "video-yuv410p-lanes": Case(
            VideoFormat(22, 17, "yuv410p"), settings={"SAMPLES_PER_LANE": 100}
        ),
        "video-tables": Case(VideoFormat(27, 18, "yuv420p10le"), frames={"step": 24, "count": 2}),
        "video-rgb48le-tables": Case(
            VideoFormat(27, 18, "rgb48le"), frames={"step": 257 * 6, "count": 2, "noise": 4.0}
        ),
        "video-gray12le-shift": Case(VideoFormat(21, 18, "gray12le"), frames={"noise": 4.0}),
        "video-near": Case(VideoFormat(17, 13, "yuv420p"), make=held),
        "video-light": Case(
            VideoFormat(24, 24, "yuv444p"), make=flicker, frames={"count": 3, "speed": 0}
        ),
        "video-light-near": Case(
            VideoFormat(32, 17, "gray10le"),
            make=flicker,
            frames={"count": 3, "speed": 0.25, "holds": 2},
        ),
        "video-yuva420p": Case(VideoFormat(13, 10, "yuva420p")),
        "video-yuva420p-constant-y": Case(
            VideoFormat(15, 11, "yuva420p"), frames={"constant": {"Y": 16}, "count": 3}
        ),
        "video-one-sample": Case(VideoFormat(1, 1, "gray"), frames={"count": 99}),
        "video-two-chunks": Case(
            VideoFormat(16, 9, "yuv422p"),
            codings=("MODEL", "MODEL"),
            frames={"count": 5},
            options={"chunk_frames": 3},
        ),
    }.items()
}
"""The same of the `video` model."""

CHAIN_CASES = {
    name: replace(case, kind="chain", make=case.make or waves)
    for name, case in {
        "chain-gray": Case(VideoFormat(41, 27, "gray"), frames={"count": 3}),
        "chain-yuv420p-19x13": Case(VideoFormat(19, 13, "yuv420p")),
        "chain-rgb24-cut": Case(VideoFormat(17, 12, "rgb24"), frames={"count": 3, "cuts": (2,)}),
        "chain-gray10le-lanes": Case(
            VideoFormat(27, 20, "gray10le"),
            frames={"count": 3},
            settings={"SAMPLES_PER_LANE": 100},
        ),
        "chain-cuts": Case(VideoFormat(14, 10, "gray"), frames={"count": 4, "cuts": (1, 2)}),
        "chain-light": Case(
            VideoFormat(24, 25, "gray"), make=flicker, frames={"count": 3, "speed": 0}
        ),
        "chain-account": Case(VideoFormat(14, 10, "gray"), frames={"count": 9, "cuts": (4,)}),
        "chain-layers": Case(
            VideoFormat(18, 13, "gray"),
            model=LAYERS["all"],
            frames={"count": 3, "noise": 9.0},
            least_gain=BY_FLOW,
        ),
    }.items()
}
"""The same of the `chain` model, which borrows in each."""


ALWAYS = {"PIXELWISE_SAMPLES": 0, "PIXELWISE_HOPE": -1, "PIXELWISE_SURE": -1}
"""Settings with which everything is coded pixel by pixel."""

PIXEL_CASES = {
    name: replace(
        case,
        codings=("PIXELS",) * len(case.codings),
        model=SMALLEST,
        make=case.make or drawing,
        settings=ALWAYS,
    )
    for name, case in {
        "pixels-gray": Case(VideoFormat(60, 33, "gray"), frames={"count": 3, "noise": 3}),
        "pixels-rgb24": Case(VideoFormat(53, 38, "rgb24"), frames={"noise": 3}),
        "pixels-yuv420p-59x37": Case(
            VideoFormat(59, 37, "yuv420p"), frames={"count": 2, "noise": 2}
        ),
        "pixels-yuva420p": Case(VideoFormat(52, 33, "yuva420p")),
        "pixels-gbrap16le": Case(VideoFormat(48, 32, "gbrap16le"), frames={"noise": 1, "count": 1}),
        "pixels-gray16le-tables": Case(
            VideoFormat(40, 30, "gray16le"), frames={"step": 5000, "noise": 9}
        ),
        "pixels-gray12le": Case(VideoFormat(30, 14, "gray12le")),
        "pixels-gray16le": Case(VideoFormat(40, 30, "gray16le"), make=waves, frames={"count": 2}),
        "pixels-bgr0-constant": Case(
            VideoFormat(42, 29, "bgr0"), frames={"constant": {"R": 9, "X": 255}}
        ),
        "pixels-one-sample": Case(
            VideoFormat(1, 1, "gray"), make=noisy_frames, frames={"count": 99}
        ),
        "pixels-two-chunks": Case(
            VideoFormat(34, 30, "yuv444p"),
            codings=("PIXELS", "PIXELS"),
            frames={"count": 3, "noise": 0},
            options={"chunk_frames": 2},
        ),
    }.items()
}
"""The same of frames that are coded pixel by pixel."""


def pack(
    path: Path,
    video: VideoFormat,
    frames: Iterable[Frame],
    model: str | Path,
    settings: dict[str, int] | None = None,
    **options: Any,
) -> Path:
    """Write an archive of frames."""
    options = {"embed_model": "always", "jobs": 1, **options}
    with ExitStack() as stack:
        for name, value in (settings or {}).items():
            stack.enter_context(mock.patch.object(chunks, name, value))
        writer = stack.enter_context(flowarchive.create(path, video, model=str(model), **options))
        for frame in frames:
            writer.append(frame)
    return path


def pack_case(case: Case, model: str | Path, path: Path) -> Path:
    """Write the archive of a case, and check that its chunks have the codings named."""
    with mock.patch.object(chain, "LEAST_GAIN", case.least_gain):
        pack(path, case.video, case.make_frames(), model, case.settings, **case.options)
    with flowarchive.open(path, jobs=1) as archive:
        found = [archive.chunk(i).coding for i in range(len(archive.container.index))]
    assert tuple(Coding(coding).name for coding in found) == case.codings
    return path
