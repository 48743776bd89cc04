"""Training configs: TOML files read into dataclasses, and nothing else.

    kind = "video"              a name from TWINS
    [model]                     the model's own table
    [training]                  see TrainConfig
    [[clips]]                   see ClipConfig
    [[validation]]              alike

Some kinds are trained in parts, each on its own: `[training.intra]` then overrides fields of
`[training]`, and `[[clips.intra]]` and `[[validation.intra]]` are that part's alone.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowarchive.errors import InputError, ModelError
from flowarchive.models.idf import IdfModel
from flowarchive.train.data import ClipConfig
from flowarchive.train.twins import TWINS

WHOLE = ""
"""The name of the only part of a model that is trained as a whole."""

PARTS = {"idf": (WHOLE,), "video": ("intra", "inter"), "chain": ("flow",)}
"""The parts of each kind of model, in the order in which they are trained."""

CROP_MULTIPLE = 16
"""Crops of the `video` model keep their place on the lattice of four levels."""

OPTIMIZERS = ("adamax", "adam")


@dataclass(frozen=True)
class TrainConfig:
    """How to train a part of a model.

    Attributes:
        minutes: Time to train, over all resumed runs.
        batch: Luma crops a step; as many chroma crops.
        crop: Side of a luma crop.
        optimizer: One of OPTIMIZERS.
        learning_rate: At its peak.
        warmup: Part of the time the learning rate rises.
        chroma_weight: What a bit of a chroma sample counts beside one of luma.
        ema: Decay of the moving average a step.
        fake_from: Part of the time after which training is fake-quantized.
        autocast: Convolve in bfloat16 where the model's kind can, until training is
            fake-quantized.
        seed: Of weights and crops.
        threads: Of torch. Two of them wait for each other where the machine has other work.
        log_minutes: Between two log lines and checkpoints.
        clip_gradient: Largest norm of a step's gradient.
    """

    minutes: float
    batch: int = 8
    crop: int = 128
    optimizer: str = "adamax"
    learning_rate: float = 2e-3
    warmup: float = 0.02
    chroma_weight: float = 1.0
    ema: float = 0.998
    fake_from: float = 0.75
    autocast: bool = False
    seed: int = 0
    threads: int = 1
    log_minutes: float = 5.0
    clip_gradient: float = 1.0

    def __post_init__(self) -> None:
        for name in ("minutes", "batch", "crop", "learning_rate", "threads", "log_minutes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer is {self.optimizer!r}, not one of {OPTIMIZERS}")


@dataclass(frozen=True)
class PartConfig:
    """What a part of a model is trained with.

    Attributes:
        training: How.
        clips: Clips to train on.
        validation: Clips to measure on while training.
    """

    training: TrainConfig
    clips: list[ClipConfig] = field(default_factory=list)
    validation: list[ClipConfig] = field(default_factory=list)


@dataclass(frozen=True)
class Config:
    """A whole config file.

    Attributes:
        kind: A name from `train.twins.TWINS`.
        model: The model's own table.
        parts: For each of PARTS[kind], how it is trained.
        cache: Folder of what is computed from clips once, or None for one in the run's folder.
    """

    kind: str
    model: dict[str, Any]
    parts: dict[str, PartConfig]
    cache: Path | None = None


def read_config(path: Path, data: Path | None = None) -> Config:
    """Read a TOML config; its paths are relative to the folder `data`, or to the file's.

    Raises:
        InputError: The file is no such config.
    """
    folder = data or path.parent
    try:
        raw = tomllib.loads(path.read_text())
        kind = raw["kind"]
        parts = {name: _read_part(raw, name, PARTS[kind], folder) for name in PARTS[kind]}
        cache = folder / raw["cache"] if "cache" in raw else None
        config = Config(kind, raw["model"], parts, cache)
        _check(config)
        return config
    except (OSError, ValueError, KeyError, TypeError, ModelError) as error:
        raise InputError(f"{path} is not a training config: {error}") from error


def _read_part(raw: dict[str, Any], name: str, names: tuple[str, ...], folder: Path) -> PartConfig:
    """A part's own view of the file's tables."""
    training = {key: value for key, value in raw["training"].items() if key not in names}
    training |= raw["training"].get(name, {}) if name else {}

    def clips(key: str) -> list[ClipConfig]:
        listed = raw.get(key, [])
        if isinstance(listed, dict):
            unknown = listed.keys() - set(names)
            if unknown:
                raise ValueError(f"there is no part {min(unknown)!r} for {key}")
            listed = listed.get(name, [])
        return [ClipConfig(**{**clip, "path": folder / clip["path"]}) for clip in listed]

    return PartConfig(TrainConfig(**training), clips("clips"), clips("validation"))


def _check(config: Config) -> None:
    """Raise an error of the input unless model and crops go together."""
    model = TWINS[config.kind](config.model)
    for part in config.parts.values():
        crop = part.training.crop
        if isinstance(model, IdfModel):
            model.check_crop(crop)
        elif crop % CROP_MULTIPLE:
            raise ValueError(f"crops of {crop} are no multiple of {CROP_MULTIPLE}")
