"""Adaptive prediction: the same bits as plain Python, exact sums, laws that it must find."""

from __future__ import annotations

import hashlib

import linear
import numpy as np
import pytest
from processors import AVX2, VNNI, call

from flowarchive import adaptive
from flowarchive.adaptive import DefaultFilters, LinearPredictor, rows, samples, solve
from flowarchive.adaptive.predictor import row_stride
from flowarchive.lattice import PHASES, bordered, phase_shape

TAPS = [adaptive.LUMA_TAPS, adaptive.CHROMA_TAPS]
WIDE = 1 << 30


def some_planes(seed: int, taps: int, shape: tuple[int, int], peak: int) -> list[np.ndarray]:
    """A plane, two references that resemble it and, for chroma, three of luma; with borders."""
    rng = np.random.default_rng(seed)
    field = rng.integers(-peak, peak + 1, shape).cumsum(axis=0) // 3
    planes = [field + rng.integers(-peak, peak + 1, shape) for _ in range(3 if taps == 38 else 6)]
    return [bordered(plane[None].astype(np.int32), 0)[0] for plane in planes]


def some_filters(seed: int, taps: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(-6000, 6001, (3, 3, 16, taps)).astype(np.int32)


def none_of(taps: int) -> np.ndarray:
    return np.zeros((3, 3, 16, taps), dtype=np.int32)


def as_arguments(planes: list[np.ndarray]) -> tuple:
    return (*planes[:3], tuple(planes[3:]) or None)


def empty_batches() -> tuple[np.ndarray, ...]:
    # Poisoned: what was in a batch before must not count.
    features = np.full((16, rows.BATCH * rows.PITCH), 0x5A5A, dtype=np.int16)
    amounts = np.full((16, rows.BATCH), 0x5A5A, dtype=np.int16)
    return features, amounts, np.zeros(16, dtype=np.int64), *empty_scratch()


def empty_scratch() -> tuple[np.ndarray, np.ndarray]:
    paired = np.full((2, rows.BATCH * rows.PITCH), 0x5A5A, dtype=np.int16)
    return paired, np.full((rows.PITCH, rows.PITCH), 0x5A5A, dtype=np.int32)


def sums_of(planes: list[np.ndarray], phase: int, shift: int, *ranges: range) -> np.ndarray:
    taps = 38 if len(planes) == 3 else 45
    total = np.zeros((16, rows.products(taps)), dtype=np.int64)
    six = [*planes, *planes][:6]
    for part in ranges:
        sums, batches = np.zeros_like(total), empty_batches()
        rows.add_rows(sums, *batches, *six, phase, shift, part.start, part.stop, part.step)
        rows.add_rest(sums, *batches)
        assert not batches[2].any()
        total += sums
    return total


@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize(("shape", "peak", "shift"), [((9, 13), 40, 0), ((6, 7), 900, 2)])
def test_frames_are_the_same_bits_as_plain_python(taps, shape, peak, shift):
    filters = some_filters(1, taps)
    predictor = LinearPredictor(filters, decay=0.8, global_ridge=20.0, class_ridge=70.0)
    faded = [[[0.0] * rows.products(taps)] * 16 for _ in PHASES]
    weights = filters[2]
    for frame in range(3):
        planes = some_planes(frame, taps, shape, peak)
        for phase in range(3):
            ours = predictor.predict(*as_arguments(planes), 3, phase, shift, -40_000, 40_000)
            plain = linear.predictions(planes, phase, shift, -40_000, 40_000, weights[phase])
            assert np.array_equal(ours, plain)
        predictor.learn(*as_arguments(planes), 3, shift)
        predictor.end_frame()
        weights = np.empty_like(weights)
        for phase in range(3):
            count = phase_shape(shape, PHASES[phase])[0]
            sums = linear.equations(planes, phase, shift, range(count))
            faded[phase] = linear.fade(faded[phase], sums, 0.8)
            weights[phase] = linear.solve(faded[phase], filters[2, phase], 20.0, 70.0)
        assert np.array_equal(predictor.weights[2], weights)
        assert not np.array_equal(weights, filters[2])
    assert np.array_equal(predictor.weights[:2], filters[:2])


@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("phase", range(3))
def test_sums_are_exact_in_any_order_and_split(taps, phase):
    planes = some_planes(5, taps, (70, 83), 300)
    whole = sums_of(planes, phase, 0, range(35))
    assert np.array_equal(whole, sums_of(planes, phase, 0, range(20, 35), range(20)))
    assert np.array_equal(whole, sums_of(planes, phase, 0, range(1, 35, 2), range(0, 35, 2)))
    few = sums_of(planes, phase, 0, range(30, 35, 3))
    assert few.tolist() == linear.equations(planes, phase, 0, range(30, 35, 3))


def test_rows_may_be_predicted_in_parts():
    planes = some_planes(6, 38, (20, 21), 100)
    weights = some_filters(2, 38)[0, 1]
    predictor = LinearPredictor(some_filters(2, 38))
    whole = predictor.predict(*as_arguments(planes), 0, 1, 0, -WIDE, WIDE)
    parts = np.full_like(whole, 0x5A5A)
    for first, last in ((6, 10), (0, 6)):
        rows.predict_rows(parts, *planes, *planes, 1, 0, -WIDE, WIDE, weights, first, last)
    assert np.array_equal(whole, parts)


@pytest.mark.parametrize("shift", [0, 3, 8])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("taps", TAPS)
def test_the_largest_values_and_weights_do_not_overflow(taps, sign, shift):
    rng = np.random.default_rng(shift)
    top = 1 << 18  # RGB chroma of 16 bits, in quarters
    planes = [
        bordered(rng.choice([-top, top], (1, 24, 70)).astype(np.int32), 0)[0]
        for _ in range(3 if taps == 38 else 6)
    ]
    filters = np.full((3, 3, 16, taps), sign * adaptive.WEIGHT_LIMIT, dtype=np.int32)
    predictor = LinearPredictor(filters)
    for phase in range(3):
        ours = predictor.predict(*as_arguments(planes), 0, phase, shift, -WIDE * 2, WIDE * 2 - 1)
        plain = linear.predictions(planes, phase, shift, -WIDE * 2, WIDE * 2 - 1, filters[0, phase])
        assert np.array_equal(ours, plain)
    sums = sums_of(planes, 0, shift, range(12))
    assert sums.tolist() == linear.equations(planes, 0, shift, range(12))
    predictor.learn(*as_arguments(planes), 0, shift)
    predictor.end_frame()
    assert int(np.abs(predictor.weights).max()) <= adaptive.WEIGHT_LIMIT


def test_a_full_batch_of_the_largest_products_fits():
    # Features of 1023 of the greatest weight: one more sample would pass 2**31.
    batch = np.full(rows.BATCH * rows.PITCH, samples.FEATURE_LIMIT, dtype=np.int16)
    sums = np.zeros(rows.products(38), dtype=np.int64)
    amounts = np.full(rows.BATCH, 4, dtype=np.int16)
    rows._add_products(sums, batch, amounts, rows.BATCH, *empty_scratch())
    assert set(sums[:-1].tolist()) == {rows.BATCH * 4 * samples.FEATURE_LIMIT**2}
    assert sums[-1] == 4 * rows.BATCH


@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("count", [1, 2, 31, 255, 511, 512])
def test_products_of_any_number_of_samples(taps, count):
    rng = np.random.default_rng(count)
    batch = rng.integers(-1023, 1024, (rows.BATCH, rows.PITCH)).astype(np.int16)
    amounts = rng.integers(1, 5, rows.BATCH).astype(np.int16)
    seen, weight = batch[:count, : taps + 1].astype(int), amounts[:count].astype(int)
    sums = np.arange(rows.products(taps))
    rows._add_products(sums, batch.reshape(-1), amounts, count, *empty_scratch())
    matrix = (seen.T * weight) @ seen
    new = np.append(matrix[np.tril_indices(taps + 1)], weight.sum())
    assert np.array_equal(sums, np.arange(new.size) + new)


@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("width", [2, 3, 29, 31, 32, 33, 64, 66])
def test_rows_of_any_width(taps, width):
    planes = some_planes(width, taps, (4, width), 200)
    filters = some_filters(5, taps)
    predictor = LinearPredictor(filters)
    for phase in range(3):
        ours = predictor.predict(*as_arguments(planes), 1, phase, 1, -WIDE, WIDE)
        plain = linear.predictions(planes, phase, 1, -WIDE, WIDE, filters[1, phase])
        assert np.array_equal(ours, plain)
        count = phase_shape((4, width), PHASES[phase])[0]
        sums = sums_of(planes, phase, 1, range(count))
        assert sums.tolist() == linear.equations(planes, phase, 1, range(count))


def test_the_largest_sums_are_solved():
    most = 2**19 * 4 * samples.FEATURE_LIMIT**2 * 7
    sums = np.full((3, 16, rows.products(45)), most, dtype=np.int64)
    weights = np.empty((3, 16, 45), dtype=np.int32)
    faded = solve.no_sums(3, rows.products(45))
    solve.fade_and_solve(faded, sums, none_of(45)[0], weights, 0.85, 30.0, 200.0)
    assert np.isfinite(faded).all()
    assert not sums.any()
    # All features are the target, so the filters share it out.
    assert np.abs(weights.sum(axis=2) - 2**14).max() <= 45


def frame_of_a_law(seed: int) -> list[np.ndarray]:
    """A plane that is a mixture of its references, these in full steps."""
    rng = np.random.default_rng(seed)
    smooth = rng.normal(0, 60, (66, 90)).cumsum(axis=1).cumsum(axis=0) / 30
    first, second = (
        np.rint(smooth + rng.normal(0, 6, smooth.shape)).clip(-500, 500).astype(np.int32) * 4
        for _ in range(2)
    )
    mixed = (3 * first + np.roll(second, 1, axis=1)) // 4
    return [bordered(plane[None], 0)[0] for plane in (mixed, first, second)]


def test_a_linear_law_is_found_after_one_frame():
    predictor = LinearPredictor(none_of(38))
    errors = []
    for seed in range(2):
        planes = frame_of_a_law(seed)
        shape = phase_shape((66, 90), PHASES[0])
        target = planes[0][5:-4:2, 5:-4:2][: shape[0], : shape[1]]
        ours = predictor.predict(*as_arguments(planes), 0, 0, 0, -WIDE, WIDE)
        inside = np.abs(ours / 256 - target / 4)[2:-2, 2:-2]
        errors.append(float(inside.mean()))
        predictor.learn(*as_arguments(planes), 0, 0)
        predictor.end_frame()
    assert errors[0] > 3
    assert errors[1] < 0.5


def test_fitted_filters_know_the_law_from_the_start():
    fitting = DefaultFilters(38)
    for seed in range(3):
        fitting.learn(*as_arguments(frame_of_a_law(seed)), 0, 0)
        fitting.end_frame()
    filters = fitting.fit()
    assert not filters[1:].any()
    planes = frame_of_a_law(9)
    ours = LinearPredictor(filters).predict(*as_arguments(planes), 0, 0, 0, -WIDE, WIDE)
    target = planes[0][5:-4:2, 5:-4:2]
    assert np.abs(ours / 256 - target / 4)[2:-2, 2:-2].mean() < 0.3


def test_two_predictors_agree_and_share_nothing():
    def history(other: LinearPredictor | None) -> list[np.ndarray]:
        predictor = LinearPredictor(some_filters(3, 45))
        seen = []
        for frame in range(3):
            for level, shape in ((2, (5, 6)), (1, (11, 13)), (0, (23, 27))):
                planes = some_planes(frame, 45, shape, 30)
                seen.append(predictor.predict(*as_arguments(planes), level, 2, 0, -WIDE, WIDE))
                predictor.learn(*as_arguments(planes), level, 0)
                if other is not None:
                    other.learn(*as_arguments(planes[::-1]), level, 0)
                    other.end_frame()
            predictor.end_frame()
        return [*seen, predictor.weights]

    alone, beside = history(None), history(LinearPredictor(some_filters(4, 45)))
    assert all(np.array_equal(a, b) for a, b in zip(alone, beside, strict=True))


@pytest.mark.parametrize(
    ("samples", "stride"),
    [(1, 1), (1 << 14, 1), ((1 << 14) + 1, 2), (1 << 16, 4), (1 << 19, 4), ((1 << 19) + 1, 5)],
)
def test_large_phases_are_learned_from_in_part(samples, stride):
    assert row_stride((samples, 1)) == stride


@pytest.mark.parametrize("shape", [(3, 3, 16, 37), (3, 3, 15, 38), (2, 3, 16, 45), (16, 38)])
def test_filters_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="filters are"):
        LinearPredictor(np.zeros(shape, dtype=np.int32))


def test_weights_out_of_range_are_refused():
    filters = none_of(38)
    filters[1, 2, 3, 4] = -adaptive.WEIGHT_LIMIT - 1
    with pytest.raises(ValueError, match="larger"):
        LinearPredictor(filters)


def filters_hash() -> str:
    """Of predictions by filters that have learned, of both sorts."""
    digest = hashlib.sha256()
    for taps in TAPS:
        predictor = LinearPredictor(some_filters(4, taps))
        for frame in range(3):
            planes = some_planes(frame, taps, (70, 83), 200)
            for phase in range(3):
                found = predictor.predict(*as_arguments(planes), 0, phase, 1, -WIDE, WIDE)
                digest.update(found.tobytes())
            predictor.learn(*as_arguments(planes), 0, 1)
            predictor.end_frame()
        digest.update(predictor.weights.tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize(("expected", "name", "features"), [AVX2, VNNI])
def test_older_processors_learn_the_same(expected, name, features):
    assert call("test_adaptive.filters_hash", name, features) == [expected, filters_hash()]
