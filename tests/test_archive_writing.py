"""Writing archives: bounded memory, nothing left by an error, no growth, the model, verifying."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archives import VIDEO, codings, gray_frames, names, same, write_archive, write_source
from models import noisy_frames

import flowarchive
from flowarchive import store
from flowarchive.archive.chunks import encode_chunk, frames_per_chunk
from flowarchive.archive.parallel import (
    OrderedPool,
    ordered_map,
    threads_per_chunk,
    worker_count,
)
from flowarchive.chunk import Coding
from flowarchive.errors import (
    ChecksumMismatch,
    InputError,
    InputNotFound,
    LimitExceeded,
    ModelNotFound,
    OutputExists,
    UnsupportedFormat,
)
from flowarchive.frames import Frame, VideoFormat

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
    assert frames_per_chunk(VideoFormat(16, 16, "gray")) == 1 << 10
    with pytest.raises(LimitExceeded):
        frames_per_chunk(VideoFormat(640, 360, "yuv420p"), 10_000)
    with pytest.raises(LimitExceeded):
        frames_per_chunk(VideoFormat(65536, 65536, "rgb48le"))
    assert worker_count(3) == 3
    assert worker_count(None) >= 1
    assert list(ordered_map(str, [], 4)) == []


def test_chunks_of_a_model_with_memory_are_longer():
    for size, frames in (((1920, 1080), 16), ((640, 360), 64), ((64, 64), 64), ((8, 8), 2730)):
        video_format = VideoFormat(*size, "yuv420p")
        assert frames_per_chunk(video_format, has_memory=True) == frames
        assert frames_per_chunk(video_format, 5, has_memory=True) == 5
    assert threads_per_chunk(1, True) == threads_per_chunk(8, False) == 1
    assert threads_per_chunk(2, True) == threads_per_chunk(8, True) == 2


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


# The input is not the output


@pytest.mark.parametrize("link", ["itself", "symlink", "hard link"])
def test_force_does_not_replace_the_input_by_the_output(link, model, tmp_path):
    source = tmp_path / "self.npy"
    np.save(source, np.zeros((2, 6, 5), np.uint8))
    before, output = source.read_bytes(), source
    if link != "itself":
        output = tmp_path / "other.flow"
        output.symlink_to(source) if link == "symlink" else output.hardlink_to(source)
    with pytest.raises(OutputExists, match="input itself"):
        flowarchive.pack(source, output, model=model, force=True)
    assert source.read_bytes() == before


def test_an_archive_is_not_unpacked_over_itself(model, tmp_path):
    archive = write_archive(tmp_path / "odd.mkv", model, noisy_frames(VIDEO, 2))
    before = archive.read_bytes()
    for output in (archive, None):
        with pytest.raises(OutputExists, match="input itself"):
            flowarchive.unpack(archive, output, force=True)
    assert archive.read_bytes() == before


def test_an_archive_is_not_packed_into_its_source_folder(model, tmp_path):
    folder = tmp_path / "images"
    write_source(folder, VideoFormat(6, 5, "gray"), gray_frames_of(6, 5))
    with pytest.raises(OutputExists, match="inside"):
        flowarchive.pack(folder, folder / "images.flow", model=model)
    assert len(names(folder)) == 2


def gray_frames_of(width: int, height: int) -> list[Frame]:
    return [Frame((np.full((height, width), v, np.uint8),), i) for i, v in enumerate((3, 9))]


@pytest.mark.parametrize(
    ("kind", "pix_fmt", "suffix"),
    [("folder", "yuvj420p", ".mkv"), ("folder", "gray", ""), (".y4m", "yuva420p", ".mkv"),
     (".npy", "yuv420p", ".mkv"), (".mkv", "ya16le", ".yuv")],
)  # fmt: skip
def test_the_default_output_can_hold_the_frames(kind, pix_fmt, suffix, model, tmp_path):
    video = VideoFormat(8, 6, pix_fmt)
    options = {"source": {"kind": kind}}
    archive = write_archive(tmp_path / "a.flow", model, noisy_frames(video, 2), video, **options)
    assert flowarchive.unpack(archive).output == tmp_path / f"a{suffix}"


def test_networks_that_find_no_memory_say_so(model, tmp_path, monkeypatch):
    def fail(*_: object) -> float:
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr("flowarchive.models.idf.IdfModel.push", fail)
    with pytest.raises(MemoryError):
        write_archive(tmp_path / "a.flow", model, noisy_frames(VIDEO, 2))
    assert names(tmp_path) == []


@pytest.mark.parametrize("pts", [1 << 63, -(1 << 63), 1.0, True])
def test_a_timestamp_that_no_chunk_can_hold_is_refused(pts, model, tmp_path):
    (frame,) = noisy_frames(VIDEO, 1)
    with flowarchive.create(tmp_path / "a.flow", VIDEO, model=model) as archive:
        with pytest.raises(UnsupportedFormat, match="timestamp"):
            archive.append(Frame(frame.planes, pts))
        archive.append(frame)


def test_a_ratio_that_no_head_can_hold_is_refused():
    with pytest.raises(UnsupportedFormat, match="time base"):
        VideoFormat(8, 6, "gray", time_base=Fraction(1, 1 << 63))
