"""Training for real, for two seconds: the loss is finite, and what comes out packs frames."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import TINY, noisy_frames
from safetensors import safe_open

import flowarchive
from flowarchive import exact, media, planes, store
from flowarchive.ans import Message
from flowarchive.errors import InputError, OutputExists
from flowarchive.frames import Frame, VideoFormat
from flowarchive.models.idf import IdfModel
from flowarchive.train import Config, PartConfig, TrainConfig, read_config, train
from flowarchive.train.crops import Crops
from flowarchive.train.data import Clip, ClipConfig, load_clip
from flowarchive.train.idf import IdfPart, validate
from flowarchive.train.twins import frozen_tensors

VIDEO = VideoFormat(48, 40, "yuv420p")
SHAPE: dict[str, Any] = {"luma": {**TINY, "depth": 1}, "chroma": TINY}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames a model can learn something of: a ramp, noise, and chroma that follows luma."""
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("clip") / "ramp.y4m"
    with media.open_sink(path, VIDEO) as sink:
        for t in range(3):
            luma = np.add.outer(np.arange(40) * 2, np.arange(48)) + 10 * t
            luma = luma + random.integers(0, 4, luma.shape)
            u = luma[::2, ::2] // 2 + random.integers(0, 2, (20, 24))
            parts = (luma, u, 255 - u)
            sink.write(Frame(tuple(p.clip(0, 255).astype(np.uint8) for p in parts), t))
    return path


def make_config(clip: Path, seconds: float, **settings: Any) -> Config:
    training = TrainConfig(minutes=seconds / 60, batch=2, crop=32, fake_from=0.5, **settings)
    clips = [ClipConfig(clip)]
    return Config("idf", SHAPE, {"": PartConfig(training, clips, clips)})


def opened(clip: Path) -> IdfPart:
    """The model's part of the loop, ready to draw."""
    part = IdfPart(make_config(clip, 1.0).parts[""], clip.parent)
    part.open(IdfModel(SHAPE), 1)
    return part


def loss_of(part: IdfPart, model: IdfModel) -> torch.Tensor:
    return sum(part.bits(model, part.draw(), fake=False).values())


@pytest.fixture(scope="module")
def trained(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after a training of two seconds."""
    folder = tmp_path_factory.mktemp("trained")
    threads = torch.get_num_threads()
    model = train(make_config(clip, 2.0), folder)
    torch.set_num_threads(threads)
    assert model == folder / "model.safetensors"
    return folder


def seconds_spent(folder: Path) -> float:
    """How long a training has taken, which on a busy machine is more than it was given."""
    with safe_open(folder / "checkpoint.safetensors", "pt") as file:
        return float(file.metadata()["spent"])


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_training_leaves_a_log_a_checkpoint_and_a_model(trained):
    log = read_log(trained)
    assert log[-1]["step"] >= 1
    assert log[-1]["fake"]
    for line in log:
        assert 0 < line["loss"] < 48  # luma and chroma added up
        assert line["loss"] == pytest.approx(line["luma"] + line["chroma"], abs=2e-4)
        assert 0 < line["validation_bits_per_dim"]["all"] < 24
    assert (trained / "checkpoint.safetensors").stat().st_size > 0
    assert not list(trained.glob("*.part"))


def test_the_model_packs_frames_and_gives_them_back(trained, clip, tmp_path):
    model = trained / "model.safetensors"
    packed = flowarchive.pack(clip, tmp_path / "a.flow", model=str(model), embed_model="always")
    assert packed.frames == 3
    with media.open_source(clip) as source, flowarchive.open(packed.output) as archive:
        for ours, theirs in zip(archive, source, strict=True):
            assert all(map(np.array_equal, ours.planes, theirs.planes))


def test_the_frozen_model_codes_what_the_twin_promises(trained, clip):
    network = store.load_model(str(trained / "model.safetensors")).network
    loaded = load_clip(ClipConfig(clip))
    coded = sum(network.push(Message(1), loaded.components(t), 8) for t in range(3))
    # The last line of the log is of the same average, fake-quantized.
    promised = read_log(trained)[-1]["validation_bits_per_dim"]["all"]
    assert coded / (3 * VIDEO.samples_per_frame) == pytest.approx(promised, rel=0.01)


def test_freezing_twice_gives_the_same_fingerprint(clip, tmp_path):
    twin = IdfModel(SHAPE)
    exact.set_fake(twin, fake=True)
    prints = set()
    for name in ("a", "b"):
        path = tmp_path / f"{name}.safetensors"
        store.save_model(path, "idf", SHAPE, frozen_tensors(copy.deepcopy(twin)))
        prints.add(hashlib.sha256(path.read_bytes()).digest())
        assert store.load_model(str(path)).fingerprint in prints
    assert len(prints) == 1


def test_a_run_resumes_where_it_stopped(trained, clip, tmp_path):
    for name in ("checkpoint.safetensors", "log.jsonl"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    before = read_log(tmp_path)
    # The time is spent: resuming freezes the very same average again.
    model = train(make_config(clip, 2.0), tmp_path, resume=True)
    assert model.read_bytes() == (trained / "model.safetensors").read_bytes()
    assert read_log(tmp_path) == before
    train(make_config(clip, seconds_spent(tmp_path) + 0.5), tmp_path, resume=True)
    after = read_log(tmp_path)
    assert after[: len(before)] == before
    assert after[-1]["step"] > before[-1]["step"]
    assert (tmp_path / "model.safetensors").read_bytes() != (
        trained / "model.safetensors"
    ).read_bytes()
    with pytest.raises(InputError, match="checkpoint"):
        train(make_config(clip, 1.0), tmp_path / "none", resume=True)


def test_training_from_the_same_seed_begins_alike(clip):
    losses = []
    for _ in range(2):
        torch.manual_seed(3)
        model = IdfModel(SHAPE)
        losses.append(float(loss_of(opened(clip), model).detach()))
    assert losses[0] == losses[1]


def test_training_lowers_the_loss(clip):
    torch.manual_seed(0)
    model = IdfModel(SHAPE)
    part = opened(clip)
    optimizer = torch.optim.Adamax(model.parameters(), lr=1e-2)
    losses = []
    for step in range(40):
        exact.set_fake(model, fake=step % 2 == 1)
        loss = loss_of(part, model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-6:]) < np.mean(losses[:6]) - 0.3


def test_a_loss_that_is_not_finite_stops_the_training(clip, tmp_path, monkeypatch):
    def nothing(self, model, batch, fake):
        weight = model.luma.levels[0].couplings[0].conditioner.linear["translation"].weight
        return {"luma": weight.sum() * float("nan"), "chroma": torch.zeros(())}

    monkeypatch.setattr(IdfPart, "bits", nothing)
    with pytest.raises(InputError, match="not finite"):
        train(make_config(clip, 1.0), tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_validation_is_the_mean_over_all_samples(clip):
    loaded = load_clip(ClipConfig(clip))
    model = IdfModel(SHAPE)
    bits, samples = zip(*(model.frame_bits(loaded.components(t)) for t in range(3)), strict=True)
    assert set(samples) == {VIDEO.samples_per_frame}
    assert validate(model, [loaded], fake=False) == pytest.approx(sum(bits) / sum(samples))
    assert validate(model, [], fake=False) == 0


def test_crops_are_pieces_of_the_clip_with_their_own_context(clip):
    loaded = load_clip(ClipConfig(clip))
    # A frame whose luma names its own place: flips show, and context can be checked.
    luma = np.add.outer(np.arange(40) * 3, np.arange(48)).astype(np.int16) - 100
    chroma = np.stack([luma[::2, ::2], -luma[::2, ::2]])
    crops = Crops([Clip(luma[None], chroma[None], 1.0)], 16, seed=0)
    x = crops.draw_luma(20)
    assert x.shape == (20, 1, 16, 16)
    assert {int(abs(crop[0, 0, 1] - crop[0, 0, 0])) for crop in x} == {1}
    assert {int(crop[0, 1, 0] - crop[0, 0, 0]) for crop in x} == {3, -3}
    colors, context = crops.draw_chroma(20)
    assert colors.shape == (20, 2, 8, 8)
    assert context.shape == (20, 1, 8, 8)
    assert torch.equal(colors[:, 0], -colors[:, 1])
    # The mean of a 2 x 2 block is its corner and two, on this ramp.
    assert torch.equal(context[:, 0], (colors[:, 0] + 2).clamp(-128, 127))
    assert loaded.luma.dtype == np.int16


@pytest.mark.parametrize("scale", [1, 2])
def test_a_clip_is_read_at_eight_bits_and_shrunk(scale, tmp_path):
    video_format = VideoFormat(13, 10, "gray16le")
    frames = noisy_frames(video_format, 5)
    with media.open_sink(tmp_path / "a.npy", video_format) as sink:
        for frame in frames:
            sink.write(frame)
    loaded = load_clip(ClipConfig(tmp_path / "a.npy", scale=scale, every=2, limit=2))
    assert loaded.chroma is None
    assert loaded.luma.shape == (2, 10 // scale, 13 // scale)
    for ours, frame in zip(loaded.luma, frames[::2], strict=False):
        eight = (frame.planes[0] >> 8).astype(int)
        if scale == 2:
            blocks = eight[:10, :12].reshape(5, 2, 6, 2).sum((1, 3))
            eight = (blocks + 2) // 4
        assert np.array_equal(ours, eight - 128)
    assert planes.Components(loaded.components(0).luma).chroma is None


def test_clips_too_small_or_without_chroma_are_an_error_of_the_input(clip):
    loaded = load_clip(ClipConfig(clip))
    for clips, size in (([], 32), ([replace(loaded, chroma=None)], 32), ([loaded], 64)):
        with pytest.raises(InputError, match="crop"):
            Crops(clips, size, seed=0)


def test_a_clip_without_frames_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((0, 4, 4), np.uint8))
    with pytest.raises(InputError):
        load_clip(ClipConfig(tmp_path / "a.npy"))


GOOD = """
kind = "idf"
[model.luma]
levels = 2
[model.chroma]
[training]
minutes = 1
crop = 32
[[clips]]
path = "ramp.y4m"
every = 2
"""


def test_a_config_file_is_read_with_paths_beside_it(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(GOOD)
    config = read_config(path)
    assert config.kind == "idf"
    assert config.model == {"luma": {"levels": 2}, "chroma": {}}
    (part,) = config.parts.values()
    assert part.training == TrainConfig(minutes=1, crop=32)
    assert [(clip.path.name, clip.every) for clip in part.clips] == [("ramp.y4m", 2)]
    assert part.clips[0].path.parent == tmp_path
    assert part.validation == []
    assert config.cache is None
    for old, new in (
        ('kind = "idf"', ""),
        ("crop", "corp"),
        ("every", "evry"),
        ("minutes = 1", ""),
        ("[model.luma]", "[model.luma"),
        ('path = "ramp.y4m"', ""),
    ):
        path.write_text(GOOD.replace(old, new))
        with pytest.raises(InputError, match=r"c\.toml"):
            read_config(path)
    with pytest.raises(InputError):
        read_config(tmp_path / "none.toml")


CONFIG = """
kind = "idf"
[model]
luma = {levels = 2}
chroma = {levels = 2}
[training]
minutes = 1
crop = 32
[[clips]]
path = "clip.mkv"
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [("idf", "vae"), ("crop = 32", "crop = 50"), ("minutes = 1", 'minutes = "a"'),
     ("minutes = 1", "minutes = 0"), ('"clip.mkv"', '"clip.mkv"\nevery = 0'),
     ('"clip.mkv"', '"clip.mkv"\nscale = 0'), ("levels = 2", "levels = 99")],
)  # fmt: skip
def test_a_config_out_of_range_is_refused(old, new, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    assert read_config(path).parts[""].training.crop == 32
    path.write_text(CONFIG.replace(old, new, 1))
    with pytest.raises(InputError, match="is not a training config"):
        read_config(path)


def test_a_run_is_not_overwritten(trained, clip, tmp_path):
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes((trained / "checkpoint.safetensors").read_bytes())
    with pytest.raises(OutputExists, match="another run"):
        train(make_config(clip, 1.0), tmp_path)
