"""Convolution patches, gathered from the image as a kernel needs them: implicit im2col."""

from __future__ import annotations

import triton
import triton.language as tl

from lnb_kernels._triton.offsets import offset64


@triton.jit
def entry(column, channels, TAPS: tl.constexpr, BY_TAP: tl.constexpr):
    """``(channel, tap)`` of columns of the patch matrix: channel by channel as in ``weight.flatten(1)``, or ``BY_TAP``."""
    if BY_TAP:
        return column % channels, column // channels
    return column // TAPS, column % TAPS


@triton.jit
def patch_entries(
    x_ptr, positions, channel, tap, mask, height, width, out_area, out_width,
    stride_n, stride_c, stride_y, stride_x, step_y, step_x, pad_top, pad_left, dilation_y, dilation_x,
    KW: tl.constexpr, PADDED: tl.constexpr, PLANES: tl.constexpr,
):  # fmt: skip
    """``[positions, entries]`` of the patch matrix of one group, zero in the padding and outside of ``mask``.

    Position ``p`` is (image, output row, output column), an entry is a channel and a tap. Without padding, not ``PADDED``,
    every pixel of a patch is there. ``PLANES``, pixels of a row next to one another, are loaded along the positions.
    Offsets inside one image are int32: the launcher sends larger images to the reference.
    """
    image, pixel = positions // out_area, positions % out_area
    y = (pixel // out_width * step_y - pad_top)[:, None] + (tap // KW * dilation_y)[None, :]
    x = (pixel % out_width * step_x - pad_left)[:, None] + (tap % KW * dilation_x)[None, :]
    if PADDED:
        mask &= (y >= 0) & (y < height) & (x >= 0) & (x < width)
    inner = (channel * stride_c)[None, :] + y * stride_y + x * stride_x
    if PLANES:
        pointers = x_ptr + offset64(image, stride_n)[None, :] + tl.trans(inner)
        return tl.trans(tl.load(pointers, mask=tl.trans(mask), other=0.0))
    return tl.load(x_ptr + offset64(image, stride_n)[:, None] + inner, mask=mask, other=0.0)


@triton.jit
def patch_tile(
    x_ptr, positions, n_positions, features, d, height, width, out_area, out_width,
    stride_n, stride_c, stride_y, stride_x, step_y, step_x, pad_top, pad_left, dilation_y, dilation_x,
    KH: tl.constexpr, KW: tl.constexpr,
):  # fmt: skip
    """:func:`patch_entries` of the features ``[features]``, numbered as in ``weight.flatten(1)``."""
    channel, tap = entry(features, 1, KH * KW, False)
    mask = (positions < n_positions)[:, None] & (features < d)[None, :]
    return patch_entries(
        x_ptr, positions, channel, tap, mask, height, width, out_area, out_width,
        stride_n, stride_c, stride_y, stride_x, step_y, step_x, pad_top, pad_left, dilation_y, dilation_x, KW, True, False,
    )  # fmt: skip
