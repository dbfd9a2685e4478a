"""Running a kernel: on the right device, without workspace in autograd, and with failures that name the kernel."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch

from lnb_kernels._backend import KernelUnavailable
from lnb_kernels._triton.arch import Arch

MOST_BLOCKS = 65_535
"""Programs of a launch in its second dimension, and in its third: CUDA's limit. The first takes 2^31 - 1."""

P = ParamSpec("P")
R = TypeVar("R")


def on_device(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Make the device of ``tensor`` current, as Triton launches on the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def register_limit(registers: int, arch: Arch) -> dict[str, int]:
    """The launch option by which a thread may take so many; else NVIDIA's compiler spills a few to fit more programs."""
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

    The innermost call from this package must be one into Triton, be it that Triton then called someone else, as a compiler or
    the file system. A programming error of this package would otherwise look like a kernel that does not compile, and be passed
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
