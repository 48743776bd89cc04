"""Several chunks at a time, in order, with a bounded number under way."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def worker_count(jobs: int | None) -> int:
    """Return `jobs`, or the number of cores this process may use.

    Raises:
        ValueError: `jobs` is below 1.
    """
    if jobs is None:
        affinity = getattr(os, "sched_getaffinity", None)
        return len(affinity(0)) if affinity else os.cpu_count() or 1
    if jobs < 1:
        raise ValueError(f"{jobs} jobs are too few")
    return jobs


def threads_per_chunk(workers: int, has_memory: bool) -> int:
    """Return how many of the workers share one chunk.

    Long chunks of a model with memory are few, and a clip may be a single one of them.
    """
    return 2 if has_memory and workers > 1 else 1


class OrderedPool(Generic[T, R]):
    """Threads that apply a function to items and give the results back in the items' order.

    At most `jobs` + 1 items are under way, so memory stays bounded.

    Args:
        function: Runs in a worker thread.
        jobs: Worker threads, at least 1.
    """

    def __init__(self, function: Callable[[T], R], jobs: int) -> None:
        self._function, self._jobs = function, jobs
        self._pending: deque[Future[R]] = deque()
        self._executor = ThreadPoolExecutor(jobs, "flowarchive")

    def submit(self, item: T) -> Iterator[R]:
        """Take an item and yield the results that have to leave to make room for it."""
        self._pending.append(self._executor.submit(self._function, item))
        while len(self._pending) > self._jobs:
            yield self._pending.popleft().result()

    def drain(self) -> Iterator[R]:
        """Yield the results of all items that are under way."""
        while self._pending:
            yield self._pending.popleft().result()

    def close(self) -> None:
        """Drop what has not begun and wait for what has."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()


def ordered_map(function: Callable[[T], R], items: Sequence[T], jobs: int) -> Iterator[R]:
    """Yield function(item) for every item in order, up to `jobs` of them computed at a time."""
    pool = OrderedPool(function, max(1, min(jobs, len(items))))
    try:
        for item in items:
            yield from pool.submit(item)
        yield from pool.drain()
    finally:
        pool.close()
