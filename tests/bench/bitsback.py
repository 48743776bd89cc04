"""What local bits-back costs: `python tests/bench/bitsback.py`.

Noise that is correlated between neighbors, coded by a mixture that does not know it, and a small
flow trained for a moment to find out. For each local coder, pitch of the grid and width of the
noise, a row of a Markdown table:

    overhead    coded net length less the flow's own -log2 p, evaluated in floats on the same y
    peak        auxiliary bits that are in the air at once
    forward     time in the coder alone, for one element moved along one map
    inverse     alike
"""

from __future__ import annotations

import argparse
import copy
import time

import numpy as np
import torch

from flowarchive import exact
from flowarchive.ans import Message
from flowarchive.bitsback import Dequantizer, Gaussian, LocalCoder, Map, Uniform
from flowarchive.entropy import LogisticMixture
from flowarchive.flows.couplings import Couplings, CouplingShape, LayerShape
from flowarchive.flows.layers import PARTS
from flowarchive.flows.maps import RANGE, Logit
from flowarchive.flows.phase import PhaseFlow
from flowarchive.flows.twins import dequantize, gain_bits
from flowarchive.int8 import ZERO
from flowarchive.train.couplings import FlowTwin
from flowarchive.train.twins import frozen_tensors

PRECISION = 24
LANES = 64
FINENESSES = (4, 6, 8, 10, 12, 14)
SIGMAS = (-32, 0, 32, 64, 128)


class Stopwatch:
    """A local coder that notes how low the message gets, and how long it takes."""

    def __init__(self, coder: LocalCoder) -> None:
        self.coder, self.least = coder, float("inf")
        self.seconds, self.moved = [0.0, 0.0], [0, 0]

    def forward(self, message: Message, x: np.ndarray, map: Map) -> np.ndarray:
        return self._call(0, message, x, map)

    def inverse(self, message: Message, y: np.ndarray, map: Map) -> np.ndarray:
        return self._call(1, message, y, map)

    def _call(self, way: int, message: Message, z: np.ndarray, map: Map) -> np.ndarray:
        self.least = min(self.least, message.bits)
        began = time.process_time()
        moved = (self.coder.inverse if way else self.coder.forward)(message, z, map)
        self.seconds[way] += time.process_time() - began
        self.moved[way] += len(moved)
        self.least = min(self.least, message.bits)
        return moved


class Clip:
    """A plane of samples and the intervals a mixture gives them."""

    def __init__(self, side: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        noise = rng.logistic(0, 3, (side, side))
        for axis in (0, 1):
            noise = noise + 0.4 * np.roll(noise, 1, axis)
        self.mean = np.rint(256 * rng.normal(128, 20, (side, side))).astype(np.int32).reshape(-1)
        mixed = np.rint(self.mean / 256 + noise.reshape(-1)).clip(0, 255)
        self.symbols, self.side = mixed.astype(np.int32), side
        self.scale = np.full(side * side, 57, dtype=np.int32)
        self.model = LogisticMixture(0, 255, PRECISION)
        self.start, self.freq = (
            a.astype(np.int64) for a in self.model.interval(self.symbols, self.mean, self.scale)
        )

    @property
    def mixture_bits(self) -> float:
        return self.model.bits(self.symbols, self.mean, self.scale)

    def parts(self, plane: np.ndarray) -> np.ndarray:
        """A plane's samples as parts of squares."""
        whole = plane.reshape(self.side, self.side)
        return np.stack([whole[row::2, column::2] for row, column in PARTS])

    @property
    def ends(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Left ends and widths of the intervals."""
        start, width = (
            torch.from_numpy(self.parts(ends)[None]).double() for ends in (self.start, self.freq)
        )
        return start, width

    @property
    def context(self) -> torch.Tensor:
        """Of states that say nothing."""
        return torch.zeros(1, 1, self.side // 2, self.side // 2)

    def find(self, u: np.ndarray, part: slice) -> tuple[np.ndarray, np.ndarray]:
        mean, scale = self.mean[part], self.scale[part]
        return self.model.interval(self.model.lookup(u, mean, scale), mean, scale)


def train(shape: CouplingShape, steps: int) -> FlowTwin:
    """A flow that has seen another plane."""
    torch.manual_seed(0)
    twin = FlowTwin(shape)
    clip = Clip(128, 1)
    first, _ = dequantize(*clip.ends, PRECISION, torch.rand_like(clip.ends[0]))
    twin.start(first, clip.context)
    optimizer = torch.optim.Adam(twin.parameters(), 3e-3)
    for _ in range(steps):
        first, _ = dequantize(*clip.ends, PRECISION, torch.rand_like(clip.ends[0]))
        loss = -gain_bits(first, *twin(first, clip.context)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    exact.set_fake(twin, fake=True)
    return twin.eval()


def measure(
    clip: Clip, twin: FlowTwin, layers: Couplings, coder: LocalCoder, fineness: int
) -> list[str]:
    """Code the clip, and say what it took."""
    n = len(clip.symbols)
    rng = np.random.default_rng(0)
    heads = rng.integers(1 << 31, 1 << 63, LANES, dtype=np.uint64).astype("<u8")
    words = rng.integers(0, 1 << 32, 3 * n, dtype=np.uint32).astype("<u4")
    message = Message.from_bytes(heads.tobytes() + words.tobytes(), LANES)
    full, before = message.bits, message.to_bytes()
    watch = Stopwatch(coder)
    flow = PhaseFlow(PRECISION, fineness, watch)
    states = np.full((1, clip.side, clip.side, 1), ZERO, dtype=np.uint8)
    steering = layers.around(states).steering()

    dequantizer = Dequantizer(Logit(PRECISION, fineness))
    y = clip.parts(dequantizer.forward(message.copy(), coder, clip.start, clip.freq))
    flow.push(message, clip.start, clip.freq, steering)
    net = message.bits - full
    flow.pop(message, clip.find, steering)
    if message.to_bytes() != before:
        raise AssertionError("what was pushed did not come back")

    with torch.no_grad():
        first = torch.from_numpy((y + 0.5) / (1 << fineness) - RANGE)[None]
        last, ladj = twin(first.float(), clip.context)
        saved = gain_bits(first, last.double(), ladj.double()).sum().item()
    overhead = (net - clip.mixture_bits + saved) / n
    times = [1e9 * s / m for s, m in zip(watch.seconds, watch.moved, strict=True)]
    name = "uniform"
    if isinstance(coder, Gaussian):
        name = f"gaussian, {2 ** (coder.sigma / 32):g}"
    cells = [name, str(fineness), f"{net / n:.4f}", f"{overhead:+.4f}"]
    return [*cells, f"{(full - watch.least) / n:.1f}", *(f"{t:.0f}" for t in times)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=256, help="of the square plane")
    parser.add_argument("--steps", type=int, default=150, help="of training")
    parser.add_argument("--components", type=int, default=0, help="of mixture couplings")
    options = parser.parse_args()
    couplings = (LayerShape("coupling", moved, options.components) for moved in ((0, 3), (1, 2)))
    layers = LayerShape("norm"), LayerShape("mix", order=(0, 1, 2, 3)), *couplings
    shape = CouplingShape(1, 1, 16, layers)
    twin = train(shape, options.steps)
    clip, flow = Clip(options.side, 2), Couplings(shape, frozen_tensors(copy.deepcopy(twin)), "")
    n = len(clip.symbols)
    warm = Clip(16, 3)
    for coder in (Uniform(), Gaussian(0)):
        measure(warm, twin, flow, coder, 10)
    print(f"{n} samples, {clip.mixture_bits / n:.4f} bits each by the mixture alone\n")
    head = ["coder, sigma in cells", "pitch 2**-", "bits/dim", "overhead", "peak bits/dim"]
    print("| " + " | ".join([*head, "forward ns", "inverse ns"]) + " |")
    print("|---" * (len(head) + 2) + "|")
    coders: list[LocalCoder] = [Uniform(), *(Gaussian(sigma) for sigma in SIGMAS)]
    for coder in coders:
        for fineness in FINENESSES:
            print("| " + " | ".join(measure(clip, twin, flow, coder, fineness)) + " |", flush=True)


if __name__ == "__main__":
    main()
