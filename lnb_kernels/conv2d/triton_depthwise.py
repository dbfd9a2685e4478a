"""Second moments of depthwise convolutions on the GPU: many channels to a program.

    S_c[a, b] = sum over positions of p_a p_b        p: the T taps of channel c at the position, then 1

With one channel to a group there is no product of matrices to speak of: ``(T + 1)(T + 2) / 2`` sums per channel, 55 for a
3x3 kernel. A program keeps a tile of pairs ``(a, b)`` times channels in registers and walks over its positions; channels are
next to one another in memory, so both factors are loaded in vectors, and neighbouring positions find each other's pixels
in the first-level cache. Sums of 64 positions are added to the tile's, so that rounding does not grow with their number.
Who arrives last at a tile (:mod:`lnb_kernels._triton.arrival`) adds the splits of the positions.

FLOPs: ``2 N C pairs``; bytes from memory: the image, once for each 32 pairs; from the first-level cache two elements for each
product.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from lnb_kernels._triton.arch import arch_of
from lnb_kernels._triton.arrival import arrival_counters, fan_of
from lnb_kernels._triton.crossover import power_of_two
from lnb_kernels._triton.gram import add_parts, arrive
from lnb_kernels._triton.gram_launch import FINISH_CHUNK
from lnb_kernels._triton.launch import on_device, register_limit
from lnb_kernels._triton.offsets import lower_tile, offset64
from lnb_kernels.conv2d.geometry import Geometry
from lnb_kernels.conv2d.triton_patches import patch_arguments

_CHANNELS = 32  # of a tile


@triton.jit
def depthwise_kernel(
    x_ptr, s_ptr, partial_ptr, counters_ptr, n_positions, channels, pairs, pair_blocks, blocks, splits, samples_per_split, fan,
    tile_counters, height, width, out_area, out_width, stride_n, stride_c, stride_y, stride_x,
    step_y, step_x, pad_top, pad_left, dilation_y, dilation_x,
    KH: tl.constexpr, KW: tl.constexpr, PADDED: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
    RUN: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A tile ``[BLOCK_P, BLOCK_C]`` of pairs and channels over one split of the positions; grid ``(tiles splits)``.

    ``tiles = pair_blocks blocks``; ``partial`` ``[tiles, splits, BLOCK_P, BLOCK_C]``, ``counters`` ``[tiles, tile_counters]``,
    ``s`` ``[channels, T + 1, T + 1]``.
    """
    TAPS: tl.constexpr = KH * KW
    tiles = pair_blocks * blocks
    tile = tl.program_id(0) % tiles
    split = tl.program_id(0) // tiles
    start = split * samples_per_split
    stop = start + tl.minimum(samples_per_split, n_positions - start)
    channel = tile // pair_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    pair = tile % pair_blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    a, b = lower_tile(pair, TAPS + 1)
    one_a, one_b = a == TAPS, b == TAPS
    y_a, x_a, y_b, x_b = a // KW * dilation_y, a % KW * dilation_x, b // KW * dilation_y, b % KW * dilation_x
    there = (pair < pairs)[:, None] & (channel < channels)[None, :]
    real_a, real_b = there & ~one_a[:, None], there & ~one_b[:, None]
    offset_a = (y_a * stride_y + x_a * stride_x)[:, None] + (channel * stride_c)[None, :]
    offset_b = (y_b * stride_y + x_b * stride_x)[:, None] + (channel * stride_c)[None, :]
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for first in range(start, stop, RUN):
        acc = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        for position in range(first, tl.minimum(first + RUN, stop)):
            pixel = position % out_area
            y, x = pixel // out_width * step_y - pad_top, pixel % out_width * step_x - pad_left
            base = x_ptr + offset64(position // out_area, stride_n) + y * stride_y + x * stride_x
            mask_a, mask_b = real_a, real_b
            if PADDED:
                inside_a = (y + y_a >= 0) & (y + y_a < height) & (x + x_a >= 0) & (x + x_a < width)
                inside_b = (y + y_b >= 0) & (y + y_b < height) & (x + x_b >= 0) & (x + x_b < width)
                mask_a, mask_b = mask_a & inside_a[:, None], mask_b & inside_b[:, None]
            left = tl.load(base + offset_a, mask=mask_a, other=0.0).to(tl.float32)
            right = tl.load(base + offset_b, mask=mask_b, other=0.0).to(tl.float32)
            acc += tl.where(one_a[:, None], 1.0, left) * tl.where(one_b[:, None], 1.0, right)
        total += acc
    places = partial_ptr + offset64(offset64(tile, splits), BLOCK_P * BLOCK_C)
    inner = tl.arange(0, BLOCK_P)[:, None] * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    tl.store(places + offset64(split, BLOCK_P * BLOCK_C) + inner, total)
    last, step, pieces = arrive(
        places, counters_ptr + offset64(tile, tile_counters), 0, 1, splits, split, fan, BLOCK_P, BLOCK_C, ROWS, CHUNK
    )
    if last:
        for row in range(0, BLOCK_P, ROWS):
            whole = add_parts(places, offset64(0, 1), step, pieces, row, ROWS, BLOCK_C, BLOCK_P * BLOCK_C, CHUNK)
            of_row = tile % pair_blocks * BLOCK_P + row + tl.arange(0, ROWS)
            i, j = lower_tile(of_row, TAPS + 1)
            mask = (of_row < pairs)[:, None] & (channel < channels)[None, :]
            base = s_ptr + offset64(channel, (TAPS + 1) * (TAPS + 1))[None, :]
            tl.store(base + (i * (TAPS + 1) + j)[:, None], whole, mask=mask)
            tl.store(base + (j * (TAPS + 1) + i)[:, None], whole, mask=mask)


def second_moment_depthwise(x: torch.Tensor, conv: Geometry) -> torch.Tensor:
    """``S`` ``[C, T+1, T+1]`` fp32 of ``x`` ``[B, C, H, W]``, as many groups as channels.

    Channels are the contiguous dimension of a tile: an NCHW image is first copied to channels_last (one pass over
    ``x``).
    """
    x = x if x.stride(1) == 1 else x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    out_height, out_width = conv.output(height, width)
    n, taps = batch * out_height * out_width, conv.kernel[0] * conv.kernel[1]
    pairs = (taps + 1) * (taps + 2) // 2
    block_p = min(32, power_of_two(pairs))
    pair_blocks, blocks = math.ceil(pairs / block_p), math.ceil(channels / _CHANNELS)
    tiles = pair_blocks * blocks
    arch = arch_of(x.device)
    wanted = max(1, min(8 * arch.multiprocessors // tiles, math.ceil(n / 64)))
    rows = math.ceil(n / wanted)
    splits = math.ceil(n / rows)
    fan = fan_of(splits)
    tile_counters = 1 + math.ceil(splits / fan)
    s = x.new_empty((channels, taps + 1, taps + 1), dtype=torch.float32)
    partial = s.new_empty((tiles, splits, block_p, _CHANNELS))
    with on_device(x), arrival_counters(x, tiles * tile_counters) as counters:
        depthwise_kernel[(tiles * splits,)](
            x, s, partial, counters, n, channels, pairs, pair_blocks, blocks, splits, rows, fan, tile_counters,
            *patch_arguments(x, conv), KH=conv.kernel[0], KW=conv.kernel[1], PADDED=any(conv.padding),
            BLOCK_P=block_p, BLOCK_C=_CHANNELS, RUN=64, ROWS=block_p, CHUNK=FINISH_CHUNK, num_warps=4,
            **register_limit(128, arch),
        )  # fmt: skip
    return s
