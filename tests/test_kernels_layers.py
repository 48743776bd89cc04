"""Layers that are not affine couplings move on a device as on the CPU, and places lean alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from interpreted import CPU, Runs, assert_same, poisoned, random_message, tables, upload
from test_kernels_flow import ALL, SHAPES, TURN, grid, on_grid, some

from flowarchive.ans import Message
from flowarchive.bitsback import TILT_MAX, Uniform, dequantize, tilt_starts
from flowarchive.flows import layers as on_cpu
from flowarchive.flows.maps import (
    MIXTURE_MEAN_MAX,
    MIXTURE_SCALE_MAX,
    Mixture,
    mixture_curve,
    mixture_weights,
)
from flowarchive.models.mixtures import weight_table
from triton_kernels import layers, maps, rans, steps, tilts

PARTS = [(0, 2), (1, 0), (2, 1), (3, 2)]
"""Parts, and their places among those that a coupling of three moves."""


def mixture_tables() -> layers.Tables:
    knots, images, _, _ = mixture_curve().tables
    weights = torch.from_numpy(weight_table().copy())
    return layers.Tables(*tables(), weights, *map(torch.from_numpy, (knots, images)))


def pieces_there(monkeypatch) -> None:
    """Room for pieces holds what no kernel would write."""
    room = layers._pieces
    monkeypatch.setattr(
        layers, "_pieces", lambda y, part: poisoned(torch.int32, *room(y, part).shape)
    )


def to_and_fro(y: np.ndarray, part: int, lanes: int, find, map_of) -> int:
    """Move a part of two messages' planes there and back, as the CPU does; the launches of moves.

    `find` gives pieces of samples, forward or back, and `map_of` the CPU's map of a message.
    """
    random, count = np.random.default_rng(part), y[0].size
    messages = some(random, lanes, 2 * count + 4)
    before = [message.to_bytes() for message in messages]
    uploaded, moved = upload(messages, 2 * count), torch.from_numpy(y.copy())
    lowest = uploaded.size.clone()
    layers.move(uploaded, lowest, moved, find(moved, True), part, TURN, forward=True)
    expected = y.copy()
    for n, message in enumerate(messages[::2]):
        place = on_cpu.part_of(expected[n], part)
        values = place.reshape(-1)
        place[:] = Uniform().forward(message, values, map_of(n)).reshape(place.shape)
    assert np.array_equal(moved.numpy(), expected)
    assert_same(uploaded, messages)
    assert (lowest <= uploaded.size).all()
    layers.move(uploaded, lowest, moved, find(moved, False), part, TURN, forward=False)
    assert np.array_equal(moved.numpy(), y)
    assert_same(uploaded, [Message.from_bytes(data, lanes) for data in before])
    return 2 * bool(on_cpu.part_of(y[0], part).size)


def outputs_of(random: np.random.Generator, shape: tuple[int, int], components: int) -> np.ndarray:
    """What a layer says of four planes, three parts: ties of weights, and ends of all ranges."""
    squares = (shape[0] + 1) // 2, (shape[1] + 1) // 2
    outputs = random.integers(-40, 41, (4, *squares, 9 * components))
    outputs[..., 3 * components : 6 * components] *= 40
    wild = random.random(outputs.shape) < 0.2
    outputs[wild] = random.choice([-32768, 32767, -2048, 2047, 16, -17], int(wild.sum()))
    outputs[:, :, ::3, : 3 * components] = random.choice([-32768, 7])
    return outputs.astype(np.int16)


@pytest.mark.parametrize(("shape", "lanes"), SHAPES)
@pytest.mark.parametrize(("fineness", "components"), [(4, 1), (10, 3), (14, 8)])
def test_parts_move_by_mixtures(shape, lanes, fineness, components, monkeypatch):
    pieces_there(monkeypatch)
    finds = Runs(monkeypatch, layers, "mixture_kernel")
    moves = Runs(monkeypatch, layers, "move_kernel")
    random = np.random.default_rng(shape[0])
    outputs = outputs_of(random, shape, components)
    y, launched = on_grid(random, fineness, 2, 2, *shape), 0
    for part, parameter in PARTS:

        def find(moved: torch.Tensor, forward: bool) -> torch.Tensor:
            of = torch.from_numpy(outputs), (part, parameter, 3)
            return layers.mixture(moved, *of, mixture_tables(), fineness, forward)

        def map_of(n: int) -> Mixture:
            place = on_cpu.part_of(y[n], part)
            own = outputs[2 * n : 2 * n + 2, : place.shape[1], : place.shape[2], parameter::3]
            parameters = own.astype(np.int64).reshape(-1, 3, components).swapaxes(0, 1)
            return Mixture(
                mixture_weights(parameters[0]),
                parameters[1].clip(-MIXTURE_MEAN_MAX, MIXTURE_MEAN_MAX),
                parameters[2].clip(-MIXTURE_SCALE_MAX, MIXTURE_SCALE_MAX),
                fineness,
            )

        launched += to_and_fro(y, part, lanes, find, map_of)
    assert len(finds.grids) == len(moves.grids) == launched


@pytest.mark.parametrize("forward", [True, False])
def test_every_piece_of_a_mixture_is_found(forward):
    """On both sides of each knot, or of each image; the steepest and the flattest maps."""
    random = np.random.default_rng(1)
    count, components, fineness = 40, 8, 10
    outputs = random.integers(-100, 101, (1, 1, count, 3 * components)).astype(np.int16)
    outputs[..., components : 2 * components] *= 20
    outputs[..., 2 * components :] = random.choice([-16, 16], (count, components))
    parameters = outputs.astype(np.int64).reshape(count, 3, components).swapaxes(0, 1)
    map = Mixture(mixture_weights(parameters[0]), *parameters[1:], fineness)
    ends = map.knots(slice(0, count))[0 if forward else 1]
    ends = np.broadcast_to(ends, (count, ends.shape[1]))
    for z in np.concatenate([ends[:, :-1], ends[:, 1:] - 1], axis=1).T[::3]:
        y = np.zeros((1, 1, 2, 2 * count), dtype=np.int64)
        y[0, 0, 1, ::2] = z
        pieces = layers.mixture(
            torch.from_numpy(y), torch.from_numpy(outputs), (2, 0, 1), mixture_tables(), fineness,
            forward,
        )  # fmt: skip
        expected = map.segments(z) if forward else map.segments_of(z).turned()
        assert np.array_equal(pieces.numpy(), np.stack(expected))


@pytest.mark.parametrize(("shape", "lanes"), SHAPES)
@pytest.mark.parametrize("fineness", [4, 10, 14])
def test_parts_move_by_rows_of_a_mix(shape, lanes, fineness, monkeypatch):
    """Sums that are clamped, factors at their ends, parts that are missing; and all a mix's rows."""
    pieces_there(monkeypatch)
    finds = Runs(monkeypatch, layers, "row_kernel")
    moves = Runs(monkeypatch, layers, "move_kernel")
    random = np.random.default_rng(shape[0])
    order = [2, 0, 3, 1]
    lower, upper = random.integers(-3000, 3001, (2, 4, 4)).astype(np.int16)
    lower[3, :2], upper[0, 1:3] = (1 << 14, -(1 << 14)), (1 << 14, 1 << 14)
    scale = np.array([-24, 24, 3, 0], dtype=np.int8)
    ours = steps.rows_of_mix(order, *map(torch.from_numpy, (lower, upper, scale)), CPU)
    theirs = on_cpu.Mix(order, lower, upper, scale).steps
    y, table, launched = on_grid(random, fineness, 2, 2, *shape), grid(fineness), 0
    y[1] = random.integers(15 << fineness, 19 << fineness, y[1].shape)
    assert len(theirs) == len(ours) + 1  # but for the last one, which does nothing
    for row, mine in zip(theirs, ours, strict=False):
        (part, _), = row.maps(y[0], np.empty(0, np.uint8), fineness)

        def find(moved: torch.Tensor, forward: bool) -> torch.Tensor:
            return layers.row(moved, part, mine._constants, table, forward)

        def map_of(n: int):
            return row.maps(y[n], np.empty(0, np.uint8), fineness)[0][1]

        launched += to_and_fro(y, part, lanes, find, map_of)
    assert len(finds.grids) == len(moves.grids) == launched


def leans(tilt: np.ndarray) -> tilts.Lean:
    return tilts.Lean(torch.from_numpy(tilt.astype(np.int8)), torch.from_numpy(tilt_starts()))


@pytest.mark.parametrize(("shape", "lanes"), SHAPES)
@pytest.mark.parametrize("precision", [8, 24, 28])
def test_places_lean(shape, lanes, precision, monkeypatch):
    """Lanes that take no word, one and two, from arbitrary bits; and back."""
    pops = Runs(monkeypatch, maps, "choose_kernel")
    pushes = Runs(monkeypatch, tilts, "push_places_kernel")
    random, count = np.random.default_rng(precision), shape[0] * shape[1]
    messages = some(random, lanes, 4 * count + 4)
    before = [message.to_bytes() for message in messages]
    start = random.integers(0, 9, (2, count))
    freq = random.integers(1, (1 << precision) + 1, (2, count))
    freq[:, ::3] = 1 << precision
    freq[:, ::5] = random.choice([1, 255, 256, 257])
    tilt = random.integers(-TILT_MAX, TILT_MAX + 1, (2, count))
    uploaded = upload(messages, 2 * count)
    u = poisoned(torch.int64, 2, count)
    whole = slice(0, count)
    intervals = tuple(map(torch.from_numpy, (start, freq)))
    maps.choose(uploaded, *intervals, leans(tilt), u, TURN, whole)
    for n, message in enumerate(messages[::2]):
        expected = start[n] + dequantize.pop_places(message, freq[n], tilt[n])
        assert u[n].tolist() == expected.tolist()
    assert_same(uploaded, messages)
    places = u.view(-1) - intervals[0].view(-1)
    tilts.push_places(
        uploaded, places, intervals[1].view(-1), leans(tilt.reshape(-1)), TURN * count
    )
    for n, message in enumerate(messages[::2]):
        dequantize.push_places(message, u[n].numpy() - start[n], freq[n], tilt[n])
    assert_same(uploaded, messages)
    assert_same(uploaded, [Message.from_bytes(data, lanes) for data in before])
    assert (len(pops.grids), len(pushes.grids)) == (1, 1)


def test_a_word_decides_whether_a_lane_takes_another():
    """Which of its bits is looked at hangs on the lanes above, of which some wait for theirs."""
    lanes, tilt, span = 8, 1, 8 * 4099
    starts = tilt_starts()[TILT_MAX + tilt]
    slot, mass = int(starts[3]), int(starts[4] - starts[3])
    random = np.random.default_rng(0)
    # The head after the first step is half of the stretch's length, rounded down: at the limit.
    high = (4099 - 1) // 2 // mass
    seen = set()
    for _ in range(20):
        messages = some(random, lanes, 40)
        for message in messages[::2]:
            for lane in range(lanes):
                message.head[lane] = (high << 12) | slot
    del seen, high
