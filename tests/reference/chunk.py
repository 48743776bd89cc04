"""Section "CHUNK": the fields of one chunk."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from reference.refusal import demand

MAX_FRAMES = 65536
MAX_BITS = 2**48
MODEL, ZSTD, RAW, PIXELS = 0, 1, 2, 3
NONE, ALL, SOME, EVEN = 0, 1, 2, 3
PLAIN, IN_COLUMNS = 1, 2


@dataclass
class Chunk:
    """The fields of one chunk.

    An account is None, or seed, peak and for each frame (integer, popped, pushed, ideal).
    A constant that is None belongs to a plane in `payload`, a table that is None to one whose
    samples are coded themselves.
    """

    frame_count: int
    coding: int
    bits: int
    lanes: int
    constants: list[int | None]
    tables: list[list[int] | None]
    pts: list[int | None]
    digest: bytes
    digests: list[bytes]
    account: tuple[int, int, list[tuple[int, int, int, int]]] | None
    payload: bytes


class Cursor:
    """Takes bytes from the front of a payload."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        demand(self.position + size <= len(self.data), "the chunk ends early", "Truncated")
        self.position += size
        return self.data[self.position - size : self.position]

    def varint(self) -> int:
        """The next varint."""
        value = 0
        for i in range(10):
            (byte,) = self.take(1)
            value |= (byte & 127) << 7 * i
            if byte < 128:
                demand(byte > 0 or i == 0, "a varint that is too long")
                return value
        demand(False, "a varint of more than 10 bytes")
        raise AssertionError


def read_chunk(payload: bytes) -> Chunk:
    """Read and check the fields of one chunk."""
    cursor = Cursor(payload)
    frame_count, coding, bits, lanes, size = struct.unpack("<IBBHI", cursor.take(12))
    plane_count, mask, pts_kind, digest_size = cursor.take(4)
    demand(frame_count >= 1, "frame_count")
    demand(frame_count <= MAX_FRAMES, "frame_count", "LimitExceeded")
    demand(coding in (MODEL, ZSTD, RAW, PIXELS), "coding")
    demand(8 <= bits <= 16, "bits")
    if coding == MODEL:
        demand(lanes in [2**i for i in range(11)], "lanes")
    else:
        demand(lanes == 0, "lanes")
    demand(1 <= plane_count <= 8, "plane_count")
    demand(mask < 2**plane_count, "constant_mask")
    pts_kind, has_tables, account_kind = pts_kind % 4, pts_kind % 8 >= 4, pts_kind // 8
    demand(account_kind in (0, PLAIN, IN_COLUMNS), "pts_kind")
    demand(digest_size <= 16, "digest_size")
    constants: list[int | None] = [None] * plane_count
    for plane in range(plane_count):
        if mask >> plane & 1:
            (value,) = struct.unpack("<H", cursor.take(2))
            demand(value < 2**bits or has_tables, "constants")
            constants[plane] = value
    tables: list[list[int] | None] = [None] * plane_count
    if has_tables:
        demand(coding in (MODEL, PIXELS), "tables of stored samples")
        (table_mask,) = cursor.take(1)
        demand(0 < table_mask < 2**plane_count and not table_mask & mask, "table_mask")
        for plane in range(plane_count):
            if table_mask >> plane & 1:
                tables[plane] = read_table(cursor, bits)
    pts = read_pts(cursor, frame_count, pts_kind)
    digest = cursor.take(16)
    digests = [cursor.take(digest_size) for _ in range(frame_count)]
    account = None
    if account_kind:
        demand(coding == MODEL, "an account without a model")
        account = read_account(cursor, frame_count, account_kind)
    data = cursor.take(size)
    demand(cursor.position == len(payload), "bytes after the chunk")
    return Chunk(
        frame_count, coding, bits, lanes, constants, tables, pts, digest, digests, account, data
    )


def read_table(cursor: Cursor, bits: int) -> list[int]:
    """Section "tables": the values of one plane."""
    (size,) = struct.unpack("<H", cursor.take(2))
    demand(size < 2**bits, "a table that is too large")
    values = []
    last = -1
    for _ in range(size + 1):
        last += cursor.varint() + 1
        values.append(last)
    return values


def read_account(
    cursor: Cursor, frame_count: int, account_kind: int
) -> tuple[int, int, list[tuple[int, int, int, int]]]:
    """Section "account"."""
    seed, peak = cursor.varint(), cursor.varint()
    frames = []
    if account_kind == PLAIN:
        for _ in range(frame_count):
            integer, popped, pushed = cursor.varint(), cursor.varint(), cursor.varint()
            ideal = integer + pushed - popped - unzigzag(cursor.varint())
            frames.append((integer, popped, pushed, ideal))
    else:
        for integer, popped, growth, overhead in zip(
            *read_columns(cursor, frame_count), strict=True
        ):
            frames.append((integer, popped, growth + popped - integer, growth - overhead))
    numbers = [seed, peak, *(number for frame in frames for number in frame)]
    demand(all(0 <= number < MAX_BITS for number in numbers), "bits of an account")
    demand(peak <= seed, "peak")
    demand(any(popped for _, popped, _, _ in frames), "an account without bits-back")
    return seed, peak, frames


def read_columns(cursor: Cursor, rows: int) -> list[list[int]]:
    """Section "account": the four columns."""
    bits: list[int] = []

    def take(count: int) -> int:
        while len(bits) < count:
            (byte,) = cursor.take(1)
            bits.extend(byte >> i & 1 for i in range(8))
        taken = [bits.pop(0) for _ in range(count)]
        return sum(bit << i for i, bit in enumerate(taken))

    columns = []
    for _ in range(4):
        order = take(6)
        numbers = []
        for _ in range(rows):
            ones = 0
            while take(1):
                ones += 1
                demand(ones <= 64, "a number of a column")
            numbers.append(2 ** (order + ones) + take(order + ones) - 2**order)

        def length(k: int, numbers: list[int] = numbers) -> int:
            return sum(2 * (number + 2**k).bit_length() - k - 1 for number in numbers)

        demand(all(length(order) < length(k) for k in range(order)), "the order of a column")
        demand(all(length(order) <= length(k) for k in range(64)), "the order of a column")
        column = [unzigzag(numbers[0])]
        for number in numbers[1:]:
            column.append(column[-1] + unzigzag(number))
        columns.append(column)
    demand(not any(bits), "bits after the columns")
    return columns


def unzigzag(number: int) -> int:
    """The signed number that a zigzag number stands for."""
    return number // 2 if number % 2 == 0 else -(number // 2) - 1


def read_pts(cursor: Cursor, frame_count: int, pts_kind: int) -> list[int | None]:
    """Section "pts"."""
    has = [pts_kind != NONE] * frame_count
    if pts_kind == SOME:
        mask = int.from_bytes(cursor.take(-(-frame_count // 8)), "little")
        demand(0 < mask < 2**frame_count - 1, "pts_mask")
        has = [bool(mask >> f & 1) for f in range(frame_count)]
    count = sum(has)
    if pts_kind == EVEN:
        demand(count >= 3, "EVEN with fewer than three frames")
        numbers = [cursor.varint(), cursor.varint()] + [0] * (count - 2)
    else:
        numbers = [cursor.varint() for _ in range(count)]
    if pts_kind == ALL:
        demand(count < 3 or any(numbers[2:]), "ALL where EVEN could be")
    times: list[int] = []
    step = 0
    for i, number in enumerate(numbers):
        signed = unzigzag(number)
        # p(0), then the first difference, then differences of differences.
        if i == 0:
            times.append(signed)
        else:
            step = signed if i == 1 else step + signed
            times.append(times[-1] + step)
        demand(-(2**63) < times[-1] < 2**63, "a timestamp out of range")
    rest = iter(times)
    return [next(rest) if present else None for present in has]
