"""The account adds up: every bit a chunk pushes or borrows is entered once, and comes back."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from archives import same
from reference.chunk import read_chunk
from typer.testing import CliRunner

import flowarchive
from flowarchive import account as account_module
from flowarchive import cli, planes, plot, store
from flowarchive.account import Account, FrameBits, Statement
from flowarchive.ans import Message
from flowarchive.archive.chunks import decode_chunk, encode_chunk
from flowarchive.chunk import Chunk, Coding
from flowarchive.frames import Frame, VideoFormat

VIDEO = VideoFormat(24, 18, "gray")
BORROWED = np.full(200, 1 << 8)


class Borrower:
    """A model that pops bits before each frame but the last and pushes them again after it."""

    has_memory = False

    def __init__(self, network: Any) -> None:
        self.network = network

    def push_frames(self, message: Message, frames: Any, letters: str, bits: int, threads: int = 1):
        account = Account(len(frames), message.bits)
        for t in reversed(range(len(frames))):
            last = t == len(frames) - 1
            if not last:
                values = message.pop_uniform(BORROWED)
                account.bits_back(t, message.bits)
            ideal = self.network.push(message, frames[t], bits)
            account.integer(t, message.bits, ideal)
            if not last:
                message.push_uniform(values, BORROWED)
                account.bits_back(t, message.bits)
        return account

    def pop_frames(
        self, message: Message, count: int, shapes: Any, letters: str, bits: int, threads: int = 1
    ) -> Iterator[Any]:
        for t in range(count):
            values = message.pop_uniform(BORROWED) if t < count - 1 else None
            yield self.network.pop(message, shapes, letters, bits)
            if values is not None:
                message.push_uniform(values, BORROWED)


def noise(count: int, seed: int = 0) -> list[Frame]:
    random = np.random.default_rng(seed)
    return [
        Frame((random.normal(128, 30, (18, 24)).clip(0, 255).astype(np.uint8),), t)
        for t in range(count)
    ]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Tiny model files of both kinds."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "idf": tiny.write_model(folder / "idf.safetensors"),
        "video": tiny.write_video_model(folder / "video.safetensors"),
    }


@pytest.fixture
def borrowing(monkeypatch, models) -> store.StoredModel:
    """The package's `chain` is a model that borrows."""
    stored = store.load_model(str(models["idf"]))
    stored = store.StoredModel("chain", stored.data, Borrower(stored.network))
    monkeypatch.setattr(store, "load_packaged", lambda name: {"chain": stored}[name])
    return stored


# The account


def test_entries_by_height_add_up():
    account = Account(3, 10.4)
    account.integer(2, 1010.2, 990.5)
    account.bits_back(1, 400.0)
    account.bits_back(1, 1500.0, ideal=485.25)
    account.integer(1, 1520.0, 20.0)
    account.bits_back(0, 300.0)
    account.bits_back(0, 350.0)
    account.bits_back(0, 2000.6, ideal=470.5)
    assert account.ideal_bits == 990.5 + 505.25 + 470.5
    assert account.statement() == Statement(
        seed=1010,
        peak=710,
        frames=(
            FrameBits(0, 1220, 1701, 470),
            FrameBits(20, 610, 1100, 505),
            FrameBits(1000, 0, 0, 990),
        ),
    )


def test_an_entry_for_a_whole_step_is_told_what_it_hides():
    account = Account(1, 1000)
    account.bits_back(0, 1100, popped=300)
    assert account.statement() == Statement(1000, 300, (FrameBits(0, 300, 400),))
    account.bits_back(0, 1050, popped=5000, lowest=650.5)
    assert account.statement() == Statement(1000, 350, (FrameBits(0, 5300, 5350),))
    account.bits_back(0, 1000, popped=20)
    found = account.statement()
    assert found is not None
    assert found.frames[0].popped == 5350, "at least what the height has fallen"


def test_sums_of_a_statement():
    found = Statement(700, 10, (FrameBits(0, 50, 80, 28), FrameBits(100, 0, 0, 101)))
    assert (found.net_bits, found.ideal_bits, found.overhead_bits) == (130, 129, 1)
    assert list(found.heights()) == [0, 100, 130]


def test_no_bits_back_no_statement():
    account = Account(1)
    account.integer(0, 100, 99)
    assert account.statement() is None


@pytest.mark.parametrize("kind", ["idf", "video"])
def test_models_enter_all_they_push(models, kind):
    network = store.load_model(str(models[kind])).network
    frames = [planes.split(frame.planes, "Y", 8) for frame in noise(4)]
    message = Message(2)
    message.push_uniform(np.arange(9), 1 << 20)
    held = message.bits
    account = network.push_frames(message, frames, "Y", 8)
    account.bits_back(0, message.bits - 7)  # so that there is a statement
    statement = account.statement()
    assert statement is not None
    assert statement.seed == round(message.bits)
    assert sum(f.integer for f in statement.frames) == round(message.bits) - round(held)
    # Intra frames that `video` codes together are entered under the first of them.
    entered = [f.integer > 0 for f in statement.frames]
    assert all(entered) if kind == "idf" else entered[0]
    assert statement.ideal_bits == pytest.approx(message.bits - held, rel=0.01)


# In the archive


def test_a_chunk_keeps_the_account_of_its_message(borrowing):
    frames = noise(4)
    chunk, ideal = encode_chunk(frames, VIDEO, borrowing.network)
    assert chunk.coding == Coding.MODEL
    found = chunk.account
    assert found is not None
    assert [f.popped > 0 for f in found.frames] == [True, True, True, False]
    assert all(f.popped == pytest.approx(1600, abs=40) for f in found.frames[:-1])
    assert found.net_bits == round(Message.from_bytes(chunk.payload, chunk.lanes).bits)
    assert found.ideal_bits == pytest.approx(ideal, abs=2)
    assert abs(found.overhead_bits) < 0.01 * ideal
    assert found.peak == pytest.approx(1600, abs=40)
    assert found.seed == pytest.approx(found.frames[-1].net, abs=1)
    read = Chunk.from_bytes(chunk.to_bytes())
    assert read == chunk
    assert all(map(same, decode_chunk(read, VIDEO, borrowing.network), frames))
    rows = [(f.integer, f.popped, f.pushed, f.ideal) for f in found.frames]
    assert read_chunk(chunk.to_bytes()).account == (found.seed, found.peak, rows)


def test_a_stored_chunk_has_no_account(borrowing):
    flat = [Frame((np.arange(18 * 24, dtype=np.uint8).reshape(18, 24),), t) for t in range(4)]
    chunk, _ = encode_chunk(flat, VIDEO, borrowing.network)
    assert (chunk.coding, chunk.account) == (Coding.ZSTD, None)


def write(path: Path, frames: list[Frame], **options: Any) -> Path:
    with flowarchive.create(path, VIDEO, jobs=1, embed_model="never", **options) as archive:
        for frame in frames:
            archive.append(frame)
    return path


@pytest.fixture
def borrowed(borrowing, tmp_path) -> Path:
    """An archive of two chunks with accounts and one of a single frame, which borrows nothing."""
    return write(tmp_path / "a.flow", noise(9), codec="chain", chunk_frames=4)


def test_info_shows_the_account(borrowed):
    facts = flowarchive.info(borrowed)
    chunks = [chunk.get("account") for chunk in facts["chunks"]]
    assert chunks[2] is None
    for name in ("integer", "popped", "pushed", "net", "ideal", "overhead"):
        assert facts["account"][name] == chunks[0][name] + chunks[1][name]
    assert facts["account"]["peak"] == max(chunks[0]["peak"], chunks[1]["peak"])
    assert facts["account"]["chunks"] == 2
    for chunk in chunks[:2]:
        assert len(chunk["frames"]) == 4
        assert sum(frame["net"] for frame in chunk["frames"]) == chunk["net"]
    result = CliRunner().invoke(cli.app, ["info", str(borrowed)])
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("account")]
    assert f"{facts['account']['net']:,} bits" in line
    result = CliRunner().invoke(cli.app, ["info", str(borrowed), "--json"])
    assert json.loads(result.stdout)["account"] == facts["account"]


def test_info_without_an_account_says_nothing_of_it(models, tmp_path):
    path = write(tmp_path / "a.flow", noise(2), model=str(models["idf"]))
    assert "account" not in flowarchive.info(path)
    assert "\naccount" not in CliRunner().invoke(cli.app, ["info", str(path)]).stdout


# The picture


def test_plot_writes_a_picture(borrowed, tmp_path):
    pytest.importorskip("matplotlib")
    run = CliRunner()
    target = tmp_path / "ledger.png"
    assert run.invoke(cli.app, ["plot", str(borrowed), "-o", str(target)]).exit_code == 0
    assert target.read_bytes().startswith(b"\x89PNG")
    target.write_text("mine")
    assert run.invoke(cli.app, ["plot", str(borrowed), "-o", str(target)]).exit_code == 7
    assert target.read_text() == "mine"
    assert run.invoke(cli.app, ["plot", str(borrowed), "-o", str(target), "-f"]).exit_code == 0
    assert target.read_bytes().startswith(b"\x89PNG")
    assert run.invoke(cli.app, ["plot", str(borrowed)]).stdout.endswith("a.png\n")


def test_plot_draws_what_the_account_says(monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: figures.append(figure))
    one = Statement(100, 60, (FrameBits(0, 70, 100, 29), FrameBits(100, 0, 0, 99)))
    plot.draw([one, one], 10, io.BytesIO(), "png")
    stack, rate = figures[0].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in stack.lines[:3]}
    assert lines["stack"] == [[0, 0], [1, 100], [2, 130]]
    assert lines["seed of bits-back"] == [[1, 100]]
    assert lines["least height since"] == [[1, 40], [2, 40]]
    assert stack.lines[3].get_xydata().tolist() == [[2, 0], [3, 100], [4, 130]]
    net, ideal = (line.get_ydata().tolist() for line in rate.lines)
    assert net == pytest.approx([10, 6.5, 23 / 3, 6.5])
    assert ideal == pytest.approx([9.9, 6.4, 227 / 30, 6.4])


def refused(*args: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, args)
    assert result.stdout == ""
    return result.exit_code, result.stderr


def test_plot_refuses_in_one_line(borrowed, models, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    plain = str(write(tmp_path / "plain.flow", noise(2), model=str(models["idf"])))
    code, line = refused("plot", plain)
    assert (code, line) == (
        6,
        f"flowarchive: {plain} has no account to draw: none of its chunks used bits-back\n",
    )
    code, line = refused("plot", str(borrowed), "-o", str(tmp_path / "x.alien"))
    assert (code, line.count("\n")) == (6, 1)
    before = borrowed.read_bytes()
    assert refused("plot", str(borrowed), "-f", "-o", str(borrowed))[0] == 7
    assert borrowed.read_bytes() == before
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, line = refused("plot", str(borrowed))
    assert (code, line) == (
        6,
        "flowarchive: a plot needs matplotlib: pip install 'flowarchive[bench]'\n",
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.flow", "plain.flow"]


def test_the_limit_is_the_documents(root):
    text = (root / "docs" / "format.md").read_text()
    assert account_module.LIMIT == 2**48
    assert "are in 0..2^48 - 1" in text


# The codec


@pytest.fixture
def packaged(monkeypatch, models) -> dict[str, bytes]:
    """A package whose `video` and `chain` are tiny models."""
    data = {"video": models["video"].read_bytes(), "chain": models["idf"].read_bytes()}
    monkeypatch.setattr(store, "_packaged", lambda: data)
    return data


def test_each_codec_packs_with_its_model(packaged, tmp_path):
    frames, sizes = noise(5), {}
    for codec in ("idf", "chain", "auto"):
        path = write(tmp_path / f"{codec}.flow", frames, codec=codec, chunk_frames=2)
        with flowarchive.open(path) as archive:
            sizes[archive.head["model"]["name"]] = archive.container.index[0].size
            assert all(map(same, archive, frames))
    assert len(sizes) == 2
    smaller = min(sizes, key=lambda name: sizes[name])
    codec = {"video": "idf", "chain": "chain"}[smaller]
    assert (tmp_path / "auto.flow").read_bytes() == (tmp_path / f"{codec}.flow").read_bytes()
    packaged["video"], packaged["chain"] = packaged["chain"], packaged["video"]
    again = write(tmp_path / "again.flow", frames, codec="auto", chunk_frames=2)
    with flowarchive.open(again) as archive:
        assert archive.head["model"]["name"] != smaller
        assert all(map(same, archive, frames))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_auto_settles_on_short_sequences(packaged, tmp_path, count):
    path = write(tmp_path / "a.flow", noise(count), codec="auto", chunk_frames=2)
    with flowarchive.open(path) as archive:
        assert len(archive) == count
        assert all(map(same, archive, noise(count)))


def test_without_a_name_the_codec_is_idf(packaged, tmp_path):
    assert write(tmp_path / "a.flow", noise(1)).read_bytes() == (
        write(tmp_path / "b.flow", noise(1), codec="idf").read_bytes()
    )


@pytest.mark.parametrize("codec", ["chain", "auto"])
def test_a_model_that_is_not_packaged_is_one_line(codec, tmp_path, monkeypatch, root):
    monkeypatch.setattr(store, "_packaged", lambda: {"idf": b"", "video": b""})
    monkeypatch.setattr(store, "parse_model", lambda data, name: name)
    monkeypatch.chdir(tmp_path)
    Path("chain").write_bytes(b"a file that is no model")
    clip = str(root / "examples" / "clip.mkv")
    code, line = refused("pack", clip, "-o", "x.flow", "--codec", codec)
    assert (code, line) == (
        6,
        "flowarchive: the package has no model 'chain' yet, only: idf, video\n",
    )
    assert [p.name for p in tmp_path.iterdir()] == ["chain"]


def test_a_codec_beside_a_model_is_a_usage_error(tmp_path):
    assert refused("pack", "x", "--codec", "idf", "--model", "video")[0] == 2
    assert refused("pack", "x", "--codec", "alien")[0] == 2
    with pytest.raises(ValueError, match="one or the other"):
        flowarchive.create(tmp_path / "a.flow", VIDEO, codec="idf", model="video")
    with pytest.raises(ValueError, match="codec is 'alien'"):
        flowarchive.create(tmp_path / "a.flow", VIDEO, codec="alien")
