"""Conjugate gradients by the CUDA kernels: small problems in one launch, and the vectors' part of any other.

Nothing is read back from the device, and nothing is copied to it beforehand.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lnb_kernels import _cuda
from lnb_kernels.pcg import reference


def pcg_rows(
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
    """As :func:`lnb_kernels.pcg.reference.pcg_moment`, for scope "neuron" and up to 129 columns."""
    [solved] = pcg_rows_list([(s, g, h0, mu, var)], iterations, ridge)
    return solved


def pcg_rows_list(
    problems: Sequence[tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]],
    iterations: int,
    ridge: float,
) -> list[tuple[Tensor, Tensor]]:
    """Problems ``(s, g, h0, mu, var)`` of any shapes up to 129 columns, in one launch for every 128 layers."""
    native = _cuda.module(problems[0][1].device)
    held, work, results = [], [], []
    for s, g, h0, mu, var in problems:
        *batch, m, columns = g.shape
        moments = s.float().contiguous()
        target, start, mean, variance = (None if t is None else t.float().contiguous() for t in (g, h0, mu, var))
        h = torch.empty(g.shape, dtype=torch.float32, device=g.device)
        norms = torch.empty((iterations + 1, *batch, m), dtype=torch.float32, device=g.device)
        units, size = h[..., 0].numel(), s.shape[-1]
        # Rows and features of layer number i of the batch, and its S, which may serve many layers.
        for i, moment in enumerate(_addresses(moments, batch)):
            rows, features = 4 * i * m * columns, 4 * i * (size - 1)
            vectors = [_offset(t, rows) for t in (target, start)] + [_offset(t, features) for t in (mean, variance)]
            outputs = [h.data_ptr() + rows, norms.data_ptr() + 4 * i * m]
            work.append([moment, *vectors, *outputs, units, m, size - 1, columns])
        held.append((moments, target, start, mean, variance))  # alive until the launch
        results.append((h, norms))
    native.pcg_rows(work, iterations, ridge, reference.STOP, _cuda.where(problems[0][1]))
    return [(h.to(g.dtype), norms) for (h, norms), (_, g, *_) in zip(results, problems, strict=True)]


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
    """As :func:`lnb_kernels.pcg.reference.iterate`: all vectors of a step in one launch for scope "neuron".

    For scope "layer" a step has three launches and two sums between them, whatever the number of layers.
    """
    vectors = _Vectors(g, h0, mu, var, bias, iterations, scope, layer_dims)
    vectors.start(None if h0 is None else matvec(vectors.h.view(g.shape)))
    for k in range(iterations):
        vectors.step(k, matvec(vectors.p.view(g.shape)))
    return vectors.h, vectors.norms()


class _Vectors:
    """The vectors of one solve, and the sums of its units over them: ``rr`` and ``rz`` before and after every step."""

    def __init__(
        self,
        g: Tensor,
        h0: Tensor | None,
        mu: Tensor | None,
        var: Tensor | None,
        bias: bool,
        iterations: int,
        scope: str,
        layer_dims: int,
    ) -> None:
        self.native: Any = _cuda.module(g.device)
        self.iterations = iterations
        self.by_row = scope == "neuron"
        self.g = g.contiguous()
        self.h = torch.zeros_like(self.g) if h0 is None else h0.to(g.dtype, copy=True).contiguous()
        self.r, self.p = torch.empty_like(self.g), torch.empty_like(self.g)
        self.arrow = [None if t is None else t.float().contiguous() for t in (mu, var)]
        *batch, self.m, self.columns = g.shape
        self.d = self.columns - int(bias)
        self.layers = torch.Size(batch).numel()
        self.unit_shape = g.shape[:-1] if self.by_row else g.shape[: g.dim() - layer_dims]
        self.units = self.unit_shape.numel()
        self.rows = self.layers * self.m
        self.gg, self.pap = self._sums(self.units), self._sums(self.units)
        self.rr, self.rz = self._sums(iterations + 1, self.units), self._sums(iterations + 1, self.units)
        self.of_rows = self._sums(3, self.rows)  # before they are added up

    def _sums(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float64, device=self.g.device)

    def start(self, product: Tensor | None) -> None:
        """``r = g - A h``, ``p = P r``, from ``A h`` if ``h`` is not zero."""
        self._phase("START", -1, product, [self.gg, self.rr[0], self.rz[0]])

    def step(self, k: int, product: Tensor) -> None:
        """Step number ``k``, from ``A p``."""
        if self.by_row:
            self._phase("STEP", k, product, [])
            return
        self._phase("PRODUCT", k, product, [self.pap])
        self._phase("MOVE", k, product, [self.rr[k + 1], self.rz[k + 1]])
        if k + 1 < self.iterations:
            self._phase("DIRECTION", k, product, [])

    def norms(self) -> Tensor:
        """``||r||`` after 0, 1, ... steps."""
        norms: Tensor = self.rr.sqrt().float()
        return norms.reshape(self.iterations + 1, *self.unit_shape)

    def _phase(self, name: str, k: int, product: Tensor | None, totals: list[Tensor]) -> None:
        """Run one phase; what it sums over rows is then added up to ``totals``, the units' sums."""
        product = None if product is None else product.to(self.g.dtype).contiguous()
        fixed = [_offset(t, 0) for t in (self.g, *self.arrow, self.h, self.r, self.p, product)]
        problems = []
        for i in range(self.layers):
            rows, features = 4 * i * self.m * self.columns, 4 * i * self.d
            shifts = [rows, features, features, rows, rows, rows, rows]
            addresses = [a and a + shift for a, shift in zip(fixed, shifts, strict=True)]
            unit = i * self.m if self.by_row else i * self.units // self.layers
            problems.append([*addresses, i * self.m, unit, self.m, self.d, self.columns])
        old, new = max(k, 0), k + 1
        units = [t.data_ptr() for t in (self.gg, self.rr[old], self.rr[new], self.rz[old], self.rz[new], self.pap)]
        where = _cuda.where(self.g)
        scratch = dict(zip([t.data_ptr() for t in totals], [row.data_ptr() for row in self.of_rows], strict=False))
        rows_sums = units if self.by_row else [scratch.get(address, address) for address in units]
        phase = getattr(self.native.Phase, name)
        self.native.pcg_phase(phase, problems, self.by_row, units, rows_sums, reference.STOP, where)
        if not self.by_row:
            self._add_up(totals, where)

    def _add_up(self, totals: list[Tensor], where: tuple[int, int]) -> None:
        """The units' sums from those of their rows, which are neighbours."""
        per_unit = self.rows // max(self.units, 1)
        first = [per_unit * unit for unit in range(self.units + 1)]
        for total, rows in zip(totals, self.of_rows, strict=False):
            self.native.segment_sums(first, rows.data_ptr(), total.data_ptr(), self.native.Type.FLOAT64, where)


def _addresses(moments: Tensor, batch: Sequence[int]) -> list[int]:
    """Of the ``S`` of every layer of the batch, to which leading dimensions of ``moments`` broadcast."""
    strides = moments.expand(*batch, *moments.shape[-2:]).stride()[:-2]
    indices = itertools.product(*map(range, batch))
    return [moments.data_ptr() + 4 * sum(i * k for i, k in zip(index, strides, strict=True)) for index in indices]


def _offset(tensor: Tensor | None, bytes_: int) -> int:
    return 0 if tensor is None else tensor.data_ptr() + bytes_
