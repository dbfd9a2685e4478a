"""The arrow preconditioner in plain PyTorch: the executable specification."""

from __future__ import annotations

import torch

from lnb_kernels._checks import accumulation_dtype


def arrow_solve(v: torch.Tensor, mu: torch.Tensor, var: torch.Tensor, bias: bool = True) -> torch.Tensor:
    """See :func:`lnb_kernels.arrow_solve`; computed in float32 or wider, returned in the dtype of ``v``."""
    accumulate = accumulation_dtype(torch.promote_types(v.dtype, torch.promote_types(mu.dtype, var.dtype)))
    rows, mean, variance = v.to(accumulate), mu.to(accumulate), var.to(accumulate)
    if v.dim() > 1:
        mean, variance = mean.unsqueeze(-2), variance.unsqueeze(-2)  # [..., 1, d], shared by the m output rows
    if not bias:
        return (rows / (variance + mean * mean)).to(v.dtype).contiguous()
    weight, offset = rows[..., :-1], rows[..., -1:]
    weight = (weight - mean * offset) / variance
    offset = offset - (mean * weight).sum(-1, keepdim=True)
    return torch.cat((weight, offset), -1).to(v.dtype)
