"""Flows and entropy models joined: what is coded in which order."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from flowarchive import planes
    from flowarchive.account import Account
    from flowarchive.ans import Message
    from flowarchive.device import Kernels
    from flowarchive.flows.phases import Layout, Tensors

_HOMES = {
    "idf": ("flowarchive.models.idf", "IdfModel"),
    "video": ("flowarchive.models.video", "VideoModel"),
    "chain": ("flowarchive.models.chain", "ChainModel"),
}


class Model(Protocol):
    """A frozen model: what codes a chunk's frames.

    Attributes:
        has_memory: Frames are coded from the ones before, so that long chunks are worth it.
        has_kernels: A device can do its hot operations.
    """

    has_memory: bool
    has_kernels: bool

    @staticmethod
    def layout(config: dict[str, Any]) -> Layout:
        """Return the type and shape of every tensor that a config asks for.

        Raises:
            ModelError: The config is malformed.
        """

    @classmethod
    def of_tensors(cls, config: dict[str, Any], tensors: Tensors) -> Self:
        """Build a model of the tensors that `layout` names, and prove it exact.

        Raises:
            ModelError: An integer is out of its range.
            NotReproducible: A bound is broken.
        """

    def known_answer(self) -> str:
        """Return a BLAKE2b-128 of the integers the networks make of a fixed input.

        Computed when a model is frozen and again before it is used.
        """

    def use(self, kernels: Kernels | None) -> None:
        """Have a device do the hot operations from now on, where it can; None for the CPU."""

    def for_rehearsal(self) -> Self:
        """Return the model as it is tried out: it takes the ways that it seldom takes, too."""

    def macs_per_sample(self) -> dict[str, int]:
        """Return the multiplications that samples of each kind cost, each way."""

    def push_frames(
        self,
        message: Message,
        frames: Sequence[planes.Components],
        letters: str,
        bits: int,
        threads: int = 1,
    ) -> Account:
        """Push a chunk's frames, so that `pop_frames` gives the first one first.

        Args:
            message: Receives the bits.
            frames: The frames' integers.
            letters: A component letter for each plane, as in `planes.split`.
            bits: Depth of the samples, 8..16.
            threads: How many may work on it; the bits do not depend on it.

        Returns:
            What became of the bits, and their ideal code length by the frozen model.
        """

    def pop_frames(
        self,
        message: Message,
        count: int,
        shapes: Sequence[tuple[int, int]],
        letters: str,
        bits: int,
        threads: int = 1,
    ) -> Iterator[planes.Components]:
        """Pop `count` frames, each as soon as it is complete.

        Args:
            message: Gives the bits back.
            count: How many frames.
            shapes: (rows, columns) of a frame's planes.
            letters: See `push_frames`.
            bits: See `push_frames`.
            threads: See `push_frames`.
        """


def model_class(kind: str) -> type[Model]:
    """Return the class of a kind of models; `idf` brings torch in.

    Raises:
        KeyError: There is no such kind.
    """
    home, name = _HOMES[kind]
    found: type[Model] = getattr(importlib.import_module(home), name)
    return found


__all__ = ["Model", "model_class"]
