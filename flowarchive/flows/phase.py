"""The continuous flow of a phase: from its symbols' intervals to uniform bits, and back.

    symbols, and their intervals under the phase's mixtures
        |  a place in each interval, popped: dequantization
    u in [0, 2**precision), by the mixture's cumulative, which is Flow++'s map
        |  logit
    y on the flow's grid
        |  layers, couplings mostly, which see the other parts of squares and the phase's state
    y
        |  a logistic base
    bits

Couplings that do nothing make a flow that costs what the mixtures say. Those that have learned
something let neighbors of one phase, which mixtures take for independent, tell of each other.

References:
    Ho, Chen, Srinivas, Duan, Abbeel, "Flow++", 2019, arXiv:1902.00275.
    Ho, Lohn, Abbeel, "Compression with flows via local bits-back coding", 2019, arXiv:1905.08500.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowarchive.ans import Message
from flowarchive.bitsback import Dequantizer, Find, LocalCoder, Segments
from flowarchive.flows.couplings import Steering
from flowarchive.flows.layers import Step, part_of
from flowarchive.flows.maps import Base, Logit
from flowarchive.lengths import log2_sum

Int64 = NDArray[np.int64]


class Cost(NamedTuple):
    """What coding a phase took and gave, in bits, as `lengths` sums them.

    Attributes:
        ideal: -log2 p of the symbols by the flow.
        popped: What dequantization took from the message.
        lowest: The message's least height on the way.
    """

    ideal: float
    popped: float
    lowest: float


class PhaseFlow:
    """The flows of phases, on a stack.

    Args:
        precision: Of the symbols' intervals.
        fineness: Of the flow's grid.
        coder: Moves elements along maps.
    """

    def __init__(self, precision: int, fineness: int, coder: LocalCoder) -> None:
        logit = Logit(precision, fineness)
        self._fineness, self._coder, self._logit = fineness, coder, logit
        self._dequantizer, self._base = Dequantizer(logit), Base(logit)

    def push(
        self, message: Message, start: NDArray[Any], freq: NDArray[Any], steering: Steering
    ) -> Cost:
        """Code symbols, with bits of the message that come back when they are popped.

        Args:
            message: Gives and takes bits; unspecified if this raises.
            start: Left ends of the symbols' intervals, integers [n].
            freq: Their widths, alike.
            steering: Of the phase.

        Raises:
            MessageExhausted: The message holds too few bits.
        """
        tilts, held = _tilts(steering), message.bits
        y = self._dequantizer.forward(message, self._coder, start, freq, tilts)
        lowest = message.bits
        shrinks = _shrinks(self._logit.segments_of(y))
        popped = log2_sum(freq) if tilts is None else held - lowest + shrinks
        cost, least = self.forward(message, y.reshape(steering.shape), steering)
        self._base.push(message, y)
        ideal = shrinks - popped + cost + self._base.bits(y)
        return Cost(ideal, popped, min(lowest, least))

    def pop(self, message: Message, find: Find, steering: Steering) -> None:
        """Undo `push`.

        Args:
            message: See `push`.
            find: Is told each u and gives the interval that holds it, as `Dequantizer` asks for.
            steering: See `push`.

        Raises:
            MessageExhausted: The message holds too few bits.
        """
        y = self._base.pop(message, int(np.prod(steering.shape)))
        self.inverse(message, y.reshape(steering.shape), steering)
        self._dequantizer.inverse(message, self._coder, y, find, _tilts(steering))

    def forward(self, message: Message, y: Int64, steering: Steering) -> tuple[float, float]:
        """Move samples by every layer.

        Args:
            message: See `push`.
            y: On the flow's grid, int64 [N, rows, columns]; moved in place.
            steering: See `push`.

        Returns:
            -log2 of the derivatives, and the message's least height on the way.
        """
        bits, lowest = 0.0, message.bits
        for step in _steps(steering):
            for part, map in step.maps(y, steering.context, self._fineness):
                place = part_of(y, part)
                values = place.reshape(-1)
                bits += _shrinks(map.segments(values))
                place[:] = self._coder.forward(message, values, map).reshape(place.shape)
            lowest = min(lowest, message.bits)
        return bits, lowest

    def inverse(self, message: Message, y: Int64, steering: Steering) -> None:
        """Undo `forward`, also what it did to the message."""
        for step in reversed(_steps(steering)):
            for part, map in reversed(step.maps(y, steering.context, self._fineness)):
                place = part_of(y, part)
                moved = self._coder.inverse(message, place.reshape(-1), map)
                place[:] = moved.reshape(place.shape)


def _steps(steering: Steering) -> list[Step]:
    return [step for layer in steering.couplings.layers for step in layer.steps]


def _tilts(steering: Steering) -> Int64 | None:
    tilts = steering.couplings.tilts(steering.context, steering.shape)
    return None if tilts is None else tilts.reshape(-1)


def _shrinks(pieces: Segments) -> float:
    """What moving along some pieces costs, in bits."""
    return log2_sum(pieces.w) - log2_sum(pieces.v)
