"""The decoder of tests/reference, which knows docs/format.md alone, agrees with the package."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import tiny
from make_golden import ACCEPT, ALL_REJECT, GOLDEN, sample_hashes
from reference.chain import LEAN, known_chain_answer
from reference.chunk import read_chunk
from reference.container import crc32c, read_container
from reference.decode import decode
from reference.layouts import LAYOUTS, plane_shapes
from reference.maps import core, knots, mixture
from reference.message import Message
from reference.mixture import LogisticMixture
from reference.model import read_model_file
from reference.phases import known_answer
from reference.refusal import Refused
from test_format import FORMAT_MD, example

from flowarchive.bitsback.dequantize import tilt_masses
from flowarchive.chunk import Chunk
from flowarchive.flows.maps import Mixture
from flowarchive.frames import PIXEL_LAYOUTS, VideoFormat

REFERENCE = Path(__file__).parent / "reference"
WEIGHTS = Path(__file__).parent.parent / "flowarchive" / "weights"
LIBRARY = {"bisect", "functools", "hashlib", "itertools", "json", "math", "re", "struct"}
TYPING = {"__future__", "collections.abc", "dataclasses", "decimal", "typing"}


@pytest.mark.parametrize("path", sorted(REFERENCE.glob("*.py")), ids=lambda p: p.stem)
def test_the_reference_imports_nothing_of_ours(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    assert {n for n in imported if not n.startswith("reference.")} <= {
        *LIBRARY, *TYPING, "zstandard"
    }  # fmt: skip


def packaged_model(sha256: str) -> bytes | None:
    """A model file of the package, by its fingerprint."""
    files = (data.read_bytes() for data in WEIGHTS.rglob("*.safetensors"))
    return next((data for data in files if hashlib.sha256(data).hexdigest() == sha256), None)


@pytest.mark.parametrize("name", ACCEPT)
def test_golden_archive(name):
    path = GOLDEN / "accept" / f"{name}.flow"
    _, frames = decode(path.read_bytes(), packaged_model)
    facts = [{"pts": pts, "sha256": sample_hashes(planes)} for pts, planes in frames]
    assert facts == json.loads(path.with_suffix(".json").read_text())["frames"]


@pytest.mark.parametrize(("name", "kind"), [("chain-cuts", 8), ("chain-account", 16)])
def test_the_account_of_a_golden_archive(name, kind):
    (payload,) = read_container((GOLDEN / "accept" / f"{name}.flow").read_bytes()).chunks
    assert payload[14] & 24 == kind
    read = Chunk.from_bytes(payload).account
    rows = [(f.integer, f.popped, f.pushed, f.ideal) for f in read.frames]
    assert read_chunk(payload).account == (read.seed, read.peak, rows)


@pytest.mark.parametrize("name", ALL_REJECT)
def test_damaged_golden_archive(name):
    with pytest.raises(Refused) as caught:
        decode((GOLDEN / "reject" / f"{name}.flow").read_bytes())
    assert caught.value.error == name.split("-")[0]


@pytest.mark.parametrize(
    "name",
    ["yuv420p-19x13", "yuv420p-relu", "yuv422p10le-permuted", "rgb24", "gray16le-of-12-bits",
     "bgr0-constant", "yuv444p-lanes", "stored", "video-gray", "video-yuv420p-19x13",
     "video-rgb24-cut", "video-yuva420p", "video-one-sample", "chain-yuv420p-19x13", "chain-cuts"],
)  # fmt: skip
def test_archive_that_was_just_packed(name, tmp_path):
    case = ACCEPT[name]
    model = case.write_model(tmp_path / "new.safetensors", seed=1000)
    archive = tiny.pack_case(case, model, tmp_path / "new.flow")
    _, frames = decode(archive.read_bytes())
    expected = [(f.pts, [plane.tolist() for plane in f.planes]) for f in case.make_frames()]
    assert frames == expected


@pytest.mark.parametrize("layers", tiny.LAYERS)
def test_chain_of_other_layers(layers, tmp_path):
    # 13 x 9 samples of a phase in level 0: the last squares have one part.
    video = VideoFormat(26, 19, "gray")
    case = tiny.Case(
        video,
        kind="chain",
        model=tiny.LAYERS[layers],
        make=tiny.waves,
        frames={"count": 2, "noise": 9.0},
        least_gain=tiny.BY_FLOW,
    )
    model = case.write_model(tmp_path / "new.safetensors", seed=7)
    archive = tiny.pack_case(case, model, tmp_path / "new.flow").read_bytes()
    (length,) = struct.unpack_from("<Q", model.read_bytes())
    stated = json.loads(model.read_bytes()[8 : 8 + length])["__metadata__"]["known_answer"]
    read = read_model_file(model.read_bytes())
    assert known_chain_answer(read.tensors, read.config, read.flow) == stated
    chunk = read_chunk(read_container(archive).chunks[0])
    assert sum(popped for _, popped, _, _ in chunk.account[2]) > 3000, "hardly a phase by its flow"
    _, frames = decode(archive)
    assert frames == [(f.pts, [plane.tolist() for plane in f.planes]) for f in case.make_frames()]


def test_groups_of_intra_frames_end_where_they_are_large(tmp_path, monkeypatch):
    # 140 luma samples a frame: a group holds two.
    monkeypatch.setattr("flowarchive.models.form.BATCH_SAMPLES", 300)
    monkeypatch.setattr("reference.video.BATCH_SAMPLES", 300)
    case = tiny.VIDEO_CASES["video-cuts"]
    model = case.write_model(tmp_path / "new.safetensors", seed=3)
    small = tiny.pack_case(case, model, tmp_path / "small.flow").read_bytes()
    _, frames = decode(small)
    assert frames == [(f.pts, [plane.tolist() for plane in f.planes]) for f in case.make_frames()]
    monkeypatch.undo()
    assert tiny.pack_case(case, model, tmp_path / "large.flow").read_bytes() != small


def test_the_known_answer_of_a_video_model(tmp_path):
    file = tiny.write_video_model(tmp_path / "new.safetensors", seed=2).read_bytes()
    (length,) = struct.unpack_from("<Q", file)
    stated = json.loads(file[8 : 8 + length])["__metadata__"]["known_answer"]
    model = read_model_file(file)
    assert known_answer(model.tensors, model.config) == stated


def test_the_known_answer_of_a_chain_model(tmp_path):
    file = tiny.write_chain_model(tmp_path / "new.safetensors", seed=2).read_bytes()
    (length,) = struct.unpack_from("<Q", file)
    stated = json.loads(file[8 : 8 + length])["__metadata__"]["known_answer"]
    model = read_model_file(file)
    assert known_chain_answer(model.tensors, model.config, model.flow) == stated


def test_the_tables_of_a_chain_are_those_of_the_document():
    text = FORMAT_MD.with_name("format-chain.md").read_text()
    lean = [freq for tilt in sorted(LEAN) for freq in LEAN[tilt].freqs]
    for table in (knots(24), knots(28), core(14), lean):
        packed = struct.pack(f"<{len(table)}i", *table)
        assert f"`{hashlib.sha256(packed).hexdigest()}`" in text
    written = re.search(r"^i\(30\.\.40\) = ([\d, ]+)\.$", text, re.M)[1]
    worked = ([1024, 3072], [-256, 512], [0, -16], 8)
    ends, _ = mixture(*worked)
    assert written == ", ".join(map(str, ends[30:41]))
    ours = Mixture(*(np.array([row]) for row in worked[:3]), worked[3])
    assert ours.knots(slice(None))[1].tolist() == [ends]
    assert tilt_masses()[np.arange(-8, 9) != 0].ravel().tolist() == lean


def test_archive_without_its_model(tmp_path):
    case = tiny.CASES["gray"]
    model = tiny.write_model(tmp_path / "new.safetensors", **case.model)
    archive = tiny.pack(
        tmp_path / "new.flow", case.video, case.make_frames(), model, embed_model="never"
    ).read_bytes()
    with pytest.raises(Refused, match="ModelNotFound"):
        decode(archive)
    with pytest.raises(Refused, match="FingerprintMismatch"):
        decode(archive, lambda sha256: b"another model")
    asked = []
    _, frames = decode(archive, lambda sha256: asked.append(sha256) or model.read_bytes())
    assert asked == [hashlib.sha256(model.read_bytes()).hexdigest()]
    assert frames[0] == (0, [case.make_frames()[0].planes[0].tolist()])


def test_the_example_of_the_document():
    _, frames = decode(example())
    assert frames == [(0, [[[0, 1, 2, 3], [4, 5, 6, 7]]]), (1, [[[4, 5, 6, 7], [0, 1, 2, 3]]])]
    assert read_container(example()).model is None
    assert crc32c(b"123456789") == 0xE3069283


def test_the_worked_message_of_the_document():
    section = FORMAT_MD.read_text().split("\n### Worked example\n")[1].split("\n## ")[0]
    data = bytes.fromhex(section.split("```")[1])
    mixture = LogisticMixture(-40, 39, 20, [300], [40])
    rows = re.findall(r"^\| (-?\d+) \| (\d+) \| (\d+) \|", section, re.M)
    expected = [tuple(map(int, row)) for row in rows]
    assert [mixture.find(start) for _, start, _ in expected] == expected
    message = Message(data, 2)
    assert message.pop_uniform_array([7, 2**32 - 1]) == [5, 123456789]
    assert message.pop_array([mixture] * 6) == [z for z, _, _ in expected]
    assert message.is_empty()


def test_pixel_formats_are_those_of_the_document_and_of_the_package():
    section = FORMAT_MD.read_text().split("\n### `PIXEL_LAYOUTS`\n")[1].split("\n## ")[0]
    written = {}
    for row in re.findall(r"^\| ([A-Z]+) \| (\d) \| (\d) \| (\d+) \| (.*) \|$", section, re.M):
        letters, log2_w, log2_h, depth, names = row
        for name in re.findall("`(.*?)`", names):
            written[name] = (letters, int(depth), int(log2_w), int(log2_h))
    assert written == LAYOUTS
    ours = PIXEL_LAYOUTS.items()
    assert written == {
        name: (p.components, p.bit_depth, p.log2_chroma_w, p.log2_chroma_h) for name, p in ours
    }
    for name in LAYOUTS:
        assert tuple(plane_shapes(name, 7, 5)) == VideoFormat(7, 5, name).plane_shapes
