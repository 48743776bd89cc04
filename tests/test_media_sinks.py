"""What goes into a sink comes out of its file, and a sink that cannot hold it says so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import make_frames
from hypothesis import given, settings
from hypothesis import strategies as st

from flowarchive.errors import InputError, OutputExists, UnsupportedFormat
from flowarchive.frames import PIXEL_LAYOUTS, Frame, VideoFormat
from flowarchive.media import open_sink, open_source
from flowarchive.media.matroska import end_of_elements

SUFFIXES = (".y4m", ".mkv", ".npy", "")

# What a name comes back as; all others come back as they are.
Y4M_TWINS = {"nv12": "yuv420p", "nv21": "yuv420p", "nv16": "yuv422p", "nv24": "yuv444p"}
Y4M_TWINS |= {"yuyv422": "yuv422p", "uyvy422": "yuv422p"}
Y4M_TWINS |= {f"yuvj{s}p": f"yuv{s}p" for s in ("420", "422", "444", "440", "411")}
MKV_TWINS = Y4M_TWINS | {
    **dict.fromkeys(("rgb24", "bgr24", "gbrp", "rgb0", "0rgb", "0bgr"), "bgr0"),
    **dict.fromkeys(("rgba", "argb", "abgr", "gbrap"), "bgra"),
    **dict.fromkeys(("rgb48le", "bgr48le"), "gbrp16le"),
    **dict.fromkeys(("rgba64le", "bgra64le"), "gbrap16le"),
}
PNG_TWINS = {
    **dict.fromkeys(("bgr24", "gbrp"), "rgb24"),
    **dict.fromkeys(("bgra", "argb", "abgr", "gbrap"), "rgba"),
    **dict.fromkeys(("bgr48le", "gbrp16le"), "rgb48le"),
    **dict.fromkeys(("bgra64le", "gbrap16le"), "rgba64le"),
}

# What each sink takes, said once more and without the code's own rules.
NARROW = {"rgb555le", "bgr555le", "rgb565le", "bgr565le"}
HELD = {
    ".y4m": {
        name
        for name, x in PIXEL_LAYOUTS.items()
        if x.components in ("Y", "YUV")
        and not name.startswith(("yuv440", "yuvj440", "yuv410", "gray14"))
    },
    ".mkv": set(PIXEL_LAYOUTS) - NARROW - {"ya16le"},
    ".npy": {
        name for name, x in PIXEL_LAYOUTS.items() if (x.log2_chroma_w, x.log2_chroma_h) == (0, 0)
    },
    "": {
        name
        for name, x in PIXEL_LAYOUTS.items()
        if x.components in ("Y", "YA", "RGB", "RGBA") and x.bit_depth in (8, 16)
    }
    - NARROW,
}
HELD[".yuv"] = set(PIXEL_LAYOUTS)


def write(path: Path, video_format: VideoFormat, frames: list[Frame], force: bool = False) -> Path:
    with open_sink(path, video_format, force) as sink:
        for frame in frames:
            sink.write(frame)
    return path


def samples(frame: Frame) -> bytes:
    return b"".join(p.astype(p.dtype.newbyteorder("<")).tobytes() for p in frame.planes)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", PIXEL_LAYOUTS)
def test_round_trip(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    if name not in HELD[suffix]:
        with pytest.raises(UnsupportedFormat, match="these can: "):
            open_sink(path, VideoFormat(5, 3, name))
        assert names(tmp_path) == []
        return
    for width, height in ((5, 3), (1, 1), (66, 67)) if suffix else ((5, 3),):
        video_format = VideoFormat(width, height, name, Fraction(1, 30), Fraction(30))
        frames = make_frames(video_format, padding=0)
        write(path, video_format, frames, force=True)
        with open_source(path) as source:
            assert (source.format.width, source.format.height) == (width, height)
            twins = {".y4m": Y4M_TWINS, ".mkv": MKV_TWINS, "": PNG_TWINS}.get(suffix)
            if twins is not None:
                assert source.format.pix_fmt == twins.get(name, name)
            found = list(source)
        assert len(found) == len(frames)
        for a, b in zip(found, frames, strict=True):
            padding = a.planes[len(b.planes) :]
            assert all(not p.any() for p in padding)
            for p, q in zip(a.planes, b.planes, strict=False):
                assert p.dtype == q.dtype
                assert np.array_equal(p, q)


@pytest.mark.parametrize("name", ["yuv420p10le", "gray", "bgr0", "rgb555le", "nv12"])
def test_raw_planes(tmp_path: Path, name: str) -> None:
    video_format = VideoFormat(7, 5, name)
    frames = make_frames(video_format)
    path = write(tmp_path / "a.yuv", video_format, frames)
    assert path.read_bytes() == b"".join(map(samples, frames))


def test_y4m_bytes(tmp_path: Path) -> None:
    video_format = VideoFormat(
        5,
        3,
        "yuv420p10le",
        rate=Fraction(30000, 1001),
        sample_aspect_ratio=Fraction(4, 3),
        color_range=1,
    )
    frames = make_frames(video_format)
    path = write(tmp_path / "a.y4m", video_format, frames)
    header = b"YUV4MPEG2 W5 H3 F30000:1001 I? A4:3 C420p10 XYSCSS=420P10 XCOLORRANGE=LIMITED\n"
    assert path.read_bytes() == header + b"".join(b"FRAME\n" + samples(f) for f in frames)
    with open_source(path) as source:
        assert source.format.rate == Fraction(30000, 1001)
        assert source.format.time_base == Fraction(1001, 30000)
        assert source.format.sample_aspect_ratio == Fraction(4, 3)
        assert source.format.color_range == 1
        assert source.frame_count == 3
        assert [f.pts for f in source] == [0, 1, 2]


def test_y4m_without_rate(tmp_path: Path) -> None:
    video_format = VideoFormat(6, 4, "yuvj444p")
    path = write(tmp_path / "a.y4m", video_format, make_frames(video_format))
    assert path.read_bytes().startswith(b"YUV4MPEG2 W6 H4 F0:0 I? A0:0 C444")
    with open_source(path) as source:
        assert source.format.color_range == 2
        assert len(list(source)) == 3


@pytest.mark.parametrize("name", ["gray", "gray16le", "rgb24", "rgba64le", "yuv444p12le"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_npy_as_numpy_reads_it(tmp_path: Path, name: str, count: int) -> None:
    video_format = VideoFormat(7, 5, name)
    frames = make_frames(video_format)[:count]
    array = np.load(write(tmp_path / "a.npy", video_format, frames))
    components = len(video_format.layout.components)
    assert array.shape == ((count, 5, 7) if components == 1 else (count, 5, 7, components))
    assert array.dtype == video_format.dtype
    for found, frame in zip(array, frames, strict=True):
        assert np.array_equal(found.reshape(5, 7, -1), np.stack(frame.planes, -1))


def test_png_as_pillow_reads_it(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    video_format = VideoFormat(7, 5, "argb")
    frames = make_frames(video_format)
    write(tmp_path / "out", video_format, frames)
    assert names(tmp_path / "out") == ["000000.png", "000001.png", "000002.png"]
    for i, frame in enumerate(frames):
        with image.open(tmp_path / "out" / f"00000{i}.png") as opened:
            assert np.array_equal(np.asarray(opened), np.stack(frame.planes, -1))


def test_matroska_keeps_what_describes_the_video(tmp_path: Path) -> None:
    video_format = VideoFormat(
        720,
        576,
        "yuv420p",
        Fraction(1001, 30000),
        Fraction(30000, 1001),
        Fraction(64, 45),
        color_range=1,
        color_primaries=5,
        color_trc=6,
        colorspace=5,
    )
    frames = [
        Frame(f.planes, pts) for f, pts in zip(make_frames(video_format), (0, 1, 7), strict=True)
    ]
    path = write(tmp_path / "a.mkv", video_format, frames)
    with open_source(path) as source:
        assert source.format == VideoFormat(
            **{**video_format.__dict__, "time_base": Fraction(1, 1000)}
        )
        assert [f.pts for f in source] == [0, 33, 234]
    with open(path, "rb") as file:
        assert end_of_elements(file, path.stat().st_size) == path.stat().st_size
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.metadata.get("title") is None
        assert stream.sample_aspect_ratio == Fraction(64, 45)
        # Only version 3 and above has a configuration record.
        assert stream.codec_context.extradata
        assert all(p.is_keyframe for p in container.demux(stream) if p.size)


def test_matroska_times(tmp_path: Path) -> None:
    video_format = VideoFormat(5, 3, "gray", Fraction(1, 90000), Fraction(25))
    frames = make_frames(video_format)

    def times(*pts: int | None) -> list[int | None]:
        timed = [Frame(f.planes, p) for f, p in zip(frames, pts, strict=True)]
        write(tmp_path / "a.mkv", video_format, timed, force=True)
        with open_source(tmp_path / "a.mkv") as source:
            return [f.pts for f in source]

    assert times(90000, 90044, 93600) == [1000, 1000, 1040]
    assert times(-900, 0, 900) == [0, 10, 20]
    assert times(None, None, None) == [0, 40, 80]
    with pytest.raises(InputError, match="cannot write frame"):
        times(9000, 900, 1800)


@pytest.mark.parametrize("name", ["gray", "gray16le", "yuv420p10le", "bgra"])
@pytest.mark.parametrize("size", [(1, 33), (1000, 1), (2, 300), (64, 5), (1, 1000)], ids=str)
def test_matroska_of_narrow_frames(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    video_format = VideoFormat(*size, name)
    frames = make_frames(video_format)
    with open_source(write(tmp_path / "a.mkv", video_format, frames)) as source:
        assert [f.digest() for f in source] == [f.digest() for f in frames]


@pytest.mark.parametrize("name", ["yuv411p", "yuv410p", "yuvj411p"])
@pytest.mark.parametrize("size", [(21, 16), (718, 240), (720, 240), (352, 67)], ids=str)
def test_matroska_of_samplings_that_ffmpeg_cuts_wrong(
    tmp_path: Path, name: str, size: tuple[int, int]
) -> None:
    video_format = VideoFormat(*size, name)
    frames = make_frames(video_format)
    with open_source(write(tmp_path / "a.mkv", video_format, frames)) as source:
        assert [f.digest() for f in source] == [f.digest() for f in frames]


def test_matroska_refuses_what_it_would_lose(tmp_path: Path) -> None:
    video_format = VideoFormat(5, 3, "bgr0")
    with pytest.raises(UnsupportedFormat, match="padding"):
        write(tmp_path / "a.mkv", video_format, make_frames(video_format, padding=255))
    assert names(tmp_path) == []


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".yuv"])
def test_same_frames_same_bytes(tmp_path: Path, suffix: str) -> None:
    video_format = VideoFormat(66, 67, "gray16le", sample_aspect_ratio=Fraction(2))
    for name in ("a", "b"):
        write(tmp_path / f"{name}{suffix}", video_format, make_frames(video_format))
    first, second = (tmp_path / f"{name}{suffix}" for name in ("a", "b"))
    files = [(first / n, second / n) for n in names(first)] if not suffix else [(first, second)]
    assert files
    assert all(a.read_bytes() == b.read_bytes() for a, b in files)


# Outputs appear whole or not at all.


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".yuv"])
def test_error_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    video_format = VideoFormat(5, 3, "gray")

    def break_off() -> Iterator[Frame]:
        yield from make_frames(video_format)
        assert not (tmp_path / f"a{suffix}").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / f"a{suffix}", video_format, break_off())  # type: ignore[arg-type]
    assert names(tmp_path) == []


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".yuv"])
def test_existing_output(tmp_path: Path, suffix: str) -> None:
    video_format = VideoFormat(5, 3, "gray")
    frames = make_frames(video_format)
    path = write(tmp_path / f"a{suffix}", video_format, frames)
    with pytest.raises(OutputExists):
        open_sink(path, video_format)
    write(path, video_format, frames[:1], force=True)
    assert names(tmp_path) == [path.name]
    if suffix not in (".yuv", ""):
        with open_source(path) as source:
            assert len(list(source)) == 1


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".yuv"])
@pytest.mark.parametrize("wrong", ["size", "depth"])
def test_frame_of_another_format(tmp_path: Path, suffix: str, wrong: str) -> None:
    other = VideoFormat(5, 4, "gray") if wrong == "size" else VideoFormat(5, 3, "gray16le")
    with pytest.raises(UnsupportedFormat):
        write(tmp_path / f"a{suffix}", VideoFormat(5, 3, "gray"), make_frames(other))
    assert names(tmp_path) == []


def test_folder_with_other_files_is_kept(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(OutputExists, match=r"letter\.txt"):
        open_sink(tmp_path / "home", VideoFormat(5, 3, "gray"), force=True)
    assert names(tmp_path / "home") == ["letter.txt"]


def test_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "a.frames").mkdir()
    video_format = VideoFormat(5, 3, "gray")
    write(tmp_path / "a.frames", video_format, make_frames(video_format))
    assert len(names(tmp_path / "a.frames")) == 3


def test_kind_is_told_by_the_name(tmp_path: Path) -> None:
    video_format = VideoFormat(5, 3, "gray")
    with open_sink(f"{tmp_path}{os.sep}a.b{os.sep}", video_format) as sink:
        sink.write(make_frames(video_format)[0])
    assert names(tmp_path / "a.b") == ["000000.png"]
    with pytest.raises(UnsupportedFormat, match=r"\.mp4"):
        open_sink(tmp_path / "a.mp4", video_format)


@settings(max_examples=25)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    ratio=st.fractions(Fraction(1, 50), Fraction(50), max_denominator=500),
)
def test_any_aspect_ratio(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, ratio: Fraction
) -> None:
    video_format = VideoFormat(width, height, "gray", sample_aspect_ratio=ratio)
    path = tmp_path_factory.mktemp("ratio") / "a.mkv"
    write(path, video_format, [Frame((np.zeros((height, width), np.uint8),), 0)])
    with open_source(path) as source:
        assert source.format.sample_aspect_ratio == ratio
        assert len(list(source)) == 1


@pytest.mark.parametrize(
    "field",
    [{"time_base": Fraction(1, 10**18)}, {"rate": Fraction(2**62 + 1)}, {"color_primaries": 2**62}],
    ids=str,
)
def test_matroska_refuses_numbers_that_ffmpeg_cannot_hold(field, tmp_path):
    video = VideoFormat(8, 6, "gray", **field)
    with pytest.raises(UnsupportedFormat, match=r"\.mkv cannot hold"):
        open_sink(tmp_path / "a.mkv", video)
    assert list(tmp_path.iterdir()) == []
