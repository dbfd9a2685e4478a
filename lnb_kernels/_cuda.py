"""The CUDA module: loaded at its first use, never at import, and only then does it look for a driver.

It brings its own CUDA runtime, so it loads on any machine; whether its kernels run is asked once per device.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from lnb_kernels import _backend, _extension
from lnb_kernels._backend import KernelUnavailable

_NAME = "_cuda_module"


def module(device: torch.device) -> Any:
    """The CUDA module, whose kernels run on ``device``.

    Raises:
        KernelUnavailable: it cannot be loaded, or has no code for the device, or the driver is too old for it; the
            message gives cause and remedy.
    """
    failure = failure_on(_index(device))
    if failure is not None:
        raise KernelUnavailable(failure)
    return _load()[0]


def serves(device: torch.device, *ops: str) -> bool:
    """Whether each of ``ops`` is served on ``device`` by a kernel of the CUDA module that runs there, under the backend set."""
    for op in ops:
        route = _backend.routes()[op]
        chosen = _backend.candidate(route, device, torch.float32, _backend.get_backend())
        if route.kernels.get(chosen) != route.kernels["native-cuda"]:
            return False
    try:
        module(device)
    except KernelUnavailable:
        return False
    return True


def falls_back_to(device: torch.device, op: str, backend: str) -> bool:
    """Whether ``backend`` serves ``op`` on ``device`` because the CUDA module does not, under the backend set.

    The CUDA module is given up here, with the warning that a call of the op would give.
    """
    route = _backend.routes()[op]

    def chosen() -> str:
        return _backend.candidate(route, device, torch.float32, _backend.get_backend())

    if chosen() == "native-cuda" and _backend.get_backend() == "auto":
        try:
            module(device)
        except KernelUnavailable as error:
            _backend.give_up(route, "native-cuda", error, chosen)
    if chosen() != backend:
        return False
    try:
        _backend.load(route, backend)
    except KernelUnavailable as error:
        if _backend.get_backend() == "auto":
            _backend.give_up(route, backend, error, chosen)
        return False
    return True


def failure() -> str | None:
    """Why the CUDA module does not load here, with the remedy; None where it does. No device is touched."""
    return _load()[1]


@functools.cache
def failure_on(index: int) -> str | None:
    """Why the kernels do not run on this device, with the remedy; None where they do."""
    loaded, failure = _load()
    if failure is not None:
        return failure
    cause: str = loaded.failure(index)
    if not cause:
        return None
    archs = _extension.build_info().get("cuda", {}).get("archs", "unknown")
    return (
        f"the CUDA kernels do not run on device {index}: {cause}; they are built for architectures {archs} with CUDA "
        f"{version(loaded)}; remedy: update the NVIDIA driver, or reinstall lnb-kernels from source with this machine's "
        "nvcc and LNB_CUDA_ARCHS=native"
    )


def version(loaded: Any) -> str:
    """The version of the CUDA runtime in the module, like ``13.0``."""
    number: int = loaded.runtime_version()
    return f"{number // 1000}.{number % 1000 // 10}"


def largest_side(tensor: torch.Tensor) -> int:
    """The largest side of matrices whose products one thread block of the device forms on chip: 144, or what its memory holds."""
    return _largest_side(module(tensor.device), where(tensor)[0])


@functools.cache
def _largest_side(loaded: Any, index: int) -> int:
    side: int = loaded.largest_side(index)
    return side


def where(tensor: torch.Tensor) -> tuple[int, int]:
    """The device to work on and the current stream there, as the module's functions take them."""
    return _index(tensor.device), int(torch.cuda.current_stream(tensor.device).cuda_stream)


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


@functools.lru_cache(maxsize=1)
def _load() -> tuple[Any, str | None]:
    loaded, failure = _extension.load(_NAME, "the CUDA module")
    return loaded, _missing() if failure == "missing" else failure


def _missing() -> str:
    info = _extension.build_info()
    cuda = info.get("cuda", {"built": False, "reason": info.get("reason", "the build did not say why")})
    if cuda["built"]:
        return _extension.lost(_NAME)
    return (
        f"the CUDA kernels were not built: {cuda['reason']}; remedy: install CUDA 12.1 or newer (its nvcc is found by "
        "CUDA_HOME, on PATH, or after `pip install nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-cccl`), then "
        f"{_extension.REINSTALL} --no-binary lnb-kernels"
    )
