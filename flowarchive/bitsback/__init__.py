"""Local bits-back: moving integers by a monotone map while the stack makes up the difference.

A map f takes a grid of N integers onto one of M, each a cell of the real line, and stretches here
and shrinks there. Where it stretches, several y belong to one x; where it shrinks, several x to
one y. A *local coder* chooses by bits it pops, and pushes what tells the choice:

    forward   pop  y near f(x)          inverse   pop  x near f^-1(y)
              push x near f^-1(y)                 push y near f(x)

The net cost of forward is log2 of how much f shrinks there, so that a flow of such maps, and then
y coded under its prior, costs -log2 p(x) by the change of variables. Read the left half from bottom
to top, push for pop, and it is the right half: that is why the coders lose nothing.

    Uniform     y uniform in the image of a cell; no approximation
    Gaussian    y normal around the image; as local bits-back coding was published

Element i sits in lane i % lanes. A row of lanes is popped and pushed before the next is touched, so
a call never has more than one row's popped bits in the air. `forward` takes the last row first.

References:
    Ho, Lohn, Abbeel, "Compression with flows via local bits-back coding", 2019, arXiv:1905.08500.
    Zhang, Kang, Ryder, Li, "iFlow: numerically invertible flows for efficient lossless compression
    via a uniform coder", 2021, arXiv:2111.00965.
"""

from __future__ import annotations

from flowarchive.bitsback.dequantize import (
    TILT_LEAST,
    TILT_MAX,
    TILT_PARTS,
    TILT_UNIT,
    Dequantizer,
    Find,
    place_bits,
    tilt_masses,
    tilt_starts,
)
from flowarchive.bitsback.local import Gaussian, LocalCoder, Map, Segments, Uniform
from flowarchive.bitsback.normal import Normal
from flowarchive.bitsback.reference import BlackBox

__all__ = [
    "TILT_LEAST",
    "TILT_MAX",
    "TILT_PARTS",
    "TILT_UNIT",
    "BlackBox",
    "Dequantizer",
    "Find",
    "Gaussian",
    "LocalCoder",
    "Map",
    "Normal",
    "Segments",
    "Uniform",
    "place_bits",
    "tilt_masses",
    "tilt_starts",
]
