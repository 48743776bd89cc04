"""What known answers are computed from: numbers that need nothing but integers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MODULUS, _MULTIPLIER = 2147483647, 48271


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
