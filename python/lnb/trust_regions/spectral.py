"""The trust region ``"spectral"``: the change of a layer's outputs is bounded in operator norm."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lnb.statistics.factored import Factor
from lnb.statistics.orthogonalize import orthogonalize
from lnb.trust_regions.base import TrustRegion


class Spectral(TrustRegion):
    """Every singular value of ``D L`` is ``sqrt(max(1, rows / columns))``: Muon's step (Jordan et al.) in whitened space."""

    name = "spectral"
    needs_factor = True
    whitens = True
    without_factor = "neuron"
    block_products = 2

    def direction(self, weight: Tensor, bias: Tensor | None, factor: Factor) -> tuple[Tensor, Tensor | None]:
        """:func:`spectral_direction`, weight and bias as one matrix."""
        if bias is None:
            return spectral_direction(weight, factor), None
        joined = spectral_direction(torch.cat([weight, bias], dim=-1), factor)
        return joined[..., :-1], joined[..., -1:]


def spectral_direction(gradient: Tensor, factor: Factor) -> Tensor:
    """The steepest step whose effect on a layer's outputs is bounded in operator norm.

    Of all steps ``D`` with ``||D L||_op <= 1``, the largest ``<D, g~>`` has, writing ``D = Q L^-1`` and
    ``<D, g~> = <Q, g~ L^-T>``, the ``Q`` that maximises an inner product with ``g~ L^-T = U diag(s) V'`` over the unit ball
    of the operator norm: ``Q = U V' = orth(g~ L^-T)``, of value ``sum s``. So ``D = orth(g~ L^-T) L^-1``: Muon's step, taken in
    the space where the layer's inputs are white. Any other factor ``L R`` with orthogonal ``R`` gives the same ``D``.

    ``Q`` has ``min(rows, columns)`` singular values of 1, so white inputs move an output by
    ``sqrt(min(rows, columns) / rows)`` root mean square; times ``sqrt(max(1, rows / columns))`` that is 1 for every shape:
    ``lr`` is the root mean square change of a layer's outputs per step, whatever its width.

    Args:
        gradient: ``g~``, ``[..., rows, columns]``.
        factor: ``L^-1`` (:mod:`lnb.statistics.factored`).
    """
    rows, columns = gradient.shape[-2:]
    white = orthogonalize(factor.whiten(gradient))
    return factor.unwhiten(white * math.sqrt(max(1.0, rows / columns)))
