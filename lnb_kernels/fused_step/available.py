"""Whether the fused step's kernels run on a device."""

from __future__ import annotations

import torch

from lnb_kernels import _cuda


def available(device: torch.device) -> bool:
    """Whether all ops of this package have a kernel that runs on ``device``, under the backend that is set.

    Elsewhere they run as plain PyTorch, layer by layer: there, steps that are not fused are the faster ones.
    """
    return _cuda.serves(device, "direct_layers_", "finish_layers_", "fused_step_apply_")
