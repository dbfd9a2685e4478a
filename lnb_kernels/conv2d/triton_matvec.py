"""Covariance-vector product of a convolution with few output channels on the GPU, by implicit im2col.

    out = P~'(P~ v') / N + ridge v        P~: patches [p] or [p 1] of one group, v [m, D or D+1]

The scheme of :mod:`lnb_kernels.cov_matvec.triton_kernel` with samples gathered from the image
(:func:`lnb_kernels._triton.patches.patch_tile`): a program takes its slice of the positions slab by slab, forms
``y = p v' + v_b``, then adds ``y' p`` to its partial result. The image is read from memory once, where a convolution and
its weight gradient read it twice, and ``y`` once more, and it is never copied to float32 or padded.

FLOPs ``4 N D m`` per group with ``m`` rounded up to 16; bytes from memory the image, from L1 and L2 ``2 N D`` gathered
elements. Many channels go to the convolution (:func:`lnb_kernels._triton.crossover.fused_matvec_pays`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lnb_kernels._triton.arch import arch_of
from lnb_kernels._triton.launch import on_device
from lnb_kernels._triton.offsets import offset64
from lnb_kernels._triton.patches import patch_tile
from lnb_kernels._triton.precision import input_precision
from lnb_kernels.conv2d.geometry import Geometry
from lnb_kernels.conv2d.triton_patches import patch_arguments
from lnb_kernels.cov_matvec.triton_kernel import finish, slab_samples, split_samples, tile_config


@triton.jit
def patch_matvec_kernel(
    x_ptr, v_ptr, partial_ptr, y_ptr, n_positions, m, d, size, samples_per_split, slab, group_stride, stride_v,
    height, width, out_area, out_width, stride_n, stride_c, stride_y, stride_x,
    step_y, step_x, pad_top, pad_left, dilation_y, dilation_x,
    KH: tl.constexpr, KW: tl.constexpr, BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Partial ``P~'(P~ v')`` of one slice of the positions of one group; grid ``(splits, groups)``.

    ``partial`` ``[groups, splits, m, size]``, scratch ``y`` ``[groups, splits, slab, BLOCK_M]``, fp32; ``m`` neurons of
    one group; ``slab`` a multiple of ``BLOCK_N``.
    """
    split = tl.program_id(0)
    group = tl.program_id(1)
    slot = group * tl.num_programs(0) + split
    start = split * samples_per_split
    stop = start + tl.minimum(samples_per_split, n_positions - start)
    neuron = tl.arange(0, BLOCK_M)
    lane = tl.arange(0, BLOCK_N)
    chunk = tl.arange(0, BLOCK_C)
    x_ptr += offset64(group, group_stride)
    v_base = v_ptr + offset64(group * m + neuron, stride_v)
    out = partial_ptr + offset64(slot, m * size) + neuron * size
    y_ptrs = y_ptr + offset64(slot, slab * BLOCK_M) + lane[:, None] * BLOCK_M + neuron[None, :]
    bias = tl.zeros((BLOCK_M,), tl.float32)
    if BIAS:
        bias = tl.load(v_base + d, mask=neuron < m, other=0.0).to(tl.float32)
    acc_bias = tl.zeros((BLOCK_M,), tl.float32)
    for first in range(start, stop, slab):
        last = first + tl.minimum(slab, stop - first)
        for position in range(first, last, BLOCK_N):
            # A position that is not there still has the bias: its y is set to zero.
            y = tl.where((position + lane < last)[:, None], bias[None, :], 0.0)  # [BLOCK_N, BLOCK_M]
            for col in range(0, d, BLOCK_C):
                cols = col + chunk
                p = patch_tile(
                    x_ptr, position + lane, last, cols, d, height, width, out_area, out_width,
                    stride_n, stride_c, stride_y, stride_x, step_y, step_x, pad_top, pad_left, dilation_y, dilation_x, KH, KW,
                )  # fmt: skip
                v_mask = (neuron < m)[None, :] & (cols < d)[:, None]
                v = tl.load(v_base[None, :] + cols[:, None], mask=v_mask, other=0.0)
                y = tl.dot(p.to(tl.float32), v.to(tl.float32), y, input_precision=PRECISION)
            acc_bias += tl.sum(y, 0)
            tl.store(y_ptrs + (position - first) * BLOCK_M, y)
        tl.debug_barrier()  # y was written by other threads of this program
        for col in range(0, d, BLOCK_C):
            cols = col + chunk
            out_mask = (neuron < m)[:, None] & (cols < d)[None, :]
            acc = tl.load(out[:, None] + cols[None, :], mask=out_mask & (first > start), other=0.0)
            for position in range(first, last, BLOCK_N):
                p = patch_tile(
                    x_ptr, position + lane, last, cols, d, height, width, out_area, out_width,
                    stride_n, stride_c, stride_y, stride_x, step_y, step_x, pad_top, pad_left, dilation_y, dilation_x, KH, KW,
                )  # fmt: skip
                y = tl.load(y_ptrs + (position - first) * BLOCK_M)
                acc = tl.dot(tl.trans(y), p.to(tl.float32), acc, input_precision=PRECISION)
            tl.store(out[:, None] + cols[None, :], acc, mask=out_mask)
        tl.debug_barrier()  # y is overwritten next
    if BIAS:
        tl.store(out + d, acc_bias, mask=neuron < m)


def matvec_by_patches(x: torch.Tensor, v: torch.Tensor, ridge: float, conv: Geometry) -> torch.Tensor:
    """``(P~'P~ / N + ridge diag(1..1, 0)) v`` for ``x`` ``[B, C, H, W]`` in any strides and ``v`` ``[groups m, D or D+1]``."""
    batch, channels, height, width = x.shape
    out_height, out_width = conv.output(height, width)
    n, d, groups = batch * out_height * out_width, conv.features(channels), conv.groups
    m, size = v.shape[0] // groups, v.shape[1]
    vectors = v.contiguous()
    arch = arch_of(x.device)
    block_m, block_c, block_n = tile_config(d, m)
    # A pixel serves as many positions as the kernel has taps: a slab of them is that much smaller than its patches.
    slab = slab_samples(max(1, channels // groups), x.element_size(), block_n, arch)
    splits, samples_per_split = split_samples(n, block_n, groups, arch)
    partial = x.new_empty((groups, splits, m, size), dtype=torch.float32)
    y = x.new_empty((groups, splits, slab, block_m), dtype=torch.float32)
    with on_device(x):
        patch_matvec_kernel[(splits, groups)](
            x, vectors, partial, y, n, m, d, size, samples_per_split, slab, channels // groups * x.stride(1), vectors.stride(0),
            *patch_arguments(x, conv), KH=conv.kernel[0], KW=conv.kernel[1], BIAS=size > d,
            BLOCK_M=block_m, BLOCK_C=block_c, BLOCK_N=block_n, PRECISION=input_precision(arch), num_warps=4, num_stages=2,
        )  # fmt: skip
        return finish(partial, vectors, d, n, ridge)
