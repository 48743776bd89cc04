"""Our own presets in the interface of the codecs: `flowarchive pack` and `unpack` as run by users.

Each is a process of its own, so its time holds the start of Python, the reading of the clip and
every check that packing and unpacking make. The size is that of the archive as it lies on disk.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import flowarchive
from flowarchive.archive import models
from flowarchive.bench.clip import Clip
from flowarchive.bench.codecs import read_plane
from flowarchive.bench.tools import run_program
from flowarchive.frames import Plane


@dataclass(frozen=True)
class Preset:
    """A packaged model as `flowarchive pack --model` takes it."""

    name: str
    device: str = "cpu"
    container: str = "flow"

    @property
    def settings(self) -> str:
        """The command."""
        place = "" if self.device == "cpu" else f" --device {self.device}"
        return f"flowarchive pack --model {self.name}{place}"

    def missing(self) -> str | None:
        """Never: the package has it."""
        return None

    def version(self) -> str | None:
        """Version of the package."""
        return f"flowarchive {flowarchive.__version__}"

    def refuses(self, clip: Clip) -> str | None:
        """Never: what can be read can be packed."""
        return None

    def encode(self, clip: Clip, folder: Path) -> None:
        """Write the archive."""
        model = "--model", self.name, "--device", self.device
        self._run("pack", *model, "-o", folder / "clip.flow", "--", clip.path)

    def decode(self, clip: Clip, folder: Path) -> Iterator[Sequence[Plane]]:
        """Unpack the archive to bare planes beside the folder, and read them."""
        target = folder.with_name(folder.name + ".yuv")
        try:
            place = "--device", self.device
            self._run("unpack", *place, "-o", target, "--", folder / "clip.flow")
            with target.open("rb") as file:
                # One byte of a further frame would be a frame too many.
                while file.peek(1):
                    planes = [
                        read_plane(file.read, s, clip.format) for s in clip.format.plane_shapes
                    ]
                    letters = zip(clip.format.layout.components, planes, strict=True)
                    yield [p for c, p in letters if c in clip.components]
        finally:
            target.unlink(missing_ok=True)

    def _run(self, *arguments: str | Path) -> None:
        run_program(sys.executable, "-m", "flowarchive", *arguments)


def presets(device: str = "cpu") -> dict[str, Preset]:
    """Every preset of the package by name, to be run on a device."""
    return {model["name"]: Preset(model["name"], device) for model in models()}
