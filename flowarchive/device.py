"""Where the hot operations run: on the CPU, or on a GPU by the kernels of `triton_kernels`.

`select` answers with what a GPU offers, or with None for the CPU, whose code is the definition: a
GPU gives the same integers, and no archive tells which of them packed it. Before a model is used on
a GPU it has to give its known answer there (see `store.place`).

With TRITON_INTERPRET=1, Triton's interpreter stands in, slowly, for a GPU that was asked for by
name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from flowarchive.errors import DeviceError

CHOICES = ("cpu", "cuda", "auto")


class Network(Protocol):
    """A level's network on a device."""

    def advance(self, phase: int, seen: Any, state: Any) -> tuple[Any, Any]:
        """Take a phase's channels in, int8 [N, h, w, C]; give a state and the head's integers."""


class Kernels(Protocol):
    """What a device offers; arrays in, arrays out, see `triton_kernels.host.Host`.

    Attributes:
        name: What people call the device.
    """

    name: str

    def upload(self, array: Any) -> Any:
        """Send an array to the device."""

    def network(self, layers: dict[str, list[tuple[Any, Any, Any]]]) -> Network:
        """Send a level's layers, (weight, bias, shift) each, to the device."""

    def intervals(
        self, symbols: Any, parameters: Sequence[Any], support: tuple[int, int, int], frozen: Any
    ) -> tuple[Any, Any]:
        """Return (start, freq) of symbols under their mixtures."""

    def push(self, head: Any, tail: Any, size: int, kept: Sequence[Any]) -> tuple[Any, Any, int]:
        """Push arrays of intervals, the last one first; return heads, tail and its live words."""

    def pop(
        self,
        head: Any,
        words: Any,
        size: int,
        parameters: Sequence[Any],
        support: tuple[int, int, int],
        frozen: Any,
    ) -> tuple[Any, Any, int]:
        """Pop symbols; return them, the heads and the live words, -1 where they did not suffice."""

    def compensate(
        self,
        planes: Any,
        field: Any,
        filters: Any,
        luma_shape: tuple[int, int],
        low: int,
        high: int,
    ) -> Any:
        """Predict planes [N, h, w] through a field of motion."""

    def search(self, current: Any, reference: Any, hints: Any, prices: Any) -> Any:
        """Choose a motion field."""


def select(name: str) -> Kernels | None:
    """Return what the device offers that is asked for, None for the CPU.

    Args:
        name: "cpu"; "cuda", a GPU or nothing; "auto", a GPU where there is one.

    Raises:
        DeviceError: "cuda" was asked for, and there is none.
        ValueError: There is no such choice.
    """
    if name not in CHOICES:
        raise ValueError(f"device is {name!r}, not one of {CHOICES}")
    if name == "cpu":
        return None
    try:
        from triton_kernels import host
    except ImportError as error:
        if name == "auto":
            return None
        raise DeviceError(f"no GPU can be used: {error}; pip install 'flowarchive[gpu]'") from None
    if host.find() is not None or (name == "cuda" and host.interpreted()):
        return host.Host()
    if name == "auto":
        return None
    raise DeviceError("no GPU can be used: PyTorch finds none on this machine")
