"""The CPU kernels on aarch64: compiled by a cross compiler, run by an emulator, each where it is installed.

On Debian they are the packages g++-aarch64-linux-gnu and qemu-user-static.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
CSRC = Path(__file__).resolve().parents[2] / "csrc"
# As csrc/cpu/sources.cmake compiles the loops, with warnings as errors.
FLAGS = ["-std=c++17", "-O2", "-fopenmp-simd", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
FLAGS += ["-Wall", "-Wextra", "-Wshadow", "-Werror", "-static", "-pthread", f"-I{CSRC}", "-DLNB_LOOPS=portable_loops"]


@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"{COMPILER} is not installed")
def test_portable_kernels(tmp_path: Path) -> None:
    sources = sorted((CSRC / "cpu").glob("*.cpp"))
    program = tmp_path / "check"
    check = Path(__file__).with_name("aarch64_check.cpp")
    done = subprocess.run(
        [COMPILER, *FLAGS, *map(str, sources), str(check), "-o", str(program), "-ldl"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if shutil.which(EMULATOR) is None:
        pytest.skip(f"compiled; not run: {EMULATOR} is not installed")
    done = subprocess.run([EMULATOR, str(program)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 instruction sets, best portable" in done.stdout
