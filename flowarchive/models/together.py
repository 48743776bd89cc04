"""Chunks that wait while a device is busy, and go together when it is free.

Workers pack and unpack chunks side by side, each in its thread. A device does as many at a launch
as there are: whoever finds it free takes all that wait and are alike, and the others find their
results. What comes out does not depend on who met whom.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from threading import Lock
from typing import Any, NamedTuple

MOST = 8
"""Chunks that go together: they share the memory of a device."""


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
        """
        mine = _Waiting(key, item, Future())
        with self._guard:
            self._waiting.append(mine)
        while not mine.done.done():
            with self._free:
                if not mine.done.done():
                    _do(self._take(key), work)
        return mine.done.result()

    def _take(self, key: Hashable) -> list[_Waiting]:
        taken: list[_Waiting] = []
        with self._guard:
            others: list[_Waiting] = []
            for one in self._waiting:
                alike = one.key == key and len(taken) < self._most
                (taken if alike else others).append(one)
            self._waiting = others
        return taken


def _do(taken: list[_Waiting], work: Callable[[list[Any]], Sequence[Any]]) -> None:
    """Set results, or failures: one that fails is none of the others' business."""
    try:
        results = work([one.item for one in taken])
    except BaseException as error:
        if len(taken) == 1:
            taken[0].done.set_exception(error)
            return
        for one in taken:
            _do([one], work)
        return
    for one, result in zip(taken, results, strict=True):
        one.done.set_result(result)
