"""Launch configurations of the Gram kernel by shape, dtype and architecture, and the launch itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from lnb_kernels._triton.arch import Arch, arch_of
from lnb_kernels._triton.launch import on_device
from lnb_kernels._triton.precision import input_precision

WORKSPACE_BYTES = 256 << 20  # splits are limited so that partial tiles never take more
MAX_ROWS = (1 << 31) - (1 << 16)  # of one launch: row counters are int32, offsets int64


@dataclass(frozen=True)
class GramPlan:
    """Geometry of one launch; ``tiles`` counts tiles of ``G'X`` and lower tiles of ``S``."""

    block_d: int
    block_n: int
    num_warps: int
    num_stages: int
    d_blocks: int
    g_blocks: int
    splits: int
    rows_per_split: int
    finish_rows: int
    finish_chunk: int

    @property
    def tiles(self) -> int:
        """Product tiles of one split of one matrix."""
        return self.d_blocks * (self.d_blocks + 1) // 2 + self.g_blocks * self.d_blocks

    @property
    def parts(self) -> int:
        """Finishing programs of one tile."""
        return self.block_d // self.finish_rows


def tile_config(d: int, itemsize: int, arch: Arch) -> tuple[int, int, int, int]:
    """``(block_d, block_n, num_warps, num_stages)``, the shipped configurations of the product loop.

    128 x 128 tiles keep 64 accumulators per thread (8 warps) and use each loaded row 128 times, which is what the
    tensor
    cores need against L2; a smaller matrix gets the next power of two. The depth of the pipeline is what lets two
    programs share a
    multiprocessor, at most 4; on AMD 2, as its loads are pipelined through registers.
    """
    block_d = min(128, max(16, 1 << (d - 1).bit_length()))
    block_n = 64 if itemsize == 2 else 32
    if block_d == 128 and arch.name == "sm_80":
        block_n //= 2
    num_warps = {16: 1, 32: 2, 64: 4, 128: 8}[block_d]
    if arch.name == "gfx942":
        return block_d, block_n, num_warps, 2
    stage_bytes = 2 * block_n * block_d * itemsize
    return block_d, block_n, num_warps, max(2, min(4, arch.shared_bytes // (2 * stage_bytes)))


def _split_rows(n: int, tiles: int, batch: int, block_d: int, block_n: int, arch: Arch) -> tuple[int, int]:
    """``(splits, rows_per_split)``: the number of splits whose predicted time is least.

    In units of the time of one ``block_n`` step of one tile: ``waves * steps per split`` for the products, plus
    reading and
    writing each partial tile, ``8 block_d^2`` bytes against ``4 block_d block_n`` per step, by all multiprocessors
    together.
    """
    steps = max(1, math.ceil(n / block_n))
    slots = arch.multiprocessors * (2 if block_d == 128 else 4)
    limit = max(1, WORKSPACE_BYTES // (4 * block_d * block_d * tiles * batch))
    best = (math.inf, 1)
    for splits in range(1, min(steps, limit, max(1, 8 * slots // (tiles * batch))) + 1):
        programs = tiles * batch * splits
        time: float = math.ceil(programs / slots) * (math.ceil(steps / splits) + 4)
        if splits > 1:
            time += 2 * block_d / block_n * programs / slots + 8
        best = min(best, (time, splits))
    rows_per_split = math.ceil(steps / best[1]) * block_n
    return max(1, math.ceil(n / rows_per_split)), rows_per_split


def gram_plan(n: int, d: int, m: int, itemsize: int, arch: Arch, batch: int = 1, max_block: int = 128) -> GramPlan:
    """The launch of ``[G | X 1]'X`` for ``X`` ``[n, d]``, ``G`` ``[n, m]`` (``m`` 0: none), ``batch`` matrices ``X``."""
    block_d, block_n, num_warps, num_stages = tile_config(min(d, max_block), itemsize, arch)
    d_blocks, g_blocks = math.ceil(d / block_d), math.ceil(m / block_d)
    tiles = d_blocks * (d_blocks + 1) // 2 + g_blocks * d_blocks
    splits, rows_per_split = _split_rows(n, tiles, batch, block_d, block_n, arch)
    finish_rows = block_d
    while finish_rows > 1 and tiles * batch * (block_d // finish_rows) < 2 * arch.multiprocessors:
        finish_rows //= 2
    finish_rows = min(finish_rows, 16)
    chunk = max(1, min(16, 2048 // (finish_rows * block_d), 1 << (splits - 1).bit_length()))
    return GramPlan(
        block_d, block_n, num_warps, num_stages, d_blocks, g_blocks, splits, rows_per_split, finish_rows, chunk
    )


def launch_gram(
    x: torch.Tensor,
    s: torch.Tensor,
    *,
    g: torch.Tensor | None = None,
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
        with ``batch`` 1.
        s: result ``[batch, size, size]``, ``size = d + ones``, unit stride in the last dimension; ``c`` likewise, may
        be ``s``.
        grad_weight, grad_bias: contiguous ``[m, d]`` and ``[m]``, needed with ``g``.
        plan: the launch geometry; None takes :func:`gram_plan`'s.
    """
    from lnb_kernels._triton.gram import gram_finish_kernel, gram_kernel

    batch, n, d = x.shape
    m = 0 if g is None else g.shape[1]
    arch = arch_of(x.device)
    itemsize = 4 if weights is not None else x.element_size()
    plan = gram_plan(n, d, m, itemsize, arch, batch) if plan is None else plan
    sum_blocks = plan.g_blocks + math.ceil((d + 1) / plan.block_d) if ones else 0
    split = plan.splits > 1
    partial = sums = s
    if split:
        partial = s.new_empty((batch, plan.splits, plan.tiles, plan.block_d, plan.block_d), dtype=torch.float32)
        sums = s.new_empty((batch, plan.splits, sum_blocks, plan.block_d), dtype=torch.float32)
    g_or_x = x[0] if g is None else g
    w_or_x = x[0, :, 0] if weights is None else weights
    out_weight, out_bias = s if grad_weight is None else grad_weight, s if grad_bias is None else grad_bias
    c_or_s = s if c is None else c
    stride_c = x.stride(2) if d > 1 else g_or_x.stride(1)  # the stride of a dimension of size 1 means nothing
    with on_device(x):
        gram_kernel[(plan.tiles + sum_blocks, plan.splits, batch)](
            x, g_or_x, w_or_x, s, c_or_s, out_weight, out_bias, partial, sums,
            n, d, m, plan.tiles, plan.rows_per_split, alpha, beta,
            x.stride(0), x.stride(1), stride_c, g_or_x.stride(0), w_or_x.stride(0),
            s.stride(0), s.stride(1), c_or_s.stride(0), c_or_s.stride(1),
            HAS_G=g is not None, HAS_WEIGHTS=weights is not None, HAS_ONES=ones, HAS_C=c is not None, SPLIT=split,
            BLOCK_D=plan.block_d, BLOCK_N=plan.block_n, PRECISION=input_precision(arch),
            num_warps=plan.num_warps, num_stages=plan.num_stages,
        )  # fmt: skip
        if split:
            gram_finish_kernel[(plan.tiles * plan.parts + sum_blocks, batch)](
                s, c_or_s, out_weight, out_bias, partial, sums,
                d, m, plan.tiles, sum_blocks, plan.splits, alpha, beta,
                s.stride(0), s.stride(1), c_or_s.stride(0), c_or_s.stride(1),
                HAS_G=g is not None, HAS_C=c is not None,
                BLOCK_D=plan.block_d, ROWS=plan.finish_rows, CHUNK=plan.finish_chunk, num_warps=4,
            )  # fmt: skip
