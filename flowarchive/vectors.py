"""Vectors of numbers in processor registers, for loops that no compiler would make of them.

Code is written in LLVM's language by Python's operators: a `Value` stands for one number, or for
lanes of them, that there will be when the code runs. Integers have a sign. Floats are multiplied
and added as written, each operation with a rounding of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba.core import cgutils

INT16, INT32, INT64 = (ir.IntType(bits) for bits in (16, 32, 64))
FLOAT64 = ir.DoubleType()


def lanes(kind: Any, count: int) -> Any:
    """The type of `count` numbers of a kind."""
    return ir.VectorType(kind, count)


def has_vnni(context: Any) -> bool:
    """Whether the processor that code is written for multiplies and adds in one instruction."""
    return "+avx512vnni" in context.codegen()._tm_features


class Value:
    """One number or a vector, as the instructions of a builder see it."""

    def __init__(self, builder: Any, value: Any) -> None:
        """Wrap what an instruction gave."""
        self._builder, self.value = builder, value

    @property
    def kind(self) -> Any:
        """The type, of LLVM's."""
        return self.value.type

    def constant(self, number: Any) -> Value:
        """A number, or one for each lane, of this kind."""
        if isinstance(self.kind, ir.VectorType) and not isinstance(number, list):
            number = [number] * self.kind.count
        return self._of(ir.Constant(self.kind, number))

    def __add__(self, other: Value | int) -> Value:
        return self._joined("fadd" if self._is_float() else "add", other)

    def __sub__(self, other: Value | int) -> Value:
        return self._joined("fsub" if self._is_float() else "sub", other)

    def __mul__(self, other: Value | int) -> Value:
        return self._joined("fmul" if self._is_float() else "mul", other)

    def __truediv__(self, other: Value) -> Value:
        return self._joined("fdiv", other)

    def __and__(self, other: Value | int) -> Value:
        return self._joined("and_", other)

    def __or__(self, other: Value | int) -> Value:
        return self._joined("or_", other)

    def __lshift__(self, other: Value | int) -> Value:
        return self._joined("shl", other)

    def __rshift__(self, other: Value | int) -> Value:
        return self._joined("ashr", other)

    def clamped(self, low: Value | int, high: Value | int) -> Value:
        """The nearest integer in low..high."""
        return self._chosen("<", low)._chosen(">", high)

    def at_least(self, low: Value | int) -> Value:
        """The greater integer."""
        return self._chosen("<", low)

    def at_most(self, high: Value | int) -> Value:
        """The lesser integer."""
        return self._chosen(">", high)

    def magnitude(self) -> Value:
        """Without the sign."""
        return self.unless(self, "<", self.constant(0), self.constant(0) - self)

    def reaches(self, bound: Value | int) -> Value:
        """1 where the bound is not greater, 0 elsewhere."""
        holds = self._builder.icmp_signed(">=", self.value, self._other(bound).value)
        return self._of(self._builder.zext(holds, self.kind))

    def unless(self, a: Value, relation: str, b: Value, other: Value) -> Value:
        """This value, or another where a relation of two integers holds."""
        holds = self._builder.icmp_signed(relation, a.value, b.value)
        return self._of(self._builder.select(holds, other.value, self.value))

    def to(self, kind: Any) -> Value:
        """An integer of another width, or as a float; a float without its fraction."""
        new, old = (k.element if isinstance(k, ir.VectorType) else k for k in (kind, self.kind))
        if isinstance(new, ir.DoubleType):
            return self._of(self._builder.sitofp(self.value, kind))
        if isinstance(old, ir.DoubleType):
            return self._of(self._builder.fptosi(self.value, kind))
        widen = new.width > old.width
        return self._of((self._builder.sext if widen else self._builder.trunc)(self.value, kind))

    def bits(self, kind: Any) -> Value:
        """The same bits as another type."""
        return self._of(self._builder.bitcast(self.value, kind))

    def spread(self, count: int) -> Value:
        """A vector with this number in every lane."""
        none = ir.Constant(lanes(self.kind, count), ir.Undefined)
        one = self._builder.insert_element(none, self.value, ir.Constant(INT32, 0))
        places = ir.Constant(lanes(INT32, count), [0] * count)
        return self._of(self._builder.shuffle_vector(one, none, places))

    def picked(self, places: list[int], other: Value | None = None) -> Value:
        """Some of the lanes, those of `other` counted on."""
        chosen = ir.Constant(lanes(INT32, len(places)), places)
        second = self if other is None else other
        return self._of(self._builder.shuffle_vector(self.value, second.value, chosen))

    def load(self, kind: Any) -> Value:
        """What lies at this address, which may have any alignment."""
        loaded = self._builder.load(self._builder.inttoptr(self.value, kind.as_pointer()))
        loaded.align = 1
        return self._of(loaded)

    def store(self, value: Value) -> None:
        """Put something at this address, which may have any alignment."""
        place = self._builder.inttoptr(self.value, value.kind.as_pointer())
        self._builder.store(value.value, place).align = 1

    def store_first(self, value: Value, count: Value) -> None:
        """Put the first lanes of a vector, no more than `count`, at this address."""
        kind, size = value.kind, value.kind.count
        mask, pointer = lanes(ir.IntType(1), size), kind.as_pointer()
        few = count.spread(size)
        places = few.constant(list(range(size)))
        self.call(
            f"llvm.masked.store.v{size}i{kind.element.width}.p0",
            ir.FunctionType(ir.VoidType(), [kind, pointer, INT32, mask]),
            value,
            self._of(self._builder.inttoptr(self.value, pointer)),
            self._of(ir.Constant(INT32, 1)),
            self._of(self._builder.icmp_signed("<", places.value, few.value)),
        )

    def gather(self, kind: Any) -> Value:
        """The numbers that lie at these addresses, whole multiples of their size."""
        count = self.kind.count
        found = lanes(kind, count)
        pointers = lanes(kind.as_pointer(), count)
        mask = lanes(ir.IntType(1), count)
        name = f"llvm.masked.gather.v{count}i{kind.width}.v{count}p0"
        function = ir.FunctionType(found, [pointers, INT32, mask, found])
        return self.call(
            name,
            function,
            self._of(self._builder.inttoptr(self.value, pointers)),
            self._of(ir.Constant(INT32, kind.width // 8)),
            self._of(ir.Constant(mask, [1] * count)),
            self._of(ir.Constant(found, ir.Undefined)),
        )

    def call(self, name: str, function: Any, *args: Value) -> Value:
        """What a function of LLVM's makes of some values."""
        declare: Any = cgutils.get_or_insert_function
        declared = declare(self._builder.module, function, name)
        return self._of(self._builder.call(declared, [value.value for value in args]))

    def plus_pair_products(self, a: Value, b: Value, context: Any) -> Value:
        """Add the products of 16-bit numbers, those of two neighbors to each 32-bit lane.

        Args:
            a: A vector of twice as many lanes; this one has 8 or 16.
            b: Alike.
            context: Of the code that is written; it knows the processor.
        """
        count = self.kind.count
        if has_vnni(context):
            # LLVM takes the pairs for lanes of 32 bits.
            name = f"llvm.x86.avx512.vpdpwssd.{32 * count}"
            function = ir.FunctionType(self.kind, [self.kind] * 3)
            return self.call(name, function, self, a.bits(self.kind), b.bits(self.kind))
        if "+avx2" in context.codegen()._tm_features:
            function = ir.FunctionType(lanes(INT32, 8), [lanes(INT16, 16)] * 2)
            low, *high = (
                self.call("llvm.x86.avx2.pmadd.wd", function, a.picked(part), b.picked(part))
                for part in (list(range(n, n + 16)) for n in range(0, 2 * count, 16))
            )
            return self + low.picked(list(range(count)), *high)
        total = self
        for odd in range(2):
            part = list(range(odd, 2 * count, 2))
            total += a.picked(part).to(self.kind) * b.picked(part).to(self.kind)
        return total

    def range(self) -> Any:
        """Repeat what is written under `with` as often as this number says, with an index."""
        return _repeat(self._builder, self)

    def equals(self, number: int) -> Any:
        """Do what is written under `with` where this is a number."""
        holds = self._builder.icmp_signed("==", self.value, self._other(number).value)
        return self._builder.if_then(holds)

    def variable(self) -> Variable:
        """A variable that begins with this value."""
        return Variable(self._builder, self)

    def _is_float(self) -> bool:
        kind = self.kind.element if isinstance(self.kind, ir.VectorType) else self.kind
        return isinstance(kind, ir.DoubleType)

    def _of(self, value: Any) -> Value:
        return Value(self._builder, value)

    def _other(self, other: Value | int) -> Value:
        return other if isinstance(other, Value) else self.constant(other)

    def _joined(self, operation: str, other: Value | int) -> Value:
        return self._of(getattr(self._builder, operation)(self.value, self._other(other).value))

    def _chosen(self, relation: str, bound: Value | int) -> Value:
        limit = self._other(bound).value
        passed = self._builder.icmp_signed(relation, self.value, limit)
        return self._of(self._builder.select(passed, limit, self.value))


def interleaved(vectors: list[Value]) -> list[Value]:
    """Put the first lanes of vectors behind each other, then the second ones, and so on."""
    count, size = len(vectors), vectors[0].kind.count
    out = []
    for start in range(0, count * size, size):
        place = range(start, start + size)
        found = vectors[0].picked([n // count for n in place])
        for k, vector in enumerate(vectors[1:], 1):
            lanes_of = [size + n // count if n % count == k else n - start for n in place]
            found = found.picked(lanes_of, vector)
        out.append(found)
    return out


class Variable:
    """A value that changes; in a register, once LLVM has seen to it."""

    def __init__(self, builder: Any, value: Value) -> None:
        """Begin with a value."""
        self._builder = builder
        allocate: Any = cgutils.alloca_once
        self._place = allocate(builder, value.kind)
        self.set(value)

    def get(self) -> Value:
        """The value now."""
        return Value(self._builder, self._builder.load(self._place))

    def set(self, value: Value) -> None:
        """Change it."""
        self._builder.store(value.value, self._place)


@contextmanager
def _repeat(builder: Any, count: Value) -> Iterator[Value]:
    with cgutils.for_range(builder, count.value) as loop:
        yield Value(builder, loop.index)
