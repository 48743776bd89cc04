"""The two ends of a walk on a device: intervals kept there to be pushed at last, or symbols popped.

A walk takes some chunks along, each with a message of its own; a launch serves all of them. What
the CPU codes, which is little, is kept between, in order, until everything is pushed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triton_kernels import flow, lengths, maps, mixture, rans
from triton_kernels.link import Link, lay_out
from triton_kernels.rans import Messages, push
from triton_kernels.steps import Arrays

_ONE = 1 << lengths.STEP_BITS


class Kept(NamedTuple):
    """Intervals of a chunk.

    Attributes:
        chunk: Whose they are.
        frame: For the account.
        begin: Where they begin among all that is on the device, or in `host`.
        size: How many.
        precision: Bits of their total mass.
        host: Left ends and widths that the CPU has found; None where the device has.
    """

    chunk: int
    frame: int
    begin: int
    size: int
    precision: int
    host: tuple[Tensor, Tensor] | None = None


class Phase(NamedTuple):
    """A phase of some chunks, each of which goes by its flow or under its mixtures.

    Attributes:
        jobs: The chunks, ascending, and their frames.
        start: Left ends of intervals, int32 [n], chunk after chunk.
        freq: Their widths, alike.
        precision: Bits of their total mass.
        flow: The flow.
        grid: Its tables.
        context: What steers it, of all planes.
        shape: (chunks, planes of each, rows, columns).
    """

    jobs: tuple[tuple[int, int], ...]
    start: Tensor
    freq: Tensor
    precision: int
    flow: flow.Flow
    grid: maps.Grid
    context: Tensor
    shape: tuple[int, int, int, int]

    @property
    def size(self) -> int:
        """Symbols of each chunk."""
        return self.start.numel() // len(self.jobs)


class Steering(NamedTuple):
    """The flow of a phase, and what it is steered by.

    Attributes:
        flow: The flow.
        grid: Its tables.
        states: Of the phase's samples, int8 [planes of all chunks, rows, columns, C].
    """

    flow: flow.Flow
    grid: maps.Grid
    states: Tensor


class Entry(NamedTuple):
    """What was pushed of a chunk's frame, in bits.

    Attributes:
        chunk: Whose it is.
        frame: Which one.
        height: Of the message afterwards.
        ideal: Code length.
        popped: What bits-back has popped; None where it did not.
        lowest: The least height on its way, alike.
    """

    chunk: int
    frame: int
    height: float
    ideal: float
    popped: float | None = None
    lowest: float | None = None


class Batch(NamedTuple):
    """Symbols of some chunks that are coded side by side.

    Attributes:
        jobs: Which chunks in ascending order, and which of their frames.
        read: Gives the symbols, where they are known.
        mixtures: Mean, scale and weight, int32 [n, K]; each chunk has as many in a row.
        support: Of all symbols.
    """

    jobs: Sequence[tuple[int, int]]
    read: Callable[[], Tensor]
    mixtures: Arrays
    support: mixture.Support

    @property
    def chunks(self) -> list[int]:
        """Which take part."""
        return [chunk for chunk, _ in self.jobs]


class End(Protocol):
    """One end of a walk."""

    def code(self, batch: Batch) -> Tensor:
        """Code symbols, and return them, int32 [n]."""

    def phase(self, batch: Batch, steering: Steering) -> Tensor:
        """Code a phase, each chunk's by its flow or under its mixtures; one bit says how.

        Args:
            batch: Its symbols.
            steering: Of the flow.

        Returns:
            The symbols, int32 [n].
        """


class Pusher:
    """The encoder's end.

    Args:
        tables: Of the entropy model.
        table: Of `lengths`.
        chunks: How many there are.
    """

    def __init__(self, tables: mixture.Tables, table: Tensor, chunks: int) -> None:
        self._tables, self._table = tables, table
        self._numbers = torch.arange(chunks + 1, device=table.device)
        self._found: list[tuple[Tensor, Tensor]] = []
        self._count = 0
        self._kept: list[Kept | Phase] = []

    def code(self, batch: Batch) -> Tensor:
        """Keep the symbols' intervals; see `End`."""
        symbols, *found = self._intervals(batch)
        self._found.append((found[0], found[1]))
        each = symbols.numel() // len(batch.jobs)
        for chunk, frame in batch.jobs:
            self._kept.append(Kept(chunk, frame, self._count, each, batch.support.precision))
            self._count += each
        return symbols

    def phase(self, batch: Batch, steering: Steering) -> Tensor:
        """Keep a phase; see `End`."""
        symbols, start, freq = self._intervals(batch)
        flow, grid, states = steering
        planes, rows, columns = states.shape[:3]
        shape = len(batch.jobs), planes // len(batch.jobs), rows, columns
        about = batch.support.precision, flow, grid
        self._kept.append(
            Phase(tuple(batch.jobs), start, freq, *about, flow.context(states), shape)
        )
        return symbols

    def _intervals(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Read symbols, and find the left ends and widths of their intervals."""
        symbols = batch.read()
        found = mixture.intervals(symbols, *batch.mixtures, batch.support, self._tables)
        return symbols, *found

    def keep(self, chunk: int, frame: int, start: Tensor, freq: Tensor, precision: int) -> None:
        """Keep what the CPU has found, int32 [n] each, not sent yet."""
        self._kept.append(Kept(chunk, frame, 0, len(start), precision, (start, freq)))

    def push(
        self,
        link: Link,
        head: NDArray[np.uint64],
        size: NDArray[np.int32],
        words: Sequence[NDArray[Any]],
        least_gain: float,
    ) -> tuple[NDArray[np.uint64], list[NDArray[np.uint32]], list[Entry]]:
        """Push all that was kept, the last first; what is kept in a row in one launch.

        Args:
            link: To the device.
            head: [chunks, lanes].
            size: Live words, [chunks].
            words: Of each chunk, uint32.
            least_gain: Bits that a flow has to save to be taken.

        Returns:
            Heads, live words, and what was pushed, in this order.
        """
        runs = self._runs()
        before = lay_out(words)
        table, bounds, intervals, begins = self._table_of(runs)
        heads, sizes, live, *sent = link.send(head, size, before, table, bounds, *intervals)
        segments, bounds_of, *last = sent
        start, freq = (
            torch.cat([*(pair[i] for pair in self._found), one]) for i, one in enumerate(last)
        )
        tail = live.new_zeros((len(size), before.shape[1] + self._room(runs, head.shape[1])))
        tail[:, : before.shape[1]] = live
        messages, notes = Messages(heads, tail, sizes), []
        for run, bound in zip(reversed(runs), reversed(bounds_of.unbind()), strict=True):
            if isinstance(run, Phase):
                notes += self._push_phase(messages, run, round(least_gain * _ONE))
            else:
                push(messages, start, freq, segments, bound)
                notes.append(lengths.heights(messages, self._table))
        ideal = lengths.code_lengths(freq, segments, self._table)
        found, done, bits, noted = link.fetch(heads, sizes, ideal, torch.stack(notes))
        (tails,) = link.fetch(tail[:, : max(int(done.max()), 1)])
        entries = _entries(runs, begins, bits / _ONE, noted / _ONE)
        live_words = [row[:n].view(np.uint32) for row, n in zip(tails, done, strict=True)]
        return found.view(np.uint64), live_words, entries

    def _runs(self) -> list[list[Kept] | Phase]:
        """What is pushed at once: a phase, or intervals between phases.

        Where there are phases there will be an account, so that of no chunk two frames go at once.
        """
        has_account = any(isinstance(kept, Phase) for kept in self._kept)
        runs: list[list[Kept] | Phase] = []
        frames: dict[int, int] = {}
        for kept in self._kept:
            if isinstance(kept, Phase):
                runs.append(kept)
                continue
            run = runs[-1] if runs else None
            another = has_account and frames.get(kept.chunk, kept.frame) != kept.frame
            if not isinstance(run, list) or another:
                run, frames = [], {}
                runs.append(run)
            run.append(kept)
            frames[kept.chunk] = kept.frame
        for run in runs:
            if isinstance(run, list):
                run.sort(key=lambda kept: kept.chunk)  # stable: in order of popping
        return runs

    def _table_of(
        self, runs: Sequence[list[Kept] | Phase]
    ) -> tuple[NDArray[Any], NDArray[Any], list[NDArray[Any]], list[int]]:
        """Return what `rans.push` asks for of all runs, and what the CPU has found.

        Returns:
            Segments int64 [s, 3], run after run and chunk after chunk; bounds int64
            [runs, chunks + 1]; left ends and widths int32 [n], which come after the device's; and
            of each run, where its segments begin.
        """
        rows: list[tuple[int, int, int]] = []
        bounds, begins, begin = [], [], self._count
        hosts: list[tuple[Tensor, Tensor]] = []
        for run in runs:
            begins.append(len(rows))
            plain = [] if isinstance(run, Phase) else run
            owners = [kept.chunk for kept in plain]
            bounds.append(len(rows) + np.searchsorted(owners, np.arange(len(self._numbers))))
            for kept in plain:
                rows.append((begin if kept.host else kept.begin, kept.size, kept.precision))
                if kept.host:
                    hosts.append(kept.host)
                    begin += kept.size
        empty = torch.empty(0, dtype=torch.int32)
        sides = [torch.cat([empty, *(pair[i] for pair in hosts)]).numpy() for i in range(2)]
        table = np.array(rows, dtype=np.int64).reshape(-1, 3)
        return table, np.array(bounds, dtype=np.int64), sides, begins

    def _room(self, runs: Sequence[list[Kept] | Phase], lanes: int) -> int:
        """Return how many words a tail may need for all that is pushed.

        A word an interval, for a phase goes the shorter way; a flow may need others while it is
        tried, which are those that its layers give back, and another row.
        """
        counts = [0] * (len(self._numbers) - 1)
        most = 0
        for run in runs:
            if isinstance(run, Phase):
                most = max(most, run.flow.words * run.size + lanes)
            for chunk, size in _sizes(run):
                counts[chunk] += size
        return max(counts) + most

    def _push_phase(self, messages: Messages, phase: Phase, least_gain: int) -> list[Tensor]:
        """Push a phase the shorter way where there are the bits it needs, and then which way.

        Returns:
            int64 [chunks] each: the way; then in steps the heights after the phase, what it took
            by its flow (see `flow.Cost`), by its mixtures, and the heights after its way.
        """
        turn = _turn(self._numbers, [chunk for chunk, _ in phase.jobs])
        taking, one = turn.diff(), torch.ones_like(self._numbers[1:])
        count = taking * phase.size
        segments = torch.stack([turn[:-1] * phase.size, count, one * phase.precision], 1)
        mixed = lengths.code_lengths(phase.freq, segments, self._table)
        logs = ((count * phase.precision) << lengths.STEP_BITS) - mixed
        # A flow reaches no deeper: a word a symbol for its place, what its layers take, and ahead
        # a word a lane.
        reach = (1 + phase.flow.words) * phase.size + 2 * messages.head.shape[1]
        below = torch.arange(-reach, 0, device=turn.device)
        top = (messages.size[:, None] + below).clamp(min=0)
        held = messages.tail.gather(1, top), messages.head.clone(), messages.size.clone()
        cost = phase.flow.push(
            messages, phase.start, phase.freq, logs, turn, phase.grid, phase.context, phase.shape
        )
        goes = (taking > 0) & (messages.size >= 0) & (cost.ideal <= mixed - least_gain)
        messages.tail.scatter_(
            1, top, torch.where(goes[:, None], messages.tail.gather(1, top), held[0])
        )
        messages.head.copy_(torch.where(goes[:, None], messages.head, held[1]))
        messages.size.copy_(torch.where(goes, messages.size, held[2]))
        between = lengths.heights(messages, self._table)
        segments[:, 1] = torch.where(goes, 0, count)
        push(messages, phase.start, phase.freq, segments, self._numbers)
        way = goes.int()
        ways = torch.stack([self._numbers[:-1], taking, one], 1)
        push(messages, way, torch.ones_like(way), ways, self._numbers)
        after = lengths.heights(messages, self._table)
        return [way.long() << lengths.STEP_BITS, between, *cost, mixed, after]


def _sizes(run: list[Kept] | Phase) -> list[tuple[int, int]]:
    """How many intervals of which chunk a run pushes, ways included."""
    if isinstance(run, Phase):
        return [(chunk, run.size + 1) for chunk, _ in run.jobs]
    return [(kept.chunk, kept.size) for kept in run]


def _entries(
    runs: Sequence[list[Kept] | Phase],
    begins: Sequence[int],
    ideal: NDArray[np.float64],
    noted: NDArray[np.float64],
) -> list[Entry]:
    """Say what was pushed, the last run first.

    Args:
        runs: All of them.
        begins: Where the segments of each begin.
        ideal: Code lengths of segments, in bits.
        noted: What was noted of the runs, the last first: heights, or what `_push_phase` gives.
    """
    entries: list[Entry] = []
    notes = iter(noted)
    for run, begin in zip(reversed(runs), reversed(begins), strict=True):
        height = next(notes)
        if not isinstance(run, Phase):
            for n, kept in enumerate(run, begin):
                entries.append(Entry(kept.chunk, kept.frame, height[kept.chunk], ideal[n]))
            continue
        way, (between, cost, popped, lowest, mixed, after) = height, (next(notes) for _ in range(6))
        for chunk, frame in run.jobs:
            plain = mixed[chunk]
            if way[chunk]:
                by_flow = between[chunk], cost[chunk], popped[chunk], lowest[chunk]
                entries.append(Entry(chunk, frame, *by_flow))
                plain = 0.0
            entries.append(Entry(chunk, frame, after[chunk], plain + 1))
    return entries


class Popper:
    """The decoder's end.

    Args:
        messages: Of all chunks; heads and sizes change.
        tables: Of the entropy model.

    Attributes:
        messages: As they are now.
        lowest: Their least sizes since it was set, int32 [chunks].
        largest: The largest size when they were set.
    """

    def __init__(self, messages: Messages, tables: mixture.Tables) -> None:
        self.messages, self._tables = messages, tables
        self._numbers = torch.arange(len(messages.size) + 1, device=messages.size.device)
        self.lowest, self.largest = messages.size.clone(), 0

    def code(self, batch: Batch) -> Tensor:
        """Pop symbols; see `End`. Chunks without a job pop none."""
        return self._pop(_turn(self._numbers, batch.chunks), batch)

    def phase(self, batch: Batch, steering: Steering) -> Tensor:
        """Pop a phase; see `End`. Both ways are gone, each with the messages that go it."""
        chunks, (flow, grid, states) = batch.chunks, steering
        turn = _turn(self._numbers, chunks)
        # Who does not take part pops half a symbol of two: nothing.
        taking = turn.diff().int()
        way = (self.messages.head[:, 0] & 1).int() * taking
        messages = rans.pop(self.messages, way[:, None], 2 - taking[:, None], 1)
        goes = way > 0
        # Whose size is -1 is left alone.
        by_flow = messages.forked()._replace(size=torch.where(goes, messages.size, -1))
        lowest = self.lowest.clone()
        planes, rows, columns = states.shape[:3]
        popped = flow.pop(
            by_flow, lowest, batch.mixtures, batch.support, self._tables, turn, grid,
            flow.context(states), (len(chunks), planes // len(chunks), rows, columns),
        )  # fmt: skip
        self.messages = messages._replace(size=torch.where(goes, -1, messages.size))
        plain = self._pop(turn, batch)
        self.messages = Messages(
            torch.where(goes[:, None], by_flow.head, self.messages.head),
            messages.tail,
            torch.where(goes, by_flow.size, self.messages.size),
        )
        self.lowest = torch.where(goes, lowest, self.lowest)
        if len(chunks) < len(goes):
            goes = torch.cat([goes[chunk : chunk + 1] for chunk in chunks])
        both = popped.view(len(chunks), -1), plain.view(len(chunks), -1)
        return torch.where(goes[:, None], *both).view(-1)

    def reserve(self, words: int) -> None:
        """Make room for words that flows push; the largest message has room for so many more."""
        tail, room = self.messages.tail, self.largest + words
        if tail.shape[1] < room:
            longer = tail.new_zeros((len(tail), room))
            longer[:, : tail.shape[1]] = tail
            self.messages = self.messages._replace(tail=longer)

    def _pop(self, turn: Tensor, batch: Batch) -> Tensor:
        """Pop symbols of those who take part under their mixtures."""
        each = batch.mixtures[0].shape[0] // len(batch.jobs)
        symbols, self.messages = rans.pop_symbols(
            self.messages, *batch.mixtures, turn * each, batch.support, self._tables
        )
        return symbols


def _turn(numbers: Tensor, chunks: Sequence[int]) -> Tensor:
    """Who takes part, see `maps`; `numbers` are 0 up to how many there are."""
    turn = torch.zeros_like(numbers)
    for chunk in chunks:
        turn += numbers > chunk
    return turn
