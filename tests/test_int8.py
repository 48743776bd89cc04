"""Convolutions of bytes: the integers, whatever the shapes and the instruction set."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from models import scramble
from numpy.typing import NDArray
from processors import OLDER, call

from flowarchive import exact, int8, tiles
from flowarchive.errors import ModelError
from flowarchive.flows.phases import PhaseNet, Shape
from flowarchive.tiles import QUAD
from flowarchive.train.twins import PhaseTwin, frozen_tensors


def random_grid(random: np.random.Generator, *shape: int) -> int8.Bytes:
    """Bytes of all sizes, with the least and the greatest at the edges."""
    cells = int8.grid(*shape)
    inside = int8.inside(cells)
    inside[...] = random.integers(0, 256, inside.shape)
    inside[0, 0], inside[-1, -1], inside[:, :, -1] = 255, 0, 255
    return cells


def plain(
    weight: NDArray[Any], bias: NDArray[Any], shift: NDArray[Any], x: NDArray[Any]
) -> NDArray[Any]:
    """Convolve int64 [N, h, w, I], and round, by the rule's own words."""
    side = weight.shape[2]
    border = side // 2
    padded = np.pad(x.astype(np.int64), ((0, 0), (border, border), (border, border), (0, 0)))
    _, h, w, _ = x.shape
    total = np.zeros((*x.shape[:3], len(weight)), dtype=np.int64) + bias
    for i in range(side):
        for j in range(side):
            taps = weight[:, :, i, j].astype(np.int64)
            total += padded[:, i : i + h, j : j + w] @ taps.T
    return np.array(
        [
            [int(v) << -s if s <= 0 else (2 * int(v) + (1 << s)) >> (s + 1) for v in channel]
            for channel, s in zip(
                total.reshape(-1, len(weight)).T.tolist(), shift.tolist(), strict=True
            )
        ],
        dtype=object,
    ).T.reshape(total.shape)


SHAPES = [
    (1, 1, 1),
    (2, 4, 5),
    (1, 1, 2),
    (1, 2, 13),
    (1, 3, 15),
    (1, 2, 16),
    (3, 1, 17),
    (2, 2, 33),
]


@pytest.fixture(params=["amx", "vectors"])
def amx(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether AMX makes the sums of 3 x 3 kernels; vectors make them where it may not."""
    if request.param == "vectors":
        monkeypatch.setattr(int8, "has_amx", lambda: False)
    elif not tiles.has_amx():
        pytest.skip("needs AMX")
    return bool(request.param == "amx")


@pytest.mark.parametrize("wide", [False, True], ids=["bytes", "shorts"])
@pytest.mark.parametrize("side", [1, 3])
@pytest.mark.parametrize(
    ("outputs", "inputs", "first"),
    [
        (3, 2, None),
        (3, 5, None),
        (16, 32, None),
        (33, 19, 16),
        (64, 23, 7),
        (30, 64, 4),
        (40, 80, None),
        (32, 80, 64),
    ],
)
def test_a_convolution_of_bytes_is_the_integers(outputs, inputs, first, side, wide, amx):
    random = np.random.default_rng(outputs)
    size = outputs, inputs, side, side
    largest = min(16383 if wide else 127, (1 << 24) // (140 * inputs * side**2))
    weight = random.integers(-largest, largest + 1, size)
    weight[0], weight[1] = largest, -largest
    weight = weight.astype(np.int16 if wide else np.int8)
    bias = random.integers(-9999, 9999, outputs).astype(np.int32)
    shift = random.integers(-4, 15, outputs).astype(np.int8)
    shift[:3] = -32, 24, 0
    layer = int8.Convolution(weight, bias, shift, first)
    assert layer.amx == (amx and side == 3)
    for shape in SHAPES:
        parts = [inputs] if first is None else [first, inputs - first]
        grids = tuple(random_grid(random, *shape, part) for part in parts)
        cut = [int8.signed(g)[..., :part] for g, part in zip(grids, parts, strict=True)]
        expected = plain(weight, bias, shift, np.concatenate(cut, axis=3))
        if wide:
            found = int8.inside(layer.to_shorts(grids))[..., :outputs]
            assert np.array_equal(found, expected.clip(-32768, 32767))
            continue
        plus = random_grid(random, *shape, outputs)
        change = expected.clip(0, 127)
        for before, found in (
            (np.zeros(1, int), layer.to_bytes(grids)),
            (int8.signed(plus)[..., :outputs].astype(int), layer.to_bytes(grids, plus)),
        ):
            assert np.array_equal(
                int8.signed(found)[..., :outputs], (before + change).clip(max=127)
            )
            border = np.ones(found.shape, dtype=bool)
            int8.inside(border)[...] = False
            assert (found[border] == int8.ZERO).all()


@pytest.mark.parametrize("shift", range(-2, 25))
def test_halves_are_rounded_up_at_every_tie(shift, amx):
    # One input of 1 makes a sum the bias, and that a tie, a step below or a step above.
    half = 1 << shift >> 1 if shift > 0 else 0
    near = np.tile([-1, 0, 1], 8)
    steps = np.repeat(np.arange(-4, 4), 3) << max(min(shift, 20), 0)
    bias = (steps + half + near).astype(np.int32)
    shifts = np.full(24, shift, dtype=np.int8)
    x = int8.grid(1, 1, 1, 4)
    for kind in (np.int8, np.int16):
        weight = np.zeros((24, 4, 3, 3), dtype=kind)
        layer = int8.Convolution(weight, bias, shifts)
        assert layer.amx == amx
        expected = plain(weight, bias, shifts, np.zeros((1, 1, 1, 4)))
        if kind == np.int16:
            found = int8.inside(layer.to_shorts((x,)))[..., :24]
            assert np.array_equal(found, expected.clip(-32768, 32767))
        else:
            found = int8.signed(layer.to_bytes((x,)))
            assert np.array_equal(found, expected.clip(0, 127))


@pytest.mark.parametrize("shift", [-33, 25])
def test_shifts_out_of_their_range_are_refused(shift):
    zeros = np.zeros((1, 1, 1, 1), dtype=np.int8)
    with pytest.raises(ModelError, match="shift"):
        int8.Convolution(zeros, np.zeros(1, np.int32), np.full(1, shift, np.int8))


@pytest.mark.skipif(not tiles.has_amx(), reason="needs AMX")
@pytest.mark.parametrize("wide", [False, True], ids=["bytes", "shorts"])
@pytest.mark.parametrize("quads", range(1, 21))
def test_amx_makes_what_vectors_make(quads, wide, monkeypatch):
    random = np.random.default_rng(quads)
    inputs = QUAD * quads
    weight = random.integers(-100, 101, (48, inputs, 3, 3)).astype(np.int16 if wide else np.int8)
    bias = random.integers(-9999, 9999, 48).astype(np.int32)
    shift = random.integers(-2, 12, 48).astype(np.int8)
    for first in (None, *{QUAD, inputs - QUAD} - {0, inputs}):
        grids = tuple(
            random_grid(random, 1, 7, 45, part)
            for part in ([inputs] if first is None else [first, inputs - first])
        )
        found = []
        for amx in (True, False):
            monkeypatch.setattr(int8, "has_amx", lambda amx=amx: amx)
            layer = int8.Convolution(weight, bias, shift, first)
            assert layer.amx == amx
            found.append(int8.inside((layer.to_shorts if wide else layer.to_bytes)(grids)))
        assert np.array_equal(*found)


def test_amx_is_left_alone_where_linux_forbids_it(monkeypatch):
    class Forbidding:
        def __init__(self, name: None) -> None:
            pass

        def syscall(self, *numbers: object) -> int:
            return -1

    monkeypatch.setattr(tiles.ctypes, "CDLL", Forbidding)
    assert not tiles.has_amx.__wrapped__()
    monkeypatch.undo()
    monkeypatch.setattr(tiles.sys, "platform", "win32")
    assert not tiles.has_amx.__wrapped__()


def make_nets(shape: Shape, seed: int) -> tuple[PhaseTwin, PhaseNet]:
    twin = PhaseTwin(shape)
    scramble(twin, seed)
    exact.set_fake(twin, True)
    return twin, PhaseNet(shape, frozen_tensors(copy.deepcopy(twin)), "")


@pytest.mark.parametrize("config", [(32, 5, 32, 2), (16, 4, 64, 2), (16, 4, 16, 0), (32, 5, 6, 1)])
def test_phases_in_bytes_are_their_twins(config):
    shape, random = Shape(*config), np.random.default_rng(1)
    twin, net = make_nets(shape, 7)
    for count, h, w in ((1, 1, 1), (2, 4, 5), (1, 19, 23), (1, 70, 83)):
        state, known = None, None
        for phase, channels in enumerate(shape.seen):
            seen = random_grid(random, count, h, w, channels)
            state, out = net.advance(phase, seen, state)
            x = torch.from_numpy(int8.signed(seen)).permute(0, 3, 1, 2).float()
            with torch.no_grad():
                known = twin.advance(phase, x, known)
                expected = twin.heads[phase](torch.cat([known, x], 1)).permute(0, 2, 3, 1)
            assert expected.unique().numel() > 1
            found = int8.inside(out)[..., : expected.shape[3]]
            assert np.array_equal(found, expected.numpy())


def phases_hash() -> str:
    """Of a network's integers, on grids large and small."""
    shape, random = Shape(16, 4, 32, 1), np.random.default_rng(2)
    _, net = make_nets(shape, 3)
    digest = hashlib.sha256()
    for h, w in ((9, 11), (90, 101)):
        state = None
        for phase, channels in enumerate(shape.seen):
            state, out = net.advance(phase, random_grid(random, 1, h, w, channels), state)
            digest.update(int8.inside(out).tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize(("expected", "name", "features"), OLDER)
def test_older_processors_give_the_same(expected, name, features):
    assert call("test_int8.phases_hash", name, features) == [expected, phases_hash()]
