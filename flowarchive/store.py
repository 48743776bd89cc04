"""Frozen models as files: a safetensors file whose metadata hold kind, config and known answer.

A model's fingerprint is the SHA-256 of its file's bytes, which anybody can compute.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from flowarchive import exact
from flowarchive.errors import FingerprintMismatch, ModelError, ModelNotFound, NotReproducible
from flowarchive.models import MODELS, IdfModel

MAX_MODEL_BYTES = 64 << 20
SUFFIX = ".safetensors"


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
    network: IdfModel

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of `data`."""
        return hashlib.sha256(self.data).digest()


def save_model(path: Path, kind: str, config: dict[str, Any], network: nn.Module) -> None:
    """Write a frozen model with its known answer.

    Args:
        path: File to write.
        kind: A name from MODELS.
        config: What the class was built from.
        network: The frozen network.
    """
    assert isinstance(network, IdfModel)
    metadata = {
        "kind": kind,
        "config": json.dumps(config, sort_keys=True, separators=(",", ":")),
        "known_answer": network.known_answer(),
    }
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    path.write_bytes(save(tensors, metadata))


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
    if not path.is_file():
        known = ", ".join(sorted(_packaged())) or "none"
        raise ModelNotFound(f"there is no model {name!r} (in the package: {known})")
    return parse_model(path.read_bytes(), path.stem)


def find_model(fingerprint: bytes, embedded: bytes | None, name: str) -> StoredModel:
    """Find the model an archive names.

    Args:
        fingerprint: SHA-256 of the model file, 32 bytes.
        embedded: The model file out of the archive, if it is there.
        name: What the archive calls it, for messages.

    Raises:
        FingerprintMismatch: The embedded model is not the named one.
        ModelNotFound: It is neither embedded nor in the package.
    """
    if embedded is not None:
        if hashlib.sha256(embedded).digest() != fingerprint:
            raise FingerprintMismatch("the model inside the archive is not the one it names")
        return parse_model(embedded, name)
    for packaged, data in _packaged().items():
        if hashlib.sha256(data).digest() == fingerprint:
            return parse_model(data, packaged)
    raise ModelNotFound(f"the archive needs the model {name!r}, SHA-256 {fingerprint.hex()}")


def parse_model(data: bytes, name: str) -> StoredModel:
    """Build a frozen model from a file's bytes, prove it exact and check its known answer.

    Raises:
        ModelError: The bytes are malformed.
        NotReproducible: A bound is broken, or the known answer does not come out here.
    """
    metadata = _metadata(data)
    try:
        kind, config = MODELS[metadata["kind"]], json.loads(metadata["config"])
        tensors = load(data)
    except (KeyError, ValueError, SafetensorError) as error:
        raise ModelError(f"the model {name!r} is malformed: {error}") from error
    network = exact.freeze(kind(config))
    assert isinstance(network, IdfModel)
    wanted = network.state_dict()
    if wanted.keys() != tensors.keys() or any(
        tensors[key].dtype != value.dtype or tensors[key].shape != value.shape
        for key, value in wanted.items()
    ):
        raise ModelError(f"the model {name!r} does not hold the tensors its config asks for")
    network.load_state_dict(tensors)
    exact.check(network)
    if network.known_answer() != metadata.get("known_answer"):
        raise NotReproducible(f"the model {name!r} does not give its known answer on this machine")
    return StoredModel(name, data, network.eval())


def packaged_models() -> dict[str, dict[str, Any]]:
    """Name, size, fingerprint and metadata of every model in the package."""
    return {
        name: {
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            **_metadata(data),
        }
        for name, data in sorted(_packaged().items())
    }


def _packaged() -> dict[str, bytes]:
    folder = resources.files("flowarchive") / "weights"
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
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError("the model file is malformed") from error
    if not isinstance(metadata, dict):
        raise ModelError("the model file is malformed")
    return metadata
