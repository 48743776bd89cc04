"""The two things of Matroska's own elements that PyAV gives no access to.

    element = id (1..4 bytes) | size (1..8 bytes) | body

The leading bits of an id or a size tell its length: 1 for one byte, 01 for two, and so on.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from fractions import Fraction
from typing import BinaryIO, NamedTuple

__all__ = ["NAME_BYTES", "end_of_elements", "set_display_ratio"]

NAME_BYTES = 32
"""Length of the track name that `set_display_ratio` replaces."""

_SEGMENT = b"\x18\x53\x80\x67"
_TRACKS = b"\x16\x54\xae\x6b"
_TRACK = b"\xae"
_NAME = b"\x53\x6e"
_VIDEO = b"\xe0"
_DISPLAY_WIDTH = b"\x54\xb0"
_DISPLAY_HEIGHT = b"\x54\xba"
_DISPLAY_UNIT = b"\x54\xb2"
_IS_A_RATIO = 3
_CRC = b"\xbf"
_VOID = b"\xec"


class _Element(NamedTuple):
    """An element's id, where its body begins, and where it ends; None for a size not given."""

    id: bytes
    body: int
    end: int | None


def _parse(head: bytes, offset: int) -> _Element | None:
    """Read the id and the size at the start of `head`, None if they are no element's."""
    if not head or head[0] < 0x10:
        return None
    id_length = 9 - head[0].bit_length()
    size_at = head[id_length : id_length + 1]
    if not size_at or not size_at[0]:
        return None
    size_length = 9 - size_at[0].bit_length()
    field = head[id_length : id_length + size_length]
    if len(field) < size_length:
        return None
    unknown = (1 << 7 * size_length) - 1
    size = int.from_bytes(field, "big") & unknown
    body = offset + id_length + size_length
    return _Element(head[:id_length], body, None if size == unknown else body + size)


def end_of_elements(file: BinaryIO, size: int) -> int:
    """Return where the top-level elements of a file end, by the sizes they give.

    Args:
        file: A Matroska file, seekable.
        size: Its size in bytes.

    Returns:
        An offset, beyond `size` if the file was cut. A live stream, whose writer did not know its
        size, ends at once.
    """
    position = 0
    while position < size:
        file.seek(position)
        element = _parse(file.read(12), position)
        if element is None or element.end is None:
            break
        position = element.end
    return position


def set_display_ratio(file: BinaryIO, ratio: Fraction) -> None:
    """Give the only track of a finished file an aspect ratio, in the place of its name.

    PyAV cannot set the sample aspect ratio that FFmpeg's muxer takes. The track's description is
    written anew in the same number of bytes, so that nothing else moves.

    Args:
        file: A file of FFmpeg's muxer whose track has a name of NAME_BYTES bytes, seekable.
        ratio: Width of the picture over its height, as shown.
    """
    file.seek(0)
    data = file.read(1 << 16)
    segment = next(e for e in _children(data, 0, len(data)) if e.id == _SEGMENT)
    tracks = next(e for e in _children(data, segment.body, len(data)) if e.id == _TRACKS)
    children = list(_children(data, tracks.body, tracks.end or 0))
    track = next(e for e in children if e.id == _TRACK)
    parts = []
    for child in _children(data, track.body, track.end or 0):
        if child.id == _VIDEO:
            display = (
                _element(_DISPLAY_WIDTH, ratio.numerator.to_bytes(4, "big"))
                + _element(_DISPLAY_HEIGHT, ratio.denominator.to_bytes(4, "big"))
                + _element(_DISPLAY_UNIT, bytes([_IS_A_RATIO]))
            )
            parts.append(_element(_VIDEO, data[child.body : child.end] + display))
        elif child.id != _NAME:
            parts.append(_element(child.id, data[child.body : child.end]))
    body = b"".join(parts)
    room = (track.end or 0) - track.body - len(body)
    body += _VOID + (room - 9 | 1 << 56).to_bytes(8, "big") + bytes(room - 9)
    content = data[tracks.body : track.body] + body + data[track.end : tracks.end]
    if children[0].id == _CRC:
        # The checksum is over all that follows it, and is the only little-endian number here.
        rest = content[(children[0].end or 0) - tracks.body :]
        content = _element(_CRC, zlib.crc32(rest).to_bytes(4, "little")) + rest
    file.seek(tracks.body)
    file.write(content)


def _children(data: bytes, start: int, end: int) -> Iterator[_Element]:
    """Walk the elements of `data` from `start` to `end`."""
    while start < end:
        element = _parse(data[start : start + 12], start)
        if element is None:
            return
        yield element
        if element.end is None:
            return
        start = element.end


def _element(identity: bytes, body: bytes) -> bytes:
    """Write an element with the shortest size field."""
    length = next(n for n in range(1, 9) if len(body) < (1 << 7 * n) - 1)
    return identity + (len(body) | 1 << 7 * length).to_bytes(length, "big") + body
