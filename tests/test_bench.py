"""The benchmark: every size verified, every absence named, reports of a stable form."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from flowarchive import bench, cli, media
from flowarchive.bench.clip import Clip, read_clip
from flowarchive.bench.presets import Preset, presets
from flowarchive.bench.run import Measurement, Report
from flowarchive.errors import InputError
from flowarchive.frames import Frame, Plane, VideoFormat
from tests.tiny import noisy_frames

FFV1_FORMATS = (
    "gray", "gray10le", "gray16le", "yuv420p", "yuv422p", "yuv444p", "yuv440p", "yuv420p10le",
    "yuv422p10le", "yuv444p12le", "nv12", "gbrp", "rgb24", "bgr0", "gbrp10le", "rgb48le",
    "yuva420p", "bgra",
)  # fmt: skip
X264_FORMATS = (
    "gray", "gray10le", "yuv420p", "yuv422p", "yuv444p", "yuv420p9le", "yuv420p10le",
    "yuv422p10le", "nv12", "gbrp", "rgb24", "bgr0", "yuvj420p",
)  # fmt: skip
X265_FORMATS = (*X264_FORMATS, "yuv444p12le", "gbrp10le", "gray12le")
VP9_FORMATS = ("yuv420p", "yuv422p", "yuv444p", "yuv440p", "nv12", "gbrp", "rgb24", "yuvj420p")
AV1_FORMATS = (
    "gray", "gray10le", "yuv420p", "yuv422p", "yuv444p", "yuv420p9le", "yuv420p10le",
    "yuv422p10le", "yuv444p12le", "nv12", "rgb24", "gbrp10le",
)  # fmt: skip
JXL_FORMATS = ("gray", "gray10le", "gray16le", "yuv420p", "yuv422p10le", "rgb24", "rgb48le", "bgra")
HELD = {
    "ffv1": FFV1_FORMATS,
    "x264": X264_FORMATS,
    "x265": X265_FORMATS,
    "vp9": VP9_FORMATS,
    "av1": AV1_FORMATS,
    "jxl": JXL_FORMATS,
    "zstd": (*FFV1_FORMATS, "ya16le", "rgb565le"),
}
PAIRS = [(codec, pix_fmt) for codec, formats in HELD.items() for pix_fmt in formats]


def make_clip(folder: Path, pix_fmt: str, size: tuple[int, int] = (50, 36)) -> Clip:
    """Three frames in memory; the clip's path is none."""
    video = VideoFormat(*size, pix_fmt)
    return Clip("noise", folder / "none", video, noisy_frames(video, 3, constant={"X": 0}))


def write_y4m(path: Path, count: int = 3) -> Path:
    video = VideoFormat(50, 35, "yuv420p")
    with media.open_sink(path, video) as sink:
        for frame in noisy_frames(video, count):
            sink.write(frame)
    return path


@dataclass(frozen=True)
class FaultyCodec:
    """Keeps raw planes, and does what its name says to those of the second frame."""

    name: str = "good"
    settings: str = "none"
    container: str = "raw"

    def missing(self) -> str | None:
        return None

    def version(self) -> str | None:
        return "1"

    def refuses(self, clip: Clip) -> str | None:
        return "no such samples" if self.name == "refuses" else None

    def encode(self, clip: Clip, folder: Path) -> None:
        if self.name == "fails":
            raise InputError("out of ink")
        (folder / "clip.raw").write_bytes(bytes(100))

    def decode(self, clip: Clip, folder: Path) -> Iterator[Sequence[Plane]]:
        for number, frame in enumerate(clip.coded_frames()):
            planes = [plane.copy() for plane in frame.planes]
            if number == 1 and self.name == "corrupts":
                planes[-1][-1, -1] ^= 1
            if number == 1 and self.name == "widens":
                planes[0] = planes[0].astype(np.int64).repeat(2, axis=1)
            if number == 1 and self.name == "loses a plane":
                planes.pop()
            yield planes
            if self.name == "ends":
                return
        if self.name == "goes on":
            yield planes


class FaultyPreset(FaultyCodec, Preset):
    """The same, as one of ours."""


def measured(clip: Path, *codecs: object, frames: int | None = None) -> Report:
    return list(bench.measure([clip], codecs, frames))[-1]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_y4m(tmp_path / "noise.y4m")


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("good", "corrupts", "fails", "refuses"):
        monkeypatch.setitem(bench.CODECS, name, FaultyCodec(name))


def invoke(*args: object):
    return CliRunner().invoke(cli.app, ["bench", *map(str, args), "--preset", "none"])


@pytest.mark.parametrize(("name", "pix_fmt"), PAIRS, ids=lambda value: str(value))
def test_every_sample_comes_back(tmp_path, name, pix_fmt):
    codec, clip = bench.CODECS[name], make_clip(tmp_path, pix_fmt)
    if codec.missing():
        pytest.skip(codec.missing())
    assert codec.refuses(clip) is None
    folder = tmp_path / "coded"
    folder.mkdir()
    codec.encode(clip, folder)
    assert list(tmp_path.iterdir()) == [folder]
    decoded = [clip.complete(planes) for planes in codec.decode(clip, folder)]
    assert len(decoded) == len(clip.frames)
    for planes, frame in zip(decoded, clip.frames, strict=True):
        assert [p.dtype for p in planes] == [p.dtype for p in frame.planes]
        assert all(map(np.array_equal, planes, frame.planes))
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("name", "pix_fmt"),
    [("x264", "gray16le"), ("x264", "yuv440p"), ("x265", "rgb48le"), ("vp9", "gray"),
     ("vp9", "yuv420p10le"), ("av1", "gray16le"), ("av1", "yuv411p"), ("av1", "ya8"),
     ("ffv1", "ya16le")],
)  # fmt: skip
def test_a_format_that_a_codec_cannot_hold_is_named(tmp_path, name, pix_fmt):
    reason = bench.CODECS[name].refuses(make_clip(tmp_path, pix_fmt))
    assert reason is not None
    assert pix_fmt in reason


def test_an_odd_size_is_coded_or_named(tmp_path):
    clip = make_clip(tmp_path, "yuv420p", (51, 35))
    reason = "libx264 does not take 51x35 yuv420p"
    assert reason in bench.CODECS["x264"].refuses(clip)
    bench.CODECS["ffv1"].encode(clip, tmp_path)
    for planes, frame in zip(bench.CODECS["ffv1"].decode(clip, tmp_path), clip.frames, strict=True):
        assert all(map(np.array_equal, planes, frame.planes))


@pytest.mark.parametrize("name", ["x264", "x265", "vp9", "ffv1"])
def test_a_single_frame_is_coded(tmp_path, name):
    clip = make_clip(tmp_path, "yuv444p", (640, 360))
    clip = Clip(clip.name, clip.path, clip.format, clip.frames[:1])
    bench.CODECS[name].encode(clip, tmp_path)
    (planes,) = bench.CODECS[name].decode(clip, tmp_path)
    assert all(map(np.array_equal, planes, clip.frames[0].planes))


def test_padding_that_varies_is_not_dropped(tmp_path):
    video = VideoFormat(50, 36, "bgr0")
    clip = Clip("x", tmp_path, video, noisy_frames(video, 2))
    refusals = {name: bench.CODECS[name].refuses(clip) for name in ("ffv1", "x264", "x265", "vp9")}
    assert None not in refusals.values()


def test_a_constant_alpha_plane_is_left_out(tmp_path):
    video = VideoFormat(50, 35, "rgba")
    clip = Clip("a", tmp_path, video, noisy_frames(video, 2, constant={"A": 200}))
    assert (clip.components, clip.fillers) == ("RGB", {"A": 200})
    assert bench.CODECS["x264"].refuses(clip) is None
    whole = [clip.complete(frame.planes) for frame in clip.coded_frames()]
    for planes, frame in zip(whole, clip.frames, strict=True):
        assert all(map(np.array_equal, planes, frame.planes))


@pytest.mark.parametrize("name", ["corrupts", "widens", "loses a plane", "ends", "goes on"])
def test_a_codec_that_changes_a_frame_has_no_size(clip, name):
    (found,) = measured(clip, FaultyCodec(name)).clips[0].measurements
    assert found.status is bench.Status.differs
    assert (found.bytes, found.encode_seconds, found.decode_seconds) == (None, None, None)
    assert "frame" in (found.reason or "")


def test_a_verified_size_is_that_of_the_files(clip):
    (found,) = measured(clip, FaultyCodec()).clips[0].measurements
    assert (found.status, found.bytes, found.reason) == (bench.Status.verified, 100, None)


def test_a_missing_program_is_named(clip, monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = measured(clip, bench.CODECS["av1"], bench.CODECS["jxl"])
    statuses = [m.status for m in found.clips[0].measurements]
    assert statuses == [bench.Status.missing] * 2
    assert bench.absences(found) == [
        "av1 missing: aomenc not found on the PATH",
        "jxl missing: cjxl and djxl not found on the PATH",
    ]


def test_a_missing_encoder_is_named(monkeypatch):
    monkeypatch.setattr("flowarchive.media.encoding.has_encoder", lambda name: False)
    assert bench.CODECS["x265"].missing() == "the installed PyAV has no encoder libx265"


@pytest.mark.parametrize("suffix", [".mkv", ".npy"])
def test_a_clip_is_cut_to_its_first_frames(tmp_path, suffix):
    video = VideoFormat(20, 11, "rgb24")
    frames = noisy_frames(video, 4)
    with media.open_sink(tmp_path / f"clip{suffix}", video) as sink:
        for frame in frames:
            sink.write(frame)
    (tmp_path / "cut").mkdir()
    cut = read_clip(tmp_path / f"clip{suffix}", 2, tmp_path / "cut")
    assert (cut.name, len(cut.frames), cut.path.parent) == ("clip", 2, tmp_path / "cut")
    with media.open_source(cut.path) as source:
        for ours, read, wanted in zip(cut.frames, source, frames, strict=False):
            assert all(map(np.array_equal, ours.planes, wanted.planes))
            assert all(map(np.array_equal, read.planes, wanted.planes))
    whole = read_clip(tmp_path / f"clip{suffix}", 4, tmp_path / "cut")
    assert (len(whole.frames), whole.path) == (4, tmp_path / f"clip{suffix}")


def test_the_json_has_the_documented_fields(clip, tmp_path, faulty):
    target = tmp_path / "out.json"
    options = ["--codec", "good", "--codec", "refuses", "--json", target]
    assert invoke(clip, *options).exit_code == 0
    found = json.loads(target.read_text())
    assert list(found) == [
        "schema", "type", "command", "machine", "codecs", "clips_wanted", "clips", "totals",
        "comparisons",
    ]  # fmt: skip
    assert (found["schema"], found["type"], found["command"]) == (1, "summary", "bench")
    assert set(found["machine"]) == {"processor", "cores", "load", "system", "versions"}
    assert found["codecs"][0] == {
        "name": "good", "is_preset": False, "settings": "none", "container": "raw",
        "version": "1", "missing": None,
    }  # fmt: skip
    (one,) = found["clips"]
    assert list(one) == ["clip", "format", "frames", "samples", "raw_bytes", "results"]
    assert (one["clip"], one["frames"], one["raw_bytes"]) == ("noise", 3, 7950)
    good, refused = one["results"]
    assert list(good) == [
        "codec", "status", "reason", "bytes", "encode_seconds", "decode_seconds", "share_of_raw",
        "bits_per_sample", "encode_frames_per_second", "decode_frames_per_second",
    ]  # fmt: skip
    assert list(refused) == list(good)
    assert (good["status"], good["bytes"]) == ("verified", 100)
    assert good["bits_per_sample"] == pytest.approx(800 / 7950)
    assert (refused["status"], refused["reason"]) == ("unsupported", "no such samples")
    assert {refused[key] for key in list(good)[3:]} == {None}
    assert found["totals"]["clips"] == ["noise"]
    assert str(tmp_path) not in target.read_text()


def test_the_page_names_every_clip_codec_and_absence(clip, tmp_path, faulty):
    target = tmp_path / "out.md"
    options = ["--codec", "zstd", "--codec", "refuses", "--markdown", target]
    assert invoke(clip, *options).exit_code == 0
    page = target.read_text()
    assert "| noise | yuv420p | 3 | 7,950 | **" in page
    assert "`zstd -19`" in page
    assert "- refuses unsupported: no such samples (noise)" in page
    assert str(tmp_path) not in page


def test_the_plot_is_a_picture(clip, tmp_path, faulty):
    pytest.importorskip("matplotlib")
    target = tmp_path / "out.png"
    page = tmp_path / "pages" / "out.md"
    page.parent.mkdir()
    options = ["--codec", "good", "--plot", target, "--markdown", page]
    assert invoke(clip, *options).exit_code == 0
    assert "![Size against speed](../out.png)" in page.read_text()
    with media.open_source(target) as source:
        assert source.format.width > 500


def test_a_preset_is_compared_with_the_smallest_codec(clip):
    report = measured(clip, FaultyCodec(), bench.CODECS["zstd"], FaultyCodec("refuses"))
    ours = report.codecs[0].__class__("ours", True, "", "", None, None)
    found = report.clips[0]
    halves = Measurement("ours", bench.Status.verified, None, 50, 1.0, 1.0)
    clip_result = found.__class__(
        **{**found.__dict__, "measurements": (halves, *found.measurements)}
    )
    report = Report(report.machine, (ours, *report.codecs), (clip_result,), 1)
    assert bench.comparison_lines(report) == [
        "ours: 0.5000 of the smallest classical codec's bytes, mean of 1 clips; at most 0.5000,"
        " on noise"
    ]
    assert "| 0.5000 |" in bench.to_markdown(report)


def test_the_table_has_a_section_for_each_clip(clip, faulty):
    result = invoke(clip, clip, "--codec", "good", "--codec", "refuses")
    assert result.exit_code == 0
    assert result.stdout.count("noise: 3 frames, 50x35 yuv420p") == 2
    assert "all 2 clips that every codec holds" in result.stdout
    assert "refuses unsupported: no such samples (noise)" in result.stdout
    assert result.stderr == ""


def test_a_classical_codec_that_is_not_lossless_is_named(clip, tmp_path, faulty):
    target = tmp_path / "out.json"
    options = ["--codec", "corrupts", "--codec", "fails", "--codec", "good", "--json", target]
    result = invoke(clip, *options)
    assert (result.exit_code, result.stderr) == (0, "")
    results = json.loads(target.read_text())["clips"][0]["results"]
    assert [one["status"] for one in results] == ["differs", "failed", "verified"]
    line = "corrupts differs: frame 1 is not the frame that was coded (noise)"
    assert line in result.stdout
    assert "fails failed: out of ink (noise)" in result.stdout


@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [("corrupts", 4, "frame 1 is not the frame that was coded"), ("fails", 1, "out of ink")],
)
def test_a_preset_that_fails_decides_the_exit_code(clip, tmp_path, monkeypatch, name, code, reason):
    ours = {name: FaultyPreset(name)}
    monkeypatch.setattr("flowarchive.bench.run.presets", lambda device: ours)
    target = tmp_path / "out.json"
    command = ["bench", str(clip), "--codec", "zstd", "--json", str(target)]
    result = CliRunner().invoke(cli.app, command)
    assert (result.exit_code, result.stderr) == (code, f"flowarchive: {name} on noise: {reason}\n")
    statuses = [one["status"] for one in json.loads(target.read_text())["clips"][0]["results"]]
    assert statuses[1] == "verified"
    assert "bits/sample" in result.stdout


def test_an_unknown_name_is_exit_code_6(clip):
    result = invoke(clip, "--codec", "h264")
    assert result.exit_code == 6
    assert "there is no codec 'h264'; there are ffv1, x264" in result.stderr


def test_a_clip_that_is_not_there_leaves_no_files(clip, tmp_path):
    result = invoke(clip, tmp_path / "gone.mkv", "--codec", "zstd", "--json", tmp_path / "a.json")
    assert result.exit_code == 10
    assert not (tmp_path / "a.json").exists()


def test_a_file_that_is_there_is_kept_without_force(clip, tmp_path, faulty):
    target = tmp_path / "out.json"
    target.write_text("mine")
    assert invoke(clip, "--codec", "good", "--json", target).exit_code == 7
    assert target.read_text() == "mine"
    assert invoke(clip, "--codec", "good", "--json", target, "--force").exit_code == 0
    assert target.read_text() != "mine"


def test_a_plot_without_matplotlib_is_one_line(clip, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = invoke(clip, "--codec", "none", "--plot", tmp_path / "out.png")
    line = "flowarchive: a plot needs matplotlib: pip install 'flowarchive[bench]'\n"
    assert (result.exit_code, result.stderr) == (6, line)


@pytest.mark.slow
def test_a_preset_packs_and_unpacks_in_processes_of_its_own(tmp_path):
    path = write_y4m(tmp_path / "noise.y4m", 2)
    preset = next(iter(presets().values()))
    report = measured(path, preset)
    (found,) = report.clips[0].measurements
    assert (found.status, found.reason) == (bench.Status.verified, None)
    assert report.codecs[0].is_preset
    assert 0 < (found.bytes or 0) < 2 * report.clips[0].raw_bytes


def test_a_preset_that_cannot_pack_says_so(tmp_path):
    preset = next(iter(presets().values()))
    video = VideoFormat(8, 8, "gray")
    clip = Clip("gone", tmp_path / "gone.mkv", video, [Frame((np.zeros((8, 8), np.uint8),))])
    with pytest.raises(InputError, match=r"gone\.mkv"):
        preset.encode(clip, tmp_path)
