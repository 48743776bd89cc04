"""The command line's contract: exit codes, one line on stderr, JSON, names, a quiet broken pipe."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import types
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import flowarchive
from flowarchive import cli, errors
from flowarchive.frames import VideoFormat

FORMAT = VideoFormat(320, 240, "yuv420p", Fraction(1, 1000), Fraction(30))


@dataclass
class PackReport:
    """The fields that cli reads; tests/test_house.py does not: they are archive's promise."""

    output: Path = Path("clip.flow")
    frames: int = 24
    format: VideoFormat = FORMAT
    raw_bytes: int = 2764800
    archive_bytes: int = 1000000
    ideal_bits: float = 7900000.0
    samples: int = 2764800
    seconds: float = 2.0
    source_bytes: int | None = 911174
    lossy_source: bool = False
    chunks: int = 2
    chunks_stored: int = 0
    model_name: str = "video"
    model_embedded: bool = False


@dataclass
class UnpackReport:
    output: Path = Path("clip.mkv")
    frames: int = 24
    format: VideoFormat = FORMAT
    seconds: float = 2.0


@dataclass
class VerifyReport:
    frames: int = 24
    chunks: int = 2
    seconds: float = 2.0
    source_checked: bool = False


class FakeArchive(types.ModuleType):
    """Stands in for flowarchive.archive: records its calls, and returns or raises `answer`."""

    def __init__(self) -> None:
        super().__init__("flowarchive.archive")
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.answer: Any = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            if isinstance(self.answer, BaseException):
                raise self.answer
            return self.answer

        return call


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeArchive:
    module = FakeArchive()
    monkeypatch.setitem(sys.modules, "flowarchive.archive", module)
    monkeypatch.setattr(flowarchive, "archive", module, raising=False)
    return module


def invoke(*args: str):
    return CliRunner().invoke(cli.app, args)


ERRORS = [getattr(errors, name) for name in errors.__all__]
COMMANDS = [("pack", "in.mkv"), ("unpack", "a.flow"), ("verify", "a.flow"), ("info", "a.flow")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: e.__name__)
def test_each_error_is_one_line_and_its_exit_code(fake, error):
    fake.answer = error("clip.flow: it is\nso")
    result = invoke("verify", "clip.flow")
    assert result.exit_code == error.exit_code
    assert result.stderr == "flowarchive: clip.flow: it is so\n"
    assert result.stdout == ""


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c[0])
def test_json_ends_with_the_error(fake, command):
    fake.answer = errors.ChecksumMismatch("chunk 7 is damaged")
    result = invoke(*command, "--json")
    assert result.exit_code == 4
    assert result.stderr == "flowarchive: chunk 7 is damaged\n"
    assert json.loads(result.stdout.splitlines()[-1]) == {
        "schema": 1,
        "type": "exit_error",
        "code": 4,
        "message": "chunk 7 is damaged",
    }


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x.flow"), 8, "x.flow: No space left"),
        (PermissionError(errno.EACCES, "Permission denied", "x.flow"), 10, "x.flow: Permission"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", b"x\xff"), 10, r"x\udcff: "),
        (OSError(errno.EIO, "Input/output error"), 1, "[Errno 5] Input/output error"),
        (MemoryError(), 8, "out of memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=["full", "permission", "missing", "io", "memory", "interrupt"],
)
def test_what_the_system_refuses_is_one_line_too(fake, error, code, line):
    fake.answer = error
    result = invoke("unpack", "a.flow")
    assert result.exit_code == code
    assert result.stderr.startswith(f"flowarchive: {line}")
    assert result.stderr.count("\n") == 1


def test_a_bug_is_not_hidden(fake):
    fake.answer = ValueError("a bug")
    assert isinstance(invoke("info", "a.flow").exception, ValueError)


def test_control_characters_do_not_reach_the_terminal(fake):
    fake.answer = errors.InputNotFound("no file '\x1b[31mred\udcff'")
    assert invoke("pack", "x").stderr == "flowarchive: no file '\\x1b[31mred\\udcff'\n"


def test_pack_passes_its_options_on(fake):
    fake.answer = PackReport()
    result = invoke(
        "pack", "in/", "-o", "x.flow", "-f", "--model", "m.safetensors", "--chunk-frames", "8",
        "--embed-model", "never", "-j", "2", "--device", "auto",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert fake.calls == [
        ("pack", ("in/", "x.flow"), {
            "model": "m.safetensors", "codec": None, "chunk_frames": 8, "embed_model": "never",
            "jobs": 2, "device": "auto", "force": True, "progress": None,
        })
    ]  # fmt: skip


def test_pack_defaults(fake):
    fake.answer = PackReport()
    assert invoke("pack", "clip.mkv").exit_code == 0
    assert fake.calls == [
        ("pack", ("clip.mkv", None), {
            "model": None, "codec": None, "chunk_frames": None, "embed_model": "auto", "jobs": None,
            "device": "cpu", "force": False, "progress": None,
        })
    ]  # fmt: skip


def test_pack_says_which_promise_it_kept(fake):
    fake.answer = PackReport(lossy_source=True)
    out = invoke("pack", "clip.mkv").stdout
    assert "every sample of every frame, the timestamps and the color description" in out
    assert "not the source file's own bytes, not its audio" in out
    assert "\nmodel    video, named by its SHA-256" in out
    assert "911,174" in out
    assert "1,000,000" in out
    fake.answer = PackReport(lossy_source=False)
    assert "with loss" not in invoke("pack", "clip.mkv").stdout


def test_pack_json_is_one_summary(fake):
    fake.answer = PackReport()
    result = invoke("pack", "clip.mkv", "--json")
    summary = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert summary["type"] == "summary"
    assert summary["output"] == "clip.flow"
    assert summary["format"] == FORMAT.to_json()
    assert summary["promise"] == "samples"
    assert summary["bits_per_sample"] == pytest.approx(8 * 1000000 / 2764800)
    assert summary["ideal_bits_per_sample"] == pytest.approx(7900000 / 2764800)


def test_unpack_keeps_the_slash_of_a_folder(fake):
    fake.answer = UnpackReport()
    assert invoke("unpack", "a.flow", "-o", "v1.0/").exit_code == 0
    assert fake.calls[0][1] == ("a.flow", "v1.0/")


def test_progress_is_drawn_on_a_terminal_only(fake, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    with cli._progress("packing") as progress:
        assert progress is None
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with cli._progress("packing") as progress:
        assert progress is not None
        progress(3, None)
        progress(24, 24)
    assert "24/24" in sys.stderr.getvalue()


@pytest.mark.parametrize("checked", [False, True])
def test_verify_says_what_it_compared(fake, checked):
    fake.answer = VerifyReport(source_checked=checked)
    out = invoke("verify", "a.flow").stdout
    assert "24 frames in 2 chunks equal their hashes" in out
    assert ("the source" in out) is checked


def test_info_prints_nested_facts(fake):
    fake.answer = {
        "frames": 24,
        "format": FORMAT.to_json(),
        "chunks": [{"offset": 16}, {"offset": 99}],
        "model": {"name": "idf", "embedded": False},
    }
    out = invoke("info", "a.flow").stdout
    assert "  rate                 30/1\n" in out
    assert "chunks  2\n" in out
    summary = json.loads(invoke("info", "a.flow", "--json").stdout)
    assert summary["chunks"] == [{"offset": 16}, {"offset": 99}]
    fake.answer = {"source": {"\x1b[31mred\a": {"\n": "\x1b[0m"}}}
    assert not set(invoke("info", "a.flow").stdout) & {"\x1b", "\a"}


def test_models(fake):
    fake.answer = [{"name": "idf", "sha256": "00" * 32}]
    assert "name    idf\n" in invoke("models").stdout
    assert json.loads(invoke("models", "--json").stdout)["models"] == fake.answer


@pytest.mark.parametrize(
    "args",
    [
        ("pack",),
        ("frobnicate",),
        ("pack", "x", "--chunk-frames", "0"),
        ("pack", "x", "--embed-model", "perhaps"),
        ("verify", "x", "--no-such-option"),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_exits_2(run_cli, args):
    result = run_cli(*args)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_help_and_version(run_cli):
    result = run_cli("--version")
    assert (result.returncode, result.stdout) == (0, f"flowarchive {flowarchive.__version__}\n")
    for command in ([], ["pack"], ["unpack"], ["verify"], ["info"], ["plot"], ["models"]):
        result = run_cli(*command, "--help")
        assert (result.returncode, result.stderr) == (0, "")
        assert "4  integrity: damage" in result.stdout


def test_every_exit_code_is_documented(root):
    helped = {int(line.split()[0]) for line in cli.EXIT_CODES.splitlines()[2:]}
    raised = {error.exit_code for error in ERRORS}
    assert helped == {0, 1, 2, 130, *raised}
    readme = (root / "README.md").read_text()
    assert [code for code in sorted(helped) if f"\n| {code} | " not in readme] == []


SCRIPT = """
import sys, types, flowarchive
from flowarchive import cli
module = types.ModuleType("flowarchive.archive")
sys.modules["flowarchive.archive"] = flowarchive.archive = module
{body}
cli.main()
"""


def script(body: str, *args: str) -> list[str]:
    return [sys.executable, "-c", SCRIPT.format(body=body), *args]


def test_a_closed_pipe_is_quiet():
    body = "module.info = lambda path: {'x' + str(i): 'y' * 4096 for i in range(64)}"
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as stdout:
        run = subprocess.run(
            script(body, "info", "a.flow"), stdout=stdout, stderr=subprocess.PIPE, check=False
        )
    assert (run.returncode, run.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("number", "line"), [(signal.SIGINT, b"flowarchive: interrupted\n"), (signal.SIGTERM, b"")]
)
def test_signals_run_the_clean_up(number, line, tmp_path):
    body = """
import signal, time
# A test run in the background has SIGINT ignored, which children inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
def verify(*args, **kwargs):
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        open("cleaned", "w").close()
module.verify = verify
"""
    with subprocess.Popen(
        script(body, "verify", "a.flow"),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(flowarchive.__file__).parent.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (128 + number, line)
    assert (tmp_path / "cleaned").exists()


WITHOUT_TORCH = """
import sys
from flowarchive import cli
for command in (["unpack", "-o", "clip.y4m"], ["pack", "-f"], ["verify"], ["info"]):
    source = "clip.y4m" if command[0] == "pack" else "clip.flow"
    cli.app([*command, source, "--json"], standalone_mode=False)
assert "torch" not in sys.modules
"""


def test_the_whole_path_on_the_demo_clip(run_cli, root, tmp_path):
    clip = root / "examples" / "clip.mkv"
    packed = run_cli("pack", clip, "-o", "clip.flow", "--json")
    assert packed.returncode == 0, packed.stderr
    summary = json.loads(packed.stdout)
    assert (summary["frames"], summary["samples"]) == (24, 24 * 320 * 240 * 3 // 2)
    assert summary["archive_bytes"] == (tmp_path / "clip.flow").stat().st_size

    again = run_cli("pack", clip, "-o", "clip.flow")
    assert (again.returncode, again.stdout) == (7, "")
    assert again.stderr.startswith("flowarchive: ")
    assert again.stderr.count("\n") == 1

    verified = run_cli("verify", "clip.flow", "--source", clip)
    assert verified.returncode == 0, verified.stderr
    assert "and the source" in verified.stdout

    unpacked = run_cli("unpack", "clip.flow", "-o", "back.mkv")
    assert unpacked.returncode == 0, unpacked.stderr
    assert (tmp_path / "back.mkv").stat().st_size > 0

    known = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (known.returncode, known.stderr) == (0, "")
    assert json.loads(known.stdout.splitlines()[-1])["frames"] == 24


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("pack", "missing.mkv"), 10),
        (("pack", "alien.bin"), 6),
        (("unpack", "missing.flow"), 10),
        (("unpack", "alien.bin"), 6),
        (("verify", "alien.bin"), 6),
        (("info", "alien.bin"), 6),
        (("info", "empty.bin"), 4),
        (("pack", "alien.bin", "--model", "no-such-model"), 6),
    ],
    ids=lambda a: " ".join(a) if isinstance(a, tuple) else str(a),
)
def test_what_is_not_there_or_not_ours(run_cli, tmp_path, args, code):
    (tmp_path / "alien.bin").write_bytes(bytes(range(256)) * 16)
    (tmp_path / "empty.bin").touch()
    result = run_cli(*args)
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("flowarchive: ")
    assert result.stderr.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alien.bin", "empty.bin"]
