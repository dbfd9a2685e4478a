"""The inputs' side of a refresh for all layers: averages of second moments, and the blocks of ``C^-1``; two launches.

A program takes one diagonal block. It inverts ``C = E[x x'] - mean mean' + ridge`` by sweeps: that of a pivot ``p`` puts
``a_ij - a_ik a_kj / p`` in place of ``a_ij``, ``a_kj / p`` in that of row and column ``k``, and ``-1 / p`` in that of ``p``.
After all of them there is ``-C^-1`` (A. P. Dempster, Elements of Continuous Multivariate Analysis, 1969). Sixteen pivots are
swept together: the block of them in registers, all other entries by one product. The matrix lies in memory of the program's own,
which the caches hold. A block of ``n`` inputs takes ``2 n^3`` FLOPs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lnb_kernels._triton.offsets import offset64
from lnb_kernels._triton.tables import address, field, item_of
from lnb_kernels.refresh.layers import MOST_SAMPLE_RIDGE

FIELDS = tl.constexpr(18)
GATHERED, SQUARABLE, AVERAGE, STEPS, INVERSE, MEAN = map(tl.constexpr, range(6))
STRIDE, SIDE, GROUPS, BLOCKS, RELATIVE, NUMBER, FIRST = map(tl.constexpr, range(6, 13))
DECAY, RIDGE, SAMPLE_RIDGE, DATA_INPUTS, SAMPLE_EVERY = map(tl.constexpr, range(13, 18))
FACTS = tl.constexpr(4)
PIVOTS = tl.constexpr(16)
EPSILON = tl.constexpr(2.0**-23)
TINY = tl.constexpr(2.0**-126)
MOST_ADDED = tl.constexpr(MOST_SAMPLE_RIDGE)
LEAST_RIDGE = tl.constexpr(2.0**-94.5)  # TINY^0.75: the inverse of what is smaller is no number


@triton.jit
def number(table_ptr, item, name: tl.constexpr, ITEMS: tl.constexpr):
    """A field that holds the bits of a float64."""
    return field(table_ptr, item, name, ITEMS, FIELDS).to(tl.float64, bitcast=True)


@triton.jit
def power(base, exponent):
    """``base^exponent`` of a float64 and a whole number from 0 to 2^24, as counts in float32 are."""
    left = exponent.to(tl.int32)
    result = base * 0.0 + 1.0
    for _ in range(25):
        result = tl.where((left & 1) == 1, result * base, result)
        base = base * base
        left = left >> 1
    return result


@triton.jit
def average_kernel(
    table_ptr, sums_ptr, facts_ptr, ok_ptr, ITEMS: tl.constexpr, HAS_OK: tl.constexpr, PIECE: tl.constexpr
):
    """``a <- decay a + (1 - decay) gathered / samples``; each block's sums of its diagonal and of its squared means.

    ``facts`` ``[layers, 4]`` get whether a layer may change, ``1 / (1 - decay^t)``, and its ridge.
    """
    item, entry = item_of(table_ptr, tl.program_id(0), ITEMS)
    side = field(table_ptr, item, SIDE, ITEMS, FIELDS).to(tl.int32)
    blocks = field(table_ptr, item, BLOCKS, ITEMS, FIELDS).to(tl.int32)
    ones = side + 1
    size = ones * ones
    first_ptr = address(table_ptr, item, GATHERED, ITEMS, FIELDS, tl.float32, False)
    gathered_ptr = first_ptr + offset64(entry // blocks, field(table_ptr, item, STRIDE, ITEMS, FIELDS))
    gathered_ptr += offset64(entry % blocks, size)
    average_ptr = address(table_ptr, item, AVERAGE, ITEMS, FIELDS, tl.float32, False) + offset64(entry, size)
    decay = number(table_ptr, item, DECAY, ITEMS)
    keeps = field(table_ptr, item, DECAY, ITEMS, FIELDS) != 0
    samples = tl.load(first_ptr + (size - 1))
    squarable = field(table_ptr, item, SQUARABLE, ITEMS, FIELDS)
    allowed = (samples > 0) & (tl.load(squarable.to(tl.pointer_type(tl.uint8)), mask=squarable != 0, other=1) != 0)
    if HAS_OK:
        allowed = allowed & (tl.load(ok_ptr) != 0)
    take = (1.0 - decay).to(tl.float32)
    per_sample = tl.maximum(samples, 1.0)
    diagonal = tl.zeros((PIECE,), tl.float64)
    means = tl.zeros((PIECE,), tl.float64)
    # Without an average of before there may be anything where this step's goes: it is written in any case.
    for begin in range(0, tl.where(allowed | (keeps == 0), size, 0), PIECE):
        at = begin + tl.arange(0, PIECE)
        there = at < size
        fresh = tl.load(gathered_ptr + at, mask=there, other=0.0) / per_sample
        old = tl.load(average_ptr + at, mask=there & keeps, other=0.0)
        value = tl.where(keeps, old + take * (fresh - old), fresh)
        tl.store(average_ptr + at, value, mask=there)
        row = at // ones
        column = at - row * ones
        wide = value.to(tl.float64)
        diagonal += tl.where(there & (row == column) & (row < side), wide, 0.0)
        means += tl.where(there & (row == side) & (column < side), wide * wide, 0.0)
    own = field(table_ptr, item, FIRST, ITEMS, FIELDS) + entry
    tl.store(sums_ptr + 2 * own, tl.sum(diagonal, 0))
    tl.store(sums_ptr + 2 * own + 1, tl.sum(means, 0))
    if entry == 0:
        of_step = tl.maximum(samples.to(tl.float64) / number(table_ptr, item, SAMPLE_EVERY, ITEMS), 1.0)
        steps = field(table_ptr, item, STEPS, ITEMS, FIELDS)
        steps_ptr = steps.to(tl.pointer_type(tl.float32))
        now = tl.load(steps_ptr, mask=steps != 0, other=0.0) + tl.where(allowed, 1.0, 0.0)
        tl.store(steps_ptr, now, mask=(steps != 0) & allowed)
        past = tl.where(steps != 0, power(decay, tl.maximum(now, 1.0)), 0.0)
        # An average with weights w counts (sum w)^2 / sum w^2 times the samples of one step.
        counted = of_step * tl.where(steps != 0, (1.0 - past) / (1.0 + past) * ((1.0 + decay) / (1.0 - decay)), 1.0)
        ridge = number(table_ptr, item, RIDGE, ITEMS)
        added = number(table_ptr, item, SAMPLE_RIDGE, ITEMS) * side.to(tl.float64) / counted
        added += number(table_ptr, item, DATA_INPUTS, ITEMS) / of_step
        ridge += tl.minimum(added, MOST_ADDED)
        own_ptr = facts_ptr + offset64(field(table_ptr, item, NUMBER, ITEMS, FIELDS), FACTS)
        tl.store(own_ptr, tl.where(allowed, 1.0, 0.0).to(tl.float64))
        tl.store(own_ptr + 1, 1.0 / (1.0 - past))
        tl.store(own_ptr + 2, ridge)


@triton.jit
def covariance(average_ptr, row, column, side, correction, centred):
    """Entries of the covariance, and of the identity beyond it, by their places; all inputs as they are, unless ``centred``."""
    inside = (row < side) & (column < side)
    last = side * (side + 1)
    product = tl.load(average_ptr + row * (side + 1) + column, mask=inside, other=0.0) * correction
    of_row = tl.load(average_ptr + last + row, mask=inside & centred, other=0.0) * correction
    of_column = tl.load(average_ptr + last + column, mask=inside & centred, other=0.0) * correction
    return tl.where(inside, product - of_row * of_column, tl.where(row == column, 1.0, 0.0))


@triton.jit
def swept_block(a, bad):
    """A block ``[PIVOTS, PIVOTS]`` after the sweep of all its pivots, and whether one of them was not positive."""
    lane = tl.arange(0, PIVOTS)
    for k in range(PIVOTS):
        in_row = (lane == k)[:, None]
        in_column = (lane == k)[None, :]
        row = tl.sum(tl.where(in_row, a, 0.0), 0)
        column = tl.sum(tl.where(in_column, a, 0.0), 1)
        pivot = tl.sum(tl.where(lane == k, row, 0.0), 0)
        bad = bad | ((pivot > 0.0) == 0) | (pivot - pivot != 0.0)
        back = 1.0 / tl.where(pivot > 0.0, pivot, 1.0)
        rest = a - column[:, None] * (row * back)[None, :]
        a = tl.where(in_row | in_column, tl.where(in_row & in_column, -back, a * back), rest)
    return a, bad


@triton.jit
def sweep(matrix_ptr, old_ptr, new_ptr, padded, pitch, TILE: tl.constexpr):
    """Sweep a symmetric matrix ``[padded, padded]`` in place; whether a pivot was not positive.

    ``old`` and ``new`` ``[padded, PIVOTS]`` are memory for the columns of the pivots before and after.
    """
    bad = padded < 0
    lane = tl.arange(0, PIVOTS)
    wide = tl.arange(0, TILE)
    for first in range(0, padded, PIVOTS):
        pivots = first + lane
        block, bad = swept_block(tl.load(matrix_ptr + pivots[:, None] * pitch + pivots[None, :]), bad)
        tl.debug_barrier()  # all have read what is written next
        for top in range(0, padded, TILE):
            i = top + wide
            there = (i < padded)[:, None]
            own = ((i >= first) & (i < first + PIVOTS))[:, None]
            old = tl.load(matrix_ptr + i[:, None] * pitch + pivots[None, :], mask=there & (own == 0), other=0.0)
            fresh = -tl.dot(old, block, input_precision="ieee")
            tl.store(old_ptr + i[:, None] * PIVOTS + lane[None, :], old, mask=there)
            tl.store(new_ptr + i[:, None] * PIVOTS + lane[None, :], fresh, mask=there & (own == 0))
        tl.store(new_ptr + pivots[:, None] * PIVOTS + lane[None, :], block)
        tl.debug_barrier()
        for top in range(0, padded, TILE):
            i = top + wide
            old = tl.load(old_ptr + i[:, None] * PIVOTS + lane[None, :], mask=(i < padded)[:, None], other=0.0)
            for left in range(0, padded, TILE):
                j = left + wide
                mask = (i < padded)[:, None] & (j < padded)[None, :]
                own_row = mask & ((i >= first) & (i < first + PIVOTS))[:, None]
                own_column = mask & ((j >= first) & (j < first + PIVOTS))[None, :]
                new = tl.load(new_ptr + j[None, :] * PIVOTS + lane[:, None], mask=(j < padded)[None, :], other=0.0)
                at = matrix_ptr + i[:, None] * pitch + j[None, :]
                value = tl.load(at, mask=mask, other=0.0) - tl.dot(old, new, input_precision="ieee")
                of_row = tl.load(new_ptr + j[None, :] * PIVOTS + (i - first)[:, None], mask=own_row, other=0.0)
                of_column = tl.load(new_ptr + i[:, None] * PIVOTS + (j - first)[None, :], mask=own_column, other=0.0)
                tl.store(at, tl.where(own_column, of_column, tl.where(own_row, of_row, value)), mask=mask)
        tl.debug_barrier()
    return bad


@triton.jit
def mean_diagonal(sums_ptr, side, blocks, correction, centred, noise, WIDE: tl.constexpr):
    """The mean diagonal of a group's metric, from the sums over its blocks: of the covariance if ``centred``."""
    wide = tl.arange(0, WIDE)
    square = tl.zeros((WIDE,), tl.float64)
    squared_mean = tl.zeros((WIDE,), tl.float64)
    for begin in range(0, blocks, WIDE):
        of_block = begin + wide
        square += tl.load(sums_ptr + 2 * of_block, mask=of_block < blocks, other=0.0)
        squared_mean += tl.load(sums_ptr + 2 * of_block + 1, mask=of_block < blocks, other=0.0)
    inputs = side.to(tl.float64) * blocks.to(tl.float64)
    mean_square = tl.sum(square, 0) / inputs * correction
    variance = mean_square - tl.sum(squared_mean, 0) / inputs * correction * correction
    # An offset of the inputs does not count, unless they are nothing but offset.
    size = tl.where(centred & (variance > noise * mean_square), variance, mean_square)
    return tl.where(size > 0, size, 1.0)


@triton.jit
def metric_kernel(
    table_ptr, sums_ptr, facts_ptr, scratch_ptr, entries, scratch_size, noise,
    ITEMS: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Blocks of ``C^-1`` and the means of layers that may change; ``scratch`` ``[programs, scratch_size]``.

    A block without an inverse gets a ridge that is larger by its mean diagonal, and if that does not help, the inverse of its
    diagonal.
    """
    matrix_ptr = scratch_ptr + offset64(tl.program_id(0), scratch_size)
    wide = tl.arange(0, WIDE)
    tile = tl.arange(0, TILE)
    for program in range(tl.program_id(0), entries, tl.num_programs(0)):
        item, entry = item_of(table_ptr, program, ITEMS)
        side = field(table_ptr, item, SIDE, ITEMS, FIELDS).to(tl.int32)
        blocks = field(table_ptr, item, BLOCKS, ITEMS, FIELDS).to(tl.int32)
        own_facts = facts_ptr + offset64(field(table_ptr, item, NUMBER, ITEMS, FIELDS), FACTS)
        allowed = tl.load(own_facts).to(tl.int32) != 0
        correction = tl.load(own_facts + 1).to(tl.float32)
        average_ptr = address(table_ptr, item, AVERAGE, ITEMS, FIELDS, tl.float32, False)
        average_ptr += offset64(entry, (side + 1) * (side + 1))
        inverse_ptr = address(table_ptr, item, INVERSE, ITEMS, FIELDS, tl.float32, False)
        inverse_ptr += offset64(entry, side * side)
        means = field(table_ptr, item, MEAN, ITEMS, FIELDS)
        centred = means != 0
        there = wide < side
        mean = tl.load(average_ptr + side * (side + 1) + wide, mask=there & centred, other=0.0) * correction
        tl.store(
            means.to(tl.pointer_type(tl.float32)) + offset64(entry, side) + wide, mean, mask=there & centred & allowed
        )

        first_ptr = sums_ptr + 2 * field(table_ptr, item, FIRST, ITEMS, FIELDS)
        exact = tl.load(own_facts + 1)
        size = mean_diagonal(first_ptr + 2 * (entry - entry % blocks), side, blocks, exact, centred, noise, WIDE)
        if entry == 0:
            groups = field(table_ptr, item, GROUPS, ITEMS, FIELDS).to(tl.int32)
            total = size
            for group in range(1, groups):
                of_group = first_ptr + 2 * offset64(group, blocks)
                total += mean_diagonal(of_group, side, blocks, exact, centred, noise, WIDE)
            tl.store(own_facts + 3, tl.sqrt(total / groups.to(tl.float64)))
        relative = field(table_ptr, item, RELATIVE, ITEMS, FIELDS) != 0
        ridge = tl.maximum((tl.load(own_facts + 2) * tl.where(relative, size, 1.0)).to(tl.float32), LEAST_RIDGE)
        diagonal = tl.maximum(covariance(average_ptr, wide, wide, side, correction, centred), 0.0)
        more = tl.sum(tl.where(there, diagonal, 0.0), 0) / side.to(tl.float32) + EPSILON

        padded = (side + PIVOTS - 1) // PIVOTS * PIVOTS
        old_ptr = matrix_ptr + padded * padded
        new_ptr = old_ptr + padded * PIVOTS
        undone = allowed
        for attempt in range(2):
            end = tl.where(undone, padded, 0)
            added = ridge + tl.where(attempt == 1, more, 0.0)
            for top in range(0, end, TILE):
                i = (top + tile)[:, None]
                for left in range(0, end, TILE):
                    j = (left + tile)[None, :]
                    value = covariance(average_ptr, i, j, side, correction, centred)
                    value += tl.where((i == j) & (i < side), added, 0.0)
                    tl.store(matrix_ptr + i * padded + j, value, mask=(i < padded) & (j < padded))
            tl.debug_barrier()
            bad = sweep(matrix_ptr, old_ptr, new_ptr, end, padded, TILE)
            undone = undone & bad
        for top in range(0, tl.where(allowed, side, 0), TILE):
            i = (top + tile)[:, None]
            for left in range(0, side, TILE):
                j = (left + tile)[None, :]
                mask = (i < side) & (j < side)
                value = -tl.load(matrix_ptr + tl.maximum(i, j) * padded + tl.minimum(i, j), mask=mask, other=0.0)
                variances = tl.maximum(covariance(average_ptr, i, i, side, correction, centred), 0.0)
                alone = tl.where(i == j, 1.0 / tl.maximum(variances + ridge, TINY), 0.0)
                tl.store(inverse_ptr + i * side + j, tl.where(undone, alone, value), mask=mask)
        tl.debug_barrier()  # the next block's matrix comes where this one's is
