"""Machine code that outlives its process: found again, inlined by others, and kept from others."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from numba import types
from numba.core.registry import cpu_target

from flowarchive import loops
from flowarchive.ans import push_rows

LOOPS = """
from flowarchive.loops import compiled

@compiled
def inner(x):
    return 3 * x + 1

@compiled
def outer(x):
    total = 0
    for i in range(10):
        total += inner(x + i)
    return total

def hits(function):
    return sum(function.stats.cache_hits.values())
"""
OTHERS = """
import numba

BASE = {"b": 40}

@numba.jit(forceobj=True, cache=True)
def look_up(name):
    return BASE[name] + 2
"""


@pytest.fixture
def run(tmp_path):
    """Run statements in a process of its own, in a folder with these modules and their cache."""
    (tmp_path / "mine.py").write_text(LOOPS)
    (tmp_path / "others.py").write_text(OTHERS)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    place = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": path}

    def run(statements: str, **env: str) -> str:
        command = [sys.executable, "-c", statements]
        done = subprocess.run(
            command, env=os.environ | place | env, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    return run


def test_what_was_loaded_is_inlined_and_loaded_again(run):
    assert run("from mine import *; print(inner(5), hits(inner))") == "16 0"
    both = "from mine import *; print(inner(5), hits(inner), outer(2), hits(outer))"
    assert run(both) == "16 1 205 0"  # what calls it is compiled against what was loaded
    assert run(both) == "16 1 205 1"


def test_without_a_directory_to_keep_it_in_machine_code_is_made_anew(run, tmp_path):
    # Not even root can make a directory where there is a file.
    (tmp_path / "__pycache__").write_text("")
    nowhere = str(tmp_path / "mine.py" / "cache")
    kept = "from mine import *; print(outer(2), hits(inner), type(outer._cache).__name__)"
    for _ in range(2):
        found = run(kept, NUMBA_CACHE_DIR="", XDG_CACHE_HOME=nowhere, HOME=nowhere)
        assert found == "205 0 NullCache"


def test_caches_of_others_are_left_alone(run):
    other = "from others import look_up; print(look_up('b'))"
    assert run(other) == "42"
    assert run("from mine import *; print(inner(5))") == "16"
    assert run(f"from mine import *; print(inner(5)); {other}") == "16\n42"
    assert run(other) == "42"


def test_other_sources_are_other_machine_code(monkeypatch):
    codegen = cpu_target.target_context.codegen()
    cache = push_rows._cache  # type: ignore[attr-defined]
    key = cache._index_key((types.int64,), codegen)
    assert key == cache._index_key((types.int64,), codegen)
    monkeypatch.setattr(loops, "_sources", lambda: "another day")
    assert key != cache._index_key((types.int64,), codegen)


def test_sources_are_all_of_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(loops, "__file__", str(tmp_path / "loops.py"))
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "a.py").write_text("x = 1")
    first = loops._sources.__wrapped__()
    (tmp_path / "room" / "a.py").write_text("x = 12")
    assert loops._sources.__wrapped__() != first
