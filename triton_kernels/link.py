"""What travels between the host and a device, packed together and counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGNMENT = 16

_TYPES = {
    np.dtype(name): getattr(torch, name)
    for name in ("int8", "int16", "int32", "int64", "float32", "float64")
}
_ARRAYS = {value: key for key, value in _TYPES.items()}


@dataclass
class Traffic:
    """What has travelled.

    Attributes:
        uploads: Copies to the device.
        downloads: Copies from it.
        sent: Bytes of the uploads.
        fetched: Bytes of the downloads.
    """

    uploads: int = 0
    downloads: int = 0
    sent: int = 0
    fetched: int = 0


class Link:
    """A device, and what has travelled to it and from it.

    Args:
        device: Where tensors live.

    Attributes:
        device: The same.
        traffic: What has travelled so far.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.traffic = Traffic()

    def send(self, *arrays: NDArray[Any]) -> list[Tensor]:
        """Send arrays in one copy; unsigned ones arrive as signed ones of as many bits."""
        begins, size = [], 0
        for array in arrays:
            begins.append(size)
            size += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        packed = np.zeros(size, dtype=np.uint8)
        for begin, array in zip(begins, arrays, strict=True):
            packed[begin : begin + array.nbytes] = (
                np.ascontiguousarray(array).view(np.uint8).ravel()
            )
        self.traffic.uploads += 1
        self.traffic.sent += size
        sent = torch.from_numpy(packed).to(self.device)
        return [
            sent[begin : begin + array.nbytes].view(_signed(array.dtype)).view(array.shape)
            for begin, array in zip(begins, arrays, strict=True)
        ]

    def fetch(self, *tensors: Tensor) -> list[NDArray[Any]]:
        """Fetch tensors in one copy."""
        pieces = []
        for tensor in tensors:
            flat = tensor.contiguous().view(-1).view(torch.uint8)
            pieces.append(torch.nn.functional.pad(flat, (0, -flat.numel() % ALIGNMENT)))
        packed = torch.cat(pieces).cpu().numpy()
        self.traffic.downloads += 1
        self.traffic.fetched += packed.nbytes
        found, begin = [], 0
        for tensor, piece in zip(tensors, pieces, strict=True):
            size = tensor.numel() * tensor.element_size()
            array = packed[begin : begin + size].view(_ARRAYS[tensor.dtype])
            found.append(array.reshape(tuple(tensor.shape)))
            begin += piece.numel()
        return found


def lay_out(words: Sequence[NDArray[np.uint32]]) -> NDArray[np.uint32]:
    """Lay the words of messages out in rows of one length, at least 1."""
    rows = np.zeros((len(words), max(1, *map(len, words))), dtype=np.uint32)
    for row, live in zip(rows, words, strict=True):
        row[: len(live)] = live
    return rows


def _signed(kind: np.dtype[Any]) -> torch.dtype:
    found: torch.dtype = _TYPES[np.dtype(kind.str.replace("u", "i"))]
    return found
