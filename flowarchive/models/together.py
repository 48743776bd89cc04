"""Chunks that wait while a device is busy, and go together when it is free.

Workers pack and unpack chunks side by side, each in its thread. A device does as many at a launch
as there are: whoever finds it free takes all that wait and are alike, and the others find their
results. What comes out does not depend on who met whom.

Who waits sleeps on a lock. An exception that one item raises is that item's alone; an interruption
is that of the thread it hits, and what it had taken along is left to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowarchive.ans import Message

MOST = 8
"""Chunks that go together: they share the memory of a device."""


def side_by_side(
    messages: Sequence[Message],
) -> tuple[NDArray[np.uint64], NDArray[np.int32], list[NDArray[np.uint32]]]:
    """Return heads [chunks, lanes], sizes [chunks] and live words of messages, for a device."""
    sizes = np.array([message.size for message in messages], dtype=np.int32)
    words = [message.tail[: message.size] for message in messages]
    return np.stack([message.head for message in messages]), sizes, words


class _Waiting(NamedTuple):
    """Work that nobody has begun."""

    key: Hashable
    item: Any
    done: Future[Any]


class Together:
    """One at a time, but as many together as there are.

    Args:
        most: How many may go together.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._free, self._guard = Lock(), Lock()
        self._waiting: list[_Waiting] = []

    def run(self, key: Hashable, item: Any, work: Callable[[list[Any]], Sequence[Any]]) -> Any:
        """Do work on an item, with others of the same key that wait.

        Args:
            key: What has to be alike.
            item: What is worked on.
            work: Takes items and gives as many results; after a failure, each alone again.

        Returns:
            The item's result.

        Raises:
            Exception: Whatever `work` raises for the item alone.
        """
        mine = _Waiting(key, item, Future())
        with self._guard:
            self._waiting.append(mine)
        try:
            while not mine.done.done():
                with self._free:
                    if not mine.done.done():
                        self._go(mine, work)
        finally:  # whoever was interrupted while it waited asks for nothing any more
            self._put_back([], mine)
        return mine.done.result()

    def _go(self, mine: _Waiting, work: Callable[[list[Any]], Sequence[Any]]) -> None:
        taken: list[_Waiting] = []
        try:
            taken += self._take(mine.key)
            _do(taken, work)
        except BaseException:
            self._put_back([one for one in taken if not one.done.done()], mine)
            raise

    def _take(self, key: Hashable) -> list[_Waiting]:
        taken: list[_Waiting] = []
        with self._guard:
            others: list[_Waiting] = []
            for one in self._waiting:
                alike = one.key == key and len(taken) < self._most
                (taken if alike else others).append(one)
            self._waiting = others
        return taken

    def _put_back(self, taken: Sequence[_Waiting], mine: _Waiting) -> None:
        """Let others have what was taken, but for one's own."""
        with self._guard:
            self._waiting = [one for one in (*taken, *self._waiting) if one is not mine]


def _do(taken: list[_Waiting], work: Callable[[list[Any]], Sequence[Any]]) -> None:
    """Set results, or failures: one that fails is none of the others' business."""
    try:
        done = list(zip(taken, work([one.item for one in taken]), strict=True))
    except Exception as error:
        if len(taken) == 1:
            taken[0].done.set_exception(error)
            return
        for one in taken:
            _do([one], work)
        return
    for one, result in done:
        one.done.set_result(result)
