"""Whether the fused step's kernels run on a device."""

from __future__ import annotations

import torch

from lnb_kernels import _backend, _cuda
from lnb_kernels._backend import KernelUnavailable

_OPS = ("direct_layers_", "finish_layers_")


def available(device: torch.device) -> bool:
    """Whether all ops of this package have a kernel that runs on ``device``, under the backend that is set.

    Elsewhere they run as plain PyTorch, layer by layer: there, steps that are not fused are the faster ones.
    """
    for op in _OPS:
        route = _backend.routes()[op]
        chosen = _backend.candidate(route, device, torch.float32, _backend.get_backend())
        if chosen == "reference" or route.kernels[chosen] != route.kernels.get("native-cuda"):
            return False
    try:
        _cuda.module(device)
    except KernelUnavailable:
        return False
    return True
