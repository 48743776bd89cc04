"""The one training loop: batches in, frozen weights out.

Float weights are trained for a part of the time and fake-quantized for the rest; an exponential
moving average of them is what is validated, kept and frozen. Time rather than steps rules the
learning rate, so that a run ends when it should on a machine that is shared.

A model is trained in one part or several, each in a folder of its own inside the run's, so that
several processes can share them. Whichever ends last freezes the model.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from flowarchive import exact, store
from flowarchive.errors import InputError, OutputExists
from flowarchive.train.config import PARTS, Config, PartConfig, TrainConfig
from flowarchive.train.flow import FlowPart
from flowarchive.train.idf import IdfPart
from flowarchive.train.phases import set_first_scales
from flowarchive.train.twins import TWINS, frozen_tensors
from flowarchive.train.video import InterPart, IntraPart

CHECKPOINT = "checkpoint.safetensors"
CACHE = "cache"
AHEAD = 4
"""Batches that are drawn while the networks are busy."""

Progress = Callable[[int, int | None], None]


class Part(Protocol):
    """What a kind of model brings to the loop for one of its parts.

    Attributes:
        name: Its folder inside the run's, or "" for the run's own.
        prefixes: What the names of its tensors in the model begin with.
        config: What it is trained with.
    """

    name: str
    prefixes: tuple[str, ...]
    config: PartConfig

    def open(self, model: nn.Module, step: int) -> None:
        """Load what batches are drawn from, and set the model's buffers that depend on it.

        Args:
            model: The twins to be trained.
            step: Where the training goes on, so that batches go on too.

        Raises:
            InputError: A clip cannot be read, or none is of use.
        """

    def draw(self) -> Any:
        """Draw a batch; the loop calls this in a thread of its own."""

    def bits(self, model: nn.Module, batch: Any, fake: bool) -> dict[str, Tensor]:
        """Return a batch's mean bits per sample of "luma" and "chroma"."""

    def validate(self, model: nn.Module, fake: bool) -> dict[str, float]:
        """Return bits per sample of what is held out, by its names."""


_PARTS: dict[str, Callable[[PartConfig, Path], Part]] = {
    "": IdfPart,
    "intra": IntraPart,
    "inter": InterPart,
    "flow": FlowPart,
}


def train(
    config: Config,
    directory: Path,
    resume: bool = False,
    progress: Progress | None = None,
    parts: Sequence[str] | None = None,
) -> Path:
    """Train a model and freeze it.

    Args:
        config: What and how.
        directory: Receives `model.safetensors`, and for each part, in its folder,
            `checkpoint.safetensors` and `log.jsonl`.
        resume: Go on from the directory's checkpoints, of which there must be one; without it
            there must be none.
        progress: Called with the seconds spent and the seconds there are.
        parts: Train these parts of the model alone; others may be trained at the same time.

    Returns:
        The frozen model's path; the directory, where other parts are not yet trained.

    Raises:
        InputError: No such part, no clip, or the loss is no longer finite.
        OutputExists: A checkpoint is there, and `resume` is not given.
    """
    names = PARTS[config.kind] if parts is None else tuple(parts)
    unknown = set(names) - set(PARTS[config.kind])
    if unknown or not names:
        raise InputError(
            f"a model of kind {config.kind!r} has no part {min(unknown, default='')!r}"
        )
    there = [path for path in (directory / name / CHECKPOINT for name in names) if path.exists()]
    if there and not resume:
        raise OutputExists(f"{there[0]} is of another run: resume it, or name another folder")
    if resume and not there:
        raise InputError(f"there is no checkpoint in {directory} to resume from")
    for name in names:
        cache = config.cache or directory / CACHE
        part = _PARTS[name](config.parts[name], cache)
        torch.manual_seed(part.config.training.seed)
        _train_part(part, twin(config), directory / name, progress)
    if not all(_finished(directory / name, part) for name, part in config.parts.items()):
        return directory
    average = read_average(config, directory)
    exact.set_fake(average, fake=True)
    path = directory / "model.safetensors"
    store.save_model(path, config.kind, config.model, frozen_tensors(average))
    return path


def twin(config: Config) -> nn.Module:
    """Return a config's model with fresh weights."""
    model = TWINS[config.kind](config.model)
    if config.kind == "video":
        set_first_scales(model)
    return model


def read_average(config: Config, directory: Path) -> nn.Module:
    """Return a run's averaged weights as training twins.

    Raises:
        InputError: A part has no checkpoint, or one of another model.
    """
    model = twin(config)
    for name in config.parts:
        checkpoint = directory / name / CHECKPOINT
        if not checkpoint.exists():
            raise InputError(f"there is no checkpoint {checkpoint}")
        part = _PARTS[name](config.parts[name], directory)
        with safe_open(checkpoint, "pt") as file:
            _read_tensors(file, "average", _tensors(model, part))
    return model


def _train_part(part: Part, model: nn.Module, folder: Path, progress: Progress | None) -> None:
    """Train a part of a model until its time is spent, from its checkpoint where there is one."""
    settings = part.config.training
    torch.set_num_threads(settings.threads)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = _optimizer(settings, _weights(model, part))
    step, spent, checkpoint = 0, 0.0, folder / CHECKPOINT
    if checkpoint.exists():
        step, spent = _position(checkpoint)
    budget = 60 * settings.minutes
    if spent >= budget:
        return
    part.open(model, step)
    average = copy.deepcopy(model)
    if checkpoint.exists():
        _load(checkpoint, part, model, average, optimizer)
    weights, averages = _weights(model, part), _weights(average, part)
    terms: dict[str, float] = {}
    count = 0
    last = started = time.monotonic()
    before = spent
    with closing(_ahead(part.draw)) as batches:
        while spent < budget:
            spent_part = spent / budget
            fake = spent_part >= settings.fake_from
            exact.set_fake(model, fake)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * _schedule(spent_part, settings.warmup)
            bits = part.bits(model, next(batches), fake)
            loss = bits["luma"] + settings.chroma_weight * bits["chroma"]
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(weights, settings.clip_gradient)
            optimizer.step()
            for name, value in (*bits.items(), ("loss", loss)):
                terms[name] = terms.get(name, 0.0) + value.item()
            count += 1
            if not math.isfinite(terms["loss"]):
                raise InputError(f"the loss is not finite at step {step}")
            # A short memory at first, so that the average forgets its start.
            decay = min(settings.ema, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(averages, weights, 1 - decay)
            step += 1
            now = time.monotonic()
            spent = before + now - started
            if progress is not None:
                progress(int(spent), int(budget))
            if now - last > 60 * settings.log_minutes or spent >= budget:
                exact.set_fake(average, fake)
                line = {
                    "step": step,
                    "minutes": round(spent / 60, 1),
                    "fake": fake,
                    **{name: round(value / count, 4) for name, value in terms.items()},
                    "validation_bits_per_dim": {
                        name: round(rate, 4) for name, rate in part.validate(average, fake).items()
                    },
                }
                with (folder / "log.jsonl").open("a") as log:
                    log.write(json.dumps(line) + "\n")
                _save(checkpoint, part, model, average, optimizer, step, spent)
                terms.clear()
                count, last = 0, time.monotonic()


def _ahead(draw: Callable[[], Any]) -> Generator[Any, None, None]:
    """Yield what `draw` gives, some of it drawn ahead in a thread."""
    pool = ThreadPoolExecutor(1, "batches")
    try:
        waiting = deque(pool.submit(draw) for _ in range(AHEAD))
        while True:
            yield waiting.popleft().result()
            waiting.append(pool.submit(draw))
    finally:
        pool.shutdown(cancel_futures=True)


def _schedule(part: float, warmup: float) -> float:
    """Rise linearly, then fall along a half cosine."""
    if part < warmup:
        return part / warmup + 1e-3
    return 0.5 + 0.5 * math.cos(math.pi * (part - warmup) / (1 - warmup))


def _optimizer(settings: TrainConfig, weights: list[Tensor]) -> torch.optim.Optimizer:
    if settings.optimizer == "adam":
        return torch.optim.Adam(weights, settings.learning_rate, betas=(0.9, 0.98), foreach=True)
    return torch.optim.Adamax(weights, settings.learning_rate)


def _weights(model: nn.Module, part: Part) -> list[Tensor]:
    """What a part's training changes."""
    return [p for name, p in model.named_parameters() if name.startswith(part.prefixes)]


def _tensors(model: nn.Module, part: Part) -> dict[str, Tensor]:
    """A part's weights, and the buffers that go with them, by name."""
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(part.prefixes)
    }


def _save(
    path: Path,
    part: Part,
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    spent: float,
) -> None:
    tensors: dict[str, Tensor] = {}
    for prefix, module in (("model", model), ("average", average)):
        tensors |= {f"{prefix}.{name}": p for name, p in _tensors(module, part).items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{key}": value for key, value in state.items()}
    partial = path.with_suffix(".part")
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        partial,
        {"step": str(step), "spent": str(spent)},
    )
    partial.replace(path)


def _position(path: Path) -> tuple[int, float]:
    """How far a checkpoint's training has come: steps and seconds."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    return int(metadata["step"]), float(metadata["spent"])


def _finished(folder: Path, config: PartConfig) -> bool:
    path = folder / CHECKPOINT
    return path.exists() and _position(path)[1] >= 60 * config.training.minutes


def _load(
    path: Path, part: Part, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    with safe_open(path, "pt") as file:
        _read_tensors(file, "model", _tensors(model, part))
        _read_tensors(file, "average", _tensors(average, part))
        weights = _weights(model, part)
        state: dict[int, dict[str, Tensor]] = {}
        for name in file.keys():  # noqa: SIM118 (a safe_open handle is no dict)
            if name.startswith("optimizer."):
                _, number, key = name.split(".", 2)
                value, like = file.get_tensor(name), weights[int(number)]
                # In memory as the weight is, which the optimizer's loops may rely on.
                value = torch.empty_like(like).copy_(value) if value.dim() else value
                state.setdefault(int(number), {})[key] = value.detach()
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})


def _read_tensors(file: safe_open, prefix: str, tensors: dict[str, Tensor]) -> None:
    """Fill a part's tensors from a checkpoint's "model" or "average"."""
    try:
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(file.get_tensor(f"{prefix}.{name}"))  # type: ignore[no-untyped-call]
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"the checkpoint is of another model: {error}") from None
