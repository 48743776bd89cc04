"""A chunk's frames to a message and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowarchive.ans import Message
from flowarchive.entropy.plain import code_length
from flowarchive.errors import FormatError, MessageExhausted
from flowarchive.frames import Plane
from flowarchive.pixelwise.decisions import (
    AT,
    BOARD_SIZE,
    CONTRADICTED,
    EXHAUSTED,
    FAILURE,
    HEAD,
    PRECISION,
    Int64,
    Uint32,
    new_memory,
)
from flowarchive.pixelwise.groups import SAMPLE_BITS, groups_of, guide_of, inner
from flowarchive.pixelwise.walk import MOST_DECISIONS, walk

STREAM_SIZE = 1 << 20
"""Decisions that are kept together; more where a row may have more."""

_TOTAL = 1 << PRECISION


class _Walk:
    """A chunk's way through its frames, the same in both directions, and what it learns there."""

    def __init__(
        self, count: int, shapes: Sequence[tuple[int, int]], letters: str, bits: int
    ) -> None:
        self.groups = groups_of(shapes, letters)
        self.bits = bits
        pixels = count * sum(group.shape[0] * group.shape[1] for group in self.groups)
        size = pixels.bit_length()
        self.line_bits, self.table_bits = min(max(size + 1, 11), 21), min(max(size, 10), 20)
        self.memory = new_memory(self.line_bits)
        self.seen = np.zeros(1 << self.table_bits, dtype=np.int64)
        self.faith = np.zeros(1 << self.table_bits, dtype=np.int32)
        self.board = np.zeros(BOARD_SIZE, dtype=np.int64)

    def group(
        self,
        reading: bool,
        number: int,
        now: Sequence[Int64],
        last: Sequence[Int64] | None,
        stream: Uint32,
    ) -> Iterator[None]:
        """Walk through one group of a frame; pause where the stream has no room for a row.

        Args:
            reading: The direction.
            number: Of the group.
            now: The pixels of the frame's groups, this one's given or filled in.
            last: Those of the frame before, None at the beginning.
            stream: See `decisions`.
        """
        group, pixels = self.groups[number], now[number]
        guide = guide_of(inner(now[0]), group.shape) if number else np.zeros(group.shape, np.int64)
        before = group.blank() if last is None else last[number]
        width = pixels.shape[1]
        outcome = np.zeros((2, width), dtype=np.int64)
        errors = np.zeros((len(group.planes), 2, width), dtype=np.int64)
        row = 0
        while row < group.shape[0] and not self.board[FAILURE]:
            row = walk(
                reading, row, number, len(group.planes), group.leads, self.bits, last is not None,
                self.table_bits, self.line_bits, pixels, before,
                guide, outcome, errors, self.seen, self.faith, self.memory, self.board, stream,
            )  # fmt: skip
            yield


def push_frames(
    message: Message, frames: Sequence[Sequence[Plane]], letters: str, bits: int
) -> float:
    """Push frames so that the first is popped first.

    Args:
        message: Grows; of one lane.
        frames: Planes of each frame, at least one, samples below 2**bits.
        letters: A component letter for each plane.
        bits: 8..16.

    Returns:
        The ideal code length in bits.
    """
    chunk = _Walk(len(frames), [plane.shape for plane in frames[0]], letters, bits)
    room = max(MOST_DECISIONS * max(group.shape[1] for group in chunk.groups), STREAM_SIZE)
    stream = np.empty(room, dtype=np.uint32)
    kept: list[NDArray[np.uint16]] = []
    last: list[Int64] | None = None
    for frame in frames:
        now = [group.pixels(frame) for group in chunk.groups]
        for number in range(len(now)):
            for _ in chunk.group(False, number, now, last, stream):
                kept.append(stream[: chunk.board[AT]].astype(np.uint16))
                chunk.board[AT] = 0
        last = now
    ideal = 0.0
    while kept:
        decisions = kept.pop().astype(np.uint32)
        chance, yes = decisions >> 1, (decisions & 1).astype(bool)
        freq = np.where(yes, chance, _TOTAL - chance)
        ideal += code_length(freq, _TOTAL)
        message.push(np.where(yes, 0, chance), freq, PRECISION)
    return ideal


def pop_frames(
    message: Message,
    count: int,
    shapes: Sequence[tuple[int, int]],
    letters: str,
    bits: int,
    dtype: np.dtype[Any],
) -> Iterator[tuple[Plane, ...]]:
    """Pop the frames that `push_frames` pushed.

    Args:
        message: Shrinks; of one lane.
        count: Frames.
        shapes: (rows, columns) of each plane, at least one.
        letters: A component letter for each.
        bits: 8..16.
        dtype: Of the planes.

    Raises:
        MessageExhausted: The message holds too few bits.
        FormatError: A sample does not fit `bits`.
    """
    chunk = _Walk(count, shapes, letters, bits)
    chunk.board[AT], chunk.board[HEAD] = message.size, message.head[0]
    last: list[Int64] | None = None
    for _ in range(count):
        now = [group.blank() for group in chunk.groups]
        planes: list[Plane] = [np.empty(0, dtype)] * len(shapes)
        for number, group in enumerate(chunk.groups):
            for _ in chunk.group(True, number, now, last, message.tail):
                pass
            if chunk.board[FAILURE] == EXHAUSTED:
                raise MessageExhausted("a chunk's pixels need more bits than there are")
            if chunk.board[FAILURE] == CONTRADICTED:
                raise FormatError("a decoded pixel is one that it was said not to be")
            if chunk.board[FAILURE]:
                raise FormatError(f"a decoded sample does not fit {bits} bits")
            for j, plane in enumerate(group.planes):
                samples = inner(now[number]) >> SAMPLE_BITS * j & 0xFFFF
                planes[plane] = samples.astype(dtype)
        message.commit(chunk.board[HEAD : HEAD + 1].astype(np.uint64), int(chunk.board[AT]))
        yield tuple(planes)
        last = now
