"""Training the `video` model: two parts, a cache, and an objective with its gradient at hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from flowarchive import lattice, media, planes, store
from flowarchive.adaptive import ScaleCorrection
from flowarchive.adaptive.correction import BUCKETS
from flowarchive.ans import Message
from flowarchive.entropy import LogisticMixture
from flowarchive.errors import InputError, OutputExists
from flowarchive.frames import Frame, VideoFormat
from flowarchive.models.video import VideoModel
from flowarchive.train import ClipConfig, Config, PartConfig, TrainConfig, evaluate, read_config
from flowarchive.train import train as train_parts
from flowarchive.train.data import Clip, load_clip, to_yuv420, turned
from flowarchive.train.loop import twin
from flowarchive.train.motion import Cache, Filters, compensated, fit_filters, make_examples
from flowarchive.train.objective import mixture_bits
from flowarchive.train.phases import bits, steps
from flowarchive.train.video import InterPart, IntraPart, Windows, moving, still

VIDEO = VideoFormat(64, 48, "yuv420p")
SHAPE: dict[str, Any] = {
    kind: {part: {"width": 4, "blocks": 1} for part in ("luma", "chroma")}
    for kind in ("intra", "inter")
}
FRAMES = 4


def texture(t: int) -> list[np.ndarray]:
    """A frame of rough cloth that moves over a slope, with a little noise."""
    cloth = np.random.default_rng(0).normal(0, 14, (48, 64))
    cloth = cloth + np.roll(cloth, 1, 0) + np.roll(cloth, 1, 1)
    luma = np.roll(cloth, (t, 2 * t), (0, 1)) + np.add.outer(np.arange(48), np.arange(64)) + 70
    luma = luma + np.random.default_rng(t).normal(0, 1, luma.shape)
    return [luma, luma[::2, ::2] / 2 + 60, 180 - luma[::2, ::2] / 2]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "moving.y4m"
    with media.open_sink(path, VIDEO) as sink:
        for t in range(FRAMES):
            sink.write(Frame(tuple(p.clip(0, 255).astype(np.uint8) for p in texture(t)), t))
    return path


def make_config(path: Path, seconds: float, **settings: Any) -> Config:
    training = TrainConfig(
        minutes=seconds / 60, batch=2, crop=32, optimizer="adam", learning_rate=5e-3,
        chroma_weight=0.5, fake_from=0.7, **settings,
    )  # fmt: skip
    part = PartConfig(training, [ClipConfig(path)], [ClipConfig(path)])
    return Config("video", SHAPE, {"intra": part, "inter": part})


@pytest.fixture(scope="module")
def trained(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after a training in which each part had its second, one after the other."""
    folder = tmp_path_factory.mktemp("trained")
    threads = torch.get_num_threads()
    config = make_config(path, 1.0, autocast=True)
    assert train_parts(config, folder, parts=["inter"]) == folder
    assert not (folder / "model.safetensors").exists()
    assert train_parts(config, folder, parts=["intra"]) == folder / "model.safetensors"
    torch.set_num_threads(threads)
    return folder


def test_each_part_leaves_a_log_and_a_checkpoint(trained):
    for part in ("intra", "inter"):
        line = json.loads((trained / part / "log.jsonl").read_text().splitlines()[-1])
        assert line["loss"] == pytest.approx(line["luma"] + line["chroma"] / 2, abs=2e-4)
        assert set(line["validation_bits_per_dim"]) == {"moving luma", "moving chroma"}
        assert all(0 < rate < 12 for rate in line["validation_bits_per_dim"].values())
        assert (trained / part / "checkpoint.safetensors").exists()
    assert not list(trained.rglob("*.part"))


def test_the_frozen_model_packs_a_clip_and_gives_it_back(trained, path):
    model = store.load_model(str(trained / "model.safetensors")).network
    assert isinstance(model, VideoModel)
    assert bool(model.tensors["luma_filters"].any())
    assert bool(model.tensors["chroma_filters"].any())
    clip = load_clip(ClipConfig(path))
    frames = [clip.components(t) for t in range(FRAMES)]
    message = Message(4)
    model.push_frames(message, frames, "YUV", 8)
    message = Message.from_bytes(message.to_bytes(), 4)
    back = list(model.pop_frames(message, FRAMES, VIDEO.plane_shapes, "YUV", 8))
    assert len(back) == FRAMES
    for ours, theirs in zip(back, frames, strict=True):
        assert all(map(np.array_equal, ours.parts, theirs.parts))


def test_a_part_resumes_where_it_stopped(trained, path, tmp_path):
    config = make_config(path, 1.0, autocast=True)
    for part in ("intra", "inter"):
        (tmp_path / part).mkdir()
        for name in ("checkpoint.safetensors", "log.jsonl"):
            (tmp_path / part / name).write_bytes((trained / part / name).read_bytes())
    with pytest.raises(OutputExists):
        train_parts(config, tmp_path)
    model = train_parts(config, tmp_path, resume=True)
    assert model.read_bytes() == (trained / "model.safetensors").read_bytes()
    with safe_open(tmp_path / "intra" / "checkpoint.safetensors", "pt") as file:
        spent = float(file.metadata()["spent"])
    with safe_open(tmp_path / "inter" / "checkpoint.safetensors", "pt") as file:
        spent = max(spent, float(file.metadata()["spent"]))
    longer = make_config(path, spent + 0.5)
    # The other part is not trained for as long as it should be: there is nothing to freeze.
    assert train_parts(longer, tmp_path, resume=True, parts=["intra"]) == tmp_path
    logs = [(folder / "intra" / "log.jsonl").read_text() for folder in (trained, tmp_path)]
    assert logs[1].startswith(logs[0])
    assert len(logs[1]) > len(logs[0])
    with pytest.raises(InputError, match="no part 'top'"):
        train_parts(config, tmp_path, parts=["top"])


def test_evaluation_compares_twins_with_what_is_coded(trained, path, monkeypatch):
    config = make_config(path, 1.0)
    (row,) = evaluate(config, trained, [ClipConfig(path)])
    assert (row.frames, row.samples) == (FRAMES, FRAMES * VIDEO.samples_per_frame)
    assert row.float_twin == pytest.approx(row.fake_twin, rel=0.05)
    # The coder also puts scales right by what they cost, which no twin does.
    assert row.frozen < 1.005 * row.fake_twin
    assert row.frozen < row.coded < row.frozen + 0.02
    nothing = np.zeros(BUCKETS, dtype=np.int32)
    monkeypatch.setattr(ScaleCorrection, "offsets", lambda self, group, phase: nothing)
    # Nor does a twin that has hardly learned pay the coder's whole price for surprises.
    monkeypatch.setattr("flowarchive.train.objective.FLOOR", 2.0**-24)
    (row,) = evaluate(config, trained, [ClipConfig(path)])
    assert row.frozen == pytest.approx(row.fake_twin, rel=0.005)


@pytest.mark.parametrize("part", [IntraPart, InterPart])
def test_training_lowers_the_loss(part, path, tmp_path):
    torch.manual_seed(0)
    config = make_config(path, 1.0)
    model = twin(config)
    lesson = part(config.parts[part.name], tmp_path)
    lesson.open(model, 0)
    weights = [p for name, p in model.named_parameters() if name.startswith(part.prefixes)]
    optimizer = torch.optim.Adam(weights, lr=5e-3)
    losses = []
    for _ in range(25):
        found = lesson.bits(model, lesson.draw(), fake=False)
        loss = found["luma"] + found["chroma"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2


def test_the_gradient_is_that_of_finite_differences():
    random = torch.Generator().manual_seed(1)
    head = torch.empty(40, 12, dtype=torch.float64)
    head[:, :4].uniform_(-30, 30, generator=random)
    head[:, 4:8].uniform_(-300, 300, generator=random)
    head[:, 8:].uniform_(30, 80, generator=random)
    distance = torch.empty(40, 4, dtype=torch.float64).uniform_(-4, 4, generator=random)
    head.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda h: mixture_bits(h, distance), head, eps=1e-4, atol=1e-6)


def test_scales_outside_the_table_have_no_gradient():
    head = torch.tensor([[0.0, 0.0, -5.0], [0.0, 0.0, 300.0]], requires_grad=True)
    mixture_bits(head, torch.ones(2, 1)).sum().backward()
    assert head.grad is not None
    assert head.grad[:, 2].tolist() == [0, 0]


def test_bits_are_those_of_the_coder():
    random = np.random.default_rng(0)
    weight = random.integers(-40, 40, (200, 3))
    offset = random.integers(-500, 500, (200, 3))
    scale = random.integers(20, 80, (200, 3))
    symbols = random.integers(-3, 4, 200)
    head = torch.from_numpy(np.concatenate([weight, offset, scale], 1).astype(np.float32))
    distance = torch.from_numpy(symbols.astype(np.float32))[:, None].expand(-1, 3)
    ours = float(mixture_bits(head, distance).sum())
    share = 2.0 ** (weight / 16)
    share = np.floor(share / share.sum(1, keepdims=True) * 4096).astype(np.int32)
    share[np.arange(200), weight.argmax(1)] += 4096 - share.sum(1)
    mixture = LogisticMixture(-128, 127, 24)
    theirs = mixture.bits(symbols, *(a.astype(np.int32) for a in (offset, scale)), share)
    assert ours == pytest.approx(theirs, rel=2e-3)


@pytest.fixture(scope="module")
def examples(path):
    clip = load_clip(ClipConfig(path))
    filters = fit_filters(iter([clip]))
    made = make_examples(clip, filters)
    assert made is not None
    return clip, filters, made


def test_examples_are_frames_beside_their_predictions(examples):
    clip, filters, made = examples
    assert all(values.any() for values in filters)
    assert made.luma.shape == (FRAMES - 1, 4, 48, 64)
    assert made.chroma.shape == (FRAMES - 1, 2, 4, 24, 32)
    assert np.array_equal(made.luma[:, 0], clip.luma[1:] * 4)
    assert np.array_equal(made.chroma[:, :, 0], clip.chroma[1:] * 4)
    whole = made.luma.astype(np.float64)
    still_error = np.abs(np.diff(clip.luma.astype(np.int32), axis=0)).mean()
    assert np.abs(whole[:, 0] - whole[:, 1]).mean() / 4 < still_error / 2
    linear = np.abs(whole[:, 0] / 4 - whole[:, 3] / 64)[:, 1::2].mean()
    assert linear < np.abs(whole[:, 0] - whole[:, 1])[:, 1::2].mean() / 4


def test_a_cut_leaves_no_example_and_one_reference(path):
    clip = load_clip(ClipConfig(path))
    slope = np.add.outer(np.arange(48), np.arange(64)).astype(np.int16)[None] - 100
    luma = np.concatenate([clip.luma[:2], slope, slope, slope])
    found = list(compensated(Clip(luma, None, 1.0)))
    assert [moved is not None for moved in found] == [False, True, False, True, True]
    assert [len(moved.fields) for moved in found if moved is not None] == [1, 1, 2]
    assert np.array_equal(found[3].parts[0][1], found[3].parts[0][2])


def test_the_cache_computes_a_clip_once(path, tmp_path, monkeypatch):
    config = ClipConfig(path, noise=1.0)
    cache = Cache(tmp_path, seed=0)
    filters = cache.filters([config])
    first = cache.examples(config, filters, vary=True)
    files = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert len(files) == 4
    monkeypatch.setattr("flowarchive.train.motion.load_clip", None)
    assert all(map(np.array_equal, cache.filters([config]), filters))
    again = Cache(tmp_path, seed=0).examples(replace(config, weight=2.0), filters, vary=True)
    assert np.array_equal(first.luma, again.luma)
    assert again.weight == 2.0
    with pytest.raises(TypeError):  # another clip: it has to be loaded
        cache.examples(replace(config, limit=2), filters, vary=True)
    with pytest.raises(TypeError):
        Cache(tmp_path, seed=1).examples(config, filters, vary=True)


def test_windows_lie_on_the_lattice(examples):
    _, _, made = examples
    places = np.broadcast_to(np.add.outer(np.arange(48) * 64, np.arange(64)), made.luma.shape)
    marked = replace(made, luma=places.astype(np.int16))
    luma, chroma = Windows([marked], 32, seed=0).draw(20)
    corners = {divmod(int(corner), 64) for corner in luma.planes[:, 0, 0]}
    assert corners <= {(y, x) for y in (0, 16) for x in (0, 16, 32)}
    assert len(corners) > 3
    assert luma.planes.shape == (20, 32, 32)
    assert luma.linear[0, 0, 0] == 4 * luma.planes[0, 0, 0]
    assert chroma.planes.shape == (40, 16, 16)
    assert [member.shape for member in chroma.luma] == [(20, 16, 16)] * 3
    with pytest.raises(InputError, match="crops of 64"):
        Windows([made], 64, seed=0)


@pytest.mark.parametrize("shape", [(48, 64), (37, 51)])
def test_steps_hold_every_sample_once(shape, examples):
    clip, _, made = examples
    h, w = shape
    cut = Clip(clip.luma[:, :h, :w], clip.chroma[..., : (h + 1) // 2, : (w + 1) // 2], 1.0)
    cut_examples = replace(
        made, luma=made.luma[..., :h, :w], chroma=made.chroma[..., : (h + 1) // 2, : (w + 1) // 2]
    )
    for frame, kind in ((still(cut, 1), "intra"), (moving(cut_examples, 0), "inter")):
        for part, known in zip(("luma", "chroma"), frame, strict=True):
            made_steps = steps(known)
            sides = known.planes.shape[1:]
            step = 1 << lattice.level_count(sides)
            top = known.planes[:, ::step, ::step].size
            held = sum(one.distance.shape[:3].numel() for one in made_steps)
            assert held + top == known.planes.size
            nets = twin(make_config(Path(), 1.0)).get_submodule(f"nets.{kind}_{part}")
            assert isinstance(nets, nn.ModuleList)
            rate = bits(nets, made_steps).item() / held
            assert 0 < rate < 12
            close = bits(nets, made_steps, autocast=True).item() / held
            assert close == pytest.approx(rate, rel=0.02)


def test_clips_turn_in_space_and_time(path):
    clip = load_clip(ClipConfig(path))
    seen = set()
    for seed in range(40):
        other = turned(clip, np.random.default_rng(seed), 0.0)
        for back in (1, -1):
            for down in (1, -1):
                for across in (1, -1):
                    if np.array_equal(other.luma, clip.luma[::back, ::down, ::across]):
                        assert np.array_equal(
                            other.chroma, clip.chroma[::back, :, ::down, ::across]
                        )
                        seen.add((back, down, across))
    assert len(seen) == 8
    loud = turned(clip, np.random.default_rng(0), 2.0).luma
    quiet = turned(clip, np.random.default_rng(0), 0.0).luma
    assert 1.5 < np.std(loud.astype(float) - quiet) < 2.5


def test_rgb_becomes_yuv():
    red = np.zeros((1, 6, 7), np.uint8) + 200
    parts = planes.split([red[0], red[0] // 4, red[0] // 8], "RGB", 8)
    clip = Clip(
        parts.luma[None].astype(np.int16), parts.chroma[None].astype(np.int16), 2.0, rgb=True
    )
    yuv = to_yuv420(clip)
    assert (yuv.luma.shape, yuv.chroma.shape, yuv.rgb) == ((1, 6, 6), (1, 2, 3, 3), False)
    r, g, b = 200, 50, 25
    y = 0.299 * r + 0.587 * g + 0.114 * b
    assert int(yuv.luma[0, 0, 0]) + 128 == pytest.approx(16 + y * 219 / 255, abs=1)
    assert int(yuv.chroma[0, 1, 0, 0]) == pytest.approx((r - y) * 0.713 * 224 / 255, abs=1)


def test_a_shrunk_clip_keeps_luma_over_chroma(tmp_path):
    video = VideoFormat(20, 14, "yuv420p")  # half of it: 10 x 7 over 5 x 3
    with media.open_sink(tmp_path / "a.y4m", video) as sink:
        sink.write(Frame(tuple(np.zeros(s, np.uint8) for s in video.plane_shapes), 0))
    clip = load_clip(ClipConfig(tmp_path / "a.y4m", scale=2))
    assert (clip.luma.shape, clip.chroma.shape) == ((1, 6, 10), (1, 2, 3, 5))
    with pytest.raises(InputError, match="not RGB"):
        load_clip(ClipConfig(tmp_path / "a.y4m", yuv=True))


def test_the_packaged_config_reads():
    root = Path(__file__).resolve().parent.parent
    for kind, parts in (("video", ["intra", "inter"]), ("idf", [""])):
        config = read_config(root / "docs" / "models" / f"{kind}.toml", Path("data"))
        assert list(config.parts) == parts
        for part in config.parts.values():
            assert part.clips
            for clip in part.clips:
                assert not {"box", "aspen_960x540_420", "kitti1_gray"} & {clip.path.stem}
            assert all(math.isfinite(clip.weight) for clip in part.clips)
            assert {clip.path.stem for clip in part.validation} == {
                "aspen_960x540_420", "kitti1_gray",
            }  # fmt: skip


def test_parts_override_what_is_common(tmp_path):
    file = tmp_path / "c.toml"
    text = """
kind = "video"
cache = "kept"
[model]
intra = {luma = {width = 4, blocks = 1}, chroma = {width = 4, blocks = 1}}
inter = {luma = {width = 4, blocks = 1}, chroma = {width = 4, blocks = 1}}
[training]
crop = 32
minutes = 2
[training.inter]
minutes = 3
[[clips.intra]]
path = "a.mkv"
[[clips.inter]]
path = "b.mkv"
fit = true
[[validation]]
path = "c.mkv"
"""
    file.write_text(text)
    config = read_config(file)
    assert [part.training.minutes for part in config.parts.values()] == [2, 3]
    names = [[clip.path.name for clip in part.clips] for part in config.parts.values()]
    assert names == [["a.mkv"], ["b.mkv"]]
    assert [len(part.validation) for part in config.parts.values()] == [1, 1]
    assert config.cache == tmp_path / "kept"
    for old, new in (
        ("clips.inter", "clips.outer"), ("training.inter", "training.outer"),
        ("crop = 32", "crop = 40"), ("crop = 32", 'optimizer = "sgd"'),
        ("fit = true", "noise = -1"), ("width = 4", "width = 999"),
    ):  # fmt: skip
        file.write_text(text.replace(old, new, 1))
        with pytest.raises(InputError, match="is not a training config"):
            read_config(file)


def test_filters_fit_both_planes_of_chroma(examples):
    clip, filters, _ = examples
    assert isinstance(filters, Filters)
    same = Clip(clip.luma, np.repeat(clip.chroma[:, :1], 2, axis=1), 1.0)
    mirrored = Clip(clip.luma, clip.chroma[:, ::-1], 1.0)
    again = fit_filters(iter([mirrored]))
    assert np.abs(again.chroma - filters.chroma).max() < 1 << 12
    assert np.array_equal(fit_filters(iter([same])).luma, filters.luma)
