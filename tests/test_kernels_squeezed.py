"""Kernels of integer flows say what the CPU's flows say, to and fro, padding or none."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from interpreted import CPU, Runs, poisoned
from models import RUNGS, make_model
from torch import Tensor

from flowarchive import device, exact
from flowarchive.flows import integer
from flowarchive.models import idf, stills
from triton_kernels import coupling, squeezed


def integers(low: int, high: int, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0):
    """Numbers of a range, many of them at its ends."""
    random = torch.Generator().manual_seed(seed)
    found = torch.randint(low, high + 1, shape, generator=random)
    ends = torch.randint(0, 8, shape, generator=random)
    return torch.where(ends == 0, low, torch.where(ends == 1, high, found)).to(dtype)


def channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2).to(torch.float32)


def grid_of(shape: tuple[int, int], sides: list[tuple[int, int]]) -> squeezed.Grid:
    """A grid whose channels' real rows and columns are these."""
    sizes = [h * w for h, w in sides]
    begins = np.cumsum([0, *sizes])
    real = [(h * (w > 0), max(w, 1), n) for (h, w), n in zip(sides, begins, strict=False)]
    return squeezed.Grid(None, torch.tensor(real, dtype=torch.int32), max(sizes), sum(sizes))


def in_order(x: Tensor, sides: list[tuple[int, int]]) -> Tensor:
    """The real samples of [N, h, w, c] as they are pushed."""
    return torch.cat([x[n, :h, :w, c].flatten() for n in range(len(x)) for c, (h, w) in
                      enumerate(sides)])  # fmt: skip


@pytest.mark.parametrize("shift", [0, 3, 8])
@pytest.mark.parametrize("quarter", [1, 22])
def test_what_a_network_sees(shift, quarter, monkeypatch):
    """Three quarters of a level in any order, and a kept half, which is part of a wider tensor."""
    runs = Runs(monkeypatch, squeezed, "see_kernel")
    x = integers(-(1 << 19), 1 << 19, (2, 5, 13, 4 * quarter), torch.int32)
    near = integers(-200 << shift, 200 << shift, x.shape, torch.int32, 1)
    x = torch.where(integers(0, 1, x.shape, torch.bool), x, near)
    context = integers(-128, 127, (2, 5, 13, 4), torch.int8)
    parts = x.chunk(4, 3)
    for quarters, beside in product([(0, 1, 2), (3, 0, 2)], [None, context]):
        rest = torch.cat([channels_first(parts[n]) for n in quarters], 1)
        expected = integer._see(rest, None if beside is None else channels_first(beside), shift)
        wide = poisoned(torch.int8, 2, 5, 13, 3 * quarter + 11)
        y = wide[..., : expected.shape[1]]
        assert squeezed.see(x, quarters, beside, shift, y) is y
        assert torch.equal(channels_first(y), expected)
        assert torch.equal(wide[..., y.shape[3] :], poisoned(torch.int8, *y.shape[:3], 11)[
            ..., : wide.shape[3] - y.shape[3]])  # fmt: skip
    kept = x[..., : 2 * quarter]
    y = squeezed.see(kept, (0, 1), None, shift, poisoned(torch.int8, *kept.shape))
    assert torch.equal(channels_first(y), integer._see(channels_first(kept), None, shift))
    assert len(runs.grids) == 5


SIDES = [(5, 13), (5, 12), (4, 13), (0, 13), (1, 0)]


def test_real_samples_are_taken_and_put_back(monkeypatch):
    """Of channels of a wider tensor; padding is left alone."""
    runs = Runs(monkeypatch, squeezed, "symbols_kernel")
    grid = grid_of((5, 13), SIDES)
    whole = integers(-(1 << 19), 1 << 19, (2, 5, 13, 9), torch.int32)
    z = whole[..., 4:]
    symbols = squeezed.take(z, grid)
    assert torch.equal(symbols, in_order(z, SIDES))
    there = poisoned(torch.int32, *whole.shape)
    squeezed.put(symbols, there[..., 4:], grid)
    expected = poisoned(torch.int32, *whole.shape)
    for c, (h, w) in enumerate(SIDES):
        expected[:, :h, :w, 4 + c] = z[:, :h, :w, c]
    assert torch.equal(there, expected)
    assert len(runs.grids) == 2


@pytest.mark.parametrize("shift", [0, 5, 8])
def test_priors(shift, monkeypatch):
    """Heads that saturate: clamped sums, means on the samples' grid, scales inside the table."""
    runs = Runs(monkeypatch, squeezed, "foretell_kernel")
    shape = (2, 5, 13, 2 * len(SIDES))
    linear, dense = (integers(-(1 << 15), (1 << 15) - 1, shape, torch.int16, n) for n in range(2))
    scales = slice(len(SIDES), None)
    linear[..., scales] //= 150
    dense[..., scales] //= 150
    total = exact.clamp(linear.float() + dense.float(), -integer.OUTPUT_MAX - 1, integer.OUTPUT_MAX)
    mean, scale = total.chunk(2, 3)
    start = integer.SCALE_START + integer.SCALES_PER_OCTAVE * shift
    expected = mean * 2.0**shift, exact.clamp(scale + start, 0, integer.SCALE_MAX)
    *found, weight = squeezed.foretell(linear, dense, grid_of((5, 13), SIDES), shift)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.flatten().long(), in_order(theirs, SIDES).long())
    assert set(weight.flatten().tolist()) == {1 << integer.WEIGHT_BITS}
    assert len(runs.grids) == 1


@pytest.mark.parametrize(("permutes_back", "couplings"), [(True, 1), (False, 3)])
def test_which_samples_are_real(permutes_back, couplings):
    """Every level's masks and orders are the CPU's, whatever is padding."""
    fields = {"width": 1, "couplings": couplings, "inverse_permutation": permutes_back}
    flow = make_model(0, group_norm=False, **fields).chroma
    ours = _sent(flow)
    for shape in [(1, 1), (2, 3), (5, 9), (8, 4)]:
        plane, mask = idf._pad(np.ones((2, *shape), dtype=np.int32), flow.config.multiple)
        masks = flow._masks(torch.ones_like(plane) if mask is None else mask)
        for grid, (steps, left) in zip(grids_of(ours, plane, shape), masks, strict=True):
            assert (grid.mask is None) == bool(steps[0].all())
            assert grid.mask is None or torch.equal(channels_first(grid.mask), steps[0])
            z = torch.zeros(left.permute(0, 2, 3, 1).shape, dtype=torch.int32)
            squeezed.put(torch.ones(grid.total, dtype=torch.int32), z, grid)
            assert torch.equal(channels_first(z), left)


def _sent(flow: integer.IntegerFlow) -> squeezed.Flow:
    kernels: Any = device.select("cuda")
    levels = [stills._level(level) for level in flow.scales]
    sent: squeezed.Flow = kernels.integer_flow(levels, flow.config.inverse_permutation)
    return sent


def grids_of(flow: squeezed.Flow, plane: Tensor, shape: tuple[int, int]) -> list[squeezed.Grid]:
    sides = flow.sides(shape, plane.shape[1])
    sent = [(torch.from_numpy(squeezed), torch.from_numpy(real)) for squeezed, real in sides]
    return flow.grids(sides, sent, (plane.shape[2], plane.shape[3]))


FLOWS = {
    "permutes back": ({"levels": 1, "couplings": 5}, "luma", (5, 7), 4),
    "does not": ({"levels": 2, "couplings": 3, "inverse_permutation": False}, "luma", (6, 5), 0),
    "context": ({"levels": 2, "couplings": 1, "depth": 2}, "chroma", (9, 6), 8),
    "nothing is padding": ({"levels": 2, "couplings": 1, "mixtures": 1}, "chroma", (4, 8), 0),
}


@pytest.mark.parametrize("given", FLOWS.values(), ids=FLOWS)
def test_a_flow_goes_to_and_fro(given, monkeypatch):
    """Two frames side by side: latents are `IntegerFlow`'s of each, and samples come back."""
    fields, name, shape, shift = given
    couples = Runs(monkeypatch, coupling, "couple_kernel")
    model = make_model(3, group_norm=False, **{"width": 3, **fields})
    flow = getattr(model, name)
    half, count = 128 << shift, flow.config.channels
    x = integers(-half, half - 1, (2, count, *shape), torch.int32).numpy()
    context = integers(-half, half - 1, shape, torch.int32).numpy() if name == "chroma" else None
    seen = idf._see(context, flow.config.multiple, shift)
    padded = [idf._pad(frame, flow.config.multiple) for frame in x]
    with torch.inference_mode():
        expected = [flow(plane, seen, mask, shift) for plane, mask in padded]
    ours = _sent(flow)
    planes = torch.cat([plane for plane, _ in padded]).permute(0, 2, 3, 1).int().contiguous()
    if seen is not None:
        seen = seen.permute(0, 2, 3, 1).to(torch.int8).expand(2, -1, -1, -1).contiguous()
    grids = grids_of(ours, padded[0][0], shape)
    latents = ours.forward(planes, seen, grids, shift)
    for level, latent in enumerate(latents):
        both = [frame[level] for frame in expected]
        symbols = np.concatenate([idf._select(one.z, one.mask) for one in both])
        assert np.array_equal(latent.symbols, symbols)
        for n, tensor in enumerate(latent[1:]):
            parameters = [idf._parameters(one)[n] for one in both]
            if parameters[0] is not None:
                assert np.array_equal(tensor, np.concatenate(parameters))
            else:
                assert torch.equal(tensor, torch.full((len(symbols), 1), squeezed.WHOLE))
    asked = list(latents)

    def read(distributions: squeezed.Distributions) -> Tensor:
        latent = asked.pop()
        assert all(map(torch.equal, distributions, latent[1:]))
        return latent.symbols

    back = ours.inverse(read, tuple(planes.shape), seen, grids, shift)
    assert torch.equal(back, planes)
    assert not asked
    assert len(couples.grids) == 2 * flow.config.levels * flow.config.couplings


def test_launchers_refuse():
    x = torch.zeros(1, 4, 4, 4, dtype=torch.int32)
    y = torch.zeros(1, 4, 4, 3, dtype=torch.int8)
    with pytest.raises(TypeError, match=r"x is torch\.int16"):
        squeezed.see(x.short(), (0, 1, 2), None, 0, y)
    with pytest.raises(ValueError, match="not covered"):
        squeezed.see(x, (0, 1, 4), None, 0, y)
    with pytest.raises(ValueError, match="not covered"):
        squeezed.see(x, (0, 1, 2), None, 9, y)
    with pytest.raises(ValueError, match="strides"):
        squeezed.see(x[:, ::2], (0, 1, 2), None, 0, y[:, :2])
    grid = grid_of((4, 4), [(4, 4)] * 4)
    with pytest.raises(ValueError, match="symbols is"):
        squeezed.put(torch.zeros(63, dtype=torch.int32), x, grid)
    with pytest.raises(ValueError, match="real is"):
        squeezed.take(x[..., :3], grid)
    said = torch.zeros(1, 4, 4, 8, dtype=torch.int16, device=CPU)
    with pytest.raises(ValueError, match="shift"):
        squeezed.foretell(said, said, grid, -1)
    with pytest.raises(ValueError, match="dense is"):
        squeezed.foretell(said, said[..., :4], grid, 0)


def test_models_that_kernels_do_not_cover():
    assert make_model(0, **RUNGS["rezero"]).has_kernels
    assert not make_model(0, **RUNGS["norm"]).has_kernels
    model = make_model(0, **RUNGS["rezero"])
    model.chroma.levels[0].prior.conditioner.linear["mean"].weight[0, 0, 0, 0] = 32640
    assert not model.has_kernels
