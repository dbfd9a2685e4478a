"""Convolution second moments by implicit im2col on the GPU, for any stride, dilation and grouping.

    S_g = sum over positions [p 1]'[p 1]        p: the zero-padded patch of group g, D entries

The Gram kernel's scheme (:mod:`lnb_kernels._triton.gram`: lower tiles, splits of the positions, mirrored epilogue) with
samples gathered from the image (:func:`lnb_kernels._triton.patches.patch_entries`) instead of a patch matrix that would be
``kh kw`` times as large as the image.

Cost per group with ``T = nb (nb + 1) / 2`` tiles: FLOPs ``2 N BLOCK_D^2 T``; from L2 and L1 ``2 N BLOCK_D T`` gathered
elements; from memory the image, about once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lnb_kernels._triton.arch import Arch, arch_of
from lnb_kernels._triton.arrival import arrival_counters, is_last
from lnb_kernels._triton.gram import add_parts, add_sums, arrive
from lnb_kernels._triton.gram_launch import FINISH_CHUNK, GramPlan, gram_plan, tile_config
from lnb_kernels._triton.launch import on_device, register_limit
from lnb_kernels._triton.offsets import lower_tile, offset64
from lnb_kernels._triton.patches import entry, patch_entries
from lnb_kernels._triton.precision import input_precision
from lnb_kernels.conv2d.geometry import Geometry

WIDE = 8  # kernel columns from which a row of a patch, rather than of the image, is what a warp loads


@triton.jit
def patch_gram_kernel(
    x_ptr, s_ptr, partial_ptr, sums_ptr, counters_ptr, n_positions, channels, d, tiles, sum_blocks, splits, samples_per_split,
    fan, tile_counters, group_stride, height, width, out_area, out_width, stride_n, stride_c, stride_y, stride_x,
    step_y, step_x, pad_top, pad_left, dilation_y, dilation_x,
    KH: tl.constexpr, KW: tl.constexpr, PADDED: tl.constexpr, PLANES: tl.constexpr, BY_TAP: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile (or one block of column sums) of one split of one group; grid ``((tiles + sum_blocks) splits groups)``.

    ``partial`` ``[groups, splits, tiles, BLOCK_D, BLOCK_D]``, ``sums`` ``[groups, splits, sum_blocks, BLOCK_D]``, and
    ``counters`` ``[groups, tiles tile_counters + sum_blocks]``, as in the Gram kernel; ``s`` ``[groups, d + 1, d + 1]``.
    Columns of tiles are numbered ``BY_TAP`` where channels are next to one another in memory, to be loaded in vectors.
    """
    TAPS: tl.constexpr = KH * KW
    of_split = tiles + sum_blocks
    tile = tl.program_id(0) % of_split
    split = tl.program_id(0) // of_split % splits
    group = tl.program_id(0) // of_split // splits
    start = split * samples_per_split
    stop = start + tl.minimum(samples_per_split, n_positions - start)
    x_ptr += offset64(group, group_stride)
    s_ptr += offset64(group, (d + 1) * (d + 1))
    counters_ptr += offset64(group, tiles * tile_counters + sum_blocks)
    lane = tl.arange(0, BLOCK_D)
    position_lane = tl.arange(0, BLOCK_N)
    if tile < tiles:
        i, j = lower_tile(tile, tl.cdiv(d, BLOCK_D))
        a_cols, b_cols = i * BLOCK_D + lane, j * BLOCK_D + lane
        a_channel, a_tap = entry(a_cols, channels, TAPS, BY_TAP)
        b_channel, b_tap = entry(b_cols, channels, TAPS, BY_TAP)
        acc = tl.zeros((BLOCK_D, BLOCK_D), tl.float32)
        for position in range(start, stop, BLOCK_N):
            positions = position + position_lane
            live = (positions < stop)[:, None]
            a = patch_entries(
                x_ptr, positions, a_channel, a_tap, live & (a_cols < d)[None, :], height, width, out_area, out_width, stride_n,
                stride_c, stride_y, stride_x, step_y, step_x, pad_top, pad_left, dilation_y, dilation_x, KW, PADDED, PLANES,
            )  # fmt: skip
            b = patch_entries(
                x_ptr, positions, b_channel, b_tap, live & (b_cols < d)[None, :], height, width, out_area, out_width, stride_n,
                stride_c, stride_y, stride_x, step_y, step_x, pad_top, pad_left, dilation_y, dilation_x, KW, PADDED, PLANES,
            )  # fmt: skip
            acc = tl.dot(tl.trans(a), b, acc, input_precision=PRECISION)
        places = partial_ptr + offset64(offset64(group, splits * tiles), BLOCK_D * BLOCK_D)
        base = places + offset64(split * tiles + tile, BLOCK_D * BLOCK_D)
        tl.store(base + lane[:, None] * BLOCK_D + lane[None, :], acc)
        last, step, pieces = arrive(
            places, counters_ptr + tile * tile_counters, offset64(tile, 1), tiles, splits, split, fan,
            BLOCK_D, BLOCK_D, ROWS, CHUNK,
        )  # fmt: skip
        if last:
            b_entry = b_channel * TAPS + b_tap
            for row in range(0, BLOCK_D, ROWS):
                total = add_parts(places, offset64(tile, 1), step, pieces, row, ROWS, BLOCK_D, BLOCK_D * BLOCK_D, CHUNK)
                rows = i * BLOCK_D + row + tl.arange(0, ROWS)
                channel, tap = entry(rows, channels, TAPS, BY_TAP)
                row_entry = channel * TAPS + tap
                mask = (b_cols[None, :] <= rows[:, None]) & (rows < d)[:, None]
                tl.store(s_ptr + offset64(row_entry, d + 1)[:, None] + b_entry[None, :], total, mask=mask)
                mirror = s_ptr + offset64(b_entry, d + 1)[:, None] + row_entry[None, :]
                tl.store(mirror, tl.trans(total), mask=tl.trans(mask))
    else:
        block = tile - tiles
        cols = block * BLOCK_D + lane
        channel, tap = entry(cols, channels, TAPS, BY_TAP)
        total = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        for position in range(start, stop, BLOCK_N):
            positions = position + position_lane
            mask = (positions < stop)[:, None] & (cols < d)[None, :]
            total += patch_entries(
                x_ptr, positions, channel, tap, mask, height, width, out_area, out_width, stride_n, stride_c,
                stride_y, stride_x, step_y, step_x, pad_top, pad_left, dilation_y, dilation_x, KW, PADDED, PLANES,
            ).to(tl.float32)  # fmt: skip
        vectors = offset64(group, splits * sum_blocks) + block
        tl.store(sums_ptr + offset64(vectors + offset64(split, sum_blocks), BLOCK_D) + lane, tl.sum(total, 0))
        if is_last(counters_ptr + tiles * tile_counters + block, splits):
            sums = add_sums(sums_ptr, vectors, sum_blocks, splits, BLOCK_D, CHUNK)
            sums += tl.where(cols == d, n_positions, 0).to(tl.float32)
            entries = tl.where(cols < d, channel * TAPS + tap, d)
            tl.store(s_ptr + offset64(d, d + 1) + entries, sums, mask=cols <= d)
            tl.store(s_ptr + offset64(entries, d + 1) + d, sums, mask=cols < d)


def patch_arguments(x: torch.Tensor, conv: Geometry) -> tuple[int, ...]:
    """The arguments of :func:`lnb_kernels._triton.patches.patch_tile` from ``height`` to ``dilation_x``."""
    height, width = x.shape[2:]
    out_height, out_width = conv.output(height, width)
    left, _, top, _ = conv.padding
    return (
        height, width, out_height * out_width, out_width, *x.stride(), *conv.stride, top, left, *conv.dilation
    )  # fmt: skip


def plan(n: int, d: int, itemsize: int, arch: Arch, groups: int, positions: int) -> GramPlan:
    """Launch geometry: that of the Gram kernel, tiles of at most 64 and few ``positions`` a step: gathering takes registers."""
    block_i, block_j, block_n, *rest = tile_config(min(d, 64), itemsize, arch)
    return gram_plan(
        n, d, 0, itemsize, arch, groups, tail=False, tile=(block_i, block_j, min(block_n, positions), *rest)
    )


def second_moment_by_patches(x: torch.Tensor, conv: Geometry) -> torch.Tensor:
    """``S`` ``[groups, D+1, D+1]`` fp32 of ``x`` ``[B, C, H, W]`` in any strides."""
    batch, channels, height, width = x.shape
    out_height, out_width = conv.output(height, width)
    n, d, groups = batch * out_height * out_width, conv.features(channels), conv.groups
    arch = arch_of(x.device)
    planes = x.stride(3) == 1 and x.stride(1) != 1 and conv.kernel[1] < WIDE
    geometry = plan(n, d, x.element_size(), arch, groups, 16 if planes and x.element_size() == 4 else 32)
    block, sum_blocks = geometry.block_j, geometry.sum_blocks
    s = x.new_empty((groups, d + 1, d + 1), dtype=torch.float32)
    splits, counted = geometry.splits, geometry.tiles * geometry.tile_counters + sum_blocks
    partial = s.new_empty((groups, splits, geometry.tiles, block, block))
    sums = s.new_empty((groups, splits, sum_blocks, block))
    with on_device(x), arrival_counters(x, groups * counted) as counters:
        patch_gram_kernel[((geometry.tiles + sum_blocks) * splits * groups,)](
            x, s, partial, sums, counters, n, channels // groups, d, geometry.tiles, sum_blocks, splits,
            geometry.samples_per_split, geometry.fan, geometry.tile_counters, channels // groups * x.stride(1),
            *patch_arguments(x, conv), KH=conv.kernel[0], KW=conv.kernel[1], PADDED=any(conv.padding),
            PLANES=planes, BY_TAP=x.stride(1) == 1 and conv.kernel != (1, 1),
            BLOCK_D=block, BLOCK_N=geometry.block_n, ROWS=min(block, 1024 // block), CHUNK=FINISH_CHUNK,
            PRECISION=input_precision(arch), num_warps=geometry.num_warps, num_stages=geometry.num_stages,
            **register_limit(255, arch),
        )  # fmt: skip
    return s
