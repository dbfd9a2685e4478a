"""The Gram kernel: every symmetric product ``X'X`` of this library, alone or stacked under ``G'X``.

``second_moment``, the fused backward pass of a linear layer, and the symmetric products of Newton-Schulz iterations are
this kernel with other strides and epilogues. The equation, with samples ``x_n`` (and ``g_n``) and weights ``w_n``:

    S = alpha * sum_n w_n [x_n 1]' [x_n 1] + beta * C,      W = sum_n g_n' x_n,      b = sum_n g_n

Tile scheme. A program owns one ``BLOCK_I x BLOCK_J`` tile of the stacked product and one slice of the samples (a
*split*). ``BLOCK_I = R BLOCK_J``: tall tiles (``R`` 2) take fewer bytes from L2 per product. Of ``S`` only tiles that
reach the diagonal or lie below it exist; the epilogue stores each element twice, mirrored, so ``S`` is symmetric to the
bit. The ones column is no column of a tile (``d`` is usually a multiple of 128 and a 129th column would cost a row of
tiles): programs after the last tile sum columns instead, or where all columns fit one tile, its programs do, which then
read ``X`` once: both operands of the product are one block. Tiles of one split are neighbours in the grid, so that its
samples, rows of ``X`` and ``G``, stay in L2 for all of them.

Splits. The first ``head`` tiles take ``splits`` programs each, so many that they fill the GPU in whole waves. The *tail*
tiles that are left make groups; the steps of a group's tiles over the samples are laid end to end and cut into equal shares,
one for each program that the GPU holds, so that none idles: a share may end one tile and begin the next. Partial tiles go
to a workspace, and the last program to arrive at a tile (:mod:`lnb_kernels._triton.arrival`) adds them in a fixed order:
one launch, deterministic results, no float atomics. A head tile of one program is stored at once, or goes the same way
(*staged*): an epilogue takes more registers than the product loop, and more than there are for a tall tile of ``S``, while
what went through the workspace is finished a few rows at a time.

Planes. The pixels of an NCHW image are samples, of which each image holds ``area``: sample ``n`` is pixel ``n % area`` of
image ``n // area``, and a column is a plane. Blocks are then loaded along the pixels, as wide as ``area`` is even (*unit*).

Loads. Where the GPU has a copy engine and the layout fits it (:mod:`lnb_kernels._triton.descriptors`), blocks are
fetched by tensor descriptors, else by pointers.

Cost with ``nb = ceil(d / BLOCK_I)``, ``mb = ceil(m / BLOCK_I)``, ``T = R nb (nb + 1) / 2 + mb ceil(d / BLOCK_J)``
tiles: FLOPs ``2 N BLOCK_I BLOCK_J T`` (against ``2 N d^2`` of the full square); bytes from L2
``N (BLOCK_I + BLOCK_J) T size``, from memory at least ``N (d + m) size``; workspace ``8 BLOCK_I BLOCK_J`` for each
partial tile, of which a group of ``t`` tiles in ``h`` shares has at most ``h + t - 1``, one for each piece of a tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lnb_kernels._triton.arrival import is_last
from lnb_kernels._triton.offsets import lower_tile, offset64


@triton.jit
def _product(
    a_ptr, b_ptr, w_ptr, a_blocks, b_blocks, batch, a_col, b_col, a_width, b_width, start, stop,
    stride_ar, stride_br, stride_c, stride_w, area,
    BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr, DESCRIPTORS: tl.constexpr, SAMPLES_FIRST: tl.constexpr, PLANES: tl.constexpr,
    ONE_TILE: tl.constexpr, WITH_SUMS: tl.constexpr,
):  # fmt: skip
    """``sum over samples start..stop of w_n a_n' b_n`` for one tile, ``[BLOCK_I, BLOCK_J]`` fp32, column sums and count.

    With ``ONE_TILE`` ``b`` is ``a``; with ``WITH_SUMS`` the second result, ``[BLOCK_N, BLOCK_J]``, adds up over its
    first dimension to ``sum w_n a_n``, and, ``HAS_WEIGHTS`` given, the third to ``sum w_n``. With ``DESCRIPTORS`` one
    thread asks the copy engine for each block, which is zero outside of the matrix; ``stop`` is then the end of the
    matrix or ``BLOCK_N`` divides ``stop - start``.
    """
    lane = tl.arange(0, BLOCK_N)
    a_cols = a_col + tl.arange(0, BLOCK_I)
    b_cols = b_col + tl.arange(0, BLOCK_J)
    a_ptrs = (
        a_ptr + offset64(start, stride_ar) + offset64(lane, stride_ar)[:, None] + offset64(a_cols, stride_c)[None, :]
    )
    b_ptrs = (
        b_ptr + offset64(start, stride_br) + offset64(lane, stride_br)[:, None] + offset64(b_cols, stride_c)[None, :]
    )
    acc = tl.zeros((BLOCK_I, BLOCK_J), tl.float32)
    sums = tl.zeros((BLOCK_N, BLOCK_J), tl.float32)
    count = tl.zeros((BLOCK_N,), tl.float32)
    for sample in range(start, stop, BLOCK_N):
        live = lane < stop - sample
        if PLANES:
            samples = sample + lane
            pixels = offset64(samples // area, stride_ar) + samples % area
            a_ptrs = a_ptr + pixels[:, None] + offset64(a_cols, area)[None, :]
            b_ptrs = b_ptr + pixels[:, None] + offset64(b_cols, area)[None, :]
        if DESCRIPTORS:
            if SAMPLES_FIRST:
                a = a_blocks.load([sample, batch, a_col]).reshape([BLOCK_N, BLOCK_I])
            else:
                a = a_blocks.load([batch, sample, a_col]).reshape([BLOCK_N, BLOCK_I])
        else:
            a = tl.load(a_ptrs, mask=live[:, None] & (a_cols < a_width)[None, :], other=0.0)  # [BLOCK_N, BLOCK_I]
        if ONE_TILE:
            b = a
        elif DESCRIPTORS:
            if SAMPLES_FIRST:
                b = b_blocks.load([sample, batch, b_col]).reshape([BLOCK_N, BLOCK_J])
            else:
                b = b_blocks.load([batch, sample, b_col]).reshape([BLOCK_N, BLOCK_J])
        else:
            b = tl.load(b_ptrs, mask=live[:, None] & (b_cols < b_width)[None, :], other=0.0)  # [BLOCK_N, BLOCK_J]
        if HAS_WEIGHTS:
            w = tl.load(w_ptr + offset64(sample + lane, stride_w), mask=live, other=0.0).to(tl.float32)
            # 16-bit samples are exact in tf32, the weighted ones are not exact in 16 bits: so the product runs in (tf)32.
            a = a.to(tl.float32) * w[:, None]
            b = b.to(tl.float32)
            count += w
        if WITH_SUMS:
            sums += a.to(tl.float32)
        acc = tl.dot(tl.trans(a), b, acc, input_precision=PRECISION)
        if not PLANES:
            a_ptrs += offset64(BLOCK_N, stride_ar)
            b_ptrs += offset64(BLOCK_N, stride_br)
    return acc, sums, count


@triton.jit
def _column_sums(
    a_ptr, w_ptr, cols, width, start, stop, stride_ar, stride_ac, stride_w, area,
    BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr, HAS_WEIGHTS: tl.constexpr, PLANES: tl.constexpr,
):  # fmt: skip
    """``sum over samples start..stop of w_n a_n`` for the columns ``cols``; column ``width`` is all ones."""
    lane = tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_N, BLOCK_J), tl.float32)
    for sample in range(start, stop, BLOCK_N):
        samples = sample + lane
        live = samples < stop
        if PLANES:
            pixels = offset64(samples // area, stride_ar) + samples % area
            offsets = pixels[:, None] + offset64(cols, area)[None, :]
        else:
            offsets = offset64(samples, stride_ar)[:, None] + offset64(cols, stride_ac)[None, :]
        a = tl.load(a_ptr + offsets, mask=live[:, None] & (cols < width)[None, :], other=0.0).to(tl.float32)
        a = tl.where((cols == width)[None, :] & live[:, None], 1.0, a)
        if HAS_WEIGHTS:
            w = tl.load(w_ptr + offset64(samples, stride_w), mask=live, other=0.0).to(tl.float32)
            a *= w[:, None]
        acc += a
    return tl.sum(acc, 0)  # [BLOCK_J]


@triton.jit
def store_symmetric(
    acc, s_ptr, c_ptr, row, col, d, alpha, beta, stride_sr, stride_cr,
    HAS_C: tl.constexpr, ROWS: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """Store a lower tile of ``alpha acc + beta C`` and its mirror image; what a tile has above the diagonal is left.

    Offsets inside a tile are int32 to save registers: 256 rows of a square matrix that fits any memory are below 2^31
    elements.
    """
    i, j = tl.arange(0, ROWS), tl.arange(0, BLOCK_J)
    mask = (col + j[None, :] <= row + i[:, None]) & (row + i < d)[:, None]
    value = alpha * acc
    if HAS_C:
        c = tl.load(c_ptr + offset64(row, stride_cr) + col + i[:, None] * stride_cr + j[None, :], mask=mask, other=0.0)
        value += beta * c.to(tl.float32)
    value = value.to(s_ptr.dtype.element_ty)
    tl.store(s_ptr + offset64(row, stride_sr) + col + i[:, None] * stride_sr + j[None, :], value, mask=mask)
    mirror = s_ptr + offset64(col, stride_sr) + row + j[:, None] * stride_sr + i[None, :]
    tl.store(mirror, tl.trans(value), mask=tl.trans(mask))


@triton.jit
def store_sums(sums, s_ptr, c_ptr, cols, d, alpha, beta, stride_sr, stride_cr, HAS_C: tl.constexpr):
    """Store column sums as the last row and column of ``S``; entry ``d`` is the sample count."""
    mask = cols <= d
    value = alpha * sums
    if HAS_C:
        value += beta * tl.load(c_ptr + offset64(d, stride_cr) + cols, mask=mask, other=0.0).to(tl.float32)
    value = value.to(s_ptr.dtype.element_ty)
    tl.store(s_ptr + offset64(d, stride_sr) + cols, value, mask=mask)
    tl.store(s_ptr + offset64(cols, stride_sr) + d, value, mask=mask & (cols < d))


@triton.jit
def _finish(
    acc, kind, i, j, row, s_ptr, c_ptr, gw_ptr, d, m, alpha, beta, stride_sr, stride_cr,
    HAS_G: tl.constexpr, HAS_S: tl.constexpr, HAS_C: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Store rows ``row .. row + ROWS`` of finished tile ``(i, j)``: of ``G'X`` where ``kind`` is 0, else of ``S``."""
    first_row, first_col = i * BLOCK_I + row, j * BLOCK_J
    in_s = HAS_S
    if HAS_G:
        if HAS_S:
            in_s = kind == 1
        if kind == 0:
            rows, cols = tl.arange(0, ROWS), tl.arange(0, BLOCK_J)
            mask = (first_row + rows < m)[:, None] & (first_col + cols < d)[None, :]
            base = gw_ptr + offset64(first_row, d) + first_col
            tl.store(base + rows[:, None] * d + cols[None, :], acc.to(gw_ptr.dtype.element_ty), mask=mask)
    if in_s:
        store_symmetric(
            acc, s_ptr, c_ptr, first_row, first_col, d, alpha, beta, stride_sr, stride_cr, HAS_C, ROWS, BLOCK_J
        )


@triton.jit
def finish_sums(
    sums, block, s_ptr, c_ptr, gb_ptr, d, m, g_blocks, alpha, beta, stride_sr, stride_cr,
    HAS_G: tl.constexpr, HAS_C: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """Store finished column sums of ``G`` (the first ``g_blocks`` blocks) or of ``[X 1]``."""
    cols = tl.arange(0, BLOCK_J)
    if HAS_G:
        if block < g_blocks:
            out = block * BLOCK_J + cols
            tl.store(gb_ptr + out, sums.to(gb_ptr.dtype.element_ty), mask=out < m)
        else:
            x_cols = (block - g_blocks) * BLOCK_J + cols
            store_sums(sums, s_ptr, c_ptr, x_cols, d, alpha, beta, stride_sr, stride_cr, HAS_C)
    else:
        store_sums(sums, s_ptr, c_ptr, block * BLOCK_J + cols, d, alpha, beta, stride_sr, stride_cr, HAS_C)


@triton.jit
def _locate(tile, d, m, HAS_G: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr):
    """``(kind, i, j)`` of a tile: 0 for ``G'X``, column by column of ``X``; 1 for ``S``, ``R`` tiles side by side."""
    R: tl.constexpr = BLOCK_I // BLOCK_J
    s_tile = tile
    kind = 1
    if HAS_G:
        g_blocks = tl.cdiv(m, BLOCK_I)
        g_tiles = g_blocks * tl.cdiv(d, BLOCK_J)
        s_tile = tl.maximum(tile - g_tiles, 0)
        kind = tl.where(tile < g_tiles, 0, 1)
    i, pair = lower_tile(s_tile // R, tl.cdiv(d, BLOCK_I))
    j = pair * R + s_tile % R
    if HAS_G:
        i = tl.where(kind == 0, tile % g_blocks, i)
        j = tl.where(kind == 0, tile // g_blocks, j)
    return kind, i, j


@triton.jit
def add_parts(
    partial_ptr, first, step, count, row, ROWS: tl.constexpr, BLOCK_J: tl.constexpr, SIZE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Rows ``row .. row + ROWS`` of the sum of ``count`` tiles of ``SIZE`` elements at slots ``first + k step``, in order.

    ``CHUNK`` of them are loaded at a time to keep enough loads in flight.
    """
    chunk = tl.arange(0, CHUNK)
    inner = (row + tl.arange(0, ROWS))[:, None] * BLOCK_J + tl.arange(0, BLOCK_J)[None, :]
    acc = tl.zeros((ROWS, BLOCK_J), tl.float32)
    for part in range(0, count, CHUNK):
        slots = first + offset64(part + chunk, step)
        ptrs = partial_ptr + offset64(slots, SIZE)[:, None, None] + inner[None, :, :]
        mask = (part + chunk < count)[:, None, None]
        acc += tl.sum(tl.load(ptrs, mask=mask, other=0.0, cache_modifier=".cg"), 0)
    return acc


@triton.jit
def add_sums(sums_ptr, first, step, count, BLOCK_J: tl.constexpr, CHUNK: tl.constexpr):
    """The sum of ``count`` vectors of ``BLOCK_J`` at slots ``first + k step``, in order."""
    chunk = tl.arange(0, CHUNK)
    sums = tl.zeros((BLOCK_J,), tl.float32)
    for part in range(0, count, CHUNK):
        ptrs = (
            sums_ptr + offset64(first + offset64(part + chunk, step), BLOCK_J)[:, None] + tl.arange(0, BLOCK_J)[None, :]
        )
        sums += tl.sum(tl.load(ptrs, mask=(part + chunk < count)[:, None], other=0.0, cache_modifier=".cg"), 0)
    return sums


@triton.jit
def add_in_place(
    partial_ptr, first, step, count,
    BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Replace the tile at slot ``first`` by the sum of those at ``first + k step``."""
    base = partial_ptr + offset64(first, BLOCK_I * BLOCK_J)
    for row in range(0, BLOCK_I, ROWS):
        acc = add_parts(partial_ptr, first, step, count, row, ROWS, BLOCK_J, BLOCK_I * BLOCK_J, CHUNK)
        inner = (row + tl.arange(0, ROWS))[:, None] * BLOCK_J + tl.arange(0, BLOCK_J)[None, :]
        tl.debug_barrier()  # other threads may still read what this one overwrites
        tl.store(base + inner, acc)


@triton.jit
def arrive(
    partial_ptr, counters_ptr, first, step, count, part, fan,
    BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Count part ``part`` of a tile in; returns ``(last, step, count)``: whether to finish the tile now, and from which
    parts.

    The parts lie at slots ``first + k step``. The last of a group of ``fan`` adds these in the first one's slot.
    ``counters``: one of the tile, then one for each group.
    """
    group = part // fan
    groups = tl.cdiv(count, fan)
    members = tl.minimum(fan, count - group * fan)
    last = is_last(counters_ptr + 1 + group, members)
    if last:  # noqa: SIM102 - the compiler takes no other form
        if groups > 1:
            head = first + offset64(group * fan, step)
            add_in_place(partial_ptr, head, step, members, BLOCK_I, BLOCK_J, ROWS, CHUNK)
            last = is_last(counters_ptr, groups)
    return last, tl.where(groups > 1, step * fan, step), tl.where(groups > 1, groups, count)


@triton.jit
def gram_kernel(
    x_ptr, g_ptr, w_ptr, x_blocks_i, x_blocks_j, g_blocks_i, s_ptr, c_ptr, gw_ptr, gb_ptr, partial_ptr, sums_ptr,
    counters_ptr, n_samples, d, m, tiles, sum_blocks, head, splits, samples_per_split,
    shares, share, group_tiles, group_shares, group_pieces, common,
    partials, sum_splits, samples_per_sum, programs, fan, tile_counters, units, alpha, beta,
    stride_xb, stride_xr, stride_xc, stride_gr, stride_w, stride_sb, stride_sr, stride_cb, stride_cr,
    HAS_G: tl.constexpr, PAIR: tl.constexpr, HAS_WEIGHTS: tl.constexpr, HAS_ONES: tl.constexpr, HAS_C: tl.constexpr,
    STAGE_HEAD: tl.constexpr, STAGE_SUMS: tl.constexpr, HAS_TAIL: tl.constexpr, DESCRIPTORS: tl.constexpr,
    SAMPLES_FIRST: tl.constexpr, PLANES: tl.constexpr, ONE_TILE: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One split of a tile, one share of the tail, or a block of column sums; grid ``(batch programs)``,
    ``programs = head splits + shares + sums``.

    ``x`` ``[batch, n_samples, d]`` in any strides; ``g`` ``[n_samples, m]`` with the column stride of ``x``, and ``w``
    ``[n_samples]`` only for ``batch`` 1. ``s`` ``[batch, d or d+1, d or d+1]``. With ``STAGE_HEAD`` the tiles of the head
    go to ``partial`` ``[batch, partials, BLOCK_I, BLOCK_J]`` in the order of the programs, else straight to their place
    (of tall tiles only those of ``G'X``); behind them the pieces of the tail's tiles, in the order of their steps. With
    ``STAGE_SUMS`` sums go to ``sums`` ``[batch, sum_splits, sum_blocks, BLOCK_J]``, with ``ONE_TILE`` those of each
    piece. Who arrives last at ``counters`` ``[batch, tiles tile_counters + sum_blocks]``, all zero, adds and stores them,
    ``ROWS`` rows and ``CHUNK`` parts at a time. With ``SAMPLES_FIRST`` descriptors are ``[n_samples, batch, d]``. A
    ``share`` counts steps of ``BLOCK_N`` samples, at most those of one tile; ``common`` is the least common multiple of
    the two: after that many steps, shares and tiles of a group end together. With ``PAIR``, ``S`` is ``G'X`` for a ``G``
    shaped as ``X`` whose product with it is known to be symmetric. ``PLANES``, if not 0, is the unit of planes of
    ``units PLANES`` pixels, and ``stride_xr`` then the stride of images.
    """
    area = units * PLANES
    program = tl.program_id(0)
    batch = 0
    if not HAS_TAIL:  # which is for one matrix only
        batch = program // programs
        program %= programs
    head_programs = head * splits
    products = head_programs + shares
    x_ptr += offset64(batch, stride_xb)
    s_ptr += offset64(batch, stride_sb)
    c_ptr += offset64(batch, stride_cb)
    counters_ptr += offset64(batch, tiles * tile_counters + sum_blocks)
    if program < products:
        slot = program
        tile = program % tl.maximum(head, 1)
        start = program // tl.maximum(head, 1) * samples_per_split
        stop = start + tl.minimum(samples_per_split, n_samples - start)
        stored = STAGE_HEAD
        parts = 1
        rest = 0
        if HAS_TAIL:
            if not STAGE_HEAD:
                stored = program >= head_programs
                slot -= head
            if program >= head_programs:
                group = (program - head_programs) // group_shares
                within = (program - head_programs) % group_shares
                steps = tl.cdiv(n_samples, BLOCK_N)
                begin = within * share  # below 2^31, see cut_tail
                end = tl.minimum(begin + share, group_tiles * steps)
                first = begin // steps  # tile of the group
                begin_tile = first * steps
                slot += group * (group_pieces - group_shares) + (first - begin // common).to(tl.int32)
                tile = head + group * group_tiles + first.to(tl.int32)
                start = (begin - begin_tile).to(tl.int32) * BLOCK_N
                stop = tl.minimum(tl.minimum(end - begin_tile, steps).to(tl.int32) * BLOCK_N, n_samples)
                rest = tl.minimum(tl.maximum(end - begin_tile - steps, 0).to(tl.int32) * BLOCK_N, n_samples)
                parts = tl.where(rest > 0, 2, 1)
        # One loop for the one part of the head's programs and the one or two of a share: a second loop would have pipeline
        # buffers of its own in shared memory, as would one for each kind of tile.
        for _ in range(parts):
            kind, i, j = _locate(tile, d, m, HAS_G, BLOCK_I, BLOCK_J)
            a_ptr, a_blocks, a_width, stride_ar = x_ptr, x_blocks_i, d, stride_xr
            if PAIR:
                a_ptr, a_blocks, stride_ar = g_ptr + offset64(batch, stride_xb), g_blocks_i, stride_gr
            if HAS_G:  # noqa: SIM102 - the outer condition is a constant of the compiler, the inner one is not
                if kind == 0:
                    a_ptr, a_blocks, a_width, stride_ar = g_ptr, g_blocks_i, m, stride_gr
            acc, sums, count = _product(
                a_ptr, x_ptr, w_ptr, a_blocks, x_blocks_j, batch, i * BLOCK_I, j * BLOCK_J, a_width, d, start, stop,
                stride_ar, stride_xr, stride_xc, stride_w, area, BLOCK_I, BLOCK_J, BLOCK_N, PRECISION, HAS_WEIGHTS,
                DESCRIPTORS, SAMPLES_FIRST, PLANES, ONE_TILE, ONE_TILE and HAS_ONES,
            )  # fmt: skip
            if stored:
                base = partial_ptr + offset64(offset64(batch, partials) + slot, BLOCK_I * BLOCK_J)
                tl.store(base + tl.arange(0, BLOCK_I)[:, None] * BLOCK_J + tl.arange(0, BLOCK_J)[None, :], acc)
            else:
                _finish(
                    acc, kind, i, j, 0, s_ptr, c_ptr, gw_ptr, d, m, alpha, beta, stride_sr, stride_cr,
                    HAS_G, BLOCK_I == BLOCK_J, HAS_C, BLOCK_I, BLOCK_J, BLOCK_I,
                )  # fmt: skip
            if ONE_TILE and HAS_ONES:
                lane = tl.arange(0, BLOCK_J)
                column_sums = tl.sum(sums, 0)
                samples_counted = (stop - start).to(tl.float32)
                if HAS_WEIGHTS:
                    samples_counted = tl.sum(count, 0)
                for block in range(sum_blocks):  # two if the count does not fit behind the columns
                    value = tl.where(
                        lane + block * BLOCK_J == d, samples_counted, tl.where(block == 0, column_sums, 0.0)
                    )
                    if STAGE_SUMS:
                        place = offset64(offset64(batch, sum_splits) + slot, sum_blocks) + block
                        tl.store(sums_ptr + offset64(place, BLOCK_J) + lane, value)
                    else:
                        finish_sums(
                            value, block, s_ptr, c_ptr, gb_ptr, d, m, 0, alpha, beta, stride_sr, stride_cr,
                            HAS_G, HAS_C, BLOCK_J,
                        )  # fmt: skip
            if HAS_TAIL:  # the second part of a share begins the next tile
                tile += 1
                slot += 1
                start = 0
                stop = rest
        # Finishing is a loop of its own, or its addresses would take registers from the products.
        if STAGE_HEAD or HAS_TAIL:  # noqa: SIM102 - the outer condition is a constant of the compiler
            if stored:
                # The pieces of this program's tile in the workspace: where they lie, and which is its own.
                first_slot = tile
                step = head
                pieces = splits
                next_pieces = 1
                piece = program // tl.maximum(head, 1)
                if HAS_TAIL:
                    tile -= parts
                    first_slot = tile
                    if program >= head_programs:  # pieces of a tail's tile are neighbours
                        within = (program - head_programs) % group_shares
                        steps = tl.cdiv(n_samples, BLOCK_N)
                        begin_tile = within * share // steps * steps
                        first_share = begin_tile // share
                        piece = within - first_share
                        pieces = (begin_tile + steps - 1) // share - first_share + 1
                        next_pieces = (begin_tile + 2 * steps - 1) // share - within + 1
                        first_slot = slot - parts - piece
                        step = 1
                places = partial_ptr + offset64(offset64(batch, partials), BLOCK_I * BLOCK_J)
                for _ in range(parts):
                    kind, i, j = _locate(tile, d, m, HAS_G, BLOCK_I, BLOCK_J)
                    last, step, pieces = arrive(
                        places, counters_ptr + tile * tile_counters, first_slot, step, pieces, piece, fan,
                        BLOCK_I, BLOCK_J, ROWS, CHUNK,
                    )  # fmt: skip
                    if last:
                        for row in range(0, BLOCK_I, ROWS):
                            total = add_parts(
                                places, first_slot, step, pieces, row, ROWS, BLOCK_J, BLOCK_I * BLOCK_J, CHUNK
                            )
                            _finish(
                                total, kind, i, j, row, s_ptr, c_ptr, gw_ptr, d, m, alpha, beta, stride_sr, stride_cr,
                                HAS_G, True, HAS_C, BLOCK_I, BLOCK_J, ROWS,
                            )  # fmt: skip
                        if ONE_TILE and HAS_ONES:
                            for block in range(sum_blocks):
                                vectors = offset64(offset64(batch, sum_splits), sum_blocks) + block
                                whole = add_sums(sums_ptr, vectors, sum_blocks, sum_splits, BLOCK_J, CHUNK)
                                finish_sums(
                                    whole, block, s_ptr, c_ptr, gb_ptr, d, m, 0, alpha, beta, stride_sr, stride_cr,
                                    HAS_G, HAS_C, BLOCK_J,
                                )  # fmt: skip
                    if HAS_TAIL:
                        tile += 1
                        first_slot += piece + 1
                        step = 1
                        piece = 0
                        pieces = next_pieces
    elif HAS_ONES and not ONE_TILE:
        block = (program - products) % sum_blocks
        split = (program - products) // sum_blocks
        start = split * samples_per_sum
        stop = start + tl.minimum(samples_per_sum, n_samples - start)
        g_blocks = tl.cdiv(m, BLOCK_J)
        lane = tl.arange(0, BLOCK_J)
        x_block = block
        a_ptr, width, stride_ar = x_ptr, d, stride_xr
        if HAS_G:
            x_block = block - g_blocks
            if block < g_blocks:
                x_block = block
                a_ptr, width, stride_ar = g_ptr, m, stride_gr
        sums = _column_sums(
            a_ptr, w_ptr, x_block * BLOCK_J + lane, width, start, stop, stride_ar, stride_xc, stride_w, area,
            BLOCK_J, BLOCK_N, HAS_WEIGHTS, PLANES,
        )  # fmt: skip
        finished = not STAGE_SUMS
        if STAGE_SUMS:
            vectors = offset64(offset64(batch, sum_splits), sum_blocks) + block
            tl.store(sums_ptr + offset64(vectors + offset64(split, sum_blocks), BLOCK_J) + lane, sums)
            finished = is_last(counters_ptr + tiles * tile_counters + block, sum_splits)
        if finished:
            if STAGE_SUMS:
                sums = add_sums(sums_ptr, vectors, sum_blocks, sum_splits, BLOCK_J, CHUNK)
            finish_sums(
                sums,
                block,
                s_ptr,
                c_ptr,
                gb_ptr,
                d,
                m,
                g_blocks,
                alpha,
                beta,
                stride_sr,
                stride_cr,
                HAS_G,
                HAS_C,
                BLOCK_J,
            )
