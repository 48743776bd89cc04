"""The video model as a codec: any frames of any format come back, whoever works on them."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny as tiny_cases
from hypothesis import given, settings
from hypothesis import strategies as st
from models import TINY_VIDEO, make_video_model, noisy_frames, write_video_model
from safetensors.torch import load, save

from flowarchive import lattice, motion, planes, store
from flowarchive.ans import Message
from flowarchive.archive.chunks import decode_chunk, encode_chunk
from flowarchive.chunk import Coding
from flowarchive.errors import CodingError, FormatError, ModelError, NotReproducible
from flowarchive.features import UPDATE_CHANNELS
from flowarchive.frames import PIXEL_LAYOUTS, VideoFormat
from flowarchive.models.form import NEAR_FRAMES, SHIFTS
from flowarchive.models.phasewise import _bounds
from flowarchive.models.plan import Plan, find_near
from flowarchive.models.video import VideoModel

tiny = functools.cache(make_video_model)
Group = list[np.ndarray]

SIZES = [(1, 1), (1, 7), (6, 1), (2, 2), (3, 5), (21, 13), (34, 50)]
FORMATS = [
    "gray", "gray10le", "gray16le", "ya8", "yuv420p", "yuv422p", "yuv444p", "yuv410p",
    "yuva420p10le", "yuv422p12le", "yuv444p16le", "rgb24", "rgba", "rgba64le", "bgr0",
]  # fmt: skip


def moving(random: np.random.Generator, shape: tuple[int, int], top: int, t: int) -> np.ndarray:
    """A slope with waves that shifts by a sample a frame, and a little noise."""
    y, x = np.indices(shape)
    wave = top / 2 + top / 5 * (np.sin((x + t) / 3) + np.cos((y - t) / 4))
    return wave + random.normal(0, 1 + top / 500, shape)


CONTENTS: dict[str, Callable[[np.random.Generator, tuple[int, int], int, int], np.ndarray]] = {
    "moving": moving,
    "noise": lambda random, shape, top, t: random.integers(0, top + 1, shape),
    "extremes": lambda random, shape, top, t: random.integers(0, 2, shape) * top,
    "still": lambda random, shape, top, t: np.add.outer(*map(np.arange, shape)) * 5 % (top + 1),
    "cuts": lambda random, shape, top, t: moving(random, shape, top, t) if t % 3 else
    random.integers(0, top + 1, shape),
}  # fmt: skip


def make_frames(video: VideoFormat, content: str, count: int, seed: int = 0) -> list[Group]:
    random, top = np.random.default_rng(seed), (1 << video.layout.bit_depth) - 1
    return [
        [
            CONTENTS[content](random, shape, top, t).clip(0, top).astype(video.dtype)
            for shape in video.plane_shapes
        ]
        for t in range(count)
    ]


def push(frames: list[Group], letters: str, bits: int, lanes: int = 1, threads: int = 1) -> Message:
    """The frames on a message, whose length is the ideal one."""
    message = Message(lanes)
    components = [planes.split(group, letters, bits) for group in frames]
    ideal = tiny().push_frames(message, components, letters, bits, threads).ideal_bits
    assert abs(message.bits - ideal) <= 0.001 * ideal + 32 * lanes
    return message


def pop(
    message: Message, frames: list[Group], letters: str, bits: int, threads: int = 1
) -> list[Any]:
    shapes, dtype = [plane.shape for plane in frames[0]], frames[0][0].dtype
    popped = tiny().pop_frames(message, len(frames), shapes, letters, bits, threads)
    return [planes.merge(components, letters, bits, dtype) for components in popped]


def same(ours: list[Any], theirs: list[Group]) -> bool:
    return all(
        np.array_equal(a, b)
        for x, y in zip(ours, theirs, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def check_codec(frames: list[Group], letters: str, bits: int, lanes: int = 1) -> None:
    """Frames come back, and the message is empty again."""
    message = push(frames, letters, bits, lanes)
    back = pop(message, frames, letters, bits)
    assert message.is_drained
    assert same(back, frames)


@pytest.mark.parametrize("pix_fmt", FORMATS)
def test_frames_of_every_format_and_size_come_back(pix_fmt):
    layout = PIXEL_LAYOUTS[pix_fmt]
    for number, (height, width) in enumerate(SIZES):
        content = list(CONTENTS)[(number + FORMATS.index(pix_fmt)) % len(CONTENTS)]
        frames = make_frames(VideoFormat(width, height, pix_fmt), content, 1 + number % 4)
        check_codec(frames, layout.components, layout.bit_depth, 1 << number % 3)


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "rgb48le", "gray12le"])
def test_every_content_comes_back(content, pix_fmt):
    video = VideoFormat(37, 26, pix_fmt)
    frames = make_frames(video, content, 5)
    check_codec(frames, video.layout.components, video.layout.bit_depth)


@settings(max_examples=15)
@given(
    st.sampled_from(FORMATS),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.sampled_from(sorted(CONTENTS)),
    st.integers(1, 7),
    st.integers(0, 1 << 20),
)
def test_any_frames_come_back(pix_fmt, size, content, count, seed):
    frames = make_frames(VideoFormat(*size, pix_fmt), content, count, seed)
    bits = max(map(planes.bits_needed, frames))
    check_codec(frames, PIXEL_LAYOUTS[pix_fmt].components, bits)


@pytest.mark.parametrize("letters", ["UV", "YU", "GBA"])
def test_planes_left_over_by_constant_ones_come_back(letters):
    random = np.random.default_rng(1)
    frames = [[random.integers(0, 256, (7, 9)).astype(np.uint8) for _ in letters] for _ in "abc"]
    check_codec(frames, letters, 8)


@pytest.mark.parametrize(("pix_fmt", "count"), [("yuv420p", 4), ("gray16le", 3), ("rgba", 2)])
def test_the_bits_do_not_depend_on_the_threads(pix_fmt, count):
    video = VideoFormat(180, 150, pix_fmt)
    letters, bits = video.layout.components, video.layout.bit_depth
    frames = make_frames(video, "cuts" if count == 4 else "moving", count)
    one, two = (push(frames, letters, bits, 4, threads) for threads in (1, 2))
    assert one.to_bytes() == two.to_bytes()
    for message, threads in ((one, 2), (two, 1)):
        assert same(pop(message, frames, letters, bits, threads), frames)


@given(st.integers(1, 9), st.integers(1, 300), st.integers(1, 300), st.integers(1, 5))
def test_parts_cover_every_row_of_every_plane_once(count, rows, columns, threads):
    seen = np.zeros((count, rows), dtype=int)
    for first, last, top, bottom in _bounds(count, rows, columns, 4, threads):
        assert first < last
        assert top < bottom
        seen[first:last, top:bottom] += 1
    assert (seen == 1).all()


def test_intra_frames_go_together_or_not_alike(monkeypatch):
    frames = make_frames(VideoFormat(20, 14, "yuv420p"), "noise", 5)
    message = push(frames, "YUV", 8)
    # What goes together is part of the format: learned corrections depend on it.
    monkeypatch.setattr("flowarchive.models.form.BATCH_SAMPLES", 600)
    check_codec(frames, "YUV", 8)
    assert abs(push(frames, "YUV", 8).bits - message.bits) < 0.02 * message.bits


def test_the_past_makes_moving_frames_smaller():
    (first, *rest) = make_frames(VideoFormat(64, 48, "gray"), "still", 6)
    alone = push([first], "Y", 8).bits
    assert push([first, *rest], "Y", 8).bits < 5.5 * alone


# Damage


def test_a_damaged_message_is_an_error():
    video = VideoFormat(24, 18, "yuv420p")
    frames = noisy_frames(video, 3)
    chunk, _ = encode_chunk(frames, video, tiny())
    assert chunk.coding == Coding.MODEL
    random = np.random.default_rng(0)
    for _ in range(25):
        payload = bytearray(chunk.payload)
        bit = int(random.integers(8 * len(payload)))
        payload[bit // 8] ^= 1 << bit % 8
        with pytest.raises((CodingError, FormatError)):
            decode_chunk(replace(chunk, payload=bytes(payload)), video, tiny())
    for cut in (8, 16, len(chunk.payload) // 8 * 4):
        with pytest.raises((CodingError, FormatError)):
            decode_chunk(replace(chunk, payload=chunk.payload[:cut]), video, tiny())


@pytest.mark.parametrize("pix_fmt", ["gray16le", "yuv420p", "rgba"])
def test_random_bits_are_an_error_or_frames(pix_fmt):
    video = VideoFormat(13, 11, pix_fmt)
    frames = make_frames(video, "noise", 3)
    for seed in range(8):
        message = Message(1)
        random = np.random.default_rng(seed)
        message.push_uniform(random.integers(0, 1 << 32, 2000), 1 << 32)
        try:
            pop(message, frames, video.layout.components, video.layout.bit_depth)
        except (CodingError, FormatError):
            continue


def test_a_held_frame_is_predicted_from_the_last_one_alone(monkeypatch):
    held = [frame.planes for frame in tiny_cases.held(VideoFormat(24, 20, "yuv420p"))]
    components = [planes.split(group, "YUV", 8) for group in held]
    assert find_near(components) == [False, False, False, True, False, True]
    message = push(held, "YUV", 8)
    fields = Counted(monkeypatch)
    assert same(pop(message.copy(), held, "YUV", 8), held)
    plan = Plan(components, 8)
    moves = [plan.fields(t) is not None for t in range(6)]
    assert moves[3::2] == [True, True]
    assert fields.count == sum(moves) + sum(moves[t] and moves[t - 1] for t in (2, 4))
    assert SHIFTS.pop(message, 1) == [NEAR_FRAMES]
    assert SHIFTS.pop(message, 1) == [0]


def test_noise_and_a_flash_are_no_cuts_but_another_scene_is_one():
    """Under noise a still scene is nearer to its own neighbors than to the past."""
    random, size = np.random.default_rng(4), (96, 128)
    # A mosaic's noise: what differs from the neighbors stays where it is, light comes and goes.
    fixed = random.normal(0, 3, size)
    scenes = [128 + fixed + random.normal(0, 2, size) + 4 * (t % 2) for t in range(4)]
    slope = np.add.outer(*map(np.arange, size)) + random.normal(0, 2, size)
    for last, is_cut in ((slope, True), (scenes[0] + 40, False)):
        lumas = [np.rint(scene).astype(np.uint8) for scene in [*scenes, last]]
        plan = Plan([planes.split([luma], "Y", 8) for luma in lumas], 8)
        assert [plan.fields(t) is None for t in range(5)] == [True, False, False, False, is_cut]


class Counted:
    """How many fields of motion are popped."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        pop_field = motion.pop_field

        def popped(*arguments: Any) -> motion.Field:
            self.count += 1
            return pop_field(*arguments)

        monkeypatch.setattr(motion, "pop_field", popped)


def test_a_shift_beyond_the_samples_is_refused():
    frames = make_frames(VideoFormat(9, 9, "gray"), "noise", 1)
    message = push(frames, "Y", 8)
    SHIFTS.pop(message, 1)
    SHIFTS.push(message, [1])
    with pytest.raises(FormatError, match="1 of 8 bits"):
        pop(message, frames, "Y", 8)


# The model as a file


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video_model(tmp_path_factory.mktemp("video") / "tiny.safetensors")


def test_a_saved_model_comes_back(file):
    network = store.load_model(str(file)).network
    ours, theirs = network.tensors, tiny().tensors
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)
    assert network.known_answer() == tiny().known_answer() != tiny(1).known_answer()


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("inter"),
        lambda c: c.update(intra=7),
        lambda c: c["intra"].pop("chroma"),
        lambda c: c["intra"].update(luma={"width": 8}),
        lambda c: c["intra"]["luma"].update(width=257),
        lambda c: c["intra"]["luma"].update(width=-1),
        lambda c: c["intra"]["luma"].update(width=8.0),
        lambda c: c["intra"]["luma"].update(width=True),
        lambda c: c["inter"]["chroma"].update(blocks=17),
        lambda c: c["inter"]["chroma"].update(blocks="1"),
        lambda c: c["inter"]["chroma"].update(depth=1),
        lambda c: c["inter"].update(chroma=None),
        lambda c: c.update(more={}),
        lambda c: c["intra"].update(alpha=c["intra"]["luma"]),
        lambda c: c["intra"]["luma"].update(width=0),
    ],
)
def test_a_config_that_is_none_is_refused(change):
    config = copy.deepcopy(TINY_VIDEO)
    change(config)
    with pytest.raises(ModelError, match="config is malformed"):
        VideoModel.layout(config)


@pytest.mark.parametrize("config", [{}, [], None, 7, "x"])
def test_what_is_no_table_is_no_config(config):
    with pytest.raises(ModelError, match="config is malformed"):
        VideoModel.layout(config)


def changed(data: bytes, name: str, change: Callable[[Any], object]) -> bytes:
    """The file with a tensor changed, and the known answer it had."""
    tensors, end = load(data), 8 + int.from_bytes(data[:8], "little")
    change(tensors[name])
    return save(tensors, json.loads(data[8:end])["__metadata__"])


NETS = [f"{kind}_{part}" for kind in ("intra", "inter") for part in ("luma", "chroma")]
LAYERS = ["begin", "updates.0", "updates.1", "heads.0", "heads.1", "heads.2"]


@pytest.mark.parametrize("net", NETS)
def test_the_known_answer_notices_any_layer(net, file):
    for level in range(3):
        for layer in LAYERS:
            name = f"nets.{net}.{level}.{layer}.weight"
            data = changed(file.read_bytes(), name, lambda weight: weight.neg_())
            with pytest.raises(NotReproducible, match="known answer"):
                store.parse_model(data, "changed")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nets.intra_luma.0.begin.weight", -128),
        ("nets.intra_luma.0.begin.bias", 1 << 24),
        ("nets.inter_luma.0.heads.0.weight", 32767),
        ("nets.inter_chroma.2.begin.shift", 127),
        ("luma_filters", -32768),
        ("chroma_filters", -32768),
    ],
)
def test_tensors_out_of_range_are_refused(name, value, file):
    data = changed(file.read_bytes(), name, lambda tensor: tensor.fill_(value))
    with pytest.raises(ModelError):
        store.parse_model(data, "hostile")


def test_the_cost_is_that_of_the_layers():
    costs = tiny().macs_per_sample()
    assert costs.keys() == set(NETS)
    width, blocks, channels, anchors = 8, 1, 32, 5
    net = 9 * width * (channels + blocks * width + 2 * (width + UPDATE_CHANNELS))
    net += 3 * anchors * (3 * width + channels + 2 * UPDATE_CHANNELS)
    share = sum(0.25 ** (level + 1) for level in range(lattice.MAX_LEVELS))
    assert costs["inter_luma"] == round(net * share)
