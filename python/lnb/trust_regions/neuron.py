"""The trust region ``"neuron"``: the change of each neuron's output is bounded."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from lnb.statistics.factored import Factor
from lnb.trust_regions.base import TrustRegion
from lnb_kernels.scaling import sum_dtype
from lnb_kernels.two_sided.reference import row_scale


class Neuron(TrustRegion):
    """Every row of ``h`` is divided by ``sqrt(<h_i, g~_i>)``: its pre-activation changes by ``lr`` root mean square.

    Neurons that see the same gradient all move the same way, and their common direction moves by up to ``sqrt(d_out) lr``;
    :mod:`lnb.trust_regions.two_sided` moves them apart.
    """

    name = "neuron"
    by_rows = True
    passes = 4

    def direction(self, weight: Tensor, bias: Tensor | None, factor: Factor) -> tuple[Tensor, Tensor | None]:
        """``h`` with rows of unit size."""
        step, step_bias = factor.solve(weight, bias)
        if bias is None or step_bias is None:
            return _scaled(step, _row_scales((step, weight))), None
        scale = _row_scales((step, weight), (step_bias, bias))
        return _scaled(step, scale), _scaled(step_bias, scale)

    def of_solution(self, solution: Tensor, gradient: Tensor) -> Tensor:
        """The solution with rows of unit size."""
        return _scaled(solution, _row_scales((solution, gradient)))


def _row_scales(*parts: tuple[Tensor, Tensor]) -> Tensor:
    """``1 / sqrt(<h_i, g~_i>)`` of every row, ``[..., rows, 1]``, from the parts of ``h`` and ``g~``, in the dtype of sums:
    for a gradient near the least float32 it is larger than the largest."""
    wide = sum_dtype(parts[0][0].device)
    products = sum((h.to(wide) * g.to(wide)).sum(-1, keepdim=True) for h, g in parts)
    return row_scale(cast(Tensor, products))


def _scaled(step: Tensor, scale: Tensor) -> Tensor:
    """``step * scale``, multiplied in the dtype of ``scale``, in that of ``step``."""
    return (step * scale).to(step.dtype)
