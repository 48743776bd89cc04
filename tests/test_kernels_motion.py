"""The kernels of motion predict what `motion` predicts, and find what it finds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from interpreted import Runs
from triton.runtime import interpreter

from flowarchive import motion
from flowarchive.models import offload, plan
from flowarchive.motion.compensate import FILTERS
from flowarchive.motion.picture import DETAIL_LIMIT
from triton_kernels import cases, lattice, picture, search
from triton_kernels import motion as kernels
from triton_kernels import plan as plans

QUARTERS = torch.from_numpy(FILTERS[::4].copy())


def prices() -> search.Prices:
    return search.Prices(*(torch.from_numpy(table) for table in motion.prices()))


def run_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the interpreter run the programs of each launch from the last to the first."""
    builder, most = interpreter.interpreter_builder, []
    set_sizes, set_place = builder.set_grid_dim, builder.set_grid_idx

    def keep(*sizes: int) -> None:
        most[:] = [size - 1 for size in sizes]
        set_sizes(*sizes)

    monkeypatch.setattr(builder, "set_grid_dim", keep)
    monkeypatch.setattr(
        builder, "set_grid_idx",
        lambda *place: set_place(*(m - at for m, at in zip(most, place, strict=True))),
    )  # fmt: skip


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


def assert_same_pictures(ours: picture.Picture, theirs: Sequence[motion.Picture]) -> None:
    assert np.array_equal(ours.phases.numpy(), [one.phases for one in theirs])
    assert np.array_equal(ours.middle.numpy(), [one.middle for one in theirs])
    assert np.array_equal(ours.coarse.numpy(), [one.coarse for one in theirs])


def upload(*pictures: motion.Picture) -> picture.Picture:
    """Pictures of the CPU's, one of each chunk."""
    parts = zip(*((one.phases, one.middle, one.coarse) for one in pictures), strict=True)
    return picture.Picture(*(torch.from_numpy(np.stack(part)) for part in parts))


def test_a_picture(monkeypatch):
    """Deeper samples lose bits; sides are no multiples of anything; detail is clamped."""
    runs = Runs(monkeypatch, picture, "interpolate_kernel")
    monkeypatch.setattr(picture, "TILE", 1 << 10)  # fewer steps of the interpreter
    luma, _ = frames(5, 17, 10)
    signs = np.multiply.outer((-1) ** np.arange(5), np.sign(FILTERS[8]))
    luma[:, :8] = np.where(signs > 0, 511, -512)  # what the filter for halves makes most of
    both = np.stack([luma, luma[::-1, ::-1]])
    ours = picture.picture(torch.from_numpy(both), QUARTERS, 10)
    assert_same_pictures(ours, [motion.Picture(one, 10) for one in both])
    assert np.abs(motion.Picture(luma, 10).phases).max() == DETAIL_LIMIT
    assert len(runs.grids) == 1


def test_the_search_chooses_the_same_field(monkeypatch):
    """Odd numbers of blocks, a hint for each; ties, splits and merges on the way."""
    runs = Runs(monkeypatch, search, "search_kernel")
    shape = (25, 20)
    current, reference = (motion.Picture(luma, 8) for luma in frames(*shape, 8))
    hints = random_field(np.random.default_rng(0), shape, 60)
    hints[2:] = 0
    ours, theirs = upload(current), upload(reference)
    (field,) = search.search(ours, theirs, torch.from_numpy(hints[None]), prices())
    expected = motion.search(current, reference, hints)
    assert np.array_equal(field[0].numpy(), expected)
    # Some unit is split, and some is not; each slanting line is a launch, of one unit or two.
    units = [expected[i : i + 2, j : j + 2] for i in (0, 2) for j in (0, 2)]
    split = [bool((unit != unit[0, 0]).any()) for unit in units]
    assert any(split)
    assert not all(split)
    assert runs.grids == [(1, 1, 1)] * 4


def test_chunks_together_may_be_more_than_32_bits_count():
    """Of the largest frames; only what one program steps through has to be counted in 32."""
    with cases.recorded() as kept:
        luma = cases.empty(torch.int32, 8, 1 << 13, 1 << 13)
        quarters = cases.empty(torch.int32, 4, 8)
        one, two = (picture.picture(luma, quarters, 8) for _ in range(2))
        tables = search.Prices(*(table.to(cases.META) for table in prices()))
        hints = cases.empty(torch.int16, 8, 1 << 10, 1 << 10, 2)
        fields = search.search(one, two, hints, tables, two)
        stored = cases.empty(torch.int16, 8, 30, 1, 1 << 13, 1 << 13)
        lattice.take(stored, cases.empty(torch.int32, 8), 1, 0)
    assert min(one.phases.numel(), stored.numel()) > 1 << 31
    assert fields.shape == (2, *hints.shape)
    assert len(kept) == 4 + 2 + (512 + 2 * 511 + search.LAG) + 1


@pytest.mark.parametrize("backward", [False, True])
def test_chunks_and_references_are_searched_side_by_side(monkeypatch, backward):
    """Other frames, other hints: each is what it is alone, whichever program of a launch is first.

    The second field is what is best beside the first one, LAG lines behind it.
    """
    runs = Runs(monkeypatch, search, "search_kernel")
    if backward:
        run_backward(monkeypatch)
    shape = (20, 20)
    one, other = (motion.Picture(luma, 8) for luma in frames(*shape, 8))
    third = motion.Picture(frames(*shape, 9)[1][:, ::-1].copy() >> 1, 8)
    random = np.random.default_rng(2)
    hints = np.stack([random_field(random, shape, 60) for _ in range(2)])
    parts = [(one, other, third), (third, one, other)]
    own, last, older = (upload(*some) for some in zip(*parts, strict=True))
    found = search.search(own, last, torch.from_numpy(hints), prices(), older).numpy()
    for n, ((frame, near, far), hint) in enumerate(zip(parts, hints, strict=True)):
        first = motion.search(frame, near, hint)
        second = motion.search(frame, far, motion.doubled(first), beside=(near, first))
        assert np.array_equal(found[:, n], [first, second])
    assert not np.array_equal(found[:, 0], found[:, 1])
    assert runs.grids == [(1, 2, 2)] * (4 + search.LAG)


@pytest.mark.parametrize(("own", "past"), [(16, 19), (16, 20), (16, 21), (16, 32), (16, 33)])
def test_cuts_are_told_alike(own, past):
    """One sample and its neighbors, on both sides of every bound that the CPU names.

    A cut's past is farther than 20 sixteenths of the neighbors' distance, and leaves more than 15.
    """
    device = torch.from_numpy(offload.tables()["cuts"])
    for left in (14, 15, 16):
        luma, moved = np.zeros((2, 3, 3), dtype=np.int32)
        luma[1, 1], moved[1, 1] = own, 4 * (own - past)
        moved[[0, 1, 1, 2], [1, 0, 2, 1]] = moved[1, 1] - 8 * (own - left)
        sums = torch.tensor([[32 * past, 32 * own, 32 * left]])
        stored = torch.from_numpy(luma[None]), torch.zeros(1, dtype=torch.int32)
        assert torch.equal(lattice.cut_sums(*stored, torch.from_numpy(moved[None])), sums)
        is_cut = past > 20 and (left > 15 or past > 32)
        assert plans.is_cut(sums, device).tolist() == [is_cut]
        assert plan._is_cut(luma, moved) == is_cut


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
        picture.picture(plane, QUARTERS, 17)
    given = upload(motion.Picture(np.zeros((9, 9), dtype=np.int32), 8))
    none = picture.Picture(*(part[:0] for part in given))
    with pytest.raises(ValueError, match="hints is"):
        search.search(given, given, field.repeat(2, 1, 1, 1), prices())
    with pytest.raises(ValueError, match=r"reference\.phases is"):
        search.search(given, given, field, prices(), none)
    with pytest.raises(ValueError, match="hints of 3 x 2 blocks"):
        search.search(given, given, torch.zeros(1, 3, 2, 2, dtype=torch.int16), prices())
