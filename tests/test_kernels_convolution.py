"""The kernels of networks and couplings say what the exact layers and plain integers say."""

from __future__ import annotations

import pytest
import torch
from interpreted import CPU, Runs, poisoned
from models import scramble
from torch import Tensor

from flowarchive import exact
from flowarchive.flows.integer import FRACTION, OUTPUT_MAX
from triton_kernels import convolution, coupling

INT16 = (-(1 << 15), (1 << 15) - 1)


def integers(low: int, high: int, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, shape, generator=random).to(dtype)


def exact_layer(weight: Tensor, bias: Tensor, shift: Tensor, limits: tuple[int, int], groups=1):
    """The CPU's own layer of these integers, proved exact."""
    layer = exact.IntConv2d(weight.shape, limits, groups, weight.dtype == torch.int16)
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    layer.shift.copy_(shift)
    layer.check()
    return layer


def on_cpu(layer: exact.IntConv2d, x: Tensor) -> Tensor:
    """What it computes of int8 [N, h, w, I], as integers [N, h, w, O]."""
    return layer(x.permute(0, 3, 1, 2).float()).permute(0, 2, 3, 1).to(torch.int64)


def random_layer(outputs: int, inputs: int, side: int, wide: bool, limits: tuple[int, int], seed=0):
    """A layer that reaches its limits, with every shift there is."""
    most = min(16383 if wide else 127, ((1 << 24) - (1 << 21)) // (128 * inputs * side**2))
    kind = torch.int16 if wide else torch.int8
    weight = integers(-most, most, (outputs, inputs, side, side), kind, seed)
    bias = integers(-(1 << 20), 1 << 20, (outputs,), torch.int32, seed + 1)
    shift = integers(-32, 24, (outputs,), torch.int8, seed + 2)
    shift[: outputs // 2] = integers(0, 14, (outputs // 2,), torch.int8, seed + 3)
    return exact_layer(weight, bias, shift, limits)


def pack(layer: exact.IntConv2d) -> convolution.Layer:
    return convolution.pack(layer.weight, layer.bias, layer.shift, layer.limits, CPU)


SHAPES = [
    # N, h, w, inputs, outputs, side
    (1, 1, 1, 1, 1, 3),
    (1, 7, 9, 16, 63, 3),
    (2, 8, 4, 64, 64, 1),
    (1, 5, 13, 80, 65, 3),
    (1, 25, 40, 32, 15, 1),
]


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_convolutions(shape, wide, monkeypatch):
    runs = Runs(monkeypatch, convolution, "convolution_kernel")
    *pixels, inputs, outputs, side = shape
    limits = INT16 if wide else (0, 127)
    layer = random_layer(outputs, inputs, side, wide, limits)
    x = integers(-128, 127, (*pixels, inputs), torch.int8, 5)
    y = poisoned(torch.int16 if wide else torch.int8, *pixels, outputs)
    assert convolution.convolve(x, pack(layer), y) is y
    assert torch.equal(y.long(), on_cpu(layer, x))
    assert len(runs.grids) == 1


@pytest.mark.parametrize("value", [-128, 127])
def test_saturating_sums(value):
    """The largest sums that a proof admits, both ways, at shifts that keep them and that do not."""
    weight = torch.tensor([127, -127, 127, -127], dtype=torch.int8)[:, None, None, None]
    weight = weight.expand(4, 114, 3, 3).contiguous()
    bias = torch.tensor([90000, -90000, 90000, -90000], dtype=torch.int32)
    for shift in ([24, 24, 0, 0], [9, 9, -32, -32], [-1, -1, -16, -16]):
        layer = exact_layer(weight, bias, torch.tensor(shift, dtype=torch.int8), INT16)
        x = torch.full((1, 3, 3, 114), value, dtype=torch.int8)
        y = convolution.convolve(x, pack(layer), poisoned(torch.int16, 1, 3, 3, 4))
        assert torch.equal(y.long(), on_cpu(layer, x))


def test_halves_are_rounded_up():
    """Sums of every kind around a half, by the identity."""
    weight = torch.ones((1, 1, 1, 1), dtype=torch.int8)
    x = torch.arange(-128, 128, dtype=torch.int8).reshape(1, 1, 256, 1)
    for shift in range(-8, 12):
        layer = exact_layer(
            weight, torch.tensor([3]), torch.tensor([shift], dtype=torch.int8), INT16
        )
        y = convolution.convolve(x, pack(layer), poisoned(torch.int16, 1, 1, 256, 1))
        assert torch.equal(y.long(), on_cpu(layer, x)), shift


def test_residual_and_look_up():
    """A state that grows in place inside a wider tensor, and Swish by its table."""
    layer = random_layer(32, 48, 3, False, (0, 127))
    both = integers(0, 127, (2, 6, 7, 48), torch.int8, 7)
    state = both[..., :32]
    expected = (state.long() + on_cpu(layer, both)).clamp(0, 127)
    grown = both.clone()
    convolution.convolve(both, pack(layer), grown[..., :32], residual=state, limits=(0, 127))
    assert torch.equal(grown[..., :32].long(), expected)
    assert torch.equal(grown[..., 32:], both[..., 32:])

    signed = random_layer(9, 48, 1, False, (-128, 127))
    table = torch.tensor(exact.swish_table(), dtype=torch.int8)
    y = convolution.convolve(both, pack(signed), poisoned(torch.int8, 2, 6, 7, 9), table=table)
    assert torch.equal(y.long(), table[on_cpu(signed, both) + 128].long())


@pytest.mark.parametrize("channels", [1, 63, 65])
def test_depthwise(channels):
    layer = exact_layer(
        integers(-127, 127, (channels, 1, 3, 3), torch.int8),
        integers(-9999, 9999, (channels,), torch.int32),
        integers(-3, 12, (channels,), torch.int8),
        (-128, 127),
        channels,
    )
    x = integers(-128, 127, (2, 5, 7, channels), torch.int8, 3)
    y = convolution.convolve_depthwise(x, pack(layer), poisoned(torch.int8, *x.shape))
    assert torch.equal(y.long(), on_cpu(layer, x))


@pytest.mark.parametrize("shift", [0, 3, 8])
def test_additive_coupling(shift, monkeypatch):
    """A last layer beside a linear one moves its half as `flows.integer` has it, and back."""
    runs = Runs(monkeypatch, coupling, "couple_kernel")
    layer = random_layer(3, 24, 1, True, INT16)
    made = integers(-128, 127, (2, 5, 6, 24), torch.int8, 1)
    linear = integers(*INT16, (2, 5, 6, 3), torch.int16, 2)
    mask = integers(0, 1, (1, 5, 6, 3), torch.int8, 3)
    moved = integers(-70000, 70000, (2, 5, 6, 3), torch.int32, 4)
    t = exact.clamp(linear.float() + on_cpu(layer, made).float(), -OUTPUT_MAX - 1, OUTPUT_MAX)
    t = exact.round_half_up(t * 2.0 ** (shift - FRACTION)).long() * mask
    fraction = FRACTION - shift
    y = poisoned(torch.int32, *moved.shape)
    coupling.couple(made, pack(layer), moved, y, fraction, linear=linear, mask=mask)
    assert torch.equal(y.long(), moved + t)
    coupling.couple(made, pack(layer), y, y, fraction, inverse=True, linear=linear, mask=mask)
    assert torch.equal(y, moved)
    coupling.couple(made, pack(layer), moved, y, fraction)
    alone = exact.round_half_up(on_cpu(layer, made).float() * 2.0 ** (shift - FRACTION)).long()
    assert torch.equal(y.long(), moved + alone)
    assert len(runs.grids) == 3


def test_launchers_refuse():
    layer = pack(random_layer(4, 8, 3, False, (0, 127)))
    x, y = torch.zeros(1, 4, 4, 8, dtype=torch.int8), torch.zeros(1, 4, 4, 4, dtype=torch.int8)
    with pytest.raises(TypeError, match=r"x is torch\.uint8"):
        convolution.convolve(x.to(torch.uint8), layer, y)
    with pytest.raises(ValueError, match="x is"):
        convolution.convolve(x[..., :7], layer, y)
    with pytest.raises(ValueError, match="strides"):
        convolution.convolve(x[:, ::2], layer, y[:, :2])
    with pytest.raises(ValueError, match="on meta"):
        convolution.convolve(x, layer, y.to("meta"))
    wide = pack(random_layer(4, 8, 3, True, INT16))
    with pytest.raises(ValueError, match="do not fit int8"):
        convolution.convolve(x, wide, y)
    with pytest.raises(ValueError, match="depthwise"):
        convolution.convolve_depthwise(x, layer, y)


def test_a_twin_goes_to_the_kernel():
    """From training to a kernel by the house's own road."""
    twin = scramble(exact.Conv2d(16, 12, 3, rectify=True), 3)
    layer = twin.freeze()
    x = integers(-128, 127, (1, 6, 5, 16), torch.int8)
    y = convolution.convolve(x, pack(layer), poisoned(torch.int8, 1, 6, 5, 12))
    assert torch.equal(y.long(), on_cpu(layer, x))
