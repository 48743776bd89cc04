"""The house's own rules: public names, layers, file lengths, start-up cost, nothing executable."""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import flowarchive

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("flowarchive", "triton_kernels")
MAX_LINES = 600


# Which modules may import what: the start of a module's name after `flowarchive.`
ALLOWED = {
    "av": ("media",),
    "typer": ("cli",),
    "rich": ("cli",),
    "click": (),
    "torch": (
        "bitsback",
        "codec",
        "device",
        "exact",
        "flows",
        "models",
        "train",
    ),
    "safetensors": ("store", "train"),
    "triton_kernels": ("device",),
}
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
RUNNERS = {"eval", "exec", "compile", "__import__"}
TORCH_FILES = {"load", "save", "hub", "package"}


def _sources(*folders: str) -> list[Path]:
    return sorted(p for folder in folders for p in (ROOT / folder).rglob("*.py"))


def _imports(tree: ast.AST) -> set[str]:
    """Top-level package of every import, and `flowarchive.x` in full."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found | {name.split(".")[0] for name in found}


def _runs_code(tree: ast.AST) -> list[str]:
    """Every call or import in `tree` by which bytes could become code."""
    faults = [f"import {name}" for name in sorted(_imports(tree) & PICKLES)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in RUNNERS:
                faults.append(f"{node.func.id}() in line {node.lineno}")
            faults += [
                f"allow_pickle in line {node.lineno}"
                for keyword in node.keywords
                if keyword.arg == "allow_pickle"
                and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
            ]
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and (node.value.id, node.attr) in {("torch", name) for name in TORCH_FILES}
        ):
            faults.append(f"torch.{node.attr} in line {node.lineno}")
    return faults


@pytest.mark.parametrize("path", _sources(*PACKAGES), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_code_runs_from_bytes(path):
    assert _runs_code(ast.parse(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    ["import pickle", "from dill import loads", "torch.load('x')", "eval('1')",
     "np.load('x', allow_pickle=True)", "def f():\n    import marshal"],
)  # fmt: skip
def test_the_search_for_executable_bytes_finds_it(source):
    assert _runs_code(ast.parse(source)) != []


@pytest.mark.parametrize("path", _sources("flowarchive"), ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_named_modules_import(path):
    module = path.relative_to(ROOT / "flowarchive").with_suffix("").parts[0]
    imported = _imports(ast.parse(path.read_text()))
    wrong = {
        name for name, allowed in ALLOWED.items() if name in imported and module not in allowed
    }
    assert not wrong, f"flowarchive.{module} may not import {sorted(wrong)}"


def test_layers():
    run = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Imports point down only KEPT" in run.stdout


@pytest.mark.parametrize(
    "path",
    _sources(*PACKAGES, "tests", "examples"),
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_file_length(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES


def test_public_names_are_the_ones_type_checkers_see():
    tree = ast.parse((ROOT / "flowarchive" / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    names = {
        alias.asname or alias.name
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted({*names, "__version__"}) == flowarchive.__all__
    assert dir(flowarchive) == flowarchive.__all__


def test_every_error_is_public():
    errors = importlib.import_module("flowarchive.errors")
    assert set(errors.__all__) <= set(flowarchive.__all__)
    assert all(getattr(flowarchive, name) is getattr(errors, name) for name in errors.__all__)


@pytest.mark.parametrize("name", flowarchive.__all__)
def test_public_name_loads(name):
    assert getattr(flowarchive, name) is not None


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'encode'"):
        _ = flowarchive.encode


@pytest.mark.parametrize(
    "statement",
    ["import flowarchive", "import flowarchive.cli", "from flowarchive import Frame, VideoFormat",
     "import sys; sys.argv = ['flowarchive', '--help']; from flowarchive.cli import main; main()"],
    ids=["package", "cli", "frames", "help"],
)  # fmt: skip
def test_start_up_is_light(statement):
    script = (
        "import sys, atexit\n"
        "heavy = ('torch', 'av', 'numba', 'zstandard', 'safetensors', 'triton')\n"
        "atexit.register(lambda: print(*(m for m in heavy if m in sys.modules), file=sys.stderr))\n"
        f"{statement}\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr.strip()) == (0, "")


def _run_in(folder: Path, *args: str | Path) -> str:
    """Run Python with the clip at hand, as a reader of README.md or examples/ would."""
    shutil.copy(ROOT / "examples" / "clip.mkv", folder)
    run = subprocess.run(
        [sys.executable, "-W", "error", *map(str, args)],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


def test_the_demo_proves_the_planes_equal(tmp_path):
    out = _run_in(tmp_path, ROOT / "examples" / "demo.py", "clip.mkv", "out")
    assert "72 planes of 24 frames equal" in out
    assert "bits/sample" in out
    assert (tmp_path / "out" / "clip.flow").stat().st_size > 0


def test_custom_source_and_read_frames(tmp_path):
    examples = ROOT / "examples"
    assert "8 frames of 16-bit depth, equal" in _run_in(
        tmp_path, examples / "custom_source.py", "depth.flow"
    )
    assert "frame 4: pts 4, mean luma" in _run_in(
        tmp_path, examples / "read_frames.py", "depth.flow"
    )


def test_the_python_of_the_readme_runs(tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    assert blocks
    for block in blocks:
        assert "bits/sample" in _run_in(tmp_path, "-c", block)


def test_the_clip_is_the_one_its_readme_describes():
    digest = hashlib.sha256((ROOT / "examples" / "clip.mkv").read_bytes()).hexdigest()
    assert digest in (ROOT / "examples" / "README.md").read_text()
