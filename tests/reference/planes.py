"""Section "Planes": the planes of a chunk from its integers."""

from __future__ import annotations

from reference.flow import Flow
from reference.message import Message
from reference.model import Model
from reference.networks import Plane, Planes, clamp, scaled

Shape = tuple[int, int]


Integers = tuple[Plane, Planes, Planes]


def pop_frame(
    message: Message, model: Model, letters: str, shapes: list[Shape], bits: int
) -> Integers:
    """Pop the integers of one frame with the flows: luma, chroma or nothing, further planes."""
    luma, chroma = Flow(model, "luma", bits), Flow(model, "chroma", bits)

    def pop_alone(shape: Shape) -> Plane:
        return luma.pop(message, 1, *shape, None)[0]

    first = pop_alone(shapes[0])
    if letters[:3] not in ("YUV", "RGB"):
        return first, [], [pop_alone(shape) for shape in shapes[1:]]
    pair = chroma.pop(message, 2, *shapes[1], context_of(first, shapes[1], bits - 8))
    return first, pair, [pop_alone(shape) for shape in shapes[3:]]


def to_samples(integers: Integers, letters: str, bits: int) -> Planes:
    """The coded planes of a frame."""
    first, pair, extra = integers
    center = 2 ** (bits - 1)
    if letters[:3] == "RGB":
        rest = colors(first, *pair, center)
    else:
        rest = [[[s + center for s in row] for row in plane] for plane in (first, *pair)]
    return [*rest, *([[s + center for s in row] for row in plane] for plane in extra)]


def colors(luma: Plane, orange: Plane, green: Plane, center: int) -> Planes:
    """Red, green and blue from Y', Co and Cg."""
    planes: Planes = [[[0] * len(row) for row in luma] for _ in range(3)]
    for row, samples in enumerate(luma):
        for column, sample in enumerate(samples):
            co, cg = orange[row][column], green[row][column]
            y = sample + center
            m = y - (cg >> 1)
            g = m + cg
            b = m - (co >> 1)
            r = b + co
            for plane, value in zip(planes, (r, g, b), strict=True):
                plane[row][column] = value
    return planes


def context_of(luma: Plane, shape: Shape, shift: int) -> Plane:
    """Section "Context": what the chroma flow sees of luma."""
    return [[clamp(scaled(s, shift)) for s in row] for row in on_grid(luma, shape)]


def on_grid(luma: Plane, shape: Shape) -> Plane:
    """Luma brought to the size of the chroma planes."""
    height, width = shape
    fh, fw = factor(height, len(luma)), factor(width, len(luma[0]))
    rows = [row + row[-1:] * (width * fw - len(row)) for row in luma]
    rows += rows[-1:] * (height * fh - len(rows))
    n = fh * fw
    result = []
    for y in range(0, height * fh, fh):
        sums = [
            sum(sum(row[x : x + fw]) for row in rows[y : y + fh]) for x in range(0, width * fw, fw)
        ]
        result.append([(s + n // 2) // n for s in sums])
    return result


def factor(small: int, large: int) -> int:
    """The smallest power of two f with small * f >= large."""
    f = 1
    while small * f < large:
        f *= 2
    return f
