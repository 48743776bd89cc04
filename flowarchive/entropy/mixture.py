"""The discretized logistic mixture: what the flows code their integers with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from flowarchive.ans import MAX_PRECISION, Message
from flowarchive.entropy.cumulative import (
    SCALE_COUNT,
    WEIGHT_BITS,
    Int32,
    Uint32,
    are_parameters,
    find_intervals,
    pop_symbols,
    search_tables,
)
from flowarchive.entropy.plain import as_int32, code_length
from flowarchive.errors import InvalidInterval

MAX_SUPPORT = 1 << 19
MAX_SYMBOL = 1 << 20
"""Most symbols of a support, and the largest magnitude of one."""

# Elements a push works on at once, so that their intervals stay in the cache. A multiple of every
# lane count: cutting an array there does not change what lands in which lane.
_BLOCK = 1 << 14


class _Parameters(NamedTuple):
    """Checked parameters, int32 [n, K] each."""

    mean: Int32
    scale: Int32
    weight: Int32

    def flat(self) -> tuple[int, Int32, Int32, Int32]:
        mean, scale, weight = (p.reshape(-1) for p in self)
        return self.mean.shape[1], mean, scale, weight

    def cut(self, block: slice) -> _Parameters:
        return _Parameters(self.mean[block], self.scale[block], self.weight[block])


class LogisticMixture:
    """Logistic distributions cut into integer symbols, and mixtures of K of them.

    The four methods take the same parameters for n symbols and K components (all of them may be
    1-d where K is one):

        mean: integers [n, K] of 32 bits, in 1/256 of a symbol step.
        scale: integers [n, K] in 0..191; index i stands for 2**(i / 8 - 5) symbol steps.
        weight: integers [n, K], at least 0, each row's sum 2**12; may be left out where K is one.

    Every symbol of the support has a frequency of at least 1, whatever the parameters.

    Attributes:
        low: The least symbol of the support.
        high: The greatest.
        precision: Bits of the total mass.

    References:
        van den Berg et al., "IDF++", 2020, arXiv:2006.12459, for the distribution.
        Balle, Johnston, Minnen, "Integer networks for data compression with latent-variable
        models", 2019, for why nothing here is a float.
    """

    def __init__(self, low: int, high: int, precision: int) -> None:
        """Fix the support.

        Args:
            low: The least symbol, at least -2**20.
            high: The greatest symbol, at most 2**20, and low + 2**19 - 1.
            precision: 1..31, with 2**precision >= high - low + 1.

        Raises:
            ValueError: The support or the precision is out of these ranges.
        """
        if not -MAX_SYMBOL <= low <= high <= MAX_SYMBOL or high - low >= MAX_SUPPORT:
            raise ValueError(f"the support [{low}, {high}] is empty, too large or too far out")
        if not 1 <= precision <= MAX_PRECISION or 1 << precision <= high - low:
            raise ValueError(f"precision {precision} does not fit {high - low + 1} symbols")
        self.low = int(low)
        self.high = int(high)
        self.precision = int(precision)

    def __repr__(self) -> str:
        return f"LogisticMixture({self.low}, {self.high}, {self.precision})"

    @property
    def total(self) -> int:
        """Slots of the number line, 2**precision."""
        return 1 << self.precision

    def push(
        self,
        message: Message,
        symbols: ArrayLike,
        mean: ArrayLike,
        scale: ArrayLike,
        weight: ArrayLike | None = None,
    ) -> None:
        """Push symbols, the last row first, so that `pop` meets element 0 first.

        Args:
            message: Grows; is left as it was when this raises.
            symbols: Integers [n] in [low, high].
            mean: See the class.
            scale: See the class.
            weight: See the class.

        Raises:
            InvalidInterval: A symbol is outside the support.
            ValueError: The parameters' shapes, types or ranges are wrong.
        """
        values = self._symbols(symbols)
        parameters = _checked(values.size, mean, scale, weight)
        message.reserve(values.size)
        for block in reversed(list(_blocks(values.size))):
            message.push(*self._intervals(values[block], parameters.cut(block)), self.precision)

    def pop(
        self,
        message: Message,
        mean: ArrayLike,
        scale: ArrayLike,
        weight: ArrayLike | None = None,
    ) -> Int32:
        """Pop the symbols that `push` pushed with the same parameters.

        Args:
            message: Shrinks; is left as it was when this raises.
            mean: See the class.
            scale: See the class.
            weight: See the class.

        Returns:
            int32 [n] in [low, high].

        Raises:
            MessageExhausted: The message holds too few bits.
            ValueError: The parameters' shapes, types or ranges are wrong.
        """
        parameters = _checked(len(np.atleast_1d(np.asarray(mean))), mean, scale, weight)
        symbols = np.empty(len(parameters.mean), dtype=np.int32)
        head = message.head.copy()
        size = pop_symbols(
            head,
            message.tail,
            message.size,
            symbols,
            *parameters.flat(),
            self.low,
            self.high,
            self.precision,
            *search_tables(),
        )
        message.commit(head, size)
        return symbols

    def interval(
        self,
        symbols: ArrayLike,
        mean: ArrayLike,
        scale: ArrayLike,
        weight: ArrayLike | None = None,
    ) -> tuple[Uint32, Uint32]:
        """Return (start, freq), uint32 [n] each, of symbols in the support.

        Raises:
            InvalidInterval: A symbol is outside the support.
            ValueError: The parameters' shapes, types or ranges are wrong.
        """
        values = self._symbols(symbols)
        return self._intervals(values, _checked(values.size, mean, scale, weight))

    def lookup(
        self,
        slots: ArrayLike,
        mean: ArrayLike,
        scale: ArrayLike,
        weight: ArrayLike | None = None,
    ) -> Int32:
        """Return the symbols whose intervals hold slots of [0, 2**precision).

        Args:
            slots: Integers [n].
            mean: See the class.
            scale: See the class.
            weight: See the class.

        Returns:
            int32 [n] in [low, high].

        Raises:
            InvalidInterval: A slot is outside the number line.
            ValueError: The parameters' shapes, types or ranges are wrong.
        """
        places = np.asarray(slots)
        if places.size and not (places.min() >= 0 and places.max() < self.total):
            raise InvalidInterval(f"a slot is outside [0, 2**{self.precision})")
        parameters = _checked(places.size, mean, scale, weight)
        symbols = np.empty(places.size, dtype=np.int32)
        # Heads that show these slots, and are still full once a symbol has been popped.
        head = places.astype(np.uint64) + np.uint64(1 << 62)
        tail = np.empty(0, dtype=np.uint32)
        grid = self.low, self.high, self.precision
        pop_symbols(head, tail, 0, symbols, *parameters.flat(), *grid, *search_tables())
        return symbols

    def bits(
        self,
        symbols: ArrayLike,
        mean: ArrayLike,
        scale: ArrayLike,
        weight: ArrayLike | None = None,
    ) -> float:
        """Return the ideal code length, the sum of -log2(freq / 2**precision); for reports only.

        Raises:
            InvalidInterval: A symbol is outside the support.
            ValueError: The parameters' shapes, types or ranges are wrong.
        """
        values = self._symbols(symbols)
        parameters = _checked(values.size, mean, scale, weight)
        return sum(
            code_length(self._intervals(values[block], parameters.cut(block))[1], self.total)
            for block in _blocks(values.size)
        )

    def checked(
        self,
        symbols: ArrayLike,
        mean: ArrayLike,
        scale: ArrayLike,
        weight: ArrayLike | None = None,
    ) -> tuple[Int32, tuple[Int32, Int32, Int32]]:
        """Return symbols [n] and their parameters [n, K] as `interval` would take them.

        Raises:
            InvalidInterval: A symbol is outside the support.
            ValueError: The parameters' shapes, types or ranges are wrong.
        """
        values = self._symbols(symbols)
        return values, _checked(values.size, mean, scale, weight)

    def _symbols(self, symbols: ArrayLike) -> Int32:
        values = as_int32("symbols", symbols)
        if values.ndim != 1:
            raise ValueError(f"symbols must be [n], not {list(values.shape)}")
        if values.size and not (self.low <= values.min() and values.max() <= self.high):
            raise InvalidInterval(f"a symbol is outside [{self.low}, {self.high}]")
        return values

    def _intervals(self, symbols: Int32, parameters: _Parameters) -> tuple[Uint32, Uint32]:
        start = np.empty(symbols.size, dtype=np.uint32)
        freq = np.empty(symbols.size, dtype=np.uint32)
        packed, reciprocals, _, _ = search_tables()
        find_intervals(
            symbols,
            *parameters.flat(),
            self.low,
            self.high,
            self.precision,
            packed,
            reciprocals,
            start,
            freq,
        )
        return start, freq


def _blocks(count: int) -> Iterator[slice]:
    return (slice(i, i + _BLOCK) for i in range(0, count, _BLOCK))


def _checked(
    count: int, mean: ArrayLike, scale: ArrayLike, weight: ArrayLike | None
) -> _Parameters:
    """Check the parameters of `count` symbols; the loops trust them with their table indices."""
    means = as_int32("mean", mean)
    scales = as_int32("scale", scale)
    if means.shape != scales.shape or means.ndim not in (1, 2) or len(means) != count:
        raise ValueError(
            f"mean is {list(means.shape)}, scale {list(scales.shape)}, for {count} symbols"
        )
    components = 1 if means.ndim == 1 else means.shape[1]
    if components == 0:
        raise ValueError("a mixture has at least one component")
    shape = (count, components)
    if weight is None:
        if components > 1:
            raise ValueError(f"{components} components need weights")
        weights = np.full(shape, 1 << WEIGHT_BITS, dtype=np.int32)
    else:
        weights = as_int32("weight", weight)
        if weights.shape != means.shape:
            raise ValueError(f"weight is {list(weights.shape)}, mean {list(means.shape)}")
    parameters = _Parameters(*(array.reshape(shape) for array in (means, scales, weights)))
    if not are_parameters(parameters.scale, parameters.weight):
        raise ValueError(
            f"scale indices are 0..{SCALE_COUNT - 1}, "
            f"weights at least 0 and {1 << WEIGHT_BITS} in each row"
        )
    return parameters
