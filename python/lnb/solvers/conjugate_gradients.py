"""The solver ``"pcg"``: conjugate gradients on the second moment, as in arXiv:2502.01131."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lnb.solvers.base import Solver, joined_gradient, split_direction
from lnb.solvers.equations import Equation, solve_equation, solve_joined
from lnb.solvers.rounded_metric import RoundedMetric, rounds_products
from lnb.solvers.shared_iterations import solve_shared
from lnb.statistics.averages import feature_moments, second_moment_of
from lnb.statistics.running import ridge_of

if TYPE_CHECKING:
    from lnb.config import Config
    from lnb.context import LayerContext
    from lnb.layers.capture import Samples
    from lnb.layers.claimed import Layer
    from lnb.planning.pricing import Pricing
    from lnb.solvers.solution import Solution, SolverInputs
    from lnb.verdict import Verdict

_CALLS = 115
_CALLS_ITERATION = 14
"""Small operations of one solution, and of each of its iterations, counted on the CPU."""


class ConjugateGradients(Solver):
    """``cg_iterations`` iterations from the previous solution, preconditioned by the arrow matrix (:mod:`lnb.solvers.arrow`).

    It keeps the previous direction and the features' averages, and the averaged second moment where one is remembered:
    ``d_in (d_out + 2)`` numbers and ``d_in^2``. Every iteration costs a product of the gradient's size with the second moment.
    """

    name = "pcg"
    averages_moments = True
    keeps_direction = True
    always_fits = True

    def suits(self, layer: Layer, config: Config, samples: Samples, dual: bool) -> str | None:
        """It suits every layer."""
        return "conjugate gradients on the second moment"

    def solve(self, solution: Solution, members: Sequence[int], given: SolverInputs) -> None:
        """One layer at a time, so that only one has its copies in memory; small ones wait, to be solved in one call.

        Layers that share a step length with rows on other ranks wait for each other.
        """
        contexts, averages, verdict, add = given.contexts, given.averages, given.verdict, given.add
        waiting: dict[int, Equation] = {}
        shared: dict[int, Equation] = {}
        for i in members:
            context = contexts[i]
            equation = self.equation(context, joined_gradient(context, averages))
            if add is not None and equation.scope == "layer":
                shared[i] = equation
            elif equation.joins:
                waiting[i] = equation
            else:
                _finish(solution, i, context, equation, solve_equation(equation), verdict)
        if shared and add is not None:
            of_shared, add_all = [contexts[i] for i in shared], add
            found = solve_shared(list(shared.values()), lambda values: add_all(of_shared, values))
            for i, solved in zip(shared, found, strict=True):
                _finish(solution, i, contexts[i], shared[i], solved, verdict)
        for i, solved in zip(waiting, solve_joined(list(waiting.values())), strict=True):
            _finish(solution, i, contexts[i], waiting[i], solved, verdict)

    def equation(self, context: LayerContext, gradient: Tensor) -> Equation:
        """The equation of one layer."""
        mean, variance, has_samples = feature_moments(context)
        operator, ridge = self.operator(context)
        start = _previous_direction(context, gradient)
        config = context.config
        return Equation(
            operator, gradient, start, (mean, variance), ridge, config.cg_iterations, config.cg_scope, has_samples
        )

    def operator(self, context: LayerContext) -> tuple[Tensor | Callable[[Tensor], Tensor], float]:
        """The metric, as a matrix ``[groups, size, size]`` or as a product with it; and the ridge still to be added to it."""
        config = context.config
        relative = config.ridge_mode == "relative"
        if config.averaged or relative:
            average = second_moment_of(context)
        else:
            assert context.moments is not None
            average = context.moments
        moments = average.squeeze(1)
        ridge = ridge_of(average.flatten(0, 1), context.ridge, relative, context.with_bias, (1,) * len(average))
        added = ridge.squeeze(1) if isinstance(ridge, Tensor) else ridge
        if rounds_products(context.layer, config):
            return RoundedMetric(moments, added), 0.0
        if not isinstance(added, Tensor):
            return moments, added
        weights = torch.ones(moments.shape[-1], dtype=moments.dtype, device=moments.device)
        weights[-1] = 0
        return moments + added * weights.diag(), 0.0

    def describe(self, layer: Layer, config: Config) -> tuple[str, str]:
        """How a layer is solved, and why so, in words."""
        return f"{config.cg_iterations} CG iterations", "warm-started on the second moment"

    def step_flops(self, layer: Layer, config: Config) -> int:
        """FLOPs of the products of one solution."""
        return (config.cg_iterations + 1) * 2 * layer.numbers * layer.matrix_columns

    def seconds(self, price: Pricing) -> tuple[float, float]:
        """Times of a refresh and of a solution."""
        size = (price.outputs * price.columns**2) ** (1 / 3)
        dtype = torch.bfloat16 if rounds_products(price.layer, price.config) else price.wide
        products = price.rates.seconds("matmul", dtype, size, self.step_flops(price.layer, price.config))
        return price.averages(), iteration_seconds(price) + products


def iteration_seconds(price: Pricing) -> float:
    """The time of conjugate gradients without the products with the metric."""
    k = price.config.cg_iterations
    return price.passes_over(price.numbers, 8 + 11 * k) + price.rates.calls(_CALLS + _CALLS_ITERATION * k)


def _finish(
    solution: Solution,
    i: int,
    context: LayerContext,
    equation: Equation,
    solved: tuple[Tensor, Tensor],
    verdict: Verdict,
) -> None:
    found, solution.residuals[i] = solved
    _keep_direction(context, found, equation.has_samples, verdict)
    solution.parts[i] = split_direction(context, found, equation.gradient)


def _previous_direction(context: LayerContext, gradient: Tensor) -> Tensor | None:
    """The previous unnormalised ``h``, as far as it has this step's columns; None at first."""
    previous = context.state.get("direction")
    if previous is None or previous.shape == gradient.shape:
        return previous
    columns = gradient.shape[-1] - previous.shape[-1]  # the bias was frozen or thawed since
    return previous[..., :columns] if columns < 0 else nn.functional.pad(previous, (0, columns))


def _keep_direction(context: LayerContext, solution: Tensor, has_samples: Tensor, verdict: Verdict) -> None:
    """Remember the solution of an equation, for the next step to start from."""
    previous = context.state.get("direction")
    if previous is None or previous.shape != solution.shape:
        previous = context.state["direction"] = torch.zeros_like(solution)
    verdict.commit(previous, solution, also=has_samples & torch.linalg.vector_norm(solution, math.inf).isfinite())
