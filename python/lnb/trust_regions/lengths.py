"""The lengths of the steps of a device's layers: the trust region bounds them, then the weights' bound, then damping."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lnb.config import Config
from lnb.context import StepContext
from lnb.damping import Agreement, Gain, expected_squares, radii
from lnb.solvers.solve import Solution
from lnb.statistics.arenas import Arenas, constant
from lnb.trust_regions import Steps
from lnb.verdict import Verdict
from lnb.weight_bound import WeightBound
from lnb_kernels import multi_tensor
from lnb_kernels.scaling import sum_dtype
from lnb_kernels.two_sided.reference import agreement_of, row_squares

_LARGEST_SCALE = 0.875  # power of the largest number


def products_of(
    context: StepContext, solution: Solution, others: list[Tensor], averages: dict[nn.Parameter, Tensor]
) -> Tensor:
    """``<h, g~>`` of every layer, then of every other parameter, ``[layers + others]``.

    A direction with NaN or inf makes its product NaN or inf: no other check of the directions is needed. It is NaN also for
    a layer whose inputs are too large to be squared, which has no direction.
    """
    device = context.parameters[0].device
    total = torch.zeros(len(context.layers) + len(others), dtype=sum_dtype(device), device=device)
    if solution.sums is not None:
        total.index_copy_(0, constant(solution.summed, device), solution.sums[:, 0].to(total.dtype))
    known = set(solution.summed)
    rest = [k for k, owner in enumerate(context.owners) if owner not in known]
    if rest:
        directions = [part for parts in solution.parts for part in parts] + others
        place = {owner: i for i, owner in enumerate(dict.fromkeys(context.owners[k] for k in rest))}
        given = [averages[context.parameters[k]] for k in rest]
        sums = multi_tensor.dot([directions[k] for k in rest], given, [place[context.owners[k]] for k in rest])
        total.index_copy_(0, constant(tuple(place), device), sums.to(total))
    flags = {i: layer.squarable for i, layer in enumerate(context.layers) if layer.squarable is not None}
    if flags:
        index = constant(tuple(flags), device)
        squarable = torch.stack(list(flags.values()))
        total.index_copy_(0, index, torch.where(squarable, total[index], math.nan))
    return total


def in_region(products: Tensor, context: StepContext, config: Config) -> Tensor:
    """The products that the region of all layers adds up. Adam's directions have none: they belong to no metric."""
    finite = torch.where(products.isfinite(), products, 0.0)
    return finite[: len(context.layers)] if config.others == "adamw" else finite


def region_scales(
    context: StepContext,
    directions: list[Tensor],
    products: Tensor,
    verdict: Verdict,
    config: Config,
    total: Tensor | None,
) -> Tensor:
    """What the directions of every layer and every other parameter are multiplied by; 0 where they are not finite.

    Args:
        context: the layers and other parameters of a device.
        directions: of every parameter.
        products: ``<h, g~>`` of every layer and of every other parameter, ``[layers + others]``.
        verdict: whether the host may wait for the device.
        config: the optimizer's settings.
        total: the sum of what is in the region over all devices; None where this one has all of it.
    """
    finite = products.isfinite()
    own = torch.where(finite, products, 0.0)
    if total is None:
        total = in_region(products, context, config).sum()
    scales = config.region.scales(
        Steps(own, len(context.layers), directions, context.owners, total.to(own), config.min_norm, verdict.known)
    )
    if config.others == "adamw":
        scales[len(context.layers) :] = config.others_lr
    # What a direction's dtype cannot hold would turn entries of 0 into NaN; lr has the room of the power.
    most = min(torch.finfo(dtype).max for dtype in {direction.dtype for direction in directions})
    return torch.where(finite, scales, 0.0).clamp(max=most**_LARGEST_SCALE)


@dataclass
class Lengths:
    """Squared norms of every layer's direction, ``[layers]``; 0 where that is not finite, and the layer makes no step.

    Attributes:
        free: ``||h_W||^2`` before rows were multiplied by their agreement.
        damped: after it.
        averages: ``||g~||^2`` of weight and bias; None without agreement.
    """

    free: Tensor
    damped: Tensor
    averages: Tensor | None


def measure_lengths(
    context: StepContext, solution: Solution, averages: dict[nn.Parameter, Tensor], agreement: Agreement | None
) -> Lengths:
    """The lengths of the directions. Rows of ``solution`` that still lack their agreement are multiplied by it first."""
    layers = range(len(context.layers))
    rest = [i for i in layers if i not in set(solution.summed)]
    wide = sum_dtype(context.parameters[0].device)
    free = damped = average = None
    if rest:
        free = damped = _squares([solution.parts[i][0] for i in rest], wide)
        if agreement is not None:
            average = torch.stack([_damp(i, context, solution, averages, agreement) for i in rest])
            damped = _squares([solution.parts[i][0] for i in rest], wide)

    def joined(column: int, late: Tensor | None) -> Tensor:
        both = ([] if solution.sums is None else [solution.sums[:, column]]) + ([] if late is None else [late])
        values = both[0] if len(both) == 1 else torch.cat(both)
        order = (*solution.summed, *rest)
        if order != tuple(layers):
            values = torch.zeros_like(values).index_copy_(0, constant(order, values.device), values)
        return torch.where(values.isfinite(), values, 0.0)

    return Lengths(joined(2, free), joined(1, damped), None if agreement is None else joined(3, average))


def _squares(tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors, dtype=dtype)).square()


def _damp(
    i: int, context: StepContext, solution: Solution, averages: dict[nn.Parameter, Tensor], agreement: Agreement
) -> Tensor:
    """Multiply the rows of a layer's direction by their agreement; returns ``||g~||^2``, ``[]``."""
    each = context.layers[i]
    shape = each.layer.shape[:2]
    weight, *bias = (averages[parameter].view(*shape, -1) for parameter in each.parameters)
    square = row_squares(weight, bias[0] if bias else None, agreement.counted([i]))
    factor = agreement_of(square, agreement.row_squares[i].unsqueeze(-1))
    solution.parts[i] = [(part.view(*shape, -1) * factor.to(part.dtype)).view_as(part) for part in solution.parts[i]]
    return square.sum()


def shortened(
    context: StepContext,
    solution: Solution,
    lengths: Lengths,
    agreement: Agreement | None,
    scales: Tensor,
    verdict: Verdict,
    config: Config,
    arenas: Arenas,
    weight_norms: Tensor | None = None,
) -> tuple[Tensor, dict[nn.Parameter, Tensor]]:
    """The ``scales`` after the weights' bound and damping, and the factors by which weights that grew are shortened.

    ``weight_norms`` are those of all layers' weights where a layer here is a shard of one, ``[layers]``.
    """
    layers = len(context.layers)
    own = scales[:layers]
    rates = context.rates(own)
    gain = Gain(context.layers, verdict, arenas) if config.damping == "gain" else None
    if gain is not None:
        own = torch.minimum(own, gain.fractions(own) / config.min_norm)
    bound = None
    shorter: dict[nn.Parameter, Tensor] = {}
    if config.max_relative_change is not None:
        bound = WeightBound(context.layers, config, rates, verdict, arenas)
        shorter = bound.measure(own, lengths.free, weight_norms)
        own = own * bound.factors(own, lengths.free)
    if agreement is not None and lengths.averages is not None:
        expected = expected_squares(context.layers, agreement, verdict, config, arenas)
        turned = None if bound is None else bound.turned
        own = own * radii(context.layers, lengths.averages, expected, agreement, verdict, config, arenas, turned)
    if bound is not None:
        bound.note_growth(own, lengths.damped)
    if gain is not None:
        gain.remember(solution.parts, own * rates)
    return torch.cat([own, scales[layers:]]) if len(scales) > layers else own, shorter
