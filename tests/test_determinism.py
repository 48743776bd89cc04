"""The same integers and the same bytes whatever the instruction set, threads, layout and batch."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import processors
import pytest
import torch
from chains import write_chain_model
from integers import plain_network
from models import RUNGS, noisy_frames, write_model, write_video_model
from test_video import make_frames

import flowarchive
from flowarchive import media, store
from flowarchive.flows.integer import IntegerFlow
from flowarchive.frames import Frame, VideoFormat

ATEN = ["default", "avx2", "avx512"]
ONEDNN = ["SSE41", "AVX2", "AVX512_CORE"]
# The oldest machine, the newest, and both kinds of disagreement between the two libraries.
CORNERS = [
    ("default", "SSE41", "1"),
    ("avx512", "AVX512_CORE", "2"),
    ("default", "AVX512_CORE", "1"),
    ("avx2", "SSE41", "2"),
]
MATRIX = [c for c in itertools.product(ATEN, ONEDNN, "12") if c not in CORNERS]
SIZE = (3, 40, 136)
SHAPE = {"levels": 2, "couplings": 3, "depth": 2, "width": 8}


def make_input(channels: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(channels)
    batch, h, w = SIZE
    x = torch.randint(-128, 128, (batch, channels, h, w), generator=random)
    x[1] = x[1].cumsum(-1) % 256 - 128
    return x.float()


def latent_hash(flow: IntegerFlow, x: torch.Tensor, context: torch.Tensor | None) -> str:
    """Of the latents and their parameters, in any memory layout."""
    digest = hashlib.sha256()
    for latent in flow(x, context):
        for tensor in (latent.z, latent.mean, latent.scale):
            array = tensor.contiguous().numpy()
            assert np.array_equal(array, np.rint(array))
            digest.update(array.astype("<i4").tobytes())
    return digest.hexdigest()


def all_hashes(network: Any) -> dict[str, str]:
    """Hashes for each flow: items alone and in a batch of three, in both memory layouts."""
    hashes = {}
    for name, flow in (("luma", network.luma), ("chroma", network.chroma)):
        x = make_input(flow.config.channels)
        context = make_input(1) if flow.config.context else None
        for layout in (torch.contiguous_format, torch.channels_last):
            laid = x.clone(memory_format=layout)
            hashes[f"{name} 3 {layout}"] = latent_hash(flow, laid, context)
            one = laid[1:2].clone(memory_format=layout)
            hashes[f"{name} 1 {layout}"] = latent_hash(
                flow, one, None if context is None else context[1:2]
            )
    return hashes


def facts(paths: list[str]) -> dict[str, Any]:
    """What a process of its own reports."""
    return {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "hashes": [all_hashes(store.load_model(path).network) for path in paths],
    }


def run(root: Path, script: str, *args: object, **env: str) -> str:
    """Run Python code in a process of its own, with the package and the tests at hand."""
    path = os.pathsep.join([str(root), str(root / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, args)],
        env={**os.environ, "PYTHONPATH": path, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def environment(aten: str, onednn: str, threads: str) -> dict[str, str]:
    return {
        "ATEN_CPU_CAPABILITY": aten,
        "ONEDNN_MAX_CPU_ISA": onednn,
        "OMP_NUM_THREADS": threads,
        "NUMBA_NUM_THREADS": "1",
    }


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [
        write_model(folder / f"{rung}.safetensors", seed=1, **SHAPE, **RUNGS[rung])
        for rung in ("idf", "idf++")
    ]


@pytest.fixture(scope="module")
def reference(model_files: list[Path]) -> list[dict[str, str]]:
    """The hashes by 64-bit integers alone."""
    networks = [store.load_model(str(path)).network for path in model_files]
    hashes = []
    for network in networks:
        batch = all_hashes(plain_network(network))
        assert len(batch) == 8
        assert len(set(batch.values())) == 4  # two flows, two inputs; the layouts agree
        hashes.append(batch)
    return hashes


def check_environment(
    root: Path, model_files: list[Path], reference: list[dict[str, str]], setting: tuple[str, ...]
) -> None:
    script = "import json, sys, test_determinism as t; print(json.dumps(t.facts(sys.argv[1:])))"
    found = json.loads(run(root, script, *model_files, **environment(*setting)))
    assert found["hashes"] == reference
    assert found["threads"] == int(setting[2])
    # The setting did what it is for, where this processor can.
    best = ["DEFAULT", "AVX2", "AVX512"]
    here = torch.backends.cpu.get_cpu_capability()
    if here in best:
        reached = min(best.index(here), ATEN.index(setting[0]))
        assert found["capability"] == best[reached]


@pytest.mark.parametrize("setting", CORNERS, ids="-".join)
def test_the_integers_are_the_same_at_the_corners(root, model_files, reference, setting):
    check_environment(root, model_files, reference, setting)


@pytest.mark.slow
@pytest.mark.parametrize("setting", MATRIX, ids="-".join)
def test_the_integers_are_the_same_everywhere(root, model_files, reference, setting):
    check_environment(root, model_files, reference, setting)


def test_the_integers_are_the_same_with_each_thread_count_here(model_files, reference):
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found = [all_hashes(store.load_model(str(path)).network) for path in model_files]
            assert found == reference
    finally:
        torch.set_num_threads(before)


WORK = """
import sys
import flowarchive
model, source, folder, together, packed, unpacked = sys.argv[1:]
for jobs in (1, 2):
    flowarchive.pack(source, f"{folder}/{packed}-{jobs}.flow", model=model, jobs=jobs,
                     chunk_frames=int(together), embed_model="always")
flowarchive.pack(source, f"{folder}/{packed}-again.flow", model=model, chunk_frames=int(together),
                 embed_model="always")
if unpacked:
    flowarchive.unpack(f"{folder}/{unpacked}", f"{folder}/{packed}.y4m")
    flowarchive.verify(f"{folder}/{unpacked}", source=source, jobs=2)
"""


def test_archives_travel_between_old_and_new_machines(root, model_files, tmp_path):
    video_format = VideoFormat(71, 53, "yuv420p10le", rate=Fraction(25))
    check_travel(root, model_files[1], tmp_path, video_format, noisy_frames(video_format, 5), 2)


@pytest.mark.slow  # all loops are compiled for each machine
@pytest.mark.parametrize("write", [write_video_model, write_chain_model], ids=["video", "chain"])
@pytest.mark.parametrize(("expected", "name", "features"), processors.OLDER)
def test_inter_frames_travel_between_machines(root, tmp_path, write, expected, name, features):
    older = processors.environment(name, features)
    assert run(root, "import processors; print(processors.way())", **older).strip() == expected
    model = write(tmp_path / "model.safetensors")
    video_format = VideoFormat(72, 58, "yuv420p", rate=Fraction(25))
    groups = make_frames(video_format, "moving", 7)
    frames = [Frame(tuple(group), t) for t, group in enumerate(groups)]
    # Filters have learned twice when the last frame of the first chunk is predicted.
    check_travel(root, model, tmp_path, video_format, frames, 4, **older)
    account = flowarchive.info(tmp_path / "new-1.flow").get("account", {"popped": 0})
    assert (account["popped"] > 0) == (write is write_chain_model)


def check_travel(
    root: Path,
    model: Path,
    tmp_path: Path,
    video_format: VideoFormat,
    frames: Sequence[Frame],
    together: int,
    **older: str,
) -> None:
    """Archives of either machine, with any number of jobs, are one another's, and unpack there."""
    new = environment("avx512", "AVX512_CORE", "2")
    old = {**environment("default", "SSE41", "1"), **older}
    with media.open_sink(tmp_path / "source.y4m", video_format) as sink:
        for frame in frames:
            sink.write(frame)
    shared = (model, tmp_path / "source.y4m", tmp_path, together)
    run(root, WORK, *shared, "new", "", **new)
    run(root, WORK, *shared, "old", "new-1.flow", **old)
    run(root, WORK, *shared, "newer", "old-1.flow", **new)
    archives = [path.read_bytes() for path in sorted(tmp_path.glob("*.flow"))]
    assert len(archives) == 9
    assert len(set(archives)) == 1
    for name in ("old.y4m", "newer.y4m"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "source.y4m").read_bytes()
    with flowarchive.open(tmp_path / "new-1.flow") as archive:
        codings = {archive.chunk(i).coding for i in range(-(-len(frames) // together))}
    assert codings == {0}, "not the model's coding"
