"""Network layers whose integer results are the same on every machine.

Tensors hold integers in float32. A float32 sum of integers is exact in *any* order while every
partial sum stays below 2**24, so an ordinary convolution gives the same integers whatever the
instruction set, the thread count or the library, provided that for every output channel

    sum |weight| * max |input| + |bias| < 2**24                         (`check_bound`)

which is proved when a network is frozen and again when it is loaded.

Each layer exists twice:

    twin (training)    Conv2d      GroupNorm      Swish      float weights, straight-through
    frozen (coding)    IntConv2d   IntGroupNorm   IntSwish   int8 weights, integers only

`twin.freeze()` gives the frozen layer. A twin in `fake` mode computes the frozen layer's integers
and passes gradients through the roundings; otherwise it skips the roundings altogether.

Grids: an activation is an int8 whose unit is 1/32 of a real number (and one 8-bit sample step);
before a normalization it has 12 bits and a unit of 1/128.

References:
    Balle, Johnston, Minnen, "Integer networks for data compression with latent-variable models",
    2019 (ICLR).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal, localcontext
from functools import cache
from threading import Lock

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn
from torch.nn import functional

from flowarchive.errors import ModelError
from flowarchive.int8 import EXACT_LIMIT, MAX_SHIFT, MIN_SHIFT, check_bound

ACTIVATION_MIN, ACTIVATION_MAX = -128, 127
UNIT = 32  # activation steps in a real 1.0
NORM_INPUT_GAIN = 2  # log2 of the pre-normalization grid over the activation grid
NORM_INPUT_MAX = 2047
MAX_WEIGHT = 127
WIDE_WEIGHT = 16383  # two int8 digits on a device without float32 convolutions
MAX_WEIGHT_SHIFT = 14
MAX_GAIN = 1 << 24  # of a normalization, magnitude: its products stay below 2**53
NORM_FRACTION = 8  # fractional bits of the normalization's gain and offset
NORM_SHIFT = 20  # fractional bits of the fused multiplier
ROOT_SHIFT = 16  # fractional bits of the integer square root


class _Round(torch.autograd.Function):
    """floor(x + 0.5) forward, identity backward (straight-through)."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return torch.floor(x + 0.5)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return grads[0]


class _Clamp(torch.autograd.Function):
    """Clamp whose gradient, outside the range, still pulls back into it."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, low: int, high: int) -> Tensor:
        ctx.save_for_backward((x > high).to(torch.int8) - (x < low).to(torch.int8))
        return x.clamp(low, high)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, *grads: Tensor
    ) -> tuple[Tensor, None, None]:
        (side,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grads[0] * ((side == 0) | (side * grads[0] > 0)), None, None


def round_half_up(x: Tensor) -> Tensor:
    """Round to the nearest integer, halves up, with a straight-through gradient."""
    return _Round.apply(x)  # type: ignore[no-any-return,no-untyped-call]


def clamp(x: Tensor, low: int, high: int) -> Tensor:
    """Clamp to [low, high] with a gradient that pulls stray values back."""
    return _Clamp.apply(x, low, high)  # type: ignore[no-any-return,no-untyped-call]


@cache
def swish_table() -> tuple[int, ...]:
    """Return Swish over the 256 activations, rounded half up on the activation grid.

    References:
        Ramachandran, Zoph, Le, "Searching for activation functions", 2017, arXiv:1710.05941.
    """
    with localcontext() as context:
        context.prec = 50
        return tuple(
            math.floor(Decimal(i) / (1 + (Decimal(-i) / UNIT).exp()) + Decimal("0.5"))
            for i in range(ACTIVATION_MIN, ACTIVATION_MAX + 1)
        )


class Twin(nn.Module):
    """A layer under training; `fake` switches its roundings on."""

    fake = False

    def hollow(self) -> Frozen:
        """Return the integer layer of this one's shape, its integers yet to come."""
        raise NotImplementedError

    def freeze(self) -> Frozen:
        """Return the integer layer that computes what this one computes in `fake` mode."""
        raise NotImplementedError


class Frozen(nn.Module):
    """An integer layer; it may work in the memory of what it is given."""

    def check(self) -> None:
        """Prove that the layer's arithmetic is exact.

        Raises:
            NotReproducible: A convolution's sums may be too large.
            ModelError: An integer is out of its range.
        """


class Conv2d(Twin):
    """Training twin of `IntConv2d`: a zero-padded convolution between integer grids.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        kernel: Odd side of the kernel.
        gain: log2 of the output grid's fineness over the input grid's, one for all channels or
            one for each.
        limit: Outputs are clamped to [-limit - 1, limit], or to [0, limit] by `rectify`.
        groups: As in torch; `inputs` makes it depthwise.
        max_weight: Largest magnitude of a frozen weight, MAX_WEIGHT (int8) or WIDE_WEIGHT (int16).
        rectify: Apply a ReLU, which costs nothing inside the clamp.
        rezero: Multiply weights and bias by a learned scalar that starts at zero
            (Bachlechner et al., 2020, arXiv:2003.04887); it vanishes into the frozen weights.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        gain: int | Sequence[int] = 0,
        limit: int = ACTIVATION_MAX,
        groups: int = 1,
        max_weight: int = MAX_WEIGHT,
        rezero: bool = False,
        rectify: bool = False,
    ) -> None:
        super().__init__()
        spread = 1 / math.sqrt(inputs // groups * kernel * kernel)
        weight = torch.empty(outputs, inputs // groups, kernel, kernel)
        if not weight.is_meta:  # where torch would load seconds of machinery to fill nothing
            weight.uniform_(-spread, spread)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(outputs))  # in real units
        self.scale = nn.Parameter(torch.zeros(1)) if rezero else None
        gains = [gain] * outputs if isinstance(gain, int) else list(gain)
        self.gain: Tensor
        self.register_buffer("gain", torch.tensor(gains, dtype=torch.float32), persistent=False)
        self.gained = any(gains)
        self.limit, self.groups = limit, groups
        self.max_weight, self.rectify = max_weight, rectify

    def _real(self) -> tuple[Tensor, Tensor]:
        weight, bias = self.weight, self.bias * UNIT
        return (weight, bias) if self.scale is None else (weight * self.scale, bias * self.scale)

    def _quantized(self) -> tuple[Tensor, Tensor, Tensor]:
        """Integer weights and biases, and the fractional bits of each channel's weights."""
        weight, bias = self._real()
        with torch.no_grad():
            # The bias shares the accumulator's grid and has to leave room for the products.
            size = weight.abs()
            top = size.amax(dim=(1, 2, 3)).maximum(bias.abs() / (1 << 14))
            step = self.max_weight / top.clamp_min(1e-12)
            # Many large weights have to share the accumulator, each of them rounded by up to 1/2.
            room = (EXACT_LIMIT + ACTIVATION_MIN * (weight[0].numel() / 2 + 1)) * (1 - 2.0**-10)
            total = size.sum(dim=(1, 2, 3)) * -ACTIVATION_MIN + bias.abs()
            step = step.minimum(max(room, 1.0) / total.clamp_min(1e-12))
            fraction = torch.floor(torch.log2(step))
            fraction = fraction.clamp(-8, MAX_WEIGHT_SHIFT)
        step = torch.exp2(fraction)
        weight = round_half_up(weight * step[:, None, None, None])
        return (
            clamp(weight, -self.max_weight, self.max_weight),
            round_half_up(bias * step),
            fraction,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve [B, I, H, W] on the input grid into [B, O, H, W] on the output grid."""
        padding = self.weight.shape[-1] // 2
        if not self.fake:
            weight, bias = self._real()
            y = functional.conv2d(x, weight, bias, padding=padding, groups=self.groups)
            return self._clamp(y * torch.exp2(self.gain)[:, None, None] if self.gained else y)
        weight, bias, fraction = self._quantized()
        y = functional.conv2d(x, weight, bias, padding=padding, groups=self.groups)
        return self._clamp(round_half_up(y * torch.exp2(self.gain - fraction)[:, None, None]))

    def _clamp(self, y: Tensor) -> Tensor:
        # A rectified channel must be free to fall asleep, others are pulled back into the range.
        if self.rectify:
            return functional.hardtanh(y, 0.0, float(self.limit))
        return clamp(y, -self.limit - 1, self.limit)

    def hollow(self) -> IntConv2d:
        """Return the integer layer of this one's shape, its integers yet to come."""
        low = 0 if self.rectify else -self.limit - 1
        wide = self.max_weight > MAX_WEIGHT
        return IntConv2d(self.weight.shape, (low, self.limit), self.groups, wide)

    def freeze(self) -> IntConv2d:
        """Return the integer layer that computes what this one computes in `fake` mode."""
        frozen = self.hollow()
        with torch.no_grad():
            weight, bias, fraction = self._quantized()
            frozen.weight.copy_(weight)
            frozen.bias.copy_(bias)
            frozen.shift.copy_(fraction - self.gain)
        frozen.check()
        return frozen


class IntConv2d(Frozen):
    """Exact convolution: small integer weights, then y = floor(sum * 2**-shift + 0.5), clamped.

    Buffers:
        weight: int8 (int16 where wide) [O, I/groups, k, k].
        bias: int32 [O], on the accumulator's grid.
        shift: int8 [O], MIN_SHIFT..MAX_SHIFT; a negative one shifts left.
    """

    weight: Tensor
    bias: Tensor
    shift: Tensor

    def __init__(self, shape: torch.Size, limits: tuple[int, int], groups: int, wide: bool) -> None:
        super().__init__()
        self.register_buffer(
            "weight", torch.zeros(shape, dtype=torch.int16 if wide else torch.int8)
        )
        self.register_buffer("bias", torch.zeros(shape[0], dtype=torch.int32))
        self.register_buffer("shift", torch.zeros(shape[0], dtype=torch.int8))
        self.limits, self.groups = limits, groups
        self._operands: tuple[Tensor, Tensor, np.ndarray] | None = None

    def check(self) -> None:
        """Prove exactness for activations as inputs and prepare the float32 operands."""
        check_bound(self.weight.numpy(), self.bias.numpy())
        _check_range("a convolution's shift", self.shift, MIN_SHIFT, MAX_SHIFT)
        factor = np.ldexp(np.float32(1), -self.shift.numpy().astype(np.int32))
        self._operands = self.weight.to(torch.float32), self.bias.to(torch.float32), factor

    def macs(self) -> int:
        """Multiplications for one position of the output."""
        return self.weight.numel()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve activations [B, I, H, W], integers in float32, into [B, O, H, W]."""
        if self._operands is None:
            self.check()
        assert self._operands is not None
        weight, bias, factor = self._operands
        y = functional.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=self.groups)
        rows = _rows(y)
        _requantize(rows, factor, *self.limits)
        return _tensor(rows, y)


class GroupNorm(Twin):
    """Training twin of `IntGroupNorm`, from the pre-normalization grid to the activation grid.

    References:
        Wu, He, "Group normalization", 2018, arXiv:1803.08494.
    """

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.groups = groups

    def _quantized(self) -> tuple[Tensor, Tensor]:
        step = UNIT << NORM_FRACTION
        return round_half_up(self.weight * step), round_half_up(self.bias * step)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each group of [B, C, H, W] over its channels and positions."""
        if not self.fake:
            y = functional.group_norm(x, self.groups, self.weight, self.bias, eps=1.0) * UNIT
            return clamp(y, ACTIVATION_MIN, ACTIVATION_MAX)
        gain, offset = self._quantized()
        y = functional.group_norm(x, self.groups, gain, offset, eps=1.0) / (1 << NORM_FRACTION)
        with torch.no_grad():
            factor, shift = norm_factors(x.detach(), gain, offset, self.groups)
            exact = x.double() * factor[..., None, None] + shift[..., None, None]
            exact = torch.floor(exact * 2.0**-NORM_SHIFT + 0.5).float()
        return clamp(y + (exact - y).detach(), ACTIVATION_MIN, ACTIVATION_MAX)

    def hollow(self) -> IntGroupNorm:
        """Return the integer layer of this one's shape, its integers yet to come."""
        return IntGroupNorm(self.groups, self.weight.numel())

    def freeze(self) -> IntGroupNorm:
        """Return the integer layer that computes what this one computes in `fake` mode."""
        frozen = self.hollow()
        with torch.no_grad():
            gain, offset = self._quantized()
            frozen.gain.copy_(gain)
            frozen.offset.copy_(offset)
        frozen.check()
        return frozen


class IntGroupNorm(Frozen):
    """Exact group normalization by integer sums and an integer square root.

    Buffers:
        gain, offset: int32 [C], within +-MAX_GAIN, in 2**-NORM_FRACTION of an activation step.
    """

    gain: Tensor
    offset: Tensor

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("gain", torch.zeros(channels, dtype=torch.int32))
        self.register_buffer("offset", torch.zeros(channels, dtype=torch.int32))
        self.groups = groups

    def check(self) -> None:
        """Prove that the products of `forward` are exact in float64."""
        _check_range("a normalization's gain", self.gain, -MAX_GAIN, MAX_GAIN)
        _check_range("a normalization's offset", self.offset, -MAX_GAIN, MAX_GAIN)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize [B, C, H, W] from the pre-normalization grid to activations."""
        factor, shift = norm_factors(x, self.gain, self.offset, self.groups)
        rows = _rows(x)
        _scale_shift(rows, factor.numpy(), shift.numpy())
        return _tensor(rows, x)


def norm_factors(x: Tensor, gain: Tensor, offset: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Fuse normalization, gain and offset into y = (x * factor + shift) * 2**-NORM_SHIFT.

    Args:
        x: Integers within +-2048, [B, C, H, W].
        gain: Integers [C] within +-MAX_GAIN, in 2**-NORM_FRACTION of an activation step.
        offset: Integers [C], alike.
        groups: Number of groups C is divided into.

    Returns:
        Integers [B, C] in float64: their products with x, and those sums, stay below 2**49.
    """
    batch, channels = x.shape[:2]
    count = x[0].numel() // groups
    grouped = x.reshape(batch, groups, count).double()
    totals = grouped.sum(-1).long().tolist()  # below 2**53: exact in any order
    squares = (grouped * grouped).sum(-1).long().tolist()
    gains, offsets = gain.long().tolist(), offset.long().tolist()
    factor = torch.empty(batch, channels, dtype=torch.float64)
    shift = torch.empty(batch, channels, dtype=torch.float64)
    for b in range(batch):
        for c in range(channels):
            total, square = totals[b][c * groups // channels], squares[b][c * groups // channels]
            # count * standard deviation, with a variance of one step squared added.
            spread = count * square - total * total + count * count
            root = math.isqrt(spread << (2 * ROOT_SHIFT))
            a = (gains[c] * count << (NORM_SHIFT + ROOT_SHIFT - NORM_FRACTION)) // root
            factor[b, c] = a
            shift[b, c] = (offsets[c] << (NORM_SHIFT - NORM_FRACTION)) - total * a // count
    return factor, shift


class Swish(Twin):
    """Training twin of `IntSwish`, x * sigmoid(x) on the activation grid."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Tensor
        self.register_buffer(
            "table", torch.tensor(swish_table(), dtype=torch.float32), persistent=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to activations of any shape."""
        smooth = functional.silu(x / UNIT) * UNIT
        if not self.fake:
            return smooth
        exact = self.table[(x.detach() - ACTIVATION_MIN).long()]
        return smooth + (exact - smooth).detach()

    def hollow(self) -> IntSwish:
        """Return the look-up layer."""
        return IntSwish()

    def freeze(self) -> IntSwish:
        """Return the look-up layer."""
        return IntSwish()


class IntSwish(Frozen):
    """Exact Swish by a table of 256 entries."""

    def __init__(self) -> None:
        super().__init__()
        self.table = np.array(swish_table(), dtype=np.float32)

    def forward(self, x: Tensor) -> Tensor:
        """Look every activation up."""
        rows = _rows(x)
        _look_up(rows.reshape(-1), self.table)
        return _tensor(rows, x)


def set_fake(model: nn.Module, fake: bool) -> None:
    """Switch every twin of a network between float and fake-quantized evaluation."""
    for module in model.modules():
        if isinstance(module, Twin):
            module.fake = fake


def freeze(model: nn.Module) -> nn.Module:
    """Replace every twin inside `model` by its frozen layer, in place, and return the model."""
    return _replace(model, lambda twin: twin.freeze())


def hollow(model: nn.Module) -> nn.Module:
    """Replace every twin by a frozen layer of its shape, in place; its integers are yet to come.

    On torch's meta device this costs no memory, so that the shapes a stranger's config asks for
    can be compared with the tensors that are there.
    """
    return _replace(model, lambda twin: twin.hollow())


def _replace(model: nn.Module, by: Callable[[Twin], Frozen]) -> nn.Module:
    for name, child in model.named_children():
        if isinstance(child, Twin):
            setattr(model, name, by(child))
        else:
            _replace(child, by)
    return model


_lock = Lock()
_before: list[int] = []  # what those who compute with one thread have to leave behind


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread in the calling thread; results do not depend on it.

    Its barriers cost more than more threads bring at these sizes, above all on a busy machine.
    """
    with _lock:
        # Threads begin with the number that was set last, in any of them.
        _before.append(_before[0] if _before else torch.get_num_threads())
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            torch.set_num_threads(_before.pop())


def check(model: nn.Module) -> None:
    """Prove every frozen layer inside a model exact; see `Frozen.check`."""
    for module in model.modules():
        if isinstance(module, Frozen):
            module.check()


def _check_range(name: str, values: Tensor, low: int, high: int) -> None:
    if int(values.min()) < low or int(values.max()) > high:
        raise ModelError(f"{name} is outside {low}..{high}")


def _rows(x: Tensor) -> np.ndarray:
    """Lay [B, C, H, W] out as an array [B, H * W, C], which may share the tensor's memory."""
    return x.permute(0, 2, 3, 1).contiguous().numpy().reshape(x.shape[0], -1, x.shape[1])


def _tensor(rows: np.ndarray, like: Tensor) -> Tensor:
    """Undo `_rows`; the tensor shares the array's memory, channels last."""
    batch, channels, height, width = like.shape
    return torch.from_numpy(rows.reshape(batch, height, width, channels)).permute(0, 3, 1, 2)


@njit(cache=True, nogil=True)
def _requantize(rows: np.ndarray, factor: np.ndarray, low: int, high: int) -> None:
    """Compute clamp(floor(y * factor + 0.5)) in place, a power of two a channel."""
    lowest, highest, half = np.float32(low), np.float32(high), np.float32(0.5)
    flat = rows.reshape(-1, rows.shape[2])
    for i in range(flat.shape[0]):
        for c in range(flat.shape[1]):
            flat[i, c] = min(max(np.floor(flat[i, c] * factor[c] + half), lowest), highest)


@njit(cache=True, nogil=True)
def _scale_shift(rows: np.ndarray, factor: np.ndarray, shift: np.ndarray) -> None:
    """Compute clamp((y * factor + shift) * 2**-NORM_SHIFT) rounded half up, in place."""
    for b in range(rows.shape[0]):
        for i in range(rows.shape[1]):
            for c in range(rows.shape[2]):
                v = np.float64(rows[b, i, c]) * factor[b, c] + shift[b, c]
                v = np.floor(v * 2.0**-NORM_SHIFT + 0.5)
                rows[b, i, c] = min(max(v, ACTIVATION_MIN), ACTIVATION_MAX)


@njit(cache=True, nogil=True)
def _look_up(values: np.ndarray, table: np.ndarray) -> None:
    for i in range(values.size):
        values[i] = table[int(values[i]) - ACTIVATION_MIN]
