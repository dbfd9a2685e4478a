"""Newton-Schulz iterations in plain PyTorch: the executable specification."""

from __future__ import annotations

import torch


def newton_schulz(x: torch.Tensor, coefficients: list[float], steps: int) -> torch.Tensor:
    """``steps`` times ``X <- a X + (b A + c A^2) X``, ``A = X X'``, for ``X`` ``[batch, k, l]``."""
    a, b, c = coefficients
    x = x.clone() if steps == 0 else x
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, _combined(gram, b, c), x, beta=a)
    return x


def newton_schulz_root(power: torch.Tensor, coefficients: list[float], steps: int) -> torch.Tensor:
    """The product of the steps' factors ``T = a + b A + c A^2``, each followed by ``A <- T A T``; ``A`` ``[batch, n, n]``."""
    a, b, c = coefficients
    if steps == 0:
        return torch.eye(power.shape[-1], dtype=power.dtype, device=power.device).expand_as(power).clone()
    root = power
    for step in range(steps):
        factor = _combined(power, b, c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        root = factor if step == 0 else torch.bmm(factor, root)
        if step < steps - 1:
            power = torch.bmm(torch.bmm(factor, power), factor)
    return root


def _combined(a: torch.Tensor, b: float, c: float) -> torch.Tensor:
    """``b A + c A^2``, a tensor of its own. Not by one call where ``c`` is 0: on CPUs PyTorch then forgets ``b`` in bfloat16."""
    return b * a if c == 0 else torch.baddbmm(a, a, a, beta=b, alpha=c)
