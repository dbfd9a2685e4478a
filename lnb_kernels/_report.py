"""Which backend serves each op here, and why: the answer to "is it slow because something is missing?"."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from lnb_kernels import _backend, _cuda, _extension, _native


@dataclass(frozen=True)
class Serving:
    """How one op runs on one kind of device, for float32."""

    op: str
    device: str
    backend: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What this process runs on. Print it, or read it with :meth:`as_dict`."""

    versions: dict[str, str]
    backend: str
    native: dict[str, Any]
    cuda: dict[str, Any]
    triton: str
    ops: tuple[Serving, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same as nested dicts and lists, for logs: keys ``versions, backend, native, cuda, triton, ops``."""
        return asdict(self) | {"ops": [asdict(serving) for serving in self.ops]}

    def __str__(self) -> str:
        rows = [("op", "device", "backend", "why")] + [(s.op, s.device, s.backend, s.reason) for s in self.ops]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            "lnb_kernels: " + ", ".join(f"{name} {version}" for name, version in self.versions.items()),
            f"chosen backend: {self.backend}",
            "native module: " + _describe(self.native),
            "CUDA module: " + _describe(self.cuda),
            f"triton: {self.triton}",
            "",
            *("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]).rstrip() for row in rows),
        ]
        return "\n".join(lines)


def report() -> Report:
    """Which backend serves each op on the devices of this process, and why.

    Loads the native module, to tell whether it can be. For a kernel that is missing the report names the cause and
    the remedy.

    Returns:
        A :class:`Report`: ``str()`` is a table for people, ``as_dict()`` the same for programs.
    """
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    ops = [_serving(route, device) for route in _backend.routes().values() for device in devices]
    return Report(_versions(), _backend.get_backend(), _native_state(), _cuda_state(), _triton_state(), tuple(ops))


def _serving(route: _backend.OpRoutes, device: str) -> Serving:
    backend = _backend.candidate(route, torch.device(device), torch.float32, _backend.get_backend())
    if backend == "native" and _native.failure() is not None:
        return Serving(route.op, device, "reference", "the native module is not loaded")
    if backend == "native-cuda":
        failure = _cuda.failure_on(torch.cuda.current_device())
        if failure is not None:
            others = replace(route, kernels={k: v for k, v in route.kernels.items() if k != "native-cuda"})
            fallback = _backend.candidate(others, torch.device(device), torch.float32, _backend.get_backend())
            return Serving(route.op, device, fallback, failure)
    broken = "; ".join(f"{kernel} failed: {why}" for kernel, why in route.broken.items())
    if backend != "reference":
        return Serving(route.op, device, backend, broken or f"fastest that runs on {device}")
    if broken:
        return Serving(route.op, device, backend, broken)
    if _backend.get_backend() == "reference":
        return Serving(route.op, device, backend, "chosen by set_backend")
    return Serving(route.op, device, backend, f"no other kernel for {device}: plain PyTorch")


def _versions() -> dict[str, str]:
    packages = {name: _version(name) for name in ("lnb-kernels", "triton")}
    return {"python": platform.python_version(), "torch": torch.__version__} | packages


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _native_state() -> dict[str, Any]:
    failure = _native.failure()
    if failure is not None:
        return {"loaded": False, "failure": failure}
    module = _native.module()
    build = {k: v for k, v in _extension.build_info().items() if k in ("compiler", "processor")}
    isa = module.isa()
    pairs = "AVX512-BF16" if isa == "avx512_bf16" else f"float32 arithmetic: {isa} has no bfloat16 products"
    return {"loaded": True, "cpu_isa": isa, "bfloat16": pairs, "threads": module.threading(), **build}


def _cuda_state() -> dict[str, Any]:
    """The CUDA module, without touching a device."""
    failure = _cuda.failure()
    if failure is not None:
        return {"loaded": False, "failure": failure}
    build = {k: v for k, v in _extension.build_info().get("cuda", {}).items() if k in ("compiler", "archs")}
    return {"loaded": True, **build}


def _triton_state() -> str:
    if _version("triton") == "not installed":
        return "not installed; remedy: pip install triton (Linux)"
    if _backend.triton_interpreted():
        return "interpreted on the CPU (TRITON_INTERPRET=1), for tests"
    if not torch.cuda.is_available():
        return "installed, but torch sees no GPU to run it on"
    return "ready"


def _describe(native: dict[str, Any]) -> str:
    if not native["loaded"]:
        return f"not loaded: {native['failure']}"
    return "loaded, " + ", ".join(f"{key} {value}" for key, value in native.items() if key != "loaded")
