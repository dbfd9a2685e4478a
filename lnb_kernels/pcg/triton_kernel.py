"""Preconditioned conjugate gradients on a second moment, on the GPU.

For rows ``g`` of ``[m, size]``, ``A = S / N + ridge diag(1..1, 0)`` and the arrow preconditioner ``P``
(:func:`lnb_kernels.arrow_solve`), fused into the vector work:

    ap = p A,  alpha = <r, z> / <p, ap>,  h += alpha p,  r -= alpha ap,
    z = P r,   beta = <r, z> / <r, z>_old,  p = z + beta p

*One launch* (scope "neuron"): given ``S``, rows do not depend on each other. A program owns ``BLOCK_M`` rows and runs
all iterations; its vectors live in a scratch buffer that stays in L1/L2, and a barrier of the program orders the
phases. Per iteration and program: ``2 BLOCK_M size^2`` FLOPs and ``4 size^2`` bytes of ``S`` from L2.

*Two phases* (both scopes): a product kernel over tiles of ``ap``, which forms ``p`` on the fly and writes partial
``<p, ap>``, and an update kernel over blocks of rows, which adds these in a fixed order. Two launches per iteration,
``2 m size^2`` FLOPs spread over the whole GPU. :func:`one_launch_pays` is the crossover.

Units that are done are switched off by ``alpha = 0``, never by a branch; results are deterministic.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from lnb_kernels._checks import accumulation_dtype
from lnb_kernels._triton.arch import Arch, arch_of
from lnb_kernels._triton.launch import compiles_or_unavailable, on_device
from lnb_kernels._triton.offsets import offset64
from lnb_kernels._triton.precision import input_precision
from lnb_kernels.pcg import reference

ROWS = 16  # of one program of the one-launch kernel: more of them spill registers
LAUNCH_SECONDS = 4e-6  # of a dependent launch, for the crossover


@triton.jit
def _product(
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
def _inverse_count(s_ptr, d, stride_s):
    """``1 / N``, ``N`` the last entry of ``S``; 1 for an ``S`` of no rows."""
    count = tl.load(s_ptr + offset64(d, stride_s) + d)
    return 1.0 / tl.where(count == 0.0, 1.0, count)


@triton.jit
def _solve_chunk(r, cols, offset, solved, mu_ptr, var_ptr, d, ARROW: tl.constexpr, BIAS: tl.constexpr):
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
def _solve_sums(
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
        z = _solve_chunk(r, cols, offset, offset, mu_ptr, var_ptr, d, ARROW, BIAS)
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
def _step(rz, pap, rr, gg, STOP: tl.constexpr):
    """``alpha`` and whether the unit is still active."""
    active = (tl.sqrt(rr) > STOP * tl.sqrt(gg)) & (pap > 0.0)
    return tl.where(active, rz / tl.where(active, pap, 1.0), 0.0), active


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
    inverse_count = _inverse_count(s_ptr, d, stride_s)
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
            r -= _product(
                h0_ptr, h0_ptr, zeros, s_ptr, col, left, size, inverse_count, stride_s,
                False, BLOCK_M, BLOCK_C, BLOCK_K, PRECISION,
            ) + tl.where((cols < d)[None, :], ridge, 0.0) * h  # fmt: skip
        rr += tl.sum(r * r, 1)
        tl.store(h_ptr + inner, h, mask=mask)
        tl.store(r_ptr + inner, r, mask=mask)
    tl.store(norms_ptr, tl.sqrt(rr), mask=live)
    tl.debug_barrier()
    offset, solved, rz = _solve_sums(r_ptr, left, size, mu_ptr, var_ptr, d, ARROW, BIAS, BLOCK_M, BLOCK_C)
    beta = zeros
    for k in range(iterations):
        for col in range(0, size, BLOCK_C):
            cols = col + tl.arange(0, BLOCK_C)
            mask = live[:, None] & (cols < size)[None, :]
            inner = offsets + cols[None, :]
            r = tl.load(r_ptr + inner, mask=mask, other=0.0)
            p = _solve_chunk(r, cols, offset, solved, mu_ptr, var_ptr, d, ARROW, BIAS)
            p += beta[:, None] * tl.load(p_ptr + inner, mask=mask & (k > 0), other=0.0)
            tl.store(p_ptr + inner, p, mask=mask)
        tl.debug_barrier()
        pap = zeros
        for col in range(0, size, BLOCK_C):
            cols = col + tl.arange(0, BLOCK_C)
            mask = live[:, None] & (cols < size)[None, :]
            inner = offsets + cols[None, :]
            p = tl.load(p_ptr + inner, mask=mask, other=0.0)
            ap = _product(
                p_ptr, p_ptr, zeros, s_ptr, col, left, size, inverse_count, stride_s,
                False, BLOCK_M, BLOCK_C, BLOCK_K, PRECISION,
            ) + tl.where((cols < d)[None, :], ridge, 0.0) * p  # fmt: skip
            pap += tl.sum(p * ap, 1)
            tl.store(ap_ptr + inner, ap, mask=mask)
        tl.debug_barrier()
        alpha, active = _step(rz, pap, rr, gg, STOP)
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
        offset, solved, rz = _solve_sums(r_ptr, left, size, mu_ptr, var_ptr, d, ARROW, BIAS, BLOCK_M, BLOCK_C)
        beta = tl.where(active, rz / tl.where(active, rz_old, 1.0), 0.0)


@triton.jit
def _unit_value(ptr, unit, count, rows, m, batch, batch_rows, NEURON: tl.constexpr, BLOCK_M: tl.constexpr):
    """The sum of a unit's partial values, for each row: ``[count, batch m]`` for neurons, ``[units, count]`` for layers."""
    value = tl.zeros((BLOCK_M,), tl.float32)
    if NEURON:
        for i in range(count):
            index = offset64(i, batch_rows) + offset64(batch, m) + rows
            value += tl.load(ptr + index, mask=rows < m, other=0.0)
    else:
        lane = tl.arange(0, 128)
        total = tl.zeros((128,), tl.float32)
        for i in range(0, count, 128):
            total += tl.load(ptr + offset64(unit, count) + i + lane, mask=i + lane < count, other=0.0)
        value += tl.sum(total, 0)
    return value


@triton.jit
def _store_partial(ptr, value, slot, index, mask, NEURON: tl.constexpr):
    """Store a value per row at ``index``, or its sum over rows at ``slot``."""
    if NEURON:
        tl.store(ptr + index, value, mask=mask)
    else:
        tl.store(ptr + slot, tl.sum(value, 0))


@triton.jit
def pcg_product_kernel(
    s_ptr, v_ptr, p_ptr, p_new_ptr, out_ptr, rz_ptr, rz_old_ptr, pap_old_ptr, rr_old_ptr, gg_ptr, pap_ptr,
    m, d, size, per_unit, row_count, product_count, batch_rows, ridge, stride_sb, stride_s,
    MODE: tl.constexpr, NEURON: tl.constexpr, STOP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One tile of ``out = p A`` with ``p = v + beta p_old``; grid ``(row blocks, column blocks, batch)``.

    ``MODE`` 0: ``out -= v A``, the first residual (``out`` holds ``g``). 1: first iteration, ``p = v``. 2:
    ``beta = rz / rz_old`` where the last step was active. Modes 1 and 2 store ``p`` (to another buffer: other programs
    still read the old one) and partial ``<p, p A>``.
    """
    row = tl.program_id(0) * BLOCK_M
    col = tl.program_id(1) * BLOCK_C
    batch = tl.program_id(2)
    lane = tl.arange(0, BLOCK_M)
    rows = row + lane
    cols = col + tl.arange(0, BLOCK_C)
    mask = (rows < m)[:, None] & (cols < size)[None, :]
    s_ptr += offset64(batch, stride_sb)
    first = offset64(offset64(batch, m) + row, size)  # every vector from the first row of this program on
    v_ptr += first
    p_ptr += first
    p_new_ptr += first
    out_ptr += first
    inner = lane[:, None] * size + cols[None, :]
    unit = batch // per_unit
    beta = tl.zeros((BLOCK_M,), tl.float32)
    if MODE == 2:
        rz = _unit_value(rz_ptr, unit, row_count, rows, m, batch, batch_rows, NEURON, BLOCK_M)
        rz_old = _unit_value(rz_old_ptr, unit, row_count, rows, m, batch, batch_rows, NEURON, BLOCK_M)
        pap = _unit_value(pap_old_ptr, unit, product_count, rows, m, batch, batch_rows, NEURON, BLOCK_M)
        rr = _unit_value(rr_old_ptr, unit, row_count, rows, m, batch, batch_rows, NEURON, BLOCK_M)
        gg = _unit_value(gg_ptr, unit, row_count, rows, m, batch, batch_rows, NEURON, BLOCK_M)
        _, active = _step(rz_old, pap, rr, gg, STOP)
        beta = tl.where(active, rz / tl.where(active, rz_old, 1.0), 0.0)
    product = _product(
        v_ptr, p_ptr, beta, s_ptr, col, m - row, size, _inverse_count(s_ptr, d, stride_s), stride_s,
        MODE == 2, BLOCK_M, BLOCK_C, BLOCK_K, PRECISION,
    )  # fmt: skip
    p = tl.load(v_ptr + inner, mask=mask, other=0.0)
    if MODE == 2:
        p += beta[:, None] * tl.load(p_ptr + inner, mask=mask, other=0.0)
    product += tl.where((cols < d)[None, :], ridge, 0.0) * p
    if MODE == 0:
        tl.store(out_ptr + inner, tl.load(out_ptr + inner, mask=mask, other=0.0) - product, mask=mask)
    else:
        tl.store(out_ptr + inner, product, mask=mask)
        tl.store(p_new_ptr + inner, p, mask=mask)
        slot = (batch * tl.num_programs(0) + tl.program_id(0)) * tl.num_programs(1) + tl.program_id(1)
        index = offset64(tl.program_id(1), batch_rows) + offset64(batch, m) + rows
        _store_partial(pap_ptr, tl.sum(p * product, 1), slot, index, rows < m, NEURON)


@triton.jit
def pcg_update_kernel(
    g_ptr, h_ptr, r_ptr, z_ptr, p_ptr, ap_ptr, mu_ptr, var_ptr, rz_ptr, pap_ptr, rr_ptr, gg_ptr, rz_new_ptr, rr_new_ptr,
    m, d, size, per_unit, row_count, product_count, batch_rows,
    FIRST: tl.constexpr, NEURON: tl.constexpr, ARROW: tl.constexpr, BIAS: tl.constexpr, STOP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """``h += alpha p, r -= alpha ap, z = P r`` on ``BLOCK_M`` rows; partial ``<r, r>``, ``<r, z>``; grid ``(row blocks, batch)``.

    ``FIRST`` skips the step: it only makes ``z`` of the first residual, and partial ``<g, g>``.
    """
    row = tl.program_id(0) * BLOCK_M
    batch = tl.program_id(1)
    lane = tl.arange(0, BLOCK_M)
    rows = row + lane
    live = rows < m
    first = offset64(offset64(batch, m) + row, size)  # every vector from the first row of this program on
    g_ptr += first
    h_ptr += first
    r_ptr += first
    z_ptr += first
    p_ptr += first
    ap_ptr += first
    offsets = lane[:, None] * size
    mu_ptr += offset64(batch, d)
    var_ptr += offset64(batch, d)
    slot = batch * tl.num_programs(0) + tl.program_id(0)
    index = offset64(batch, m) + rows
    unit = batch // per_unit
    total = tl.zeros((BLOCK_M,), tl.float32)
    alpha = total
    if not FIRST:
        rz = _unit_value(rz_ptr, unit, row_count, rows, m, batch, batch_rows, NEURON, BLOCK_M)
        pap = _unit_value(pap_ptr, unit, product_count, rows, m, batch, batch_rows, NEURON, BLOCK_M)
        rr = _unit_value(rr_ptr, unit, row_count, rows, m, batch, batch_rows, NEURON, BLOCK_M)
        gg = _unit_value(gg_ptr, unit, row_count, rows, m, batch, batch_rows, NEURON, BLOCK_M)
        alpha, _ = _step(rz, pap, rr, gg, STOP)
    gg_new = total
    for col in range(0, size, BLOCK_C):
        cols = col + tl.arange(0, BLOCK_C)
        mask = live[:, None] & (cols < size)[None, :]
        inner = offsets + cols[None, :]
        r = tl.load(r_ptr + inner, mask=mask, other=0.0)
        if FIRST:
            g = tl.load(g_ptr + inner, mask=mask, other=0.0)
            gg_new += tl.sum(g * g, 1)
        else:
            h = tl.load(h_ptr + inner, mask=mask, other=0.0)
            h += alpha[:, None] * tl.load(p_ptr + inner, mask=mask, other=0.0)
            r -= alpha[:, None] * tl.load(ap_ptr + inner, mask=mask, other=0.0)
            tl.store(h_ptr + inner, h, mask=mask)
            tl.store(r_ptr + inner, r, mask=mask)
        total += tl.sum(r * r, 1)
    _store_partial(rr_new_ptr, total, slot, index, live, NEURON)
    if FIRST:
        _store_partial(gg_ptr, gg_new, slot, index, live, NEURON)
    tl.debug_barrier()
    offset, solved, rz = _solve_sums(r_ptr, m - row, size, mu_ptr, var_ptr, d, ARROW, BIAS, BLOCK_M, BLOCK_C)
    _store_partial(rz_new_ptr, rz, slot, index, live, NEURON)
    for col in range(0, size, BLOCK_C):
        cols = col + tl.arange(0, BLOCK_C)
        mask = live[:, None] & (cols < size)[None, :]
        r = tl.load(r_ptr + offsets + cols[None, :], mask=mask, other=0.0)
        z = _solve_chunk(r, cols, offset, solved, mu_ptr, var_ptr, d, ARROW, BIAS)
        tl.store(z_ptr + offsets + cols[None, :], z, mask=mask)


def one_launch_pays(m: int, size: int, batch: int, arch: Arch) -> bool:
    """Whether one launch for all iterations beats two launches per iteration: predicted time of one iteration.

    A program has the tensor cores and L2 share of one multiprocessor; the two-phase form has all of them but pays two
    launches. L2 is taken at 1.6 times the rate of memory, half of the tf32 peak is taken as reachable.
    """
    waves = math.ceil(math.ceil(m / ROWS) * batch / arch.multiprocessors)
    rate = (arch.tf32_rate or arch.ieee_rate) / 2
    per_multiprocessor = 1 / arch.multiprocessors
    one = waves * max(
        2 * ROWS * size * size / (rate * per_multiprocessor),
        4 * size * size / (1.6 * arch.memory_rate * per_multiprocessor),
    )
    two = 2 * LAUNCH_SECONDS + max(2 * batch * m * size * size / rate, 4 * batch * size * size / arch.memory_rate)
    return one <= two


@compiles_or_unavailable("pcg")
def pcg(
    s: torch.Tensor,
    g: torch.Tensor,
    h0: torch.Tensor | None,
    mu: torch.Tensor | None,
    var: torch.Tensor | None,
    iterations: int,
    ridge: float,
    scope: str,
    layer_dims: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """PCG on ``s`` ``[.., D+1, D+1]`` for ``g`` ``[.., m, D or D+1]``; see :func:`lnb_kernels.pcg`."""
    dtypes = [value.dtype for value in (s, g, h0, mu, var) if value is not None]
    if torch.float64 in dtypes or g.numel() == 0:
        return reference.pcg_moment(s, g, h0, mu, var, iterations, ridge, scope, layer_dims)
    lead, (m, size), moments = g.shape[:-2], g.shape[-2:], s.shape[-1]
    batch, d = lead.numel(), moments - 1
    neuron = scope == "neuron"
    s3 = s.float().expand(*lead, moments, moments).reshape(batch, moments, moments)
    if s3.stride(2) != 1:
        s3 = s3.contiguous()

    def flat(value: torch.Tensor) -> torch.Tensor:
        return value.reshape(batch, -1).float().contiguous()

    right = flat(g)
    start = None if h0 is None else flat(h0)
    arrow = None if mu is None or var is None else (flat(mu), flat(var))
    problem = _Problem(s3, right, start, arrow, batch, m, d, size, iterations, ridge)
    arch = arch_of(g.device)
    with on_device(g):
        if neuron and one_launch_pays(m, size, batch, arch):
            h, norms = problem.by_rows(arch)
        else:
            units = batch * m if neuron else g.shape[: g.dim() - layer_dims].numel()
            h, norms = problem.by_phases(arch, neuron, units)
    shape = g.shape[:-1] if neuron else g.shape[: g.dim() - layer_dims]
    return h.view(g.shape).to(g.dtype), norms.view(iterations + 1, *shape).to(accumulation_dtype(g.dtype))


class _Problem:
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

    def by_rows(self, arch: Arch) -> tuple[torch.Tensor, torch.Tensor]:
        """All iterations in one launch, scope "neuron"."""
        h, r, p, ap = (torch.empty_like(self.g) for _ in range(4))
        norms = self.g.new_empty((self.iterations + 1, self.batch * self.m))
        pcg_rows_kernel[(triton.cdiv(self.m, ROWS), self.batch)](
            self.s, self.g, self.g if self.h0 is None else self.h0, self.mu, self.var, h, r, p, ap, norms,
            self.m, self.d, self.size, self.iterations, self.batch * self.m, self.ridge,
            self.s.stride(0), self.s.stride(1),
            HAS_H0=self.h0 is not None, ARROW=self.arrow, BIAS=self.size > self.d, STOP=reference.STOP,
            BLOCK_M=ROWS, BLOCK_C=32, BLOCK_K=32, PRECISION=input_precision(arch), num_warps=4, num_stages=2,
        )  # fmt: skip
        return h, norms

    def by_phases(self, arch: Arch, neuron: bool, units: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A product and an update per iteration, either scope; ``units`` equal parts of the batch share a step."""
        block_p, block_u = (16 if self.m <= 16 else 64), 16
        block_c = 32 if arch.name == "sm_80" else 64  # wider tiles spill there
        grid_p = (triton.cdiv(self.m, block_p), triton.cdiv(self.size, block_c), self.batch)
        grid_u = (triton.cdiv(self.m, block_u), self.batch)
        per_unit = 1 if neuron else self.batch // units
        row_count = 1 if neuron else per_unit * grid_u[0]
        product_count = grid_p[1] if neuron else per_unit * grid_p[0] * grid_p[1]
        new = self.g.new_empty
        rr, rz = new((self.iterations + 1, units, row_count)), new((self.iterations + 1, units, row_count))
        gg, pap = new((units, row_count)), new((max(self.iterations, 1), units, product_count))
        h = torch.zeros_like(self.g) if self.h0 is None else self.h0.clone()
        r = self.g.clone()
        z, ap, *p = (torch.empty_like(self.g) for _ in range(4))
        sizes = (self.m, self.d, self.size, per_unit, row_count, product_count, self.batch * self.m)
        scope = {"NEURON": neuron, "STOP": reference.STOP}

        def product(
            mode: int, k: int, v: torch.Tensor, old: torch.Tensor, new_p: torch.Tensor, out: torch.Tensor
        ) -> None:
            last = max(k - 1, 0)
            pcg_product_kernel[grid_p](
                self.s, v, old, new_p, out, rz[k], rz[last], pap[last], rr[last], gg, pap[min(k, len(pap) - 1)],
                *sizes, self.ridge, self.s.stride(0), self.s.stride(1), MODE=mode, **scope,
                BLOCK_M=block_p, BLOCK_C=block_c, BLOCK_K=32, PRECISION=input_precision(arch), num_warps=4, num_stages=3,
            )  # fmt: skip

        def update(k: int, direction: torch.Tensor) -> None:
            last = max(k - 1, 0)
            pcg_update_kernel[grid_u](
                self.g, h, r, z, direction, ap, self.mu, self.var, rz[last], pap[last], rr[last], gg, rz[k], rr[k], *sizes,
                FIRST=k == 0, ARROW=self.arrow, BIAS=self.size > self.d, **scope,
                BLOCK_M=block_u, BLOCK_C=64, num_warps=8 if k == 0 else 4,  # with 4 the first spills on sm_100
            )  # fmt: skip

        if self.h0 is not None:
            product(0, 0, self.h0, self.h0, self.h0, r)
        update(0, z)
        for k in range(self.iterations):
            product(1 if k == 0 else 2, k, z, p[k % 2], p[(k + 1) % 2], ap)
            update(k + 1, p[(k + 1) % 2])
        return h, rr.sum(-1).sqrt()
