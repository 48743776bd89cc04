"""Fields of motion vectors: one vector for each block of 8x8 luma samples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.int16]
"""int16 [rows, columns, 2]: (dy, dx) in quarters of a luma sample, each at most MAX_VECTOR."""

BLOCK = 8
"""Luma samples in each direction that share a vector."""

MAX_VECTOR = 2047
"""Largest magnitude of a component, in quarters of a luma sample."""


def field_shape(luma_shape: tuple[int, int]) -> tuple[int, int]:
    """Return the rows and columns of blocks that cover a picture."""
    height, width = luma_shape
    return -(-height // BLOCK), -(-width // BLOCK)


def zero_field(luma_shape: tuple[int, int]) -> Field:
    """Return the field of a picture that does not move."""
    return np.zeros((*field_shape(luma_shape), 2), dtype=np.int16)


def doubled(field: Field) -> Field:
    """Return twice a field, clamped: what steady motion makes of it over two frames."""
    twice = 2 * field.astype(np.int32)
    return np.clip(twice, -MAX_VECTOR, MAX_VECTOR).astype(np.int16)


def check_field(name: str, field: Field, luma_shape: tuple[int, int]) -> Field:
    """Give a field of a picture as a contiguous array; the loops trust it.

    Raises:
        ValueError: Its shape or type is wrong, or a vector is longer than MAX_VECTOR.
    """
    shape = (*field_shape(luma_shape), 2)
    if field.dtype != np.int16 or field.shape != shape:
        raise ValueError(f"{name} is {field.dtype} {list(field.shape)}, not int16 {list(shape)}")
    if field.size and not (field.min() >= -MAX_VECTOR and field.max() <= MAX_VECTOR):
        raise ValueError(f"{name} holds a vector longer than {MAX_VECTOR}")
    return np.ascontiguousarray(field)
