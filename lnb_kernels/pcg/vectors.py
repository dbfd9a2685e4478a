"""Conjugate gradients whose vectors are moved by native kernels: what the kernels of both devices share."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from lnb_kernels.pcg.reference import Matvec


class Vectors(ABC):
    """The vectors of one solve, and the sums of its units over them: ``rr`` and ``rz`` before and after every step.

    Nothing is read back from the device.
    """

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
        self.iterations = iterations
        self.by_row = scope == "neuron"
        self.g = g.resolve_neg().contiguous()
        self.warm = h0 is not None
        self.h = torch.zeros_like(self.g) if h0 is None else h0.to(g.dtype, copy=True).resolve_neg().contiguous()
        self.r, self.p = torch.empty_like(self.g), torch.empty_like(self.g)
        self.arrow = [None if t is None else t.float().resolve_neg().contiguous() for t in (mu, var)]
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

    def solve(self, matvec: Matvec) -> tuple[Tensor, Tensor]:
        """``h``, and ``||r||`` after 0, 1, ... steps of every unit."""
        self._phase("START", -1, matvec(self.h) if self.warm else None, [self.gg, self.rr[0], self.rz[0]])
        for k in range(self.iterations):
            product = matvec(self.p)
            if self.by_row:
                self._phase("STEP", k, product, [])
                continue
            self._phase("PRODUCT", k, product, [self.pap])
            self._phase("MOVE", k, product, [self.rr[k + 1], self.rz[k + 1]])
            if k + 1 < self.iterations:
                self._phase("DIRECTION", k, product, [])
        norms: Tensor = self.rr.sqrt().float()
        return self.h, norms.reshape(self.iterations + 1, *self.unit_shape)

    def _phase(self, name: str, k: int, product: Tensor | None, totals: list[Tensor]) -> None:
        """Run one phase of step ``k``; what it sums over rows is then added up to ``totals``, the units' sums."""
        product = None if product is None else product.to(self.g.dtype).resolve_neg().contiguous()
        units = [t.data_ptr() for t in (self.gg, self.rr[max(k, 0)], self.rr[k + 1])]
        units += [t.data_ptr() for t in (self.rz[max(k, 0)], self.rz[k + 1], self.pap)]
        scratch = dict(zip([t.data_ptr() for t in totals], [row.data_ptr() for row in self.of_rows], strict=False))
        rows = units if self.by_row else [scratch.get(address, address) for address in units]
        self._launch(name, product, units, rows)
        if not self.by_row:
            for total, sums in zip(totals, self.of_rows, strict=False):
                self._add_up(sums, total)

    @abstractmethod
    def _launch(self, name: str, product: Tensor | None, units: list[int], rows: list[int]) -> None:
        """Run the kernel of a phase; ``units`` and ``rows`` are addresses of the sums it reads and writes."""

    @abstractmethod
    def _add_up(self, rows: Tensor, total: Tensor) -> None:
        """``total``, one sum per unit, from those of its rows, which are neighbours."""
