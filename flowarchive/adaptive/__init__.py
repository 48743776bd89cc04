"""What learns from the decoded past: linear prediction, one more anchor, and scale correction.

Every sample of a phase is predicted from the known samples around it and from the two
motion-compensated references, by the filter of its class:

    taps - S --features--> clamped integers f --filter of the class--> A = S + sum(w * f)

S is the mean of the four nearest known samples. A class says how far these four lie from S,
whether the reference changes S much, and along which of two directions the four differ more.
Encoder and decoder learn the filters from the same finished planes: normal equations are summed
exactly, older sums fade, and the systems are solved in float64 operations of a fixed order.
Nothing is stored.

Filters and sums belong to a *slot*: a level group (0, 1, 2 and above) and a phase of `lattice`.
Planes are bordered, in quarters of a sample step; their `shift` low bits are rounded away before
anything is multiplied.

    predictor   LinearPredictor, DefaultFilters
    samples     features and classes of samples: integers
    rows        predictions of rows, and products of their features: integers
    solve       filters out of sums: ordered float64
    correction  ScaleCorrection, which puts the mixtures' scales right in the same spirit

This package knows lattices, mixtures and integers. It must not know motion or networks.

References:
    Wu, Barthel and Zhang, "Piecewise 2D autoregression for predictive image coding", 1998, and
    Meyer and Tischer, "TMW", 1997, for least squares on the decoded past.
"""

from __future__ import annotations

from flowarchive.adaptive.correction import ScaleCorrection
from flowarchive.adaptive.predictor import (
    LEVEL_GROUPS,
    DefaultFilters,
    LinearPredictor,
    level_group,
)
from flowarchive.adaptive.rows import CLASSES, PREDICTION_ONE, WEIGHT_BITS, WEIGHT_LIMIT
from flowarchive.adaptive.samples import CHROMA_TAPS, LUMA_TAPS, MAX_SHIFT

__all__ = [
    "CHROMA_TAPS",
    "CLASSES",
    "LEVEL_GROUPS",
    "LUMA_TAPS",
    "MAX_SHIFT",
    "PREDICTION_ONE",
    "WEIGHT_BITS",
    "WEIGHT_LIMIT",
    "DefaultFilters",
    "LinearPredictor",
    "ScaleCorrection",
    "level_group",
]
