"""The machine code of convolutions of bytes: see `int8` for what they are.

A *tile* is a few neighboring positions and 2 * LANES sums for each, which stay in registers until
they are complete. What is under a row of the kernel is one *run* of bytes, a position's channels
behind another's; of its weights there are 2 * LANES for each byte, [quads, 2 * LANES, QUAD].

AMX multiplies BLOCK quads of 16 positions by those of 16 lanes at once, where the processor has it
and the system allows it; runs of weights are then filled up with zeros, so that it does not matter
what they are multiplied by. Elsewhere, VNNI adds the products of a quad, or those of two numbers of
16 bits are added. Not one of these operations rounds.

It is written in LLVM's language.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numpy.typing import NDArray

from flowarchive.loops import compiled
from flowarchive.vectors import Value, has_vnni

Bytes = NDArray[np.uint8]

LANES = 16
QUAD = 4  # bytes in a dot product
BLOCK = 16
POSITIONS = 32  # with AMX; a tile has no more

LINE = 64
"""Where arrays should begin: rows that lie across lines take AMX six times as long to load."""

ZERO = 128
"""The byte that means 0."""

MOST = 127
"""The greatest byte that comes out, less its zero."""

SHORT_MOST = (1 << 15) - 1

_VECTOR_POSITIONS = 12  # at a time, in vectors
_OLD_POSITIONS = 4  # at a time, with fewer and smaller registers
_MANY_TILES = 8  # whose weights stay in the first cache
_WHOLE, _SUM, _SHORT, _OCTET = (ir.IntType(bits) for bits in (64, 32, 16, 8))
_SUMS = ir.VectorType(_SUM, LANES)
_PAIRS = ir.VectorType(_SHORT, 2 * LANES)

_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18  # of Linux, x86-64


@functools.cache
def has_amx() -> bool:
    """Whether code is compiled for AMX, and Linux allows this process to run it."""
    if "+amx-int8" not in cpu_target.target_context.codegen()._tm_features:
        return False
    if sys.platform != "linux":
        return False
    numbers = map(ctypes.c_long, (_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA))
    return bool(ctypes.CDLL(None).syscall(*numbers) == 0)


@intrinsic
def _begin_amx(typing: Any) -> Any:
    """Say that all of AMX's tiles have 16 rows of 64 bytes."""
    return types.void(), lambda *args: _Writer(*args).begin_amx()


@intrinsic
def _end_amx(typing: Any) -> Any:
    """Let go of AMX's tiles."""
    return types.void(), lambda *args: _Writer(*args).end_amx()


@intrinsic
def _tile(
    typing: Any, a: Any, a_step: Any, a_row: Any, a_run: Any, b: Any, b_step: Any, b_row: Any,
    b_run: Any, side: Any, weight: Any, ends: Any, wide: Any, plus: Any, plus_step: Any, out: Any,
    out_step: Any, amx: Any,
) -> Any:  # fmt: skip
    """Convolve at some neighbors.

    The arguments are addresses, and distances in bytes to the next position and to a row below: of
    two grids, with the quads in a run of each; the side of the kernel, its weights and `ends`, and
    whether they are wide; of the bytes that are added to; and of the output. With `amx` there are
    POSITIONS, else _VECTOR_POSITIONS.
    """
    return types.void(*[types.intp] * 17), lambda *args: _Writer(*args).write()


class _Writer:
    """Writes the code of a tile."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any) -> None:
        self.context, self.builder, self.args = context, builder, args
        self.has_amx = "+amx-int8" in context.codegen()._tm_features
        self.has_vnni = has_vnni(context)

    def begin_amx(self) -> Any:
        """Write what comes before all tiles."""
        if self.has_amx:
            zeros, eight = [0] * 8, 8
            octets = [1, *zeros[1:], *zeros, *[LINE, 0] * eight, *zeros * 2, *[16] * eight, *zeros]
            kind = ir.ArrayType(_OCTET, len(octets))
            constant: Any = cgutils.global_constant
            shapes = constant(self.builder.module, "shapes", ir.Constant(kind, bytearray(octets)))
            self.amx("ldtilecfg", self.builder.bitcast(shapes, _OCTET.as_pointer()))
        return self.context.get_dummy_value()

    def end_amx(self) -> Any:
        """Write what comes after all tiles."""
        if self.has_amx:
            self.amx("tilerelease")
        return self.context.get_dummy_value()

    def write(self) -> Any:
        """Write a tile."""
        if self.has_amx:
            amx = self.builder.icmp_signed("!=", self.args[-1], self.number(0))
            with self.builder.if_else(amx) as (then, otherwise):
                with then:
                    self.matrices()
                with otherwise:
                    self.vectors()
        else:
            self.vectors()
        return self.context.get_dummy_value()

    def matrices(self) -> None:
        """Write code for POSITIONS.

        AMX has eight registers of 16 rows. Four hold sums, of both halves of the positions and both
        halves of the lanes; two bytes of the former, and two weights of the latter.
        """
        builder = self.builder
        a, a_step, a_row, a_run, b, b_step, b_row, b_run, side, weight, ends = self.args[:11]
        pitch, half = self.number(2 * LINE), POSITIONS // 2
        variable: Any = cgutils.alloca_once
        room = variable(builder, ir.ArrayType(_SUMS, 2 * POSITIONS))
        room.align = LINE
        sums = builder.ptrtoint(room, _WHOLE)
        current = variable(builder, _WHOLE)
        builder.store(weight, current)
        for n in range(4):
            self.load_rows(n, self.add(ends, n % 2 * LINE), self.number(0))
        for start, step, row, run in (a, a_step, a_row, a_run), (b, b_step, b_row, b_run):
            blocks = builder.sdiv(run, self.number(BLOCK))
            with cgutils.for_range(builder, side) as down:
                below = builder.add(start, builder.mul(down.index, row))
                with cgutils.for_range(builder, blocks) as block:
                    weights = builder.load(current)
                    builder.store(self.add(weights, BLOCK * 2 * LINE), current)
                    source = builder.add(below, builder.mul(block.index, self.number(LINE)))
                    later = builder.add(source, builder.mul(step, self.number(half)))
                    self.load_rows(4, source, step)
                    self.load_rows(5, later, step)
                    self.load_rows(6, weights, pitch)
                    self.load_rows(7, self.add(weights, LINE), pitch)
                    for n in range(4):
                        self.multiply_rows(n, 4 + n // 2, 6 + n % 2)
        for n in range(4):
            target = self.add(sums, n // 2 * half * 2 * LINE + n % 2 * LINE)
            self.amx("tilestored64", self.register(n), self.pointer(target), pitch)
        limits = self.limits(ends)
        with cgutils.for_range(builder, self.number(POSITIONS)) as place:
            pair = builder.add(sums, builder.mul(place.index, pitch))
            totals = [self.pointer(self.add(pair, n * LINE), _SUMS) for n in range(2)]
            self.finish(place.index, [totals], limits)

    def load_rows(self, n: int, address: Any, step: Any) -> None:
        """Load a register of AMX's, each row a step behind the last."""
        self.amx("tileloadd64", self.register(n), self.pointer(address), step)

    def multiply_rows(self, total: int, source: int, weights: int) -> None:
        """Add what a block of quads makes."""
        self.amx("tdpbusd", *(self.register(n) for n in (total, source, weights)))

    def amx(self, name: str, *args: Any) -> None:
        """Call an instruction of AMX's."""
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in args])
        self.call(f"llvm.x86.{name}", kind, *args)

    def register(self, n: int) -> Any:
        """The number of a register of AMX's."""
        return ir.Constant(_OCTET, n)

    def vectors(self) -> None:
        """Write code for _VECTOR_POSITIONS."""
        many = _VECTOR_POSITIONS if self.has_vnni else _OLD_POSITIONS
        for first in range(0, _VECTOR_POSITIONS, many):
            self.positions(range(first, first + many))

    def positions(self, places: range) -> None:
        """Write code for some positions, all of whose sums fit into registers."""
        builder = self.builder
        a, a_step, a_row, a_run, b, b_step, b_row, b_run, side, weight, ends = self.args[:11]
        variable: Any = cgutils.alloca_once_value
        begin = [self.load(self.add(ends, 64 * half), _SUMS) for half in range(2)]
        sums = [[variable(builder, value) for value in begin] for _ in places]
        for pair in sums:
            for total, value in zip(pair, begin, strict=True):
                builder.store(value, total)
        current = variable(builder, weight)
        builder.store(weight, current)
        for start, step, row, run in (a, a_step, a_row, a_run), (b, b_step, b_row, b_run):
            with cgutils.for_range(builder, side) as down:
                below = builder.add(start, builder.mul(down.index, row))
                with cgutils.for_range(builder, run) as quad:
                    address = builder.load(current)
                    weights = [self.weights(self.add(address, 64 * half)) for half in range(2)]
                    builder.store(self.add(address, 128), current)
                    source = builder.add(below, builder.mul(quad.index, self.number(QUAD)))
                    for pair, place in zip(sums, places, strict=True):
                        here = builder.add(source, builder.mul(step, self.number(place)))
                        four = self.spread(self.load(here, _SUM))
                        for total, values in zip(pair, weights, strict=True):
                            builder.store(self.dot(builder.load(total), four, values), total)
        self.finish(self.number(places.start), sums, self.limits(ends))

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
            return Value(builder, four).spread(LANES).value
        mask = ir.Constant(_SUM, 0x00FF00FF)
        odd = builder.lshr(four, ir.Constant(_SUM, 8))
        return tuple(
            Value(builder, builder.and_(half, mask)).spread(LANES).bits(_PAIRS).value
            for half in (four, odd)
        )

    def dot(self, total: Any, four: Any, weights: Any) -> Any:
        """Add the dot products of four inputs with those of each lane."""
        builder = self.builder
        if self.has_vnni:
            kind = ir.FunctionType(_SUMS, [_SUMS] * 3)
            return self.call("llvm.x86.avx512.vpdpbusd.512", kind, total, four, weights)
        whole = Value(builder, total)
        for x, weight in zip(four, weights, strict=True):
            pairs = Value(builder, x), Value(builder, weight)
            whole = whole.plus_pair_products(*pairs, self.context)
        return whole.value

    def limits(self, ends: Any) -> list[tuple[Any, Any, Any]]:
        """Load bounds and shifts of both halves of a tile's lanes."""
        bound, left, right = (
            [self.load(self.add(ends, 128 * n + 64 * half), _SUMS) for half in range(2)]
            for n in (1, 2, 3)
        )
        return list(zip(bound, left, right, strict=True))

    def finish(self, first: Any, sums: Any, limits: Any) -> None:
        """Store what is made of the sums of some positions."""
        builder = self.builder
        wide, plus, plus_step, out, out_step = self.args[11:16]
        with builder.if_else(builder.icmp_signed("!=", wide, self.number(0))) as (then, otherwise):
            for shorts, branch in ((True, then), (False, otherwise)):
                with branch:
                    for n, pair in enumerate(sums):
                        place = self.add(first, n)
                        totals = [builder.load(total) for total in pair]
                        target = builder.add(out, builder.mul(out_step, place))
                        if shorts:
                            self.finish_shorts(totals, limits, target)
                        else:
                            before = builder.add(plus, builder.mul(plus_step, place))
                            self.finish_bytes(totals, limits, before, target)

    def finish_bytes(self, totals: Any, limits: Any, before: Any, target: Any) -> None:
        """Store bytes, added to those before."""
        octets = ir.VectorType(_OCTET, LANES)
        kind = ir.FunctionType(octets, [octets] * 2)
        for half, total in enumerate(totals):
            total = self.shifted(total, self.all(0), *limits[half])
            total = Value(self.builder, total).at_most(MOST).value
            old = self.load(self.add(before, LANES * half), octets)
            change = self.builder.trunc(total, octets)
            new = self.call(f"llvm.uadd.sat.v{LANES}i8", kind, old, change)
            self.store(new, self.add(target, LANES * half))

    def finish_shorts(self, totals: Any, limits: Any, target: Any) -> None:
        """Store 256 * high + low."""
        total = self.builder.add(self.builder.shl(totals[0], self.all(8)), totals[1])
        total = self.shifted(total, self.builder.neg(limits[1][0]), *limits[1])
        total = self.clamped(total, self.all(-SHORT_MOST - 1), self.all(SHORT_MOST))
        self.store(self.builder.trunc(total, ir.VectorType(_SHORT, LANES)), target)

    def shifted(self, total: Any, least: Any, bound: Any, left: Any, right: Any) -> Any:
        """Shift what stays in 32 bits then."""
        builder = self.builder
        return builder.ashr(builder.shl(self.clamped(total, least, bound), left), right)

    def clamped(self, value: Any, low: Any, high: Any) -> Any:
        """Clamp lanes."""
        builder = self.builder
        return Value(builder, value).clamped(Value(builder, low), Value(builder, high)).value

    def all(self, value: int) -> Any:
        """The same constant in every lane."""
        return ir.Constant(_SUMS, [value] * LANES)

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
        value = self.builder.load(self.pointer(address, kind))
        value.align = 1
        return value

    def store(self, value: Any, address: Any) -> None:
        """Store to an address of any alignment."""
        self.builder.store(value, self.pointer(address, value.type)).align = 1

    def pointer(self, address: Any, kind: Any = _OCTET) -> Any:
        """Make an address what LLVM takes for one."""
        return self.builder.inttoptr(address, kind.as_pointer())


@compiled
def aligned(size: int, room: int) -> Bytes:
    """Make bytes of nothing that begin a line of the processor's, with room behind them."""
    cells = np.empty(size + room + LINE, dtype=np.uint8)
    start = -cells.ctypes.data % LINE
    return cells[start : start + size]


@compiled
def new_grid(count: int, rows: int, columns: int, channels: int) -> Bytes:
    """Make a grid of nothing, with a border of zeros.

    Args:
        count: How many planes.
        rows: Of each, with its border.
        columns: Alike.
        channels: Whole quads.

    Returns:
        [count, rows, columns, channels], with room for the last tile, which goes on behind it.
    """
    out = _unmade(count, rows, columns, channels)
    _set_border(out)
    return out


@compiled
def _unmade(count: int, rows: int, columns: int, channels: int) -> Bytes:
    room = POSITIONS * channels + BLOCK * QUAD
    cells = aligned(count * rows * columns * channels, room)
    return cells.reshape((count, rows, columns, channels))


@compiled
def _set_border(cells: Bytes) -> None:
    """Zero the border of a grid."""
    count, rows, columns, _ = cells.shape
    for n in range(count):
        cells[n, 0] = ZERO
        for i in range(1, rows - 1):
            cells[n, i, 0] = ZERO
            cells[n, i, columns - 1] = ZERO
        cells[n, rows - 1] = ZERO


@compiled
def convolve(
    a: Bytes,
    b: Bytes,
    a_run: int,
    b_run: int,
    side: int,
    weight: NDArray[np.int8],
    ends: NDArray[np.int32],
    wide: bool,
    amx: bool,
    plus: Bytes,
    adds: bool,
    channels: int,
) -> Bytes:
    """Convolve into a new grid.

    Args:
        a: A grid, with room behind it; see `new_grid`.
        b: Another, or the same.
        a_run: Quads of `a` in a run of weights; whole blocks for AMX.
        b_run: The same of `b`, 0 for none.
        side: Of the kernel.
        weight: [tiles, side runs for `a` and then side for `b`].
        ends: What a sum begins with, the bound of what is shifted to the left, by how much it is,
            and by how much to the right, [tiles, 4, 2 * LANES].
        wide: Whether the halves of a tile's lanes are digits of int16 numbers, high and low.
        amx: Whether to use AMX; see `has_amx`.
        plus: A grid of what is added to, unless `wide`.
        adds: Whether it is, and not zeros.
        channels: Of the new grid; 2 * LANES of these bytes are a tile's in any case.

    Returns:
        A grid of bytes; if `wide`, of the bytes of int16 numbers, and its border means nothing.
    """
    size = 2 * LANES
    count, rows, columns, _ = a.shape
    out = _unmade(count, rows, columns, channels)
    if not (wide or adds):
        out[:] = ZERO
        plus = out
    positions = count * rows * columns
    a_step, b_step, plus_step, out_step = a.shape[3], b.shape[3], plus.shape[3], channels
    a_start, b_start, plus_start = a.ctypes.data, b.ctypes.data, plus.ctypes.data
    flat = out.reshape((positions, channels))
    scratch = np.empty((POSITIONS, size), dtype=np.uint8)
    out_start, weight_start, ends_start = out.ctypes.data, weight.ctypes.data, ends.ctypes.data
    weight_size, ends_size = weight.size // len(weight), 4 * ends.size // len(ends)
    many = POSITIONS if amx else _VECTOR_POSITIONS
    # From the first position that is no border to the last. Borders between them are overwritten,
    # and up to POSITIONS - 1 positions behind them.
    stop = positions - columns - 1
    if amx:
        _begin_amx()  # type: ignore[call-arg]
    for part in range(columns + 1, stop, _MANY_TILES * many):
        for t in range(len(weight)):
            used = min(size, out_step - t * size)
            for place in range(part, min(stop, part + _MANY_TILES * many), many):
                # The tap that comes first.
                tap = place - side // 2 * (columns + 1)
                target = out_start + place * out_step + t * size
                _tile(
                    a_start + tap * a_step,
                    a_step,
                    a_step * columns,
                    a_run,
                    b_start + tap * b_step,
                    b_step,
                    b_step * columns,
                    b_run,
                    side,
                    weight_start + t * weight_size,
                    ends_start + t * ends_size,
                    wide,
                    plus_start + place * plus_step + t * size,
                    plus_step,
                    target if used == size else scratch.ctypes.data,
                    out_step if used == size else size,
                    amx,
                )  # type: ignore[call-arg]
                if used < size:
                    for p in range(min(many, stop - place)):
                        for c in range(used):
                            flat[place + p, t * size + c] = scratch[p, c]
    if amx:
        _end_amx()
    if not wide:
        _set_border(out)
    return out
