"""What an encoder has to find before it codes: motion, and which frames are cuts.

All chunks of a session are walked through at once, frame after frame: the chunk is the leading
size of everything here, and chunks share every launch, whatever their number.
"""

from __future__ import annotations

from collections.abc import Set

import torch
from torch import Tensor

from triton_kernels import light, picture, search


class Planner:
    """Plans chunks; frames are asked for in display order, and none is asked for twice.

    Args:
        luma: Samples, int16 or int32 [chunks, frames, H, W].
        bits: Their depth, 8..16.
        lights: Of each reference, int32 [chunks, frames, 2, 2]; see `light.adjust`.
        lit: Frames that have light in some chunk.
        filters: int32 [4, 8], a filter for each quarter of a sample.
        prices: Of the search.
        shares: See `is_cut`.
        fields: Receives motion against the last frame and the one before, int16 [chunks, frames, 2,
            rows, columns, 2]; zero.

    Attributes:
        cuts: int8 [chunks, frames], 1 for a cut and what has not been looked at.
    """

    def __init__(
        self,
        luma: Tensor,
        bits: int,
        lights: Tensor,
        lit: Set[int],
        filters: Tensor,
        prices: search.Prices,
        shares: Tensor,
        fields: Tensor,
    ) -> None:
        self._luma, self._bits, self._lights, self._lit = luma, bits, lights, lit
        self._filters, self._prices, self._shares = filters, prices, shares
        self._fields = fields
        self.cuts = torch.ones(luma.shape[:2], dtype=torch.int8, device=luma.device)
        # Of the last frame, and the one before.
        self._pictures = [self._look(self._samples(0))]

    def search(self, t: int) -> None:
        """Find the fields of the frames number t, 1 or more; the second frame has one."""
        own, last = self._look(self._samples(t)), self._past(t, 0)
        # A cut, and the first frame, leave no hint.
        hints = self._fields[:, t - 1, 0] * (1 - self.cuts[:, t - 1, None, None, None])
        older = self._past(t, 1) if t > 1 else None
        found = search.search(own, last, hints.contiguous(), self._prices, older)
        self._fields[:, t, : len(found)] = found.transpose(0, 1)
        self._pictures = [own, *self._pictures[:1]]

    def find_cuts(self, t: int, sums: Tensor) -> None:
        """Note which of the frames number t are cuts, by what `lattice.cut_sums` gives."""
        self.cuts[:, t] = is_cut(sums, self._shares)

    def _past(self, t: int, reference: int) -> picture.Picture:
        """A reference of each chunk's frame, in the light of that."""
        if t not in self._lit:
            return self._pictures[reference]
        # All chunks' are looked at anew: light that changes nothing leaves samples as they are.
        half, luma = 1 << (self._bits - 1), 4 * self._samples(t - 1 - reference)
        luma = light.adjust(luma, self._lights[:, t, reference], -half, half - 1)
        return self._look((luma + 2) >> 2)

    def _samples(self, t: int) -> Tensor:
        return self._luma[:, t].to(torch.int32).contiguous()

    def _look(self, luma: Tensor) -> picture.Picture:
        return picture.picture(luma, self._filters, self._bits)


def is_cut(sums: Tensor, shares: Tensor) -> Tensor:
    """Say which frames are cuts; see `models.plan`.

    Args:
        sums: From `lattice.cut_sums`, int64 [N, 3].
        shares: What sums are held against the distance to the neighbors by, in sixteenths of it,
            int64 [3]: `CUT`, `LEFT` and `FAR`.
    """
    past, own, both = sums.unbind(1)
    cut, left, far = (shares[:, None] * own).unbind()
    return (16 * past > cut) & ((16 * both > left) | (16 * past > far))
