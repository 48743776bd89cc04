"""The lattice: every sample is known exactly once, and nothing looks at what is not known yet."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowarchive import lattice
from flowarchive.lattice import BORDER, MAX_LEVELS, PHASES

SHAPES = st.tuples(st.integers(1, 70), st.integers(1, 70))


def level_shape(shape: tuple[int, int], level: int) -> tuple[int, int]:
    """Rows and columns of the plane of a level."""
    step = 1 << level
    return -(-shape[0] // step), -(-shape[1] // step)


def test_the_levels_end_at_one_row_or_column_or_at_the_most():
    for shape, count in (((1, 1), 0), ((1, 99), 0), ((2, 2), 1), ((3, 3), 2), ((5, 2), 1)):
        assert lattice.level_count(shape) == count, shape
    assert lattice.level_count((64, 64)) == lattice.level_count((4000, 3000)) == MAX_LEVELS


@given(SHAPES)
def test_every_sample_is_in_one_phase_or_in_the_top(shape):
    levels = lattice.level_count(shape)
    seen = np.zeros(shape, dtype=int)
    for level in range(levels):
        step = 1 << level
        plane = seen[::step, ::step]
        assert plane.shape == level_shape(shape, level)
        assert min(plane.shape) >= 2
        for phase in PHASES:
            part = plane[phase.row :: 2, phase.column :: 2]
            assert part.shape == lattice.phase_shape(plane.shape, phase)
            part += 1
    top = seen[:: 1 << levels, :: 1 << levels]
    assert top.shape == level_shape(shape, levels)
    top += 1
    assert (seen == 1).all()


@given(SHAPES, st.integers(0, 3))
def test_borders_repeat_the_nearest_sample_of_the_same_parity(shape, level):
    whole = np.random.default_rng(0).integers(-(1 << 20), 1 << 20, (2, *shape)).astype(np.int32)
    h, w = level_shape(shape, level)
    if min(h, w) < 2:
        return
    plane = lattice.bordered(whole, level)
    assert plane.shape == (2, h + 2 * BORDER, w + 2 * BORDER)

    def nearest(i: int, size: int) -> int:
        return min((j for j in range(size) if (i - j) % 2 == 0), key=lambda j: abs(i - j))

    rows = [nearest(y, h) for y in range(-BORDER, h + BORDER)]
    columns = [nearest(x, w) for x in range(-BORDER, w + BORDER)]
    step = 1 << level
    assert np.array_equal(plane, whole[:, ::step, ::step][:, rows][:, :, columns])


@pytest.mark.parametrize("index", range(3))
def test_taps_are_in_reach_and_of_phases_that_are_known(index):
    phase = PHASES[index]
    known = {(0, 0), *((p.row, p.column) for p in PHASES[:index])}

    def parities(taps: tuple[tuple[int, int], ...]) -> set[tuple[int, int]]:
        return {((phase.row + dy) % 2, (phase.column + dx) % 2) for dy, dx in taps}

    assert parities(phase.near + phase.far) <= known
    assert not parities(phase.cross) & known
    assert all(max(map(abs, tap)) < BORDER for tap in phase.near + phase.far + phase.cross)
    assert len({*phase.near, *phase.far}) == 12
    for a, b in ((0, 3), (1, 2)):
        assert phase.near[a] == tuple(-d for d in phase.near[b])
    reach = [dy * dy + dx * dx for dy, dx in phase.near]
    assert max(reach) == min(reach)
