"""Training the `chain` model: couplings on what the packaged networks leave of clips."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from chains import RICH_CHAIN

from flowarchive import media, store
from flowarchive.ans import Message
from flowarchive.frames import Frame, VideoFormat
from flowarchive.models.chain import ChainModel
from flowarchive.train import ClipConfig, Config, PartConfig, TrainConfig
from flowarchive.train import train as train_parts
from flowarchive.train.data import load_clip

VIDEO = VideoFormat(64, 48, "yuv420p")
FRAMES = 3
FINENESS = 10


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of cloth that moves under smooth noise, whose neighbors tell of each other."""
    path = tmp_path_factory.mktemp("clip") / "noise.y4m"
    cloth = np.random.default_rng(0)
    still = [cloth.normal(128, 25, shape) for shape in VIDEO.plane_shapes]
    random = np.random.default_rng(1)
    with media.open_sink(path, VIDEO) as sink:
        for t in range(FRAMES):
            planes = []
            for plane in still:
                noise = random.normal(0, 6, plane.shape)
                noise = np.roll(plane, t, 1) + noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1)
                planes.append(noise.clip(0, 255).astype(np.uint8))
            sink.write(Frame(tuple(planes), t))
    return path


@pytest.fixture(scope="module", params=["affine", "every kind"])
def trained(
    request: pytest.FixtureRequest, path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder after a second of training."""
    folder = tmp_path_factory.mktemp("trained")
    layers = {key: RICH_CHAIN["flow"][key] for key in ("layers", "tilted")}
    training = TrainConfig(minutes=1 / 60, batch=2, crop=32, optimizer="adam", learning_rate=5e-3)
    part = PartConfig(training, [ClipConfig(path)], [ClipConfig(path)])
    base = json.loads(store.packaged_models()["video"]["config"])
    shape = {"video": base, "flow": {"context": 4, "width": 8, "fineness": FINENESS}}
    if request.param == "every kind":
        shape["flow"] |= layers
    threads = torch.get_num_threads()
    try:
        train_parts(Config("chain", shape, {"flow": part}), folder)
    finally:
        torch.set_num_threads(threads)
    return folder


def test_a_second_leaves_a_log_of_every_phase(trained):
    line = json.loads((trained / "flow" / "log.jsonl").read_text().splitlines()[-1])
    names = {f"{kind}_{part}" for kind in ("intra", "inter") for part in ("luma", "chroma")}
    phases = {f"noise {name} {phase}" for name in names for phase in range(3)}
    assert set(line["validation_bits_per_dim"]) == phases
    assert all(abs(rate) < 1 for rate in line["validation_bits_per_dim"].values())


def test_the_frozen_model_packs_a_clip_and_gives_it_back(trained, path):
    model = store.load_model(str(trained / "model.safetensors")).network
    assert isinstance(model, ChainModel)
    clip = load_clip(ClipConfig(path))
    frames = [clip.components(t) for t in range(FRAMES)]
    message = Message(1)
    model.push_frames(message, frames, "YUV", 8)
    back = list(model.pop_frames(message, FRAMES, VIDEO.plane_shapes, "YUV", 8))
    assert message.is_drained
    for ours, theirs in zip(back, frames, strict=True):
        assert all(map(np.array_equal, ours.parts, theirs.parts))
