"""Chunks of single frames on a device, from their planes to their words, or the other way.

    packing     up      planes and messages, once; what is real of a level, what lies where
                down    heads and code lengths, once; words, once
    unpacking   up      words and what is real of a level, once
                down    heads and planes, once

A frame knows nothing of the one before. Planes of a part go through its flow together when they are
packed, whatever frames and chunks they are of; when they are unpacked, a plane of each chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triton_kernels import lattice, lengths, mixture, rans
from triton_kernels.link import Link, lay_out
from triton_kernels.session import Part
from triton_kernels.squeezed import Distributions, Flow, Grid, Latent

TOGETHER = 1 << 24
"""Padded samples that go through a flow at once, but for a single frame's of more; they share the
memory of a device."""

MOST_FRAMES = (1 << 16) - 1
"""That go together, however small they are: a launch's grid has room for no more side by side."""

SHORT_BITS = 12
"""Samples of no more bits fit int16, even those that a hostile message makes a flow give back."""


class Stills:
    """Some chunks on a device.

    Args:
        link: To the device.
        tables: Of the entropy model.
        table: Of `lengths`.
        flows: Luma's, which is also that of extra planes, and chroma's.
        parts: Of a frame; luma is the first.
        chunks: How many.
        frames: Of each chunk.
        bits: Depth of the samples, 8..16.
    """

    def __init__(
        self,
        link: Link,
        tables: mixture.Tables,
        table: Tensor,
        flows: tuple[Flow, Flow],
        parts: Sequence[Part],
        chunks: int,
        frames: int,
        bits: int,
    ) -> None:
        self._link, self._parts = link, parts
        self._tables, self._table = tables, table
        self._flows = [flows[part.chroma] for part in parts]
        self._chunks, self._frames, self._bits = chunks, frames, bits
        self._sides = [
            flow.sides((part.height, part.width), part.planes)
            for flow, part in zip(self._flows, parts, strict=True)
        ]
        self._grids: list[list[Grid]]
        self._planes: list[Tensor]

    def push(
        self,
        samples: NDArray[Any],
        head: NDArray[np.uint64],
        size: NDArray[np.int32],
        words: Sequence[NDArray[np.uint32]],
    ) -> tuple[NDArray[np.uint64], list[NDArray[np.uint32]], NDArray[np.float64]]:
        """Push the frames of all chunks.

        Args:
            samples: int16 or int32 [n], of each part all chunks, all frames, all planes.
            head: [chunks, lanes].
            size: Live words, [chunks].
            words: Of each chunk, uint32.

        Returns:
            Heads, live words, and code lengths in bits, [chunks, frames].
        """
        segments = self._segments()
        planes, heads, sizes, tails, table = self._send(
            samples, head, size, lay_out(words), segments
        )
        self._place_planes(planes)
        found = [
            mixture.intervals(*latent, part.support, self._tables)
            for part, latents in self._latents()
            for latent in latents
        ]
        start, freq = (torch.cat([pair[n] for pair in found]) for n in range(2))
        messages = rans.Messages(
            heads, torch.nn.functional.pad(tails, (0, len(start) // self._chunks)), sizes
        )
        each = len(table) // self._chunks
        bounds = torch.arange(self._chunks + 1, device=self._link.device) * each
        rans.push(messages, start, freq, table, bounds)
        steps = lengths.code_lengths(freq, table, self._table)
        steps = steps.view(self._chunks, self._frames, -1).sum(2)
        left, live, ideal = self._link.fetch(messages.head, messages.size, steps)
        (rows,) = self._link.fetch(messages.tail[:, : max(int(live.max()), 1)])
        kept = [row[:n].view(np.uint32) for row, n in zip(rows, live, strict=True)]
        return left.view(np.uint64), kept, ideal / (1 << lengths.STEP_BITS)

    def pop(
        self,
        head: NDArray[np.uint64],
        size: NDArray[np.int32],
        words: Sequence[NDArray[np.uint32]],
    ) -> tuple[NDArray[np.uint64], NDArray[np.int32], list[NDArray[Any]]]:
        """Pop the frames of all chunks.

        Args:
            head: [chunks, lanes].
            size: Live words, [chunks].
            words: Of each chunk, uint32.

        Returns:
            Heads; sizes, -1 where words did not suffice; and of each part its planes [chunks,
            frames, planes, H, W].
        """
        heads, sizes, tails = self._send(head, size, lay_out(words))
        kind = torch.int16 if self._bits <= SHORT_BITS else torch.int32
        each = sum(part.planes * part.height * part.width for part in self._parts)
        count = self._chunks * self._frames * each
        self._place_planes(torch.zeros(count, dtype=kind, device=self._link.device))
        messages = rans.Messages(heads, tails, sizes)
        numbers = torch.arange(self._chunks + 1, device=self._link.device)

        def read(support: mixture.Support, distributions: Distributions) -> Tensor:
            nonlocal messages
            bounds = numbers * (len(distributions[0]) // self._chunks)
            symbols, messages = rans.pop_symbols(
                messages, *distributions, bounds, support, self._tables
            )
            return symbols

        for frame in range(self._frames):
            for index, part in enumerate(self._parts):
                x = self._flows[index].inverse(
                    partial(read, part.support),
                    (self._chunks, *self._padded(index), part.planes),
                    self._context(index, slice(frame, None, self._frames)),
                    self._grids[index],
                    self._shift,
                )
                real = x[:, : part.height, : part.width].permute(0, 3, 1, 2)
                self._planes[index][:, frame] = real
        left, live, *found = self._link.fetch(messages.head, messages.size, *self._planes)
        return left.view(np.uint64), live, found

    @property
    def _shift(self) -> int:
        return self._bits - 8

    def _padded(self, index: int) -> tuple[int, int]:
        part, step = self._parts[index], 1 << len(self._flows[index].levels)
        return part.height + -part.height % step, part.width + -part.width % step

    def _send(self, *arrays: NDArray[Any]) -> list[Tensor]:
        """Send arrays, and beside them which samples are real."""
        flat = [array for part in self._sides for level in part for array in level]
        sent = self._link.send(*arrays, *flat)
        there = iter(sent[len(arrays) :])
        self._grids = [
            flow.grids(sides, [(next(there), next(there)) for _ in sides], self._padded(index))
            for index, (flow, sides) in enumerate(zip(self._flows, self._sides, strict=True))
        ]
        return sent[: len(arrays)]

    def _place_planes(self, samples: Tensor) -> None:
        """Give every part its planes, int16 or int32 [chunks, frames, planes, H, W]."""
        sizes = [(part.planes, part.height, part.width) for part in self._parts]
        all_of_them = self._chunks * self._frames
        pieces = samples.split([all_of_them * p * h * w for p, h, w in sizes])
        self._planes = [
            piece.view(self._chunks, self._frames, *size)
            for piece, size in zip(pieces, sizes, strict=True)
        ]

    def _batches(self, index: int) -> Iterator[range]:
        """Frames of all chunks, in order, whose planes go through a part's flow at once."""
        count, (height, width) = self._chunks * self._frames, self._padded(index)
        step = max(1, TOGETHER // (height * width * self._parts[index].planes))
        step = min(step, MOST_FRAMES)
        return (range(first, min(first + step, count)) for first in range(0, count, step))

    def _latents(self) -> Iterator[tuple[Part, list[Latent]]]:
        """The latents of all planes, the coarsest of a batch first."""
        for index, part in enumerate(self._parts):
            every = self._planes[index].flatten(0, 1)
            for batch in self._batches(index):
                frames = slice(batch.start, batch.stop)
                size = len(batch), *self._padded(index), part.planes
                x = torch.zeros(size, dtype=torch.int32, device=self._link.device)
                x[:, : part.height, : part.width] = every[frames].permute(0, 2, 3, 1)
                latents = self._flows[index].forward(
                    x, self._context(index, frames), self._grids[index], self._shift
                )
                yield part, latents[::-1]

    def _segments(self) -> NDArray[np.int64]:
        """What `rans.push` asks for of the intervals of `_latents`: in the order of popping."""
        rows: list[list[tuple[int, int, int]]]
        rows, begin = [[] for _ in range(self._chunks * self._frames)], 0
        for index, part in enumerate(self._parts):
            for batch in self._batches(index):
                for _, real in reversed(self._sides[index]):
                    count = int((real[:, 0] * real[:, 1]).sum())
                    for frame in batch:
                        rows[frame].append((begin, count, part.precision))
                        begin += count
        return np.array(rows, dtype=np.int64).reshape(-1, 3)

    def _context(self, index: int, frames: slice) -> Tensor | None:
        """What a part's networks see of the luma of some of all frames, int8 [N, H, W, 1]."""
        part = self._parts[index]
        if not part.chroma:
            return None
        luma = self._planes[0].view(-1, *self._planes[0].shape[-2:])
        device = self._link.device
        numbers = torch.arange(len(luma), dtype=torch.int32, device=device)[frames].contiguous()
        means = lattice.on_grid(luma, numbers, (part.height, part.width), 1)
        means = (means + (1 << self._shift >> 1)) >> self._shift
        seen = torch.zeros((len(numbers), *self._padded(index), 1), dtype=torch.int8, device=device)
        seen[:, : part.height, : part.width, 0] = means.clamp(-128, 127)
        return seen


def answer(
    link: Link, flow: Flow, samples: NDArray[np.int32], context: NDArray[np.int8] | None
) -> list[list[NDArray[np.int32]]]:
    """Return what a flow makes of planes of 8 bits, in padding too.

    Args:
        link: To the device.
        flow: Which.
        samples: int32 [C, h, w].
        context: Activations, int8 [h, w], or None.

    Returns:
        Of each level, the finest first, symbols [c * h * w], mean and scale [c * h * w, K].
    """
    (count, *shape), step = samples.shape, 1 << len(flow.levels)
    padded = [side + -side % step for side in shape]
    after = [(0, full - side) for full, side in zip(padded, shape, strict=True)]
    both = zip(flow.sides(tuple(shape), count), flow.sides(tuple(padded), count), strict=True)
    sides = [(squeezed, whole) for (squeezed, _), (_, whole) in both]
    seen = [] if context is None else [np.pad(context, after)[None, :, :, None]]
    flat = [array for level in sides for array in level]
    x, *sent = link.send(np.pad(samples, [(0, 0), *after]), *flat, *seen)
    there = list(zip(sent[: len(flat) : 2], sent[1 : len(flat) : 2], strict=True))
    grids = flow.grids(sides, there, tuple(padded))
    beside = sent[-1] if seen else None
    latents = flow.forward(x.permute(1, 2, 0)[None].contiguous(), beside, grids, 0)
    return [link.fetch(*latent[:3]) for latent in latents]
