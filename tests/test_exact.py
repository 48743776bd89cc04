"""Exact layers: the twin, the frozen layer and 64-bit integers say the same."""

from __future__ import annotations

import copy
from threading import Barrier, Thread
from typing import Any

import numpy as np
import pytest
import torch
from integers import ints, plain_conv, plain_norm, plain_swish
from models import RUNGS, make_twin, scramble
from torch import Tensor, nn

from flowarchive import exact, int8
from flowarchive.errors import ModelError, NotReproducible


def activations(*shape: int, seed: int = 0, low: int = -128, high: int = 127) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, shape, generator=random).float()


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "1x1": {"inputs": 5, "outputs": 7, "kernel": 1},
    "3x3": {"inputs": 5, "outputs": 7, "kernel": 3},
    "5x5": {"inputs": 3, "outputs": 2, "kernel": 5},
    "depthwise": {"inputs": 6, "outputs": 6, "kernel": 3, "groups": 6},
    "grouped": {"inputs": 6, "outputs": 4, "kernel": 3, "groups": 2},
    "rectify": {"inputs": 5, "outputs": 7, "kernel": 3, "rectify": True},
    "wide": {"inputs": 5, "outputs": 3, "kernel": 3, "max_weight": exact.WIDE_WEIGHT, "gain": 8},
    "wide limit": {
        "inputs": 4,
        "outputs": 3,
        "kernel": 1,
        "max_weight": exact.WIDE_WEIGHT,
        "limit": 32767,
        "gain": 8,
        "rezero": True,
    },
    "norm input": {"inputs": 5, "outputs": 4, "kernel": 1, "gain": 2, "limit": 2047},
    "gains": {"inputs": 5, "outputs": 4, "kernel": 3, "gain": [0, 2, 8, -3]},
}


def make_conv(name: str, strength: float = 1.0, seed: int = 0) -> exact.Conv2d:
    twin = exact.Conv2d(**CONVOLUTIONS[name])
    scramble(twin, seed, strength)
    twin.fake = True
    return twin


@pytest.mark.parametrize("strength", [0.01, 1, 100, 3000], ids=lambda s: f"weights {s}")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_is_its_twin_and_the_integers(name, strength):
    twin = make_conv(name, strength)
    frozen = twin.freeze()
    for shape in ((2, 9, 7), (1, 1, 1), (3, 2, 16)):
        x = activations(shape[0], CONVOLUTIONS[name]["inputs"], *shape[1:], seed=shape[1])
        with torch.no_grad():
            expected = twin(x)
        assert torch.equal(frozen(x.clone()), expected)
        assert np.array_equal(plain_conv(frozen, ints(x)), ints(expected))
        last = x.to(memory_format=torch.channels_last)
        assert torch.equal(frozen(last), expected)


def test_convolutions_of_the_tests_reach_every_case():
    shifts, seen = set(), set()
    for name in CONVOLUTIONS:
        for strength in (0.01, 1, 100, 3000):
            frozen = make_conv(name, strength).freeze()
            shifts |= set(frozen.shift.tolist())
            low, high = frozen.limits
            y = frozen(activations(2, CONVOLUTIONS[name]["inputs"], 16, 16))
            seen |= {"low"} if (y == low).any() else set()
            seen |= {"high"} if (y == high).any() else set()
            seen |= {"inside"} if ((y > low) & (y < high)).any() else set()
    assert min(shifts) < 0 < max(shifts)
    assert 0 in shifts
    assert seen == {"low", "high", "inside"}


@pytest.mark.parametrize("shift", [-32, -16, -1, 0, 1, 7, 24])
@pytest.mark.parametrize("largest", [(1 << 24) - 1, 12345])
def test_sums_up_to_the_limit_come_out_right_at_any_shift(shift, largest):
    # One input that is 1 makes the sum the bias plus a small weight.
    layer = exact.IntConv2d(torch.Size((64, 1, 1, 1)), (-(1 << 15), (1 << 15) - 1), 1, False)
    steps = torch.arange(64) - 32
    around = (1 << shift >> 1) if shift > 0 else 0
    layer.bias.copy_(((largest - 200) - steps.abs()) * steps.sign())
    layer.bias[::2] = (around + steps[::2]).clamp(-largest + 200, largest - 200)
    layer.weight[1::3] = 1
    layer.shift.fill_(shift)
    layer.check()
    x = torch.ones(1, 1, 1, 1)
    assert np.array_equal(ints(layer(x)), plain_conv(layer, ints(x)))


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_bound_is_refused_at_its_limit_and_taken_below(sign):
    weight, bias = np.zeros((3, 2, 3, 3), np.int8), np.zeros(3, np.int32)
    weight[1] = sign * 127
    # 18 * 127 * 128 = 292608
    bias[1] = sign * ((1 << 24) - 292608 - 1)
    int8.check_bound(weight, bias)
    bias[1] += sign
    with pytest.raises(NotReproducible, match=r"2\*\*24"):
        int8.check_bound(weight, bias)
    weight[1, 0, 2, 2] = 0
    int8.check_bound(weight, bias)
    bias[2] = -(1 << 31)
    with pytest.raises(NotReproducible):
        int8.check_bound(weight, bias)


def test_a_frozen_layer_that_breaks_its_bound_refuses_to_work():
    layer = make_conv("3x3").freeze()
    layer.bias[0] = 1 << 24
    with pytest.raises(NotReproducible):
        exact.check(nn.Sequential(layer))
    unproved = exact.IntConv2d(layer.weight.shape, layer.limits, 1, False)
    unproved.bias[0] = 1 << 24
    with pytest.raises(NotReproducible):
        unproved(activations(1, 5, 2, 2))


@pytest.mark.parametrize("shift", [-33, 25, 127, -128])
def test_shifts_out_of_range_are_refused(shift):
    layer = make_conv("1x1").freeze()
    layer.shift[3] = shift
    with pytest.raises(ModelError, match="shift"):
        exact.check(nn.Sequential(layer))


@pytest.mark.parametrize("buffer", ["gain", "offset"])
@pytest.mark.parametrize("value", [(1 << 24) + 1, -(1 << 31)])
def test_normalizations_out_of_range_are_refused(buffer, value):
    layer = exact.GroupNorm(2, 4).freeze()
    getattr(layer, buffer)[1] = value
    with pytest.raises(ModelError, match=buffer):
        exact.check(nn.Sequential(layer))


@pytest.mark.parametrize("max_weight", [exact.MAX_WEIGHT, exact.WIDE_WEIGHT])
@pytest.mark.parametrize("value", [0.001, 0.5, 40.0])
@pytest.mark.parametrize("bias", [0.0, 1e3])
def test_many_large_weights_share_the_accumulator(max_weight, value, bias):
    twin = exact.Conv2d(256, 2, 3, max_weight=max_weight)
    with torch.no_grad():
        twin.weight.fill_(value)
        twin.weight[:, ::2] *= -1
        twin.bias.fill_(bias)
    twin.fake = True
    frozen = twin.freeze()  # which proves the bound
    total = frozen.weight.long().abs().sum((1, 2, 3)) * 128 + frozen.bias.long().abs()
    assert int(total.max()) < 1 << 24
    x = activations(1, 256, 3, 3)
    assert torch.equal(frozen(x.clone()), twin(x))
    assert np.array_equal(plain_conv(frozen, ints(x)), ints(twin(x)))
    # What is left is still the convolution that was meant.
    real = nn.functional.conv2d(x, twin.weight, twin.bias * exact.UNIT, padding=1).clamp(-128, 127)
    if value < 1:
        assert (ints(frozen(x.clone())) - real.detach().numpy()).max() < 0.6 + 300 * value


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("low", "high"), [(-2048, 2047), (-3, 3), (5, 5), (2040, 2047)])
def test_normalization_is_its_twin_and_the_integers(groups, low, high):
    twin = exact.GroupNorm(groups, 8)
    scramble(twin, groups)
    twin.fake = True
    frozen = twin.freeze()
    for shape in ((3, 5, 7), (1, 1, 1)):
        x = activations(shape[0], 8, *shape[1:], low=low, high=high, seed=groups)
        with torch.no_grad():
            expected = twin(x)
        assert torch.equal(frozen(x.clone()), expected)
        assert torch.equal(frozen(x.clone(memory_format=torch.channels_last)), expected)
        assert np.array_equal(plain_norm(frozen, ints(x)), ints(expected))


def test_normalization_is_exact_at_the_ends_of_its_range():
    layer = exact.IntGroupNorm(1, 2)
    layer.gain.copy_(torch.tensor([1 << 24, -(1 << 24)]))
    layer.offset.copy_(torch.tensor([-(1 << 24), 1 << 24]))
    layer.check()
    # All samples but one are equal, so that the one is far from the mean and nothing saturates.
    for value in (2047, -2048):
        x = torch.full((1, 2, 3, 3), float(value))
        x[0, 0, 1, 1] = -value
        factor, shift = exact.norm_factors(x, layer.gain, layer.offset, 1)
        sums = ints(x)[0].reshape(2, -1) * factor.numpy().T.astype(object).astype(np.int64)
        assert np.abs(sums).max() < 1 << 53
        assert np.abs(sums + ints(shift).T).max() < 1 << 53
        assert np.array_equal(ints(layer(x.clone())), plain_norm(layer, ints(x)))


def test_swish_is_the_rounded_function_on_every_activation():
    every = torch.arange(-128, 128).float().reshape(1, 4, 8, 8)
    expected = plain_swish(np.arange(-128, 128)).tolist()
    twin = exact.Swish()
    twin.fake = True
    assert ints(twin(every)).reshape(-1).tolist() == expected
    assert ints(twin.freeze()(every.clone())).reshape(-1).tolist() == expected
    # It has a minimum left of zero, and nothing moves there but by one step.
    assert min(expected) == -9
    assert expected[128] == 0


def test_rounding_is_half_up_and_passes_gradients_through():
    x = torch.tensor([-1.5, -0.5, -0.25, 0.0, 0.5, 1.49, 1.5, 2.5], requires_grad=True)
    y = exact.round_half_up(x)
    assert y.tolist() == [-1, 0, 0, 0, 1, 1, 2, 3]
    (y * torch.arange(8.0)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == list(range(8))


def test_clamp_pulls_stray_values_back_and_lets_none_stray_further():
    x = torch.tensor([-9.0, -9.0, -4.0, 0.0, 3.0, 9.0, 9.0], requires_grad=True)
    y = exact.clamp(x, -4, 3)
    assert y.tolist() == [-4, -4, -4, 0, 3, 3, 3]
    # A step against the gradient: +1 lowers a value, -1 raises it.
    y.backward(torch.tensor([1.0, -1, 1, -1, 1, 1, -1]))
    assert x.grad is not None
    assert x.grad.tolist() == [0, -1, 1, -1, 1, 1, 0]


@pytest.mark.parametrize("fake", [False, True], ids=["float", "fake"])
def test_every_parameter_has_a_finite_gradient(fake):
    network = nn.Sequential(
        exact.Conv2d(3, 8, 1, exact.NORM_INPUT_GAIN, exact.NORM_INPUT_MAX, rezero=True),
        exact.GroupNorm(2, 8),
        exact.Swish(),
        exact.Conv2d(8, 8, 3, rectify=True),
        exact.Conv2d(8, 2, 3, 8, 32767, max_weight=exact.WIDE_WEIGHT, rezero=True),
    )
    scramble(network)
    exact.set_fake(network, fake)
    network(activations(2, 3, 6, 6)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_fake_gradients_are_near_the_float_ones():
    twin = make_conv("wide")
    x = activations(2, 5, 8, 8)
    gradients = []
    for fake in (False, True):
        twin.fake = fake
        twin.zero_grad()
        twin(x).sum().backward()
        assert twin.weight.grad is not None
        gradients.append(twin.weight.grad.clone())
    assert torch.allclose(*gradients, rtol=0.02, atol=0.02 * float(gradients[0].abs().max()))


@pytest.mark.parametrize("rung", RUNGS)
def test_a_whole_flow_is_its_frozen_form(rung):
    twin = make_twin(seed=3, **RUNGS[rung])
    frozen = exact.freeze(copy.deepcopy(twin))
    assert not any(isinstance(module, exact.Twin) for module in frozen.modules())
    x, context = activations(2, 2, 16, 24), activations(2, 1, 16, 24, seed=1)
    mask = torch.ones(1, 2, 16, 24)
    mask[..., 13:, :] = mask[..., 19:] = 0
    for shift in (0, 3):
        for masked in (None, mask):
            samples = x * 2**shift if masked is None else x * 2**shift * masked
            with torch.no_grad():
                ours = twin.chroma(samples, context, masked, shift)
                theirs = frozen.chroma(samples, context, masked, shift)
            moved = False
            for a, b in zip(ours, theirs, strict=True):
                assert torch.equal(a.z, b.z)
                assert torch.equal(a.mean, b.mean)
                assert torch.equal(a.scale, b.scale)
                assert (a.weight is None) == (b.weight is None)
                assert a.weight is None or torch.equal(a.weight, b.weight)
                moved |= a.mean.unique().numel() > 4 and a.scale.unique().numel() > 4
            assert moved, "the networks say nothing"


def test_freezing_saving_and_loading_keeps_every_integer():
    twin = make_twin(seed=5)
    frozen = exact.freeze(copy.deepcopy(twin))
    x = activations(1, 1, 16, 16)
    expected = frozen.luma(x)
    state = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    assert all(tensor.dtype in (torch.int8, torch.int16, torch.int32) for tensor in state.values())
    with torch.device("meta"):
        other = exact.hollow(copy.deepcopy(twin).to("meta"))
    assert all(tensor.is_meta for tensor in other.state_dict().values())
    other.load_state_dict(state, assign=True)
    exact.check(other)
    for a, b in zip(expected, other.luma(x), strict=True):
        assert torch.equal(a.z, b.z)
        assert torch.equal(a.mean, b.mean)
        assert torch.equal(a.scale, b.scale)


def test_workers_with_one_thread_leave_others_theirs():
    before = torch.get_num_threads()
    inside, later, both = [], [], Barrier(2)

    def work() -> None:
        with exact.one_thread():
            both.wait()
            inside.append(torch.get_num_threads())
            both.wait()

    for targets in ((work, work), (lambda: later.append(torch.get_num_threads()),)):
        threads = [Thread(target=target) for target in targets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert inside == [1, 1]
    assert torch.get_num_threads() == before
    assert later == [before]
