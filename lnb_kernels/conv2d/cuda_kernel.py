"""Second moments of convolutions by the CUDA kernel: 16-bit images whose rows are read in whole vectors of 16 bytes.

It serves what the Triton kernels would gather entry by entry: images in planes (NCHW), and channels_last images of fewer
than 16 channels. All other convolutions go by Triton.
"""

from __future__ import annotations

import dataclasses

import torch

from lnb_kernels import _backend, _cuda
from lnb_kernels._counters import arrival_counters
from lnb_kernels._triton.arch import arch_of
from lnb_kernels.conv2d import reference
from lnb_kernels.conv2d.geometry import Geometry
from lnb_kernels.multi_tensor.grouping import native_type

_WIDEST = 8  # kernel columns: wider rows of a patch are read in vectors by Triton too
_VECTOR = 8  # elements of 16 bytes
_MOST_CHANNELS = 16  # of a channels_last image: with more, Triton reads a pixel's channels in vectors


def conv2d_second_moment(x: torch.Tensor, code: list[int], product: torch.dtype | None = None) -> torch.Tensor:
    """As :func:`lnb_kernels.conv2d.triton_kernel.conv2d_second_moment`, which takes what this kernel does not."""
    native = _cuda.module(x.device)
    if product is not None:
        x = x.to(product)
    conv = Geometry.decode(code)
    fields, blocks = shape_fields(x, conv), 2 * arch_of(x.device).multiprocessors
    floats, count = (0, 0) if fields is None else native.conv_sizes(fields, blocks)
    if floats == 0:
        return _by_others(x, code)
    size = conv.features(x.shape[1]) + 1
    s = torch.empty((conv.groups, size, size), dtype=torch.float32, device=x.device)
    partials = torch.empty(floats, dtype=torch.float32, device=x.device)
    with arrival_counters(x, count) as counters:
        native.conv_moments(
            x.data_ptr(), native_type(native, x.dtype), fields, blocks, partials.data_ptr(), counters.data_ptr(), s.data_ptr(),
            _cuda.where(x),
        )  # fmt: skip
    return s


def shape_fields(x: torch.Tensor, conv: Geometry) -> tuple[int, ...] | None:
    """The shape as the module takes it, or None for an image or a convolution that is for another kernel.

    The kernel reads whole aligned vectors, so some elements around those of ``x``, which must be in its storage too.
    """
    batch, channels, height, width = x.shape
    strides = image, channel, row, pixel = x.stride()
    pointwise = conv.kernel == conv.stride == (1, 1)
    if x.dtype not in (torch.bfloat16, torch.float16) or x.numel() == 0 or pointwise or x.is_neg():
        return None
    if conv.dilation != (1, 1) or conv.kernel[1] >= _WIDEST:
        return None
    planes = pixel == 1
    if not planes and not (channel == 1 and channels <= pixel < _MOST_CHANNELS):
        return None
    last = (batch - 1) * image + (channels - 1) * channel * planes + (height - 1) * row + width * pixel
    read = -(-last // _VECTOR) * _VECTOR * x.element_size()
    begin = x.storage_offset() * x.element_size()
    if x.data_ptr() % 16 != 0 or begin + read > x.untyped_storage().nbytes() or max(last, *strides) >= 2**60:
        return None
    outputs, (left, _, top, _) = conv.output(height, width), conv.padding
    reach = [
        n * step + kernel + size + pad
        for n, step, kernel, size, pad in zip(
            outputs, conv.stride, conv.kernel, (height, width), (top, left), strict=True
        )
    ]
    if max(*reach, reach[1] * pixel, batch * outputs[1]) >= 2**31:
        return None
    return (
        *strides, batch, conv.groups, channels // conv.groups, height, width, *outputs, *conv.kernel, *conv.stride, top, left
    )  # fmt: skip


def _by_others(x: torch.Tensor, code: list[int]) -> torch.Tensor:
    route = _backend.routes()["conv2d_second_moment"]
    others = dataclasses.replace(route, kernels={k: v for k, v in route.kernels.items() if k != "native-cuda"})
    if _backend.candidate(others, x.device, x.dtype, "auto") == "triton":
        try:
            s: torch.Tensor = _backend.load(route, "triton")(x, code)
        except _backend.KernelUnavailable:
            pass
        else:
            return s
    return reference.conv2d_second_moment(x, code)
