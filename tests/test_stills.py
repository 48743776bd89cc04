"""Chunks of the `idf` model go through kernels on one side, through the CPU on the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from interpreted import Runs
from models import RUNGS, make_model

from flowarchive import device, planes, store
from flowarchive.ans import Message
from flowarchive.errors import DeviceError, MessageExhausted
from flowarchive.models import stills
from flowarchive.models.idf import IdfModel
from triton_kernels import coupling, lattice, rans, squeezed
from triton_kernels import stills as sessions
from triton_kernels.link import Traffic

LANES = 64


@pytest.fixture
def kernels() -> Any:
    return device.select("cuda")


@pytest.fixture(scope="module")
def model() -> IdfModel:
    return make_model(5, **RUNGS["rezero"], width=3, couplings=1)


def frames(
    shapes: list[tuple[int, int]], letters: str, bits: int, count: int, seed: int = 1
) -> list[planes.Components]:
    """Noise that reaches both ends of the samples' range."""
    random, top = np.random.default_rng(seed), (1 << bits) - 1
    done = []
    for _ in range(count):
        noise = [random.normal(top / 2, top / 3, shape).round().clip(0, top) for shape in shapes]
        done.append(planes.split([plane.astype(np.uint16) for plane in noise], letters, bits))
    return done


def assert_same(ours: list[planes.Components], theirs: list[planes.Components]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert all(map(np.array_equal, one.parts, other.parts))


CHUNKS = {
    "4:2:0": ([(7, 9), (4, 5), (4, 5)], "YUV", 8, 2),
    "10 bits": ([(6, 6), (3, 6), (3, 6)], "YUV", 10, 1),
    "RGB and alpha, 16 bits": ([(3, 4)] * 4, "RGBA", 16, 1),
    "one sample": ([(1, 1)], "Y", 8, 2),
    "nothing is padding": ([(8, 4)], "Y", 9, 1),
}


@pytest.mark.parametrize("chunk", CHUNKS.values(), ids=CHUNKS)
def test_a_chunk_crosses_over_both_ways(chunk, model, kernels, monkeypatch):
    """What one path packs the other unpacks, to equal bytes."""
    shapes, letters, bits, count = chunk
    given = frames(shapes, letters, bits, count)
    model.use(None)
    on_cpu = Message(LANES)
    theirs = model.push_frames(on_cpu, given, letters, bits)
    couples = Runs(monkeypatch, coupling, "couple_kernel")
    pushes = Runs(monkeypatch, rans, "push_kernel")
    pops = Runs(monkeypatch, rans, "pop_symbols_kernel")
    model.use(kernels)
    message = Message(LANES)
    ours = model.push_frames(message, given, letters, bits)
    assert message.to_bytes() == on_cpu.to_bytes()
    assert ours.ideal_bits == pytest.approx(theirs.ideal_bits)
    assert ours.statement() is None
    assert pushes.grids == [(1,)]
    steps = len(given[0].parts) * model.luma.config.levels
    assert len(couples.grids) == steps  # one coupling a level, for all frames
    assert_same(list(model.pop_frames(message, count, shapes, letters, bits)), given)
    assert message.is_drained
    assert len(couples.grids) == (1 + count) * steps
    assert len(pops.grids) == count * steps
    model.use(None)
    assert_same(list(model.pop_frames(on_cpu, count, shapes, letters, bits)), given)
    assert len(pops.grids) == count * steps


def test_chunks_go_together(model, kernels, monkeypatch):
    """On messages that hold something: samples travel once, whatever goes through at a time."""
    shapes = [(5, 6), (3, 3), (3, 3)]
    given = [frames(shapes, "YUV", 8, 2, seed) for seed in (2, 3)]
    model.use(None)
    on_cpu = [Message(LANES) for _ in given]
    for number, (message, chunk) in enumerate(zip(on_cpu, given, strict=True)):
        message.push_uniform(np.arange(300 * number), 1000)
        model.push_frames(message, chunk, "YUV", 8)
    monkeypatch.setattr(sessions, "TOGETHER", 3 * 8 * 8)
    pushes = Runs(monkeypatch, rans, "push_kernel")
    pops = Runs(monkeypatch, rans, "pop_symbols_kernel")
    folds = Runs(monkeypatch, lattice, "fold_kernel")
    model.use(kernels)
    messages = [Message(LANES) for _ in given]
    for number, message in enumerate(messages):
        message.push_uniform(np.arange(300 * number), 1000)
    before = [message.to_bytes() for message in messages]
    parts = model._shapes(given[0][0], 8)
    kernels.link.traffic = traffic = Traffic()
    accounts = model._device.push_chunks(messages, given, parts, 8)
    assert [message.to_bytes() for message in messages] == [m.to_bytes() for m in on_cpu]
    assert all(account.ideal_bits > 0 for account in accounts)
    assert pushes.grids == [(2,)]
    assert [grid[1] for grid in folds.grids] == [4]  # chroma's planes, two at 4x4, are few
    assert (traffic.uploads, traffic.downloads) == (1, 2)
    samples = sum(h * w for h, w in shapes) * 2 * 2
    assert traffic.sent < 2 * samples + 4 * 300 + 8192

    kernels.link.traffic = traffic = Traffic()
    found = model._device.pop_chunks(messages, 2, parts, 8)
    assert [message.to_bytes() for message in messages] == before
    for ours, theirs in zip(found, given, strict=True):
        assert_same(ours, theirs)
    assert (traffic.uploads, traffic.downloads) == (1, 1)
    assert set(pops.grids) == {(2,)}


@pytest.mark.parametrize("bits", [12, 15])
def test_bits_that_no_encoder_has_written(kernels, bits):
    """Noise under a prior that takes any symbol: samples far outside their range, the CPU's."""
    model = make_model(5, **RUNGS["idf"], width=2, levels=1, couplings=1)
    model.luma.levels[0].prior.scale.fill_(191)
    random = np.random.default_rng(bits)
    heads = random.integers(1 << 31, 1 << 63, LANES, dtype=np.uint64).astype("<u8").tobytes()
    data = heads + random.bytes(4 * 200)
    found, left = [], []
    for place in (None, kernels):
        model.use(place)
        message = Message.from_bytes(data, LANES)
        found.append(list(model.pop_frames(message, 1, [(6, 7)], "Y", bits)))
        left.append(message.to_bytes())
    assert_same(*found)
    assert left[0] == left[1]
    assert np.abs(found[0][0].luma).max() > 5 << (bits - 2)


def test_a_message_that_is_too_short_stays_what_it_is(model, kernels):
    model.use(kernels)
    message = Message(LANES)
    with pytest.raises(MessageExhausted):
        list(model.pop_frames(message, 1, [(9, 9)], "Y", 8))
    assert message.to_bytes() == Message(LANES).to_bytes()


def test_frames_that_are_too_large_are_the_cpus(model, kernels, monkeypatch):
    """Of 8x8 samples, padded, eight chunks' networks see 6 bytes at every fourth."""
    monkeypatch.setattr(stills, "MOST_BYTES", 8 * 16 * 6 - 1)
    pushes = Runs(monkeypatch, rans, "push_kernel")
    given = frames([(5, 6)], "Y", 8, 1)
    model.use(kernels)
    message = Message(LANES)
    model.push_frames(message, given, "Y", 8)
    assert_same(list(model.pop_frames(message, 1, [(5, 6)], "Y", 8)), given)
    assert not pushes.grids
    monkeypatch.setattr(stills, "MOST_BYTES", 8 * 16 * 6)
    assert model._device.holds(model._shapes(given[0], 8))


def stored(model: IdfModel, kernels: Any, monkeypatch: Any) -> store.StoredModel:
    """A model as out of a file, and nothing but the interpreter to place it on."""
    answer = {"known_answer": model.known_answer()}
    monkeypatch.setattr(store, "_metadata", lambda data: answer)
    monkeypatch.setattr(store, "select", lambda name: kernels)
    return store.StoredModel("tiny", b"", model)


def test_a_model_is_placed_once_it_has_given_its_answer(kernels, monkeypatch):
    """Its known answer and a rehearsed chunk come out of kernels; without them it is refused."""
    model = make_model(1, **RUNGS["idf"], width=2, couplings=1, levels=1)
    runs = [
        Runs(monkeypatch, squeezed, "foretell_kernel"),
        Runs(monkeypatch, squeezed, "symbols_kernel"),
        Runs(monkeypatch, rans, "push_kernel"),
    ]
    one = stored(model, kernels, monkeypatch)
    assert store.place(one, "cuda") == kernels.name
    assert model._device is not None
    assert [bool(run.grids) for run in runs] == [False, True, True]  # of one level, all is top


def test_a_model_that_answers_otherwise_there_is_not_placed(kernels, monkeypatch, caplog):
    model = make_model(1, **RUNGS["idf"], width=2, couplings=1, levels=1)
    one = stored(model, kernels, monkeypatch)
    kernels.answer = lambda flow, samples, context: [[samples]]
    assert store.place(one, "auto") == "cpu"
    assert "its known answer on Triton's interpreter; it runs on the CPU" in caplog.text
    assert model._device is None


def test_a_model_with_norms_is_refused(kernels, monkeypatch, caplog):
    """Their sums are a whole plane's, which no kernel adds up: silently the CPU for `auto`."""
    one = stored(make_model(1, **RUNGS["norm"], levels=1), kernels, monkeypatch)
    assert store.place(one, "auto") == "cpu"
    assert not caplog.messages
    with pytest.raises(DeviceError, match="has no kernels"):
        store.place(one, "cuda")
