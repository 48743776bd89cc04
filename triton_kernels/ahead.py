"""Compile every kernel ahead of time, for GPUs that need not be there, and look at the outcome.

    python -m triton_kernels.ahead

What is compiled is what the launchers launch, see `cases`. The check fails where a hot
kernel spills registers, where a product of bytes has lost its integer tensor-core instruction, or
where operations on floats may be contracted, which would round otherwise than the CPU does.

It compiles and reads; it runs nothing, and says nothing of speed or of a driver's own compiler.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from triton_kernels.cases import CASES, Case, Launch, launches

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
PRODUCTS = {
    "sm_80": re.compile(r"mma\.sync\.\S*s32\.s8\.s8\.s32"),
    "sm_90": re.compile(r"wgmma\.mma_async\.\S*s32\.s8\.s8"),
    "gfx942": re.compile(r"v_mfma_i32_\w+_i8"),
}
FLOATS = re.compile(r"arith\.(addf|subf|mulf)\b")
"""Operations, in Triton's own form, of which a compiler makes one where it may."""

TYPES = {
    torch.int8: "*i8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
}
ALIGNMENT = 16


@dataclass(frozen=True)
class Outcome:
    """What a compiler made of a launch.

    Attributes:
        registers: Of a thread.
        spills: Bytes a thread stores away, or for AMD how many registers.
        shared: Bytes of shared memory of a program.
        product: The instruction that carries sums of products of bytes; empty where none does.
        contracts: Whether the compiler was free to make one operation of two on floats.
    """

    registers: int
    spills: int
    shared: int
    product: str
    contracts: bool = False


def compile_launch(launch: Launch, target: str) -> Outcome:
    """Compile a launch for one of TARGETS and read what came out."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
            continue
        if isinstance(value, Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            aligned = True
        else:
            signature[parameter.name] = "i32"
            aligned = value % ALIGNMENT == 0 and not parameter.do_not_specialize
        if aligned:
            attributes[(index,)] = [["tt.divisibility", ALIGNMENT]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    options = dict(launch.options)
    if TARGETS[target].backend == "hip":
        options.pop("maxnreg", None)  # NVIDIA's alone
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    text = compiled.asm.get("ptx") or compiled.asm["amdgcn"]
    product = PRODUCTS[target].search(text)
    fuses = compiled.metadata.enable_fp_fusion
    registers, spills = _of_ptxas(text, target, fuses) if "ptx" in compiled.asm else _of_amd(text)
    return Outcome(
        registers, spills, compiled.metadata.shared, product[0] if product else "",
        fuses and FLOATS.search(compiled.asm["ttir"]) is not None,
    )  # fmt: skip


def _of_ptxas(text: str, target: str, fuses: bool) -> tuple[int, int]:
    """Registers and spilled bytes of a thread, by the assembler that Triton would call."""
    arch = re.search(r"^\.target (\w+)", text, re.MULTILINE)
    assert arch is not None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(text)
        run = subprocess.run(
            [get_ptxas(TARGETS[target].arch).path, "-v", f"--fmad={str(fuses).lower()}",
             "--regAllocOptLevel=2", f"--gpu-name={arch[1]}", str(file),
             "-o", str(file.with_suffix(".cubin"))],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    said = run.stderr + run.stdout
    used = [int(n) for n in re.findall(r"Used (\d+) registers", said)]
    spilled = [int(n) for n in re.findall(r"(\d+) bytes spill", said)]
    return max(used), sum(spilled)


def _of_amd(text: str) -> tuple[int, int]:
    """Vector registers, and how many of them are spilled to memory.

    Scalar ones that do not fit are kept in a vector register's lanes.
    """
    found = dict(re.findall(r"\.(vgpr_(?:spill_)?count):\s+(\d+)", text))
    return int(found["vgpr_count"]), int(found["vgpr_spill_count"])


def faults(case: Case, outcome: Outcome) -> list[str]:
    """What is wrong with an outcome."""
    found = []
    if case.hot and outcome.spills:
        found.append("spills")
    if case.multiplies and not outcome.product:
        found.append("no integer tensor-core instruction")
    if outcome.contracts:
        found.append("floats may be contracted")
    return found


def main() -> int:
    """Print the table; return 1 where a kernel has a fault. Arguments pick cases by their names."""
    wrong = 0
    chosen = [c for c in CASES if not sys.argv[1:] or any(word in c.name for word in sys.argv[1:])]
    print(f"triton {triton.__version__}; compiled ahead of time, nothing was run on a GPU")
    row = "{:<34} {:<7} {:>9} {:>6} {:>7}  {}"
    print(row.format("kernel", "target", "registers", "spills", "shared", "product"))
    for case in chosen:
        made = launches(case)
        for name, launch in made.items():
            label = case.name if len(made) == 1 else f"{case.name}: {name.removesuffix('_kernel')}"
            for target in TARGETS:
                outcome = compile_launch(launch, target)
                bad = faults(case, outcome)
                wrong += bool(bad)
                note = " ".join([outcome.product, *(f"FAULT: {fault}" for fault in bad)])
                print(
                    row.format(
                        label, target, outcome.registers, outcome.spills, outcome.shared, note
                    ).rstrip(),
                    flush=True,
                )
    if wrong:
        print(f"{wrong} faults", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
