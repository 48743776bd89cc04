"""Workers that meet at a device go together, and nobody waits for who has gone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock
from time import sleep

import pytest

from flowarchive.models.together import Together


def test_those_who_wait_go_together():
    """While one works, others wait; those that are alike go next, one failure is one's alone."""
    together, began, go = Together(most=3), Event(), Event()
    groups: list[list[int]] = []

    def work(items: list[int]) -> list[int]:
        groups.append(sorted(items))
        if items == [0]:
            began.set()
            assert go.wait(60)
        if 13 in items:
            raise ValueError("unlucky")
        return [10 * item for item in items]

    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(together.run, "a", 0, work)
        assert began.wait(60)
        others = [pool.submit(together.run, "a" if n < 4 else "b", n, work) for n in range(1, 6)]
        unlucky = [pool.submit(together.run, "c", n, work) for n in (13, 14)]
        while len(together._waiting) < 7:
            sleep(0.01)
        go.set()
        assert first.result() == 0
        assert [one.result() for one in others] == [10, 20, 30, 40, 50]
        assert unlucky[1].result() == 140
        with pytest.raises(ValueError, match="unlucky"):
            unlucky[0].result()
    assert groups[0] == [0]
    assert sorted(groups[1:]) == [[1, 2, 3], [4, 5], [13], [13, 14], [14]]


class CountedLock:
    """A lock that counts who has asked for it."""

    def __init__(self) -> None:
        self.asked, self._lock = 0, Lock()

    def __enter__(self) -> None:
        self.asked += 1
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, None])
def test_an_interruption_releases_those_who_wait(error):
    """They sleep until then; one of them goes on with what was taken along.

    A worker that is interrupted is so alone, and nothing is done twice for it. An exception, or a
    wrong number of results, does not leave anybody without an answer.
    """
    together, began, go = Together(most=4), Event(), Event()
    lock = together._free = CountedLock()
    done: list[int] = []

    def hold(items: list[int]) -> list[int]:
        began.set()
        assert go.wait(60)
        return items

    def work(items: list[int]) -> list[int]:
        if len(items) > 1 and not done:
            done.append(-1)
            if error is None:
                return items[1:]
            raise error
        done.extend(items)
        return items

    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(together.run, "a", 0, hold)
        assert began.wait(60)
        others = [pool.submit(together.run, "b", n, work) for n in range(1, 5)]
        while lock.asked < 5:
            sleep(0.01)
        sleep(0.1)
        assert lock.asked == 5
        go.set()
        assert first.result() == 0
        failures = [one.exception(60) for one in others]
    lost = [n for n, failure in enumerate(failures, 1) if failure is not None]
    assert len(lost) == (error in (KeyboardInterrupt, SystemExit))
    assert sorted(done) == [-1, *(n for n in range(1, 5) if n not in lost)]
    assert not together._waiting


def test_who_is_interrupted_while_waiting_asks_for_nothing():
    class Interrupted:
        def __enter__(self) -> None:
            raise KeyboardInterrupt

        def __exit__(self, *error: object) -> None:
            """Never entered."""

    together = Together()
    together._free = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        together.run("a", 1, list)
    assert not together._waiting
