"""Archives of the past: they decode to what they held, or are refused as they were then.

A missing file is a failure; `make golden` writes the files of a new name, and only those.
"""

from __future__ import annotations

import json

import pytest
import tiny
import zstandard
from container_laws import split
from make_golden import ACCEPT, ALL_REJECT, GOLDEN, describe

import flowarchive
from flowarchive import errors
from flowarchive.chunk import Chunk, Coding

MAX_BYTES = 60_000


def test_the_files_are_those_that_are_named():
    assert {p.name for p in GOLDEN.iterdir()} == {"accept", "reject"}
    accepted = {f"{name}.{suffix}" for name in ACCEPT for suffix in ("flow", "json")}
    assert {p.name for p in (GOLDEN / "accept").iterdir()} == accepted
    assert {p.name for p in (GOLDEN / "reject").iterdir()} == {
        f"{name}.flow" for name in ALL_REJECT
    }
    assert all(p.stat().st_size <= MAX_BYTES for p in GOLDEN.rglob("*.flow"))


@pytest.mark.parametrize("name", ACCEPT)
def test_accepted_archive_decodes_to_what_it_held(name):
    path = GOLDEN / "accept" / f"{name}.flow"
    expected = json.loads(path.with_suffix(".json").read_text())
    with flowarchive.open(path, jobs=1) as archive:
        assert describe(list(archive), expected["settings"]) == expected
        found = [archive.chunk(i).coding for i in range(len(archive.container.index))]
        assert tuple(Coding(coding).name for coding in found) == ACCEPT[name].codings
    assert flowarchive.verify(path, jobs=1).frames == len(expected["frames"])


@pytest.fixture
def recorded_zstd(monkeypatch):
    """Compress some data as they were compressed once, whatever zstd is installed.

    Returns:
        The zstd frames by their contents, to be filled.
    """
    frames: dict[bytes, bytes] = {}

    compressor = zstandard.ZstdCompressor

    class Recorded:
        def __init__(self, **options: int) -> None:
            self.compressor = compressor(**options)

        def compress(self, data: bytes) -> bytes:
            return frames[data] if data in frames else self.compressor.compress(data)

    monkeypatch.setattr(zstandard, "ZstdCompressor", Recorded)
    return frames


# A writer of video archives may find better motion one day.
@pytest.mark.parametrize("name", [name for name in ACCEPT if ACCEPT[name].kind == "idf"])
def test_accepted_archive_is_what_its_frames_pack_to(name, tmp_path, recorded_zstd, monkeypatch):
    path = GOLDEN / "accept" / f"{name}.flow"
    settings = json.loads(path.with_suffix(".json").read_text())["settings"]
    with flowarchive.open(path, jobs=1) as archive:
        video, frames, head = archive.format, list(archive), archive.head
        embedded = archive.container.model()
    stored = [data[33:] for kind, data in split(path.read_bytes()) if kind == b"MODL" and data[32]]
    chunks = [Chunk.from_bytes(data) for kind, data in split(path.read_bytes()) if kind == b"CHNK"]
    stored += [chunk.payload for chunk in chunks if chunk.coding == Coding.ZSTD]
    # How much of each frame's digest is kept is the writer's own choice, and was another once.
    kept = max((len(chunk.digests[0]) for chunk in chunks), default=0)
    monkeypatch.setattr("flowarchive.archive.chunks._digest_size", lambda *_: kept)
    recorded_zstd.update((zstandard.decompress(data), data) for data in stored)
    model = head["model"]["name"]
    if embedded is not None:
        model = tmp_path / f"{model}.safetensors"
        model.write_bytes(embedded[1])
    again = tiny.pack(
        tmp_path / "again.flow",
        video,
        frames,
        model,
        settings,
        chunk_frames=head["chunk_frames"],
        embed_model="never" if embedded is None else "always",
    )
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ALL_REJECT)
def test_rejected_archive_is_refused_with_its_error(name):
    error = getattr(errors, name.split("-")[0])
    with pytest.raises(error) as caught:
        flowarchive.verify(GOLDEN / "reject" / f"{name}.flow", jobs=1)
    assert caught.type is error
    assert str(caught.value).count("\n") == 0 < len(str(caught.value))


@pytest.mark.parametrize(
    ("name", "code"),
    [("BadMagic-text-mode", 6), ("ChecksumMismatch-digest", 4), ("LimitExceeded-frames", 8)],
)
def test_rejected_archive_is_one_line_and_an_exit_code(name, code, run_cli):
    run = run_cli("verify", GOLDEN / "reject" / f"{name}.flow")
    assert run.returncode == code
    assert run.stdout == ""
    assert len(run.stderr.splitlines()) == 1
