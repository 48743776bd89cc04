"""Mixtures out of a network's integers: the rule's own words, in plain Python."""

from __future__ import annotations

import numpy as np
import pytest

from flowarchive.models.mixtures import Mixtures


def plain(
    head: list[int], anchors: list[int], offsets: list[int], shift: int
) -> tuple[list[int], ...]:
    """One mixture: docs/format-video.md, "Mixtures"."""
    count = len(anchors)
    logs, means, scales = head[:count], head[count : 2 * count], head[2 * count : 3 * count]
    # floor(2**(15 - i / 16)) is the integer 16th root of 2**(240 - i).
    table = [max(v for v in range(1 << 14, (1 << 15) + 1) if v**16 <= 1 << (240 - i)) for i in (0,)]
    best = logs.index(max(logs))
    shares = []
    for log in logs:
        below = max(logs) - log
        root = int(2 ** (15 - (below % 16) / 16))
        shares.append(table[0] >> below // 16 if below % 16 == 0 else root >> min(below // 16, 31))
    weights = [(share << 12) // sum(shares) for share in shares]
    weights[best] += 4096 - sum(weights)
    mean = [anchor + (offset << shift) for anchor, offset in zip(anchors, means, strict=True)]
    scale = [min(max(s + 8 * shift, 0), 191) for s in scales]
    middle = sum(s * w for s, w in zip(scale, weights, strict=True))
    offset = offsets[middle // 4096 // 4]
    return mean, scale, [min(max(s + offset, 0), 191) for s in scale], weights


@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize("components", [4, 5])
@pytest.mark.parametrize("columns", [5, 16, 37])
@pytest.mark.parametrize("spread", [3, 300, 32768])
def test_mixtures_are_the_integers_of_the_rule(spread, columns, components, shift):
    random = np.random.default_rng(spread)
    count, rows = 2, 3
    head = random.integers(-spread, spread, (count, rows + 3, columns + 3, 16)).astype(np.int16)
    head[..., 2 * components : 3 * components] = random.integers(-20, 210, (*head.shape[:3], 1))
    anchors = random.integers(-1 << 24, 1 << 24, (count, rows + 1, columns + 1, components))
    anchors = anchors.astype(np.int32)
    offsets = random.integers(-12, 13, 48).astype(np.int32)
    found = Mixtures.of_shape(count, rows, columns, components)
    found.fill(head, anchors, offsets, shift)
    for n, y, x in np.ndindex(count, rows, columns):
        said, near = head[n, y + 1, x + 1].tolist(), anchors[n, y, x].tolist()
        expected = plain(said, near, offsets.tolist(), shift)
        assert tuple(array[n, y, x].tolist() for array in found) == expected
