"""Conjugate gradients in one launch: a program makes all iterations of its rows, one ``alpha`` and ``beta`` per row.

A program's vectors live in a scratch buffer that stays in L1/L2, and a barrier of the program orders the phases. Per
iteration and program: ``2 BLOCK_M size^2`` FLOPs and ``4 size^2`` bytes of ``S`` from L2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lnb_kernels._triton.arch import Arch
from lnb_kernels._triton.offsets import offset64
from lnb_kernels._triton.precision import input_precision
from lnb_kernels.pcg import reference
from lnb_kernels.pcg.triton_vectors import Equation, inverse_count_of, product_tile, solve_chunk, solve_sums, step_of

ROWS = 16  # of one program: more of them spill registers


@triton.jit
def pcg_rows_kernel(
    s_ptr, g_ptr, h0_ptr, mu_ptr, var_ptr, h_ptr, r_ptr, p_ptr, ap_ptr, norms_ptr,
    m, d, size, iterations, batch_rows, ridge, stride_sb, stride_s,
    HAS_H0: tl.constexpr, ARROW: tl.constexpr, BIAS: tl.constexpr, STOP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All iterations of ``BLOCK_M`` rows, one ``alpha`` and ``beta`` per row; grid ``(row blocks, batch)``.

    ``g, h0, h, r, p, ap``: ``[batch, m, size]`` fp32 contiguous; ``norms`` ``[iterations + 1, batch m]``; ``mu, var``
    ``[batch, d]``.
    """
    row = tl.program_id(0) * BLOCK_M
    batch = tl.program_id(1)
    lane = tl.arange(0, BLOCK_M)
    left = m - row
    live = lane < left
    s_ptr += offset64(batch, stride_sb)
    mu_ptr += offset64(batch, d)
    var_ptr += offset64(batch, d)
    first = offset64(offset64(batch, m) + row, size)  # every vector from the first row of this program on
    g_ptr += first
    h0_ptr += first
    h_ptr += first
    r_ptr += first
    p_ptr += first
    ap_ptr += first
    norms_ptr += offset64(batch, m) + row + lane
    offsets = lane[:, None] * size
    inverse_count = inverse_count_of(s_ptr, d, stride_s)
    zeros = tl.zeros((BLOCK_M,), tl.float32)
    gg = zeros
    rr = zeros
    for col in range(0, size, BLOCK_C):
        cols = col + tl.arange(0, BLOCK_C)
        mask = live[:, None] & (cols < size)[None, :]
        inner = offsets + cols[None, :]
        g = tl.load(g_ptr + inner, mask=mask, other=0.0)
        gg += tl.sum(g * g, 1)
        h = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
        r = g
        if HAS_H0:
            h = tl.load(h0_ptr + inner, mask=mask, other=0.0)
            r -= product_tile(
                h0_ptr, h0_ptr, zeros, s_ptr, col, left, size, inverse_count, stride_s,
                False, BLOCK_M, BLOCK_C, BLOCK_K, PRECISION,
            ) + tl.where((cols < d)[None, :], ridge, 0.0) * h  # fmt: skip
        rr += tl.sum(r * r, 1)
        tl.store(h_ptr + inner, h, mask=mask)
        tl.store(r_ptr + inner, r, mask=mask)
    tl.store(norms_ptr, tl.sqrt(rr), mask=live)
    tl.debug_barrier()
    offset, solved, rz = solve_sums(r_ptr, left, size, mu_ptr, var_ptr, d, ARROW, BIAS, BLOCK_M, BLOCK_C)
    beta = zeros
    for k in range(iterations):
        for col in range(0, size, BLOCK_C):
            cols = col + tl.arange(0, BLOCK_C)
            mask = live[:, None] & (cols < size)[None, :]
            inner = offsets + cols[None, :]
            r = tl.load(r_ptr + inner, mask=mask, other=0.0)
            p = solve_chunk(r, cols, offset, solved, mu_ptr, var_ptr, d, ARROW, BIAS)
            p += beta[:, None] * tl.load(p_ptr + inner, mask=mask & (k > 0), other=0.0)
            tl.store(p_ptr + inner, p, mask=mask)
        tl.debug_barrier()
        pap = zeros
        for col in range(0, size, BLOCK_C):
            cols = col + tl.arange(0, BLOCK_C)
            mask = live[:, None] & (cols < size)[None, :]
            inner = offsets + cols[None, :]
            p = tl.load(p_ptr + inner, mask=mask, other=0.0)
            ap = product_tile(
                p_ptr, p_ptr, zeros, s_ptr, col, left, size, inverse_count, stride_s,
                False, BLOCK_M, BLOCK_C, BLOCK_K, PRECISION,
            ) + tl.where((cols < d)[None, :], ridge, 0.0) * p  # fmt: skip
            pap += tl.sum(p * ap, 1)
            tl.store(ap_ptr + inner, ap, mask=mask)
        tl.debug_barrier()
        alpha, active = step_of(rz, pap, rr, gg, STOP)
        rr = zeros
        for col in range(0, size, BLOCK_C):
            cols = col + tl.arange(0, BLOCK_C)
            mask = live[:, None] & (cols < size)[None, :]
            inner = offsets + cols[None, :]
            h = tl.load(h_ptr + inner, mask=mask, other=0.0)
            r = tl.load(r_ptr + inner, mask=mask, other=0.0)
            h += alpha[:, None] * tl.load(p_ptr + inner, mask=mask, other=0.0)
            r -= alpha[:, None] * tl.load(ap_ptr + inner, mask=mask, other=0.0)
            rr += tl.sum(r * r, 1)
            tl.store(h_ptr + inner, h, mask=mask)
            tl.store(r_ptr + inner, r, mask=mask)
        norms_ptr += batch_rows
        tl.store(norms_ptr, tl.sqrt(rr), mask=live)
        tl.debug_barrier()
        rz_old = rz
        offset, solved, rz = solve_sums(r_ptr, left, size, mu_ptr, var_ptr, d, ARROW, BIAS, BLOCK_M, BLOCK_C)
        beta = tl.where(active, rz / tl.where(active, rz_old, 1.0), 0.0)


def by_rows(equation: Equation, arch: Arch) -> tuple[torch.Tensor, torch.Tensor]:
    """All iterations in one launch, scope "neuron"."""
    h, r, p, ap = (torch.empty_like(equation.g) for _ in range(4))
    norms = equation.g.new_empty((equation.iterations + 1, equation.batch * equation.m))
    pcg_rows_kernel[(triton.cdiv(equation.m, ROWS), equation.batch)](
        equation.s, equation.g, equation.g if equation.h0 is None else equation.h0, equation.mu, equation.var, h, r, p, ap, norms,
        equation.m, equation.d, equation.size, equation.iterations, equation.batch * equation.m, equation.ridge,
        equation.s.stride(0), equation.s.stride(1),
        HAS_H0=equation.h0 is not None, ARROW=equation.arrow, BIAS=equation.size > equation.d, STOP=reference.STOP,
        BLOCK_M=ROWS, BLOCK_C=32, BLOCK_K=32, PRECISION=input_precision(arch), num_warps=4, num_stages=2,
    )  # fmt: skip
    return h, norms
