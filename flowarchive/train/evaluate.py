"""What freezing costs: a trained model as float twin, as integers, and as coded bits."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import nn

from flowarchive import exact, planes
from flowarchive.ans import Message
from flowarchive.errors import InputError
from flowarchive.models import MODELS, IdfModel
from flowarchive.train.data import Clip, ClipConfig, load_clip
from flowarchive.train.loop import CHECKPOINT, Config, read_weights, validate


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
        directory: Holds the run's checkpoint.
        clips: What to measure on.

    Raises:
        InputError: There is no such checkpoint, or a clip cannot be read.
    """
    checkpoint = directory / CHECKPOINT
    if not checkpoint.exists():
        raise InputError(f"there is no checkpoint {checkpoint}")
    twin = MODELS[config.kind](config.model)
    with safe_open(checkpoint, "pt") as file:
        read_weights(file, "average", twin)
    exact.set_fake(twin, fake=True)
    frozen = exact.freeze(copy.deepcopy(twin))
    for settings in clips:
        clip = load_clip(settings)
        ideal, coded, samples = _code(frozen, clip)
        yield Evaluation(
            settings.path,
            len(clip.luma),
            samples,
            validate(twin, [clip], fake=False),
            validate(twin, [clip], fake=True),
            ideal / samples,
            coded / samples,
        )


def _code(model: nn.Module, clip: Clip) -> tuple[float, int, int]:
    """Ideal bits, coded bits and samples of a clip on one message."""
    assert isinstance(model, IdfModel)
    message, ideal, samples = Message(1), 0.0, 0
    for t in reversed(range(len(clip.luma))):
        components = clip.components(t)
        ideal += model.push(message, components, planes.MIN_BITS)
        samples += components.luma.size
        samples += 0 if components.chroma is None else components.chroma.size
    return ideal, 8 * len(message.to_bytes()), samples
