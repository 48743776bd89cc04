"""The entropy models obey their laws."""

from __future__ import annotations

import hashlib
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from laws import PlainMessage, check_entropy_model, check_rate, message_of

from flowarchive import entropy
from flowarchive.ans import Message
from flowarchive.entropy import LogisticMixture, Table, Uniform
from flowarchive.entropy.cumulative import RECIPROCALS
from flowarchive.errors import InvalidInterval, MessageExhausted

INT32 = (-(1 << 31), (1 << 31) - 1)


def plain_cumulative(z, mean, scale, weight, low, high, precision):
    """docs/format.md, "Entropy models", in Python integers."""
    if z == low:
        return 0
    if z == high + 1:
        return 1 << precision
    table = entropy.sigmoid_table()
    total = 0
    for m, s, w in zip(mean, scale, weight, strict=True):
        argument = ((2 * z - 1) * 128 - m) * RECIPROCALS[s % 8] >> 7 + s // 8
        argument = min(max(argument, -(18 << 20)), (18 << 20) - 1) + (18 << 20)
        left, right = (int(table[(argument >> 14) + i]) for i in (0, 1))
        total += w * (left + ((right - left) * (argument % (1 << 14)) >> 14))
    return ((total >> 6) * ((1 << precision) - (high - low + 1)) >> 30) + z - low


@st.composite
def _mixtures(draw):
    low = draw(st.integers(-entropy.MAX_SYMBOL, entropy.MAX_SYMBOL))
    size = draw(st.one_of(st.integers(1, 800), st.integers(1, entropy.MAX_SUPPORT)))
    high = min(low + size - 1, entropy.MAX_SYMBOL)
    precision = draw(st.integers(max(1, (high - low).bit_length()), 31))
    components = draw(st.integers(1, 6))
    near = st.integers(256 * low - 2000, 256 * high + 2000)
    mean = draw(
        st.lists(
            st.one_of(near, st.sampled_from(INT32), st.integers(*INT32)),
            min_size=components,
            max_size=components,
        )
    )
    scale = draw(
        st.lists(
            st.one_of(st.sampled_from([0, 191]), st.integers(0, 191)),
            min_size=components,
            max_size=components,
        )
    )
    cuts = [0, *sorted(draw(st.lists(st.integers(0, 4096), min_size=components - 1,
                                     max_size=components - 1))), 4096]  # fmt: skip
    weight = [b - a for a, b in pairwise(cuts)]
    symbols = st.one_of(
        st.integers(low, high),
        st.integers(-3, 3).map(lambda d: min(max((mean[0] >> 8) + d, low), high)),
    )
    symbol = draw(st.one_of(st.sampled_from([low, high]), symbols))
    return LogisticMixture(low, high, precision), symbol, mean, scale, weight


@settings(max_examples=400)
@given(_mixtures())
@example((LogisticMixture(-(1 << 20), -(1 << 20) + (1 << 19) - 1, 31), -(1 << 20) + 5,
          [INT32[1]], [0], [4096]))  # fmt: skip
@example((LogisticMixture(1 << 19, (1 << 20) - 1, 31), (1 << 20) - 1, [INT32[0]], [0], [4096]))
def test_interval_is_plain_integers(case):
    model, symbol, mean, scale, weight = case
    start, freq = model.interval([symbol], [mean], [scale], [weight])
    support = model.low, model.high, model.precision
    left = plain_cumulative(symbol, mean, scale, weight, *support)
    assert start[0] == left
    assert left + freq[0] == plain_cumulative(symbol + 1, mean, scale, weight, *support)
    assert freq[0] >= 1


@settings(max_examples=200)
@given(_mixtures(), st.integers(0, (1 << 31) - 1), st.sampled_from([1, 4]))
def test_pop_then_push_gives_back_any_bits(case, noise, lanes):
    model, _, mean, scale, weight = case
    rng = np.random.default_rng(noise)
    head = rng.integers(1 << 31, 1 << 63, lanes, dtype=np.uint64).tolist()
    message = message_of(head, rng.integers(0, 1 << 32, 80).tolist())
    before = message.to_bytes()
    parameters = [np.repeat([p], 50, axis=0) for p in (mean, scale, weight)]
    symbols = model.pop(message, *parameters)
    assert model.low <= symbols.min() <= symbols.max() <= model.high
    model.push(message, symbols, *parameters)
    assert message.to_bytes() == before


EXTREMES = [
    ([0], [40]),
    ([17], [0]),
    ([300], [191]),
    ([INT32[0]], [0]),
    ([INT32[1]], [0]),
    ([INT32[0]], [191]),
    ([INT32[1]], [100]),
    ([-900, 40, 800], [3, 0, 20], [1, 4094, 1]),
    ([INT32[0], INT32[1]], [0, 0], [2048, 2048]),
    ([INT32[0], INT32[1]], [191, 0], [0, 4096]),
]


@pytest.mark.parametrize("row", EXTREMES)
@pytest.mark.parametrize(
    ("low", "high", "precision"),
    [(0, 0, 1), (0, 1, 1), (-3, 4, 3), (-3, 4, 4), (5, 9, 7), (-20, 20, 12), (-128, 127, 16)],
)
def test_mixture_tiles_and_inverts_every_slot(low, high, precision, row):
    check_entropy_model(LogisticMixture(low, high, precision), low, high, *row)


@pytest.mark.parametrize("row", EXTREMES)
@pytest.mark.parametrize(("size", "precision"), [(768, 24), (1 << 18, 28), (1 << 19, 19)])
def test_large_mixture_tiles_and_inverts_edges(size, precision, row):
    model = LogisticMixture(-(size // 2), size - size // 2 - 1, precision)
    support = np.arange(model.low, model.high + 1)[:: max(1, size // 3000)]
    start, freq = model.interval(
        support, *(np.repeat(np.array([values]), len(support), axis=0) for values in row)
    )
    slots = np.concatenate([start, start + freq - 1]).astype(np.int64)
    check_entropy_model(model, model.low, model.high, *row, slots=slots)


def test_tables_are_frozen():
    table = entropy.sigmoid_table()
    assert table.dtype == np.int32
    assert table.shape == (2305,)
    assert (table[0], table[1152], table[2304]) == (0, 1 << 23, 1 << 24)
    assert (np.diff(table) >= 0).all()
    # sigmoid(-x) = 1 - sigmoid(x), up to the rounding of ties, of which there are none.
    assert np.array_equal(table + table[::-1], np.full(2305, 1 << 24))
    # libm is good enough to tell where a table is badly wrong.
    real = [2.0**24 / (1 + math.exp(18 - i / 64)) for i in range(2305)]
    assert np.abs(table - real).max() < 0.5001
    digest = hashlib.sha256(table.astype("<i4").tobytes()).hexdigest()
    assert digest == "0fe12f1352bcf891e232154126ad4f14001aa5963d9dfcc7746a2db42bb70171"
    with pytest.raises(ValueError, match="read-only"):
        table[0] = 1


def test_reciprocals_are_rounded_roots():
    # r = round(2**(24 - j / 8)) means (r - 1/2)**8 < 2**(192 - j) < (r + 1/2)**8.
    for j, r in enumerate(RECIPROCALS):
        assert (2 * r - 1) ** 8 < 2 ** (200 - j) < (2 * r + 1) ** 8
    digest = hashlib.sha256(np.array(RECIPROCALS, dtype="<i4").tobytes()).hexdigest()
    assert digest == "82e112bc691aecb0be3b9dad463dcb3a7772a586386dcb2867cbccaa5611cae4"


def _draw(count, components, seed, low, high, scales):
    """Symbols drawn from their own mixtures: symbols [n], and mean, scale, weight [n, K]."""
    rng = np.random.default_rng(seed)
    center = rng.uniform(low / 2, high / 2, (count, 1))
    scale = rng.integers(*scales, (count, components))
    mean = np.rint(256 * (center + rng.normal(0, 2, (count, components)))).astype(np.int64)
    weight = np.floor(rng.dirichlet(np.ones(components), count) * 4096).astype(np.int64)
    weight[:, 0] += 4096 - weight.sum(axis=1)
    chosen = (rng.integers(0, 4096, (count, 1)) >= weight.cumsum(axis=1)).sum(axis=1)
    rows = np.arange(count)
    noise = rng.logistic(0, 2.0 ** (scale[rows, chosen] / 8 - 5))
    symbols = np.rint(mean[rows, chosen] / 256 + noise).clip(low, high).astype(np.int64)
    return symbols, mean, scale, weight


@pytest.mark.parametrize("components", [1, 2, 5])
@pytest.mark.parametrize("lanes", [1, 8, 256])
@pytest.mark.parametrize("count", [1, 20000])
def test_mixture_rate(components, lanes, count):
    drawn = _draw(count, components, 7, -384, 383, (0, 80))
    check_rate(LogisticMixture(-384, 383, 24), lanes, *drawn, epsilon=2e-3)


def test_mixture_rate_16_bits():
    drawn = _draw(20000, 2, 8, -(1 << 18), (1 << 18) - 1, (60, 150))
    check_rate(LogisticMixture(-(1 << 18), (1 << 18) - 1, 28), 8, *drawn, epsilon=2e-2)


@pytest.mark.parametrize("scale", [0, 20, 40, 60, 100, 120])
def test_mixture_is_the_logistic_distribution(scale):
    # Expected bits under the real distribution: what integers cost beyond its entropy.
    size, spread = 4096, 2.0 ** (scale / 8 - 5)
    model = LogisticMixture(-size // 2, size // 2 - 1, 24)
    support = np.arange(model.low, model.high + 1)
    for mean in (0, 77, 128, -30000):
        edges = (np.arange(model.low, model.high + 2) - 0.5 - mean / 256) / spread
        edges[0], edges[-1] = -np.inf, np.inf
        cumulative = 0.5 * (1 + np.tanh(edges / 2))
        mass = np.diff(cumulative)
        _, freq = model.interval(support, np.full(size, mean), np.full(size, scale))
        mass = np.maximum(mass, 1e-300)
        excess = (mass * (np.log2(mass) - np.log2(freq / model.total))).sum()
        assert 0 <= excess < 1e-3


@pytest.mark.parametrize("lanes", [1, 4, 1024])
@pytest.mark.parametrize("count", [0, 1, 5, 1023, 1025, 16384, 40000])
def test_blocks_do_not_change_the_message(lanes, count):
    model = LogisticMixture(-384, 383, 24)
    symbols, *parameters = _draw(count, 2, 9, -384, 383, (10, 80))
    whole, message = Message(lanes), Message(lanes)
    whole.push(*model.interval(symbols, *parameters), model.precision)
    model.push(message, symbols, *parameters)
    assert message.to_bytes() == whole.to_bytes()
    assert np.array_equal(model.pop(message, *parameters), symbols)
    assert message.is_drained


@pytest.mark.parametrize("shape", ["[n]", "[n, 1]", "weighted"])
def test_one_component_needs_no_weight(shape):
    model = LogisticMixture(-10, 10, 16)
    symbols, mean, scale = np.arange(-10, 11), np.arange(21) * 100, np.arange(21) + 20
    expected = model.interval(symbols, mean, scale)
    if shape == "[n]":
        parameters = [mean.astype(np.int16), scale.astype(np.uint8)]
    elif shape == "[n, 1]":
        parameters = [mean[:, None], scale[:, None]]
    else:
        parameters = [mean[:, None], scale[:, None], np.full((21, 1), 4096)]
    assert np.array_equal(model.interval(symbols, *parameters), expected)
    message = Message(2)
    model.push(message, symbols, *parameters)
    assert np.array_equal(model.pop(message, *parameters), symbols)


@pytest.mark.parametrize(
    "parameters",
    [
        ([0, 0], [0]),
        ([0], [0]),
        ([0, 0], [0, 192]),
        ([0, 0], [-1, 0]),
        ([0.0, 1.0], [0, 0]),
        ([0, 1 << 31], [0, 0]),
        ([0, 0], [0, 1 << 40]),
        ([[0, 0]] * 2, [[0, 0]] * 2),
        ([[0, 0]] * 2, [[0, 0]] * 2, [[4096, 0], [4095, 0]]),
        ([[0, 0]] * 2, [[0, 0]] * 2, [[4096, 0], [4097, -1]]),
        ([[0, 0]] * 2, [[0, 0]] * 2, [[1 << 31, 0], [4096, 0]]),
        ([[0, 0]] * 2, [[0, 0]] * 2, [[4096], [4096]]),
        ([0, 0], [0, 0], [4095, 4096]),
        ([[]] * 2, [[]] * 2),
        ([[[0]]] * 2, [[[0]]] * 2),
    ],
)
def test_wrong_parameters(parameters):
    model = LogisticMixture(-5, 5, 16)
    message = message_of([1 << 40], [1, 2, 3])
    before = message.to_bytes()
    with pytest.raises(ValueError):  # noqa: PT011
        model.push(message, [0, 0], *parameters)
    with pytest.raises(ValueError):  # noqa: PT011
        model.bits([0, 0], *parameters)
    if len(parameters[0]) == len(parameters[1]) and parameters != ([0], [0]):
        with pytest.raises(ValueError):  # noqa: PT011
            model.pop(message, *parameters)
    assert message.to_bytes() == before


@pytest.mark.parametrize(
    ("model", "symbols"),
    [
        (LogisticMixture(-5, 5, 16), [0, 6]),
        (LogisticMixture(-5, 5, 16), [-6, 0]),
        (Uniform(7), [0, 7]),
        (Uniform(7), [0, -1]),
        (Table([1, 0, 3]), [0, 1]),
        (Table([1, 0, 3]), [0, 3]),
        (Table([1, 0, 3]), [-1, 0]),
    ],
)
def test_symbols_outside_the_support(model, symbols):
    message = message_of([1 << 40], [1, 2, 3])
    before = message.to_bytes()
    parameters = ([0, 0], [0, 0]) if isinstance(model, LogisticMixture) else ()
    for call in (lambda: model.push(message, symbols, *parameters),
                 lambda: model.interval(symbols, *parameters),
                 lambda: model.bits(symbols, *parameters)):  # fmt: skip
        with pytest.raises(InvalidInterval):
            call()
    assert message.to_bytes() == before


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (LogisticMixture(-50, 50, 16), [np.zeros(100, int), np.full(100, 60)]),
        (Table([1, 1, 2, 4]), [100]),
        (Uniform(1000), [100]),
    ],
)
@pytest.mark.parametrize("lanes", [1, 4])
def test_exhaustion_changes_nothing(model, parameters, lanes):
    message = message_of([(1 << 62) + 12345] * lanes, [99, 7])
    before = message.to_bytes()
    with pytest.raises(MessageExhausted):
        model.pop(message, *parameters)
    assert message.to_bytes() == before


@pytest.mark.parametrize(
    "make",
    [
        lambda: LogisticMixture(1, 0, 8),
        lambda: LogisticMixture(0, 256, 8),
        lambda: LogisticMixture(0, 1, 32),
        lambda: LogisticMixture(0, 0, 0),
        lambda: LogisticMixture(0, entropy.MAX_SUPPORT, 24),
        lambda: LogisticMixture(-entropy.MAX_SYMBOL - 1, 0, 24),
        lambda: Uniform(0),
        lambda: Uniform((1 << 32) + 1),
        lambda: Table([]),
        lambda: Table([1]),
        lambda: Table([3]),
        lambda: Table([-1, 3]),
        lambda: Table([1.0, 1.0]),
        lambda: Table([[1, 1]]),
        lambda: Table([1 << 31, 1 << 31]),
        lambda: Table([1 << 62, 1 << 62, 1 << 62, 1 << 62, 4]),
    ],
)
def test_wrong_models(make):
    with pytest.raises(ValueError):  # noqa: PT011
        make()


@pytest.mark.parametrize("span", [1, 2, 3, 5, 7, 12, 13, 255, 256, 1000])
def test_uniform_laws(span):
    check_entropy_model(Uniform(span), 0, span - 1)
    symbols = np.random.default_rng(span).integers(0, span, 5000)
    check_rate(Uniform(span), 4, symbols, epsilon=1e-4)


@pytest.mark.parametrize(
    "freqs", [[2], [1, 1], [1, 3], [5, 1, 2, 120], [1] * 256, [1 << 15, (1 << 15) - 3, 1, 1, 1]]
)
def test_table_laws(freqs):
    model = Table(freqs)
    check_entropy_model(model, 0, len(freqs) - 1)
    rng = np.random.default_rng(len(freqs))
    symbols = rng.choice(len(freqs), 5000, p=np.array(freqs) / sum(freqs))
    check_rate(model, 4, symbols, epsilon=1e-3)


def test_table_skips_empty_intervals():
    model = Table([0, 0, 3, 0, 5, 0, 0])
    message = Message(8)
    message.head[:] = (1 << 50) + np.arange(8, dtype=np.uint64)
    assert model.pop(message, 8).tolist() == [2] * 3 + [4] * 5


def test_example_of_the_format():
    model, symbols = LogisticMixture(-40, 39, 20), [-40, -39, 0, 1, 2, 39]
    start, freq = model.interval(symbols, [300] * 6, [40] * 6)
    assert start.tolist() == [0, 1, 165885, 354513, 609535, 1048575]
    assert freq.tolist() == [1, 1, 188628, 255022, 219375, 1]
    message = Message(2)
    model.push(message, symbols, [300] * 6, [40] * 6)
    message.push_uniform([5, 123456789], [7, (1 << 32) - 1])
    assert message.to_bytes().hex() == ("0500f0c4250dd0058ae6ad030e020000eecf782b0300e098")


def test_golden_bytes():
    # Parameters and symbols of a linear congruential generator; the bytes as of version 1.
    state, rows = 1, []
    for _ in range(24):
        row = []
        for modulus in (61, 20000, 192, 20000, 192, 4097):
            state = state * 1103515245 + 12345 & (1 << 31) - 1
            row.append((state >> 8) % modulus)
        rows.append(row)
    columns = np.array(rows)
    symbols = columns[:, 0] - 30
    mean = columns[:, [1, 3]] - 10000
    scale = columns[:, [2, 4]]
    weight = np.stack([columns[:, 5], 4096 - columns[:, 5]], axis=1)
    model = LogisticMixture(-40, 39, 20)
    message = Message(2)
    Table([100, 20, 8]).push(message, [0, 2, 1, 0, 0])
    model.push(message, symbols, mean, scale, weight)
    Uniform(1000).push(message, [999, 0, 500])
    assert message.to_bytes().hex() == (
        "87d9b75a542d000080b4d6fb2ef46f3d407b4a0ef9fef746c275b8adb73d88ff"
        "21fe27663d12e8739b35f1fca20c5551749544fee63b6370"
    )

    # The same bytes, read by Python integers.
    plain = PlainMessage(message.head.tolist(), message.tail[: message.size].tolist())
    assert plain.pop_uniform([1000] * 3) == [999, 0, 500]
    for i in range(0, 24, 2):
        ends = []
        for lane in range(2):
            row = [p[i + lane].tolist() for p in (mean, scale, weight)]
            slot = plain.head[lane] % (1 << 20)
            z = max(z for z in range(-40, 40) if plain_cumulative(z, *row, -40, 39, 20) <= slot)
            assert z == symbols[i + lane]
            ends.append([plain_cumulative(z + d, *row, -40, 39, 20) for d in (0, 1)])
        plain.pop([left for left, _ in ends], [right - left for left, right in ends], 20)
    for start, freq in [((0, 120), (100, 8)), ((100, 0), (20, 100)), ((0,), (100,))]:
        plain.pop(list(start), list(freq), 7)
    assert (plain.head, plain.tail) == ([1 << 31] * 2, [])
