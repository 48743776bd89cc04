"""An archive that is written comes back, record by record, by index and by stream."""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import sys
import threading

import pytest
from container_laws import (
    CHUNKS,
    HEAD_FIELDS,
    MODELS,
    READERS,
    SHA256,
    build,
    join,
    payload,
    refusal,
    split,
)

from flowarchive.container import CHUNK, MODEL, Reader, Writer
from flowarchive.errors import Truncated

where_model = pytest.mark.parametrize(("model", "leading"), MODELS.values(), ids=MODELS)


@where_model
@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_round_trip(count, model, leading):
    archive = build(CHUNKS[:count], model, leading)
    reader = Reader(io.BytesIO(archive))
    assert reader.head == HEAD_FIELDS
    assert reader.size == len(archive)
    assert [reader.chunk(i) for i in range(count)] == [data for data, _ in CHUNKS[:count]]
    assert [entry.frame_count for entry in reader.index] == [n for _, n in CHUNKS[:count]]
    assert reader.frames == sum(n for _, n in CHUNKS[:count])
    assert reader.model() == (None if model is None else (SHA256, model))
    sizes = sum(entry.size for entry in reader.index) + reader.model_size
    assert len(archive) == 16 + 16 + len(split(archive)[0][1]) + sizes + 28 + 24 * count + 52
    reader.check()
    assert join(split(archive)) == archive

    stream = list(Reader.stream(io.BytesIO(archive)))
    assert [(record.type, record.payload) for record in stream] == split(archive)
    assert all(archive[r.offset :].startswith(r.type) for r in stream)
    assert [r.offset for r in stream if r.type == CHUNK] == [e.offset for e in reader.index]


@pytest.mark.parametrize("size", [4, 5, 1 << 16, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_sizes_around_the_steps_of_reading(size):
    data = payload(2, size)
    archive = build([(data, 2), (data, 2)])
    assert Reader(io.BytesIO(archive)).chunk(1) == data
    assert [r.payload for r in Reader.stream(io.BytesIO(archive)) if r.type == CHUNK] == [data] * 2


class ShortFile(io.RawIOBase):
    """A pipe: not seekable, and every read and write does less than it is asked for."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = data
        self.written = b""
        self.random = random.Random(0)

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = min(len(buffer), len(self.data), self.random.choice([1, 1, 2, 3, 50]))
        buffer[:count], self.data = self.data[:count], self.data[count:]
        return count

    def write(self, data) -> int:
        count = min(len(data), self.random.choice([1, 2, 3, 50]))
        self.written += bytes(data[:count])
        return count


@where_model
def test_short_reads_and_writes(model, leading):
    archive = build(model=model, leading=leading)
    assert [(r.type, r.payload) for r in Reader.stream(ShortFile(archive))] == split(archive)
    pipe = ShortFile()
    with Writer(pipe, HEAD_FIELDS) as out:
        for i, (data, frames) in enumerate(CHUNKS):
            if model and leading and i == 0:
                out.model(SHA256, model)
            out.chunk(data, frames)
        if model and not leading:
            out.model(SHA256, model)
    assert pipe.written == archive


def test_a_real_pipe():
    data = payload(1, 1 << 18)
    out, into = os.pipe()

    def send():
        with open(into, "wb", buffering=0) as file, Writer(file, HEAD_FIELDS) as archive:
            archive.chunk(data, 1)

    sender = threading.Thread(target=send)
    sender.start()
    with open(out, "rb", buffering=0) as file:
        received = [record.payload for record in Reader.stream(file) if record.type == CHUNK]
    sender.join()
    assert received == [data]


def test_opening_reads_the_ends_of_the_file_only():
    class Counted(io.BytesIO):
        count = 0

        def read(self, size=-1, /):
            data = super().read(size)
            self.count += len(data)
            return data

    file = Counted(build([(payload(1, 1 << 20, i), 1) for i in range(4)]))
    reader = Reader(file)
    assert file.count < 600
    reader.chunk(2)
    assert file.count < (1 << 20) + 1200


def test_find_is_the_chunk_with_the_frame():
    counts = [1, 5, 2, 1, 9]
    index = Reader(io.BytesIO(build([(payload(n, 8), n) for n in counts]))).index
    truth = [i for i, n in enumerate(counts) for _ in range(n)]
    assert [index.find(frame) for frame in range(18)] == truth
    for frame in (-1, 18, 1 << 70):
        with pytest.raises(IndexError, match="no frame"):
            index.find(frame)
    with pytest.raises(IndexError):
        index[5]


@pytest.mark.parametrize("i", [-1, 3, 1 << 40])
def test_there_is_no_such_chunk(i):
    with pytest.raises(IndexError, match="no chunk"):
        Reader(io.BytesIO(build())).chunk(i)


def test_model_is_compressed_where_that_helps():
    noise = random.Random(0).randbytes(1000)
    for data in (b"", b"m", noise, bytes(1000), noise + bytes(1000)):
        archive = build(model=data)
        stored = dict(split(archive))[MODEL]
        assert len(stored) <= 33 + len(data)
        assert (stored[32] == 1) == (len(stored) < 33 + len(data))
        assert Reader(io.BytesIO(archive)).model() == (SHA256, data)


def test_writer_refuses_records_out_of_order():
    archive = Writer(io.BytesIO(), HEAD_FIELDS)
    for data, frames in ((b"", 0), (b"", 1), (bytes(4), 0), (payload(2, 9), 1), (b"\1\0\0", 1)):
        with pytest.raises(ValueError, match="does not begin"):
            archive.chunk(data, frames)
    with pytest.raises(ValueError, match="32 bytes"):
        archive.model(b"short", b"")
    archive.chunk(*CHUNKS[0])
    archive.model(SHA256, b"m")
    with pytest.raises(ValueError, match="out of order"):
        archive.model(SHA256, b"m")
    with pytest.raises(ValueError, match="out of order"):
        archive.chunk(*CHUNKS[0])
    archive.close()
    size = archive.bytes_written
    archive.close()
    assert archive.bytes_written == size
    with pytest.raises(ValueError, match="out of order"):
        archive.chunk(*CHUNKS[0])


def test_an_error_in_the_block_leaves_no_end():
    file = io.BytesIO()

    def interrupted():
        with Writer(file, HEAD_FIELDS) as archive:
            archive.chunk(*CHUNKS[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(type(refusal(file.getvalue(), read)) is Truncated for read in READERS)


@pytest.mark.parametrize("room", range(16, 230, 3))
def test_a_write_that_fails_cannot_be_completed_later(room):
    class Disk(io.BytesIO):
        full = True

        def write(self, data):
            if self.full and self.tell() + len(data) > room:
                super().write(data[: room - self.tell()])
                raise OSError(28, "No space left on device")
            return super().write(data)

    file = Disk()
    try:
        archive = Writer(file, HEAD_FIELDS)
        for data, frames in CHUNKS:
            archive.chunk(data, frames)
        archive.close()
    except OSError:
        file.full = False
    else:
        pytest.fail("the disk was not full")
    if "archive" in locals():
        with pytest.raises(ValueError, match="earlier write"):
            archive.close()
    assert all(type(refusal(file.getvalue(), read)) is Truncated for read in READERS)


def test_a_stream_that_takes_nothing():
    class Stuck(io.BytesIO):
        def write(self, data):
            return 0

        def read(self, size=-1, /):
            return None

    with pytest.raises(BlockingIOError):
        Writer(Stuck(), HEAD_FIELDS)
    with pytest.raises(BlockingIOError):
        next(Reader.stream(Stuck()))


def test_bytes_written_is_the_offset_of_the_next_record():
    file = io.BytesIO()
    archive = Writer(file, HEAD_FIELDS)
    for data, frames in CHUNKS:
        assert archive.bytes_written == file.tell()
        archive.chunk(data, frames)
    archive.close()
    offsets = [entry.offset for entry in Reader(file).index]
    assert offsets == [build().find(struct.pack("<Q", len(d)) + d) - 4 for d, _ in CHUNKS]


def test_bytes_know_nothing_of_tensors():
    script = (
        "import sys, flowarchive.container, flowarchive.chunk\n"
        "print([m for m in ('torch', 'av', 'typer', 'numba') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
