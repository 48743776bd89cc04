"""Chunks go through kernels on one side and through the CPU on the other, and nobody can tell."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from models import make_video_model

from flowarchive import device, planes, store
from flowarchive.ans import Message
from flowarchive.errors import DeviceError, NotReproducible
from flowarchive.models.video import VideoModel

SHAPES = [(6, 8), (3, 4), (3, 4)]
LANES = 16


def frames(count: int) -> list[planes.Components]:
    """A texture that moves by a sample a frame, with noise."""
    random = np.random.default_rng(0)
    texture = random.integers(-90, 90, (30, 40)).astype(np.int32)
    texture = (texture + np.roll(texture, 1, 0) + np.roll(texture, 1, 1)) // 3
    done = []
    for t in range(count):
        luma, u, v = (
            texture[t : t + h, 2 * t : 2 * t + w] + random.integers(0, 3, (h, w)).astype(np.int32)
            for h, w in SHAPES
        )
        done.append(planes.Components(luma, np.stack([u, v])))
    return done


@pytest.fixture
def kernels() -> Any:
    return device.select("cuda")


def pack(model: VideoModel, given: list[planes.Components]) -> bytes:
    message = Message(LANES)
    model.push_frames(message, given, "YUV", 8)
    return message.to_bytes()


def unpack(model: VideoModel, data: bytes, count: int) -> list[planes.Components]:
    message = Message.from_bytes(data, LANES)
    done = list(model.pop_frames(message, count, SHAPES, "YUV", 8))
    assert message.is_drained
    return done


def test_a_chunk_crosses_over_both_ways(kernels):
    """Intra and inter frames, networks, motion, intervals and the stack: equal bytes, both ways."""
    model = make_video_model(seed=3)
    given = frames(2)
    on_cpu = pack(model, given)
    model.use(kernels)
    assert pack(model, given) == on_cpu
    packed = dict(kernels.launches)
    assert set(packed) == {"advance", "search", "compensate", "intervals", "push"}
    from_kernels = unpack(model, on_cpu, len(given))
    assert kernels.launches["pop"] == packed["intervals"]
    assert kernels.launches["advance"] == 2 * packed["advance"]
    model.use(None)
    launches = dict(kernels.launches)
    from_cpu = unpack(model, on_cpu, len(given))
    assert kernels.launches == launches
    for frame, ours, theirs in zip(given, from_kernels, from_cpu, strict=True):
        for part, one, other in zip(frame.parts, ours.parts, theirs.parts, strict=True):
            assert np.array_equal(part, one)
            assert np.array_equal(part, other)


def test_a_model_is_placed_once_it_has_given_its_answer(kernels, monkeypatch):
    """One that answers otherwise there is refused, or stays on the CPU."""
    model = make_video_model(seed=3)
    stored = store.StoredModel("tiny", b"", model)
    answer = {"known_answer": model.known_answer()}
    monkeypatch.setattr(store, "_metadata", lambda data: answer)
    monkeypatch.setattr(store, "select", lambda name: kernels)
    # The answer itself takes the interpreter long: that it is asked for on the device is enough.
    asked = []

    def known_answer() -> str:
        asked.append(model._kernels)
        return answers.pop()

    monkeypatch.setattr(model, "known_answer", known_answer)
    answers = ["another", "another", answer["known_answer"]]
    assert store.place(stored, "auto") == kernels.name
    assert store.place(stored, "auto") == "cpu"
    with pytest.raises(NotReproducible, match="known answer on Triton's interpreter"):
        store.place(stored, "cuda")
    assert asked == [kernels] * 3
    assert model._kernels is None
    model.has_kernels = False
    assert store.place(stored, "auto") == "cpu"
    with pytest.raises(DeviceError, match="has no kernels"):
        store.place(stored, "cuda")


def test_one_network_answers_alike(kernels):
    """What the known answer is made of, of one network, by the kernels."""
    model = make_video_model(seed=1)
    model.nets = {"inter_chroma": model.nets["inter_chroma"][:1]}
    expected = model.known_answer()
    model.use(kernels)
    assert model.known_answer() == expected
    assert kernels.launches == {"advance": 3}


def test_choices(monkeypatch):
    assert device.select("cpu") is None
    assert device.select("auto") is None  # the interpreter is for who asks for it
    with pytest.raises(ValueError, match="device is 'tpu'"):
        device.select("tpu")
    monkeypatch.setitem(sys.modules, "triton_kernels", None)
    assert device.select("auto") is None
    with pytest.raises(DeviceError, match="flowarchive\\[gpu\\]"):
        device.select("cuda")


def test_without_a_gpu_the_command_line_says_so(run_cli, root, tmp_path):
    """One line and its exit code for `cuda`, the CPU for `auto`, and the example tells."""
    clip = tmp_path / "clip.npy"
    np.save(clip, np.arange(16 * 16, dtype=np.uint8).reshape(1, 16, 16))
    nothing = {"TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": ""}
    run = run_cli("pack", clip, "-o", "a.flow", "--device", "cuda", **nothing)
    assert run.returncode == 13
    assert run.stderr == "flowarchive: no GPU can be used: PyTorch finds none on this machine\n"
    assert not (tmp_path / "a.flow").exists()
    assert run_cli("pack", clip, "-o", "a.flow", "--device", "auto", **nothing).returncode == 0
    example = subprocess.run(
        [sys.executable, root / "examples" / "gpu.py", clip, tmp_path / "b.flow"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root), **nothing},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert example.returncode == 0, example.stderr
    assert "finds none on this machine; packing on the CPU" in example.stderr
    assert (tmp_path / "a.flow").read_bytes() == (tmp_path / "b.flow").read_bytes()
