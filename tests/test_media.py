"""Sources hand out the samples that the file holds, or say what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import (
    cut,
    encode_image,
    flip,
    make_frames,
    noise_pictures,
    picture,
    write_video,
)

from flowarchive.errors import (
    FlowArchiveError,
    InputError,
    InputNotFound,
    SourceChanged,
    UnsupportedFormat,
)
from flowarchive.frames import PIXEL_LAYOUTS, Frame, VideoFormat
from flowarchive.media import open_source
from flowarchive.media.pixels import fill, native_name, unpack
from flowarchive.media.sources import FolderSource, VideoSource

SIZES = [(1, 1), (5, 3), (34, 17)]

# What FFmpeg's scaler turns into each other by moving samples, without computing any.
PLANAR_TWINS = {
    "nv12": "yuv420p",
    "nv21": "yuv420p",
    "nv16": "yuv422p",
    "nv24": "yuv444p",
    "yuyv422": "yuv422p",
    "uyvy422": "yuv422p",
}


def read(path: Path) -> list[Frame]:
    with open_source(path) as source:
        return list(source)


def assert_same_planes(found: list[Frame], expected: list[Frame]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert len(a.planes) == len(b.planes)
        assert all(np.array_equal(p, q) for p, q in zip(a.planes, b.planes, strict=True))
        assert all(p.flags.owndata and p.flags.c_contiguous for p in a.planes)


# Pixel formats.


def test_layouts_are_those_of_ffmpeg() -> None:
    for name, layout in PIXEL_LAYOUTS.items():
        described = av.VideoFormat(name, 64, 64)
        assert len(described.components) == len(layout.components.replace("X", ""))
        assert described.chroma_width() == 64 >> layout.log2_chroma_w
        assert described.chroma_height() == 64 >> layout.log2_chroma_h
        if "555" not in name and "565" not in name:
            assert {c.bits for c in described.components} == {layout.bit_depth}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", [n for n in PIXEL_LAYOUTS if "555" not in n and "565" not in n])
def test_fill_and_unpack_are_inverse(name: str, size: tuple[int, int]) -> None:
    video_format = VideoFormat(*size, name)
    for frame in make_frames(video_format):
        target = av.VideoFrame(*size, name)
        fill(target, frame.planes, video_format.layout.components)
        assert_same_planes([Frame(unpack(target, video_format))], [frame])


@pytest.mark.parametrize("name", [n for n, x in PIXEL_LAYOUTS.items() if x.components[0] == "R"])
def test_red_green_blue_as_ffmpeg_names_them(name: str) -> None:
    width, height = 6, 5
    video_format = VideoFormat(width, height, name)
    if "555" in name or "565" in name:
        words = np.random.default_rng(3).integers(0, 1 << 16, (height, width)).astype("<u2")
        source = picture([words], name)
        red, green, blue, *padding = unpack(source, video_format)
        shown = source.reformat(format="rgb24").to_ndarray().astype(int)
        # The scaler spreads 5 or 6 bits over 8; the leading bits are the sample.
        assert np.array_equal(red, shown[..., 0] >> 3)
        assert np.array_equal(green, shown[..., 1] >> (3 if "555" in name else 2))
        assert np.array_equal(blue, shown[..., 2] >> 3)
        assert all(np.array_equal(p, words >> 15) for p in padding)
        return
    frame = make_frames(video_format)[0]
    source = av.VideoFrame(width, height, name)
    fill(source, frame.planes, video_format.layout.components)
    if not name.startswith("gbr"):
        source = source.reformat(format="rgb24" if video_format.dtype == np.uint8 else "rgb48le")
    shown = source.to_ndarray()
    for i in range(3):
        assert np.array_equal(frame.planes[i], shown[..., i])


@pytest.mark.parametrize("name", PLANAR_TWINS)
def test_packed_yuv_as_ffmpeg_unpacks_it(name: str) -> None:
    # Whole blocks of 32 columns: FFmpeg's scaler writes past the end of other rows, and its threads
    # then race for the first samples of the next slice.
    twin = VideoFormat(64, 18, PLANAR_TWINS[name])
    frame = make_frames(twin)[0]
    source = picture(frame.planes, twin.pix_fmt).reformat(format=name)
    assert source.format.name == name
    assert_same_planes([Frame(unpack(source, VideoFormat(64, 18, name)))], [frame])


@pytest.mark.parametrize("name", [n for n in PIXEL_LAYOUTS if n.endswith("le") and "5" not in n])
def test_big_endian_twin(name: str) -> None:
    video_format = VideoFormat(7, 5, name)
    big = name[:-2] + "be"
    assert native_name(big) == name
    frame = make_frames(video_format)[0]
    target = av.VideoFrame(7, 5, big)
    fill(target, frame.planes, video_format.layout.components)
    assert_same_planes([Frame(unpack(target, video_format))], [frame])
    if len(target.planes) == len(frame.planes) and not name.startswith("gbr"):
        row = np.frombuffer(target.planes[0], ">u2")[:7]
        assert np.array_equal(row, frame.planes[0][0])


@pytest.mark.parametrize("name", ["monob", "p010le", "gbrpf32le", "nonsense"])
def test_unknown_pixel_format(name: str) -> None:
    with pytest.raises(UnsupportedFormat, match=name):
        native_name(name)


def test_rows_stored_from_the_bottom_up(tmp_path: Path) -> None:
    # BI_RGB in AVI is bottom-up, and FFmpeg gives it a negative line size.
    pictures = noise_pictures(2, 34, 17, "bgr24")
    path = write_video(tmp_path / "a.avi", "rawvideo", pictures)
    with open_source(path) as source:
        frames = list(source)
        assert source.format.pix_fmt == "bgr24"
    for frame, written in zip(frames, pictures, strict=True):
        shown = written.to_ndarray()
        assert np.array_equal(np.stack(frame.planes, -1), shown[..., ::-1])


# Videos.


def test_lossless_video(tmp_path: Path) -> None:
    pictures = noise_pictures(5, 98, 66)
    path = write_video(tmp_path / "a.mkv", "ffv1", pictures, options={"slicecrc": "1"})
    with open_source(path) as source:
        assert source.format.pix_fmt == "yuv420p"
        assert (source.format.width, source.format.height) == (98, 66)
        assert source.format.rate == 25
        assert source.format.time_base == Fraction(1, 1000)
        assert source.source_bytes == path.stat().st_size
        assert source.lossy is False
        frames = list(source)
    assert [f.pts for f in frames] == [0, 40, 80, 120, 160]
    for frame, written in zip(frames, pictures, strict=True):
        flat = np.concatenate([plane.ravel() for plane in frame.planes])
        assert np.array_equal(flat, written.to_ndarray().ravel())


def test_frames_come_in_the_order_they_are_shown(tmp_path: Path) -> None:
    options = {"bf": "2", "g": "12"}
    pictures = []
    for i in range(12):
        planes = [np.full(s, v, np.uint8) for s, v in (((48, 64), 16 + 15 * i), ((24, 32), 128))]
        frame = picture([planes[0], planes[1], planes[1]], "yuv420p")
        frame.pts, frame.time_base = i, Fraction(1, 25)
        pictures.append(frame)
    path = write_video(tmp_path / "a.mp4", "mpeg4", pictures, options=options)
    with open_source(path) as source:
        assert source.frame_count == 12
        assert source.lossy is True
        frames = list(source)
        ticks = 1 / (25 * source.format.time_base)
        assert [f.pts for f in frames] == [i * ticks for i in range(12)]
    means = [float(f.planes[0].mean()) for f in frames]
    assert means == sorted(means)
    assert len(frames) == 12


@pytest.mark.parametrize(
    ("codec", "suffix", "pix_fmt", "lossy"),
    [
        ("ffv1", ".mkv", "gray16le", False),
        ("huffyuv", ".avi", "yuv422p", False),
        ("rawvideo", ".avi", "yuv420p", False),
        ("png", ".mov", "rgb24", False),
        ("mpeg2video", ".mkv", "yuv420p", True),
        ("mjpeg", ".avi", "yuvj444p", True),
        ("prores_ks", ".mov", "yuv422p10le", True),
    ],
)
def test_lossy_is_told_by_the_codec(
    tmp_path: Path, codec: str, suffix: str, pix_fmt: str, lossy: bool
) -> None:
    pictures = noise_pictures(1, 64, 48, pix_fmt)
    if pix_fmt == "yuv422p10le":
        ramp = make_frames(VideoFormat(64, 48, pix_fmt))[1]
        pictures = [picture(ramp.planes, pix_fmt)]
    path = write_video(tmp_path / f"a{suffix}", codec, pictures)
    with open_source(path) as source:
        assert source.lossy is lossy
        assert source.format.pix_fmt == pix_fmt
        assert len(list(source)) == 1


def test_other_streams_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("pcm_s16le", rate=8000)
        video = container.add_stream("ffv1", rate=25)
        video.width, video.height, video.pix_fmt = 64, 64, "gray"
        samples = av.AudioFrame.from_ndarray(
            np.zeros((1, 800), np.int16), format="s16", layout="mono"
        )
        samples.sample_rate = 8000
        container.mux(video.encode(noise_pictures(1, 64, 64, "gray")[0]))
        container.mux(sound.encode(samples))
        container.mux(video.encode(None))
        container.mux(sound.encode(None))
    with VideoSource(path) as source:
        assert source.ignored_streams == ("audio pcm_s16le",)
        assert source.format.pix_fmt == "gray"


def test_single_image(tmp_path: Path) -> None:
    (frame,) = noise_pictures(1, 33, 7, "rgba")
    path = tmp_path / "%03d.png"
    path.write_bytes(encode_image(frame, "png"))
    (read_frame,) = read(path)
    assert np.array_equal(np.stack(read_frame.planes, -1), frame.to_ndarray())


def test_name_that_looks_like_a_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_video(tmp_path / "a.mkv", "ffv1", noise_pictures(1, 64, 64))
    path.rename("pipe:0.mkv")
    assert len(read(Path("pipe:0.mkv"))) == 1


# Folders and arrays.


def make_folder(path: Path, names: list[str], pix_fmt: str = "rgb24") -> list[av.VideoFrame]:
    path.mkdir()
    pictures = noise_pictures(len(names), 9, 5, pix_fmt)
    for name, frame in zip(names, pictures, strict=True):
        (path / name).write_bytes(encode_image(frame, "png"))
    return pictures


def test_folder_in_natural_order(tmp_path: Path) -> None:
    pictures = make_folder(tmp_path / "in", ["1.png", "2.png", "10.png", "10a.png"])
    (tmp_path / "in" / ".hidden").write_bytes(b"x")
    with open_source(tmp_path / "in") as source:
        assert source.frame_count == 4
        assert source.source_bytes == sum(p.stat().st_size for p in (tmp_path / "in").glob("*.png"))
        assert source.format.time_base == Fraction(1, 25)
        assert source.format.rate is None
        frames = list(source)
    assert [f.pts for f in frames] == [0, 1, 2, 3]
    for frame, written in zip(frames, pictures, strict=True):
        assert np.array_equal(np.stack(frame.planes, -1), written.to_ndarray())


@pytest.mark.parametrize("pix_fmt", ["gray", "gray16be", "rgb48be", "rgba64be", "ya8"])
def test_images_stay_at_their_depth(tmp_path: Path, pix_fmt: str) -> None:
    (written,) = make_folder(tmp_path / "in", ["a.png"], pix_fmt)
    with open_source(tmp_path / "in") as source:
        assert source.format.pix_fmt == native_name(pix_fmt)
        (frame,) = source
    assert_same_planes([frame], [Frame(unpack(written, source.format))])


def test_folder_with_a_wrong_file_names_it(tmp_path: Path) -> None:
    make_folder(tmp_path / "in", ["1.png", "2.png"])
    odd = tmp_path / "in" / "3.png"
    odd.write_bytes(encode_image(noise_pictures(1, 5, 9, "rgb24")[0], "png"))
    with pytest.raises(InputError, match=r"3\.png is 5x9 rgb24, the folder began with 9x5 rgb24"):
        read(tmp_path / "in")
    odd.write_bytes(encode_image(noise_pictures(1, 9, 5, "rgba")[0], "png"))
    with pytest.raises(InputError, match=r"3\.png is 9x5 rgba"):
        read(tmp_path / "in")
    odd.write_text("notes")
    with pytest.raises(InputError, match=r"3\.png"):
        read(tmp_path / "in")
    odd.unlink()
    odd.mkdir()
    with pytest.raises(InputError, match=r"3\.png"):
        read(tmp_path / "in")


def test_folder_of_a_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_video(tmp_path / "in" / "a.mkv", "ffv1", noise_pictures(2, 64, 48))
    with pytest.raises(InputError, match="more than one image"):
        read(tmp_path / "in")


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / ".hidden").write_bytes(b"x")
    with pytest.raises(InputError, match="no images"):
        open_source(tmp_path)


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2"])
@pytest.mark.parametrize(
    ("shape", "names"),
    [
        ((3, 5, 7), ("gray", "gray16le")),
        ((3, 5, 7, 1), ("gray", "gray16le")),
        ((3, 5, 7, 2), ("ya8", "ya16le")),
        ((3, 5, 7, 3), ("rgb24", "rgb48le")),
        ((3, 5, 7, 4), ("rgba", "rgba64le")),
    ],
    ids=str,
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_array(
    tmp_path: Path, dtype: str, shape: tuple[int, ...], names: tuple[str, str], order: str
) -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(0, 1 << 8 * np.dtype(dtype).itemsize, shape).astype(dtype)
    np.save(tmp_path / "a.npy", np.asarray(array, order=order))  # type: ignore[call-overload]
    with open_source(tmp_path / "a.npy") as source:
        assert source.format == VideoFormat(7, 5, names[np.dtype(dtype).itemsize - 1])
        assert source.frame_count == 3
        frames = list(source)
    assert [f.pts for f in frames] == [0, 1, 2]
    for frame, expected in zip(frames, array.reshape(3, 5, 7, -1), strict=True):
        frame.check(source.format)
        assert np.array_equal(np.stack(frame.planes, -1), expected)


@pytest.mark.parametrize(
    ("array", "error"),
    [
        (np.zeros((3, 5), np.uint8), UnsupportedFormat),
        (np.zeros((3, 5, 7, 5), np.uint8), UnsupportedFormat),
        (np.zeros((3, 5, 7), np.int16), UnsupportedFormat),
        (np.zeros((3, 5, 7), np.float32), UnsupportedFormat),
        (np.zeros((0, 5, 7), np.uint8), InputError),
        (np.array([{}]), InputError),
    ],
    ids=str,
)
def test_array_that_holds_no_frames(
    tmp_path: Path, array: np.ndarray, error: type[FlowArchiveError]
) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(error, match=r"a\.npy"):
        open_source(tmp_path / "a.npy")


def test_array_that_is_cut(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 5, 7), np.uint8))
    cut(tmp_path / "a.npy", (tmp_path / "a.npy").stat().st_size - 1)
    with pytest.raises(InputError, match=r"a\.npy"):
        open_source(tmp_path / "a.npy")


# What cannot be read.


def test_missing(tmp_path: Path) -> None:
    for name in ("no.mkv", "no.npy", "no", "no/"):
        with pytest.raises(InputNotFound, match="no"):
            open_source(f"{tmp_path}/{name}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    (tmp_path / "a.mkv").write_bytes(b"x")
    (tmp_path / "a.mkv").chmod(0)
    with pytest.raises(InputNotFound):
        open_source(tmp_path / "a.mkv")


def test_special_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="regular"):
        open_source(tmp_path / "pipe")


@pytest.mark.parametrize("data", [b"", b"hello\n", bytes(5000), b"\x1aE\xdf\xa3"], ids=len)
def test_not_a_video(tmp_path: Path, data: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.mkv").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.mkv") as caught:
        open_source(tmp_path / "a.mkv")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_sound_only(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        samples.sample_rate = 8000
        container.mux(stream.encode(samples))
    with pytest.raises(InputError, match="no video stream"):
        open_source(tmp_path / "a.wav")


def test_a_palette_is_read_as_its_colors(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(3)
    image = pillow.fromarray(rng.integers(0, 200, (13, 18), np.uint8), "P")
    image.putpalette(rng.integers(0, 256, 3 * 200).astype(np.uint8).tobytes())
    image.save(tmp_path / "a.png", transparency=bytes(range(200)))
    with open_source(tmp_path / "a.png") as source:
        assert source.format.pix_fmt == "bgra"
        (frame,) = source
    with pillow.open(tmp_path / "a.png") as shown:
        assert np.array_equal(np.stack(frame.planes, -1), np.asarray(shown.convert("RGBA")))


FILES: dict[str, Callable[[Path], Path]] = {
    "ffv1.mkv": lambda p: write_video(p, "ffv1", noise_pictures(6, 66, 64)),
    "ffv1.avi": lambda p: write_video(p, "ffv1", noise_pictures(6, 66, 64)),
    "mpeg4.mp4": lambda p: write_video(
        p, "mpeg4", noise_pictures(6, 66, 64), container_options={"movflags": "faststart"}
    ),
    "mjpeg.mov": lambda p: write_video(
        p,
        "mjpeg",
        noise_pictures(6, 66, 64, "yuvj420p"),
        container_options={"movflags": "frag_keyframe+empty_moov"},
    ),
    "raw.y4m": lambda p: write_video(p, "wrapped_avframe", noise_pictures(6, 66, 64)),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0.4, 0.8, 0.95])
def test_file_that_ends_too_early(
    tmp_path: Path, name: str, keep: float, capfd: pytest.CaptureFixture[str]
) -> None:
    path = FILES[name](tmp_path / name)
    assert len(read(path)) == 6
    cut(path, int(path.stat().st_size * keep))
    with pytest.raises(InputError, match=name) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("size", [(66, 64), (640, 480)], ids=str)
def test_flipped_bit_in_ffv1(tmp_path: Path, size: tuple[int, int]) -> None:
    # FFmpeg itself only logs a wrong checksum, and shows samples of another picture.
    pictures = noise_pictures(3, *size)
    path = write_video(tmp_path / "a.mkv", "ffv1", pictures, options={"slicecrc": "1"})
    whole = path.read_bytes()
    with av.open(str(path)) as container:
        packet = next(p for p in container.demux(video=0) if p.pts == 40)
        start, length = whole.index(bytes(packet)), packet.size
    for offset in (0, length // 3, length - 9, length - 8, length - 1):
        flip(path, start + offset)
        with pytest.raises(InputError, match="frame 1 is damaged"):
            read(path)
        path.write_bytes(whole)
    assert len(read(path)) == 3


def test_ffv1_without_checksums(tmp_path: Path) -> None:
    options = {"slicecrc": "0", "level": "3"}
    path = write_video(tmp_path / "a.mkv", "ffv1", noise_pictures(3, 66, 64), options=options)
    assert len(read(path)) == 3


@pytest.mark.parametrize("level", ["0", "1"])
def test_old_ffv1(tmp_path: Path, level: str) -> None:
    path = write_video(
        tmp_path / "a.avi", "ffv1", noise_pictures(3, 66, 64), options={"level": level}
    )
    assert len(read(path)) == 3


def test_flipped_bit_in_png(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode_image(noise_pictures(1, 40, 30, "rgb24")[0], "png"))
    flip(path, 1000)
    with pytest.raises(InputError, match=r"a\.png"):
        read(path)


def test_samples_beyond_the_depth(tmp_path: Path) -> None:
    header = b"YUV4MPEG2 W2 H2 F25:1 Ip A1:1 C420p10 XYSCSS=420P10\nFRAME\n"
    samples = np.array([1023, 0, 5, 1024, 0, 0], "<u2")
    (tmp_path / "a.y4m").write_bytes(header + samples.tobytes())
    with pytest.raises(InputError, match="10 bits"):
        read(tmp_path / "a.y4m")


@pytest.mark.parametrize("second", [(32, 16, "yuvj420p"), (16, 16, "yuvj444p")], ids=str)
def test_change_of_size_or_pixel_format(tmp_path: Path, second: tuple[int, int, str]) -> None:
    images = [
        encode_image(noise_pictures(1, *kind)[0], "mjpeg")
        for kind in ((16, 16, "yuvj420p"), (16, 16, "yuvj420p"), second)
    ]
    (tmp_path / "a.mjpeg").write_bytes(b"".join(images))
    width, height, pix_fmt = second
    with pytest.raises(UnsupportedFormat, match=f"frame 2 is {width}x{height} {pix_fmt}, .* began"):
        read(tmp_path / "a.mjpeg")


@pytest.mark.parametrize("name", ["a.mkv", "a.npy", "in"])
def test_source_that_changes(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    touched = path
    if name == "a.mkv":
        write_video(path, "ffv1", noise_pictures(2, 66, 64))
    elif name == "a.npy":
        np.save(path, np.zeros((2, 5, 7), np.uint8))
    else:
        make_folder(path, ["1.png", "2.png"])
        touched = path / "3.png"
    with open_source(path) as source:
        frames = iter(source)
        next(frames)
        with open(touched, "ab") as file:
            file.write(b"x")
        with pytest.raises(SourceChanged, match=name):
            list(frames)


def test_an_array_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((50, 300, 200), np.uint8))
    with open_source(path) as source:
        frames = iter(source)
        next(frames)
        os.truncate(path, 100_000)
        with pytest.raises(SourceChanged, match=r"a\.npy"):
            list(frames)


def test_closing_early_and_twice(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", "ffv1", noise_pictures(3, 66, 64))
    with VideoSource(path) as source:
        next(iter(source))
    source.close()
    make_folder(tmp_path / "in", ["1.png"])
    FolderSource(tmp_path / "in").close()
