"""Planes to components and back: integer arithmetic that loses nothing, at any value and size."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowarchive import planes
from flowarchive.errors import FormatError
from flowarchive.planes import Components, bits_needed, luma_context, merge, split

LETTERS = ["Y", "YA", "YUV", "YUVA", "RGB", "RGBA", "RGBX", "UV", "YU", "RB", "GBA", "A"]


def check_round_trip(samples: list[np.ndarray], letters: str, bits: int) -> Components:
    components = split(samples, letters, bits)
    back = merge(components, letters, bits, samples[0].dtype)
    assert len(back) == len(samples)
    for ours, theirs in zip(back, samples, strict=True):
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours, theirs)
    every = [components.luma, *components.extra]
    every += [] if components.chroma is None else [components.chroma]
    assert all(part.dtype == np.int32 for part in every)
    # The support that models code: 2**(bits - 1) either way, twice that for chroma.
    for part in every:
        limit = 1 << bits if part is components.chroma else 1 << (bits - 1)
        assert part.size == 0 or (-limit <= part.min() and part.max() < limit)
    return components


def test_every_rgb_triple_of_five_bits_comes_back():
    cube = np.array(list(itertools.product(range(32), repeat=3)), dtype=np.uint8)
    components = check_round_trip([p.reshape(256, 128) for p in cube.T], "RGB", 8)
    # A bijection: as many different components as there are colors.
    assert components.chroma is not None
    colors = np.stack([components.luma.ravel(), *components.chroma.reshape(2, -1)], axis=1)
    assert len(np.unique(colors, axis=0)) == 32**3


@pytest.mark.parametrize("bits", [8, 10, 16])
def test_rgb_at_the_corners_and_at_random_comes_back(bits):
    edges = [0, 1, (1 << bits) - 2, (1 << bits) - 1, 1 << (bits - 1), (1 << (bits - 1)) - 1]
    cube = np.array(list(itertools.product(edges, repeat=3)))
    noise = np.random.default_rng(bits).integers(0, 1 << bits, (50_000, 3))
    dtype = np.uint8 if bits == 8 else np.uint16
    triples = np.concatenate([cube, noise]).astype(dtype)
    check_round_trip([p[None] for p in triples.T], "RGB", bits)


def test_gray_becomes_luma_and_no_chroma():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    components = split([ramp, ramp, ramp], "RGB", 8)
    assert components.chroma is not None
    assert not components.chroma.any()
    assert np.array_equal(components.luma, ramp.astype(int) - 128)


@pytest.mark.parametrize("letters", LETTERS)
@pytest.mark.parametrize("bits", [8, 9, 12, 16])
def test_all_components_come_back_over_all_values(letters, bits):
    every = np.arange(1 << bits)
    random = np.random.default_rng(3)
    dtype = np.uint8 if bits == 8 else np.uint16
    samples = [random.permutation(every).reshape(16, -1).astype(dtype) for _ in letters]
    components = check_round_trip(samples, letters, bits)
    assert (components.chroma is None) == (letters[:3] not in ("YUV", "RGB"))


@given(st.sampled_from(LETTERS), st.integers(8, 16), st.data())
def test_any_small_frame_comes_back(letters, bits, data):
    sample = st.integers(0, (1 << bits) - 1)
    full = (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4)))
    half = (-(-full[0] // 2), -(-full[1] // 2))
    samples = []
    for letter in letters:
        h, w = half if letter in "UV" and letters != "UV" else full
        values = data.draw(st.lists(sample, min_size=h * w, max_size=h * w))
        samples.append(np.array(values, dtype=np.uint16).reshape(h, w))
    check_round_trip(samples, letters, bits)


@pytest.mark.parametrize(
    ("top", "bits"), [(0, 8), (255, 8), (256, 9), (1023, 10), (1024, 11), (65535, 16)]
)
def test_the_depth_is_the_least_that_holds_every_sample(top, bits):
    samples = [np.zeros((2, 3), np.uint16), np.array([[0, top]], np.uint16)]
    assert bits_needed(samples) == bits
    assert bits_needed([]) == planes.MIN_BITS


@pytest.mark.parametrize("full", [(1, 1), (1, 2), (2, 1), (3, 5), (17, 9), (8, 8), (7, 4)])
@pytest.mark.parametrize("fold", [(1, 1), (2, 2), (1, 2), (1, 4), (4, 4), (2, 1)])
def test_the_context_is_the_rounded_mean_of_each_block(full, fold):
    luma = np.random.default_rng(1).integers(-(1 << 15), 1 << 15, full).astype(np.int32)
    shape = (-(-full[0] // fold[0]), -(-full[1] // fold[1]))
    context = luma_context(luma, shape)
    assert context.shape == shape
    assert context.dtype == np.int32

    def power(full: int, part: int) -> int:
        return next(f for f in (1, 2, 4, 8) if part * f >= full)

    # The block may be narrower than the subsampling where the plane is.
    fh, fw = (power(a, b) for a, b in zip(full, shape, strict=True))
    for y, x in np.ndindex(shape):
        block = [
            int(luma[min(r, full[0] - 1), min(c, full[1] - 1)])
            for r in range(y * fh, y * fh + fh)
            for c in range(x * fw, x * fw + fw)
        ]
        assert context[y, x] == (sum(block) + len(block) // 2) // len(block)


def test_the_context_of_the_largest_samples_does_not_overflow():
    for value in (-(1 << 15), (1 << 15) - 1, 1 << 16):
        luma = np.full((64, 64), value, dtype=np.int32)
        assert (luma_context(luma, (16, 16)) == value).all()


@given(st.integers(8, 16), st.integers(1, 3), st.integers(1, 20), st.data())
def test_tables_of_few_values_come_back(bits, count, most, data):
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    values = random.integers(0, 1 << bits, most)
    frames = [
        [random.choice(values, (15, 7)).astype(np.uint16), np.full((2, 3), t, np.uint16)]
        for t in range(count)
    ]
    tables, places, left = planes.tabulate(frames, bits)
    assert left <= bits
    assert (left == bits) == all(table is None for table in tables)
    for group, theirs in zip(places, frames, strict=True):
        assert all(int(plane.max()) < 1 << left for plane in group)
        assert all(map(np.array_equal, planes.look_up(group, tables), theirs))
    for table in tables:
        assert table is None or sorted(set(table)) == list(table)


def test_shallow_samples_and_many_values_have_no_tables():
    for bits, dtype in ((8, np.uint8), (9, np.uint16)):
        frame = [np.arange(1 << bits).reshape(-1, 16).astype(dtype)]
        tables, places, left = planes.tabulate([frame], bits)
        assert (tables, left) == ([None], bits)
        assert np.array_equal(places[0][0], frame[0])
    assert planes.tabulate([], 12) == ([], [], 12)


def test_values_that_are_missing_by_chance_are_not_missed():
    few, many = (np.arange(100).repeat(n).astype(np.uint16)[None] * 7 for n in (7, 8))
    assert planes.tabulate([[few]], 10)[0] == [None]
    assert planes.tabulate([[many]], 10)[0] == [tuple(range(0, 700, 7))]


def test_a_place_beyond_its_table_is_refused():
    with pytest.raises(FormatError, match="beyond"):
        planes.look_up([np.array([[3]], np.uint16)], [(5, 6, 7)])
