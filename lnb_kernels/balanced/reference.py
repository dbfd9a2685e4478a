"""Balanced directions in plain PyTorch: the executable specification."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Problem = tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor]  # weight, bias, inverse, mean, root
Step = tuple[Tensor, Tensor | None]  # directions of weight and bias


def balanced_directions(problems: Sequence[Problem]) -> tuple[list[Step], Tensor]:
    """The directions of weight and bias of every problem, and their products; see :func:`lnb_kernels.balanced_directions`."""
    steps = [balanced_direction(*problem) for problem in problems]
    products = [_product(*step, *problem[:2]) for step, problem in zip(steps, problems, strict=True)]
    return steps, torch.cat(products) if products else torch.empty(0)


def _product(step: Tensor, step_bias: Tensor | None, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``<H, W> + <h, b>`` of every matrix, ``[matrices]``, summed in float32 or wider."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    product = (step * weight).sum((-2, -1), dtype=dtype)
    if bias is not None and step_bias is not None:
        product = product + (step_bias * bias).sum((-2, -1), dtype=dtype)
    return product.flatten()


def balanced_direction(
    weight: Tensor, bias: Tensor | None, inverse: Tensor, mean: Tensor | None, root: Tensor
) -> tuple[Tensor, Tensor | None]:
    """One of them."""
    mixed = _mix(root, weight)
    if bias is None or mean is None:
        step = times_blocks(mixed, inverse)
        return step.mul_(row_scale((step * mixed).sum(-1, keepdim=True))), None
    mixed_bias = _mix(root, bias)
    mixed.addcmul_(mixed_bias, mean.unsqueeze(-2), value=-1)  # centred
    step = times_blocks(mixed, inverse)
    step_bias = mixed_bias - step @ mean.unsqueeze(-1)
    # <(h_w, h_b), (w, b)> = <h_w, w - b mu> + b^2
    scale = row_scale((step * mixed).sum(-1, keepdim=True) + mixed_bias.square())
    return step.mul_(scale), step_bias.mul_(scale)


def row_scale(products: Tensor) -> Tensor:
    """``1 / sqrt(<h_i, g~_i>)`` of every row; 0 where that is not positive: such a row is no descent direction."""
    return torch.where(products > 0, products.rsqrt(), 0.0)


def _mix(root: Tensor, rows: Tensor) -> Tensor:
    """The block-diagonal ``root [..., blocks, size, size]`` times ``[..., rows, n]``."""
    blocks, size = root.shape[-3], root.shape[-1]
    product: Tensor = root @ rows.unflatten(-2, (blocks, size))
    return product.flatten(-3, -2)


def times_blocks(rows: Tensor, blocks: Tensor) -> Tensor:
    """``rows [..., m, d]`` times the block-diagonal matrix ``blocks [..., blocks, size, size]``."""
    count, size = blocks.shape[-3], blocks.shape[-1]
    if count == 1:
        return rows @ blocks.squeeze(-3)
    cut: Tensor = rows.unflatten(-1, (count, size)).movedim(-2, -3)  # [..., blocks, m, size]
    return (cut @ blocks).movedim(-3, -2).flatten(-2)
