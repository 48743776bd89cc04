"""The one training loop: crops in, frozen weights out.

Float weights are trained for a part of the time and fake-quantized for the rest; an exponential
moving average of them is what is validated, kept and frozen. Time rather than steps rules the
learning rate, so that a run ends when it should on a machine that is shared.
"""

from __future__ import annotations

import copy
import json
import math
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from flowarchive import exact, store
from flowarchive.errors import InputError, ModelError, OutputExists
from flowarchive.models import MODELS, IdfModel
from flowarchive.train.data import Clip, ClipConfig, Crops, load_clip

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the `[training]` table of a config file.

    Attributes:
        minutes: Time to train, over all resumed runs.
        batch: Luma crops a step; as many chroma crops.
        crop: Side of a luma crop.
        learning_rate: At its peak.
        warmup: Part of the time the learning rate rises.
        ema: Decay of the moving average a step.
        fake_from: Part of the time after which training is fake-quantized.
        seed: Of weights and crops.
        threads: Of torch.
        log_minutes: Between two log lines and checkpoints.
        clip_gradient: Largest norm of a step's gradient.
    """

    minutes: float
    batch: int = 8
    crop: int = 128
    learning_rate: float = 2e-3
    warmup: float = 0.02
    ema: float = 0.998
    fake_from: float = 0.75
    seed: int = 0
    threads: int = 2
    log_minutes: float = 5.0
    clip_gradient: float = 1.0

    def __post_init__(self) -> None:
        for name in ("minutes", "batch", "crop", "learning_rate", "threads", "log_minutes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}")


@dataclass(frozen=True)
class Config:
    """A whole config file.

    Attributes:
        kind: A name from MODELS.
        model: The model's own table.
        training: See TrainConfig.
        clips: Clips to train on.
        validation: Clips to measure on while training.
    """

    kind: str
    model: dict[str, Any]
    training: TrainConfig
    clips: list[ClipConfig] = field(default_factory=list)
    validation: list[ClipConfig] = field(default_factory=list)


def read_config(path: Path, data: Path | None = None) -> Config:
    """Read a TOML config; clip paths are relative to the folder `data`, or to the file's.

    Raises:
        InputError: The file is no such config.
    """
    try:
        raw = tomllib.loads(path.read_text())
        clips = {
            key: [
                ClipConfig(**{**clip, "path": (data or path.parent) / clip["path"]})
                for clip in raw.pop(key, [])
            ]
            for key in ("clips", "validation")
        }
        config = Config(raw["kind"], raw["model"], TrainConfig(**raw["training"]), **clips)
        MODELS[config.kind](config.model).check_crop(config.training.crop)
        return config
    except (OSError, ValueError, KeyError, TypeError, ModelError) as error:
        raise InputError(f"{path} is not a training config: {error}") from error


def train(
    config: Config,
    directory: Path,
    resume: bool = False,
    progress: Callable[[int, int | None], None] | None = None,
) -> Path:
    """Train a model and freeze it.

    Args:
        config: What and how.
        directory: Receives `checkpoint.safetensors`, `log.jsonl` and `model.safetensors`.
        resume: Go on from the directory's checkpoint; without it the directory must hold none.
        progress: Called with the seconds spent and the seconds there are.

    Returns:
        The frozen model's path.

    Raises:
        InputError: No clip, or the loss is no longer finite.
    """
    settings = config.training
    torch.manual_seed(settings.seed)
    torch.set_num_threads(settings.threads)
    directory.mkdir(parents=True, exist_ok=True)
    clips = [load_clip(clip) for clip in config.clips]
    held_out = [load_clip(clip) for clip in config.validation]
    model = MODELS[config.kind](config.model)
    average = copy.deepcopy(model)
    optimizer = torch.optim.Adamax(model.parameters(), lr=settings.learning_rate)
    step, spent = 0, 0.0
    checkpoint = directory / CHECKPOINT
    if checkpoint.exists() and not resume:
        raise OutputExists(f"{checkpoint} is of another run: resume it, or name another folder")
    if resume:
        step, spent = _load(checkpoint, model, average, optimizer)
    crops = Crops(clips, settings.crop, settings.seed + step)
    budget = 60 * settings.minutes
    last = started = time.monotonic()
    before = spent
    losses: list[float] = []
    while spent < budget:
        part = spent / budget
        exact.set_fake(model, part >= settings.fake_from)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(part, settings.warmup)
        loss = model.loss(crops.draw_luma(settings.batch), *crops.draw_chroma(settings.batch))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip_gradient)
        optimizer.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise InputError(f"the loss is not finite at step {step}")
        # A short memory at first, so that the average forgets its start.
        _follow(average, model, min(settings.ema, (1 + step) / (10 + step)))
        step += 1
        now = time.monotonic()
        spent = before + now - started
        if progress is not None:
            progress(int(spent), int(budget))
        if now - last > 60 * settings.log_minutes or spent >= budget:
            fake = part >= settings.fake_from
            line = {
                "step": step,
                "minutes": round(spent / 60, 1),
                "fake": fake,
                "loss": round(sum(losses) / len(losses), 4),  # luma plus chroma
                "validation_bits_per_dim": round(validate(average, held_out, fake), 4)
                if held_out
                else None,
            }
            with (directory / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            _save(checkpoint, model, average, optimizer, step, spent)
            losses.clear()
            last = time.monotonic()
    path = directory / "model.safetensors"
    exact.set_fake(average, fake=True)
    store.save_model(path, config.kind, config.model, exact.freeze(copy.deepcopy(average)))
    return path


def validate(model: IdfModel, clips: list[Clip], fake: bool) -> float:
    """Return the mean bits per sample of whole frames by the training twin.

    Args:
        model: A model of training twins.
        clips: Frames to code; every clip counts by its samples.
        fake: Evaluate the frozen integers rather than float weights.
    """
    exact.set_fake(model, fake)
    bits, samples = 0.0, 0
    with torch.no_grad():
        for clip in clips:
            for t in range(clip.luma.shape[0]):
                frame_bits, frame_samples = model.frame_bits(clip.components(t))
                bits, samples = bits + frame_bits, samples + frame_samples
    return bits / max(samples, 1)


def _schedule(part: float, warmup: float) -> float:
    """Rise linearly, then fall along a half cosine."""
    if part < warmup:
        return part / warmup + 1e-3
    return 0.5 + 0.5 * math.cos(math.pi * (part - warmup) / (1 - warmup))


def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)


def _save(
    path: Path,
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    spent: float,
) -> None:
    tensors: dict[str, Tensor] = {}
    for prefix, module in (("model", model), ("average", average)):
        tensors |= {f"{prefix}.{name}": p.detach() for name, p in module.named_parameters()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": value for key, value in state.items()}
    part = path.with_suffix(".part")
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        part,
        {"step": str(step), "spent": str(spent)},
    )
    part.replace(path)


def _load(
    path: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, float]:
    if not path.exists():
        raise InputError(f"there is no checkpoint {path} to resume from")
    with safe_open(path, "pt") as file, torch.no_grad():
        read_weights(file, "model", model)
        read_weights(file, "average", average)
        state: dict[int, dict[str, Tensor]] = {}
        for name in file.keys():  # noqa: SIM118 (a safe_open handle is no dict)
            if name.startswith("optimizer."):
                _, number, key = name.split(".", 2)
                state.setdefault(int(number), {})[key] = file.get_tensor(name)
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        metadata = file.metadata()
    return int(metadata["step"]), float(metadata["spent"])


def read_weights(file: safe_open, prefix: str, model: nn.Module) -> None:
    """Fill a model of training twins from a checkpoint's "model" or "average" weights.

    Raises:
        InputError: The checkpoint is of another model.
    """
    try:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(file.get_tensor(f"{prefix}.{name}"))  # type: ignore[no-untyped-call]
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"the checkpoint is of another model: {error}") from None
