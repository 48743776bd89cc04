"""The kernels of probabilities and of the stack leave what `entropy` and `ans` leave."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from interpreted import (
    CPU,
    Runs,
    assert_same,
    random_heads,
    random_message,
    tables,
    upload,
)

from flowarchive.ans import Message
from flowarchive.entropy import LogisticMixture
from flowarchive.errors import MessageExhausted
from triton_kernels import mixture, rans, uniform

# Symbols and lanes: 1, 63, 64, 65 and 1000 in rows that are full, and that are not.
COUNTS = [(1, 1), (63, 64), (64, 64), (65, 64), (1000, 256)]
SUPPORTS = {8: (-128, 127, 24), 9: (-255, 255, 24), 10: (-512, 511, 25), 16: (-32768, 32767, 28)}


def parameters(random: np.random.Generator, count: int, components: int, bits: int):
    """Mixtures of every kind: far away, narrow, wide, of one component."""
    reach = 256 << bits
    mean = random.integers(-reach, reach, (count, components))
    mean[::7] = random.choice([-(1 << 31), (1 << 31) - 1], (len(mean[::7]), components))
    scale = random.integers(0, 192, (count, components))
    scale[1::7] = random.choice([0, 191])
    share = random.integers(0, 100, (count, components)) * random.integers(0, 2, (count, 1))
    weight = share * 4096 // np.maximum(share.sum(1, keepdims=True), 1)
    weight[:, 0] += 4096 - weight.sum(1)
    return tuple(a.astype(np.int32) for a in (mean, scale, weight))


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in arrays]


@pytest.mark.parametrize("components", [1, 5])
@pytest.mark.parametrize("bits", SUPPORTS)
def test_intervals(bits, components, monkeypatch):
    runs = Runs(monkeypatch, mixture, "intervals_kernel")
    low, high, precision = SUPPORTS[bits]
    random = np.random.default_rng(bits)
    for count in (1, 63, 64, 65, 1000):
        given = parameters(random, count, components, bits)
        symbols = random.integers(low, high + 1, count).astype(np.int32)
        symbols[::5], symbols[3::5] = low, high
        start, freq = mixture.intervals(
            *tensors(symbols, *given), mixture.Support(low, high, precision), tables()
        )
        expected = LogisticMixture(low, high, precision).interval(symbols, *given)
        assert np.array_equal(start.numpy().view(np.uint32), expected[0])
        assert np.array_equal(freq.numpy().view(np.uint32), expected[1])
    assert len(runs.grids) == 5


@pytest.mark.parametrize(("count", "lanes"), COUNTS)
@pytest.mark.parametrize("bits", SUPPORTS)
def test_symbols_come_off_the_stack(bits, count, lanes, monkeypatch):
    """Two messages at a launch, from arbitrary bits, under arbitrary mixtures."""
    runs = Runs(monkeypatch, rans, "pop_symbols_kernel")
    low, high, precision = SUPPORTS[bits]
    random = np.random.default_rng(count + bits)
    messages = [random_message(random, lanes, 2 * count) for _ in range(2)]
    given = parameters(random, 2 * count, 5 if count < 1000 else 2, bits)
    uploaded = upload(messages)
    before = uploaded.head.clone()
    symbols, left = rans.pop_symbols(
        uploaded, *tensors(*given), torch.tensor([0, count, 2 * count]),
        mixture.Support(low, high, precision), tables(),
    )  # fmt: skip
    coder = LogisticMixture(low, high, precision)
    expected = [
        coder.pop(message, *(p[m * count : (m + 1) * count] for p in given))
        for m, message in enumerate(messages)
    ]
    assert symbols.tolist() == np.concatenate(expected).tolist()
    assert_same(left, messages)
    assert torch.equal(uploaded.head, before)
    assert runs.grids == [(2,)]


@pytest.mark.parametrize("lanes", [1, 64, 128])
def test_intervals_go_onto_the_stack(lanes, monkeypatch):
    """Segments of several precisions, of messages with none, one and many."""
    runs = Runs(monkeypatch, rans, "push_kernel")
    random = np.random.default_rng(lanes)
    counts = [[], [lanes], [1, 63, 65] if lanes > 1 else [1, 5], [2 * lanes + 1, 7]]
    messages = [Message(lanes) for _ in counts]
    for message in messages:
        message.head[:] = random_heads(random, lanes)
    segments, bounds, starts, freqs = [], [0], [], []
    uploaded = upload(messages, 400)
    for message, sizes in zip(messages, counts, strict=True):
        pushed = []
        for size in sizes:
            precision = int(random.choice([1, 15, 24, 31]))
            start = random.integers(0, 1 << precision, size)
            freq = np.minimum((1 << precision) - start, random.integers(1, 1 << 20, size))
            # Both sides of the spill: heads of exactly freq * 2**(63 - precision), and one less.
            segments.append([sum(map(len, starts)), size, precision])
            pushed.append((start, freq, precision))
            starts.append(start)
            freqs.append(freq)
        for start, freq, precision in reversed(pushed):
            message.push(start, freq, precision)
        bounds.append(len(segments))
    intervals = [np.concatenate(a).astype(np.int64).astype(np.int32) for a in (starts, freqs)]
    rans.push(uploaded, *tensors(*intervals), torch.tensor(segments), torch.tensor(bounds))
    assert_same(uploaded, messages)
    assert runs.grids == [(4,)]


def test_the_spill_bound():
    """Heads at freq * 2**(63 - precision) spill, one less does not."""
    random = np.random.default_rng(5)
    freq = random.integers(1, 1 << 24, 64)
    message = Message(64)
    bound = freq.astype(np.uint64) << np.uint64(63 - 24)
    message.head[:] = np.maximum(bound - (np.arange(64) % 2).astype(np.uint64), np.uint64(1 << 31))
    uploaded = upload([message], 64)
    message.push(np.zeros(64, dtype=np.int64), freq, 24)
    rans.push(
        uploaded, torch.zeros(64, dtype=torch.int32), torch.from_numpy(freq.astype(np.int32)),
        torch.tensor([[0, 64, 24]]), torch.tensor([0, 1]),
    )  # fmt: skip
    assert message.size == 32
    assert_same(uploaded, [message])


@pytest.mark.parametrize("width", [1, 63, 64])
def test_pop(width, monkeypatch):
    runs = Runs(monkeypatch, rans, "pop_kernel")
    random = np.random.default_rng(width)
    messages = [random_message(random, 64, 70) for _ in range(3)]
    uploaded = upload(messages)
    slots = np.stack([message.peek(width, 15) for message in messages])
    start = random.integers(0, slots + 1)
    freq = random.integers(slots - start + 1, (1 << 15) - start + 1)
    left = rans.pop(uploaded, *tensors(start.astype(np.int32), freq.astype(np.int32)), 15)
    for message, s, f in zip(messages, start, freq, strict=True):
        message.pop(s, f, 15)
    assert_same(left, messages)
    assert runs.grids == [(3,)]


RANGES = [1, 2, 3, 5, 7, 12, 13, (1 << 31) - 1, 1 << 31, (1 << 31) + 1, (1 << 32) - 1, 1 << 32]


@pytest.mark.parametrize(("count", "lanes"), [(1, 1), (9, 4), (65, 64), (1000, 512)])
def test_uniform_numbers(count, lanes, monkeypatch):
    """Both laws: what is pushed comes back, and what is popped, pushed again, leaves no trace."""
    push = Runs(monkeypatch, uniform, "push_uniform_kernel")
    pop = Runs(monkeypatch, uniform, "pop_uniform_kernel")
    random = np.random.default_rng(count)
    ranges = random.choice(RANGES, 2 * count)
    other = random.random(2 * count) < 0.3
    ranges[other] = random.integers(1, (1 << 32) + 1, int(other.sum()))
    values = np.minimum((random.random(2 * count) * ranges).astype(np.int64), ranges - 1)
    values[::4] = ranges[::4] - 1
    bounds = torch.tensor([0, count, 2 * count])
    cut = slice(0, count), slice(count, 2 * count)

    messages = [random_message(random, lanes, 3) for _ in cut]
    uploaded = upload(messages, 2 * count)
    for message, part in zip(messages, cut, strict=True):
        message.push_uniform(values[part], ranges[part])
    uniform.push_uniform(uploaded, *tensors(values, ranges), bounds)
    assert_same(uploaded, messages)
    popped, _ = uniform.pop_uniform(uploaded, torch.from_numpy(ranges), bounds)
    assert popped.tolist() == values.tolist()

    messages = [random_message(random, lanes, 2 * count) for _ in cut]
    uploaded = upload(messages)
    popped, left = uniform.pop_uniform(uploaded, torch.from_numpy(ranges), bounds)
    expected = [m.pop_uniform(ranges[part]) for m, part in zip(messages, cut, strict=True)]
    assert popped.tolist() == np.concatenate(expected).tolist()
    assert_same(left, messages)
    uniform.push_uniform(left, popped, torch.from_numpy(ranges), bounds)
    assert torch.equal(left.head, uploaded.head)
    assert torch.equal(left.size, uploaded.size)
    assert torch.equal(left.tail, uploaded.tail)
    assert len(push.grids) == 2
    assert len(pop.grids) == 2


def test_a_message_that_is_too_short_says_so():
    """It alone: the others of the launch are none the worse."""
    random = np.random.default_rng(1)
    given = parameters(random, 512, 1, 8)
    given[1][:] = 191
    messages = [random_message(random, 64, words) for words in (3, 600)]
    support = mixture.Support(*SUPPORTS[8])
    bounds = torch.tensor([0, 256, 512])
    symbols, left = rans.pop_symbols(upload(messages), *tensors(*given), bounds, support, tables())
    coder = LogisticMixture(*SUPPORTS[8])
    with pytest.raises(MessageExhausted):
        coder.pop(messages[0], *(p[:256] for p in given))
    assert symbols[256:].tolist() == coder.pop(messages[1], *(p[256:] for p in given)).tolist()
    assert left.size.tolist() == [-1, messages[1].size]
    short = upload([random_message(random, 4, 1)])
    ranges = torch.full((400,), 1000)
    assert uniform.pop_uniform(short, ranges, torch.tensor([0, 400]))[1].size.tolist() == [-1]


def test_launchers_refuse():
    messages = upload([Message(4)], 8)
    numbers = torch.zeros(4, dtype=torch.int32)
    one = torch.zeros(4, 1, dtype=torch.int32)
    bounds = torch.tensor([0, 4])
    with pytest.raises(ValueError, match="lanes 3"):
        rans.check_messages(rans.Messages(messages.head[:, :3].clone(), *messages[1:]))
    with pytest.raises(TypeError, match="start is"):
        rans.push(messages, numbers.long(), numbers, torch.zeros(1, 3, dtype=torch.int64), bounds)
    with pytest.raises(ValueError, match="bounds is"):
        uniform.pop_uniform(messages, torch.ones(4, dtype=torch.int64), bounds[:1])
    with pytest.raises(ValueError, match="do not sit"):
        rans.pop(messages, torch.zeros(1, 5, dtype=torch.int32), torch.ones(1, 5).int(), 8)
    for support in ((0, 256, 8), (5, 4, 8), (0, 3, 32), (-(1 << 20) - 1, 0, 24)):
        with pytest.raises(ValueError, match="Support"):
            mixture.intervals(numbers, one, one, one, mixture.Support(*support), tables())
    with pytest.raises(ValueError, match="on meta"):
        mixture.intervals(numbers.to("meta"), one, one, one, mixture.Support(0, 3, 8), tables())
    assert mixture.intervals(numbers[:0], one[:0], one[:0], one[:0], mixture.Support(0, 3, 8),
                             mixture.tables(torch.zeros(2305).int(), torch.ones(8).long(), CPU)
                             )[0].numel() == 0  # fmt: skip
