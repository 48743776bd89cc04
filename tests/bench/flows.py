"""Three uses of the same networks: `python tests/bench/flows.py CLIP... --data DIR`.

The packaged `video` model takes the samples of a phase for independent. The networks of a phase's
couplings, trained from nothing for equal processor time (`--minutes` each) on the clips of
docs/models/chain.toml, can make up for it in three ways of equal multiplications:

    flow        the continuous flow: couplings move places in the samples' intervals, coded by
                local bits-back
    integer     each sample's interval is warped, by what samples of its square and of its neighbors
                say that are known before it: {0}, {3 | 0}, {1, 2 | 0, 3}; no auxiliary bits
    correction  each interval is warped by the phase's states alone, as more of `video` would do it

Prints bits a sample of each clip's first frames in Markdown, what is not coded by these networks
included: `coded` by messages of a `chain` model, else ideal code lengths. As in that model each
phase goes the shorter of two ways, which takes a bit. Then frames a second, packing and
unpacking: by coding; for the other two ways the time of `video` and that of the networks.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from flowarchive import exact, planes, store
from flowarchive.ans import Message
from flowarchive.flows.couplings import MOVED, PARTS, SEEN_BITS, SHIFT_BITS
from flowarchive.flows.maps import SCALE_MAX, SCALES_PER_OCTAVE, SHIFT_MAX
from flowarchive.flows.twins import gain_bits
from flowarchive.frames import VideoFormat
from flowarchive.int8 import MOST, ZERO
from flowarchive.media import open_source
from flowarchive.models.chain import ChainModel
from flowarchive.train.config import PartConfig, read_config
from flowarchive.train.couplings import ChainTwin, CouplingTwin
from flowarchive.train.flow import NEAREST, Example, FlowPart, _Collector, _parts
from flowarchive.train.twins import frozen_tensors

CONFIG = Path(__file__).parents[2] / "docs" / "models" / "chain.toml"
WIDEST = 8.0
"""Where networks see an interval's middle; its ends may be far away."""


class Crops(NamedTuple):
    """Crops of one phase.

    Attributes:
        name: Of the networks the couplings go with.
        phase: Which of their phases.
        start: Left ends of intervals, float64 [B, 4, h, w] in [0, 1).
        width: Of the intervals, alike.
        states: Of the parts side by side, float32 [B, 4 * C, h, w].
    """

    name: str
    phase: int
    start: Tensor
    width: Tensor
    states: Tensor


Gain = Callable[[CouplingTwin, Crops], Tensor]


def by_flow(couplings: CouplingTwin, crops: Crops) -> Tensor:
    """Bits that the continuous flow saves on each sample, at places drawn anew."""
    y = logit(crops.start + crops.width * torch.rand_like(crops.start))
    return gain_bits(y, *couplings(y, crops.states))


def by_integers(couplings: CouplingTwin, crops: Crops) -> Tensor:
    """Bits that warped intervals save on each sample, which see the samples before."""
    return _warped(couplings, crops, 1.0)


def by_states(couplings: CouplingTwin, crops: Crops) -> Tensor:
    """Bits that warped intervals save on each sample, which see no other sample."""
    return _warped(couplings, crops, 0.0)


VARIANTS: dict[str, Gain] = {"flow": by_flow, "integer": by_integers, "correction": by_states}


def _warped(couplings: CouplingTwin, crops: Crops, visible: float) -> Tensor:
    low, high = logit(crops.start), logit(crops.start + crops.width)
    middle = ((low + high) / 2).clamp(-WIDEST, WIDEST) * visible
    context = couplings.context(crops.states)
    gain = torch.zeros_like(low)
    for n, moved in enumerate(MOVED):
        # Popped last to first: coupling 2's part first, which sees nothing of its square.
        known = {part for later in MOVED[n + 1 :] for part in later}
        mask = torch.tensor([part in known for part in range(len(PARTS))])
        steps = middle * (1 << SEEN_BITS)
        seen = (steps + (torch.floor(steps) - steps).detach()).clamp(-MOST, MOST)
        seen = seen * mask[:, None, None]
        state = couplings.begin[n](torch.cat([seen, context], 1))
        state = functional.hardtanh(state + couplings.block[n](state), 0.0, float(MOST))
        out = couplings.head[n](torch.cat([state, seen], 1))
        shift = (out[:, : len(moved)] / (1 << SHIFT_BITS)).clamp(-SHIFT_MAX, SHIFT_MAX)
        index = out[:, len(moved) :].clamp(-SCALE_MAX, SCALE_MAX)
        slope = torch.exp(index * (math.log(2) / SCALES_PER_OCTAVE))
        at = list(moved)
        before = log_mass(low[:, at], high[:, at])
        after = log_mass(low[:, at] * slope + shift, high[:, at] * slope + shift)
        gain[:, at] = (after - before) / math.log(2)
    return gain


def logit(u: Tensor) -> Tensor:
    """Float32 logit of float64."""
    inside = u.clamp(NEAREST, 1 - NEAREST)
    return (torch.log(inside) - torch.log1p(-inside)).float()


def log_mass(low: Tensor, high: Tensor) -> Tensor:
    """The logarithm of sigmoid(high) - sigmoid(low), on the side where both are small."""
    turned = low + high > 0
    low, high = torch.where(turned, -high, low), torch.where(turned, -low, high)
    return torch.log((torch.sigmoid(high) - torch.sigmoid(low)).clamp_min(1e-9))


class Drawer(FlowPart):
    """Draws crops as training the couplings does, with the ends of intervals."""

    def _draw(self, keys: list[tuple[str, int]]) -> Any:
        key = keys[self._random.integers(len(keys))]
        examples, side = self._examples[key], self.config.training.crop // 2
        chosen = [examples[i] for i in self._random.integers(len(examples), size=self._count)]
        side = min(side, *(min(example.start.shape) for example in chosen)) // 2 * 2
        return lay_out(key, [self._crop(example, side) for example in chosen])

    def held_out(self) -> Iterator[tuple[str, Crops]]:
        """Yield the phases of validation clips, with their names."""
        for name, key, example in self._held_out:
            rows, columns = (side // 2 * 2 for side in example.start.shape)
            yield name, lay_out(key, [example.cut(slice(rows), slice(columns))])


def lay_out(key: tuple[str, int], examples: list[Example]) -> Crops:
    """Lay out the parts of squares."""
    start, width = (
        torch.from_numpy(np.stack([_parts(example[i]) for example in examples])) for i in range(2)
    )
    states = []
    for example in examples:
        known = _parts(example.states.astype(np.float32) - ZERO)
        states.append(known.transpose(0, 3, 1, 2).reshape(-1, *known.shape[1:3]))
    return Crops(*key, start, width, torch.from_numpy(np.stack(states)))


def train(model: ChainTwin, part: Drawer, gain: Gain, minutes: float) -> ChainTwin:
    """Train all couplings for some processor time, and return the average of their weights."""
    settings: PartConfig = part.config
    rate, fake_from = settings.training.learning_rate, settings.training.fake_from
    weights = list(model.flows.parameters())
    average = copy.deepcopy(model)
    averages = list(average.flows.parameters())
    optimizer = torch.optim.Adam(weights, rate, betas=(0.9, 0.98), foreach=True)
    began, step = time.process_time(), 0
    while (spent := (time.process_time() - began) / (60 * minutes)) < 1:
        exact.set_fake(model, spent >= fake_from)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * spent))
        loss = torch.zeros(())
        for crops in part.draw():
            loss = loss - gain(couplings_of(model, crops), crops).mean()  # type: ignore[arg-type]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(weights, settings.training.clip_gradient)
        optimizer.step()
        decay = min(settings.training.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 1 - decay)
        step += 1
    exact.set_fake(average, fake=True)
    print(f"{step} steps", flush=True)
    return average


def couplings_of(model: ChainTwin, crops: Crops) -> CouplingTwin:
    """The networks that go with some crops."""
    found = model.get_submodule(f"flows.{crops.name}.{crops.phase}")
    assert isinstance(found, CouplingTwin)
    return found


class Row(NamedTuple):
    """What a clip came to: bits a sample by each model, and frames a second."""

    video: float
    coded: float
    ideal: dict[str, float]
    speeds: dict[str, tuple[float, float]]


def measure(clip: Path, count: int, base: Any, twins: dict[str, ChainTwin]) -> Row:
    """Code the first frames of a clip."""
    with open_source(clip) as source:
        video: VideoFormat = source.format
        groups = [frame.planes for frame in islice(source, count)]
    letters = video.layout.components
    bits = max(map(planes.bits_needed, groups))
    frames = [planes.split(group, letters, bits) for group in groups]
    samples = sum(plane.size for group in groups for plane in group)
    flow = twins["flow"]
    chain = Watched(flow.config, frozen_tensors(copy.deepcopy(flow)))
    shapes = [plane.shape for plane in groups[0]]

    def code(model: Any) -> tuple[float, tuple[float, float]]:
        message, began = Message(1), time.process_time()
        model.push_frames(message, frames, letters, bits)
        pushed, size = time.process_time(), message.bits
        list(model.pop_frames(message, len(frames), shapes, letters, bits))
        popped = time.process_time()
        return size, (len(frames) / (pushed - began), len(frames) / (popped - pushed))

    video_bits, video_speed = code(base)
    chain_bits, chain_speed = code(chain)
    saved = dict.fromkeys(VARIANTS, 0.0)
    for couplings, example in chain.look(frames, letters, bits):
        crops = lay_out(chain.key_of(couplings), [whole_squares(example)])
        for name, gain in VARIANTS.items():
            with torch.no_grad():
                found = float(gain(couplings_of(twins[name], crops), crops).sum())
            saved[name] += max(0.0, found - 1)
    network_time = chain.network_seconds()
    slower = tuple(1 / (1 / speed + network_time / len(frames)) for speed in video_speed)
    return Row(
        video_bits / samples,
        chain_bits / samples,
        {name: (video_bits - bits) / samples for name, bits in saved.items()},
        {"video": video_speed, "flow": chain_speed, "integer": (slower[0], slower[1])},
    )


def whole_squares(example: Example) -> Example:
    """Leave out the last row or column of a phase where squares are not whole."""
    rows, columns = (side // 2 * 2 for side in example.start.shape)
    return example.cut(slice(rows), slice(columns))


class Watched(ChainModel):
    """A model whose phases are looked at, and whose couplings are timed alone."""

    _collector: _Collector | None = None

    def look(self, frames: Any, letters: str, bits: int) -> list[tuple[Any, Example]]:
        """What the mixtures say of each plane of the phases with a flow."""
        self._collector = _Collector()
        self.push_frames(Message(1), frames, letters, bits)
        found, self._collector = self._collector.found, None
        self._found = found
        return found

    def recorder(self) -> Any:
        """Return the collector while the phases are looked at."""
        return self._collector or super().recorder()

    def key_of(self, couplings: Any) -> tuple[str, int]:
        """The networks that some couplings go with, and the phase."""
        return next(
            (name, group.index(couplings))
            for name, group in self.couplings.items()
            if couplings in group
        )

    def network_seconds(self) -> float:
        """Processor time of the couplings' networks for all phases that were looked at."""
        spent = 0.0
        for couplings, example in self._found:
            y = np.zeros((1, *example.start.shape), dtype=np.int64)
            began = time.process_time()
            context = couplings.context(example.states[None])
            for n in range(len(MOVED)):
                couplings.steer(n, y, context, self._fineness)
            spent += time.process_time() - began
        return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", nargs="*", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="where the config's clips are")
    parser.add_argument("--minutes", type=float, default=6.0, help="of training, for each use")
    parser.add_argument("--frames", type=int, default=4, help="of each clip")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = read_config(CONFIG, options.data)
    part = Drawer(config.parts["flow"], options.data)
    fresh = ChainTwin(config.model)
    part.open(fresh, 0)
    twins = {}
    for name, gain in VARIANTS.items():
        print(f"\n{name}: ", end="")
        twins[name] = train(copy.deepcopy(fresh), part, gain, options.minutes)
    show_validation(part, twins)
    show_clips(options.clips, options.frames, twins)


def show_validation(part: Drawer, twins: dict[str, ChainTwin]) -> None:
    """Print bits a sample that are saved of held-out clips' phases."""
    print(f"\n| validation | {' | '.join(VARIANTS)} |\n|---|{'---:|' * len(VARIANTS)}")
    groups: dict[str, dict[str, list[float]]] = {}
    for name, crops in part.held_out():
        place = groups.setdefault(name.rsplit(" ", 1)[0], {use: [] for use in VARIANTS})
        for use, gain in VARIANTS.items():
            with torch.no_grad():
                place[use].append(float(gain(couplings_of(twins[use], crops), crops).mean()))
    for name, saved in groups.items():
        print(
            f"| {name} | " + " | ".join(f"{-np.mean(saved[use]):+.4f}" for use in VARIANTS) + " |"
        )


def show_clips(clips: list[Path], count: int, twins: dict[str, ChainTwin]) -> None:
    """Print bits a sample and frames a second of clips."""
    base = store.load_packaged("video").network
    rows = []
    print("\n| clip | video | flow, coded | flow | integer | correction |\n|---|" + "---:|" * 5)
    for clip in clips:
        row = measure(clip, count, base, twins)
        rows.append((clip.name, row))
        ideal = " | ".join(
            f"{row.ideal[name]:.4f} ({100 * (row.ideal[name] / row.video - 1):+.2f} %)"
            for name in VARIANTS
        )
        print(f"| {clip.name} | {row.video:.4f} | {row.coded:.4f} | {ideal} |", flush=True)
    print("\n| frames/s, packing / unpacking | video | flow | integer |\n|---|" + "---:|" * 3)
    for name, row in rows:
        speeds = (f"{push:.2f} / {pop:.2f}" for push, pop in row.speeds.values())
        print(f"| {name} | {' | '.join(speeds)} |")


if __name__ == "__main__":
    main()
