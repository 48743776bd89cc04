"""NumPy arrays in, NumPy arrays out: what `flowarchive.device` hands to the rest of the house.

A `Host` owns a GPU, or Triton's interpreter in its place. Its methods are the CPU path's own steps:
they upload what a step sees, launch, and download what it gives. A network's state stays on the
device from phase to phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from triton import knobs

from triton_kernels import convolution, mixture, motion, picture, rans, search

Int16 = NDArray[np.int16]
Int32 = NDArray[np.int32]
Uint32 = NDArray[np.uint32]
Uint64 = NDArray[np.uint64]

MOST = 127
SHORT_MOST = (1 << 15) - 1


class Frozen(NamedTuple):
    """The frozen tables of the entropy model: the sigmoid, int32 [2305], and reciprocals [8]."""

    sigmoid: Int32
    reciprocals: NDArray[np.int64]


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return bool(knobs.runtime.interpret)


def find() -> str | None:
    """Return what the GPU that would be used is called; None where there is none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


class Network:
    """The layers of a level's network on a device; see `Host.network`."""

    def __init__(self, host: Host, layers: dict[str, list[convolution.Layer]]) -> None:
        self._host, self._layers = host, layers
        self._width = layers["begin"][0].weight.shape[1]

    def advance(
        self, phase: int, seen: NDArray[np.int8], state: Tensor | None
    ) -> tuple[Tensor, Int16]:
        """Take a phase's channels in.

        Args:
            phase: 0, 1, 2; they have to come in this order.
            seen: The phase's channels, int8 [N, h, w, C].
            state: What the phase before gave; None for the first.

        Returns:
            The new state, which stays on the device, and the head's integers, int16 [N, h, w, O].
        """
        self._host.count("advance")
        channels = self._host.upload(seen)
        shape = channels.shape[:3]
        # State and channels side by side, as every layer but the first sees them.
        both = channels.new_empty((*shape, self._width + channels.shape[3]))
        both[..., self._width :] = channels
        if state is None:
            state = convolution.convolve(
                channels, self._layers["begin"][0], channels.new_empty((*shape, self._width))
            )
            for block in self._layers.get("blocks", []):
                state = self._grow(state, block, state)
        else:
            both[..., : self._width] = state
            state = self._grow(both, self._layers["updates"][phase - 1], state)
        both[..., : self._width] = state
        head = self._layers["heads"][phase]
        out = both.new_empty((*shape, head.weight.shape[1]), dtype=torch.int16)
        return state, convolution.convolve(both, head, out).cpu().numpy()

    @staticmethod
    def _grow(x: Tensor, layer: convolution.Layer, state: Tensor) -> Tensor:
        new = torch.empty_like(state)
        return convolution.convolve(x, layer, new, residual=state, limits=(0, MOST))


class Host:
    """A device and what has been sent to it.

    Attributes:
        name: What people call the device.
        launches: How often each step was asked for, by its name.
    """

    def __init__(self) -> None:
        self.name = "Triton's interpreter" if interpreted() else find() or ""
        self.device = torch.device("cpu" if interpreted() else "cuda")
        self.launches: dict[str, int] = {}
        self._tables: mixture.Tables | None = None

    def upload(self, array: NDArray[Any]) -> Tensor:
        """Send an array, whose type has as many bits signed, to the device."""
        array = np.ascontiguousarray(array)
        if array.dtype.kind == "u":
            array = array.view(array.dtype.str.replace("u", "i"))
        # Where the device is the CPU, kernels must not see memory that may not be written.
        return torch.from_numpy(array if array.flags.writeable else array.copy()).to(self.device)

    def count(self, name: str) -> None:
        """Note that a step was asked for."""
        self.launches[name] = self.launches.get(name, 0) + 1

    def network(
        self, layers: dict[str, list[tuple[NDArray[Any], Int32, NDArray[np.int8]]]]
    ) -> Network:
        """Send a level's network to the device.

        Args:
            layers: "begin" (one), "blocks", "updates" and "heads": of each layer its weight, int8
                or int16 [O, I, k, k], its bias, int32 [O], and its shift, int8 [O].

        Raises:
            ValueError: A layer has a shape that no kernel covers.
        """
        packed = {
            name: [
                convolution.pack(
                    torch.from_numpy(np.array(layer[0])),
                    torch.from_numpy(np.array(layer[1])),
                    torch.from_numpy(np.array(layer[2])),
                    (0, MOST) if name != "heads" else (-SHORT_MOST - 1, SHORT_MOST),
                    self.device,
                )
                for layer in group
            ]
            for name, group in layers.items()
        }
        return Network(self, packed)

    def _frozen(self, frozen: Frozen) -> mixture.Tables:
        if self._tables is None:
            sigmoid, reciprocals = (torch.from_numpy(np.array(table)) for table in frozen)
            self._tables = mixture.tables(sigmoid, reciprocals, self.device)
        return self._tables

    def intervals(
        self,
        symbols: Int32,
        parameters: Sequence[Int32],
        support: tuple[int, int, int],
        frozen: Frozen,
    ) -> tuple[Uint32, Uint32]:
        """Return (start, freq) of symbols; see `mixture.intervals`.

        Args:
            symbols: int32 [n], within the support.
            parameters: mean, scale, weight, int32 [n, K] each, checked.
            support: Least and greatest symbol, and precision.
            frozen: The tables.
        """
        self.count("intervals")
        mean, scale, weight = (self.upload(p) for p in parameters)
        start, freq = mixture.intervals(
            self.upload(symbols),
            mean,
            scale,
            weight,
            mixture.Support(*support),
            self._frozen(frozen),
        )
        return start.cpu().numpy().view(np.uint32), freq.cpu().numpy().view(np.uint32)

    def push(
        self, head: Uint64, tail: Uint32, size: int, kept: Sequence[tuple[Uint32, Uint32, int]]
    ) -> tuple[Uint64, Uint32, int]:
        """Push arrays of intervals in one launch, the last array and its last row first.

        Args:
            head: uint64 [lanes].
            tail: uint32, the live words first.
            size: Of them.
            kept: Left ends and widths, [n] each, and precision, in the order of popping.

        Returns:
            The heads, the whole tail and its live words, afterwards.
        """
        self.count("push")
        counts = [part[0].size for part in kept]
        words = np.zeros(size + sum(counts), dtype=np.uint32)
        words[:size] = tail[:size]
        messages = rans.Messages(
            self.upload(head[None]),
            self.upload(words[None]),
            torch.tensor([size], dtype=torch.int32, device=self.device),
        )
        begins = np.cumsum([0, *counts[:-1]])
        precisions = [part[2] for part in kept]
        segments = np.stack([begins, counts, precisions], axis=1).astype(np.int64)
        rans.push(
            messages,
            self.upload(np.concatenate([part[0] for part in kept])),
            self.upload(np.concatenate([part[1] for part in kept])),
            self.upload(segments),
            torch.tensor([0, len(kept)], device=self.device),
        )
        left = messages.head[0].cpu().numpy().view(np.uint64)
        return left, messages.tail[0].cpu().numpy().view(np.uint32), int(messages.size[0])

    def pop(
        self,
        head: Uint64,
        words: Tensor,
        size: int,
        parameters: Sequence[Int32],
        support: tuple[int, int, int],
        frozen: Frozen,
    ) -> tuple[Int32, Uint64, int]:
        """Pop symbols; see `rans.pop_symbols`.

        Args:
            head: uint64 [lanes].
            words: The tail, which `upload` has sent, the live words first.
            size: Of them.
            parameters: As in `intervals`.
            support: Alike.
            frozen: Alike.

        Returns:
            The symbols, the heads afterwards, and the live words, -1 where they did not suffice.
        """
        self.count("pop")
        messages = rans.Messages(
            self.upload(head[None]),
            words[None],
            torch.tensor([size], dtype=torch.int32, device=self.device),
        )
        mean, scale, weight = (self.upload(p) for p in parameters)
        bounds = torch.tensor([0, len(mean)], device=self.device)
        symbols, left = rans.pop_symbols(
            messages,
            mean,
            scale,
            weight,
            bounds,
            mixture.Support(*support),
            self._frozen(frozen),
        )
        return (
            symbols.cpu().numpy(),
            left.head[0].cpu().numpy().view(np.uint64),
            int(left.size[0]),
        )

    def compensate(
        self,
        planes: Int32,
        field: Int16,
        filters: Int32,
        luma_shape: tuple[int, int],
        low: int,
        high: int,
    ) -> Int32:
        """Predict planes, int32 [N, h, w]; see `motion.compensate`."""
        self.count("compensate")
        moved = motion.compensate(
            self.upload(planes), self.upload(field), self.upload(filters), luma_shape, low, high
        )
        return moved.cpu().numpy()

    def search(
        self,
        current: tuple[Int16, Int16, Int16],
        reference: tuple[Int16, Int16, Int16],
        hints: Int16,
        prices: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]],
    ) -> Int16:
        """Choose a motion field; see `search.search`. Pictures are phases, middle and coarse."""
        self.count("search")
        field = search.search(
            picture.Picture(*(self.upload(part) for part in current)),
            picture.Picture(*(self.upload(part) for part in reference)),
            self.upload(hints),
            search.Prices(*(self.upload(part) for part in prices)),
        )
        return field.cpu().numpy()
