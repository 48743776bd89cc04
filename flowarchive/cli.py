"""The command line: pack, unpack, verify, info, plot, models, bench, train and evaluate.

This file owns the words, the exit codes and the terminal; what touches a frame is in `archive`,
imported inside each command. Data goes to stdout, errors and progress to stderr. An expected
failure is one line, `flowarchive: <message>`, and its class's exit code; a traceback is a bug.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import flowarchive
from flowarchive.errors import ChecksumMismatch, FlowArchiveError

if TYPE_CHECKING:
    from flowarchive import bench as bench_module
    from flowarchive.archive import PackReport
    from flowarchive.frames import VideoFormat

Progress = Callable[[int, int | None], None]

SCHEMA = 1
"""Version of the objects that `--json` prints; fields are only added within a version."""

EXIT_CODES = """\b
Exit codes:
    0  done, and every check that was asked for passed
    1  any failure that has no code of its own
    2  the command line is wrong
    4  integrity: damage, or a frame that is not the one packed
    6  input, format version, feature or model not supported
    7  the output exists and --force was not given
    8  a limit was met: sizes, memory or disk space
    9  the source changed while it was read
   10  input not found, or not permitted
   13  this machine fails the exactness check, or has no such device
  130  interrupted (141: stdout was closed, 143: terminated)"""

app = typer.Typer(
    name="flowarchive",
    help="Pack video into lossless .flow archives, and get every sample of it back.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class EmbedModel(StrEnum):
    """Whether the model's weights travel inside the archive."""

    auto = "auto"
    always = "always"
    never = "never"


class Codec(StrEnum):
    """Which of the package's models code the frames."""

    idf = "idf"
    chain = "chain"
    auto = "auto"


class Device(StrEnum):
    """Where the hot operations run."""

    cpu = "cpu"
    cuda = "cuda"
    auto = "auto"


ArchivePath = Annotated[str, typer.Argument(metavar="IN.flow", help="The archive.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace the output if it exists.")]
ModelFile = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="FILE", help="The model, if neither archive nor package has it."
    ),
]
Jobs = Annotated[
    int, typer.Option("--jobs", "-j", min=0, metavar="N", help="Threads; 0 uses every core.")
]
DeviceOption = Annotated[
    Device, typer.Option(help="Where networks and coder run; auto: on a GPU where there is one.")
]
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON; the last line is a summary or an exit_error.")
]


def main() -> None:
    """Run the command line and exit with the documented code."""
    gc.set_threshold(1 << 20)  # coding leaves no cycles; looking for them costs a tenth of a start
    signal.signal(signal.SIGTERM, _terminate)
    app(prog_name="flowarchive")


def _terminate(number: int, frame: object) -> None:
    """Leave by way of every `finally`, so that no temporary file stays behind."""
    raise SystemExit(128 + number)


def _version(asked: bool) -> None:
    if asked:
        print(f"flowarchive {flowarchive.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Pack video into lossless .flow archives, and get every sample of it back."""


@app.command(epilog=EXIT_CODES)
def pack(
    source: Annotated[
        str,
        typer.Argument(metavar="INPUT", help="Video file, .y4m, .npy, or a folder of images."),
    ],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="OUT.flow", help="Default: INPUT's name .flow."),
    ] = None,
    force: Force = False,
    codec: Annotated[
        Codec | None,
        typer.Option(
            help="Integer flows alone, a chain with bits-back, or what makes the first chunk"
            " smaller; default: idf."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Instead of a codec: a model of `flowarchive models`, or a file.",
        ),
    ] = None,
    chunk_frames: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Frames that are coded, and read, together."),
    ] = None,
    embed_model: Annotated[
        EmbedModel,
        typer.Option(
            help="Store the model in the archive; auto: if it adds at most 1 %, or is your own."
        ),
    ] = EmbedModel.auto,
    jobs: Jobs = 0,
    device: DeviceOption = Device.cpu,
    as_json: Json = False,
) -> None:
    """Pack the decoded frames of INPUT: every sample, timestamp and the color description."""
    if codec is not None and model is not None:
        raise typer.BadParameter("--codec chooses a model itself: give it or --model, not both")
    with _reported(as_json):
        from flowarchive import archive

        with _progress("packing") as progress:
            report = archive.pack(
                source,
                output,
                model=model,
                codec=None if codec is None else codec.value,
                chunk_frames=chunk_frames,
                embed_model=embed_model.value,
                jobs=jobs or None,
                device=device.value,
                force=force,
                progress=progress,
            )
        if as_json:
            samples = max(1, report.samples)
            _print_summary(
                "pack",
                report,
                bits_per_sample=8 * report.archive_bytes / samples,
                ideal_bits_per_sample=report.ideal_bits / samples,
                promise="samples",
            )
        else:
            print("\n".join(_pack_lines(report)))


@app.command(epilog=EXIT_CODES)
def unpack(
    archive_path: ArchivePath,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="By suffix: .mkv (FFV1), .y4m, .yuv, .npy; without one, a folder of PNG.",
        ),
    ] = None,
    force: Force = False,
    model_file: ModelFile = None,
    jobs: Jobs = 0,
    device: DeviceOption = Device.cpu,
    as_json: Json = False,
) -> None:
    """Write the frames of an archive, each checked against the hash of what was packed."""
    with _reported(as_json):
        from flowarchive import archive

        with _progress("unpacking") as progress:
            report = archive.unpack(
                archive_path,
                output,
                jobs=jobs or None,
                device=device.value,
                model_file=model_file,
                force=force,
                progress=progress,
            )
        if as_json:
            _print_summary("unpack", report)
        else:
            print(f"{_printable(report.output)}: {_frames_text(report.frames, report.format)}")
            print(f"time     {_pace(report.frames, report.seconds)}")


@app.command(epilog=EXIT_CODES)
def verify(
    archive_path: ArchivePath,
    source: Annotated[
        str | None,
        typer.Option(metavar="INPUT", help="Also compare with this source, sample by sample."),
    ] = None,
    model_file: ModelFile = None,
    jobs: Jobs = 0,
    device: DeviceOption = Device.cpu,
    as_json: Json = False,
) -> None:
    """Decode the whole archive and check every frame against the hash of what was packed."""
    with _reported(as_json):
        from flowarchive import archive

        with _progress("verifying") as progress:
            report = archive.verify(
                archive_path,
                source=source,
                jobs=jobs or None,
                device=device.value,
                model_file=model_file,
                progress=progress,
            )
        if as_json:
            _print_summary("verify", report)
        else:
            against = "their hashes and the source" if report.source_checked else "their hashes"
            print(
                f"{_printable(archive_path)}: good; {report.frames} frames in"
                f" {report.chunks} chunks equal {against}"
            )
            print(f"time     {_pace(report.frames, report.seconds)}")


@app.command(epilog=EXIT_CODES)
def info(archive_path: ArchivePath, as_json: Json = False) -> None:
    """Show what an archive holds, from its header and index; decodes nothing."""
    with _reported(as_json):
        from flowarchive import archive

        facts = archive.info(archive_path)
        if as_json:
            _print_json({"type": "summary", "command": "info", **facts})
        else:
            if "account" in facts:
                facts["account"] = _account_text(facts["account"])
            print("\n".join(_fact_lines(facts)))


@app.command(epilog=EXIT_CODES)
def plot(
    archive_path: ArchivePath,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT.png", help="Default: IN's name .png."),
    ] = None,
    force: Force = False,
) -> None:
    """Draw where the bits of an archive come from: its stack, and its bits per sample."""
    with _reported(as_json=False):
        from flowarchive.plot import plot_account

        print(_printable(plot_account(archive_path, output, force)))


@app.command(epilog=EXIT_CODES)
def models(as_json: Json = False) -> None:
    """List the models that come with the package."""
    with _reported(as_json):
        from flowarchive import archive

        found = archive.models()
        if as_json:
            _print_json({"type": "summary", "command": "models", "models": found})
        else:
            print("\n\n".join("\n".join(_fact_lines(model)) for model in found))


@app.command(epilog=EXIT_CODES)
def bench(
    clips: Annotated[list[Path], typer.Argument(metavar="CLIP...", help="Whatever `pack` takes.")],
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the figures as JSON.")
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE.png", help="Draw size against speed (needs matplotlib)."
        ),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page of tables.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Of each clip; default: all.")
    ] = None,
    codec: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="ffv1, x264, x265, av1, vp9, jxl, zstd or none; may be repeated; default: all.",
        ),
    ] = None,
    preset: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A model of `flowarchive models`, or none; default: all."
        ),
    ] = None,
    device: DeviceOption = Device.cpu,
    force: Force = False,
) -> None:
    """Compare our presets with the classical lossless codecs; every sample is verified.

    The files are written anew after each clip, so an interrupted run leaves what it has measured.
    A classical codec that fails, or does not give every sample back, is named and has no size; a
    preset that does so also makes the command fail, with 1 or 4.
    """
    with _reported(as_json=False):
        from flowarchive import bench as measuring
        from flowarchive.plot import require_matplotlib

        if picture is not None:
            require_matplotlib()
        header = {"schema": SCHEMA, "type": "summary", "command": "bench"}
        chosen = measuring.choose(codec or [], preset or [], device.value)
        with _progress("measuring") as progress:
            for report in measuring.measure(clips, chosen, frames, progress):
                again = force or bool(report.clips)
                measuring.write_reports(report, header, json_file, markdown, picture, again)
        _print_bench(report)
        if report.mismatches:
            raise ChecksumMismatch("; ".join(report.mismatches))
        if report.failures:
            raise FlowArchiveError("; ".join(report.failures))


@app.command(epilog=EXIT_CODES)
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="What and how to train.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Receives model and log.")
    ],
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the config's clips are.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the folder's checkpoint.")] = False,
    part: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Train this part of the model alone; may be repeated."),
    ] = None,
) -> None:
    """Train a model on clips and freeze it to exact integers."""
    with _reported(as_json=False):
        from flowarchive import train as training

        settings = training.read_config(config, data)
        with _progress("training") as progress:
            print(training.train(settings, output, resume, progress, part))


@app.command(epilog=EXIT_CODES)
def evaluate(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="The run's config.")],
    run: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `train` wrote.")],
    clips: Annotated[list[Path], typer.Argument(metavar="CLIP...", help="What to measure on.")],
    limit: Annotated[int, typer.Option(min=1, help="Frames of each clip.")] = 1000,
    as_json: Json = False,
) -> None:
    """Show what freezing a trained model costs, in bits per sample of clips at 8 bits."""
    with _reported(as_json):
        from flowarchive import train as training

        chosen = [training.ClipConfig(clip, limit=limit) for clip in clips]
        rows = list(training.evaluate(training.read_config(config), run, chosen))
        if as_json:
            _print_json(
                {"type": "summary", "command": "evaluate", "clips": [asdict(row) for row in rows]}
            )
            return
        print(f"{'float twin':>10}  {'fake twin':>10}  {'frozen':>10}  {'coded':>10}  clip")
        for row in rows:
            rates = (row.float_twin, row.fake_twin, row.frozen, row.coded)
            print("  ".join(f"{rate:10.4f}" for rate in rates), f" {_printable(row.clip)}")


@contextmanager
def _reported(as_json: bool) -> Iterator[None]:
    """Turn every expected failure inside into one line and its exit code."""
    try:
        yield
        if sys.stdout is not None:  # closed by whoever called us
            sys.stdout.flush()
    except BrokenPipeError:
        # Nobody reads any more: stay quiet, also when the interpreter flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(141) from None  # 128 + SIGPIPE, as a shell would say
    except (FlowArchiveError, OSError, MemoryError, KeyboardInterrupt) as error:
        code, message = _diagnosis(error)
        print(f"flowarchive: {message}", file=sys.stderr)
        if as_json:
            _print_json({"type": "exit_error", "code": code, "message": message})
        raise typer.Exit(code) from None


def _diagnosis(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the one line for an expected failure."""
    if isinstance(error, FlowArchiveError):
        return error.exit_code, _printable(error)
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT, "interrupted"
    if isinstance(error, MemoryError):
        return 8, "out of memory"
    code = 1
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM):
            code = 8
        elif isinstance(error, (FileNotFoundError, PermissionError)):
            code = 10
        if error.strerror and error.filename is not None:
            return code, _printable(f"{os.fsdecode(error.filename)}: {error.strerror}")
    return code, _printable(error)


def _printable(text: object) -> str:
    """One line of `text` with control characters and undecodable bytes escaped."""
    line = " ".join(str(text).split()) or type(text).__name__
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


@contextmanager
def _progress(verb: str) -> Iterator[Progress | None]:
    """A bar on stderr where that is a terminal, and nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn(verb), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(verb, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_summary(command: str, report: Any, **more: object) -> None:
    values = {field.name: getattr(report, field.name) for field in fields(report)}
    _print_json({"type": "summary", "command": command, **values, **more})


def _print_json(values: dict[str, Any]) -> None:
    # ASCII only: a path that is not UTF-8 stays readable as its surrogate escapes.
    print(json.dumps({"schema": SCHEMA, **values}, default=_plain))


def _plain(value: object) -> object:
    if hasattr(value, "to_json"):
        return value.to_json()
    if isinstance(value, Fraction):
        return [value.numerator, value.denominator]
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _pack_lines(report: PackReport) -> Iterator[str]:
    samples = max(1, report.samples)
    rate = 8 * report.archive_bytes / samples
    ideal = report.ideal_bits / samples
    share = 100 * report.archive_bytes / max(1, report.raw_bytes)
    stored = f" ({report.chunks_stored} stored)" if report.chunks_stored else ""
    where = "embedded" if report.model_embedded else "named by its SHA-256, not embedded"
    yield f"{_printable(report.output)}: {_frames_text(report.frames, report.format)}"
    yield f"raw      {report.raw_bytes:,} bytes, {report.samples:,} samples"
    yield (
        f"archive  {report.archive_bytes:,} bytes, {share:.1f} % of raw,"
        f" {report.chunks} chunks{stored}"
    )
    yield f"rate     {rate:.4f} bits/sample (ideal {ideal:.4f})"
    yield f"model    {_printable(report.model_name)}, {where}"
    yield f"time     {_pace(report.frames, report.seconds)}"
    yield (
        "kept     every sample of every frame, the timestamps and the color description, bit for"
        " bit; not the source file's own bytes, not its audio"
    )
    if report.lossy_source:
        size = "" if report.source_bytes is None else f" ({report.source_bytes:,} bytes)"
        yield (
            f"note     the source{size} was coded with loss before; its frames take"
            f" {report.archive_bytes:,} bytes without further loss"
        )


def _print_bench(report: bench_module.Report) -> None:
    """Print one table of all clips, a section each, and what was not measured."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from flowarchive import bench as measuring

    table = Table()
    for place, column in enumerate(measuring.COLUMNS):
        table.add_column(column, justify="right" if place else "left", no_wrap=True)
    sections = [
        (f"{clip.clip}: {_frames_text(clip.frames, clip.format)}", measuring.rows(report, clip))
        for clip in report.clips
    ]
    common, sums = measuring.total_rows(report)
    if len(report.clips) > 1 and common:
        sections.append((f"all {len(common)} clips that every codec holds", iter(sums)))
    for title, lines in sections:
        table.add_section()
        table.add_row(Text(_printable(title), style="bold"))
        for line in lines:
            table.add_row(*(Text(cell) for cell in line[: len(measuring.COLUMNS)]))
    # Lines for a reader that is no terminal are not folded.
    width = None if sys.stdout.isatty() else 4096
    console = Console(width=width)
    console.print(table)
    for note in [*measuring.comparison_lines(report), *measuring.absences(report)]:
        console.print(Text(_printable(note)))


def _frames_text(frames: int, video_format: VideoFormat) -> str:
    return f"{frames} frames, {video_format.width}x{video_format.height} {video_format.pix_fmt}"


def _account_text(account: dict[str, int]) -> str:
    overhead = 100 * account["overhead"] / max(1, account["ideal"])
    return (
        f"{account['net']:,} bits, {overhead:+.2f} % of the ideal; bits-back took"
        f" {account['popped']:,} and fell {account['peak']:,} below its seed at most"
    )


def _pace(frames: int, seconds: float) -> str:
    return f"{seconds:.2f} s, {frames / max(seconds, 1e-9):.2f} frames/s"


def _fact_lines(facts: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Lay out a JSON object as aligned lines; long lists are counted, not printed."""
    # An archive's HEAD may hold any keys: none of them may speak to the terminal.
    facts = {_printable(key): value for key, value in facts.items()}
    width = max((len(key) for key in facts), default=0)
    for key, value in facts.items():
        if isinstance(value, dict):
            yield f"{indent}{key}"
            yield from _fact_lines(value, indent + "  ")
        elif isinstance(value, (list, tuple)) and any(isinstance(v, (dict, list)) for v in value):
            yield f"{indent}{key:<{width}}  {len(value)}"
        else:
            if key in ("time_base", "rate", "sample_aspect_ratio") and isinstance(value, list):
                value = "/".join(map(str, value))
            yield f"{indent}{key:<{width}}  {_printable(value)}"
