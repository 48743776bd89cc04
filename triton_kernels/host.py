"""A GPU, or Triton's interpreter in its place: what `flowarchive.device` hands to the house."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from triton import knobs

from triton_kernels import (
    convolution,
    features,
    flow,
    layers,
    linear,
    maps,
    mixture,
    search,
    squeezed,
    stills,
)
from triton_kernels.link import Link
from triton_kernels.network import Network
from triton_kernels.session import Frozen, Model, Part, Session
from triton_kernels.steps import LayerArrays

Arrays = Sequence[NDArray[Any]]


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return bool(knobs.runtime.interpret)


def find() -> str | None:
    """Return what the GPU that would be used is called; None where there is none.

    AMD's are compiled for, and not used: a barrier there does not wait for what a program's threads
    have stored, which others of them go on to read.
    """
    if torch.version.hip or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_name()


class HostNetwork:
    """A level's network; arrays in, arrays out, and the state on the device."""

    def __init__(self, link: Link, network: Network) -> None:
        self._link, self.network = link, network

    def advance(
        self, phase: int, seen: NDArray[np.int8], state: Tensor | None
    ) -> tuple[Tensor, NDArray[np.int16]]:
        """Take a phase's channels in, int8 [N, h, w, C]; see `network.Network.advance`."""
        (channels,) = self._link.send(seen)
        both = channels.new_empty((*seen.shape[:3], self.network.width + seen.shape[3]))
        both[..., self.network.width :] = channels
        state, head = self.network.advance(phase, both, state)
        return state, self._link.fetch(head)[0]


class Host:
    """A device and what has been sent to it.

    Attributes:
        name: What people call the device.
        link: Counts what travels.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.name = "Triton's interpreter" if interpreted() else find() or ""
        self.link = Link(device or torch.device("cpu" if interpreted() else "cuda"))
        self._frozen: Frozen | None = None
        self._shared: tuple[mixture.Tables, Tensor] | None = None

    def network(
        self, layers: Mapping[str, Sequence[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]]
    ) -> HostNetwork:
        """Send a level's network to the device; see `network.Network`."""
        tensors = {
            name: [(_tensor(w), _tensor(b), _tensor(s)) for w, b, s in group]
            for name, group in layers.items()
        }
        return HostNetwork(self.link, Network(tensors, self.link.device))

    def flows(
        self,
        levels: int,
        phases: Mapping[str, Sequence[tuple[Arrays, Sequence[tuple[Any, ...]], Arrays | None]]],
        fineness: int,
        core: NDArray[np.int64],
        curves: Mapping[int, tuple[NDArray[np.int64], NDArray[np.int64]]],
        tables: Mapping[str, NDArray[Any]],
    ) -> flow.Flows:
        """Send the flows of a model's phases to the device.

        Args:
            levels: That have them.
            phases: By the name of the networks, of each phase the context's layer; of each of the
                flow's what `steps.LayerArrays` has; and the tilts', None where there are none.
            fineness: Of the flows' grid.
            core: See `maps.Grid`.
            curves: The logit's knots and images by the precision of symbols' intervals.
            tables: Those of the format: "sigmoid", "reciprocals", "lengths", "weights", "knots",
                "images" and "starts"; see `layers.Tables` and `tilts.Lean`.
        """
        device = self.link.device
        probabilities, steps = self._send_tables(tables)
        rest = (_tensor(tables[name]).to(device) for name in ("weights", "knots", "images"))
        shared, starts = layers.Tables(*probabilities, *rest), _tensor(tables["starts"])
        made = {
            name: [
                flow.Flow(
                    _layer(context),
                    [_of_layer(*about) for about in given],
                    shared,
                    None if tilt is None else (_layer(tilt), starts),
                    device,
                )
                for context, given, tilt in group
            ]
            for name, group in phases.items()
        }
        half = _tensor(core).to(device)
        grids = {
            precision: maps.Grid(
                fineness,
                half,
                precision,
                _tensor(knots).to(device),
                _tensor(images).to(device),
                steps,
            )
            for precision, (knots, images) in curves.items()
        }
        return flow.Flows(levels, made, grids)

    def integer_flow(
        self, levels: Sequence[tuple[Sequence[Any], Sequence[Any]]], permutes_back: bool
    ) -> squeezed.Flow:
        """Send an integer flow to the device.

        Args:
            levels: Of each its couplings' networks, and its prior's, or the mean, scale and weight
                of its mixtures. A network is its dense layers, two convolutions each, and those of
                its heads that see the inputs and that see what the layers have made.
            permutes_back: See `squeezed.Flow`.
        """
        made = []
        for couplings, prior in levels:
            networks = [self._conditioner(*network) for network in couplings]
            is_network = isinstance(prior[0], Sequence)
            made.append(
                squeezed.Level(
                    networks, self._conditioner(*prior) if is_network else self._mixtures(*prior)
                )
            )
        return squeezed.Flow(made, permutes_back)

    def still_session(
        self,
        tables: Mapping[str, NDArray[Any]],
        flows: tuple[squeezed.Flow, squeezed.Flow],
        parts: Sequence[tuple[Any, ...]],
        chunks: int,
        frames: int,
        bits: int,
    ) -> stills.Stills:
        """Begin to code some chunks of single frames.

        Args:
            tables: Those of the format: "sigmoid", "reciprocals" and "lengths".
            flows: From `integer_flow`, of luma and of chroma.
            parts: Of a frame, what `session.Part` has.
            chunks: How many.
            frames: Of each chunk.
            bits: Depth of the samples.
        """
        every = [Part(*part) for part in parts]
        shared = self._send_tables(tables)
        return stills.Stills(self.link, *shared, flows, every, chunks, frames, bits)

    def answer(
        self, flow: squeezed.Flow, samples: NDArray[np.int32], context: NDArray[np.int8] | None
    ) -> list[list[NDArray[np.int32]]]:
        """Return what an integer flow makes of planes; see `stills.answer`."""
        return stills.answer(self.link, flow, samples, context)

    def _conditioner(
        self, layers: Sequence[Sequence[Arrays]], linear: Sequence[Arrays], dense: Sequence[Arrays]
    ) -> squeezed.Conditioner:
        device, most = self.link.device, convolution.LIMIT - 1
        packed = [
            [convolution.pack(*_layer(one), (0, 127), device) for one in layer] for layer in layers
        ]
        heads = []
        for group in (linear, dense):
            # Heads side by side see the same: one layer of all their outputs.
            weight, bias, shift = (
                torch.cat([_tensor(layer[n]) for layer in group]) for n in range(3)
            )
            heads.append(convolution.pack(weight, bias, shift, (-most - 1, most), device))
        return squeezed.Conditioner([(first, second) for first, second in packed], *heads)

    def _mixtures(
        self, mean: NDArray[Any], scale: NDArray[Any], weight: NDArray[Any]
    ) -> squeezed.Distributions:
        # No depth brings an index from outside into the table's range.
        arrays = mean, np.clip(scale, -64, 191), weight
        first, second, third = (_tensor(array).to(self.link.device) for array in arrays)
        return first, second, third

    def session(
        self,
        tables: Mapping[str, NDArray[Any]],
        nets: Mapping[str, Sequence[HostNetwork]],
        filters: Arrays,
        parts: Sequence[tuple[Any, ...]],
        chunks: int,
        frames: int,
        bits: int,
        flows: flow.Flows | None = None,
    ) -> Session:
        """Begin a walk through some chunks.

        Args:
            tables: Those of the format: "sigmoid", "reciprocals", "logs", "weights", "costs",
                "moves", "lengths", "rates", "bits", "magnitudes", "constants" and "cuts"; see
                `session.Frozen`.
            nets: See `session.Model`.
            filters: Alike, int32.
            parts: Of a frame, what `session.Part` has.
            chunks: How many.
            frames: Of each chunk.
            bits: Depth of the samples.
            flows: From `flows`, of a model that has them.
        """
        if self._frozen is None:
            self._frozen = self._freeze(tables)
        luma, chroma = (_tensor(defaults).to(self.link.device) for defaults in filters)
        networks = {name: [net.network for net in group] for name, group in nets.items()}
        model = Model(networks, (luma, chroma), flows)
        every = [Part(*part) for part in parts]
        return Session(self.link, self._frozen, model, every, chunks, frames, bits)

    def _send_tables(self, tables: Mapping[str, NDArray[Any]]) -> tuple[mixture.Tables, Tensor]:
        """Send the tables of the entropy model and of `lengths`, once."""
        if self._shared is None:
            sigmoid, reciprocals, steps = (
                _tensor(tables[name]) for name in ("sigmoid", "reciprocals", "lengths")
            )
            device = self.link.device
            self._shared = mixture.tables(sigmoid, reciprocals, device), steps.to(device)
        return self._shared

    def _freeze(self, tables: Mapping[str, NDArray[Any]]) -> Frozen:
        device = self.link.device
        there = {name: _tensor(table) for name, table in tables.items()}
        probabilities, steps = self._send_tables(tables)
        seen = features.tables(there["logs"], device)
        names = "weights", "costs", "moves", "constants", "cuts"
        weights, costs, moves, constants, cuts = (there[name].to(device) for name in names)
        prices = (there[name].to(device) for name in ("rates", "bits", "magnitudes"))
        return Frozen(
            probabilities, seen, linear.taps(device), weights, costs, moves, steps,
            search.Prices(*prices), constants, cuts,
        )  # fmt: skip


def _tensors(arrays: Any) -> Any:
    """The arrays of a flow's layer, or of the convolutions of one."""
    if isinstance(arrays, np.ndarray):
        return _tensor(arrays)
    return [_tensors(one) for one in arrays]


def _of_layer(kind: str, parts: tuple[int, ...], components: int, arrays: Any) -> LayerArrays:
    return LayerArrays(kind, parts, components, _tensors(arrays))


def _layer(arrays: Arrays) -> tuple[Tensor, Tensor, Tensor]:
    weight, bias, shift = map(_tensor, arrays)
    return weight, bias, shift


def _tensor(array: NDArray[Any]) -> Tensor:
    """A tensor with memory of its own; where the device is the CPU, kernels write to theirs."""
    return torch.from_numpy(np.array(array))
