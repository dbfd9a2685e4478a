"""Whether the fused step's kernels run on a device."""

from __future__ import annotations

import torch

from lnb_kernels import _backend, _cuda

OPS = ("direct_layers_", "finish_layers_", "fused_step_apply_")


def available(device: torch.device) -> bool:
    """Whether all ops of this package have a kernel that runs on ``device``, under the backend that is set.

    On NVIDIA's GPUs those are the CUDA module's; without it, and on AMD's, Triton's. Elsewhere the ops run as plain PyTorch,
    layer by layer: there, steps that are not fused are the faster ones.
    """
    if device.type == "cpu" and _backend.get_backend() == "auto":
        return False  # quickly: every step asks
    return _cuda.serves(device, *OPS) or all(_cuda.falls_back_to(device, op, "triton") for op in OPS)
