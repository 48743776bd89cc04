"""An integer discrete flow on a GPU: squeezed levels, couplings in place, what each leaves behind.

    x -> squeeze -> [see -> layers -> couple] * K -> split -> symbols under the kept half's prior
                                                      |
                                                     kept -> squeeze -> ... -> symbols, mixtures

A level is int32 [N, h, w, C], channels last. A coupling moves one of four quarters of the channels
where it lies; a flow that does not undo its permutations only keeps count of where quarters have
got to, and lays them out once a level. Padding is at the end of rows and columns, and squeezing
hands it to channels: of channel c the first rows and columns are real, and only those are coded,
channel after channel.

References:
    van den Berg et al., "IDF++", 2020, arXiv:2006.12459.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from triton_kernels.checks import EXACT, check, check_pixels
from triton_kernels.convolution import Layer, clamp, convolve
from triton_kernels.coupling import couple

FRACTION = 8
"""Fractional bits of translations and means, in 8-bit sample steps."""

WHOLE = 1 << 12
"""What the weights of a mixture sum to."""

PHASES = ((0, 0), (1, 1), (0, 1), (1, 0))
"""Parities of the rows and columns that squeezing stacks, in order."""

BLOCK = 256
_LIMIT = tl.constexpr(1 << 15)
_START = tl.constexpr(56)  # the index of a scale of which a prior says nothing
_MOST = tl.constexpr(191)


@triton.jit
def see_kernel(
    x, context, y, x_pitch, y_pitch, positions, first, second, third, shift,
    QUARTER: tl.constexpr, KEPT: tl.constexpr, CONTEXT: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One program makes BLOCK_N activations of BLOCK_M positions; see `see`."""
    o_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    o_n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    number = o_n // QUARTER
    quarter = tl.where(number == 0, first, tl.where(number == 1, second, third))
    inside = (o_m < positions)[:, None]
    at = x + o_m[:, None] * x_pitch + (quarter * QUARTER + o_n % QUARTER)[None, :]
    value = tl.load(at, inside & (o_n < KEPT)[None, :], other=0)
    value = clamp((value + ((1 << shift) >> 1)) >> shift, -128, 127)
    if CONTEXT:
        beside = (o_n >= KEPT) & (o_n < KEPT + CONTEXT)
        at = context + o_m[:, None] * CONTEXT + (o_n - KEPT)[None, :]
        value += tl.load(at, inside & beside[None, :], other=0).to(tl.int32)
    known = inside & (o_n < KEPT + CONTEXT)[None, :]
    tl.store(y + o_m[:, None] * y_pitch + o_n[None, :], value.to(tl.int8), known)


@triton.jit
def real_samples(real, height, width, BLOCK: tl.constexpr):
    """BLOCK real samples of a channel: their pixels, their places, and which of them there are."""
    channel, i_n = tl.program_id(1), tl.program_id(2)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    rows, columns = tl.load(real + 3 * channel), tl.load(real + 3 * channel + 1)
    pixel = (i_n * height + at // columns) * width + at % columns
    return pixel, tl.load(real + 3 * channel + 2) + at, at < rows * columns


@triton.jit
def symbols_kernel(
    z, symbols, real, pitch, height, width, total, PUT: tl.constexpr, BLOCK: tl.constexpr
):
    """One program moves BLOCK real samples of a channel; see `take` and `put`."""
    pixel, place, known = real_samples(real, height, width, BLOCK)
    there = z + pixel * pitch + tl.program_id(1)
    here = symbols + tl.program_id(2) * total + place
    if PUT:
        tl.store(there, tl.load(here, known, other=0), known)
    else:
        tl.store(here, tl.load(there, known, other=0), known)


@triton.jit
def foretell_kernel(
    linear, dense, real, mean, scale, height, width, total, shift,
    C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program makes the distributions of BLOCK samples of a channel; see `foretell`."""
    pixel, place, known = real_samples(real, height, width, BLOCK)
    said = pixel * (2 * C) + tl.program_id(1)
    m = tl.load(linear + said, known, other=0).to(tl.int32)
    m = clamp(m + tl.load(dense + said, known, other=0), -_LIMIT, _LIMIT - 1) << shift
    s = tl.load(linear + said + C, known, other=0).to(tl.int32)
    s = clamp(s + tl.load(dense + said + C, known, other=0), -_LIMIT, _LIMIT - 1)
    to = tl.program_id(2) * total + place
    tl.store(mean + to, m, known)
    tl.store(scale + to, clamp(s + _START + 8 * shift, 0, _MOST), known)


class Grid(NamedTuple):
    """Which samples of a level are real.

    Attributes:
        mask: int8 [1, h, w, C], 0 where one is padding; None where none is.
        real: int32 [c, 3], of each channel of the latent its real rows and columns, the latter at
            least 1, and where its samples begin in a message.
        most: The most real samples of a channel.
        total: Those of all of them.
    """

    mask: Tensor | None
    real: Tensor
    most: int
    total: int


class Latent(NamedTuple):
    """What a level leaves behind: int32 [n] and [n, K], as `mixture.intervals` takes them."""

    symbols: Tensor
    mean: Tensor
    scale: Tensor
    weight: Tensor


Distributions = tuple[Tensor, Tensor, Tensor]
Int32 = NDArray[np.int32]


def see(
    x: Tensor, quarters: Sequence[int], context: Tensor | None, shift: int, y: Tensor
) -> Tensor:
    """Bring samples to the activations that a network takes: 8-bit steps, clamped.

    Args:
        x: int32 [N, h, w, C], some channels of a wider tensor or all.
        quarters: Which quarters of 4Q channels are seen, two or three; Q is a quarter of C, or
            half of it where x is the kept half of a level.
        context: int8 [N, h, w, 4], what is seen beside them, or None.
        shift: Low bits that are rounded away, 0..8.
        y: Receives them, int8 [N, h, w, Q * quarters (+ 4)]; shares no memory with x.

    Returns:
        y.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device, a layout or a number is another.
    """
    pitch = check_pixels("x", x, torch.int32, [None] * 4)
    beside = 0 if context is None else 4
    quarter, rest = divmod(y.shape[3] - beside, len(quarters))
    fits = len(quarters) in (2, 3) and min(quarters) >= 0 and 0 <= shift <= 8
    if rest or not fits or (max(quarters) + 1) * quarter > x.shape[3]:
        raise ValueError(f"quarters {quarters} of {x.shape[3]} channels by {shift} are not covered")
    y_pitch = check_pixels("y", y, torch.int8, [*x.shape[:3], y.shape[3]], x.device)
    if context is not None:
        check("context", context, torch.int8, [*x.shape[:3], beside], x.device)
    positions = x.shape[0] * x.shape[1] * x.shape[2]
    if not positions:
        return y
    tile = {"BLOCK_M": 64, "BLOCK_N": min(max(4, triton.next_power_of_2(y.shape[3])), 64)}
    grid = triton.cdiv(positions, tile["BLOCK_M"]), triton.cdiv(y.shape[3], tile["BLOCK_N"])
    see_kernel[grid](
        x, x if context is None else context, y, pitch, y_pitch, positions,
        quarters[0], quarters[1], quarters[-1], shift,
        QUARTER=quarter, KEPT=quarter * len(quarters), CONTEXT=beside, **tile, **EXACT,
    )  # fmt: skip
    return y


def take(z: Tensor, grid: Grid) -> Tensor:
    """Return the real samples of a latent as they are pushed, plane after plane.

    Args:
        z: int32 [N, h, w, c], some channels of a wider tensor or all.
        grid: Its level's.

    Returns:
        int32 [N * total].

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    symbols = torch.empty(z.shape[0] * grid.total, dtype=torch.int32, device=z.device)
    _move(z, symbols, grid, put=False)
    return symbols


def put(symbols: Tensor, z: Tensor, grid: Grid) -> None:
    """Undo `take`: write a latent's real samples, in place.

    Args:
        symbols: int32 [N * total].
        z: As in `take`; padding stays what it is.
        grid: As in `take`.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device or a layout is another.
    """
    _move(z, symbols, grid, put=True)


def _move(z: Tensor, symbols: Tensor, grid: Grid, put: bool) -> None:
    count, height, width, channels = z.shape
    pitch = check_pixels("z", z, torch.int32, [None] * 4)
    check("symbols", symbols, torch.int32, [count * grid.total], z.device)
    check("real", grid.real, torch.int32, [channels, 3], z.device)
    if symbols.numel():
        symbols_kernel[(triton.cdiv(grid.most, BLOCK), channels, count)](
            z, symbols, grid.real, pitch, height, width, grid.total, PUT=put, BLOCK=BLOCK, **EXACT
        )


def foretell(linear: Tensor, dense: Tensor, grid: Grid, shift: int) -> Distributions:
    """Make logistic distributions of what the two layers of a prior's head say.

    Args:
        linear: int16 [N, h, w, 2c]: means, then scales of c channels.
        dense: Alike; the sum is clamped to 16 bits.
        grid: Of the latent.
        shift: Low bits that the network has not seen, 0..8.

    Returns:
        Mean, scale and weight, int32 [N * total, 1], in the order of `take`.

    Raises:
        TypeError: A tensor has another type.
        ValueError: A shape, a device, a layout or the shift is another.
    """
    count, height, width, both = check("linear", linear, torch.int16, [None] * 4).shape
    check("dense", dense, torch.int16, [count, height, width, both], linear.device)
    check("real", grid.real, torch.int32, [both // 2, 3], linear.device)
    if not 0 <= shift <= 8:
        raise ValueError(f"shift {shift} is not in 0..8")
    size = count * grid.total, 1
    mean, scale = (torch.empty(size, dtype=torch.int32, device=linear.device) for _ in range(2))
    if size[0]:
        foretell_kernel[(triton.cdiv(grid.most, BLOCK), both // 2, count)](
            linear, dense, grid.real, mean, scale, height, width, grid.total, shift,
            C=both // 2, BLOCK=BLOCK, **EXACT,
        )  # fmt: skip
    return mean, scale, torch.full_like(mean, WHOLE)


def squeeze(x: Tensor) -> Tensor:
    """Turn [N, 2h, 2w, C] into [N, h, w, 4C], the checkerboard's phases first."""
    return torch.cat([x[:, i::2, j::2] for i, j in PHASES], 3)


def unsqueeze(x: Tensor) -> Tensor:
    """Undo `squeeze`."""
    count, h, w, channels = x.shape
    y = x.new_empty((count, 2 * h, 2 * w, channels // 4))
    for (i, j), phase in zip(PHASES, x.chunk(4, 3), strict=True):
        y[:, i::2, j::2] = phase
    return y


class Conditioner:
    """The network of a coupling or of a prior.

    Args:
        layers: Dense ones, a 1x1 and a 3x3 convolution each.
        linear: What the head makes of the inputs.
        dense: What it makes of what the dense layers have made.
    """

    def __init__(self, layers: Sequence[tuple[Layer, Layer]], linear: Layer, dense: Layer) -> None:
        self._layers, self.linear, self.dense = layers, linear, dense
        self._made = dense.weight.shape[3]

    def look(
        self, x: Tensor, quarters: Sequence[int], context: Tensor | None, shift: int
    ) -> tuple[Tensor, Tensor]:
        """Return what the linear head and the dense one see, of what `see` takes."""
        inputs = self.linear.weight.shape[3]
        both = torch.empty((*x.shape[:3], inputs + self._made), dtype=torch.int8, device=x.device)
        see(x, quarters, context, shift, both[..., :inputs])
        for first, second in self._layers:
            seen, width = first.weight.shape[3], first.weight.shape[1]
            inner = both.new_empty((*x.shape[:3], width))
            convolve(both[..., :seen], first, inner)
            convolve(inner, second, both[..., seen : seen + width])
        return both[..., :inputs], both[..., inputs:]


class Level(NamedTuple):
    """One scale of a flow.

    Attributes:
        couplings: In forward order.
        prior: Of the half that is left behind; at the top mean, scale and weight int32 [C, K],
            scales within -64..191.
    """

    couplings: Sequence[Conditioner]
    prior: Conditioner | Distributions


class Flow:
    """An integer flow over planes of one grid.

    Args:
        levels: The finest first.
        permutes_back: Every coupling undoes its permutation.
    """

    def __init__(self, levels: Sequence[Level], permutes_back: bool) -> None:
        self.levels, self._permutes_back = levels, permutes_back

    def sides(self, shape: tuple[int, int], channels: int) -> list[tuple[Int32, Int32]]:
        """Return which samples of each level are real; what `grids` takes, but sent.

        Args:
            shape: Real rows and columns of the planes.
            channels: How many planes.

        Returns:
            Of each level the real rows and columns of its channels, int32 [C, 2], and
            `Grid.real`.
        """
        found, sides = [], [shape] * channels
        for level in self.levels:
            sides = [((h - i + 1) // 2, (w - j + 1) // 2) for i, j in PHASES for h, w in sides]
            quarter, order = len(sides) // 4, self._turns(level)[1]
            left = [sides[quarter * n + c] for n in order for c in range(quarter)]
            kept, left = left[: _kept(level, len(left))], left[_kept(level, len(left)) :]
            begins = np.cumsum([0, *(h * w for h, w in left)])
            real = [(h * (w > 0), max(w, 1), n) for (h, w), n in zip(left, begins, strict=False)]
            found.append((np.array(sides, dtype=np.int32), np.array(real, dtype=np.int32)))
            sides = kept
        return found

    def grids(
        self,
        sides: Sequence[tuple[Int32, Int32]],
        sent: Sequence[tuple[Tensor, Tensor]],
        shape: tuple[int, int],
    ) -> list[Grid]:
        """Make the levels' grids.

        Args:
            sides: From `sides`.
            sent: The same on the device.
            shape: Rows and columns of the padded planes.
        """
        found = []
        for (squeezed, real), (there, table) in zip(sides, sent, strict=True):
            shape = shape[0] // 2, shape[1] // 2
            mask = None
            if (squeezed != shape).any():
                rows, columns = (torch.arange(side, device=there.device) for side in shape)
                is_real = (rows[:, None, None] < there[:, 0]) & (columns[:, None] < there[:, 1])
                mask = is_real[None].to(torch.int8)
            sizes = real[:, 0] * real[:, 1]
            found.append(Grid(mask, table, int(sizes.max()), int(sizes.sum())))
        return found

    def forward(
        self, x: Tensor, context: Tensor | None, grids: Sequence[Grid], shift: int
    ) -> list[Latent]:
        """Map samples to latents, finest level first; see `flows.integer`.

        Args:
            x: int32 [N, H, W, C], zero in padding.
            context: Activations, int8 [N, H, W, 1], or None.
            grids: Of the levels.
            shift: Bits of a sample beyond 8.
        """
        latents = []
        scales = zip(self.levels, self._contexts(context), grids, strict=True)
        for level, seen, grid in scales:
            x = squeeze(x)
            turns, order = self._turns(level)
            for coupling, turn in zip(level.couplings, turns, strict=True):
                _couple(x, coupling, turn, seen, grid.mask, shift, inverse=False)
            x = _ordered(x, order)
            kept, z = x.tensor_split([_kept(level, x.shape[3])], 3)
            latents.append(Latent(take(z, grid), *_distribution(level, kept, seen, grid, shift)))
            x = kept
        return latents

    def inverse(
        self,
        read: Callable[[Distributions], Tensor],
        shape: tuple[int, int, int, int],
        context: Tensor | None,
        grids: Sequence[Grid],
        shift: int,
    ) -> Tensor:
        """Undo `forward`.

        Args:
            read: Takes a latent's distributions, gives its symbols; the top is asked for first.
            shape: N, H, W and C of what is returned.
            context: As in `forward`.
            grids: As in `forward`.
            shift: As in `forward`.

        Returns:
            int32 [N, H, W, C].
        """
        count, height, width, channels = shape
        scales = list(zip(self.levels, self._contexts(context), grids, strict=True))
        depth = len(scales)
        device = grids[0].real.device
        x = torch.empty(
            (count, height >> depth, width >> depth, 0), dtype=torch.int32, device=device
        )
        for number, (level, seen, grid) in reversed(list(enumerate(scales, 1))):
            both = torch.zeros(
                (*x.shape[:3], channels << (number + 1)), dtype=torch.int32, device=device
            )
            kept, z = both.tensor_split([_kept(level, both.shape[3])], 3)
            kept.copy_(x)
            put(read(_distribution(level, kept, seen, grid, shift)), z, grid)
            turns, order = self._turns(level)
            x = _ordered(both, [order.index(n) for n in range(4)])
            for coupling, turn in reversed(list(zip(level.couplings, turns, strict=True))):
                _couple(x, coupling, turn, seen, grid.mask, shift, inverse=True)
            x = unsqueeze(x)
        return x

    def _contexts(self, context: Tensor | None) -> Iterator[Tensor | None]:
        """Squeeze the context for every level, averaged down by two from one to the next."""
        for _ in self.levels:
            if context is None:
                yield None
                continue
            seen = squeeze(context)
            yield seen
            total = seen.sum(3, keepdim=True, dtype=torch.int32)
            context = ((total + 2) >> 2).to(torch.int8)

    def _turns(self, level: Level) -> tuple[list[tuple[int, list[int]]], list[int]]:
        """Which quarter each coupling moves and which it sees; and how quarters lie at last."""
        turns, order = [], [0, 1, 2, 3]
        for number in range(len(level.couplings)):
            place = 3 - number % 4
            moved = order.pop(place)
            turns.append((moved, list(order)))
            order.insert(place if self._permutes_back else 3, moved)
        return turns, order


def _kept(level: Level, channels: int) -> int:
    """How many of a level's channels are kept; none at the top."""
    return channels // 2 if isinstance(level.prior, Conditioner) else 0


def _ordered(x: Tensor, order: Sequence[int]) -> Tensor:
    """Lay the quarters of the channels out in another order."""
    if list(order) == [0, 1, 2, 3]:
        return x
    quarters = x.chunk(4, 3)
    return torch.cat([quarters[n] for n in order], 3)


def _couple(
    x: Tensor,
    coupling: Conditioner,
    turn: tuple[int, Sequence[int]],
    context: Tensor | None,
    mask: Tensor | None,
    shift: int,
    inverse: bool,
) -> None:
    """Move a quarter of the channels by what a network says of the others, in place."""
    quarter, others = turn
    seen, made = coupling.look(x, others, context, shift)
    linear = torch.empty((*x.shape[:3], x.shape[3] // 4), dtype=torch.int16, device=x.device)
    convolve(seen, coupling.linear, linear)
    moved = x.chunk(4, 3)[quarter]
    hidden = None if mask is None else mask.chunk(4, 3)[quarter]
    couple(made, coupling.dense, moved, moved, FRACTION - shift, inverse, linear, hidden)


def _distribution(
    level: Level, kept: Tensor, context: Tensor | None, grid: Grid, shift: int
) -> Distributions:
    """Make the distributions of a latent; at the top `kept` only says how many planes it has."""
    if isinstance(level.prior, Conditioner):
        seen, made = level.prior.look(kept, (0, 1), context, shift)
        size = (*kept.shape[:3], level.prior.dense.weight.shape[1])
        linear, dense = (torch.empty(size, dtype=torch.int16, device=kept.device) for _ in range(2))
        convolve(seen, level.prior.linear, linear)
        convolve(made, level.prior.dense, dense)
        return foretell(linear, dense, grid, shift)
    mean, scale, weight = level.prior
    sizes = grid.real[:, 0] * grid.real[:, 1]
    found = (mean << shift, (scale + 8 * shift).clamp(0, _MOST.value), weight)
    mean, scale, weight = (
        torch.repeat_interleave(one, sizes, 0, output_size=grid.total).repeat(len(kept), 1)
        for one in found
    )
    return mean, scale, weight
