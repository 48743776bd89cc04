"""docs/format.md says what the code does: its example, its limits, its names."""

from __future__ import annotations

import re
from pathlib import Path

import google_crc32c
import numpy as np
from container_laws import build, check_container

from flowarchive import chunk as chunk_module
from flowarchive import lattice, motion
from flowarchive.chunk import Chunk, Coding, combine_digests
from flowarchive.container import records
from flowarchive.frames import Frame, VideoFormat
from flowarchive.motion.defaults import DEFAULTS

FORMAT_MD = Path(__file__).parent.parent / "docs" / "format.md"
VIDEO_MD = FORMAT_MD.with_name("format-video.md")
CHAIN_MD = FORMAT_MD.with_name("format-chain.md")


def example() -> bytes:
    """The archive of docs/format.md, section "Example"."""
    video = VideoFormat(4, 2, "gray")
    ramp = np.arange(8, dtype=np.uint8).reshape(2, 4)
    frames = [Frame((ramp,), pts=0), Frame((ramp[::-1],), pts=1)]
    chunk = Chunk(
        coding=Coding.RAW,
        frame_count=2,
        pts=tuple(frame.pts for frame in frames),
        digest=combine_digests(frame.digest() for frame in frames),
        digests=tuple(frame.digest() for frame in frames),
        constants=(None,),
        bits=8,
        lanes=0,
        payload=b"".join(frame.planes[0].tobytes() for frame in frames),
    )
    model = {"name": "example", "sha256": bytes(range(32)).hex()}
    head = {"format": video.to_json(), "model": model, "chunk_frames": 2}
    return build([(chunk.to_bytes(), 2)], head=head)


def hexdump(data: bytes) -> str:
    rows = []
    for i in range(0, len(data), 16):
        row = data[i : i + 16]
        text = "".join(chr(b) if 32 <= b < 127 else "." for b in row)
        rows.append(f"{i:04x}  {row.hex(' '):<47}  {text}")
    return "\n".join(rows)


def test_the_example_of_the_document_is_what_we_write():
    section = FORMAT_MD.read_text().split("\n## Example\n")[1].split("\n## ")[0]
    assert hexdump(example()) in section
    rows = re.findall(r"^\| `([0-9a-f]{4})` \| `(\w+)` \| `([0-9a-f ]+)` \|", section, re.M)
    assert len(rows) > 20
    position = 0
    for offset, name, digits in rows:
        data = bytes.fromhex(digits)
        # The fields are told in order and without gaps, but for the text of HEAD.
        assert int(offset, 16) == position, name
        assert example()[position : position + len(data)] == data, name
        position += len(data)
        if name == "length" and example()[position : position + 2] == b'{"':
            position += data[0] + 256 * data[1]
    assert position == len(example())
    check_container(example())


def test_the_limits_of_the_document_are_the_limits_of_the_code():
    section = FORMAT_MD.read_text().split("\n## Limits\n")[1].split("\n## ")[0]
    written = dict(re.findall(r"^\| `(\w+)` \| ([0-9^]+)", section, re.M))
    limits = {name: eval_power(value) for name, value in written.items()}
    names = [name for m in (records, chunk_module) for name in vars(m) if name.startswith("MAX_")]
    assert limits == {n: getattr(records, n, None) or getattr(chunk_module, n) for n in names}
    assert chunk_module.MAX_PAYLOAD == records.MAX_CHUNK


def eval_power(text: str) -> int:
    base, _, power = text.partition("^")
    return int(base) ** int(power or 1)


def test_the_checksum_is_the_one_of_the_document():
    assert google_crc32c.value(b"123456789") == 0xE3069283


def section(name: str) -> str:
    """A section of docs/format-video.md."""
    return VIDEO_MD.read_text().split(f" {name}\n", 1)[1].split("\n## ")[0]


def test_the_tables_of_motion_are_those_of_the_document():
    rows = re.findall(r"^\| \d+\.\.\d+ \| ([\d ]+) \|$", section("`DEFAULTS`"), re.M)
    assert [int(n) for row in rows for n in row.split()] == DEFAULTS.tolist()
    taps = re.findall(r"^\| \d \| ([-\d ]+) \|$", section("Compensation"), re.M)
    written = [[int(n) for n in row.split()] for row in taps]
    assert written + [written[16 - p][::-1] for p in range(9, 16)] == motion.FILTERS.tolist()


def test_the_phases_are_those_of_the_document():
    def offsets(text: str) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(map(int, pair)) for pair in re.findall(r"\((-?\d+),(-?\d+)\)", text))

    text = section("Lattice")
    near = re.findall(r"^\| \d \(\w\) \| (\d) \| (\d) \| (.*) \|$", text, re.M)
    far = re.findall(r"^\| \d \| (.*) \|$", text, re.M)
    assert len(near) == len(far) == len(lattice.PHASES)
    for phase, (row, column, close), wide in zip(lattice.PHASES, near, far, strict=True):
        assert (phase.row, phase.column) == (int(row), int(column))
        assert (phase.near, phase.far) == (offsets(close), offsets(wide))
    (cross,) = re.findall(r"^`cross` of phase 0 is (.*)\.$", text, re.M)
    assert lattice.PHASES[0].cross == offsets(cross)


def test_links_between_the_documents_lead_somewhere():
    texts = {path.name: path.read_text() for path in (FORMAT_MD, VIDEO_MD, CHAIN_MD)}
    for name, text in texts.items():
        for target, anchor in re.findall(r"\]\(([\w.-]*)#([\w-]+)\)", text):
            headings = re.findall(r"^#+ (.*)$", texts[target or name], re.M)
            anchors = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
            assert anchor in anchors, (name, target, anchor)
