"""Convolution second moments from shifted channel products on the GPU (stride 1).

    S[(c, a), (c', b)] = sum over cells K inside R_a of T_(b-a)(K)[c, c'],
    T_s(K)[c, c'] = sum over q in K of x[c, q] x[c', q + s]

``R_a`` are the pixels that tap ``a`` visits. Cutting both axes into the interior, which every tap visits, and single
border lines makes each ``R_a`` a union of *cells* (derivation: :mod:`lnb_kernels.conv2d.shifts`), so borders cost no
correction and no cancellation.

1. :func:`shift_kernel` forms ``T_s`` for the half of the shifts that symmetry leaves, per cell, as a product over
   pixels. The interior is also split over its pixels; each (cell, split) is a *unit*. Tiles ``BLOCK_C x BLOCK_C`` of
   channels, pixels gathered by the row.
2. The splits of the interior are added.
3. :func:`assemble_kernel` gathers each element of ``S`` from its shift and cells; a program writes a tile and its mirror
   image.

FLOPs: ``((2 kh - 1)(2 kw - 1) + 1) / 2`` products ``2 pixels C^2`` per group: 13 for 3x3, where patches need 45 of the
81 with symmetry. Bytes: two reads of ``x`` from L2 per shift and tile; workspace ``4 units shifts C^2``; assembly reads
``4 cells`` per element of ``S``.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from lnb_kernels._captured import device_constants
from lnb_kernels._triton.arch import arch_of
from lnb_kernels._triton.crossover import power_of_two
from lnb_kernels._triton.launch import on_device
from lnb_kernels._triton.offsets import lower_tile, offset64
from lnb_kernels._triton.precision import input_precision
from lnb_kernels.conv2d.geometry import Geometry
from lnb_kernels.conv2d.shifts import axes

BLOCK_S = 32  # tile of the assembled S


@triton.jit
def shift_kernel(
    x_ptr, units_ptr, products_ptr, sums_ptr, channels, blocks, height, width,
    stride_n, stride_c, stride_y, stride_x, dilation_y, dilation_x,
    KH: tl.constexpr, KW: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of one shifted product over one unit; grid ``(shifts blocks^2 + blocks, units, groups)``.

    ``units`` ``[units, 6]`` int32: first row, rows, first column, columns, first and last pixel (of all images, counted
    within the cell). ``products`` ``[units, groups, shifts, channels, channels]``, ``sums``
    ``[units, groups, channels]``; ``channels`` of one group. The last ``blocks`` programs sum the pixels themselves.
    """
    SHIFTS: tl.constexpr = KW + (KH - 1) * (2 * KW - 1)
    tile = tl.program_id(0)
    unit = tl.program_id(1)
    group = tl.program_id(2)
    slot = unit * tl.num_programs(2) + group
    cell = units_ptr + unit * 6
    row, rows, col = tl.load(cell), tl.load(cell + 1), tl.load(cell + 2)
    cols, start, stop = tl.load(cell + 3), tl.load(cell + 4), tl.load(cell + 5)
    area = rows * cols
    lane = tl.arange(0, BLOCK_N)
    channel = tl.arange(0, BLOCK_C)
    x_ptr += offset64(offset64(group, channels), stride_c)
    shift = tile // (blocks * blocks)
    # Shifts in order: (0, 0 .. KW-1), then (dy, -(KW-1) .. KW-1) for dy = 1 .. KH-1.
    down = tl.where(shift < KW, 0, 1 + (shift - KW) // (2 * KW - 1))
    right = tl.where(shift < KW, shift, (shift - KW) % (2 * KW - 1) - (KW - 1))
    down *= dilation_y
    right *= dilation_x
    a_channel = tile % (blocks * blocks) // blocks * BLOCK_C + channel
    b_channel = tile % blocks * BLOCK_C + channel
    if shift < SHIFTS:
        acc = tl.zeros((BLOCK_C, BLOCK_C), tl.float32)
        for pixel in range(start, stop, BLOCK_N):
            pixels = pixel + lane
            live = pixels < stop
            y, x = row + pixels % area // cols, col + pixels % cols
            base = offset64(pixels // area, stride_n) + y * stride_y + x * stride_x
            reached = live & (y + down < height) & (x + right >= 0) & (x + right < width)
            a_mask = live[:, None] & (a_channel < channels)[None, :]
            b_mask = reached[:, None] & (b_channel < channels)[None, :]
            a = tl.load(x_ptr + base[:, None] + (a_channel * stride_c)[None, :], mask=a_mask, other=0.0)
            base += down * stride_y + right * stride_x
            b = tl.load(x_ptr + base[:, None] + (b_channel * stride_c)[None, :], mask=b_mask, other=0.0)
            acc = tl.dot(tl.trans(a), b, acc, input_precision=PRECISION)
        out = products_ptr + offset64(offset64(slot, SHIFTS) + shift, channels * channels)
        mask = (a_channel < channels)[:, None] & (b_channel < channels)[None, :]
        tl.store(out + a_channel[:, None] * channels + b_channel[None, :], acc, mask=mask)
    else:
        mine = (tile - SHIFTS * blocks * blocks) * BLOCK_C + channel
        total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
        for pixel in range(start, stop, BLOCK_N):
            pixels = pixel + lane
            y, x = row + pixels % area // cols, col + pixels % cols
            base = offset64(pixels // area, stride_n) + y * stride_y + x * stride_x
            mask = (pixels < stop)[:, None] & (mine < channels)[None, :]
            total += tl.load(x_ptr + base[:, None] + (mine * stride_c)[None, :], mask=mask, other=0.0).to(tl.float32)
        tl.store(sums_ptr + offset64(slot, channels) + mine, tl.sum(total, 0), mask=mine < channels)


@triton.jit
def assemble_kernel(
    products_ptr, sums_ptr, inside_ptr, s_ptr, channels, d, cells, interiors, tiles, count,
    KH: tl.constexpr, KW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One tile of ``S`` and its mirror image, or a block of its last row; grid ``(tiles + sum blocks, groups)``.

    ``inside`` ``[taps, cells]`` fp32 is 1 where the cell lies in ``R_tap``. Cell 0 is the interior, whose ``interiors``
    splits were added into unit 0; cell ``k`` is unit ``interiors - 1 + k``. For opposite shifts
    ``T_(-s)(R_b)[c', c] = T_s(R_a)[c, c']``; for shift zero the element with ``c >= c'`` is taken for both: ``S`` is
    symmetric to the bit.
    """
    SHIFTS: tl.constexpr = KW + (KH - 1) * (2 * KW - 1)
    tile = tl.program_id(0)
    group = tl.program_id(1)
    groups = tl.num_programs(1)
    lane = tl.arange(0, BLOCK)
    s_ptr += offset64(group, (d + 1) * (d + 1))
    if tile < tiles:
        i, j = lower_tile(tile, tl.cdiv(d, BLOCK))
        rows, cols = i * BLOCK + lane, j * BLOCK + lane
        c, a = (rows // (KH * KW))[:, None], (rows % (KH * KW))[:, None]
        other, b = (cols // (KH * KW))[None, :], (cols % (KH * KW))[None, :]
        down, right = b // KW - a // KW, b % KW - a % KW
        zero = (down == 0) & (right == 0)
        forward = (down > 0) | ((down == 0) & (right > 0)) | (zero & (c >= other))
        down, right = tl.where(forward, down, -down), tl.where(forward, right, -right)
        shift = tl.where(down == 0, right, KW + (down - 1) * (2 * KW - 1) + right + KW - 1)
        left_channel, right_channel = tl.where(forward, c, other), tl.where(forward, other, c)
        tap = tl.where(forward, a, b)
        mask = (cols[None, :] <= rows[:, None]) & (rows < d)[:, None]
        element = offset64(shift * channels + left_channel, channels) + right_channel
        total = tl.zeros((BLOCK, BLOCK), tl.float32)
        for cell in range(cells):
            unit = tl.where(cell == 0, 0, interiors - 1 + cell)
            base = offset64(offset64(unit * groups + group, SHIFTS), channels * channels)
            weight = tl.load(inside_ptr + tap * cells + cell, mask=mask, other=0.0)
            total += tl.load(products_ptr + base + element, mask=mask & (weight > 0.0), other=0.0)
        tl.store(s_ptr + rows[:, None] * (d + 1) + cols[None, :], total, mask=mask)
        tl.store(s_ptr + cols[:, None] * (d + 1) + rows[None, :], tl.trans(total), mask=tl.trans(mask))
    else:
        entries = (tile - tiles) * BLOCK + lane
        live = entries < d
        sums = tl.where(entries == d, count, 0.0)
        for cell in range(cells):
            slot = tl.where(cell == 0, 0, interiors - 1 + cell)
            member = tl.load(inside_ptr + entries % (KH * KW) * cells + cell, mask=live, other=0.0)
            first = offset64(slot * groups + group, channels)
            sums += tl.load(sums_ptr + first + entries // (KH * KW), mask=live & (member > 0.0), other=0.0)
        tl.store(s_ptr + d * (d + 1) + entries, sums, mask=entries <= d)
        tl.store(s_ptr + entries * (d + 1) + d, sums, mask=live)


def cell_count(conv: Geometry, height: int, width: int) -> int:
    """Interior and border lines of both axes: the cells of the image."""
    (low_y, high_y, _), (low_x, high_x, _) = axes(conv, height, width)
    return (1 + low_y + height - high_y) * (1 + low_x + width - high_x)


def channel_block(channels: int) -> int:
    """Channels of one tile."""
    return min(64, power_of_two(channels))


@device_constants(maxsize=256)
def _tables(
    conv: Geometry, batch: int, height: int, width: int, splits: int, block: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """``(units, inside, splits)`` as the kernels take them; ``splits`` of the interior that are not empty."""
    both = axes(conv, height, width)
    rows, columns = (
        [(low, high - low), *((k, 1) for k in (*range(low), *range(high, size)))]
        for (low, high, _), size in zip(both, (height, width), strict=True)
    )
    row_ranges, column_ranges = (ranges for _, _, ranges in both)
    cells = [(y, h, x, w) for y, h in rows for x, w in columns]
    units = []
    for index, (y, h, x, w) in enumerate(cells):
        pixels = batch * h * w
        step = math.ceil(math.ceil(pixels / splits) / block) * block if index == 0 else pixels
        units += [(y, h, x, w, start, min(start + step, pixels)) for start in range(0, pixels, step)]
    inside = [
        [float(y0 <= y < y1 and x0 <= x < x1) for y, _, x, _ in cells]
        for y0, y1 in row_ranges
        for x0, x1 in column_ranges
    ]
    return (
        torch.tensor(units, dtype=torch.int32, device=device),
        torch.tensor(inside, dtype=torch.float32, device=device),
        len(units) - len(cells) + 1,
    )


def second_moment_by_shifts(x: torch.Tensor, conv: Geometry) -> torch.Tensor:
    """``S`` ``[groups, D+1, D+1]`` fp32 of ``x`` ``[B, C, H, W]``, stride 1, with an interior.

    Channels are the contiguous dimension of a tile: an NCHW image is first copied to channels_last (one pass over
    ``x``).
    """
    x = x if x.stride(1) == 1 else x.contiguous(memory_format=torch.channels_last)
    batch, all_channels, height, width = x.shape
    (kh, kw), groups = conv.kernel, conv.groups
    channels, d = all_channels // groups, conv.features(all_channels)
    arch = arch_of(x.device)
    block, block_n = channel_block(channels), 64 if x.element_size() == 2 else 32
    blocks, shifts = math.ceil(channels / block), kw + (kh - 1) * (2 * kw - 1)
    programs = (shifts * blocks * blocks + blocks) * groups
    splits = max(1, min(4 * arch.multiprocessors // programs, math.ceil(batch * height * width / (8 * block_n))))
    units, inside, interiors = _tables(conv, batch, height, width, splits, block_n, x.device)
    cells, d_blocks = inside.shape[1], math.ceil(d / BLOCK_S)
    products = x.new_empty((len(units), groups, shifts, channels, channels), dtype=torch.float32)
    sums = products.new_empty((len(units), groups, channels))
    s = products.new_empty((groups, d + 1, d + 1))
    out_height, out_width = conv.output(height, width)
    tiles = d_blocks * (d_blocks + 1) // 2
    with on_device(x):
        shift_kernel[(shifts * blocks * blocks + blocks, len(units), groups)](
            x, units, products, sums, channels, blocks, height, width, *x.stride(), *conv.dilation,
            KH=kh, KW=kw, BLOCK_C=block, BLOCK_N=block_n, PRECISION=input_precision(arch), num_warps=4, num_stages=3,
        )  # fmt: skip
        if interiors > 1:
            products[0] = products[:interiors].sum(0)
            sums[0] = sums[:interiors].sum(0)
        assemble_kernel[(tiles + math.ceil((d + 1) / BLOCK_S), groups)](
            products, sums, inside, s, channels, d, cells, interiors, tiles, float(batch * out_height * out_width),
            KH=kh, KW=kw, BLOCK=BLOCK_S, num_warps=4,
        )  # fmt: skip
    return s
