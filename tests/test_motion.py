"""Motion: fields come back from the stack, planes are compensated as the format says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import PlainMessage

from flowarchive import motion
from flowarchive.ans import Message
from flowarchive.errors import FormatError, MessageExhausted
from flowarchive.motion.decisions import CONTEXTS, DECISIONS, LEAST, PRECISION

MAX = motion.MAX_VECTOR


def slow_compensate(plane, field, luma_shape, low, high):
    """Compensate sample by sample, in Python integers."""
    h, w = plane.shape
    folds = []
    for full, part in zip(luma_shape, (h, w), strict=True):
        folds.append(next(fold for fold in (1, 2, 4) if -(-full // fold) == part))
    filters = motion.FILTERS.tolist()
    target = np.zeros((h, w), dtype=np.int32)
    for y in range(h):
        for x in range(w):
            block = field[y // (8 // folds[0]), x // (8 // folds[1])].tolist()
            dy, dx = (v * (4 // fold) for v, fold in zip(block, folds, strict=True))
            total = 0
            for i, down in enumerate(filters[dy % 16]):
                for j, across in enumerate(filters[dx % 16]):
                    row = min(max(y + dy // 16 + i - 3, 0), h - 1)
                    column = min(max(x + dx // 16 + j - 3, 0), w - 1)
                    total += down * across * int(plane[row, column])
            target[y, x] = min(max((total + 512) // 1024, 4 * low), 4 * high)
    return target


def plain_pop_field(message, shape, hints, state):
    """Pop a field from a `PlainMessage` as docs/format.md says, in Python integers."""
    rows, columns = (-(-side // 8) for side in shape)
    vectors = {}
    hint = {(r, c): tuple(hints[r, c].tolist()) for r in range(rows) for c in range(columns)}
    lane = 0

    def refill():
        nonlocal lane
        for used in reversed(range(lane)):
            if message.head[used] < 1 << 31:
                message.head[used] = (message.head[used] << 32) + message.tail.pop()
        lane = 0

    def decide(context):
        nonlocal lane
        chance = 1 << 14
        if context is not None:
            chance = min(max(sum(state[context]) >> 1, 24), (1 << 15) - 24)
        quotient, slot = divmod(message.head[lane], 1 << 15)
        yes = slot < chance
        message.head[lane] = quotient * chance + slot
        if not yes:
            message.head[lane] = quotient * ((1 << 15) - chance) + slot - chance
        if context is not None:
            goal = yes << 15
            state[context][0] += (goal - state[context][0]) >> 4
            state[context][1] += (goal - state[context][1]) >> 7
        lane += 1
        if lane == len(message.head):
            refill()
        return yes

    def unit(field, i, j):
        return [field[r, c] for r in (i, i + 1) for c in (j, j + 1) if (r, c) in hint]

    def close(a, b):
        return abs(a[0] - b[0]) + abs(a[1] - b[1]) <= 4

    def vector(r, c, size):
        near = [hint[r, c]]
        near.append(vectors[r, c - 1] if c > 0 else near[0])
        near.append(vectors[r - 1, c] if r > 0 else near[1])
        right = c + size + 1
        if r > 0 and right < columns and not (size == 0 and r % 2 and c % 2):
            near.append(vectors[r - 1, right])
        else:
            near.append(vectors[r - 1, c - 1] if r > 0 and c > 0 else near[2])
        median = [sorted(near[m][k] for m in (1, 2, 3))[1] for k in (0, 1)]
        like = (c == 0 or vectors[r, c - 1] == hint[r, c - 1]) + (
            r == 0 or vectors[r - 1, c] == hint[r - 1, c]
        )
        likeness = [
            min(2, near[1:].count(near[0])),
            near[2:].count(near[1]),
            2 if near[2] == near[3] else int(close(near[1], near[2])),
            close(near[1], near[3]) + close(near[2], near[3]),
        ]
        for m in range(4):
            context = 6 + 18 * m + 9 * size + 3 * like + likeness[m]
            if near[m] not in near[:m] and decide(context):
                return near[m]
        still = 0
        for k in (0, 1):
            values = [n[k] for n in near]
            row = 5 * k + sum(max(values) - min(values) > edge for edge in (0, 2, 6, 16))
            if decide(78 + 2 * row + still):
                still = 1
                continue
            sign = -1 if decide(98 + k) else 1
            level = 0
            while level < 11 and decide(100 + 12 * row + level):
                level += 1
            magnitude = 1
            for bit in range(level):
                magnitude = 2 * magnitude + decide(None if bit else 220 + level)
            median[k] += sign * magnitude
        return tuple(median)

    for i in range(0, rows, 2):
        for j in range(0, columns, 2):
            split = False
            if len(unit(hint, i, j)) > 1:
                context = 3 * (len(set(unit(hint, i, j))) > 1)
                context += j > 0 and len(set(unit(vectors, i, j - 2))) > 1
                context += i > 0 and len(set(unit(vectors, i - 2, j))) > 1
                split = decide(context)
            whole = None if split else vector(i, j, 1)
            for r in (i, i + 1):
                for c in (j, j + 1):
                    if (r, c) in hint:
                        vectors[r, c] = vector(r, c, 0) if split else whole
    refill()
    return [[list(vectors[r, c]) for c in range(columns)] for r in range(rows)]


def random_field(rng, luma_shape, kind):
    """Make a field: noise, a few vectors in large areas, or units with one vector each."""
    rows, columns = motion.field_shape(luma_shape)
    reach = [0, 1, 9, 300, MAX][rng.integers(5)]
    field = rng.integers(-reach, reach + 1, (rows, columns, 2))
    if kind == "calm":
        few = rng.integers(-reach, reach + 1, (3, 2))
        field = few[np.sort(rng.integers(0, 3, (rows, columns)), axis=1)]
    elif kind == "units":
        field = field[np.arange(rows)[:, None] // 2 * 2, np.arange(columns) // 2 * 2]
    return field.astype(np.int16)


def smooth_picture(rng, shape):
    """Make a picture that a search finds its way in."""
    rough = rng.normal(0, 60, (shape[0] + 8, shape[1] + 8))
    for _ in range(2):
        for axis in (0, 1):
            rough = (rough + np.roll(rough, 1, axis) + np.roll(rough, 2, axis)) / 2
    return np.clip(np.rint(rough[4:-4, 4:-4]), -128, 127).astype(np.int32)


# Compensation


def test_filters_are_the_ones_of_the_standards():
    filters = motion.FILTERS
    assert (filters.sum(axis=1) == 64).all()
    assert (filters[1:] == filters[:0:-1, ::-1]).all()
    assert filters[4].tolist() == [-1, 4, -10, 58, 17, -5, 1, 0]
    assert filters[8].tolist() == [-1, 4, -11, 40, 40, -11, 4, -1]


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (23, 1), (17, 33), (16, 16), (9, 70)])
@pytest.mark.parametrize("fold_y", [1, 2, 4])
@pytest.mark.parametrize("fold_x", [1, 2, 4])
def test_compensation_is_the_slow_one(shape, fold_y, fold_x):
    rng = np.random.default_rng(shape[1] + fold_y)
    small = -(-shape[0] // fold_y), -(-shape[1] // fold_x)
    for reach in (8, 70, MAX):
        plane = rng.integers(-128, 128, small).astype(np.int32)
        field = rng.integers(-reach, reach + 1, (*motion.field_shape(shape), 2)).astype(np.int16)
        field[rng.random(field.shape) < 0.3] = 0
        if reach == 8:
            field[:, 1:] = field[:, :1]
        found = motion.compensate(plane, field, shape, -128, 127)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, slow_compensate(plane, field, shape, -128, 127))


@pytest.mark.parametrize("bits", [8, 10, 16, 17])
def test_extreme_samples_do_not_overflow(bits):
    rng = np.random.default_rng(bits)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    plane = rng.choice(np.array([low, high], dtype=np.int32), (16, 24))
    # The worst case: signs as those of the filters at one half.
    signs = np.sign(motion.FILTERS[8])
    plane[:8, :8] = np.where(np.outer(signs, signs) > 0, high, low)
    for dy, dx in [(2, 2), (1, 14), (0, 2)]:
        field = np.full((2, 3, 2), (dy, dx), dtype=np.int16)
        for limits in ((low, high), (-(1 << 16), 1 << 16)):
            found = motion.compensate(plane, field, (16, 24), *limits)
            expected = slow_compensate(plane, field, (16, 24), *limits)
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [(1, 1), (48, 64), (37, 91)])
def test_no_motion_is_the_plane(shape):
    plane = np.random.default_rng(0).integers(-65536, 65537, shape).astype(np.int32)
    found = motion.compensate(plane, motion.zero_field(shape), shape, -65536, 65536)
    np.testing.assert_array_equal(found, 4 * plane)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"plane": np.zeros((16, 16), dtype=np.int16)}, "int32"),
        ({"plane": np.zeros((16, 5), dtype=np.int32)}, "subsampling"),
        ({"field": np.zeros((2, 3, 2), dtype=np.int16)}, "field"),
        ({"field": np.zeros((2, 2, 2), dtype=np.int32)}, "field"),
        ({"field": np.full((2, 2, 2), MAX + 1, dtype=np.int16)}, "longer"),
        ({"low": 1, "high": 0}, "samples"),
        ({"high": 1 << 17}, "samples"),
    ],
)
def test_compensation_refuses(change, reason):
    arguments = {
        "plane": np.zeros((16, 16), dtype=np.int32),
        "field": np.zeros((2, 2, 2), dtype=np.int16),
        "luma_shape": (16, 16),
        "low": -128,
        "high": 127,
    }
    with pytest.raises(ValueError, match=reason):
        motion.compensate(**{**arguments, **change})


# Search


@pytest.mark.parametrize("bits", [8, 10, 16])
@pytest.mark.parametrize("vector", [(0, 0), (8, -12), (-52, 84), (3, -6), (-17, 2)])
def test_a_translation_is_found(vector, bits):
    shape = (96, 160)
    rng = np.random.default_rng(1)
    reference = smooth_picture(rng, shape) << (bits - 8)
    field = np.full((*motion.field_shape(shape), 2), vector, dtype=np.int16)
    limits = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    moved = (motion.compensate(reference, field, shape, *limits) + 2) >> 2
    found = motion.search(motion.Picture(moved, bits), motion.Picture(reference, bits))
    # Where the edge was repeated, other vectors are as good.
    inner = found[7:-7, 11:-11] if vector[1] > 20 else found[2:-2, 3:-3]
    assert (inner == vector).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 100), (50, 1), (8, 8), (17, 9), (40, 56)])
def test_a_search_takes_any_size(shape):
    rng = np.random.default_rng(2)
    pictures = [
        motion.Picture(rng.choice(np.array([-32768, 32767]), shape), bits) for bits in (16, 16)
    ]
    field = motion.search(*pictures)
    assert field.shape == (*motion.field_shape(shape), 2)
    assert np.abs(field.astype(int)).max() <= MAX
    still = motion.search(pictures[0], pictures[0])
    assert not still.any()


def test_a_second_reference_is_chosen_for_what_it_adds():
    """Each reference is wrong; only the mean of both is right."""
    rng = np.random.default_rng(5)
    common, error = (smooth_picture(rng, (64, 96)) // 2 for _ in range(2))
    current, first = motion.Picture(common, 8), motion.Picture(common + error, 8)
    # The second one has the opposite error where it has moved, and no error where it has not.
    moved = np.roll(common - error, 4, axis=1)
    other = np.where(np.arange(96) % 32 < 16, common, moved)
    zero = motion.zero_field((64, 96))
    alone = motion.search(current, motion.Picture(other, 8))
    beside = motion.search(current, motion.Picture(moved, 8), beside=(first, zero))
    assert not alone[:, 4:6].any()
    assert (beside[2:-2, 3:-3] == (0, 16)).all()
    with pytest.raises(ValueError, match="beside"):
        motion.search(current, first, beside=(first, zero[1:]))


def test_a_search_does_not_teach_the_model():
    rng = np.random.default_rng(3)
    one, two = (motion.Picture(smooth_picture(rng, (40, 40)), 8) for _ in range(2))
    model = motion.VectorModel()
    before = model.state.copy()
    field = motion.search(one, two, None, model)
    np.testing.assert_array_equal(model.state, before)
    np.testing.assert_array_equal(motion.search(one, two, None, model), field)
    with pytest.raises(ValueError, match="pictures"):
        motion.search(one, motion.Picture(np.zeros((40, 41), dtype=np.int32), 8))


# Fields on the stack


@given(
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    seed=st.integers(0, 1 << 30),
    kinds=st.lists(st.sampled_from(["noise", "calm", "units"]), min_size=1, max_size=4),
    lanes=st.sampled_from([1, 2, 16, 1024]),
    hinted=st.sampled_from(["before", "twice", "adverse"]),
)
def test_fields_come_back(shape, seed, kinds, lanes, hinted):
    rng = np.random.default_rng(seed)
    fields = [random_field(rng, shape, kind) for kind in kinds]
    message = Message(lanes)
    message.push(*np.ones((2, 3), dtype=np.int64), 4)
    before = message.to_bytes()
    hints = {
        "before": [motion.zero_field(shape), *fields[:-1]],
        "twice": [motion.doubled(field) for field in fields],
        "adverse": [np.where(field > 0, -MAX, MAX).astype(np.int16) for field in fields],
    }[hinted]
    sender, receiver = motion.VectorModel(), motion.VectorModel()
    kept = []
    states = []
    for field, hint in zip(fields, hints, strict=True):
        kept.append(motion.encode_field(field, hint, sender))
        states.append(sender.state.copy())
    for coded in reversed(kept):
        message.push(*coded, motion.PRECISION)
    for field, hint, state in zip(fields, hints, states, strict=True):
        found = motion.pop_field(message, shape, hint, receiver)
        np.testing.assert_array_equal(found, field)
        np.testing.assert_array_equal(receiver.state, state)
    assert message.to_bytes() == before


@pytest.mark.parametrize(("shape", "lanes"), [((1, 1), 1), ((40, 57), 8), ((72, 50), 4)])
def test_a_plain_decoder_reads_the_same(shape, lanes):
    rng = np.random.default_rng(shape[1])
    message = Message(lanes)
    model = motion.VectorModel()
    state = model.state.tolist()
    fields = [random_field(rng, shape, kind) for kind in ("calm", "units", "noise", "calm")]
    hints = [motion.zero_field(shape), *(motion.doubled(field) for field in fields[:-1])]
    kept = [motion.encode_field(*pair, model) for pair in zip(fields, hints, strict=True)]
    for coded in reversed(kept):
        message.push(*coded, motion.PRECISION)
    plain = PlainMessage(message.head.tolist(), message.tail[: message.size].tolist())
    for field, hint in zip(fields, hints, strict=True):
        assert plain_pop_field(plain, shape, hint, state) == field.tolist()
    assert plain.to_bytes() == Message(lanes).to_bytes()
    assert state == model.state.tolist()


def test_the_expected_field_costs_a_few_bytes():
    shape = (288, 352)
    rng = np.random.default_rng(4)
    hints = random_field(rng, shape, "units")
    assert motion.encode_field(hints, hints, motion.VectorModel()).bits < 8 * 20
    zero = motion.zero_field(shape)
    model = motion.VectorModel()
    assert motion.encode_field(zero, zero, model).bits < 8 * 4
    assert motion.encode_field(zero, zero, model).bits < 8 * 3


def test_every_decision_has_room():
    # Vectors as long as they can be, each far from everything around it.
    signs = 1 - 2 * (np.indices((12, 12)).sum(axis=0) % 2)
    field = np.stack([signs * MAX, -signs * (MAX - 1)], axis=2).astype(np.int16)
    coded = motion.encode_field(field, motion.zero_field((96, 96)), motion.VectorModel())
    assert coded.start.size <= DECISIONS * 144


def test_probabilities_stay_inside():
    model = motion.VectorModel()
    zero = motion.zero_field((400, 400))
    rng = np.random.default_rng(5)
    for _ in range(6):
        motion.encode_field(zero, zero, model)
        motion.encode_field(random_field(rng, (400, 400), "noise"), zero, model)
    assert model.state.shape == (CONTEXTS, 2)
    assert model.state.min() >= 0
    assert model.state.max() <= 1 << PRECISION
    chances = model.probabilities()
    assert chances.min() >= LEAST
    assert chances.max() <= (1 << PRECISION) - LEAST


@pytest.mark.parametrize("lanes", [1, 4, 64])
def test_hostile_streams_raise_and_change_nothing(lanes):
    rng = np.random.default_rng(lanes)
    outcomes = set()
    for trial in range(150):
        shape = int(rng.integers(1, 200)), int(rng.integers(1, 200))
        head = rng.integers(1 << 31, 1 << 63, lanes, dtype=np.uint64)
        words = rng.integers(0, 1 << 32, int(rng.integers(0, 60)), dtype=np.uint32)
        message = Message.from_bytes(head.tobytes() + words.tobytes(), lanes)
        before = message.to_bytes()
        hints = random_field(rng, shape, "noise")
        model = motion.VectorModel()
        if trial % 2:
            # A model for which long differences are likely.
            model.state[:] = rng.choice([0, 1 << PRECISION], model.state.shape)
        state = model.state.copy()
        try:
            field = motion.pop_field(message, shape, hints, model)
        except (FormatError, MessageExhausted) as error:
            outcomes.add(type(error))
            assert message.to_bytes() == before
            np.testing.assert_array_equal(model.state, state)
        else:
            outcomes.add(None)
            assert np.abs(field.astype(int)).max() <= MAX
    assert FormatError in outcomes


def test_a_short_message_is_exhausted():
    shape = (160, 160)
    rng = np.random.default_rng(6)
    field = rng.integers(-MAX, MAX + 1, (20, 20, 2)).astype(np.int16)
    zero = motion.zero_field(shape)
    message = Message(4)
    message.push(*motion.encode_field(field, zero, motion.VectorModel()), motion.PRECISION)
    whole = message.to_bytes()
    cut = Message.from_bytes(whole[: 4 * 8] + whole[4 * 8 + 40 :], 4)
    before = cut.to_bytes()
    with pytest.raises(MessageExhausted):
        motion.pop_field(cut, shape, zero, motion.VectorModel())
    assert cut.to_bytes() == before


@pytest.mark.parametrize("shape", [(16, 17), (24, 16)])
def test_fields_of_other_shapes_are_refused(shape):
    field = motion.zero_field((16, 16))
    with pytest.raises(ValueError, match="hints"):
        motion.encode_field(field, motion.zero_field(shape), motion.VectorModel())
    with pytest.raises(ValueError, match="hints"):
        motion.pop_field(Message(1), (16, 16), motion.zero_field(shape), motion.VectorModel())


def test_doubling_stays_inside():
    field = np.array([[[3, -4], [MAX, -MAX]]], dtype=np.int16)
    assert motion.doubled(field).tolist() == [[[6, -8], [MAX, -MAX]]]
