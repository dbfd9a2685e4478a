"""Geometry of a 2-D convolution: checked arguments and the sizes that follow from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from lnb_kernels import _checks

Pair = int | Sequence[int]


@dataclass(frozen=True)
class Geometry:
    """Everything but the sizes of the input. ``padding`` is ``(left, right, top, bottom)`` as ``F.pad`` takes it."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def extent(self) -> tuple[int, int]:
        """Input rows and columns that one output position spans."""
        return self.dilation[0] * (self.kernel[0] - 1) + 1, self.dilation[1] * (self.kernel[1] - 1) + 1

    def features(self, channels: int) -> int:
        """``D = C / groups * kh * kw``: entries of one patch."""
        return channels // self.groups * self.kernel[0] * self.kernel[1]

    def output(self, height: int, width: int) -> tuple[int, int]:
        """Output height and width for an input of ``height x width``."""
        left, right, top, bottom = self.padding
        extent = self.extent
        return (
            (height + top + bottom - extent[0]) // self.stride[0] + 1,
            (width + left + right - extent[1]) // self.stride[1] + 1,
        )

    def regrouped(self, groups: int) -> Geometry:
        """The same with another number of groups: its second moments are diagonal blocks of this one's, or hold them."""
        return dataclasses.replace(self, groups=groups)

    def encode(self) -> list[int]:
        """As the flat list of ints that the ops take: kernel, stride, padding, dilation, groups."""
        return [*self.kernel, *self.stride, *self.padding, *self.dilation, self.groups]

    @staticmethod
    def decode(code: Sequence[int]) -> Geometry:
        """The inverse of :meth:`encode`."""
        kh, kw, sh, sw, left, right, top, bottom, dh, dw, groups = code
        return Geometry((kh, kw), (sh, sw), (left, right, top, bottom), (dh, dw), groups)

    def split_padding(self) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
        """``(symmetric, extra)``: the padding a convolution takes, and the rest (``F.pad`` order) to add before."""
        left, right, top, bottom = self.padding
        across, down = min(left, right), min(top, bottom)
        return (down, across), (left - across, right - across, top - down, bottom - down)


def geometry(op: str, kernel_size: Pair, stride: Pair, padding: Pair | str, dilation: Pair, groups: int) -> Geometry:
    """Check the arguments of a convolution and resolve ``"same"`` and ``"valid"``.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a value is out of range, or padding ``"same"`` meets a stride above 1.
    """
    kernel = _checks.pair(op, "kernel_size", kernel_size, 1)
    strides = _checks.pair(op, "stride", stride, 1)
    dilations = _checks.pair(op, "dilation", dilation, 1)
    if isinstance(groups, bool) or not isinstance(groups, int):
        raise TypeError(f"{op}: groups must be an int >= 1, got {groups!r}")
    if groups < 1:
        raise ValueError(f"{op}: groups={groups!r} is not allowed; it must be an int >= 1")
    if not isinstance(padding, str):
        down, across = _checks.pair(op, "padding", padding, 0)
        pads = (across, across, down, down)
    elif padding == "valid":
        pads = (0, 0, 0, 0)
    elif padding == "same":
        if strides != (1, 1):
            raise ValueError(f"{op}: padding='same' is not allowed with stride={stride!r}; it needs stride 1")
        total_h, total_w = dilations[0] * (kernel[0] - 1), dilations[1] * (kernel[1] - 1)
        pads = (total_w // 2, total_w - total_w // 2, total_h // 2, total_h - total_h // 2)
    else:
        raise ValueError(f"{op}: padding={padding!r} is not allowed; it must be int, pair, 'same' or 'valid'")
    return Geometry(kernel, strides, pads, dilations, groups)


def check_input(op: str, x: object, conv: Geometry) -> torch.Tensor:
    """``x`` as ``[B, C, H, W]``, checked against ``conv``.

    Raises:
        TypeError: ``x`` is no dense floating tensor.
        ValueError: it has neither 3 nor 4 dimensions, ``groups`` does not divide its channels, it is too small, or more outputs
            or products of features than can be counted would come of it.
    """
    image = _checks.floating_tensor(op, "x", x)
    if image.dim() not in (3, 4):
        raise ValueError(f"{op}: x has shape {tuple(image.shape)}; allowed are [B, C, H, W] and [C, H, W]")
    if image.dim() == 3:
        image = image.unsqueeze(0)
    channels, height, width = image.shape[1:]
    if channels % conv.groups or channels == 0:
        raise ValueError(f"{op}: groups={conv.groups} does not divide the {channels} channels of x")
    if min(conv.output(height, width)) < 1:
        raise ValueError(
            f"{op}: x of {height} x {width} pixels, padded by {conv.padding}, is smaller than the extent "
            f"{conv.extent} of the kernel"
        )
    outputs, features = conv.output(height, width), conv.features(channels)
    positions = outputs[0] * outputs[1]  # of one image: a batch of any size needs no compiled code of its own
    if max(positions, conv.groups * (features + 1) ** 2) >= 2**60:
        raise ValueError(
            f"{op}: x of {height} x {width} pixels, padded by {conv.padding}, with a kernel of {conv.kernel} has {positions} "
            f"output positions of {features} entries; allowed are at most 2**60 positions, and entries of all their products"
        )
    return image


def pad_extra(x: torch.Tensor, conv: Geometry) -> tuple[torch.Tensor, tuple[int, int]]:
    """``x`` with the asymmetric part of the padding added, and the symmetric rest for a convolution."""
    symmetric, extra = conv.split_padding()
    return (F.pad(x, extra) if any(extra) else x), symmetric
