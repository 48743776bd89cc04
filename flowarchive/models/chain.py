"""The `chain` model: the `video` model, and continuous flows that live on its bits.

A chunk is walked through as `video` does. Where the stack holds enough, a phase of the finest
levels is coded by its flow (see `flows.phase`), whose couplings make neighbors of one phase tell of
each other; it pops auxiliary bits, and pushes them back with its own.

An encoder pushes the last phase of the last frame first. It and its like are coded as by `video`:
their code is the supply for all the rest. Each phase says in one bit which way it went, and goes
the shorter one.
"""

from __future__ import annotations

import hashlib
from copy import copy
from functools import cache, partial
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowarchive import int8
from flowarchive.account import Account
from flowarchive.ans import Message
from flowarchive.bitsback import Uniform, tilt_starts
from flowarchive.codec import Intervals, Reader, Recorder, find_intervals
from flowarchive.device import Kernels
from flowarchive.entropy import LogisticMixture, Table
from flowarchive.errors import MessageExhausted, ModelError
from flowarchive.flows.couplings import (
    AFFINE,
    MAX_LAYERS,
    Couplings,
    CouplingShape,
    LayerShape,
    Steering,
    Surroundings,
)
from flowarchive.flows.maps import (
    MAX_FINENESS,
    MAX_PRECISION,
    MIN_FINENESS,
    MIN_PRECISION,
    RANGE,
    Logit,
    core_table,
    mixture_curve,
)
from flowarchive.flows.phase import PhaseFlow
from flowarchive.flows.phases import PHASES, Layout, Tensors
from flowarchive.models.answer import noise
from flowarchive.models.offload import Device, tables
from flowarchive.models.video import VideoModel, net_shapes

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

FLOW_LEVELS = 2
"""Levels, from the finest, whose phases have a flow; they share its networks."""

LEAST_GAIN = 1.0
"""Bits that a flow has to save; the lengths compared are the same everywhere, see `lengths`."""

_WAYS = Table([1, 1])
_BY_MIXTURE, _BY_FLOW = 0, 1


class ChainModel(VideoModel):
    """Networks of the `chain` model.

    Args:
        config: "video" is a config of `VideoModel`; "flow" is {"context", "width", "fineness"}, of
            the couplings' networks and of the flows' grid, and may have "layers", tables as
            `flows.couplings.LayerShape` reads them, and "tilted".
        tensors: What `layout` names.

    Raises:
        ModelError: The config is malformed, or an integer is out of its range.
        NotReproducible: A bound is broken.
    """

    def __init__(self, config: dict[str, Any], tensors: Tensors) -> None:
        shapes = coupling_shapes(config)
        super().__init__(config["video"], tensors)
        self._fineness: int = config["flow"]["fineness"]
        self._least_gain = LEAST_GAIN
        self.couplings = {
            name: tuple(Couplings(shape, tensors, _prefix(name, n)) for n in range(PHASES))
            for name, shape in shapes.items()
        }
        for name, nets in self.nets.items():
            for net in nets[:FLOW_LEVELS]:
                net.couplings = self.couplings[name]

    @staticmethod
    def layout(config: dict[str, Any]) -> Layout:
        """Return the type and shape of every tensor; see `models.Model`."""
        found: Layout = {}
        for name, shape in coupling_shapes(config).items():
            for n in range(PHASES):
                found |= shape.layout(_prefix(name, n))
        return VideoModel.layout(config["video"]) | found

    def _on(self, kernels: Kernels) -> Device:
        phases = {
            name: [couplings.arrays() for couplings in group]
            for name, group in self.couplings.items()
        }
        curves = {
            precision: Logit(precision, self._fineness).tables[:2]
            for precision in range(MIN_PRECISION, MAX_PRECISION + 1)
        }
        knots, images, _, _ = mixture_curve().tables
        shared = {**tables(), "knots": knots, "images": images, "starts": tilt_starts()}
        core = core_table(self._fineness)
        made = self._fineness, core, curves, shared
        flows = kernels.flows(FLOW_LEVELS, phases, *made)
        return Device(kernels, self.nets, self._filters, flows, self._least_gain)

    def for_rehearsal(self) -> Self:
        """Return a model whose phases go by their flows whether it pays or not."""
        model = copy(self)
        model._least_gain = -float(1 << 40)  # more than a phase has
        if self._device is not None:
            model._device = copy(self._device)
            model._device.least_gain = model._least_gain
        return model

    def recorder(self) -> Recorder:
        """Return an encoder's end of a walk."""
        return _Borrower(self._fineness, self._least_gain)

    def reader(self, message: Message) -> Reader:
        """Return a decoder's end of a walk."""
        return _Lender(message, self._fineness)

    def macs_per_sample(self) -> dict[str, int]:
        """Return the multiplications that samples of each kind cost, each way."""
        costs = super().macs_per_sample()
        squares = sum(1 / 4 ** (level + 2) for level in range(FLOW_LEVELS))
        for name, group in self.couplings.items():
            costs[name] += round(sum(couplings.shape.macs() for couplings in group) * squares)
        return costs

    def known_answer(self) -> str:
        """Return what the networks make of `noise`; see `models.Model`."""
        digest = hashlib.blake2b(super().known_answer().encode(), digest_size=16)
        side, bits = 13, 10
        for couplings in (couplings for group in self.couplings.values() for couplings in group):
            channels = couplings.shape.state
            numbers = noise(side * side * (channels + 1)).reshape(side, side, channels + 1)[None]
            context = couplings.context((numbers[..., 1:] % 128 + int8.ZERO).astype(np.uint8))
            y = numbers[..., 0] % (2 * RANGE << bits)
            for layer in couplings.layers:
                digest.update(layer.answer(y, context, bits).astype("<i8").tobytes())
            tilts = couplings.tilts(context, y.shape)
            if tilts is not None:
                digest.update(tilts.astype("<i8").tobytes())
        return digest.hexdigest()


class _Borrower(Recorder):
    """The encoder's end, which pushes phases by their flows where there are bits to borrow."""

    def __init__(self, fineness: int, least_gain: float) -> None:
        super().__init__()
        self._fineness, self._least_gain = fineness, least_gain

    def phase(
        self,
        model: LogisticMixture,
        symbols: Int32,
        parameters: tuple[Int32, Int32, Int32],
        around: Surroundings | None,
    ) -> Int32:
        """Keep a phase; see `codec.Coder`."""
        if around is None:
            return self.code(model, symbols, *parameters)
        made = self._fineness, self._least_gain
        self._keep(partial(_find_phase, model, symbols, parameters, around, *made))
        return symbols


class _Phase:
    """A phase that is pushed the shorter way."""

    def __init__(
        self, intervals: Intervals, flow: PhaseFlow, steering: Steering, least_gain: float
    ) -> None:
        self._intervals, self._flow, self._steering = intervals, flow, steering
        self._least_gain = least_gain

    def push(self, message: Message, account: Account, frame: int) -> None:
        """Push the phase, and then which way it went."""
        way = self._push_flow(message, account, frame)
        if way == _BY_MIXTURE:
            self._intervals.push(message, account, frame)
        find_intervals(_WAYS, np.array([way], np.int32)).push(message, account, frame)

    def _push_flow(self, message: Message, account: Account, frame: int) -> int:
        """Push the phase by its flow where that is shorter and there are the bits it needs."""
        start, freq, _ = self._intervals
        # What lies deeper than a phase can reach is not copied for every one of them.
        words = 2 * freq.size + message.lanes
        while True:
            trial = message.copy(words)
            held = trial.bits
            try:
                cost = self._flow.push(trial, start, freq, self._steering)
                break
            except MessageExhausted:
                if words >= message.size:
                    return _BY_MIXTURE
                words *= 2
        if cost.ideal > self._intervals.ideal - self._least_gain:
            return _BY_MIXTURE
        lowest = message.bits - held + cost.lowest
        message.take_over(trial, words)
        account.bits_back(frame, message.bits, cost.ideal, cost.popped, lowest)
        return _BY_FLOW


def _find_phase(
    model: LogisticMixture,
    symbols: Int32,
    parameters: tuple[Int32, Int32, Int32],
    around: Surroundings,
    fineness: int,
    least_gain: float,
) -> _Phase:
    intervals = find_intervals(model, symbols, *parameters)
    return _Phase(intervals, _flow(model.precision, fineness), around.steering(), least_gain)


class _Lender(Reader):
    """The decoder's end, which pops phases by their flows and so gives back what they borrowed."""

    def __init__(self, message: Message, fineness: int) -> None:
        super().__init__(message)
        self._fineness = fineness

    def phase(
        self,
        model: LogisticMixture,
        symbols: Int32,
        parameters: tuple[Int32, Int32, Int32],
        around: Surroundings | None,
    ) -> Int32:
        """Pop a phase; see `codec.Coder`."""
        if around is None or int(_WAYS.pop(self._message, 1)[0]) == _BY_MIXTURE:
            return self.code(model, symbols, *parameters)
        popped = np.empty(symbols.size, dtype=np.int32)

        def find(u: Int64, part: slice) -> tuple[ArrayLike, ArrayLike]:
            known = tuple(parameter[part] for parameter in parameters)
            popped[part] = model.lookup(u, *known)
            return model.interval(popped[part], *known)

        _flow(model.precision, self._fineness).pop(self._message, find, around.steering())
        return popped


@cache
def _flow(precision: int, fineness: int) -> PhaseFlow:
    return PhaseFlow(precision, fineness, Uniform())


def coupling_shapes(config: dict[str, Any]) -> dict[str, CouplingShape]:
    """Return the couplings that a config asks for, by the name of the networks they go with.

    Raises:
        ModelError: The config is malformed.
    """
    try:
        if set(config) != {"video", "flow"}:
            raise ValueError(f"a table holds {sorted(config)}, not ['flow', 'video']")
        flow = config["flow"]
        if set(flow) - {"layers", "tilted"} != {"context", "width", "fineness"}:
            raise ValueError(f"a table holds {sorted(flow)}")
        for name, least, most in (
            ("context", 1, 256),
            ("width", 1, 256),
            ("fineness", MIN_FINENESS, MAX_FINENESS),
        ):
            if type(flow[name]) is not int or not least <= flow[name] <= most:
                raise ValueError(f"{name} is {flow[name]!r}, not in {least}..{most}")
        layers, tilted = AFFINE, flow.get("tilted", False)
        if "layers" in flow:
            layers = tuple(map(LayerShape.read, flow["layers"]))
        if type(tilted) is not bool or not 1 <= len(layers) <= MAX_LAYERS:
            raise ValueError(f"{len(layers)} layers, tilted {tilted!r}")
        return {
            name: CouplingShape(nets[0].width, flow["context"], flow["width"], layers, tilted)
            for name, nets in net_shapes(config["video"]).items()
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the model's config is malformed: {error}") from error


def _prefix(name: str, phase: int) -> str:
    """What the names of a coupling's tensors begin with."""
    return f"flows.{name}.{phase}."
