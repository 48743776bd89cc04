"""The same bytes on any machine: `python tests/bench/everywhere.py CLIP...`.

Packs every clip twice, in a process that may use everything this processor has and in one that is
held to SSE4.1, plain ATen kernels and one thread; compares the two archives byte for byte; and
verifies each of them, against the source, in the process of the other kind.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

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


def main(clips: list[Path]) -> int:
    different = 0
    with tempfile.TemporaryDirectory() as folder:
        wide, narrow = Path(folder) / "wide.flow", Path(folder) / "narrow.flow"
        for clip in clips:
            run(WIDE, 2, "pack", str(clip), "-f", "-o", str(wide))
            run(NARROW, 1, "pack", str(clip), "-f", "-o", str(narrow))
            same = wide.read_bytes() == narrow.read_bytes()
            different += not same
            run(NARROW, 1, "verify", str(wide), "--source", str(clip))
            run(WIDE, 2, "verify", str(narrow), "--source", str(clip))
            digest = hashlib.sha256(wide.read_bytes()).hexdigest()[:16]
            print(f"{clip.name:<32} {'same bytes' if same else 'DIFFERENT':<12} {digest}  verified")
    print(f"{len(clips) - different} of {len(clips)} clips give the same archive either way")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]]))
