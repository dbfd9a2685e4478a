"""Running a kernel: on the right device, without workspace in autograd, and with failures that name the kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch

from lnb_kernels._backend import KernelUnavailable
from lnb_kernels._triton.arch import Arch

MAX_GRID = 65535  # programs of a launch along its second and third dimensions

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

    Triton reports such failures by many types, plain ``RuntimeError`` among them. What the user's call or the device
    caused passes unchanged: wrong arguments, memory, and errors of the CUDA driver (after which no kernel can be
    trusted).
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except (ValueError, TypeError, torch.OutOfMemoryError, KernelUnavailable):
                raise
            except Exception as error:
                text = str(error)
                if isinstance(error, torch.AcceleratorError) or text.startswith(("Triton Error [CUDA]", "CUDA error")):
                    raise
                raise KernelUnavailable(
                    f"Triton kernel {kernel} does not compile here: {type(error).__name__}: {text.splitlines()[0] if text else ''}; "  # noqa: E501
                    "remedy: set TRITON_CACHE_DIR to a writable folder and check that the triton version fits torch, or "
                    'lnb_kernels.set_backend("reference")'
                ) from error

        return guarded

    return decorate
