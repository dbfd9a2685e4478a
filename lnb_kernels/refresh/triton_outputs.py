"""The neurons' side of a refresh for all layers: second moments of their gradients, and the roots of these; two launches.

With ``G = g~ - b~ mean'`` the moment of a layer whose inputs are white is ``P = g~ S^-1 g~' = G C^-1 G' + b~ b~'``, cut into
diagonal blocks of neurons. A program of the first kernel takes one block of neurons and some blocks of inputs; the second one
adds what these made, averages, and takes the root by Newton-Schulz steps. Operands lie in memory of a program's own, which the
caches hold. Products are those of float32: ``2 side size (size + side)`` FLOPs for a tile, ``8 side^3`` for a step.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lnb_kernels._triton.offsets import offset64
from lnb_kernels._triton.tables import address, field, item_of
from lnb_kernels.fused_step.triton_direct import unit_of
from lnb_kernels.refresh.triton_inputs import FACTS, TINY

FIELDS = tl.constexpr(22)
WEIGHT, WEIGHT_AVERAGE, WEIGHT_SHARE, BIAS, BIAS_AVERAGE, BIAS_SHARE = map(tl.constexpr, range(6))
INVERSE, MEAN, AVERAGE, ROOT, INPUT_SIZE = map(tl.constexpr, range(6, 11))
NUMBER, FIRST_PART, FIRST_ENTRY, PARTS, ROWS, INPUTS, SIDE, SIZE = map(tl.constexpr, range(11, 19))
MOMENTUM, DECAY, RIDGE = map(tl.constexpr, range(19, 22))
CHUNK = tl.constexpr(8)
"""Blocks of inputs that one program takes."""
SHARES = {None: tl.float32, torch.float32: tl.float32, torch.float64: tl.float64}
"""Triton's types of what averages are multiplied by."""


@triton.jit
def averaged(gradient_ptr, average_ptr, share, momentum, take, at, mask, AVERAGED: tl.constexpr):
    """Entries of a gradient that is averaged already, or of ``share (momentum m + (1 - momentum) g) + take g``."""
    gradient = tl.load(gradient_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if AVERAGED:
        average = tl.load(average_ptr + at, mask=mask, other=0.0)
        gradient = share * (momentum * average + (1.0 - momentum) * gradient) + take * gradient
    return gradient


@triton.jit
def moment_kernel(
    table_ptr, facts_ptr, parts_ptr, partials_ptr, scratch_ptr, parts, scratch_size, take,
    G: tl.constexpr, B: tl.constexpr, S: tl.constexpr, ITEMS: tl.constexpr, AVERAGED: tl.constexpr,
    ALIGNED: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """What some blocks of inputs add to blocks of ``P``: the lower tiles of ``scale P``, and in ``parts`` ``[parts, 2]`` their
    trace without the scale, and ``1 / scale``. ``take`` is one of all layers.
    """
    tile_ptr = scratch_ptr + offset64(tl.program_id(0), scratch_size)
    lane = tl.arange(0, BLOCK)
    deep = tl.arange(0, BLOCK_K)
    wide = tl.arange(0, WIDE)
    for program in range(tl.program_id(0), parts, tl.num_programs(0)):
        item, number = item_of(table_ptr, program, ITEMS)
        facts = tl.load(facts_ptr + offset64(field(table_ptr, item, NUMBER, ITEMS, FIELDS), FACTS))
        allowed = facts.to(tl.int32) != 0
        rows = field(table_ptr, item, ROWS, ITEMS, FIELDS).to(tl.int32)
        inputs = field(table_ptr, item, INPUTS, ITEMS, FIELDS).to(tl.int32)
        side = tl.where(allowed, field(table_ptr, item, SIDE, ITEMS, FIELDS).to(tl.int32), 0)
        size = field(table_ptr, item, SIZE, ITEMS, FIELDS).to(tl.int32)
        if ALIGNED:
            inputs = tl.multiple_of(inputs, 8)
            side = tl.multiple_of(side, 8)
            size = tl.multiple_of(size, 8)
        of_layer = field(table_ptr, item, PARTS, ITEMS, FIELDS).to(tl.int32)
        row_block = number // of_layer  # among those of all matrices
        part = number % of_layer
        first_row = row_block * side
        matrix = tl.where(allowed, first_row // rows, 0)
        column_blocks = inputs // size
        begin = part * CHUNK
        end = tl.minimum(begin + CHUNK, column_blocks)
        corner = offset64(first_row, inputs)
        gradient_ptr = address(table_ptr, item, WEIGHT, ITEMS, FIELDS, G, ALIGNED) + corner
        average_ptr = address(table_ptr, item, WEIGHT_AVERAGE, ITEMS, FIELDS, tl.float32, ALIGNED) + corner
        bias = field(table_ptr, item, BIAS, ITEMS, FIELDS)
        biased = bias != 0
        bias_ptr = bias.to(tl.pointer_type(B)) + first_row
        bias_average_ptr = address(table_ptr, item, BIAS_AVERAGE, ITEMS, FIELDS, tl.float32, False) + first_row
        mean_ptr = address(table_ptr, item, MEAN, ITEMS, FIELDS, tl.float32, False) + offset64(matrix, inputs)
        inverse_ptr = address(table_ptr, item, INVERSE, ITEMS, FIELDS, tl.float32, ALIGNED)
        inverse_ptr += offset64(matrix * column_blocks, size * size)
        share, bias_share, momentum = 0.0, 0.0, 0.0
        if AVERAGED:
            momentum = field(table_ptr, item, MOMENTUM, ITEMS, FIELDS).to(tl.float64, bitcast=True).to(tl.float32)
            share = tl.load(address(table_ptr, item, WEIGHT_SHARE, ITEMS, FIELDS, S, False)).to(tl.float32)
            bias_share = tl.load(
                address(table_ptr, item, BIAS_SHARE, ITEMS, FIELDS, S, False), mask=biased, other=0.0
            ).to(tl.float32)

        # Powers of two that bring gradients and inverses to unit size: no product leaves the range of float32.
        largest = tl.zeros((BLOCK,), tl.float32)
        largest_inverse = tl.zeros((WIDE,), tl.float32)
        for row in range(0, side, BLOCK):
            r = row + lane
            of_bias = averaged(bias_ptr, bias_average_ptr, bias_share, momentum, take, r, (r < side) & biased, AVERAGED)
            largest = tl.maximum(largest, tl.abs(of_bias))
            for column in range(begin * size, end * size, BLOCK):
                c = column + lane
                mask = (r < side)[:, None] & (c < end * size)[None, :]
                at = r[:, None] * inputs + c[None, :]
                value = averaged(gradient_ptr, average_ptr, share, momentum, take, at, mask, AVERAGED)
                largest = tl.maximum(largest, tl.max(tl.abs(value), 1))
        for block in range(begin, end):
            diagonal_ptr = inverse_ptr + offset64(block, size * size) + wide * (size + 1)
            largest_inverse = tl.maximum(largest_inverse, tl.abs(tl.load(diagonal_ptr, mask=wide < size, other=0.0)))
        unit, back = unit_of(tl.max(largest, 0))
        inverse_unit, inverse_back = unit_of(tl.max(largest_inverse, 0))

        partial_ptr = partials_ptr + field(table_ptr, item, FIRST_ENTRY, ITEMS, FIELDS) + offset64(number, side * side)
        solved_ptr = tile_ptr + side * size
        trace = tl.zeros((BLOCK,), tl.float32)
        for block in range(begin, end):
            is_first = block == begin
            first_column = block * size
            for row in range(0, side, BLOCK):
                r = row + lane
                of_bias = (
                    averaged(bias_ptr, bias_average_ptr, bias_share, momentum, take, r, (r < side) & biased, AVERAGED)
                    * unit
                )
                for column in range(0, size, BLOCK):
                    c = column + lane
                    mask = (r < side)[:, None] & (c < size)[None, :]
                    at = r[:, None] * inputs + (first_column + c)[None, :]
                    value = averaged(gradient_ptr, average_ptr, share, momentum, take, at, mask, AVERAGED) * unit
                    mean = tl.load(mean_ptr + first_column + c, mask=(c < size) & biased, other=0.0)
                    tl.store(
                        tile_ptr + r[:, None] * size + c[None, :], value - of_bias[:, None] * mean[None, :], mask=mask
                    )
            tl.debug_barrier()
            own_inverse_ptr = inverse_ptr + offset64(block, size * size)
            for row in range(0, side, BLOCK):
                r = row + lane
                for column in range(0, size, BLOCK):
                    c = column + lane
                    sums = tl.zeros((BLOCK, BLOCK), tl.float32)
                    for first in range(0, size, BLOCK_K):
                        k = first + deep
                        left = tl.load(
                            tile_ptr + r[:, None] * size + k[None, :], mask=(r < side)[:, None] & (k < size)[None, :], other=0.0
                        )  # fmt: skip
                        inverse = tl.load(
                            own_inverse_ptr + k[:, None] * size + c[None, :],
                            mask=(k < size)[:, None] & (c < size)[None, :],
                            other=0.0,
                        )
                        sums = tl.dot(left, inverse * inverse_unit, sums, input_precision="ieee")
                    mask = (r < side)[:, None] & (c < size)[None, :]
                    tl.store(solved_ptr + r[:, None] * size + c[None, :], sums, mask=mask)
            tl.debug_barrier()
            for row in range(0, side, BLOCK):
                r = row + lane
                for column in range(0, row + BLOCK, BLOCK):  # on and below the diagonal
                    c = column + lane
                    mask = (r < side)[:, None] & (c < side)[None, :]
                    at = partial_ptr + r[:, None] * side + c[None, :]
                    sums = tl.load(at, mask=mask & (is_first == 0), other=0.0)
                    of_row = averaged(
                        bias_ptr, bias_average_ptr, bias_share, momentum, take, r,
                        (r < side) & biased & is_first & (part == 0), AVERAGED,
                    ) * unit  # fmt: skip
                    of_column = averaged(
                        bias_ptr, bias_average_ptr, bias_share, momentum, take, c, (c < side) & biased, AVERAGED
                    ) * unit  # fmt: skip
                    sums += of_row[:, None] * inverse_unit * of_column[None, :]
                    for first in range(0, size, BLOCK_K):
                        k = first + deep
                        left = tl.load(
                            solved_ptr + r[:, None] * size + k[None, :], mask=(r < side)[:, None] & (k < size)[None, :], other=0.0
                        )  # fmt: skip
                        right = tl.load(
                            tile_ptr + c[None, :] * size + k[:, None], mask=(k < size)[:, None] & (c < side)[None, :], other=0.0
                        )  # fmt: skip
                        sums = tl.dot(left, right, sums, input_precision="ieee")
                    tl.store(at, sums, mask=mask)
                    last = block == end - 1
                    own = tl.sum(tl.where(mask & (r[:, None] == c[None, :]) & last, sums, 0.0), 1)
                    trace += own
            tl.debug_barrier()
        scale = back.to(tl.float64) * back.to(tl.float64) * inverse_back.to(tl.float64)
        to = parts_ptr + 2 * (field(table_ptr, item, FIRST_PART, ITEMS, FIELDS) + number)
        tl.store(to, tl.sum(trace.to(tl.float64), 0) * scale)
        tl.store(to + 1, scale)


@triton.jit
def multiply(
    left_ptr, right_ptr, out_ptr, n, of_identity, of_left, of_product, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr
):
    """``out = of_identity I + of_left left + of_product left right`` of matrices ``[n, n]``."""
    lane = tl.arange(0, BLOCK)
    deep = tl.arange(0, BLOCK_K)
    for row in range(0, n, BLOCK):
        r = row + lane
        for column in range(0, n, BLOCK):
            c = column + lane
            mask = (r < n)[:, None] & (c < n)[None, :]
            sums = tl.zeros((BLOCK, BLOCK), tl.float32)
            for first in range(0, n, BLOCK_K):
                k = first + deep
                left = tl.load(
                    left_ptr + r[:, None] * n + k[None, :], mask=(r < n)[:, None] & (k < n)[None, :], other=0.0
                )
                right = tl.load(
                    right_ptr + k[:, None] * n + c[None, :], mask=(k < n)[:, None] & (c < n)[None, :], other=0.0
                )
                sums = tl.dot(left, right, sums, input_precision="ieee")
            own = tl.load(left_ptr + r[:, None] * n + c[None, :], mask=mask, other=0.0)
            value = of_product * sums + of_left * own + tl.where(r[:, None] == c[None, :], of_identity, 0.0)
            tl.store(out_ptr + r[:, None] * n + c[None, :], value, mask=mask)


@triton.jit
def root_kernel(
    table_ptr, facts_ptr, parts_ptr, partials_ptr, scratch_ptr, blocks, scratch_size, products, a, b, c,
    ITEMS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Averages of ``P`` of mean diagonal 1, and their ``P^(-1/2)``; ``products`` is four for each step, less two.

    A step is ``T = a + b A + c A^2``, ``R <- T R``, ``A <- T A T``, from ``A = P / trace`` and ``R = 1``.
    """
    lane = tl.arange(0, BLOCK)
    wide = tl.arange(0, WIDE)
    memory_ptr = scratch_ptr + offset64(tl.program_id(0), scratch_size)
    for program in range(tl.program_id(0), blocks, tl.num_programs(0)):
        item, number = item_of(table_ptr, program, ITEMS)
        own_facts = facts_ptr + offset64(field(table_ptr, item, NUMBER, ITEMS, FIELDS), FACTS)
        allowed = tl.load(own_facts).to(tl.int32) != 0
        sized = field(table_ptr, item, INPUT_SIZE, ITEMS, FIELDS)
        tl.store(
            sized.to(tl.pointer_type(tl.float64)), tl.load(own_facts + 3), mask=allowed & (sized != 0) & (number == 0)
        )
        rows = field(table_ptr, item, ROWS, ITEMS, FIELDS).to(tl.int32)
        whole = field(table_ptr, item, SIDE, ITEMS, FIELDS).to(tl.int32)
        side = tl.where(allowed, whole, 0)
        of_block = field(table_ptr, item, PARTS, ITEMS, FIELDS).to(tl.int32)
        outputs = rows // whole
        first_part = field(table_ptr, item, FIRST_PART, ITEMS, FIELDS)
        of_matrix = first_part + offset64(number - number % outputs, of_block)
        decay = field(table_ptr, item, DECAY, ITEMS, FIELDS).to(tl.float64, bitcast=True)
        fresh = (1.0 - decay).to(tl.float32)
        entries = whole * whole
        average = field(table_ptr, item, AVERAGE, ITEMS, FIELDS)
        kept = average != 0
        average_ptr = average.to(tl.pointer_type(tl.float32)) + offset64(number, entries)
        root_ptr = address(table_ptr, item, ROOT, ITEMS, FIELDS, tl.float32, False) + offset64(number, entries)

        traces = tl.zeros((WIDE,), tl.float64)
        for begin in range(0, tl.where(allowed, outputs * of_block, 0), WIDE):
            i = begin + wide
            traces += tl.load(parts_ptr + 2 * (of_matrix + i), mask=i < outputs * of_block, other=0.0)
        mean = tl.sum(traces, 0) / rows.to(tl.float64)

        a_ptr, t_ptr = memory_ptr, memory_ptr + entries
        trace = tl.zeros((BLOCK,), tl.float32)
        for row in range(0, side, BLOCK):
            i = (row + lane)[:, None]
            for column in range(0, side, BLOCK):
                j = (column + lane)[None, :]
                mask = (i < side) & (j < side)
                lower = tl.maximum(i, j) * side + tl.minimum(i, j)
                value = tl.zeros((BLOCK, BLOCK), tl.float32)
                for part in range(of_block):
                    own = offset64(number, of_block) + part
                    scale = tl.where(mean > 0, tl.load(parts_ptr + 2 * (first_part + own) + 1) / mean, 0.0).to(
                        tl.float32
                    )
                    partial_ptr = partials_ptr + field(table_ptr, item, FIRST_ENTRY, ITEMS, FIELDS) + own * entries
                    found = tl.load(partial_ptr + lower, mask=mask, other=0.0)
                    value += tl.where(mean > 0, scale * found, 0.0)
                old = tl.load(average_ptr + i * side + j, mask=mask & kept, other=0.0)
                value = tl.where(kept, old + fresh * (value - old), value)
                tl.store(average_ptr + i * side + j, value, mask=mask & kept)
                tl.store(a_ptr + i * side + j, value, mask=mask)
                trace += tl.sum(tl.where(mask & (i == j), value, 0.0), 1)
        total = tl.sum(trace, 0)
        total = tl.where(total > TINY, total, 1.0)
        share = field(table_ptr, item, RIDGE, ITEMS, FIELDS).to(tl.float64, bitcast=True).to(tl.float32)
        ridge = total * share / whole.to(tl.float32)
        total += total * share
        for row in range(0, side, BLOCK):
            i = (row + lane)[:, None]
            for column in range(0, side, BLOCK):
                j = (column + lane)[None, :]
                mask = (i < side) & (j < side)
                scaled = (tl.load(a_ptr + i * side + j, mask=mask, other=0.0) + tl.where(i == j, ridge, 0.0)) / total
                tl.debug_barrier()
                tl.store(a_ptr + i * side + j, scaled, mask=mask)
                tl.store(memory_ptr + 2 * entries + i * side + j, tl.where(i == j, 1.0, 0.0), mask=mask)
        tl.debug_barrier()

        for product in range(products):
            kind = product % 4
            turned = product // 4 % 2  # the root is in the third matrix and the fourth by turns
            r_ptr = memory_ptr + (2 + turned) * entries
            x_ptr = memory_ptr + (3 - turned) * entries
            # T = a + b A + c A A; X = T R, which is the root from now on, so that the former root's place is free for X = T A;
            # A = X T.
            left_ptr = tl.where(kind == 0, a_ptr, tl.where(kind == 3, r_ptr, t_ptr))
            right_ptr = tl.where(kind == 1, r_ptr, tl.where(kind == 3, t_ptr, a_ptr))
            out_ptr = tl.where(kind == 0, t_ptr, tl.where(kind == 1, x_ptr, tl.where(kind == 2, r_ptr, a_ptr)))
            multiply(
                left_ptr, right_ptr, out_ptr, side, tl.where(kind == 0, a, 0.0), tl.where(kind == 0, b, 0.0),
                tl.where(kind == 0, c, 1.0), BLOCK, BLOCK_K,
            )  # fmt: skip
            tl.debug_barrier()

        done_ptr = memory_ptr + (2 + (products + 2) // 4 % 2) * entries
        beyond = tl.zeros((BLOCK,), tl.int32)
        for row in range(0, side, BLOCK):
            i = (row + lane)[:, None]
            for column in range(0, side, BLOCK):
                j = (column + lane)[None, :]
                value = tl.load(done_ptr + i * side + j, mask=(i < side) & (j < side), other=0.0)
                beyond += tl.sum((value - value != 0.0).to(tl.int32), 1)
        # Steps from a matrix with a clearly negative eigenvalue grow beyond all bounds.
        rooted = tl.sum(beyond, 0) == 0
        length = 1.0 / tl.sqrt(total)
        for row in range(0, side, BLOCK):
            i = (row + lane)[:, None]
            for column in range(0, side, BLOCK):
                j = (column + lane)[None, :]
                mask = (i < side) & (j < side)
                value = tl.load(done_ptr + tl.maximum(i, j) * side + tl.minimum(i, j), mask=mask, other=0.0)
                value = tl.where(rooted, value, tl.where(i == j, 1.0, 0.0))
                tl.store(root_ptr + i * side + j, length * value, mask=mask)
        tl.debug_barrier()  # the next block's matrices come where this one's are
