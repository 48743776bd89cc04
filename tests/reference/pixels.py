"""Section "Pixels": the coded planes of a chunk from binary decisions."""

from __future__ import annotations

from reference.message import Message
from reference.mixture import SIGMOID
from reference.networks import Plane, Planes
from reference.planes import Shape
from reference.refusal import demand

Pixels = list[list[int]]

WORD = 2**64
K = [pow(0x9E3779B97F4A7C15, i, WORD) for i in range(15)]
REACH = 3071


def nearest(x: int, low: int, high: int) -> int:
    """The nearest of low..high to x."""
    return max(low, min(high, x))


def octaves(d: int) -> int:
    """Section "Samples"."""
    return d.bit_length() if d >= 0 else -d.bit_length()


def half_octaves(a: int) -> int:
    """Section "Samples"."""
    return a if a < 2 else 2 * a.bit_length() + (a >> (a.bit_length() - 2)) % 2


def scramble(h: int) -> int:
    """Section "Neighborhoods"."""
    h %= WORD
    u = (h ^ (h >> 32)) * K[1] % WORD
    return u ^ (u >> 32)


def squash(x: int) -> int:
    """Section "Decisions"."""
    i, part = divmod(x + 4608, 4)
    return (SIGMOID[i] + (SIGMOID[i + 1] - SIGMOID[i]) * part // 4) >> 8


SQUASH = {x: squash(x) for x in range(-REACH, REACH + 1)}


def stretch_table() -> list[int]:
    """Section "Decisions"."""
    table = []
    x = -REACH
    for u in range(4096):
        while x < REACH and SQUASH[x] < 16 * u + 8:
            x += 1
        table.append(x)
    return table


STRETCH = stretch_table()


class Decision:
    """A yes of a given frequency, out of 2**15."""

    precision = 15

    def __init__(self, yes: int) -> None:
        self.yes = yes

    def find(self, slot: int) -> tuple[int, int, int]:
        """The (symbol, start, freq) of the slot."""
        return (1, 0, self.yes) if slot < self.yes else (0, self.yes, 2**15 - self.yes)


class Mixer:
    """Section "Decisions": pops them and learns."""

    def __init__(self, message: Message, line_bits: int) -> None:
        self.message, self.line_bits = message, line_bits
        self.slots: dict[tuple[int, int], tuple[int, int]] = {}
        self.weights = [[8192] * 8 for _ in range(1504)]

    def pop(self, contexts: list[int], page: int, slot: int, first: int, second: int) -> bool:
        """One decision."""
        places = [
            ((c + page * K[5]) * K[1] % WORD >> (64 - self.line_bits), slot) for c in contexts
        ]
        said = [STRETCH[self.slots.get(place, (2**21, 0))[0] >> 10] for place in places]
        sets = self.weights[first], self.weights[second]
        total = sum(z * (sets[0][i] + sets[1][i]) for i, z in enumerate(said))
        p = SQUASH[nearest(total >> 16, -REACH, REACH)]
        yes = bool(self.message.pop_array([Decision(nearest(p >> 1, 1, 32767))])[0])
        error = 65535 * yes - p
        for i, place in enumerate(places):
            for weights in sets:
                weights[i] += (said[i] * error + 32768) >> 16
            chance, count = self.slots.get(place, (2**21, 0))
            goal = 2**22 - 1 if yes else 0
            chance += (goal - chance) * (131072 // (2 * count + 3)) >> 16
            self.slots[place] = chance, min(count + 1, 255)
        return yes


class Walk:
    """The walk through the frames of a chunk."""

    def __init__(
        self, message: Message, count: int, letters: str, shapes: list[Shape], bits: int
    ) -> None:
        self.letters, self.shapes, self.bits = letters, shapes, bits
        order = list(range(len(shapes)))
        if letters[:3] == "RGB":
            order[:2] = [1, 0]
        self.groups: list[list[int]] = []
        for plane in order:
            if self.groups and shapes[self.groups[-1][0]] == shapes[plane]:
                self.groups[-1].append(plane)
            else:
                self.groups.append([plane])
        pixels = count * sum(shapes[group[0]][0] * shapes[group[0]][1] for group in self.groups)
        s = pixels.bit_length()
        self.mixer = Mixer(message, nearest(s + 1, 11, 21))
        self.table_bits = nearest(s, 10, 20)
        self.entries: dict[int, tuple[int, int]] = {}

    def pop_frame(self, last: list[Pixels] | None) -> tuple[list[Pixels], Planes]:
        """The pixels of a frame's groups, and its planes; `last` has those of the frame before."""
        now: list[Pixels] = []
        planes: Planes = [[] for _ in self.shapes]
        for number, group in enumerate(self.groups):
            before = None if last is None else last[number]
            now.append(GroupWalk(self, number, now[0] if number else None, before).pop())
            for j, plane in enumerate(group):
                planes[plane] = [[pixel >> 16 * j & 65535 for pixel in row] for row in now[-1]]
        return now, planes


class GroupWalk:
    """The walk through one group of one frame."""

    def __init__(self, chunk: Walk, number: int, first: Pixels | None, last: Pixels | None) -> None:
        self.chunk, self.number, self.first, self.last = chunk, number, first, last
        self.planes = chunk.groups[number]
        self.height, self.width = chunk.shapes[self.planes[0]]
        self.rows: Pixels = []
        self.outcome: dict[tuple[int, int], int] = {}
        self.rest: dict[tuple[int, int, int], int] = {}

    def pop(self) -> Pixels:
        """All its pixels."""
        for y in range(self.height):
            self.rows.append([])
            for x in range(self.width):
                self.rows[y].append(self.pixel(y, x))
        return self.rows

    def at(self, rows: Pixels, y: int, x: int) -> int:
        """A pixel of an extended row."""
        if y < 0:
            return 0
        if x < 0:
            return rows[y - 1][0] if y else 0
        return rows[y][min(x, self.width - 1)]

    def guide(self, y: int, x: int) -> int:
        """Section "Groups and pixels"."""
        if self.first is None:
            return 0
        full_h, full_w = len(self.first), len(self.first[0])
        y, x = y * full_h // self.height, x * full_w // self.width
        below, beside = min(y + 1, full_h - 1), min(x + 1, full_w - 1)
        a, b = self.first[y][x], self.first[y][beside]
        c, d = self.first[below][x], self.first[below][beside]
        return (a + 2**16 * b + 2**32 * c + 2**48 * d) % WORD

    def pixel(self, y: int, x: int) -> int:
        """Section "Guesses": one pixel."""
        entries, group = self.chunk.entries, self.number

        def near(dy: int, dx: int) -> int:
            return self.at(self.rows, y + dy, x + dx)

        def past_of(dy: int, dx: int) -> int:
            return self.outcome.get((y + dy, x + dx), 0)

        w, ww, n, nn = near(0, -1), near(0, -2), near(-1, 0), near(-2, 0)
        nw, ne = near(-1, -1), near(-1, 1)
        pair = w * K[1] + n * K[2] + self.guide(y, x) * K[3] + group * K[4]
        small = pair + nw * K[5] + ne * K[6]
        large = small + ww * K[7] + nn * K[8] + near(0, -3) * K[9] + near(-1, -2) * K[10]
        large += near(-1, 2) * K[11] + near(-2, -1) * K[12] + near(-2, 1) * K[13]
        hashes = scramble(large + 2), scramble(small + 1), scramble(pair)
        spots = [h >> (64 - self.chunk.table_bits) for h in hashes]
        seen = [entries.get(spot, (0, 0)) for spot in spots]
        same = (w == n) + 2 * (n == ne) + 4 * (nw == w) + 8 * (nw == n)
        same += 16 * (ww == w) + 32 * (nn == n)
        past = past_of(0, -1) + 3 * past_of(-1, 0) + 9 * past_of(-1, -1) + 27 * past_of(-1, 1)
        most = 2 if past == 80 else 6
        old = None
        if self.last is not None:
            old = self.at(self.last, y, x)
            same_w = self.at(self.last, y, x - 1) == w
            past += 81 * (1 + same_w + 2 * (self.at(self.last, y - 1, x) == n))
        sources = [
            (*seen[0], bool(seen[0][1])),
            (old or 0, 0, old is not None),
            (*seen[1], bool(seen[1][1])),
            (w, 0, True),
            (n, 0, True),
            (*seen[2], bool(seen[2][1])),
            (ne, 0, True),
            (nw, 0, True),
        ]
        tried: list[int] = []
        found = None
        for source, (v, faith, there) in enumerate(sources):
            if not there or v in tried or len(tried) == most:
                continue
            alike = (v == w) + 2 * (v == n) + 4 * (v == nw) + 8 * (v == ne)
            alike += 16 * (v == ww) + 32 * (v == nn) + 64 * (v == old)
            sort = 8 * source + faith
            c = 16 * group
            contexts = [
                c + alike * K[1] + sort * K[2],
                c + 1 + past * K[1] + source * K[2],
                c + 2 + same * K[1] + sort * K[2],
                c + 3 + hashes[2] * K[1] + v * K[2],
                c + 4 + hashes[1] * K[1] + v * K[2],
                c + 5 + hashes[0] * K[1] + v * K[2],
                c + 6 + v * K[1],
            ]
            k = len(tried)
            if self.chunk.mixer.pop(contexts, 0, k, 64 * k + sort, 384 + same):
                found = v
                break
            tried.append(v)
        self.outcome[y, x] = 2 if found is None else min(len(tried), 1)
        if found is None:
            found = self.samples(y, x, hashes[2], hashes[1])
            demand(found not in tried, "a pixel that it was said not to be")
        for spot in spots:
            pixel, faith = entries.get(spot, (0, 0))
            entries[spot] = found, min(faith + 1, 7) if pixel == found else 1
        return found

    def samples(self, y: int, x: int, pair: int, small: int) -> int:
        """Section "Samples": a pixel from its samples."""
        pixel = known = before = earlier = 0
        for j in range(len(self.planes)):
            led = self.chunk.letters[:3] == "RGB" and self.number == 0 and j in (1, 2)

            def sample(rows: Pixels, dy: int, dx: int, j: int = j, led: bool = led) -> int:
                value = self.at(rows, y + dy, x + dx)
                return (value >> 16 * j & 65535) - (value & 65535) * led

            def error_at(dy: int, dx: int, j: int = j) -> int:
                return abs(self.rest.get((j, y + dy, x + dx), 0))

            w, n = sample(self.rows, 0, -1), sample(self.rows, -1, 0)
            nw, ne = sample(self.rows, -1, -1), sample(self.rows, -1, 1)
            ww, nn = sample(self.rows, 0, -2), sample(self.rows, -2, 0)
            plain_w = self.at(self.rows, y, x - 1) >> 16 * j & 65535
            plain_n = self.at(self.rows, y - 1, x) >> 16 * j & 65535
            top = 2**self.chunk.bits - 1
            base = (pixel & 65535) * led
            guess = nearest(base + sorted([w, n, w + n - nw])[1], 0, top)
            m = guess - base
            slope = half_octaves(abs(w - nw) + abs(n - nw) + abs(n - ne))
            error = 2 * error_at(0, -1) + 2 * error_at(-1, 0) + error_at(-1, -1) + error_at(-1, 1)
            error = half_octaves(error)
            c = 16 * self.number + 64 * j + 7
            contexts = [
                c + slope * K[1] + error * K[2],
                c + 1 + octaves(w - m) * K[1] + octaves(n - m) * K[2]
                + octaves(ne - n) * K[3] + octaves(ww - w) * K[4],
                c + 2 + octaves(w + ne - n - m) * K[1] + octaves(2 * n - nn - m) * K[2]
                + octaves(2 * w - ww - m) * K[3],
                c + 3 + nearest(before, -24, 24) * K[1] + nearest(earlier, -24, 24) * K[2]
                + slope * K[3],
                c + 4 + guess * K[1] + plain_w * K[2] + plain_n * K[3],
                c + 5 + guess * K[1] + known * K[2],
                c + 6 + pair * K[1] + known * K[2],
                c + 7 + small * K[1] + known * K[2],
            ]  # fmt: skip
            if self.last is not None:
                moved = nearest(sample(self.last, 0, 0) - m, -64, 64)
                contexts[7] = c + 7 + moved * K[1] + error * K[2]
            rest = self.difference(contexts, 448 + 24 * j, 544 + 24 * error)
            demand(0 <= guess + rest <= top, "a sample out of range")
            self.rest[j, y, x] = rest
            earlier, before = before, rest
            known = (known * K[4] + guess + rest + 1) % WORD
            pixel += (guess + rest) << 16 * j
        return pixel

    def difference(self, contexts: list[int], a: int, b: int) -> int:
        """Section "Samples": the decisions that spell `rest`."""
        pop = self.chunk.mixer.pop
        if not pop(contexts, 1, 0, a, b):
            return 0
        sign = int(pop(contexts, 1, 1, a + 1, b + 1))
        q = 0
        while q <= self.chunk.bits - 2:
            page = 1 if q < 3 else 2 + (q - 3) // 4
            if not pop(contexts, page, (2 + 2 * q + sign) % 8, a + 2 + q, b + 2 + q):
                break
            q += 1
        g = 1
        for d in range(q):
            d = min(d, 3)
            slot = g if d < 3 else 0
            g = 2 * g + pop(contexts, 6 + 2 * q + sign, slot, a + 19 + d, b + 19 + d)
        return -g if sign else g


def pop_frames(
    message: Message, count: int, letters: str, shapes: list[Shape], bits: int
) -> list[list[Plane]]:
    """The coded planes of each frame."""
    walk = Walk(message, count, letters, shapes, bits)
    last: list[Pixels] | None = None
    frames = []
    for _ in range(count):
        last, planes = walk.pop_frame(last)
        frames.append(planes)
    return frames
