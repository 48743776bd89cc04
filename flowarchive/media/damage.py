"""Damage that FFmpeg passes over without an error.

FFmpeg is a player's library: where a file ends too early it reports the end of the stream, and
where a slice of FFV1 fails its checksum it shows the last picture's samples there instead. An
archiver must know. What is looked at here is only what the file says about itself.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from typing import BinaryIO

from flowarchive.media.matroska import end_of_elements

__all__ = ["ffv1_slices_are_intact", "missing_bytes"]

_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def ffv1_slices_are_intact(packet: bytes, checked: bool | None) -> tuple[bool, bool | None]:
    """Check the slices of one FFV1 frame of version 3 or above.

    A frame is a row of slices, each ending with its size (24 bits) and, when the stream has
    checksums, an error status (8 bits) and a CRC-32 (polynomial 0x04C11DB7, first bit first,
    register zero at the start) that makes the CRC of the whole slice zero.

    Args:
        packet: The coded frame.
        checked: Whether the stream has checksums; None for the first frame, which then tells.

    Returns:
        (intact, checked): False where a size or a checksum is wrong, and `checked` for the next
        call, None when not even the first frame told.

    References:
        Niedermayer, Rice, Martinez, "FFV1 Video Coding Format Version 0, 1, and 3", 2021,
        RFC 9043, sections 4.8 and 4.9.
    """
    if checked is None:
        checked = next((flag for flag in (True, False) if _slices(packet, flag)), None)
    if checked is None:
        return False, None
    slices = _slices(packet, checked)
    if not slices:
        return False, checked
    # zlib's CRC takes the last bit of a byte first and inverts the register before and after.
    ones = 0xFFFFFFFF
    intact = not checked or all(zlib.crc32(s.translate(_MIRRORED), ones) == ones for s in slices)
    return intact, checked


def _slices(packet: bytes, checked: bool) -> list[bytes]:
    """Cut a frame by the sizes its slices end with; empty when they do not fit the frame."""
    trailer = 8 if checked else 3
    slices, end = [], len(packet)
    while end > 0:
        size = int.from_bytes(packet[max(end - trailer, 0) :][:3], "big") + trailer
        if size > end:
            return []
        slices.append(packet[end - size : end])
        end -= size
    return slices


def missing_bytes(file: BinaryIO, container: str) -> int:
    """Return how many bytes a file lacks of what its outermost elements announce.

    Args:
        file: The file, seekable.
        container: FFmpeg's name of its container format.

    Returns:
        0 if nothing lacks, or if this kind of container does not say how long it is.
    """
    walk: Callable[[BinaryIO, int], int]
    if container.startswith("matroska"):
        walk = end_of_elements
    elif container.startswith("mov"):
        walk = _movie_end
    else:
        return 0
    size = file.seek(0, os.SEEK_END)
    return max(0, walk(file, size) - size)


def _movie_end(file: BinaryIO, size: int) -> int:
    """Where the boxes of an MP4 or QuickTime file end, by the sizes they give."""
    position = 0
    while position + 8 <= size:
        file.seek(position)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:], "big")
        # Zero: to the end of the file. Other small numbers, or a type that is not text, are no box.
        if length < 8 or not head[4:8].isascii():
            break
        position += length
    return position
