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
import json
import math
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from flowarchive import exact, planes, store
from flowarchive.ans import Message
from flowarchive.flows.layers import PARTS
from flowarchive.flows.maps import SCALES_PER_OCTAVE
from flowarchive.flows.twins import move_logit
from flowarchive.frames import VideoFormat
from flowarchive.media import open_source
from flowarchive.models.chain import ChainModel
from flowarchive.train.config import PartConfig, read_config
from flowarchive.train.couplings import ChainTwin, FlowTwin, see, within_bounds
from flowarchive.train.flow import (
    PRECISION,
    Batch,
    Example,
    FlowPart,
    _Collector,
    flow_of,
    gain,
    lay_out,
)
from flowarchive.train.twins import frozen_tensors

CONFIG = Path(__file__).parents[2] / "docs" / "models" / "chain.toml"
WIDEST = 8.0
"""Where networks see an interval's middle; its ends may be far away."""


Gain = Callable[[FlowTwin, Batch], Tensor]


def by_integers(flow: FlowTwin, batch: Batch) -> Tensor:
    """Bits that warped intervals save on each sample, which see the samples before."""
    return _warped(flow, batch, 1.0)


def by_states(flow: FlowTwin, batch: Batch) -> Tensor:
    """Bits that warped intervals save on each sample, which see no other sample."""
    return _warped(flow, batch, 0.0)


VARIANTS: dict[str, Gain] = {"flow": gain, "integer": by_integers, "correction": by_states}


def _warped(flow: FlowTwin, batch: Batch, visible: float) -> Tensor:
    whole = 1 << PRECISION
    low, high = (
        move_logit(ends.clamp(1 / whole, 1 - 1 / whole), PRECISION).float()
        for ends in (batch.start, batch.start + batch.width)
    )
    middle = ((low + high) / 2).clamp(-WIDEST, WIDEST) * visible
    context = flow.context(batch.states)
    gain = torch.zeros_like(low)
    for n, layer in enumerate(flow.layers):
        # Popped last to first: the last coupling's part first, which sees nothing of its square.
        known = {part for later in flow.layers[n + 1 :] for part in later.moved}
        mask = torch.tensor([part in known for part in range(len(PARTS))])
        says = flow.parameters_of(n, see(middle) * mask[:, None, None], context)
        shift, index = within_bounds(says)
        slope = torch.exp(index * (math.log(2) / SCALES_PER_OCTAVE))
        at = list(layer.moved)
        before = log_mass(low[:, at], high[:, at])
        after = log_mass(low[:, at] * slope + shift, high[:, at] * slope + shift)
        gain[:, at] = (after - before) / math.log(2)
    return gain


def log_mass(low: Tensor, high: Tensor) -> Tensor:
    """The logarithm of sigmoid(high) - sigmoid(low), on the side where both are small."""
    turned = low + high > 0
    low, high = torch.where(turned, -high, low), torch.where(turned, -low, high)
    return torch.log((torch.sigmoid(high) - torch.sigmoid(low)).clamp_min(1e-9))


def train(model: ChainTwin, part: FlowPart, saves: Gain, minutes: float) -> ChainTwin:
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
            loss = loss - saves(flow_of(model, crops), crops).mean()
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
    random, saved = np.random.default_rng(0), dict.fromkeys(twins, 0.0)
    for couplings, example in chain.look(frames, letters, bits):
        batch = lay_out(chain.key_of(couplings), [whole_squares(example)], random)
        for name, twin in twins.items():
            with torch.no_grad():
                found = float(VARIANTS[name](flow_of(twin, batch), batch).sum())
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
            for layer in couplings.layers:
                layer.answer(y, context, self._fineness)
            spent += time.process_time() - began
        return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", nargs="*", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="where the config's clips are")
    parser.add_argument(
        "--layers", help="other layers of the flow, as JSON; then it is trained alone"
    )
    parser.add_argument("--tilted", action="store_true", help="let places lean, in that flow")
    parser.add_argument("--minutes", type=float, default=6.0, help="of training, for each use")
    parser.add_argument("--frames", type=int, default=4, help="of each clip")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = read_config(CONFIG, options.data)
    part = FlowPart(config.parts["flow"], options.data)
    uses = VARIANTS
    if options.layers is not None:
        uses = {"flow": gain}
        config.model["flow"] |= {"layers": json.loads(options.layers), "tilted": options.tilted}
    fresh = ChainTwin(config.model)
    part.open(fresh, 0)
    twins = {}
    for name, saves in uses.items():
        print(f"\n{name}: ", end="")
        twins[name] = train(copy.deepcopy(fresh), part, saves, options.minutes)
    show_validation(part, twins)
    show_clips(options.clips, options.frames, twins)


def show_validation(part: FlowPart, twins: dict[str, ChainTwin]) -> None:
    """Print bits a sample beyond the mixtures' of held-out clips' phases."""
    print(f"\n| validation | {' | '.join(twins)} |\n|---|{'---:|' * len(twins)}")
    groups: dict[str, dict[str, list[float]]] = {}
    random = np.random.default_rng(0)
    for name, key, example in part._held_out:
        batch = lay_out(key, [whole_squares(example)], random)
        place = groups.setdefault(name.rsplit(" ", 1)[0], {use: [] for use in twins})
        for use, twin in twins.items():
            with torch.no_grad():
                saved = VARIANTS[use](flow_of(twin, batch), batch)
            place[use].append(-float(saved.mean()))
    for name, found in groups.items():
        print(f"| {name} | " + " | ".join(f"{np.mean(found[use]):+.4f}" for use in twins) + " |")


def show_clips(clips: list[Path], count: int, twins: dict[str, ChainTwin]) -> None:
    """Print bits a sample and frames a second of clips."""
    base = store.load_packaged("video").network
    rows = []
    uses = " | ".join(twins)
    print(f"\n| clip | video | flow, coded | {uses} |\n|---|---:|---:|{'---:|' * len(twins)}")
    for clip in clips:
        row = measure(clip, count, base, twins)
        rows.append((clip.name, row))
        ideal = " | ".join(
            f"{row.ideal[name]:.4f} ({100 * (row.ideal[name] / row.video - 1):+.2f} %)"
            for name in twins
        )
        print(f"| {clip.name} | {row.video:.4f} | {row.coded:.4f} | {ideal} |", flush=True)
    print("\n| frames/s, packing / unpacking | video | flow | integer |\n|---|" + "---:|" * 3)
    for name, row in rows:
        speeds = (f"{push:.2f} / {pop:.2f}" for push, pop in row.speeds.values())
        print(f"| {name} | {' | '.join(speeds)} |")


if __name__ == "__main__":
    main()
