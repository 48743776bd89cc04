"""Section "Motion": fields from the message, and planes seen through them."""

from __future__ import annotations

from reference.message import Message
from reference.networks import clamp
from reference.refusal import demand

Plane = list[list[int]]
Vector = tuple[int, int]
Field = list[list[Vector]]

MAX_VECTOR = 2047
HALF = [
    [0, 0, 0, 64, 0, 0, 0, 0],
    [0, 1, -3, 63, 4, -2, 1, 0],
    [-1, 2, -5, 62, 8, -3, 1, 0],
    [-1, 3, -8, 60, 13, -4, 1, 0],
    [-1, 4, -10, 58, 17, -5, 1, 0],
    [-1, 4, -11, 52, 26, -8, 3, -1],
    [-1, 3, -9, 47, 31, -10, 4, -1],
    [-1, 4, -11, 45, 34, -10, 4, -1],
    [-1, 4, -11, 40, 40, -11, 4, -1],
]
TAPS = HALF + [HALF[16 - p][::-1] for p in range(9, 16)]
# fmt: off
DEFAULTS = [
    2171, 16490, 22493, 16369, 24035, 28874, 1769, 10285, 14480, 5241, 11859, 16684,
    8851, 16599, 18910, 614, 10455, 27580, 2234, 8249, 27617, 3177, 16631, 32294,
    6685, 13582, 14835, 8044, 14212, 11502, 6870, 11203, 10113, 7069, 21301, 30740,
    9728, 25657, 21264, 8801, 21977, 26095, 6444, 13662, 13271, 6705, 14468, 14259,
    5180, 9705, 12502, 4231, 11633, 23258, 4558, 15788, 26213, 8676, 12163, 26963,
    3372, 4318, 11187, 4496, 5747, 12841, 5747, 6262, 14769, 3736, 7550, 14885,
    4294, 11150, 20471, 10120, 13447, 24193, 13636, 16384, 12480, 16384, 7347, 16384,
    6056, 16384, 6372, 16384, 15086, 200, 15197, 575, 9869, 969, 8425, 900,
    5594, 752, 18271, 16861, 8064, 25626, 18091, 19188, 19415, 20393, 14147, 4671,
    10035, 16384, 16384, 16384, 7123, 10416, 9615, 8752, 11100, 18780, 11824, 10491,
    16384, 16384, 16384, 16384, 18047, 16582, 8205, 6978, 10593, 16678, 8031, 12088,
    13661, 16384, 16384, 16384, 25365, 22763, 13051, 8025, 6162, 13764, 10430, 4126,
    16384, 16384, 16384, 16384, 30196, 27073, 21982, 18239, 14713, 14927, 11300, 2872,
    3154, 15152, 16384, 16384, 6144, 23453, 13903, 14375, 19075, 11930, 8089, 11818,
    15004, 16384, 16384, 16384, 6783, 10208, 8947, 9192, 15671, 10877, 13648, 11700,
    16384, 16384, 16384, 16384, 17559, 15029, 8364, 7037, 12565, 13644, 8677, 10454,
    14732, 16384, 16384, 16384, 24001, 21780, 12673, 6559, 9467, 12033, 11919, 5433,
    12746, 16384, 16384, 16384, 29582, 27281, 20956, 17928, 15681, 13847, 9154, 3333,
    2861, 16384, 16384, 16384, 16384, 10642, 5870, 9509, 9835, 10499, 12145, 6149,
    7117, 15152, 16384, 16384,
]
# fmt: on


def zero_field(height: int, width: int) -> Field:
    """The field of luma that does not move."""
    return [[(0, 0)] * -(-width // 8) for _ in range(-(-height // 8))]


def doubled(field: Field) -> Field:
    """The hints of a field against the second reference."""
    return [
        [(clamp(2 * y, -MAX_VECTOR, MAX_VECTOR), clamp(2 * x, -MAX_VECTOR, MAX_VECTOR))
         for y, x in row]
        for row in field
    ]  # fmt: skip


def fold(large: int, small: int) -> int:
    """By how much a plane is smaller than luma in one direction."""
    return next(f for f in (1, 2, 4) if -(-large // f) == small)


def compensate(
    plane: Plane, field: Field, luma_shape: tuple[int, int], low: int, high: int
) -> Plane:
    """Section "Compensation"."""
    h, w = len(plane), len(plane[0])
    fold_y, fold_x = fold(luma_shape[0], h), fold(luma_shape[1], w)
    result = []
    for y in range(h):
        row = []
        for x in range(w):
            dy, dx = field[y // (8 // fold_y)][x // (8 // fold_x)]
            vy, vx = dy * (4 // fold_y), dx * (4 // fold_x)
            total = 0
            for i, down in enumerate(TAPS[vy % 16]):
                source = plane[clamp(y + (vy >> 4) + i - 3, 0, h - 1)]
                for j, across in enumerate(TAPS[vx % 16]):
                    total += down * across * source[clamp(x + (vx >> 4) + j - 3, 0, w - 1)]
            row.append(clamp((total + 512) >> 10, 4 * low, 4 * high))
        result.append(row)
    return result


class Decision:
    """The entropy model of one decision: symbol 1 is a yes."""

    precision = 15

    def __init__(self, chance: int) -> None:
        self.chance = chance

    def find(self, slot: int) -> tuple[int, int, int]:
        """The decision that owns a slot."""
        return (1, 0, self.chance) if slot < self.chance else (0, self.chance, 2**15 - self.chance)


class VectorModel:
    """What a chunk has shown of the fields against one of the references."""

    def __init__(self) -> None:
        self.state = [[number, number] for number in DEFAULTS]

    def chance(self, context: int | None) -> int:
        """The frequency of a yes; None is an even chance."""
        if context is None:
            return 2**14
        return clamp(sum(self.state[context]) >> 1, 24, 2**15 - 24)

    def learn(self, context: int | None, yes: int) -> None:
        """Move the context's numbers."""
        if context is not None:
            goal = yes * 2**15
            for n, rate in enumerate((4, 7)):
                self.state[context][n] += (goal - self.state[context][n]) >> rate


def close(a: Vector, b: Vector) -> bool:
    """Whether two vectors are close."""
    return abs(a[0] - b[0]) + abs(a[1] - b[1]) <= 4


class FieldReader:
    """Pops one field.

    Args:
        message: Gives the bits.
        hints: The field of hints.
        model: Of the reference.
    """

    def __init__(self, message: Message, hints: Field, model: VectorModel) -> None:
        self.array = message.begin_array()
        self.hints, self.model = hints, model
        self.rows, self.columns = len(hints), len(hints[0])
        self.vectors = [[(0, 0)] * self.columns for _ in range(self.rows)]

    def read(self) -> Field:
        """Section "Order of a field"."""
        for i in range(0, self.rows, 2):
            for j in range(0, self.columns, 2):
                blocks = self._blocks(i, j)
                split = 0
                if len(blocks) > 1:
                    context = 3 * self._differ(self.hints, i, j)
                    context += j > 0 and self._differ(self.vectors, i, j - 2)
                    context += i > 0 and self._differ(self.vectors, i - 2, j)
                    split = self._decide(context)
                whole = None if split else self._vector(i, j, 1)
                for r, c in blocks:
                    self.vectors[r][c] = whole or self._vector(r, c, 0)
        self.array.end()
        return self.vectors

    def _blocks(self, i: int, j: int) -> list[tuple[int, int]]:
        rows, columns = range(i, min(i + 2, self.rows)), range(j, min(j + 2, self.columns))
        return [(r, c) for r in rows for c in columns]

    def _differ(self, field: Field, i: int, j: int) -> bool:
        return len({field[r][c] for r, c in self._blocks(i, j)}) > 1

    def _decide(self, context: int | None) -> int:
        yes = self.array.pop(Decision(self.model.chance(context)))
        self.model.learn(context, yes)
        return yes

    def _candidates(self, r: int, c: int, size: int) -> list[Vector]:
        near = [self.hints[r][c]]
        near.append(self.vectors[r][c - 1] if c > 0 else near[0])
        near.append(self.vectors[r - 1][c] if r > 0 else near[1])
        right = c + size + 1
        if r > 0 and right < self.columns and not (size == 0 and r % 2 and c % 2):
            near.append(self.vectors[r - 1][right])
        else:
            near.append(self.vectors[r - 1][c - 1] if r > 0 and c > 0 else near[2])
        return near

    def _vector(self, r: int, c: int, size: int) -> Vector:
        """Section "A vector"."""
        near = self._candidates(r, c, size)
        like = (c == 0 or self.vectors[r][c - 1] == self.hints[r][c - 1]) + (
            r == 0 or self.vectors[r - 1][c] == self.hints[r - 1][c]
        )
        likeness = [
            min(2, near[1:].count(near[0])),
            near[2:].count(near[1]),
            2 if near[2] == near[3] else int(close(near[1], near[2])),
            close(near[1], near[3]) + close(near[2], near[3]),
        ]
        for m in range(4):
            context = 6 + 18 * m + 9 * size + 3 * like + likeness[m]
            if near[m] not in near[:m] and self._decide(context):
                return near[m]
        found, still = [], 0
        for k in (0, 1):
            values = [n[k] for n in near]
            spread = sum(max(values) - min(values) > edge for edge in (0, 2, 6, 16))
            d = self._difference(k, 5 * k + spread, still)
            still = int(d == 0)
            found.append(sorted(values[1:])[1] + d)
            demand(abs(found[k]) <= MAX_VECTOR, "a vector that is too long")
        return found[0], found[1]

    def _difference(self, k: int, row: int, still: int) -> int:
        if self._decide(78 + 2 * row + still):
            return 0
        sign = -1 if self._decide(98 + k) else 1
        level = 0
        while level < 11 and self._decide(100 + 12 * row + level):
            level += 1
        magnitude = 1
        for bit in range(level):
            magnitude = 2 * magnitude + self._decide(None if bit else 220 + level)
        return sign * magnitude


def pop_field(message: Message, hints: Field, model: VectorModel) -> Field:
    """Pop a field with its hints."""
    return FieldReader(message, hints, model).read()
