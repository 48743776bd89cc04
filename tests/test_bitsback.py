"""Local bits-back obeys its laws: both coders, the normal under them, places, the black box."""

from __future__ import annotations

import os
import subprocess
import sys
from statistics import NormalDist

import numpy as np
import pytest
from bits_laws import check_exhaustion, check_local_coder, random_message

from flowarchive.ans import Message
from flowarchive.bitsback import (
    TILT_MAX,
    BlackBox,
    Dequantizer,
    Gaussian,
    Normal,
    Segments,
    Uniform,
    place_bits,
    tilt_masses,
)
from flowarchive.bitsback.normal import log2_index, octave_table, phi_table
from flowarchive.errors import InvalidInterval, MessageExhausted

CODERS = [Uniform(), Gaussian(-64), Gaussian(0), Gaussian(45), Gaussian(300)]


class Pieces:
    """A map of given knots, one row for each of n elements."""

    def __init__(self, knots, images):
        self._knots, self._images = np.array(knots), np.array(images)

    def _segments(self, z, sides):
        at = ((sides[0] <= z[:, None]).sum(1) - 1).clip(0, sides[0].shape[1] - 2)
        rows = np.arange(len(z)) if len(sides[0]) != 1 else 0
        (a, b), (c, d) = ((s[rows, at], s[rows, at + 1]) for s in sides)
        return Segments(a, b - a, c, d - c)

    def segments(self, x):
        return self._segments(x, (self._knots, self._images))

    def segments_of(self, y):
        return self._segments(y, (self._images, self._knots)).turned()

    def knots(self, part):
        if len(self._knots) == 1:
            return self._knots, self._images
        return self._knots[part], self._images[part]


def random_pieces(count, pieces, size, image, seed=0):
    """Maps of `count` elements from [0, size) to [0, image)."""
    rng = np.random.default_rng(seed)

    def ends(total):
        inner = [rng.choice(total - 1, pieces - 1, replace=False) + 1 for _ in range(count)]
        inner = np.sort(np.array(inner, dtype=np.int64).reshape(count, pieces - 1))
        return np.pad(inner, ((0, 0), (1, 1)))

    knots, images = ends(size), ends(image)
    knots[:, -1], images[:, -1] = size, image
    return Pieces(knots, images)


@pytest.mark.parametrize("coder", CODERS, ids=repr)
@pytest.mark.parametrize("lanes", [1, 4, 64])
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000])
def test_nothing_is_lost(coder, lanes, count):
    rng = np.random.default_rng(count)
    for pieces, size, image in ((1, 1, 1), (3, 700, 40), (5, 90, 4000), (4, 50, 50)):
        map = random_pieces(count, pieces, size, image, count)
        x = rng.integers(0, size, count)
        x[: count // 3], x[count // 3 : count // 2] = 0, size - 1
        check_local_coder(coder, map, x, image, lanes)


@pytest.mark.parametrize("coder", CODERS, ids=repr)
def test_blocks_of_elements(coder):
    # More elements than are worked on together, of one map for all.
    map = Pieces([[0, 5, 2000, 3000]], [[0, 1000, 1010, 1200]])
    x = np.random.default_rng(0).integers(0, 3000, 9000)
    y = check_local_coder(coder, map, x, 1200, 8)
    check_exhaustion(coder.forward, map, x)
    check_exhaustion(coder.inverse, map, y)


@pytest.mark.parametrize("v", [1, 2, 3, (1 << 31) + 1, (1 << 32) - 1, 1 << 32])
@pytest.mark.parametrize("w", [1, 5, 1 << 31, (1 << 32) - 1, 1 << 32])
def test_uniform_at_the_longest_pieces(v, w):
    n = 1000
    x = np.random.default_rng(0).integers(0, w, n)
    x[:2] = 0, w - 1
    y = check_local_coder(Uniform(), Pieces([[0, w]], [[0, v]]), x, v, 4)
    # Every cell of x has its share of the cells of y.
    assert (y <= ((x + 1) * v - 1) // w).all() if v < 1 << 31 > w else True


def test_uniform_spreads_a_cell_over_its_image():
    # 3 cells onto 7: cell 1 is [7/3, 14/3), so it gives 2 and 4 in part, 3 in full.
    map, n = Pieces([[0, 3]], [[0, 7]]), 30000
    y = Uniform().forward(random_message(16, 3 * n), np.ones(n, dtype=np.int64), map)
    share = np.bincount(y, minlength=7) / n
    assert share == pytest.approx([0, 0, 2 / 7, 3 / 7, 2 / 7, 0, 0], abs=0.01)


@pytest.mark.parametrize(("coder", "slack"), [(Uniform(), 1e-4), (Gaussian(32), 0.01)], ids=repr)
def test_the_net_cost_is_the_slope(coder, slack):
    n, rng = 60000, np.random.default_rng(1)
    knots = np.array([[0, 3000, 9000, 20000]])
    for images in ([0, 4000, 11000, 20000], [0, 160, 400, 1000]):
        map = Pieces(knots, [images])
        x = rng.integers(0, 20000, n)
        message = random_message(16, 3 * n)
        before = message.bits
        coder.forward(message, x, map)
        _, w, _, v = map.segments(x)
        ideal = np.log2(w / v).sum()
        assert message.bits - before == pytest.approx(ideal, abs=slack * n)


@pytest.mark.parametrize("coder", [Uniform(), Gaussian(0)], ids=repr)
def test_wrong_arguments(coder):
    message, map = random_message(1, 10), Pieces([[0, 4]], [[0, 4]])
    for wrong in ([[0]], [0.5]):
        with pytest.raises(ValueError):  # noqa: PT011
            coder.forward(message, wrong, map)
    for outside in ([-1], [4]):
        with pytest.raises(InvalidInterval):
            coder.forward(message, outside, map)
    assert message.to_bytes() == random_message(1, 10).to_bytes()
    for sigma in (-65, 513):
        with pytest.raises(ValueError, match="sigma"):
            Gaussian(sigma)
    with pytest.raises(ValueError, match="too fine"):
        Gaussian(0).forward(message, [0], Pieces([[0, 1 << 32]], [[0, 1]]))


def test_frozen_tables():
    phi = phi_table()
    assert (phi.size, phi[0], phi[512], phi[-1]) == (1025, 0, 1 << 23, 1 << 24)
    known = [round(NormalDist().cdf(k / 64) * 2**24) for k in range(-512, 513)]
    assert phi.tolist() == known
    assert phi[512 + 64 * np.arange(1, 4)].tolist() == [14115423, 16395532, 16754568]
    assert np.array_equal(phi + phi[::-1], np.full(1025, 1 << 24))
    assert (np.diff(phi) >= 0).all()
    octaves = octave_table()
    numbers = [1, 2, 3, 5, 1000, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32]
    for number in numbers:
        assert log2_index(np.int64(number), octaves) == round(32 * np.log2(number))
    masses = tilt_masses()
    assert (masses.sum(1) == 4096).all()
    assert masses.min() >= 1
    assert masses[TILT_MAX].tolist() == [512] * 8
    assert np.array_equal(masses[:, ::-1], masses[::-1])
    shares = np.exp(np.arange(8) / 2)
    assert masses[-1] == pytest.approx(4096 * shares / shares.sum(), abs=8)


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("width", [-200, -64, 0, 31, 190, 191, 192, 193, 300, 1023])
@pytest.mark.parametrize("count", [1, 2, 3, 1000, 34 << 10, (1 << 24) - 1, 1 << 31])
def test_normal_codes_every_cell(count, width, shuffled):
    n, rng = 500, np.random.default_rng(count)
    model = Normal(count, shuffled)
    mean = rng.integers(0, count << 8, n)
    mean[:4] = 0, (count << 8) - 1, 128, 255
    widths = np.full(n, width)
    values = rng.integers(0, count, n)
    values[:8] = [0, count - 1] * 4
    near = (mean[::2] >> 8) + np.rint(rng.normal(0, 2, n // 2)).astype(np.int64)
    values[8::2] = near.clip(0, count - 1)[4:]
    message = random_message(4, 2000)
    before = message.to_bytes()
    model.push(message, values, mean, widths)
    assert np.array_equal(model.pop(message, mean, widths), values)
    assert message.to_bytes() == before
    popped = model.pop(message, mean, widths)
    assert popped.min() >= 0
    assert popped.max() < count
    model.push(message, popped, mean, widths)
    assert message.to_bytes() == before


def test_normal_is_normal():
    n, rng = 100000, np.random.default_rng(0)
    for width, count in ((64, 34 << 10), (400, 1 << 24)):
        mean = rng.integers(count << 6, count << 7, n)
        message = random_message(64, 2 * n)
        bits = message.bits
        values = Normal(count).pop(message, mean, np.full(n, width))
        away = (values + 0.5 - mean / 256) / 2 ** (width / 32)
        assert away.mean() == pytest.approx(0, abs=0.01)
        assert away.std() == pytest.approx(1, abs=0.01)
        entropy = width / 32 + np.log2(2 * np.pi * np.e) / 2
        assert (bits - message.bits) / n == pytest.approx(entropy, abs=0.01)


def test_normal_refuses():
    for call in (
        lambda: Normal(0),
        lambda: Normal((1 << 31) + 1),
        lambda: Normal(4).pop(Message(1), [4 << 8], [0]),
        lambda: Normal(4).pop(Message(1), [-1], [0]),
        lambda: Normal(4).pop(Message(1), [0], [1024]),
        lambda: Normal(4).pop(Message(1), [0, 0], [0]),
        lambda: Normal(4).push(Message(1), [0, 1], [0], [0]),
    ):
        with pytest.raises(ValueError):  # noqa: PT011
            call()
    with pytest.raises(InvalidInterval):
        Normal(4).push(Message(1), [4], [0], [0])
    message = Message(1)
    with pytest.raises(MessageExhausted):
        Normal(1 << 20).pop(message, np.full(9, 1 << 20), np.full(9, 400))
    assert message.is_drained


@pytest.mark.parametrize("lanes", [1, 64])
@pytest.mark.parametrize("count", [0, 1, 65, 9000])
@pytest.mark.parametrize("tilted", [False, True])
def test_places_come_back(count, lanes, tilted):
    rng = np.random.default_rng(count)
    freq = np.exp2(rng.uniform(0, 20, count)).astype(np.int64)
    freq[: count // 2 : 7] = 1 << 20
    start = rng.integers(0, (1 << 24) - freq + 1)
    tilt = rng.integers(-TILT_MAX, TILT_MAX + 1, count) if tilted else None
    map = Pieces([[0, 1 << 20, 1 << 24]], [[0, 3000, 7000]])
    message = random_message(lanes, 2 * count + 8)
    before = message.to_bytes()
    dequantizer = Dequantizer(map)
    y = dequantizer.forward(message, Uniform(), start, freq, tilt)

    def find(u, part):
        assert ((start[part] <= u) & (u < (start + freq)[part])).all()
        return start[part], freq[part]

    u = dequantizer.inverse(message, Uniform(), y, find, tilt)
    assert ((start <= u) & (u < start + freq)).all()
    assert message.to_bytes() == before


def test_tilts_lean_and_cost_what_they_say():
    n = 40000
    freq = np.full(n, 1001)
    for tilt in (-8, -1, 0, 5):
        tilts = np.full(n, tilt)
        message = random_message(16, n)
        bits = message.bits
        identity = Pieces([[0, 1001]], [[0, 1001]])
        places = Dequantizer(identity).forward(message, Uniform(), np.zeros(n), freq, tilts)
        assert bits - message.bits == pytest.approx(place_bits(places, freq, tilts), rel=1e-3)
        share = np.bincount(places * 8 // 1001, minlength=8) / n
        assert share == pytest.approx(tilt_masses()[tilt + TILT_MAX] / 4096, abs=0.01)


def test_dequantizer_refuses():
    dequantizer = Dequantizer(Pieces([[0, 8]], [[0, 8]]))
    message = random_message(1, 10)
    for tilt in ([9], [0, 0]):
        with pytest.raises(ValueError, match="tilts"):
            dequantizer.forward(message, Uniform(), [0], [4], tilt)
    with pytest.raises(InvalidInterval):
        dequantizer.forward(message, Uniform(), [0], [0])
    with pytest.raises(InvalidInterval):
        dequantizer.inverse(message, Uniform(), [5], lambda u, part: ([0], [5]))


class Small:
    """y_0 = a(x_0), y_1 = x_1 * exp(s(y_0)) + t(y_0): an affine coupling of two numbers."""

    slopes = 0.8, 1.3

    def f(self, x):
        return np.array([x[0], x[1] * self.slope(x[0]) + 0.5 * np.sin(x[0])])

    def inverse(self, y):
        return np.array([y[0], (y[1] - 0.5 * np.sin(y[0])) / self.slope(y[0])])

    def slope(self, a):
        return 1.0 + 0.4 * np.tanh(a)

    def jacobian(self, x):
        bent = 0.4 / np.cosh(x[0]) ** 2
        return np.array([[1.0, 0.0], [x[1] * bent + 0.5 * np.cos(x[0]), self.slope(x[0])]])


def test_the_black_box_restores_and_agrees_with_the_specialised_coder():
    # The same coupling as cells of a grid: pieces so short that they follow the function.
    count, pitch, n = 1 << 12, 2.0**-8, 1500
    flow, sigma = Small(), 8 * pitch
    box = BlackBox(flow.f, flow.inverse, flow.jacobian, count, pitch, sigma)
    rng = np.random.default_rng(0)
    points = (rng.normal(0, 1, (n, 2)) / pitch + count / 2).clip(600, count - 600).astype(np.int64)
    message = random_message(1, 10 * n)
    before, bits = message.to_bytes(), message.bits
    moved = [box.forward(message, x) for x in points]
    boxed = message.bits - bits
    for x, z in zip(reversed(points), reversed(moved), strict=True):
        assert np.array_equal(box.inverse(message, z), x)
    assert message.to_bytes() == before

    def map_of(first):
        real = (first + 0.5 - count / 2) * pitch
        half = np.rint(1000 * flow.slope(real)).astype(np.int64)
        shift = np.rint(0.5 * np.sin(real) / pitch).astype(np.int64)
        knots = np.tile([0, count // 2 - 1000, count // 2 + 1000, count], (len(first), 1))
        middle = count // 2 + shift
        ends = [np.zeros_like(middle), middle - half, middle + half, np.full_like(middle, count)]
        return Pieces(knots, np.stack(ends, 1))

    special = []
    for coder in (Gaussian(96), Uniform()):
        message = random_message(1, 10 * n)
        bits = message.bits
        coder.forward(message, points[:, 1], map_of(points[:, 0]))
        special.append(message.bits - bits)
    exact = -np.log2([flow.slope(x) for x in (points[:, 0] + 0.5 - count / 2) * pitch]).sum()
    for net in (boxed, *special):
        assert net / (2 * n) == pytest.approx(exact / (2 * n), abs=0.01)
    with pytest.raises(ValueError, match="black box"):
        box.forward(message, np.zeros(17, dtype=np.int64))


def test_a_black_box_of_four_dimensions():
    rng = np.random.default_rng(4)
    matrix = np.eye(4) + 0.3 * rng.normal(size=(4, 4))
    back = np.linalg.inv(matrix)
    count, pitch = 1 << 12, 2.0**-7
    box = BlackBox(
        lambda x: matrix @ x, lambda y: back @ y, lambda x: matrix, count, pitch, 4 * pitch
    )
    message = random_message(2, 20000)
    before, bits, n = message.to_bytes(), message.bits, 800
    points = rng.integers(count // 2 - 300, count // 2 + 300, (n, 4))
    moved = [box.forward(message, x) for x in points]
    ideal = -np.log2(abs(np.linalg.det(matrix)))
    assert (message.bits - bits) / n == pytest.approx(ideal, abs=0.04)
    for x, z in zip(reversed(points), reversed(moved), strict=True):
        assert np.array_equal(box.inverse(message, z), x)
    assert message.to_bytes() == before


HASH = """
import hashlib, numpy as np, test_bitsback as t
from bits_laws import random_message
digest = hashlib.sha256()
for coder in t.CODERS:
    x = np.random.default_rng(0).integers(0, 900, 500)
    message = random_message(8, 2000)
    digest.update(coder.forward(message, x, t.random_pieces(500, 4, 900, 300)).tobytes())
    digest.update(message.to_bytes())
print(digest.hexdigest())
"""


def test_the_same_bits_on_a_generic_processor(root):
    found = set()
    for extra in ({}, {"NUMBA_CPU_NAME": "generic", "NUMBA_NUM_THREADS": "1"}):
        path = os.pathsep.join([str(root), str(root / "tests")])
        env = {**os.environ, "PYTHONPATH": path, **extra}
        run = subprocess.run(
            [sys.executable, "-c", HASH], env=env, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        found.add(run.stdout)
    assert len(found) == 1
