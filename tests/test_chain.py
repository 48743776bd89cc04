"""The chain as a codec: flows that borrow bits, and give back every one of them."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chains import (
    RICH_CHAIN,
    TINY_CHAIN,
    chain_tensors,
    make_chain_model,
    without_heads,
    write_chain_model,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_video import Group, changed, make_frames, same

import flowarchive
from flowarchive import planes, store
from flowarchive.account import Account
from flowarchive.ans import Message
from flowarchive.archive.chunks import decode_chunk, encode_chunk
from flowarchive.bitsback import Gaussian, LocalCoder, Uniform
from flowarchive.chunk import Coding
from flowarchive.entropy import LogisticMixture
from flowarchive.errors import CodingError, FlowArchiveError, ModelError, NotReproducible
from flowarchive.flows.couplings import AFFINE, Steering
from flowarchive.flows.maps import RANGE, SCALE_MAX, SHIFT_MAX
from flowarchive.flows.phase import PhaseFlow
from flowarchive.frames import Frame, VideoFormat
from flowarchive.models.chain import ChainModel
from flowarchive.models.video import VideoModel

tiny = functools.cache(make_chain_model)
rich = functools.cache(functools.partial(make_chain_model, config=RICH_CHAIN))
FORMATS = ["gray", "gray10le", "yuv420p", "yuv420p10le", "yuv410p", "rgb24", "gbrp10le", "yuva420p"]
SIZES = [(34, 26), (21, 13), (9, 10), (5, 3), (2, 2), (1, 7)]


def idle() -> ChainModel:
    """The model whose couplings do nothing."""
    return ChainModel(TINY_CHAIN, without_heads(chain_tensors()))


def moving_frames(video: VideoFormat, count: int) -> list[Frame]:
    """Frames that these models make smaller than zstd does."""
    return [Frame(tuple(group), t) for t, group in enumerate(make_frames(video, "moving", count))]


def random_message(seed: int, words: int, lanes: int = 1) -> Message:
    """A message of random bits."""
    random = np.random.default_rng(seed)
    message = Message(lanes)
    message.push_uniform(random.integers(0, 1 << 32, words), 1 << 32)
    return message


def push(
    message: Message, frames: list[Group], letters: str, bits: int, threads: int = 1
) -> Account:
    components = [planes.split(group, letters, bits) for group in frames]
    return tiny().push_frames(message, components, letters, bits, threads)


def pop(
    message: Message, frames: list[Group], letters: str, bits: int, threads: int = 1
) -> list[Any]:
    shapes, dtype = [plane.shape for plane in frames[0]], frames[0][0].dtype
    popped = tiny().pop_frames(message, len(frames), shapes, letters, bits, threads)
    return [planes.merge(components, letters, bits, dtype) for components in popped]


def check_codec(frames: list[Group], letters: str, bits: int, message: Message) -> Account:
    """Frames come back, what lay under them is as it was, and the account adds up."""
    before, held = message.to_bytes(), message.bits
    account = push(message, frames, letters, bits)
    grown = message.bits - held
    assert abs(grown - account.ideal_bits) <= 0.001 * account.ideal_bits + 32 * message.lanes
    statement = account.statement()
    if statement is not None:
        assert abs(statement.net_bits - grown) <= 1
        assert abs(statement.ideal_bits - account.ideal_bits) <= len(frames)
        assert 0 < statement.peak <= statement.seed
    assert same(pop(message, frames, letters, bits), frames)
    assert message.to_bytes() == before
    return account


# Frames


@pytest.mark.parametrize("pix_fmt", FORMATS)
def test_frames_of_every_format_and_size_come_back(pix_fmt):
    for number, (height, width) in enumerate(SIZES):
        video = VideoFormat(width, height, pix_fmt)
        frames = make_frames(video, "moving", 1 + (number + FORMATS.index(pix_fmt)) % 6)
        lanes = 1 << number % 3
        check_codec(frames, video.layout.components, video.layout.bit_depth, Message(lanes))


@pytest.mark.parametrize("content", ["noise", "extremes", "still", "cuts"])
def test_every_content_comes_back(content):
    video = VideoFormat(37, 26, "yuv420p")
    frames = make_frames(video, content, 4)
    check_codec(frames, "YUV", 8, random_message(0, 3000))


@settings(max_examples=8)
@given(
    st.sampled_from(FORMATS),
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    st.sampled_from(["moving", "noise", "cuts"]),
    st.integers(1, 4),
    st.integers(0, 1 << 20),
    st.integers(0, 3000),
)
def test_any_frames_on_any_message_come_back(pix_fmt, size, content, count, seed, words):
    video = VideoFormat(*size, pix_fmt)
    frames = make_frames(video, content, count, seed)
    message = random_message(seed, words, 1 << seed % 4)
    check_codec(frames, video.layout.components, video.layout.bit_depth, message)


@pytest.mark.parametrize(("pix_fmt", "count"), [("yuv420p", 3), ("gray", 2)])
def test_the_bits_do_not_depend_on_the_threads(pix_fmt, count):
    video = VideoFormat(180, 150, pix_fmt)
    letters, frames = video.layout.components, make_frames(video, "moving", count)
    one, two = Message(4), Message(4)
    assert push(one, frames, letters, 8, 1).statement() is not None
    push(two, frames, letters, 8, 2)
    assert one.to_bytes() == two.to_bytes()
    for message, threads in ((one, 2), (two, 1)):
        assert same(pop(message, frames, letters, 8, threads), frames)
        assert message.is_drained


# Where the bits come from


def test_the_tail_of_a_chunk_is_the_supply_of_the_rest():
    frames = make_frames(VideoFormat(64, 48, "gray"), "moving", 6)
    statement = check_codec(frames, "Y", 8, Message(1)).statement()
    assert statement is not None
    *borrowers, last = statement.frames
    assert statement.seed > 0.5 * last.net, "the last frame has to be there first"
    assert last.integer > 0.5 * last.net
    assert all(frame.popped > 0 for frame in borrowers)
    # Most of the others have little more of the integer family than motion and coarse levels.
    assert sorted(frame.integer / frame.net for frame in borrowers)[2] < 0.1
    assert abs(statement.overhead_bits) <= 16


def test_bits_underneath_let_the_last_phase_borrow():
    frames = make_frames(VideoFormat(64, 48, "gray"), "moving", 2)
    poor, rich = Message(1), random_message(1, 20000)
    held = rich.bits
    alone = check_codec(frames, "Y", 8, poor).statement()
    lent = check_codec(frames, "Y", 8, rich).statement()
    assert alone is not None
    assert lent is not None
    assert alone.seed > 0.2 * alone.net_bits
    assert lent.seed - held <= 1 + 32, "nothing is pushed before the flow borrows"
    assert lent.net_bits < alone.net_bits
    assert all(frame.popped > 0 for frame in lent.frames)


def test_a_flow_that_is_longer_is_not_used():
    components = [
        planes.split(group, "Y", 8)
        for group in make_frames(VideoFormat(40, 30, "gray"), "still", 2)
    ]
    bad = make_chain_model(gain=-24)
    plain = VideoModel(TINY_CHAIN["video"], bad.tensors)
    ours, theirs = random_message(2, 9000), random_message(2, 9000)
    account = bad.push_frames(ours, components, "Y", 8)
    plain.push_frames(theirs, components, "Y", 8)
    assert account.statement() is None
    # Each phase of the two finest levels of two frames says so in a bit.
    assert abs(ours.bits - theirs.bits - 2 * 2 * 3) < 0.1


def test_couplings_that_do_nothing_cost_what_mixtures_say():
    model = idle()
    random = np.random.default_rng(0)
    frames = [planes.split([random.integers(0, 256, (30, 42)).astype(np.uint8)], "Y", 8)]
    message = random_message(3, 9000)
    account = model.push_frames(message, frames, "Y", 8)
    assert account.statement() is None, "nothing is won"
    for coder in (Uniform(), Gaussian(96)):
        found = check_flow(model, coder, (1, 24, 31), 4)
        slack = 2 if isinstance(coder, Uniform) else 0.02 * 24 * 31
        assert abs(found) <= slack


# One phase


def make_phase(
    model: ChainModel, shape: tuple[int, int, int], seed: int, kind: str = "inter_luma"
) -> tuple[LogisticMixture, np.ndarray, tuple[np.ndarray, ...], Steering]:
    """Symbols of a phase, their mixtures, and what steers its flow."""
    random = np.random.default_rng(seed)
    count = int(np.prod(shape))
    mean = random.integers(-20000, 20000, (count, 2)).astype(np.int32)
    scale = random.integers(30, 90, (count, 2)).astype(np.int32)
    weight = np.full((count, 2), 2048, np.int32)
    symbols = np.clip(mean[:, 0] // 256 + random.normal(0, 6, count), -128, 127).astype(np.int32)
    couplings = model.couplings[kind][seed % 3]
    states = random.integers(128, 256, (*shape, couplings.shape.state)).astype(np.uint8)
    steering = Steering(couplings, couplings.context(states), shape)
    return LogisticMixture(-128, 127, 24), symbols, (mean, scale, weight), steering


def check_flow(
    model: ChainModel, coder: LocalCoder, shape: tuple[int, int, int], seed: int, lanes: int = 1
) -> float:
    """Push and pop undo each other both ways; returns what was spent beyond the mixtures' bits."""
    mixture, symbols, parameters, steering = make_phase(model, shape, seed)
    start, freq = mixture.interval(symbols, *parameters)
    flow = PhaseFlow(mixture.precision, 9, coder)
    found: list[Any] = []

    def find(u: np.ndarray, part: slice) -> Any:
        known = tuple(parameter[part] for parameter in parameters)
        found.append(mixture.lookup(u, *known))
        return mixture.interval(found[-1], *known)

    message = random_message(seed, 2 * symbols.size + 200, lanes)
    before, held = message.to_bytes(), message.bits
    cost = flow.push(message, start, freq, steering)
    grown = message.bits - held
    assert (
        abs(grown - cost.ideal) <= (0.02 if isinstance(coder, Gaussian) else 1e-3) * freq.size + 1
    )
    if not steering.couplings.shape.tilted:
        assert cost.popped == pytest.approx(np.log2(freq).sum())
    assert held - cost.popped - 64 <= cost.lowest <= held
    flow.pop(message, find, steering)
    assert message.to_bytes() == before
    assert np.array_equal(np.concatenate(found), symbols)
    # From any bits: what they say are symbols, and pushing these gives the bits back.
    found.clear()
    flow.pop(message, find, steering)
    start, freq = mixture.interval(np.concatenate(found), *parameters)
    flow.push(message, start, freq, steering)
    assert message.to_bytes() == before
    return grown - mixture.bits(symbols, *parameters)


@pytest.mark.parametrize("model", [tiny, rich], ids=["tiny", "rich"])
@pytest.mark.parametrize("coder", [Uniform(), Gaussian(64)])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 3), (3, 2, 1), (1, 9, 8), (4, 7, 6)])
def test_a_flow_restores_symbols_and_bits(shape, coder, model):
    for seed in range(3):
        check_flow(model(), coder, shape, seed, 1 << seed)


def test_frames_by_layers_of_every_kind_come_back():
    video = VideoFormat(37, 26, "yuv420p")
    components = [planes.split(group, "YUV", 8) for group in make_frames(video, "noise", 2)]
    message = random_message(0, 9000)
    before = message.to_bytes()
    account = rich().push_frames(message, components, "YUV", 8)
    assert account.statement() is not None
    back = rich().pop_frames(message, 2, video.plane_shapes, "YUV", 8)
    for ours, theirs in zip(back, components, strict=True):
        assert all(map(np.array_equal, ours.parts, theirs.parts))
    assert message.to_bytes() == before


def test_a_flow_of_many_blocks_restores_symbols_and_bits():
    check_flow(tiny(), Uniform(), (2, 70, 65), 5, 16)


def test_a_flow_without_bits_is_an_error():
    mixture, symbols, parameters, steering = make_phase(tiny(), (1, 8, 8), 1)
    start, freq = mixture.interval(symbols, *parameters)
    with pytest.raises(CodingError):
        PhaseFlow(24, 9, Uniform()).push(random_message(0, 3), start, freq, steering)


@pytest.mark.parametrize("kind", ["intra_luma", "inter_chroma"])
def test_steering_is_within_its_bounds_and_of_parts_that_stay(kind):
    strong = chain_tensors()
    for name, values in strong.items():
        if ".head." in name and name.endswith("weight"):
            values[:] = np.sign(values) * 900
    model = ChainModel(TINY_CHAIN, strong)
    random = np.random.default_rng(0)
    for couplings in model.couplings[kind]:
        states = random.integers(128, 256, (2, 7, 9, couplings.shape.state)).astype(np.uint8)
        context = couplings.context(states)
        y = random.integers(0, 2 * RANGE << 9, (2, 7, 9))
        for layer, shape in zip(couplings.layers, AFFINE, strict=True):
            shifts, scales = found = layer.answer(y, context, 9)
            assert shifts.shape == scales.shape == (len(shape.moved), 2, 4, 5)
            assert np.abs(shifts).max() == SHIFT_MAX << 9
            assert np.abs(scales).max() == SCALE_MAX
            for part in shape.moved:  # what moves steers nothing
                y[:, part // 2 :: 2, part % 2 :: 2] = 0
            assert np.array_equal(layer.answer(y, context, 9), found)


# In archives


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chain_model(tmp_path_factory.mktemp("chain") / "tiny.safetensors")


def test_a_chunk_keeps_its_account():
    video = VideoFormat(48, 34, "yuv420p")
    frames = moving_frames(video, 4)
    chunk, ideal = encode_chunk(frames, video, tiny())
    assert chunk.coding == Coding.MODEL
    assert chunk.account is not None
    held = Message.from_bytes(chunk.payload, chunk.lanes).bits
    assert abs(chunk.account.net_bits - held) <= 1
    assert abs(chunk.account.ideal_bits - ideal) <= len(frames)
    back = decode_chunk(chunk, video, tiny())
    for ours, theirs in zip(back, frames, strict=True):
        assert all(map(np.array_equal, ours.planes, theirs.planes))


def test_an_archive_comes_back_and_shows_its_account(file, tmp_path):
    video = VideoFormat(48, 34, "yuv420p")
    frames = moving_frames(video, 7)
    path = tmp_path / "chain.flow"
    with flowarchive.create(path, video, model=str(file), chunk_frames=4, jobs=1) as archive:
        for frame in frames:
            archive.append(frame)
    assert flowarchive.verify(path, jobs=1).frames == 7
    with flowarchive.open(path, jobs=1) as archive:
        for ours, theirs in zip(archive, frames, strict=True):
            assert all(map(np.array_equal, ours.planes, theirs.planes))
        assert all(map(np.array_equal, archive[5].planes, frames[5].planes))
    facts = flowarchive.info(path)
    assert facts["account"]["chunks"] == 2
    assert facts["account"]["popped"] > 0
    assert abs(facts["account"]["overhead"]) < 0.01 * facts["account"]["ideal"]


def test_the_command_line_packs_and_unpacks(file, tmp_path, run_cli):
    video = VideoFormat(40, 26, "gray")
    frames = moving_frames(video, 3)
    np.save(tmp_path / "frames.npy", np.stack([frame.planes[0] for frame in frames]))
    run = run_cli("pack", "frames.npy", "-o", "a.flow", "--model", file)
    assert run.returncode == 0, run.stderr
    assert run_cli("verify", "a.flow").returncode == 0
    facts = json.loads(run_cli("info", "--json", "a.flow").stdout)
    assert facts["chunks"][0]["account"]["popped"] > 0
    assert run_cli("unpack", "a.flow", "-o", "back.npy").returncode == 0
    back = np.load(tmp_path / "back.npy")
    assert np.array_equal(back, np.load(tmp_path / "frames.npy"))


def test_every_truncation_is_refused(file, tmp_path):
    video = VideoFormat(16, 12, "gray")
    path, cut = tmp_path / "small.flow", tmp_path / "cut.flow"
    with flowarchive.create(path, video, model=str(file), jobs=1, embed_model="never") as archive:
        for frame in moving_frames(video, 3):
            archive.append(frame)
    data = path.read_bytes()
    for size in range(len(data)):
        cut.write_bytes(data[:size])
        with pytest.raises(FlowArchiveError):
            flowarchive.verify(cut, model_file=file, jobs=1)


def test_every_cut_of_a_message_is_refused():
    video = VideoFormat(16, 12, "gray")
    chunk, _ = encode_chunk(moving_frames(video, 3), video, tiny())
    assert chunk.account is not None
    for size in range(8, len(chunk.payload), 4):
        cut = Message.from_bytes(chunk.payload[:size], 1)
        try:
            list(tiny().pop_frames(cut, 3, video.plane_shapes, "Y", 8))
        except CodingError:
            continue
        assert not cut.is_drained


# The model as a file


def test_a_saved_model_comes_back(file):
    network = store.load_model(str(file)).network
    ours, theirs = network.tensors, tiny().tensors
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)
    assert network.known_answer() == tiny().known_answer() != idle().known_answer()


CHANGES: list[Callable[[Any], object]] = [
    lambda c: c.pop("video"),
    lambda c: c.pop("flow"),
    lambda c: c.update(more=1),
    lambda c: c.update(flow=[1, 2, 3]),
    lambda c: c.update(video=None),
    lambda c: c["video"].pop("intra"),
    lambda c: c["flow"].pop("width"),
    lambda c: c["flow"].update(depth=2),
    lambda c: c["flow"].update(context=0),
    lambda c: c["flow"].update(context=257),
    lambda c: c["flow"].update(width=True),
    lambda c: c["flow"].update(width=3.0),
    lambda c: c["flow"].update(fineness=3),
    lambda c: c["flow"].update(fineness=15),
    lambda c: c["flow"].update(fineness="9"),
    lambda c: c["flow"].update(tilted=1),
    lambda c: c["flow"].update(layers=[]),
    lambda c: c["flow"].update(layers=[{"kind": "norm"}] * 17),
    *(
        lambda c, layer=layer: c["flow"].update(layers=[layer])
        for layer in (
            7,
            {},
            {"kind": "act"},
            {"kind": "norm", "moved": [1]},
            {"kind": "norm", "depth": 1},
            {"kind": "mix"},
            {"kind": "mix", "order": [0, 1, 2, 2]},
            {"kind": "mix", "order": [0, 1, 2]},
            {"kind": "mix", "order": [0, 1, 2, 3], "components": 1},
            {"kind": "coupling"},
            {"kind": "coupling", "moved": [4]},
            {"kind": "coupling", "moved": [2, 1]},
            {"kind": "coupling", "moved": [1, 1]},
            {"kind": "coupling", "moved": [True]},
            {"kind": "coupling", "moved": [1], "order": [0, 1, 2, 3]},
            {"kind": "coupling", "moved": [1], "components": 9},
            {"kind": "coupling", "moved": [1], "components": -1},
        )
    ),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_config_that_is_none_is_refused(change):
    config = copy.deepcopy(TINY_CHAIN)
    change(config)
    with pytest.raises(ModelError, match="config is malformed"):
        ChainModel.layout(config)
    with pytest.raises(ModelError, match="config is malformed"):
        ChainModel(config, tiny().tensors)


@pytest.mark.parametrize("config", [{}, [], None, 7, "x"])
def test_what_is_no_table_is_no_config(config):
    with pytest.raises(ModelError, match="config is malformed"):
        ChainModel.layout(config)


LAYERS = ["context", *(f"{part}.{n}" for n in range(3) for part in ("begin", "block", "head"))]


@pytest.mark.parametrize("kind", ["intra_luma", "intra_chroma", "inter_luma", "inter_chroma"])
def test_the_known_answer_notices_any_layer(kind, file):
    for number, layer in enumerate(LAYERS):
        name = f"flows.{kind}.{number % 3}.{layer}.weight"
        data = changed(file.read_bytes(), name, lambda weight: weight.neg_())
        with pytest.raises(NotReproducible, match="known answer"):
            store.parse_model(data, "changed")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flows.intra_luma.0.context.weight", -128),
        ("flows.intra_luma.0.begin.1.bias", 1 << 24),
        ("flows.inter_luma.2.head.0.weight", 32767),
        ("flows.inter_chroma.1.block.2.shift", 127),
    ],
)
def test_tensors_out_of_range_are_refused(name, value, file):
    data = changed(file.read_bytes(), name, lambda tensor: tensor.fill_(value))
    with pytest.raises(ModelError):
        store.parse_model(data, "hostile")


def test_the_cost_is_that_of_the_layers():
    plain = VideoModel(TINY_CHAIN["video"], tiny().tensors).macs_per_sample()
    costs = tiny().macs_per_sample()
    state, context, width = 8, 3, 5
    square = context * 4 * state + 3 * width * (9 * (4 + context) + width) + 8 * (width + 4)
    # A phase has a square for every 16 samples of its level's plane.
    share = 1 / 16 + 1 / 64
    assert costs["inter_luma"] == plain["inter_luma"] + round(3 * square * share)
