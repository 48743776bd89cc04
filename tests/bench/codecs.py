"""Whether `--codec auto` chooses rightly: `python tests/bench/codecs.py CLIP...`.

Packs the first frames of each clip, in chunks of some of them, with each codec, and prints
Markdown: bytes, and processor seconds of packing and unpacking, by `idf` and `chain`, what `auto`
took by its first chunk, and what a wrong choice cost. Models are not counted.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import flowarchive
from flowarchive.frames import Frame, VideoFormat
from flowarchive.media import open_source

CODECS = {"idf": "video", "chain": "chain"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--chunk", type=int, default=6, help="frames of a chunk")
    options = parser.parse_args()
    print("| clip | idf bytes | s | chain bytes | s | chain | auto | lost |")
    print("|---|---:|---:|---:|---:|---:|---|---:|")
    for clip in options.clips:
        with open_source(clip) as source:
            video, frames = source.format, list(islice(source, options.frames))
        if clip == options.clips[0]:
            pack(frames[:2], video, "auto", 2)  # loops are loaded
        found = {codec: pack(frames, video, codec, options.chunk) for codec in (*CODECS, "auto")}
        sizes = {codec: size for codec, (size, _, _) in found.items()}
        chosen = next(codec for codec, model in CODECS.items() if model == found["auto"][2])
        packed = " | ".join(
            f"{size:,} | {spent[0]:.1f} / {spent[1]:.1f}"
            for size, spent, _ in map(found.get, CODECS)
        )
        change = 100 * (sizes["chain"] / sizes["idf"] - 1)
        lost = 100 * (sizes["auto"] / min(sizes.values()) - 1)
        print(f"| {clip.name} | {packed} | {change:+.2f} % | {chosen} | {lost:.2f} % |", flush=True)


def pack(
    frames: Sequence[Frame], video: VideoFormat, codec: str, chunk: int
) -> tuple[int, tuple[float, float], str]:
    """Bytes, processor seconds of packing and unpacking, and the model of an archive."""
    with tempfile.TemporaryDirectory() as scratch:
        path, began = Path(scratch) / "a.flow", time.process_time()
        with flowarchive.create(
            path, video, codec=codec, chunk_frames=chunk, embed_model="never", jobs=1
        ) as archive:
            for frame in frames:
                archive.append(frame)
        packed = time.process_time()
        if codec in CODECS:
            with flowarchive.open(path, jobs=1) as back:
                for _ in back:
                    pass
        spent = packed - began, time.process_time() - packed
        return path.stat().st_size, spent, flowarchive.info(path)["model"]["name"]


if __name__ == "__main__":
    main()
