"""Every kernel as its launcher launches it, on the shapes of the default model, without any memory.

A launcher is called with tensors that have none, and its launch is kept instead of made: what
`ahead` compiles is what runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from triton_kernels import (
    convolution,
    correction,
    coupling,
    dequantize,
    features,
    filters,
    heads,
    lattice,
    layers,
    lengths,
    linear,
    maps,
    mixture,
    motion,
    picture,
    rans,
    search,
    squeezed,
    tilts,
    uniform,
)

OPTIONS = {"num_warps", "num_stages", "enable_fp_fusion", "maxnreg"}
META = torch.device("meta")
HEIGHT, WIDTH = 1080, 1920


MODULES: list[ModuleType] = [
    convolution, correction, coupling, dequantize, features, filters, heads, lattice, layers,
    lengths, linear, maps, mixture, motion, picture, rans, search, squeezed, uniform,
]  # fmt: skip
"""Those that have kernels."""


@dataclass(frozen=True)
class Launch:
    """One launch as a launcher would make it.

    Attributes:
        kernel: The function.
        arguments: By the names of its parameters.
        options: How it is to be compiled.
    """

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A launch that is compiled.

    Attributes:
        name: What the table calls it.
        call: Calls the launcher.
        hot: It may not spill.
        multiplies: Its sums of products belong on tensor cores.
    """

    name: str
    call: Callable[[], object]
    hot: bool = True
    multiplies: bool = False


class _Recorder:
    """Stands in for a kernel and keeps what is launched."""

    def __init__(self, kernel: Any, kept: list[Launch]) -> None:
        self._kernel, self._kept = kernel, kept

    def __getitem__(self, grid: object) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            options = {name: kwargs.pop(name) for name in OPTIONS & kwargs.keys()}
            arguments = dict(zip(self._kernel.arg_names, args, strict=False)) | kwargs
            self._kept.append(Launch(self._kernel, arguments, options))

        return launch


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Keep launches instead of making them."""
    kept: list[Launch] = []
    replaced = [
        (module, name, value)
        for module in MODULES
        for name, value in vars(module).items()
        if name.endswith("_kernel")
    ]
    for module, name, kernel in replaced:
        setattr(module, name, _Recorder(kernel, kept))
    try:
        yield kept
    finally:
        for module, name, kernel in replaced:
            setattr(module, name, kernel)


def empty(dtype: torch.dtype, *shape: int) -> Tensor:
    """A tensor without memory."""
    return torch.empty(shape, dtype=dtype, device=META)


def _layer(outputs: int, inputs: int, side: int, wide: bool = False) -> convolution.Layer:
    kind = torch.int16 if wide else torch.int8
    limits = (-(1 << 15), (1 << 15) - 1) if wide else (0, 127)
    return convolution.pack(
        empty(kind, outputs, inputs, side, side), empty(torch.int32, outputs),
        empty(torch.int8, outputs), limits, META,
    )  # fmt: skip


def _pixels(channels: int, dtype: torch.dtype = torch.int8) -> Tensor:
    return empty(dtype, 1, 540, 960, channels)


def _convolve(outputs: int, inputs: int, side: int, wide: bool = False, add: bool = False) -> None:
    y = _pixels(outputs, torch.int16 if wide else torch.int8)
    convolution.convolve(
        _pixels(inputs), _layer(outputs, inputs, side, wide), y,
        residual=y if add else None, limits=(0, 127),
    )  # fmt: skip


def _couple() -> None:
    moved = _pixels(8, torch.int32)
    linear = _pixels(8, torch.int16)
    coupling.couple(_pixels(64), _layer(8, 64, 1, wide=True), moved, moved, 8, linear=linear)


def _couple_masked() -> None:
    level, linear = _pixels(8, torch.int32), _pixels(2, torch.int16)
    moved, mask = level[..., 4:6], _pixels(8)[..., 4:6]
    coupling.couple(
        _pixels(42)[..., 10:26], _layer(2, 16, 1, wide=True), moved, moved, 8,
        linear=linear, mask=mask,
    )  # fmt: skip


def _words(count: int) -> Tensor:
    return empty(torch.int64, count)


def _tables() -> mixture.Tables:
    return mixture.Tables(_words(mixture.TABLE_SIZE), _words(8))


def _parameters(count: int, components: int) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(empty(torch.int32, count, components) for _ in range(3))  # type: ignore[return-value]


def _intervals(components: int) -> None:
    mixture.intervals(
        empty(torch.int32, 1 << 20), *_parameters(1 << 20, components),
        mixture.Support(-128, 127, 24), _tables(),
    )  # fmt: skip


def _messages(lanes: int) -> rans.Messages:
    return rans.Messages(
        empty(torch.int64, 64, lanes), empty(torch.int32, 64, 1 << 20), empty(torch.int32, 64)
    )


def _pop_symbols(lanes: int, bits: int, components: int = 5) -> None:
    support = mixture.Support(-(1 << (bits - 1)), (1 << (bits - 1)) - 1, 24 + (bits - 8) // 2)
    rans.pop_symbols(
        _messages(lanes), *_parameters(1 << 20, components), _words(65), support, _tables()
    )


def _push(lanes: int) -> None:
    intervals = empty(torch.int32, 1 << 20)
    rans.push(_messages(lanes), intervals, intervals, empty(torch.int64, 640, 3), _words(65))


def _pop(lanes: int) -> None:
    intervals = empty(torch.int32, 64, lanes)
    rans.pop(_messages(lanes), intervals, intervals, 15)


def _push_uniform(lanes: int) -> None:
    uniform.push_uniform(_messages(lanes), _words(1 << 20), _words(1 << 20), _words(65))


def _pop_uniform(lanes: int) -> None:
    uniform.pop_uniform(_messages(lanes), _words(1 << 20), _words(65))


def _grid() -> maps.Grid:
    knots = _words(388)
    steps = _words(lengths.ENTRIES)
    return maps.Grid(10, _words(maps.CORE_SCALES), 24, knots, knots, steps)


def _line(bits: int = 14) -> Tensor:
    """Samples of messages on a flow's grid."""
    return empty(torch.int64, 64, 1 << bits)


def _flow(lanes: int) -> None:
    """What an encoder launches between a phase's intervals and its bits, without its networks."""
    intervals, turn, grid = empty(torch.int32, 64, 1 << 14), _words(65), _grid()
    dequantize.dequantize(_messages(lanes), intervals, intervals, None, turn, grid)
    maps.shrinks(_line(), turn, grid)
    _affine(lanes, forward=True)
    lengths.heights(_messages(lanes), grid.lengths)
    maps.push_base(_messages(lanes), _line(), turn, grid)
    lengths.code_lengths(empty(torch.int32, 1 << 20), empty(torch.int64, 640, 3), grid.lengths)


def _flow_back(lanes: int) -> None:
    """What a decoder launches."""
    lowest, turn, grid = _numbers(64), _words(65), _grid()
    y = maps.pop_base(_messages(lanes), turn, (64, 1 << 14), grid)
    _affine(lanes, forward=False)
    mixtures, support = _parameters(1 << 20, 5), mixture.Support(-128, 127, 24)
    given = lowest, y, mixtures, support, _tables(), None, turn, grid
    dequantize.quantize(_messages(lanes), *given)


def _affine(lanes: int, forward: bool) -> None:
    along = _words(64) if forward else _numbers(64)
    maps.affine(
        _messages(lanes), along, _line().view(64, 1, 128, 128),
        empty(torch.int16, 64, 64, 64, 4), (1, 0, 2), _words(65), _grid(), forward,
    )  # fmt: skip


def _moves(forward: bool) -> None:
    """What moves a part by a mix, and by mixtures."""
    y = _line().view(64, 1, 128, 128)
    grid, along = _grid(), _words(64) if forward else _numbers(64)
    pieces = layers.row(y, 1, _numbers(layers.ROW), grid, forward)
    layers.move(_messages(64), along, y, pieces, 1, _words(65), grid, forward)


def _mixture(components: int, forward: bool) -> None:
    knots = _words(layers.CURVE + 1)
    tables = layers.Tables(*_tables(), _numbers(layers.WEIGHT_STEPS), knots, knots)
    layers.mixture(
        _line().view(64, 1, 128, 128), empty(torch.int16, 64, 64, 64, 6 * components),
        (1, 0, 2), tables, 10, forward,
    )  # fmt: skip


def _lean() -> tilts.Lean:
    return tilts.Lean(empty(torch.int8, 64, 1 << 14), empty(torch.int64, tilts.TILTS, tilts.ENDS))


def _dequantize_leaning() -> None:
    intervals = empty(torch.int32, 64, 1 << 14)
    dequantize.dequantize(_messages(64), intervals, intervals, _lean(), _words(65), _grid())


def _quantize_leaning() -> None:
    mixtures, support = _parameters(1 << 20, 5), mixture.Support(-128, 127, 24)
    given = _numbers(64), _line(), mixtures, support, _tables(), _lean(), _words(65), _grid()
    dequantize.quantize(_messages(64), *given)


def _see() -> None:
    place = empty(torch.int8, 64, 64, 64, 36)[..., :4]
    maps.see(_line().view(64, 1, 128, 128), (1, 2), place, place, 10)


def _compensate() -> None:
    motion.compensate(
        _storage(), _numbers(1), empty(torch.int16, 1, 135, 240, 2), _numbers(1),
        empty(torch.int32, 16, 8), (HEIGHT, WIDTH), -128, 127,
    )  # fmt: skip


def _numbers(count: int) -> Tensor:
    return empty(torch.int32, count)


def _storage() -> Tensor:
    return empty(torch.int16, 1, 30, 1, HEIGHT, WIDTH)


def _around(inter: bool, chroma: bool) -> features.Around:
    planes, lights = empty(torch.int32, 2, HEIGHT, WIDTH), empty(torch.int32, 1, HEIGHT, WIDTH)
    return features.Around(
        *((planes, planes) if inter else (None, None)),
        *((lights,) * (3 if inter else 1) if chroma else ()),
    )


def _features(inter: bool, chroma: bool, phase: int) -> None:
    grid = lattice.grid_shape(HEIGHT, WIDTH, 0)
    seen = empty(torch.int8, 2, *grid, 80)[..., 80 - features.channels(inter, chroma, phase) :]
    tables = features.Tables(empty(torch.int32, 3, 16, 2), empty(torch.int8, 4096))
    last = empty(torch.int32, 2, *grid, 5 if inter else 4) if phase else None
    planes, place, around = _storage(), _numbers(2), _around(inter, chroma)
    if inter:
        foretold = empty(torch.int32, 2, *grid)
        features.inter(planes, place, around, foretold, last, 0, phase, 0, tables, seen)
    else:
        features.intra(planes, place, around, last, 0, phase, 0, tables, seen)


def _learned(taps: int) -> linear.Filters:
    slots = 1, 2, linear.GROUPS, linear.PHASES, linear.CLASSES
    return linear.Filters(
        empty(torch.int32, *slots, taps), empty(torch.int64, *slots, linear.products(taps)),
        _numbers(1), empty(torch.float64, *slots, linear.products(taps)),
    )  # fmt: skip


def _linear(taps: int, learn: bool) -> None:
    common = (
        _storage(), _numbers(2), _around(True, taps == linear.CHROMA_TAPS), _numbers(1),
        _learned(taps), empty(torch.int32, 3, 64, 3), 0,
    )  # fmt: skip
    if learn:
        linear.learn(*common, 0)
    else:
        linear.predict(*common, 0, 0, (-32768, 32512))


def _filters(taps: int) -> None:
    defaults = empty(torch.float64, linear.GROUPS, linear.PHASES, linear.CLASSES, taps)
    filters.end_frame(_learned(taps), defaults, empty(torch.float64, 3), _numbers(1))


def _mixtures(components: int) -> None:
    grid = lattice.grid_shape(HEIGHT, WIDTH, 0)
    heads.mixtures(
        empty(torch.int16, 1, *grid, 3 * components), empty(torch.int32, 1, *grid, components),
        grid, empty(torch.int32, 1, 3, 3, 48), _numbers(1), (0, 0), 0, _numbers(16),
    )  # fmt: skip


def _correction() -> None:
    corrections = correction.Corrections(
        empty(torch.int64, 1, 3, 3, 48, 3), empty(torch.int64, 1, 3, 3, 48, 3),
        empty(torch.int32, 1, 3, 3, 48), _numbers(1),
    )  # fmt: skip
    correction.learn(
        corrections, _numbers(1), (0, 0), _numbers(1 << 20), *_parameters(1 << 20, 5), _tables(),
        _numbers(256),
    )  # fmt: skip
    correction.end_frame(corrections, _numbers(1))


def _lattice() -> None:
    lattice.take(_storage(), _numbers(1), 0, 0)
    lattice.on_grid(_storage(), _numbers(1), (HEIGHT // 2, WIDTH // 2), 4)
    lattice.cut_sums(_storage(), _numbers(1), empty(torch.int32, 1, HEIGHT, WIDTH))


def _search() -> None:
    filters, hints = empty(torch.int32, 4, 8), empty(torch.int16, 1, 135, 240, 2)
    one, two = (picture.picture(empty(torch.int32, 1, HEIGHT, WIDTH), filters, 8) for _ in range(2))
    prices = search.Prices(
        empty(torch.float32, 2, search.RATES),
        empty(torch.float32, search.CONTEXTS, 2),
        empty(torch.float32, 10, 24),
    )
    search.search(one, two, hints, prices, two)


def _squeezed(channels: int) -> None:
    """What a level of an integer flow launches around its networks."""
    x, kept = _pixels(channels, torch.int32), channels // 2
    context = _pixels(4)
    squeezed.see(x, (0, 1, 2), context, 0, _pixels(3 * channels // 4 + 4))
    grid = squeezed.Grid(None, empty(torch.int32, kept, 3), 540 * 960, 540 * 960 * kept)
    squeezed.take(x[..., kept:], grid)
    said = _pixels(channels, torch.int16)
    squeezed.foretell(said, said, grid, 0)


CASES = [
    Case("conv 3x3 16>64", lambda: _convolve(64, 16, 3), multiplies=True),
    Case("conv 3x3 64>64 +", lambda: _convolve(64, 64, 3, add=True), multiplies=True),
    Case("conv 3x3 80>64 +", lambda: _convolve(64, 80, 3, add=True), multiplies=True),
    Case("conv 3x3 32>32 +", lambda: _convolve(32, 32, 3, add=True), multiplies=True),
    Case("conv 3x3 48>32 +", lambda: _convolve(32, 48, 3, add=True), multiplies=True),
    Case("conv 3x3 64>48 +", lambda: _convolve(48, 64, 3, add=True), multiplies=True),
    Case("head 1x1 80>12", lambda: _convolve(12, 80, 1, wide=True), multiplies=True),
    Case("head 1x1 48>15", lambda: _convolve(15, 48, 1, wide=True), multiplies=True),
    Case("flow 1x1 128>16", lambda: _convolve(16, 128, 1), multiplies=True),
    Case("flow 3x3 20>32", lambda: _convolve(32, 20, 3), multiplies=True),
    Case("flow 1x1 32>32 +", lambda: _convolve(32, 32, 1, add=True), multiplies=True),
    Case("flow 1x1 36>4", lambda: _convolve(4, 36, 1, wide=True), multiplies=True),
    Case(
        "depthwise 3x3 64",
        lambda: convolution.convolve_depthwise(_pixels(64), _layer(64, 1, 3), _pixels(64)),
    ),
    Case("squeezed 1x1 3>16", lambda: _convolve(16, 3, 1), multiplies=True),
    Case("squeezed 3x3 16>16", lambda: _convolve(16, 16, 3), multiplies=True),
    Case("squeezed 3x3 10>2, 16 bits", lambda: _convolve(2, 10, 3, wide=True), multiplies=True),
    Case("couple 1x1 64>8", _couple, multiplies=True),
    Case("couple 1x1 16>2, masked", _couple_masked, multiplies=True),
    Case("squeezed", lambda: _squeezed(8)),
    Case("intervals, K 4", lambda: _intervals(4)),
    Case("intervals, K 5", lambda: _intervals(5)),
    Case("push, 64 lanes", lambda: _push(64)),
    Case("push, 1024 lanes", lambda: _push(1024)),
    Case("pop, 64 lanes", lambda: _pop(64)),
    Case("pop symbols, 64, 8 bits", lambda: _pop_symbols(64, 8)),
    Case("pop symbols, 256, 8 bits", lambda: _pop_symbols(256, 8)),
    Case("pop symbols, 1024, 8 bits", lambda: _pop_symbols(1024, 8)),
    Case("pop symbols, 64, 16 bits", lambda: _pop_symbols(64, 16)),
    Case("push uniform, 64", lambda: _push_uniform(64)),
    Case("pop uniform, 64", lambda: _pop_uniform(64)),
    Case("flow", lambda: _flow(64)),
    Case("flow back", lambda: _flow_back(64)),
    Case("flow: parts seen", _see),
    Case("flow, mix", lambda: _moves(forward=True)),
    Case("flow back, mix", lambda: _moves(forward=False)),
    *(
        Case(f"flow{' back' * (not f)}, mixture, K {k}", lambda k=k, f=f: _mixture(k, f))  # type: ignore[misc]
        for k in (1, 4, 8) for f in (True, False)
    ),
    Case("flow, places lean", _dequantize_leaning),
    Case("flow back, places lean", _quantize_leaning),
    Case("compensate", _compensate),
    *(
        Case(f"{'inter' if inter else 'intra'}, {'chroma' if chroma else 'luma'}, phase {phase}",
             lambda i=inter, c=chroma, p=phase: _features(i, c, p))  # type: ignore[misc]
        for inter in (False, True) for chroma in (False, True) for phase in (0, 1)
    ),
    Case("predict, 38 taps", lambda: _linear(38, learn=False)),
    Case("predict, 45 taps", lambda: _linear(45, learn=False)),
    Case("learn, 38 taps", lambda: _linear(38, learn=True), multiplies=True),
    Case("learn, 45 taps", lambda: _linear(45, learn=True), multiplies=True),
    Case("filters, 38 taps", lambda: _filters(38)),
    Case("filters, 45 taps", lambda: _filters(45)),
    Case("mixtures, K 4", lambda: _mixtures(4)),
    Case("mixtures, K 5", lambda: _mixtures(5)),
    Case("correction", _correction),
    Case("lattice", _lattice),
    Case("search", _search),
]  # fmt: skip
"""Every kernel, as the default model's shapes launch it; some cases launch several."""


def launches(case: Case) -> dict[str, Launch]:
    """What a case launches, the first launch of each kernel, by the kernel's name."""
    with recorded() as kept:
        case.call()
    found: dict[str, Launch] = {}
    for launch in kept:
        found.setdefault(launch.kernel.fn.__name__, launch)
    return found
