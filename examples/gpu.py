"""Pack on a GPU where there is one, on the CPU where there is none: the archive is the same.

    python examples/gpu.py INPUT OUT.flow

Chunks that are packed at the same time share a GPU's launches; two jobs have a chunk in hand.
No GPU has run this yet; see docs/kernels.md.
"""

from __future__ import annotations

import sys

import flowarchive as fa


def main() -> None:
    """Pack INPUT."""
    source, output = sys.argv[1:]
    try:
        report = fa.pack(source, output, device="cuda", jobs=16, force=True)
    except fa.DeviceError as error:
        print(f"{error}; packing on the CPU", file=sys.stderr)
        report = fa.pack(source, output, force=True)
    print(f"{report.output}: {report.frames} frames, {report.archive_bytes} bytes")


if __name__ == "__main__":
    main()
