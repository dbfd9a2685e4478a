"""Inverses of symmetric positive definite matrices on the CPU, whole matrices handed out to threads."""

from __future__ import annotations

import torch
from torch import Tensor

from lnb_kernels import _native
from lnb_kernels.spd_inverse import reference

LARGEST = 256
"""Side up to which the native kernel is the faster one: a larger matrix leaves the cache, and keeps all threads busy."""


def spd_inverse(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`lnb_kernels.spd_inverse`; large matrices go by LAPACK."""
    n = matrices.shape[-1]
    if n > LARGEST or matrices.numel() == 0:
        return reference.spd_inverse(matrices)
    matrices = matrices.resolve_neg().contiguous()
    inverses = matrices.new_empty(matrices.shape)
    failed = torch.empty(matrices.shape[:-2], dtype=torch.bool)
    _native.module().spd_inverses(
        matrices.data_ptr(), inverses.data_ptr(), failed.data_ptr(), failed.numel(), n, torch.get_num_threads()
    )
    return inverses, failed
