"""What a chain pays, by how many frames share a chunk: `python tests/bench/chain.py CLIP...`.

Codes the first 1, 2, 5, ... frames of each clip as one chunk, with the packaged chain (or
`--model FILE`), and prints Markdown:

    archive      bytes of the whole archive, without its model
    ideal        sum of the frames' ideal net code lengths, by the account: of each phase by the way
                 it went
    excess       of the archive over that
    seed, peak   bits on the stack when bits-back began, and the most it then fell below them
    video        bytes of the archive by the mixtures alone, which are a `video` model's
    local        what local bits-back alone would pay: every phase by its flow, borrowing from
                 bits that nobody has pushed, which count as well
    free         net bytes of the chain if such bits were free: what smaller tiles could save

Below the table stands where the bytes of the longest archive beyond its ideal are. With
`-o PICTURE` it also draws bits a sample against the number of frames, the ideal as a line.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

import flowarchive
from flowarchive import planes, store
from flowarchive.ans import Message
from flowarchive.chunk import Chunk
from flowarchive.codec import Recorder
from flowarchive.frames import Frame, VideoFormat
from flowarchive.media import open_source
from flowarchive.models import chain

COUNTS = (1, 2, 5, 10, 30, 60)
SUPPLY_PER_SAMPLE = 1  # words that nobody has pushed; a flow never owes so many


class Row(NamedTuple):
    """What one number of frames came to; bytes of archives, else bits."""

    frames: int
    samples: int
    archive: int
    ideal: int
    seed: int
    peak: int
    video: int
    local: float
    free: float
    beyond: dict[str, float]

    @property
    def excess(self) -> float:
        """Of the archive over the ideal, in percent."""
        return 100 * (8 * self.archive / self.ideal - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--model", default="chain")
    parser.add_argument("--most", type=int, default=max(COUNTS), help="frames, at most")
    parser.add_argument("--crop", type=int, nargs=2, help="width and height of the middle to take")
    parser.add_argument("-o", "--output", type=Path, help="a picture")
    options = parser.parse_args()
    found = {}
    for clip in options.clips:
        print(f"\n{clip.name}\n")
        print(
            "| frames | archive | ideal bytes | excess | seed bits | peak bits | video | local |"
            " free |"
        )
        print("|---:" * 9 + "|")
        found[clip.name] = rows = []
        for row in measure(*read(clip, options.most, options.crop), options.model):
            rows.append(row)
            print(
                f"| {row.frames} | {row.archive:,} | {row.ideal // 8:,} | {row.excess:+.2f} %"
                f" | {row.seed:,} | {row.peak:,} | {row.video:,} | {row.local / 8:,.0f}"
                f" | {row.free / 8:,.0f} |",
                flush=True,
            )
        parts = (f"{size:,.0f} of {name}" for name, size in rows[-1].beyond.items())
        print(f"\nBytes beyond the ideal of {rows[-1].frames} frames: {', '.join(parts)}.")
    if options.output is not None:
        draw(found, options.output)


def read(clip: Path, most: int, crop: tuple[int, int] | None) -> tuple[VideoFormat, list[Frame]]:
    """The first frames of a clip, or their middle."""
    with open_source(clip) as source:
        video, frames = source.format, list(islice(source, most))
    if crop is None:
        return video, frames
    left, top = (
        (whole - part) // 4 * 2
        for whole, part in zip((video.width, video.height), crop, strict=True)
    )
    small = replace(video, width=crop[0], height=crop[1])

    def cut(plane: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        y, x = top * shape[0] // small.height, left * shape[1] // small.width
        return np.ascontiguousarray(plane[y : y + shape[0], x : x + shape[1]])

    return small, [
        Frame(tuple(map(cut, frame.planes, small.plane_shapes)), frame.pts) for frame in frames
    ]


def measure(video: VideoFormat, frames: list[Frame], name: str) -> Iterator[Row]:
    """Yield a row for each number of frames that the clip has."""
    network: Any = store.load_model(name).network
    for count in (count for count in COUNTS if count <= len(frames)):
        size, account, beyond = pack(frames[:count], video, name)
        with mock.patch.object(chain.ChainModel, "recorder", Recorder):
            video_size, _, _ = pack(frames[:count], video, name)
        ideal, seed, peak = (account[key] for key in ("ideal", "seed", "peak"))
        samples = count * video.samples_per_frame
        with always_by_flow():
            local = sum(on_supply(frames[:count], video, network))
        free, _ = on_supply(frames[:count], video, network)
        yield Row(count, samples, size, ideal, seed, peak, video_size, local, free, beyond)


def pack(
    frames: Sequence[Frame], video: VideoFormat, model: str
) -> tuple[int, dict[str, int], dict[str, float]]:
    """The size of an archive of one chunk, its account, and the parts of what is beyond its ideal.

    A chunk without an account is taken for ideal as it is.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "a.flow"
        with flowarchive.create(
            path, video, model=model, chunk_frames=len(frames), embed_model="never"
        ) as archive:
            for frame in frames:
                archive.append(frame)
        size = path.stat().st_size
        nothing = {"ideal": 8 * size, "seed": 0, "peak": 0}
        account = flowarchive.info(path).get("account", nothing)
        with flowarchive.open(path) as packed:
            return size, account, bytes_beyond(packed.chunk(0), size, account["ideal"] / 8)


def bytes_beyond(chunk: Chunk, size: int, ideal: float) -> dict[str, float]:
    """What an archive of one chunk holds beyond its ideal code length."""
    whole = len(chunk.to_bytes())
    found = {
        "the message": len(chunk.payload) - ideal,
        "digests": len(b"".join(chunk.digests)) + len(chunk.digest),
        "the account": whole - len(replace(chunk, account=None).to_bytes()),
        "timestamps": whole - len(replace(chunk, pts=(None,) * chunk.frame_count).to_bytes()),
    }
    return {**found, "records": size - ideal - sum(found.values())}


def on_supply(
    frames: Sequence[Frame], video: VideoFormat, network: chain.ChainModel
) -> tuple[float, float]:
    """Net bits and auxiliary bits of frames that borrow from what nobody has pushed."""
    groups = [frame.planes for frame in frames]
    bits = max(map(planes.bits_needed, groups))
    letters = video.layout.components
    components = [planes.split(group, letters, bits) for group in groups]
    message = Message(1)
    words = len(frames) * video.samples_per_frame * SUPPLY_PER_SAMPLE
    supply = np.random.default_rng(0).integers(0, 1 << 32, words)
    message.push_uniform(supply, 1 << 32)
    held = message.bits
    account = network.push_frames(message, components, letters, bits, 2)
    statement = account.statement()
    # The supply reaches down to where the stack was lowest: all of that had to be there.
    owed = 0.0 if statement is None else held - (statement.seed - statement.peak)
    return message.bits - held, max(0.0, owed)


@contextmanager
def always_by_flow() -> Iterator[None]:
    """Flows that are used also where they are longer."""
    with mock.patch.object(chain, "LEAST_GAIN", -float("inf")):
        yield


def draw(found: dict[str, list[Row]], output: Path) -> None:
    """Draw bits a sample against the number of frames."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(found), 4.5), layout="constrained")
    columns = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (name, rows) in zip(columns, found.items(), strict=True):
        counts = [row.frames for row in rows]
        for label, style, bits in (
            ("ideal", "C2-", [row.ideal for row in rows]),
            ("chain", "C0o", [8 * row.archive for row in rows]),
            ("video", "C7x", [8 * row.video for row in rows]),
            ("local bits-back alone", "C3^", [row.local for row in rows]),
        ):
            rates = [b / row.samples for b, row in zip(bits, rows, strict=True)]
            axes.plot(counts, rates, style, label=label)
        axes.set_xscale("log")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set_title(name)
        axes.set_xlabel("frames in a chunk")
        axes.set_ylabel("bits/sample")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(output, dpi=120)


if __name__ == "__main__":
    main()
