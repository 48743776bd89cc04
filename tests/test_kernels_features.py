"""What networks see, made by kernels: whole planes, no borders, the same integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from interpreted import CPU, Runs, poisoned

from flowarchive import features as cpu
from flowarchive import int8, lattice, planes
from flowarchive.lattice import BORDER, PHASES
from triton_kernels import features
from triton_kernels import lattice as kernels

SHAPES = [((2, 2), 0), ((3, 9), 1), ((13, 17), 0), ((33, 42), 2)]
"""Whole planes, and the level that is looked at: 1, 3, 63 and 30 positions."""


def tables() -> features.Tables:
    return features.tables(torch.from_numpy(cpu.log_table().copy()), CPU)


def storage(random: np.random.Generator, count: int, shape: tuple[int, int], bits: int):
    """Planes out of order among others; noise at the ends of the range, and something calm."""
    half = 1 << (bits - 1)
    noise = random.integers(-half, half, (count + 2, *shape))
    noise[1] = random.choice([-half, half - 1], shape)
    noise[2:] = np.cumsum(random.integers(-2, 3, noise[2:].shape), axis=-1)
    kind = np.int16 if bits < 16 else np.int32
    place = random.permutation(count + 2)[:count].astype(np.int32)
    return noise.astype(kind), place


@pytest.mark.parametrize(("shape", "level"), SHAPES)
@pytest.mark.parametrize("chroma", [False, True])
@pytest.mark.parametrize("inter", [False, True])
def test_channels_and_anchors(inter, chroma, shape, level, monkeypatch):
    """All phases in a row, deep samples with a shift, into a part of wider pixels."""
    runs = Runs(monkeypatch, features, "inter_kernel" if inter else "intra_kernel")
    random = np.random.default_rng(shape[0] + chroma)
    for bits, shift in ((8, 0), (16, 3)) if level else ((16, 8),):
        stored, place = storage(random, 2, shape, bits)
        whole = stored[place].astype(np.int32) * 4
        noise = random.integers(-3 << 8, 3 << 8, (2, *shape))
        moved = [(whole + noise * s).astype(np.int32) for s in (0, 1)]
        lights = [random.integers(-2 << bits, 2 << bits, (1, *shape)).astype(np.int32)]
        lights += [(lights[0] + 5 * s).astype(np.int32) for s in (0, 1)]
        views = [lattice.bordered(plane, level) for plane in (whole, *moved, *lights)]
        uploaded = [torch.from_numpy(plane) for plane in (*moved, *lights)]
        around = features.Around(
            *(uploaded[:2] if inter else (None, None)),
            *((uploaded[2:] if inter else uploaded[2:3]) if chroma else ()),
        )
        last, before = None, np.zeros(0, dtype=np.int32)
        for phase in range(3):
            gh, gw = kernels.grid_shape(*shape, level)
            channels = features.channels(inter, chroma, phase)
            wide = poisoned(torch.int8, 2, gh, gw, channels + 5)
            common = (last, level, phase, shift, tables(), wide[..., 5:])
            given = torch.from_numpy(stored), torch.from_numpy(place)
            if inter:
                linear = random.integers(-(1 << 20), 1 << 20, (2, gh, gw)).astype(np.int32)
                last = features.inter(*given, around, torch.from_numpy(linear), *common)
                seen, before = cpu.inter(
                    views[0], tuple(views[1:3]), tuple(views[3:]) if chroma else None, linear,
                    before.reshape(2, gh, gw, -1), phase, shift,
                )  # fmt: skip
            else:
                last = features.intra(*given, around, *common)
                seen, before = cpu.intra(
                    views[0], views[3] if chroma else None, before.reshape(2, gh, gw, -1), phase,
                    shift,
                )  # fmt: skip
            expected = int8.signed(seen)[..., :channels]
            assert np.array_equal(wide[..., 5:].numpy(), expected)
            assert (wide[..., :5] == poisoned(torch.int8, 5)).all()
            assert np.array_equal(last.numpy(), before)
    assert len(runs.grids) == (6 if level else 3)


@pytest.mark.parametrize(("shape", "level"), SHAPES)
def test_phases_are_taken_and_put(shape, level, monkeypatch):
    """What is put is what was taken, everywhere but between."""
    runs = Runs(monkeypatch, kernels, "phase_kernel")
    random = np.random.default_rng(shape[1])
    stored, place = storage(random, 3, shape, 9)
    given, at = torch.from_numpy(stored), torch.from_numpy(place)
    target = poisoned(torch.int16, *stored.shape)
    for phase, parities in enumerate(PHASES):
        rows, columns = kernels.phase_shape(*shape, level, phase)
        symbols = kernels.take(given, at, level, phase)
        plane = lattice.bordered(stored[place].astype(np.int32) * 4, level)
        expected = np.empty((3, rows, columns), dtype=np.int32)
        lattice.take(plane, parities.row, parities.column, expected)
        assert np.array_equal(symbols.numpy(), expected.reshape(-1))
        kernels.put(target, at, level, phase, symbols)
    step = 1 << level
    done = target.numpy()[place][:, ::step, ::step]
    h, w = done.shape[1:]
    even = np.zeros((h, w), dtype=bool)
    even[::2, ::2] = True
    assert np.array_equal(done[:, ~even], stored[place][:, ::step, ::step][:, ~even])
    assert (done[:, even] == poisoned(torch.int16, 1).numpy()).all()
    assert len(runs.grids) in (3, 6)


@pytest.mark.parametrize("shape", [(2, 2), (7, 9), (21, 25)])
def test_luma_comes_to_the_grid_of_chroma(shape, monkeypatch):
    runs = Runs(monkeypatch, kernels, "fold_kernel")
    random = np.random.default_rng(shape[0])
    stored, place = storage(random, 2, shape, 16)
    for fold in ((1, 1), (2, 2), (1, 4), (8, 1)):
        part = tuple(-(-side // by) for side, by in zip(shape, fold, strict=True))
        got = kernels.on_grid(torch.from_numpy(stored), torch.from_numpy(place), part, 4)
        expected = planes.on_grid(stored[place].astype(np.int32) * 4, part)
        assert np.array_equal(got.numpy(), expected)
    assert len(runs.grids) == 4


def test_sums_that_tell_a_cut():
    random = np.random.default_rng(2)
    for shape in ((2, 2), (9, 8), (21, 25)):
        stored, place = storage(random, 2, shape, 16)
        moved = random.integers(-(1 << 17), 1 << 17, (2, *shape)).astype(np.int32)
        sums = kernels.cut_sums(*map(torch.from_numpy, (stored, place, moved))).tolist()
        for n in range(2):
            luma = stored[place[n]].astype(np.int64)
            past = moved[n].astype(np.int64)
            detail = 32 * luma[1:-1, 1:-1] - 8 * four(luma)
            apart = 32 * luma[1:-1, 1:-1] - 8 * past[1:-1, 1:-1]
            both = detail - (4 * past[1:-1, 1:-1] - four(past))
            assert sums[n] == [int(np.abs(d)[::2, ::2].sum()) for d in (apart, detail, both)]


def four(plane: np.ndarray) -> np.ndarray:
    """The sums of samples' four neighbors."""
    return plane[:-2, 1:-1] + plane[2:, 1:-1] + plane[1:-1, :-2] + plane[1:-1, 2:]


def test_launchers_refuse():
    stored, place = torch.zeros(3, 8, 8, dtype=torch.int16), torch.zeros(2, dtype=torch.int32)
    seen = torch.empty(2, 4, 4, 16, dtype=torch.int8)
    given = None, 0, 0, 0, tables(), seen
    with pytest.raises(TypeError, match="place is"):
        features.intra(stored, place.long(), features.Around(), *given)
    with pytest.raises(ValueError, match="seen is"):
        features.intra(stored, place, features.Around(), *given[:-1], seen[..., :8])
    with pytest.raises(ValueError, match="shift 9"):
        features.intra(stored, place, features.Around(), None, 0, 0, 9, tables(), seen)
    with pytest.raises(ValueError, match="level 6"):
        kernels.take(stored, place, 6, 0)
    with pytest.raises(ValueError, match="symbols is"):
        kernels.put(stored, place, 0, 0, place)
    with pytest.raises(ValueError, match="no subsampling"):
        kernels.on_grid(stored, place, (0, 8), 4)
    assert BORDER == 4  # how far out `mirrored` is asked
