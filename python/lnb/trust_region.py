"""How long a step is: what each direction is divided by.

With the metric ``M = E[x~ x~'] + ridge = L L'`` a step ``D`` of a layer changes its outputs by
``E ||D x~||^2 = ||D L||_F^2`` (up to the ridge), and for ``D = h`` that is ``<h, g~>``. Per unit of ``lr``,

* ``"global"``: the sum over all layers is 1 (the paper's rule);
* ``"layer"``: it is 1 for each layer;
* ``"neuron"``: it is 1 for each neuron, a row of ``D``, see :mod:`lnb.balance`;
* ``"balanced"``: the same, and neurons move independently;
* ``"spectral"``: every singular value of ``D L`` is ``sqrt(max(1, rows/columns))``, see :func:`spectral_direction`;
* ``"rms"``: the root mean square of each parameter's step is 0.2, as large as AdamW's usually is, so that an ``lr`` found
  for AdamW carries over. The bias, which no ridge holds back, is scaled with its layer.

These are bounds: near a minimum, where ``sqrt(<h, g~>)`` falls below ``min_norm``, steps of ``"global"`` and ``"layer"`` are
shorter, and in every region :mod:`lnb.weight_bound` and :mod:`lnb.damping` shorten them further.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lnb.factored import Factor
from lnb.orthogonalize import orthogonalize

ADAMW_RMS = 0.2


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
        factor: ``L^-1`` (:mod:`lnb.factored`).
    """
    rows, columns = gradient.shape[-2:]
    white = orthogonalize(factor.whiten(gradient))
    return factor.unwhiten(white * math.sqrt(max(1.0, rows / columns)))


def layer_scale(products: Tensor, min_norm: float) -> Tensor:
    """``1 / max(min_norm, sqrt(max(0, <h, g~>)))`` of each layer."""
    return products.clamp(min=0).sqrt().clamp(min=min_norm).reciprocal()


def rms_scale(squares: Tensor, sizes: Tensor) -> Tensor:
    """What brings each direction to AdamW's usual root mean square; 0 for a zero direction.

    Args:
        squares: ``||D||^2`` of each direction, ``[n]``.
        sizes: its number of entries, ``[n]``.
    """
    wanted = ADAMW_RMS * sizes.to(squares.dtype).sqrt()
    return torch.where(squares > 0, wanted * squares.rsqrt(), 0.0)
