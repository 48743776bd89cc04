"""The same bytes on any machine: `python tests/bench/everywhere.py CLIP...`.

Packs every clip twice, in a process that may use everything this processor has and in one that is
held to SSE4.1, plain ATen kernels and one thread; compares the two archives byte for byte; verifies
each of them, against the source, in the process of the other kind; and unpacks it to a file of the
source's kind, whose planes have to equal the source's.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from itertools import zip_longest
from pathlib import Path

import numpy as np

import flowarchive
from flowarchive import media

WIDE = {"OMP_NUM_THREADS": "2"}
NARROW = {
    "ATEN_CPU_CAPABILITY": "default",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OMP_NUM_THREADS": "1",
    "NUMBA_CPU_NAME": "generic",
}


def run(environment: dict[str, str], jobs: int, *arguments: str) -> None:
    """Run the command line in a process of one kind; an error ends this one."""
    subprocess.run(
        [sys.executable, "-m", "flowarchive", *arguments, "--jobs", str(jobs)],
        env=os.environ | environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )


def comes_back(archive: Path, clip: Path) -> bool:
    """Unpack to the default output and compare it with the source, plane by plane."""
    unpacked = flowarchive.unpack(archive, force=True).output
    with media.open_source(unpacked) as ours, media.open_source(clip) as theirs:
        letters = theirs.format.layout.components
        for back, source in zip_longest(ours, theirs):
            if back is None or source is None:
                return False
            # FFV1 has no RGB without a padding byte, which comes back as one more plane.
            found = dict(zip(ours.format.layout.components, back.planes, strict=True))
            if not all(
                np.array_equal(found[letter], plane)
                for letter, plane in zip(letters, source.planes, strict=True)
            ):
                return False
    return True


def main(clips: list[Path]) -> int:
    different = 0
    with tempfile.TemporaryDirectory() as folder:
        wide, narrow = Path(folder) / "wide.flow", Path(folder) / "narrow.flow"
        for clip in clips:
            run(WIDE, 2, "pack", str(clip), "-f", "-o", str(wide))
            run(NARROW, 1, "pack", str(clip), "-f", "-o", str(narrow))
            same = wide.read_bytes() == narrow.read_bytes()
            run(NARROW, 1, "verify", str(wide), "--source", str(clip))
            run(WIDE, 2, "verify", str(narrow), "--source", str(clip))
            equal = comes_back(wide, clip)
            different += not (same and equal)
            digest = hashlib.sha256(wide.read_bytes()).hexdigest()[:16]
            print(
                f"{clip.name:<32}{'same bytes' if same else 'OTHER BYTES':<13}{digest}  verified  "
                f"{'planes equal' if equal else 'PLANES DIFFER'}",
                flush=True,
            )
    print(f"{len(clips) - different} of {len(clips)} clips: the same archive, and the same planes")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]]))
