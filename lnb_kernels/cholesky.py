"""Inverses and solutions from Cholesky factors, without a call that waits for the device in some releases of PyTorch.

PyTorch once handed several matrices at a time to MAGMA for ``torch.cholesky_inverse`` and ``torch.cholesky_solve``, where MAGMA
was built in: it keeps its pointers and results on the host, so the host waits for the device, and no CUDA graph can be
captured. Since pull requests 174681 and 174769 (of February 2026) they are cuSOLVER's. Products with the factor's inverse, from
triangular equations, do the same in all releases: cuBLAS solves matrices of up to 512 rows together, and larger ones
where they are at most eight.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FIRST_WITHOUT = (2, 13)
"""The first release that is known not to wait. The change may have come in 2.12: the other way costs little."""
_TOGETHER, _ROWS = 8, 512


def waits(matrices: Tensor, version: str = torch.__version__) -> bool:
    """Whether PyTorch's own calls for such ``[..., n, n]`` would make the host wait for the device.

    Args:
        matrices: what the call is for.
        version: of PyTorch.
    """
    if matrices.device.type != "cuda" or not torch.cuda.has_magma or matrices.shape[:-2].numel() <= 1:
        return False
    major, minor = (int(part) for part in version.split(".")[:2])
    return (major, minor) < _FIRST_WITHOUT


def cholesky_inverse(lower: Tensor) -> Tensor:
    """``(L L')^-1`` of lower factors ``[..., n, n]``."""
    if not waits(lower):
        return torch.cholesky_inverse(lower)
    eye = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
    inverse = triangular_solve(lower, eye.expand_as(lower))
    return inverse.mT @ inverse


def cholesky_solve(right: Tensor, lower: Tensor) -> Tensor:
    """``(L L')^-1 right`` for ``right`` ``[..., n, k]`` and lower factors ``[..., n, n]`` with the same leading dimensions."""
    if not waits(lower):
        return torch.cholesky_solve(right, lower)
    return triangular_solve(lower.mT, triangular_solve(lower, right), upper=True)


def triangular_solve(factor: Tensor, right: Tensor, upper: bool = False) -> Tensor:
    """``factor^-1 right`` of triangular matrices, ``[..., n, n]`` and ``[..., n, k]`` with the same leading dimensions."""
    n, count = factor.shape[-1], factor.shape[:-2].numel()
    if n <= _ROWS or count <= _TOGETHER or not waits(factor):
        solved: Tensor = torch.linalg.solve_triangular(factor, right, upper=upper)
        return solved
    factors, rights = factor.reshape(count, n, n), right.reshape(count, n, right.shape[-1])
    parts = zip(factors.split(_TOGETHER), rights.split(_TOGETHER), strict=True)
    return torch.cat([torch.linalg.solve_triangular(*part, upper=upper) for part in parts]).view_as(right)
