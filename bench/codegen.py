"""Compile every kernel in every shipped configuration ahead of time and measure the code: no GPU needed.

    python bench/codegen.py             # write bench/codegen.json; with --only or --targets, those rows of it
    python bench/codegen.py --check     # compile again, compare with it, exit 1 on a violated budget

For each case of ``cases.py`` and each architecture: registers, spilled bytes, shared memory, and the number of
tensor-core instructions (HMMA, HGMMA, UTCHMMA and the tf32 forms; MFMA on AMD), and of loads of single 16-bit elements.
Budgets: no spills, tensor-core instructions where the recorded code has them, no narrow loads where it has none, registers
at most 10% above the recorded number; and at least as many
programs share a multiprocessor as the cost model of the Gram kernel assumes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launches import Launch

    from lnb_kernels._triton.arch import Arch

sys.path[:0] = [str(Path(__file__).resolve().parent)]
os.environ.pop("TRITON_INTERPRET", None)

TABLE = Path(__file__).with_name("codegen.json")
TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
TENSOR_CORE = re.compile(r"\b(HMMA|HGMMA|UTCHMMA|UTCQMMA|UTCIMMA|DMMA)\b|\bv_mfma_\w+")
GROWTH = 1.10


def _tool(name: str) -> str:
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _cuda_figures(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [_tool("cuobjdump"), "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
        sass = subprocess.run([_tool("nvdisasm"), "-c", file.name], capture_output=True, text=True, check=True).stdout
    registers = int(re.search(r"REG:(\d+)", usage).group(1))
    spills = len(re.findall(r"\b(?:STL|LDL)\b", sass))
    return {
        "registers": registers,
        "spills": spills,
        "tensor_core": len(TENSOR_CORE.findall(sass)),
        "async_copies": len(re.findall(r"\b(?:LDGSTS|UTMALDG)\b", sass)),
        "narrow_loads": len(re.findall(r"\bLDG\.[\w.]*[US]16\b", sass)),
    }


def _hip_figures(assembly: str) -> dict[str, int]:
    def value(key: str) -> int:
        return int(re.search(rf"\.{key}:\s+(\d+)", assembly).group(1))

    spills = value("vgpr_spill_count")  # spilled scalar registers go to lanes of vector registers, not to memory
    return {
        "registers": value("vgpr_count"),
        "spills": spills,
        "tensor_core": len(TENSOR_CORE.findall(assembly)),
        "async_copies": 0,
        "narrow_loads": len(re.findall(r"\bglobal_load_(?:[us]short|short_d16\w*)\b", assembly)),
    }


def together(row: dict[str, int], warps: int, arch: Arch) -> int:
    """Programs that share a multiprocessor by registers, shared memory and warps (vendors' occupancy rules)."""
    shared = arch.shared_bytes // max(1, row["shared_bytes"])
    if arch.name == "gfx942":  # 512 registers for the waves of each of four units, in groups of 8 a lane
        waves = min(8, 512 // (-(-row["registers"] // 8) * 8))
        return min(shared, 4 * waves // warps)
    registers = 65536 // (-(-row["registers"] // 8) * 8 * 32 * warps)
    # Besides what it asks for, a program takes 1 KiB of the multiprocessor's memory, which has 1 KiB more than one may have.
    return min((arch.shared_bytes + 1024) // (row["shared_bytes"] + 1024), registers, 64 // warps, 32)


def assumed_together(launch: Launch, arch: Arch) -> int:
    """What the heuristics of a Gram kernel's launch assume of :func:`together`."""
    from lnb_kernels._triton.descriptors import loads_in_vectors
    from lnb_kernels._triton.gram_cost import loads_take_few_registers, programs_per_multiprocessor

    value = launch.values
    itemsize = 4 if value["HAS_WEIGHTS"] else value["x_ptr"].element_size()
    staged = value["STAGE_HEAD"] or value["head"] < value["tiles"]
    vectors = not value["PLANES"] and loads_in_vectors(value["x_ptr"])
    aligned = loads_take_few_registers(vectors, value["DESCRIPTORS"], arch)
    return programs_per_multiprocessor(
        value["BLOCK_I"], value["BLOCK_J"], itemsize, staged, aligned, arch, value["ONE_TILE"]
    )


def measure(job: tuple[str, str]) -> dict[str, dict[str, Any]]:
    """Compile all launches of one case for one target; the keys are ``case/kernel/target``."""
    case, target = job
    import triton
    from cases import cases
    from launches import record
    from triton.backends.compiler import GPUTarget

    from lnb_kernels._triton.arch import ARCHS

    rows: dict[str, dict[str, Any]] = {}
    arch = ARCHS[target]
    seen: dict[str, list[Any]] = {}
    for launch in record(cases()[case], arch):
        # One case may launch a kernel with several sets of constants: the second is kernel#2, and so on.
        variants = seen.setdefault(launch.name, [])
        variant = (launch.signature, launch.constants, launch.attributes, launch.options)
        if variant in variants:
            continue
        variants.append(variant)
        name = launch.name if len(variants) == 1 else f"{launch.name}#{len(variants)}"
        source = triton.compiler.ASTSource(launch.kernel, launch.signature, launch.constants, launch.attributes)
        compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options=launch.options)
        figures = (
            _cuda_figures(compiled.asm["cubin"]) if "cubin" in compiled.asm else _hip_figures(compiled.asm["amdgcn"])
        )
        row = {**figures, "shared_bytes": compiled.metadata.shared}
        if launch.name == "gram_kernel":
            row["together"] = together(row, launch.options["num_warps"], arch)
            row["together_assumed"] = assumed_together(launch, arch)
        rows[f"{case}/{name}/{target}"] = row
    return rows


def measure_all(names: list[str], targets: list[str], workers: int) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    with ProcessPoolExecutor(workers) as pool:
        for part in pool.map(measure, [(name, target) for name in names for target in targets]):
            rows.update(part)
    return dict(sorted(rows.items()))


def measured_again(key: str, names: list[str], targets: list[str]) -> bool:
    """Whether a recorded row belongs to one of the cases ``names``, or to none that exists, and to one of ``targets``."""
    from cases import cases

    case, _, target = key.rsplit("/", 2)
    return target in targets and (case in names or case not in cases())


def violations(measured: dict[str, dict[str, Any]], recorded: dict[str, dict[str, Any]]) -> list[str]:
    """What the budgets forbid, one sentence each."""
    from lnb_kernels._triton.arch import ARCHS

    problems = []
    for key, row in measured.items():
        if row["spills"]:
            problems.append(f"{key}: {row['spills']} spill instructions; allowed 0")
        limit = ARCHS[key.rsplit("/", 1)[1]].shared_bytes
        if row["shared_bytes"] > limit:
            problems.append(f"{key}: {row['shared_bytes']} bytes of shared memory; the architecture has {limit}")
        if row.get("together", 1) < row.get("together_assumed", 1):
            problems.append(
                f"{key}: {row['together']} programs share a multiprocessor; the cost model assumes {row['together_assumed']}"
            )
        before = recorded.get(key)
        if before is None:
            problems.append(f"{key}: not in {TABLE.name}; run bench/codegen.py and commit the table")
            continue
        if before["tensor_core"] and not row["tensor_core"]:
            problems.append(f"{key}: no tensor-core instructions; recorded {before['tensor_core']}")
        if row["narrow_loads"] and before.get("narrow_loads") == 0:
            problems.append(f"{key}: {row['narrow_loads']} loads of single 16-bit elements; recorded none")
        if row["registers"] > GROWTH * before["registers"]:
            problems.append(f"{key}: {row['registers']} registers; recorded {before['registers']}, allowed 10% more")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the recorded table instead of writing it")
    parser.add_argument("--only", default="", help="cases whose name contains this text")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    import triton
    from cases import cases

    names = [name for name in cases() if options.only in name]
    measured = measure_all(names, options.targets, options.workers)
    if not options.check:
        for key, row in measured.items():
            print(f"{key:70s}", *(f"{k}={v}" for k, v in row.items()))
        rows = json.loads(TABLE.read_text())["rows"] if TABLE.exists() else {}
        rows = {key: row for key, row in rows.items() if not measured_again(key, names, options.targets)}
        text = json.dumps({"triton": triton.__version__, "rows": dict(sorted({**rows, **measured}.items()))}, indent=1)
        TABLE.write_text(text + "\n")
        return 0
    table = json.loads(TABLE.read_text())
    problems = violations(measured, table["rows"])
    missing = (
        set()
        if options.only
        else {k for k in set(table["rows"]) - set(measured) if k.rsplit("/", 1)[1] in options.targets}
    )
    problems += [f"{key}: recorded, but no longer shipped; run bench/codegen.py" for key in sorted(missing)]
    print(f"{len(measured)} kernels checked, {len(problems)} violations")
    print(*problems, sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
