"""Hypothesis profiles, and the command line as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Kernels run in Triton's interpreter, which has to be known before the first one is imported.
os.environ["TRITON_INTERPRET"] = "1"

# The machines are shared: no test fails for being slow, and a run repeats exactly unless asked.
settings.register_profile(
    "house", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("search", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "house"))

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture
def run_cli(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `flowarchive ARGS` in the test's own folder, with no terminal around it."""

    def run(*args: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flowarchive", *map(str, args)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small random model as a file."""
    from models import write_model  # brings torch in

    path = tmp_path_factory.mktemp("model") / "small.safetensors"
    return str(write_model(path, seed=1, group_norm=False))


@pytest.fixture
def packaged(model: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of that model as one of the package."""
    from flowarchive import store

    data = Path(model).read_bytes()
    monkeypatch.setattr(store, "_packaged", lambda: {"house": data})
    return "house"
