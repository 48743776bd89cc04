"""Training the `chain` model: couplings on what the packaged networks leave of clips."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from flowarchive import exact, int8, media, store
from flowarchive.ans import Message
from flowarchive.flows.couplings import MOVED, PARTS, Couplings, CouplingShape
from flowarchive.flows.maps import SCALES_PER_OCTAVE, cells
from flowarchive.frames import Frame, VideoFormat
from flowarchive.models.chain import ChainModel
from flowarchive.train import ClipConfig, Config, PartConfig, TrainConfig
from flowarchive.train import train as train_parts
from flowarchive.train.couplings import CouplingTwin
from flowarchive.train.data import load_clip
from flowarchive.train.twins import frozen_tensors

VIDEO = VideoFormat(64, 48, "yuv420p")
FRAMES = 3
SHAPE = CouplingShape(state=8, context=4, width=8)
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


@pytest.fixture(scope="module")
def trained(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after a second of training."""
    folder = tmp_path_factory.mktemp("trained")
    training = TrainConfig(minutes=1 / 60, batch=2, crop=32, optimizer="adam", learning_rate=5e-3)
    part = PartConfig(training, [ClipConfig(path)], [ClipConfig(path)])
    base = json.loads(store.packaged_models()["video"]["config"])
    shape = {"video": base, "flow": {"context": 4, "width": 8, "fineness": FINENESS}}
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


def test_couplings_move_as_their_twin_does():
    torch.manual_seed(0)
    twin = CouplingTwin(SHAPE)
    for head in twin.head:
        torch.nn.init.normal_(head.weight, std=0.02)
    exact.set_fake(twin, fake=True)
    random = np.random.default_rng(0)
    n, h, w = 2, 10, 6
    y = random.integers(cells(FINENESS) // 4, 3 * cells(FINENESS) // 4, (n, h, w))
    states = random.integers(0, 128, (n, h, w, SHAPE.state))
    parts = np.stack([y[:, r::2, c::2] for r, c in PARTS], 1)
    real = torch.from_numpy((parts + 0.5 - cells(FINENESS) / 2) / (1 << FINENESS)).float()
    around = np.concatenate([states[:, r::2, c::2] for r, c in PARTS], -1).transpose(0, 3, 1, 2)
    with torch.no_grad():
        moved, ladj = twin(real, torch.from_numpy(np.ascontiguousarray(around)).float())
    couplings = Couplings(SHAPE, frozen_tensors(twin), "")
    context = couplings.context((states + int8.ZERO).astype(np.uint8))
    shifts = torch.zeros_like(moved)
    slopes = torch.zeros_like(moved)
    before = y.copy()
    for k, parts_moved in enumerate(MOVED):
        shift, scale = couplings.steer(k, before, context, FINENESS)
        for part, t, i in zip(parts_moved, shift, scale, strict=True):
            row, column = PARTS[part]
            shifts[:, part] = torch.from_numpy(t / (1 << FINENESS))
            slopes[:, part] = torch.from_numpy(i * (np.log(2) / SCALES_PER_OCTAVE))
            at = (before[:, row::2, column::2] + 0.5 - cells(FINENESS) / 2) / (1 << FINENESS)
            there = at * np.exp(slopes[:, part].numpy()) + shifts[:, part].numpy()
            there = np.floor(there * (1 << FINENESS) + cells(FINENESS) / 2)
            before[:, row::2, column::2] = there.astype(np.int64)
    assert float(slopes.abs().max()) > 0
    assert torch.allclose(slopes, ladj, atol=1e-6)
    there = real * torch.exp(slopes) + shifts
    assert torch.allclose(there, moved, atol=2e-3)
