"""Channels and anchors: equal to a plain reading of their list, blind to what is not known."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowarchive import features, int8, lattice
from flowarchive.lattice import BORDER, PHASES

Plane = np.ndarray
Change = Callable[[Plane], Plane]


class Known(NamedTuple):
    """What a phase of one plane is predicted from; planes with borders, in quarters."""

    plane: Plane
    references: tuple[Plane, Plane] | None
    luma: tuple[Plane, ...] | None
    linear: Plane
    last: Plane


class At:
    """A plain reading of the samples around one position."""

    def __init__(self, phase: int, i: int, j: int, shift: int) -> None:
        self.taps, self.shift = PHASES[phase], shift
        self.y, self.x = BORDER + 2 * i + self.taps.row, BORDER + 2 * j + self.taps.column

    def here(self, plane: Plane, dy: int = 0, dx: int = 0) -> int:
        return int(plane[self.y + dy, self.x + dx])

    def near(self, plane: Plane) -> list[int]:
        return [self.here(plane, *tap) for tap in self.taps.near]

    def far(self, plane: Plane) -> list[int]:
        return [self.here(plane, *tap) for tap in self.taps.far]

    def cross(self, plane: Plane) -> list[int]:
        return [self.here(plane, *tap) for tap in self.taps.cross]

    def mean(self, plane: Plane) -> int:
        return sum(self.near(plane)) // 4

    def newest(self, plane: Plane, phase: int) -> int:
        return self.here(plane, 0, 1) if phase == 1 else self.here(plane, 1, -1)

    def step(self, quarters: int) -> int:
        """A difference in halves of a sample, halves up, clamped."""
        unit = 2 << self.shift
        return min(max((quarters + unit // 2) // unit, -127), 127)

    def log(self, quarters: int) -> int:
        """floor(10 * log2(1 + magnitude))."""
        value = min(abs(quarters) // 2**self.shift, 4095)
        return max(n for n in range(121) if 2**n <= (1 + value) ** 10)


def plain_intra(known: Known, phase: int, i: int, j: int, shift: int) -> tuple[list, list]:
    at, p = At(phase, i, j, shift), known.plane
    near, mean = at.near(p), at.mean(p)
    spread = sum(abs(x - mean) for x in near) // 4
    anchors = [64 * mean, 32 * (near[0] + near[3]), 32 * (near[1] + near[2]), 64 * mean]
    seen = [at.step(x - mean) for x in near]
    far = [at.step(x - mean) for x in at.far(p)]
    logs = [at.log(spread), at.log(near[0] - near[3]), at.log(near[1] - near[2])]
    detail: list[int] = []
    if known.luma is not None:
        g = known.luma[0]
        apart = [x - at.here(g) for x in at.near(g)]
        detail, mean_apart = [at.step(d) for d in apart], sum(apart) // 4
        curve = at.step(-mean_apart)
    if phase == 0:
        seen += [*far, *logs, at.step(mean // 8)]
        if known.luma is not None:
            beyond = [at.here(g, *tap) for tap in ((-2, 0), (0, -2), (0, 2), (2, 0))]
            seen += [curve, *detail, *(at.step(x - at.here(g)) for x in at.cross(g))]
            seen += [at.log(mean_apart), at.log(sum(map(abs, apart)) // 4)]
            seen += [at.step(at.here(g) // 8), *(at.step(x - at.here(g)) for x in beyond)]
        return seen, anchors
    new = at.step(at.newest(p, phase) - int(known.last[i, j]) // 64)
    if known.luma is None:
        return [*seen, *far, new, *logs], anchors
    return [*seen, *far[:4], new, curve, *detail, logs[0], at.log(mean_apart)], anchors


def plain_inter(known: Known, phase: int, i: int, j: int, shift: int) -> tuple[list, list]:
    assert known.references is not None
    at, p, (r, q) = At(phase, i, j, shift), known.plane, known.references
    near, mean, anchor = at.near(p), at.mean(p), int(known.linear[i, j])
    prediction = anchor // 64
    here_r, here_q = at.here(r), at.here(q)
    moved = here_r + mean - at.mean(r), here_q + mean - at.mean(q)
    anchors = [anchor, 64 * mean, 64 * here_r, 64 * moved[0], 64 * moved[1]]
    apart_r = [x - y for x, y in zip(near, at.near(r), strict=True)]
    apart_q = [x - y for x, y in zip(near, at.near(q), strict=True)]
    spread = sum(abs(x - mean) for x in near) // 4
    step, log = at.step, at.log
    sizes = [sum(map(abs, apart)) // 4 for apart in (apart_r, apart_q)]
    seen = [step(x - mean) for x in near]
    light = light_q = detail = 0
    if known.luma is not None:
        g, gr, gq = known.luma
        light, light_q = at.here(g) - at.here(gr), at.here(g) - at.here(gq)
        detail = at.here(g) - at.mean(g)
    if phase == 0:
        seen += [step(here_r - mean), step(here_q - mean), *map(step, apart_r)]
        common = [log(here_r - mean), log(here_r - here_q), log(spread), log(sizes[0])]
        if known.luma is not None:
            seen += [step(sum(apart_q) // 4), step(prediction - mean), step(here_r - here_q)]
            seen += [step(light), step(light_q), step(detail)]
            seen += [step(x - y) for x, y in zip(at.near(g), at.near(gr), strict=True)]
            seen += [*(step(x - mean) for x in at.cross(r)), *common, log(prediction - mean)]
            return [*seen, log(light), log(detail), log(prediction - here_r)], anchors
        seen += [*map(step, apart_q), *(step(x - mean) for x in at.cross(r))]
        seen += [*(step(x - mean) for x in at.cross(q)), step(prediction - mean)]
        seen += [step(here_r - here_q), *common, log(sizes[1]), log(prediction - mean)]
        return [*seen, log(prediction - here_r), step(mean // 8)], anchors
    new = at.newest(p, phase) - int(known.last[i, j]) // 64
    gray = known.luma is None
    seen += [step(here_r - mean), step(here_q - mean) if gray else step(detail)]
    seen += [step(prediction - mean), step(new), step(sum(apart_r) // 4)]
    seen += [step(sum(apart_q) // 4) if gray else step(light), log(spread), log(sizes[0])]
    seen += [log(sizes[1]) if gray else log(light), log(here_r - mean)]
    return [*seen, log(prediction - mean), log(new)], anchors


def make_known(
    random: np.random.Generator, shape: tuple[int, int], most: int, inter: bool, chroma: bool
) -> Known:
    """Planes of a few values up to `most` samples, so that all signs and clamps occur."""

    def bordered() -> Plane:
        values = random.choice([-most, -1, 0, 1, most], shape) * 4
        values += random.integers(-40, 41, shape)
        return lattice.bordered(values[None].astype(np.int32), 0)[0]

    grid = (shape[0] + 1) // 2, (shape[1] + 1) // 2
    anchors = [random.integers(-most * 256, most * 256, grid).astype(np.int32) for _ in "ab"]
    count = 3 if inter else 1
    luma = tuple(bordered() for _ in range(count)) if chroma else None
    return Known(bordered(), (bordered(), bordered()) if inter else None, luma, *anchors)


def compute(group: list[Known], phase: int, shift: int) -> tuple[Plane, Plane]:
    """Channels and anchors of planes together; of two chroma planes that share luma."""
    plane, last = np.stack([k.plane for k in group]), np.stack([k.last for k in group])[..., None]
    luma = group[0].luma and tuple(g[None] for g in group[0].luma)
    if group[0].references is None:
        seen, anchors = features.intra(plane, luma and luma[0], last, phase, shift)
        return int8.signed(seen), anchors
    first, second = (np.stack(r) for r in zip(*(k.references for k in group), strict=True))
    linear = np.stack([k.linear for k in group])
    seen, anchors = features.inter(plane, (first, second), luma, linear, last, phase, shift)
    return int8.signed(seen), anchors


def make_group(seed: int, shape: tuple[int, int], most: int, inter: bool, chroma: bool) -> list:
    random = np.random.default_rng(seed)
    one, two = (make_known(random, shape, most, inter, chroma) for _ in "ab")
    return [one, two._replace(luma=one.luma)]


KINDS = [(False, False), (False, True), (True, False), (True, True)]
kinds = pytest.mark.parametrize(
    ("inter", "chroma"), KINDS, ids=["intra luma", "intra chroma", "inter luma", "inter chroma"]
)
phases = pytest.mark.parametrize("phase", range(3))


def check_plain(group: list[Known], phase: int, shift: int) -> None:
    plain = plain_inter if group[0].references else plain_intra
    seen, anchors = compute(group, phase, shift)
    inter, luma = group[0].references is not None, group[0].luma is None
    channels = features.first_channels(inter, luma) if phase == 0 else features.UPDATE_CHANNELS
    assert seen.shape[3] == channels
    assert anchors.shape[3] == (features.INTER_ANCHORS if inter else features.INTRA_ANCHORS)
    for n, i, j in np.ndindex(seen.shape[:3]):
        channels, centers = plain(group[n], phase, i, j, shift)
        assert seen[n, i, j].tolist() == channels
        assert anchors[n, i, j].tolist() == centers


@kinds
@phases
@pytest.mark.parametrize(
    ("most", "shift"), [(20, 0), (128, 0), (600, 2), (32768, 0), (32768, 8), (65535, 8)]
)
def test_channels_and_anchors_are_what_their_list_says(inter, chroma, phase, most, shift):
    """Up to the differences of 16-bit colors; int8 and int32 hold them all."""
    check_plain(make_group(phase, (5, 6), most, inter, chroma), phase, shift)


@settings(max_examples=60)
@given(
    st.sampled_from(KINDS),
    st.integers(0, 2),
    st.tuples(st.integers(2, 9), st.integers(2, 9)),
    st.integers(1, 65535),
    st.integers(0, 8),
    st.integers(0, 999),
)
def test_any_planes_are_read_as_the_list_says(kind, phase, shape, most, shift, seed):
    check_plain(make_group(seed, shape, most, *kind), phase, shift)


def unknown(shape: tuple[int, int], phase: int) -> Plane:
    """Where a bordered plane holds samples of phases that are not known before `phase`."""
    mask = np.zeros(shape, dtype=bool)
    for later in PHASES[phase:]:
        mask[later.row :: 2, later.column :: 2] = True
    return mask


@kinds
@phases
@pytest.mark.parametrize("shape", [(2, 2), (5, 4), (6, 7), (9, 9)])
def test_samples_that_are_not_known_are_not_read(inter, chroma, phase, shape):
    group = make_group(3, shape, 90, inter, chroma)
    poisoned = []
    for known in group:
        plane = known.plane.copy()
        plane[unknown(plane.shape, phase)] = 0x5A5A5A
        last = known.last if phase else np.full_like(known.last, 0x5A5A5A)
        poisoned.append(known._replace(plane=plane, last=last))
    rows, columns = lattice.phase_shape(shape, PHASES[phase])
    for ours, theirs in zip(compute(group, phase, 0), compute(poisoned, phase, 0), strict=True):
        assert np.array_equal(ours[:, :rows, :columns], theirs[:, :rows, :columns])
    poisoned[0].plane[BORDER, BORDER] += 400
    assert not np.array_equal(compute(group, phase, 0)[0], compute(poisoned, phase, 0)[0])


def changed(known: Known, plane: Change, anchor: Change) -> Known:
    """The same with other samples."""
    references = known.references and tuple(map(plane, known.references))
    luma = known.luma and tuple(map(plane, known.luma))
    return Known(plane(known.plane), references, luma, anchor(known.linear), anchor(known.last))


@kinds
@phases
def test_channels_do_not_depend_on_brightness(inter, chroma, phase):
    group = make_group(5, (6, 6), 30, inter, chroma)
    bright = [changed(k, lambda p: p + 4 * 1000, lambda a: a + 256 * 1000) for k in group]
    (seen, anchors), (other, lifted) = (compute(g, phase, 0) for g in (group, bright))
    assert np.array_equal(lifted, anchors + 256 * 1000)
    different = (seen != other).any(axis=(0, 1, 2)).sum()
    # One channel says how bright it is; intra chroma sees how bright luma is, too.
    expected = {(False, False): 1, (False, True): 2, (True, False): 1, (True, True): 0}
    assert different == (0 if phase else expected[inter, chroma])


@kinds
@phases
def test_low_bits_of_deep_samples_are_not_seen(inter, chroma, phase):
    group = make_group(7, (6, 6), 100, inter, chroma)
    # Multiples of four, so that no mean drops a fraction that is there in a deeper sample.
    whole = [changed(k, lambda p: p << 2, lambda a: a >> 6 << 6) for k in group]
    deep = [changed(k, lambda p: p << 4, lambda a: a << 4) for k in whole]
    assert np.array_equal(compute(whole, phase, 0)[0], compute(deep, phase, 4)[0])


def test_the_log_table_is_a_logarithm():
    table = features.log_table()
    exact = np.floor(10 * np.log2(1 + np.arange(4096)) + 1e-9)
    assert np.array_equal(table, exact)
    assert table.max() == 120
    with pytest.raises(ValueError, match="read-only"):
        table[0] = 1
