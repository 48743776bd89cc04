"""What a CHUNK record holds: its frames' timestamps and hashes, and the coded planes.

    frame_count coding bits lanes size ... | constants | tables | pts | digest | digests
    | account | payload

The layout is docs/format.md, section "CHUNK". There is one encoding of any chunk and every other
is refused, so `Chunk.from_bytes(b).to_bytes() == b`; accounts of old chunks alone are rewritten.
This module knows nothing of files, nor how a payload of coding `MODEL` is made.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import accumulate, pairwise

import zstandard

from flowarchive import columns
from flowarchive.account import FrameBits, Statement
from flowarchive.errors import FormatError, LimitExceeded, Truncated

__all__ = ["FRONT_SIZE", "Chunk", "Coding", "combine_digests", "has_account", "store_planes"]

MAX_FRAMES = 1 << 16
MAX_PLANES = 8
MAX_LANES = 1 << 10
MAX_PAYLOAD = 1 << 30
"""Bytes of a payload, and of a stored chunk's planes before compression."""

DIGEST_SIZE = 16
PTS_LIMIT = 1 << 63

_HEADER = struct.Struct("<IBBHIBBBB")
FRONT_SIZE = _HEADER.size
"""Bytes at the front of a chunk that `has_account` looks at."""

_PTS_NONE, _PTS_ALL, _PTS_SOME, _PTS_EVEN = 0, 1, 2, 3
# Set beside the kind of timestamps where these follow.
_TABLES = 4
_PLAIN_ACCOUNT = 8  # of revisions 3 and 4
_ACCOUNT = 16
_ACCOUNT_COLUMNS = 4
_HOPE = 1.5  # how much smaller the slow compressor may make what the quick one made
# Second differences of 64-bit numbers have 66 bits with their sign; ten groups of seven hold them.
_VARINT_BYTES = 10
# A zstd block is at least 4 bytes and holds at most 128 KiB.
_ZSTD_BEST_RATIO = 1 << 15


class Coding(IntEnum):
    """How a chunk's payload is coded."""

    MODEL = 0
    ZSTD = 1
    RAW = 2
    PIXELS = 3


@dataclass(frozen=True)
class Chunk:
    """A group of frames that decodes without any other.

    Attributes:
        coding: A `Coding`: 0 model, 1 zstd, 2 raw, 3 pixels.
        frame_count: Frames, 1..65536.
        pts: Each frame's timestamp in ticks, -2**63 < pts < 2**63, None where it has none.
        digest: BLAKE2b-128 of all frames' digests, whole, one after the other.
        digests: Each frame's `Frame.digest`, cut to 0..16 bytes, the same for all: small frames
            cannot carry 16 bytes each without growing.
        constants: For each of 1..8 planes, the value of all its samples if they are all the same
            in the whole chunk, otherwise None.
        tables: For each plane None, or the values its samples have in the chunk, ascending, each
            below 2**16: places in the table are coded. All None where `coding` is `ZSTD` or `RAW`.
        account: Where the bits of a message come from, if bits-back has coded any of its frames.
        bits: Every sample, or place in a table, is below 2**bits, 8..16.
        lanes: Lanes of the message, a power of two, 1..1024; 0 unless `coding` is `MODEL`.
        payload: The planes that are not constant, coded.

    Raises:
        ValueError: A field is out of its range.
        LimitExceeded: There are more frames than `MAX_FRAMES` or more bytes than `MAX_PAYLOAD`.
    """

    coding: int
    frame_count: int
    pts: tuple[int | None, ...] = field(repr=False)
    digest: bytes = field(repr=False)
    digests: tuple[bytes, ...] = field(repr=False)
    constants: tuple[int | None, ...]
    bits: int
    lanes: int
    payload: bytes = field(repr=False)
    tables: tuple[tuple[int, ...] | None, ...] = field(default=(), repr=False)
    account: Statement | None = None

    def __post_init__(self) -> None:
        if self.frame_count > MAX_FRAMES:
            raise LimitExceeded(f"a chunk of {self.frame_count} frames, more than {MAX_FRAMES}")
        if len(self.payload) > MAX_PAYLOAD:
            raise LimitExceeded(f"a payload of {len(self.payload)} bytes, more than {MAX_PAYLOAD}")
        for wrong, what in (
            (self.coding not in tuple(Coding), f"coding {self.coding}"),
            (self.frame_count < 1, f"{self.frame_count} frames"),
            (len(self.pts) != self.frame_count, f"{len(self.pts)} timestamps"),
            (len(self.digests) != self.frame_count, f"{len(self.digests)} digests"),
            (len(self.digest) != DIGEST_SIZE, "a digest of another length"),
            (len({len(d) for d in self.digests}) > 1, "digests of several lengths"),
            (any(len(d) > DIGEST_SIZE for d in self.digests), "a digest of another length"),
            (not 1 <= len(self.constants) <= MAX_PLANES, f"{len(self.constants)} planes"),
            (not 8 <= self.bits <= 16, f"{self.bits} bits"),
            (not self._lanes_fit(), f"{self.lanes} lanes with coding {self.coding}"),
            (
                any(not -PTS_LIMIT < p < PTS_LIMIT for p in _present(self.pts)),
                "a timestamp out of range",
            ),
            (
                any(not 0 <= c < self._limit for c in _present(self.constants)),
                "a constant out of range",
            ),
            (not self._tables_fit(), "such tables"),
            (not self._account_fits(), "such an account"),
        ):
            if wrong:
                raise ValueError(f"a chunk cannot have {what}")

    @property
    def is_stored(self) -> bool:
        """Whether the payload is the planes themselves, as they are or with zstd."""
        return self.coding in (Coding.ZSTD, Coding.RAW)

    def _lanes_fit(self) -> bool:
        if self.coding != Coding.MODEL:
            return self.lanes == 0
        return 1 <= self.lanes <= MAX_LANES and self.lanes.bit_count() == 1

    @property
    def _limit(self) -> int:
        """What constants stay below; tables take bits away that a constant may need."""
        return 1 << (16 if any(self.tables) else self.bits)

    def _tables_fit(self) -> bool:
        if not self.tables:
            return True
        if len(self.tables) != len(self.constants) or self.is_stored:
            return False
        return any(self.tables) and all(
            table is None
            or (constant is None and 0 < len(table) <= 1 << self.bits and _ascends(table))
            for table, constant in zip(self.tables, self.constants, strict=True)
        )

    def _account_fits(self) -> bool:
        if self.account is None:
            return True
        return self.coding == Coding.MODEL and len(self.account.frames) == self.frame_count

    def to_bytes(self) -> bytes:
        """Return the payload of this chunk's CHUNK record."""
        numbers = list(_second_differences(_present(self.pts)))
        kind = _PTS_SOME
        if not numbers:
            kind = _PTS_NONE
        elif len(numbers) == self.frame_count:
            kind = _PTS_EVEN if len(numbers) > 2 and not any(numbers[2:]) else _PTS_ALL
        if kind == _PTS_EVEN:
            del numbers[2:]
        parts = [
            _HEADER.pack(
                self.frame_count,
                self.coding,
                self.bits,
                self.lanes,
                len(self.payload),
                len(self.constants),
                _mask(self.constants),
                kind | _TABLES * bool(self.tables) | _ACCOUNT * (self.account is not None),
                len(self.digests[0]),
            ),
            *(struct.pack("<H", value) for value in _present(self.constants)),
        ]
        if self.tables:
            parts.append(bytes([_mask(self.tables)]))
        for table in filter(None, self.tables):
            parts.append(struct.pack("<H", len(table) - 1))
            parts += (_groups(b - a - 1) for a, b in pairwise((-1, *table)))
        if kind == _PTS_SOME:
            parts.append(_mask(self.pts).to_bytes(-(-self.frame_count // 8), "little"))
        parts += map(_varint, numbers)
        parts.append(self.digest)
        parts += self.digests
        if self.account is not None:
            parts += (_groups(bits) for bits in (self.account.seed, self.account.peak))
            rows = [(f.integer, f.popped, f.net, f.overhead) for f in self.account.frames]
            parts.append(columns.pack(list(zip(*rows, strict=True))))
        parts.append(self.payload)
        return b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes) -> Chunk:
        """Read what `to_bytes` wrote.

        Raises:
            FormatError: The bytes are not the one encoding of a chunk.
        """
        cursor = _Cursor(data)
        frames, coding, bits, lanes, size, planes, constant_mask, kind, digest_size = (
            _HEADER.unpack(cursor.take(_HEADER.size))
        )
        if frames > MAX_FRAMES:
            raise LimitExceeded(f"the chunk claims {frames} frames, more than {MAX_FRAMES}")
        has_tables, accounts = kind & _TABLES, kind & (_ACCOUNT | _PLAIN_ACCOUNT)
        kind &= ~(_TABLES | accounts)
        if (
            constant_mask >> planes
            or kind > _PTS_EVEN
            or accounts == _ACCOUNT | _PLAIN_ACCOUNT
            or digest_size > DIGEST_SIZE
        ):
            raise FormatError("the chunk's header is malformed")
        constants = tuple(
            int.from_bytes(cursor.take(2), "little") if constant_mask >> p & 1 else None
            for p in range(planes)
        )
        tables: tuple[tuple[int, ...] | None, ...] = ()
        if has_tables:
            table_mask = cursor.take(1)[0]
            if table_mask >> planes or not table_mask:
                raise FormatError("the chunk's tables are malformed")
            tables = tuple(cursor.table() if table_mask >> p & 1 else None for p in range(planes))
        everyone = (1 << frames) - 1
        pts_mask = everyone if kind in (_PTS_ALL, _PTS_EVEN) else 0
        if kind == _PTS_SOME:
            pts_mask = int.from_bytes(cursor.take(-(-frames // 8)), "little")
            if not 0 < pts_mask < everyone:
                raise FormatError("the chunk's pts_mask is malformed")
        present = bin(pts_mask)[2:].zfill(frames)[::-1]
        count = pts_mask.bit_count()
        numbers = [cursor.varint() for _ in range(2 if kind == _PTS_EVEN else count)]
        if kind == _PTS_EVEN:
            numbers += [0] * (count - 2)
        elif kind == _PTS_ALL and count > 2 and not any(numbers[2:]):
            raise FormatError("even timestamps of a chunk are not coded as such")
        if kind == _PTS_EVEN and count < 3:
            raise FormatError("too few timestamps of a chunk are called even")
        times = _sums(numbers)
        pts = tuple(next(times) if bit == "1" else None for bit in present)
        digest = cursor.take(DIGEST_SIZE)
        digests = tuple(cursor.take(digest_size) for _ in range(frames))
        try:
            account = None
            if accounts:
                account = cursor.account(frames, plain=accounts == _PLAIN_ACCOUNT)
            payload = cursor.take(size)
            cursor.finish()
            return cls(
                coding,
                frames,
                pts,
                digest,
                digests,
                constants,
                bits,
                lanes,
                payload,
                tables,
                account,
            )
        except ValueError as error:
            raise FormatError(str(error)) from None

    def stored_planes(self, size: int) -> bytes:
        """Return the samples of a chunk whose coding is ZSTD or RAW.

        Args:
            size: Bytes that the planes which are not constant take in all frames.

        Returns:
            For each frame each plane that is not constant, row by row, little-endian.

        Raises:
            FormatError: The payload does not hold exactly `size` bytes.
            LimitExceeded: `size` is above `MAX_PAYLOAD`.
            ValueError: The coding is another.
        """
        if not self.is_stored:
            raise ValueError("the chunk is not stored")
        if size > MAX_PAYLOAD:
            raise LimitExceeded(f"a stored chunk of {size} bytes, more than {MAX_PAYLOAD}")
        if self.coding == Coding.RAW:
            if len(self.payload) != size:
                raise FormatError(f"the planes have {len(self.payload)} bytes, not {size}")
            return self.payload
        try:
            # The size is checked before the decompressor reserves it.
            largest = _ZSTD_BEST_RATIO * len(self.payload)
            stated = zstandard.get_frame_parameters(self.payload).content_size
            if stated != size or not len(self.payload) < size <= largest:
                raise FormatError(f"the planes' zstd frame states {stated} bytes, not {size}")
            return zstandard.ZstdDecompressor().decompress(self.payload, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise FormatError(f"the planes do not decompress: {error}") from None


def has_account(front: bytes) -> bool:
    """Return whether a chunk that begins with these `FRONT_SIZE` bytes says it has an account."""
    return bool(_HEADER.unpack(front)[7] & (_ACCOUNT | _PLAIN_ACCOUNT))


def combine_digests(digests: Iterable[bytes]) -> bytes:
    """Return a chunk's `digest` for its frames' digests of 16 bytes each."""
    return hashlib.blake2b(b"".join(digests), digest_size=DIGEST_SIZE).digest()


def store_planes(planes: bytes, wanted: int | None = None) -> tuple[Coding, bytes]:
    """Return coding and payload of a chunk that is stored without a model.

    Args:
        planes: For each frame each plane that is not constant, row by row, little-endian.
        wanted: A payload of fewer bytes is wanted; where a quick look finds no hope of that, the
            planes are returned as they are.

    Raises:
        LimitExceeded: There are more than `MAX_PAYLOAD` bytes.
    """
    if len(planes) > MAX_PAYLOAD:
        raise LimitExceeded(f"a stored chunk of {len(planes)} bytes, more than {MAX_PAYLOAD}")
    if wanted is not None and _quick_size(planes) > _HOPE * wanted:
        return Coding.RAW, planes
    packed = zstandard.ZstdCompressor(level=9).compress(planes)
    return (Coding.ZSTD, packed) if len(packed) < len(planes) else (Coding.RAW, planes)


def _quick_size(planes: bytes) -> int:
    return len(zstandard.ZstdCompressor(level=1).compress(planes))


class _Cursor:
    """Takes fields from the front of some bytes, and never more than there are."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, count: int) -> bytes:
        piece = self._data[self._position : self._position + count]
        if len(piece) < count:
            raise Truncated("the chunk ends early")
        self._position += count
        return piece

    def varint(self) -> int:
        value = self.groups()
        return value >> 1 ^ -(value & 1)

    def groups(self) -> int:
        value = 0
        for i in range(_VARINT_BYTES):
            byte = self.take(1)[0]
            value |= (byte & 127) << 7 * i
            if byte < 128:
                if i and not byte:
                    raise FormatError("a varint of the chunk is longer than it need be")
                return value
        raise FormatError("a varint of the chunk has no end")

    def table(self) -> tuple[int, ...]:
        count = int.from_bytes(self.take(2), "little") + 1
        gaps = (self.groups() + 1 for _ in range(count))
        return tuple(accumulate(gaps, initial=-1))[1:]

    def account(self, frames: int, *, plain: bool) -> Statement:
        seed, peak = self.groups(), self.groups()
        rows = (self.plain_bits() for _ in range(frames)) if plain else self.bits(frames)
        return Statement(
            seed,
            peak,
            tuple(
                FrameBits(integer, popped, net + popped - integer, net - overhead)
                for integer, popped, net, overhead in rows
            ),
        )

    def bits(self, frames: int) -> Iterator[tuple[int, ...]]:
        """What frames pushed by the integer family, popped, grew by, and spent beyond the ideal."""
        rest = memoryview(self._data)[self._position :]
        whole, size = columns.unpack(rest, _ACCOUNT_COLUMNS, frames)
        self._position += size
        return zip(*whole, strict=True)

    def plain_bits(self) -> tuple[int, ...]:
        integer, popped, pushed = self.groups(), self.groups(), self.groups()
        return integer, popped, integer + pushed - popped, self.varint()

    def finish(self) -> None:
        if self._position < len(self._data):
            raise FormatError("bytes follow the chunk's payload")


def _ascends(table: tuple[int, ...]) -> bool:
    """Whether a table's values ascend from 0 or more to below 2**16."""
    return table[0] >= 0 and table[-1] < 1 << 16 and all(a < b for a, b in pairwise(table))


def _present(values: Iterable[int | None]) -> Iterator[int]:
    return (value for value in values if value is not None)


def _mask(values: tuple[object, ...]) -> int:
    """Return the integer whose bit i is set where values[i] is not None."""
    bits = "".join("0" if value is None else "1" for value in values)
    return int(bits[::-1], 2)


def _varint(value: int) -> bytes:
    """Return a signed number as zigzag groups of seven bits, the lowest first."""
    return _groups(2 * value if value >= 0 else -2 * value - 1)


def _groups(value: int) -> bytes:
    """Return a number that is not negative as groups of seven bits, the lowest first."""
    groups = bytearray()
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _second_differences(values: Iterable[int]) -> Iterator[int]:
    """Yield the first value, the first difference, then differences of differences."""
    last = step = 0
    for i, value in enumerate(values):
        yield value - last - step
        # The first value is no step: the clock may start anywhere.
        step = value - last if i else 0
        last = value


def _sums(differences: Iterable[int]) -> Iterator[int]:
    """Undo `_second_differences`."""
    value = step = 0
    for i, difference in enumerate(differences):
        step += difference
        value += step
        yield value
        step = step if i else 0
