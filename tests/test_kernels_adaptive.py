"""What learns from the past learns the same on a GPU: filters, and corrections of scales."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from interpreted import CPU, Runs, tables

from flowarchive import lattice
from flowarchive.adaptive import CHROMA_TAPS, LUMA_TAPS, LinearPredictor, ScaleCorrection
from flowarchive.adaptive import correction as cpu_correction
from flowarchive.adaptive import predictor as cpu
from flowarchive.models.mixtures import Mixtures, weight_table
from triton_kernels import correction, features, filters, heads, linear

LEVELS = [((2, 2), 0), ((33, 42), 2)]


def scene(random: np.random.Generator, count: int, shape: tuple[int, int], bits: int):
    """Planes in storage, references and lights of a frame; calm here, at the ends there."""
    half = 1 << (bits - 1)
    noise = random.integers(-half, half, (count + 1, *shape))
    calm = random.integers(-6 << (bits - 8), 6 << (bits - 8), noise.shape)
    stored = np.where(np.arange(shape[1]) < shape[1] // 3, noise, calm)
    place = random.permutation(count + 1)[:count].astype(np.int32)
    whole = stored[place] * 4
    near = whole + random.integers(-40, 40, (2, *whole.shape)) * random.integers(0, 2, whole.shape)
    lights = whole[: max(1, count // 2)] + random.integers(-90, 90, (3, max(1, count // 2), *shape))
    others = [plane.astype(np.int32) for plane in (*near, *lights)]
    return stored.astype(np.int32), place, whole.astype(np.int32), others


def learned(random: np.random.Generator, taps: int) -> linear.Filters:
    """Of two planes of three chunks: weights of all magnitudes, sums of something already."""
    slots = 3, 2, 3, 3, 16
    weights = random.integers(-32767, 32768, (*slots, taps)) >> random.integers(0, 12, (*slots, 1))
    sums = random.integers(-(1 << 40), 1 << 40, (*slots, linear.products(taps)))
    age = np.arange(3, 6, dtype=np.int32)
    arrays = weights.astype(np.int32), sums, age, np.zeros(sums.shape)
    return linear.Filters(*map(torch.from_numpy, arrays))


@pytest.mark.parametrize(("shape", "level"), LEVELS)
@pytest.mark.parametrize("taps", [LUMA_TAPS, CHROMA_TAPS])
def test_prediction_and_normal_equations(taps, shape, level, monkeypatch):
    """Two planes of one of three chunks: as predicted, and as learned from."""
    predicted = Runs(monkeypatch, linear, "predict_kernel")
    added = Runs(monkeypatch, linear, "learn_kernel")
    for module in (cpu, linear):  # strides as large planes have them
        monkeypatch.setattr(module, "MANY_SAMPLES", 8)
    random = np.random.default_rng(taps + level)
    bits, shift = (12, 4) if level else (8, 0)
    stored, place, whole, others = scene(random, 2, shape, bits)
    ours = learned(random, taps)
    before = ours.sums.clone()
    chroma = taps == CHROMA_TAPS
    given = torch.from_numpy(stored), torch.from_numpy(place)
    around = features.Around(*map(torch.from_numpy, others[: 5 if chroma else 2]))
    common = (*given, around, torch.tensor([1], dtype=torch.int32), ours, linear.taps(CPU), level)
    limits = -(256 << (bits - 1)), 255 << (bits - 1)
    views = [lattice.bordered(plane, level) for plane in (whole, *others)]
    theirs = []
    for n in range(2):
        predictor = LinearPredictor(np.zeros((3, 3, 16, taps), dtype=np.int32))
        predictor.weights = ours.weights[1, n].numpy()
        theirs.append(predictor)
    for phase in range(3):
        got = linear.predict(*common, phase, shift, limits)
        for n, predictor in enumerate(theirs):
            luma = tuple(view[0] for view in views[3:]) if chroma else None
            planes = (*(view[n] for view in views[:3]), luma)
            expected = predictor.predict(*planes, level, phase, shift, *limits)
            assert np.array_equal(got[n].numpy(), expected)
    linear.learn(*common, shift)
    for n, predictor in enumerate(theirs):
        luma = tuple(view[0] for view in views[3:]) if chroma else None
        predictor.learn(*(view[n] for view in views[:3]), luma, level, shift)
        sums = np.zeros((3, 3, 16, linear.products(taps)), dtype=np.int64)
        cpu._sum_levels(sums, predictor._batches, predictor._levels, 4)
        assert np.array_equal((ours.sums - before)[1, n].numpy(), sums)
        assert sums[min(level, 2)].any()
    assert torch.equal(ours.sums[::2], before[::2])
    assert len(predicted.grids) == 3
    assert len(added.grids) == 1


@pytest.mark.parametrize("taps", [LUMA_TAPS, CHROMA_TAPS])
def test_filters_out_of_sums(taps, monkeypatch):
    """Float64 in the CPU's order: no bit differs, of what was learned and of what is left of it."""
    monkeypatch.setattr(filters, "SYSTEMS", 16 if taps == LUMA_TAPS else 32)
    common = Runs(monkeypatch, filters, "common_kernel")
    solved = Runs(monkeypatch, filters, "class_kernel")
    random = np.random.default_rng(taps)
    defaults = random.integers(-2000, 2001, (3, 3, 16, taps)).astype(np.int32)
    ours = filters.begin(torch.from_numpy(defaults), 2, 1)
    theirs = LinearPredictor(defaults)
    steps = torch.from_numpy(defaults / (1 << 14))
    constants = torch.tensor([cpu.DECAY, cpu.GLOBAL_RIDGE, cpu.CLASS_RIDGE], dtype=torch.float64)
    which = torch.tensor([1], dtype=torch.int32)
    for frame in range(2 if taps == LUMA_TAPS else 1):
        samples = random.integers(-1023, 1024, (3, 3, 16, 60, taps + 1))
        samples[1] //= 100
        samples[:, 1, ::2, 5 * frame :] = 0  # classes with few samples, and with none
        samples[:, :, 3, :, -1] = samples[:, :, 3, :, 2] * 3 // 2  # and such as can be foretold
        product = np.einsum("gpcni,gpcnj->gpcij", samples, samples)
        lower = np.tril_indices(taps + 1)
        sums = np.concatenate([product[..., *lower], np.full((3, 3, 16, 1), 60)], axis=-1)
        sums[2, 2] = 0
        theirs._sums[:] = sums
        theirs.end_frame()
        ours.sums[1, 0] = torch.from_numpy(sums)
        filters.end_frame(ours, steps, constants, which)
        assert np.array_equal(ours.weights[1, 0].numpy(), theirs.weights)
        for of_group, blocks in zip(ours.faded[1, 0].numpy(), theirs._faded, strict=True):
            systems = np.moveaxis(blocks, 1, 2).reshape(of_group.shape)  # side by side by eights
            assert np.array_equal(of_group, systems)
        assert not ours.sums.any()
    assert not np.array_equal(theirs.weights, defaults)
    assert np.array_equal(ours.weights[0, 0].numpy(), defaults)
    assert ours.age.tolist() == [0, theirs._frame]
    assert len(common.grids) == len(solved.grids) == theirs._frame


@pytest.mark.parametrize("count", [1, 63, 64, 65, 1000])
def test_scales_are_corrected(count, monkeypatch):
    """Symbols far and near under narrow and wide mixtures, of two of three chunks."""
    added = Runs(monkeypatch, correction, "costs_kernel")
    for module in (correction, cpu_correction):
        monkeypatch.setattr(module, "MOST_SYMBOLS", 300)
    random = np.random.default_rng(count)
    ours = correction.begin(3, CPU)
    theirs = [ScaleCorrection() for _ in range(2)]
    which = torch.tensor([0, 2], dtype=torch.int32)
    logs = torch.from_numpy(cpu_correction.log_table().copy())
    for frame in range(2):
        for slot in ((0, 0), (2, 1))[frame:]:
            mean = random.integers(-(1 << 12), 1 << 12, (2 * count, 5))
            mean[::7] = random.choice([-(1 << 31), (1 << 31) - 1])
            scale = random.integers(0, 192, (2 * count, 1)) + random.integers(-3, 4, mean.shape)
            scale = scale.clip(0, 191)
            share = random.multinomial(4096, [0.4, 0.3, 0.2, 0.1, 0], 2 * count)
            symbols = random.integers(-20, 20, 2 * count)
            symbols[::11] = random.choice([-65536, 65535])
            arrays = [a.astype(np.int32) for a in (symbols, mean, scale, share)]
            given = [torch.from_numpy(a) for a in arrays]
            correction.learn(ours, which, slot, *given, tables(), logs)
            for n, one in enumerate(theirs):
                one.learn(*slot, *(a[n * count : (n + 1) * count] for a in arrays))
        correction.end_frame(ours, which)
        for chunk, one in zip((0, 2), theirs, strict=True):
            one.end_frame()
            assert np.array_equal(ours.costs[chunk].numpy(), one._costs)
            assert np.array_equal(ours.offsets[chunk].numpy(), one._offsets)
    assert ours.age.tolist() == [2, 0, 2]
    assert not ours.offsets[1].any()
    assert len(added.grids) == 3


def test_offsets_of_any_parabola():
    """Those with a least value, to both sides and beyond the limits, and those with none."""
    random = np.random.default_rng(0)
    theirs = ScaleCorrection()
    theirs._new[:] = random.integers(0, 1 << random.integers(1, 30, theirs._new.shape))
    theirs._costs[:] = random.integers(0, 1 << random.integers(1, 30, theirs._new.shape))
    theirs._new[0] = 0
    theirs._costs[0, :2] = 1000
    ours = correction.begin(1, CPU)
    ours.new[0], ours.costs[0] = torch.from_numpy(theirs._new), torch.from_numpy(theirs._costs)
    correction.end_frame(ours, torch.tensor([0], dtype=torch.int32))
    theirs.end_frame()
    assert np.array_equal(ours.costs[0].numpy(), theirs._costs)
    assert np.array_equal(ours.offsets[0].numpy(), theirs._offsets)
    assert len(np.unique(theirs._offsets)) > 9


@pytest.mark.parametrize("components", [4, 5])
@pytest.mark.parametrize("shape", [(1, 1), (7, 9), (5, 13)])
def test_mixtures(components, shape, monkeypatch):
    """Heads that say little, anything, and the most; planes of two chunks, less than the grid."""
    made = Runs(monkeypatch, heads, "mixtures_kernel")
    random = np.random.default_rng(components)
    gh, gw = shape[0] + 1, shape[1]
    for shift in (0, 8):
        said = random.integers(-(1 << 15), 1 << 15, (4, gh, gw, 3 * components))
        said[1] //= 300
        said[2] = random.choice([-(1 << 15), (1 << 15) - 1, 0], said[2].shape)
        said[..., 2 * components :] //= 100
        said = said.astype(np.int16)
        anchors = random.integers(-(1 << 24), 1 << 24, (4, gh, gw, components)).astype(np.int32)
        offsets = random.integers(-12, 13, (3, 3, 3, 48)).astype(np.int32)
        got = heads.mixtures(
            torch.from_numpy(said), torch.from_numpy(anchors), shape, torch.from_numpy(offsets),
            torch.tensor([2, 0], dtype=torch.int32), (2, 1), shift,
            torch.from_numpy(weight_table().copy()),
        )  # fmt: skip
        room = Mixtures.of_shape(4, *shape, components)
        bordered = np.pad(said, ((0, 0), (1, 1), (1, 1), (0, 0)))
        for part, chunk in ((slice(0, 2), 2), (slice(2, 4), 0)):
            room.cut(part, slice(None)).fill(
                bordered[part], anchors[part], offsets[chunk, 2, 1], shift
            )
        for ours, theirs in zip(got, room, strict=True):
            assert np.array_equal(ours.numpy(), theirs.reshape(-1, components))
    assert len(made.grids) == 2
