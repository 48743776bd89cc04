"""Decode a whole archive."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from reference.chunk import MODEL, PIXELS, RAW, Chunk, read_chunk
from reference.container import read_container, read_zstd
from reference.layouts import LAYOUTS, plane_shapes
from reference.message import Message
from reference.model import Model, read_model_file
from reference.networks import Plane, Planes
from reference.pixels import pop_frames
from reference.planes import Shape, pop_frame, to_samples
from reference.refusal import demand
from reference.video import Walk

MAX_PAYLOAD = 2**30
Frame = tuple[int | None, Planes]
FindModel = Callable[[str], bytes | None]


def decode(
    data: bytes, find_model: FindModel = lambda sha256: None
) -> tuple[dict[str, Any], list[Frame]]:
    """Decode an archive.

    Args:
        data: The whole file.
        find_model: Gives the model file for a fingerprint, for archives without one inside.

    Returns:
        The fields of HEAD, and (pts, planes) of each frame.
    """
    container = read_container(data)
    head = container.head
    chunks = [read_chunk(payload) for payload in container.chunks]
    model = None
    if any(chunk.coding == MODEL for chunk in chunks):
        sha256 = head["model"]["sha256"]
        file = container.model or find_model(sha256)
        demand(file is not None, "the model is not at hand", "ModelNotFound")
        assert file is not None
        demand(hashlib.sha256(file).hexdigest() == sha256, "the model", "FingerprintMismatch")
        model = read_model_file(file)
    return head, [frame for chunk in chunks for frame in decode_chunk(chunk, head["format"], model)]


def decode_chunk(chunk: Chunk, video: dict[str, Any], model: Model | None) -> list[Frame]:
    """Decode the frames of one chunk and check them."""
    frames: list[Frame] = []
    letters, depth = LAYOUTS[video["pix_fmt"]][:2]
    sample_size = 1 if depth <= 8 else 2
    shapes = plane_shapes(video["pix_fmt"], video["width"], video["height"])
    demand(len(chunk.constants) == len(shapes), "plane_count")
    demand(chunk.bits <= depth, "bits")
    named = [c for c in chunk.constants if c is not None]
    named += [table[-1] for table in chunk.tables if table is not None]
    demand(all(value < 2**depth for value in named), "a constant or a table")
    coded = [p for p, constant in enumerate(chunk.constants) if constant is None]
    coded_shapes = [shapes[p] for p in coded]
    if chunk.coding == MODEL:
        assert model is not None
        parts = model_planes(chunk, "".join(letters[p] for p in coded), coded_shapes, model)
    elif chunk.coding == PIXELS:
        parts = pixel_planes(chunk, "".join(letters[p] for p in coded), coded_shapes)
    else:
        parts = stored_planes(chunk, coded_shapes, sample_size)
    computed = []
    for pts, part in zip(chunk.pts, parts, strict=True):
        rest = iter(part)
        planes = [
            [[constant] * width for _ in range(height)] if constant is not None else next(rest)
            for constant, (height, width) in zip(chunk.constants, shapes, strict=True)
        ]
        samples = [s for plane in planes for row in plane for s in row]
        packed = b"".join(s.to_bytes(sample_size, "little") for s in samples)
        computed.append(hashlib.blake2b(packed, digest_size=16).digest())
        frames.append((pts, planes))
    for digest, whole in zip(chunk.digests, computed, strict=True):
        demand(whole.startswith(digest), "a frame's digest", "ChecksumMismatch")
    whole = hashlib.blake2b(b"".join(computed), digest_size=16).digest()
    demand(whole == chunk.digest, "the chunk's digest", "ChecksumMismatch")
    return frames


def model_planes(chunk: Chunk, letters: str, shapes: list[Shape], model: Model) -> list[Planes]:
    """The coded planes of each frame from a payload of coding MODEL."""
    message = Message(chunk.payload, chunk.lanes)
    frames: list[Planes] = [[] for _ in range(chunk.frame_count)]
    if letters and model.kind in ("video", "chain"):
        integers = Walk(message, model, letters, shapes, chunk.bits).pop_frames(chunk.frame_count)
    elif letters:
        integers = [pop_frame(message, model, letters, shapes, chunk.bits) for _ in frames]
    else:
        integers = []
    demand(message.is_empty(), "bits are left over")
    samples = [to_samples(whole, letters, chunk.bits) for whole in integers]
    return from_tables(chunk, samples) if letters else frames


def pixel_planes(chunk: Chunk, letters: str, shapes: list[Shape]) -> list[Planes]:
    """The coded planes of each frame from a payload of coding PIXELS."""
    message = Message(chunk.payload, 1)
    frames: list[Planes] = [[] for _ in range(chunk.frame_count)]
    if letters:
        frames = pop_frames(message, chunk.frame_count, letters, shapes, chunk.bits)
    demand(message.is_empty(), "bits are left over")
    return from_tables(chunk, frames)


def from_tables(chunk: Chunk, frames: list[Planes]) -> list[Planes]:
    """The samples of frames whose planes may be coded as places in tables."""
    tables = [t for t, c in zip(chunk.tables, chunk.constants, strict=True) if c is None]
    result = []
    for planes in frames:
        result.append([])
        for plane, table in zip(planes, tables, strict=True):
            top = 2**chunk.bits if table is None else len(table)
            demand(all(0 <= s < top for row in plane for s in row), "a sample out of range")
            result[-1].append([[s if table is None else table[s] for s in row] for row in plane])
    return result


def stored_planes(chunk: Chunk, shapes: list[Shape], sample_size: int) -> list[Planes]:
    """The coded planes of each frame from a payload of coding RAW or ZSTD."""
    size = chunk.frame_count * sample_size * sum(h * w for h, w in shapes)
    data = chunk.payload
    if chunk.coding != RAW:
        data = read_zstd(data, MAX_PAYLOAD, size)
        demand(len(chunk.payload) < size, "coding ZSTD that saves nothing")
    demand(len(data) == size, "a stored payload of another size")
    samples = iter(
        int.from_bytes(data[i : i + sample_size], "little") for i in range(0, size, sample_size)
    )

    def plane(height: int, width: int) -> Plane:
        rows = [[next(samples) for _ in range(width)] for _ in range(height)]
        demand(max(map(max, rows)) < 2**chunk.bits, "a sample out of range")
        return rows

    return [[plane(*shape) for shape in shapes] for _ in range(chunk.frame_count)]
