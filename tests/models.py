"""Small random models for tests: every layer has something to say, no file is needed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from flowarchive import exact
from flowarchive.flows.phases import Tensors
from flowarchive.frames import Frame, VideoFormat
from flowarchive.models.idf import IdfModel
from flowarchive.models.video import VideoModel
from flowarchive.store import save_model
from flowarchive.train.twins import VideoTwin, frozen_tensors

TINY: dict[str, Any] = {"levels": 2, "couplings": 2, "depth": 1, "width": 4, "mixtures": 2}

TINY_VIDEO: dict[str, Any] = {
    "intra": {"luma": {"width": 16, "blocks": 1}, "chroma": {"width": 8, "blocks": 0}},
    "inter": {"luma": {"width": 8, "blocks": 1}, "chroma": {"width": 8, "blocks": 0}},
}

RUNGS: dict[str, dict[str, bool]] = {
    "idf": {"rezero": False, "inverse_permutation": False, "group_norm": False},
    "rezero": {"rezero": True, "inverse_permutation": False, "group_norm": False},
    "permute-back": {"rezero": True, "inverse_permutation": True, "group_norm": False},
    "norm": {"rezero": False, "inverse_permutation": False, "group_norm": True},
    "norm-permute-back": {"rezero": False, "inverse_permutation": True, "group_norm": True},
    "idf++": {"rezero": True, "inverse_permutation": True, "group_norm": True},
}
"""The rungs of the paper's ladder that change the network."""

SCALE_SHIFT = 9  # indices of the table of scales: 8 are an octave
VIDEO_SCALE = 64  # such an index, of eight sample steps


def make_config(**fields: Any) -> dict[str, Any]:
    """A config whose two flows have the same fields, TINY where nothing else is said."""
    return {"luma": {**TINY, **fields}, "chroma": {**TINY, **fields}}


def scramble(network: nn.Module, seed: int = 0, strength: float = 1.0) -> nn.Module:
    """Give every parameter random values, in place, so that no layer is trivial."""
    random = torch.Generator().manual_seed(seed)

    def uniform(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=random)

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, exact.Conv2d):
                spread = strength / module.weight[0].numel() ** 0.5
                module.weight.copy_(uniform(module.weight, -spread, spread))
                module.bias.copy_(uniform(module.bias, -0.3, 0.3))
                if module.scale is not None:
                    module.scale.copy_(uniform(module.scale, 0.05, 0.3))
            elif isinstance(module, exact.GroupNorm):
                module.weight.copy_(uniform(module.weight, -1.5, 1.5))
                module.bias.copy_(uniform(module.bias, -1, 1))
            elif isinstance(module, exact.Twin) and not isinstance(module, exact.Swish):
                module.mean.copy_(uniform(module.mean, -10, 10))
                module.log_scale.copy_(uniform(module.log_scale, 2, 4))
                module.logit.copy_(uniform(module.logit, -2, 2))
    return network


def make_twin(seed: int = 0, **fields: Any) -> IdfModel:
    """A random model of training twins in fake mode."""
    model = IdfModel(make_config(**fields))
    scramble(model, seed)
    with torch.no_grad():
        for name, module in model.named_modules():
            if not isinstance(module, exact.Conv2d) or ".layers." in name:
                continue
            # Heads speak softly, and of widths like those of `noisy_frames`.
            rezero = 1 if module.scale is None else module.scale
            module.weight.mul_(0.15 / rezero)
            module.bias.mul_(0.15 / rezero)
            if name.endswith("linear.scale"):
                module.bias.add_(SCALE_SHIFT / exact.UNIT / rezero)
    exact.set_fake(model, fake=True)
    return model.eval()


def make_model(seed: int = 0, **fields: Any) -> IdfModel:
    """A random frozen model."""
    frozen = exact.freeze(copy.deepcopy(make_twin(seed, **fields)))
    assert isinstance(frozen, IdfModel)
    return frozen


def write_model(path: Path, seed: int = 0, **fields: Any) -> Path:
    """A random frozen model as a file."""
    twin = copy.deepcopy(make_twin(seed, **fields))
    save_model(path, "idf", make_config(**fields), frozen_tensors(twin))
    return path


def video_tensors(seed: int = 0) -> Tensors:
    """A random frozen video model: networks that say something, filters that do, too."""
    random = torch.Generator().manual_seed(seed)
    model = VideoTwin(TINY_VIDEO)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if parameter.dim() == 1 else 0.7 / parameter[0].numel() ** 0.5
            parameter.copy_(spread * (2 * torch.rand(parameter.shape, generator=random) - 1))
            if ".heads." in name:  # they speak softly, and of widths like those of `noisy_frames`
                parameter.mul_(0.2)
                if parameter.dim() == 1:
                    parameter[2 * len(parameter) // 3 :] += VIDEO_SCALE / exact.UNIT
        for filters in (model.luma_filters, model.chroma_filters):
            filters.copy_(torch.randint(-600, 601, filters.shape, generator=random))
    return frozen_tensors(model)


def make_video_model(seed: int = 0) -> VideoModel:
    """The model of these tensors."""
    return VideoModel(TINY_VIDEO, video_tensors(seed))


def write_video_model(path: Path, seed: int = 0) -> Path:
    """A random frozen video model as a file."""
    save_model(path, "video", TINY_VIDEO, video_tensors(seed))
    return path


def noisy_frames(video_format: VideoFormat, count: int, seed: int = 0) -> list[Frame]:
    """Frames of noise around the middle, which the models here take for less than zstd does."""
    random, top = np.random.default_rng(seed), (1 << video_format.layout.bit_depth) - 1
    return [
        Frame(
            tuple(
                random.normal(top / 2, top / 16, shape).clip(0, top).astype(video_format.dtype)
                for shape in video_format.plane_shapes
            ),
            pts,
        )
        for pts in range(count)
    ]
