"""Section "Networks", "A flow" to "Prior": pop latents and undo couplings."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from reference.message import Message
from reference.mixture import LogisticMixture
from reference.model import Model
from reference.networks import Plane, Planes, clamp, conditioner, each, scaled

# (row, column) in a 2 x 2 block, in the order of a squeeze.
CORNERS = ((0, 0), (1, 1), (0, 1), (1, 0))


def squeeze(planes: Planes) -> Planes:
    """C x 2h x 2w to 4C x h x w."""
    return [[row[c::2] for row in plane[r::2]] for r, c in CORNERS for plane in planes]


def unsqueeze(planes: Planes) -> Planes:
    """4C x h x w to C x 2h x 2w."""
    channels = len(planes) // 4
    height, width = len(planes[0]), len(planes[0][0])
    result = [[[0] * (2 * width) for _ in range(2 * height)] for _ in range(channels)]
    for i, (r, c) in enumerate(CORNERS):
        for channel in range(channels):
            for y, row in enumerate(planes[i * channels + channel]):
                result[channel][2 * y + r][c::2] = row
    return result


def extend(plane: Plane, height: int, width: int) -> Plane:
    """Add zeros on the right and below."""
    rows = [row + [0] * (width - len(row)) for row in plane]
    return rows + [[0] * width for _ in range(height - len(rows))]


def halve(plane: Plane) -> Plane:
    """Each sample becomes the rounded mean of its 2 x 2 block."""
    return [
        [scaled(top[x] + top[x + 1] + bottom[x] + bottom[x + 1], 2) for x in range(0, len(top), 2)]
        for top, bottom in zip(plane[::2], plane[1::2], strict=True)
    ]


class Flow:
    """The decoder's half of one flow, for planes of one size and depth.

    Args:
        model: The model file.
        name: `luma` or `chroma`.
        bits: Bits of a sample.
    """

    def __init__(self, model: Model, name: str, bits: int) -> None:
        self.tensors = model.tensors
        self.name = name
        self.config = model.config[name]
        self.shift = bits - 8
        steps = -(-self.config.couplings // 4)
        self.reach = (self.config.levels * steps * 128 << self.shift) + 2**bits
        self.precision = 24 + self.shift // 2

    def pop(
        self, message: Message, channels: int, height: int, width: int, context: Plane | None
    ) -> Planes:
        """Pop `channels` planes of height x width."""
        levels = self.config.levels
        block = 2**levels
        padded = -(-height // block) * block, -(-width // block) * block
        masks = list(self._masks(extend([[1] * width] * height, *padded), channels))
        contexts = list(self._contexts(context, *padded))
        x: Planes = []
        for level in reversed(range(levels)):
            z = self._pop_latent(message, level, masks[level][-1], x, contexts[level])
            x = x + z
            for k in reversed(range(self.config.couplings)):
                x = self._undo_coupling(level, k, x, masks[level][k], contexts[level])
            x = unsqueeze(x)
        return [[row[:width] for row in plane[:height]] for plane in x]

    def _masks(self, mask: Plane, channels: int) -> Iterator[list[Planes]]:
        """For each level, which samples are real: before each coupling, and after the last."""
        planes = [mask] * channels
        for _ in range(self.config.levels):
            planes = squeeze(planes)
            masks = [planes]
            for k in range(self.config.couplings):
                if not self.config.inverse_permutation:
                    first, m = moved_channels(len(planes), k)
                    planes = planes[:first] + planes[first + m :] + planes[first : first + m]
                masks.append(planes)
            yield masks
            planes = planes[: len(planes) // 2]

    def _contexts(self, context: Plane | None, height: int, width: int) -> Iterator[Planes]:
        """For each level, the channels of context."""
        plane = None if context is None else extend(context, height, width)
        for _ in range(self.config.levels):
            yield [] if plane is None else squeeze([plane])
            plane = None if plane is None else halve(plane)

    def _see(self, planes: Planes) -> Planes:
        """Section "What a network sees"."""
        return [[[clamp(scaled(s, self.shift)) for s in row] for row in p] for p in planes]

    def _pop_latent(
        self, message: Message, level: int, mask: Planes, kept: Planes, context: Planes
    ) -> Planes:
        """Section "Coding of a latent": pop z under the prior that sees `kept`."""
        mask = mask[len(kept) :]
        parameters = self._top(len(mask)) if not kept else self._prior(level, kept, context)
        real = [place for place in each(mask) if mask[place[0]][place[1]][place[2]]]
        models = [
            LogisticMixture(-self.reach, self.reach - 1, self.precision, *parameters(*place))
            for place in real
        ]
        z = [[[0] * len(row) for row in plane] for plane in mask]
        for (c, y, x), symbol in zip(real, message.pop_array(models), strict=True):
            z[c][y][x] = symbol
        return z

    def _top(self, channels: int) -> Callable[[int, int, int], tuple[list[int], ...]]:
        """The parameters at the top, which are tensors of the model."""
        mean, scale, weight = (
            self.tensors[f"{self.name}.levels.{self.config.levels - 1}.prior.{name}"]
            for name in ("mean", "scale", "weight")
        )
        k = self.config.mixtures
        assert mean.shape == scale.shape == weight.shape == [channels, k]

        def parameters(c: int, y: int, x: int) -> tuple[list[int], ...]:
            own = slice(c * k, (c + 1) * k)
            return (
                [v << self.shift for v in mean.values[own]],
                [clamp(v + 8 * self.shift, 0, 191) for v in scale.values[own]],
                weight.values[own],
            )

        return parameters

    def _prior(
        self, level: int, kept: Planes, context: Planes
    ) -> Callable[[int, int, int], tuple[list[int], ...]]:
        """Section "Prior": the parameters below the top, from a network."""
        heads = conditioner(
            self.tensors,
            f"{self.name}.levels.{level}.prior.conditioner",
            self.config,
            self._see(kept) + context,
            ["mean", "scale"],
        )

        def parameters(c: int, y: int, x: int) -> tuple[list[int], ...]:
            mean, scale = heads["mean"][c][y][x], heads["scale"][c][y][x]
            return [mean << self.shift], [clamp(scale + 56 + 8 * self.shift, 0, 191)], [4096]

        return parameters

    def _undo_coupling(
        self, level: int, k: int, planes: Planes, mask: Planes, context: Planes
    ) -> Planes:
        """Section "Coupling k": `mask` is that of the coupling's forward input."""
        first, m = moved_channels(len(planes), k)
        if self.config.inverse_permutation:
            rest, moved = planes[:first] + planes[first + m :], planes[first : first + m]
        else:
            rest, moved = planes[:-m], planes[-m:]
        translation = conditioner(
            self.tensors,
            f"{self.name}.levels.{level}.couplings.{k}.conditioner",
            self.config,
            self._see(rest) + context,
            ["translation"],
        )["translation"]
        for c, y, x in each(moved):
            if mask[first + c][y][x]:
                moved[c][y][x] -= scaled(translation[c][y][x], 8 - self.shift)
        return rest[:first] + moved + rest[first:]


def moved_channels(channels: int, k: int) -> tuple[int, int]:
    """The first channel that coupling k moves, and how many it moves."""
    m = channels // 4
    return channels - m * (k % 4 + 1), m
