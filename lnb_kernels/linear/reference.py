"""Backward pass of a linear layer with the second moment, in plain PyTorch: the executable specification."""

from __future__ import annotations

import torch

from lnb_kernels import _backend
from lnb_kernels._rows import as_rows


def linear_backward(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, mask: list[bool]) -> list[torch.Tensor]:
    """The wanted ones of ``[G W, G'X, sum G, [X 1]'[X 1]]``.

    The products are those that autograd derives for ``F.linear``, in its layouts and order, so that results equal its
    bit for bit: a product for a column-major operand is taken in transposed form, one for a frozen weight and rows that are
    not evenly apart matrix by matrix, and the bias gradient is summed over
    flattened rows where the forward pass flattens them.
    """
    rows = as_rows(x)  # [N, d]
    g = as_rows(grad)  # [N, m]
    results = []
    if mask[0] and not mask[1] and not _folds(x):
        batch = x.shape[:-2].numel()
        products = torch.bmm(grad.reshape(batch, *grad.shape[-2:]), weight.expand(batch, *weight.shape))
        results.append(products.view(x.shape))
    elif mask[0]:
        column_major = rows.stride() == (1, rows.shape[0])
        grad_rows = weight.t().mm(g.t()).t() if column_major else g.mm(weight)
        results.append(grad_rows.view(x.shape) if x.dim() != 2 else grad_rows)
    if mask[1]:
        row_major = weight.stride() == (weight.shape[1], 1)
        results.append(g.t().mm(rows) if row_major else rows.t().mm(g).t())
    if mask[2]:
        flattened = x.dim() <= 2 or x.is_contiguous()
        results.append(g.sum(0) if flattened else grad.sum(tuple(range(grad.dim() - 1))))
    if mask[3]:
        results.append(_backend.call("second_moment", x, x, None))
    return results


def _folds(x: torch.Tensor) -> bool:
    """Whether ``torch.matmul`` multiplies ``x`` as rows by a frozen weight; else it multiplies matrix by matrix."""
    return x.numel() == 0 or all(x.stride(i) == x.stride(i + 1) * x.shape[i + 1] for i in range(x.dim() - 2))
