"""Section "Planes": the planes of a chunk from the flows' integers."""

from __future__ import annotations

from reference.flow import Flow
from reference.message import Message
from reference.networks import Model, Plane, Planes, clamp, scaled

Shape = tuple[int, int]


def pop_frame(
    message: Message, model: Model, letters: str, shapes: list[Shape], bits: int
) -> Planes:
    """Pop the coded planes of one frame, whose (height, width) are `shapes`."""
    luma, chroma = Flow(model, "luma", bits), Flow(model, "chroma", bits)
    center = 2 ** (bits - 1)

    def pop_alone(shape: Shape) -> Plane:
        return luma.pop(message, 1, *shape, None)[0]

    def shown(plane: Plane) -> Plane:
        return [[s + center for s in row] for row in plane]

    if letters[:3] not in ("YUV", "RGB"):
        return [shown(pop_alone(shape)) for shape in shapes]
    first = pop_alone(shapes[0])
    pair = chroma.pop(message, 2, *shapes[1], context_of(first, shapes[1], bits - 8))
    extra = [shown(pop_alone(shape)) for shape in shapes[3:]]
    if letters[:3] == "YUV":
        return [shown(first), shown(pair[0]), shown(pair[1]), *extra]
    return [*colors(first, *pair, center), *extra]


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
    """Section "Context": luma brought to the size of the chroma planes."""
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
        result.append([clamp(scaled((s + n // 2) // n, shift)) for s in sums])
    return result


def factor(small: int, large: int) -> int:
    """The smallest power of two f with small * f >= large."""
    f = 1
    while small * f < large:
        f *= 2
    return f
