"""The kernels of motion predict what `motion` predicts, and find what it finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from interpreted import Runs

from flowarchive import motion
from flowarchive.motion.compensate import FILTERS
from flowarchive.motion.picture import DETAIL_LIMIT
from triton_kernels import motion as kernels
from triton_kernels import picture, search

QUARTERS = torch.from_numpy(FILTERS[::4].copy())


def random_field(random: np.random.Generator, shape: tuple[int, int], most: int) -> motion.Field:
    field = random.integers(-most, most + 1, (-(-shape[0] // 8), -(-shape[1] // 8), 2))
    return (field // random.choice([1, 4, 64], (*field.shape[:2], 1))).astype(np.int16)


def frames(height: int, width: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """A texture, and the same moved, with noise and something new in a corner."""
    random = np.random.default_rng(height)
    half = 1 << (bits - 1)
    noise = random.integers(-half, half, (height + 9, width + 9))
    smooth = sum(np.roll(noise, (i, j), (0, 1)) for i in range(3) for j in range(3)) // 9
    first = smooth[5 : 5 + height, 4 : 4 + width]
    second = smooth[3 : 3 + height, 7 : 7 + width] + random.integers(0, 3, (height, width))
    second[height // 2 :, width // 2 :] = noise[: height - height // 2, : width - width // 2]
    return tuple(np.clip(f, -half, half - 1).astype(np.int32) for f in (first, second))


@pytest.mark.parametrize("fold", [(1, 1), (2, 2), (1, 2), (4, 4)])
@pytest.mark.parametrize("shape", [(1, 1), (9, 13), (33, 17)])
def test_compensation(shape, fold, monkeypatch):
    """Vectors of all lengths and phases, samples at both ends of what 32 bits hold."""
    runs = Runs(monkeypatch, kernels, "compensate_kernel")
    random = np.random.default_rng(shape[0])
    part = -(-shape[0] // fold[0]), -(-shape[1] // fold[1])
    field = random_field(random, shape, motion.MAX_VECTOR)
    for low, high in ((-128, 127), (-65536, 65535)):
        planes = random.integers(low, high + 1, (2, *part)).astype(np.int32)
        planes[1] = random.choice([low, high], part)
        fields = np.stack([field, -field, field // 2])
        kind = np.int16 if high < 1 << 15 else np.int32
        got = kernels.compensate(
            torch.from_numpy(planes.astype(kind)), torch.tensor([1, 0], dtype=torch.int32),
            torch.from_numpy(fields), torch.tensor([2, 0], dtype=torch.int32),
            torch.from_numpy(FILTERS), shape, low, high,
        )  # fmt: skip
        for n, chosen, ours in ((1, 2, got[0]), (0, 0, got[1])):
            expected = motion.compensate(planes[n], fields[chosen], shape, low, high)
            assert np.array_equal(ours.numpy(), expected)
    assert len(runs.grids) == 2


def assert_same_picture(ours: picture.Picture, theirs: motion.Picture) -> None:
    assert np.array_equal(ours.phases.numpy(), theirs.phases)
    assert np.array_equal(ours.middle.numpy(), theirs.middle)
    assert np.array_equal(ours.coarse.numpy(), theirs.coarse)


def test_a_picture(monkeypatch):
    """Deeper samples lose bits; sides are no multiples of anything; detail is clamped."""
    runs = Runs(monkeypatch, picture, "interpolate_kernel")
    monkeypatch.setattr(picture, "TILE", 1 << 10)  # fewer steps of the interpreter
    luma, _ = frames(5, 17, 10)
    signs = np.multiply.outer((-1) ** np.arange(5), np.sign(FILTERS[8]))
    luma[:, :8] = np.where(signs > 0, 511, -512)  # what the filter for halves makes most of
    ours = picture.picture(torch.from_numpy(luma), QUARTERS, 10)
    assert_same_picture(ours, motion.Picture(luma, 10))
    assert np.abs(motion.Picture(luma, 10).phases).max() == DETAIL_LIMIT
    assert len(runs.grids) == 1


def test_the_search_chooses_the_same_field(monkeypatch):
    """Odd numbers of blocks, a hint for each; ties, splits and merges on the way."""
    runs = Runs(monkeypatch, search, "search_kernel")
    shape = (25, 20)
    current, reference = (motion.Picture(luma, 8) for luma in frames(*shape, 8))
    hints = random_field(np.random.default_rng(0), shape, 60)
    hints[2:] = 0
    prices = search.Prices(*(torch.from_numpy(table) for table in motion.prices()))
    ours, theirs = (
        picture.Picture(
            torch.from_numpy(p.phases), torch.from_numpy(p.middle), torch.from_numpy(p.coarse)
        )
        for p in (current, reference)
    )
    field = search.search(ours, theirs, torch.from_numpy(hints), prices)
    expected = motion.search(current, reference, hints)
    assert np.array_equal(field.numpy(), expected)
    # Some unit is split, and some is not; each slanting line is a launch.
    units = [expected[i : i + 2, j : j + 2] for i in (0, 2) for j in (0, 2)]
    split = [bool((unit != unit[0, 0]).any()) for unit in units]
    assert any(split)
    assert not all(split)
    assert runs.grids == [(1,), (1,), (1,), (1,)]
    # What is best beside a first reference is another field.
    known = torch.from_numpy(expected)
    beside = search.search(ours, theirs, torch.from_numpy(hints), prices, (theirs, known))
    wanted = motion.search(current, reference, hints, beside=(reference, expected))
    assert np.array_equal(beside.numpy(), wanted)
    assert not np.array_equal(wanted, expected)


def test_launchers_refuse():
    field = torch.zeros(1, 2, 2, 2, dtype=torch.int16)
    plane, first = torch.zeros(1, 16, 16, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    given = first, field, first, torch.from_numpy(FILTERS)
    with pytest.raises(ValueError, match="fields is"):
        kernels.compensate(plane, *given, (24, 16), 0, 1)
    with pytest.raises(ValueError, match="no subsampling"):
        kernels.compensate(plane[:, :7].contiguous(), *given, (16, 16), 0, 1)
    with pytest.raises(TypeError, match="planes is"):
        kernels.compensate(plane.char(), *given, (16, 16), 0, 1)
    with pytest.raises(ValueError, match="no picture"):
        picture.picture(plane[0], QUARTERS, 17)
