"""Backward pass of a linear layer on the GPU: ``[G | X 1]'X`` in one launch.

Weight gradient, bias gradient and second moment multiply by the same ``X``; tiles of one split of the samples are
neighbours in the grid, so ``X`` comes from memory once for all three. Equation, tile scheme, bytes and FLOPs:
:mod:`lnb_kernels._triton.gram`. At ``m = d`` (``d`` >> 128) the launch issues ``3 N d^2`` FLOPs where the weight
gradient alone issues ``2 N d^2``. ``G W`` shares no operand product with these and stays a plain product of the
vendor's library. Where wide layers have many samples the library's tiles win, and all three are apart:
:func:`lnb_kernels._triton.gram_prediction.fused_backward_pays` decides.
"""

from __future__ import annotations

import torch

from lnb_kernels._triton import gram_launch
from lnb_kernels._triton.arch import arch_of
from lnb_kernels._triton.gram_prediction import fused_backward_pays
from lnb_kernels._triton.launch import compiles_or_unavailable
from lnb_kernels.linear import reference


@compiles_or_unavailable("linear_backward")
def linear_backward(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, mask: list[bool]) -> list[torch.Tensor]:
    """The wanted ones of ``[G W, G'X, sum G, [X 1]'[X 1]]``; fused where both ``G'X`` and ``S`` are wanted and that pays."""
    d, m, n = x.shape[-1], grad.shape[-1], x.shape[:-1].numel()
    fusable = mask[1] and mask[3] and grad.dtype == x.dtype and 0 < n <= gram_launch.MAX_SAMPLES and d > 0 and m > 0
    if fusable and fused_backward_pays(n, d, m, x.element_size(), arch_of(x.device)):
        return fused_backward(grad, x, weight, mask)
    return reference.linear_backward(grad, x, weight, mask)


def fused_backward(grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, mask: list[bool]) -> list[torch.Tensor]:
    """The same with ``G'X`` and ``S``, of samples of one dtype, whatever it takes."""
    d, m, n = x.shape[-1], grad.shape[-1], x.shape[:-1].numel()
    samples, g = x.reshape(n, d), grad.reshape(n, m)
    if d > 1 and m > 1 and samples.stride(1) != g.stride(1):
        samples, g = samples.contiguous(), g.contiguous()
    grad_weight = x.new_empty((m, d))
    grad_bias = x.new_empty((m,))
    s = x.new_empty((d + 1, d + 1), dtype=torch.float32)
    gram_launch.launch_gram(samples.unsqueeze(0), s.unsqueeze(0), g=g, grad_weight=grad_weight, grad_bias=grad_bias)
    grad_x = [g.mm(weight).view(x.shape)] if mask[0] else []
    return [*grad_x, grad_weight, *([grad_bias] if mask[2] else []), s]
