"""Whole archives: what goes in comes out, in any order, or an error says why it does not."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
import pytest
from clips import make_frames
from container_laws import READERS, SuspiciousFile, join, refusal, split
from models import noisy_frames, write_model

import flowarchive
from flowarchive import media, store
from flowarchive.archive import reader
from flowarchive.archive.chunks import decode_chunk, encode_chunk, frames_per_chunk
from flowarchive.archive.parallel import OrderedPool, ordered_map, worker_count
from flowarchive.chunk import Chunk, Coding
from flowarchive.errors import (
    ChecksumMismatch,
    FingerprintMismatch,
    FlowArchiveError,
    FormatError,
    InputError,
    InputNotFound,
    LimitExceeded,
    ModelNotFound,
    OutputExists,
    UnsupportedFormat,
)
from flowarchive.frames import PIXEL_LAYOUTS, Frame, VideoFormat

VIDEO = VideoFormat(20, 14, "yuv420p10le", rate=Fraction(25))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    return str(write_model(path, seed=1, group_norm=False))


def same(ours: Frame, theirs: Frame) -> bool:
    return (
        ours.pts == theirs.pts
        and len(ours.planes) == len(theirs.planes)
        and all(
            a.dtype == b.dtype and np.array_equal(a, b)
            for a, b in zip(ours.planes, theirs.planes, strict=True)
        )
    )


def write_archive(
    path: Path, model: str, frames: list[Frame], video_format: VideoFormat = VIDEO, **options: Any
) -> Path:
    options = {"embed_model": "always", "chunk_frames": 3, **options}
    with flowarchive.create(path, video_format, model=model, **options) as archive:
        for frame in frames:
            archive.append(frame)
    return path


@pytest.fixture
def packaged(model: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of that model as one of the package."""
    data = Path(model).read_bytes()
    monkeypatch.setattr(store, "_packaged", lambda: {"house": data})
    return "house"


def write_source(path: Path, video_format: VideoFormat, frames: list[Frame]) -> Path:
    with media.open_sink(path, video_format) as sink:
        for frame in frames:
            sink.write(frame)
    return path


def codings(path: Path) -> list[Coding]:
    with flowarchive.open(path) as archive:
        return [Coding(archive.chunk(i).coding) for i in range(len(archive.container.index))]


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


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

    def pop(self, *args: Any) -> Any:
        self.pops += 1
        return self.network.pop(*args)


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


# Writing


def test_the_bytes_depend_on_nothing_but_the_frames(model, tmp_path):
    frames = noisy_frames(VIDEO, 9)
    made = [
        write_archive(tmp_path / f"{n}.flow", model, frames, chunk_frames=2, jobs=jobs).read_bytes()
        for n, jobs in enumerate((1, 1, 2, 4, None))
    ]
    assert len(set(made)) == 1
    other = write_archive(tmp_path / "b.flow", model, noisy_frames(VIDEO, 9, seed=1))
    assert other.read_bytes() != made[0]


@pytest.mark.parametrize("jobs", [1, 2, 3])
def test_few_chunks_are_under_way_at_a_time(jobs):
    lock, under_way, most = threading.Lock(), 0, 0

    def work(item: int) -> int:
        return item * item

    pool = OrderedPool(work, jobs)
    results = []
    try:
        for item in range(20):
            for result in pool.submit(item):
                results.append(result)
            with lock:
                under_way = item + 1 - len(results)
                most = max(most, under_way)
        results += list(pool.drain())
    finally:
        pool.close()
    assert results == [item * item for item in range(20)]
    assert most <= jobs  # and one more while it is submitted


def test_a_long_video_takes_the_memory_of_a_few_chunks(model, tmp_path, monkeypatch):
    alive = most = 0
    lock = threading.Lock()

    class Plane(np.ndarray):
        def __del__(self) -> None:
            nonlocal alive
            with lock:
                alive -= 1

    def endless() -> Iterator[Frame]:
        nonlocal alive, most
        random = np.random.default_rng(0)
        for i in range(60):
            plane = random.integers(0, 256, (6, 6)).astype(np.uint8).view(Plane)
            with lock:
                alive += 1
                most = max(most, alive)
            yield Frame((plane,), i)

    video_format = VideoFormat(6, 6, "gray")
    jobs, length = 2, 3

    def slow(*args: Any) -> Any:
        time.sleep(0.01)  # so that frames come faster than they are coded
        return encode_chunk(*args)

    monkeypatch.setattr("flowarchive.archive.writer.encode_chunk", slow)
    with flowarchive.create(
        tmp_path / "a.flow", video_format, model=model, jobs=jobs, chunk_frames=length
    ) as archive:
        for frame in endless():
            archive.append(frame)
    assert archive.totals.frames == 60
    # jobs + 1 chunks under way, the one that is filled, and a few that are on their way out.
    assert most <= (jobs + 3) * length
    assert most > length


def test_an_error_inside_the_block_discards_the_output(model, tmp_path):
    path = tmp_path / "a.flow"

    def fail(error: type[BaseException], force: bool) -> None:
        with flowarchive.create(path, VIDEO, model=model, chunk_frames=1, force=force) as archive:
            archive.append(noisy_frames(VIDEO, 1)[0])
            raise error

    for error in (RuntimeError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error):
            fail(error, force=False)
        assert names(tmp_path) == []
    path.write_bytes(b"precious")
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error):
            fail(error, force=True)
        assert names(tmp_path) == ["a.flow"]
        assert path.read_bytes() == b"precious"


def test_an_interrupt_in_the_middle_leaves_nothing_behind(model, tmp_path):
    source = write_source(tmp_path / "s.npy", VideoFormat(9, 9, "gray"), gray_frames(12))
    folder = tmp_path / "out"
    folder.mkdir()
    threads = threading.active_count()

    def interrupt(done: int, total: int | None) -> None:
        assert total == 12
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        flowarchive.pack(source, folder / "a.flow", model=model, chunk_frames=2, progress=interrupt)
    assert names(folder) == []
    archive = flowarchive.pack(
        source, tmp_path / "a.flow", model=model, embed_model="always"
    ).output
    for name in ("a.npy", "a.mkv", "a.y4m", "pictures/"):
        with pytest.raises(KeyboardInterrupt):
            flowarchive.unpack(archive, f"{folder}/{name}", progress=interrupt)
        assert names(folder) == []
    with pytest.raises(KeyboardInterrupt):
        flowarchive.verify(archive, progress=interrupt)
    assert threading.active_count() == threads, "worker threads are left"


def gray_frames(count: int) -> list[Frame]:
    random = np.random.default_rng(2)
    return [Frame((random.integers(0, 256, (9, 9)).astype(np.uint8),), i) for i in range(count)]


def test_an_error_in_a_worker_reaches_the_caller(model, tmp_path, monkeypatch):
    def broken(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr("flowarchive.archive.writer.encode_chunk", broken)
    with pytest.raises(MemoryError):
        write_archive(tmp_path / "a.flow", model, noisy_frames(VIDEO, 9), chunk_frames=1)
    assert names(tmp_path) == []


def test_a_taken_name_is_kept_unless_forced(model, tmp_path):
    source = write_source(tmp_path / "s.npy", VideoFormat(9, 9, "gray"), gray_frames(2))
    path = tmp_path / "s.flow"
    path.write_bytes(b"mine")
    with pytest.raises(OutputExists):
        flowarchive.pack(source, model=model)
    with pytest.raises(OutputExists):
        flowarchive.create(path, VIDEO, model="no such model")  # before the model is looked for
    assert path.read_bytes() == b"mine"
    assert flowarchive.pack(source, model=model, force=True, embed_model="always").frames == 2
    with pytest.raises(OutputExists):
        flowarchive.unpack(path)
    assert flowarchive.unpack(path, force=True).output == source
    assert names(tmp_path) == ["s.flow", "s.npy"]


def test_misuse_of_a_writer_is_refused(model, tmp_path):
    frame = noisy_frames(VIDEO, 1)[0]
    with flowarchive.create(tmp_path / "a.flow", VIDEO, model=model) as archive:
        archive.append(frame)
        with pytest.raises(UnsupportedFormat, match="planes"):
            archive.append(Frame(frame.planes[:2]))
        with pytest.raises(UnsupportedFormat, match="uint16"):
            archive.append(Frame(tuple(plane.astype(np.uint8) for plane in frame.planes)))
        with pytest.raises(UnsupportedFormat, match="10 bits"):
            archive.append(Frame(tuple(plane + np.uint16(1 << 10) for plane in frame.planes)))
    archive.close()
    assert archive.totals.frames == 1
    with pytest.raises(ValueError, match="closed"):
        archive.append(frame)
    for options in ({"embed_model": "maybe"}, {"chunk_frames": 0}, {"jobs": 0}):
        with pytest.raises(ValueError, match=r"maybe|0"):
            flowarchive.create(tmp_path / "b.flow", VIDEO, model=model, **options)
    with pytest.raises(ModelNotFound):
        flowarchive.create(tmp_path / "b.flow", VIDEO, model="no such model")
    assert names(tmp_path) == ["a.flow"]


def test_an_archive_may_be_empty_but_a_source_may_not(model, tmp_path):
    path = write_archive(tmp_path / "a.flow", model, [])
    with flowarchive.open(path) as archive:
        assert len(archive) == 0
        assert list(archive) == []
    assert flowarchive.verify(path).frames == 0
    np.save(tmp_path / "s.npy", np.zeros((0, 4, 4), np.uint8))
    with pytest.raises(InputError):
        flowarchive.pack(tmp_path / "s.npy", model=model)
    with pytest.raises(InputNotFound):
        flowarchive.pack(tmp_path / "none.npy", model=model)
    assert names(tmp_path) == ["a.flow", "s.npy"]


def test_chunks_hold_about_two_megabytes_unless_told_otherwise():
    assert frames_per_chunk(VideoFormat(1920, 1080, "yuv420p")) == 1
    assert frames_per_chunk(VideoFormat(640, 360, "yuv420p")) == 6
    assert frames_per_chunk(VideoFormat(640, 360, "yuv420p"), 99) == 99
    with pytest.raises(LimitExceeded):
        frames_per_chunk(VideoFormat(640, 360, "yuv420p"), 10_000)
    with pytest.raises(LimitExceeded):
        frames_per_chunk(VideoFormat(65536, 65536, "rgb48le"))
    assert worker_count(3) == 3
    assert worker_count(None) >= 1
    assert list(ordered_map(str, [], 4)) == []


# What cannot be made smaller


@pytest.mark.parametrize(
    "video_format",
    [
        VideoFormat(160, 120, "yuv420p"),
        VideoFormat(99, 77, "gray16le"),
        VideoFormat(64, 64, "rgb24"),
        VideoFormat(8, 8, "gray"),
        VideoFormat(1, 1, "gray"),
    ],
    ids=lambda f: f"{f.width}x{f.height} {f.pix_fmt}",
)
def test_noise_never_grows_by_more_than_the_promise(video_format, packaged, tmp_path):
    random, top = np.random.default_rng(1), 1 << video_format.layout.bit_depth
    count = max(2, min(500, 200_000 // video_format.bytes_per_frame))
    frames = [
        Frame(
            tuple(
                random.integers(0, top, shape).astype(video_format.dtype)
                for shape in video_format.plane_shapes
            ),
            2 * i,
        )
        for i in range(count)
    ]
    path = tmp_path / "a.flow"
    with flowarchive.create(path, video_format, model=packaged) as archive:
        for frame in frames:
            archive.append(frame)
    raw = count * video_format.bytes_per_frame
    assert path.stat().st_size <= 1.001 * raw + 4000
    assert archive.totals.chunks_stored == archive.totals.chunks >= 1
    assert set(codings(path)) <= {Coding.RAW, Coding.ZSTD}
    assert not archive.totals.model_embedded
    with flowarchive.open(path) as reread:
        assert all(map(same, reread, frames))


def test_a_chunk_says_how_it_is_stored_and_the_report_counts_it(model, tmp_path):
    video_format = VideoFormat(32, 32, "gray10le")
    stripes = np.tile(np.array([0, 1000], np.uint16), (32, 16))
    noise = np.random.default_rng(0).integers(0, 1024, (32, 32)).astype(np.uint16) | 1
    full = np.random.default_rng(0).integers(0, 1024, (32, 32)).astype(np.uint16)
    good = noisy_frames(video_format, 1)[0].planes[0]
    path = tmp_path / "a.flow"
    frames = [Frame((p,), i) for i, p in enumerate((stripes, good, full, noise))]
    with flowarchive.create(
        path, video_format, model=model, chunk_frames=1, embed_model="always"
    ) as archive:
        for frame in frames:
            archive.append(frame)
    found = codings(path)
    assert found[:2] == [Coding.ZSTD, Coding.MODEL]
    assert archive.totals.chunks_stored == sum(c != Coding.MODEL for c in found)
    with flowarchive.open(path) as reread:
        assert all(map(same, reread, frames))


def test_planes_that_never_change_cost_nothing(model, tmp_path):
    video_format = VideoFormat(64, 64, "yuva444p10le")
    planes = tuple(np.full((64, 64), value, np.uint16) for value in (1, 512, 1023, 0))
    frames = [Frame(planes, i) for i in range(50)]
    path = write_archive(tmp_path / "a.flow", model, frames, video_format, chunk_frames=50,
                         embed_model="never")  # fmt: skip
    assert path.stat().st_size < 2000
    with flowarchive.open(path) as archive:
        archive._model = store.load_model(model)
        assert all(map(same, archive, frames))


# The model's place


def embedded_bytes(path: Path) -> int:
    return int(flowarchive.info(path)["model"]["embedded_bytes"])


def test_a_model_that_nobody_has_is_embedded_unless_forbidden(model, tmp_path):
    frames, sizes = noisy_frames(VIDEO, 4), {}
    for rule in ("always", "never", "auto"):
        path = write_archive(tmp_path / f"{rule}.flow", model, frames, embed_model=rule)
        sizes[rule] = embedded_bytes(path)
    assert sizes["always"] == sizes["auto"] > 0
    assert sizes["never"] == 0


def test_a_model_of_the_package_is_embedded_where_it_is_cheap(packaged, tmp_path, monkeypatch):
    frames = noisy_frames(VIDEO, 4)
    path = write_archive(tmp_path / "always.flow", packaged, frames)
    size, whole = embedded_bytes(path), path.stat().st_size
    path = write_archive(tmp_path / "auto.flow", packaged, frames, embed_model="auto")
    assert embedded_bytes(path) == 0  # it is a large part of so small an archive
    # The share that is allowed, moved just inside and just outside of what it takes here.
    for part, embedded in ((1, True), (whole // size + 1, False)):
        monkeypatch.setattr("flowarchive.archive.writer.EMBED_SHARE", part)
        path = write_archive(
            tmp_path / "auto.flow", packaged, frames, embed_model="auto", force=True
        )
        assert embedded_bytes(path) == (size if embedded else 0)
        with flowarchive.open(path) as archive:
            assert all(map(same, archive, frames))


def test_an_archive_without_its_model_names_it(model, tmp_path, monkeypatch):
    frames = noisy_frames(VIDEO, 4)
    path = write_archive(tmp_path / "a.flow", model, frames, embed_model="never")
    with flowarchive.open(path) as archive:
        assert len(archive) == 4
        with pytest.raises(ModelNotFound, match=store.load_model(model).fingerprint.hex()):
            archive[0]
    with pytest.raises(ModelNotFound):
        flowarchive.verify(path)
    data = Path(model).read_bytes()
    monkeypatch.setattr(store, "_packaged", lambda: {"shipped": data})
    with flowarchive.open(path) as archive:
        assert all(map(same, archive, frames))


def test_an_archive_of_stored_chunks_needs_no_model(model, tmp_path):
    video_format = VideoFormat(9, 9, "gray")
    frames = gray_frames(5)
    path = write_archive(tmp_path / "a.flow", model, frames, video_format, embed_model="never")
    assert Coding.MODEL not in codings(path)
    with flowarchive.open(path) as archive:
        assert all(map(same, archive, frames))
    assert flowarchive.verify(path).frames == 5


def test_another_model_inside_is_refused(model, tmp_path):
    path = write_archive(tmp_path / "a.flow", model, noisy_frames(VIDEO, 2))
    parts = split(path.read_bytes())
    head = json.loads(parts[0][1])
    head["model"]["sha256"] = "00" * 32
    parts[0] = (parts[0][0], json.dumps(head, sort_keys=True, separators=(",", ":")).encode())
    with pytest.raises(FlowArchiveError) as caught:
        decode_bytes(join(parts))
    assert isinstance(caught.value, FingerprintMismatch | FormatError)


# Verifying


def test_verifying_finds_a_changed_sample_and_a_missing_frame(model, tmp_path):
    video_format = VideoFormat(9, 9, "gray")
    frames = gray_frames(7)
    source = write_source(tmp_path / "s.npy", video_format, frames)
    path = flowarchive.pack(source, model=model, chunk_frames=3, embed_model="always").output
    report = flowarchive.verify(path, source=source)
    assert (report.frames, report.chunks, report.source_checked) == (7, 3, True)
    assert not flowarchive.verify(path).source_checked

    def changed(name: str, array: np.ndarray) -> Path:
        np.save(tmp_path / name, array)
        return tmp_path / name

    array = np.load(source)
    touched = array.copy()
    touched[5, 8, 8] ^= 1
    for other, what in (
        (changed("touched.npy", touched), "frame 5"),
        (changed("short.npy", array[:6]), "frame 6"),
        (changed("long.npy", np.concatenate([array, array[:1]])), "frame 7"),
        (changed("swapped.npy", array[[0, 2, 1, 3, 4, 5, 6]]), "frame 1"),
        (changed("wide.npy", array[:, :, :8].copy()), "format"),
    ):
        with pytest.raises(ChecksumMismatch, match=what):
            flowarchive.verify(path, source=other)


def test_a_moved_timestamp_is_found(model, tmp_path):
    video_format = VideoFormat(8, 8, "gray", Fraction(1, 1000), Fraction(25))
    frames = [
        replace(f, pts=40 * f.pts) for f in noisy_frames(video_format, 3) if f.pts is not None
    ]
    source = write_source(tmp_path / "s.mkv", video_format, frames)
    path = flowarchive.pack(source, model=model, embed_model="always").output
    flowarchive.verify(path, source=source)
    late = [replace(frames[0]), replace(frames[1]), replace(frames[2], pts=81)]
    other = write_source(tmp_path / "late.mkv", video_format, late)
    with pytest.raises(ChecksumMismatch, match="frame 2"):
        flowarchive.verify(path, source=other)


# Damage


def decode_bytes(data: bytes) -> list[Frame]:
    """All frames of an archive in memory."""
    with tempfile.NamedTemporaryFile(suffix=".flow") as file:
        file.write(data)
        file.flush()
        with flowarchive.open(file.name, jobs=1) as archive:
            return list(archive)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes, VideoFormat, list[Frame]]:
    """A tiny archive with a model chunk, its model's file beside it."""
    folder = tmp_path_factory.mktemp("tiny")
    file = write_model(
        folder / "m.safetensors", levels=1, couplings=1, width=1, group_norm=False, mixtures=1
    )
    video_format = VideoFormat(5, 3, "gray16le")
    random = np.random.default_rng(1)
    frames = [
        Frame((random.integers(31000, 34000, (3, 5)).astype(np.uint16),), i) for i in range(2)
    ]
    path = write_archive(
        folder / "a.flow", str(file), frames, video_format, embed_model="never", chunk_frames=2
    )
    assert codings(path) == [Coding.MODEL]
    return path.read_bytes(), file.read_bytes(), video_format, frames


@pytest.fixture
def decoder(tiny, monkeypatch):
    """Decodes an archive from a file object; its frames must be the true ones."""
    _, model_data, video_format, frames = tiny
    stored = store.parse_model(model_data, "tiny")
    found: list[bytes] = []

    def find(fingerprint: bytes, embedded: bytes | None, name: str, *_: object) -> object:
        found.append(fingerprint)
        if fingerprint != stored.fingerprint:
            raise ModelNotFound(name)
        return stored

    monkeypatch.setattr(store, "find_model", find)

    class Opened(reader.Archive):
        """An archive of a file object."""

    def decode(file: BinaryIO) -> list[Frame]:
        monkeypatch.setattr(reader.builtins, "open", lambda path, mode: file)
        try:
            with Opened("memory", jobs=1) as archive:
                taken = [archive[i] for i in range(len(archive))]
                assert archive.format == video_format
        finally:
            monkeypatch.undo()
            monkeypatch.setattr(store, "find_model", find)
        assert len(taken) == len(frames)
        assert all(map(same, taken, frames)), "wrong planes"
        return taken

    return decode


def test_every_cut_and_every_flipped_bit_of_a_small_archive_is_refused(tiny, decoder):
    data = tiny[0]
    assert len(data) < 800
    # The container's own readers must refuse it, and what decodes frames must too.
    for read in (decoder, *READERS):
        assert refusal(data, read) is None
    for cut in range(len(data)):
        assert refusal(data[:cut], decoder)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        assert refusal(bytes(damaged), decoder), f"bit {bit} flips unnoticed"


def refuse_parts(parts: list[tuple[bytes, bytes]], decode: Any) -> FlowArchiveError | None:
    """What decoding says to records with right checksums, None if it gives the true frames."""
    found: FlowArchiveError | None = None
    try:
        decode(SuspiciousFile(join(parts)))
    except FlowArchiveError as error:
        found = error
    assert "\n" not in str(found)
    return found


def test_a_forged_chunk_with_right_checksums_never_gives_wrong_planes(tiny, decoder):
    parts = split(tiny[0])
    place = [kind for kind, _ in parts].index(b"CHNK")
    kind, payload = parts[place]
    assert refuse_parts(parts, decoder) is None
    refused, index = 0, [kind for kind, _ in parts].index(b"INDX")
    for bit in range(8 * len(payload)):
        forged = bytearray(payload)
        forged[bit // 8] ^= 1 << bit % 8
        parts[place] = (kind, bytes(forged))
        # The index repeats the chunk's checksum.
        record = struct.pack("<4sQ", kind, len(forged)) + bytes(forged)
        entry = parts[index][1][:-4] + struct.pack("<I", google_crc32c.value(record))
        parts[index] = (parts[index][0], entry)
        # What is left may only be a timestamp, which no digest covers; `same` compares it.
        try:
            refused += refuse_parts(parts, decoder) is not None
        except AssertionError:
            assert changes_times_only(bytes(forged), payload), f"bit {bit} gives wrong planes"
    assert refused > 7.5 * len(payload)


def changes_times_only(forged: bytes, payload: bytes) -> bool:
    ours, theirs = Chunk.from_bytes(forged), Chunk.from_bytes(payload)
    return ours.pts != theirs.pts and replace(ours, pts=theirs.pts) == theirs


def test_a_constant_that_fits_no_sample_is_refused(model):
    video_format = VideoFormat(4, 4, "gray")
    frames = [Frame((np.full((4, 4), 7, np.uint8),), 0)]
    chunk, _ = encode_chunk(frames, video_format, store.load_model(model).network)
    assert chunk.constants == (7,)
    forged = replace(chunk, constants=(256,), bits=9)
    with pytest.raises(FormatError):
        decode_chunk(forged, video_format, store.load_model(model).network)


def test_a_chunk_of_another_format_is_refused(model):
    network = store.load_model(model).network
    chunk, _ = encode_chunk(noisy_frames(VIDEO, 2), VIDEO, network)
    assert chunk.coding == Coding.MODEL
    for other in ("gray10le", "yuv422p10le", "yuv444p10le", "gbrp10le", "yuva420p10le"):
        with pytest.raises(FlowArchiveError):
            decode_chunk(chunk, replace(VIDEO, pix_fmt=other), network)
    for size in ({"width": 40}, {"height": 12}, {"width": 19}):
        with pytest.raises(FlowArchiveError):
            decode_chunk(chunk, replace(VIDEO, **size), network)
    with pytest.raises(LimitExceeded):
        decode_chunk(chunk, replace(VIDEO, width=65536, height=65536), network)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", None),
        ("model", {}),
        ("model", {"sha256": "xyz"}),
        ("model", {"sha256": 7}),
        ("format", None),
        ("format", []),
        ("format", {"width": 5}),
        ("source", ["kind"]),
        ("source", {"kind": ["npy"]}),
    ],
)
def test_a_head_that_says_nonsense_is_refused_or_ignored(field, value, tiny, tmp_path):
    parts = split(tiny[0])
    head = json.loads(parts[0][1])
    head[field] = value
    parts[0] = (parts[0][0], json.dumps(head, sort_keys=True, separators=(",", ":")).encode())
    shift = len(parts[0][1]) - len(split(tiny[0])[0][1])
    path = tmp_path / "a.flow"
    path.write_bytes(moved(parts, shift))
    if field == "source":
        assert flowarchive.info(path)["source"] == value
        with pytest.raises(ModelNotFound):
            flowarchive.unpack(path)
    else:
        with pytest.raises(FlowArchiveError):
            flowarchive.info(path)


def moved(parts: list[tuple[bytes, bytes]], shift: int) -> bytes:
    """An archive whose HEAD has grown by `shift` bytes, every offset right."""
    result = []
    for kind, data in parts:
        if kind == b"INDX":
            offset = struct.unpack_from("<Q", data, 12)[0]
            data = data[:12] + struct.pack("<Q", offset + shift) + data[20:]
        if kind == b"END ":
            data = struct.pack("<Q", struct.unpack_from("<Q", data)[0] + shift) + data[8:]
        result.append((kind, data))
    return join(result)


def test_files_that_are_no_archive_are_refused(tmp_path):
    for data in (b"", b"RIFF" * 99, b"\x89FLOW\r\n\n"):
        (tmp_path / "a.flow").write_bytes(data)
        for read in (flowarchive.info, flowarchive.verify, flowarchive.unpack):
            with pytest.raises(FormatError):
                read(tmp_path / "a.flow")
    for path in (tmp_path / "none.flow", tmp_path):
        with pytest.raises(InputNotFound):
            flowarchive.open(path)
