"""Kernels in Triton's interpreter: messages and tables for them, poison, and which one ran."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowarchive.ans import Message
from flowarchive.entropy import sigmoid_table
from flowarchive.entropy.cumulative import RECIPROCALS
from triton_kernels import mixture, rans

CPU = torch.device("cpu")
POISON = 0x5A5A5A5A


class Runs:
    """Counts the launches of a kernel; a test asserts that it went where it says.

    Args:
        monkeypatch: Puts the kernel back.
        module: Where the launcher finds the kernel.
        name: The kernel's name there.
    """

    def __init__(self, monkeypatch: Any, module: Any, name: str) -> None:
        self.grids: list[tuple[int, ...]] = []
        self._kernel = getattr(module, name)
        monkeypatch.setattr(module, name, self)

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        self.grids.append(grid)
        return self._kernel[grid]


def poisoned(dtype: torch.dtype, *shape: int) -> Tensor:
    """A tensor that holds what no kernel would write."""
    bits = torch.tensor([POISON], dtype=torch.int32).view(torch.int8)[
        : torch.iinfo(dtype).bits // 8
    ]
    whole = bits.repeat(-(-8 // len(bits)))[: torch.iinfo(dtype).bits // 8]
    return whole.view(dtype).expand(shape).clone()


def tables() -> mixture.Tables:
    """The frozen tables of the format."""
    reciprocals = torch.tensor(RECIPROCALS, dtype=torch.int64)
    return mixture.tables(torch.from_numpy(sigmoid_table().copy()), reciprocals, CPU)


def upload(messages: Sequence[Message], room: int = 0) -> rans.Messages:
    """Messages as kernels take them; what no word stands in is poison."""
    tail = poisoned(torch.int32, len(messages), max(m.size for m in messages) + room)
    for words, message in zip(tail, messages, strict=True):
        words[: message.size] = torch.from_numpy(message.tail[: message.size].view(np.int32).copy())
    head = np.stack([message.head for message in messages]).view(np.int64)
    size = torch.tensor([message.size for message in messages], dtype=torch.int32)
    return rans.Messages(torch.from_numpy(head), tail, size)


def assert_same(ours: rans.Messages, theirs: Sequence[Message]) -> None:
    """Heads, sizes and live words are equal; what lies above them is poison still, or popped."""
    assert ours.size.tolist() == [message.size for message in theirs]
    assert np.array_equal(ours.head.numpy().view(np.uint64), [m.head for m in theirs])
    for words, message in zip(ours.tail, theirs, strict=True):
        live = words[: message.size].numpy().view(np.uint32)
        assert np.array_equal(live, message.tail[: message.size])


def random_heads(random: np.random.Generator, lanes: int) -> NDArray[np.uint64]:
    """Heads anywhere, and at both ends of their range."""
    heads = random.integers(1 << 31, 1 << 63, lanes, dtype=np.uint64)
    heads[random.random(lanes) < 0.2] = 1 << 31
    heads[random.random(lanes) < 0.2] = (1 << 63) - 1
    return heads


def random_message(random: np.random.Generator, lanes: int, words: int) -> Message:
    """A message of arbitrary bits."""
    heads = random_heads(random, lanes).astype("<u8").tobytes()
    return Message.from_bytes(heads + random.bytes(4 * words), lanes)
