"""Second moment of convolution patches by the native CPU kernel: products of shifted channels, without patches.

The decomposition is that of :mod:`lnb_kernels.conv2d.shifts`; FLOPs and bytes are in ``csrc/cpu/conv_moment.cpp``.
"""

from __future__ import annotations

import torch

from lnb_kernels import _native
from lnb_kernels.conv2d import reference
from lnb_kernels.conv2d.geometry import Geometry
from lnb_kernels.second_moment.native_kernel import TYPE_NAMES

_LANE_CHANNELS = 2  # as kLaneChannels of csrc/cpu/conv_lanes.h
_MOST_PRODUCTS = 1 << 17  # of 16 groups: 8 MiB


def conv2d_second_moment(x: torch.Tensor, code: list[int], product: torch.dtype | None = None) -> torch.Tensor:
    """``S`` ``[groups, D+1, D+1]`` fp32 from ``x`` ``[B, C, H, W]`` fp32, bf16 or fp16, in any memory order.

    With ``product=torch.bfloat16`` entries are rounded to bfloat16 on their way into the products.
    """
    conv = Geometry.decode(code)
    if product == torch.float64 or not pays(x, conv):
        return reference.conv2d_second_moment(x, code, product)
    x = (x.half() if product == torch.float16 else x).resolve_neg()
    (kh, kw), (dh, dw), (left, _, top, _) = conv.kernel, conv.dilation, conv.padding
    rows, columns = conv.output(*x.shape[2:])
    size = conv.features(x.shape[1]) + 1
    native = _native.module()
    s = torch.empty(conv.groups, size, size)
    native.conv_moment(
        x.data_ptr(), getattr(native.Type, TYPE_NAMES[x.dtype]), x.shape, x.stride(), (kh, dh, top, rows),
        (kw, dw, left, columns), conv.groups, product == torch.bfloat16, s.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return s


def pays(x: torch.Tensor, conv: Geometry) -> bool:
    """Whether products of shifted channels beat explicit patches.

    They need stride 1. Groups of one or two channels are multiplied 16 groups at a time, which keeps a product for each shift
    and each part of the image that other taps visit: too much memory where kernels are large.
    """
    if conv.stride != (1, 1):
        return False
    channels = x.shape[1] // conv.groups
    if conv.groups == 1 or channels > _LANE_CHANNELS:
        return True
    down, right = (2 * taps - 1 for taps in conv.kernel)
    return conv.kernel[0] * right * down * right * channels**2 <= _MOST_PRODUCTS
