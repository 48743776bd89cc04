"""A group of frames to a chunk and back.

Planes that are constant in the whole chunk are named once and not coded. The others go onto one
message, so that the first frame is popped first: with the model, or, where pixels repeat as those
of screens and drawings do, without one. A chunk that neither would make smaller is stored, with
zstd or as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from flowarchive import pixelwise, planes
from flowarchive.account import Account
from flowarchive.ans import Message
from flowarchive.chunk import (
    DIGEST_SIZE,
    MAX_FRAMES,
    MAX_PAYLOAD,
    Chunk,
    Coding,
    combine_digests,
    store_planes,
)
from flowarchive.errors import ChecksumMismatch, FormatError, LimitExceeded
from flowarchive.frames import Frame, Plane, VideoFormat
from flowarchive.models import Model

# As torch says it of the CPU; of a GPU torch and Triton's drivers say "out of memory".
_OUT_OF_MEMORY = ("not enough memory", "can't allocate", "could not create a", "out of memory")
SAMPLES_PER_LANE = 1 << 17  # a lane costs about six bytes
MAX_LANES = 64
CHUNK_BYTES = 2 << 20  # raw bytes of a chunk whose length nobody chose
CHUNK_FRAMES = 256  # of small frames; more of them only where the chunk's own bytes would tell
MEMORY_BYTES = 48 << 20  # alike, of a model that codes frames from the ones before
MEMORY_FRAMES = 64
SMALL_CHUNK_BYTES = 1 << 18
# Where fewer samples than these are coded, pixels have no time to show that they repeat.
PIXELWISE_SAMPLES = 1 << 13
# Above these shares of repeated pixels coding without a model may win, and is sure to.
PIXELWISE_HOPE, PIXELWISE_SURE = 0.6, 0.9
# Sensors whose colors are interpolated leave rules that hold to the bit. Above this share the first
# frame of an RGB clip is tried; all of them, if it takes so much less, since pixels are slow.
PIXELWISE_CHANCE, PIXELWISE_WORTH = 0.25, 0.95
BYTES_PER_DIGEST_BYTE = 1 << 14  # so that frames' digests never add more than 0.006 %


def frames_per_chunk(
    video_format: VideoFormat, wanted: int | None = None, has_memory: bool = False
) -> int:
    """Return how many frames of a format go into a chunk.

    Args:
        video_format: Of the frames.
        wanted: What the user asked for; None for about `CHUNK_BYTES` of raw samples.
        has_memory: The model codes frames from the ones before: `MEMORY_BYTES`, not too many
            frames.

    Raises:
        LimitExceeded: So many frames do not fit a chunk.
        ValueError: `wanted` is below 1.
    """
    if wanted is None:
        size = video_format.bytes_per_frame
        limit, frames = (MEMORY_BYTES, MEMORY_FRAMES) if has_memory else (CHUNK_BYTES, CHUNK_FRAMES)
        most = min(max(frames, SMALL_CHUNK_BYTES // size), MAX_FRAMES)
        wanted = min(max(1, limit // size), most)
    if wanted < 1:
        raise ValueError(f"a chunk of {wanted} frames is too short")
    _check_size(video_format, wanted)
    return wanted


def encode_chunk(
    frames: Sequence[Frame], video_format: VideoFormat, model: Model, threads: int = 1
) -> tuple[Chunk, float]:
    """Code frames into a chunk.

    Args:
        frames: At least one frame of the format.
        video_format: Of the frames.
        model: Codes what is not constant.
        threads: How many the model may use; the chunk does not depend on it.

    Returns:
        The chunk, and the ideal code length in bits of what the model coded; for a stored chunk
        the bits it takes.
    """
    constants = _constants(frames)
    coded = [i for i, value in enumerate(constants) if value is None]
    letters = _coded_letters(video_format, constants)
    moving = [[frame.planes[i] for i in coded] for frame in frames]
    bits = max((planes.bits_needed(group) for group in moving), default=planes.MIN_BITS)
    bits = max([bits, *(value.bit_length() for value in constants if value is not None)])
    tables, places, table_bits = planes.tabulate(moving, bits)
    coding, message, account = _push_frames(places, letters, table_bits, model, threads)
    payload, ideal, statement = message.to_bytes(), account.ideal_bits, account.statement()
    stored = b"".join(_little_endian(plane) for group in moving for plane in group)
    stored_coding, stored_payload = store_planes(stored, len(payload))
    if len(stored_payload) < len(payload):
        coding, payload, ideal = stored_coding, stored_payload, 8.0 * len(stored_payload)
        tables, table_bits, statement = [None] * len(coded), bits, None
    every = iter(tables)
    whole = tuple(next(every) if value is None else None for value in constants)
    digests = [frame.digest() for frame in frames]
    digest_size = _digest_size(len(payload), len(frames))
    chunk = Chunk(
        coding=coding,
        frame_count=len(frames),
        pts=tuple(frame.pts for frame in frames),
        digest=combine_digests(digests),
        digests=tuple(digest[:digest_size] for digest in digests),
        constants=constants,
        bits=table_bits,
        lanes=message.lanes if coding == Coding.MODEL else 0,
        payload=payload,
        tables=whole if any(table is not None for table in whole) else (),
        account=statement,
    )
    return chunk, ideal


def _push_frames(
    frames: Sequence[Sequence[Plane]], letters: str, bits: int, model: Model, threads: int
) -> tuple[Coding, Message, Account]:
    """Return the smaller message of those that are worth trying, and its account."""
    samples = sum(plane.size for group in frames for plane in group)
    colors, share = letters.startswith("RGB"), 0.0
    if colors and len(frames) == 1 and samples >= PIXELWISE_SAMPLES:
        share = 1.0  # a photograph, at which the models are not good
    elif samples >= PIXELWISE_SAMPLES:
        share = pixelwise.repetition(frames, letters)
    pixels: tuple[Coding, Message, Account] | None = None
    if share > PIXELWISE_HOPE:
        pixels = _push_pixels(frames, letters, bits)
        # In one frame: a filmed picture may stand still, but it repeats nothing by itself.
        if pixelwise.repetition(frames[:1], letters) > PIXELWISE_SURE:
            return pixels
    message, account = Message(_lanes(samples)), Account(len(frames))
    if letters:
        components = [planes.split(group, letters, bits) for group in frames]
        with _memory_errors():
            account = model.push_frames(message, components, letters, bits, threads)
    if pixels is None and colors and share > PIXELWISE_CHANCE:
        _, trial, _ = _push_pixels(frames[:1], letters, bits)
        if trial.bits < PIXELWISE_WORTH / len(frames) * message.bits:
            pixels = _push_pixels(frames, letters, bits)
    if pixels is not None and len(pixels[1].to_bytes()) < len(message.to_bytes()):
        return pixels
    return Coding.MODEL, message, account


def _push_pixels(
    frames: Sequence[Sequence[Plane]], letters: str, bits: int
) -> tuple[Coding, Message, Account]:
    """Push frames pixel by pixel."""
    from flowarchive.pixelwise.frames import push_frames  # compiles loops

    message, account = Message(pixelwise.LANES), Account(len(frames))
    ideal = push_frames(message, frames, letters, bits)
    account.integer(0, message.bits, ideal)
    return Coding.PIXELS, message, account


def decode_chunk(
    chunk: Chunk, video_format: VideoFormat, model: Model | None, threads: int = 1
) -> list[Frame]:
    """Undo `encode_chunk` and check every frame against its hash.

    Args:
        chunk: What `encode_chunk` gave.
        video_format: Of the frames.
        model: Needed for a chunk of coding MODEL.
        threads: How many the model may use.

    Raises:
        ChecksumMismatch: A frame is not the one that was packed.
        FormatError: The chunk does not fit the format.
        CodingError: The message does not hold what the chunk says.
    """
    if len(chunk.constants) != len(video_format.plane_shapes):
        raise FormatError("a chunk has another number of planes than the archive")
    _check_size(video_format, chunk.frame_count)
    depth = max(video_format.layout.bit_depth, planes.MIN_BITS)
    if chunk.bits > depth:
        raise FormatError(f"a chunk has samples of {chunk.bits} bits")
    named = [value for value in chunk.constants if value is not None]
    if max([*named, *(table[-1] for table in chunk.tables if table)], default=0) >> depth:
        raise FormatError(f"a chunk names samples of more than {depth} bits")
    letters = _coded_letters(video_format, chunk.constants)
    shapes = [
        shape
        for shape, value in zip(video_format.plane_shapes, chunk.constants, strict=True)
        if value is None
    ]
    if chunk.is_stored:
        moving = _stored_frames(chunk, shapes, video_format.dtype)
    else:
        moving = _pop_frames(chunk, shapes, letters, video_format.dtype, model, threads)
    frames = []
    for number, group in enumerate(moving):
        parts = iter(group)
        whole = tuple(
            next(parts) if value is None else np.full(shape, value, dtype=video_format.dtype)
            for value, shape in zip(chunk.constants, video_format.plane_shapes, strict=True)
        )
        frames.append(Frame(whole, chunk.pts[number]))
    _check_digests(chunk, frames)
    return frames


def _check_digests(chunk: Chunk, frames: Sequence[Frame]) -> None:
    digests = [frame.digest() for frame in frames]
    for number, (stated, digest) in enumerate(zip(chunk.digests, digests, strict=True)):
        if not digest.startswith(stated):
            raise ChecksumMismatch(f"frame {number} of a chunk is not the frame that was packed")
    if combine_digests(digests) != chunk.digest:
        raise ChecksumMismatch("the frames of a chunk are not those that were packed")


def _pop_frames(
    chunk: Chunk,
    shapes: list[tuple[int, int]],
    letters: str,
    dtype: np.dtype[Any],
    model: Model | None,
    threads: int,
) -> list[tuple[Plane, ...]]:
    message = Message.from_bytes(chunk.payload, chunk.lanes or pixelwise.LANES)
    tables = [
        table for table, value in zip(chunk.tables, chunk.constants, strict=False) if value is None
    ]
    count, bits = chunk.frame_count, chunk.bits
    popped: Iterable[tuple[Plane, ...]]
    if not shapes:
        popped = [()] * count
    elif chunk.coding == Coding.PIXELS:
        from flowarchive.pixelwise.frames import pop_frames  # compiles loops

        popped = pop_frames(message, count, shapes, letters, bits, dtype)
    else:
        assert model is not None
        popped = (
            planes.merge(components, letters, bits, dtype)
            for components in model.pop_frames(message, count, shapes, letters, bits, threads)
        )
    with _memory_errors():
        moving = [planes.look_up(group, tables) for group in popped]
    if not message.is_drained:
        raise FormatError("bits are left over when a chunk's frames are out")
    return moving


def _stored_frames(
    chunk: Chunk, shapes: list[tuple[int, int]], dtype: np.dtype[Any]
) -> list[tuple[Plane, ...]]:
    little = dtype.newbyteorder("<")
    frame_size = sum(h * w for h, w in shapes) * dtype.itemsize
    data = chunk.stored_planes(frame_size * chunk.frame_count)
    moving, offset = [], 0
    for _ in range(chunk.frame_count):
        group = []
        for h, w in shapes:
            plane = np.frombuffer(data, little, h * w, offset).reshape(h, w)
            if int(plane.max()) >> chunk.bits:
                raise FormatError("a stored sample is larger than its chunk says")
            group.append(plane.astype(dtype))
            offset += plane.nbytes
        moving.append(tuple(group))
    return moving


def _constants(frames: Sequence[Frame]) -> tuple[int | None, ...]:
    """For each plane the value that all its samples in all frames have, or None."""
    constants: list[int | None] = []
    for column in zip(*(frame.planes for frame in frames), strict=True):
        value = int(column[0].flat[0])
        constants.append(value if all(bool((plane == value).all()) for plane in column) else None)
    return tuple(constants)


def _coded_letters(video_format: VideoFormat, constants: Sequence[int | None]) -> str:
    letters = video_format.layout.components
    return "".join(c for c, value in zip(letters, constants, strict=True) if value is None)


def _lanes(samples: int) -> int:
    lanes = 1
    while lanes < MAX_LANES and 2 * lanes * SAMPLES_PER_LANE <= samples:
        lanes *= 2
    return lanes


def _digest_size(payload: int, frames: int) -> int:
    return min(payload // frames // BYTES_PER_DIGEST_BYTE, DIGEST_SIZE)


def _little_endian(plane: Plane) -> bytes:
    return plane.astype(plane.dtype.newbyteorder("<")).tobytes()


def _check_size(video_format: VideoFormat, frames: int) -> None:
    size = video_format.bytes_per_frame * frames
    if size > MAX_PAYLOAD:
        raise LimitExceeded(f"{frames} frames of {size} bytes together do not fit a chunk")


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Turn what torch raises where memory runs out into a MemoryError."""
    try:
        yield
    except RuntimeError as error:
        if any(sign in str(error) for sign in _OUT_OF_MEMORY):
            raise MemoryError("a frame's networks do not fit into memory") from error
        raise
