"""Convolution second moments from shifted channel products on the GPU (stride 1).

    S[(c, a), (c', b)] = sum over cells K inside R_a of T_(b-a)(K)[c, c'],
    T_s(K)[c, c'] = sum over q in K of x[c, q] x[c', q + s]

``R_a`` are the pixels that tap ``a`` visits. Cutting both axes into the interior, which every tap visits, and single
border lines makes each ``R_a`` a union of *cells* (derivation: :mod:`lnb_kernels.conv2d.shifts`), so borders cost no
correction and no cancellation.

:func:`shift_kernel` forms ``T_s`` for the half of the shifts that symmetry leaves, per cell, as one product over pixels of
``[channels of all shifts] x [channels]``: pixels and their shifted neighbours are gathered as they are needed, and lie in
the first-level cache for the shifts that meet them again. The interior is also split over its pixels; each (cell, split) is
a *unit*. Who arrives last at a tile (:mod:`lnb_kernels._triton.arrival`) adds for each tap the cells inside ``R_a`` and
stores every element of ``S`` twice, mirrored. So a convolution is one launch, in whatever layout its image has.

FLOPs: ``((2 kh - 1)(2 kw - 1) + 1) / 2`` products ``2 pixels C^2`` per group: 13 for 3x3, where patches need 45 of the
81 with symmetry. Bytes: one read of ``x`` per tile of 128 columns and up to 64 rows, those of the shifts mostly from the
first-level cache; workspace ``4 units shifts C^2``; finishing reads ``4 cells`` per element of ``S``.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from lnb_kernels._captured import device_constants
from lnb_kernels._triton.arch import arch_of
from lnb_kernels._triton.arrival import arrival_counters, fan_of, is_last
from lnb_kernels._triton.crossover import power_of_two
from lnb_kernels._triton.gram import add_in_place, add_parts, add_sums
from lnb_kernels._triton.gram_launch import FINISH_CHUNK
from lnb_kernels._triton.launch import on_device, register_limit
from lnb_kernels._triton.offsets import offset64
from lnb_kernels._triton.precision import input_precision
from lnb_kernels.conv2d.geometry import Geometry
from lnb_kernels.conv2d.shifts import axes

COLUMNS = tl.constexpr(128)  # (shift, channel) pairs of a tile
FINISHED = 1024  # elements of a tile that are finished at a time


@triton.jit
def _shift_of(index, KW: tl.constexpr):
    """``(down, right)`` of the shifts in order: ``(0, 0 .. KW-1)``, then ``(y, -(KW-1) .. KW-1)`` for ``y = 1 ..``."""
    down = tl.where(index < KW, 0, 1 + (index - KW) // (2 * KW - 1))
    return down, tl.where(index < KW, index, (index - KW) % (2 * KW - 1) - (KW - 1))


@triton.jit
def _gather(x_ptr, pixels, offsets, mask, PLANES: tl.constexpr):
    """``[pixels, columns]`` of the image, loaded along the pixels for ``PLANES``, else along the channels."""
    if PLANES:
        return tl.trans(tl.load(x_ptr + pixels[None, :] + offsets[:, None], mask=tl.trans(mask), other=0.0))
    return tl.load(x_ptr + pixels[:, None] + offsets[None, :], mask=mask, other=0.0)


@triton.jit
def _store_taps(
    places, inside_ptr, s_ptr, row, shifted, channel, channels, d, cells, interiors, fan,
    KH: tl.constexpr, KW: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Rows ``row .. row + ROWS`` of a tile, ``shifted`` ``[ROWS]`` (shift, channel) pairs: for each tap, its cells into ``S``.

    For shift zero the element whose first channel is not below the second is taken for both: ``S`` is symmetric to the bit.
    """
    TAPS: tl.constexpr = KH * KW
    SIZE: tl.constexpr = COLUMNS * BLOCK_C
    down, right = _shift_of(shifted // channels, KW)
    other = shifted % channels
    inner = (row + tl.arange(0, ROWS))[:, None] * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    live = (down < KH)[:, None] & (channel < channels)[None, :]
    live &= (shifted >= channels)[:, None] | (other[:, None] >= channel[None, :])
    interior = add_parts(places, offset64(0, 1), fan, tl.cdiv(interiors, fan), row, ROWS, BLOCK_C, SIZE, CHUNK)
    for tap in range(TAPS):
        total = interior
        for cell in range(1, cells):
            if tl.load(inside_ptr + tap * cells + cell) > 0.0:
                part = places + offset64(interiors - 1 + cell, SIZE) + inner
                total += tl.load(part, cache_modifier=".cg")
        below, beside = tap // KW + down, tap % KW + right
        mask = live & ((below < KH) & (beside >= 0) & (beside < KW))[:, None]
        left = channel * TAPS + tap
        reached = other * TAPS + below * KW + beside
        tl.store(s_ptr + offset64(reached, d + 1)[:, None] + left[None, :], total, mask=mask)
        tl.store(s_ptr + offset64(left, d + 1)[None, :] + reached[:, None], total, mask=mask)


@triton.jit
def _store_sums(
    vectors, inside_ptr, s_ptr, channel, channels, d, cells, interiors, count,
    TAPS: tl.constexpr, BLOCK_C: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The entries of ``BLOCK_C`` channels in the last row and column of ``S``."""
    interior = add_sums(vectors, offset64(0, 1), 1, interiors, BLOCK_C, CHUNK)
    for tap in range(TAPS):
        total = interior
        for cell in range(1, cells):
            if tl.load(inside_ptr + tap * cells + cell) > 0.0:
                total += tl.load(
                    vectors + (interiors - 1 + cell) * BLOCK_C + tl.arange(0, BLOCK_C), cache_modifier=".cg"
                )
        entry = channel * TAPS + tap
        tl.store(s_ptr + offset64(d, d + 1) + entry, total, mask=channel < channels)
        tl.store(s_ptr + offset64(entry, d + 1) + d, total, mask=channel < channels)
    tl.store(s_ptr + offset64(d, d + 1) + d, count)


@triton.jit
def shift_kernel(
    x_ptr, units_ptr, inside_ptr, s_ptr, products_ptr, sums_ptr, counters_ptr, channels, d, tiles, blocks, groups, units,
    cells, interiors, fan, tile_counters, count, height, width, stride_n, stride_c, stride_y, stride_x, dilation_y, dilation_x,
    KH: tl.constexpr, KW: tl.constexpr, PLANES: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of the shifted products over one unit of one group; grid ``(tiles groups units)``.

    ``units`` ``[units, 6]`` int32: first row, rows, first column, columns, first and last pixel (of all images, counted
    within the cell); the ``interiors`` splits of the interior, cell 0, then a unit for every other cell. ``inside``
    ``[taps, cells]`` fp32 is 1 where the cell lies in ``R_tap``. ``channels`` of one group are in ``blocks`` of
    ``BLOCK_C``, a tile holds one of these against ``COLUMNS`` (shift, channel) pairs. ``products``
    ``[groups, tiles, units, COLUMNS, BLOCK_C]``, ``sums`` ``[groups, blocks, units, BLOCK_C]``, ``counters``
    ``[groups, tiles, tile_counters]``: of the tile and of each ``fan`` splits of the interior.
    """
    SIZE: tl.constexpr = COLUMNS * BLOCK_C
    program = tl.program_id(0)
    tile = program % tiles
    group = program // tiles % groups
    unit = program // tiles // groups
    cell = units_ptr + unit * 6
    row, rows, col = tl.load(cell), tl.load(cell + 1), tl.load(cell + 2)
    cols, start, stop = tl.load(cell + 3), tl.load(cell + 4), tl.load(cell + 5)
    area = rows * cols
    lane = tl.arange(0, BLOCK_N)
    x_ptr += offset64(offset64(group, channels), stride_c)
    channel = tile % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    shifted = tile // blocks * COLUMNS + tl.arange(0, COLUMNS)
    down, right = _shift_of(shifted // channels, KW)
    here = down < KH
    down *= dilation_y
    right *= dilation_x
    reach = down * stride_y + right * stride_x + shifted % channels * stride_c
    acc = tl.zeros((COLUMNS, BLOCK_C), tl.float32)
    total = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for pixel in range(start, stop, BLOCK_N):
        pixels = pixel + lane
        live = pixels < stop
        y, x = row + pixels % area // cols, col + pixels % cols
        base = offset64(pixels // area, stride_n) + y * stride_y + x * stride_x
        a = _gather(x_ptr, base, channel * stride_c, live[:, None] & (channel < channels)[None, :], PLANES)
        below, beside = y[:, None] + down[None, :], x[:, None] + right[None, :]
        mask = live[:, None] & here[None, :] & (below < height) & (beside >= 0) & (beside < width)
        b = _gather(x_ptr, base, reach, mask, PLANES)
        total += a.to(tl.float32)
        acc = tl.dot(tl.trans(b), a, acc, input_precision=PRECISION)
    s_ptr += offset64(group, (d + 1) * (d + 1))
    places = products_ptr + offset64(offset64(group * tiles + tile, units), SIZE)
    inner = tl.arange(0, COLUMNS)[:, None] * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    tl.store(places + offset64(unit, SIZE) + inner, acc)
    vectors = sums_ptr + offset64(offset64(group * blocks + tile, units), BLOCK_C)
    if tile < blocks:
        tl.store(vectors + offset64(unit, BLOCK_C) + tl.arange(0, BLOCK_C), tl.sum(total, 0))
    counters_ptr += offset64(group * tiles + tile, tile_counters)
    arriving = True
    if unit < interiors:
        first = unit // fan * fan
        members = tl.minimum(fan, interiors - first)
        arriving = is_last(counters_ptr + 1 + unit // fan, members)
        if arriving & (members > 1):
            add_in_place(places, offset64(first, 1), 1, members, COLUMNS, BLOCK_C, ROWS, CHUNK)
    if arriving:  # noqa: SIM102 - the compiler takes no other form
        if is_last(counters_ptr, tl.cdiv(interiors, fan) + cells - 1):
            for first in range(0, COLUMNS, ROWS):
                _store_taps(
                    places, inside_ptr, s_ptr, first, tile // blocks * COLUMNS + first + tl.arange(0, ROWS), channel,
                    channels, d, cells, interiors, fan, KH, KW, BLOCK_C, ROWS, CHUNK,
                )  # fmt: skip
            if tile < blocks:
                _store_sums(
                    vectors, inside_ptr, s_ptr, channel, channels, d, cells, interiors, count, KH * KW, BLOCK_C, CHUNK
                )


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
    """``S`` ``[groups, D+1, D+1]`` fp32 of ``x`` ``[B, C, H, W]`` in any strides, stride 1, with an interior."""
    batch, all_channels, height, width = x.shape
    (kh, kw), groups = conv.kernel, conv.groups
    channels, d = all_channels // groups, conv.features(all_channels)
    arch = arch_of(x.device)
    planes = x.stride(1) != 1
    # Pixels and columns loaded one by one take addresses, and so registers, of their own.
    block, block_n = channel_block(channels), 64 if x.element_size() == 2 and not planes and channels % 16 == 0 else 32
    blocks, shifts = math.ceil(channels / block), kw + (kh - 1) * (2 * kw - 1)
    tiles = math.ceil(shifts * channels / COLUMNS.value) * blocks
    wanted = 4 * arch.multiprocessors // (tiles * groups)
    splits = max(1, min(wanted, math.ceil(batch * height * width / (8 * block_n))))
    units, inside, interiors = _tables(conv, batch, height, width, splits, block_n, x.device)
    fan = fan_of(interiors)
    tile_counters = 1 + math.ceil(interiors / fan)
    products = x.new_empty((groups, tiles, len(units), COLUMNS.value, block), dtype=torch.float32)
    sums = products.new_empty((groups, blocks, len(units), block))
    s = products.new_empty((groups, d + 1, d + 1))
    out_height, out_width = conv.output(height, width)
    with on_device(x), arrival_counters(x, groups * tiles * tile_counters) as counters:
        shift_kernel[(tiles * groups * len(units),)](
            x, units, inside, s, products, sums, counters, channels, d, tiles, blocks, groups, len(units),
            inside.shape[1], interiors, fan, tile_counters, float(batch * out_height * out_width), height, width,
            *x.stride(), *conv.dilation, KH=kh, KW=kw, PLANES=planes, BLOCK_C=block, BLOCK_N=block_n,
            ROWS=FINISHED // block, CHUNK=FINISH_CHUNK, PRECISION=input_precision(arch),
            num_warps=8 if block == 64 and x.element_size() == 4 else 4, num_stages=3, **register_limit(255, arch),
        )  # fmt: skip
    return s
