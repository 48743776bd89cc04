"""The two ends of one walk: what a decoder pops, an encoder keeps and pushes the other way round.

A model of sequences walks through a chunk once, in the order of decoding, whichever way the bits
go. At each step it hands symbols and their distribution to one of two ends:

    Recorder    knows the symbols: keeps their intervals, and at last pushes them backwards
    Reader      knows none of them: pops them

so that whatever the walk learns from symbols it learns alike on both sides.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from flowarchive import motion
from flowarchive.account import Account
from flowarchive.ans import Message
from flowarchive.entropy.plain import code_length

if TYPE_CHECKING:
    from flowarchive.entropy import LogisticMixture
    from flowarchive.flows.couplings import Surroundings

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

    def phase(
        self,
        model: LogisticMixture,
        symbols: Int32,
        parameters: tuple[Int32, Int32, Int32],
        around: Surroundings | None,
    ) -> Int32:
        """Code one phase of a level, by its flow where there is one and where that is shorter.

        Args:
            model: The mixtures' model.
            symbols: See `code`.
            parameters: Mean, scale and weight.
            around: What the flow has to know; None where there is no flow.

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

    def beside(self) -> Coder | None:
        """Return an end for what comes next, while this one is used for what comes after that.

        A `Reader` returns None: it has to wait.
        """


class Step(Protocol):
    """Something that is kept until it can be pushed."""

    def push(self, message: Message, account: Account, frame: int) -> None:
        """Push it, and enter it into the account of a frame."""


class Intervals(NamedTuple):
    """Symbols' intervals, which the integer family pushes.

    Attributes:
        start: Left ends, uint32 [n].
        freq: Widths, uint32 [n].
        precision: Bits of the total mass.
    """

    start: Uint32
    freq: Uint32
    precision: int

    @property
    def ideal(self) -> float:
        """Their code length."""
        return code_length(self.freq, 1 << self.precision)

    def push(self, message: Message, account: Account, frame: int) -> None:
        """Push them; see `Step`."""
        message.push(*self)
        account.integer(frame, message.bits, self.ideal)


def find_intervals(model: Any, symbols: Int32, *parameters: Any) -> Intervals:
    """Return the intervals of symbols under an entropy model."""
    start, freq = model.interval(symbols, *parameters)
    return Intervals(start, freq, model.precision)


class Recorder:
    """The encoder's end.

    Attributes:
        frame: Number of the frame that is being coded, for the account.
        executor: Finds intervals while the walk goes on; None for at once.
    """

    def __init__(self) -> None:
        self.frame = 0
        self.executor: Executor | None = None
        self._kept: list[tuple[Future[Step], int] | Recorder] = []

    def code(self, model: Any, symbols: Int32, *parameters: Any) -> Int32:
        """Keep the symbols' intervals; see `Coder`."""
        self._keep(partial(find_intervals, model, symbols, *parameters))
        return symbols

    def phase(
        self,
        model: LogisticMixture,
        symbols: Int32,
        parameters: tuple[Int32, Int32, Int32],
        around: Surroundings | None,
    ) -> Int32:
        """Keep a phase; see `Coder`."""
        return self.code(model, symbols, *parameters)

    def field(
        self,
        field: motion.Field | None,
        luma_shape: tuple[int, int],
        hints: motion.Field,
        model: motion.VectorModel,
    ) -> motion.Field:
        """Keep a field's intervals; see `Coder`."""
        assert field is not None
        start, freq = motion.encode_field(field, hints, model)
        self._keep(partial(Intervals, start, freq, motion.PRECISION))
        return field

    def beside(self) -> Recorder:
        """Return an end for what comes next, which another thread may go on with; see `Coder`."""
        other = copy(self)
        other._kept = []
        self._kept.append(other)
        return other

    def _keep(self, find: Callable[[], Step]) -> None:
        """Keep what is found while the walk goes on."""
        if self.executor is None:
            found: Future[Step] = Future()
            found.set_result(find())
        else:
            found = self.executor.submit(find)
        self._kept.append((found, self.frame))

    def push(self, message: Message, account: Account) -> None:
        """Push all that was kept, the last first, and forget it."""
        while self._kept:
            kept = self._kept.pop()
            if isinstance(kept, Recorder):
                kept.push(message, account)
            else:
                kept[0].result().push(message, account, kept[1])


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

    def beside(self) -> None:
        """Return nothing; see `Coder`."""

    def phase(
        self,
        model: LogisticMixture,
        symbols: Int32,
        parameters: tuple[Int32, Int32, Int32],
        around: Surroundings | None,
    ) -> Int32:
        """Pop a phase; see `Coder`."""
        return self.code(model, symbols, *parameters)

    def field(
        self,
        field: motion.Field | None,
        luma_shape: tuple[int, int],
        hints: motion.Field,
        model: motion.VectorModel,
    ) -> motion.Field:
        """Pop a field; see `Coder`."""
        return motion.pop_field(self._message, luma_shape, hints, model)
