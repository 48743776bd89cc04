"""Mixes, couplings by mixtures and places that lean are on a device what they are on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from interpreted import CPU, POISON, Runs, assert_same, poisoned, random_message, tables, upload
from test_kernels_flow import ALL, SHAPES, TURN, grid, on_grid, some
from torch import Tensor

from flowarchive.ans import Message
from flowarchive.bitsback import TILT_MAX, Map, Uniform, tilt_starts
from flowarchive.flows import layers as on_cpu
from flowarchive.flows.maps import (
    MIXTURE_MEAN_MAX,
    MIXTURE_SCALE_MAX,
    Mixture,
    mixture_curve,
    mixture_weights,
)
from flowarchive.lengths import log2_sum
from flowarchive.models.mixtures import weight_table
from triton_kernels import dequantize, layers, mixture, rans, steps, tilts

Find = Callable[[Tensor, bool], Tensor]
"""Gives the pieces of samples, forward or back."""


KINDS = [(4, 2), (10, 3), (14, 8), (10, 1), (4, 5)]
"""Fineness and components, one of each for a shape."""


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch) -> None:
    """As few as there can be; and room for pieces holds what no kernel would write."""
    room = layers._pieces
    monkeypatch.setattr(layers, "BLOCK", 512)
    monkeypatch.setattr(
        layers, "_pieces", lambda y, part: poisoned(torch.int32, *room(y, part).shape)
    )


def mixture_tables() -> layers.Tables:
    knots, images, _, _ = mixture_curve().tables
    weights = torch.from_numpy(weight_table().copy())
    return layers.Tables(*tables(), weights, *map(torch.from_numpy, (knots, images)))


def to_and_fro(y: np.ndarray, part: int, lanes: int, find: Find, every: list[Map]) -> None:
    """Move a part of two messages' planes there and back, as the CPU does along their maps."""
    random, count = np.random.default_rng(part), y[0].size
    messages = some(random, lanes, 2 * count + 4)
    before = [message.to_bytes() for message in messages]
    uploaded, moved = upload(messages, 2 * count), torch.from_numpy(y.copy())
    steps, shrunk, table = torch.full((3,), 7), [0.0] * 3, grid(10)
    layers.move(uploaded, steps, moved, find(moved, True), part, TURN, table, forward=True)
    expected = y.copy()
    for n, (own, message, map) in enumerate(zip(expected, messages[::2], every, strict=True)):
        place = on_cpu.part_of(own, part)
        pieces = map.segments(place.reshape(-1))
        shrunk[2 * n] = log2_sum(pieces.w) - log2_sum(pieces.v)
        place[:] = Uniform().forward(message, place.reshape(-1), map).reshape(place.shape)
    assert np.array_equal(moved.numpy(), expected)
    assert_same(uploaded, messages)
    assert ((steps.numpy() - 7) / (1 << 20)).tolist() == shrunk
    lowest = uploaded.size.clone()
    layers.move(uploaded, lowest, moved, find(moved, False), part, TURN, table, forward=False)
    assert (lowest <= uploaded.size).all()
    assert np.array_equal(moved.numpy(), y)
    assert_same(uploaded, [Message.from_bytes(data, lanes) for data in before])


def mixture_of(outputs: np.ndarray, components: int, fineness: int) -> Mixture:
    """The CPU's map of outputs [..., 3K]."""
    logs, mean, width = outputs.astype(np.int64).reshape(-1, 3, components).swapaxes(0, 1)
    return Mixture(
        mixture_weights(logs),
        mean.clip(-MIXTURE_MEAN_MAX, MIXTURE_MEAN_MAX),
        width.clip(-MIXTURE_SCALE_MAX, MIXTURE_SCALE_MAX),
        fineness,
    )


@pytest.mark.parametrize(
    ("shape", "lanes", "fineness", "components"),
    [(*given, *kind) for given, kind in zip(SHAPES, KINDS, strict=True)],
)
def test_parts_move_by_mixtures(shape, lanes, fineness, components, monkeypatch):
    """Logarithms of weights that are equal, and parameters beyond the ends of their ranges."""
    finds = Runs(monkeypatch, layers, "mixture_kernel")
    moves = Runs(monkeypatch, layers, "move_kernel")
    random = np.random.default_rng(shape[0])
    outputs = random.integers(-40, 41, (4, (shape[0] + 1) // 2, (shape[1] + 1) // 2, 9, components))
    outputs[..., 3:6, :] *= 40
    wild = random.random(outputs.shape) < 0.2
    outputs[wild] = random.choice([-32768, 32767, -2048, 2047, 16, -17], int(wild.sum()))
    outputs[:, :, ::3, :3] = random.choice([-32768, 7])
    # Parameters of a part stand as far from each other as there are parts that move.
    said = outputs.reshape(*outputs.shape[:3], 3, 3, components).swapaxes(4, 5)
    given = torch.from_numpy(said.reshape(*outputs.shape[:3], -1).astype(np.int16))
    y, launched = on_grid(random, fineness, 2, 2, *shape), 0
    for part, parameter in ((0, 2), (3, 0)):
        place = on_cpu.part_of(y[0], part)
        own = said[:, : place.shape[1], : place.shape[2], :, :, parameter]
        every = [mixture_of(own[n : n + 2], components, fineness) for n in (0, 2)]

        def find(moved: Tensor, forward: bool, parts: tuple = (part, parameter, 3)) -> Tensor:
            return layers.mixture(moved, given, parts, mixture_tables(), fineness, forward)

        to_and_fro(y, part, lanes, find, every)
        launched += 2 * bool(place.size)
    assert len(finds.grids) == len(moves.grids) == launched


@pytest.mark.parametrize("forward", [True, False])
def test_every_piece_of_a_mixture_is_found(forward):
    """On both sides of each knot, or of each image, of the steepest and the flattest maps."""
    random = np.random.default_rng(1)
    maps_, components, fineness = 8, 8, 10
    outputs = random.integers(-100, 101, (maps_, 3 * components))
    outputs[:, components : 2 * components] *= 20
    outputs[:, 2 * components :] = random.choice([-16, 16], (maps_, components))
    ends = mixture_of(outputs, components, fineness).knots(slice(0, maps_))[not forward]
    both = np.stack([ends[:, :-1], ends[:, 1:] - 1], axis=1).reshape(len(ends), -1)
    z = np.broadcast_to(both, (maps_, both.shape[1])).reshape(-1)
    outputs = np.repeat(outputs, both.shape[1], axis=0)
    map = mixture_of(outputs, components, fineness)
    expected = map.segments(z) if forward else map.segments_of(z).turned()
    y = np.zeros((1, 1, 2, 2 * z.size), dtype=np.int64)
    y[0, 0, 1, ::2] = z
    given = torch.from_numpy(outputs.astype(np.int16)[None, None])
    pieces = layers.mixture(
        torch.from_numpy(y), given, (2, 0, 1), mixture_tables(), fineness, forward
    )
    assert np.array_equal(pieces.numpy(), np.stack(expected))


@pytest.mark.parametrize(
    ("shape", "lanes", "fineness"),
    [(*given, kind[0]) for given, kind in zip(SHAPES, KINDS, strict=True)],
)
def test_parts_move_by_rows_of_a_mix(shape, lanes, fineness, monkeypatch):
    """All rows; sums that are clamped, factors at their ends, and parts that are missing."""
    finds = Runs(monkeypatch, layers, "row_kernel")
    moves = Runs(monkeypatch, layers, "move_kernel")
    random = np.random.default_rng(shape[0])
    order = [2, 0, 3, 1]
    lower, upper = random.integers(-3000, 3001, (2, 4, 4)).astype(np.int16)
    lower[3, :2], upper[0, 1:3] = (1 << 14, -(1 << 14)), (1 << 14, 1 << 14)
    scale = np.array([-24, 24, 3, 0], dtype=np.int8)
    ours = steps.rows_of_mix(order, *map(torch.from_numpy, (lower, upper, scale)), CPU)
    theirs = on_cpu.Mix(order, lower, upper, scale).steps
    assert len(theirs) == len(ours) + 1  # the last one does nothing
    y, table, launched = on_grid(random, fineness, 2, 2, *shape), grid(fineness), 0
    y[1] = random.integers(15 << fineness, 19 << fineness, y[1].shape)
    nothing = np.empty(0, np.uint8)
    for row, mine in list(zip(theirs, ours, strict=False))[::2]:
        found = [row.maps(own, nothing, fineness)[0] for own in y]
        part = found[0][0]

        def find(moved: Tensor, forward: bool, row: tuple = (part, mine._constants)) -> Tensor:
            return layers.row(moved, *row, table, forward)

        to_and_fro(y, part, lanes, find, [map for _, map in found])
        launched += 2 * bool(on_cpu.part_of(y[0], part).size)
    assert len(finds.grids) == len(moves.grids) == launched


def lean_of(tilt: int, *shape: int) -> tilts.Lean:
    starts = torch.from_numpy(tilt_starts().copy())
    return tilts.Lean(torch.full(shape, tilt, dtype=torch.int8), starts)


def move_often(messages: rans.Messages) -> None:
    """Along a piece that gives bits, wherever the last one has led."""
    y, lowest = torch.full((3, 1, 1, 40), 999), messages.size.clone()
    pieces = torch.tensor([0, 1000, 0, 1], dtype=torch.int32)[:, None].repeat(1, 60)
    for _ in range(40):
        layers.move(messages, lowest, y, pieces, 0, ALL, grid(10), forward=False)


def quantize_leaning(messages: rans.Messages) -> None:
    y, widest = torch.full((3, 40), 17 << 10), torch.full((120, 1), 191, dtype=torch.int32)
    mixtures = torch.zeros_like(widest), widest, torch.full_like(widest, 1 << 12)
    given = y, mixtures, mixture.Support(-128, 127, 24), tables(), lean_of(TILT_MAX, 3, 40)
    dequantize.quantize(messages, messages.size.clone(), *given, ALL, grid(10))


@pytest.mark.parametrize("work", [move_often, quantize_leaning])
def test_nothing_leaves_the_room(work):
    """Who has no room left fails, whatever the bits say, and touches none of the others' words."""
    random = np.random.default_rng(3)
    messages = [random_message(random, 4, words) for words in (6, 3, 6)]
    given = upload(messages, 2)
    whole = poisoned(torch.int32, 5, given.tail.shape[1])  # with a guard before and behind
    whole[1:4] = given.tail
    ours = rans.Messages(given.head, whole[1:4], given.size)
    work(ours)
    assert ours.size.tolist() == [-1, -1, -1]
    assert (whole[[0, 4]] == POISON).all()
    before = whole.clone()
    work(ours)
    assert torch.equal(whole, before)


def test_messages_that_are_too_short_fail_alone():
    """Each way, and where a place is to be popped."""
    random = np.random.default_rng(4)
    messages = [random_message(random, 4, words) for words in (200, 0, 200)]
    numbers = torch.zeros((3, 1, 9, 9), dtype=torch.int64)
    for forward in (True, False):
        uploaded, y = upload(messages, 60), numbers.clone()
        said = torch.zeros((3, 5, 5, 3), dtype=torch.int16)
        pieces = layers.mixture(y, said, (0, 0, 1), mixture_tables(), 10, forward)
        # From short pieces to long ones, of which any number is one of many.
        pieces[:] = torch.tensor([0, 1, 0, 1000], dtype=torch.int32)[:, None]
        along = torch.zeros(3, dtype=torch.int64) if forward else uploaded.size.clone()
        layers.move(uploaded, along, y, pieces, 0, ALL, grid(10), forward)
        assert [size >= 0 for size in uploaded.size.tolist()] == [True, False, True]
    uploaded, start = upload(messages, 200), torch.zeros((3, 81), dtype=torch.int32)
    freq, lean = torch.full_like(start, 1 << 28), lean_of(-TILT_MAX, *start.shape)
    dequantize.dequantize(uploaded, start, freq, lean, ALL, grid(10, 28))
    assert [size >= 0 for size in uploaded.size.tolist()] == [True, False, True]
