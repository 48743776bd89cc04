r"""Where the bits of a chunk come from and go: what its frames push, and what bits-back borrows.

The encoder pushes the last frame first. Frames coded by the *integer* family only push. A frame
coded by *bits-back* pops bits that lie there already, chooses by them, and pushes more than that:

    height |                       ___
           |          seed  __/\  /   \/      what was popped is pushed again
           |           ____/    \/            the least height since the seed
           |      ____/
           |_____/                            the integer family alone
           +------------------------------> frames, the last one first

The height is `Message.bits`. An `Account` is kept while a chunk is pushed: each entry says how high
the stack has become, so that no bit goes unaccounted for. A `Statement` is its end, in whole bits,
which the archive keeps of a chunk that used bits-back.

This module knows numbers of bits alone: not the stack, not frames, not bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

__all__ = ["LIMIT", "Account", "FrameBits", "Statement"]

LIMIT = 1 << 48
"""What every number of bits of a statement stays below."""


@dataclass(frozen=True)
class FrameBits:
    """The bits of one frame.

    Attributes:
        integer: Pushed by the integer family.
        popped: Popped by bits-back.
        pushed: Pushed by bits-back.
        ideal: The code length by the frozen integer model, -log2 p.
    """

    integer: int = 0
    popped: int = 0
    pushed: int = 0
    ideal: int = 0

    @property
    def net(self) -> int:
        """What the stack has grown by."""
        return self.integer + self.pushed - self.popped

    @property
    def overhead(self) -> int:
        """What was spent beyond the ideal; negative where rounding has helped."""
        return self.net - self.ideal


@dataclass(frozen=True)
class Statement:
    """The account of a chunk that used bits-back.

    Attributes:
        seed: Height of the stack when bits-back began, below `LIMIT`.
        peak: The most that the stack ever fell below `seed`: bits that had to be there, 0..seed.
        frames: In display order; each number below `LIMIT`, and at least one frame has popped.

    Raises:
        ValueError: A number is out of its range.
    """

    seed: int
    peak: int
    frames: tuple[FrameBits, ...] = field(repr=False)

    def __post_init__(self) -> None:
        numbers = [n for f in self.frames for n in (f.integer, f.popped, f.pushed, f.ideal)]
        if not all(0 <= n < LIMIT for n in (self.seed, self.peak, *numbers)):
            raise ValueError("an account cannot have such a number of bits")
        if self.peak > self.seed:
            raise ValueError("an account cannot owe more than there was")
        if not any(f.popped for f in self.frames):
            raise ValueError("an account without bits-back says nothing")

    @property
    def net_bits(self) -> int:
        """What the stack has grown by."""
        return sum(f.net for f in self.frames)

    @property
    def ideal_bits(self) -> int:
        """The code length by the frozen integer model."""
        return sum(f.ideal for f in self.frames)

    @property
    def overhead_bits(self) -> int:
        """What was spent beyond the ideal."""
        return sum(f.overhead for f in self.frames)

    def heights(self) -> Iterator[int]:
        """Yield the stack's height before and after each frame in coding order, the last first."""
        return accumulate((f.net for f in reversed(self.frames)), initial=0)


class Account:
    """What is entered while a chunk is pushed, in coding order.

    Frames that are coded together are entered under the first of them.

    Args:
        frames: How many the chunk has.
        height: Bits on the stack before the first entry.
    """

    def __init__(self, frames: int, height: float = 0.0) -> None:
        self._height = round(height)
        self._seed: int | None = None
        self._lowest = 0
        self._integer, self._popped, self._pushed = [0] * frames, [0] * frames, [0] * frames
        self._ideal = [0.0] * frames

    def integer(self, frame: int, height: float, ideal: float) -> None:
        """Enter what the integer family has pushed since the last entry.

        Args:
            frame: Its number in the chunk, in display order.
            height: Bits on the stack now, `Message.bits`.
            ideal: -log2 p of what was pushed, in bits.
        """
        self._integer[frame] += self._advance(height)
        self._ideal[frame] += ideal

    def bits_back(
        self,
        frame: int,
        height: float,
        ideal: float = 0.0,
        popped: float = 0.0,
        lowest: float | None = None,
    ) -> None:
        """Enter what bits-back has popped and pushed since the last entry.

        An entry after every pop and after every push needs `height` alone. One entry for a whole
        step, which hides what was popped and pushed again, is told the rest.

        Args:
            frame: See `integer`.
            height: See `integer`.
            ideal: -log2 p of what was coded, in bits; the net cost, not what was pushed.
            popped: All that was popped since the last entry; at least what the height has fallen.
            lowest: The least height since; None where all was popped before anything was pushed.
        """
        before = self._height
        if self._seed is None:
            self._seed = self._lowest = before
        net = self._advance(height)
        taken = max(round(popped), -net, 0)
        self._popped[frame] += taken
        self._pushed[frame] += net + taken
        self._ideal[frame] += ideal
        reached = before - taken if lowest is None else round(lowest)
        self._lowest = max(0, min(self._lowest, reached, self._height))

    def _advance(self, height: float) -> int:
        """Take the new height in whole bits, so that entries add up, and return the growth."""
        before, self._height = self._height, round(height)
        return self._height - before

    @property
    def ideal_bits(self) -> float:
        """The code length of all frames by the frozen integer model."""
        return sum(self._ideal)

    def statement(self) -> Statement | None:
        """Return the account in whole bits, or None where nothing was popped."""
        if self._seed is None or not any(self._popped):
            return None
        # A flow's own length of a frame that costs next to nothing may be a hair below 0.
        ideal = [max(0, round(bits)) for bits in self._ideal]
        columns = self._integer, self._popped, self._pushed, ideal
        frames = tuple(FrameBits(*row) for row in zip(*columns, strict=True))
        return Statement(self._seed, self._seed - self._lowest, frames)
