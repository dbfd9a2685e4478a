"""Launch configurations of the Gram kernel by shape, dtype and architecture, and the launch itself."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch

from lnb_kernels._triton.arch import Arch, arch_of
from lnb_kernels._triton.arrival import arrival_counters, fan_of
from lnb_kernels._triton.descriptors import (
    block_descriptor,
    copies_in_blocks,
    loads_in_vectors,
    plane_unit,
    side_by_side,
)
from lnb_kernels._triton.gram_cost import Part, loads_take_few_registers, predict, programs_per_multiprocessor
from lnb_kernels._triton.gram_tail import Tail, cut_tail
from lnb_kernels._triton.launch import on_device
from lnb_kernels._triton.precision import input_precision

WORKSPACE_BYTES = 288 << 20  # splits are limited so that partial tiles never take more; two of each fit up to d = 8192
FINISH_ROWS, FINISH_CHUNK = 8, 4  # of a tile, and parts, that are added at a time: 16 elements a thread in every tile
MAX_SAMPLES = (1 << 31) - (1 << 16)  # of one launch: sample counters are int32, offsets int64


@dataclass(frozen=True)
class GramPlan:
    """Geometry of one launch: tiles of ``block_i x block_j``, of ``G'X`` and of the lower triangle of ``S``."""

    block_i: int
    block_j: int
    block_n: int
    num_warps: int
    num_stages: int
    tiles: int  # of one split of one matrix
    sum_blocks: int  # blocks of block_j columns of G and of [X 1]
    head: int  # tiles of `splits` programs each; the others are the tail
    splits: int
    samples_per_split: int
    staged: bool  # whether tiles of the head go through the workspace: always if there are several splits
    tail: Tail
    sum_splits: int  # programs of a block of column sums
    samples_per_sum: int

    @property
    def products(self) -> int:
        """Programs of the products of one matrix."""
        return self.head * self.splits + self.tail.programs

    @property
    def partials(self) -> int:
        """Partial tiles of one matrix in the workspace."""
        return (self.head * self.splits if self.staged else 0) + self.tail.groups * self.tail.pieces

    @property
    def most_pieces(self) -> int:
        """Partial tiles that make one tile, at most."""
        tail = math.ceil(self.tail.steps / self.tail.share) + 1 if self.tail.groups else 1
        return max(self.splits, tail)

    @property
    def fan(self) -> int:
        """Partial tiles that one program adds before the sums of such groups are added."""
        return fan_of(self.most_pieces)

    @property
    def tile_counters(self) -> int:
        """Counters of one tile: of itself and of each group of partial tiles."""
        return 1 + math.ceil(self.most_pieces / self.fan)

    @property
    def elements(self) -> int:
        """Elements of one tile."""
        return self.block_i * self.block_j


def tile_config(d: int, itemsize: int, arch: Arch, square: bool = False) -> tuple[int, int, int, int, int]:
    """``(block_i, block_j, block_n, num_warps, num_stages)``, the shipped configurations of the product loop.

    A tile of 128 x 128 keeps 64 accumulators per thread (8 warps); a smaller matrix gets the next power of two. From
    Hopper on, wide matrices of 16-bit samples take 256 x 128, which reads a quarter fewer bytes from L2 per product;
    narrow ones would lose more to what such tiles cover above the diagonal. Their accumulators leave no registers for
    an epilogue, so they are staged (:func:`gram_plan`). The pipeline is as deep as
    shared memory allows for the programs that share a multiprocessor, at most 4; on AMD 2, as its loads are pipelined
    through registers.
    """
    block_j = min(128, max(16, 1 << (d - 1).bit_length()))
    tall = not square and itemsize == 2 and d >= 1024 and arch.name in ("sm_90", "sm_100")
    block_i = 256 if tall else block_j
    block_n = 64 if itemsize == 2 else 32
    if block_j == 128 and arch.name == "sm_80":
        block_n //= 2
    num_warps = {16: 1, 32: 2, 64: 4, 128: 8}[block_j]
    if arch.name == "gfx942":
        return block_i, block_j, block_n, num_warps, 2
    stage_bytes = (block_i + block_j) * block_n * itemsize
    budget = arch.shared_bytes // programs_per_multiprocessor(block_i, block_j, itemsize, True, True, arch)
    return block_i, block_j, block_n, num_warps, max(2, min(4, budget // stage_bytes))


def _even(n: int, splits: int, block_n: int) -> tuple[int, int]:
    """``(splits, samples of each)`` of about ``splits`` equal parts of ``n`` samples, in whole steps of ``block_n``."""
    samples = math.ceil(max(1, math.ceil(n / block_n)) / splits) * block_n
    return max(1, math.ceil(n / samples)), samples


def _geometry(
    n: int,
    d: int,
    m: int,
    itemsize: int,
    arch: Arch,
    batch: int,
    tail: bool,
    aligned: bool,
    tile: tuple[int, ...],
    tiles: int,
    tiles_of_g: int,
) -> tuple[int, int, int, bool, Tail] | None:
    """``(head, splits, samples_per_split, staged, tail)`` of the least predicted time.

    None if no workspace is large enough for tall tiles of ``S``. The time is that of :mod:`lnb_kernels._triton.gram_cost`.
    Without a tail, or for several matrices, all tiles are alike. Else the head is nothing, what fills whole waves, or all
    tiles of ``G'X``, which even tall tiles can store at once.
    """
    block_i, block_j, block_n = tile[:3]
    steps = max(1, math.ceil(n / block_n))
    memory = itemsize * n * (d + m) * batch
    limit = max(1, WORKSPACE_BYTES // (4 * block_i * block_j * batch))  # partial tiles
    together = {
        staged: programs_per_multiprocessor(block_i, block_j, itemsize, staged, aligned, arch, tiles == 1)
        for staged in (False, True)
    }
    slots = arch.multiprocessors * together[True]
    whole = tiles == 1
    candidates: list[tuple[float, tuple[int, int, int, bool, Tail]]] = []

    def consider(head: int, splits: int, staged: bool, programs: int) -> None:
        splits, samples = _even(n, splits, block_n)
        cut = cut_tail(tiles - head, programs, steps)
        if cut is None:
            return
        shares, pieces = cut.programs, cut.groups * cut.pieces
        staged_head = head * splits if staged else 0
        if (splits > 1 and not staged) or staged_head + pieces > limit:
            return
        shape = block_i, block_j, block_n
        parts = [
            Part(
                head * splits * batch,
                samples,
                *shape,
                together[staged or shares > 0],
                staged_head * batch,
                itemsize,
                whole,
            ),
            Part(shares * batch, cut.share * block_n, *shape, together[True], pieces * batch, itemsize, whole),
        ]
        candidates.append((predict(parts, memory, arch).seconds, (head, splits, samples, staged, cut)))

    most = max(1, min(steps, limit // tiles))
    fitting = {slots * waves // (tiles * batch) for waves in range(1, 9)}  # splits that fill whole waves
    for splits in sorted({min(most, max(1, wanted)) for wanted in (*range(1, 17), *fitting)}):
        # Addresses of single elements and an epilogue of 64 of them a thread take more registers than there are.
        for staged in (True, False) if aligned or block_j < 128 else (True,):
            direct_tall = block_i > block_j and not staged
            if not direct_tall:
                consider(tiles, splits, staged, 0)
            if not tail or batch > 1:
                continue
            for head in {0, tiles * splits // slots * slots // splits, tiles_of_g}:
                # Beside the loop over the parts of a share, an epilogue of 64 elements a thread has no registers; and on
                # sm_100, whose accumulators are read back from tensor memory, nor has one of 128.
                crowded = not staged and block_j == 128 and (block_i == block_j or arch.name == "sm_100")
                if head < tiles and not crowded and not (direct_tall and head > tiles_of_g):
                    for waves in (1, 2, 4, 8):
                        consider(head, splits, staged, waves * slots)
    if not candidates and block_i <= block_j:
        consider(
            tiles, 1, False, 0
        )  # so many matrices that no workspace holds their parts: registers that spill cost less
    if not candidates:
        return None
    return min(candidates, key=lambda candidate: candidate[0])[1]


@functools.lru_cache(maxsize=1024)
def gram_plan(
    n: int,
    d: int,
    m: int,
    itemsize: int,
    arch: Arch,
    batch: int = 1,
    tail: bool = True,
    tile: tuple[int, ...] | None = None,
    aligned: bool = True,
) -> GramPlan:
    """The launch of ``[G | X 1]'X`` for ``X`` ``[n, d]``, ``G`` ``[n, m]`` (``m`` 0: none), ``batch`` matrices ``X``.

    ``tile`` replaces :func:`tile_config`'s; ``tail`` False gives every tile the same number of splits;
    ``aligned`` tells whether 16 bytes of ``X`` can be loaded at a time.
    """
    for candidate in (tile or tile_config(d, itemsize, arch), tile_config(d, itemsize, arch, square=True)):
        block_i, block_j, block_n, num_warps, num_stages = candidate
        rows_of_s = math.ceil(d / block_i)
        tiles_of_g = math.ceil(m / block_i) * math.ceil(d / block_j)
        tiles = block_i // block_j * (rows_of_s * (rows_of_s + 1) // 2) + tiles_of_g
        geometry = _geometry(n, d, m, itemsize, arch, batch, tail, aligned, candidate, tiles, tiles_of_g)
        if geometry is not None:
            break
    assert geometry is not None  # square tiles need no workspace
    splits = geometry[1]
    sum_blocks = math.ceil(m / block_j) + math.ceil((d + 1) / block_j)
    # A program that summed a whole column would take longer than the products do.
    wanted = max(splits, min(math.ceil(n / (16 * block_n)), 8 * arch.multiprocessors // sum_blocks))
    sums = _even(n, wanted, block_n)
    return GramPlan(block_i, block_j, block_n, num_warps, num_stages, tiles, sum_blocks, *geometry, *sums)


def launch_gram(
    x: torch.Tensor,
    s: torch.Tensor,
    *,
    g: torch.Tensor | None = None,
    other: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    c: torch.Tensor | None = None,
    grad_weight: torch.Tensor | None = None,
    grad_bias: torch.Tensor | None = None,
    ones: bool = True,
    alpha: float = 1.0,
    beta: float = 0.0,
    plan: GramPlan | None = None,
) -> None:
    """``s <- alpha [X 1]'[X 1] + beta c`` and, with ``g``, ``grad_weight <- G'X`` and ``grad_bias <- sum G``.

    Args:
        x: ``[batch, n, d]`` in any strides; ``g`` ``[n, m]``, last stride as of ``x``, and ``weights`` ``[n]`` only
        with ``batch`` 1. Alone, ``x`` may also be ``[batch, images, area, d]`` in planes
        (:func:`lnb_kernels._triton.descriptors.in_planes`).
        s: result ``[batch, size, size]``, ``size = d + ones``, unit stride in the last dimension; ``c`` likewise, may
        be ``s``.
        other: same shape and strides as ``x``; then ``s <- alpha other' X + beta c``, a product known to be symmetric.
        grad_weight, grad_bias: contiguous ``[m, d]`` and ``[m]``, needed with ``g``.
        plan: the launch geometry; None takes :func:`gram_plan`'s.
    """
    from lnb_kernels._triton.gram import gram_kernel

    unit, units = 0, 0
    if x.dim() == 4:  # in place of a matrix the kernel takes images
        unit = plane_unit(x)
        units = x.shape[2] // unit
    batch, n, d = x.shape[0], x.shape[1:-1].numel(), x.shape[-1]
    m = 0 if g is None else g.shape[1]
    arch = arch_of(x.device)
    itemsize = 4 if weights is not None else x.element_size()
    a = g if g is not None else x if other is None else other
    g_samples = a.unsqueeze(0) if a.dim() == 2 else a
    copied = weights is None and d > 1 and arch.bulk_copies and unit == 0
    descriptors = copied and copies_in_blocks(x) and copies_in_blocks(g_samples)
    aligned = loads_take_few_registers(unit == 0 and loads_in_vectors(x), descriptors, arch)
    tail = weights is None  # weighted operands take the registers that a share of the tail needs
    if plan is None:
        plan = gram_plan(n, d, m, itemsize, arch, batch, tail, aligned=aligned)
    sum_blocks = plan.sum_blocks if ones else 0
    cut = plan.tail
    one_tile = plan.tiles == 1 and g is None and other is None
    sum_splits = max(1, plan.partials) if one_tile else plan.sum_splits
    sum_programs = 0 if one_tile else sum_blocks * sum_splits
    staged = plan.partials > 0 or (ones and sum_splits > 1)
    partial = sums = s
    if staged:
        partial = s.new_empty((batch, plan.partials, plan.block_i, plan.block_j), dtype=torch.float32)
        sums = s.new_empty((batch, sum_splits, sum_blocks, plan.block_j), dtype=torch.float32)
    w_or_x = x if weights is None else weights
    out_weight, out_bias = s if grad_weight is None else grad_weight, s if grad_bias is None else grad_bias
    c_or_s = s if c is None else c
    stride_c = x.stride(-1) if d > 1 else a.stride(-1)  # the stride of a dimension of size 1 means nothing
    blocks: tuple[Any, ...] = (x, x, a)
    if descriptors:
        blocks = (
            block_descriptor(x, plan.block_n, plan.block_i),
            block_descriptor(x, plan.block_n, plan.block_j),
            block_descriptor(g_samples, plan.block_n, plan.block_i),
        )
    options: dict[str, int] = {}
    if arch.bulk_copies and plan.staged:
        # Sums of columns, and finishing, take some registers more than two programs of a multiprocessor may have, if not told so.
        together = programs_per_multiprocessor(plan.block_i, plan.block_j, itemsize, True, aligned, arch, one_tile)
        if together * plan.num_warps == 16:
            options["maxnreg"] = 128
        elif one_tile and plan.block_j == 128 and itemsize == 2:
            # Left to itself, the compiler spills a few registers to make room for a second program.
            options["maxnreg"] = 168
    assert batch == 1 or cut.groups == 0, "a tail is for one matrix"
    programs = plan.products + sum_programs
    counted = plan.tiles * plan.tile_counters + sum_blocks
    with on_device(x), arrival_counters(x, batch * counted if staged else 0) as counters:
        gram_kernel[(programs * batch,)](
            x, a, w_or_x, *blocks, s, c_or_s, out_weight, out_bias, partial, sums, counters,
            n, d, m, plan.tiles, sum_blocks, plan.head, plan.splits, plan.samples_per_split, cut.programs,
            cut.share, cut.tiles, cut.shares, cut.pieces, cut.common, plan.partials, sum_splits, plan.samples_per_sum,
            programs, plan.fan, plan.tile_counters, units, alpha, beta,
            x.stride(0), x.stride(1), stride_c, a.stride(-2), w_or_x.stride(0),
            s.stride(0), s.stride(1), c_or_s.stride(0), c_or_s.stride(1),
            HAS_G=g is not None, PAIR=other is not None, HAS_WEIGHTS=weights is not None, HAS_ONES=ones,
            HAS_C=c is not None, STAGE_HEAD=plan.staged, STAGE_SUMS=staged, HAS_TAIL=cut.groups > 0, DESCRIPTORS=descriptors,
            SAMPLES_FIRST=descriptors and side_by_side(x), PLANES=unit, ONE_TILE=one_tile,
            BLOCK_I=plan.block_i, BLOCK_J=plan.block_j, BLOCK_N=plan.block_n, ROWS=FINISH_ROWS, CHUNK=FINISH_CHUNK,
            PRECISION=input_precision(arch), num_warps=plan.num_warps, num_stages=plan.num_stages, **options,
        )  # fmt: skip
