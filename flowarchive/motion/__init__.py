"""Motion: the fields of vectors that join a frame to its references.

    Picture, search     the encoder's choice of a field
    VectorModel, encode_field, pop_field
                        fields on the stack, with probabilities that learn
    compensate          a plane seen through a field, in quarters of a sample value

This package knows luma blocks, vectors and planes. It must not know networks or files.
"""

from __future__ import annotations

from flowarchive.motion.compensate import FILTERS, VALUE_BITS, compensate
from flowarchive.motion.decisions import PRECISION
from flowarchive.motion.field import (
    BLOCK,
    MAX_VECTOR,
    Field,
    doubled,
    field_shape,
    zero_field,
)
from flowarchive.motion.picture import Picture
from flowarchive.motion.search import prices, search
from flowarchive.motion.vectors import Coded, VectorModel, encode_field, pop_field

__all__ = [
    "BLOCK",
    "FILTERS",
    "MAX_VECTOR",
    "PRECISION",
    "VALUE_BITS",
    "Coded",
    "Field",
    "Picture",
    "VectorModel",
    "compensate",
    "doubled",
    "encode_field",
    "field_shape",
    "pop_field",
    "prices",
    "search",
    "zero_field",
]
