"""Second moments of diagonal blocks of a convolution's patches: of some channels, or of a part of one channel's taps.

Blocks of whole channels are those of a convolution of more groups. A part of the taps, some rows of the kernel or a part of one
row, is a smaller kernel that reads a window of the image: a view, and its own padding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from lnb_kernels._checks import accumulation_dtype
from lnb_kernels._triton.crossover import MOST_TAPS
from lnb_kernels.conv2d.geometry import Geometry

Moment = Callable[[torch.Tensor, list[int]], torch.Tensor]


def taps_of_part(kernel: tuple[int, int], parts: int) -> tuple[int, int] | None:
    """Rows and columns of each of ``parts`` equal parts of a kernel; None where neither rows nor parts of a row give that
    number."""
    rows, columns = kernel
    if rows % parts == 0:
        return rows // parts, columns
    if parts % rows == 0 and columns % (parts // rows) == 0:
        return 1, columns // (parts // rows)
    return None


def is_cut(conv: Geometry, channels: int, blocks: int) -> bool:
    """Whether the patches of all groups can be cut into ``blocks`` equal blocks."""
    if blocks < 1 or blocks % conv.groups:
        return False
    whole = channels % blocks == 0
    return whole or (blocks % channels == 0 and taps_of_part(conv.kernel, blocks // channels) is not None)


def block_features(conv: Geometry, channels: int, blocks: int) -> int:
    """Entries of one of ``blocks`` blocks of the patches of all groups."""
    return channels * conv.kernel[0] * conv.kernel[1] // blocks


def block_moments(x: torch.Tensor, conv: Geometry, blocks: int, moment: Moment) -> torch.Tensor:
    """``[blocks, D+1, D+1]`` of ``x`` ``[B, C, H, W]``, for which :func:`is_cut` holds; blocks are in the weight's order.

    Args:
        x: the images.
        conv: the convolution.
        blocks: of all groups together.
        moment: of images and an encoded geometry, a matrix for each group.
    """
    channels = x.shape[1]
    if channels % blocks == 0:
        return moment(x, conv.regrouped(blocks).encode())
    parts = blocks // channels
    taps = taps_of_part(conv.kernel, parts)
    assert taps is not None, "the caller asked is_cut"
    if x.device.type != "cpu" and taps[0] * taps[1] <= MOST_TAPS:  # the depthwise kernel would copy every part so
        x = x.contiguous(memory_format=torch.channels_last)
    return torch.stack([_part(x, conv, taps, i, moment) for i in range(parts)], 1).flatten(0, 1)


def _part(x: torch.Tensor, conv: Geometry, taps: tuple[int, int], number: int, moment: Moment) -> torch.Tensor:
    """The moment of one part of the taps of every channel, ``[C, D+1, D+1]``."""
    batch, channels, height, width = x.shape
    outputs = conv.output(height, width)
    left, _, top, _ = conv.padding
    tap = number * taps[0] * taps[1]
    first = tap // conv.kernel[1], tap % conv.kernel[1]
    windows = [
        _window(size, n, stride, dilation, begin, count, before)
        for size, n, stride, dilation, begin, count, before in zip(
            (height, width), outputs, conv.stride, conv.dilation, first, taps, (top, left), strict=True
        )
    ]
    (rows, (above, below)), (columns, (to_left, to_right)) = windows
    if rows.start >= rows.stop or columns.start >= columns.stop:  # these taps see padding alone
        size = taps[0] * taps[1] + 1
        s = x.new_zeros((channels, size, size), dtype=accumulation_dtype(x.dtype))
        s[:, -1, -1] = batch * outputs[0] * outputs[1]
        return s
    part = dataclasses.replace(conv, kernel=taps, padding=(to_left, to_right, above, below), groups=channels)
    return moment(x[:, :, rows, columns], part.encode())


def _window(
    size: int, outputs: int, stride: int, dilation: int, first: int, taps: int, before: int
) -> tuple[slice, tuple[int, int]]:
    """What ``taps`` taps from ``first`` read of an axis, and the zeros before and after it."""
    begin = first * dilation - before
    end = begin + (outputs - 1) * stride + (taps - 1) * dilation + 1
    return slice(max(begin, 0), min(end, size)), (max(-begin, 0), max(end - size, 0))
