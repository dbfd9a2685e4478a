"""Conjugate gradients in two launches per iteration: a product over tiles, and an update over blocks of rows.

The product kernel forms ``p`` on the fly and writes partial ``<p, ap>``; the update kernel adds these in a fixed order.
``2 m size^2`` FLOPs per iteration, spread over the whole GPU.
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
        _, active = step_of(rz_old, pap, rr, gg, STOP)
        beta = tl.where(active, rz / tl.where(active, rz_old, 1.0), 0.0)
    product = product_tile(
        v_ptr, p_ptr, beta, s_ptr, col, m - row, size, inverse_count_of(s_ptr, d, stride_s), stride_s,
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
        alpha, _ = step_of(rz, pap, rr, gg, STOP)
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
    offset, solved, rz = solve_sums(r_ptr, m - row, size, mu_ptr, var_ptr, d, ARROW, BIAS, BLOCK_M, BLOCK_C)
    _store_partial(rz_new_ptr, rz, slot, index, live, NEURON)
    for col in range(0, size, BLOCK_C):
        cols = col + tl.arange(0, BLOCK_C)
        mask = live[:, None] & (cols < size)[None, :]
        r = tl.load(r_ptr + offsets + cols[None, :], mask=mask, other=0.0)
        z = solve_chunk(r, cols, offset, solved, mu_ptr, var_ptr, d, ARROW, BIAS)
        tl.store(z_ptr + offsets + cols[None, :], z, mask=mask)


def by_phases(equation: Equation, arch: Arch, neuron: bool, units: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A product and an update per iteration, either scope; ``units`` equal parts of the batch share a step."""
    block_p, block_u = (16 if equation.m <= 16 else 64), 16
    block_c = 32 if arch.name == "sm_80" else 64  # wider tiles spill there
    grid_p = (triton.cdiv(equation.m, block_p), triton.cdiv(equation.size, block_c), equation.batch)
    grid_u = (triton.cdiv(equation.m, block_u), equation.batch)
    per_unit = 1 if neuron else equation.batch // units
    row_count = 1 if neuron else per_unit * grid_u[0]
    product_count = grid_p[1] if neuron else per_unit * grid_p[0] * grid_p[1]
    new = equation.g.new_empty
    rr, rz = new((equation.iterations + 1, units, row_count)), new((equation.iterations + 1, units, row_count))
    gg, pap = new((units, row_count)), new((max(equation.iterations, 1), units, product_count))
    h = torch.zeros_like(equation.g) if equation.h0 is None else equation.h0.clone()
    r = equation.g.clone()
    z, ap, *p = (torch.empty_like(equation.g) for _ in range(4))
    sizes = (equation.m, equation.d, equation.size, per_unit, row_count, product_count, equation.batch * equation.m)
    scope = {"NEURON": neuron, "STOP": reference.STOP}

    def product(mode: int, k: int, v: torch.Tensor, old: torch.Tensor, new_p: torch.Tensor, out: torch.Tensor) -> None:
        last = max(k - 1, 0)
        pcg_product_kernel[grid_p](
            equation.s, v, old, new_p, out, rz[k], rz[last], pap[last], rr[last], gg, pap[min(k, len(pap) - 1)],
            *sizes, equation.ridge, equation.s.stride(0), equation.s.stride(1), MODE=mode, **scope,
            BLOCK_M=block_p, BLOCK_C=block_c, BLOCK_K=32, PRECISION=input_precision(arch), num_warps=4, num_stages=3,
        )  # fmt: skip

    def update(k: int, direction: torch.Tensor) -> None:
        last = max(k - 1, 0)
        pcg_update_kernel[grid_u](
            equation.g, h, r, z, direction, ap, equation.mu, equation.var, rz[last], pap[last], rr[last], gg, rz[k], rr[k],
            *sizes, FIRST=k == 0, ARROW=equation.arrow, BIAS=equation.size > equation.d, **scope,
            BLOCK_M=block_u, BLOCK_C=64, num_warps=8 if k == 0 else 4,  # with 4 the first spills on sm_100
        )  # fmt: skip

    if equation.h0 is not None:
        product(0, 0, equation.h0, equation.h0, equation.h0, r)
    update(0, z)
    for k in range(equation.iterations):
        product(1 if k == 0 else 2, k, z, p[k % 2], p[(k + 1) % 2], ap)
        update(k + 1, p[(k + 1) % 2])
    return h, rr.sum(-1).sqrt()
