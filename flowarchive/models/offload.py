"""The two ends of a walk whose intervals and whose stack are a device's; see `codec`."""

from __future__ import annotations

from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowarchive.account import Account
from flowarchive.ans import Message
from flowarchive.codec import Intervals, Reader, Recorder
from flowarchive.device import Kernels
from flowarchive.entropy import LogisticMixture, sigmoid_table
from flowarchive.entropy.cumulative import RECIPROCALS

Int32 = NDArray[np.int32]


def _frozen() -> tuple[Int32, NDArray[np.int64]]:
    return sigmoid_table(), np.array(RECIPROCALS, dtype=np.int64)


def _support(model: LogisticMixture) -> tuple[int, int, int]:
    return model.low, model.high, model.precision


class DeviceRecorder(Recorder):
    """The encoder's end: mixtures' intervals, and every push, on a device.

    Args:
        kernels: The device's.
    """

    def __init__(self, kernels: Kernels) -> None:
        super().__init__()
        self._kernels = kernels

    def code(self, model: Any, symbols: Int32, *parameters: Any) -> Int32:
        """Keep the symbols' intervals; see `codec.Coder`."""
        if not isinstance(model, LogisticMixture):
            return super().code(model, symbols, *parameters)
        values, checked = model.checked(symbols, *parameters)
        self._keep(partial(self._find, model, values, checked))
        return symbols

    def _find(
        self, model: LogisticMixture, values: Int32, checked: tuple[Int32, Int32, Int32]
    ) -> Intervals:
        found = self._kernels.intervals(values, checked, _support(model), _frozen())
        return Intervals(*found, model.precision)

    def push(self, message: Message, account: Account) -> None:
        """Push all that was kept, the last first, a launch for each frame; forget it."""
        for frame, group in groupby(reversed(self._kept), key=lambda kept: kept[1]):
            found = [step.result() for step, _ in group]
            steps = [step for step in reversed(found) if isinstance(step, Intervals)]
            head, tail, size = self._kernels.push(message.head, message.tail, message.size, steps)
            message.head[:], message.tail, message.size = head, tail, size
            account.integer(frame, message.bits, sum(step.ideal for step in steps))
        self._kept.clear()


class DeviceReader(Reader):
    """The decoder's end: mixtures' symbols are found and popped on a device.

    Args:
        message: Gives the bits back; only its heads and its size change.
        kernels: The device's.
    """

    def __init__(self, message: Message, kernels: Kernels) -> None:
        super().__init__(message)
        self._kernels = kernels
        self._words = kernels.upload(message.tail[: message.size])

    def code(self, model: Any, symbols: Int32, *parameters: Any) -> Int32:
        """Pop as many symbols as there are; see `codec.Coder`."""
        if not isinstance(model, LogisticMixture):
            return super().code(model, symbols, *parameters)
        message = self._message
        _, checked = model.checked(np.full(symbols.size, model.low, np.int32), *parameters)
        popped, head, size = self._kernels.pop(
            message.head, self._words, message.size, checked, _support(model), _frozen()
        )
        message.commit(head, size)
        return np.asarray(popped, dtype=np.int32)
