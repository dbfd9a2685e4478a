"""Directions of all layers in one launch: a program makes one tile after another, a block of rows times one of columns.

``M = P^(-1/2) (g~ - b~ mu')`` of a tile goes to memory of the program's own, which the caches hold, and ``H = M C^-1`` is made
from there: both are products of ``BLOCK`` rows and columns at a time, whatever the sides of the tile. A tile of ``side`` rows
and ``size`` columns takes ``2 side size (side + size)`` FLOPs; the gradient, its average and the direction move through memory
once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from lnb_kernels._triton.arch import Arch
from lnb_kernels._triton.crossover import power_of_two
from lnb_kernels._triton.launch import Launches
from lnb_kernels._triton.offsets import offset64
from lnb_kernels._triton.tables import MOST_ITEMS, address, field, item_of, table_of
from lnb_kernels._writes import require_aligned
from lnb_kernels.fused_step.layers import LARGEST_BLOCK, DirectArguments, DirectLayer, Place

FIELDS = tl.constexpr(16)
GRADIENT, MOMENTUM, DIRECTION, BIAS_GRADIENT, BIAS_MOMENTUM, INVERSE, MEAN, ROOT = map(tl.constexpr, range(8))
FIRST_ROW, FIRST_ENTRY, ALL_ROWS, ROWS, INPUTS, SIZE, SIDE, SLOT = map(tl.constexpr, range(8, 16))
SUMS = tl.constexpr(6)
TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
WARPS, PER_MULTIPROCESSOR = 8, 2
MOST_SCRATCH = 1 << 24
"""Numbers that tiles of all programs of a launch may take."""


@triton.jit
def unit_of(largest):
    """The power of two that brings ``largest >= 0`` into [0.5, 1), and its reciprocal: 1 for what is zero or not finite.

    Both are normal float32 numbers: what is too small or too large for that is brought nearer to it.
    """
    biased = (largest.to(tl.int32, bitcast=True) >> 23) & 255  # the exponent of float32 plus 127
    exponent = tl.minimum(tl.maximum(biased - 126, -126), 126)
    exponent = tl.where((biased == 255) | (largest == 0.0), 0, exponent)
    unit = ((127 - exponent) << 23).to(tl.float32, bitcast=True)
    return unit, ((127 + exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def product(a, b, sums, PRECISION: tl.constexpr):
    """``sums + a b``."""
    if PRECISION == "bf16":
        sums = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), sums)
    else:
        sums = tl.dot(a, b, sums, input_precision=PRECISION)
    return sums


@triton.jit
def averaged(momentum_ptr, gradient_ptr, inner, mask, keep, add):
    """``m <- keep m + add g`` as it will be, and ``g``."""
    gradient = tl.load(gradient_ptr + inner, mask=mask, other=0.0).to(tl.float32)
    return keep * tl.load(momentum_ptr + inner, mask=mask, other=0.0) + add * gradient, gradient


@triton.jit
def ahead(average, gradient, share, take, TAKES: tl.constexpr):
    """``g~ = share m + take g``; not 0 times a gradient that may be NaN."""
    value = share * average
    if TAKES:
        value += take * gradient
    return value


@triton.jit
def ahead_tile(momentum_ptr, gradient_ptr, inner, mask, share, take, TAKES: tl.constexpr):
    """``g~`` where the average has been updated."""
    gradient = 0.0
    if TAKES:
        gradient = tl.load(gradient_ptr + inner, mask=mask, other=0.0).to(tl.float32)
    return ahead(tl.load(momentum_ptr + inner, mask=mask, other=0.0), gradient, share, take, TAKES)


@triton.jit
def direct_kernel(
    table_ptr, shares_ptr, bias_shares_ptr, partials_ptr, mixed_ptr, scratch_ptr, ok_ptr, tiles, pitch, scratch_size,
    keep, add, take,
    G: tl.constexpr, D: tl.constexpr, ITEMS: tl.constexpr, HAS_OK: tl.constexpr, TAKES: tl.constexpr,
    ALIGNED: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """See :func:`lnb_kernels.fused_step.direct_layers_`; ``scratch`` ``[programs, scratch_size]``."""
    end = tiles
    if HAS_OK:
        end = tl.where(tl.load(ok_ptr) != 0, tiles, 0)
    mixed_tile_ptr = scratch_ptr + offset64(tl.program_id(0), scratch_size)
    lane = tl.arange(0, BLOCK)
    deep = tl.arange(0, BLOCK_K)
    for tile in range(tl.program_id(0), end, tl.num_programs(0)):
        item, number = item_of(table_ptr, tile, ITEMS)
        inputs = field(table_ptr, item, INPUTS, ITEMS, FIELDS).to(tl.int32)
        size = field(table_ptr, item, SIZE, ITEMS, FIELDS).to(tl.int32)
        side = field(table_ptr, item, SIDE, ITEMS, FIELDS).to(tl.int32)
        rows = field(table_ptr, item, ROWS, ITEMS, FIELDS).to(tl.int32)
        slot = field(table_ptr, item, SLOT, ITEMS, FIELDS)
        if ALIGNED:
            inputs = tl.multiple_of(inputs, 8)
            size = tl.multiple_of(size, 8)
            side = tl.multiple_of(side, 8)
        column_blocks = inputs // size
        row_block = number // column_blocks  # among those of all matrices
        column_block = number % column_blocks
        matrix = row_block // (rows // side)
        first_row = row_block * side
        corner = offset64(first_row, inputs) + column_block * size
        momentum_ptr = address(table_ptr, item, MOMENTUM, ITEMS, FIELDS, tl.float32, ALIGNED) + corner
        gradient_ptr = address(table_ptr, item, GRADIENT, ITEMS, FIELDS, G, ALIGNED) + corner
        direction_ptr = address(table_ptr, item, DIRECTION, ITEMS, FIELDS, D, ALIGNED) + corner
        root_ptr = address(table_ptr, item, ROOT, ITEMS, FIELDS, tl.float32, ALIGNED) + offset64(first_row, side)
        inverse_ptr = address(table_ptr, item, INVERSE, ITEMS, FIELDS, tl.float32, ALIGNED)
        inverse_ptr += offset64(matrix * column_blocks + column_block, size * size)
        means = field(table_ptr, item, MEAN, ITEMS, FIELDS)
        biased = means != 0
        mean_ptr = means.to(tl.pointer_type(tl.float32)) + offset64(matrix, inputs) + column_block * size
        bias_momentum_ptr = address(table_ptr, item, BIAS_MOMENTUM, ITEMS, FIELDS, tl.float32, False) + first_row
        bias_gradient_ptr = address(table_ptr, item, BIAS_GRADIENT, ITEMS, FIELDS, G, False) + first_row
        share = tl.load(shares_ptr + slot).to(tl.float32)
        bias_share = tl.load(bias_shares_ptr + slot, mask=biased, other=0.0).to(tl.float32)

        largest = tl.zeros((BLOCK,), tl.float32)
        root_largest = tl.zeros((BLOCK,), tl.float32)
        for row in range(0, side, BLOCK):
            r = row + lane
            there = r < side
            root_largest = tl.maximum(root_largest, tl.abs(tl.load(root_ptr + r * (side + 1), mask=there, other=0.0)))
            of_bias, of_row = averaged(bias_momentum_ptr, bias_gradient_ptr, r, there & biased, keep, add)
            largest = tl.maximum(largest, tl.abs(ahead(of_bias, of_row, bias_share, take, TAKES)))
            for column in range(0, size, BLOCK):
                c = column + lane
                inner = r[:, None] * inputs + c[None, :]
                mask = there[:, None] & (c < size)[None, :]
                average, gradient = averaged(momentum_ptr, gradient_ptr, inner, mask, keep, add)
                tl.store(momentum_ptr + inner, average, mask=mask)
                value = tl.maximum(tl.abs(ahead(average, gradient, share, take, TAKES)), tl.abs(gradient))
                largest = tl.maximum(largest, tl.max(value, 1))
        unit, back = unit_of(tl.max(largest, 0))
        root_unit, _ = unit_of(tl.max(root_largest, 0))
        tl.debug_barrier()

        for row in range(0, side, BLOCK):
            r = row + lane
            for column in range(0, size, BLOCK):
                c = column + lane
                mean = tl.load(mean_ptr + c, mask=(c < size) & biased, other=0.0)
                sums = tl.zeros((BLOCK, BLOCK), tl.float32)
                for first in range(0, side, BLOCK_K):
                    k = first + deep
                    there = k < side
                    root = tl.load(
                        root_ptr + r[:, None] * side + k[None, :], mask=(r < side)[:, None] & there[None, :], other=0.0
                    )
                    of_bias, of_row = averaged(bias_momentum_ptr, bias_gradient_ptr, k, there & biased, keep, add)
                    bias = ahead(of_bias, of_row, bias_share, take, TAKES) * unit
                    inner = k[:, None] * inputs + c[None, :]
                    mask = there[:, None] & (c < size)[None, :]
                    value = ahead_tile(momentum_ptr, gradient_ptr, inner, mask, share, take, TAKES) * unit
                    sums = product(root * root_unit, value - bias[:, None] * mean[None, :], sums, PRECISION)
                tl.store(
                    mixed_tile_ptr + r[:, None] * pitch + c[None, :],
                    sums,
                    mask=(r < side)[:, None] & (c < size)[None, :],
                )
            if biased & (column_block == 0):
                mixed = tl.zeros((BLOCK,), tl.float32)
                for first in range(0, side, BLOCK_K):
                    k = first + deep
                    of_bias, of_row = averaged(bias_momentum_ptr, bias_gradient_ptr, k, k < side, keep, add)
                    bias = ahead(of_bias, of_row, bias_share, take, TAKES) * unit
                    root = tl.load(
                        root_ptr + r[:, None] * side + k[None, :],
                        mask=(r < side)[:, None] & (k < side)[None, :],
                        other=0.0,
                    )
                    mixed += tl.sum(root * bias[None, :], 1)
                to = mixed_ptr + field(table_ptr, item, FIRST_ROW, ITEMS, FIELDS) + first_row + r
                tl.store(to, mixed.to(tl.float64) * back.to(tl.float64) * root_unit.to(tl.float64), mask=r < side)
        tl.debug_barrier()

        once = back.to(tl.float64)
        twice = once * once
        before = offset64(column_block, field(table_ptr, item, ALL_ROWS, ITEMS, FIELDS)) + first_row
        partial_ptr = partials_ptr + field(table_ptr, item, FIRST_ENTRY, ITEMS, FIELDS) + before * SUMS
        for row in range(0, side, BLOCK):
            r = row + lane
            along_metric = tl.zeros((BLOCK,), tl.float32)
            along_mean = tl.zeros((BLOCK,), tl.float32)
            gain = tl.zeros((BLOCK,), tl.float32)
            ahead_square = tl.zeros((BLOCK,), tl.float32)
            square = tl.zeros((BLOCK,), tl.float32)
            norm = tl.zeros((BLOCK,), tl.float64)
            for column in range(0, size, BLOCK):
                c = column + lane
                mask = (r < side)[:, None] & (c < size)[None, :]
                sums = tl.zeros((BLOCK, BLOCK), tl.float32)
                for first in range(0, size, BLOCK_K):
                    k = first + deep
                    there = k < size
                    left = tl.load(
                        mixed_tile_ptr + r[:, None] * pitch + k[None, :],
                        mask=(r < side)[:, None] & there[None, :],
                        other=0.0,
                    )
                    inverse = tl.load(
                        inverse_ptr + k[:, None] * size + c[None, :],
                        mask=there[:, None] & (c < size)[None, :],
                        other=0.0,
                    )
                    sums = product(left, inverse, sums, PRECISION)
                inner = r[:, None] * inputs + c[None, :]
                tl.store(direction_ptr + inner, (sums * back).to(D), mask=mask)
                mixed = tl.load(mixed_tile_ptr + r[:, None] * pitch + c[None, :], mask=mask, other=0.0)
                along_metric += tl.sum(sums * mixed, 1)
                mean = tl.load(mean_ptr + c, mask=(c < size) & biased, other=0.0)
                along_mean += tl.sum(tl.where(biased, sums * mean[None, :], 0.0), 1)
                gradient = tl.load(gradient_ptr + inner, mask=mask, other=0.0).to(tl.float32)
                average = tl.load(momentum_ptr + inner, mask=mask, other=0.0)
                value = ahead(average, gradient, share, take, TAKES) * unit
                gain += tl.sum(sums * value, 1)
                ahead_square += tl.sum(value * value, 1)
                square += tl.sum(gradient * unit * (gradient * unit), 1)
                wide = sums.to(tl.float64)
                norm += tl.sum(wide * wide, 1)
            to = partial_ptr + r * SUMS
            tl.store(to, along_metric.to(tl.float64) * twice, mask=r < side)
            tl.store(to + 1, norm * twice, mask=r < side)
            tl.store(to + 2, along_mean.to(tl.float64) * once, mask=r < side)
            tl.store(to + 3, gain.to(tl.float64) * twice, mask=r < side)
            tl.store(to + 4, ahead_square.to(tl.float64) * twice, mask=r < side)
            tl.store(to + 5, square.to(tl.float64) * twice, mask=r < side)
        tl.debug_barrier()  # the next tile's M comes where this one's is


def launch_direct(members: Sequence[tuple[DirectLayer, Place]], given: DirectArguments, arch: Arch) -> None:
    """Directions of layers that the kernel takes (:func:`lnb_kernels.fused_step.layers.is_served`)."""
    groups: dict[tuple[bool, bool], list[tuple[DirectLayer, Place]]] = {}
    for layer, place in members:
        large = max(layer.inverse.shape[-1], layer.root.shape[-1]) > LARGEST_BLOCK
        groups.setdefault((_in_packs(layer), large), []).append((layer, place))
    made = Launches()
    for (aligned, _), group in groups.items():
        for first in range(0, len(group), MOST_ITEMS):
            _add(made, group[first : first + MOST_ITEMS], aligned, given, arch)
    made.make(given.partials.device)


def _add(
    made: Launches,
    members: Sequence[tuple[DirectLayer, Place]],
    aligned: bool,
    given: DirectArguments,
    arch: Arch,
) -> None:
    rows = [_fields(layer, place) for layer, place in members]
    tiles = [(layer.rows // layer.root.shape[-1]) * layer.column_blocks for layer, _ in members]
    table = table_of(rows, tiles, given.partials.device)
    side, size = (max(x[name.value] for x in rows) for name in (SIDE, SIZE))
    pitch = -(-size // 16) * 16
    programs = min(table.programs, PER_MULTIPROCESSOR * arch.multiprocessors, max(1, MOST_SCRATCH // (side * pitch)))
    first = members[0][0]
    block = min(64, max(power_of_two(side), power_of_two(size)))
    # Operands in two parts each take twice the registers; numbers that are loaded one by one wait in them, too.
    deep = min(16 if given.precision == "tf32x3" or not aligned else 32, block)
    made.add(
        direct_kernel, programs,
        table.numbers, given.shares, given.shares if given.bias_shares is None else given.bias_shares, given.partials,
        given.mixed_biases, made.scratch(programs, side * pitch),
        table.numbers if given.ok is None else given.ok.view(torch.uint8), table.programs, pitch, side * pitch,
        float(given.decay), 1.0 - given.decay, float(given.take),
        G=TYPES[first.gradient.dtype], D=TYPES[first.direction.dtype], ITEMS=table.items, HAS_OK=given.ok is not None,
        TAKES=given.take != 0, ALIGNED=aligned, BLOCK=block, BLOCK_K=deep, PRECISION=given.precision, num_warps=WARPS,
        num_stages=2,
    )  # fmt: skip


def _in_packs(layer: DirectLayer) -> bool:
    """Whether rows of the layer's tiles begin at 16 bytes, and hold whole packs of eight entries."""
    tensors = (layer.gradient, layer.momentum, layer.direction, layer.inverse, layer.root)
    sides = (layer.gradient.shape[-1], layer.inverse.shape[-1], layer.root.shape[-1])
    return all(side % 8 == 0 for side in sides) and all(tensor.data_ptr() % 16 == 0 for tensor in tensors)


def _fields(layer: DirectLayer, place: Place) -> tuple[int, ...]:
    addresses = []
    for name, tensor in vars(layer).items():
        addresses.append(0 if tensor is None else tensor.data_ptr())
        if tensor is not None:
            require_aligned(name, addresses[-1], tensor.numel(), tensor.element_size())
    direction, momentum, gradient, bias_gradient, bias_momentum, inverse, mean, root = addresses
    rows, inputs = layer.gradient.shape[-2:]
    return (
        gradient, momentum, direction, bias_gradient, bias_momentum, inverse, mean, root, place.row, place.entry, layer.rows,
        rows, inputs, layer.inverse.shape[-1], layer.root.shape[-1], place.slot,
    )  # fmt: skip
