"""Sections "Model file" and "Networks" of the video model."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Any

from reference.networks import Planes, Tensors, Wanted, convolution, wanted_convolution

KINDS = ("intra_luma", "intra_chroma", "inter_luma", "inter_chroma")
FILTERS = {"luma_filters": 38, "chroma_filters": 45}


@dataclass
class NetConfig:
    """The networks of one kind."""

    width: int
    blocks: int

    def __post_init__(self) -> None:
        if type(self.width) is not int or type(self.blocks) is not int:
            raise TypeError("a size that is no integer")
        if not (1 <= self.width <= 256 and 0 <= self.blocks <= 16):
            raise ValueError("a size out of range")


def read_config(fields: dict[str, Any]) -> dict[str, NetConfig]:
    """The config of a model file, by kind."""
    if fields.keys() != {"intra", "inter"}:
        raise KeyError("other keys than intra and inter")
    for part in fields.values():
        if part.keys() != {"luma", "chroma"}:
            raise KeyError("other keys than luma and chroma")
    parts = [kind.split("_") for kind in KINDS]
    return {f"{frame}_{part}": NetConfig(**fields[frame][part]) for frame, part in parts}


def wanted_video(config: dict[str, NetConfig]) -> Wanted:
    """Type and shape of every tensor."""
    result: Wanted = {name: ("I16", [3, 3, 16, taps]) for name, taps in FILTERS.items()}
    for kind, sizes in config.items():
        channels = 16 if kind == "intra_luma" else 32
        outputs = 3 * (4 if kind.startswith("intra") else 5)
        for n in range(3):
            width = min(sizes.width, 32) if n == 2 else sizes.width
            name = f"nets.{kind}.{n}"
            result |= wanted_convolution(f"{name}.begin", "I8", width, channels, 3)
            for b in range(sizes.blocks):
                result |= wanted_convolution(f"{name}.blocks.{b}", "I8", width, width, 3)
            for u in range(2):
                result |= wanted_convolution(f"{name}.updates.{u}", "I8", width, width + 16, 3)
            for p in range(3):
                inputs = width + (16 if p else channels)
                result |= wanted_convolution(f"{name}.heads.{p}", "I16", outputs, inputs, 1)
    return result


class PhaseNet:
    """The network of a level, which remembers its state."""

    def __init__(self, tensors: Tensors, config: dict[str, NetConfig], kind: str, level: int):
        self.tensors, self.blocks = tensors, config[kind].blocks
        self.name = f"nets.{kind}.{min(level, 2)}"
        self.state: Planes = []

    def head(self, phase: int, seen: Planes) -> Planes:
        """Take in a phase's channels, [channel][row][column], and give its head."""
        if phase == 0:
            self.state = self._convolve("begin", seen)
            for b in range(self.blocks):
                self._grow(self._convolve(f"blocks.{b}", self.state))
        else:
            self._grow(self._convolve(f"updates.{phase - 1}", self.state + seen))
        return convolution(
            self.tensors, f"{self.name}.heads.{phase}", self.state + seen, -32768, 32767
        )

    def _convolve(self, part: str, planes: Planes) -> Planes:
        return convolution(self.tensors, f"{self.name}.{part}", planes, 0, 127)

    def _grow(self, change: Planes) -> None:
        self.state = [
            [
                [min(127, a + b) for a, b in zip(*rows, strict=True)]
                for rows in zip(*both, strict=True)
            ]
            for both in zip(self.state, change, strict=True)
        ]


def known_answer(tensors: Tensors, config: dict[str, NetConfig]) -> str:
    """Section "Model file": what a program tests its arithmetic with."""
    digest = hashlib.blake2b(digest_size=16)

    def add(values: list[int]) -> None:
        digest.update(struct.pack(f"<{len(values)}i", *values))

    for name in FILTERS:
        add(tensors[name].values)
    number = 1
    for kind in KINDS:
        for n in range(3):
            net = PhaseNet(tensors, config, kind, n)
            for phase in range(3):
                channels = 16 if phase or kind == "intra_luma" else 32
                seen: Planes = [[[0] * 13 for _ in range(13)] for _ in range(channels)]
                for plane in seen:
                    for row in plane:
                        for x in range(13):
                            number = number * 48271 % (2**31 - 1)
                            row[x] = number % 255 - 127
                for plane in net.head(phase, seen):
                    for row in plane:
                        add(row)
    return digest.hexdigest()
