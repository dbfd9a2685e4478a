"""The equations that conjugate gradients solve in one step: layer by layer or, for small layers, many in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import lnb_kernels as lk
from lnb_kernels.pcg.op import ROW_COLUMNS


@dataclass(frozen=True)
class Equation:
    """``(operator + ridge diag(1..1, 0)) h = gradient`` of one layer."""

    operator: Tensor | Callable[[Tensor], Tensor]  # [groups, size, size], or a product that includes the ridge
    gradient: Tensor  # g~ [groups, rows, columns]
    start: Tensor | None
    arrow: tuple[Tensor, Tensor]  # mu and variance [groups, d_in]
    ridge: float
    iterations: int
    scope: str
    has_samples: Tensor  # []: without samples in the batch, h is zero

    @property
    def joins(self) -> bool:
        """Whether it can share a call with those of other layers."""
        return (
            self.scope == "neuron"
            and isinstance(self.operator, Tensor)
            and self.gradient.shape[-1] <= ROW_COLUMNS
            and self.gradient.dtype != torch.float64
        )


def solve_equation(equation: Equation) -> tuple[Tensor, Tensor]:
    """``h``, of the shape of the gradient, and the norms of the last residual, one for the layer or one per neuron."""
    solution, norms = lk.pcg(
        equation.operator,
        equation.gradient,
        h0=equation.start,
        arrow=equation.arrow,
        iterations=equation.iterations,
        ridge=equation.ridge,
        scope=equation.scope,
        layer_dims=3,
    )
    return solution.masked_fill_(~equation.has_samples, 0.0), norms[-1]


def solve_joined(equations: Sequence[Equation]) -> list[tuple[Tensor, Tensor]]:
    """:func:`solve_equation` of each, all of which :attr:`Equation.joins`; one call for each device, ridge and length."""
    calls: dict[tuple[object, ...], list[int]] = {}
    for i, equation in enumerate(equations):
        key = equation.gradient.device, equation.ridge, equation.iterations
        calls.setdefault(key, []).append(i)
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for members in calls.values():
        chosen = [equations[i] for i in members]
        solutions, norms = lk.pcg_layers(
            [equation.operator for equation in chosen if isinstance(equation.operator, Tensor)],
            [equation.gradient for equation in chosen],
            [equation.start for equation in chosen],
            [equation.arrow for equation in chosen],
            iterations=chosen[0].iterations,
            ridge=chosen[0].ridge,
        )
        for i, equation, solution, of_layer in zip(members, chosen, solutions, norms, strict=True):
            found[i] = solution.masked_fill_(~equation.has_samples, 0.0), of_layer[-1]
    return [found[i] for i in range(len(equations))]
