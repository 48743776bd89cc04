"""Pixels coded without a model: both laws, the rate, failures, and when it is tried at all."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import tiny
from archives import codings, same
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.message import Message as PlainMessage
from reference.pixels import SQUASH, STRETCH
from reference.pixels import pop_frames as plain_pop_frames

import flowarchive
from flowarchive import pixelwise
from flowarchive.ans import Message
from flowarchive.archive import chunks
from flowarchive.archive.chunks import decode_chunk, encode_chunk
from flowarchive.chunk import Chunk, Coding
from flowarchive.errors import FlowArchiveError, FormatError, MessageExhausted
from flowarchive.frames import Frame, VideoFormat
from flowarchive.pixelwise import decisions, frames, walk
from flowarchive.pixelwise.frames import pop_frames, push_frames

FORMATS = ["gray", "gray16le", "ya8", "yuv420p", "yuva420p", "yuv410p", "rgb24", "gbrap12le"]


class NoModel:
    """A model that must not be asked."""

    has_memory = False


def planes_of(video: VideoFormat, count: int, noise: int, seed: int = 0) -> list[list[np.ndarray]]:
    return [list(f.planes) for f in tiny.drawing(video, count=count, noise=noise)]


def pop_all(message: Message, like: list[list[np.ndarray]], letters: str, bits: int):
    shapes = [plane.shape for plane in like[0]]
    return list(pop_frames(message, len(like), shapes, letters, bits, like[0][0].dtype))


def equal(ours: list, theirs: list) -> bool:
    return all(
        a.dtype == b.dtype and np.array_equal(a, b)
        for f, g in zip(ours, theirs, strict=True)
        for a, b in zip(f, g, strict=True)
    )


@settings(max_examples=40)
@given(st.data())
def test_what_was_pushed_is_popped_and_nothing_below_is_touched(data):
    video = VideoFormat(
        data.draw(st.integers(1, 12)),
        data.draw(st.integers(1, 9)),
        data.draw(st.sampled_from(FORMATS)),
    )
    letters, bits = video.layout.components, video.layout.bit_depth
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    values = rng.integers(0, 1 << bits, data.draw(st.integers(1, 300)))
    group = [
        [rng.choice(values, shape).astype(video.dtype) for shape in video.plane_shapes]
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    message = Message(1)
    message.push(rng.integers(0, 4, 50), np.ones(50, int), 2)
    before = message.to_bytes()
    ideal = push_frames(message, group, letters, bits)
    assert abs(message.bits - Message.from_bytes(before, 1).bits - ideal) <= 1 + 1e-4 * ideal
    assert equal(pop_all(message, group, letters, bits), group)
    assert message.to_bytes() == before


def test_random_bits_are_popped_and_pushed_back():
    good = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        message = Message(1)
        message.push(rng.integers(0, 1 << 30, 99), np.ones(99, int), 30)
        before = message.to_bytes()
        try:
            found = list(pop_frames(message, 2, [(1, 2)], "Y", 16, np.dtype(np.uint16)))
        except FormatError:
            # Bits that give a sample below 0, as half of the first ones do.
            continue
        good += 1
        assert message.to_bytes() != before
        push_frames(message, [list(group) for group in found], "Y", 16)
        assert message.to_bytes() == before
    assert good >= 5


def test_repeats_cost_next_to_nothing():
    video = VideoFormat(200, 120, "rgb24")
    (frame,) = planes_of(video, 1, 0)
    message, longer = Message(1), Message(1)
    one = push_frames(message, [frame], "RGB", 8)
    assert one < 0.03 * 24 * 200 * 120
    assert push_frames(longer, [frame] * 4, "RGB", 8) < 1.7 * one
    assert 8 * len(message.to_bytes()) < one + 100


def test_frames_are_the_same_wherever_the_stream_is_cut(monkeypatch):
    video = VideoFormat(30, 20, "yuv420p")
    group = planes_of(video, 2, 5)
    whole, cut = Message(1), Message(1)
    push_frames(whole, group, "YUV", 8)
    monkeypatch.setattr(frames, "STREAM_SIZE", 1)
    push_frames(cut, group, "YUV", 8)
    assert whole.to_bytes() == cut.to_bytes()


@pytest.mark.parametrize("pix_fmt", ["rgb24", "gray16le"])
def test_every_cut_and_every_flipped_bit_is_refused(pix_fmt, monkeypatch):
    monkeypatch.setattr(chunks, "PIXELWISE_SAMPLES", 0)
    monkeypatch.setattr(chunks, "PIXELWISE_HOPE", -1)
    monkeypatch.setattr(chunks, "PIXELWISE_SURE", -1)
    video = VideoFormat(24, 12, pix_fmt)
    group = tiny.drawing(video, count=1, noise=1)
    chunk, ideal = encode_chunk(group, video, NoModel())
    assert chunk.coding == Coding.PIXELS
    assert ideal < 8 * len(chunk.payload)
    assert all(map(same, decode_chunk(chunk, video, None), group))
    data = chunk.to_bytes()
    start = len(data) - len(chunk.payload)
    shapes = [plane.shape for plane in group[0].planes]

    def refusal(damaged: bytes) -> FlowArchiveError | None:
        try:
            decode_chunk(Chunk.from_bytes(damaged), video, None)
        except FlowArchiveError as error:
            return error
        return None

    for cut in range(len(data)):
        assert refusal(data[:cut])
    for bit in range(8 * start, 8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        error = refusal(bytes(damaged))
        assert error, f"bit {bit} flips unnoticed"
        assert type(error) is not FormatError or "\n" not in str(error)
    assert len(shapes) == len(chunk.constants)


def test_failures_are_told_apart_as_plain_python_tells_them():
    video = VideoFormat(9, 6, "gray")
    group = planes_of(video, 1, 9)
    message = Message(1)
    push_frames(message, group, "Y", 8)
    data = message.to_bytes()
    errors = set()
    for word in range(8, len(data), 4):
        damaged = data[:word] + bytes([data[word] ^ 85]) + data[word + 1 :]
        ours = theirs = None
        try:
            popped = pop_all(Message.from_bytes(damaged, 1), group, "Y", 8)
        except (FormatError, MessageExhausted) as error:
            ours = type(error).__name__
        try:
            plain = plain_pop_frames(PlainMessage(damaged, 1), 1, "Y", [(6, 9)], 8)
        except Exception as error:
            theirs = error.error
        assert ours == theirs
        if ours is None:
            assert popped[0][0].tolist() == plain[0][0]
        errors.add(ours)
    short = data[:8] + data[12:]
    with pytest.raises(MessageExhausted):
        pop_all(Message.from_bytes(short, 1), group, "Y", 8)
    assert "FormatError" in errors


def test_the_tables_are_those_of_the_document():
    memory = decisions.new_memory(3)
    assert memory[: decisions.KNOTS].tolist() == STRETCH
    assert memory[decisions.SQUASH : decisions.RATES].tolist() == list(SQUASH.values())
    assert memory[decisions.RATES] == 43690
    assert memory.size == decisions.SLOTS + 64
    assert memory.ctypes.data % 64 == 0


@pytest.mark.parametrize("a", [*range(20), 255, 256, 65535, 65536, 6 * 65535, (1 << 32) - 1])
def test_classes_of_magnitudes(a):
    assert walk.length(a) == a.bit_length()
    assert walk.octaves(-a) == -a.bit_length()
    if a > 1:
        assert walk.half_octaves(a) == 2 * a.bit_length() + (a >> a.bit_length() - 2 & 1)


def test_how_much_repeats():
    flat = np.zeros((40, 40), np.uint8)
    noise = [np.random.default_rng(i).integers(0, 256, (40, 40)).astype(np.uint8) for i in range(9)]
    quarter = [noise[0][:20, :20]] * 2
    assert pixelwise.repetition([[flat]], "Y") == 1
    assert pixelwise.repetition([[noise[0]]], "Y") < 0.05
    assert pixelwise.repetition([[noise[0]]] * 3, "Y") > 0.6
    assert pixelwise.repetition([[n] for n in noise], "Y") < 0.05
    # Luma that repeats tells nothing where chroma does not.
    assert pixelwise.repetition([[flat, *quarter]], "YUV") < 0.05
    assert pixelwise.repetition([[flat[:1, :1]]], "Y") == 0


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("m") / "tiny.safetensors", **tiny.SMALLEST)


def packed(path, video, group, model, jobs=1):
    with flowarchive.create(
        path, video, model=str(model), jobs=jobs, embed_model="auto"
    ) as archive:
        for frame in group:
            archive.append(frame)
    return archive.totals


def large_drawing(video: VideoFormat, count: int) -> list[Frame]:
    """A drawing whose every pixel is a box of eight times eight."""
    small = tiny.drawing(replace(video, width=video.width // 8, height=video.height // 8), count)
    return [
        Frame(tuple(np.kron(p, np.ones((8, 8), p.dtype)) for p in frame.planes), frame.pts)
        for frame in small
    ]


@pytest.mark.parametrize(
    ("pix_fmt", "count"), list(itertools.product(["rgb24", "yuv420p", "gray16le"], [1, 3]))
)
def test_drawings_are_packed_without_the_model(pix_fmt, count, model, tmp_path):
    video = VideoFormat(240, 160, pix_fmt)
    group = large_drawing(video, count)
    totals = packed(tmp_path / "a.flow", video, group, model)
    assert codings(tmp_path / "a.flow") == [Coding.PIXELS]
    assert (totals.chunks_pixelwise, totals.chunks_stored, totals.chunks) == (1, 0, 1)
    # The model is nowhere at hand, and is not needed.
    assert not totals.model_embedded
    with flowarchive.open(tmp_path / "a.flow") as archive:
        assert all(map(same, archive, group))
    packed(tmp_path / "b.flow", video, group, model, jobs=3)
    assert (tmp_path / "a.flow").read_bytes() == (tmp_path / "b.flow").read_bytes()


def test_natural_pictures_are_not_tried(model, tmp_path, monkeypatch):
    def refuse(*args: object) -> float:
        raise AssertionError("tried")

    monkeypatch.setattr(frames, "push_frames", refuse)
    video = VideoFormat(160, 80, "yuv420p")
    packed(tmp_path / "a.flow", video, tiny.noisy_frames(video), model)
    with pytest.raises(AssertionError, match="tried"):
        packed(tmp_path / "b.flow", video, large_drawing(video, 2), model)


@pytest.mark.parametrize(
    ("chance", "worth", "tried"), [(1, 1e9, []), (-1, 0.95, [1]), (-1, 1e9, [1, 4])]
)
def test_the_first_frame_of_a_colored_clip_tells_whether_all_are_tried(
    chance, worth, tried, model, tmp_path, monkeypatch
):
    counts: list[int] = []

    def count(message, group, letters, bits):
        counts.append(len(group))
        return push_frames(message, group, letters, bits)

    monkeypatch.setattr(frames, "push_frames", count)
    monkeypatch.setattr(chunks, "PIXELWISE_CHANCE", chance)
    monkeypatch.setattr(chunks, "PIXELWISE_WORTH", worth)
    video = VideoFormat(64, 48, "gbrp")
    group = tiny.noisy_frames(video, 4)
    packed(tmp_path / "a.flow", video, group, model)
    assert counts == tried
    with flowarchive.open(tmp_path / "a.flow", model_file=str(model)) as archive:
        assert all(map(same, archive, group))


def test_the_smaller_of_both_is_kept(model, tmp_path, monkeypatch):
    video = VideoFormat(96, 64, "gbrp")
    noise = tiny.noisy_frames(video, 1)
    monkeypatch.setattr(chunks, "PIXELWISE_SAMPLES", 1 << 40)
    packed(tmp_path / "model.flow", video, noise, model)
    monkeypatch.undo()
    # One RGB frame is tried, whatever it shows.
    packed(tmp_path / "both.flow", video, noise, model)
    assert codings(tmp_path / "model.flow") != [Coding.PIXELS]
    sizes = [(tmp_path / f"{name}.flow").stat().st_size for name in ("both", "model")]
    assert sizes[0] <= sizes[1]
