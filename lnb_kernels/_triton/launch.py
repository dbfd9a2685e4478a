"""Running a kernel: on the right device, without workspace in autograd, and with failures that name the kernel."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from triton.compiler import CompiledKernel

from lnb_kernels._backend import KernelUnavailable
from lnb_kernels._triton.arch import Arch

MOST_BLOCKS = 65_535
"""Programs of a launch in its second dimension, and in its third: CUDA's limit. The first takes 2^31 - 1."""

P = ParamSpec("P")
R = TypeVar("R")


def on_device(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Make the device of ``tensor`` current, as Triton launches on the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


class Launches:
    """The launches of one op, compiled and loaded all before the first of them is made.

    A launch that writes in place cannot be taken back where a later one turns out not to compile: what takes over would then
    repeat what the first has done.
    """

    def __init__(self) -> None:
        self._launches: list[tuple[Any, int, tuple[Any, ...], dict[str, Any]]] = []
        self._scratch = 0

    def add(self, kernel: Any, programs: int, *args: Any, **kwargs: Any) -> None:
        """Add a launch of ``programs`` programs."""
        self._launches.append((kernel, programs, args, kwargs))

    def scratch(self, programs: int, size: int) -> Scratch:
        """A place in a launch's arguments for ``size`` float32 numbers of each program: one memory, which a launch after the
        other uses."""
        self._scratch = max(self._scratch, programs * size)
        return Scratch(programs, size)

    def make(self, device: torch.device) -> None:
        """Make all launches, in their order, on ``device``."""
        memory = torch.empty(self._scratch, dtype=torch.float32, device=device)
        for i, (kernel, programs, args, kwargs) in enumerate(self._launches):
            self._launches[i] = (kernel, programs, tuple(_filled(value, memory) for value in args), kwargs)
        if len(self._launches) > 1:  # of a single one, Triton does so itself
            for kernel, _, args, kwargs in self._launches:
                _load(kernel.warmup(*args, grid=(1,), **kwargs))
        for kernel, programs, args, kwargs in self._launches:
            kernel[(programs,)](*args, **kwargs)


class Scratch(NamedTuple):
    """Memory of the programs of a launch."""

    programs: int
    size: int


def _filled(value: Any, memory: torch.Tensor) -> Any:
    return memory[: value.programs * value.size].view(value) if isinstance(value, Scratch) else value


def _load(compiled: Any) -> None:
    """Load a kernel onto the current device, where it may turn out to need more than the device has."""
    if isinstance(compiled, CompiledKernel):
        compiled.run  # noqa: B018 - which loads it


def register_limit(registers: int, arch: Arch) -> dict[str, int]:
    """The launch option that lets a thread take this many registers; else NVIDIA's compiler spills a few to fit more
    programs."""
    return {} if arch.name == "gfx942" else {"maxnreg": registers}


def compiles_or_unavailable(kernel: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Turn a failure to compile or load ``kernel`` into :class:`KernelUnavailable`, which lets the reference take over.

    Triton reports such failures by many types, plain ``RuntimeError`` among them: what counts is that it was raised inside
    Triton (:func:`_raised_by_triton`). What the user's call or the device caused passes unchanged: wrong arguments, memory, and
    errors of the CUDA driver (after which no kernel can be trusted). So does a fault of this package's own code.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                if not _raised_by_triton(error):
                    raise
                text = str(error)
                raise KernelUnavailable(
                    f"Triton kernel {kernel} does not compile here: {type(error).__name__}: {text.splitlines()[0] if text else ''}; "  # noqa: E501
                    "remedy: set TRITON_CACHE_DIR to a writable folder and check that the triton version fits torch, or "
                    'lnb_kernels.set_backend("reference")'
                ) from error

        return guarded

    return decorate


def _raised_by_triton(error: Exception) -> bool:
    """Whether ``error`` says that Triton cannot compile or load a kernel.

    The innermost call from this package must be one into Triton, whether or not Triton went on to call a compiler or the file
    system. A programming error of this package would otherwise look like a kernel that does not compile, and be passed
    over in silence, slowly.
    """
    if isinstance(error, (ValueError, TypeError, torch.OutOfMemoryError, torch.AcceleratorError, KernelUnavailable)):
        return False
    if str(error).startswith(("Triton Error [CUDA]", "CUDA error")):
        return False
    if isinstance(error, ImportError):
        return _package(error.name or "") != "lnb_kernels"
    if _package(type(error).__module__) == "triton":
        return True
    packages = [_package(frame.f_globals.get("__name__", "")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    own = [i for i, package in enumerate(packages) if package == "lnb_kernels"]
    after = packages[own[-1] + 1 :] if own else packages
    return after[:1] == ["triton"]


def _package(module: str) -> str:
    return module.partition(".")[0]
