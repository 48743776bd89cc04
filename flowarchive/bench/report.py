"""What a run found, as rows of text, JSON, Markdown and a plot of size against speed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from flowarchive import files
from flowarchive.bench.run import ClipResult, CodecInfo, Measurement, Report, Status
from flowarchive.errors import InputError
from flowarchive.plot import require_matplotlib

COLUMNS = ("codec", "bytes", "% of raw", "bits/sample", "encode frames/s", "decode frames/s")
ABSENT = "-"


@dataclass(frozen=True)
class Total:
    """One codec on all clips that every codec holds.

    Attributes:
        codec: Its name.
        frames: Frames of those clips.
        samples: Their samples.
        raw_bytes: What they take uncoded.
        bytes: What the codec's files take.
        encode_seconds: Wall time.
        decode_seconds: Wall time.
    """

    codec: str
    frames: int
    samples: int
    raw_bytes: int
    bytes: int
    encode_seconds: float
    decode_seconds: float


@dataclass(frozen=True)
class Comparison:
    """A preset beside the smallest of the classical codecs, clip by clip.

    Attributes:
        preset: Its name.
        clips: Clips that were compared.
        mean: Mean of the clips' ratios of bytes, below 1 where the preset is smaller.
        worst: The largest of them.
        worst_clip: The clip of that.
    """

    preset: str
    clips: int
    mean: float
    worst: float
    worst_clip: str


def totals(report: Report) -> tuple[list[str], list[Total]]:
    """Add up the clips that every codec holds; codecs that hold none of the clips are left out.

    Returns:
        The names of the clips, and a total for each codec.
    """
    names = [
        codec.name
        for codec in report.codecs
        if any(_found(clip, codec.name).status is Status.verified for clip in report.clips)
    ]
    common = [
        clip
        for clip in report.clips
        if all(_found(clip, name).status is Status.verified for name in names)
    ]
    if not common:
        return [], []
    return [clip.clip for clip in common], [_total(name, common) for name in names]


def comparisons(report: Report) -> list[Comparison]:
    """Compare each preset with the smallest of the classical codecs on each clip."""
    compared = []
    for preset in (codec.name for codec in report.codecs if codec.is_preset):
        ratios = []
        for clip in report.clips:
            ours, best = _found(clip, preset), _best_classical(report, clip)
            if ours.bytes is not None and best is not None:
                ratios.append((ours.bytes / best, clip.clip))
        if ratios:
            worst, name = max(ratios)
            mean = sum(ratio for ratio, _ in ratios) / len(ratios)
            compared.append(Comparison(preset, len(ratios), mean, worst, name))
    return compared


def rows(report: Report, clip: ClipResult) -> Iterator[tuple[str, ...]]:
    """Yield a clip's cells below `COLUMNS`, and the reason of a codec that has no size."""
    for found in clip.measurements:
        if found.bytes is None:
            yield (found.codec, *[ABSENT] * (len(COLUMNS) - 1), f"{found.status}: {found.reason}")
        else:
            yield (*_cells(_total(found.codec, [clip])), "")


def total_rows(report: Report) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return the clips of `totals`, and the cells below `COLUMNS`."""
    clips, sums = totals(report)
    return clips, [_cells(total) for total in sums]


def comparison_lines(report: Report) -> list[str]:
    """Return a sentence for each preset beside the best classical codec."""
    return [
        f"{c.preset}: {c.mean:.4f} of the smallest classical codec's bytes, mean of {c.clips}"
        f" clips; at most {c.worst:.4f}, on {c.worst_clip}"
        for c in comparisons(report)
    ]


def absences(report: Report) -> list[str]:
    """Return a line for every codec that has no size on some clips, and why."""
    lines: dict[tuple[str, Status, str], list[str]] = {}
    for clip in report.clips:
        for found in clip.measurements:
            if found.status is not Status.verified:
                key = (found.codec, found.status, found.reason or "")
                lines.setdefault(key, []).append(clip.clip)
    return [
        f"{codec} {status}: {reason}"
        + ("" if status is Status.missing else f" ({', '.join(dict.fromkeys(clips))})")
        for (codec, status, reason), clips in lines.items()
    ]


def to_json(report: Report) -> dict[str, Any]:
    """Return the report as a JSON object; derived figures stand beside what was measured."""
    clips, sums = totals(report)
    return {
        "machine": report.machine,
        "codecs": [asdict(codec) for codec in report.codecs],
        "clips_wanted": report.clips_wanted,
        "clips": [
            {
                "clip": clip.clip,
                "format": clip.format.to_json(),
                "frames": clip.frames,
                "samples": clip.samples,
                "raw_bytes": clip.raw_bytes,
                "results": [_result(clip, found) for found in clip.measurements],
            }
            for clip in report.clips
        ],
        "totals": {"clips": clips, "results": [{**asdict(t), **_rates(t)} for t in sums]},
        "comparisons": [asdict(comparison) for comparison in comparisons(report)],
    }


def to_markdown(report: Report, picture: str | None = None) -> str:
    """Return the report as a page: settings, sizes, speeds, and every absence by name.

    Args:
        report: What to lay out.
        picture: Address of the plot, None where there is none.
    """
    machine = report.machine
    versions = machine["versions"]
    assert isinstance(versions, dict)
    parts = [
        "# Benchmarks",
        "Written by `flowarchive bench`. Every size is that of whole files"
        " on disk, and every one of them was decoded again and compared sample by sample. Times are"
        " wall times: of the whole process for our presets and for programs (start, reading and"
        " writing included), of the call with the frames in memory for the others. Sizes are the"
        " same everywhere, times are of this machine and of what else it did.",
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, load"
        f" {machine['load']} at the start; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ".",
        "## Codecs",
        _markdown_table(
            ("codec", "command", "files", "version"),
            [(c.name, f"`{c.settings}`", c.container, c.version or ABSENT) for c in report.codecs],
        ),
        "A constant alpha or padding plane is left out for every codec.",
        "## Bytes",
        _sizes(report),
        *comparison_lines(report),
    ]
    clips, cells = total_rows(report)
    if cells:
        parts += [
            "## Size and speed",
            f"All frames of the {len(clips)} clips that every codec holds: {', '.join(clips)}.",
            _markdown_table(COLUMNS, cells),
        ]
        if picture is not None:
            parts.append(f"![Size against speed]({picture})")
    for title, seconds in (("Encoding", "encode_seconds"), ("Decoding", "decode_seconds")):
        parts += [f"## {title}, frames/s", _speeds(report, seconds)]
    notes = absences(report)
    if notes:
        parts += ["## Not measured", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(parts) + "\n"


def plot(report: Report, file: BinaryIO, kind: str = "png") -> None:
    """Draw size against encoding and decoding speed, on the clips that every codec holds.

    Args:
        report: What to draw.
        file: Receives the picture.
        kind: "png" or another of matplotlib's formats.

    Raises:
        InputError: matplotlib is not installed, or does not write that kind.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    presets = {codec.name for codec in report.codecs if codec.is_preset}
    clips, sums = totals(report)
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for place, name in enumerate(("encode", "decode")):
        axis = axes[place]
        for total in sums:
            speed = _rates(total)[f"{name}_frames_per_second"]
            size = 100 * total.bytes / total.raw_bytes
            ours = total.codec in presets
            axis.scatter(speed, size, marker="*" if ours else "o", s=120 if ours else 40)
            axis.annotate(
                total.codec, (speed, size), textcoords="offset points", xytext=(6, 4),
                weight="bold" if ours else "normal",
            )  # fmt: skip
        if sums:
            axis.set_xscale("log")
        axis.margins(x=0.15, y=0.1)
        axis.set_xlabel(f"{name} frames/s, more is better")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("% of raw bytes, less is better")
    count = f"{len(clips)} clip{'s' * (len(clips) != 1)}"
    figure.suptitle(f"Lossless, every sample verified: {count}, {report.machine['cores']} cores")
    try:
        figure.savefig(file, format=kind, dpi=120)
    except ValueError as error:
        raise InputError(f"no plot: {error}") from error


def write_reports(
    report: Report,
    header: dict[str, Any],
    json_file: str | os.PathLike[str] | None,
    markdown_file: str | os.PathLike[str] | None,
    plot_file: str | os.PathLike[str] | None,
    force: bool,
) -> None:
    """Write the files that are wanted.

    Args:
        report: What to write.
        header: Leading fields of the JSON object.
        json_file: Receives JSON; None for no such file.
        markdown_file: Receives Markdown.
        plot_file: Receives the plot, in the format of its suffix.
        force: Replace files that are there.

    Raises:
        OutputExists: A file is there and `force` is not given.
        InputNotFound: A folder does not exist, or may not be written.
        InputError: matplotlib is needed and not there, or a file cannot be written.
    """
    if json_file is not None:
        text = json.dumps({**header, **to_json(report)}, indent=1)
        with files.atomic_output(json_file, force) as file:
            file.write(text.encode() + b"\n")
    if markdown_file is not None:
        picture = None
        if plot_file is not None:
            picture = Path(os.path.relpath(plot_file, Path(markdown_file).parent)).as_posix()
        with files.atomic_output(markdown_file, force) as file:
            file.write(to_markdown(report, picture).encode())
    if plot_file is not None:
        kind = Path(plot_file).suffix.removeprefix(".") or "png"
        with files.atomic_output(plot_file, force) as file:
            plot(report, file, kind)


def _found(clip: ClipResult, codec: str) -> Measurement:
    return next(found for found in clip.measurements if found.codec == codec)


def _total(codec: str, clips: Sequence[ClipResult]) -> Total:
    found = [_found(clip, codec) for clip in clips]
    return Total(
        codec,
        frames=sum(clip.frames for clip in clips),
        samples=sum(clip.samples for clip in clips),
        raw_bytes=sum(clip.raw_bytes for clip in clips),
        bytes=sum(one.bytes or 0 for one in found),
        encode_seconds=sum(one.encode_seconds or 0.0 for one in found),
        decode_seconds=sum(one.decode_seconds or 0.0 for one in found),
    )


def _rates(total: Total) -> dict[str, float]:
    return {
        "share_of_raw": total.bytes / total.raw_bytes,
        "bits_per_sample": 8 * total.bytes / total.samples,
        "encode_frames_per_second": total.frames / max(total.encode_seconds, 1e-9),
        "decode_frames_per_second": total.frames / max(total.decode_seconds, 1e-9),
    }


def _result(clip: ClipResult, found: Measurement) -> dict[str, Any]:
    rates: dict[str, float | None] = dict(_rates(_total(found.codec, [clip])))
    if found.bytes is None:
        rates = dict.fromkeys(rates)
    return {**asdict(found), "status": found.status.value, **rates}


def _cells(total: Total) -> tuple[str, ...]:
    rates = _rates(total)
    return (
        total.codec,
        f"{total.bytes:,}",
        f"{100 * rates['share_of_raw']:.2f}",
        f"{rates['bits_per_sample']:.4f}",
        f"{rates['encode_frames_per_second']:.2f}",
        f"{rates['decode_frames_per_second']:.2f}",
    )


def _best_classical(report: Report, clip: ClipResult) -> int | None:
    presets = {codec.name for codec in report.codecs if codec.is_preset}
    sizes = [m.bytes for m in clip.measurements if m.codec not in presets and m.bytes is not None]
    return min(sizes, default=None)


def _sizes(report: Report) -> str:
    """A row a clip, a column a codec, the smallest size bold; last our share of the best."""
    presets = [codec.name for codec in report.codecs if codec.is_preset]
    compared = presets if len(presets) < len(report.codecs) else []
    lines = []
    for clip in report.clips:
        sizes = [found.bytes for found in clip.measurements]
        smallest = min((size for size in sizes if size is not None), default=None)
        best = _best_classical(report, clip)
        cells = [
            ABSENT if size is None else f"**{size:,}**" if size == smallest else f"{size:,}"
            for size in sizes
        ]
        for preset in compared:
            ours = _found(clip, preset).bytes
            cells.append(ABSENT if ours is None or best is None else f"{ours / best:.4f}")
        lines.append(
            (clip.clip, clip.format.pix_fmt, str(clip.frames), f"{clip.raw_bytes:,}", *cells)
        )
    shares = [f"{preset} / best classical" for preset in compared]
    return _markdown_table(
        ("clip", "format", "frames", "raw", *_names(report.codecs), *shares), lines
    )


def _speeds(report: Report, seconds: str) -> str:
    lines = []
    for clip in report.clips:
        times = [getattr(found, seconds) for found in clip.measurements]
        cells = [ABSENT if t is None else f"{clip.frames / max(t, 1e-9):.2f}" for t in times]
        size = f"{clip.format.width}x{clip.format.height}"
        lines.append((clip.clip, size, *cells))
    return _markdown_table(("clip", "size", *_names(report.codecs)), lines)


def _names(codecs: Sequence[CodecInfo]) -> list[str]:
    return [codec.name for codec in codecs]


def _markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    body = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in body)
