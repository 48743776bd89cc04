"""Packed pixel formats and component planes.

    bgr0, one row:   B G R X B G R X ...        slots: R = (plane 0, offset 2, step 4)
    nv12, plane 1:   U V U V ...                       U = (plane 1, offset 0, step 2)
    rgb555le:        XRRRRRGG GGGBBBBB                 fields: R = (shift 10, 5 bits)
    pal8:            places in a palette of bgra       read as bgra

A *slot* says where the samples of one component lie in the planes that FFmpeg hands out. Nothing
here converts: a sample is copied, never computed.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import av
import numpy as np
from numpy.typing import NDArray

from flowarchive.errors import UnsupportedFormat
from flowarchive.frames import PIXEL_LAYOUTS, Plane, VideoFormat

__all__ = ["fill", "has_bit_fields", "native_name", "unpack"]


class Slot(NamedTuple):
    """Where a component lies: FFmpeg's plane, first sample and distance, counted in samples."""

    plane: int
    offset: int
    step: int


class Field(NamedTuple):
    """Where a component lies in a 16-bit word that holds a whole pixel."""

    shift: int
    bits: int


_PACKED = {
    "rgb24": "RGB",
    "bgr24": "BGR",
    "rgb48le": "RGB",
    "bgr48le": "BGR",
    "rgba": "RGBA",
    "bgra": "BGRA",
    "argb": "ARGB",
    "abgr": "ABGR",
    "rgba64le": "RGBA",
    "bgra64le": "BGRA",
    "rgb0": "RGBX",
    "bgr0": "BGRX",
    "0rgb": "XRGB",
    "0bgr": "XBGR",
    "ya8": "YA",
    "ya16le": "YA",
}

_FIELDS = {
    "rgb555le": {"X": Field(15, 1), "R": Field(10, 5), "G": Field(5, 5), "B": Field(0, 5)},
    "bgr555le": {"X": Field(15, 1), "B": Field(10, 5), "G": Field(5, 5), "R": Field(0, 5)},
    "rgb565le": {"R": Field(11, 5), "G": Field(5, 6), "B": Field(0, 5)},
    "bgr565le": {"B": Field(11, 5), "G": Field(5, 6), "R": Field(0, 5)},
}

_PALETTE = "pal8"
# Its colors are words of this machine's byte order.
_PALETTE_SHIFTS = {"A": 24, "R": 16, "G": 8, "B": 0}

_PAIRED = {
    "nv12": {"Y": Slot(0, 0, 1), "U": Slot(1, 0, 2), "V": Slot(1, 1, 2)},
    "nv16": {"Y": Slot(0, 0, 1), "U": Slot(1, 0, 2), "V": Slot(1, 1, 2)},
    "nv24": {"Y": Slot(0, 0, 1), "U": Slot(1, 0, 2), "V": Slot(1, 1, 2)},
    "nv21": {"Y": Slot(0, 0, 1), "U": Slot(1, 1, 2), "V": Slot(1, 0, 2)},
    "yuyv422": {"Y": Slot(0, 0, 2), "U": Slot(0, 1, 4), "V": Slot(0, 3, 4)},
    "uyvy422": {"Y": Slot(0, 1, 2), "U": Slot(0, 0, 4), "V": Slot(0, 2, 4)},
}


def _slots(name: str) -> dict[str, Slot]:
    """The slot of each component of a format that has no bit fields."""
    if name in _PAIRED:
        return _PAIRED[name]
    if name in _PACKED:
        order = _PACKED[name]
        return {letter: Slot(0, i, len(order)) for i, letter in enumerate(order)}
    # Planar RGB is kept in the order G, B, R, A.
    order = "GBRA" if name.startswith("gbr") else "YUVA"
    if name.startswith("gray"):
        order = "Y"
    return {letter: Slot(i, 0, 1) for i, letter in enumerate(order)}


def native_name(name: str) -> str:
    """Return the name in `PIXEL_LAYOUTS` of an FFmpeg pixel format or its big-endian twin.

    A palette's format is that of its colors: each picture may bring another palette.

    Raises:
        UnsupportedFormat: The format has no component planes of whole samples, or is unknown.
    """
    if name == _PALETTE:
        return "bgra"
    twin = name[:-2] + "le" if name.endswith("be") else name
    if twin not in PIXEL_LAYOUTS:
        raise UnsupportedFormat(f"pixel format {name!r} is not supported")
    return twin


def has_bit_fields(name: str) -> bool:
    """Whether the format packs a pixel in one word, with samples of fewer bits than its layout."""
    return name in _FIELDS


def unpack(picture: av.VideoFrame, video_format: VideoFormat) -> tuple[Plane, ...]:
    """Copy the component planes out of a decoded picture.

    Args:
        picture: A picture of `video_format`'s size whose format is `video_format.pix_fmt` or its
            big-endian twin, or a palette's.
        video_format: Says which planes are wanted.

    Returns:
        C-contiguous [rows, columns] arrays that own their memory, uint8 up to 8 bits a sample and
        uint16 above, in the order of the format's components.
    """
    name, layout = video_format.pix_fmt, video_format.layout
    big = picture.format.name.endswith("be")
    shapes = zip(layout.components, video_format.plane_shapes, strict=True)
    if name in _FIELDS:
        words = _view(picture, Slot(0, 0, 1), video_format.plane_shapes[0], np.dtype("<u2"), big)
        fields = [_FIELDS[name][letter] for letter in layout.components]
        return tuple(
            np.asarray(words >> f.shift & ((1 << f.bits) - 1), dtype=np.uint8) for f in fields
        )
    slots, dtype = _slots(name), video_format.dtype
    if picture.format.name == _PALETTE:
        places = _view(picture, Slot(0, 0, 1), video_format.plane_shapes[0], dtype, big)
        colors = np.frombuffer(cast("Any", picture.planes[1]), dtype=np.uint32, count=256)
        return tuple(
            (colors >> _PALETTE_SHIFTS[letter] & 0xFF).astype(dtype)[places] for letter, _ in shapes
        )
    return tuple(
        np.array(_view(picture, slots[letter], shape, dtype, big), dtype=dtype, order="C")
        for letter, shape in shapes
    )


def fill(picture: av.VideoFrame, planes: tuple[Plane, ...], components: str) -> None:
    """Copy component planes into a picture of any format that holds just these components.

    Args:
        picture: A picture that may be written to, of the planes' size and depth; its packing and
            its byte order are free.
        planes: [rows, columns] arrays, one a component.
        components: The letters of `planes`. A padding component of the picture that is not among
            them is left as it is.
    """
    name = picture.format.name
    big = name.endswith("be")
    slots = _slots(native_name(name))
    for letter, plane in zip(components, planes, strict=True):
        _view(picture, slots[letter], plane.shape, plane.dtype, big)[...] = plane


def _view(
    picture: av.VideoFrame, slot: Slot, shape: tuple[int, ...], dtype: np.dtype[Any], big: bool
) -> NDArray[Any]:
    """View one component in a picture's own memory, [rows, columns]."""
    plane = picture.planes[slot.plane]
    # A negative line size stores the rows from the bottom up; the buffer begins at the lowest row.
    pitch = abs(plane.line_size)
    view: NDArray[Any] = np.ndarray(
        cast("tuple[int, int]", shape),
        dtype.newbyteorder(">" if big else "<"),
        # PyAV's planes have the buffer protocol, its type stubs do not say so before 3.12.
        cast("Any", plane),
        slot.offset * dtype.itemsize,
        (pitch, slot.step * dtype.itemsize),
    )
    return view[::-1] if plane.line_size < 0 else view
