"""Second moment of convolution patches from explicit patches (im2col), a few samples at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from lnb_kernels.conv2d.geometry import Geometry
from lnb_kernels.second_moment.gram import add_gram_, block_edges, mirror_

_PATCHES = 2048  # patches per product: enough to run at full speed, few enough to stay in cache


def conv2d_second_moment_by_patches(x: torch.Tensor, conv: Geometry) -> torch.Tensor:
    """``S`` ``[groups, D+1, D+1]``; ``x`` ``[B, C, H, W]`` float32 or float64. Any stride, any padding."""
    batch = x.shape[0]
    height, width = conv.output(*x.shape[2:])
    positions, d = height * width, conv.features(x.shape[1])
    s = x.new_zeros(conv.groups, d + 1, d + 1)
    moments, sums = s[:, :d, :d], s[:, d, :d]
    edges = [0, d]
    for samples in x.split(max(1, _PATCHES // positions)):
        columns = F.unfold(F.pad(samples, conv.padding), conv.kernel, conv.dilation, 0, conv.stride)
        columns = columns.unflatten(1, (conv.groups, d)).permute(1, 2, 0, 3).flatten(2)  # [groups, D, samples]
        edges = block_edges(columns)
        if conv.groups == 1:
            add_gram_(moments[0], columns[0], columns[0], edges)
        else:
            add_gram_(moments, columns, columns, edges)
        sums += columns.sum(2)
    mirror_(moments, edges)
    s[:, :d, d] = sums
    s[:, d, d] = batch * positions
    return s
