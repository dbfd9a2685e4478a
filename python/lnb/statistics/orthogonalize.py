"""The nearest matrix with equal singular values, ``orth(M) = U V' = (M M')^(-1/2) M`` for ``M = U diag(s) V'``."""

from __future__ import annotations

import torch
from torch import Tensor

import lnb_kernels as lk
from lnb.machine import cpu_multiplies_bfloat16
from lnb_kernels.scaling import unit_scale

# Keller Jordan's coefficients, of Muon (2024): the odd quintic x -> a x + b x^3 + c x^5 whose five-fold composition maps
# [0.005, 1] into about [0.7, 1.2]. Its slope at zero is as large as it can be without leaving that band, which five steps need
# more than they need the value 1 itself.
QUINTIC = (3.4445, -4.7750, 2.0315)
STEPS = 5
# Of :func:`inverse_root`, times n^3: the first step has no root yet, the last no next power.
INVERSE_ROOT_FLOPS = 8 * STEPS - 6


def orthogonalize(matrix: Tensor, steps: int = STEPS, dtype: torch.dtype | None = None) -> Tensor:
    """``orth(M)`` up to singular values in about ``[0.7, 1.2]``, by ``steps`` Newton-Schulz steps.

    With ``M`` scaled to Frobenius norm 1, every step replaces ``M`` by ``a M + (b A + c A^2) M``, ``A = M M'``: an odd
    polynomial of the singular values, applied without an SVD. The product ``A`` is taken on the shorter side.
    Singular values below about 0.005 of the norm are raised by ``a^steps`` (485) at most.

    Args:
        matrix: ``[..., m, n]``. A zero matrix gives zeros.
        steps: number of steps, each of ``4 k^2 l + 2 k^3`` FLOPs for ``k = min(m, n)``, ``l = max(m, n)``.
        dtype: dtype of the products; None for the fastest that keeps the band: bfloat16 on accelerators, where the matrix
            units are, and on CPUs with instructions for it for shorter sides from 256; float32 otherwise, and float64 for
            float64.

    Returns:
        ``[..., m, n]`` in the dtype of ``matrix``.
    """
    if dtype is None:
        dtype = products_dtype(matrix.dtype, matrix.device, min(matrix.shape[-2:]))
    transposed = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if transposed else matrix
    x = x * unit_scale(x)  # whose norm is in the range of the dtype
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    x = (x / norm.clamp(min=torch.finfo(norm.dtype).tiny)).to(dtype)
    x = lk.newton_schulz(x, QUINTIC, steps).to(matrix.dtype)
    return x.mT if transposed else x


def orthogonalize_flops(rows: int, columns: int) -> int:
    """FLOPs of :func:`orthogonalize` of one matrix."""
    short, long = sorted((rows, columns))
    return STEPS * (4 * short**2 * long + 2 * short**3)


def products_dtype(dtype: torch.dtype, device: torch.device, shorter: int) -> torch.dtype:
    """The dtype of :func:`orthogonalize`'s products where none is given; ``shorter`` is the shorter side."""
    gains = device.type != "cpu" or (shorter >= 256 and cpu_multiplies_bfloat16())
    return torch.bfloat16 if gains and dtype != torch.float64 else dtype


def inverse_root(matrix: Tensor, steps: int = STEPS, ridge: float = 0.0) -> Tensor:
    """``(P + ridge mean(diag P) I)^(-1/2)`` of positive semi-definite matrices ``P``, as exact as :func:`orthogonalize` is.

    Where ``P`` has no such root in its precision (rounding left it far from positive semi-definite), and where it is zero,
    the result is a multiple of the identity.

    The same Newton-Schulz steps on ``P = M M'`` alone: with ``A = P / trace(P)``, every step multiplies the result by
    ``T = a + b A + c A^2`` and ``A`` by ``T^2``, so that ``P^(-1/2) M`` is ``orthogonalize(M)``. Products only, so an accelerator
    is not waited for, and directions in which ``P`` is below 2.5e-5 of its trace are raised by ``a^steps`` (485) at most,
    where an exact root would return noise.

    Args:
        matrix: ``[..., n, n]``, symmetric.
        steps: number of steps, each of ``8 n^3`` FLOPs, less six in all (:data:`INVERSE_ROOT_FLOPS`).
        ridge: relative to each matrix' mean diagonal, >= 0.
    """
    n = matrix.shape[-1]
    trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1).unsqueeze(-1).unsqueeze(-1)
    trace = torch.where(trace > torch.finfo(matrix.dtype).tiny, trace, 1.0)
    eye = torch.eye(n, dtype=matrix.dtype, device=matrix.device)
    added = trace * ridge / n
    trace = trace + trace * ridge
    root = lk.newton_schulz_root((matrix + added * eye) / trace, QUINTIC, steps)
    # Steps from a matrix with a clearly negative eigenvalue grow beyond all bounds.
    rooted = root.isfinite().flatten(-2).all(-1).unsqueeze(-1).unsqueeze(-1)
    return torch.where(rooted, root, eye) * trace.rsqrt()
