"""Conjugate gradients by the CUDA kernels: small equations in one launch, and the vectors' part of any other.

Nothing is read back from the device, and nothing is copied to it beforehand.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from lnb_kernels import _cuda
from lnb_kernels.pcg import reference
from lnb_kernels.pcg.vectors import Vectors


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
    equations: Sequence[tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]],
    iterations: int,
    ridge: float,
) -> list[tuple[Tensor, Tensor]]:
    """Equations ``(s, g, h0, mu, var)`` of any shapes up to 129 columns, in one launch for every 128 layers."""
    native = _cuda.module(equations[0][1].device)
    held, layers, results = [], [], []
    for s, g, h0, mu, var in equations:
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
            layers.append([moment, *vectors, *outputs, units, m, size - 1, columns])
        held.append((moments, target, start, mean, variance))  # alive until the launch
        results.append((h, norms))
    native.pcg_rows(layers, iterations, ridge, reference.STOP, _cuda.where(equations[0][1]))
    return [(h.to(g.dtype), norms) for (h, norms), (_, g, *_) in zip(results, equations, strict=True)]


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
    return _DeviceVectors(g, h0, mu, var, bias, iterations, scope, layer_dims).solve(matvec)


class _DeviceVectors(Vectors):
    def _launch(self, name: str, product: Tensor | None, units: list[int], rows: list[int]) -> None:
        fixed = [_offset(t, 0) for t in (self.g, *self.arrow, self.h, self.r, self.p, product)]
        equations = []
        for i in range(self.layers):
            entries, features = 4 * i * self.m * self.columns, 4 * i * self.d
            shifts = [entries, features, features, entries, entries, entries, entries]
            addresses = [a and a + shift for a, shift in zip(fixed, shifts, strict=True)]
            unit = i * self.m if self.by_row else i * self.units // self.layers
            equations.append([*addresses, i * self.m, unit, self.m, self.d, self.columns])
        native = _cuda.module(self.g.device)
        phase = getattr(native.Phase, name)
        native.pcg_phase(phase, equations, self.by_row, units, rows, reference.STOP, _cuda.where(self.g))

    def _add_up(self, rows: Tensor, total: Tensor) -> None:
        per_unit = self.rows // max(self.units, 1)
        first = [per_unit * unit for unit in range(self.units + 1)]
        _cuda.module(self.g.device).segment_sums(first, rows.data_ptr(), total.data_ptr(), _cuda.where(self.g))


def _addresses(moments: Tensor, batch: Sequence[int]) -> list[int]:
    """Addresses of the ``S`` of every layer of the batch, to which leading dimensions of ``moments`` broadcast."""
    strides = moments.expand(*batch, *moments.shape[-2:]).stride()[:-2]
    indices = itertools.product(*map(range, batch))
    return [moments.data_ptr() + 4 * sum(i * k for i, k in zip(index, strides, strict=True)) for index in indices]


def _offset(tensor: Tensor | None, bytes_: int) -> int:
    return 0 if tensor is None else tensor.data_ptr() + bytes_
