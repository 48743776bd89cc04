"""Sections "Mixtures" and "Scale correction": heads and anchors to mixtures, and their scales."""

from __future__ import annotations

from typing import NamedTuple

from reference.lattice import PHASES
from reference.mixture import sig
from reference.networks import clamp


def root(value: int) -> int:
    """The greatest n with n**16 <= value."""
    n = 0
    for bit in reversed(range(16)):
        if (n + 2**bit) ** 16 <= value:
            n += 2**bit
    return n


WEIGHTS = [root(2 ** (240 - i)) for i in range(16)]
# The greatest n with 2**n <= (m / 256)**256, for m = 256..511.
LOG = [(m**256).bit_length() - 1 - 8 * 256 for m in range(256, 512)]


class Mixture(NamedTuple):
    """The parameters of a logistic mixture."""

    mean: list[int]
    scale: list[int]
    weight: list[int]


def mixture_of(head: list[int], anchors: list[int], shift: int) -> Mixture:
    """Section "Mixtures"."""
    k = len(anchors)
    a, b, c = head[:k], head[k : 2 * k], head[2 * k :]
    mean = [anchor + offset * 2**shift for anchor, offset in zip(anchors, b, strict=True)]
    return Mixture(mean, [clamp(own + 8 * shift, 0, 191) for own in c], weights_of(a))


def weights_of(a: list[int]) -> list[int]:
    """The weights of components by their logarithms."""
    best = a.index(max(a))
    below = [a[best] - own for own in a]
    shares = [WEIGHTS[n % 16] >> min(n // 16, 31) for n in below]
    weight = [share * 4096 // sum(shares) for share in shares]
    weight[best] += 4096 - sum(weight)
    return weight


class Correction:
    """Offsets of scales, and what they have learned from."""

    def __init__(self) -> None:
        slots = [(group, phase) for group in range(3) for phase in range(len(PHASES))]
        self.costs = {slot: [[0, 0, 0] for _ in range(48)] for slot in slots}
        self.new = {slot: [[0, 0, 0] for _ in range(48)] for slot in slots}
        self.offsets = {slot: [0] * 48 for slot in slots}
        self.turn = 0

    def correct(self, slot: tuple[int, int], mixture: Mixture) -> Mixture:
        """The mixture that a sample is popped with."""
        offset = self.offsets[slot][bucket(mixture)]
        return mixture._replace(scale=[clamp(s + offset, 0, 191) for s in mixture.scale])

    def learn(self, slot: tuple[int, int], symbols: list[int], mixtures: list[Mixture]) -> None:
        """Add what the samples of a phase cost."""
        stride = max(1, -(-len(symbols) // 2**11))
        for i in range(self.turn % stride, len(symbols), stride):
            of_bucket = self.new[slot][bucket(mixtures[i])]
            for q in range(3):
                of_bucket[q] += cost(symbols[i], mixtures[i], 4 * (q - 1))

    def take_turn(self) -> None:
        """Let older costs fade, and find the offsets."""
        for slot, costs in self.costs.items():
            for number, of_bucket in enumerate(costs):
                for q in range(3):
                    of_bucket[q] += self.new[slot][number][q] - of_bucket[q] // 5
                self.offsets[slot][number] = best_offset(*of_bucket)
                self.new[slot][number] = [0, 0, 0]
        self.turn += 1


def bucket(mixture: Mixture) -> int:
    """The bucket of a sample."""
    total = sum(s * w for s, w in zip(mixture.scale, mixture.weight, strict=True))
    return (total >> 12) // 4


def cost(symbol: int, mixture: Mixture, step: int) -> int:
    """What a sample costs with its scales moved by `step`, in 1/256 bit."""
    total = 0
    for mean, scale, weight in zip(*mixture, strict=True):
        moved = clamp(scale + step, 0, 191)
        total += weight * (sig(symbol + 1, mean, moved) - sig(symbol, mean, moved))
    p = (total >> 12) + 1
    octave = p.bit_length() - 1
    return 256 * (24 - octave) - LOG[p * 2**8 // 2**octave - 256]


def best_offset(less: int, same: int, more: int) -> int:
    """Where the parabola through three costs has its least value."""
    curvature = less - 2 * same + more + 500
    if curvature > 0:
        offset = (4 * (less - more) + curvature) // (2 * curvature)
    else:
        offset = 4 if more < less else -4
    return clamp(offset, -12, 12)
