"""Light: found by the encoder, told to the decoder, and worth its bits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from chains import make_chain_model
from hypothesis import given, settings
from hypothesis import strategies as st
from models import make_video_model

from flowarchive import motion, planes
from flowarchive.account import Account
from flowarchive.ans import Message
from flowarchive.codec import Reader, Recorder
from flowarchive.errors import FormatError
from flowarchive.models import light, plan
from flowarchive.models.form import BOTH, LIT_FRAMES, SHIFTS, Front, code_front
from flowarchive.models.light import (
    LIMIT,
    ONE,
    Light,
    adjust,
    adjust_luma,
    code_light,
    find_lights,
)
from flowarchive.models.video import VideoModel

MODELS: dict[str, Callable[[], VideoModel]] = {
    "video": functools.cache(make_video_model),
    "chain": functools.cache(make_chain_model),
}
SHAPE = 96, 128


def film(lights: list[tuple[float, float]], bits: int = 8, speed: int = 2) -> list:
    """A texture of SHAPE that moves, with noise, each frame under a gain and an offset."""
    random, half = np.random.default_rng(2), 1 << (bits - 1)
    texture = random.normal(0, 1, (SHAPE[0] + 40, SHAPE[1] + 40))
    for side in (0, 1, 0, 1):
        texture = sum(np.roll(texture, n, side) for n in range(15))
    texture *= 0.3 / np.abs(texture).max()
    texture += random.normal(0, 0.05, texture.shape)
    frames = []
    for t, (gain, offset) in enumerate(lights):
        window = texture[speed * t :, speed * t :][: SHAPE[0], : SHAPE[1]] + random.normal(
            0, 0.006, SHAPE
        )
        part = np.rint(2 * half * (gain * window + offset)).clip(-half, half - 1).astype(np.int32)
        frames.append(planes.Components(part, np.stack([part[::2, ::2], part[1::2, 1::2] // 2])))
    return frames


STEADY = [(1.0, 0.0)] * 4
FLICKER = [(1.0, 0.0), (1.1, 0.08), (0.9, -0.06), (1.0, 0.02)]


def push(model: VideoModel, frames: list, bits: int = 8, threads: int = 1) -> Message:
    message = Message(2)
    model.push_frames(message, frames, "YUV", bits, threads)
    return message


def check(model: VideoModel, message: Message, frames: list, bits: int = 8) -> None:
    """A copy of the message gives the frames back and is empty then."""
    left = message.copy()
    shapes = [SHAPE, *[(SHAPE[0] // 2, SHAPE[1] // 2)] * 2]
    for ours, theirs in zip(
        model.pop_frames(left, len(frames), shapes, "YUV", bits), frames, strict=True
    ):
        assert all(map(np.array_equal, ours.parts, theirs.parts))
    assert left.is_drained


@pytest.mark.parametrize("speed", [0, 1, 2])
@pytest.mark.parametrize("bits", [8, 12])
def test_light_is_found_in_spite_of_motion(bits, speed):
    lights = find_lights(film(FLICKER, bits, speed), bits)
    assert lights[0] is None
    for t, back in ((1, 1), (2, 1), (3, 1), (2, 2), (3, 2)):
        (own_gain, own), (past_gain, past) = FLICKER[t], FLICKER[t - back]
        light = lights[t]
        assert light is not None
        gain, offset = light[back - 1, 0]
        assert gain / ONE == pytest.approx(own_gain / past_gain, abs=0.04)
        expected = (own - own_gain / past_gain * past) * 4 * 2**bits
        assert offset == pytest.approx(expected, abs=6 * 2 ** (bits - 8))
        assert offset % (1 << (bits - 8)) == 0


@pytest.mark.parametrize("name", MODELS)
def test_where_light_changes_a_chunk_is_smaller(name, monkeypatch):
    model, frames = MODELS[name](), film(FLICKER)
    lit = push(model, frames)
    check(model, lit, frames)
    assert push(model, frames, threads=2).to_bytes() == lit.to_bytes()
    monkeypatch.setattr(plan, "find_lights", lambda frames, bits: [None] * len(frames))
    unlit = push(model, frames)
    check(model, unlit, frames)
    assert lit.bits < 0.95 * unlit.bits
    assert SHIFTS.pop(lit, 1) == [LIT_FRAMES]


@pytest.mark.parametrize("speed", [0, 2])
def test_where_light_is_steady_nothing_is_said_of_it(speed, monkeypatch):
    model, frames = MODELS["video"](), film(STEADY, speed=speed)
    assert all(light is None for light in find_lights(frames, 8))
    message = push(model, frames)
    monkeypatch.setattr(plan, "find_lights", lambda frames, bits: [None] * len(frames))
    assert push(model, frames).to_bytes() == message.to_bytes()
    assert SHIFTS.pop(message, 1) == [0]


def test_frames_that_are_small_have_no_light():
    assert find_lights([planes.Components(np.full((9, 9), t * 9)) for t in range(3)], 8)[1] is None


def test_a_fade_to_black_and_back_comes_back():
    model = MODELS["video"]()
    lights = [(gain, 0.5 * (gain - 1)) for gain in (1, 0.5, 0, 0, 0.3, 1)]
    frames = film(lights)
    check(model, push(model, frames), frames)


@settings(max_examples=20)
@given(
    st.integers(0, 1 << 20), st.sampled_from([8, 9, 16]), st.sampled_from([0, 1, ONE, LIMIT - 1])
)
def test_any_light_comes_back(seed, bits, gain):
    """An encoder may say what it likes: values stay within what samples are."""
    random, unit = np.random.default_rng(seed), 1 << (bits - 8)
    light = random.integers(0, LIMIT, (2, 3, 2)).astype(np.int32)
    light[..., 1] = (light[..., 1] - LIMIT // 2) * unit
    light[0, 1], light[1, 0, 0] = (ONE, 0), gain
    for references in (1, 2):
        recorder, message = Recorder(), Message(4)
        shape = references, 3
        known = code_light(recorder.code, light, shape, bits)
        assert np.array_equal(known, light[:references])
        recorder.push(message, Account(1, message.bits))
        found = code_light(Reader(message).code, None, shape, bits)
        assert message.is_drained
        assert np.array_equal(found, known)
    most = 1 << 18
    values = np.array([[-most, -1, 0, 1, most]], dtype=np.int32)
    for pair in light.reshape(-1, 2):
        exact = [((v * int(pair[0]) + 512) >> 10) + int(pair[1]) for v in values[0].tolist()]
        adjusted = adjust(values, pair, -(1 << 16), (1 << 16) - 1)[0].tolist()
        assert adjusted == [min(max(v, -(1 << 18)), (1 << 18) - 4) for v in exact]


def test_a_chunk_of_any_light_comes_back(monkeypatch):
    random, frames = np.random.default_rng(3), film(STEADY)
    light = random.integers(0, LIMIT, (2, 3, 2)).astype(np.int32) - (0, LIMIT // 2)
    only_second: Light = np.array([[[ONE, 0]] * 3, [[ONE, 8]] * 3], dtype=np.int32)
    lights = [None, only_second, light.astype(np.int32), only_second]
    monkeypatch.setattr(plan, "find_lights", lambda frames, bits: lights)
    monkeypatch.setattr(plan, "_is_cut", lambda *_: False)
    model = MODELS["video"]()
    message = push(model, frames)
    check(model, message, frames)


def test_a_cut_is_told_from_what_a_decoder_predicts(monkeypatch):
    """Compensated, then brought to the light, as on a device."""
    frames, seen = film([(1, 0), (0.8, 12)]), []
    monkeypatch.setattr(plan, "_is_cut", lambda luma, values: seen.append(values) or False)
    planned = plan.Plan(frames, 8)
    last, (first, _) = frames[0].luma, planned.fields(1)
    predicted = motion.compensate(last, first, last.shape, -128, 127)
    told = planned.choice.lights[1][0, 0]
    assert light.is_lit(told)
    assert np.array_equal(seen[0], light.adjust(predicted, told, -128, 127))


def test_what_changes_nothing_changes_nothing():
    luma = np.arange(-128, 128, dtype=np.int32)[None]
    same = np.array([ONE, 0], dtype=np.int32)
    assert np.array_equal(adjust(luma * 4, same, -128, 127), luma * 4)
    assert np.array_equal(adjust_luma(luma, same, 8), luma)
    assert adjust_luma(luma, same + np.int32([0, 6]), 8)[0].tolist() == [
        *range(-126, 128),
        127,
        127,
    ]


@pytest.mark.parametrize(
    ("near", "lit", "bits"), list(product([False, True], [False, True], [8, 12]))
)
def test_a_front_comes_back(near, lit, bits):
    front, said = Front(bits - 8, near, lit), []

    def keep(table: object, symbol: int) -> int:
        said.append(symbol)
        return symbol

    assert code_front(keep, front, bits) == front
    again = iter(said)
    assert code_front(lambda *_: next(again), Front(), bits) == front
    assert len(said) == 1 + (near or lit)
    assert (said[0] == BOTH) == (near and lit)


@pytest.mark.parametrize("said", [[9], [12], [13, 9], [14, 14], [14, 13], [15, 14]])
def test_a_front_that_is_none_is_refused(said):
    again = iter(said)
    with pytest.raises(FormatError, match="cannot pass over"):
        code_front(lambda *_: next(again), Front(), 16)
