"""The CUDA module built for the CPU simulator, and the ops running on it with CPU tensors.

With ``LNB_CUSIM_SANITIZE=1`` it is built with AddressSanitizer and UndefinedBehaviorSanitizer; the process must then have
been started with :func:`sanitizer_environment`.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import getpass
import hashlib
import importlib.util
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lnb_kernels as lk
from lnb_kernels import _backend, _cuda

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
COMPILER = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-DLNB_CUSIM"]
FLAGS += [
    "-Dlnb=simulated_lnb"
]  # another namespace: types are others than those of the module for the GPU, in pybind11 too
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Werror"]
# Not optimised: compilers optimise instrumented code for longer than the tests then run faster.
SANITIZE = ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
SANITIZED = os.environ.get("LNB_CUSIM_SANITIZE") == "1"
ORDERS = {"forward": 0, "reverse": 1, "random": 2}


class Simulator:
    """The module, and what the simulator counts."""

    def __init__(self, path: Path) -> None:
        spec = importlib.util.spec_from_file_location(path.stem.partition("-")[0], path)
        assert spec is not None
        assert spec.loader is not None
        self.module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        self._library = ctypes.CDLL(str(path))
        for name in ("cusim_read", "cusim_written"):
            getattr(self._library, name).restype = ctypes.c_uint64
        self._library.cusim_launch_name.restype = ctypes.c_char_p
        self._library.cusim_has_context.restype = ctypes.c_bool
        self.set()

    def set(
        self, order: str = "forward", seed: int = 1, fail_launch: int = -1, first_block: int = 0, dry: bool = False
    ) -> None:
        """Choose the order of threads, which launch from now on fails, the first block to run, and whether launches are only
        noted; counts restart."""
        self._library.cusim_set(ORDERS[order], seed, fail_launch, first_block, dry)

    def devices(self, count: int, current: int = -1) -> None:
        """A process with so many devices (at most 2), whose thread has the context of device ``current``, or none."""
        self._library.cusim_devices(count, current)

    @property
    def contexts(self) -> tuple[int, list[bool]]:
        """The device whose context is the thread's, or -1; and which devices have a context."""
        return self._library.cusim_current(), [bool(self._library.cusim_has_context(i)) for i in range(2)]

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes that kernels have read and written."""
        return self._library.cusim_read(), self._library.cusim_written()

    @property
    def launches(self) -> list[str]:
        """Names of the kernels started."""
        return [self._library.cusim_launch_name(i).decode() for i in range(self._library.cusim_launches())]


@functools.cache
def simulator() -> Simulator:
    """The simulator, built on first use and kept for other test processes."""
    kernels = sorted((CSRC / "cuda").glob("*.cu"))
    bindings = sorted((CSRC / "cuda").glob("*bindings.cpp"))
    return Simulator(build(kernels, bindings, "_cuda_module", SANITIZED))


def build(kernels: list[Path], bindings: list[Path], name: str, sanitized: bool) -> Path:
    """Compile kernels for the simulator, and bindings as they are, into ``name``.so. All test processes share it."""
    options = SANITIZE if sanitized else WARNINGS
    # Bindings take longest, so they come first; both builds use the same ones.
    sources = [(path, []) for path in bindings] + [(path, options) for path in (*kernels, HERE / "simulator.cpp")]
    digest = _digest(tuple(path for path, _ in sources), repr(sources))
    folder = Path(tempfile.gettempdir(), f"lnb-cusim-{getpass.getuser()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / f"{name}-{digest}.so"
    if not library.exists():
        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(lambda source: _compile(*source, folder), sources))
        linked = [COMPILER, "-shared", *(SANITIZE if sanitized else []), *map(str, objects)]
        _make(library, linked)
    return library


def _digest(sources: tuple[Path, ...], settings: str) -> str:
    """Of all that decides what is compiled: sources, headers, compiler, flags."""
    headers = [path for folder in (CSRC, HERE) for path in sorted(folder.rglob("*")) if path.suffix in (".h", ".cuh")]
    digest = hashlib.sha256(repr((COMPILER, FLAGS, settings, sys.version)).encode())
    for path in (*headers, *sources):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _make(result: Path, command: list[str]) -> None:
    """Have ``command`` write ``result``, unless it is there; test processes that need the same wait for the one that does it."""
    with result.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.exists():
            partial = result.with_suffix(".part")
            _run([*command, "-o", str(partial)])
            partial.rename(result)


def _compile(source: Path, options: list[str], folder: Path) -> Path:
    import pybind11

    out = folder / f"{source.name}-{_digest((source,), repr(options))}.o"
    folders = [
        f"-I{HERE}",
        f"-I{CSRC}",
        "-isystem",
        pybind11.get_include(),
        "-isystem",
        sysconfig.get_paths()["include"],
    ]
    _make(out, [COMPILER, "-x", "c++", *FLAGS, *options, *folders, "-c", str(source)])
    return out


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"


def sanitizer_environment() -> dict[str, str]:
    """What a process must be started with to load the sanitized module: the sanitizers come before anything else."""
    libraries = [
        subprocess.run(
            [COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    return {
        "LNB_CUSIM_SANITIZE": "1",
        "LD_PRELOAD": ":".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


@contextlib.contextmanager
def cuda_kernels_on_cpu() -> Iterator[Simulator]:
    """Inside, every op that has a CUDA kernel runs it, simulated, on CPU tensors."""
    simulated = simulator()
    simulated.set()
    routes = _backend.routes().values()
    usual = [(route, dict(route.kernels), dict(route.loaded)) for route in routes]
    module, where = _cuda.module, _cuda.where

    def on_cpu(device: Any) -> Any:
        return simulated.module

    def stream(tensor: Any) -> tuple[int, int]:
        return 0, 0

    _cuda.module, _cuda.where = on_cpu, stream
    for route in routes:
        if "native-cuda" in route.kernels:
            route.kernels["native"] = route.kernels["native-cuda"]
            route.loaded.pop("native", None)
    lk.set_backend("native")
    try:
        yield simulated
    finally:
        lk.set_backend("auto")
        _cuda.module, _cuda.where = module, where
        for route, kernels, loaded in usual:
            route.kernels, route.loaded = kernels, loaded
        simulated.set()
