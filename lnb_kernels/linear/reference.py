"""Backward pass of a linear layer with the second moment, in plain PyTorch: the executable specification."""

from __future__ import annotations

import torch

from lnb_kernels import _backend


def linear_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, mask: list[bool]
) -> list[torch.Tensor]:
    """The wanted ones of ``[G W, G'X, sum G, [X 1]'[X 1]]``.

    The products are those that autograd derives for ``F.linear``, in its layouts and order, so results equal its bit for bit.
    """
    rows = x.reshape(-1, x.shape[-1])  # [N, d]
    g = grad.reshape(-1, grad.shape[-1])  # [N, m]
    results = []
    if mask[0]:
        results.append(g.mm(weight).view(x.shape))
    if mask[1]:
        results.append(g.t().mm(rows))
    if mask[2]:
        results.append(g.sum(0))
    if mask[3]:
        results.append(_backend.call("second_moment", x, x, None))
    return results
