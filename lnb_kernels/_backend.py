"""Which backend serves each op: the table of kernels, the choice, and the user's override.

Every op has a reference in plain PyTorch, and may have a Triton and a native kernel. ``op.py`` of each op registers
them by name with :func:`register`; nothing is imported before the first call needs it.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

BACKENDS = ("auto", "reference", "triton", "native")


class KernelUnavailable(RuntimeError):
    """A kernel cannot run here; the message names the cause and the remedy."""


@dataclass
class OpRoutes:
    """The implementations of one op. A kernel is named ``"package.module:function"`` and imported lazily.

    The native backend has a kernel for the CPU, ``"native"``, and one for NVIDIA GPUs, ``"native-cuda"``: each can fail
    without the other.
    """

    op: str
    reference: Callable[..., Any]
    kernels: dict[str, str] = field(default_factory=dict)  # triton, native, native-cuda -> "module:function"
    native_dtypes: frozenset[torch.dtype] = frozenset({torch.float32})
    triton_dtypes: frozenset[torch.dtype] = frozenset({torch.float32, torch.bfloat16, torch.float16})
    loaded: dict[str, Callable[..., Any]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)  # kernel -> why it was given up


_routes: dict[str, OpRoutes] = {}
_backend = "auto"
_reported: set[str] = set()


def register(
    op: str,
    reference: Callable[..., Any],
    *,
    triton: str | None = None,
    native: str | None = None,
    native_cuda: str | None = None,
    native_dtypes: frozenset[torch.dtype] = frozenset({torch.float32}),
) -> None:
    """Declare the implementations of ``op``. Called once per op, from its ``op.py``."""
    named = {"triton": triton, "native": native, "native-cuda": native_cuda}
    kernels = {name: where for name, where in named.items() if where is not None}
    _routes[op] = OpRoutes(op, reference, kernels, native_dtypes)


def routes() -> dict[str, OpRoutes]:
    """The table of every registered op, for :func:`lnb_kernels.report` and the tests."""
    return _routes


def set_backend(name: str) -> None:
    """Choose the backend of every op in this process.

    Args:
        name: ``"auto"`` (the fastest that runs here), ``"reference"`` (plain PyTorch everywhere), ``"triton"`` or
            ``"native"`` (that kernel for every op that has one, the reference for the others).

    Raises:
        ValueError: ``name`` is none of these.
    """
    global _backend
    if name not in BACKENDS:
        raise ValueError(f"set_backend: name={name!r} is not a backend; choose one of {', '.join(BACKENDS)}")
    _backend = name


def get_backend() -> str:
    """The name last given to :func:`set_backend` (``"auto"`` at first)."""
    return _backend


def triton_interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, on CPU tensors (``TRITON_INTERPRET=1``)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def candidate(route: OpRoutes, device: torch.device, dtype: torch.dtype, backend: str) -> str:
    """The backend to try first for one call, before anything is loaded. The rule that ``report`` prints.

    ``auto`` takes the native module on the CPU, and on GPUs Triton; or on NVIDIA's, where an op has both, the CUDA kernel:
    such an op has one because it is faster. An explicit backend is taken wherever it can see the tensor.
    """
    if backend == "auto" and device.type == "cpu":  # the usual case of small models, which feel every microsecond
        native = "native" in route.kernels and "native" not in route.broken and dtype in route.native_dtypes
        return "native" if native else "reference"
    on_gpu = device.type == "cuda"
    sees = {
        "triton": (on_gpu or (backend == "triton" and triton_interpreted())) and dtype in route.triton_dtypes,
        "native": device.type == "cpu" and dtype in route.native_dtypes,
        "native-cuda": on_gpu and torch.version.hip is None and dtype in route.native_dtypes,
    }
    if backend == "reference":
        return "reference"
    order = {"triton": ("triton",), "native": ("native", "native-cuda")}.get(
        backend, ("native-cuda", "triton", "native")
    )
    for name in order:
        if name in route.kernels and name not in route.broken and sees[name]:
            return name
    return "reference"


def serves_beside(op: str, device: torch.device) -> bool:
    """Whether Triton's kernel of ``op`` may take what the CUDA module's, which serves ``device``, does not."""
    if get_backend() != "auto":
        return False
    route = _routes[op]
    alone = replace(route, kernels={kind: where for kind, where in route.kernels.items() if kind == "triton"})
    if candidate(alone, device, torch.float32, "auto") != "triton":
        return False
    try:
        load(route, "triton")
    except KernelUnavailable as error:
        give_up(route, "triton", error, lambda: "reference")
        return False
    return True


def load(route: OpRoutes, backend: str) -> Callable[..., Any]:
    """Import the kernel of ``route`` for ``backend``.

    Raises:
        KernelUnavailable: it cannot be imported or loaded; the message gives cause and remedy.
    """
    if backend == "reference":
        return route.reference
    kernel = route.loaded.get(backend)
    if kernel is None:
        module, _, function = route.kernels[backend].partition(":")
        try:
            kernel = getattr(importlib.import_module(module), function)
        except ImportError as error:
            if (error.name or "").partition(".")[0] == __name__.partition(".")[0]:
                raise  # a fault of this package, not a package that is missing
            remedy = "pip install triton" if backend == "triton" else "reinstall lnb-kernels"
            raise KernelUnavailable(f"{backend} kernel of {route.op}: {error}; remedy: {remedy}") from error
        route.loaded[backend] = kernel
    return kernel


def call(op: str, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Run ``op`` by the backend that serves ``tensor``'s device and dtype.

    Under ``auto`` a kernel that cannot be loaded or compiled is given up, with one warning that says why, and the next
    best takes over, at last the reference. Under an explicit backend the error is raised.
    """
    route = _routes[op]
    backend = candidate(route, tensor.device, tensor.dtype, _backend)
    if backend == "reference":
        return route.reference(*args, **kwargs)
    try:
        return load(route, backend)(*args, **kwargs)
    except (ValueError, TypeError):
        raise
    except Exception as error:
        if _backend != "auto" or not _is_kernel_failure(error):
            raise
        give_up(route, backend, error, lambda: candidate(route, tensor.device, tensor.dtype, _backend))
        return call(op, tensor, *args, **kwargs)  # by the next best


def give_up(route: OpRoutes, backend: str, error: Exception, next_best: Callable[[], str]) -> None:
    """Stop serving an op by ``backend`` in this process, because of ``error``; warn once of each cause.

    Args:
        next_best: the backend that serves the op instead, asked when ``backend`` no longer does.
    """
    route.broken[backend] = str(error)
    if str(error) not in _reported:  # one missing module is one warning, however many ops it serves
        _reported.add(str(error))
        best = next_best()
        warnings.warn(
            f"lnb_kernels: the {backend} kernel of {route.op!r} cannot run here and the {best} "
            f"{'' if best == 'reference' else 'kernel '}takes over: {error}",
            RuntimeWarning,
            stacklevel=3,
        )


def _is_kernel_failure(error: Exception) -> bool:
    """Whether a kernel does not load or compile here, as opposed to a fault in the user's call."""
    return isinstance(error, KernelUnavailable) or type(error).__module__.partition(".")[0] == "triton"
