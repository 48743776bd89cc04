"""What a GPU could do at best: `python tests/bench/roofline.py [CLIP]`.

Walks through 1920x1080 4:2:0 frames of 8 bits with the packaged `video` model, on tensors without
memory, and keeps every launch instead of making it: launches, multiplications and bytes are those
of the walk itself. Divided by datasheets' rates they are floors: times that no implementation of
these kernels goes below. Nothing is run or measured; no GPU is needed.

Each tensor counts once a launch: of stored frames one, of whole planes that a launch reads at a
level the rows that the level has, and what is not learned from is not read. Products of the normal
equations depend on the classes that samples happen to have, and are not counted.

Of an 8-bit clip it also counts the decisions that its motion vectors are coded as.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flowarchive import features, media, motion, planes
from flowarchive.archive.chunks import MAX_LANES, SAMPLES_PER_LANE
from flowarchive.models.chain import FLOW_LEVELS, ChainModel
from flowarchive.models.form import Form
from flowarchive.models.plan import Plan
from flowarchive.models.together import MOST
from flowarchive.models.video import VideoModel
from flowarchive.store import load_model
from triton_kernels import cases, lengths, mixture, rans, stack
from triton_kernels.host import Host
from triton_kernels.link import Link
from triton_kernels.session import Session

BITS = 8
CHUNK_FRAMES = 30
CLIP_FRAMES = 12
SAMPLE_BITS = 3  # assumed, to say what heads cost
LAUNCH_SECONDS = 3e-6  # assumed: a kernel that does next to nothing, one after the other

# Integer instructions of one component's sigmoid at one symbol, counted by hand from the kernel:
# 64-bit products, shifts and comparisons are two to four each.
SIGMOID_STEPS = 40

KINDS = {
    "convolution_kernel": "networks",
    "intra_kernel": "channels, anchors",
    "inter_kernel": "channels, anchors",
    "predict_kernel": "linear prediction",
    "learn_kernel": "normal equations",
    "fade_kernel": "filters",
    "common_kernel": "filters",
    "class_kernel": "filters",
    "mixtures_kernel": "mixtures",
    "intervals_kernel": "intervals",
    "costs_kernel": "scale correction",
    "offsets_kernel": "scale correction",
    "compensate_kernel": "compensation",
    "phase_kernel": "samples",
    "fold_kernel": "samples",
    "detail_kernel": "search",
    "interpolate_kernel": "search",
    "coarse_kernel": "search",
    "search_kernel": "search",
    "cut_kernel": "search",
    "push_kernel": "push",
}
"""What launches are for."""


@dataclass(frozen=True)
class Gpu:
    """Rates of a datasheet.

    Attributes:
        name: With the datasheet's own words.
        products: int8 multiply-adds a second, dense: half its operations.
        bytes: Of memory, a second.
        processors: Streaming multiprocessors.
        lanes: 32-bit integer instructions each of them starts in a cycle.
        clock: Boost clock, cycles a second.
    """

    name: str
    products: float
    bytes: float
    processors: int
    lanes: int
    clock: float


GPUS = (
    # "NVIDIA A100 Tensor Core GPU" datasheet, A100 80GB SXM: INT8 624 TOPS, 2,039 GB/s.
    Gpu("A100 SXM 80 GB (624 TOPS INT8, 2039 GB/s)", 312e12, 2.039e12, 108, 64, 1.41e9),
    # "NVIDIA H100 Tensor Core GPU" datasheet, H100 SXM: INT8 3,958 TOPS with sparsity, 3.35 TB/s.
    Gpu("H100 SXM 80 GB (1979 TOPS INT8 dense, 3350 GB/s)", 989e12, 3.35e12, 132, 64, 1.83e9),
)


@dataclass
class Work:
    """Sums over launches.

    Attributes:
        products: Multiply-adds that are asked for; a weight of two digits counts twice.
        issued: Those of the tiles, their padding included.
        bytes: Read and written.
        launches: Of kernels.
    """

    products: int = 0
    issued: int = 0
    bytes: int = 0
    launches: int = 0


@dataclass
class Step:
    """What a part of a walk launches.

    Attributes:
        work: By what it is for.
        copies: What torch itself does on the device: copies, tables of places, zeros.
    """

    work: dict[str, Work] = field(default_factory=dict)
    copies: int = 0

    @property
    def launches(self) -> int:
        """All of them."""
        return self.copies + sum(one.launches for one in self.work.values())


class _Copies(TorchDispatchMode):
    """Counts what torch does, views and empty tensors aside."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func._schema.returns
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in returned)
        self.count += not (is_view or "empty" in func.__name__)
        return func(*args, **(kwargs or {}))


class _NoLink(Link):
    """Nothing travels to tensors without memory; zeros come back."""

    def fetch(self, *tensors: Tensor) -> list[NDArray[Any]]:
        self.traffic.downloads += 1
        self.traffic.fetched += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return [np.zeros(t.shape, dtype=str(t.dtype).removeprefix("torch.")) for t in tensors]


class Counter:
    """A session of a model whose launches are kept, step by step.

    Args:
        model: The model.
        height: Of luma.
        width: Of luma.
        chunks: How many go together.
        frames: Of each of them, three or more.

    Attributes:
        link: What would have travelled.
    """

    def __init__(
        self, model: VideoModel, height: int, width: int, chunks: int = 1, frames: int = 3
    ) -> None:
        host = Host(cases.META)
        host.link = self.link = _NoLink(cases.META)
        small = -(-height // 2), -(-width // 2)
        self.shapes = [(height, width), small, small]
        self._frame, self._form = planes.blank(self.shapes, "YUV"), Form("YUV", BITS)
        self._chunks = range(chunks)
        model.use(host)  # type: ignore[arg-type]
        assert model._device is not None
        self.session = model._device._session([self._frame] * frames, chunks, self._form)
        assert isinstance(self.session, Session)
        model.use(None)

    def give(self) -> Step:
        """Send planes."""
        kind = np.int16
        frames = len(self._chunks) * self.session._frames
        samples = frames * sum(h * w for h, w in self.shapes)
        return self._record(lambda: self.session.give(np.zeros(samples, dtype=kind), []))

    def plan(self) -> Step:
        """Search the motion of all frames: of the second one field, of those after it two."""
        return self._record(self.session.plan)

    def intra(self) -> Step:
        """Code the first frame."""
        return self._record(lambda: self.session.code_intra(self._chunks, self._frames(0), 1, 0))

    def inter(self) -> Step:
        """Code the third frame, which has two references."""
        return self._record(lambda: self.session.code_inter(self._chunks, self._frames(2), True, 0))

    def _frames(self, t: int) -> list[int]:
        return [t] * len(self._chunks)

    def _record(self, work: Any) -> Step:
        copies = _Copies()
        with cases.recorded() as kept, copies:
            work()
        step = Step(copies=copies.count)
        for launch in kept:
            one = step.work.setdefault(KINDS[launch.kernel.fn.__name__], Work())
            _add(one, launch.arguments, self.session._chunks * self.session._frames)
        return step


def _add(work: Work, given: dict[str, Any], stored: int) -> None:
    """Add a launch."""
    work.launches += 1
    plane = given.get("height", 0), given.get("width", 0)
    for value in given.values():
        if not isinstance(value, Tensor):
            continue
        moved = value.numel() * value.element_size()
        if value.dim() < 3:  # of symbols that are learned from, only those are read
            moved //= given.get("stride", 1)
        if value.dim() > 4 and value.shape[0] * value.shape[1] == stored:
            moved //= value.shape[1]
        if "level" in given and tuple(value.shape[-2:]) == plane:
            moved = (moved >> given["level"]) // given.get("stride_d", 1)
        work.bytes += moved
    if "positions" in given:
        digits = 1 + given["WIDE"]
        taps = given["SIDE"] ** 2 * digits
        work.products += given["positions"] * given["INPUTS"] * given["OUTPUTS"] * taps
        work.issued += taps * (
            _whole(given["positions"], given["BLOCK_M"])
            * _whole(given["INPUTS"], given["BLOCK_K"])
            * _whole(given["OUTPUTS"], given["BLOCK_N"])
        )


def _whole(count: int, block: int) -> int:
    return -(-count // block) * block


def print_step(name: str, step: Step, chunks: int = 1) -> None:
    """Print one table, of what a frame of one chunk takes."""
    row = "  {:<18} {:>8} {:>8} {:>9} {:>9}"
    print(f"\n{name}")
    print(row.format("", "GMAC", "issued", "MB moved", "launches"))
    for part, one in step.work.items():
        values = f"{one.products / 1e9:.1f}", f"{one.issued / 1e9:.1f}", f"{one.bytes / 1e6:.0f}"
        print(row.format(part, *values, one.launches))
    print(row.format("torch's copies", "", "", "", step.copies))
    works = step.work.values()
    for gpu in GPUS:
        busy = busy_seconds(step, gpu)
        products = sum(one.issued for one in works) / gpu.products
        memory = sum(one.bytes for one in works) / gpu.bytes
        print(
            f"  {gpu.name}: products {1e3 * products:.2f} ms, memory {1e3 * memory:.2f} ms, "
            f"both {1e3 * busy:.2f} ms: at most {1 / busy:.0f} frames/s"
        )
        for many in (1, chunks):
            total = busy + step.launches * LAUNCH_SECONDS / many
            print(
                f"    {many} chunks at a launch, {step.launches / many:.0f} launches a frame of "
                f"{1e6 * LAUNCH_SECONDS:.0f} us: at most {1 / total:.0f} frames/s"
            )


def busy_seconds(step: Step, gpu: Gpu) -> float:
    """The least time for what a step multiplies and moves."""
    works = step.work.values()
    return sum(max(one.issued / gpu.products, one.bytes / gpu.bytes) for one in works)


def search_launches(model: VideoModel, height: int, width: int, chunks: int) -> int:
    """What an encoder launches for the two fields of one more frame, torch's copies included."""
    counts = []
    for frames in (3, 4):
        counter = Counter(model, height, width, chunks, frames)
        counter.give()
        counts.append(counter.plan().launches)
    return counts[1] - counts[0]


def print_search(search: int, inter: Step, chunks: int) -> None:
    """What bounds packing: an inter frame, and the launches of its search."""
    print(f"\nThe encoder's search takes {search} launches a frame more, {chunks} chunks or one:")
    for gpu in GPUS:
        for many in (1, chunks):
            launches = (inter.launches + search) / many
            total = busy_seconds(inter, gpu) + launches * LAUNCH_SECONDS
            print(
                f"  {gpu.name.split(' (')[0]}, {many} chunks at a launch: packs at most "
                f"{1 / total:.0f} frames/s, were all but its launches free"
            )


def print_flows(height: int, width: int, chunks: int) -> None:
    """What phases of `chain` launch, of the finest level of luma; rows, other than plain ones."""
    model, host = load_model("chain").network, Host(cases.META)
    assert isinstance(model, ChainModel)
    model.use(host)  # type: ignore[arg-type]
    assert model._device is not None
    flows, shape = model._device._flows, (chunks, height // 2, width // 2)
    mixtures = cases.empty(torch.int32, shape[0] * shape[1] * shape[2], features.INTER_ANCHORS)
    support = mixture.Support(-(1 << BITS - 1), (1 << BITS - 1) - 1, min(flows.grids))
    states = cases.empty(torch.int8, *shape, model.couplings["inter_luma"][0].shape.state)
    steering = stack.Steering(flows.phases["inter_luma"][0], flows.grids[support.precision], states)
    symbols, messages = cases.empty(torch.int32, len(mixtures)), cases._messages(MAX_LANES)
    messages = rans.Messages(*(tensor[:chunks].contiguous() for tensor in messages))
    tables = cases._tables()
    pusher = stack.Pusher(tables, cases.empty(torch.int64, lengths.ENTRIES), chunks)
    popper = stack.Popper(messages, tables)
    jobs = [(chunk, 0) for chunk in range(chunks)]
    batch = stack.Batch(jobs, lambda: symbols, (mixtures,) * 3, support)

    def push() -> None:
        pusher.phase(batch, steering)
        (phase,) = pusher._kept
        assert isinstance(phase, stack.Phase)
        pusher._push_phase(messages, phase, 0)

    print(f"\nA phase of `chain` that goes by its flow, {chunks} chunks or one:")
    for name, work in (("push", push), ("pop", lambda: popper.phase(batch, steering))):
        copies = _Copies()
        with cases.recorded() as kept, copies:
            work()
        print(f"  {name:<4} {len(kept)} launches of kernels, {copies.count} of torch's")
    print(
        f"  There are {2 * 3 * FLOW_LEVELS} a frame. A sample is in five rows: two of places and "
        "the logit, one of\n  couplings, two of the base; under its mixtures it is in one."
    )


def print_rows(samples: int) -> None:
    """What bounds decoding: rows that follow one another."""
    components, span = features.INTER_ANCHORS, BITS
    print(f"\nDecoding pops {samples} symbols a frame, a row of lanes after the other:")
    row = "  {:>6} {:>6} {:>7} {:>7} {:>11} {:>13} {:>12}"
    print(row.format("lanes", "ways", "rounds", "rows", "us a row", "one message", "all busy"))
    for lanes in (64, 256, 1024):
        ways = rans.ways_bits(lanes)
        rounds = -(-span // ways)
        rows = samples // lanes
        steps = lanes * components * SIGMOID_STEPS * ((rounds << ways) + 2)
        for gpu in GPUS:
            seconds = steps / gpu.lanes / gpu.clock
            one = 1 / (rows * seconds)
            print(
                row.format(
                    lanes, 1 << ways, rounds, rows, f"{1e6 * seconds:.1f}", f"{one:.1f} f/s",
                    f"{gpu.processors * one:.0f} f/s",
                )
                + f"  {gpu.name.split(' (')[0]}"
            )  # fmt: skip
    chunk = CHUNK_FRAMES * samples
    lanes = 1
    while lanes < MAX_LANES and 2 * lanes * SAMPLES_PER_LANE <= chunk:
        lanes *= 2
    print(
        f"  A chunk of {CHUNK_FRAMES} such frames has {lanes} lanes (one per {SAMPLES_PER_LANE} "
        f"samples, at most {MAX_LANES});\n"
        f"  their heads cost {100 * 64 * lanes / (SAMPLE_BITS * chunk):.3f} % at "
        f"{SAMPLE_BITS} bits a sample.\n"
        "  A row's work is one multiprocessor's: many more lanes would not speed a message up, "
        "more messages do,\n  as many chunks at a launch as there are multiprocessors."
    )


def print_traffic(luma: tuple[int, int], samples: int) -> None:
    """What travels for a chunk."""
    field = -(-luma[0] // 8) * -(-luma[1] // 8) * 4
    heads, frames = MAX_LANES * 8 + 16, CHUNK_FRAMES
    words = frames * samples * SAMPLE_BITS / 8
    up, down = 2 * frames * samples, 2 * frames * field
    print(
        f"\nA chunk of {frames} frames travels, at {SAMPLE_BITS} bits a sample:\n"
        f"  packing    2 uploads: planes {up / 1e6:.0f} MB, and what the CPU has coded of motion; "
        f"3 downloads:\n             motion {down / 1e6:.1f} MB, heads {heads} B, "
        f"words {words / 1e6:.0f} MB\n"
        f"  unpacking  {frames + 1} uploads: words {words / 1e6:.0f} MB, for each step heads "
        f"{heads} B and motion {2 * field / 1e6:.2f} MB;\n"
        f"             {frames + 1} downloads: for each step heads, last the planes "
        f"{up / 1e6:.0f} MB"
    )


def print_vectors(clip: Path, samples: int) -> None:
    """What the CPU codes of motion: decisions, each of which waits for the one before."""
    with media.open_source(clip) as source:
        letters = source.format.layout.components
        frames = [planes.split(f.planes, letters, BITS) for f in islice(source, CLIP_FRAMES)]
    plan, models = Plan(frames, BITS), (motion.VectorModel(), motion.VectorModel())
    height, width = frames[0].luma.shape
    before, known, counts = motion.zero_field((height, width)), 0, []
    for t in range(len(frames)):
        fields = plan.fields(t)
        if fields is None:
            before, known = motion.zero_field((height, width)), 1
            continue
        coded = [motion.encode_field(fields[0], before, models[0])]
        before = fields[0]
        if known > 1 and not plan.choice.near[t]:
            coded.append(motion.encode_field(fields[1], motion.doubled(before), models[1]))
        counts.append(sum(len(one.start) for one in coded))
        known = 2
    blocks = -(-height // motion.BLOCK) * -(-width // motion.BLOCK)
    mean, many = sum(counts) / len(counts), -(-1080 // motion.BLOCK) * -(-1920 // motion.BLOCK)
    print(
        f"\nVectors of {len(counts)} inter frames of {clip.stem}, {width}x{height}: "
        f"{min(counts)} to {max(counts)} decisions a frame,\n  {mean:.0f} on average, "
        f"{mean / blocks:.1f} a block of {blocks}. At as many a block, 1920x1080 has "
        f"{mean / blocks * many:.0f} a frame,\n  one after the other; its symbols are "
        f"{samples // MAX_LANES} rows of {MAX_LANES} lanes."
    )


def main() -> None:
    model = load_model("video").network
    assert isinstance(model, VideoModel)
    height, width = 1080, 1920
    print(f"{width}x{height} 4:2:0, 8 bits, model `video`: counted, not measured; run on no GPU")
    counter = Counter(model, height, width)
    counter.give()
    samples = sum(h * w for h, w in counter.shapes)
    inter = counter.inter()
    print_step("inter frame", inter, MOST)
    print_step("intra frame", counter.intra(), MOST)
    print_search(search_launches(model, height, width, MOST), inter, MOST)
    print_flows(height, width, MOST)
    print_rows(samples)
    if sys.argv[1:]:
        print_vectors(Path(sys.argv[1]), samples)
    print_traffic((height, width), samples)


if __name__ == "__main__":
    main()
