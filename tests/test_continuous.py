"""Maps are exact and onto, layers undo themselves, twins agree, and lengths are what flows say."""

from __future__ import annotations

import copy
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from bits_laws import check_exhaustion, check_local_coder, check_map, random_message

from flowarchive import exact, int8
from flowarchive.ans import Message
from flowarchive.bitsback import Dequantizer, Gaussian, Uniform, place_bits
from flowarchive.entropy import LogisticMixture
from flowarchive.errors import MessageExhausted, ModelError
from flowarchive.flows.couplings import Couplings, CouplingShape, LayerShape
from flowarchive.flows.layers import PARTS, Mix, Norm
from flowarchive.flows.maps import (
    Affine,
    Base,
    Logit,
    Mixture,
    cells,
    core_table,
    logit_knots,
    mixture_weights,
)
from flowarchive.flows.phase import PhaseFlow
from flowarchive.flows.twins import dequantize, gain_bits, move_logit, move_mixture
from flowarchive.train.couplings import FlowTwin
from flowarchive.train.twins import frozen_tensors

CODERS = [Uniform(), Gaussian(20)]
STATE = 2


def extremes(rng, n, most):
    """Integers in +-most, many of them at the ends."""
    ends, inner = rng.choice([-most, 0, most], n), rng.integers(-most, most + 1, n)
    return np.where(rng.random(n) < 0.3, ends, inner)


def affine_map(n, fineness, seed=0):
    rng = np.random.default_rng(seed)
    return Affine(extremes(rng, n, 3 << fineness), extremes(rng, n, 24), fineness)


def mixture_map(n, fineness, seed=0, components=3):
    rng = np.random.default_rng(seed)
    shape = (n, components)
    weight = mixture_weights(extremes(rng, n * components, 300).reshape(shape))
    mean = extremes(rng, n * components, 2047).reshape(shape)
    return Mixture(weight, mean, extremes(rng, n * components, 16).reshape(shape), fineness)


@pytest.mark.parametrize("make", [affine_map, mixture_map])
@pytest.mark.parametrize("fineness", [4, 6])
def test_maps_are_increasing_and_onto(make, fineness):
    check_map(make(100, fineness), cells(fineness), cells(fineness), 100)


@pytest.mark.parametrize("make", [affine_map, mixture_map])
@pytest.mark.parametrize("fineness", [10, 14])
def test_fine_maps_are_increasing_and_onto(make, fineness):
    n, total = 2000, cells(fineness)
    map = make(n, fineness)
    knots, images = map.knots(slice(0, n))
    assert (np.diff(knots) > 0).all()
    assert (np.diff(images) > 0).all()
    assert (images[:, 0] == 0).all()
    assert (images[:, -1] == total).all()
    x = np.random.default_rng(0).integers(0, total, n)
    found = map.segments(x)
    at = (knots <= x[:, None]).sum(1) - 1
    assert np.array_equal(found.y0, images[np.arange(n), at])
    for y in (found.y0, found.y0 + found.v - 1):
        for here, there in zip(map.segments_of(y), found, strict=True):
            assert np.array_equal(here, there)


def test_logit_on_all_of_u():
    logit = Logit(22, 4)
    u = np.arange(1 << 22)
    found = logit.segments(u)
    knots, images = (a[0] for a in logit.knots(slice(0)))
    at = np.searchsorted(knots, u, side="right") - 1
    assert np.array_equal(found.x0, knots[at])
    assert np.array_equal(found.y0, images[at])
    assert np.array_equal(found.x0 + found.w, knots[at + 1])
    assert np.array_equal(found.y0 + found.v, images[at + 1])
    y = np.arange(cells(4))
    there = logit.segments(knots[images[:-1].searchsorted(y, "right") - 1])
    assert all(np.array_equal(a, b) for a, b in zip(logit.segments_of(y), there, strict=True))


@pytest.mark.parametrize("precision", [22, 24, 28])
@pytest.mark.parametrize("fineness", [4, 10, 14])
def test_the_logit_is_one(precision, fineness):
    knots, images = (a[0] for a in Logit(precision, fineness).knots(slice(0)))
    assert (np.diff(knots) > 0).all()
    assert (knots[0], knots[-1], images[0], images[-1]) == (0, 1 << precision, 0, cells(fineness))
    reals = images[1:-1] / (1 << fineness) - 17
    assert reals.tolist() == [k / 16 for k in range(-192, 193)]
    assert knots[1:-1] == pytest.approx((1 << precision) / (1 + np.exp(-reals)), abs=0.5 + 1e-6)


def test_known_tables():
    assert logit_knots(24)[:3] == (103, 110, 117)
    assert logit_knots(24)[192] == 1 << 23
    assert core_table(10)[[0, 23, 24, 25, 48]].tolist() == [4871, 8016, 8192, 8371, 13777]
    weights = mixture_weights([[0, 0, 0], [0, 16, -10000], [5, -11, 5]])
    assert weights.tolist() == [[1366, 1365, 1365], [1365, 2731, 0], [1639, 819, 1638]]
    digest = hashlib.sha256(mixture_map(50, 10).knots(slice(0, 50))[1].tobytes())
    assert digest.hexdigest()[:16] == MIXTURE_HASH


MIXTURE_HASH = "d3ee9bc5f7c4b972"


def test_the_identity_mixture():
    n, fineness = 68, 10
    total = cells(fineness)
    x = np.arange(n) * (total // 68)
    weight = mixture_weights(np.zeros((n, 4)))
    map = Mixture(weight, np.zeros((n, 4)), np.zeros((n, 4)), fineness)
    inner = slice(10, 59)
    assert np.array_equal(map.segments(x).y0[inner], x[inner])


@pytest.mark.parametrize("coder", CODERS, ids=repr)
@pytest.mark.parametrize("fineness", [4, 10, 14])
@pytest.mark.parametrize(("count", "lanes"), [(1, 1), (63, 1), (64, 16), (65, 64), (1000, 4)])
def test_maps_come_back(coder, fineness, count, lanes):
    rng, total = np.random.default_rng(count), cells(fineness)
    for map, size in (
        (Logit(24, fineness), 1 << 24),
        (Logit(28, fineness), 1 << 28),
        (affine_map(count, fineness), total),
        (mixture_map(count, fineness), total),
    ):
        x = rng.integers(0, size, count)
        x[: count // 3] = rng.choice([0, 1, size - 2, size - 1], count // 3)
        y = check_local_coder(coder, map, x, total, lanes)
        if count == 1000:
            check_exhaustion(coder.inverse, map, y)
            if not isinstance(map, Logit):  # which gives bits before it takes any
                check_exhaustion(coder.forward, map, x)


def test_maps_refuse():
    for call in (
        lambda: Logit(21),
        lambda: Logit(29),
        lambda: Logit(24, 3),
        lambda: Logit(24, 15),
        lambda: Affine([3 * 1024 + 1], [0]),
        lambda: Affine([0], [25]),
        lambda: Affine([0, 0], [0]),
        lambda: Affine([0], [0]).segments(np.zeros(2, dtype=np.int64)),
        lambda: Mixture([[4095]], [[0]], [[0]]),
        lambda: Mixture([[4097, -1]], [[0, 0]], [[0, 0]]),
        lambda: Mixture([[4096]], [[2048]], [[0]]),
        lambda: Mixture([[4096]], [[0]], [[17]]),
        lambda: Mixture([4096], [0], [0]),
        lambda: Mixture([[4096]], [[0]], [[0]]).segments(np.zeros(2, dtype=np.int64)),
    ):
        with pytest.raises(ValueError):  # noqa: PT011
            call()
    four, square = np.zeros(4, np.int16), np.zeros((4, 4), np.int16)
    for call in (
        lambda: Norm(four - 769, four),
        lambda: Norm(four, four + 25),
        lambda: Mix(range(4), square - (1 << 14) - 1, square, four),
        lambda: Mix(range(4), square, square + (1 << 14) + 1, four),
        lambda: Mix(range(4), square, square, four - 25),
    ):
        with pytest.raises(ModelError):
            call()


@pytest.mark.parametrize("lanes", [1, 64])
@pytest.mark.parametrize("fineness", [4, 10])
def test_the_base_comes_back_and_costs_what_it_says(lanes, fineness):
    base, n = Base(Logit(24, fineness)), 5000
    message = random_message(lanes, 2 * n)
    before, bits = message.to_bytes(), message.bits
    y = base.pop(message, n)
    assert bits - message.bits == pytest.approx(base.bits(y), rel=1e-3)
    base.push(message, y)
    assert message.to_bytes() == before
    ends = np.array([0, cells(fineness) - 1] * 40)
    base.push(message, ends)
    assert np.array_equal(base.pop(message, len(ends)), ends)
    assert message.to_bytes() == before
    # A logistic: half of its mass is within +-log 3.
    real = (y + 0.5) / (1 << fineness) - 17
    assert (np.abs(real) < np.log(3)).mean() == pytest.approx(0.5, abs=0.03)
    with pytest.raises(MessageExhausted):
        base.pop(Message(1), 3)


def scrambled(layer, seed=0, strength=0.7):
    """A twin with random parameters."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in layer.named_parameters():
            spread = strength / max(p[0].numel(), 1) ** 0.5 if "weight" in name else strength / 4
            p.copy_(spread * (2 * torch.rand(p.shape, generator=random) - 1))
            if "head" in name:
                p.mul_(0.4)
    exact.set_fake(layer, fake=True)
    return layer.eval()


NORM, MIX = LayerShape("norm"), LayerShape("mix", order=(2, 0, 3, 1))
LAYERS = {
    "norm": (NORM,),
    "mix": (MIX,),
    "affine": (LayerShape("coupling", (1, 2)),),
    "affine of one": (LayerShape("coupling", (3,)),),
    "affine of all": (LayerShape("coupling", (0, 1, 2, 3)),),
    "mixture": (LayerShape("coupling", (0, 3), 3),),
    "flow": (NORM, MIX, LayerShape("coupling", (0, 3)), LayerShape("coupling", (1, 2), 2)),
}


def shape_of(name, tilted=False):
    return CouplingShape(STATE, 3, 8, LAYERS[name], tilted)


def frozen(twin, shape):
    """The layers that a twin of this shape becomes."""
    return Couplings(shape, frozen_tensors(copy.deepcopy(twin)), "")


def phase_of(couplings, shape, fineness, seed=0):
    """A phase of logistic noise, and what steers its flow."""
    rng, count = np.random.default_rng(seed), int(np.prod(shape))
    u = rng.integers(0, 1 << 24, count)
    y = Uniform().forward(random_message(64, count), u, Logit(24, fineness)).reshape(shape)
    states = rng.integers(128, 256, (*shape, STATE)).astype(np.uint8)
    return y, couplings.around(states).steering()


def parts_of(planes):
    """[N, rows, columns, ...] of whole squares as parts, [N, 4, ...]."""
    return np.stack([planes[:, row::2, column::2] for row, column in PARTS], 1)


def context_of(twin, steering):
    """The context of some steering, as a twin takes it."""
    context = int8.inside(steering.context).astype(np.float32) - int8.ZERO
    return torch.from_numpy(context.transpose(0, 3, 1, 2)[:, : twin.context.weight.shape[0]])


@pytest.mark.parametrize("coder", CODERS, ids=repr)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [(1, 1), (7, 9), (16, 12)])
def test_layers_come_back(name, coder, shape):
    couplings = frozen(scrambled(FlowTwin(shape_of(name))), shape_of(name))
    for fineness, lanes in ((4, 1), (10, 16)):
        flow = PhaseFlow(24, fineness, coder)
        y, steering = phase_of(couplings, (2, *shape), fineness)
        y[0, 0, 0], y[1, 0, 0] = 0, cells(fineness) - 1
        message = random_message(lanes, 5000)
        before, moved = message.to_bytes(), y.copy()
        flow.forward(message, moved, steering)
        changed = (moved != y).any()
        flow.inverse(message, moved, steering)
        assert np.array_equal(moved, y)
        assert message.to_bytes() == before
        flow.inverse(message, moved, steering)
        flow.forward(message, moved, steering)
        assert np.array_equal(moved, y)
        assert message.to_bytes() == before
        if min(shape) > 1:
            assert changed
            with pytest.raises(MessageExhausted):
                flow.forward(Message(1), moved, steering)


@pytest.mark.parametrize("name", LAYERS)
def test_twins_are_their_layers(name):
    twin, fineness = scrambled(FlowTwin(shape_of(name))), 14
    couplings = frozen(twin, shape_of(name))
    y, steering = phase_of(couplings, (2, 32, 32), fineness)
    message, moved = random_message(16, 1 << 16), y.copy()
    held = message.bits
    cost, lowest = PhaseFlow(24, fineness, Uniform()).forward(message, moved, steering)

    def real(planes):
        return torch.from_numpy(parts_of(2 * planes + 1 - cells(fineness))).float() / (
            2 << fineness
        )

    with torch.no_grad():
        twin_moved, ladj = twin(real(y), context_of(twin, steering))
    # What a network sees may be rounded the other way, here and there.
    assert (twin_moved - real(moved)).abs().mean() < 2e-3
    net = -ladj.double().sum().item() / np.log(2)
    assert (cost - net) / y.size == pytest.approx(0, abs=3e-3)
    assert message.bits - held == pytest.approx(cost, abs=1)
    assert lowest <= min(held, message.bits)


@pytest.mark.parametrize("name", LAYERS)
def test_twins_know_their_derivatives(name):
    twin = scrambled(FlowTwin(shape_of(name))).double()
    exact.set_fake(twin, fake=False)
    random = torch.Generator().manual_seed(1)
    y = torch.randn(1, 4, 1, 1, generator=random, dtype=torch.float64)
    context = torch.zeros(1, 3, 1, 1, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: twin(v, context)[0], y).reshape(4, 4)
    _, ladj = twin(y, context)
    assert ladj.sum().item() == pytest.approx(torch.linalg.slogdet(jacobian)[1].item(), abs=1e-9)


def test_fresh_twins_do_nothing():
    y, context = torch.randn(2, 4, 6, 6), torch.zeros(2, 3, 6, 6)
    for name in ("norm", "mix", "affine", "affine of one"):
        moved, ladj = FlowTwin(shape_of(name))(y, context)
        assert torch.equal(moved, y)
        assert (ladj == 0).all()
    moved, _ = FlowTwin(shape_of("mixture"))(y, context)
    assert (moved - y).abs().max() < 0.3
    tilts = FlowTwin(shape_of("flow", tilted=True)).tilts(context)
    assert tilts.shape == y.shape
    assert (tilts == 0).all()
    assert FlowTwin(shape_of("flow")).tilts(context) is None


def test_norms_begin_with_what_they_are_shown():
    random = torch.Generator().manual_seed(1)
    y, context = 3 * torch.randn(8, 4, 24, 24, generator=random) + 1, torch.zeros(8, 3, 24, 24)
    twin = FlowTwin(shape_of("norm"))
    twin.start(y, context)
    moved, _ = twin(y, context)
    assert moved.mean(dim=(0, 2, 3)).abs().max() < 0.5
    assert (moved.std(dim=(0, 2, 3)) - 1.8).abs().max() < 0.3


def mixed_samples(n, seed=0):
    """Samples that the mixture takes for wider than they are, with their intervals."""
    rng = np.random.default_rng(seed)
    noise = rng.logistic(0, 4, n)
    mean = np.rint(256 * rng.normal(128, 30, n)).astype(np.int32)
    scale = np.full(n, 60, dtype=np.int32)
    symbols = np.rint(mean / 256 + 0.8 * noise).clip(0, 255).astype(np.int32)
    model = LogisticMixture(0, 255, 24)
    return model, symbols, mean, scale


@pytest.mark.parametrize("coder", [Uniform(), Gaussian(32)], ids=repr)
@pytest.mark.parametrize("fineness", [6, 10])
def test_the_identity_costs_what_the_mixture_says(coder, fineness):
    n = 20000
    model, symbols, mean, scale = mixed_samples(n)
    start, freq = model.interval(symbols, mean, scale)
    logit = Logit(24, fineness)
    base, dequantizer = Base(logit), Dequantizer(logit)
    message = random_message(16, n)
    before, bits = message.to_bytes(), message.bits
    y = dequantizer.forward(message, coder, start, freq)
    base.push(message, y)
    slack = 1e-4 if isinstance(coder, Uniform) else 0.01
    ideal = model.bits(symbols, mean, scale)
    assert (message.bits - bits - ideal) / n == pytest.approx(0, abs=slack)

    def find(u, part):
        found = model.lookup(u, mean[part], scale[part])
        assert np.array_equal(found, symbols[part])
        return model.interval(found, mean[part], scale[part])

    assert np.array_equal(base.pop(message, n), y)
    dequantizer.inverse(message, coder, y, find)
    assert message.to_bytes() == before


@pytest.mark.parametrize("coder", [Uniform(), Gaussian(16)], ids=repr)
def test_a_flow_costs_what_it_says(coder):
    # Through all of it: tilts, layers, base; against the twin in floats.
    shape = (2, 64, 96)
    model, symbols, mean, scale = mixed_samples(int(np.prod(shape)))
    start, freq = (a.astype(np.int64) for a in model.interval(symbols, mean, scale))
    kind = shape_of("flow", tilted=True)
    twin = scrambled(FlowTwin(kind))
    _, steering = phase_of(frozen(twin, kind), shape, 10)
    message = random_message(64, 1 << 15)
    before, held = message.to_bytes(), message.bits
    flow = PhaseFlow(24, 10, coder)
    cost = flow.push(message, start, freq, steering)
    net = message.bits - held
    slack = 0.02 if isinstance(coder, Gaussian) else 1e-3
    assert (cost.ideal - net) / symbols.size == pytest.approx(0, abs=slack)

    context = context_of(twin, steering)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        tilts = twin.tilts(context)
        chosen = steering.couplings.tilts(steering.context, shape)
        assert np.array_equal(tilts.numpy(), parts_of(chosen))
        assert len(np.unique(chosen)) > 1
        ends = (torch.from_numpy(parts_of(a.reshape(shape))).double() for a in (start, freq))
        noise = torch.rand(tilts.shape, generator=random, dtype=torch.float64)
        first, tilted = dequantize(*ends, 24, noise, tilts)
        last, ladj = twin(first, context)
        saved = gain_bits(first, last, ladj).double().sum().item()
    ideal = model.bits(symbols, mean, scale) - saved + tilted.double().sum().item() / np.log(2)
    assert saved != 0
    # Both are means over the places that were drawn, which are not the same.
    assert (net - ideal) / symbols.size == pytest.approx(0, abs=0.01)
    flow.pop(message, lambda u, part: (start[part], freq[part]), steering)
    assert message.to_bytes() == before


def test_dequantization_in_floats():
    n = 50000
    start, freq = np.full(n, 1 << 22), np.full(n, 1 << 23)
    for tilt in (-8, 3):
        tilts = torch.full((n,), float(tilt))
        random = torch.Generator().manual_seed(0)
        noise = torch.rand(n, generator=random, dtype=torch.float64)
        known = (torch.from_numpy(a).double() for a in (start, freq))
        y, density = dequantize(*known, 24, noise, tilts)
        places = Dequantizer(Logit(24, 14)).forward(
            random_message(64, 2 * n), Uniform(), start, freq, np.full(n, tilt)
        )
        real = (places + 0.5) / (1 << 14) - 17
        assert y.mean().item() == pytest.approx(real.mean(), abs=0.01)
        assert y.std().item() == pytest.approx(real.std(), abs=0.01)
        u = (1 << 24) / (1 + np.exp(-y.double().numpy()))
        inside = (u - start).clip(0, (1 << 23) - 1).astype(np.int64)
        bits = 23 * n - place_bits(inside, freq, np.full(n, tilt))
        assert density.sum().item() / np.log(2) / n == pytest.approx(bits / n, abs=0.01)
    u = torch.tensor([0.0, 0.25, 0.5, 0.9]).double()
    assert move_logit(u, 24).tolist() == pytest.approx([-17, -np.log(3), 0, np.log(9)], abs=1e-3)


@pytest.mark.parametrize("tilt", [-5.0, 0.5, 4.0])
def test_leaning_has_the_gradient_of_what_it_costs(tilt):
    n = 20000
    noise = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def cost(lean):
        known = (torch.full((n,), float(1 << bits), dtype=torch.float64) for bits in (22, 23))
        y, density = dequantize(*known, 24, noise, lean.expand(n))
        return density.mean(), y.double().mean()

    step = 1 / 64
    lean = torch.tensor(tilt, requires_grad=True)
    for own, above, below in zip(
        cost(lean), cost(lean.detach() + step), cost(lean.detach() - step), strict=True
    ):
        (gradient,) = torch.autograd.grad(own, lean, retain_graph=True)
        assert abs(gradient.item()) > 1e-3
        assert gradient.item() == pytest.approx((above - below).item() / (2 * step), rel=0.02)


def test_mixtures_have_the_gradient_of_what_they_stretch():
    y = 6 * torch.rand(20000, generator=torch.Generator().manual_seed(0)) - 3
    parameters = (torch.tensor(row) for row in ([3.0, -9.0], [-300.0, 500.0], [-4.0, -10.0]))
    weight, mean, scale = (row.expand(len(y), 2) for row in parameters)

    def ladj(shift):
        return move_mixture(y + shift, weight, mean, scale)[1].double().mean()

    shift, step = torch.zeros((), requires_grad=True), 1 / 16
    ladj(shift).backward()
    expected = (ladj(torch.tensor(step)) - ladj(torch.tensor(-step))).item() / (2 * step)
    assert abs(expected) > 0.01
    assert shift.grad.item() == pytest.approx(expected, rel=0.05)


def test_lookup_finds_every_symbol():
    model, symbols, mean, scale = mixed_samples(3000)
    for precision in (12, 24, 31):
        model = LogisticMixture(0, 255, precision)
        start, freq = (a.astype(np.int64) for a in model.interval(symbols, mean, scale))
        for slots in (start, start + freq - 1):
            assert np.array_equal(model.lookup(slots, mean, scale), symbols)


HASH = """
import hashlib, torch, test_continuous as t
from bits_laws import random_message
torch.set_num_threads(int(__import__("sys").argv[1]))
digest = hashlib.sha256()
for coder in t.CODERS:
    for name in t.LAYERS:
        couplings = t.frozen(t.scrambled(t.FlowTwin(t.shape_of(name))), t.shape_of(name))
        y, steering = t.phase_of(couplings, (2, 23, 30), 10)
        message = random_message(8, 5000)
        t.PhaseFlow(24, 10, coder).forward(message, y, steering)
        digest.update(y.tobytes() + message.to_bytes())
print(digest.hexdigest())
"""


def test_the_same_bits_everywhere(root):
    found = set()
    generic = {"NUMBA_CPU_NAME": "generic", "ATEN_CPU_CAPABILITY": "default"}
    for threads, extra in ((2, {}), (1, {**generic, "ONEDNN_MAX_CPU_ISA": "SSE41"})):
        path = os.pathsep.join([str(root), str(root / "tests")])
        run = subprocess.run(
            [sys.executable, "-c", HASH, str(threads)],
            env={**os.environ, "PYTHONPATH": path, **extra},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        found.add(run.stdout)
    assert len(found) == 1
