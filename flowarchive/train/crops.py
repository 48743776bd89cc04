"""Crops of single frames, drawn at random from clips."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowarchive import planes
from flowarchive.errors import InputError
from flowarchive.lattice import QUARTERS
from flowarchive.train.data import Clip

Int16 = NDArray[np.int16]
Int32 = NDArray[np.int32]


class Crops:
    """Draws random flipped crops from clips, each clip with its weight.

    Args:
        clips: Where from.
        size: Side of a crop; chroma crops have half of it. Clips that are smaller are left out.
        seed: Of the random numbers.

    Raises:
        InputError: No clip is large enough, or none has chroma.
    """

    def __init__(self, clips: Sequence[Clip], size: int, seed: int) -> None:
        self.size = size
        self.random = np.random.default_rng(seed)
        self.luma = [clip for clip in clips if min(clip.luma.shape[1:]) >= size]
        self.chroma = [
            clip
            for clip in clips
            if clip.chroma is not None and min(clip.chroma.shape[2:]) >= size // 2
        ]
        if not self.luma or not self.chroma:
            raise InputError(f"no clip is large enough for crops of {size}, or none has chroma")

    def luma_pieces(self, count: int) -> list[Int16]:
        """Return luma crops [size, size] as they are."""
        pieces = []
        for clip in self._pick(self.luma, count):
            frame, y, x = self._place(clip.luma.shape[0], clip.luma.shape[1:], self.size)
            pieces.append(clip.luma[frame, y : y + self.size, x : x + self.size])
        return pieces

    def chroma_pieces(self, count: int) -> list[tuple[Int16, Int16]]:
        """Return chroma crops [2, size/2, size/2] as they are, each with the luma it lies on."""
        half = self.size // 2
        pieces = []
        for clip in self._pick(self.chroma, count):
            assert clip.chroma is not None
            frame, y, x = self._place(clip.chroma.shape[0], clip.chroma.shape[2:], half)
            luma = clip.luma[frame]
            fold_h = -(-luma.shape[0] // clip.chroma.shape[2])
            fold_w = -(-luma.shape[1] // clip.chroma.shape[3])
            luma = luma[y * fold_h : (y + half) * fold_h, x * fold_w : (x + half) * fold_w]
            pieces.append((clip.chroma[frame, :, y : y + half, x : x + half], luma))
        return pieces

    def draw_luma(self, count: int) -> Tensor:
        """Return flipped luma crops, integers in float32 [count, 1, size, size]."""
        return _tensor([self._flip(piece[None]) for piece in self.luma_pieces(count)])

    def draw_chroma(self, count: int) -> tuple[Tensor, Tensor]:
        """Return chroma crops [count, 2, size/2, size/2] and their luma context [count, 1, ...]."""
        crops, contexts = [], []
        for crop, luma in self.chroma_pieces(count):
            context = planes.luma_context(luma.astype(np.int32), crop.shape[1:])
            both = self._flip(np.concatenate([crop, context[None].astype(np.int16)]))
            crops.append(both[:2])
            contexts.append(both[2:])
        return _tensor(crops), _tensor(contexts).clamp(-128, 127)

    def draw_stills(self, count: int) -> tuple[Int32, Int32, Int32]:
        """Return crops for networks that see differences alone: turned, and darker or brighter.

        Returns:
            Luma int32 [count, size, size], chroma [2 * count, size/2, size/2], and for each pair
            of chroma planes luma on their grid, [count, size/2, size/2]; all in quarters of a
            sample step.
        """
        luma = [self._vary(piece)[0] for piece in self.luma_pieces(count)]
        pairs = [self._vary(*pieces) for pieces in self.chroma_pieces(count)]
        grid = (self.size // 2, self.size // 2)
        chroma = np.concatenate([pair[0] for pair in pairs])
        context = np.stack([planes.luma_context(pair[1] * QUARTERS, grid) for pair in pairs])
        return np.stack(luma) * QUARTERS, chroma * QUARTERS, context

    def _vary(self, *pieces: Int16) -> list[Int32]:
        """Turn pieces that lie on each other, and change their brightness now and then."""
        across, down, over = self.random.random(3) < (0.5, 0.5, 0.25)
        gain = self.random.uniform(0.5, 1.2) if self.random.random() < 0.25 else 1.0
        varied = []
        for piece in pieces:
            turned = piece[..., :: -1 if down else 1, :: -1 if across else 1]
            turned = turned.swapaxes(-1, -2) if over else turned
            varied.append(np.rint(turned * gain).astype(np.int32))
        return varied

    def _pick(self, clips: list[Clip], count: int) -> list[Clip]:
        weights = np.array([clip.weight for clip in clips])
        chosen = self.random.choice(len(clips), count, p=weights / weights.sum())
        return [clips[i] for i in chosen]

    def _place(self, frames: int, shape: tuple[int, ...], size: int) -> tuple[int, int, int]:
        y, x = (int(self.random.integers(side - size + 1)) for side in shape)
        return int(self.random.integers(frames)), y, x

    def _flip(self, crop: Int16) -> Int16:
        if self.random.random() < 0.5:
            crop = crop[..., ::-1]
        if self.random.random() < 0.25:
            crop = crop[..., ::-1, :]
        return crop


def _tensor(crops: list[Int16]) -> Tensor:
    return torch.from_numpy(np.stack(crops).astype(np.float32))
