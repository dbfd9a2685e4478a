"""Conjugate gradients on the CPU: products by the BLAS, the vectors of a step by native loops.

A step with one unit per layer passes over 9 vectors to read and 3 to write, where the same in PyTorch operations takes
about 40; nothing but ``h``, ``r``, ``p`` and one product is kept.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lnb_kernels import _native
from lnb_kernels.pcg import reference
from lnb_kernels.pcg.vectors import Vectors

SMALL = 1 << 13
"""Entries of ``g`` up to which the calls cost more than the passes over vectors that they save."""


def iterate(
    matvec: reference.Matvec,
    g: Tensor,
    h0: Tensor | None,
    mu: Tensor | None,
    var: Tensor | None,
    bias: bool,
    iterations: int,
    scope: str,
    layer_dims: int,
) -> tuple[Tensor, Tensor]:
    """As :func:`lnb_kernels.pcg.reference.iterate`, for float32."""
    return _HostVectors(g, h0, mu, var, bias, iterations, scope, layer_dims).solve(matvec)


def pcg_moment(
    s: Tensor,
    g: Tensor,
    h0: Tensor | None,
    mu: Tensor | None,
    var: Tensor | None,
    iterations: int,
    ridge: float,
    scope: str,
    layer_dims: int,
) -> tuple[Tensor, Tensor]:
    """As :func:`lnb_kernels.pcg.reference.pcg_moment`; ``S`` is read in place, never copied.

    Float64 tensors, layers of different row counts in one call, and what is small go by the reference.
    """
    counts = s[..., -1, -1]
    wide = any(t is not None and t.dtype == torch.float64 for t in (s, g, h0, mu, var))
    if wide or g.numel() <= SMALL or bool((counts != counts.flatten()[0]).any()):
        return reference.pcg_moment(s, g, h0, mu, var, iterations, ridge, scope, layer_dims)
    matvec = _product(s.float(), g, float(counts.flatten()[0]) or 1.0, ridge)
    has_bias = g.shape[-1] == s.shape[-1]
    h, norms = iterate(matvec, g.float(), h0, mu, var, has_bias, iterations, scope, layer_dims)
    return h.to(g.dtype), norms


def _product(s: Tensor, g: Tensor, count: float, ridge: float) -> Callable[[Tensor], Tensor]:
    """``v -> v S / N + ridge v``, the bias's column without the ridge. Every call's result is that of the last one too."""
    *batch, m, columns = g.shape
    matrices = s.expand(*batch, *s.shape[-2:]).reshape(-1, *s.shape[-2:])[:, :columns, :columns]
    product = torch.empty(g.shape, dtype=torch.float32)

    def apply(v: Tensor) -> Tensor:
        rows, out = v.view(-1, m, columns), product.view(-1, m, columns)
        if len(matrices) == 1:
            torch.addmm(rows[0], rows[0], matrices[0], beta=ridge, alpha=1.0 / count, out=out[0])
        else:
            torch.baddbmm(rows, rows, matrices, beta=ridge, alpha=1.0 / count, out=out)
        if columns == s.shape[-1]:
            product[..., -1].sub_(v[..., -1], alpha=ridge)
        return product

    return apply


class _HostVectors(Vectors):
    def _launch(self, name: str, product: Tensor | None, units: list[int], rows: list[int]) -> None:
        native = _native.module()
        tensors = [0 if t is None else t.data_ptr() for t in (self.g, *self.arrow, self.h, self.r, self.p, product)]
        rows_per_unit = 1 if self.by_row else self.rows // max(self.units, 1)
        native.cg_phase(
            getattr(native.Phase, name), tensors, (self.layers, self.m, self.columns, self.d), rows_per_unit, units, rows,
            reference.STOP, torch.get_num_threads(),
        )  # fmt: skip

    def _add_up(self, rows: Tensor, total: Tensor) -> None:
        torch.sum(rows.view(self.units, -1), -1, out=total)
