"""What both Triton forms of conjugate gradients share: the equation as kernels take it, and operations on vectors of rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lnb_kernels._triton.offsets import offset64


class Equation:
    """Tensors and sizes of one solve, as the kernels take them."""

    def __init__(
        self,
        s: torch.Tensor,
        g: torch.Tensor,
        h0: torch.Tensor | None,
        arrow: tuple[torch.Tensor, torch.Tensor] | None,
        batch: int,
        m: int,
        d: int,
        size: int,
        iterations: int,
        ridge: float,
    ) -> None:
        self.s, self.g, self.h0 = s, g, h0
        self.mu, self.var = (g, g) if arrow is None else arrow  # never read without an arrow
        self.arrow = arrow is not None
        self.batch, self.m, self.d, self.size = batch, m, d, size
        self.iterations, self.ridge = iterations, ridge


@triton.jit
def product_tile(
    v_ptr, p_ptr, beta, s_ptr, col, left, size, inverse_count, stride_s,
    COMBINE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``(v S / N)[:, cols]`` of the first ``BLOCK_M`` of ``left`` rows, or of ``v + beta p`` with ``COMBINE``."""
    lane = tl.arange(0, BLOCK_M)
    cols = col + tl.arange(0, BLOCK_C)
    k_lane = tl.arange(0, BLOCK_K)
    inner = lane[:, None] * size + k_lane[None, :]
    s_ptrs = s_ptr + offset64(k_lane, stride_s)[:, None] + cols[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for k in range(0, size, BLOCK_K):
        live = k_lane < size - k
        mask = (lane < left)[:, None] & live[None, :]
        v = tl.load(v_ptr + inner + k, mask=mask, other=0.0)
        if COMBINE:
            v += beta[:, None] * tl.load(p_ptr + inner + k, mask=mask, other=0.0)
        s = tl.load(s_ptrs, mask=live[:, None] & (cols < size)[None, :], other=0.0)
        acc = tl.dot(v, s, acc, input_precision=PRECISION)
        s_ptrs += offset64(BLOCK_K, stride_s)
    return acc * inverse_count


@triton.jit
def inverse_count_of(s_ptr, d, stride_s):
    """``1 / N``, ``N`` the last entry of ``S``; 1 for an ``S`` without samples."""
    count = tl.load(s_ptr + offset64(d, stride_s) + d)
    return 1.0 / tl.where(count == 0.0, 1.0, count)


@triton.jit
def solve_chunk(r, cols, offset, solved, mu_ptr, var_ptr, d, ARROW: tl.constexpr, BIAS: tl.constexpr):
    """A chunk of columns of ``z = P r``; ``offset`` and ``solved`` are the bias entries of ``r`` and ``z``."""
    z = r
    if ARROW:
        mu = tl.load(mu_ptr + cols, mask=cols < d, other=0.0)[None, :]
        var = tl.load(var_ptr + cols, mask=cols < d, other=1.0)[None, :]
        if BIAS:  # noqa: SIM108 - a constant of the compiler
            z = tl.where((cols == d)[None, :], solved[:, None], (r - mu * offset[:, None]) / var)
        else:
            z = r / (var + mu * mu)
    return z


@triton.jit
def solve_sums(
    r_ptr, left, size, mu_ptr, var_ptr, d,
    ARROW: tl.constexpr, BIAS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """``(bias of r, bias of z, <r, z>)`` of each row, ``z = P r``: the sums over features that ``P`` needs."""
    lane = tl.arange(0, BLOCK_M)
    live = lane < left
    base = r_ptr + lane * size
    offset = tl.zeros((BLOCK_M,), tl.float32)
    if BIAS:
        offset = tl.load(base + d, mask=live, other=0.0)
    coupled = tl.zeros((BLOCK_M,), tl.float32)
    rz = tl.zeros((BLOCK_M,), tl.float32)
    for col in range(0, size, BLOCK_C):
        cols = col + tl.arange(0, BLOCK_C)
        r = tl.load(base[:, None] + cols[None, :], mask=live[:, None] & (cols < size)[None, :], other=0.0)
        z = solve_chunk(r, cols, offset, offset, mu_ptr, var_ptr, d, ARROW, BIAS)
        if ARROW and BIAS:
            mu = tl.load(mu_ptr + cols, mask=cols < d, other=0.0)[None, :]
            coupled += tl.sum(mu * z, 1)
            z = tl.where((cols == d)[None, :], 0.0, z)  # the bias entry is added below
        rz += tl.sum(r * z, 1)
    solved = offset - coupled
    if ARROW and BIAS:
        rz += offset * solved
    return offset, solved, rz


@triton.jit
def step_of(rz, pap, rr, gg, STOP: tl.constexpr):
    """``alpha`` and whether the unit is still active."""
    active = (tl.sqrt(rr) > STOP * tl.sqrt(gg)) & (pap > 0.0)
    return tl.where(active, rz / tl.where(active, pap, 1.0), 0.0), active
