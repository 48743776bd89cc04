"""Codecs that are programs on the PATH: aomenc for AV1, cjxl and djxl for JPEG XL.

frame's plane --.pgm--> cjxl --.jxl--> djxl --.pgm--> plane
R, G, B       --.ppm--> cjxl --.jxl--> djxl --.ppm--> R, G, B
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowarchive import media
from flowarchive.bench.clip import Clip
from flowarchive.errors import InputError
from flowarchive.frames import Frame, Plane, VideoFormat
from flowarchive.media import encoding

Picture = NDArray[Any]  # uint8 or uint16, [rows, columns] or [rows, columns, 3]
SAMPLINGS = {(1, 1): "420", (1, 0): "422", (0, 0): "444"}


def run_program(*command: str | Path) -> str:
    """Run a program to its end and return what it printed.

    Args:
        *command: The program and its arguments.

    Raises:
        InputError: It is not there, or ended with another code than 0.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            errors="replace",
        )  # fmt: skip
    except OSError as error:
        raise InputError(f"{words[0]}: {error.strerror}") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"code {done.returncode}"]
        raise InputError(f"{Path(words[0]).name} failed: {lines[-1]}")
    return done.stdout + done.stderr


def _not_found(*programs: str) -> str | None:
    absent = [program for program in programs if shutil.which(program) is None]
    return f"{' and '.join(absent)} not found on the PATH" if absent else None


@dataclass(frozen=True)
class AomCodec:
    """AV1 by libaom's own program; decoded by FFmpeg, which has a faster decoder than libaom's."""

    name: str = "av1"
    settings: str = "aomenc --lossless=1 --cpu-used=2 --threads=all --ivf"
    container: str = "ivf"

    def missing(self) -> str | None:
        """Whether aomenc is on the PATH, and PyAV has a decoder."""
        if not encoding.has_decoder("av1"):
            return "the installed PyAV has no decoder for AV1"
        return _not_found("aomenc")

    def version(self) -> str | None:
        """What aomenc says of itself."""
        found = re.search(r"AV1 Encoder v?(\S+)", run_program("aomenc", "--help"))
        return f"libaom {found[1]}" if found else None

    def refuses(self, clip: Clip) -> str | None:
        """Whether AV1 has no such sampling or depth."""
        if _av1_format(clip) is None:
            return f"AV1 has no format for the samples of {clip.format.pix_fmt}"
        return None

    def encode(self, clip: Clip, folder: Path) -> None:
        """Write one file, and for the time of it a .y4m file beside the folder."""
        video_format = _av1_format(clip)
        assert video_format is not None
        source = folder.with_name(folder.name + ".y4m")
        try:
            with media.open_sink(source, video_format, force=True) as sink:
                for frame in clip.coded_frames():
                    sink.write(Frame((*frame.planes, *_neutral_chroma(clip, video_format))))
            options = _aom_options(video_format, is_gray=clip.components == "Y")
            run_program("aomenc", *options, "-o", folder / "clip.ivf", source)
        finally:
            source.unlink(missing_ok=True)

    def decode(self, clip: Clip, folder: Path) -> Iterator[Sequence[Plane]]:
        """Read the file."""
        letters = clip.components if clip.components == "Y" else "YUV"
        yield from encoding.decode(folder / "clip.ivf", letters)


def _av1_format(clip: Clip) -> VideoFormat | None:
    """The format of the .y4m file that aomenc gets; R, G, B go as the planes of 4:4:4.

    Gray goes as 4:2:0 whose chroma aomenc drops: it reads gray of 8 bits only.
    """
    layout = clip.format.layout
    depth = next((d for d in (8, 10, 12) if d >= layout.bit_depth), None)
    if depth is None:
        return None
    suffix = "" if depth == 8 else f"{depth}le"
    sampling = SAMPLINGS.get((layout.log2_chroma_w, layout.log2_chroma_h))
    names = {"Y": f"yuv420p{suffix}", "RGB": f"yuv444p{suffix}"}
    if sampling:
        names["YUV"] = f"yuv{sampling}p{suffix}"
    name = names.get(clip.components)
    if name is None:
        return None
    return VideoFormat(clip.format.width, clip.format.height, name, rate=Fraction(25))


def _neutral_chroma(clip: Clip, video_format: VideoFormat) -> list[Plane]:
    """The chroma planes that a gray clip lacks in its .y4m file."""
    if clip.components != "Y":
        return []
    middle = 1 << video_format.layout.bit_depth - 1
    return [np.full(shape, middle, video_format.dtype) for shape in video_format.plane_shapes[1:]]


def _aom_options(video_format: VideoFormat, is_gray: bool) -> list[str]:
    layout = video_format.layout
    sampling = (layout.log2_chroma_w, layout.log2_chroma_h)
    profile = {(1, 1): 0, (0, 0): 1, (1, 0): 2}[sampling] if layout.bit_depth < 12 else 2
    return [
        "--quiet",
        "--lossless=1",
        "--cpu-used=2",
        f"--threads={os.cpu_count() or 1}",
        f"--profile={profile}",
        f"--bit-depth={layout.bit_depth}",
        f"--input-bit-depth={layout.bit_depth}",
        *(["--monochrome"] if is_gray else []),
        "--ivf",
    ]


@dataclass(frozen=True)
class JxlCodec:
    """JPEG XL by its reference programs: a file a plane, or a file a frame for RGB."""

    name: str = "jxl"
    settings: str = "cjxl -d 0 -e 7, a process for every plane, or frame of RGB"
    container: str = "jxl codestreams, their sizes added"

    def missing(self) -> str | None:
        """Whether cjxl and djxl are on the PATH."""
        return _not_found("cjxl", "djxl")

    def version(self) -> str | None:
        """What cjxl says of itself."""
        found = re.search(r"v(\d[\w.]*)", run_program("cjxl", "--version"))
        return f"libjxl {found[1]}" if found else None

    def refuses(self, clip: Clip) -> str | None:
        """Never: every plane is a gray picture."""
        return None

    def encode(self, clip: Clip, folder: Path) -> None:
        """Write the files, and for the time of it a picture beside the folder."""
        for number, frame in enumerate(clip.coded_frames()):
            for part, picture in enumerate(_pictures(frame, clip.components)):
                source = folder.with_name(f"{folder.name}.p{'pg'[picture.ndim == 2]}m")
                _write_picture(source, picture)
                target = folder / f"{number:06d}-{part}.jxl"
                run_program("cjxl", "--quiet", "-d", "0", "-e", "7", source, target)
                source.unlink()

    def decode(self, clip: Clip, folder: Path) -> Iterator[Sequence[Plane]]:
        """Read the files."""
        for number in range(len(clip.frames)):
            planes: list[Plane] = []
            for path in sorted(folder.glob(f"{number:06d}-*.jxl")):
                is_color = clip.components == "RGB"
                target = folder.with_name(f"{folder.name}.p{'gp'[is_color]}m")
                run_program("djxl", "--quiet", path, target)
                picture = _read_picture(target)
                target.unlink()
                if picture.ndim == 2:
                    planes.append(picture)
                else:
                    planes += [np.ascontiguousarray(picture[..., c]) for c in range(3)]
            yield planes


def _pictures(frame: Frame, components: str) -> Sequence[Picture]:
    if components == "RGB":
        return [np.stack(frame.planes, axis=-1)]
    return frame.planes


def _write_picture(path: Path, picture: Picture) -> None:
    """Write a PGM or PPM file; above 8 bits with 16, since djxl misreads the depths between."""
    top = 255 if picture.dtype == np.uint8 else 65535
    kind = 5 if picture.ndim == 2 else 6
    header = f"P{kind}\n{picture.shape[1]} {picture.shape[0]}\n{top}\n".encode()
    path.write_bytes(header + picture.astype(picture.dtype.newbyteorder(">")).tobytes())


def _read_picture(path: Path) -> Picture:
    data = path.read_bytes()
    header = re.match(rb"P([56])\s+(\d+)\s+(\d+)\s+(\d+)\s", data)
    if header is None:
        raise InputError("djxl did not write a PGM or PPM file")
    kind, width, height, top = (int(group) for group in header.groups())
    dtype = np.dtype(np.uint8 if top < 256 else np.uint16)
    shape = (height, width) if kind == 5 else (height, width, 3)
    samples = np.frombuffer(data, dtype.newbyteorder(">"), offset=header.end())
    if samples.size != int(np.prod(shape)):
        raise InputError("djxl wrote a picture that is too short")
    return samples.reshape(shape).astype(dtype)


AV1 = AomCodec()
JXL = JxlCodec()
