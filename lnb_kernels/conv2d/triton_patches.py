"""Convolution second moments by implicit im2col on the GPU, for any stride, dilation and grouping.

    S_g = sum over positions [p 1]'[p 1]        p: the zero-padded patch of group g, D entries

The Gram kernel's scheme (:mod:`lnb_kernels._triton.gram`: lower tiles, splits of the positions, mirrored epilogue) with
rows gathered from the image (:func:`lnb_kernels._triton.patches.patch_tile`) instead of a patch matrix that would be
``kh kw`` times as large as the image.

Cost per group with ``T = nb (nb + 1) / 2`` tiles: FLOPs ``2 N BLOCK_D^2 T``; from L2 and L1 ``2 N BLOCK_D T`` gathered
elements; from memory the image, about once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lnb_kernels._triton.arch import Arch, arch_of
from lnb_kernels._triton.gram import gram_finish_kernel
from lnb_kernels._triton.gram_launch import GramPlan, gram_plan, tile_config
from lnb_kernels._triton.launch import on_device
from lnb_kernels._triton.offsets import lower_tile, offset64
from lnb_kernels._triton.patches import patch_tile
from lnb_kernels._triton.precision import input_precision
from lnb_kernels.conv2d.geometry import Geometry


@triton.jit
def patch_gram_kernel(
    x_ptr, partial_ptr, sums_ptr, n_positions, d, tiles, rows_per_split, group_stride,
    height, width, out_area, out_width, stride_n, stride_c, stride_y, stride_x,
    step_y, step_x, pad_top, pad_left, dilation_y, dilation_x,
    KH: tl.constexpr, KW: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile (or one block of column sums) of one split of one group; grid ``(tiles + sum blocks, splits, groups)``.

    Results go to ``partial`` and ``sums`` as :func:`lnb_kernels._triton.gram.gram_finish_kernel` reads them.
    """
    tile = tl.program_id(0)
    group = tl.program_id(2)
    slot = group * tl.num_programs(1) + tl.program_id(1)
    start = tl.program_id(1) * rows_per_split
    stop = start + tl.minimum(rows_per_split, n_positions - start)
    x_ptr += offset64(group, group_stride)
    lane = tl.arange(0, BLOCK_D)
    row_lane = tl.arange(0, BLOCK_N)
    if tile < tiles:
        i, j = lower_tile(tile, tl.cdiv(d, BLOCK_D))
        acc = tl.zeros((BLOCK_D, BLOCK_D), tl.float32)
        for row in range(start, stop, BLOCK_N):
            a = patch_tile(
                x_ptr, row + row_lane, stop, i * BLOCK_D + lane, d, height, width, out_area, out_width,
                stride_n, stride_c, stride_y, stride_x, step_y, step_x, pad_top, pad_left, dilation_y, dilation_x, KH, KW,
            )  # fmt: skip
            b = patch_tile(
                x_ptr, row + row_lane, stop, j * BLOCK_D + lane, d, height, width, out_area, out_width,
                stride_n, stride_c, stride_y, stride_x, step_y, step_x, pad_top, pad_left, dilation_y, dilation_x, KH, KW,
            )  # fmt: skip
            acc = tl.dot(tl.trans(a), b, acc, input_precision=PRECISION)
        base = partial_ptr + offset64(offset64(slot, tiles) + tile, BLOCK_D * BLOCK_D)
        tl.store(base + lane[:, None] * BLOCK_D + lane[None, :], acc)
    else:
        block = tile - tiles
        cols = block * BLOCK_D + lane
        total = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        for row in range(start, stop, BLOCK_N):
            rows = row + row_lane
            a = patch_tile(
                x_ptr, rows, stop, cols, d, height, width, out_area, out_width,
                stride_n, stride_c, stride_y, stride_x, step_y, step_x, pad_top, pad_left, dilation_y, dilation_x, KH, KW,
            ).to(tl.float32)  # fmt: skip
            total += tl.where((cols == d)[None, :] & (rows < stop)[:, None], 1.0, a)
        blocks = tl.num_programs(0) - tiles
        tl.store(sums_ptr + offset64(offset64(slot, blocks) + block, BLOCK_D) + lane, tl.sum(total, 0))


def patch_arguments(x: torch.Tensor, conv: Geometry) -> tuple[int, ...]:
    """The arguments of :func:`lnb_kernels._triton.patches.patch_tile` from ``height`` to ``dilation_x``."""
    height, width = x.shape[2:]
    out_height, out_width = conv.output(height, width)
    left, _, top, _ = conv.padding
    return (
        height, width, out_height * out_width, out_width, *x.stride(), *conv.stride, top, left, *conv.dilation
    )  # fmt: skip


def plan(n: int, d: int, itemsize: int, arch: Arch, groups: int) -> GramPlan:
    """Launch geometry: that of the Gram kernel with tiles of at most 64 and 32 rows a step, as gathering takes registers."""
    block_i, block_j, block_n, *rest = tile_config(min(d, 64), itemsize, arch)
    return gram_plan(n, d, 0, itemsize, arch, groups, tail=False, tile=(block_i, block_j, min(block_n, 32), *rest))


def second_moment_by_patches(x: torch.Tensor, conv: Geometry) -> torch.Tensor:
    """``S`` ``[groups, D+1, D+1]`` fp32 of ``x`` ``[B, C, H, W]`` in any strides."""
    batch, channels, height, width = x.shape
    out_height, out_width = conv.output(height, width)
    n, d, groups = batch * out_height * out_width, conv.features(channels), conv.groups
    arch = arch_of(x.device)
    geometry = plan(n, d, x.element_size(), arch, groups)
    block, sum_blocks = geometry.block_j, geometry.sum_blocks
    s = x.new_empty((groups, d + 1, d + 1), dtype=torch.float32)
    partial = s.new_empty((groups, geometry.splits, geometry.tiles, block, block))
    sums = s.new_empty((groups, geometry.splits, sum_blocks, block))
    with on_device(x):
        patch_gram_kernel[(geometry.tiles + sum_blocks, geometry.splits, groups)](
            x, partial, sums, n, d, geometry.tiles, geometry.rows_per_split, channels // groups * x.stride(1),
            *patch_arguments(x, conv), KH=conv.kernel[0], KW=conv.kernel[1],
            BLOCK_D=block, BLOCK_N=geometry.block_n, PRECISION=input_precision(arch),
            num_warps=geometry.num_warps, num_stages=geometry.num_stages,
        )  # fmt: skip
        gram_finish_kernel[(geometry.tiles * geometry.parts + sum_blocks, groups)](
            s, s, s, s, partial, sums,
            d, 0, 1, 0, geometry.tiles, sum_blocks, geometry.tiles, geometry.splits, 1, 1, 1, 1,
            geometry.tiles * geometry.splits, geometry.splits, 1.0, 0.0, *s.stride()[:2], *s.stride()[:2],
            HAS_G=False, HAS_C=False, BLOCK_I=block, BLOCK_J=block,
            ROWS=geometry.finish_rows, CHUNK=geometry.finish_chunk, num_warps=4,
        )  # fmt: skip
    return s
