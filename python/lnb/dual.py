"""The metric solved in the space of samples: cheaper than in the space of inputs where a batch has fewer rows than inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from lnb.blocks import Block
from lnb_kernels.cholesky import cholesky_solve


def solve_dual(block: Block, inputs: list[Tensor], gradient: Tensor, ridge: float) -> Tensor:
    """``h = g~ (X~'X~/N + ridge diag(1..1, 0))^-1`` from the rows ``X`` themselves.

    With the rows centred where there is a bias (``Xc = X - mu``, see :mod:`lnb.factored` for the bias) and ``r`` the ridge,

        ``(Xc'Xc/N + r)^-1 = (I - Xc' (Xc Xc'/N + r)^-1 Xc / N) / r``        (Woodbury)

    so that the matrix factored is ``[N, N]``. With at least as many rows as inputs the ``[d_in, d_in]`` one is taken.

    Args:
        block: the layer.
        inputs: what its forward passes saw since the last step.
        gradient: ``g~``, ``[groups, rows, columns]``.
        ridge: ``r > 0``.

    Returns:
        ``h``, of the shape of ``gradient``; zero without rows.
    """
    x = block.layer_kind.samples(block.modules[0], inputs, gradient.dtype)  # [groups or 1, N, d_in]
    count = x.shape[-2]
    if count == 0:
        return torch.zeros_like(gradient)
    with_bias = gradient.shape[-1] == x.shape[-1] + 1
    weight = gradient
    if with_bias:
        mean = x.mean(dim=-2, keepdim=True)
        x = x - mean
        weight = gradient[..., :-1] - gradient[..., -1:] * mean
    if count < x.shape[-1]:
        kernel = x @ x.mT / count
        kernel.diagonal(dim1=-2, dim2=-1).add_(ridge)
        outputs = weight @ x.mT  # [groups, rows, N]
        weight = (weight - cholesky_solve(outputs.mT, _factor(kernel)).mT @ x / count) / ridge
    else:
        covariance = x.mT @ x / count
        covariance.diagonal(dim1=-2, dim2=-1).add_(ridge)
        weight = cholesky_solve(weight.mT, _factor(covariance)).mT
    if not with_bias:
        return weight
    return torch.cat([weight, gradient[..., -1:] - (weight * mean).sum(-1, keepdim=True)], dim=-1)


def _factor(matrix: Tensor) -> Tensor:
    """The Cholesky factor; positive definite by the ridge, so that no error is looked for."""
    lower: Tensor = torch.linalg.cholesky_ex(matrix).L
    return lower
