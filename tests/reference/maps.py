"""Sections "Grid and pieces", "Affine maps" and "Mixture maps", and moving along a piece."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from functools import cache

from reference.message import Message
from reference.mixture import RECIPROCALS, interpolated

Piece = tuple[int, int, int, int]
Map = tuple[Sequence[int], Sequence[int]]
"""The ends a of all lines of a map's table, and its b, the last ends of all behind them."""


def _nearest(value: Decimal) -> int:
    return int(value.to_integral_value(ROUND_HALF_EVEN))


@cache
def knots(precision: int) -> list[int]:
    """Section "Grid and pieces": u."""
    with localcontext() as context:
        context.prec = 60
        inner = [_nearest(2**precision / (1 + (-Decimal(j - 192) / 16).exp())) for j in range(385)]
    return [0, *inner, 2**precision]


@cache
def images(fineness: int) -> list[int]:
    """Section "Grid and pieces": v."""
    unit = 2**fineness
    return [0, *(5 * unit + j * unit // 16 for j in range(385)), 34 * unit]


@cache
def core(fineness: int) -> list[int]:
    """CORE[-24], ..., CORE[24]."""
    with localcontext() as context:
        context.prec = 60
        return [_nearest(8 * 2**fineness * Decimal(2) ** (Decimal(i) / 32)) for i in range(-24, 25)]


def affine(shift: int, scale: int, fineness: int) -> Map:
    """Section "Affine maps"."""
    unit, half = 2**fineness, core(fineness)[scale + 24]
    left = 17 * unit + shift - half
    return [0, left, left + 2 * half, 34 * unit], [0, 9 * unit, 25 * unit, 34 * unit]


def mixture(weight: list[int], mean: list[int], width: list[int], fineness: int) -> Map:
    """Section "Mixture maps"."""
    total, u, v = 34 * 2**fineness, knots(24), images(14)
    ends = [0]
    for k in range(1, 68):
        below = 0
        for share, middle, spread in zip(weight, mean, width, strict=True):
            distance = (k - 34) * 128 - middle
            argument = distance * RECIPROCALS[spread % 8] >> (12 + (spread >> 3))
            below += share * interpolated(argument)
        s = min(below >> 12, 2**24 - 1)
        q = piece_of(u, s)
        height = v[q] + (s - u[q]) * (v[q + 1] - v[q]) // (u[q + 1] - u[q])
        blend = (63 * height + k * 2**13) >> 6
        ends.append(k + blend * (total - 68) // (68 * 2**13))
    return [*ends, total], [k * total // 68 for k in range(69)]


def piece_of(edges: Sequence[int], number: int) -> int:
    """The k with edges[k] <= number < edges[k + 1]."""
    return bisect_right(edges, number) - 1


def between(ends: Sequence[int], others: Sequence[int], number: int) -> Piece:
    """The piece between two rows of knots that holds a number."""
    k = piece_of(ends, number)
    return ends[k], ends[k + 1] - ends[k], others[k], others[k + 1] - others[k]


def move(message: Message, numbers: list[int], pieces: list[Piece]) -> list[int]:
    """Section "Moving along a piece"; a piece is (a, A, b, B)."""
    lanes = len(message.head)
    result = [s - a + b for s, (a, _, b, _) in zip(numbers, pieces, strict=True)]
    for row in range(0, len(numbers), lanes):
        noise = {}
        own = pieces[row : row + lanes]
        stretched = [lane for lane, (_, old, _, new) in enumerate(own) if old != new]
        for lane in reversed(stretched):
            noise[lane] = message.pop_uniform(lane, own[lane][3])
        for lane in stretched:
            a, length, b, other = own[lane]
            t = other * (numbers[row + lane] - a) + noise[lane]
            message.push_uniform(lane, t % length, length)
            result[row + lane] = b + t // length
    return result
