"""Motion vectors on the stack: binary decisions, their probabilities learned as they come.

The blocks go in units of two by two, rows of units from the top, units of a row from the left:

    unit    split?  ->  one vector, or one for each of its blocks
    vector  the hint?  left?  above?  above right?  ->  else a difference from the median of three

A decision's probability belongs to a context, and moves with every decision made there; both
sides see the same decisions in the same order. The hint is a vector of another field that both
sides have: the one of the frame before, or of the same frame's first reference.

An encoder takes the frames in the order of decoding, and pushes what it kept in the other order.

References:
    Marpe, Schwarz, Wiegand, "Context-based adaptive binary arithmetic coding", 2003, IEEE T-CSVT
    13(7), for the decisions; ITU-T H.266, 2020, 9.3.4.3, for two rates of learning at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowarchive.ans import Message
from flowarchive.entropy.plain import code_length
from flowarchive.errors import FormatError, MessageExhausted
from flowarchive.motion.decisions import (
    DECISIONS,
    LEAST,
    PRECISION,
    TOO_LONG,
    walk,
)
from flowarchive.motion.defaults import DEFAULTS
from flowarchive.motion.field import MAX_VECTOR, Field, check_field, field_shape

Int32 = NDArray[np.int32]
Uint32 = NDArray[np.uint32]

_NO_WORDS: Uint32 = np.empty(0, dtype=np.uint32)
_NO_HEAD: NDArray[np.uint64] = np.empty(0, dtype=np.uint64)


class Coded(NamedTuple):
    """A field's decisions as intervals, uint32 [n] each, in the order of decoding."""

    start: Uint32
    freq: Uint32

    @property
    def bits(self) -> float:
        """Ideal code length; for reports only."""
        return code_length(self.freq, 1 << PRECISION)


class VectorModel:
    """What a chunk has shown of one reference's fields so far.

    Attributes:
        state: int32 [CONTEXTS, 2]: the probability of a yes, at two rates, in 2**-15.
    """

    state: Int32

    def __init__(self) -> None:
        """Start from the probabilities of the training clips."""
        self.state = np.repeat(DEFAULTS[:, None], 2, axis=1)

    def probabilities(self) -> Int32:
        """Return the frequency of a yes in each context, int32 [CONTEXTS]."""
        mean = self.state.sum(axis=1) >> 1
        return np.asarray(np.clip(mean, LEAST, (1 << PRECISION) - LEAST), dtype=np.int32)


def encode_field(field: Field, hints: Field, model: VectorModel) -> Coded:
    """Turn a field into intervals; frames go in the order of decoding.

    Args:
        field: int16 [rows, columns, 2].
        hints: The field that it is expected to be like, of the same shape.
        model: Learns from this field.

    Returns:
        Intervals of PRECISION bits, to be pushed once every later frame has been.

    Raises:
        ValueError: The fields' shapes, types or ranges are wrong.
    """
    shape = (8 * field.shape[0], 8 * field.shape[1])
    vectors = check_field("field", field, shape).copy()
    expected = check_field("hints", hints, shape)
    room = field.shape[0] * field.shape[1] * DECISIONS
    start = np.empty(room, dtype=np.uint32)
    freq = np.empty(room, dtype=np.uint32)
    cursor = np.zeros(2, dtype=np.int64)
    walk(vectors, expected, model.state, False, cursor, start, freq, _NO_HEAD)
    count = int(cursor[0])
    return Coded(start[:count].copy(), freq[:count].copy())


def pop_field(
    message: Message, luma_shape: tuple[int, int], hints: Field, model: VectorModel
) -> Field:
    """Pop the field whose intervals were pushed, made with the same hints and an equal model.

    Args:
        message: Shrinks; is left as it was when this raises, and so is the model.
        luma_shape: (H, W) of the frame's luma plane.
        hints: See `encode_field`.
        model: Learns from this field.

    Returns:
        int16 [rows, columns, 2].

    Raises:
        MessageExhausted: The message holds too few bits.
        FormatError: A vector is longer than MAX_VECTOR.
        ValueError: The hints' shape, type or range is wrong.
    """
    expected = check_field("hints", hints, luma_shape)
    field = np.zeros((*field_shape(luma_shape), 2), dtype=np.int16)
    state = model.state.copy()
    head = message.head.copy()
    cursor = np.array([0, message.size], dtype=np.int64)
    walk(field, expected, state, True, cursor, message.tail, _NO_WORDS, head)
    if cursor[1] == TOO_LONG:
        raise FormatError(f"a motion vector is longer than {MAX_VECTOR} quarters of a sample")
    if cursor[1] < 0:
        raise MessageExhausted(f"a field needs more bits than the {message.size} words left")
    message.commit(head, int(cursor[1]))
    model.state = state
    return field
