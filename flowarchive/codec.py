"""The two ends of one walk: what a decoder pops, an encoder keeps and pushes the other way round.

A model of sequences walks through a chunk once, in the order of decoding, whichever way the bits
go. At each step it hands symbols and their distribution to one of two ends:

    Recorder    knows the symbols: keeps their intervals, and at last pushes them backwards
    Reader      knows none of them: pops them

so that whatever the walk learns from symbols it learns alike on both sides.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flowarchive import motion
from flowarchive.account import Account
from flowarchive.ans import Message
from flowarchive.entropy.plain import code_length

Int32 = NDArray[np.int32]
Uint32 = NDArray[np.uint32]


class Coder(Protocol):
    """One end of a walk."""

    def code(self, model: Any, symbols: Int32, *parameters: Any) -> Int32:
        """Code one array.

        Args:
            model: An entropy model.
            symbols: int32 [n]; a `Reader` looks at its size alone.
            parameters: What the entropy model asks for.

        Returns:
            The symbols.
        """

    def field(
        self,
        field: motion.Field | None,
        luma_shape: tuple[int, int],
        hints: motion.Field,
        model: motion.VectorModel,
    ) -> motion.Field:
        """Code one field of motion, which a `Reader` does without, and return it."""


class Recorder:
    """The encoder's end.

    Attributes:
        frame: Number of the frame that is being coded, for the account.
    """

    def __init__(self) -> None:
        self.frame = 0
        self._kept: list[tuple[int, Uint32, Uint32, int]] = []

    def code(self, model: Any, symbols: Int32, *parameters: Any) -> Int32:
        """Keep the symbols' intervals; see `Coder`."""
        start, freq = model.interval(symbols, *parameters)
        self._keep(start, freq, model.precision)
        return symbols

    def field(
        self,
        field: motion.Field | None,
        luma_shape: tuple[int, int],
        hints: motion.Field,
        model: motion.VectorModel,
    ) -> motion.Field:
        """Keep a field's intervals; see `Coder`."""
        assert field is not None
        self._keep(*motion.encode_field(field, hints, model), motion.PRECISION)
        return field

    def _keep(self, start: Uint32, freq: Uint32, precision: int) -> None:
        self._kept.append((self.frame, start, freq, precision))

    def push(self, message: Message, account: Account) -> None:
        """Push all that was kept, the last first, enter it as the integer family's, forget it."""
        while self._kept:
            frame, start, freq, precision = self._kept.pop()
            message.push(start, freq, precision)
            account.integer(frame, message.bits, code_length(freq, 1 << precision))


class Reader:
    """The decoder's end.

    Args:
        message: Gives the bits back.
    """

    def __init__(self, message: Message) -> None:
        self._message = message

    def code(self, model: Any, symbols: Int32, *parameters: Any) -> Int32:
        """Pop as many symbols as there are; see `Coder`."""
        popped: Int32 = model.pop(self._message, *(parameters or (symbols.size,)))
        return popped

    def field(
        self,
        field: motion.Field | None,
        luma_shape: tuple[int, int],
        hints: motion.Field,
        model: motion.VectorModel,
    ) -> motion.Field:
        """Pop a field; see `Coder`."""
        return motion.pop_field(self._message, luma_shape, hints, model)
