"""Whole archives: what goes in comes out, in any order, and only what is touched is decoded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import VIDEO, codings, same, write_archive, write_source
from clips import make_frames
from models import noisy_frames

import flowarchive
from flowarchive import media, store
from flowarchive.archive.chunks import decode_chunk, encode_chunk
from flowarchive.chunk import Chunk, Coding
from flowarchive.frames import PIXEL_LAYOUTS, Frame, VideoFormat


@pytest.fixture(scope="module")
def ten(model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Frame]]:
    """An archive of ten frames in chunks of three, and the frames."""
    frames = noisy_frames(VIDEO, 10, seed=3)
    path = write_archive(tmp_path_factory.mktemp("ten") / "ten.flow", model, frames)
    assert codings(path) == [Coding.MODEL] * 4
    return path, frames


# Sources and sinks


@pytest.mark.parametrize(
    ("name", "pix_fmt"),
    [
        ("clip.y4m", "yuv420p"),
        ("clip.y4m", "yuv422p10le"),
        ("clip.y4m", "gray"),
        ("clip.npy", "gray"),
        ("clip.npy", "rgb24"),
        ("clip.npy", "gray16le"),
        ("pictures", "rgb24"),
        ("pictures", "gray"),
        ("clip.mkv", "yuv420p"),
        ("clip.mkv", "bgr0"),
        ("clip.mkv", "gray16le"),
    ],
)
def test_sources_come_back_from_an_archive(name, pix_fmt, model, tmp_path):
    video_format = VideoFormat(19, 13, pix_fmt, rate=Fraction(25))
    made = [replace(f, pts=i) for i, f in enumerate(make_frames(video_format, padding=0))]
    source = write_source(tmp_path / name, video_format, made)
    packed = flowarchive.pack(source, model=model, chunk_frames=2, embed_model="always")
    assert packed.output == source.with_suffix(".flow")
    assert (packed.frames, packed.chunks, packed.model_embedded) == (3, 2, True)
    assert packed.archive_bytes == packed.output.stat().st_size
    assert packed.raw_bytes == 3 * packed.format.bytes_per_frame
    with media.open_source(source) as other, flowarchive.open(packed.output) as archive:
        assert archive.format == other.format == packed.format
        assert all(map(same, archive, list(other)))
    assert flowarchive.verify(packed.output, source=source).source_checked
    # Without a name the output is of the source's own kind.
    (tmp_path / "back").mkdir()
    moved = packed.output.rename(tmp_path / "back" / "x.flow")
    unpacked = flowarchive.unpack(moved)
    assert unpacked.frames == 3
    with media.open_source(source) as a, media.open_source(unpacked.output) as b:
        assert all(map(same, a, list(b)))
        assert a.format == b.format
        assert unpacked.output.suffix == source.suffix


@pytest.mark.parametrize("pix_fmt", sorted(PIXEL_LAYOUTS))
def test_every_pixel_format_comes_back(pix_fmt, model, tmp_path):
    video_format = VideoFormat(7, 5, pix_fmt)
    frames = make_frames(video_format)
    path = write_archive(tmp_path / "a.flow", model, frames, video_format, chunk_frames=2)
    with flowarchive.open(path) as archive:
        assert archive.format == video_format
        assert all(map(same, archive, frames))


def test_a_model_chunk_of_every_shape_comes_back(model):
    network = store.load_model(model).network
    for pix_fmt in ("gray10le", "yuv422p10le", "gbrp12le", "yuva420p10le", "ya16le"):
        video_format = VideoFormat(23, 17, pix_fmt)
        frames = noisy_frames(video_format, 3)
        constant = [Frame((*f.planes[:-1], np.full_like(f.planes[-1], 5)), f.pts) for f in frames]
        for group in (frames, constant) if len(frames[0].planes) > 1 else (frames,):
            chunk, ideal = encode_chunk(group, video_format, network)
            assert chunk.coding == Coding.MODEL, pix_fmt
            assert 8 * len(chunk.payload) <= 1.001 * ideal + 64 * chunk.lanes
            read = Chunk.from_bytes(chunk.to_bytes())
            assert all(map(same, decode_chunk(read, video_format, network), group))


def test_timestamps_come_back_whatever_they_are(model, tmp_path):
    frames = noisy_frames(VIDEO, 6)
    for times in ([None] * 6, [5, 5, -3, None, 1 << 62, 0], [-(1 << 62)] + [7] * 5):
        stamped = [replace(f, pts=t) for f, t in zip(frames, times, strict=True)]
        path = write_archive(tmp_path / "a.flow", model, stamped, force=True)
        with flowarchive.open(path) as archive:
            assert [frame.pts for frame in archive] == times


# Random access


class Counted:
    """A model that counts the frames it pops."""

    def __init__(self, network: Any) -> None:
        self.network, self.pops = network, 0
        self.has_memory = network.has_memory

    def pop_frames(self, *args: Any) -> Any:
        for frame in self.network.pop_frames(*args):
            self.pops += 1
            yield frame


def counted(archive: flowarchive.Archive) -> Counted:
    stored = archive.model
    counter = Counted(stored.network)
    archive._model = replace(stored, network=counter)
    return counter


def test_frames_are_found_by_their_number(ten):
    path, frames = ten
    with flowarchive.open(path) as archive:
        assert len(archive) == 10
        for i in (0, 2, 3, 9, -1, -10, 5):
            assert same(archive[i], frames[i])
        for i in (10, -11):
            with pytest.raises(IndexError):
                archive[i]
        assert same(archive[np.int64(4)], frames[4])


@pytest.mark.parametrize(
    "cut",
    [
        slice(None),
        slice(2, 5),
        slice(4, 4),
        slice(-3, None),
        slice(None, None, 3),
        slice(None, None, -1),
        slice(8, 1, -2),
        slice(9, 100),
        slice(7, 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("jobs", [1, 3])
def test_slices_are_those_of_a_list(ten, cut, jobs):
    path, frames = ten
    with flowarchive.open(path, jobs=jobs) as archive:
        part, expected = archive[cut], frames[cut]
        assert len(part) == len(expected)
        assert all(map(same, part, expected))
        assert len(list(part)) == len(expected)
        assert all(same(part[i], frame) for i, frame in enumerate(expected))
        assert all(map(same, part[::-2], expected[::-2]))
        with pytest.raises(IndexError):
            part[len(expected)]


def test_an_archive_is_iterated_as_often_as_one_likes(ten):
    path, frames = ten
    with flowarchive.open(path) as archive:
        for _ in range(2):
            assert all(map(same, archive, frames))
        assert all(map(same, reversed(archive), frames[::-1]))
        both = zip(archive, archive[::-1], strict=True)
        assert all(same(a, frames[i]) and same(b, frames[9 - i]) for i, (a, b) in enumerate(both))


def test_only_the_touched_chunks_are_decoded(ten):
    path, frames = ten
    with flowarchive.open(path, jobs=1) as archive:
        counter = counted(archive)
        archive[4]
        assert counter.pops == 3  # the one chunk of three
        archive[3], archive[5]
        assert counter.pops == 3
        archive[9]
        assert counter.pops == 4  # the last chunk has one frame
        list(archive[4:6])
        assert counter.pops == 7
        list(archive[0:0])
        assert counter.pops == 7
        assert all(map(same, archive[1:9:6], [frames[1], frames[7]]))
        assert counter.pops == 13
        # Few chunks are kept: going round all of them decodes each again.
        for _ in range(2):
            for i in (0, 3, 6, 9):
                archive[i]
        assert counter.pops > 20


def test_an_iteration_that_is_given_up_decodes_no_more(ten):
    path, _ = ten
    with flowarchive.open(path, jobs=1) as archive:
        counter = counted(archive)
        for _ in archive:
            break
        assert counter.pops <= 6  # one chunk out, one under way


def test_opening_and_describing_decodes_nothing_and_needs_no_torch(ten, root):
    path, frames = ten
    facts = flowarchive.info(path)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["frames"] == 10
    assert facts["bytes"] == path.stat().st_size
    assert facts["model"]["name"] == "small"
    assert facts["model"]["embedded_bytes"] > 0
    assert [c["frames"] for c in facts["chunks"]] == [3, 3, 3, 1]
    assert facts["format"] == VIDEO.to_json()
    assert facts["raw_bytes"] == sum(plane.nbytes for f in frames for plane in f.planes)
    script = (
        "import sys, flowarchive\n"
        "facts = flowarchive.info(sys.argv[1])\n"
        "with flowarchive.open(sys.argv[1]) as archive: assert len(archive) == facts['frames']\n"
        "assert 'torch' not in sys.modules and 'flowarchive.store' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(path)],
        env={**os.environ, "PYTHONPATH": str(root)},
        check=True,
    )


def test_several_threads_may_read_one_archive(ten):
    path, frames = ten
    wrong: list[object] = []

    def read(archive: flowarchive.Archive, start: int) -> None:
        order = np.random.default_rng(start).permutation(10)
        wrong.extend(i for i in order if not same(archive[i], frames[i]))

    with flowarchive.open(path) as archive:
        threads = [threading.Thread(target=read, args=(archive, n)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
