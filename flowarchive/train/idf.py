"""What the `idf` model brings to the training loop."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from flowarchive import exact
from flowarchive.models.idf import IdfModel
from flowarchive.train.config import WHOLE, PartConfig
from flowarchive.train.crops import Crops
from flowarchive.train.data import Clip, load_clip

Batch = tuple[Tensor, Tensor, Tensor]


class IdfPart:
    """The whole model.

    Args:
        config: What it is trained with.
        cache: Not used: nothing is computed twice.
    """

    name = WHOLE
    prefixes: tuple[str, ...] = ("",)

    def __init__(self, config: PartConfig, cache: Path) -> None:
        self.config = config

    def open(self, model: nn.Module, step: int) -> None:
        """Load the clips; see `loop.Part`."""
        settings = self.config.training
        clips = [load_clip(clip) for clip in self.config.clips]
        self._crops = Crops(clips, settings.crop, settings.seed + step)
        self._held_out = [load_clip(clip) for clip in self.config.validation]

    def draw(self) -> Batch:
        """Draw luma crops, and chroma crops with their context."""
        count = self.config.training.batch
        return self._crops.draw_luma(count), *self._crops.draw_chroma(count)

    def bits(self, model: nn.Module, batch: Batch, fake: bool) -> dict[str, Tensor]:
        """Return mean bits per sample of a batch's luma and chroma."""
        assert isinstance(model, IdfModel)
        luma, chroma, context = batch
        return {
            "luma": model.luma.bits(luma).sum() / luma.numel(),
            "chroma": model.chroma.bits(chroma, context).sum() / chroma.numel(),
        }

    def validate(self, model: nn.Module, fake: bool) -> dict[str, float]:
        """Return bits per sample over all held-out frames."""
        return {"all": validate(model, self._held_out, fake)} if self._held_out else {}


def validate(model: nn.Module, clips: list[Clip], fake: bool) -> float:
    """Return the mean bits per sample of whole frames by the training twin.

    Args:
        model: An IdfModel of training twins.
        clips: Frames to code; every clip counts by its samples.
        fake: Evaluate the frozen integers rather than float weights.
    """
    assert isinstance(model, IdfModel)
    exact.set_fake(model, fake)
    bits, samples = 0.0, 0
    with torch.no_grad():
        for clip in clips:
            for t in range(clip.luma.shape[0]):
                frame_bits, frame_samples = model.frame_bits(clip.components(t))
                bits, samples = bits + frame_bits, samples + frame_samples
    return bits / max(samples, 1)
