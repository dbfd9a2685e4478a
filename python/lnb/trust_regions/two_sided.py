"""The trust region ``"two_sided"``: every neuron moves by ``lr``, and independently of the others.

The spectral step is ``D = orth(M) L^-1 = (M M')^(-1/2) M L^-1`` with ``M = g~ L^-T``, the gradient of a layer whose inputs are
white (:func:`lnb.trust_regions.spectral.spectral_direction`). Its orthogonalisation costs ``20 min(m, d)`` operations per
weight and step, more than the layer itself where a batch has fewer than ``4 min(m, d)`` samples. Only ``P = M M'``, the second
moment of the neurons' gradients, has to be inverted, and like the second moment of the inputs it changes slowly: here it is
averaged over refreshes, cut into diagonal blocks of neurons, and kept as ``P^(-1/2)``. What remains per step is
``W = P^(-1/2) M``, so ``D = P^(-1/2) g~ C^-1``: two block products, ``2 (b_out + b_in)`` operations per weight.

An average knows the gradients of earlier steps. In networks whose layers hardly vary at first, these are all along a few
directions of the neurons, and ``P`` is next to nothing in all others: ``P^(-1/2)`` would raise whatever the next gradients have
there, which is noise, a hundred times above what they agree on. So ``output_ridge`` times the mean diagonal of each block is
added to ``P``. In a block of ``n`` neurons no direction is then raised by more than ``sqrt(1 + n / output_ridge)`` relative to
another; where the ridge is large, this is the region ``"neuron"``.

An average cannot fit every step, so each neuron's row is then scaled to ``||W_i|| = 1``: its pre-activation changes by
``lr`` root mean square, for every shape of layer. Where ``P`` is this step's own, in one block, and ``m <= d``, this is the
spectral step. Without ``P`` (trust region ``"neuron"``) neurons that see the same gradient all move the same way, and their
common direction moves by up to ``sqrt(m) lr``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lnb.statistics.factored import Factor
from lnb.trust_regions.base import TrustRegion
from lnb_kernels.scaling import sum_dtype, unit_scale


class TwoSided(TrustRegion):
    """``D = P^(-1/2) g~ C^-1``, every row scaled to unit size in the metric.

    Relatives: K-FAC (Martens and Grosse, 2015) and Shampoo (Gupta et al., 2018) precondition both sides of a gradient;
    NorMuon (Li et al., 2025) scales the rows of an orthogonalised step.
    """

    name = "two_sided"
    by_rows = True
    needs_factor = True
    two_sided = True
    without_factor = "neuron"


def output_moment(weight: Tensor, bias: Tensor | None, factor: Factor, blocks: int) -> Tensor:
    """The diagonal blocks of ``M M' = g~ S^-1 g~'``, of mean diagonal 1, whatever the size of ``g~`` and ``S``.

    Args:
        weight: gradient ``[..., rows, d_in]``.
        bias: gradient ``[..., rows, 1]``, or None.
        factor: of the layer's metric, with ``C^-1``.
        blocks: number of diagonal blocks; divides ``rows``.

    Returns:
        ``[..., blocks, size, size]``; zero for a zero gradient, and where rounding left no positive diagonal.
    """
    return _output_moment(weight, bias, factor, blocks)[0]


def sized_output_moment(weight: Tensor, bias: Tensor | None, factor: Factor, blocks: int) -> tuple[Tensor, Tensor]:
    """:func:`output_moment`, and the trace that ``M M'`` has, ``[...]``, in the dtype of sums."""
    moment, average, scale, solved_scale = _output_moment(weight, bias, factor, blocks)
    wide = sum_dtype(weight.device)
    lead = weight.shape[:-2]
    average, scale, solved_scale = (values.to(wide).view(lead) for values in (average, scale, solved_scale))
    return moment, (average * weight.shape[-2] / (scale.square() * solved_scale)).clamp(min=0)


def _output_moment(
    weight: Tensor, bias: Tensor | None, factor: Factor, blocks: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The moment, what it was divided by, and by which powers of two ``g~`` and ``g~ S^-1`` were multiplied before."""
    scale = unit_scale(weight, bias)
    weight, bias = _times(scale, weight, bias)
    solved, solved_bias = factor.solve(weight, bias)
    solved_scale = unit_scale(solved, solved_bias)
    solved, solved_bias = _times(solved_scale, solved, solved_bias)
    moment = _cut(solved, blocks) @ _cut(weight, blocks).mT
    if bias is not None and solved_bias is not None:
        moment = moment + _cut(solved_bias, blocks) @ _cut(bias, blocks).mT
    moment = (moment + moment.mT) / 2
    average = moment.diagonal(dim1=-2, dim2=-1).mean(dim=(-2, -1)).unsqueeze(-1).unsqueeze(-1).unsqueeze(-1)
    return torch.where(average > 0, moment / average, 0.0), average, scale, solved_scale


def _times(scale: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return weight * scale, None if bias is None else bias * scale


def _cut(rows: Tensor, blocks: int) -> Tensor:
    """``[..., rows, n]`` as ``[..., blocks, size, n]``."""
    cut: Tensor = rows.unflatten(-2, (blocks, rows.shape[-2] // blocks))
    return cut
