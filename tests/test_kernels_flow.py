"""A phase goes through its flow on a device as it does on the CPU, bit for bit, both ways."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from chains import RICH_CHAIN, TINY_CHAIN, make_chain_model
from interpreted import CPU, POISON, Runs, assert_same, poisoned, random_message, tables, upload

from flowarchive import int8
from flowarchive.ans import Message
from flowarchive.bitsback import TILT_MAX, Dequantizer, Uniform, tilt_starts
from flowarchive.bitsback import dequantize as bits_back
from flowarchive.entropy import LogisticMixture
from flowarchive.entropy.plain import code_length
from flowarchive.errors import MessageExhausted
from flowarchive.flows import layers
from flowarchive.flows.couplings import Steering
from flowarchive.flows.maps import SCALE_MAX, SHIFT_MAX, Affine, Base, Logit, core_table
from flowarchive.flows.phase import PhaseFlow
from flowarchive.lengths import log2_sum, log_table
from triton_kernels import dequantize, flow, host, lengths, maps, mixture, rans, tilts, uniform
from triton_kernels import layers as device_layers

SUPPORT = mixture.Support(-128, 127, 24)
TABLE = torch.from_numpy(log_table().copy())
# 1, 63, 64, 65 and 1000 samples as planes, in rows of lanes that are full, and that are not.
SHAPES = [((1, 1), 1), ((7, 9), 64), ((8, 8), 64), ((5, 13), 64), ((25, 40), 256)]


def grid(fineness: int, precision: int = SUPPORT.precision) -> maps.Grid:
    knots, images, _, _ = Logit(precision, fineness).tables
    core = core_table(fineness).copy()
    curve = map(torch.from_numpy, (knots, images))
    return maps.Grid(fineness, torch.from_numpy(core), precision, *curve, TABLE)


def on_grid(random: np.random.Generator, fineness: int, *shape: int) -> np.ndarray:
    """Numbers on a flow's grid, many of them at its ends and at those of the affine core."""
    total = 34 << fineness
    ends = [
        0,
        total - 1,
        *(e << fineness for e in (9, 25)),
        *((e << fineness) - 1 for e in (9, 25)),
    ]
    y = random.integers(0, total, shape)
    return np.where(random.random(shape) < 0.3, random.choice(ends, shape), y)


def some(random: np.random.Generator, lanes: int, words: int) -> list[Message]:
    """Three messages, of which the second takes no part in what follows."""
    return [random_message(random, lanes, words) for _ in range(3)]


def leaning(random: np.random.Generator, *shape: int) -> tuple[tilts.Lean, np.ndarray]:
    """Places that lean, some as much as they can."""
    tilt = random.integers(-TILT_MAX, TILT_MAX + 1, shape)
    tilt[:, ::4] = TILT_MAX
    starts = torch.from_numpy(tilt_starts().copy())
    return tilts.Lean(torch.from_numpy(tilt.astype(np.int8)), starts), tilt


TURN = torch.tensor([0, 1, 1, 2])


@pytest.mark.parametrize(("shape", "lanes"), SHAPES)
@pytest.mark.parametrize(("fineness", "precision"), [(4, 28), (10, 24), (14, 22)])
def test_samples_go_onto_the_base(shape, lanes, fineness, precision, monkeypatch):
    """And come off it; who does not take part stays as it is."""
    push = Runs(monkeypatch, maps, "push_base_kernel")
    pop = Runs(monkeypatch, maps, "pop_base_kernel")
    count = shape[0] * shape[1]
    random = np.random.default_rng(count)
    messages, table = some(random, lanes, 4), grid(fineness, precision)
    y = on_grid(random, fineness, 2, count)
    uploaded = upload(messages, 2 * count)
    maps.push_base(uploaded, torch.from_numpy(y.copy()), TURN, table)
    base = Base(Logit(precision, fineness))
    for message, values in zip(messages[::2], y, strict=True):
        base.push(message, values)
    assert_same(uploaded, messages)
    assert maps.pop_base(uploaded, TURN, (2, count), table).tolist() == y.tolist()

    messages = some(random, lanes, 2 * count + 2)
    uploaded = upload(messages)
    popped = maps.pop_base(uploaded, TURN, (2, count), table)
    expected = [base.pop(message, count) for message in messages[::2]]
    assert np.array_equal(popped.numpy(), expected)
    assert_same(uploaded, messages)
    assert (len(push.grids), len(pop.grids)) == (1, 2)


@pytest.mark.parametrize(("shape", "lanes"), SHAPES)
@pytest.mark.parametrize(("fineness", "precision"), [(4, 28), (10, 24), (14, 22)])
@pytest.mark.parametrize("leans", [False, True])
def test_symbols_come_to_the_grid(shape, lanes, fineness, precision, leans, monkeypatch):
    """From places in intervals of all widths, block by block."""
    monkeypatch.setattr(bits_back, "_BLOCK", 512)
    monkeypatch.setattr(dequantize, "BLOCK", 512)
    places = Runs(monkeypatch, dequantize, "dequantize_kernel")
    count = shape[0] * shape[1]
    random = np.random.default_rng(count)
    messages, table = some(random, lanes, 4 * count + 4), grid(fineness, precision)
    start = random.integers(0, 1 << precision, (2, count))
    start[:, ::5] = 0
    widest = (1 << precision) - start
    freq = np.minimum(widest, 1 << random.integers(0, precision + 1, (2, count)))
    uploaded = upload(messages, 2 * count)
    intervals = (torch.from_numpy(array.astype(np.int32)) for array in (start, freq))
    lean, tilt = leaning(random, 2, count) if leans else (None, None)
    y = dequantize.dequantize(uploaded, *intervals, lean, TURN, table)
    logit = Logit(precision, fineness)
    chosen = Dequantizer(logit)
    for n, message in enumerate(messages[::2]):
        own = tilt[n] if leans else None
        expected = chosen.forward(message, Uniform(), start[n], freq[n], own)
        assert y[n].tolist() == expected.tolist()
    assert_same(uploaded, messages)

    assert len(places.grids) == 1


@pytest.mark.parametrize(("shape", "lanes"), SHAPES)
@pytest.mark.parametrize(("fineness", "precision"), [(4, 28), (10, 24), (14, 22)])
@pytest.mark.parametrize("leans", [False, True])
def test_the_grid_goes_back_to_symbols(shape, lanes, fineness, precision, leans, monkeypatch):
    """From arbitrary samples and bits, block by block: symbols, and messages, are the CPU's."""
    monkeypatch.setattr(bits_back, "_BLOCK", 512)
    monkeypatch.setattr(dequantize, "BLOCK", 512)
    runs = Runs(monkeypatch, dequantize, "quantize_kernel")
    count = shape[0] * shape[1]
    random = np.random.default_rng(count)
    y, given = on_grid(random, fineness, 2, count), mixtures(random, 2 * count)
    support = mixture.Support(-128, 127, precision)
    messages = some(random, lanes, 2 * count + 4)
    uploaded = upload(messages, 2 * count)
    lowest = uploaded.size.clone()
    lean, tilt = leaning(random, 2, count) if leans else (None, None)
    symbols = dequantize.quantize(
        uploaded, lowest, torch.from_numpy(y.copy()), tuple(map(torch.from_numpy, given)), support,
        tables(), lean, TURN, grid(fineness, precision),
    )  # fmt: skip
    chosen, coder = Dequantizer(Logit(precision, fineness)), LogisticMixture(*support)
    for n, message in enumerate(messages[::2]):
        own = [parameter[n * count : (n + 1) * count] for parameter in given]
        found = []

        def find(u: np.ndarray, part: slice, own=own, found=found) -> tuple[np.ndarray, np.ndarray]:
            known = [parameter[part] for parameter in own]
            found.append(coder.lookup(u, *known))
            return coder.interval(found[-1], *known)

        chosen.inverse(message, Uniform(), y[n], find, tilt[n] if leans else None)
        assert symbols.view(2, count)[n].tolist() == np.concatenate(found).tolist()
    assert_same(uploaded, messages)
    assert (lowest <= uploaded.size).all()
    assert len(runs.grids) == 1


@pytest.mark.parametrize("shape", [shape for shape, _ in SHAPES])
@pytest.mark.parametrize(("fineness", "precision"), [(4, 28), (10, 24), (14, 22)])
def test_what_the_logit_shrinks_by(shape, fineness, precision, monkeypatch):
    """In whole steps, which the CPU's sum is too; nothing of who does not take part."""
    monkeypatch.setattr(maps, "SQUARES", 64)
    monkeypatch.setattr(maps, "PROGRAMS", 2)
    runs = Runs(monkeypatch, maps, "shrinks_kernel")
    random = np.random.default_rng(shape[0])
    y = on_grid(random, fineness, 2, shape[0] * shape[1])
    steps = maps.shrinks(torch.from_numpy(y), TURN, grid(fineness, precision))
    pieces = [Logit(precision, fineness).segments_of(values) for values in y]
    expected = [log2_sum(piece.w) - log2_sum(piece.v) for piece in pieces]
    assert (steps.numpy() / (1 << 20)).tolist() == [expected[0], 0, expected[1]]
    assert runs.grids == [(3, 2)]


def test_heights_and_lengths(monkeypatch):
    """Of heads at both ends of their range, and of intervals of every width: whole steps."""
    tall = Runs(monkeypatch, lengths, "heights_kernel")
    long = Runs(monkeypatch, lengths, "code_lengths_kernel")
    monkeypatch.setattr(lengths, "BLOCK", 64)
    random = np.random.default_rng(5)
    for lanes in (1, 4, 256):
        messages = [Message(lanes), *some(random, lanes, 9)]
        found = lengths.heights(upload(messages), TABLE).numpy() / (1 << 20)
        assert found.tolist() == [message.bits for message in messages]
    counts = [1, 0, 63, 64, 65, 1000]
    freq = (1 << random.integers(0, 31, sum(counts))) - random.integers(0, 2, sum(counts))
    freq = freq.clip(1).astype(np.int32)
    begins = np.cumsum([0, *counts[:-1]])
    segments = torch.tensor([[b, c, 28] for b, c in zip(begins, counts, strict=True)])
    found = lengths.code_lengths(torch.from_numpy(freq), segments, TABLE).numpy() / (1 << 20)
    parts = np.split(freq.astype(np.uint32), begins[1:])
    assert found.tolist() == [code_length(part, 1 << 28) for part in parts]
    assert (len(tall.grids), long.grids) == (3, [(6,)])


@pytest.mark.parametrize(("shape", "lanes"), SHAPES)
@pytest.mark.parametrize("fineness", [4, 10, 14])
def test_parts_move_by_what_a_layer_says(shape, lanes, fineness, monkeypatch):
    """All 16-bit outputs, which saturate shifts and scales; to and fro; other parts stay."""
    runs = Runs(monkeypatch, maps, "affine_kernel")
    random = np.random.default_rng(shape[0])
    rows, columns = shape
    squares = (rows + 1) // 2, (columns + 1) // 2
    outputs = random.integers(-40, 41, (4, *squares, 6)).astype(np.int16)
    wild = random.random(outputs.shape) < 0.3
    outputs[wild] = random.choice([-32768, 32767, -769, 768, 24, -25], int(wild.sum()))
    y = on_grid(random, fineness, 2, 2, rows, columns)
    launched = 0
    for part, parameter in ((0, 2), (1, 0), (2, 1), (3, 2)):
        messages = some(random, lanes, 2 * rows * columns + 4)
        before = [message.to_bytes() for message in messages]
        uploaded, moved = upload(messages, rows * columns), torch.from_numpy(y.copy())
        steering = torch.from_numpy(outputs), (part, parameter, 3), TURN, grid(fineness)
        steps, shrunk = torch.full((3,), 7), [0.0] * 3
        maps.affine(uploaded, steps, moved, *steering, forward=True)
        expected = y.copy()
        for n, message in enumerate(messages[::2]):
            place = layers.part_of(expected[n], part)
            own = outputs[2 * n : 2 * n + 2, : place.shape[1], : place.shape[2]].astype(np.int64)
            shift = layers.shift_cells(own[..., parameter].reshape(-1), fineness)
            most = SHIFT_MAX << fineness
            scale = own[..., 3 + parameter].reshape(-1).clip(-SCALE_MAX, SCALE_MAX)
            map = Affine(shift.clip(-most, most), scale, fineness)
            pieces = map.segments(place.reshape(-1))
            shrunk[2 * n] = log2_sum(pieces.w) - log2_sum(pieces.v)
            place[:] = Uniform().forward(message, place.reshape(-1), map).reshape(place.shape)
        assert np.array_equal(moved.numpy(), expected)
        assert ((steps.numpy() - 7) / (1 << 20)).tolist() == shrunk
        assert_same(uploaded, messages)
        launched += expected[:, :, maps.PARTS[part][0] :: 2, maps.PARTS[part][1] :: 2].size > 0
        maps.affine(uploaded, uploaded.size.clone(), moved, *steering, forward=False)
        assert np.array_equal(moved.numpy(), y)
        assert_same(uploaded, [Message.from_bytes(data, lanes) for data in before])
    assert len(runs.grids) == 2 * launched


@pytest.mark.parametrize("shape", [shape for shape, _ in SHAPES])
def test_what_networks_see_of_parts(shape, monkeypatch):
    """Beside other channels, which stay poison; parts that move or are missing are zero."""
    runs = Runs(monkeypatch, maps, "seen_kernel")
    random = np.random.default_rng(shape[0])
    for fineness in (4, 10, 14):
        y = on_grid(random, fineness, 1, 2, *shape)
        context = int8.grid(2, (shape[0] + 1) // 2, (shape[1] + 1) // 2, 1)
        inner = int8.inside(context).shape[:3]
        places = [poisoned(torch.int8, *inner, 7), poisoned(torch.int8, *inner, 12)]
        first, second = places[0][..., :4], places[1][..., 5:9]
        maps.see(torch.from_numpy(y), (0, 2), first, second, fineness)
        seen = int8.inside(layers._seen(y[0], (0, 2), context, fineness))[..., :4]
        expected = torch.from_numpy(seen.astype(np.int16) - int8.ZERO).to(torch.int8)
        assert torch.equal(first, expected)
        assert torch.equal(second, expected)
        rest = torch.cat([places[0][..., 4:], places[1][..., :5], places[1][..., 9:]], 3)
        assert (rest == POISON & 0xFF).all()
    assert len(runs.grids) == 3


def move_back_often(messages: rans.Messages) -> None:
    """Along a map whose inverse gives bits back, wherever the last one has led."""
    outputs = torch.zeros((3, 1, 20, 2), dtype=torch.int16)
    outputs[..., 1] = SCALE_MAX
    y, lowest = torch.full((3, 1, 1, 40), 17 << 10), messages.size.clone()
    for _ in range(40):
        maps.affine(messages, lowest, y, outputs, (0, 0, 1), ALL, grid(10), forward=False)


def push_intervals(messages: rans.Messages) -> None:
    start, freq = torch.zeros(40, dtype=torch.int32), torch.ones(40, dtype=torch.int32)
    rans.push(messages, start, freq, torch.tensor([[0, 40, 24]] * 3), ALL)


def push_numbers(messages: rans.Messages) -> None:
    values = torch.arange(120)
    uniform.push_uniform(messages, values, torch.full_like(values, 1 << 30), 40 * ALL)


def push_samples(messages: rans.Messages) -> None:
    maps.push_base(messages, torch.full((3, 40), 17 << 10), ALL, grid(10))


ALL = torch.arange(4)


@pytest.mark.parametrize("work", [move_back_often, push_intervals, push_numbers, push_samples])
def test_nothing_leaves_the_room(work):
    """Who has no room left fails, whatever the bits say, and touches none of the others' words."""
    random = np.random.default_rng(3)
    lanes, sizes = 4, (6, 3, 6)
    messages = [random_message(random, lanes, words) for words in sizes]
    given = upload(messages, 2)
    whole = poisoned(torch.int32, 5, given.tail.shape[1])  # with a guard before and behind
    whole[1:4] = given.tail
    ours = rans.Messages(given.head, whole[1:4], given.size)
    work(ours)
    assert ours.size.tolist() == [-1, -1, -1]
    assert (whole[[0, 4]] == POISON).all()
    for row, message in zip(whole[1:4], messages, strict=True):
        kept = max(message.size - lanes, 0)  # a row takes no more before it gives back
        assert row[:kept].numpy().view(np.uint32).tolist() == message.tail[:kept].tolist()
    # Who has failed is left alone, whatever comes next.
    before = whole.clone()
    work(ours)
    _, left = uniform.pop_uniform(ours, torch.full((120,), 9), 40 * ALL)
    assert torch.equal(whole, before)
    assert left.size.tolist() == [-1, -1, -1]


def mixtures(random: np.random.Generator, count: int) -> tuple[np.ndarray, ...]:
    mean = random.integers(-60 << 8, 60 << 8, (count, 4))
    scale = random.integers(40, 80, (count, 4))
    weight = np.full((count, 4), 1 << 10)
    return tuple(array.astype(np.int32) for array in (mean, scale, weight))


@pytest.mark.parametrize("config", [TINY_CHAIN, RICH_CHAIN])
@pytest.mark.parametrize("shape", [(1, 5, 7), (2, 4, 3)])
def test_phases_go_through_their_flow(shape, config, monkeypatch):
    """Two messages at a launch; blocks that do not end with the phase; squares that are not whole.

    A third message is too short both ways, which is none of the others' business.
    """
    monkeypatch.setattr(bits_back, "_BLOCK", 16)
    monkeypatch.setattr(dequantize, "BLOCK", 16)
    kernels = [
        (maps, "affine_kernel"),
        (device_layers, "row_kernel"),
        (device_layers, "mixture_kernel"),
    ]
    moves = [Runs(monkeypatch, *kernel) for kernel in kernels]
    ends = [Runs(monkeypatch, dequantize, f"{way}quantize_kernel") for way in ("de", "")]
    random = np.random.default_rng(shape[1])
    model, lanes, count = make_chain_model(seed=2, config=config), 4, int(np.prod(shape))
    couplings = model.couplings["intra_luma"][1]
    fineness, size = model._fineness, couplings.shape.state
    coder, on_cpu = LogisticMixture(*SUPPORT), PhaseFlow(SUPPORT.precision, fineness, Uniform())
    states = random.integers(0, 128, (3 * shape[0], *shape[1:], size)).astype(np.int8)
    given = mixtures(random, 3 * count)
    symbols = random.integers(-40, 41, 3 * count).astype(np.int32)
    start, freq = coder.interval(symbols, *given)
    messages = [random_message(random, lanes, words) for words in (9 * count, 9 * count, 1)]
    uploaded = upload(messages, 2 * count)

    phase = flow_of(model, "intra_luma", 1)
    context = phase.context(torch.from_numpy(states))
    whole, turn = (3, *shape), torch.arange(4)
    intervals = [torch.from_numpy(array.astype(np.int32)) for array in (start, freq)]
    parts = np.split(freq, 3)
    logs = torch.tensor([int(log2_sum(part) * (1 << 20)) for part in parts])
    cost = phase.push(uploaded, *intervals, logs, turn, grid(fineness), context, whole)
    for m, message in enumerate(messages):
        part, own = slice(m * count, (m + 1) * count), slice(m * shape[0], (m + 1) * shape[0])
        seen = couplings.context((states[own].astype(np.int16) + int8.ZERO).astype(np.uint8))
        inside = int8.inside(seen)[..., : couplings.shape.context].astype(np.int16) - int8.ZERO
        assert np.array_equal(context[own, ..., 4:].numpy(), inside)
        steering = Steering(couplings, seen, shape)
        if m == 2:
            with pytest.raises(MessageExhausted):
                on_cpu.push(message, start[part], freq[part], steering)
        else:
            expected = on_cpu.push(message, start[part], freq[part], steering)
            assert expected == tuple(column[m].item() / (1 << 20) for column in cost)
    assert uploaded.size.tolist() == [messages[0].size, messages[1].size, -1]
    assert_same(rans.Messages(*(tensor[:2].contiguous() for tensor in uploaded)), messages[:2])

    short = Message.from_bytes(messages[1].to_bytes()[: 8 * lanes], lanes)
    uploaded = upload([*messages[:2], short], 2 * count)
    parameters = tuple(map(torch.from_numpy, given))
    lowest = uploaded.size.clone()
    popped = phase.pop(
        uploaded, lowest, parameters, SUPPORT, tables(), turn, grid(fineness), context, whole
    )
    assert popped[: 2 * count].tolist() == symbols[: 2 * count].tolist()
    assert uploaded.size[2] == -1
    assert uploaded.size.tolist()[:2] == [9 * count, 9 * count]
    assert (lowest <= uploaded.size).all()
    assert [len(end.grids) for end in ends] == [1, 1]
    parts = [4, 0, 0] if config is TINY_CHAIN else [4 + 2, 7, 2]
    assert [len(run.grids) for run in moves] == [2 * count for count in parts]  # each way


def flow_of(model, name: str, phase: int) -> flow.Flow:
    """A phase's flow on a device."""
    return model._on(host.Host(CPU))._flows.phases[name][phase]
