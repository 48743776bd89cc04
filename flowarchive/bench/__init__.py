"""Our presets beside the classical lossless codecs, on the same frames, every sample verified.

clip     the frames to code, held in memory, and what of them moves
codecs   the classical codecs in one small interface: those of FFmpeg, and zstd
tools    the same for programs on the PATH: aomenc for AV1, cjxl for JPEG XL
presets  the same for `flowarchive pack` and `unpack`, each a process of its own
run      every codec on every clip: bytes, time, and whether all samples came back
report   JSON, Markdown and a plot
"""

from flowarchive.bench.report import (
    COLUMNS,
    absences,
    comparison_lines,
    plot,
    rows,
    to_json,
    to_markdown,
    total_rows,
    write_reports,
)
from flowarchive.bench.run import (
    CODECS,
    ClipResult,
    Measurement,
    Report,
    Status,
    choose,
    measure,
)

__all__ = [
    "CODECS",
    "COLUMNS",
    "ClipResult",
    "Measurement",
    "Report",
    "Status",
    "absences",
    "choose",
    "comparison_lines",
    "measure",
    "plot",
    "rows",
    "to_json",
    "to_markdown",
    "total_rows",
    "write_reports",
]
