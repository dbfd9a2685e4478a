"""Inverses of symmetric positive definite matrices on the GPU, a thread block for each, in one launch."""

from __future__ import annotations

import torch
from torch import Tensor

from lnb_kernels import _cuda
from lnb_kernels.spd_inverse import reference


def spd_inverse(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`lnb_kernels.spd_inverse`; sides above 144 go by the vendor's library."""
    n = matrices.shape[-1]
    native = _cuda.module(matrices.device)
    if n > native.LARGEST_SIDE or matrices.numel() == 0:
        return reference.spd_inverse(matrices)
    matrices = matrices.resolve_neg().contiguous()
    inverses = matrices.new_empty(matrices.shape)
    failed = torch.empty(matrices.shape[:-2], dtype=torch.bool, device=matrices.device)
    native.spd_inverses(
        matrices.data_ptr(), inverses.data_ptr(), failed.data_ptr(), failed.numel(), n, _cuda.where(matrices)
    )
    return inverses, failed
