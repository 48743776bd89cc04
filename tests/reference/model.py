"""The model file, of any kind, and its checks."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from typing import Any

from reference.chain import FlowShape, read_flow, wanted_flows
from reference.layers import CONSTANTS
from reference.networks import FlowConfig, Tensor, Tensors, wanted
from reference.phases import read_config, wanted_video
from reference.refusal import Refused, demand


@dataclass
class Model:
    """A model file, taken apart.

    The config is by flow, or by kind of network; `flow` is that of a chain.
    """

    kind: str
    config: dict[str, Any]
    tensors: Tensors
    flow: FlowShape | None = None


def read_model_file(data: bytes) -> Model:
    """Take a safetensors file apart and check what it holds."""
    try:
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(data[8 : 8 + length])
        metadata: dict[str, Any] = header.pop("__metadata__")
        kind = metadata["kind"]
        config: dict[str, Any]
        flow = None
        if kind == "idf":
            fields = json.loads(metadata["config"])
            config = {name: FlowConfig(**fields[name]) for name in ("luma", "chroma")}
            expected = {**wanted("luma", config["luma"], 1, 0)}
            expected |= wanted("chroma", config["chroma"], 2, 4)
        elif kind == "video":
            config = read_config(json.loads(metadata["config"]))
            expected = wanted_video(config)
        elif kind == "chain":
            fields = json.loads(metadata["config"])
            flow = read_flow(fields)
            config = read_config(fields["video"])
            expected = {**wanted_video(config), **wanted_flows(config, flow)}
        else:
            raise ValueError("another kind of model")
        tensors, found = {}, {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            code = {"I8": "b", "I16": "h", "I32": "i"}[entry["dtype"]]
            raw = data[8 + length + begin : 8 + length + end]
            shape = entry["shape"]
            tensors[name] = Tensor(shape, list(struct.unpack(f"<{prod(shape)}{code}", raw)))
            found[name] = (entry["dtype"], shape)
    except (AttributeError, KeyError, TypeError, ValueError, struct.error) as error:
        raise Refused("ModelError", "the model file is malformed") from error
    demand(found == expected, "other tensors than config asks for", "ModelError")
    check_tensors(tensors)
    return Model(kind, config, tensors, flow)


def check_tensors(tensors: Tensors) -> None:
    """The ranges that the document gives for the elements of tensors."""
    limits = {
        "shift": (-32, 24),
        "gain": (-(2**24), 2**24),
        "offset": (-(2**24), 2**24),
        "prior.mean": (1 - 2**23, 2**23 - 1),
    }
    for name, tensor in tensors.items():
        parts = name.split(".")
        if parts[0] == "flows" and parts[3] in CONSTANTS:
            most = CONSTANTS[parts[3]][parts[5]][2]
            demand(all(abs(v) <= most for v in tensor.values), name, "ModelError")
            continue
        for ending, (least, most) in limits.items():
            if name.endswith(f".{ending}"):
                demand(all(least <= v <= most for v in tensor.values), name, "ModelError")
        if name.endswith("_filters"):
            demand(all(abs(v) <= 32767 for v in tensor.values), name, "ModelError")
        if name.endswith(".prior.weight"):
            k = tensor.shape[1]
            rows = [tensor.values[i : i + k] for i in range(0, len(tensor.values), k)]
            demand(all(min(r) >= 0 and sum(r) == 4096 for r in rows), name, "ModelError")
        elif name.endswith(".weight"):
            # float32 arithmetic has to be exact.
            biases = tensors[name.removesuffix("weight") + "bias"].values
            taps = prod(tensor.shape[1:])
            for o, bias in enumerate(biases):
                total = sum(abs(w) for w in tensor.values[o * taps : (o + 1) * taps])
                demand(total * 128 + abs(bias) < 2**24, name, "NotReproducible")
