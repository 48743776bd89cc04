"""The two ends of a walk on a device: intervals kept there to be pushed at last, or symbols popped.

A walk takes some chunks along, each with a message of its own; a launch serves all of them. What
the CPU codes, which is little, is kept between, in order, until everything is pushed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from triton_kernels import flow, mixture, rans


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
    """

    def __init__(self, messages: rans.Messages, tables: mixture.Tables) -> None:
        self.messages, self._tables = messages, tables
        self._numbers = torch.arange(len(messages.size) + 1, device=messages.size.device)
        self.lowest = messages.size.clone()

    def code(
        self,
        jobs: Sequence[tuple[int, int]],
        read: Callable[[], Tensor],
        mixtures: tuple[Tensor, Tensor, Tensor],
        support: mixture.Support,
    ) -> Tensor:
        """Pop symbols; see `End`. Chunks without a job pop none."""
        each = mixtures[0].shape[0] // len(jobs)
        bounds = torch.zeros_like(self._numbers)
        for chunk, _ in jobs:
            bounds += each * (self._numbers > chunk)
        symbols, self.messages = rans.pop_symbols(
            self.messages, *mixtures, bounds, support, self._tables
        )
        return symbols

    def pop_phase(
        self,
        chunks: Sequence[int],
        mixtures: tuple[Tensor, Tensor, Tensor],
        support: mixture.Support,
        phase: flow.Flow,
        grid: flow.Grid,
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
        device = states.device
        ways = self.messages.head[:, :1] & 1
        found = rans.pop(self.messages, ways.int(), torch.ones_like(ways, dtype=torch.int32), 1)
        by_flow = ways.tolist()
        count, planes = mixtures[0].shape[0] // len(chunks), len(states) // len(chunks)
        symbols = torch.empty((len(chunks), count), dtype=torch.int32, device=device)
        for way in range(2):
            own = [n for n, chunk in enumerate(chunks) if by_flow[chunk][0] == way]
            if not own:
                continue
            at = torch.tensor(own, device=device)
            rows = torch.tensor([chunks[n] for n in own], device=device)
            messages = rans.Messages(*(tensor[rows] for tensor in found))
            mean, scale, weight = (
                p.view(len(chunks), count, p.shape[1])[at].flatten(0, 1) for p in mixtures
            )
            if way:
                seen = states.unflatten(0, (len(chunks), planes))[at].flatten(0, 1)
                symbols[at], messages = self._pop_flow(
                    messages, rows, (mean, scale, weight), support, phase, grid, seen
                )
            else:
                bounds = torch.arange(len(own) + 1, device=device) * count
                popped, messages = rans.pop_symbols(
                    messages, mean, scale, weight, bounds, support, self._tables
                )
                symbols[at] = popped.view(len(own), count)
            self.messages.head[rows], self.messages.size[rows] = messages.head, messages.size
        return symbols.view(-1)

    def _pop_flow(
        self,
        messages: rans.Messages,
        rows: Tensor,
        mixtures: tuple[Tensor, Tensor, Tensor],
        support: mixture.Support,
        phase: flow.Flow,
        grid: flow.Grid,
        states: Tensor,
    ) -> tuple[Tensor, rans.Messages]:
        popped, messages, lowest = phase.pop(
            messages, mixtures, support, self._tables, grid, phase.context(states),
            (states.shape[0], states.shape[1], states.shape[2]),
        )  # fmt: skip
        self.messages.tail[rows] = messages.tail
        self.lowest[rows] = torch.minimum(self.lowest[rows], lowest)
        return popped.view(len(rows), -1), messages
