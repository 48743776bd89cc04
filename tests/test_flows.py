"""Integer flows: exact inverses on every rung, no padding coded, a support that holds."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import RUNGS, make_model, make_twin
from torch import Tensor

from flowarchive import exact
from flowarchive.flows.integer import (
    MAX_MOVES,
    OUTPUT_MAX,
    SCALE_MAX,
    Coupling,
    IntegerFlow,
    Latent,
    squeeze,
    unsqueeze,
)
from flowarchive.models.idf import IdfModel, _coder

model_of = functools.cache(make_model)


@functools.cache
def rung_model(rung: str) -> IdfModel:
    return make_model(seed=7, **RUNGS[rung])


def draw(*shape: int, seed: int, bits: int = 8) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(-(1 << bits), 1 << bits, shape, generator=random).float()


def make_mask(channels: int, h: int, w: int, multiple: int) -> tuple[Tensor | None, int, int]:
    """The mask of h x w real samples, and the padded sides."""
    height, width = h + -h % multiple, w + -w % multiple
    if (height, width) == (h, w):
        return None, height, width
    mask = torch.zeros(1, channels, height, width)
    mask[..., :h, :w] = 1
    return mask, height, width


def check_flow(
    flow: IntegerFlow,
    x: Tensor,
    context: Tensor | None = None,
    mask: Tensor | None = None,
    shift: int = 0,
) -> list[Latent]:
    """The law: inverse(forward(x)) is x, with the same parameters, and padding stays zero."""
    latents = flow(x, context, mask, shift)
    left = list(latents)

    def read(prior: Latent) -> Tensor:
        latent = left.pop()
        assert prior.z.numel() == 0
        assert torch.equal(prior.mean, latent.mean)
        assert torch.equal(prior.scale, latent.scale)
        assert (prior.weight is None) == (latent.weight is None)
        assert prior.weight is None or torch.equal(prior.weight, latent.weight)
        assert (prior.mask is None) == (latent.mask is None) == (mask is None)
        assert prior.mask is None or torch.equal(prior.mask, latent.mask)
        return latent.z

    shape = (x.shape[0], x.shape[2], x.shape[3])
    assert torch.equal(flow.inverse(read, shape, context, mask, shift), x)
    assert not left
    coded = 0
    for latent in latents:
        assert torch.equal(latent.z, latent.z.floor())
        assert latent.mean.shape == latent.scale.shape
        assert latent.mean.shape[:-1] == latent.z.shape
        assert 0 <= latent.scale.min() <= latent.scale.max() <= SCALE_MAX
        if latent.mask is None:
            coded += latent.z.numel()
        else:
            assert not latent.z[latent.mask.expand_as(latent.z) == 0].any(), "padding has content"
            coded += x.shape[0] * int(latent.mask.sum())
    assert coded == (x.numel() if mask is None else x.shape[0] * int(mask.sum()))
    return latents


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 5), (8, 8), (17, 9), (13, 23)])
def test_the_inverse_is_exact_on_every_rung_and_size(rung, size):
    model = rung_model(rung)
    for shift in (0, 8):
        for flow in (model.luma, model.chroma):
            channels = flow.config.channels
            mask, h, w = make_mask(channels, *size, flow.config.multiple)
            x = draw(2, channels, h, w, seed=h * w, bits=8 + shift)
            x = x if mask is None else x * mask
            context = draw(2, 1, h, w, seed=1, bits=7) if flow.config.context else None
            latents = check_flow(flow, x, context, mask, shift)
            kept = torch.cat([latent.z.reshape(-1) for latent in latents]).sort().values
            if min(size) > 8:
                assert not torch.equal(kept, x.reshape(-1).sort().values), "nothing was moved"


@settings(max_examples=30)
@given(
    st.sampled_from(sorted(RUNGS)),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(0, 8),
    st.integers(0, 1 << 30),
)
def test_any_integers_come_back(rung, h, w, shift, seed):
    flow = rung_model(rung).luma
    mask, height, width = make_mask(1, h, w, flow.config.multiple)
    x = draw(1, 1, height, width, seed=seed, bits=8 + shift)
    check_flow(flow, x if mask is None else x * mask, None, mask, shift)


@pytest.mark.parametrize(
    "fields", [{"levels": 1}, {"levels": 4}, {"couplings": 1}, {"couplings": 6}]
)
@pytest.mark.parametrize("rung", ["idf", "idf++"])
def test_other_shapes_of_the_network_invert_too(rung, fields):
    model = model_of(1, **fields, **RUNGS[rung])
    mask, h, w = make_mask(1, 19, 21, model.luma.config.multiple)
    x = draw(1, 1, h, w, seed=4)
    check_flow(model.luma, x if mask is None else x * mask, None, mask)


def test_the_network_of_masked_samples_sees_nothing_of_the_padding():
    flow = rung_model("idf++").luma
    mask, h, w = make_mask(1, 9, 11, flow.config.multiple)
    assert mask is not None
    x = draw(1, 1, h, w, seed=2) * mask
    whole = [latent.z for latent in flow(x, None, mask)]
    # Whatever the padding held, it would have been multiplied away: it stays zero in all levels.
    for z, latent in zip(whole, flow(x, None, mask), strict=True):
        assert latent.mask is not None
        assert torch.equal(z * latent.mask, z)


def test_every_channel_of_a_level_is_moved_in_turn():
    model = make_model(couplings=4, levels=1)
    for permute_back in (True, False):
        moved_channels = []
        order = torch.arange(8.0).reshape(1, 8, 1, 1)
        for coupling in model.chroma.levels[0].couplings:
            assert isinstance(coupling, Coupling)
            coupling.permute_back = permute_back
            kept, moved = coupling.permute(order)
            assert kept.shape[1] == 6
            moved_channels += moved.reshape(-1).tolist()
            order = coupling.mask_after(order)
        assert sorted(moved_channels) == list(range(8)), permute_back


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
def test_squeeze_takes_the_checkerboard_first_and_unsqueeze_undoes_it(batch, channels, h, w):
    x = torch.arange(batch * channels * 4 * h * w).float().reshape(batch, channels, 2 * h, 2 * w)
    y = squeeze(x)
    assert y.shape == (batch, 4 * channels, h, w)
    assert torch.equal(unsqueeze(y), x)
    for b, c, i, j in torch.cartesian_prod(*map(torch.arange, (batch, channels, h, w))).reshape(
        -1, 4
    ):
        phases = [y[b, k * channels + c, i, j] for k in range(4)]
        assert phases == [
            x[b, c, 2 * i, 2 * j],
            x[b, c, 2 * i + 1, 2 * j + 1],
            x[b, c, 2 * i, 2 * j + 1],
            x[b, c, 2 * i + 1, 2 * j],
        ]


def push_everything_one_way(model: IdfModel, sign: int) -> None:
    """Make every coupling move its samples as far as it can."""
    for module in model.modules():
        if isinstance(module, Coupling):
            head = module.conditioner.dense["translation"]
            head.weight.zero_()
            head.bias.fill_(sign * ((1 << 24) - 1))
            head.shift.fill_(0)
            linear = module.conditioner.linear["translation"]
            linear.weight.zero_()
            linear.bias.fill_(sign)
            linear.shift.fill_(0)
    exact.check(model)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(
    "fields", [{"couplings": 5, "levels": 2}, {"couplings": 4, "levels": MAX_MOVES}]
)
@pytest.mark.parametrize("back", [True, False])
def test_the_support_holds_every_latent_there_can_be(sign, fields, back):
    model = make_model(inverse_permutation=back, **fields)
    push_everything_one_way(model, sign)
    for bits in (8, 16):
        shift = bits - 8
        for flow in (model.luma, model.chroma):
            coder = _coder(flow.config, bits)
            # What `split` can make: chroma of RGB has a bit more than its samples.
            limit = 1 << bits if flow.config.channels == 2 else 1 << (bits - 1)
            side = flow.config.multiple
            x = torch.full((1, flow.config.channels, side, side), float(sign * limit))
            x -= (sign > 0) * 1.0
            context = torch.zeros(1, 1, side, side) if flow.config.context else None
            latents = check_flow(flow, x, context, None, shift)
            far = max(float(latent.z.abs().max()) for latent in latents)
            assert coder.low <= min(float(latent.z.min()) for latent in latents)
            assert max(float(latent.z.max()) for latent in latents) <= coder.high
            assert far < 1 << 24
            # The bound is no guess: some sample gets there, but for a rounding a move. (Where the
            # last round is not a whole one, the channels that it moves are factored out.)
            most = limit + flow.config.moves * (128 << shift)
            if flow.config.couplings % 4 == 0:
                assert most - 1 - (flow.config.moves << shift) <= far <= most


@pytest.mark.parametrize("shift", [0, 8])
def test_means_and_scales_stay_on_the_coders_grid(shift):
    model = make_model()
    for head in ("mean", "scale"):
        for part in ("linear", "dense"):
            layer = model.luma.levels[0].prior.conditioner.get_submodule(f"{part}.{head}")
            layer.bias.fill_((1 << 23) - 1)
            layer.shift.fill_(0)
    exact.check(model)
    latent = model.luma(torch.zeros(1, 1, 8, 8), None, None, shift)[0]
    assert latent.mean.unique().tolist() == [OUTPUT_MAX << shift]
    assert latent.scale.unique().tolist() == [SCALE_MAX]


def test_the_ideal_length_of_the_twin_is_that_of_the_frozen_integers():
    twin, frozen = make_twin(seed=9), make_model(seed=9)
    x = draw(2, 1, 16, 16, seed=3, bits=7)
    mask = torch.ones(1, 1, 16, 16)
    mask[..., 11:, :] = 0
    for masked in (None, mask):
        samples = x if masked is None else x * masked
        with torch.no_grad():
            bits = twin.luma.bits(samples, None, masked)
            assert torch.allclose(bits, frozen.luma.bits(samples, None, masked), rtol=1e-6)
        coder, integer = _coder(frozen.luma.config, 8), 0.0
        for latent in frozen.luma(samples, None, masked):
            real = torch.ones_like(latent.z) if latent.mask is None else latent.mask
            chosen = real.expand_as(latent.z) > 0
            weight = None if latent.weight is None else latent.weight[chosen].int().numpy()
            integer += coder.bits(
                latent.z[chosen].int().numpy(),
                latent.mean[chosen].int().numpy(),
                latent.scale[chosen].int().numpy(),
                weight,
            )
        assert float(bits.sum()) == pytest.approx(integer, rel=2e-3)
