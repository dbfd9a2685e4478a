"""The machine code of the CUDA module as it is installed: no spills, registers in budget, 128-bit accesses, tensor cores, every
architecture.

cuobjdump comes with triton. Spilled registers would be stack or local memory, and STL and LDL instructions.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import lnb_kernels
from lnb_kernels import _extension

ARCHS = {"sm_80", "sm_90a", "sm_100a"}
# Registers per thread: multi-tensor kernels run 4 blocks of 256 threads on a multiprocessor, the others at least 2.
REGISTERS = {
    "ema_combined_kernel": 64, "dot_kernel": 64, "apply_kernel": 64, "all_finite_kernel": 64,
    "segment_sums_kernel": 64, "moment_flags_kernel": 64,
    "direct_kernel": 128, "finish_kernel": 128, "fused_apply_kernel": 64,
    "pcg_rows_kernel": 128, "pcg_phase_kernel": 128, "probe_kernel": 16,
    "conv_moments_kernel": 128,
    "average_moments_kernel": 64, "input_metrics_kernel": 128, "spd_inverses_kernel": 128,
    # One thread block has a multiprocessor's shared memory, and so its registers.
    "output_moments_kernel": 255, "output_roots_kernel": 255, "newton_schulz_roots_kernel": 255,
}  # fmt: skip
READS_BY_16_BYTES = {
    "ema_combined_kernel", "dot_kernel", "apply_kernel", "all_finite_kernel", "pcg_phase_kernel",
    "average_moments_kernel", "output_moments_kernel",
    "direct_kernel", "finish_kernel",
    "fused_apply_kernel", "conv_moments_kernel",
}  # fmt: skip
WRITES_VECTORS = {
    "ema_combined_kernel",
    "apply_kernel",
    "average_moments_kernel",
    "direct_kernel",
    "fused_apply_kernel",
    "conv_moments_kernel",
}  # of 16 bytes, or of 8 where the written tensor is the narrower
MULTIPLIES_ON_TENSOR_CORES = {"direct_kernel", "conv_moments_kernel"}
READS_NOTHING_NARROWER = {"conv_moments_kernel"}  # than 16 bytes of a tensor, and its fragments whole

CUDA_BUILD = _extension.build_info().get("cuda", {"built": False, "reason": "nothing was built"})
pytestmark = pytest.mark.skipif(
    not CUDA_BUILD["built"], reason=f"THE CUDA KERNELS' CODE IS NOT CHECKED: {CUDA_BUILD.get('reason')}"
)


def module() -> Path:
    [file] = Path(lnb_kernels.__file__).parent.glob("_cuda_module*.so")
    return file


def cuobjdump(*options: str) -> str:
    triton = pytest.importorskip("triton")
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [str(tool) if tool.exists() else shutil.which("cuobjdump") or "cuobjdump", *options, str(module())]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def kernel_of(symbol: str) -> str:
    # The longest: the name of one kernel may end with another's.
    return max((kernel for kernel in REGISTERS if kernel in symbol), key=len)


def test_module_has_code_for_every_architecture_and_ptx_for_later_ones() -> None:
    if CUDA_BUILD["archs"] != "80 90a-real 100a-real":
        pytest.skip(f"built for other architectures than the default: {CUDA_BUILD['archs']}")
    assert set(re.findall(r"\.(sm_\w+)\.cubin", cuobjdump("-lelf"))) == ARCHS
    assert set(re.findall(r"\.(sm_\w+)\.ptx", cuobjdump("-lptx"))) == {"sm_80"}


def test_no_stack_no_local_memory_and_registers_in_budget() -> None:
    usage = cuobjdump("-res-usage")
    rows = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert {kernel_of(symbol) for symbol, *_ in rows} == set(REGISTERS)
    for symbol, registers, stack, local in rows:
        assert (int(stack), int(local)) == (0, 0), symbol
        assert int(registers) <= REGISTERS[kernel_of(symbol)], (symbol, registers)


def test_accesses_are_of_128_bits_and_none_goes_to_local_memory() -> None:
    functions = re.split(r"Function : (\S+)", cuobjdump("-sass"))[1:]
    assert len(functions) // 2 >= 40 * len(CUDA_BUILD["archs"].split())
    for symbol, code in zip(functions[::2], functions[1::2], strict=True):
        kernel = kernel_of(symbol)
        assert not re.search(r"\b(STL|LDL)\b", code), symbol
        assert bool(re.search(r"\bLDG\.E\.(\w+\.)*128", code)) >= (kernel in READS_BY_16_BYTES), symbol
        assert bool(re.search(r"\bHMMA\.", code)) == (kernel in MULTIPLIES_ON_TENSOR_CORES), symbol
        if kernel in READS_NOTHING_NARROWER:
            assert (
                set(re.findall(r"\bLDG\.[\w.]*", code)) - set(re.findall(r"\bLDG\.E\.(?:\w+\.)*128[\w.]*", code))
                == set()
            )
            assert re.search(r"\bLDSM\.16\.M88\.4\b", code), symbol
            assert not re.search(r"\bLD\.E", code), symbol
        assert bool(re.search(r"\bSTG\.E\.(\w+\.)*(64|128)", code)) >= (kernel in WRITES_VECTORS), symbol
