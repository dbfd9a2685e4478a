"""Rows of convolution patches, gathered from the image as a kernel needs them: implicit im2col."""

from __future__ import annotations

import triton
import triton.language as tl

from lnb_kernels._triton.offsets import offset64


@triton.jit
def patch_tile(
    x_ptr, positions, n_positions, features, d, height, width, out_area, out_width,
    stride_n, stride_c, stride_y, stride_x, step_y, step_x, pad_top, pad_left, dilation_y, dilation_x,
    KH: tl.constexpr, KW: tl.constexpr, PADDED: tl.constexpr = True,
    PLANES: tl.constexpr = False,
):  # fmt: skip
    """``[positions, features]`` of the patch matrix of one group, zero in the padding and outside the matrix.

    Position ``p`` is (image, output row, output column), feature ``f`` is (channel, kernel row, kernel column) as in
    ``weight.flatten(1)``. Without padding, not ``PADDED``, every pixel of a patch is there. ``PLANES``, pixels of a row
    next to one another, are loaded along the positions. Offsets inside one image are int32: the launcher sends larger
    images to the reference.
    """
    image, pixel = positions // out_area, positions % out_area
    channel, tap = features // (KH * KW), features % (KH * KW)
    y = (pixel // out_width * step_y - pad_top)[:, None] + (tap // KW * dilation_y)[None, :]
    x = (pixel % out_width * step_x - pad_left)[:, None] + (tap % KW * dilation_x)[None, :]
    mask = (positions < n_positions)[:, None] & (features < d)[None, :]
    if PADDED:
        mask &= (y >= 0) & (y < height) & (x >= 0) & (x < width)
    inner = (channel * stride_c)[None, :] + y * stride_y + x * stride_x
    if PLANES:
        pointers = x_ptr + offset64(image, stride_n)[None, :] + tl.trans(inner)
        return tl.trans(tl.load(pointers, mask=tl.trans(mask), other=0.0))
    return tl.load(x_ptr + offset64(image, stride_n)[:, None] + inner, mask=mask, other=0.0)
