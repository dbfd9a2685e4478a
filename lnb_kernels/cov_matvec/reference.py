"""Covariance-vector product in plain PyTorch: the executable specification."""

from __future__ import annotations

import torch

from lnb_kernels._checks import accumulation_dtype
from lnb_kernels._matrix import as_matrix


def cov_matvec(x: torch.Tensor, v: torch.Tensor, ridge: float = 0.0) -> torch.Tensor:
    """See :func:`lnb_kernels.cov_matvec`; accumulated in float32 or wider, returned in the dtype of ``v``."""
    d = x.shape[-1]
    accumulate = accumulation_dtype(torch.promote_types(x.dtype, v.dtype))
    samples = as_matrix(x).to(accumulate)  # [N, d]
    vectors = as_matrix(v).to(accumulate)  # [m, d or d+1]
    weight = vectors[:, :d]
    projected = samples @ weight.t()  # [N, m]
    out = vectors.new_empty(vectors.shape)
    if vectors.shape[1] > d:
        projected += vectors[:, d]
        out[:, d] = projected.sum(0)
    torch.mm(projected.t(), samples, out=out[:, :d])
    out /= max(samples.shape[0], 1)
    out[:, :d].add_(weight, alpha=ridge)
    return out.to(v.dtype).view(v.shape)
