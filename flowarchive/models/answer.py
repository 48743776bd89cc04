"""What models are tried with before they are used: known answers, and a chunk that comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flowarchive import planes
from flowarchive.ans import HEAD_MIN, Message

if TYPE_CHECKING:
    from flowarchive.models import Model

_MODULUS, _MULTIPLIER = 2147483647, 48271

SUPPLY = 512
"""Words that a rehearsal begins with: more than a phase's flow can ask for."""


def noise(count: int) -> NDArray[np.int64]:
    """Return the first numbers of a Lehmer generator, int64 [count] in 1..2**31 - 2.

    References:
        Park, Miller, Stockmeyer, "Remarks on choosing and implementing random number generators",
        1993, Communications of the ACM 36(7), for the multiplier.
    """
    # The n-th number is the n-th power of the multiplier: each round doubles how many there are.
    numbers = np.array([_MULTIPLIER], dtype=np.int64)
    while numbers.size < count:
        numbers = np.concatenate([numbers, numbers * numbers[-1] % _MODULUS])
    return numbers[:count]


def rehearse(model: Model) -> bytes | None:
    """Push a small chunk and pop it again; return its bytes, None where other frames come out.

    Noise that moves by a sample a frame, so that frames of one and of two references follow the
    first, onto a message of noise, which has bits to borrow: what has a flow goes by it.
    Its largest phase is more than a row of lanes, which takes words that the row before has put.
    """
    model = model.for_rehearsal()
    shapes, count, lanes = [(16, 18), (8, 9), (8, 9)], 3, 64
    texture = (noise(20 * 20) % 64 - 32).astype(np.int32).reshape(20, 20)
    frames = []
    for t in range(count):
        luma, u, v = (texture[t : t + h, t : t + w] + t for h, w in shapes)
        frames.append(planes.Components(luma, np.stack([u, v])))
    heads, words = (HEAD_MIN + noise(lanes)).astype("<u8"), noise(SUPPLY).astype("<u4")
    supply = heads.tobytes() + words.tobytes()
    message = Message.from_bytes(supply, lanes)
    model.push_frames(message, frames, "YUV", planes.MIN_BITS)
    data = message.to_bytes()
    popped = model.pop_frames(message, count, shapes, "YUV", planes.MIN_BITS)
    same = [
        np.array_equal(one, other)
        for ours, theirs in zip(frames, popped, strict=True)
        for one, other in zip(ours.parts, theirs.parts, strict=True)
    ]
    return data if all(same) and message.to_bytes() == supply else None
