"""The account of an archive as a picture: what its stacks held, and what a sample came to.

Drawn with matplotlib, which is loaded where it is used and comes with the extra `bench`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from flowarchive import files
from flowarchive.account import Statement
from flowarchive.archive import open as open_archive
from flowarchive.errors import InputError, OutputExists

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw", "plot_account", "require_matplotlib"]


def plot_account(
    archive: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
) -> Path:
    """Draw the account of an archive, and return the picture's name.

    Args:
        archive: The archive.
        output: The picture, in the format of its suffix; None for the archive's name with `.png`.
        force: Replace the output.

    Raises:
        InputError: matplotlib is missing or does not write that format, or no chunk of the archive
            used bits-back.
        OutputExists: The output exists and `force` is not given.
        FormatError: The archive is damaged.
    """
    require_matplotlib()
    path = Path(archive).with_suffix(".png") if output is None else Path(output)
    with open_archive(archive) as frames:
        accounts = [frames.account(i) for i in range(len(frames.container.index))]
        samples = frames.format.samples_per_frame
    if path.exists() and path.samefile(archive):
        raise OutputExists(f"{path} is the archive itself")
    known = [account for account in accounts if account is not None]
    if not known:
        raise InputError(f"{archive} has no account to draw: none of its chunks used bits-back")
    kind = path.suffix.removeprefix(".") or "png"
    with files.atomic_output(path, force) as file:
        draw(known, samples, file, kind)
    return path


def draw(accounts: Sequence[Statement], samples: int, file: BinaryIO, kind: str) -> None:
    """Draw the height of the stack and the cumulative rate, both in coding order.

    Args:
        accounts: One or more chunks' accounts.
        samples: Of a frame.
        file: Receives the picture.
        kind: "png" or another of matplotlib's formats.

    Raises:
        InputError: matplotlib is not installed, or does not write that kind.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    stack, rate = figure.subplots(1, 2)
    _draw_stacks(stack, accounts)
    _draw_rates(rate, accounts, samples)
    chunks = f"{len(accounts)} chunk{'s' * (len(accounts) != 1)}"
    figure.suptitle(f"{chunks} with bits-back; each chunk's last frame is coded first")
    try:
        figure.savefig(file, format=kind, dpi=120)
    except ValueError as error:
        raise InputError(f"no plot: {error}") from error


def require_matplotlib() -> None:
    """Raise InputError, with what to do about it, where matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401 (whether it is there)
    except ImportError:
        raise InputError("a plot needs matplotlib: pip install 'flowarchive[bench]'") from None


def _draw_stacks(axes: Axes, accounts: Sequence[Statement]) -> None:
    first = 0
    for account in accounts:
        count = len(account.frames)
        # Only the first of each kind has an entry in the legend.
        names = ("stack", "seed of bits-back", "least height since") if not first else (None,) * 3
        axes.plot(
            range(first, first + count + 1), list(account.heights()), color="C0", label=names[0]
        )
        began = first + next(i for i, f in enumerate(reversed(account.frames)) if f.popped)
        axes.plot([began], [account.seed], "o", color="C1", label=names[1])
        ends = [began, first + count]
        axes.plot(ends, [account.seed - account.peak] * 2, ":", color="C3", label=names[2])
        first += count
    axes.set_xlabel("frames coded")
    axes.set_ylabel("bits on the stack")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_rates(axes: Axes, accounts: Sequence[Statement], samples: int) -> None:
    net = _rates((f.net for a in accounts for f in reversed(a.frames)), samples)
    ideal = _rates((f.ideal for a in accounts for f in reversed(a.frames)), samples)
    frames = range(1, len(net) + 1)
    axes.plot(frames, net, "o", markersize=3, color="C0", label="coded")
    axes.plot(frames, ideal, color="C2", label="ideal")
    axes.set_xlabel("frames coded")
    axes.set_ylabel("bits/sample of all of them")
    axes.grid(alpha=0.3)
    axes.legend()


def _rates(bits: Iterator[int], samples: int) -> list[float]:
    """Bits per sample of the first frame, the first two, and so on."""
    return [total / (count * samples) for count, total in enumerate(accumulate(bits), 1)]
