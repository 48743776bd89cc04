"""Damaged and forged archives: an error, and never wrong planes."""

from __future__ import annotations

import json
import struct
import tempfile
from dataclasses import replace
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
import pytest
from archives import VIDEO, codings, same, write_archive
from container_laws import READERS, SuspiciousFile, join, refusal, split
from models import noisy_frames, write_model

import flowarchive
from flowarchive import store
from flowarchive.archive import reader
from flowarchive.archive.chunks import decode_chunk, encode_chunk
from flowarchive.chunk import Chunk, Coding
from flowarchive.errors import (
    FingerprintMismatch,
    FlowArchiveError,
    FormatError,
    InputNotFound,
    LimitExceeded,
    ModelNotFound,
)
from flowarchive.frames import Frame, VideoFormat


def decode_bytes(data: bytes) -> list[Frame]:
    """All frames of an archive in memory."""
    with tempfile.NamedTemporaryFile(suffix=".flow") as file:
        file.write(data)
        file.flush()
        with flowarchive.open(file.name, jobs=1) as archive:
            return list(archive)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes, VideoFormat, list[Frame]]:
    """A tiny archive with a model chunk, its model's file beside it."""
    folder = tmp_path_factory.mktemp("tiny")
    file = write_model(
        folder / "m.safetensors", levels=1, couplings=1, width=1, group_norm=False, mixtures=1
    )
    video_format = VideoFormat(5, 3, "gray16le")
    random = np.random.default_rng(1)
    frames = [
        Frame((random.integers(31000, 34000, (3, 5)).astype(np.uint16),), i) for i in range(2)
    ]
    path = write_archive(
        folder / "a.flow", str(file), frames, video_format, embed_model="never", chunk_frames=2
    )
    assert codings(path) == [Coding.MODEL]
    # Compiled loops are loaded before a test puts its own `open` in the place of Python's.
    flowarchive.verify(path, model_file=file)
    return path.read_bytes(), file.read_bytes(), video_format, frames


@pytest.fixture
def decoder(tiny, monkeypatch):
    """Decodes an archive from a file object; its frames must be the true ones."""
    _, model_data, video_format, frames = tiny
    stored = store.parse_model(model_data, "tiny")
    found: list[bytes] = []

    def find(fingerprint: bytes, embedded: bytes | None, name: str, *_: object) -> object:
        found.append(fingerprint)
        if fingerprint != stored.fingerprint:
            raise ModelNotFound(name)
        return stored

    monkeypatch.setattr(store, "find_model", find)

    class Opened(reader.Archive):
        """An archive of a file object."""

    def decode(file: BinaryIO) -> list[Frame]:
        monkeypatch.setattr(reader.builtins, "open", lambda path, mode: file)
        try:
            with Opened("memory", jobs=1) as archive:
                taken = [archive[i] for i in range(len(archive))]
                assert archive.format == video_format
        finally:
            monkeypatch.undo()
            monkeypatch.setattr(store, "find_model", find)
        assert len(taken) == len(frames)
        assert all(map(same, taken, frames)), "wrong planes"
        return taken

    return decode


def test_every_cut_and_every_flipped_bit_of_a_small_archive_is_refused(tiny, decoder):
    data = tiny[0]
    assert len(data) < 800
    # The container's own readers must refuse it, and what decodes frames must too.
    for read in (decoder, *READERS):
        assert refusal(data, read) is None
    for cut in range(len(data)):
        assert refusal(data[:cut], decoder)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        assert refusal(bytes(damaged), decoder), f"bit {bit} flips unnoticed"


def refuse_parts(parts: list[tuple[bytes, bytes]], decode: Any) -> FlowArchiveError | None:
    """What decoding says to records with right checksums, None if it gives the true frames."""
    found: FlowArchiveError | None = None
    try:
        decode(SuspiciousFile(join(parts)))
    except FlowArchiveError as error:
        found = error
    assert "\n" not in str(found)
    return found


def test_a_forged_chunk_with_right_checksums_never_gives_wrong_planes(tiny, decoder):
    parts = split(tiny[0])
    place = [kind for kind, _ in parts].index(b"CHNK")
    kind, payload = parts[place]
    assert refuse_parts(parts, decoder) is None
    refused, index = 0, [kind for kind, _ in parts].index(b"INDX")
    for bit in range(8 * len(payload)):
        forged = bytearray(payload)
        forged[bit // 8] ^= 1 << bit % 8
        parts[place] = (kind, bytes(forged))
        # The index repeats the chunk's checksum.
        record = struct.pack("<4sQ", kind, len(forged)) + bytes(forged)
        entry = parts[index][1][:-4] + struct.pack("<I", google_crc32c.value(record))
        parts[index] = (parts[index][0], entry)
        # What is left may only be a timestamp, which no digest covers; `same` compares it.
        try:
            refused += refuse_parts(parts, decoder) is not None
        except AssertionError:
            assert changes_times_only(bytes(forged), payload), f"bit {bit} gives wrong planes"
    assert refused > 7.5 * len(payload)


def changes_times_only(forged: bytes, payload: bytes) -> bool:
    ours, theirs = Chunk.from_bytes(forged), Chunk.from_bytes(payload)
    return ours.pts != theirs.pts and replace(ours, pts=theirs.pts) == theirs


def test_a_constant_that_fits_no_sample_is_refused(model):
    video_format = VideoFormat(4, 4, "gray")
    frames = [Frame((np.full((4, 4), 7, np.uint8),), 0)]
    chunk, _ = encode_chunk(frames, video_format, store.load_model(model).network)
    assert chunk.constants == (7,)
    forged = replace(chunk, constants=(256,), bits=9)
    with pytest.raises(FormatError):
        decode_chunk(forged, video_format, store.load_model(model).network)


def test_a_chunk_of_another_format_is_refused(model):
    network = store.load_model(model).network
    chunk, _ = encode_chunk(noisy_frames(VIDEO, 2), VIDEO, network)
    assert chunk.coding == Coding.MODEL
    for other in ("gray10le", "yuv422p10le", "yuv444p10le", "gbrp10le", "yuva420p10le"):
        with pytest.raises(FlowArchiveError):
            decode_chunk(chunk, replace(VIDEO, pix_fmt=other), network)
    for size in ({"width": 40}, {"height": 12}, {"width": 19}):
        with pytest.raises(FlowArchiveError):
            decode_chunk(chunk, replace(VIDEO, **size), network)
    with pytest.raises(LimitExceeded):
        decode_chunk(chunk, replace(VIDEO, width=65536, height=65536), network)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", None),
        ("model", {}),
        ("model", {"sha256": "xyz"}),
        ("model", {"sha256": 7}),
        ("format", None),
        ("format", []),
        ("format", {"width": 5}),
        ("source", ["kind"]),
        ("source", {"kind": ["npy"]}),
    ],
)
def test_a_head_that_says_nonsense_is_refused_or_ignored(field, value, tiny, tmp_path):
    parts = split(tiny[0])
    head = json.loads(parts[0][1])
    head[field] = value
    parts[0] = (parts[0][0], json.dumps(head, sort_keys=True, separators=(",", ":")).encode())
    shift = len(parts[0][1]) - len(split(tiny[0])[0][1])
    path = tmp_path / "a.flow"
    path.write_bytes(moved(parts, shift))
    if field == "source":
        assert flowarchive.info(path)["source"] == value
        with pytest.raises(ModelNotFound):
            flowarchive.unpack(path)
    else:
        with pytest.raises(FlowArchiveError):
            flowarchive.info(path)


def moved(parts: list[tuple[bytes, bytes]], shift: int) -> bytes:
    """An archive whose HEAD has grown by `shift` bytes, every offset right."""
    result = []
    for kind, data in parts:
        if kind == b"INDX":
            offset = struct.unpack_from("<Q", data, 12)[0]
            data = data[:12] + struct.pack("<Q", offset + shift) + data[20:]
        if kind == b"END ":
            data = struct.pack("<Q", struct.unpack_from("<Q", data)[0] + shift) + data[8:]
        result.append((kind, data))
    return join(result)


def test_files_that_are_no_archive_are_refused(tmp_path):
    for data in (b"", b"RIFF" * 99, b"\x89FLOW\r\n\n"):
        (tmp_path / "a.flow").write_bytes(data)
        for read in (flowarchive.info, flowarchive.verify, flowarchive.unpack):
            with pytest.raises(FormatError):
                read(tmp_path / "a.flow")
    for path in (tmp_path / "none.flow", tmp_path):
        with pytest.raises(InputNotFound):
            flowarchive.open(path)


def test_another_model_inside_is_refused(model, tmp_path):
    path = write_archive(tmp_path / "a.flow", model, noisy_frames(VIDEO, 2))
    parts = split(path.read_bytes())
    head = json.loads(parts[0][1])
    head["model"]["sha256"] = "00" * 32
    parts[0] = (parts[0][0], json.dumps(head, sort_keys=True, separators=(",", ":")).encode())
    with pytest.raises(FlowArchiveError) as caught:
        decode_bytes(join(parts))
    assert isinstance(caught.value, FingerprintMismatch | FormatError)
