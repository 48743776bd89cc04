"""Kernels compile ahead of time, and the check of what comes out would see what it is there for."""

from __future__ import annotations

import importlib
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from models import make_video_model

from flowarchive import lattice
from triton_kernels import ahead, cases

FINE = ahead.Outcome(registers=90, spills=0, shared=1024, product="mma.sync.s32.s8.s8.s32")
HOT = cases.Case("hot", lambda: None, multiplies=True)


def test_faults_are_found():
    assert ahead.faults(HOT, FINE) == []
    assert ahead.faults(HOT, ahead.Outcome(255, 8, 0, FINE.product)) == ["spills"]
    assert len(ahead.faults(HOT, ahead.Outcome(90, 0, 0, ""))) == 1
    assert ahead.faults(HOT, replace(FINE, contracts=True)) == ["floats may be contracted"]
    assert ahead.faults(cases.Case("cold", lambda: None, hot=False), FINE) == []


def test_other_products_are_none():
    """Floats on tensor cores, and bytes multiplied beside them, do not pass for what is wanted."""
    for text in ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", "dp4a.s32.s32", "imad"):
        assert not any(pattern.search(text) for pattern in ahead.PRODUCTS.values())


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.name)
def test_every_case_launches(case):
    """What is compiled is what the launchers launch, with all their parameters."""
    for launch in cases.launches(case).values():
        assert set(launch.kernel.arg_names) == set(launch.arguments)


def test_every_kernel_is_a_case():
    every = {launch for case in cases.CASES for launch in cases.launches(case)}
    with cases.recorded():
        names = {
            name for module in cases.MODULES for name in vars(module) if name.endswith("_kernel")
        }
    assert every == names


def test_the_roofline_counts_what_the_model_says(root, monkeypatch):
    """Launches on tensors without memory: the networks' products are the model's, of any size."""
    monkeypatch.syspath_prepend(root / "tests" / "bench")
    roofline = importlib.import_module("roofline")
    model, height, width = make_video_model(), 17, 22
    launches = []
    for chunks in (1, 3):
        counter = roofline.Counter(model, height, width, chunks)
        counter.give()
        for kind, step in (("intra", counter.intra()), ("inter", counter.inter())):
            expected = 0
            for part, (count, h, w) in (("luma", (1, 17, 22)), ("chroma", (2, 9, 11))):
                nets = model.nets[f"{kind}_{part}"]
                for level in range(lattice.level_count((h, w))):
                    shape = nets[min(level, 2)].shape
                    weights = shape.weights().items()
                    heads = sum(math.prod(s) for name, s in weights if name.startswith("heads"))
                    gh, gw = -(-h // (2 << level)), -(-w // (2 << level))
                    expected += chunks * count * gh * gw * (shape.macs() + heads)
            assert step.work["networks"].products == expected
            launches.append(step.launches)
        plan = counter.plan()
        assert plan.work["search"].launches > 0
        launches.append(plan.launches)
        assert (counter.link.traffic.uploads, counter.link.traffic.downloads) == (1, 1)
    assert launches[:3] == launches[3:]  # chunks together take no more


def compile_alone(root, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python where the compilers, not the interpreter, are Triton's."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *words],
        cwd=root, env={**env, "PYTHONPATH": str(root)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_network_layer_keeps_its_tensor_cores(root):
    """The compilers themselves, for all targets; `make kernels` compiles the rest."""
    run = compile_alone(root, "-m", "triton_kernels.ahead", "80>64")
    assert run.returncode == 0, run.stdout + run.stderr
    rows = [line.split() for line in run.stdout.splitlines() if line.startswith("conv")]
    assert [row[4] for row in rows] == list(ahead.TARGETS)
    assert ["mma" in row[-1] or "mfma" in row[-1] for row in rows] == [True] * 3


def test_floats_are_compiled_as_they_are_launched(root):
    """Everything is launched without contraction of floats, and so compiled.

    A launch that asks for nothing would let compilers contract; `fade` is the smallest there is.
    """
    for case in cases.CASES:
        for launch in cases.launches(case).values():
            assert launch.options["enable_fp_fusion"] is False
    script = (
        "from dataclasses import replace\n"
        "from triton_kernels import ahead, cases\n"
        "case = next(c for c in cases.CASES if c.name.startswith('filters, 38'))\n"
        "fade = cases.launches(case)['fade_kernel']\n"
        "for options in (fade.options, {}):\n"
        "    print(ahead.compile_launch(replace(fade, options=options), 'sm_80').contracts)\n"
    )
    run = compile_alone(root, "-c", script)
    assert run.stdout.split() == ["False", "True"], run.stderr
