"""What a wheel's CUDA module needs and holds: ``python tests/packaging/cuda_wheel.py WHEEL...``, which ``make wheels`` runs.

It prints, and exits 1 where a wheel would not load on a machine without CUDA or lacks code that its compiler can make: the
CUDA release, architectures of machine code and of PTX, libraries, and the oldest driver that runs it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# NVIDIA's oldest Linux driver of each major release, which runs machine code of all of its minor ones.
DRIVERS = {12: "525.60.13", 13: "580.65.06"}
SYSTEM = re.compile(r"lib(stdc\+\+|m|gcc_s|c|pthread|dl|rt)\.so|ld-linux")


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _cuobjdump() -> str:
    try:
        import triton
    except ImportError:
        return shutil.which("cuobjdump") or "cuobjdump"
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")


def inspect(wheel: Path) -> tuple[dict[str, str], list[str]]:
    """Facts about the wheel's CUDA module, and what is wrong with it."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if re.search(r"_cuda_module.*\.so$", name)]
        info = json.loads(archive.read("lnb_kernels/_build_info.json"))["cuda"]
        if not names:
            return {}, [f"no CUDA module: {info.get('reason', 'unknown')}"]
        module = archive.extract(names[0], folder)
        cuda = re.search(r"nvcc (\d+)\.(\d+)", info["compiler"])
        assert cuda is not None, info
        major, minor = int(cuda[1]), int(cuda[2])
        code = set(re.findall(r"\.(sm_\w+)\.cubin", _run(_cuobjdump(), "-lelf", module)))
        ptx = set(re.findall(r"\.(sm_\w+)\.ptx", _run(_cuobjdump(), "-lptx", module)))
        libraries = re.findall(r"NEEDED.*\[(.*?)\]", _run("readelf", "-dW", module))
        glibc = re.findall(r"GLIBC_(2\.\d+)", _run("readelf", "-VW", module))
    expected = {"sm_80", "sm_90a"} | ({"sm_100a"} if (major, minor) >= (12, 8) else set())
    foreign = [library for library in libraries if not SYSTEM.match(library)]
    faults = [f"needs {library}" for library in foreign]
    if code != expected:
        faults.append(f"has machine code for {sorted(code)} instead of {sorted(expected)}")
    if ptx != {"sm_80"}:
        faults.append(f"has PTX of {sorted(ptx)} instead of sm_80")
    facts = {
        "CUDA": f"{major}.{minor}",
        "machine code": " ".join(sorted(code)),
        "PTX": " ".join(sorted(ptx)),
        "driver": f"{DRIVERS.get(major, 'unknown')} or newer",
        "libraries": " ".join(libraries),
        "glibc": "2." + str(max(int(version[2:]) for version in glibc)),
        "bytes": str(wheel.stat().st_size),
    }
    return facts, faults


def main(wheels: list[str]) -> int:
    """Inspect all; the exit status."""
    wrong = 0
    for wheel in map(Path, wheels):
        facts, faults = inspect(wheel)
        print(wheel)
        for name, value in facts.items():
            print(f"  {name:14}{value}")
        for fault in faults:
            print(f"  FAULT: {fault}")
        wrong += bool(faults)
    return 1 if wrong or not wheels else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
