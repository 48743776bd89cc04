"""Scale correction: the same integers as plain Python, and offsets that find the true scales."""

from __future__ import annotations

import numpy as np
import pytest

from flowarchive.adaptive import ScaleCorrection, correction
from flowarchive.entropy import LogisticMixture, sigmoid_table


def some_symbols(seed: int, n: int, k: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    symbols = rng.integers(-300, 300, n).astype(np.int32)
    mean = (symbols[:, None] * 256 + rng.integers(-3000, 3000, (n, k))).astype(np.int32)
    scale = rng.integers(0, 192, (n, k)).astype(np.int32)
    cuts = np.sort(rng.integers(0, 4097, (n, k - 1)), axis=1)
    weight = np.diff(cuts, axis=1, prepend=0, append=4096).astype(np.int32)
    return symbols, mean, scale, weight


def add_costs(*arguments: object) -> None:
    scratch = np.full_like(correction.new_scratch(), 0x5A5A)
    correction.add_costs(*arguments, *correction.cost_tables(), scratch)


def plain_log(value: int) -> int:
    """floor(256 * log2(value)), of value's nine highest bits."""
    octave = value.bit_length() - 9
    leading = value >> octave if octave >= 0 else value << -octave
    return 256 * octave + (leading**256).bit_length() - 1


def plain_cost(symbol: int, mean: np.ndarray, scale: np.ndarray, weight: np.ndarray) -> int:
    sigmoid = sigmoid_table().tolist()
    reciprocals = [round(2 ** (24 - j / 8)) for j in range(8)]
    total = 0
    for m, s, w in zip(mean.tolist(), scale.tolist(), weight.tolist(), strict=True):
        index = min(max(s, 0), 191)
        sides = []
        for edge in (2 * symbol - 1, 2 * symbol + 1):
            place = (edge * 128 - m) * reciprocals[index % 8] // 2 ** (7 + index // 8)
            i, rest = divmod(min(max(place, -18 * 2**20), 18 * 2**20 - 1) + 18 * 2**20, 2**14)
            sides.append(sigmoid[i] + (sigmoid[i + 1] - sigmoid[i]) * rest // 2**14)
        total += w * (sides[1] - sides[0])
    return 24 * 256 - plain_log(total // 4096 + 1)


def plain_offset(less: int, same: int, more: int) -> int:
    curvature = less - 2 * same + more + 500
    if curvature > 0:
        offset = (4 * (less - more) + curvature) // (2 * curvature)
    else:
        offset = 4 if more < less else -4
    return min(max(offset, -12), 12)


@pytest.mark.parametrize("k", [1, 3])
def test_frames_are_the_same_integers_as_plain_python(k):
    ours, costs = ScaleCorrection(), np.zeros((48, 3), dtype=object)
    for frame, n in enumerate((300, 5000, 40)):
        symbols, mean, scale, weight = some_symbols(frame, n, k)
        buckets = (scale.astype(int) * weight).sum(axis=1) // 4096 // 4
        ours.learn(1, 2, symbols, mean, scale, weight)
        ours.end_frame()
        costs = costs - costs // 5
        stride = -(-n // 2048)
        for i in range(frame % stride, n, stride):
            for j, step in enumerate((-4, 0, 4)):
                cost = plain_cost(int(symbols[i]), mean[i], scale[i] + step, weight[i])
                costs[buckets[i], j] += cost
        assert ours.offsets(1, 2).tolist() == [plain_offset(*row) for row in costs.tolist()]
    assert ours.offsets(1, 2).any()
    assert not ours.offsets(1, 1).any()


def test_costs_are_those_of_the_entropy_model():
    symbols, mean, scale, weight = some_symbols(7, 2000, 3)
    scale = scale.clip(24, 110)
    costs = np.zeros((correction.BUCKETS, 3), dtype=np.int64)
    add_costs(costs, symbols, mean, scale, weight, 0, 2000, 1)
    ideal = LogisticMixture(-400, 400, 24).bits(symbols, mean, scale, weight)
    assert costs[:, 1].sum() / 256 == pytest.approx(ideal, rel=0.005)


def test_costs_are_exact_in_any_order_and_split():
    arrays = some_symbols(8, 1000, 2)
    whole, parts = (np.zeros((correction.BUCKETS, 3), dtype=np.int64) for _ in range(2))
    add_costs(whole, *arrays, 0, 1000, 1)
    for first, last, stride in ((500, 1000, 1), (1, 500, 2), (0, 500, 2)):
        add_costs(parts, *arrays, first, last, stride)
    assert np.array_equal(whole, parts)


def test_the_extremes_do_not_overflow():
    symbols = np.array([-(1 << 20), 1 << 20, 0], dtype=np.int32)
    mean = np.array([[2**31 - 1], [-(2**31)], [0]], dtype=np.int32)
    scale = np.array([[0], [191], [0]], dtype=np.int32)
    weight = np.full((3, 1), 4096, dtype=np.int32)
    for i in range(3):
        costs = np.zeros((correction.BUCKETS, 3), dtype=np.int64)
        add_costs(costs, symbols, mean, scale, weight, i, i + 1, 1)
        for j, step in enumerate((-4, 0, 4)):
            cost = plain_cost(int(symbols[i]), mean[i], scale[i] + step, weight[i])
            assert costs[scale[i, 0] // 4, j] == cost


@pytest.mark.parametrize("wrong", [-11, -6, 0, 5, 10])
def test_wrong_scales_are_put_right(wrong):
    rng = np.random.default_rng(9)
    true = 64
    ours = ScaleCorrection()
    for _ in range(6):
        symbols = np.rint(rng.logistic(0, 2.0 ** (true / 8 - 5), 2000)).astype(np.int32)
        mean = np.zeros((2000, 1), dtype=np.int32)
        scale = np.full((2000, 1), true + wrong, dtype=np.int32)
        weight = np.full((2000, 1), 4096, dtype=np.int32)
        ours.learn(0, 0, symbols, mean, scale, weight)
        ours.end_frame()
    right = true + wrong + int(ours.offsets(0, 0)[(true + wrong) // 4])
    assert abs(right - true) <= 1 + abs(wrong) // 3
