"""The two ends of a walk on a device: intervals kept there to be pushed at last, or symbols popped.

A walk takes some chunks along, each with a message of its own; a launch serves all of them. What
the CPU codes, which is little, is kept between, in order, until everything is pushed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from triton_kernels import flow, maps, mixture, rans


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


class End(Protocol):
    """One end of a walk."""

    def code(
        self,
        jobs: Sequence[tuple[int, int]],
        read: Callable[[], Tensor],
        mixtures: tuple[Tensor, Tensor, Tensor],
        support: mixture.Support,
    ) -> Tensor:
        """Code symbols of some chunks.

        Args:
            jobs: Which chunks in ascending order, and which of their frames.
            read: Gives the symbols, where they are known.
            mixtures: Mean, scale and weight, int32 [n, K]; each chunk has as many in a row.
            support: Of all symbols.

        Returns:
            int32 [n].
        """


class Pusher:
    """The encoder's end.

    Args:
        tables: Of the entropy model.
    """

    def __init__(self, tables: mixture.Tables) -> None:
        self._tables = tables
        self._found: list[tuple[Tensor, Tensor]] = []
        self._count = 0
        self.kept: list[Kept] = []

    def code(
        self,
        jobs: Sequence[tuple[int, int]],
        read: Callable[[], Tensor],
        mixtures: tuple[Tensor, Tensor, Tensor],
        support: mixture.Support,
    ) -> Tensor:
        """Keep the symbols' intervals; see `End`."""
        symbols = read()
        self._found.append(mixture.intervals(symbols, *mixtures, support, self._tables))
        each = symbols.numel() // len(jobs)
        for chunk, frame in jobs:
            self.kept.append(Kept(chunk, frame, self._count, each, support.precision))
            self._count += each
        return symbols

    def keep(self, chunk: int, frame: int, start: Tensor, freq: Tensor, precision: int) -> None:
        """Keep what the CPU has found, int32 [n] each, not sent yet."""
        self.kept.append(Kept(chunk, frame, 0, len(start), precision, (start, freq)))

    def intervals(self, start: Tensor, freq: Tensor) -> tuple[Tensor, Tensor]:
        """Return all intervals, the CPU's at the end."""
        pairs = [*self._found, (start, freq)]
        return torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])

    def table(self, chunks: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what `rans.push` asks for of all that was kept, and the CPU's intervals.

        Returns:
            Segments int64 [s, 3], chunk after chunk; bounds int64 [chunks + 1]; left ends and
            widths int32 [n]. All on the host.
        """
        ordered = sorted(self.kept, key=lambda kept: kept.chunk)  # stable: in order of popping
        hosts = [kept.host for kept in ordered if kept.host is not None]
        begin, rows = self._count, []
        for kept in ordered:
            rows.append((begin if kept.host else kept.begin, kept.size, kept.precision))
            begin += kept.size if kept.host else 0
        self.kept = ordered
        owners = torch.tensor([kept.chunk for kept in ordered])
        bounds = torch.searchsorted(owners, torch.arange(chunks + 1))
        empty = torch.empty(0, dtype=torch.int32)
        start, freq = (torch.cat([empty, *(pair[i] for pair in hosts)]) for i in range(2))
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, 3), bounds, start, freq


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

    def __init__(self, messages: rans.Messages, tables: mixture.Tables) -> None:
        self.messages, self._tables = messages, tables
        self._numbers = torch.arange(len(messages.size) + 1, device=messages.size.device)
        self.lowest, self.largest = messages.size.clone(), 0

    def code(
        self,
        jobs: Sequence[tuple[int, int]],
        read: Callable[[], Tensor],
        mixtures: tuple[Tensor, Tensor, Tensor],
        support: mixture.Support,
    ) -> Tensor:
        """Pop symbols; see `End`. Chunks without a job pop none."""
        return self._pop(self._turn([chunk for chunk, _ in jobs]), len(jobs), mixtures, support)

    def pop_phase(
        self,
        chunks: Sequence[int],
        mixtures: tuple[Tensor, Tensor, Tensor],
        support: mixture.Support,
        phase: flow.Flow,
        grid: maps.Grid,
        states: Tensor,
    ) -> Tensor:
        """Pop a phase of some chunks, each by its flow or under its mixtures, as its bits say.

        Args:
            chunks: Ascending.
            mixtures: As in `code`.
            support: As in `code`.
            phase: The flow.
            grid: Its tables.
            states: Of the phase's samples, int8 [planes of all chunks, rows, columns, C].

        Returns:
            int32 [n].
        """
        # Who does not take part pops half a symbol of two: nothing.
        turn = self._turn(chunks)
        taking = turn.diff()[:, None].int()
        ways = (self.messages.head[:, :1] & 1).int()
        self.messages = rans.pop(self.messages, ways * taking, 2 - taking, 1)
        found = ways.flatten().tolist()
        count, planes = mixtures[0].shape[0] // len(chunks), len(states) // len(chunks)
        symbols = torch.empty((len(chunks), count), dtype=torch.int32, device=states.device)
        for way in range(2):
            own = [n for n, chunk in enumerate(chunks) if found[chunk] == way]
            if not own:
                continue
            all_of_them = len(own) == len(chunks)
            at = slice(None) if all_of_them else torch.tensor(own, device=states.device)
            turn = self._turn([chunks[n] for n in own])
            mean, scale, weight = (
                values.unflatten(0, (len(chunks), count))[at].flatten(0, 1) for values in mixtures
            )
            if way:
                seen = states.unflatten(0, (len(chunks), planes))[at].flatten(0, 1)
                popped = phase.pop(
                    self.messages, self.lowest, (mean, scale, weight), support, self._tables, turn,
                    grid, phase.context(seen), (len(own), planes, *states.shape[1:3]),
                )  # fmt: skip
            else:
                popped = self._pop(turn, len(own), (mean, scale, weight), support)
            symbols[at] = popped.view(len(own), count)
        return symbols.view(-1)

    def reserve(self, words: int) -> None:
        """Make room for words that flows push; the largest message has room for so many more."""
        tail, room = self.messages.tail, self.largest + words
        if tail.shape[1] < room:
            longer = tail.new_zeros((len(tail), room))
            longer[:, : tail.shape[1]] = tail
            self.messages = self.messages._replace(tail=longer)

    def _turn(self, chunks: Sequence[int]) -> Tensor:
        """Who takes part; see `maps`."""
        turn = torch.zeros_like(self._numbers)
        for chunk in chunks:
            turn += self._numbers > chunk
        return turn

    def _pop(
        self,
        turn: Tensor,
        taking: int,
        mixtures: tuple[Tensor, Tensor, Tensor],
        support: mixture.Support,
    ) -> Tensor:
        """Pop symbols of those who take part under their mixtures."""
        each = mixtures[0].shape[0] // taking
        symbols, self.messages = rans.pop_symbols(
            self.messages, *mixtures, turn * each, support, self._tables
        )
        return symbols
