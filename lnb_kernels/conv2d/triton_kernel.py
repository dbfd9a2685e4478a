"""Convolution statistics on the GPU: which kernel serves which convolution.

=====================================  =====================================================================
1x1, stride 1, no padding              the Gram kernel on pixels, a matrix for each group (:func:`pixels`)
one channel to a group, to 7x7         sums of pairs of taps (:mod:`lnb_kernels.conv2d.triton_depthwise`)
stride 1, at least 16 channels         shifted products (:mod:`lnb_kernels.conv2d.triton_shifts`)
all others                             implicit im2col (:mod:`lnb_kernels.conv2d.triton_patches`)
=====================================  =====================================================================

:func:`lnb_kernels._triton.crossover.shifts_pay` is the rule between the last two, which read channels_last and NCHW images alike.
"""

from __future__ import annotations

import torch

from lnb_kernels._triton.crossover import MOST_TAPS, fused_matvec_pays, shifts_pay
from lnb_kernels._triton.descriptors import in_planes
from lnb_kernels._triton.gram_launch import MAX_SAMPLES, launch_gram
from lnb_kernels._triton.launch import MOST_BLOCKS, compiles_or_unavailable
from lnb_kernels.conv2d import reference
from lnb_kernels.conv2d.geometry import Geometry
from lnb_kernels.conv2d.shifts import has_interior
from lnb_kernels.conv2d.triton_depthwise import second_moment_depthwise
from lnb_kernels.conv2d.triton_matvec import matvec_by_patches
from lnb_kernels.conv2d.triton_patches import second_moment_by_patches
from lnb_kernels.conv2d.triton_shifts import cell_count, second_moment_by_shifts


def addressable(x: torch.Tensor, conv: Geometry) -> bool:
    """Whether int32 counts the positions and the offsets inside one image, and a launch the groups; false for empty inputs."""
    batch, _, height, width = x.shape
    out_height, out_width = conv.output(height, width)
    span = 1 + sum((size - 1) * abs(stride) for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True))
    positions = batch * max(out_height * out_width, height * width)
    return x.numel() > 0 and span <= MAX_SAMPLES and positions <= MAX_SAMPLES and conv.groups <= MOST_BLOCKS


def pixels(x: torch.Tensor, groups: int) -> torch.Tensor | None:
    """The image ``[B, C, H, W]`` as ``[groups, pixels, C/groups]`` or, in planes, ``[groups, B, H W, C/groups]``; not a copy.

    None if neither all pixels nor those of every channel are evenly apart.
    """
    batch, channels, height, width = x.shape
    image, channel, row, column = x.stride()
    even = height == 1 or row == width * column
    area, per_group = height * width, channels // groups
    if even and (batch == 1 or image == area * column):
        shape, strides = (groups, batch * area, per_group), (per_group * channel, column, channel)
        return x.as_strided(shape, strides)
    planes = x.as_strided((groups, batch, area, per_group), (per_group * channel, image, column, channel))
    return planes if even and in_planes(planes) else None


def route(x: torch.Tensor, conv: Geometry) -> str:
    """``"pixels"``, ``"depthwise"``, ``"shifts"``, ``"patches"``, or ``"reference"``: empty inputs, images of 2^31 elements."""
    height, width = x.shape[2:]
    channels = x.shape[1]
    if not addressable(x, conv):
        return "reference"
    if conv.kernel == conv.stride == (1, 1) and not any(conv.padding) and pixels(x, 1) is not None:
        return "pixels"
    per_group = channels // conv.groups
    if per_group == 1 and channels > 1 and conv.kernel[0] * conv.kernel[1] <= MOST_TAPS:
        return "depthwise"
    if conv.stride != (1, 1) or not has_interior(conv, height, width):
        return "patches"
    cells = cell_count(
        conv, height, width
    )  # some splits of the interior, they are programs of a dimension of the launch
    return "shifts" if shifts_pay(per_group, conv.kernel, cells) and 2 * cells <= MOST_BLOCKS else "patches"


@compiles_or_unavailable("conv2d_second_moment")
def conv2d_second_moment(x: torch.Tensor, code: list[int], product: torch.dtype | None = None) -> torch.Tensor:
    """``S`` ``[groups, D+1, D+1]`` fp32 of ``x`` ``[B, C, H, W]``; see :func:`lnb_kernels.conv2d_second_moment`.

    With ``product``, entries are first rounded to that dtype.
    """
    conv = Geometry.decode(code)
    if product is not None:
        x = x.to(product)
    match route(x, conv):
        case "pixels":
            samples = pixels(x, conv.groups)
            assert samples is not None
            s = x.new_empty((conv.groups, samples.shape[-1] + 1, samples.shape[-1] + 1), dtype=torch.float32)
            launch_gram(samples, s)
            return s
        case "depthwise":
            return second_moment_depthwise(x, conv)
        case "shifts":
            return second_moment_by_shifts(x, conv)
        case "patches":
            return second_moment_by_patches(x, conv)
    return reference.conv2d_second_moment(x, code)


@compiles_or_unavailable("conv2d_cov_matvec")
def conv2d_cov_matvec(x: torch.Tensor, v: torch.Tensor, ridge: float, code: list[int]) -> torch.Tensor:
    """``(P~'P~ / N + ridge diag(1..1, 0)) v`` of the patches of ``x``; see :func:`lnb_kernels.conv2d_cov_matvec`.

    Fused for few output channels of a group, else a convolution and its weight gradient by the vendor's library.
    """
    conv = Geometry.decode(code)
    few = fused_matvec_pays(conv.features(x.shape[1]), v.shape[0] // conv.groups)
    if v.dtype == torch.float64 or not few or not addressable(x, conv) or conv.groups > MOST_BLOCKS:
        return reference.conv2d_cov_matvec(x, v, ridge, code)
    return matvec_by_patches(x, v, ridge, conv)
