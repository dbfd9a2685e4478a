"""Balanced directions in plain PyTorch: the executable specification."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lnb_kernels._writes import require_writable
from lnb_kernels.scaling import sum_dtype, unit_scale

Problem = tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor]  # weight, bias, inverse, mean, root


LISTS = ("weights", "biases", "inverses", "means", "roots")
"""What the public function calls the lists of which a problem holds an entry each."""


@torch.no_grad()
def balanced_directions_(problems: Sequence[Problem]) -> Tensor:
    """Overwrite weight and bias of every problem by their directions; see :func:`lnb_kernels.balanced_directions_`."""
    require_apart(problems)
    products = [balanced_direction_(*problem) for problem in problems]
    return torch.cat(products) if products else torch.empty(0)


def require_apart(problems: Sequence[Problem]) -> None:
    """Refuse, before anything is written, memory that is written and shared or missing, and inference tensors."""
    named = {name: [problem[k] for problem in problems] for k, name in enumerate(LISTS)}
    require_writable(named, LISTS[:2])


def balanced_direction_(
    weight: Tensor, bias: Tensor | None, inverse: Tensor, mean: Tensor | None, root: Tensor
) -> Tensor:
    """One of them; returns ``<H, W> + <h, b>`` of every matrix, ``[matrices]``.

    Directions do not depend on the size of ``W`` or of ``P``. Both are brought to unit size, through ``P`` alone, so that the
    products of the rows are in the range of the dtype.
    """
    root = root * unit_scale(root, matrix_dims=3) * unit_scale(weight, bias).unsqueeze(-3)
    mixed = _mix(root, weight)
    if bias is None or mean is None:
        step = times_blocks(mixed, inverse)
        step = torch.mul(step, row_scale(_rows_dot(step, mixed)), out=mixed)
        products = _products(step, weight)
    else:
        mixed_bias = _mix(root, bias)
        mixed.addcmul_(mixed_bias, mean.unsqueeze(-2), value=-1)  # centred
        step = times_blocks(mixed, inverse)
        step_bias = mixed_bias - step @ mean.unsqueeze(-1)
        # <(h_w, h_b), (w, b)> = <h_w, w - b mu> + b^2
        scale = row_scale(_rows_dot(step, mixed) + mixed_bias.square())
        step = torch.mul(step, scale, out=mixed)
        step_bias *= scale
        products = _products(step, weight) + _products(step_bias, bias)
        bias.copy_(step_bias)
    weight.copy_(step)
    return products


def _products(step: Tensor, gradient: Tensor) -> Tensor:
    return (step * gradient).sum((-2, -1), dtype=sum_dtype(step.device)).flatten()


def _rows_dot(x: Tensor, y: Tensor) -> Tensor:
    """The dot product of every pair of rows, ``[..., m, 1]``."""
    return (x * y).sum(-1, keepdim=True)


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
