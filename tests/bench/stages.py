"""Where the time goes: `python tests/bench/stages.py CLIP [FRAMES]`.

Packs and unpacks the first frames of a clip as one chunk in one thread and prints the CPU time that
each stage takes a frame, what share of packing is motion's, and what a process takes to start.
Everything is run once before, so that nothing is compiled while it is measured.
"""

from __future__ import annotations

import cProfile
import pstats
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from flowarchive import media, store
from flowarchive.archive.chunks import decode_chunk, encode_chunk

REST = "Python, NumPy and what else there is"
STAGES = {
    "motion: search": ("search.py", "picture.py", "plan.py"),
    "light": ("light.py",),
    "motion: compensation": ("compensate.py",),
    "motion: vectors": ("decisions.py", "vectors.py", "field.py"),
    "networks": ("int8.py", "tiles.py", "phases.py"),
    "features": ("features.py",),
    "linear prediction": ("predict_rows",),
    "filters that learn": ("rows.py", "samples.py", "solve.py", "predictor.py"),
    "mixtures": ("mixtures.py",),
    "scale correction": ("correction.py",),
    "intervals and stack": ("cumulative.py", "mixture.py", "plain.py", "codec.py", "ans.py"),
    "lattice and planes": ("lattice.py", "planes.py"),
    "zstd's quick look": ("compress",),
}
STARTS = (
    ("interpreter", "pass"),
    ("and NumPy", "import numpy"),
    ("and numba", "import numba"),
    ("and the archive", "from flowarchive import archive, cli"),
    ("and the model", "from flowarchive import archive, cli, store; store.load_model('video')"),
)


def stage(file: str, function: str) -> str:
    """The stage that a function belongs to, by its own name or by its file's."""
    for name, members in STAGES.items():
        if any(member in function for member in members if not member.endswith(".py")):
            return name
    for name, members in STAGES.items():
        if Path(file).name in members and "flowarchive" in file:
            return name
    return REST


def measure(function: Callable[..., Any], *arguments: Any) -> Counter[str]:
    """Seconds of CPU time by stage."""
    profile = cProfile.Profile(time.thread_time)
    profile.runcall(function, *arguments)
    seconds: Counter[str] = Counter()
    for (file, _, name), (_, _, own, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        seconds[stage(file, name)] += own
    return seconds


def start_up(statement: str) -> float:
    """Milliseconds of CPU time that a process takes for a statement."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", statement], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def main(clip: Path, count: int) -> None:
    model = store.load_model("video").network
    with media.open_source(clip) as source:
        video, frames = source.format, list(islice(source, count))
    chunk, _ = encode_chunk(frames, video, model)
    decode_chunk(chunk, video, model)
    packing = measure(encode_chunk, frames, video, model)
    unpacking = measure(decode_chunk, chunk, video, model)
    print(f"{clip.name}, {len(frames)} frames of {video.width}x{video.height}, one thread\n")
    print(f"{'CPU milliseconds a frame':<40}{'packing':>16}{'unpacking':>16}")
    for name in (*STAGES, REST):
        print(f"{name:<40}", end="")
        for seconds in (packing, unpacking):
            share = seconds[name] / seconds.total()
            print(f"{1000 * seconds[name] / len(frames):>9.1f}{share:>6.0%} ", end="")
        print()
    totals = (1000 * seconds.total() / len(frames) for seconds in (packing, unpacking))
    print(f"{'together':<40}" + "".join(f"{total:>9.1f}{'':7}" for total in totals))
    motion = sum(seconds for name, seconds in packing.items() if name.startswith("motion"))
    print(f"\nmotion's share of packing: {motion / packing.total():.0%}\n")
    print("start-up, CPU milliseconds")
    for name, statement in STARTS:
        start_up(statement)
        print(f"{name:<40}{min(start_up(statement) for _ in range(3)):>9.0f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 12)
