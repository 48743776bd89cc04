"""The continuous flow of a phase: from its symbols' intervals to uniform bits, and back.

    symbols, and their intervals under the phase's mixtures
        |  a place in each interval, popped: dequantization
    u in [0, 2**precision), by the mixture's cumulative, which is Flow++'s map
        |  logit
    y on the flow's grid
        |  couplings, which see the other parts of each square and the phase's state
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
from flowarchive.flows.couplings import MOVED, PARTS, Steering
from flowarchive.flows.maps import Affine, Base, Logit

Int64 = NDArray[np.int64]


class Cost(NamedTuple):
    """What coding a phase took and gave, in bits; for reports only.

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
        popped = float(np.log2(freq).sum())
        y = self._dequantizer.forward(message, self._coder, start, freq).reshape(steering.shape)
        lowest = message.bits
        ideal = _shrinks(self._logit.segments_of(y.reshape(-1))) - popped
        for n in range(len(MOVED)):
            for part, map in self._maps(n, y, steering):
                values = part.reshape(-1)
                ideal += _shrinks(map.segments(values))
                part[:] = self._coder.forward(message, values, map).reshape(part.shape)
            lowest = min(lowest, message.bits)
        self._base.push(message, y.reshape(-1))
        return Cost(ideal + self._base.bits(y.reshape(-1)), popped, lowest)

    def pop(self, message: Message, find: Find, steering: Steering) -> None:
        """Undo `push`.

        Args:
            message: See `push`.
            find: Is told each u and gives the interval that holds it, as `Dequantizer` asks for.
            steering: See `push`.

        Raises:
            MessageExhausted: The message holds too few bits.
        """
        y = self._base.pop(message, int(np.prod(steering.shape))).reshape(steering.shape)
        for n in reversed(range(len(MOVED))):
            for part, map in reversed(self._maps(n, y, steering)):
                part[:] = self._coder.inverse(message, part.reshape(-1), map).reshape(part.shape)
        self._dequantizer.inverse(message, self._coder, y.reshape(-1), find)

    def _maps(self, n: int, y: Int64, steering: Steering) -> list[tuple[Int64, Affine]]:
        """The parts of y that the n-th coupling moves, and their maps."""
        shifts, scales = steering.couplings.steer(n, y, steering.context, self._fineness)
        found = []
        for number, shift, scale in zip(MOVED[n], shifts, scales, strict=True):
            row, column = PARTS[number]
            part = y[:, row::2, column::2]
            _, h, w = part.shape
            shift, scale = (np.ascontiguousarray(a[:, :h, :w]).reshape(-1) for a in (shift, scale))
            found.append((part, Affine(shift, scale, self._fineness)))
        return found


def _shrinks(pieces: Segments) -> float:
    """What moving along some pieces costs, in bits."""
    return float((np.log2(pieces.w) - np.log2(pieces.v)).sum())
