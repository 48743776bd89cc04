"""Frames and their format: the types that every source, sink and codec agrees on.

A frame is a tuple of *component planes*: one two-dimensional array of samples for each of
Y, U, V, A or R, G, B, A, X, in that order, uint8 up to 8 bits a sample and uint16 above,
whatever the packing of the FFmpeg pixel format it came in (`X` is the padding byte of `bgr0`).
Packing and unpacking of pixel formats belongs to `media`; color transforms to `planes`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from dataclasses import fields as dataclass_fields
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flowarchive.errors import UnsupportedFormat

Plane = NDArray[np.uint8] | NDArray[np.uint16]

MAX_SIDE = 1 << 16
_NUMBERS = (
    "width",
    "height",
    "color_range",
    "color_primaries",
    "color_trc",
    "colorspace",
)


@dataclass(frozen=True)
class PixelLayout:
    """What an FFmpeg pixel format holds, without its packing.

    Attributes:
        components: Component letters in plane order, such as "YUV", "RGBX" or "Y".
        bit_depth: Bits that hold every sample, 8..16 (the samples of rgb555le and its like, of 5
            and 6 bits, have 8).
        log2_chroma_w: Horizontal subsampling of U and V, as a shift.
        log2_chroma_h: Vertical subsampling of U and V, as a shift.
    """

    components: str
    bit_depth: int
    log2_chroma_w: int = 0
    log2_chroma_h: int = 0


def _layouts() -> dict[str, PixelLayout]:
    layouts: dict[str, PixelLayout] = {}
    for depth in (8, 9, 10, 12, 14, 16):
        suffix = "" if depth == 8 else f"{depth}le"
        layouts[f"gray{suffix}"] = PixelLayout("Y", depth)
        layouts[f"gbrp{suffix}"] = PixelLayout("RGB", depth)
        if depth in (8, 10, 12, 14, 16):
            layouts[f"gbrap{suffix}"] = PixelLayout("RGBA", depth)
        for name, w, h in (("420", 1, 1), ("422", 1, 0), ("444", 0, 0), ("440", 0, 1)):
            if name != "440" or depth in (8, 10, 12):
                layouts[f"yuv{name}p{suffix}"] = PixelLayout("YUV", depth, w, h)
            if depth in (8, 9, 10, 16) and name != "440":
                layouts[f"yuva{name}p{suffix}"] = PixelLayout("YUVA", depth, w, h)
    layouts["yuva422p12le"] = PixelLayout("YUVA", 12, 1, 0)
    layouts["yuva444p12le"] = PixelLayout("YUVA", 12)
    layouts["yuv411p"] = PixelLayout("YUV", 8, 2, 0)
    layouts["yuv410p"] = PixelLayout("YUV", 8, 2, 2)
    for name, w, h in (("420", 1, 1), ("422", 1, 0), ("444", 0, 0), ("440", 0, 1)):
        layouts[f"yuvj{name}p"] = PixelLayout("YUV", 8, w, h)
    layouts["yuvj411p"] = PixelLayout("YUV", 8, 2, 0)
    layouts["ya8"] = PixelLayout("YA", 8)
    layouts["ya16le"] = PixelLayout("YA", 16)
    for name in ("rgb24", "bgr24"):
        layouts[name] = PixelLayout("RGB", 8)
    for name in ("rgba", "bgra", "argb", "abgr"):
        layouts[name] = PixelLayout("RGBA", 8)
    for name in ("rgb0", "bgr0", "0rgb", "0bgr"):
        layouts[name] = PixelLayout("RGBX", 8)
    for name in ("rgb48le", "bgr48le"):
        layouts[name] = PixelLayout("RGB", 16)
    for name in ("rgba64le", "bgra64le"):
        layouts[name] = PixelLayout("RGBA", 16)
    for name in ("rgb555le", "bgr555le"):
        layouts[name] = PixelLayout("RGBX", 8)
    for name in ("rgb565le", "bgr565le"):
        layouts[name] = PixelLayout("RGB", 8)
    for name in ("nv12", "nv21"):
        layouts[name] = PixelLayout("YUV", 8, 1, 1)
    for name in ("nv16", "yuyv422", "uyvy422"):
        layouts[name] = PixelLayout("YUV", 8, 1, 0)
    layouts["nv24"] = PixelLayout("YUV", 8)
    return layouts


PIXEL_LAYOUTS: dict[str, PixelLayout] = _layouts()
"""Every pixel format that can be packed, by FFmpeg name; big-endian twins are read as these."""


@dataclass(frozen=True)
class VideoFormat:
    """What every frame of a sequence shares.

    Attributes:
        width: Luma samples in a row, 1..65536.
        height: Luma rows, 1..65536.
        pix_fmt: A name from `PIXEL_LAYOUTS`.
        time_base: Seconds a tick of `Frame.pts` lasts.
        rate: Nominal frames a second, None where the source names none.
        sample_aspect_ratio: Width of a pixel over its height, None where unknown.
        color_range: FFmpeg's AVCOL_RANGE number (0 unspecified, 1 limited, 2 full).
        color_primaries: FFmpeg's (= H.273's) number, 2 is unspecified.
        color_trc: Transfer characteristic, numbered alike.
        colorspace: Matrix coefficients, numbered alike.
    """

    width: int
    height: int
    pix_fmt: str
    time_base: Fraction = Fraction(1, 25)
    rate: Fraction | None = None
    sample_aspect_ratio: Fraction | None = None
    color_range: int = 0
    color_primaries: int = 2
    color_trc: int = 2
    colorspace: int = 2

    def __post_init__(self) -> None:
        if self.pix_fmt not in PIXEL_LAYOUTS:
            raise UnsupportedFormat(f"pixel format {self.pix_fmt!r} is not supported")
        if not (0 < self.width <= MAX_SIDE and 0 < self.height <= MAX_SIDE):
            raise UnsupportedFormat(f"frame size {self.width}x{self.height} is not supported")
        for ratio in (self.time_base, self.rate, self.sample_aspect_ratio):
            if ratio is not None and not 0 < ratio.numerator < 1 << 63 > ratio.denominator:
                raise UnsupportedFormat(f"a time base, rate or aspect ratio of {ratio}")
        if not 0 <= self.color_range <= 2:
            raise UnsupportedFormat(f"color range {self.color_range} is not known")

    @property
    def layout(self) -> PixelLayout:
        """The components and depth of `pix_fmt`."""
        return PIXEL_LAYOUTS[self.pix_fmt]

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8 up to 8 bits a sample, uint16 above."""
        return np.dtype(np.uint8 if self.layout.bit_depth <= 8 else np.uint16)

    @property
    def plane_shapes(self) -> tuple[tuple[int, int], ...]:
        """(rows, columns) of each component plane; chroma sides are rounded up."""
        layout = self.layout
        chroma = (-(-self.height >> layout.log2_chroma_h), -(-self.width >> layout.log2_chroma_w))
        full = (self.height, self.width)
        return tuple(chroma if c in "UV" else full for c in layout.components)

    @property
    def samples_per_frame(self) -> int:
        """Samples of all planes of one frame."""
        return sum(h * w for h, w in self.plane_shapes)

    @property
    def bytes_per_frame(self) -> int:
        """Raw size of one frame in bytes."""
        return self.samples_per_frame * self.dtype.itemsize

    def to_json(self) -> dict[str, Any]:
        """A JSON object; fractions become [numerator, denominator]."""
        return {
            key: [value.numerator, value.denominator] if isinstance(value, Fraction) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> VideoFormat:
        """Read what `to_json` wrote.

        Raises:
            UnsupportedFormat: A field is missing, unknown, or out of range.
        """
        if fields.keys() != {field.name for field in dataclass_fields(cls)}:
            raise UnsupportedFormat("the video format does not have the documented fields")
        values = dict(fields)
        for name in ("time_base", "rate", "sample_aspect_ratio"):
            if values[name] is not None or name == "time_base":
                values[name] = _ratio(values[name])
        if not all(type(values[name]) is int and values[name] >= 0 for name in _NUMBERS):
            raise UnsupportedFormat("a size or a color number of the format is no natural number")
        if not isinstance(values["pix_fmt"], str):
            raise UnsupportedFormat("the pixel format is no string")
        return cls(**values)


def _ratio(value: object) -> Fraction:
    """Read [numerator, denominator], positive and in lowest terms."""
    if not (isinstance(value, list) and len(value) == 2 and all(type(v) is int for v in value)):
        raise UnsupportedFormat(f"{value!r} is no ratio")
    numerator, denominator = value
    if numerator < 1 or denominator < 1 or math.gcd(numerator, denominator) > 1:
        raise UnsupportedFormat(f"{numerator}/{denominator} is no ratio in lowest terms")
    return Fraction(numerator, denominator)


@dataclass(frozen=True)
class Frame:
    """One picture: its component planes and its presentation time.

    Attributes:
        planes: C-contiguous [rows, columns] arrays, one a component, of the format's dtype.
        pts: Presentation time in ticks of the format's time base, None where the source has none.
    """

    planes: tuple[Plane, ...]
    pts: int | None = None

    def __repr__(self) -> str:
        shapes = ", ".join(f"{p.dtype}{list(p.shape)}" for p in self.planes)
        return f"Frame(planes=({shapes}), pts={self.pts})"

    def check(self, video_format: VideoFormat) -> None:
        """Raise UnsupportedFormat unless the planes and the time are what `video_format` says."""
        shapes = tuple(p.shape for p in self.planes)
        if shapes != video_format.plane_shapes:
            raise UnsupportedFormat(
                f"a frame's planes are {shapes}, the sequence's are {video_format.plane_shapes}"
            )
        if any(p.dtype != video_format.dtype for p in self.planes):
            raise UnsupportedFormat(f"a frame's samples are not {video_format.dtype}")
        if self.pts is not None and not (type(self.pts) is int and abs(self.pts) < 1 << 63):
            raise UnsupportedFormat(f"a timestamp of {self.pts!r}")
        depth = video_format.layout.bit_depth
        if depth % 8 and any(p.size and int(p.max()) >> depth for p in self.planes):
            raise UnsupportedFormat(f"a sample does not fit {depth} bits")

    def digest(self) -> bytes:
        """BLAKE2b-128 of the planes' samples in order, row by row, little-endian."""
        digest = hashlib.blake2b(digest_size=16)
        for plane in self.planes:
            digest.update(np.ascontiguousarray(plane, dtype=plane.dtype.newbyteorder("<")).data)
        return digest.digest()


class FrameSource(Protocol):
    """Frames in presentation order, read once; a context manager that frees what it opened."""

    format: VideoFormat
    frame_count: int | None  # None where only reading to the end tells
    source_bytes: int | None  # size of what the frames were read from
    lossy: bool  # the source's own coding had already lost samples

    def __iter__(self) -> Iterator[Frame]: ...
    def __enter__(self) -> FrameSource: ...
    def __exit__(self, *error: object) -> None: ...


class FrameSink(Protocol):
    """Takes frames in order; the output appears under its name only when `close` succeeds."""

    def write(self, frame: Frame) -> None:
        """Append a frame of the sink's format."""

    def __enter__(self) -> FrameSink: ...
    def __exit__(self, *error: object) -> None: ...
