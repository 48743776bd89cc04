"""A chunk has one encoding; everything else is refused."""

from __future__ import annotations

import random
import struct
import sys
from dataclasses import replace
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from reference.chunk import read_chunk
from reference.refusal import Refused

from flowarchive import chunk as chunk_module
from flowarchive import columns
from flowarchive.account import LIMIT, FrameBits, Statement
from flowarchive.chunk import FRONT_SIZE, MAX_FRAMES, Chunk, Coding, has_account, store_planes
from flowarchive.errors import FormatError, LimitExceeded, Truncated

FAR = (1 << 63) - 1
times = st.one_of(st.integers(-5, 5), st.integers(-FAR, FAR), st.sampled_from([-FAR, FAR]))


@st.composite
def chunks(draw: st.DrawFn) -> Chunk:
    frames = draw(st.integers(1, 20))
    bits = draw(st.integers(8, 16))
    digest_size = draw(st.integers(0, 16))
    coding = draw(st.sampled_from(Coding))
    one_pts = draw(st.sampled_from([st.none(), times, st.one_of(st.none(), times)]))
    values = st.none() | st.integers(0, (1 << bits) - 1)
    constants = draw(st.lists(values, min_size=1, max_size=8))
    tables = [draw(st.none() | table(bits)) if value is None else None for value in constants]
    return Chunk(
        coding=coding,
        frame_count=frames,
        pts=tuple(draw(st.lists(one_pts, min_size=frames, max_size=frames))),
        digest=random.Random(frames).randbytes(16),
        digests=tuple(random.Random(i).randbytes(digest_size) for i in range(frames)),
        constants=tuple(constants),
        bits=bits,
        lanes=1 << draw(st.integers(0, 10)) if coding == Coding.MODEL else 0,
        payload=draw(st.binary(max_size=40)),
        tables=tuple(tables) if coding in (Coding.MODEL, Coding.PIXELS) and any(tables) else (),
        account=draw(st.none() | statements(frames)) if coding == Coding.MODEL else None,
    )


amounts = st.one_of(st.integers(0, 300), st.integers(0, LIMIT - 1))


@st.composite
def statements(draw: st.DrawFn, frames: int) -> Statement:
    rows = draw(st.lists(st.builds(FrameBits, *[amounts] * 4), min_size=frames, max_size=frames))
    rows[-1] = replace(rows[-1], popped=1 + rows[-1].popped // 2)
    seed = draw(amounts)
    return Statement(seed, draw(st.integers(0, seed)), tuple(rows))


def table(bits: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.sets(st.integers(0, 65535), min_size=1, max_size=min(40, 1 << bits)).map(
        lambda values: tuple(sorted(values))
    )


def chunk(**fields: Any) -> Chunk:
    frames = fields.get("frame_count", len(fields.get("pts", "abc")))
    defaults: dict[str, Any] = {
        "coding": 0,
        "frame_count": frames,
        "pts": tuple(range(frames)),
        "digest": bytes(range(16)),
        "digests": tuple(bytes([i % 256]) * 16 for i in range(frames)),
        "constants": (None, 128, 0),
        "bits": 8,
        "lanes": 4,
        "payload": b"payload",
    }
    return Chunk(**{**defaults, **fields})


def check_bytes(data: bytes) -> None:
    """Bytes are refused, or they are the one encoding of what they say, but for old accounts."""
    try:
        read = Chunk.from_bytes(data)
    except FormatError:
        return
    again = read.to_bytes()
    if data[14] & PLAIN_ACCOUNT:
        assert Chunk.from_bytes(again) == read
    else:
        assert again == data


@given(chunks())
def test_round_trip(original):
    data = original.to_bytes()
    assert Chunk.from_bytes(data) == original
    assert data[:4] == struct.pack("<I", original.frame_count)


@given(chunks(), st.data())
def test_other_bytes_are_refused_or_canonical(original, data):
    encoded = bytearray(original.to_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    check_bytes(bytes(encoded))
    cut = data.draw(st.integers(0, len(encoded) - 1))
    check_bytes(bytes(encoded[:cut] + encoded[cut + 1 :]))


@given(st.binary(max_size=80))
def test_any_bytes_are_refused_or_canonical(data):
    check_bytes(data)


SAMPLES = [
    chunk(),
    chunk(pts=(None, None)),
    chunk(pts=(None, 5, None, -(1 << 40), FAR, None, 1, 2, 3)),
    chunk(coding=1, lanes=0, constants=(None,) * 8, bits=16),
    chunk(coding=2, lanes=0, constants=(65535,) * 8, bits=16, payload=b""),
    chunk(tables=((0, 1, 300), None, None), pts=(None, 7)),
    chunk(account=Statement(700, 256, (FrameBits(1, 2, 3, 4), *[FrameBits(200, 0, 0, 199)] * 2))),
    chunk(
        tables=((0, 1, 300), None, None),
        pts=(None, 7),
        account=Statement(9, 9, (FrameBits(0, 1), FrameBits(0, LIMIT - 1, 0, LIMIT - 1))),
    ),
    chunk(constants=(None, 65535, None), tables=((65535,), None, tuple(range(0, 65536, 257)))),
]


@pytest.mark.parametrize("sample", SAMPLES)
def test_every_cut_and_every_addition_is_refused(sample):
    data = sample.to_bytes()
    for cut in range(len(data)):
        with pytest.raises(Truncated):
            Chunk.from_bytes(data[:cut])
    for more in (b"\0", b"x" * 16, data):
        with pytest.raises(FormatError, match="follow"):
            Chunk.from_bytes(data + more)


@pytest.mark.parametrize("sample", SAMPLES)
def test_every_flipped_bit_is_refused_or_changes_the_chunk(sample):
    data = sample.to_bytes()
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        check_bytes(bytes(damaged))


# Timestamps.


@pytest.mark.parametrize(
    ("pts", "size"),
    [
        (range(0, 1000), 2),
        (range(0, 512_000, 512), 3),
        (range(900_000, 900_000 + 3003 * 100, 3003), 5),
        ([*range(0, 1000), 1001], 1001),
        ([None] * 50, 0),
        ([None, *range(15)], 2 + 15),
        ([-FAR, FAR, -FAR, FAR], 4 * 10),
    ],
)
def test_timestamps_are_compact(pts, size):
    pts = tuple(pts)
    sample = chunk(pts=pts, constants=(None,))
    assert len(sample.to_bytes()) == 16 + size + 16 + 16 * len(pts) + 7
    assert Chunk.from_bytes(sample.to_bytes()) == sample


def with_pts(varints: bytes, frames: int, mask: bytes = b"", kind: int = 1) -> bytes:
    header = struct.pack("<IBBHIBBBB", frames, 0, 8, 1, 0, 1, 0, kind, 0)
    return header + mask + varints + bytes(16)


def test_with_pts_makes_chunks():
    assert Chunk.from_bytes(with_pts(b"\x02\x04\x03", 3)).pts == (1, 3, 3)
    assert Chunk.from_bytes(with_pts(b"\x02", 3, b"\x04", 2)).pts == (None, None, 1)
    assert Chunk.from_bytes(with_pts(b"\x02\x04", 3, kind=3)).pts == (1, 3, 5)


@pytest.mark.parametrize(
    "data",
    [
        with_pts(b"\x80\x00", 1),
        with_pts(b"\x82\x80\x00", 1),
        with_pts(b"\xff" * 9 + b"\x00", 1),
        with_pts(b"\x80" * 10 + b"\x01", 1),
        with_pts(b"\xff" * 40, 1),
        with_pts(b"\xff" * 9 + b"\x01", 1),  # -2**63
        with_pts(b"\x80" * 9 + b"\x02", 1),  # 2**63
        with_pts(b"\xff" * 9 + b"\x7f", 1),
        with_pts((b"\xfe" + b"\xff" * 8 + b"\x01") * 3, 3),
        with_pts(b"", 1, b"\x00", 2),
        with_pts(b"\x00", 1, b"\x01", 2),
        with_pts(b"\x00", 2, b"\x05", 2),
        with_pts(b"\x00\x00", 2, b"\x83", 2),
        with_pts(b"\x02\x02\x00", 3),
        with_pts(b"\x02\x02", 2, kind=3),
        with_pts(b"\x02", 3, kind=3),
        with_pts(b"", 1, kind=3),
        with_pts(b"", 1, kind=4),
        with_pts(b"", 1, kind=255),
    ],
    ids=range(19),
)
def test_malformed_timestamps(data):
    with pytest.raises(FormatError):
        Chunk.from_bytes(data)


# Ranges.


WRONG = [
    {"coding": 3},
    {"coding": -1},
    {"frame_count": 0, "pts": (), "digests": ()},
    {"pts": (1, 2)},
    {"digests": (bytes(16),) * 2},
    {"digests": (bytes(16), bytes(16), bytes(15))},
    {"digests": (bytes(17),) * 3},
    {"digest": bytes(15)},
    {"constants": ()},
    {"constants": (None,) * 9},
    {"constants": (256,)},
    {"constants": (-1,)},
    {"bits": 7},
    {"bits": 17},
    {"lanes": 0},
    {"lanes": 3},
    {"lanes": 2048},
    {"lanes": -4},
    {"coding": 1},
    {"coding": 2, "lanes": 1},
    {"tables": ((0, 1),)},
    {"tables": (None, None, None)},
    {"tables": ((), None, None)},
    {"tables": (None, (0, 1), None)},
    {"tables": ((1, 0), None, None)},
    {"tables": ((0, 0), None, None)},
    {"tables": ((-1, 0), None, None)},
    {"tables": ((0, 65536), None, None)},
    {"tables": (tuple(range(257)), None, None)},
    {"tables": ((0, 1), None, None), "coding": 1, "lanes": 0},
    {"constants": (None, 256, 0)},
    {"constants": (None, 65536, 0), "tables": ((0, 1), None, None)},
    {"account": Statement(1, 1, (FrameBits(0, 1),))},
    {"account": Statement(1, 1, (FrameBits(0, 1),) * 3), "coding": 1, "lanes": 0},
    {"pts": (0, 1, FAR + 1)},
    {"pts": (0, 1, -FAR - 1)},
]


@pytest.mark.parametrize("fields", WRONG, ids=str)
def test_fields_out_of_range(fields):
    with pytest.raises(ValueError, match="a chunk cannot have"):
        replace(chunk(frame_count=3), **fields)


@pytest.mark.parametrize(
    ("position", "values"),
    [
        (4, [3, 255]),  # coding
        (5, [0, 7, 17, 255]),  # bits
        (6, [0, 3, 6, 255]),  # lanes
        (12, [0, 1, 2, 9, 255]),  # plane_count
        (13, [0, 8, 128, 255]),  # constant_mask
        (15, [15, 17, 255]),  # digest_size
    ],
)
def test_header_fields_out_of_range(position, values):
    data = bytearray(chunk().to_bytes())
    for value in values:
        data[position] = value
        with pytest.raises(FormatError):
            Chunk.from_bytes(bytes(data))


@pytest.mark.parametrize("frames", [MAX_FRAMES - 1, MAX_FRAMES, MAX_FRAMES + 1])
def test_numbers_of_frames_around_the_limit(frames):
    if frames <= MAX_FRAMES:
        sample = chunk(frame_count=frames, pts=tuple([*range(frames - 1), None]))
        assert Chunk.from_bytes(sample.to_bytes()) == sample
        return
    with pytest.raises(LimitExceeded):
        chunk(frame_count=frames)
    for claimed in (frames, (1 << 32) - 1):
        with pytest.raises(LimitExceeded):
            Chunk.from_bytes(struct.pack("<I", claimed) + chunk().to_bytes()[4:])


# Tables.


def with_tables(data: bytes, planes: int = 2, bits: int = 8, coding: int = 0) -> bytes:
    """A chunk of one frame whose bytes after the header and before the digest are these."""
    lanes = 0 if coding else 1
    header = struct.pack("<IBBHIBBBB", 1, coding, bits, lanes, 0, planes, 0, 4, 0)
    return header + data + bytes(16)


def test_with_tables_makes_chunks():
    read = Chunk.from_bytes(with_tables(b"\2\2\0\5\0\x80\2"))
    assert read.tables == (None, (5, 6, 263))
    assert Chunk.from_bytes(with_tables(b"\3\0\0\7\0\0\xff\xff\3")).tables == ((7,), (65535,))
    most = with_tables(b"\1\xff\0" + bytes(256))
    assert Chunk.from_bytes(most).tables == (tuple(range(256)), None)


@pytest.mark.parametrize(
    "data",
    [
        with_tables(b"\0"),  # a mask of no plane
        with_tables(b"\4\0\0\0"),  # of a plane that is not there
        with_tables(b"\1\0\0\x80\0"),  # padded
        with_tables(b"\1\0\0" + b"\xff" * 10),  # without an end
        with_tables(b"\1\0\0\x80\x80\4"),  # 65536
        with_tables(b"\1\1\0\xff\xff\3\0"),  # 65535, 65536
        with_tables(b"\1\1\0\0" + b"\xff" * 9 + b"\x7f"),  # far out
        with_tables(b"\1\0\1" + bytes(257)),  # 257 elements of 8 bits
        with_tables(b"\1\0\0\0", coding=1),
        with_tables(b"\1\0\0\0", coding=2),
        with_tables(b""),
        with_tables(b"\1\xff\xff"),
        chunk().to_bytes()[:14] + b"\4" + chunk().to_bytes()[15:],
    ],
    ids=range(13),
)
def test_malformed_tables(data):
    with pytest.raises(FormatError):
        Chunk.from_bytes(data)


def test_a_constant_plane_has_no_table():
    sample = bytearray(chunk(tables=((0, 1), None, None)).to_bytes())
    assert sample[20] == 1  # table_mask, after two constants
    sample[20] = 2
    with pytest.raises(FormatError):
        Chunk.from_bytes(bytes(sample))


# Accounts.

PLAIN_ACCOUNT, ACCOUNT = 8, 16


def with_account(data: bytes, coding: int = 0, frames: int = 1, kind: int = PLAIN_ACCOUNT) -> bytes:
    """A chunk whose bytes between the digests and the empty payload are these."""
    lanes = 0 if coding else 1
    header = struct.pack("<IBBHIBBBB", frames, coding, 8, lanes, 0, 1, 0, kind, 0)
    return header + bytes(16) + data


def test_with_account_makes_chunks():
    # Net 5 + 131 - 130 = 6, which is 2 more than the ideal.
    read = Chunk.from_bytes(with_account(b"\x80\1\7\5\x82\1\x83\1\4"))
    assert read.account == Statement(128, 7, (FrameBits(5, 130, 131, 4),))
    assert has_account(read.to_bytes()[:FRONT_SIZE])
    assert not has_account(chunk().to_bytes()[:FRONT_SIZE])


LARGEST = b"\xff" * 6 + b"\x3f"
TOO_LARGE = b"\x80" * 6 + b"\x40"


@pytest.mark.parametrize(
    "data",
    [
        with_account(b"\1\1\0\0\1\2"),  # nothing popped
        with_account(b"\1\2\0\1\1\0"),  # a peak above the seed
        with_account(b"\1\1\0\1\1\2"),  # an ideal of -1
        with_account(b"\1\1\x80\0\1\1\0"),  # padded
        with_account(TOO_LARGE + b"\1\0\1\1\0"),
        with_account(b"\1\1" + TOO_LARGE + b"\1\1\0"),
        with_account(b"\1\1\0" + TOO_LARGE + LARGEST + b"\1"),
        with_account(b"\1\1\0\1" + TOO_LARGE + b"\0"),
        with_account(b"\1\1\0\1\1" + b"\xff" * 6 + b"\x7f"),  # an ideal of 2**48
        with_account(b"\1\1\0\1\1" + b"\xff" * 10),
        with_account(b"\1\1\0\1\1\0", coding=1),
        with_account(b"\1\1\0\1\1\0", coding=2),
        with_account(b"\1\1\0\1\1\0", frames=2),
        with_account(b"\1\1\0\1\1\0\0"),
        with_account(b""),
    ],
    ids=range(15),
)
def test_malformed_accounts(data):
    with pytest.raises(FormatError):
        Chunk.from_bytes(data)
    with pytest.raises(Refused):
        read_chunk(data)


def in_columns(*columns: str) -> bytes:
    """Columns whose bits, in their order, are these, after an empty seed and peak."""
    bits = "".join(columns).replace(" ", "")
    whole = bits + "0" * (-len(bits) % 8)
    return bytes(int(whole[i : i + 8][::-1], 2) for i in range(0, len(whole), 8))


# Of one frame: 0 integer, 1 popped, a growth of 0, no overhead.
COLUMNS = "000000 0", "000000 1 0 1", "000000 0", "000000 0"


def test_columns_are_read_as_they_are_written():
    data = with_account(b"\1\1" + in_columns(*COLUMNS), kind=ACCOUNT)
    read = Chunk.from_bytes(data)
    assert read.account == Statement(1, 1, (FrameBits(0, 1, 1, 0),))
    assert read.to_bytes() == data
    assert read_chunk(data).account == (1, 1, [(0, 1, 1, 0)])


@pytest.mark.parametrize(
    "data",
    [
        in_columns("100000 0 0", *COLUMNS[1:]),  # another order would be shorter
        in_columns(COLUMNS[0], "100000 0 0", *COLUMNS[2:]),  # nothing popped
        in_columns(COLUMNS[0], "000000" + "1" * 65 + "0" * 66, *COLUMNS[2:]),
        in_columns(*COLUMNS) + b"\0",
        in_columns(*COLUMNS, "1"),
        in_columns(*COLUMNS)[:-1],
        b"",
    ],
    ids=range(7),
)
@pytest.mark.parametrize("kind", [ACCOUNT, ACCOUNT | PLAIN_ACCOUNT])
def test_malformed_columns(data, kind):
    whole = with_account(b"\1\1" + data, kind=kind)
    with pytest.raises(FormatError):
        Chunk.from_bytes(whole)
    with pytest.raises(Refused):
        read_chunk(whole)


@given(st.lists(st.lists(st.integers(-(1 << 60), 1 << 60), min_size=9, max_size=9), max_size=5))
def test_any_columns_come_back(whole):
    data = columns.pack(whole)
    assert columns.unpack(data + b"more", len(whole), 9) == (whole, len(data))


@given(st.lists(st.integers(0, (1 << 62) - 1), min_size=1, max_size=9))
def test_the_order_of_a_column_is_the_one_that_makes_it_the_shortest(numbers):
    def length(order: int) -> int:
        return sum(2 * (number + (1 << order)).bit_length() - order - 1 for number in numbers)

    assert columns._shortest(numbers) == min(range(64), key=length)


def test_long_numbers_of_many_frames_are_refused_without_a_step_for_each_bit():
    frames, steps = 4096, 0
    number = "1" * 64 + "0" + "01" * 32
    data = in_columns(*["000000" + number * frames] * 4)
    whole = with_account(b"\1\1" + data, frames=frames, kind=ACCOUNT)

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    sys.setprofile(count)
    try:
        with pytest.raises(FormatError, match="shortest"):
            Chunk.from_bytes(whole)
    finally:
        sys.setprofile(None)
    assert steps < 100 * frames


def test_an_account_of_the_largest_numbers():
    data = with_account(LARGEST + LARGEST + b"\0" + LARGEST * 2 + b"\0")
    assert read_chunk(data).account is not None
    largest = FrameBits(0, LIMIT - 1, LIMIT - 1)
    assert Chunk.from_bytes(data).account == Statement(LIMIT - 1, LIMIT - 1, (largest,))


# Stored planes.


def stored(coding: int, payload: bytes) -> Chunk:
    return chunk(coding=coding, lanes=0, payload=payload)


@pytest.mark.parametrize("size", [0, 1, 2, 1000, 1 << 20])
@pytest.mark.parametrize("noise", [False, True])
def test_stored_planes_come_back(size, noise):
    planes = random.Random(0).randbytes(size) if noise else bytes(size)
    coding, payload = store_planes(planes)
    assert coding == (Coding.ZSTD if size >= 1000 and not noise else Coding.RAW)
    assert len(payload) < size if coding == Coding.ZSTD else payload == planes
    sample = Chunk.from_bytes(stored(coding, payload).to_bytes())
    assert sample.stored_planes(size) == planes
    for other in {0, size - 1, size + 1, 2 * size, 1 << 30} - {size, -1}:
        with pytest.raises(FormatError):
            sample.stored_planes(other)


GOOD = zstandard.compress(bytes(999))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"no zstd",
        GOOD[:-1],
        GOOD + b"x",
        GOOD + GOOD,
        zstandard.ZstdCompressor(write_content_size=False).compress(bytes(999)),
        zstandard.compress(random.Random(0).randbytes(999)),  # longer than what it holds
        b"\x50\x2a\x4d\x18\x04\0\0\0skip" + GOOD,
        b"\x28\xb5\x2f\xfd\x60\xe7\x02\x01\0\0",  # states 999 bytes, holds none
    ],
    ids=range(9),
)
def test_malformed_stored_planes(payload):
    with pytest.raises(FormatError):
        stored(Coding.ZSTD, payload).stored_planes(999)


def test_a_claim_that_zstd_cannot_keep_is_refused_before_memory_is_reserved(monkeypatch):
    def decompressor() -> None:
        pytest.fail("the size was believed")

    # A frame of 17 bytes that states 2**30.
    frame = b"\x28\xb5\x2f\xfd\xa0" + struct.pack("<I", 1 << 30) + bytes(8)
    assert zstandard.get_frame_parameters(frame).content_size == 1 << 30
    monkeypatch.setattr(zstandard, "ZstdDecompressor", decompressor)
    with pytest.raises(FormatError, match="states"):
        stored(Coding.ZSTD, frame).stored_planes(1 << 30)


def test_stored_planes_around_the_limit(monkeypatch):
    monkeypatch.setattr(chunk_module, "MAX_PAYLOAD", 1000)
    for size in (999, 1000):
        assert stored(*store_planes(bytes(size))).stored_planes(size) == bytes(size)
    with pytest.raises(LimitExceeded):
        store_planes(bytes(1001))
    with pytest.raises(LimitExceeded):
        stored(Coding.ZSTD, GOOD).stored_planes(1001)
    with pytest.raises(LimitExceeded):
        stored(Coding.RAW, bytes(1001))


def test_a_model_chunk_has_no_stored_planes():
    with pytest.raises(ValueError, match="not stored"):
        chunk().stored_planes(7)
