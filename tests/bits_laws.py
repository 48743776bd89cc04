"""The laws of local bits-back: nothing is lost, and nothing costs what it should not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flowarchive.ans import Message
from flowarchive.errors import MessageExhausted


def random_message(lanes: int, words: int, seed: int = 0) -> Message:
    """A message of arbitrary bits."""
    rng = np.random.default_rng([seed, lanes, words])
    heads = rng.integers(1 << 31, 1 << 63, lanes, dtype=np.uint64)
    tail = rng.integers(0, 1 << 32, words, dtype=np.uint32)
    return Message.from_bytes(heads.astype("<u8").tobytes() + tail.astype("<u4").tobytes(), lanes)


def check_map(map: Any, count: int, images: int, elements: int) -> None:
    """Every element's map is increasing, onto and the same from both ends, on all of a small grid.

    Args:
        map: Of `elements` elements.
        count: Cells of the grid.
        images: Cells of the image.
        elements: How many.
    """
    knots, ends = map.knots(slice(0, elements))
    assert (np.diff(knots) >= 1).all()
    assert (np.diff(ends) >= 1).all()
    assert (knots[:, 0] == 0).all()
    assert (knots[:, -1] == count).all()
    assert (ends[:, 0] == 0).all()
    assert (ends[:, -1] == images).all()
    knots, ends = (np.broadcast_to(a, (elements, a.shape[1])) for a in (knots, ends))
    rows = np.arange(elements)
    for z, found, sides in (
        *((np.full(elements, x), map.segments, (knots, ends)) for x in range(count)),
        *((np.full(elements, y), map.segments_of, (ends, knots)) for y in range(images)),
    ):
        at = (sides[0] <= z[:, None]).sum(1) - 1
        whole = [s[rows, k] for s in sides for k in (at, at + 1)]
        x0, x1, y0, y1 = whole if found == map.segments else (*whole[2:], *whole[:2])
        for piece, right in zip(found(z), (x0, x1 - x0, y0, y1 - y0), strict=True):
            assert np.array_equal(piece, right)


def check_local_coder(
    coder: Any, map: Any, x: np.ndarray, image: int, lanes: int, seed: int = 0
) -> np.ndarray:
    """Forward and inverse undo each other, values and message, and return the image of x.

    From arbitrary bits; a message that is too short is told, and stays what it was.
    """
    message = random_message(lanes, 3 * len(x) + 8, seed)
    before = message.to_bytes()
    y = coder.forward(message, x, map)
    assert y.min(initial=0) >= 0
    assert y.max(initial=0) < image
    assert np.array_equal(coder.inverse(message, y, map), x)
    assert message.to_bytes() == before
    back = coder.inverse(message, y, map)
    assert np.array_equal(coder.forward(message, back, map), y)
    assert message.to_bytes() == before
    for move, values in ((coder.forward, x), (coder.inverse, y)):
        for words in (0, 1, 7, len(x) // 4):
            short = random_message(lanes, words, seed)
            before = short.to_bytes()
            try:
                move(short, values, map)
            except MessageExhausted:
                assert short.to_bytes() == before
    return y


def check_exhaustion(move: Any, map: Any, values: np.ndarray) -> None:
    """An empty message is told to be empty, and stays so."""
    message = Message(1)
    with pytest.raises(MessageExhausted):
        move(message, values, map)
    assert message.is_drained
