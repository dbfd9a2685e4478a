"""Convolution statistics in plain PyTorch: the executable specification."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lnb_kernels._checks import accumulation_dtype
from lnb_kernels.conv2d.geometry import Geometry, pad_extra
from lnb_kernels.conv2d.patches import conv2d_second_moment_by_patches
from lnb_kernels.conv2d.shifts import conv2d_second_moment_by_shifts, has_interior


def conv2d_second_moment(x: torch.Tensor, code: list[int], product: torch.dtype | None = None) -> torch.Tensor:
    """``S = sum over positions [p 1]'[p 1]`` per group, ``[groups, D+1, D+1]``, by the cheapest exact route.

    With ``product``, entries are first rounded to that dtype.
    """
    conv = Geometry.decode(code)
    rounded = x if product is None else x.to(product)
    image = rounded.to(accumulation_dtype(torch.promote_types(x.dtype, rounded.dtype)))
    if shifts_pay(image, conv):
        return conv2d_second_moment_by_shifts(image, conv)
    return conv2d_second_moment_by_patches(image, conv)


def shifts_pay(x: torch.Tensor, conv: Geometry) -> bool:
    """Whether products of shifted channels beat explicit patches.

    They need stride 1, and they form every shift of every border cell, which repays where there are more positions than
    patch entries. Convolutions of one or two channels per group are bound by memory and gain from large kernels only.
    For stride above 1, shifts of the phases (space to depth) were measured to be slower than patches for all usual
    kernels.
    """
    height, width = x.shape[2:]
    rows, columns = conv.output(height, width)
    thin = x.shape[1] // conv.groups <= 2 and conv.groups > 1 and conv.kernel[0] * conv.kernel[1] <= 9
    return (
        conv.stride == (1, 1)
        and not thin
        and x.shape[0] * rows * columns >= conv.features(x.shape[1])
        and has_interior(conv, height, width)
    )


def conv2d_cov_matvec(x: torch.Tensor, v: torch.Tensor, ridge: float, code: list[int]) -> torch.Tensor:
    """``(P'P / N + ridge diag(1..1, 0)) v``: a convolution with ``v`` as the weights, then its weight gradient."""
    conv = Geometry.decode(code)
    channels = x.shape[1]
    d = conv.features(channels)
    if v.shape[0] == 0:  # PyTorch has no convolution without output channels
        return torch.empty_like(v, memory_format=torch.contiguous_format)
    accumulate = accumulation_dtype(torch.promote_types(x.dtype, v.dtype))
    image, padding = pad_extra(x.to(accumulate), conv)
    if conv.kernel == (1, 1) and image.device.type == "cpu":
        image = (
            image.contiguous()
        )  # PyTorch's weight gradient with a stride writes out of bounds where channels are last
    vectors = v.to(accumulate)
    has_bias = v.shape[1] > d
    weight = vectors[:, :d].reshape(-1, channels // conv.groups, *conv.kernel)
    bias = vectors[:, d] if has_bias else None
    y = F.conv2d(image, weight, bias, conv.stride, padding, conv.dilation, conv.groups)
    _, product, sums = torch.ops.aten.convolution_backward(
        y, image, weight, [v.shape[0]], conv.stride, padding, conv.dilation, False, (0, 0), conv.groups,
        (False, True, has_bias),
    )  # fmt: skip
    out = vectors.new_empty(vectors.shape)
    out[:, :d] = product.flatten(1)
    if has_bias:
        out[:, d] = sums
    out /= max(y.shape[0] * y.shape[2] * y.shape[3], 1)
    out[:, :d].add_(vectors[:, :d], alpha=ridge)
    return out.to(v.dtype)


def layer_gradients(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, code: list[int], mask: list[bool]
) -> list[torch.Tensor]:
    """The wanted ones of the gradients of ``x``, ``weight`` and bias: the call that autograd makes for ``F.conv2d``."""
    if not any(mask[:3]):
        return []
    conv = Geometry.decode(code)
    grads = torch.ops.aten.convolution_backward(
        grad, x, weight, [weight.shape[0]], conv.stride, conv.split_padding()[0], conv.dilation, False, (0, 0),
        conv.groups, mask[:3],
    )  # fmt: skip
    return [value for value, wanted in zip(grads, mask[:3], strict=True) if wanted]


def channel_moments(x: torch.Tensor, positions: int) -> torch.Tensor:
    """``[3, C]``: sum of ``x``, sum of ``x^2`` and ``positions`` for each channel of ``[B, C, H, W]``."""
    values = x.to(accumulation_dtype(x.dtype))
    count = values.new_full((x.shape[1],), positions)
    return torch.stack((values.sum((0, 2, 3)), values.square().sum((0, 2, 3)), count))
