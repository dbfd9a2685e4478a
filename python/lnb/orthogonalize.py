"""The nearest matrix with equal singular values: ``orth(M) = U V'`` for ``M = U diag(s) V'``."""

from __future__ import annotations

import torch
from torch import Tensor

# The odd quintic x -> a x + b x^3 + c x^5 whose five-fold composition maps [0.005, 1] into about [0.7, 1.2]: its slope at
# zero is as large as it can be without leaving that band, which five steps need more than they need the value 1 itself.
_QUINTIC = (3.4445, -4.7750, 2.0315)
STEPS = 5


def orthogonalize(matrix: Tensor, steps: int = STEPS, dtype: torch.dtype | None = None) -> Tensor:
    """``orth(M)`` up to singular values in about ``[0.7, 1.2]``, by ``steps`` Newton-Schulz steps.

    With ``M`` scaled to Frobenius norm 1, every step replaces ``M`` by ``a M + (b A + c A^2) M``, ``A = M M'``: an odd
    polynomial of the singular values, applied without an SVD. The product ``A`` is taken on the shorter side.
    Singular values below about 0.005 of the norm are raised by ``a^steps`` (485) at most.

    Args:
        matrix: ``[..., m, n]``. A zero matrix gives zeros.
        steps: number of steps, each of ``4 k^2 l + 2 k^3`` FLOPs for ``k = min(m, n)``, ``l = max(m, n)``.
        dtype: dtype of the products; None for the fastest that keeps the band: bfloat16 on accelerators, where the matrix
            units are, and on CPUs for shorter sides from 256; float32 below, and float64 for float64.

    Returns:
        ``[..., m, n]`` in the dtype of ``matrix``.
    """
    if dtype is None:
        wide = matrix.device.type != "cpu" or min(matrix.shape[-2:]) >= 256
        dtype = matrix.dtype if matrix.dtype == torch.float64 or not wide else torch.bfloat16
    transposed = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if transposed else matrix
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    x = (x / norm.clamp(min=torch.finfo(norm.dtype).tiny)).to(dtype)
    shape = x.shape
    x = x.reshape(-1, *shape[-2:])
    a, b, c = _QUINTIC
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.reshape(shape).to(matrix.dtype)
    return x.mT if transposed else x
