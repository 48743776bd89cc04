"""Other processors than this one: what machine code is compiled for in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from llvmlite import binding
from numba.core.registry import cpu_target

from flowarchive import tiles

_HOST = binding.get_host_cpu_features()
_WITHOUT_AMX = ",".join(f"+{f}" for f, there in _HOST.items() if there and "amx" not in f)

PLAIN = pytest.param("plain", "generic", "", id="plain")
AVX2 = pytest.param("avx2", "haswell", "+sse4.2,+avx,+avx2", id="avx2")
VNNI = pytest.param(
    "avx512vnni",
    binding.get_host_cpu_name(),
    _WITHOUT_AMX,
    id="avx512vnni",
    marks=pytest.mark.skipif(not _HOST.get("avx512vnni"), reason="needs AVX512-VNNI"),
)
OLDER = [PLAIN, AVX2, VNNI]
"""Of each what `way` says there, and what numba calls the processor and its features."""


def way() -> str:
    """How sums of products are made here."""
    features: Any = cpu_target.target_context.codegen()._tm_features
    if tiles.has_amx():
        return "amx"
    return next((way for way in ("avx512vnni", "avx2") if f"+{way}" in features), "plain")


def environment(name: str, features: str) -> dict[str, str]:
    """What makes a process compile for a processor, and find the package and its tests."""
    here = Path(__file__).parent
    return {
        "PYTHONPATH": os.pathsep.join([str(here.parent), str(here)]),
        "NUMBA_CPU_NAME": name,
        "NUMBA_CPU_FEATURES": features,
    }


def call(function: str, name: str, features: str) -> list[str]:
    """Call MODULE.FUNCTION of the tests on a processor; its way, and what is returned."""
    module = function.split(".", maxsplit=1)[0]
    script = f"import processors, {module}; print(processors.way(), {function}())"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment(name, features)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()
