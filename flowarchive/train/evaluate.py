"""What freezing costs: a trained model as float twin, as integers, and as coded bits."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from flowarchive import exact, planes
from flowarchive.ans import Message
from flowarchive.models import Model, model_class
from flowarchive.models.idf import IdfModel
from flowarchive.train.config import Config
from flowarchive.train.data import Clip, ClipConfig, load_clip
from flowarchive.train.idf import validate
from flowarchive.train.loop import read_average
from flowarchive.train.twins import VideoTwin, frozen_tensors
from flowarchive.train.video import chunk_bits

CHUNK = 24
"""Frames that are coded together."""


@dataclass(frozen=True)
class Evaluation:
    """Bits per sample of one clip at 8 bits, by the averaged weights of a training run.

    Attributes:
        clip: Where the frames came from.
        frames: How many there were.
        samples: Samples in them.
        float_twin: Ideal code length by the float network, nothing rounded.
        fake_twin: Ideal code length by the fake-quantized network, in float arithmetic.
        frozen: Ideal code length by the frozen integer model.
        coded: What the message really takes, its heads included.
    """

    clip: Path
    frames: int
    samples: int
    float_twin: float
    fake_twin: float
    frozen: float
    coded: float


def evaluate(config: Config, directory: Path, clips: list[ClipConfig]) -> Iterator[Evaluation]:
    """Measure the averaged weights of a training run on clips, one after the other.

    Args:
        config: What the run was made with.
        directory: Holds the run's checkpoints.
        clips: What to measure on.

    Raises:
        InputError: There is no such checkpoint, or a clip cannot be read.
    """
    average = read_average(config, directory)
    exact.set_fake(average, fake=True)
    tensors = frozen_tensors(copy.deepcopy(average))
    frozen = model_class(config.kind).of_tensors(config.model, tensors)
    for settings in clips:
        clip = load_clip(settings)
        samples = clip.luma.size + (0 if clip.chroma is None else clip.chroma.size)
        total = np.zeros(4)
        for at in range(0, len(clip.luma), CHUNK):
            chunk = clip.frames(at, at + CHUNK)
            total += *_twin_bits(average, chunk), *_code(frozen, chunk)
        yield Evaluation(settings.path, len(clip.luma), samples, *map(float, total / samples))


def _twin_bits(model: nn.Module, clip: Clip) -> tuple[float, float]:
    """Bits of a chunk by the float network, and by the fake-quantized one."""
    if isinstance(model, IdfModel):
        samples = clip.luma.size + (0 if clip.chroma is None else clip.chroma.size)
        rates = [validate(model, [clip], fake) for fake in (False, True)]
        return rates[0] * samples, rates[1] * samples
    assert isinstance(model, VideoTwin)
    by_networks, beside = chunk_bits(model, clip)
    return by_networks[0] + beside, by_networks[1] + beside


def _code(model: Model, clip: Clip) -> tuple[float, int]:
    """Ideal bits and coded bits of a chunk on one message."""
    message = Message(1)
    components = [clip.components(t) for t in range(len(clip.luma))]
    account = model.push_frames(message, components, clip.letters, planes.MIN_BITS)
    return account.ideal_bits, 8 * len(message.to_bytes())
