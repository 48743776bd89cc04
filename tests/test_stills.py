"""Chunks of the `idf` model go through kernels on one side and the CPU on the other, to equal bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from interpreted import Runs
from models import RUNGS, make_model

from flowarchive import device, planes
from flowarchive.ans import Message
from flowarchive.errors import DeviceError, MessageExhausted
from flowarchive.models import stills
from flowarchive.models.answer import rehearse
from flowarchive.models.idf import IdfModel
from triton_kernels import coupling, rans, squeezed
from triton_kernels import stills as sessions
from triton_kernels.link import Traffic

LANES = 64
SMALL = {**RUNGS["rezero"], "width": 3, "couplings": 3}


@pytest.fixture
def kernels() -> Any:
    return device.select("cuda")


@pytest.fixture(scope="module")
def model() -> IdfModel:
    return make_model(5, **SMALL)


def frames(
    shapes: list[tuple[int, int]], letters: str, bits: int, count: int, seed: int
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
    "gray": ([(5, 7)], "Y", 8),
    "4:2:0": ([(7, 9), (4, 5), (4, 5)], "YUV", 8),
    "10 bits": ([(6, 6), (3, 6), (3, 6)], "YUV", 10),
    "RGB and alpha, 16 bits": ([(3, 4)] * 4, "RGBA", 16),
    "one sample": ([(1, 1)], "Y", 8),
    "nothing is padding": ([(8, 4)], "Y", 9),
}


@pytest.mark.parametrize("chunk", CHUNKS.values(), ids=CHUNKS)
def test_a_chunk_crosses_over_both_ways(chunk, model, kernels, monkeypatch):
    shapes, letters, bits = chunk
    given = frames(shapes, letters, bits, 2, seed=1)
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
    assert pushes.grids == [(1,)]
    parts = len(given[0].parts)
    steps = parts * (model.luma.config.levels * model.luma.config.couplings)
    assert len(couples.grids) == steps
    assert_same(list(model.pop_frames(message, 2, shapes, letters, bits)), given)
    assert message.is_drained
    assert len(couples.grids) == 3 * steps
    assert len(pops.grids) == 2 * parts * model.luma.config.levels
    model.use(None)
    assert_same(list(model.pop_frames(on_cpu, 2, shapes, letters, bits)), given)
    assert len(pops.grids) == 2 * parts * model.luma.config.levels
