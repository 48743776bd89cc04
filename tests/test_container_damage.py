"""Whatever is wrong with an archive's bytes, both readers refuse it."""

from __future__ import annotations

import io
import json
import re
import struct
import tracemalloc

import google_crc32c
import pytest
import zstandard
from container_laws import (
    CHUNKS,
    MODELS,
    READERS,
    SHA256,
    SuspiciousFile,
    archive_prologue,
    build,
    check_container,
    flip,
    join,
    payload,
    read_as_stream,
    read_by_index,
    refusal,
    split,
)

from flowarchive.container import (
    CHUNK,
    END,
    HEAD,
    INDEX,
    MAGIC,
    MODEL,
    Reader,
    Writer,
    ledger,
    parse_head,
    parse_model,
    records,
    writer,
)
from flowarchive.errors import (
    BadMagic,
    ChecksumMismatch,
    FormatError,
    LimitExceeded,
    TrailingData,
    Truncated,
    UnsupportedVersion,
)

both = pytest.mark.parametrize("read", READERS)
where_model = pytest.mark.parametrize(("model", "leading"), MODELS.values(), ids=MODELS)


@where_model
def test_no_truncation_and_no_flipped_bit_is_taken(model, leading):
    check_container(build(model=model, leading=leading))


def test_an_empty_archive_is_guarded_too():
    check_container(build([]))


@both
def test_every_byte_replaced(read):
    archive = build(model=b"m" * 99)
    for position in range(len(archive)):
        for value in (archive[position] ^ 0xFF, 0, 255, 10, 13):
            if value != archive[position]:
                damaged = archive[:position] + bytes([value]) + archive[position + 1 :]
                assert refusal(damaged, read), position


@both
def test_every_byte_deleted_or_doubled(read):
    archive = build(model=b"m" * 99)
    for i in range(len(archive)):
        assert refusal(archive[:i] + archive[i + 1 :], read), i
        assert refusal(archive[:i] + archive[i : i + 1] + archive[i:], read), i


@both
def test_every_cut_is_called_truncated(read):
    archive = build(model=b"m" * 99)
    assert {type(refusal(archive[:cut], read)) for cut in range(len(archive))} == {Truncated}


@both
@pytest.mark.parametrize("more", [b"\0", b"x" * 52, b"END", "last record", "archive"])
def test_bytes_after_the_end(read, more):
    archive = build()
    more = {"last record": archive[-52:], "archive": archive}.get(more, more)
    assert type(refusal(archive + more, read)) is TrailingData


@both
def test_records_dropped_swapped_and_doubled(read):
    parts = split(build(model=b"m" * 99))
    assert len({data for _, data in parts}) == len(parts) == 7
    wrong = [parts[:i] + parts[i + 1 :] for i in range(7)]
    wrong += [[*parts[:i], parts[k], *parts[i:]] for i in range(8) for k in range(7)]
    for i in range(7):
        for k in range(i):
            swapped = list(parts)
            swapped[i], swapped[k] = swapped[k], swapped[i]
            wrong.append(swapped)
    for order in wrong:
        assert refusal(join(order), read), [kind for kind, _ in order]


def test_swapped_chunks_are_seen_without_reading_the_file():
    parts = split(build())
    parts[1], parts[2] = parts[2], parts[1]
    archive = bytearray(build())
    archive[16:-52] = join(parts)[16:-52]
    reader = Reader(io.BytesIO(archive))
    for i in (0, 1):
        with pytest.raises(ChecksumMismatch, match=f"chunk {i}"):
            reader.chunk(i)
    assert reader.chunk(2) == CHUNKS[2][0]


def test_replaced_model_is_seen_without_reading_the_file():
    one, other = build(model=b"one"), build(model=b"two")
    assert len(one) == len(other)
    tail = 28 + 24 * 3 + 52  # INDEX and END
    reader = Reader(io.BytesIO(other[:-tail] + one[-tail:]))
    with pytest.raises(ChecksumMismatch, match="MODEL"):
        reader.model()


def test_damage_stays_in_its_chunk():
    archive = build(model=b"m" * 99)
    entry = Reader(io.BytesIO(archive)).index[1]
    reader = Reader(io.BytesIO(flip(archive, entry.offset + 20)))
    assert reader.chunk(0) == CHUNKS[0][0]
    assert reader.chunk(2) == CHUNKS[2][0]
    assert reader.model() == (SHA256, b"m" * 99)
    with pytest.raises(ChecksumMismatch):
        reader.chunk(1)
    with pytest.raises(ChecksumMismatch):
        reader.check()


def test_stream_yields_what_came_before_the_damage():
    archive = build()
    entry = Reader(io.BytesIO(archive)).index[1]
    stream = Reader.stream(io.BytesIO(flip(archive, entry.offset + 20)))
    assert [next(stream).type for _ in range(2)] == [HEAD, CHUNK]
    with pytest.raises(ChecksumMismatch):
        next(stream)


@both
@pytest.mark.parametrize("kind", [INDEX, END])
@pytest.mark.parametrize("where", MODELS)
def test_accounts_that_do_not_add_up(read, kind, where):
    """Every byte of INDEX and of END's fields matters, even with right checksums."""
    parts = split(build(CHUNKS, *MODELS[where]))
    place = [k for k, _ in parts].index(kind)
    data = parts[place][1]
    for position in range(20 if kind == END else len(data)):
        for value in (1, 0x10, 0x80, 0xFF):
            parts[place] = (kind, flip(data, position, value))
            assert refusal(join(parts), read), position


@both
@pytest.mark.parametrize(
    "change",
    [
        lambda index: index[:-1],
        lambda index: index[:-24],
        lambda index: index[:12],
        lambda index: index[:13],
        lambda index: index + bytes(5),
        lambda index: index + index[-24:],
    ],
)
def test_index_of_another_length(read, change):
    parts = split(build())
    parts[-2] = (INDEX, change(parts[-2][1]))
    assert refusal(join(parts), read)


@both
def test_chunk_whose_count_is_not_the_indexed_one(read):
    for count in (0, 2, 1 << 31):
        parts = split(build())
        parts[1] = (CHUNK, struct.pack("<I", count) + parts[1][1][4:])
        # The index is given the new checksum, so that only the number of frames is wrong.
        crc = struct.pack("<I", google_crc32c.value(struct.pack("<4sQ", CHUNK, 11) + parts[1][1]))
        index = parts[-2][1]
        parts[-2] = (INDEX, index[:32] + crc + index[36:])
        assert type(refusal(join(parts), read)) is FormatError


@both
def test_chunk_without_frames(read):
    archive = build([(payload(1, 9), 1)])
    parts = split(archive)
    parts[1] = (CHUNK, bytes(9))
    record = struct.pack("<4sQ", CHUNK, 9) + bytes(9)
    entry = parts[2][1][12:28] + struct.pack("<II", 0, google_crc32c.value(record))
    parts[2] = (INDEX, parts[2][1][:12] + entry)
    parts[3] = (END, parts[3][1][:8] + bytes(8) + parts[3][1][16:])
    assert type(refusal(join(parts), read)) is FormatError


# The first bytes.


@both
@pytest.mark.parametrize(
    ("prologue", "error"),
    [
        (archive_prologue(version=0), UnsupportedVersion),
        (archive_prologue(version=2), UnsupportedVersion),
        (archive_prologue(version=0x101), UnsupportedVersion),
        (archive_prologue(features=1), UnsupportedVersion),
        (archive_prologue(features=1 << 31), UnsupportedVersion),
        (archive_prologue(reserved=1), UnsupportedVersion),
        (b"\x1aE\xdf\xa3" + bytes(12), BadMagic),
        (b"", Truncated),
        (MAGIC[:5], Truncated),
        (MAGIC, Truncated),
        (b"\x89FLOv", BadMagic),
    ],
)
def test_prologue(read, prologue, error):
    rest = build()[16:] if len(prologue) == 16 else b""
    assert type(refusal(prologue + rest, read)) is error


@both
@pytest.mark.parametrize(
    "transfer",
    [
        lambda data: data.replace(b"\r\n", b"\n"),
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: re.sub(rb"(?<!\r)\n", b"\r\n", data),
        lambda data: data.replace(b"\r", b"\n"),
        lambda data: bytes(byte & 0x7F for byte in data),
        lambda data: data.decode("latin-1").encode("utf-8"),
        lambda data: data.decode("utf-8", "replace").encode("utf-8"),
    ],
)
def test_text_mode_transfer(read, transfer):
    error = refusal(transfer(build()), read)
    assert type(error) is BadMagic
    assert "text mode" in str(error)


# Limits.


def claim(kind: bytes, length: int) -> bytes:
    """An archive that ends in the header of a record with this length."""
    parts = split(build([]))
    before = {HEAD: [], MODEL: parts[:1], CHUNK: parts[:1], INDEX: parts[:1], END: parts[:2]}
    return join(before[kind]) + struct.pack("<4sQ", kind, length) + bytes(100)


@both
@pytest.mark.parametrize("kind", records.LIMITS)
def test_lengths_outside_the_limits(read, kind):
    smallest, largest = records.LIMITS[kind]
    for length in (largest + 1, 1 << 63, (1 << 64) - 1):
        assert type(refusal(claim(kind, length), read)) is LimitExceeded
    for length in {0, smallest - 1}:
        assert type(refusal(claim(kind, length), read)) is FormatError


@both
@pytest.mark.parametrize("kind", [HEAD, MODEL, CHUNK, INDEX])
def test_a_claimed_length_reserves_nothing(read, kind):
    file = io.BytesIO(claim(kind, records.LIMITS[kind][1]))
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            read(file)
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [99, 100, 101])
def test_chunk_sizes_around_the_limit(size, monkeypatch):
    archive = build([(payload(1, size), 1)])
    monkeypatch.setitem(records.LIMITS, CHUNK, (4, 100))
    if size <= 100:
        assert build([(payload(1, size), 1)]) == archive
        assert read_by_index(io.BytesIO(archive))
        assert read_as_stream(io.BytesIO(archive))
        return
    with pytest.raises(LimitExceeded):
        build([(payload(1, size), 1)])
    assert all(type(refusal(archive, read)) is LimitExceeded for read in READERS)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_numbers_of_chunks_around_the_limit(count, monkeypatch):
    chunks = [(payload(1, 8, i), 1) for i in range(count)]
    archive = build(chunks)
    monkeypatch.setattr(ledger, "MAX_CHUNKS", 3)
    if count <= 3:
        assert build(chunks) == archive
        assert read_by_index(io.BytesIO(archive))
        return
    with pytest.raises(LimitExceeded):
        build(chunks)
    assert all(type(refusal(archive, read)) is LimitExceeded for read in READERS)


@pytest.mark.parametrize("size", [999, 1000, 1001])
def test_model_sizes_around_the_limit(size, monkeypatch):
    archive = build(model=bytes(size))
    for module in (records, writer):
        monkeypatch.setattr(module, "MAX_MODEL", 1000)
    if size <= 1000:
        assert build(model=bytes(size)) == archive
        assert Reader(io.BytesIO(archive)).model() == (SHA256, bytes(size))
        return
    with pytest.raises(LimitExceeded):
        build(model=bytes(size))
    assert all(type(refusal(archive, read)) is LimitExceeded for read in READERS)


def test_head_sizes_around_the_limit():
    empty = len(b'{"a":""}')
    for size in ((1 << 20) - 1, 1 << 20):
        head = {"a": "x" * (size - empty)}
        assert Reader(io.BytesIO(build(head=head))).head == head
    with pytest.raises(LimitExceeded):
        build(head={"a": "x" * ((1 << 20) + 1 - empty)})


# HEAD and MODEL.


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "null", "1", '"x"', "{", '{"a":1}{', '{"a":1} ', ' {"a":1}', '{"a": 1}',
        '{"b":1,"a":2}', '{"a":1,"a":1}', '{"a":1.0}', '{"a":1e3}', '{"a":NaN}', '{"a":-0}',
        '{"a":Infinity}', '{"a":9223372036854775808}', '{"a":"\\u0041"}', '{"a":"\\/"}',
        '{"a":"\\u00e9"}', '{"a":"\\ud800"}', '{"a":"\\u001F"}', "\ufeff{}", '{"a":01}',
        '{"a":' + "9" * 5000 + "}", '{"a":' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
    ids=lambda text: text[:20] or "empty",
)  # fmt: skip
def test_head_that_is_not_canonical(text):
    with pytest.raises(FormatError):
        parse_head(text.encode())
    if len(text) >= 2:
        parts = split(build([]))
        parts[0] = (HEAD, text.encode())
        # The index begins where HEAD ends.
        parts[2] = (END, struct.pack("<Q", 32 + len(text.encode())) + parts[2][1][8:])
        assert all(type(refusal(join(parts), read)) is FormatError for read in READERS)


def test_head_that_is_not_utf8():
    with pytest.raises(FormatError):
        parse_head(b'{"a":"\xff"}')


def test_head_that_is_canonical():
    text = '{"":[],"a":{"b":-9223372036854775808},"c":"\\u001f\\"\\\\\\n/é😀","z":[true,null,0]}'
    head = parse_head(text.encode())
    assert head == json.loads(text)
    assert split(build(head=head))[0] == (HEAD, text.encode())


@pytest.mark.parametrize("value", [1.5, float("nan"), 1 << 63, b"x", {1, 2}, "\ud800", object()])
def test_writer_refuses_what_head_cannot_hold(value):
    file = io.BytesIO()
    with pytest.raises(ValueError, match=r"HEAD|number|integer|utf-8"):
        Writer(file, {"a": value})
    assert file.getvalue() == b""


def zstd(data: bytes, **options: object) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)


STREAMED = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(999))


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"\2" + zstd(bytes(999)), FormatError),
        (b"\xff", FormatError),
        (b"\1", FormatError),
        (b"\1not zstd at all", FormatError),
        (b"\1" + zstd(bytes(999))[:-1], FormatError),
        (b"\1" + zstd(bytes(999)) + b"x", FormatError),
        (b"\1" + zstd(bytes(999)) * 2, FormatError),
        (b"\1" + STREAMED, FormatError),
        (b"\1" + zstd(b"incompressible"), FormatError),
        (b"\1" + zstd(bytes((1 << 26) + 1)), LimitExceeded),
        # A frame of 14 bytes that states 64 MiB.
        (b"\1\x28\xb5\x2f\xfd\xa0\0\0\0\x04" + bytes(5), LimitExceeded),
    ],
)
def test_malformed_model(data, error):
    with pytest.raises(error) as caught:
        parse_model(SHA256 + data)
    assert type(caught.value) is error
    parts = split(build(model=b""))
    parts[-3] = (MODEL, SHA256 + data)
    assert all(refusal(join(parts), read) for read in READERS)


def test_largest_model():
    data = zstd(bytes(1 << 26), level=19)
    assert parse_model(SHA256 + b"\1" + data) == (SHA256, bytes(1 << 26))


def test_the_law_itself_can_fail():
    def careless(file):
        return file.read(0)

    with pytest.raises(AssertionError, match="taken as whole"):
        check_container(build(), [careless])
    with pytest.raises(AssertionError, match="flips unnoticed"):
        check_container(build(), [careless], cuts=[])
    with pytest.raises(AssertionError, match="was asked for"):
        SuspiciousFile(b"x").read(1 << 30)
