"""Convolution statistics in plain PyTorch: the executable specification."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lnb_kernels._checks import accumulation_dtype
from lnb_kernels.conv2d.geometry import Geometry, pad_extra


def patch_rows(x: torch.Tensor, conv: Geometry) -> torch.Tensor:
    """Patches ``[groups, B * positions, D]``, entries ordered as ``weight.flatten(1)``: channel, row, column."""
    batch, channels = x.shape[:2]
    x = F.pad(x, conv.padding)
    patches = F.unfold(x, conv.kernel, conv.dilation, 0, conv.stride)  # [B, C kh kw, positions]
    patches = patches.view(batch, conv.groups, conv.features(channels), -1)
    return patches.permute(1, 0, 3, 2).reshape(conv.groups, -1, conv.features(channels))


def conv2d_second_moment(x: torch.Tensor, code: list[int]) -> torch.Tensor:
    """``S = sum over positions [p 1]'[p 1]`` per group, ``[groups, D+1, D+1]``, from explicit patches."""
    conv = Geometry.decode(code)
    rows = patch_rows(x.to(accumulation_dtype(x.dtype)), conv)  # [groups, N, D]
    d = rows.shape[-1]
    s = rows.new_empty(conv.groups, d + 1, d + 1)
    s[:, :d, :d] = rows.mT @ rows
    s[:, d, :d] = s[:, :d, d] = rows.sum(1)
    s[:, d, d] = rows.shape[1]
    return s


def conv2d_cov_matvec(x: torch.Tensor, v: torch.Tensor, ridge: float, code: list[int]) -> torch.Tensor:
    """``(P'P / N + ridge diag(1..1, 0)) v``: a convolution with ``v`` as the weights, then its weight gradient."""
    conv = Geometry.decode(code)
    channels = x.shape[1]
    d = conv.features(channels)
    accumulate = accumulation_dtype(torch.promote_types(x.dtype, v.dtype))
    image, padding = pad_extra(x.to(accumulate), conv)
    vectors = v.to(accumulate)
    has_bias = v.shape[1] > d
    weight = vectors[:, :d].reshape(-1, channels // conv.groups, *conv.kernel)
    bias = vectors[:, d] if has_bias else None
    y = F.conv2d(image, weight, bias, conv.stride, padding, conv.dilation, conv.groups)
    _, product, sums = torch.ops.aten.convolution_backward(
        y, image, weight, [v.shape[0]], conv.stride, padding, conv.dilation, False, (0, 0), conv.groups,
        (False, True, has_bias),
    )  # fmt: skip
    out = torch.empty_like(vectors)
    out[:, :d] = product.flatten(1)
    if has_bias:
        out[:, d] = sums
    out /= max(y.shape[0] * y.shape[2] * y.shape[3], 1)
    out[:, :d].add_(vectors[:, :d], alpha=ridge)
    return out.to(v.dtype)
