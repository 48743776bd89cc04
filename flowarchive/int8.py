"""Convolutions of bytes, the same integers on every machine.

Channels are bytes whose zero is ZERO, so that they hold -128..127, and stand last. A *grid* of them
`[N, h + 2, w + 2, C]` has a border of zeros. A convolution may take two grids, as if their channels
stood side by side; nothing is joined. Its sums are int32, and `check_bound` proves that they are
even below 2**24. Then

    y = clamp(floor(sum * 2**-shift + 1/2))

becomes bytes, which may be added to those of another grid, or int16 numbers.

All that happens in registers, on a *tile* of POSITIONS neighbors and 2 * LANES sums for each, in
code that is written in LLVM's language: with VNNI's dot products where the processor has them, with
products of 16 bits elsewhere. Not one of these operations rounds.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from flowarchive.errors import ModelError, NotReproducible
from flowarchive.loops import compiled

Bytes = NDArray[np.uint8]
Int16 = NDArray[np.int16]
Int32 = NDArray[np.int32]
_T = TypeVar("_T", np.uint8, np.int16)

ZERO = 128
"""The byte that means 0."""

EXACT_LIMIT = 1 << 24
MIN_SHIFT, MAX_SHIFT = -32, 24
MOST = 127
SHORT_MOST = (1 << 15) - 1

POSITIONS, LANES = 12, 16
QUAD = 4  # bytes in a dot product

_OLD_POSITIONS = 4  # at a time, with fewer and smaller registers
_WHOLE, _SUM, _SHORT, _OCTET = (ir.IntType(bits) for bits in (64, 32, 16, 8))
_SUMS = ir.VectorType(_SUM, LANES)
_PAIRS = ir.VectorType(_SHORT, 2 * LANES)


def check_bound(weight: NDArray[Any], bias: NDArray[Any]) -> None:
    """Prove that a convolution's sums stay below 2**24, for any bytes.

    Args:
        weight: Integers [O, I, k, k].
        bias: Integers [O].

    Raises:
        NotReproducible: A channel breaks the bound.
    """
    total = np.abs(weight.astype(np.int64)).sum(axis=(1, 2, 3)) * ZERO
    most = int((total + np.abs(bias.astype(np.int64))).max())
    if most >= EXACT_LIMIT:
        raise NotReproducible(f"a channel's sums may reach {most}, the limit is 2**24")


def grid(count: int, rows: int, columns: int, channels: int) -> Bytes:
    """Make a border of zeros around nothing yet: [count, rows + 2, columns + 2, quads of bytes]."""
    shape = count, rows + 2, columns + 2, -(-channels // QUAD) * QUAD
    size = shape[0] * shape[1] * shape[2] * shape[3]
    # The last tile reads on behind the last row.
    room = POSITIONS * shape[3] + 2 * LANES
    cells: Bytes = np.empty(size + room, dtype=np.uint8)[:size].reshape(shape)
    cells[:, :: rows + 1] = cells[:, :, :: columns + 1] = ZERO
    return cells


def inside(cells: NDArray[_T]) -> NDArray[_T]:
    """Return a grid without its border."""
    return cells[:, 1:-1, 1:-1]


def signed(cells: Bytes) -> NDArray[np.int8]:
    """Return what the bytes of a grid mean, int8 [N, h, w, C]."""
    return (inside(cells) ^ np.uint8(ZERO)).view(np.int8)


class Convolution:
    """A zero-padded convolution with a kernel of 1 x 1 or 3 x 3.

    Args:
        weight: int8 [O, I, k, k], or int16 within +-2**14.
        bias: int32 [O].
        shift: int8 [O], MIN_SHIFT..MAX_SHIFT; a negative one shifts left.
        first: How many of the I channels the first of two grids brings; None for one grid.

    Raises:
        NotReproducible: Sums may be too large.
        ModelError: A shift is out of its range.
    """

    def __init__(
        self,
        weight: NDArray[Any],
        bias: NDArray[np.int32],
        shift: NDArray[np.int8],
        first: int | None = None,
    ) -> None:
        check_bound(weight, bias)
        if shift.min() < MIN_SHIFT or shift.max() > MAX_SHIFT:
            raise ModelError(f"a convolution's shift is outside {MIN_SHIFT}..{MAX_SHIFT}")
        self.outputs, self._side = weight.shape[0], weight.shape[2]
        self._wide = weight.dtype != np.int8
        lanes = LANES if self._wide else 2 * LANES
        tiles = -(-self.outputs // lanes)

        def cut(values: NDArray[Any]) -> NDArray[Any]:
            """Values of each output, by tile."""
            whole = np.zeros((tiles * lanes, *values.shape[1:]), dtype=np.int32)
            whole[: self.outputs] = values
            return whole.reshape(tiles, lanes, *values.shape[1:])

        sources = [weight] if first is None else [weight[:, :first], weight[:, first:]]
        quads = [-(-source.shape[1] // QUAD) for source in sources]
        self._quads = quads[0], sum(quads[1:])
        side_by_side = np.zeros((self.outputs, sum(quads) * QUAD, *weight.shape[2:]), np.int32)
        for source, at in zip(sources, (0, quads[0] * QUAD), strict=False):
            side_by_side[:, at : at + source.shape[1]] = source
        digits = [cut(side_by_side)]
        if self._wide:  # 256 * high + low, a vector of each
            high = (digits[0] + 128) >> 8
            digits = [high, digits[0] - 256 * high]
        by_tap = np.concatenate(digits, axis=1).astype(np.int8)
        by_tap = by_tap.reshape(tiles, 2 * LANES, sum(quads), QUAD, -1).transpose(0, 4, 2, 1, 3)
        self._weight = np.ascontiguousarray(by_tap)
        # A tile begins with biases, halves to round, and less what zeros' bytes add too much.
        right = np.maximum(shift, 0).astype(np.int32)
        zeros = ZERO * weight.astype(np.int64).sum(axis=(1, 2, 3))
        begin = cut(bias + ((1 << right) >> 1) - zeros)
        # What a left shift may be given, so that it stays in 32 bits and passes the same limits.
        left = np.clip(-shift.astype(np.int32), 0, 15)
        bound = np.where(left > 0, SHORT_MOST + 1, np.iinfo(np.int32).max)
        ends = np.stack([begin, cut(bound), cut(left), cut(right)], axis=1)
        if self._wide:
            ends = np.concatenate([np.zeros_like(ends), ends], axis=2)
        self._ends = np.ascontiguousarray(ends, dtype=np.int32)

    def to_bytes(self, grids: tuple[Bytes, ...], plus: Bytes | None = None) -> Bytes:
        """Convolve into a new grid of 0..MOST; added to `plus`, and clamped to that."""
        out = grid(*self._places(grids), self.outputs)
        if plus is None:
            out[:] = ZERO
        self._convolve(grids, out if plus is None else plus, out)
        return out

    def to_shorts(self, grids: tuple[Bytes, ...]) -> Int16:
        """Convolve into int16 [N, h + 2, w + 2, O or more], inside a border that means nothing."""
        out = grid(*self._places(grids), len(self._weight) * 2 * LANES)
        self._convolve(grids, out, out)
        return out.view(np.int16)

    @staticmethod
    def _places(grids: tuple[Bytes, ...]) -> tuple[int, int, int]:
        count, rows, columns, _ = grids[0].shape
        return count, rows - 2, columns - 2

    def _convolve(self, grids: tuple[Bytes, ...], plus: Bytes, out: Bytes) -> None:
        layer = *self._quads, self._side, self._weight, self._ends, self._wide
        _convolve(grids[0], grids[-1], *layer, plus, out)


@intrinsic
def _tile(
    typing: Any, a: Any, a_step: Any, a_row: Any, a_quads: Any, b: Any, b_step: Any, b_row: Any,
    b_quads: Any, side: Any, weight: Any, ends: Any, wide: Any, plus: Any, plus_step: Any, out: Any,
    out_step: Any,
) -> Any:  # fmt: skip
    """Convolve at POSITIONS neighbors.

    The arguments are addresses, and distances in bytes to the next position and to a row below: of
    two grids, with the quads that each brings to a tap; the side of the kernel, its weights
    [side * side, quads, 2 * LANES, QUAD] and `ends`, and whether they are wide; of the bytes that
    are added to; and of the output.
    """
    return types.void(*[types.intp] * 16), lambda *args: _Writer(*args).write()


class _Writer:
    """Writes the code of a tile."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any) -> None:
        self.context, self.builder, self.args = context, builder, args
        self.features = context.codegen()._tm_features
        self.has_vnni = "+avx512vnni" in self.features

    def write(self) -> Any:
        """Write it."""
        many = POSITIONS if self.has_vnni else _OLD_POSITIONS
        for first in range(0, POSITIONS, many):
            self.positions(range(first, first + many))
        return self.context.get_dummy_value()

    def positions(self, places: range) -> None:
        """Write code for some positions, all of whose sums fit into registers."""
        builder = self.builder
        a, a_step, a_row, a_quads, b, b_step, b_row, b_quads = self.args[:8]
        side, weight, ends, wide, plus, plus_step, out, out_step = self.args[8:]
        variable: Any = cgutils.alloca_once_value
        begin = [self.load(self.add(ends, 64 * half), _SUMS) for half in range(2)]
        sums = [[variable(builder, value) for value in begin] for _ in places]
        for pair in sums:
            for total, value in zip(pair, begin, strict=True):
                builder.store(value, total)
        current = variable(builder, weight)
        builder.store(weight, current)
        sources = (a, a_step, a_row, a_quads), (b, b_step, b_row, b_quads)
        with cgutils.for_range(builder, side) as down, cgutils.for_range(builder, side) as right:
            for start, step, row, quads in sources:
                tap = builder.add(start, builder.mul(down.index, row))
                tap = builder.add(tap, builder.mul(right.index, step))
                with cgutils.for_range(builder, quads) as quad:
                    address = builder.load(current)
                    weights = [self.weights(self.add(address, 64 * half)) for half in range(2)]
                    builder.store(self.add(address, 128), current)
                    source = builder.add(tap, builder.mul(quad.index, self.number(QUAD)))
                    for pair, place in zip(sums, places, strict=True):
                        here = builder.add(source, builder.mul(step, self.number(place)))
                        four = self.spread(self.load(here, _SUM))
                        for total, values in zip(pair, weights, strict=True):
                            builder.store(self.dot(builder.load(total), four, values), total)
        with builder.if_else(builder.icmp_signed("!=", wide, self.number(0))) as (then, otherwise):
            for shorts, branch in ((True, then), (False, otherwise)):
                with branch:
                    for pair, place in zip(sums, places, strict=True):
                        before = builder.add(plus, builder.mul(plus_step, self.number(place)))
                        target = builder.add(out, builder.mul(out_step, self.number(place)))
                        totals = [builder.load(total) for total in pair]
                        if shorts:
                            self.finish_shorts(totals, ends, target)
                        else:
                            self.finish_bytes(totals, ends, before, target)

    def weights(self, address: Any) -> Any:
        """Load weights of four inputs; without VNNI as 16 bits, of even inputs and of odd ones."""
        builder = self.builder
        if self.has_vnni:
            return self.load(address, _SUMS)
        pairs = self.load(address, _PAIRS)
        eight = ir.Constant(_PAIRS, [8] * 2 * LANES)
        return builder.ashr(builder.shl(pairs, eight), eight), builder.ashr(pairs, eight)

    def spread(self, four: Any) -> Any:
        """Put four inputs into every lane, as `weights` does."""
        builder = self.builder
        if self.has_vnni:
            return self.splat(four)
        mask = ir.Constant(_SUM, 0x00FF00FF)
        odd = builder.lshr(four, ir.Constant(_SUM, 8))
        return tuple(
            builder.bitcast(self.splat(builder.and_(half, mask)), _PAIRS) for half in (four, odd)
        )

    def dot(self, total: Any, four: Any, weights: Any) -> Any:
        """Add the dot products of four inputs with those of each lane."""
        builder = self.builder
        if self.has_vnni:
            kind = ir.FunctionType(_SUMS, [_SUMS] * 3)
            return self.call("llvm.x86.avx512.vpdpbusd.512", kind, total, four, weights)
        for x, weight in zip(four, weights, strict=True):
            total = builder.add(total, self.pair_products(x, weight))
        return total

    def pair_products(self, x: Any, weight: Any) -> Any:
        """Multiply 16-bit numbers, and add each pair of neighbors."""
        builder = self.builder

        def pick(value: Any, lanes: range) -> Any:
            places = ir.Constant(ir.VectorType(_SUM, len(lanes)), list(lanes))
            return builder.shuffle_vector(value, value, places)

        if "+avx2" in self.features:
            half = ir.VectorType(_SHORT, LANES)
            kind = ir.FunctionType(ir.VectorType(_SUM, LANES // 2), [half] * 2)
            name = "llvm.x86.avx2.pmadd.wd"
            parts = range(LANES), range(LANES, 2 * LANES)
            low, high = (self.call(name, kind, pick(x, part), pick(weight, part)) for part in parts)
            return builder.shuffle_vector(low, high, ir.Constant(_SUMS, list(range(LANES))))
        products = []
        for odd in range(2):
            lanes = range(odd, 2 * LANES, 2)
            factors = [builder.sext(pick(value, lanes), _SUMS) for value in (x, weight)]
            products.append(builder.mul(*factors))
        return builder.add(*products)

    def finish_bytes(self, totals: Any, ends: Any, before: Any, target: Any) -> None:
        """Store bytes, added to those before."""
        octets = ir.VectorType(_OCTET, LANES)
        kind = ir.FunctionType(octets, [octets] * 2)
        for half, total in enumerate(totals):
            total = self.requantized(total, ends, half, 0, MOST)
            old = self.load(self.add(before, LANES * half), octets)
            change = self.builder.trunc(total, octets)
            new = self.call(f"llvm.uadd.sat.v{LANES}i8", kind, old, change)
            self.store(new, self.add(target, LANES * half))

    def finish_shorts(self, totals: Any, ends: Any, target: Any) -> None:
        """Store 256 * high + low."""
        eight = ir.Constant(_SUMS, [8] * LANES)
        total = self.builder.add(self.builder.shl(totals[0], eight), totals[1])
        total = self.requantized(total, ends, 1, -SHORT_MOST - 1, SHORT_MOST)
        self.store(self.builder.trunc(total, ir.VectorType(_SHORT, LANES)), target)

    def requantized(self, total: Any, ends: Any, half: int, low: int, high: int) -> Any:
        """Shift and clamp."""
        builder = self.builder
        bound, left, right = (
            self.load(self.add(ends, 128 * n + 64 * half), _SUMS) for n in (1, 2, 3)
        )
        total = self.clamped(total, builder.neg(bound), bound)
        total = builder.ashr(builder.shl(total, left), right)
        return self.clamped(total, *(ir.Constant(_SUMS, [v] * LANES) for v in (low, high)))

    def clamped(self, value: Any, low: Any, high: Any) -> Any:
        """Clamp lanes."""
        builder = self.builder
        value = builder.select(builder.icmp_signed("<", value, low), low, value)
        return builder.select(builder.icmp_signed(">", value, high), high, value)

    def splat(self, value: Any) -> Any:
        """Put a number into every lane."""
        none = ir.Constant(_SUMS, ir.Undefined)
        one = self.builder.insert_element(none, value, ir.Constant(_SUM, 0))
        return self.builder.shuffle_vector(one, none, ir.Constant(_SUMS, [0] * LANES))

    def call(self, name: str, kind: Any, *args: Any) -> Any:
        """Call a function of LLVM's."""
        declare: Any = cgutils.get_or_insert_function
        return self.builder.call(declare(self.builder.module, kind, name), args)

    def number(self, value: int) -> Any:
        """A constant."""
        return ir.Constant(_WHOLE, value)

    def add(self, address: Any, distance: int) -> Any:
        """Move an address on."""
        return self.builder.add(address, self.number(distance))

    def load(self, address: Any, kind: Any) -> Any:
        """Load from an address of any alignment."""
        value = self.builder.load(self.builder.inttoptr(address, kind.as_pointer()))
        value.align = 1
        return value

    def store(self, value: Any, address: Any) -> None:
        """Store to an address of any alignment."""
        place = self.builder.inttoptr(address, value.type.as_pointer())
        self.builder.store(value, place).align = 1


@compiled
def _convolve(
    a: Bytes,
    b: Bytes,
    a_quads: int,
    b_quads: int,
    side: int,
    weight: NDArray[np.int8],
    ends: Int32,
    wide: bool,
    plus: Bytes,
    out: Bytes,
) -> None:
    """Convolve tile by tile; the bytes of a position's tile are 2 * LANES in any case."""
    size = 2 * LANES
    count, rows, columns, a_step = a.shape
    b_step, plus_step, out_step = b.shape[3], plus.shape[3], out.shape[3]
    a_start, b_start, plus_start = a.ctypes.data, b.ctypes.data, plus.ctypes.data
    out_start, weight_start, ends_start = out.ctypes.data, weight.ctypes.data, ends.ctypes.data
    weight_size, ends_size = weight.size // len(weight), 4 * ends.size // len(ends)
    scratch = np.empty((POSITIONS, size), dtype=np.uint8)
    for n in range(count):
        for y in range(1, rows - 1):
            for x in range(1, columns - 1, POSITIONS):
                places = min(POSITIONS, columns - 1 - x)
                place = (n * rows + y) * columns + x
                # The tap that comes first.
                tap = place - side // 2 * (columns + 1)
                for t in range(weight.shape[0]):
                    used = min(size, out_step - t * size)
                    whole = places == POSITIONS and used == size
                    target = out_start + place * out_step + t * size
                    _tile(
                        a_start + tap * a_step,
                        a_step,
                        a_step * columns,
                        a_quads,
                        b_start + tap * b_step,
                        b_step,
                        b_step * columns,
                        b_quads,
                        side,
                        weight_start + t * weight_size,
                        ends_start + t * ends_size,
                        wide,
                        plus_start + place * plus_step + t * size,
                        plus_step,
                        target if whole else scratch.ctypes.data,
                        out_step if whole else size,
                    )  # type: ignore[call-arg]
                    if not whole:
                        for p in range(places):
                            for c in range(used):
                                out[n, y, x + p, t * size + c] = scratch[p, c]
