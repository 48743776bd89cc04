"""Entropy models: integer parameters in, integer intervals out.

A model cuts the number line of `total` slots into one interval a symbol of its support:

    0     C(z)        C(z + 1)              total
    |-------|============|--------------------|
            start    start + freq

Every symbol of the support has freq >= 1, so no input can fail; a symbol outside it is refused.
`push` and `pop` put symbols on a message and take them off, `interval` shows (start, freq), `bits`
gives the ideal code length for reports. Parameters, where a model has any, are the trailing
arguments of all four.

This package knows symbols and integer parameters. It must not know networks.
"""

from __future__ import annotations

from flowarchive.entropy.cumulative import (
    MEAN_BITS,
    SCALE_COUNT,
    SCALE_MIN_LOG2,
    SCALES_PER_OCTAVE,
    SIG_BITS,
    SIG_RANGE,
    SIG_STEPS,
    WEIGHT_BITS,
    sigmoid_table,
)
from flowarchive.entropy.mixture import MAX_SUPPORT, MAX_SYMBOL, LogisticMixture
from flowarchive.entropy.plain import Table, Uniform

__all__ = [
    "MAX_SUPPORT",
    "MAX_SYMBOL",
    "MEAN_BITS",
    "SCALES_PER_OCTAVE",
    "SCALE_COUNT",
    "SCALE_MIN_LOG2",
    "SIG_BITS",
    "SIG_RANGE",
    "SIG_STEPS",
    "WEIGHT_BITS",
    "LogisticMixture",
    "Table",
    "Uniform",
    "sigmoid_table",
]
