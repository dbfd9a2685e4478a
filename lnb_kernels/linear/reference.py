"""Backward pass of a linear layer with the second moment, in plain PyTorch: the executable specification."""

from __future__ import annotations

import torch

from lnb_kernels import _backend
from lnb_kernels._matrix import as_matrix


def linear_backward(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, mask: list[bool]) -> list[torch.Tensor]:
    """The wanted ones of ``[G W, G'X, sum G, [X 1]'[X 1]]``.

    The products are those that autograd derives for ``F.linear``, in its layouts and order, so that results equal its
    bit for bit: a product for a column-major operand is taken in transposed form, one for a frozen weight and samples that are
    not evenly apart matrix by matrix, and the bias gradient is summed over
    flattened samples where the forward pass flattens them.
    """
    samples = as_matrix(x)  # [N, d]
    g = as_matrix(grad)  # [N, m]
    results = []
    if mask[0] and not mask[1] and not _folds(x):
        batch = x.shape[:-2].numel()
        products = torch.bmm(grad.reshape(batch, *grad.shape[-2:]), weight.expand(batch, *weight.shape))
        results.append(products.view(x.shape))
    elif mask[0]:
        column_major = samples.stride() == (1, samples.shape[0])
        grad_samples = weight.t().mm(g.t()).t() if column_major else g.mm(weight)
        results.append(grad_samples.view(x.shape) if x.dim() != 2 else grad_samples)
    if mask[1]:
        row_major = weight.stride() == (weight.shape[1], 1)
        results.append(g.t().mm(samples) if row_major else samples.t().mm(g).t())
    if mask[2]:
        flattened = x.dim() <= 2 or x.is_contiguous()
        results.append(g.sum(0) if flattened else grad.sum(tuple(range(grad.dim() - 1))))
    if mask[3]:
        results.append(_backend.call("second_moment", x, x, None))
    return results


def _folds(x: torch.Tensor) -> bool:
    """Whether ``torch.matmul`` multiplies ``x`` as samples by a frozen weight; else it multiplies matrix by matrix."""
    return x.numel() == 0 or all(x.stride(i) == x.stride(i + 1) * x.shape[i + 1] for i in range(x.dim() - 2))
