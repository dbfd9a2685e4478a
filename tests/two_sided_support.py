"""Tensors of layers for the tests of two-sided directions."""

from __future__ import annotations

import torch
from torch import Tensor

from lnb_kernels.two_sided.reference import LayerTensors


def definite(*shape: int) -> Tensor:
    """Symmetric positive definite matrices of mean eigenvalue about 1."""
    matrix = torch.randn(*shape, 2 * shape[-1], dtype=torch.float64)
    return (matrix @ matrix.mT / (2 * shape[-1])).float()


def layer_tensors(
    lead: tuple[int, ...], m: int, d: int, side: int, size: int, bias: bool, squares: bool = False
) -> LayerTensors:
    """Of the rows' gradients some agree as far as they can, some more than noise would, and some less; biases count 0.3."""
    weight, of_bias = torch.randn(*lead, m, d), torch.randn(*lead, m, 1) if bias else None
    ratios = torch.tensor([0.5, 1.5, 10.0, 300.0], dtype=torch.float64)[torch.randint(4, (*lead, m))]
    return (
        weight,
        of_bias,
        definite(*lead, d // size, size),
        torch.randn(*lead, d) / d**0.5 if bias else None,
        definite(*lead, m // side, side),
        ratios * row_squares(weight, of_bias) if squares else None,
        torch.tensor(0.3, dtype=torch.float64) if squares else None,
    )


def row_squares(weight: Tensor, bias: Tensor | None) -> Tensor:
    """Squared norms of the rows of both together, float64."""
    square = weight.double().square().sum(-1)
    return square if bias is None else square + bias.double().square().squeeze(-1)
