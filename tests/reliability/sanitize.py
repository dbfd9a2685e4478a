"""Builds the CPU module with sanitizers and runs the tests of its ops in it: ``make sanitize``.

    python tests/reliability/sanitize.py [address|thread|poison ...] [-- PYTEST ARGUMENTS]

``address`` is the address sanitizer with the undefined-behaviour sanitizer; the module's loops run on torch's OpenMP team.
``thread`` is the thread sanitizer; the loops run on the module's own pool, since how OpenMP's threads wait is not visible to it.
``poison`` is the ordinary module with glibc filling memory that is allocated or freed (``MALLOC_PERTURB_``).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
OPS = (
    "test_two_sided", "test_conv2d_second_moment", "test_multi_tensor", "test_multi_tensor_memory", "test_native_pcg",
    "test_native_products", "test_newton_schulz", "test_pcg_layers", "test_second_moment", "test_spd_inverse",
)  # fmt: skip
TESTS = [
    "tests/reliability/test_pool.py",
    "tests/packaging/test_threads.py",
    "tests/optimizer/test_prepared.py",
    *(f"tests/ops/{name}.py" for name in OPS),
]
# torch's own OpenMP team, which has two threads here, hangs in a forked child: no test with a child.
# Operator checks trace and compile with torch alone; under a sanitizer they take minutes and run the same native calls.
LEFT_OUT = "not opcheck and not traced and not compile and not child"
FLAGS = {"address": "address,undefined", "thread": "thread"}
REPORTS = re.compile(r"(ERROR: AddressSanitizer|runtime error:|WARNING: ThreadSanitizer|SUMMARY: \w+Sanitizer).*")


def built(kind: str) -> Path:
    """A copy of the package whose native module has the sanitizers; the folder to import it from."""
    import pybind11

    folder, package = ROOT / "build" / f"sanitize-{kind}", ROOT / "build" / f"sanitized-{kind}"
    settings = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_MAKE_PROGRAM": _tool("ninja"),
        "LNB_CUDA": "off",
        "LNB_SANITIZE": FLAGS[kind],
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    configure = [_tool("cmake"), "-S", ROOT, "-B", folder, "-G", "Ninja", *(f"-D{k}={v}" for k, v in settings.items())]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    subprocess.run([_tool("cmake"), "--build", folder], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(package, ignore_errors=True)
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "_build_info.json")
    shutil.copytree(ROOT / "lnb_kernels", package / "lnb_kernels", ignore=ignored)
    for module in folder.glob("_native_module*.so"):
        shutil.copy(module, package / "lnb_kernels")
    (package / "lnb_kernels" / "_build_info.json").write_text(
        json.dumps({"built": True, "cuda": {"built": False, "reason": "not built with sanitizers"}})
    )
    return package


def _tool(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else name


def environment(kind: str) -> dict[str, str]:
    """The variables with which the tests of ``kind`` run."""
    if kind == "poison":
        return {"MALLOC_PERTURB_": "165", "OMP_NUM_THREADS": "2"}
    compiler = os.environ.get("CXX", "c++")
    libraries = {"address": ("libasan.so", "libubsan.so", "libstdc++.so"), "thread": ("libtsan.so", "libstdc++.so")}[
        kind
    ]
    found = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in libraries
    ]
    halt = "exitcode=66:abort_on_error=0:halt_on_error=1"
    return {
        "LD_PRELOAD": ":".join(os.path.realpath(path) for path in found),
        # The interpreter and torch leave memory behind at exit, on purpose.
        "ASAN_OPTIONS": f"detect_leaks=0:detect_stack_use_after_return=1:strict_string_checks=1:{halt}",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        # torch is not instrumented: what its threads do to memory between our calls cannot be judged.
        "TSAN_OPTIONS": f"ignore_noninstrumented_modules=1:die_after_fork=0:second_deadlock_stack=1:history_size=4:{halt}",
        "OMP_NUM_THREADS": "2",
    }


def run(kind: str, arguments: list[str]) -> dict[str, object]:
    """Run the tests under ``kind``; how many passed, and what was reported."""
    started = time.monotonic()
    path = "" if kind == "poison" else str(built(kind))
    compiled = time.monotonic()
    options = ["-v", "-s", "-p", "no:cacheprovider", *([] if kind == "poison" else ["-p", "thinned"]), "-k", LEFT_OUT]
    command = [sys.executable, "-m", "pytest", *options, *TESTS, *arguments]
    if kind == "thread" and shutil.which("setarch"):
        command = ["setarch", "-R", *command]  # its shadow memory needs addresses that are not random
    log = ROOT / "build" / f"sanitize-{kind}.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("w") as file:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{HERE}", **environment(kind)},
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    output = log.read_text(errors="replace")
    reports = sorted({match.group(0) for match in REPORTS.finditer(output)})
    if done.returncode != 0 or reports:
        print(output[-20000:])
    passed = re.search(r"(\d+) passed", output)
    return {
        "kind": kind,
        "exit": done.returncode,
        "passed": int(passed.group(1)) if passed else 0,
        "reports": reports,
        "build_seconds": round(compiled - started),
        "test_seconds": round(time.monotonic() - compiled),
    }


def main() -> int:
    """Run what the command line asks for; 1 where a test failed or a sanitizer reported something."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=["address", "thread", "poison"], metavar="KIND")
    chosen, arguments = parser.parse_known_args()
    if unknown := set(chosen.kinds) - {*FLAGS, "poison"}:
        parser.error(f"KIND={sorted(unknown)} must be among address, thread, poison")
    results = [run(kind, [argument for argument in arguments if argument != "--"]) for kind in chosen.kinds]
    for result in results:
        print(json.dumps(result))
    return int(any(result["exit"] != 0 or result["reports"] or not result["passed"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
