"""The solver ``"arrow"``: the metric's preconditioner alone, from the means and variances of the features."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

import lnb_kernels as lk
from lnb.solvers.base import Solver
from lnb.statistics.averages import feature_moments

if TYPE_CHECKING:
    from lnb.config import Config
    from lnb.context import LayerContext
    from lnb.layers.claimed import Layer
    from lnb.planning.pricing import Pricing
    from lnb.verdict import Verdict

_CALLS = 60
"""Small operations of one solution, counted on the CPU."""


class Arrow(Solver):
    """``h`` from the metric of features that vary independently: ``diag(var) + [mu 1]'[mu 1]``, solved in closed form.

    Source: arXiv:2502.01131, the preconditioner of its conjugate gradients.
    It keeps the averages of means and mean squares, ``2 d_in`` numbers per layer, and costs six passes over the gradient.
    """

    name = "arrow"

    def direction(self, context: LayerContext, gradient: Tensor, verdict: Verdict) -> Tensor:
        """The arrow matrix's solution."""
        mean, variance, has_samples = feature_moments(context)
        return torch.where(has_samples, lk.arrow_solve(gradient, mean, variance, bias=context.with_bias), 0.0)

    def describe(self, layer: Layer, config: Config) -> tuple[str, str]:
        """How a layer is solved, and why so, in words."""
        return self.name, "the preconditioner alone"

    def step_flops(self, layer: Layer, config: Config) -> int:
        """FLOPs of one solution."""
        return 6 * layer.numbers

    def seconds(self, price: Pricing) -> tuple[float, float]:
        """Times of a refresh and of a solution."""
        return price.averages(), price.passes_over(price.numbers, 6) + price.rates.calls(_CALLS)
