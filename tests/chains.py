"""Small random `chain` models, whose flows move what they code and mostly make it shorter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from models import TINY_VIDEO, video_tensors

from flowarchive.flows.phases import Tensors
from flowarchive.models.chain import ChainModel, coupling_shapes
from flowarchive.store import save_model

TINY_CHAIN: dict[str, Any] = {
    "video": TINY_VIDEO,
    "flow": {"context": 3, "width": 5, "fineness": 9},
}

RICH_CHAIN: dict[str, Any] = {
    "video": TINY_VIDEO,
    "flow": {
        **TINY_CHAIN["flow"],
        "layers": [
            {"kind": "norm"},
            {"kind": "mix", "order": [2, 0, 3, 1]},
            {"kind": "coupling", "moved": [0, 3]},
            {"kind": "coupling", "moved": [1, 2], "components": 3},
        ],
        "tilted": True,
    },
}
"""A layer of each kind."""

_HEAD_SHIFT = 4


def coupling_tensors(config: dict[str, Any], seed: int = 0, gain: int = 9) -> Tensors:
    """Random couplings of a config.

    Args:
        config: Of a `chain` model.
        seed: Of the weights.
        gain: About the mean scale index. Random models' mixtures are too wide, so that places in
            their intervals crowd together: a flow that spreads them saves bits.
    """
    random = np.random.default_rng(seed)
    found: dict[str, Any] = {}
    for name, shape in coupling_shapes(config).items():
        for phase in range(3):
            for tensor, (dtype, size) in shape.layout(f"flows.{name}.{phase}.").items():
                layer, part = tensor.split(".", 3)[3].rsplit(".", 1)
                is_head = layer.startswith("head")
                if layer.startswith(("norm", "mix")):
                    most = 20 if part == "scale" else 700
                    values = random.integers(-most, most + 1, size)
                elif part == "shift":
                    values = np.full(size, _HEAD_SHIFT if is_head else 6)
                elif part == "bias":
                    values = random.integers(-300, 900, size)
                    if is_head:
                        moved = size[0] // 2
                        values[:moved] = random.integers(-600, 601, moved)
                        values[moved:] = random.integers(-40, 41, moved) + (gain << _HEAD_SHIFT)
                else:
                    values = random.integers(-30, 31, size)
                    if is_head:
                        moved = size[0] // 2
                        values[:, : shape.width] //= 10
                        values[moved:] //= 15
                found[tensor] = values.astype(dtype)
    return found


def without_heads(tensors: Tensors) -> Tensors:
    """The same tensors, with couplings that do nothing."""
    return {
        name: np.zeros_like(values) if name.startswith("flows.") and ".head." in name else values
        for name, values in tensors.items()
    }


def chain_tensors(seed: int = 0, config: dict[str, Any] = TINY_CHAIN, **choices: int) -> Tensors:
    """A random frozen chain model; `choices` are those of `coupling_tensors`."""
    return {**video_tensors(seed), **coupling_tensors(config, seed, **choices)}


def make_chain_model(
    seed: int = 0, config: dict[str, Any] = TINY_CHAIN, **choices: int
) -> ChainModel:
    """The model of these tensors."""
    return ChainModel(config, chain_tensors(seed, config, **choices))


def write_chain_model(path: Path, seed: int = 0) -> Path:
    """A random frozen chain model as a file."""
    save_model(path, "chain", TINY_CHAIN, chain_tensors(seed))
    return path
