"""Local bits-back coding of any small flow, straight from the definition, in floats.

What the specialised coders are compared with. It decides no archive's bits: two machines may round
a float differently.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowarchive.ans import Message
from flowarchive.bitsback.normal import MEAN_BITS, WIDTHS_PER_OCTAVE, Normal

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

MAX_DIMENSIONS = 16


class BlackBox:
    """A flow of which nothing is known but f, its inverse and its Jacobian.

    With z ~ N(f(x), sigma**2 J J^T) and its Cholesky factor L, z_i given z_0 .. z_(i - 1) is normal
    around f(x)_i + sum of L_ij e_j, e_j = (z_j - its own conditional mean) / L_jj, with a width of
    L_ii. So the elements are popped one by one, in this order, and x is pushed under
    N(f^-1(z), sigma**2), element by element.

    References:
        Ho, Lohn, Abbeel, "Compression with flows via local bits-back coding", 2019,
        arXiv:1905.08500, algorithm 1.
    """

    def __init__(
        self,
        f: Callable[[Float64], Float64],
        inverse: Callable[[Float64], Float64],
        jacobian: Callable[[Float64], Float64],
        count: int,
        pitch: float,
        sigma: float,
    ) -> None:
        """Take the flow.

        Args:
            f: float64 [n] to [n], n <= 16.
            inverse: Of f.
            jacobian: Of f, float64 [n] to [n, n].
            count: Cells of the grid, whose middle is the real number 0.
            pitch: Of the grid.
            sigma: Width of the noise around x, in real units.
        """
        self._f, self._inverse, self._jacobian = f, inverse, jacobian
        self._count, self._pitch, self._sigma = count, pitch, sigma
        self._y, self._x = Normal(count), Normal(count, shuffled=True)

    def forward(self, message: Message, x: ArrayLike) -> Int64:
        """Move x, integers [n] in [0, count), to z; a message that runs dry is left anywhere."""
        cells = self._checked(x)
        point = self._reals(cells)
        factor, mean = self._factor(point), self._f(point)
        z = np.empty(cells.size, dtype=np.int64)
        for i in range(cells.size):
            z[i : i + 1] = self._y.pop(message, *self._conditional(z, i, mean, factor))
        around = self._inverse(self._reals(z))
        for i in reversed(range(cells.size)):
            self._x.push(message, cells[i : i + 1], *self._aim(around[i], self._sigma))
        return z

    def inverse(self, message: Message, z: ArrayLike) -> Int64:
        """Move z back to x."""
        cells = self._checked(z)
        around = self._inverse(self._reals(cells))
        x = np.empty(cells.size, dtype=np.int64)
        for i in range(cells.size):
            x[i : i + 1] = self._x.pop(message, *self._aim(around[i], self._sigma))
        point = self._reals(x)
        factor, mean = self._factor(point), self._f(point)
        for i in reversed(range(cells.size)):
            conditional = self._conditional(cells, i, mean, factor)
            self._y.push(message, cells[i : i + 1], *conditional)
        return x

    def _checked(self, x: ArrayLike) -> Int64:
        cells = np.asarray(x, dtype=np.int64)
        if cells.ndim != 1 or cells.size > MAX_DIMENSIONS:
            raise ValueError(f"a black box takes [n], n <= {MAX_DIMENSIONS}")
        return cells

    def _reals(self, cells: Int64) -> Float64:
        return np.float64(self._pitch) * (cells + np.float64(0.5 - self._count / 2))

    def _factor(self, point: Float64) -> Float64:
        """The Cholesky factor of sigma**2 J J^T, entry by entry in one order."""
        rows = [[self._sigma * float(entry) for entry in row] for row in self._jacobian(point)]
        size = len(rows)
        factor = np.zeros((size, size))
        for i in range(size):
            for j in range(i + 1):
                rest = 0.0
                for a, b in zip(rows[i], rows[j], strict=True):
                    rest += a * b
                for k in range(j):
                    rest -= float(factor[i, k]) * float(factor[j, k])
                factor[i, j] = math.sqrt(rest) if i == j else rest / float(factor[j, j])
        return factor

    def _conditional(self, z: Int64, i: int, mean: Float64, factor: Float64) -> tuple[Int64, Int64]:
        """Mean and width of z_i given those before it."""
        deviations: list[float] = []
        reals = self._reals(z)
        for k in range(i + 1):
            around = float(mean[k])
            for j in range(k):
                around += float(factor[k, j]) * deviations[j]
            if k < i:
                deviations.append((float(reals[k]) - around) / float(factor[k, k]))
        return self._aim(around, float(factor[i, i]))

    def _aim(self, mean: float, width: float) -> tuple[Int64, Int64]:
        """A mean and a width as `Normal` takes them."""
        center = math.floor((mean / self._pitch + self._count / 2) * (1 << MEAN_BITS))
        center = min(max(center, 0), (self._count << MEAN_BITS) - 1)
        index = round(WIDTHS_PER_OCTAVE * math.log2(width / self._pitch))
        return np.array([center], dtype=np.int64), np.array([index], dtype=np.int64)
