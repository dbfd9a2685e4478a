"""What the stages of a step ask of a trust region."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lnb.statistics.factored import Factor


@dataclass(frozen=True)
class Steps:
    """The directions of one device, for which a region chooses scales.

    Attributes:
        products: ``<h, g~>`` of every layer, then of every other parameter, ``[layers + others]``; 0 where it is not finite.
        layers: number of layers.
        directions: of every parameter.
        owners: for each direction, which entry of ``products`` it counts for.
        total: the sum of the products that are in the region, over all devices.
        min_norm: the least step norm.
        readable: whether the host may wait for the device.
    """

    products: Tensor
    layers: int
    directions: list[Tensor]
    owners: tuple[int, ...]
    total: Tensor
    min_norm: float
    readable: bool


class TrustRegion:
    """A bound of the change that a step makes.

    Attributes:
        name: the value of the setting ``trust_region``.
        needs_factor: whether directions are made from a cached factor of the metric, never by iteration.
        whitens: whether that factor is ``L^-1``; otherwise it is ``C^-1`` (:mod:`lnb.statistics.factored`).
        two_sided: whether the second moment of the neurons' gradients is kept, and directions are those of
            :func:`lnb_kernels.two_sided_directions_`.
        joint: whether all layers share one bound.
        scales_whole_steps: whether a layer's step is ``h`` times one number: then a share of it is a share of Newton's step.
        without_factor: the region that bounds the same without a factor; None where that is this one.
        by_rows: whether the direction of some rows of a layer, and all scales, do not depend on the other rows but for the
            products ``<h, g~>``: then shards of a layer can be solved apart.
        block_products: products of the gradient with the factor's blocks, per step.
        passes: the passes over a layer's numbers, beside those of a product ``<h, g~>``.
    """

    name: ClassVar[str]
    needs_factor: ClassVar[bool] = False
    whitens: ClassVar[bool] = False
    two_sided: ClassVar[bool] = False
    joint: ClassVar[bool] = False
    scales_whole_steps: ClassVar[bool] = False
    without_factor: ClassVar[str | None] = None
    by_rows: ClassVar[bool] = False
    block_products: ClassVar[int] = 1
    passes: ClassVar[int] = 0

    def direction(self, weight: Tensor, bias: Tensor | None, factor: Factor) -> tuple[Tensor, Tensor | None]:
        """The direction of layers that keep a factor.

        Args:
            weight: ``g~`` of the weight, ``[..., rows, d_in]``.
            bias: of the bias, ``[..., rows, 1]``, or None.
            factor: of the metric.
        """
        return factor.solve(weight, bias)

    def of_solution(self, solution: Tensor, gradient: Tensor) -> Tensor:
        """The direction, from the solution ``h`` of the other solvers and ``g~``, both ``[groups, rows, columns]``."""
        return solution

    def scales(self, steps: Steps) -> Tensor:
        """What the directions are multiplied by beside ``lr``, ``[layers + others]``.

        Here: the size of layers is in their directions, and other parameters' steps are bounded one by one.
        """
        scales = torch.ones_like(steps.products)
        scales[steps.layers :] = layer_scale(steps.products[steps.layers :], steps.min_norm)
        return scales


def layer_scale(products: Tensor, min_norm: float) -> Tensor:
    """``1 / max(min_norm, sqrt(max(0, <h, g~>)))`` of each layer."""
    return products.clamp(min=0).sqrt().clamp(min=min_norm).reciprocal()
