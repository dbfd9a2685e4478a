"""The solver ``"dual"``: exact, in the space of samples where a batch has fewer samples than inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lnb.solvers.base import Solver
from lnb.statistics.averages import second_moment_of
from lnb.statistics.factored import factorize
from lnb_kernels.cholesky import cholesky_solve

if TYPE_CHECKING:
    from lnb.config import Config
    from lnb.context import LayerContext
    from lnb.layers.capture import Samples
    from lnb.layers.claimed import Layer
    from lnb.planning.pricing import Pricing
    from lnb.verdict import Verdict

_CALLS = 40
"""Small operations of one solution, counted on the CPU."""


class Dual(Solver):
    """``h`` from the kept inputs, by a Cholesky factor of the smaller of ``X X'`` and ``X'X`` (:func:`solve_dual`).

    It keeps nothing from step to step, but the layer's inputs from the backward pass to the step. It costs the product and
    the factor of a matrix of side ``min(N, d_in)``, and products of the gradient with it.
    """

    name = "dual"
    keeps_inputs = True
    keeps_feature_moments = False

    def check(self, config: Config) -> None:
        """Require a ridge."""
        if config.ridge == 0:
            raise ValueError(
                "solver='dual' needs ridge > 0, not 0: with fewer samples than inputs the metric is singular"
            )

    def suits(self, layer: Layer, config: Config, samples: Samples, dual: bool) -> str | None:
        """It suits layers for which a batch has fewer samples than inputs, and the ridge is positive and needs no second
        moment."""
        if config.ridge_mode != "absolute" or not dual or samples.count >= layer.d_in:
            return None
        return f"exact, {samples.count} samples are fewer than {layer.d_in} inputs"

    def direction(self, context: LayerContext, gradient: Tensor, verdict: Verdict) -> Tensor:
        """The exact solution of this step's metric."""
        if context.inputs:
            return solve_dual(context.layer, context.inputs, gradient, context.ridge)
        second_moment = second_moment_of(context)  # of a packed in-projection
        factor = factorize(second_moment, context.ridge, context.with_bias, inverse=True)
        solved, bias = factor.solve(
            gradient[..., : context.layer.d_in], gradient[..., -1:] if context.with_bias else None
        )
        return solved if bias is None else torch.cat([solved, bias], dim=-1)

    def describe(self, layer: Layer, config: Config) -> tuple[str, str]:
        """How a layer is solved, and why so, in words."""
        return self.name, "exact, in the smaller of the spaces of samples and of inputs"

    def sample_flops(self, layer: Layer, config: Config) -> int:
        """FLOPs per sample of the products into the space of samples and back."""
        return 4 * layer.numbers

    def seconds(self, price: Pricing) -> tuple[float, float]:
        """Times of a refresh, which it does not need, and of a solution."""
        n, d = max(1, price.samples), price.inputs
        side = min(n, d)
        groups = price.groups
        gram = price.rates.seconds(
            "matmul", price.wide, (side * side * max(n, d)) ** (1 / 3), 2.0 * groups * side**2 * max(n, d)
        )
        factor = price.rates.seconds("factor", price.wide, side, groups * side**3)
        products = 2 if n < d else 0  # into the space of samples and back
        flops = 2.0 * price.numbers * (products * n + 2 * side)
        solve = price.rates.seconds("matmul", price.wide, (n * price.outputs * d) ** (1 / 3), flops)
        unfold = price.passes_over(groups * n * d, 6)
        return 0.0, gram + factor + solve + unfold + price.rates.calls(_CALLS)


def solve_dual(layer: Layer, inputs: list[Tensor], gradient: Tensor, ridge: float) -> Tensor:
    """``h = g~ (X~'X~/N + ridge diag(1..1, 0))^-1`` from the samples ``X`` themselves.

    With the samples centred where there is a bias (``Xc = X - mu``, see :mod:`lnb.statistics.factored`) and ``r`` the ridge,

        ``(Xc'Xc/N + r)^-1 = (I - Xc' (Xc Xc'/N + r)^-1 Xc / N) / r``        (Woodbury)

    so that the matrix factored is ``[N, N]``. With at least as many samples as inputs the ``[d_in, d_in]`` one is taken.

    Args:
        layer: the layer.
        inputs: what its forward passes saw since the last step.
        gradient: ``g~``, ``[groups, rows, columns]``.
        ridge: ``r > 0``.

    Returns:
        ``h``, of the shape of ``gradient``; zero without samples.
    """
    x = layer.layer_kind.samples(layer.modules[0], inputs, gradient.dtype)  # [groups or 1, N, d_in]
    count = x.shape[-2]
    if count == 0:
        return torch.zeros_like(gradient)
    with_bias = gradient.shape[-1] == x.shape[-1] + 1
    weight = gradient
    if with_bias:
        mean = x.mean(dim=-2, keepdim=True)
        x = x - mean
        weight = gradient[..., :-1] - gradient[..., -1:] * mean
    if count < x.shape[-1]:
        kernel = x @ x.mT / count
        kernel.diagonal(dim1=-2, dim2=-1).add_(ridge)
        outputs = weight @ x.mT  # [groups, rows, N]
        weight = (weight - cholesky_solve(outputs.mT, _factor(kernel)).mT @ x / count) / ridge
    else:
        covariance = x.mT @ x / count
        covariance.diagonal(dim1=-2, dim2=-1).add_(ridge)
        weight = cholesky_solve(weight.mT, _factor(covariance)).mT
    if not with_bias:
        return weight
    return torch.cat([weight, gradient[..., -1:] - (weight * mean).sum(-1, keepdim=True)], dim=-1)


def _factor(matrix: Tensor) -> Tensor:
    """The Cholesky factor. The ridge makes the matrix positive definite, so no error is checked for."""
    lower: Tensor = torch.linalg.cholesky_ex(matrix).L
    return lower
