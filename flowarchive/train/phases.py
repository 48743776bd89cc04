"""The `video` model's networks under training: all phases of known planes at once.

While a model codes, a phase's channels wait for the phase before. While it learns everything is
known, so that channels are made ahead, beside the training, and only networks and objective are
left for the step itself:

    planes  --features-->  Step, Step, ...  --networks, heads, mixture_bits-->  bits
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowarchive import exact, features, int8, lattice
from flowarchive.features import ANCHOR_ONE
from flowarchive.lattice import BORDER, PHASES, QUARTERS
from flowarchive.models.phasewise import LEVEL_NETS
from flowarchive.train.objective import mixture_bits
from flowarchive.train.twins import PhaseTwin

Int32 = NDArray[np.int32]

FIRST_SCALES = {"intra": (52.0,) * 4, "inter": (44.0, 48.0, 48.0, 44.0, 44.0)}
"""What heads say about the widths of anchors before they have learned anything."""


class Known(NamedTuple):
    """Planes and what they are predicted from; all in quarters of a sample step.

    Attributes:
        planes: int32 [N, h, w].
        references: The two compensated references, alike; None for intra frames.
        luma: For chroma, luma on the same grid, int32 [N / 2, h, w], and with references theirs.
        linear: The adaptive predictions, int32 [N, h, w], in 1/256 of a sample step.
    """

    planes: Int32
    references: tuple[Int32, Int32] | None = None
    luma: tuple[Int32, ...] | None = None
    linear: Int32 | None = None


class Step(NamedTuple):
    """One phase of one level, ready for its network.

    Attributes:
        level: Of the lattice.
        phase: Index into `lattice.PHASES`.
        seen: The channels, int8 [N, gh, gw, C].
        distance: From the anchors to the samples, float32 [N, rows, columns, K], in sample steps.
    """

    level: int
    phase: int
    seen: Tensor
    distance: Tensor


def steps(known: Known, levels: int = lattice.MAX_LEVELS) -> list[Step]:
    """Make the channels of all phases of known planes.

    Args:
        known: The planes.
        levels: How many levels, from the finest; crops are too small for all of them.
    """
    done = []
    for level in range(min(levels, lattice.level_count(known.planes.shape[1:]))):
        plane = lattice.bordered(known.planes, level)
        luma = None
        if known.luma is not None:
            luma = [lattice.bordered(member, level) for member in known.luma]
        references = None
        if known.references is not None:
            first, second = (lattice.bordered(member, level) for member in known.references)
            references = first, second
        h, w = plane.shape[1] - 2 * BORDER, plane.shape[2] - 2 * BORDER
        shape = len(plane), (h + 1) // 2, (w + 1) // 2
        last = np.zeros((*shape, 1), dtype=np.int32)
        for index, phase in enumerate(PHASES):
            if references is None:
                seen, anchors = features.intra(plane, luma[0] if luma else None, last, index, 0)
            else:
                assert known.linear is not None
                linear = np.zeros(shape, dtype=np.int32)
                at = slice(phase.row << level, None, 2 << level)
                found = known.linear[:, at, phase.column << level :: 2 << level]
                linear[:, : found.shape[1], : found.shape[2]] = found
                lights = (luma[0], luma[1], luma[2]) if luma else None
                seen, anchors = features.inter(plane, references, lights, linear, last, index, 0)
            last = anchors
            samples = plane[
                :,
                BORDER + phase.row : BORDER + h : 2,
                BORDER + phase.column : BORDER + w : 2,
                None,
            ]
            rows, columns = samples.shape[1:3]
            distance = samples * (ANCHOR_ONE // QUARTERS) - anchors[:, :rows, :columns]
            done.append(
                Step(
                    level,
                    index,
                    torch.from_numpy(int8.signed(seen)),
                    torch.from_numpy(distance.astype(np.float32) / ANCHOR_ONE),
                )
            )
    return done


def bits(nets: nn.ModuleList, steps: Sequence[Step], autocast: bool = False) -> Tensor:
    """Return the bits of all samples of some steps, summed.

    Args:
        nets: A `PhaseTwin` for each of LEVEL_NETS groups of levels.
        steps: What `steps` made, in its order.
        autocast: Convolve in bfloat16; heads stay in float32.
    """
    total = torch.zeros(())
    state: Tensor | None = None
    for step in steps:
        net = nets[min(step.level, LEVEL_NETS - 1)]
        assert isinstance(net, PhaseTwin)
        seen = step.seen.permute(0, 3, 1, 2).to(torch.bfloat16 if autocast else torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            state = net.advance(step.phase, seen, None if step.phase == 0 else state)
            both = torch.cat([state, seen], 1)
        out = net.heads[step.phase](both.float()).permute(0, 2, 3, 1)
        rows, columns, anchors = step.distance.shape[1:]
        heads = out[:, :rows, :columns].reshape(-1, 3 * anchors)
        total = total + mixture_bits(heads, step.distance.reshape(-1, anchors)).sum()
    return total


def set_first_scales(model: nn.Module) -> None:
    """Let the heads of fresh networks begin with plausible widths."""
    for name, nets in model.get_submodule("nets").named_children():
        first = torch.tensor(FIRST_SCALES[name.split("_")[0]]) / exact.UNIT
        for head in (head for net in nets.children() for head in net.heads):  # type: ignore[union-attr]
            with torch.no_grad():
                head.bias[-len(first) :] = first
