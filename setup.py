"""Builds the native modules with CMake where that can be done; without it the package is plain Python, and says why.

Metadata is in pyproject.toml. Environment variables of the build:

    LNB_NATIVE=auto|off|required  build the native module if possible (default), never, or fail without it
    LNB_CUDA=auto|on|off          CUDA kernels: where nvcc is found (default), or fail without it, or never
    LNB_CUDA_ARCHS="80;90a"       CUDA architectures, as CMAKE_CUDA_ARCHITECTURES
    LNB_WERROR=1                  compiler warnings are errors
    CXX, CXXFLAGS, ...            as CMake reads them
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
MODULES = ("_native_module", "_cuda_module")  # the second one where there is nvcc
BUILD_INFO = "_build_info.json"
LOG_LIMIT = 4000  # characters of a failed build's log that the package keeps


class NativeBuildError(Exception):
    """The native module cannot be built here. The arguments are a one-line reason, and the log."""


class BuildNative(build_ext):
    """``build_ext`` by CMake. The outcome, good or bad, is written into the package for ``lnb_kernels.report()``."""

    def run(self) -> None:
        in_source = bool(self.inplace)  # the base class resets it while it runs
        self.info: dict[str, Any] = {"built": False, "reason": "LNB_NATIVE=off when the package was built"}
        super().run()
        folders = [Path(self.build_lib, "lnb_kernels")] + ([ROOT / "lnb_kernels"] if in_source else [])
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / BUILD_INFO).write_text(json.dumps(self.info, indent=1) + "\n", encoding="utf-8")

    def build_extensions(self) -> None:
        wanted = choice("LNB_NATIVE", ("auto", "off", "required"))
        if wanted == "off":
            return
        package = Path(self.get_ext_fullpath(f"lnb_kernels.{MODULES[0]}")).resolve().parent
        package.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(prefix="lnb-build-") as folder:  # a kept CMake cache names tools now gone
                self.info = {"built": True} | build(Path(folder), package)
        except NativeBuildError as error:
            reason, log = error.args
            if wanted == "required":
                raise SystemExit(f"LNB_NATIVE=required, but {reason}\n{log}") from error
            self.info = {"built": False, "reason": reason, "log": log[-LOG_LIMIT:]}
            print(f"lnb-kernels: no native module: {reason}. Plain PyTorch takes its place.", file=sys.stderr)


def build(folder: Path, package: Path) -> dict[str, Any]:
    """Configure and compile in ``folder``, put the modules into ``package``, and tell what was built."""
    ninja = shutil.which(tool("ninja", "BIN_DIR"))
    if ninja is None:
        raise NativeBuildError("ninja is not installed where the package is built", "")
    settings = {
        "CMAKE_BUILD_TYPE": "Release",
        "Python_EXECUTABLE": sys.executable,
        "CMAKE_INSTALL_PREFIX": str(folder / "out"),
        "LNB_CUDA": choice("LNB_CUDA", ("auto", "on", "off")),
        "LNB_CUDA_ARCHS": os.environ.get("LNB_CUDA_ARCHS", ""),
        "LNB_WERROR": "ON" if os.environ.get("LNB_WERROR", "0") == "1" else "OFF",
        "pybind11_DIR": pybind11_folder(),
        "CMAKE_MAKE_PROGRAM": ninja,
    }
    cmake = [tool("cmake", "CMAKE_BIN_DIR"), "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"]
    call("configuring the native build failed", [*cmake, *(f"-D{name}={value}" for name, value in settings.items())])
    call("compiling the native module failed", [cmake[0], "--build", str(folder), "--target", "install"])
    sizes = {}
    for module in (folder / "out").iterdir():
        shutil.copy(module, package)
        sizes[module.name.partition(".")[0]] = module.stat().st_size
    if MODULES[0] not in sizes:
        raise NativeBuildError(f"the native build made {sorted(sizes)}, without {MODULES[0]}", "")
    info: dict[str, Any] = json.loads((folder / "build_info.json").read_text(encoding="utf-8"))
    return info | {"bytes": sizes}


def call(what: str, command: list[str]) -> None:
    """Run a build tool; its output goes to the build's log."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except OSError as error:
        raise NativeBuildError(f"{command[0]} does not run: {error}", "") from error
    print(done.stdout, flush=True)
    if done.returncode != 0:
        raise NativeBuildError(f"{what}: {summary(done.stdout)}", done.stdout)


def summary(log: str) -> str:
    """The first error of a build log, on one line."""
    lines = [line.strip() for line in log.splitlines()]
    for i, line in enumerate(lines):
        if "CMake Error" in line or "error:" in line or line.startswith("FAILED"):
            return " ".join(part for part in lines[i : i + 6] if part)[:400]
    return (lines[-1] if lines else "no output")[:400]


def tool(package: str, folder_name: str) -> str:
    """The program that the Python package of this name ships, else the one on PATH: that may be old, or absent."""
    try:
        folder: str = getattr(importlib.import_module(package), folder_name)
    except ImportError:
        return package
    return str(Path(folder, package))


def pybind11_folder() -> str:
    try:
        import pybind11
    except ImportError as error:
        raise NativeBuildError("pybind11 is not installed where the package is built", "") from error
    return str(pybind11.get_cmake_dir())


def choice(variable: str, allowed: tuple[str, ...]) -> str:
    """An environment variable that must be one of ``allowed``; the first is the default."""
    value = os.environ.get(variable, allowed[0])
    if value not in allowed:
        raise SystemExit(f"{variable}={value!r} is not allowed; choose one of {', '.join(allowed)}")
    return value


setup(
    ext_modules=[Extension(f"lnb_kernels.{name}", sources=[], optional=True) for name in MODULES],
    cmdclass={"build_ext": BuildNative},
)
