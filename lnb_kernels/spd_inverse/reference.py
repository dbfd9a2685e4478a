"""Inverses of symmetric positive definite matrices in plain PyTorch: the executable specification."""

from __future__ import annotations

import torch
from torch import Tensor

from lnb_kernels.cholesky import cholesky_inverse


def spd_inverse(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`lnb_kernels.spd_inverse`."""
    lower, info = torch.linalg.cholesky_ex(matrices)
    failed = (info != 0) | ~torch.isfinite(lower).all(dim=(-2, -1))
    eye = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    lower = torch.where(failed.unsqueeze(-1).unsqueeze(-1), eye, lower)  # LAPACK raises at a zero on the diagonal
    return cholesky_inverse(lower), failed
