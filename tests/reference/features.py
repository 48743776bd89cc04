"""Section "Features": the channels and the anchors of a phase at one grid position."""

from __future__ import annotations

from reference.lattice import PHASES, Around
from reference.networks import clamp

LOG = [((1 + i) ** 10).bit_length() - 1 for i in range(4096)]
# Where the sample of the phase before is.
NEWEST = [None, (0, 1), (1, -1)]


class Channels:
    """D and L of the document, for one `shift`."""

    def __init__(self, shift: int) -> None:
        self.shift = shift

    def d(self, *values: int) -> list[int]:
        """Differences."""
        return [clamp((v + 2**self.shift) >> (self.shift + 1), -127, 127) for v in values]

    def l(self, *values: int) -> list[int]:  # noqa: E743
        """Magnitudes."""
        return [LOG[min(abs(v) >> self.shift, 4095)] for v in values]


def minus(values: list[int], base: int) -> list[int]:
    """The differences of several values to one."""
    return [v - base for v in values]


def differences(a: list[int], b: list[int]) -> list[int]:
    """The differences of several values."""
    return [x - y for x, y in zip(a, b, strict=True)]


def mean(x: Around) -> int:
    """The mean of the four nearest samples, rounded down."""
    return sum(x.near()) >> 2


def size(values: list[int]) -> int:
    """A quarter of the sum of the magnitudes."""
    return sum(map(abs, values)) >> 2


def newest(p: Around, phase: int, last: int) -> int:
    """N."""
    offset = NEWEST[phase]
    assert offset is not None
    return p.at(*offset) - (last >> 6)


def intra(
    p: Around, g: Around | None, phase: int, shift: int, last: int
) -> tuple[list[int], list[int]]:
    """Section "Intra": channels and anchors; `last` is anchor 0 of the phase before."""
    assert p.phase is PHASES[phase]
    c = Channels(shift)
    near, m = p.near(), mean(p)
    s = size(minus(near, m))
    anchors = [64 * m, 32 * (near[0] + near[3]), 32 * (near[1] + near[2]), 64 * m]
    steps = c.l(near[0] - near[3], near[1] - near[2])
    seen = c.d(*minus(near, m))
    far = c.d(*minus(p.far(), m))
    if g is None:
        if phase == 0:
            return seen + far + c.l(s) + steps + c.d(m >> 3), anchors
        return seen + far + c.d(newest(p, phase, last)) + c.l(s) + steps, anchors
    light = g.at()
    around = minus(g.near(), light)
    t, u = sum(around) >> 2, size(around)
    if phase > 0:
        seen += far[:4] + c.d(newest(p, phase, last), -t, *around)
        return seen + c.l(s, t), anchors
    seen += far + c.l(s) + steps + c.d(m >> 3)
    seen += c.d(-t, *around, *minus(g.cross(), light)) + c.l(t, u) + c.d(light >> 3)
    wide = [g.at(-2, 0), g.at(0, -2), g.at(0, 2), g.at(2, 0)]
    return seen + c.d(*minus(wide, light)), anchors


def inter(
    p: Around,
    references: list[Around],
    lumas: list[Around] | None,
    linear: int,
    phase: int,
    shift: int,
    last: int,
) -> tuple[list[int], list[int]]:
    """Section "Inter": channels and anchors; `lumas` are G, GR, GQ."""
    c = Channels(shift)
    r, q = references
    m, a = mean(p), linear >> 6
    here_r, here_q = r.at(), q.at()
    anchors = [
        linear,
        64 * m,
        64 * here_r,
        64 * (here_r + m - mean(r)),
        64 * (here_q + m - mean(q)),
    ]
    near = p.near()
    from_r, from_q = differences(near, r.near()), differences(near, q.near())
    seen = [0] * (16 if phase else 32)
    seen[0:4] = c.d(*minus(near, m))
    seen[4:5] = c.d(here_r - m)
    s = size(minus(near, m))
    light = light_q = detail = 0
    if lumas is not None:
        g, gr, gq = lumas
        light, light_q, detail = g.at() - gr.at(), g.at() - gq.at(), g.at() - mean(g)
    if phase == 0:
        seen[5:10] = c.d(here_q - m, *from_r)
        seen[24:28] = c.l(here_r - m, here_r - here_q, s, size(from_r))
        if lumas is None:
            seen[10:14] = c.d(*from_q)
            seen[14:18] = c.d(*minus(r.cross(), m))
            seen[18:22] = c.d(*minus(q.cross(), m))
            seen[22:24] = c.d(a - m, here_r - here_q)
            seen[28:31] = c.l(size(from_q), a - m, a - here_r)
            seen[31:32] = c.d(m >> 3)
        else:
            seen[10:13] = c.d(sum(from_q) >> 2, a - m, here_r - here_q)
            seen[13:16] = c.d(light, light_q, detail)
            seen[16:20] = c.d(*differences(g.near(), gr.near()))
            seen[20:24] = c.d(*minus(r.cross(), m))
            seen[28:32] = c.l(a - m, light, detail, a - here_r)
        return seen, anchors
    n = newest(p, phase, last)
    seen[6:9] = c.d(a - m, n, sum(from_r) >> 2)
    seen[10:12] = c.l(s, size(from_r))
    seen[13:16] = c.l(here_r - m, a - m, n)
    if lumas is None:
        seen[5:6], seen[9:10] = c.d(here_q - m), c.d(sum(from_q) >> 2)
        seen[12:13] = c.l(size(from_q))
    else:
        seen[5:6], seen[9:10], seen[12:13] = c.d(detail), c.d(light), c.l(light)
    return seen, anchors
