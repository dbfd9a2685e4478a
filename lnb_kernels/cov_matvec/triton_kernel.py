"""Covariance-vector product for few neurons on the GPU: ``X`` is read once.

    out = X~'(X~ v') / N + ridge v        X~ = X or [X 1], v [m, d or d+1]

Tile scheme. A program owns a slice of the samples and takes it slab by slab. For the samples of a slab it forms
``y = x v' + v_b`` (kept in scratch), then adds ``y' x`` to its partial result, chunk by chunk of the features; the
second use of a sample comes from L2, as all slabs in flight fit half of it. :func:`finish_kernel` adds the partial results
in a fixed order, divides by ``N`` and regularises. Products run in tf32 arithmetic (16-bit ``x`` is exact in it) under
the precision of :mod:`lnb_kernels._triton.precision`.

Bytes: ``N d size`` from memory; from L2 ``2 N d size``, and ``8 m d`` per slab for the partial result; ``4 splits m d``
to finish. FLOPs: ``4 N d m`` with ``m`` rounded up to a power of two. Many neurons, or samples too wide for slabs, go to
two plain products (:func:`lnb_kernels._triton.crossover.fused_matvec_pays`).
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from lnb_kernels._triton.arch import Arch, arch_of
from lnb_kernels._triton.crossover import fused_matvec_pays, power_of_two
from lnb_kernels._triton.gram_launch import MAX_SAMPLES
from lnb_kernels._triton.launch import compiles_or_unavailable, on_device
from lnb_kernels._triton.offsets import offset64
from lnb_kernels._triton.precision import input_precision
from lnb_kernels.cov_matvec import reference

PROGRAMS = 2  # per multiprocessor: enough loads in flight to reach the rate of memory


@triton.jit
def cov_matvec_kernel(
    x_ptr, v_ptr, partial_ptr, y_ptr, n_samples, m, d, size, samples_per_split, slab, stride_xr, stride_xc, stride_v,
    BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Partial ``X~'(X~ v')`` of one slice of the samples; grid ``(splits,)``.

    ``partial`` ``[splits, m, size]``, scratch ``y`` ``[splits, slab, BLOCK_M]``, fp32; ``slab`` a multiple of
    ``BLOCK_N``.
    """
    split = tl.program_id(0)
    start = split * samples_per_split
    stop = start + tl.minimum(samples_per_split, n_samples - start)
    neuron = tl.arange(0, BLOCK_M)
    lane = tl.arange(0, BLOCK_N)
    chunk = tl.arange(0, BLOCK_C)
    v_base = v_ptr + offset64(neuron, stride_v)
    out = partial_ptr + offset64(split, m * size) + neuron * size
    y_ptrs = y_ptr + offset64(split, slab * BLOCK_M) + lane[:, None] * BLOCK_M + neuron[None, :]
    bias = tl.zeros((BLOCK_M,), tl.float32)
    if BIAS:
        bias = tl.load(v_base + d, mask=neuron < m, other=0.0).to(tl.float32)
    acc_bias = tl.zeros((BLOCK_M,), tl.float32)
    for first in range(start, stop, slab):
        samples = tl.minimum(slab, stop - first)
        for sample in range(0, samples, BLOCK_N):
            live = lane < samples - sample
            x_samples = x_ptr + offset64(first + sample + lane, stride_xr)
            # A sample that is not there still has the bias: its y is set to zero.
            y = tl.where(live[:, None], bias[None, :], 0.0)  # [BLOCK_N, BLOCK_M]
            for col in range(0, d, BLOCK_C):
                cols = col + chunk
                mask = live[:, None] & (cols < d)[None, :]
                x = tl.load(x_samples[:, None] + offset64(cols, stride_xc)[None, :], mask=mask, other=0.0)
                v = tl.load(
                    v_base[None, :] + cols[:, None], mask=(neuron < m)[None, :] & (cols < d)[:, None], other=0.0
                )
                y = tl.dot(x.to(tl.float32), v.to(tl.float32), y, input_precision=PRECISION)
            acc_bias += tl.sum(y, 0)
            tl.store(y_ptrs + sample * BLOCK_M, y)
        tl.debug_barrier()  # y was written by other threads of this program
        for col in range(0, d, BLOCK_C):
            cols = col + chunk
            out_mask = (neuron < m)[:, None] & (cols < d)[None, :]
            acc = tl.load(out[:, None] + cols[None, :], mask=out_mask & (first > start), other=0.0)
            for sample in range(0, samples, BLOCK_N):
                mask = (lane < samples - sample)[:, None] & (cols < d)[None, :]
                x_samples = x_ptr + offset64(first + sample + lane, stride_xr)
                x = tl.load(x_samples[:, None] + offset64(cols, stride_xc)[None, :], mask=mask, other=0.0)
                y = tl.load(y_ptrs + sample * BLOCK_M)
                acc = tl.dot(tl.trans(y), x.to(tl.float32), acc, input_precision=PRECISION)
            tl.store(out[:, None] + cols[None, :], acc, mask=out_mask)
        tl.debug_barrier()  # y is overwritten next
    if BIAS:
        tl.store(out + d, acc_bias, mask=neuron < m)


@triton.jit
def finish_kernel(
    out_ptr, v_ptr, partial_ptr, splits, m, d, size, inverse_count, ridge, stride_v,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """``out = inverse_count * sum over splits + ridge v``, no ridge on the bias; grid ``(blocks of BLOCK elements, groups)``.

    ``partial`` ``[groups, splits, m, size]``; ``out`` ``[groups m, size]`` contiguous; ``v`` likewise with a row stride.
    """
    group = tl.program_id(1)
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = element < m * size
    chunk = tl.arange(0, CHUNK)
    total = tl.zeros((BLOCK,), tl.float32)
    for split in range(0, splits, CHUNK):
        slots = offset64(group, splits) + split + chunk
        ptrs = partial_ptr + offset64(slots, m * size)[:, None] + element[None, :]
        total += tl.sum(tl.load(ptrs, mask=(split + chunk < splits)[:, None] & live[None, :], other=0.0), 0)
    row, col = element // size, element % size
    v = tl.load(v_ptr + offset64(group * m + row, stride_v) + col, mask=live, other=0.0).to(tl.float32)
    value = total * inverse_count + tl.where(col < d, ridge, 0.0) * v
    tl.store(out_ptr + offset64(group, m * size) + element, value.to(out_ptr.dtype.element_ty), mask=live)


def tile_config(d: int, m: int) -> tuple[int, int, int]:
    """``(block_m, block_c, block_n)``: more neurons take fewer samples, so that operands in three tf32 parts fit registers."""
    block_m = power_of_two(m)
    return block_m, min(power_of_two(d), 32), 64 if block_m == 16 else 32


def slab_samples(d: int, itemsize: int, block_n: int, arch: Arch) -> int:
    """Samples that a program uses twice in succession: all programs' slabs fill half of L2, at most 512 samples."""
    fitting = arch.l2_bytes // (2 * PROGRAMS * arch.multiprocessors * d * itemsize)
    return max(1, min(512, fitting) // block_n) * block_n


def split_samples(n: int, block_n: int, groups: int, arch: Arch) -> tuple[int, int]:
    """``(splits, samples_per_split)``: ``PROGRAMS`` slices per multiprocessor over all groups, but none of less than 4 blocks."""
    wanted = max(1, min(math.ceil(n / (4 * block_n)), math.ceil(PROGRAMS * arch.multiprocessors / groups)))
    samples_per_split = math.ceil(math.ceil(n / wanted) / block_n) * block_n
    return math.ceil(n / samples_per_split), samples_per_split


def finish(partial: torch.Tensor, v: torch.Tensor, d: int, count: int, ridge: float) -> torch.Tensor:
    """Add ``partial`` ``[groups, splits, m, size]`` into a result of the shape ``[groups m, size]`` and dtype of ``v``."""
    groups, splits, m, size = partial.shape
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    finish_kernel[(triton.cdiv(m * size, 128), groups)](
        out, v, partial, splits, m, d, size, 1.0 / count, float(ridge), v.stride(0), BLOCK=128, CHUNK=16, num_warps=4
    )
    return out


@compiles_or_unavailable("cov_matvec")
def cov_matvec(x: torch.Tensor, v: torch.Tensor, ridge: float = 0.0) -> torch.Tensor:
    """``(X~'X~ / N + ridge diag(1..1, 0)) v`` for ``x`` ``[.., d]`` and ``v`` ``[.., d or d+1]``."""
    n, d, size = x.shape[:-1].numel(), x.shape[-1], v.shape[-1]
    m = v.shape[:-1].numel()
    if v.dtype == torch.float64 or not 0 < n <= MAX_SAMPLES or d == 0 or not fused_matvec_pays(d, m):
        return reference.cov_matvec(x, v, ridge)
    samples, vectors = x.reshape(n, d), v.reshape(m, size).contiguous()
    arch = arch_of(x.device)
    block_m, block_c, block_n = tile_config(d, m)
    slab = slab_samples(d, x.element_size(), block_n, arch)
    splits, samples_per_split = split_samples(n, block_n, 1, arch)
    partial = x.new_empty((1, splits, m, size), dtype=torch.float32)
    y = x.new_empty((splits, slab, block_m), dtype=torch.float32)
    with on_device(x):
        cov_matvec_kernel[(splits,)](
            samples, vectors, partial, y, n, m, d, size, samples_per_split, slab, *samples.stride(), vectors.stride(0),
            BIAS=size > d, BLOCK_M=block_m, BLOCK_C=block_c, BLOCK_N=block_n, PRECISION=input_precision(arch),
            num_warps=4 if block_m == 16 else 8, num_stages=3,
        )  # fmt: skip
        return finish(partial, vectors, d, n, ridge).view(v.shape)
