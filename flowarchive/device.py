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


class Session(Protocol):
    """Chunks on a device: arrays in, arrays out; see `triton_kernels.session.Session`."""

    def give(self, samples: Any, lights: Any) -> None:
        """Send planes and light, to be packed."""

    def plan(self) -> tuple[Any, Any]:
        """Search all motion; return fields, and which frames are cuts."""

    def keep(self, chunk: int, frame: int, start: Any, freq: Any, precision: int) -> None:
        """Keep intervals that the CPU has found."""

    def push(self, head: Any, size: Any, words: Any, least_gain: float) -> tuple[Any, Any, Any]:
        """Push all that was kept; return heads, words, and entries of an account."""

    def take(self, words: Any, lanes: int) -> None:
        """Send words, to be unpacked."""

    def set_messages(self, head: Any, size: Any, fields: Any, lights: Any) -> None:
        """Send heads as the CPU has left them, and the motion and light it has popped."""

    def messages(self) -> tuple[Any, Any, Any]:
        """Fetch heads, sizes, and of each message where words begin that are others, and these."""

    def planes(self) -> Any:
        """Fetch all planes."""

    def code_intra(
        self, chunks: Sequence[int], frames: Sequence[int], count: int, shift: int
    ) -> None:
        """Code frames that stand on their own."""

    def code_inter(
        self, chunks: Sequence[int], frames: Sequence[int], both: bool, shift: int
    ) -> None:
        """Code frames that are predicted from the past."""


class StillSession(Protocol):
    """Chunks of single frames on a device; see `triton_kernels.stills.Stills`."""

    def push(self, samples: Any, head: Any, size: Any, words: Any) -> tuple[Any, Any, Any]:
        """Push all frames; return heads, words and code lengths."""

    def pop(self, head: Any, size: Any, words: Any) -> tuple[Any, Any, Any]:
        """Pop all frames; return heads, sizes and planes."""


class Kernels(Protocol):
    """What a device offers; see `triton_kernels.host.Host`.

    Attributes:
        name: What people call the device.
    """

    name: str

    def network(self, layers: dict[str, list[tuple[Any, Any, Any]]]) -> Network:
        """Send a level's layers, (weight, bias, shift) each, to the device."""

    def flows(
        self,
        levels: int,
        phases: dict[str, Any],
        fineness: int,
        core: Any,
        curves: dict[int, Any],
        tables: dict[str, Any],
    ) -> Any:
        """Send the flows of a model's phases to the device; `session` takes them."""

    def session(
        self,
        tables: dict[str, Any],
        nets: dict[str, Any],
        filters: Sequence[Any],
        parts: Sequence[tuple[Any, ...]],
        chunks: int,
        frames: int,
        bits: int,
        flows: Any = None,
    ) -> Session:
        """Begin a walk through some chunks."""

    def integer_flow(self, levels: Sequence[Any], permutes_back: bool) -> Any:
        """Send an integer flow to the device; `still_session` and `answer` take it."""

    def answer(self, flow: Any, samples: Any, context: Any) -> Any:
        """Return what an integer flow makes of planes."""

    def still_session(
        self,
        tables: dict[str, Any],
        flows: tuple[Any, Any],
        parts: Sequence[tuple[Any, ...]],
        chunks: int,
        frames: int,
        bits: int,
    ) -> StillSession:
        """Begin to code some chunks of single frames."""


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
    reason = "PyTorch finds none on this machine"
    try:
        if host.find() is not None or (name == "cuda" and host.interpreted()):
            return host.Host()
    except RuntimeError as error:  # a driver that is there, and broken
        reason = next(iter(str(error).splitlines()), reason)
    if name == "auto":
        return None
    raise DeviceError(f"no GPU can be used: {reason}")
