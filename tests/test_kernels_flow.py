"""A phase goes through its flow on a device as it does on the CPU, bit for bit, both ways."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from chains import RICH_CHAIN, make_chain_model
from interpreted import CPU, Runs, assert_same, random_message, tables, upload

from flowarchive import int8
from flowarchive.ans import Message
from flowarchive.bitsback import Uniform, dequantize, local
from flowarchive.entropy import LogisticMixture
from flowarchive.errors import MessageExhausted
from flowarchive.flows.couplings import Steering
from flowarchive.flows.maps import Logit, core_table
from flowarchive.flows.phase import PhaseFlow
from triton_kernels import flow, mixture, rans, uniform

SUPPORT = mixture.Support(-128, 127, 24)


def grid(fineness: int) -> flow.Grid:
    knots, images, _, _ = Logit(SUPPORT.precision, fineness).tables
    core = core_table(fineness).copy()
    return flow.Grid(
        fineness, torch.from_numpy(core), SUPPORT.precision, *map(torch.from_numpy, (knots, images))
    )


def pieces(random: np.random.Generator, count: int) -> tuple[np.ndarray, local.Segments]:
    """Lines of all lengths, some that keep theirs, and a number on each."""
    w, v = (1 << random.integers(0, 31, (2, count))) + random.integers(0, 2, (2, count))
    v = np.where(random.random(count) < 0.2, w, np.minimum(v, (1 << 61) // w))
    x0, y0 = random.integers(0, 1 << 20, (2, count))
    return x0 + (random.random(count) * w).astype(np.int64), local.Segments(x0, w, y0, v)


@pytest.mark.parametrize(("count", "lanes"), [(1, 1), (3, 4), (65, 64), (130, 32)])
def test_numbers_move_along_lines(count, lanes, monkeypatch):
    """Two messages from arbitrary bits, and back; a third has too few bits and says so."""
    runs = Runs(monkeypatch, uniform, "move_kernel")
    random = np.random.default_rng(count)
    messages = [random_message(random, lanes, words) for words in (2 * count, 2 * count, 0)]
    x, lines = pieces(random, 3 * count)
    lines.v[-1], lines.w[-1] = 1 << 31, 1 << 20
    messages[2].head[:] = 1 << 31  # and the last row cannot do without a word
    x[-1] = lines.x0[-1]
    uploaded = upload(messages, 3 * count)
    bounds = torch.arange(4) * count
    ours = uniform.Pieces(*map(torch.from_numpy, lines))
    lowest = uploaded.size.clone()
    y = uniform.move(uploaded, lowest, torch.from_numpy(x), ours, bounds, down=True)
    for m, message in enumerate(messages[:2]):
        part = slice(m * count, (m + 1) * count)
        cut = local.Segments(*(line[part] for line in lines))
        expected = local._scale(message, x[part], cut, down=True)
        assert y[part].tolist() == expected.tolist()
    assert uploaded.size.tolist()[2] == -1
    good = rans.Messages(*(tensor[:2].contiguous() for tensor in uploaded))
    assert_same(good, messages[:2])
    back = uniform.Pieces(*(line[: 2 * count].contiguous() for line in ours.turned()))
    again = uniform.move(
        good, good.size.clone(), y[: 2 * count].contiguous(), back, bounds[:3], down=False
    )
    assert again.tolist() == x[: 2 * count].tolist()
    assert len(runs.grids) == 2


def test_slots_are_looked_up(monkeypatch):
    runs = Runs(monkeypatch, mixture, "lookup_kernel")
    random = np.random.default_rng(0)
    given = mixtures(random, 200)
    slots = random.integers(0, 1 << SUPPORT.precision, 200)
    slots[:2] = 0, (1 << SUPPORT.precision) - 1
    symbols, start, freq = mixture.lookup(
        torch.from_numpy(slots), *map(torch.from_numpy, given), SUPPORT, tables()
    )
    coder = LogisticMixture(*SUPPORT)
    expected = coder.lookup(slots, *given)
    assert symbols.tolist() == expected.tolist()
    assert [start.tolist(), freq.tolist()] == [e.tolist() for e in coder.interval(expected, *given)]
    assert len(runs.grids) == 1


def mixtures(random: np.random.Generator, count: int) -> tuple[np.ndarray, ...]:
    mean = random.integers(-60 << 8, 60 << 8, (count, 4))
    scale = random.integers(40, 80, (count, 4))
    weight = np.full((count, 4), 1 << 10)
    return tuple(array.astype(np.int32) for array in (mean, scale, weight))


@pytest.mark.parametrize("shape", [(1, 5, 7), (2, 4, 3)])
def test_phases_go_through_their_flow(shape, monkeypatch):
    """Two messages at a launch; blocks that do not end with the phase; squares that are not whole.

    A third message is too short both ways, which is none of the others' business.
    """
    monkeypatch.setattr(dequantize, "_BLOCK", 16)
    monkeypatch.setattr(flow, "BLOCK", 16)
    moves = Runs(monkeypatch, uniform, "move_kernel")
    pops = Runs(monkeypatch, rans, "pop_table_kernel")
    random = np.random.default_rng(shape[1])
    model, lanes, count = make_chain_model(seed=2), 4, int(np.prod(shape))
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
    whole = 3 * shape[0], *shape[1:]
    intervals = (torch.from_numpy(array.astype(np.int64)) for array in (start, freq))
    pushed = phase.push(uploaded, *intervals, grid(fineness), context, whole)
    for m, message in enumerate(messages):
        part, own = slice(m * count, (m + 1) * count), slice(m * shape[0], (m + 1) * shape[0])
        seen = couplings.context((states[own].astype(np.int16) + int8.ZERO).astype(np.uint8))
        inside = int8.inside(seen)[..., : couplings.shape.context].astype(np.int16) - int8.ZERO
        assert np.array_equal(context[own].numpy(), inside)
        steering = Steering(couplings, seen, shape)
        if m == 2:
            with pytest.raises(MessageExhausted):
                on_cpu.push(message, start[part], freq[part], steering)
        else:
            on_cpu.push(message, start[part], freq[part], steering)
    assert pushed.size.tolist() == [messages[0].size, messages[1].size, -1]
    assert_same(rans.Messages(*(tensor[:2].contiguous() for tensor in pushed)), messages[:2])

    short = Message.from_bytes(messages[1].to_bytes()[: 8 * lanes], lanes)
    uploaded = upload([*messages[:2], short], 2 * count)
    parameters = tuple(map(torch.from_numpy, given))
    popped, left, lowest = phase.pop(
        uploaded, parameters, SUPPORT, tables(), grid(fineness), context, whole
    )
    assert popped[: 2 * count].tolist() == symbols[: 2 * count].tolist()
    assert left.size[2] == -1
    assert left.size.tolist()[:2] == [9 * count, 9 * count]
    assert (lowest <= left.size).all()
    assert len(pops.grids) == 1
    # Each way as many as there are blocks, and parts that are moved.
    assert len(moves.grids) == 2 * (-(-count // 16) + 4)


def flow_of(model, name: str, phase: int) -> flow.Flow:
    """A phase's flow on a device."""
    context, couplings = model.couplings[name][phase].affine_layers()

    def tensors(layer: tuple[np.ndarray, ...]) -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(np.array(array)) for array in layer)

    return flow.Flow(
        tensors(context), [(moved, *map(tensors, layers)) for moved, *layers in couplings], CPU
    )


def test_other_layers_have_no_kernels():
    assert make_chain_model().has_kernels
    assert not make_chain_model(config=RICH_CHAIN).has_kernels
