"""Conjugate gradients of layers whose rows are shared out over ranks: with one step length for all rows of a layer.

The iteration is that of :func:`lnb_kernels.pcg` with the scope ``"layer"``. Every rank multiplies the rows that it has, and
needs the whole layers' products ``<p, A p>``, ``<r, r>`` and ``<r, z>``. All layers iterate side by side, so that a step has one
exchange before the first iteration and two in each, of a few numbers per layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import lnb_kernels as lk
from lnb.solvers.equations import Equation
from lnb_kernels.pcg.reference import STOP, metric
from lnb_kernels.scaling import sum_dtype

AddProducts = Callable[[Tensor], Tensor]
"""Takes sums over the rows that are here, ``[layers, n]``, and returns the sums over all rows of each layer."""


def solve_shared(equations: Sequence[Equation], add: AddProducts) -> list[tuple[Tensor, Tensor]]:
    """:func:`lnb.solvers.equations.solve_equation` of each, whose rows are some of its layer's.

    Products are taken in the dtype of sums, so that vectors need not be brought to unit size first.
    """
    layers = [_Layer(equation) for equation in equations]
    begun = add(torch.stack([torch.stack([one.square(one.target), *one.products()]) for one in layers]))
    threshold = STOP * begun[:, 0].sqrt()
    norms, rz = begun[:, 1].sqrt(), begun[:, 2]
    iterations = equations[0].iterations
    for k in range(iterations):
        pap = add(torch.stack([one.multiply() for one in layers]).unsqueeze(1))[:, 0]
        active = (norms > threshold) & (pap > 0)
        alpha = torch.where(active, rz / torch.where(active, pap, 1.0), 0.0)
        for one, step in zip(layers, alpha.unbind(), strict=True):
            one.move(step, k + 1 < iterations)
        found = add(torch.stack([torch.stack(one.products()) for one in layers]))
        norms = found[:, 0].sqrt()
        if k + 1 < iterations:
            beta = torch.where(active, found[:, 1] / torch.where(active, rz, 1.0), 0.0)
            rz = found[:, 1]
            for one, turn in zip(layers, beta.unbind(), strict=True):
                one.turn(turn)
    return [
        (one.h.to(equation.gradient.dtype).masked_fill_(~equation.has_samples, 0.0), norm)
        for one, equation, norm in zip(layers, equations, norms.unbind(), strict=True)
    ]


class _Layer:
    """The vectors of one layer, ``[groups, rows, columns]`` each."""

    def __init__(self, equation: Equation) -> None:
        self._equation = equation
        operator, self.target = equation.operator, equation.gradient
        self._metric = metric(operator, self.target.shape[-1], equation.ridge) if isinstance(operator, Tensor) else None
        self.h = torch.zeros_like(self.target) if equation.start is None else equation.start.clone()
        self.r = self.target.clone() if equation.start is None else self.target - self._product(self.h)
        self.p = self.z = self._precondition()

    def square(self, vector: Tensor) -> Tensor:
        """``||v||^2`` of the rows here, ``[]``."""
        return _dot(vector, vector)

    def products(self) -> list[Tensor]:
        """``<r, r>`` and ``<r, z>`` of the rows here."""
        return [_dot(self.r, self.r), _dot(self.r, self.z)]

    def multiply(self) -> Tensor:
        """``<p, A p>`` of the rows here."""
        self._ap = self._product(self.p)
        return _dot(self.p, self._ap)

    def move(self, alpha: Tensor, goes_on: bool) -> None:
        """One step along ``p``."""
        alpha = alpha.to(self.h.dtype)
        self.h = self.h + alpha * self.p
        self.r = self.r - alpha * self._ap
        if goes_on:
            self.z = self._precondition()

    def turn(self, beta: Tensor) -> None:
        """The next direction."""
        self.p = self.z + beta.to(self.z.dtype) * self.p

    def _product(self, vector: Tensor) -> Tensor:
        operator = self._equation.operator
        if self._metric is not None:
            return vector @ self._metric
        assert not isinstance(operator, Tensor)
        return operator(vector)

    def _precondition(self) -> Tensor:
        mean, variance = self._equation.arrow
        has_bias = self.target.shape[-1] > mean.shape[-1]
        found: Tensor = lk.arrow_solve(self.r, mean, variance, bias=has_bias)
        return found


def _dot(x: Tensor, y: Tensor) -> Tensor:
    wide = sum_dtype(x.device)
    return (x.to(wide) * y.to(wide)).sum()
