"""Write the golden archives that are missing; one that is there is never written again.

    accept/NAME.flow            an archive
    accept/NAME.json            what it holds: pts and the SHA-256 of every plane of every frame
    reject/ERROR-WHAT.flow      a damaged archive, and the error that it must be refused with

ACCEPT and REJECT name all of them. A new format version gets new names; old files stay.
"""

from __future__ import annotations

import hashlib
import json
import struct
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import tiny
import zstandard
from container_laws import archive_prologue as prologue
from container_laws import flip, join, split

import flowarchive
from flowarchive.chunk import Chunk
from flowarchive.frames import Frame
from flowarchive.models import chain, form, video

GOLDEN = Path(__file__).resolve().parent / "golden"
ACCEPT = {**tiny.CASES, **tiny.VIDEO_CASES, **tiny.CHAIN_CASES, **tiny.PIXEL_CASES}
# The archives that are damaged to make those of REJECT, VIDEO_REJECT and CHAIN_REJECT; others
# stand beside what damages them.
BASE = "gray"
VIDEO_BASE = "video-tables"
CHAIN_BASE = "chain-cuts"

Parts = list[tuple[bytes, bytes]]


def sample_hashes(planes: Iterable[list[list[int]]]) -> list[str]:
    """SHA-256 of each plane: its samples row by row, two little-endian bytes each."""
    hashes = []
    for rows in planes:
        data = b"".join(struct.pack(f"<{len(row)}H", *row) for row in rows)
        hashes.append(hashlib.sha256(data).hexdigest())
    return hashes


def describe(frames: Iterable[Frame], settings: dict[str, int]) -> dict[str, Any]:
    """What the JSON beside an archive says; `settings` are those of `tiny.Case`."""
    facts = [
        {"pts": frame.pts, "sha256": sample_hashes(plane.tolist() for plane in frame.planes)}
        for frame in frames
    ]
    return {"settings": settings, "frames": facts}


def make_accept(name: str, folder: Path) -> None:
    """Write one archive and its description."""
    case = ACCEPT[name]
    with tempfile.TemporaryDirectory() as scratch:
        model: str | Path = case.shipped
        if not case.shipped:
            model = case.write_model(Path(scratch) / "tiny.safetensors", len(name))
        archive = tiny.pack_case(case, model, Path(scratch) / "new.flow").read_bytes()
    description = describe(case.make_frames(), case.settings)
    (folder / f"{name}.json").write_text(json.dumps(description, indent=1) + "\n")
    (folder / f"{name}.flow").write_bytes(archive)


def rejoin(parts: Parts) -> bytes:
    """An archive of these records whose offsets, counts and checksums are right."""
    offset, index, entries, first, chunks = 16, struct.pack("<QI", 0, 0), b"", 0, 0
    parts = [(kind, data) for kind, data in parts if kind not in (b"INDX", b"END ")]
    for kind, data in parts:
        # `join` has the checksums; a record's is the same wherever it stands.
        (crc,) = struct.unpack("<I", join([(kind, data)])[-4:])
        if kind == b"MODL":
            index = struct.pack("<QI", offset, crc)
        if kind == b"CHNK":
            (frames,) = struct.unpack_from("<I", data)
            entries += struct.pack("<QQII", offset, first, frames, crc)
            first, chunks = first + frames, chunks + 1
        offset += 16 + len(data)
    end = struct.pack("<QQI16x", offset, first, chunks)
    return join([*parts, (b"INDX", index + entries), (b"END ", end)])


def edit(kind: bytes, change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """A damage to the payload of the records of one type, with everything else put right."""

    def damage(archive: bytes) -> bytes:
        return rejoin([(k, change(data) if k == kind else data) for k, data in split(archive)])

    return damage


def chunk_field(offset: int, code: str, value: int) -> Callable[[bytes], bytes]:
    """A damage to one of the fields at the front of a chunk."""

    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        struct.pack_into(f"<{code}", changed, offset, value)
        return bytes(changed)

    return edit(b"CHNK", change)


def message(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """A damage to the message of the chunk, which is its end."""

    def in_chunk(data: bytes) -> bytes:
        (size,) = struct.unpack_from("<I", data, 8)
        changed = change(data[-size:])
        return data[:8] + struct.pack("<I", len(changed)) + data[12:-size] + changed

    return edit(b"CHNK", in_chunk)


def head_text(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """A damage to the text of HEAD."""

    def change(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new)

    return edit(b"HEAD", change)


def other_model(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Another model file with its own fingerprint in MODEL and in HEAD."""

    def damage(archive: bytes) -> bytes:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "base.flow"
            path.write_bytes(archive)
            with flowarchive.open(path) as opened:
                old, model = opened.container.model() or (b"", b"")
        changed = change(model)
        new = hashlib.sha256(changed).digest()
        packed = zstandard.compress(changed)
        stored = b"\1" + packed if len(packed) < len(changed) else b"\0" + changed
        parts = []
        for kind, data in split(archive):
            if kind == b"HEAD":
                data = data.replace(old.hex().encode(), new.hex().encode())
            parts.append((kind, new + stored if kind == b"MODL" else data))
        return rejoin(parts)

    return damage


def set_tensor(name: str, data: bytes) -> Callable[[bytes], bytes]:
    """A model file whose tensor begins with other bytes."""

    def change(model: bytes) -> bytes:
        (length,) = struct.unpack_from("<Q", model)
        start = 8 + length + json.loads(model[8 : 8 + length])[name]["data_offsets"][0]
        return model[:start] + data + model[start + len(data) :]

    return change


def without(kind: bytes, archive: bytes) -> Parts:
    """The records but those of one type."""
    return [part for part in split(archive) if part[0] != kind]


def break_crc(kind: bytes) -> Callable[[bytes], bytes]:
    """Flip a bit in the middle of a record."""

    def damage(archive: bytes) -> bytes:
        position = 16
        for found, data in split(archive):
            if found == kind:
                return flip(archive, position + 12 + len(data) // 2)
            position += 16 + len(data)
        raise AssertionError(kind)

    return damage


BIAS = "luma.levels.0.couplings.0.conditioner.linear.translation.bias"
# ERROR-WHAT: makes the damaged archive of a sound one.
REJECT: dict[str, Callable[[bytes], bytes]] = {
    "BadMagic-text-mode": lambda a: a.replace(b"\r\n", b"\n"),
    "BadMagic-seven-bits": lambda a: bytes(byte & 127 for byte in a),
    "BadMagic-another-file": lambda a: b"\x89PNG\r\n\x1a\n" + a[8:],
    "UnsupportedVersion-2": lambda a: prologue(version=2) + a[16:],
    "UnsupportedVersion-feature": lambda a: prologue(features=1 << 31) + a[16:],
    "UnsupportedVersion-reserved": lambda a: prologue(reserved=1) + a[16:],
    "UnsupportedVersion-first-record": lambda a: join([(b"LATE", b"{}"), *split(a)]),
    "Truncated-empty": lambda a: b"",
    "Truncated-in-magic": lambda a: a[:5],
    "Truncated-in-half": lambda a: a[: len(a) // 2],
    "Truncated-last-byte": lambda a: a[:-1],
    "Truncated-chunk": edit(b"CHNK", lambda data: data[:20]),
    "TrailingData-a-byte": lambda a: a + b"\n",
    "TrailingData-twice": lambda a: a + a,
    "ChecksumMismatch-head": break_crc(b"HEAD"),
    "ChecksumMismatch-model": break_crc(b"MODL"),
    "ChecksumMismatch-chunk": break_crc(b"CHNK"),
    "ChecksumMismatch-index": break_crc(b"INDX"),
    "ChecksumMismatch-end": lambda a: flip(a, len(a) - 5),
    # The digest of the chunk stands before the message, and no frame has one of its own.
    "ChecksumMismatch-digest": edit(b"CHNK", lambda data: flip(data, 19)),
    "LimitExceeded-record-length": lambda a: a[:20] + struct.pack("<Q", 1 << 40) + a[28:],
    "LimitExceeded-frames": chunk_field(0, "I", 65537),
    "FormatError-no-head": lambda a: rejoin(without(b"HEAD", a)),
    "FormatError-two-heads": lambda a: rejoin([split(a)[0], *split(a)]),
    "FormatError-head-with-space": head_text(b'"width":9', b'"width": 9'),
    "FormatError-head-with-fraction": head_text(b'"chunk_frames":', b'"a":0.5,"chunk_frames":'),
    "FormatError-end-counts": lambda a: join(
        [(k, flip(data, 8) if k == b"END " else data) for k, data in split(a)]
    ),
    "FormatError-index-offset": lambda a: join(
        [(k, flip(data, 12) if k == b"INDX" else data) for k, data in split(a)]
    ),
    "FormatError-no-frames": chunk_field(0, "I", 0),
    "FormatError-coding": chunk_field(4, "B", 3),
    "FormatError-bits": chunk_field(5, "B", 17),
    "FormatError-lanes": chunk_field(6, "H", 3),
    "FormatError-planes": chunk_field(12, "B", 2),
    "FormatError-constant-mask": chunk_field(13, "B", 2),
    "FormatError-pts-kind": chunk_field(14, "B", 4),
    "FormatError-pts-all-for-even": edit(
        b"CHNK", lambda data: data[:14] + b"\1" + data[15:18] + b"\0" + data[18:]
    ),
    "FormatError-digest-size": chunk_field(15, "B", 17),
    "FormatError-bytes-after-chunk": edit(b"CHNK", lambda data: data + b"\0"),
    "FormatError-bits-left-over": message(lambda data: data[:8] + b"\1\2\3\4" + data[8:]),
    "UnsupportedFormat-pix-fmt": head_text(b'"gray"', b'"bayer"'),
    "UnsupportedFormat-no-width": head_text(b',"width":9', b""),
    "UnsupportedFormat-color-range": head_text(b'"color_range":0', b'"color_range":-1'),
    "UnsupportedFormat-rate": head_text(b'"rate":null', b'"rate":[0,1]'),
    "UnsupportedFormat-unreduced": head_text(b'"time_base":[1,25]', b'"time_base":[2,50]'),
    "FormatError-fingerprint-in-capitals": head_text(b'"sha256":"', b'"sha256":"A'),
    "FormatError-bits-above-depth": chunk_field(5, "B", 9),
    "FingerprintMismatch-model-record": edit(b"MODL", lambda data: flip(data, 3)),
    "MessageExhausted": message(lambda data: data[:8] + data[12:]),
    "CodingError-length": message(lambda data: data[:-1]),
    "CodingError-head": message(lambda data: data[:7] + b"\xff" + data[8:]),
    "ModelNotFound": lambda a: rejoin(without(b"MODL", a)),
    "FingerprintMismatch": edit(b"MODL", lambda data: data[:32] + b"\0another model"),
    "ModelError-no-model": other_model(lambda model: b"another model"),
    "ModelError-missing-tensor": other_model(
        lambda model: model.replace(b"translation.bias", b"translation.bia5", 1)
    ),
    "NotReproducible-large-bias": other_model(set_tensor(BIAS, struct.pack("<i", 1 << 24))),
}


def config_text(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """A model file whose header says something else, of the same length."""

    def change(model: bytes) -> bytes:
        assert old in model
        assert len(old) == len(new)
        return model.replace(old, new, 1)

    return change


def first_step(step: bytes) -> Callable[[bytes], bytes]:
    """A damage to the first of the tables' steps; tables begin with the mask at byte 16."""
    return edit(b"CHNK", lambda data: data[:19] + step + data[19 + table_step(data) :])


def table_step(data: bytes) -> int:
    """How many bytes the first step of the first table has."""
    return next(i for i in range(10) if data[19 + i] < 128) + 1


VIDEO_REJECT: dict[str, Callable[[bytes], bytes]] = {
    "FormatError-table-mask-of-none": chunk_field(16, "B", 0),
    "FormatError-table-mask-of-a-fourth-plane": chunk_field(16, "B", 15),
    "FormatError-table-size": chunk_field(17, "H", 256),
    "FormatError-table-beyond-depth": first_step(b"\xff\x7f"),
    "FormatError-table-step-padded": first_step(b"\x80\x00"),
    "FormatError-table-step-endless": first_step(b"\xff" * 10),
    "FormatError-tables-without-model": chunk_field(4, "I", 0x0802),
    "ModelError-kind": other_model(config_text(b'"kind":"video"', b'"kind":"vidi0"')),
    "ModelError-width-0": other_model(config_text(b'\\"width\\":2', b'\\"width\\":0')),
    "ModelError-blocks-too-many": other_model(
        config_text(b'\\"blocks\\":1,\\"width', b'\\"blocks\\":17,\\"widt')
    ),
    "ModelError-filter": other_model(set_tensor("luma_filters", struct.pack("<h", -(1 << 15)))),
    "ModelError-video-shift": other_model(
        set_tensor("nets.intra_luma.0.begin.shift", struct.pack("<b", 25))
    ),
    "NotReproducible-video": other_model(
        set_tensor("nets.inter_chroma.2.heads.0.bias", struct.pack("<i", 1 << 24))
    ),
}


# Of an archive that plain Python decodes sooner.
WALK_BASE = "video-cuts"
WALK_REJECT: dict[str, Callable[[bytes], bytes]] = {
    "FormatError-video-bits-left-over": message(lambda data: data[:8] + b"\1\2\3\4" + data[8:]),
    "MessageExhausted-video": message(lambda data: data[:8] + data[12:]),
    "FormatError-video-shift": lambda _: with_front([1]),
    "FormatError-video-near-shift": lambda _: with_front([15, 1]),
    "FormatError-video-near-twice": lambda _: with_front([15, 15]),
    "FormatError-video-light-shift": lambda _: with_front([14, 1]),
    "FormatError-video-light-then-near": lambda _: with_front([14, 15]),
    "FormatError-video-near-light-shift": lambda _: with_front([13, 1]),
}


def with_front(symbols: list[int]) -> bytes:
    """The archive written anew, with other symbols where the shift stands."""

    def say(code: Callable[[Any, int], int], *_: Any) -> form.Front:
        for symbol in symbols:
            code(form.SHIFTS, symbol)
        return form.Front()

    case = ACCEPT[WALK_BASE]
    with (
        tempfile.TemporaryDirectory() as scratch,
        mock.patch.object(video, "code_front", say),
    ):
        model = case.write_model(Path(scratch) / "tiny.safetensors", len(WALK_BASE))
        return tiny.pack_case(case, model, Path(scratch) / "new.flow").read_bytes()


def wrong_ways(_: bytes) -> bytes:
    """The chain's archive written anew, every phase saying that it went the other way."""
    right = chain._WAYS
    wrong = SimpleNamespace(interval=lambda way: right.interval(1 - way), precision=right.precision)
    case = ACCEPT[CHAIN_BASE]
    with tempfile.TemporaryDirectory() as scratch, mock.patch.object(chain, "_WAYS", wrong):
        model = case.write_model(Path(scratch) / "tiny.safetensors", len(CHAIN_BASE))
        return tiny.pack_case(case, model, Path(scratch) / "new.flow").read_bytes()


CHAIN_REJECT: dict[str, Callable[[bytes], bytes]] = {
    "FormatError-chain-bits-left-over": message(lambda data: data[:8] + b"\1\2\3\4" + data[8:]),
    "MessageExhausted-chain": message(lambda data: data[:8] + data[12:]),
    "MessageExhausted-chain-wrong-ways": wrong_ways,
    "ModelError-chain-context-0": other_model(config_text(b'\\"context\\":2', b'\\"context\\":0')),
    "ModelError-chain-fineness": other_model(config_text(b'\\"fineness\\":8', b'\\"fineness\\":3')),
    "ModelError-chain-shift": other_model(
        set_tensor("flows.inter_luma.2.head.1.shift", struct.pack("<b", 25))
    ),
    "NotReproducible-chain": other_model(
        set_tensor("flows.intra_chroma.1.begin.0.bias", struct.pack("<i", 1 << 24))
    ),
}
# Of an archive whose account is in columns: that of CHAIN_BASE is older.
ACCOUNT_BASE = "chain-account"


def account(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """A damage to the account of the chunk, which stands before the message."""

    def in_chunk(data: bytes) -> bytes:
        chunk = Chunk.from_bytes(data)
        end = len(data) - len(chunk.payload)
        start = len(replace(chunk, account=None).to_bytes()) - len(chunk.payload)
        return data[:start] + change(data[start:end]) + data[end:]

    return edit(b"CHNK", in_chunk)


def columns_of(*column: str) -> bytes:
    """A seed and a peak of 1, and columns of these bits, each for as many frames as there are."""
    bits = "".join(column)
    whole = int(bits[::-1], 2).to_bytes(-(-len(bits) // 8), "little")
    return b"\1\1" + whole


NINE_ZEROS = "000000" + 9 * "0"
# The first frame popped 1 bit and the others none; growth and overhead are 0.
ONE_POPPED = NINE_ZEROS, "000000" + "101" + "100" + 7 * "0", NINE_ZEROS, NINE_ZEROS
ACCOUNT_REJECT: dict[str, Callable[[bytes], bytes]] = {
    "FormatError-account-of-both-kinds": edit(
        b"CHNK", lambda data: data[:14] + bytes([data[14] | 8]) + data[15:]
    ),
    "FormatError-account-without-bits-back": account(lambda _: columns_of(*4 * [NINE_ZEROS])),
    "FormatError-account-peak": account(lambda _: b"\1\2" + columns_of(*ONE_POPPED)[2:]),
    "FormatError-account-order": account(
        lambda _: columns_of("100000" + 9 * "00", *ONE_POPPED[1:])
    ),
    "FormatError-account-number-endless": account(
        lambda _: columns_of("000000" + 65 * "1" + 65 * "0" + 9 * "0", *ONE_POPPED[1:])
    ),
    "FormatError-account-of-long-numbers": account(
        lambda _: columns_of(*4 * ["000000" + 9 * ("1" * 64 + "0" + "01" * 32)])
    ),
    "FormatError-account-number-too-large": account(
        # 2^48 for the first frame, and as much less for the second: m is 49, n has its top alone.
        lambda _: columns_of(
            NINE_ZEROS,
            "000000" + 2 * ("1" * 49 + "0" + "1" + 48 * "0") + 7 * "0",
            NINE_ZEROS,
            NINE_ZEROS,
        )
    ),
    "FormatError-account-not-filled-with-zeros": account(
        lambda account: account[:-1] + bytes([account[-1] | 128])
    ),
    "Truncated-account": edit(b"CHNK", lambda data: data[:40]),
}
PIXEL_BASE = "pixels-gray16le-tables"
PIXEL_REJECT: dict[str, Callable[[bytes], bytes]] = {
    "FormatError-pixels-lanes": chunk_field(6, "H", 1),
    "FormatError-pixels-bits-left-over": message(lambda data: data[:8] + b"\1\2\3\4" + data[8:]),
    "FormatError-pixels-table-size": chunk_field(17, "H", 2),
    "MessageExhausted-pixels": message(lambda data: data[:8] + data[12:]),
    "CodingError-pixels-head": message(lambda data: data[:7] + b"\xff" + data[8:]),
}
# Of an archive whose flows are made of all kinds of layers.
LAYERS_BASE = "chain-layers"
LAYERS_REJECT: dict[str, Callable[[bytes], bytes]] = {
    "FormatError-layers-bits-left-over": message(lambda data: data[:8] + b"\1\2\3\4" + data[8:]),
    "MessageExhausted-layers": message(lambda data: data[:8] + data[12:]),
    "ModelError-layers-kind": other_model(
        config_text(b'\\"kind\\":\\"norm\\"', b'\\"kind\\":\\"nord\\"')
    ),
    "ModelError-layers-part-twice": other_model(config_text(b"[2,0,3,1]", b"[2,0,3,3]")),
    "ModelError-layers-components": other_model(
        config_text(b'\\"components\\":2', b'\\"components\\":9')
    ),
    "ModelError-layers-tilted": other_model(
        config_text(b'\\"tilted\\":true', b'\\"tilted\\":null')
    ),
    "ModelError-layers-norm": other_model(
        set_tensor("flows.inter_luma.1.norm.0.shift", struct.pack("<h", 769))
    ),
    "ModelError-layers-mix": other_model(
        set_tensor("flows.intra_luma.2.mix.1.lower", struct.pack("<h", (1 << 14) + 1))
    ),
    "NotReproducible-layers": other_model(
        set_tensor("flows.intra_chroma.0.head.tilt.bias", struct.pack("<i", 1 << 24))
    ),
}
ALL_REJECT = {
    **REJECT,
    **VIDEO_REJECT,
    **WALK_REJECT,
    **CHAIN_REJECT,
    **ACCOUNT_REJECT,
    **LAYERS_REJECT,
    **PIXEL_REJECT,
}


def main() -> None:
    """Write what is missing."""
    for folder in ("accept", "reject"):
        (GOLDEN / folder).mkdir(parents=True, exist_ok=True)
    for name in ACCEPT:
        if not (GOLDEN / "accept" / f"{name}.flow").exists():
            make_accept(name, GOLDEN / "accept")
            print(f"accept/{name}.flow")
    bases = (
        (BASE, REJECT),
        (VIDEO_BASE, VIDEO_REJECT),
        (WALK_BASE, WALK_REJECT),
        (CHAIN_BASE, CHAIN_REJECT),
        (ACCOUNT_BASE, ACCOUNT_REJECT),
        (LAYERS_BASE, LAYERS_REJECT),
        (PIXEL_BASE, PIXEL_REJECT),
    )
    for base, damages in bases:
        archive = (GOLDEN / "accept" / f"{base}.flow").read_bytes()
        for name, damage in damages.items():
            path = GOLDEN / "reject" / f"{name}.flow"
            if not path.exists():
                path.write_bytes(damage(archive))
                print(f"reject/{name}.flow")


if __name__ == "__main__":
    main()
