"""Dequantization by bits-back: a place in a symbol's interval, popped when the symbol is coded.

A symbol's interval [start, start + freq) of 2**precision is a cell of the uniform distribution of
u. Bits of the stack choose u in it, a map such as `flows.Logit` takes u to the flow's own grid, and
the decoder, having found the symbol from u, pushes the choice back. A choice that is uniform makes
a flow that does nothing cost what the symbols' own model says.

A *tilt* makes the choice lean to one side: over eight equal parts of the interval the density is
exp(tilt * k / 16), tilt in -8..8. It pays where a flow thinks one side of the interval likelier.

References:
    Ho, Chen, Srinivas, Duan, Abbeel, "Flow++", 2019, arXiv:1902.00275, for dequantization by a
    learned density; Ho, Lohn, Abbeel, 2019, arXiv:1905.08500, for its coding.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, localcontext
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowarchive.ans import Message, pop_lane, pop_uniform_lane, push_lane, push_uniform_lane
from flowarchive.bitsback.local import LocalCoder, Map
from flowarchive.errors import InvalidInterval
from flowarchive.loops import compiled

Int64 = NDArray[np.int64]
Uint32 = NDArray[np.uint32]
Uint64 = NDArray[np.uint64]

TILT_MAX = 8
TILT_PARTS = 8
TILT_BITS = 12
TILT_UNIT = 16
"""A tilt of 16 would multiply the density by e from one part to the next."""

TILT_LEAST = 256
"""Intervals with a smaller freq are never tilted."""

# Elements between whose places and whose steps along the map nothing else is coded, so that only
# their bits are in the air. A multiple of every lane count.
_BLOCK = 1 << 12

Find = Callable[[Int64, slice], tuple[ArrayLike, ArrayLike]]
"""Gives (start, freq) of the intervals that hold u, int64 [m], of a part of the elements."""


@cache
def tilt_masses() -> Int64:
    """Return the frozen masses of the parts: at least 1, their sum 2**12.

    Returns:
        int64 [17, 8], row tilt + 8, read-only.
    """
    rows = []
    with localcontext() as context:
        context.prec = 40
        for tilt in range(-TILT_MAX, TILT_MAX + 1):
            shares = [(Decimal(tilt * k) / TILT_UNIT).exp() for k in range(TILT_PARTS)]
            room = (1 << TILT_BITS) - TILT_PARTS
            masses = [1 + int(room * share / sum(shares)) for share in shares]
            masses[0 if tilt < 0 else -1] += (1 << TILT_BITS) - sum(masses)
            rows.append(masses)
    table = np.array(rows, dtype=np.int64)
    table.setflags(write=False)
    return table


@cache
def tilt_starts() -> Int64:
    """Return the cumulative masses, int64 [17, 9]."""
    return np.pad(np.cumsum(tilt_masses(), axis=1), ((0, 0), (1, 0)))


class Dequantizer:
    """Moves symbols, by way of a place in their intervals, to the grid of a flow.

    Attributes:
        map: From u in [0, 2**precision) to the flow's grid.
    """

    def __init__(self, map: Map) -> None:
        self.map = map

    def forward(
        self,
        message: Message,
        coder: LocalCoder,
        start: ArrayLike,
        freq: ArrayLike,
        tilt: ArrayLike | None = None,
    ) -> Int64:
        """Choose a place in each interval and move it along the map.

        Args:
            message: Gives the bits that choose; unspecified if this raises MessageExhausted.
            coder: Moves u along the map.
            start: Left ends, integers [n].
            freq: Widths, integers [n], at least 1.
            tilt: Integers [n] in -8..8; zero where None.

        Returns:
            int64 [n], on the map's image.

        Raises:
            MessageExhausted: The message holds too few bits.
            ValueError: Shapes or ranges are wrong.
        """
        starts, freqs = np.asarray(start, dtype=np.int64), np.asarray(freq, dtype=np.int64)
        tilts = _tilts(tilt, starts.size)
        y = np.empty(starts.size, dtype=np.int64)
        for part in reversed(_parts(starts.size)):
            u = starts[part] + pop_places(message, freqs[part], tilts[part])
            y[part] = coder.forward(message, u, self.map)
        return y

    def inverse(
        self,
        message: Message,
        coder: LocalCoder,
        y: ArrayLike,
        find: Find,
        tilt: ArrayLike | None = None,
    ) -> Int64:
        """Move back along the map, find the symbols' intervals and push the places in them.

        Args:
            message: Takes the bits back.
            coder: As for `forward`.
            y: Integers [n] on the map's image.
            find: Knows the intervals.
            tilt: As for `forward`.

        Returns:
            u, int64 [n] in [0, 2**precision).

        Raises:
            MessageExhausted: The message holds too few bits.
            InvalidInterval: An interval does not hold its u.
        """
        values = np.asarray(y, dtype=np.int64)
        tilts = _tilts(tilt, values.size)
        u = np.empty(values.size, dtype=np.int64)
        for part in _parts(values.size):
            u[part] = coder.inverse(message, values[part], self.map)
            start, freq = (np.asarray(a, dtype=np.int64) for a in find(u[part], part))
            push_places(message, u[part] - start, freq, tilts[part])
        return u


def _parts(count: int) -> list[slice]:
    return [slice(i, min(i + _BLOCK, count)) for i in range(0, count, _BLOCK)]


def _tilts(tilt: ArrayLike | None, count: int) -> Int64:
    if tilt is None:
        return np.zeros(count, dtype=np.int64)
    tilts = np.ascontiguousarray(tilt, dtype=np.int64)
    if tilts.shape != (count,) or (count and np.abs(tilts).max() > TILT_MAX):
        raise ValueError(f"tilts are [{count}] integers in -{TILT_MAX}..{TILT_MAX}")
    return tilts


def place_bits(places: ArrayLike, freq: ArrayLike, tilt: ArrayLike | None = None) -> float:
    """Return the bits that places in intervals take, -log2 of their density; for reports only."""
    place, span = np.asarray(places, dtype=np.int64), np.asarray(freq, dtype=np.int64)
    tilts = _tilts(tilt, span.size)
    tilts[span < TILT_LEAST] = 0
    edges = np.arange(TILT_PARTS + 1) * span[:, None] // TILT_PARTS
    part = (edges[:, 1:-1] <= place[:, None]).sum(1)
    rows = np.arange(span.size)
    mass = tilt_masses()[tilts + TILT_MAX, part]
    tilted = TILT_BITS - np.log2(mass) + np.log2(edges[rows, part + 1] - edges[rows, part])
    return float(np.where(tilts == 0, np.log2(span), tilted).sum())


def pop_places(message: Message, freq: Int64, tilt: Int64) -> Int64:
    """Pop places in [0, freq), int64 [n]; the message stays as it was if it is too short."""
    _check_freq(freq)
    places = np.empty(freq.size, dtype=np.int64)
    head = message.head.copy()
    size = _pop_places(head, message.tail, message.size, places, freq, tilt, tilt_starts())
    message.commit(head, size)
    return places


def push_places(message: Message, places: Int64, freq: Int64, tilt: Int64) -> None:
    """Push what `pop_places` popped; InvalidInterval for a place outside [0, freq)."""
    _check_freq(freq)
    if ((places < 0) | (places >= freq)).any():
        raise InvalidInterval("an interval does not hold its place")
    message.reserve(2 * places.size)
    message.size = _push_places(
        message.head, message.tail, message.size, places, freq, tilt, tilt_starts()
    )


def _check_freq(freq: Int64) -> None:
    if freq.size and not (freq.min() >= 1 and freq.max() <= 1 << 31):
        raise InvalidInterval("an interval is empty or above 2**31")


@compiled
def _push_places(
    head: Uint64,
    tail: Uint32,
    size: int,
    places: Int64,
    freq: Int64,
    tilt: Int64,
    starts: Int64,
) -> int:
    lanes = head.size
    row = (places.size - 1) // lanes * lanes
    while row >= 0:
        for lane in range(min(lanes, places.size - row)):
            i = row + lane
            h, place, span = head[lane], places[i], freq[i]
            if tilt[i] == 0 or span < TILT_LEAST:
                head[lane], size = push_uniform_lane(
                    h, tail, size, np.uint64(place), np.uint64(span)
                )
                continue
            part = np.int64(0)
            while span * (part + 1) // TILT_PARTS <= place:
                part += 1
            left = span * part // TILT_PARTS
            inner = span * (part + 1) // TILT_PARTS - left
            h, size = push_uniform_lane(h, tail, size, np.uint64(place - left), np.uint64(inner))
            begin = starts[tilt[i] + TILT_MAX, part]
            mass = starts[tilt[i] + TILT_MAX, part + 1] - begin
            head[lane], size = push_lane(
                h, tail, size, np.uint64(begin), np.uint64(mass), TILT_BITS
            )
        row -= lanes
    return size


@compiled
def _pop_places(
    head: Uint64,
    tail: Uint32,
    size: int,
    places: Int64,
    freq: Int64,
    tilt: Int64,
    starts: Int64,
) -> int:
    lanes = head.size
    for row in range(0, places.size, lanes):
        for lane in range(min(lanes, places.size - row) - 1, -1, -1):
            i = row + lane
            h, span = head[lane], freq[i]
            if tilt[i] == 0 or span < TILT_LEAST:
                h, size, place = pop_uniform_lane(h, tail, size, np.uint64(span))
                left = np.int64(0)
            else:
                slot = np.int64(h & np.uint64((1 << TILT_BITS) - 1))
                part = np.int64(0)
                while starts[tilt[i] + TILT_MAX, part + 1] <= slot:
                    part += 1
                begin = starts[tilt[i] + TILT_MAX, part]
                mass = starts[tilt[i] + TILT_MAX, part + 1] - begin
                h, size = pop_lane(h, tail, size, np.uint64(begin), np.uint64(mass), TILT_BITS)
                if size < 0:
                    return size
                left = span * part // TILT_PARTS
                inner = span * (part + 1) // TILT_PARTS - left
                h, size, place = pop_uniform_lane(h, tail, size, np.uint64(inner))
            if size < 0:
                return size
            head[lane] = h
            places[i] = left + np.int64(place)
    return size
