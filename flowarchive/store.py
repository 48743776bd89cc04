"""Frozen models as files: a safetensors file whose metadata hold kind, config and known answer.

A model's fingerprint is the SHA-256 of its file's bytes, which anybody can compute.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from flowarchive import files
from flowarchive.device import Kernels, select
from flowarchive.errors import (
    DeviceError,
    FingerprintMismatch,
    ModelError,
    ModelNotFound,
    NotReproducible,
)
from flowarchive.flows.phases import Tensors
from flowarchive.models import Model, model_class
from flowarchive.models.answer import rehearse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.resources.abc import Traversable

MAX_MODEL_BYTES = 64 << 20
SUFFIX = ".safetensors"

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredModel:
    """A frozen model with the bytes it came from.

    Attributes:
        name: Name in the package, or the file's stem.
        data: The file's bytes.
        network: The frozen model, proved exact and checked against its known answer.
    """

    name: str
    data: bytes
    network: Model

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of `data`."""
        return hashlib.sha256(self.data).digest()


def save_model(path: Path, kind: str, config: dict[str, Any], tensors: Tensors) -> None:
    """Write a frozen model with its known answer.

    Args:
        path: File to write.
        kind: A name that `models.model_class` knows.
        config: What the model is built like.
        tensors: Its integers.

    Raises:
        ModelError: The model is too large, or not exact.
        InputError: The file cannot be written.
    """
    metadata = {
        "kind": kind,
        "config": json.dumps(config, sort_keys=True, separators=(",", ":")),
        "known_answer": model_class(kind).of_tensors(config, tensors).known_answer(),
    }
    tensors = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    data = _in_order(save(tensors, metadata))
    if len(data) > MAX_MODEL_BYTES:
        raise ModelError(f"the model takes {len(data)} bytes, more than {MAX_MODEL_BYTES}")
    with files.atomic_output(path, force=True) as file:
        file.write(data)


def load_model(name: str) -> StoredModel:
    """Load a model of the package by name, or any model by its file's path.

    Raises:
        ModelNotFound: There is neither.
        ModelError: The file is malformed, or not exact here.
    """
    packaged = _packaged().get(name)
    if packaged is not None:
        return parse_model(packaged, name)
    path = Path(name)
    try:
        # One byte more than a model may have, whatever the size of what was named.
        with path.open("rb") as file:
            data = file.read(MAX_MODEL_BYTES + 1)
    except (OSError, ValueError):
        known = ", ".join(sorted(_packaged())) or "none"
        raise ModelNotFound(f"there is no model {name!r} (in the package: {known})") from None
    return parse_model(data, path.stem)


def load_packaged(name: str) -> StoredModel:
    """Load a model of the package by name, whatever files are called so.

    Raises:
        ModelNotFound: The package does not have it.
        ModelError: It is not exact here.
    """
    models = _packaged()
    if name not in models:
        known = ", ".join(sorted(models)) or "none"
        raise ModelNotFound(f"the package has no model {name!r} yet, only: {known}")
    return parse_model(models[name], name)


def find_model(
    fingerprint: bytes, embedded: bytes | None, name: str, file: str | None = None
) -> StoredModel:
    """Find the model an archive names.

    Args:
        fingerprint: SHA-256 of the model file, 32 bytes.
        embedded: The model file out of the archive, if it is there.
        name: What the archive calls it, for messages.
        file: Path of a model file to use if the archive does not hold its model.

    Raises:
        FingerprintMismatch: The embedded model, or the file, is not the named one.
        ModelNotFound: It is neither embedded, nor that file, nor in the package, which keeps those
            of its earlier releases, too.
    """
    if embedded is not None:
        return _checked(embedded, fingerprint, name, "the model inside the archive")
    if file is not None:
        return _checked(_read(file), fingerprint, name, file)
    for packaged, data in _released():
        if hashlib.sha256(data).digest() == fingerprint:
            return parse_model(data, packaged)
    raise ModelNotFound(f"the archive needs the model {name!r}, SHA-256 {fingerprint.hex()}")


def place(model: StoredModel, device: str) -> str:
    """Have a device do a model's hot operations, once the model has been tried there.

    It has to give its known answer, and a small chunk has to become the CPU's bytes and come back.
    Where "auto" finds a device that fails, the CPU is used, and one line is logged.

    Args:
        model: Loaded, and so proved on the CPU.
        device: A name from `device.CHOICES`.

    Returns:
        What the device is called, "cpu" for the CPU.

    Raises:
        DeviceError: "cuda" was asked for, and there is none, or no kernels for the model, or they
            cannot be launched.
        NotReproducible: "cuda" was asked for, and the model gives something else there.
    """
    kernels = select(device)
    network = model.network
    if kernels is None:
        return "cpu"
    if not network.has_kernels:
        if device == "cuda":
            raise DeviceError(f"the model {model.name!r} has no kernels; it runs on the CPU")
        return "cpu"
    failure = _try_on(model, kernels)
    if failure is None:
        return kernels.name
    network.use(None)
    if device == "cuda":
        raise failure
    _LOG.warning("flowarchive: %s; it runs on the CPU", failure)
    return "cpu"


def _try_on(model: StoredModel, kernels: Kernels) -> ModelError | DeviceError | None:
    """Move a model to a device; say what went wrong there."""
    network = model.network
    expected = _metadata(model.data).get("known_answer"), rehearse(network)
    try:
        network.use(kernels)
        given = network.known_answer(), rehearse(network)
    except Exception as error:  # compilers, assemblers and drivers have errors of their own
        reason = next(iter(str(error).splitlines()), "")
        return DeviceError(
            f"the model {model.name!r} cannot run on {kernels.name}: "
            f"{type(error).__name__}{reason and ': '}{reason}"
        )
    if given[0] != expected[0]:
        return NotReproducible(
            f"the model {model.name!r} does not give its known answer on {kernels.name}"
        )
    if given[1] != expected[1]:
        return NotReproducible(f"the model {model.name!r} codes other bits on {kernels.name}")
    return None


def is_packaged(fingerprint: bytes) -> bool:
    """Whether every installation of this release has the model."""
    return any(hashlib.sha256(data).digest() == fingerprint for _, data in _released())


def _checked(data: bytes, fingerprint: bytes, name: str, where: str) -> StoredModel:
    if hashlib.sha256(data).digest() != fingerprint:
        raise FingerprintMismatch(f"{where} is not the model that the archive names")
    return parse_model(data, name)


def _read(path: str) -> bytes:
    if not Path(path).is_file():
        raise ModelNotFound(f"there is no model file {path}")
    return Path(path).read_bytes()


def parse_model(data: bytes, name: str) -> StoredModel:
    """Build a frozen model from a file's bytes, prove it exact and check its known answer.

    Raises:
        ModelError: The bytes are malformed.
        NotReproducible: A bound is broken, or the known answer does not come out here.
    """
    metadata = _metadata(data)
    try:
        kind, config = model_class(metadata["kind"]), json.loads(metadata["config"])
        # Shapes alone: a config can ask for more memory than there is.
        layout = kind.layout(config)
        tensors = load(data)
    except (KeyError, TypeError, ValueError, RecursionError, SafetensorError) as error:
        raise ModelError(f"the model {name!r} is malformed: {error}") from error
    if {key: (values.dtype, values.shape) for key, values in tensors.items()} != layout:
        raise ModelError(f"the model {name!r} does not hold the tensors its config asks for")
    network = kind.of_tensors(config, tensors)
    if network.known_answer() != metadata.get("known_answer"):
        raise NotReproducible(f"the model {name!r} does not give its known answer on this machine")
    return StoredModel(name, data, network)


def packaged_models() -> dict[str, dict[str, Any]]:
    """Name, size, fingerprint, metadata and cost of every model in the package."""
    models: dict[str, dict[str, Any]] = {}
    for name, data in sorted(_packaged().items()):
        metadata = _metadata(data)
        models[name] = {
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            **metadata,
            "macs_per_sample": parse_model(data, name).network.macs_per_sample(),
        }
    return models


def _packaged() -> dict[str, bytes]:
    return _files(resources.files("flowarchive") / "weights")


def _released() -> Iterator[tuple[str, bytes]]:
    """Every model that an archive may name: the package's, then those of earlier releases."""
    yield from _packaged().items()
    yield from _files(resources.files("flowarchive") / "weights" / "earlier").items()


def _files(folder: Traversable) -> dict[str, bytes]:
    return {
        entry.name.removesuffix(SUFFIX): entry.read_bytes()
        for entry in folder.iterdir()
        if entry.name.endswith(SUFFIX)
    }


def _metadata(data: bytes) -> dict[str, str]:
    """The text metadata of a safetensors file: 8 bytes of length, then JSON."""
    length = int.from_bytes(data[:8], "little")
    if len(data) > MAX_MODEL_BYTES or not 0 < length <= len(data) - 8:
        raise ModelError("the model file is malformed")
    try:
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError("the model file is malformed") from error
    if not isinstance(metadata, dict):
        raise ModelError("the model file is malformed")
    return metadata


def _in_order(data: bytes) -> bytes:
    """Sort the keys of a safetensors file's header, so that equal models are equal bytes."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]
