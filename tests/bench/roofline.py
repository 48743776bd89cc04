"""What a GPU could do at best: `python tests/bench/roofline.py`.

Counts, for one 1920x1080 4:2:0 frame of 8 bits and the packaged `video` model, the multiplications,
the bytes and the launches of the kernels, divides by datasheets' rates, and prints floors: times
that no implementation of these kernels goes below. Nothing is run or measured; no GPU is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

from flowarchive import features, lattice
from flowarchive.ans import MAX_LANES
from flowarchive.archive.chunks import SAMPLES_PER_LANE
from flowarchive.flows.phases import PhaseNet
from flowarchive.models.phasewise import LEVEL_NETS
from flowarchive.models.video import VideoModel
from flowarchive.store import load_model
from triton_kernels import convolution, rans

HEIGHT, WIDTH, BITS = 1080, 1920, 8
PLANES = {"luma": (1, HEIGHT, WIDTH), "chroma": (2, HEIGHT // 2, WIDTH // 2)}
CHUNK_FRAMES = 30
SAMPLE_BITS = 3  # assumed, to say what heads cost
LAUNCH_SECONDS = 3e-6  # assumed: a kernel that does next to nothing, one after the other
GRAPH_SECONDS = 1e-6  # assumed: the same inside a captured graph

# Integer instructions of one component's sigmoid at one symbol, counted by hand from the kernel:
# 64-bit products, shifts and comparisons are two to four each.
SIGMOID_STEPS = 40


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
    Gpu("A100 SXM 80 GB (624 TOPS INT8, 2039 GB/s)", 312e12, 2.039e12, 108, 64, 1.41e9),
    Gpu("H100 SXM 80 GB (1979 TOPS INT8 dense, 3350 GB/s)", 989e12, 3.35e12, 132, 64, 1.83e9),
)


@dataclass
class Work:
    """Sums over launches.

    Attributes:
        products: Multiply-adds that the network asks for; a weight of two digits counts twice.
        issued: Those of the tiles, their padding included.
        bytes: Read and written, each tensor once a launch.
        launches: Of kernels.
    """

    products: int = 0
    issued: int = 0
    bytes: int = 0
    launches: int = 0

    def add(self, products: int, issued: int, moved: int) -> None:
        self.products += products
        self.issued += issued
        self.bytes += moved
        self.launches += 1


def count_layer(work: Work, positions: int, weight: tuple[int, ...], digits: int, out: int) -> None:
    """Add one convolution of `positions`, whose outputs take `out` bytes each."""
    outputs, inputs, side, _ = weight
    tile = convolution.blocks(inputs, outputs, digits)
    deep = -(-inputs // tile["BLOCK_K"]) * tile["BLOCK_K"]
    broad = -(-outputs // tile["BLOCK_N"]) * tile["BLOCK_N"]
    rows = -(-positions // tile["BLOCK_M"]) * tile["BLOCK_M"]
    products = positions * inputs * outputs * side**2 * digits
    issued = rows * deep * broad * side**2 * digits
    residual = outputs if side == 3 else 0
    moved = positions * (inputs + outputs * out + residual) + inputs * outputs * side**2 * digits
    work.add(products, issued, moved)


def count_net(work: Work, net: PhaseNet, positions: int) -> None:
    """Add the layers of one level."""
    for name, weight in net.shape.weights().items():
        wide = name.startswith("heads")
        count_layer(work, positions, weight, 2 if wide else 1, 2 if wide else 1)


def count_frame(model: VideoModel, kind: str) -> dict[str, Work]:
    """Networks, probabilities and motion of one frame, each way."""
    networks, intervals, motion = Work(), Work(), Work()
    components = features.INTER_ANCHORS if kind == "inter" else features.INTRA_ANCHORS
    for part, (count, height, width) in PLANES.items():
        nets = model.nets[f"{kind}_{part}"]
        for level in range(lattice.level_count((height, width))):
            h, w = -(-height >> level), -(-width >> level)
            positions = count * ((h + 1) // 2) * ((w + 1) // 2)
            count_net(networks, nets[min(level, LEVEL_NETS - 1)], positions)
            for phase in lattice.PHASES:
                rows, columns = lattice.phase_shape((h, w), phase)
                # Three parameters a component, the symbol, start and freq: 4 bytes each.
                intervals.add(0, 0, count * rows * columns * 4 * (3 * components + 3))
        if kind == "inter":
            for _ in range(2):
                motion.add(0, 0, 8 * count * height * width + 240 * 135 * 4)
    return {"networks": networks, "intervals or pops": intervals, "compensation": motion}


def print_floors(name: str, work: dict[str, Work]) -> None:
    """Print one table."""
    row = "  {:<18} {:>8} {:>8} {:>9} {:>9}"
    print(f"\n{name}")
    print(row.format("", "GMAC", "issued", "MB moved", "launches"))
    for part, one in work.items():
        values = f"{one.products / 1e9:.1f}", f"{one.issued / 1e9:.1f}", f"{one.bytes / 1e6:.0f}"
        print(row.format(part, *values, one.launches))
    launches = sum(one.launches for one in work.values())
    for gpu in GPUS:
        busy = sum(max(one.issued / gpu.products, one.bytes / gpu.bytes) for one in work.values())
        products = sum(one.issued for one in work.values()) / gpu.products
        memory = sum(one.bytes for one in work.values()) / gpu.bytes
        print(
            f"  {gpu.name}: products {1e3 * products:.2f} ms, memory {1e3 * memory:.2f} ms, "
            f"both {1e3 * busy:.2f} ms: at most {1 / busy:.0f} frames/s"
        )
        for how, each in (("one by one", LAUNCH_SECONDS), ("in a graph", GRAPH_SECONDS)):
            total = busy + launches * each
            print(f"    launches {how}, {1e6 * each:.0f} us: at most {1 / total:.0f} frames/s")


def print_rows() -> None:
    """What bounds decoding: rows that follow one another."""
    samples = sum(n * h * w for n, h, w in PLANES.values())
    components, span = features.INTER_ANCHORS, BITS
    print(f"\nDecoding pops {samples} symbols a frame, a row of lanes after the other:")
    row = "  {:>6} {:>6} {:>7} {:>7} {:>11} {:>13} {:>12}"
    print(row.format("lanes", "ways", "rounds", "rows", "us a row", "one message", "all busy"))
    for lanes in (64, 256, MAX_LANES):
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
        f"{SAMPLE_BITS} bits a sample, and one program can hold them.\n"
        "  A row's work is one multiprocessor's, so more lanes would not speed a message up; "
        "more messages do:\n  as many chunks at a launch as there are multiprocessors."
    )


def main() -> None:
    model = load_model("video").network
    assert isinstance(model, VideoModel)
    print(f"{WIDTH}x{HEIGHT} 4:2:0, 8 bits, model `video`: counted, not measured; run on no GPU")
    for kind in ("inter", "intra"):
        print_floors(f"{kind} frame", count_frame(model, kind))
    print_rows()
    print(
        "\nNot counted, because they have no kernel: channels and anchors, adaptive filters and "
        "scale\ncorrection, and the decisions that spell motion vectors. They run on the CPU."
    )


if __name__ == "__main__":
    main()
