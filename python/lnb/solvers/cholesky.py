"""The solver ``"cholesky"``: a cached factor of the metric, refreshed when the second moment is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import lnb_kernels as lk
from lnb.context import LayerContext, moment_blocks
from lnb.sharded.columns import LayerColumns, column_directions_
from lnb.solvers.base import Solver
from lnb.statistics.arenas import sums_of
from lnb.statistics.factored import Factor, block_count
from lnb.statistics.orthogonalize import INVERSE_ROOT_FLOPS
from lnb.statistics.refresh import matrices

if TYPE_CHECKING:
    from lnb.config import Config
    from lnb.damping import Agreement
    from lnb.layers.capture import Samples
    from lnb.layers.claimed import Layer
    from lnb.planning.pricing import Pricing
    from lnb.solvers.solution import Solution, SolverInputs
    from lnb.trust_regions import TrustRegion

# On the CPU, layers of one shape are solved in one call up to this many entries: above, stacking them costs more than the
# calls it saves.
_STACKED = 1 << 15
# Small operations of one solution, of a refresh, and of a refresh of the output moments, counted on the CPU.
_CALLS_SOLUTION = 8
_CALLS_REFRESH = 45
_CALLS_OUTPUT_REFRESH = 100


class Cholesky(Solver):
    """``h = g~ S^-1`` from diagonal blocks of ``C^-1``, or of ``L^-1`` where the trust region whitens.

    :mod:`lnb.statistics.factored` derives them, and the refresh stage (:mod:`lnb.statistics.refresh`) makes them before solvers
    are called. It keeps blocks of ``block_size`` inputs, ``d_in block_size`` numbers, as many for their average where one is
    remembered, and the mean of the inputs; and with the two-sided region as much again for the outputs. A refresh costs
    ``d_in block_size^2`` operations, a solution one product of the gradient with the blocks, or what the trust region makes of
    them.
    """

    name = "cholesky"
    factored = True
    keeps_feature_moments = False

    def suits(self, layer: Layer, config: Config, samples: Samples, dual: bool) -> str | None:
        """It suits every layer."""
        return "exact, a factor of each second moment"

    def solve(self, solution: Solution, members: Sequence[int], given: SolverInputs) -> None:
        """Layers of the two-sided region in one call per dtype, those of other regions batched by shape."""
        contexts, averages = given.contexts, given.averages
        two_sided = [i for i in members if contexts[i].config.region.two_sided]
        if two_sided:
            _solve_two_sided(solution, contexts, two_sided, averages, given.agreement)
        others = [i for i in members if not contexts[i].config.region.two_sided]
        for batch in _batched([_Batch.of_layer(i, contexts[i], averages) for i in others]):
            weight, bias = batch.region.direction(batch.weight, batch.bias, batch.factor)
            weights, biases = batch.unstacked(weight), batch.unstacked(bias)
            for k, i in enumerate(batch.members):
                solution.parts[i] = contexts[i].layer.shaped([weights[k], *biases[k : k + 1]])

    def describe(self, layer: Layer, config: Config) -> tuple[str, str]:
        """How a layer is solved, and why so, in words."""
        count = moment_blocks(layer, config)
        words = "factor" if count == 1 else f"factor, {count} blocks of {layer.d_in // count}"
        needed = config.region.needs_factor
        return words, "the trust region needs a factor" if needed else "a factor serves until the next refresh"

    def step_flops(self, layer: Layer, config: Config) -> int:
        """FLOPs of the products with the blocks of the factor and of the outputs."""
        size = layer.d_in // moment_blocks(layer, config)
        side = _output_side(layer, config) if config.region.two_sided else 0
        return 2 * layer.numbers * (config.region.block_products * size + side)

    def refresh_flops(self, layer: Layer, config: Config) -> int:
        """FLOPs of the factor, and of the output moment and its root."""
        size = layer.d_in // moment_blocks(layer, config)
        flops = layer.groups * layer.d_in * size**2
        if config.region.two_sided:
            side = _output_side(layer, config)
            flops += _root_flops(layer, side) + 2 * layer.numbers * (size + side)
        return flops

    def seconds(self, price: Pricing) -> tuple[float, float]:
        """Times of a refresh and of a solution. The products with the output blocks count for the trust region."""
        config, rates = price.config, price.rates
        count = price.blocks
        size = price.inputs // count
        square = price.groups * count * (size + 1) ** 2
        refresh = price.passes_over(square, 10 if config.b_s > 0 else 4) + rates.calls(_CALLS_REFRESH)
        refresh += rates.seconds("factor", price.wide, size, price.groups * count * size**3)
        refresh += price.passes_over(price.groups * count * size**2, 8)
        sides = config.region.block_products
        solve = sides * price.block_product(size) + price.passes_over(price.numbers, 6) + rates.calls(_CALLS_SOLUTION)
        if config.region.two_sided:
            side = _output_side(price.layer, config)
            refresh += rates.seconds("batched", price.wide, side, _root_flops(price.layer, side))
            refresh += price.block_product(size) + price.block_product(side)
            refresh += rates.calls(_CALLS_OUTPUT_REFRESH)
        return refresh, solve


def _output_side(layer: Layer, config: Config) -> int:
    """The neurons of one block of the output moment."""
    return layer.shape[1] // block_count(layer.shape[1], config.block_size)


def _root_flops(layer: Layer, side: int) -> int:
    """FLOPs of the inverse roots of all output blocks."""
    return layer.shape[0] * layer.shape[1] * INVERSE_ROOT_FLOPS * side**2


def _solve_two_sided(
    solution: Solution,
    contexts: list[LayerContext],
    members: list[int],
    averages: dict[nn.Parameter, Tensor],
    agreement: Agreement | None,
) -> None:
    """The directions of the two-sided region, in one call per dtype.

    They take the place of the averages: nothing needs these any more, and new tensors would cost a CPU more than the solution
    of small layers.
    """
    by_dtype: dict[torch.dtype, list[int]] = {}
    cut = [i for i in members if contexts[i].layer.columns is not None]
    for i in members:
        if i not in set(cut):
            by_dtype.setdefault(averages[contexts[i].parameters[0]].dtype, []).append(i)
    sums = []
    for alike in by_dtype.values():
        given = [matrices(contexts[i], averages) for i in alike]
        factors = [_factor(contexts[i]) for i in alike]
        found = lk.two_sided_directions_(
            [weight for weight, _ in given],
            [bias for _, bias in given],
            [factor.matrix for factor in factors],
            [factor.mean for factor in factors],
            [contexts[i].state["output_factor"] for i in alike],
            None if agreement is None else [agreement.row_squares[i] for i in alike],
            None if agreement is None else agreement.counted(alike),
        )
        sums.append(sums_of(found, tuple(contexts[i].layer.groups for i in alike)))
    if cut:
        sums.append(column_directions_([_columns(contexts[i], averages, agreement, i) for i in cut]))
    for i in members:
        solution.parts[i] = [averages[parameter] for parameter in contexts[i].parameters]
    solution.summed = (*(i for alike in by_dtype.values() for i in alike), *cut)
    solution.sums = sums[0] if len(sums) == 1 else torch.cat(sums)


def _columns(
    context: LayerContext, averages: dict[nn.Parameter, Tensor], agreement: Agreement | None, i: int
) -> LayerColumns:
    assert context.layer.columns is not None
    squares = counted = None
    if agreement is not None:
        squares, counted = agreement.row_squares[i], agreement.counted([i])
    root, columns = context.state["output_factor"], context.layer.columns
    return LayerColumns(*matrices(context, averages), _factor(context), root, squares, counted, columns)


def _factor(context: LayerContext) -> Factor:
    """The layer's factor, as far as this step's parameters need it."""
    state = context.state
    mean = state.get("factor_mean")
    if not context.with_bias:
        mean = None  # the bias was frozen since the last refresh
    elif mean is None:
        mean = state["factor"].new_zeros(context.layer.shape[0], context.layer.d_in)  # or thawed
    return Factor(state["factor"], mean)


@dataclass(frozen=True)
class _Batch:
    """Layers that are solved in one call: one of them, or some of one shape, stacked.

    Attributes:
        members: their places among the layers.
        weight: ``g~`` of the weight, ``[groups, rows, d_in]``; of several layers ``[layers, groups, rows, d_in]``.
        bias: of the bias, ``[.., rows, 1]``.
        factor: of their metrics.
    """

    members: tuple[int, ...]
    weight: Tensor
    bias: Tensor | None
    factor: Factor
    region: TrustRegion

    @staticmethod
    def of_layer(i: int, context: LayerContext, averages: dict[nn.Parameter, Tensor]) -> _Batch:
        """The layer in place ``i``."""
        weight, bias = matrices(context, averages)
        return _Batch((i,), weight, bias, _factor(context), context.config.region)

    @staticmethod
    def stacked(batches: list[_Batch]) -> _Batch:
        """Layers of one shape and trust region."""
        biases = [batch.bias for batch in batches if batch.bias is not None]
        means = [batch.factor.mean for batch in batches if batch.factor.mean is not None]
        return _Batch(
            tuple(i for batch in batches for i in batch.members),
            torch.stack([batch.weight for batch in batches]),
            torch.stack(biases) if biases else None,
            Factor(torch.stack([batch.factor.matrix for batch in batches]), torch.stack(means) if means else None),
            batches[0].region,
        )

    def unstacked(self, tensor: Tensor | None) -> Sequence[Tensor]:
        """``tensor`` for every member; nothing for None."""
        if tensor is None:
            return ()
        return (tensor,) if len(self.members) == 1 else tensor.unbind()

    @property
    def stays_alone(self) -> bool:
        """Whether stacking pays: on the CPU, stacks of large layers cost more than they save."""
        return self.weight.is_cpu and self.weight.numel() > _STACKED

    @property
    def kind(self) -> tuple[object, ...]:
        """What layers of one stack have in common."""
        return self.weight.shape, self.bias is None, self.factor.matrix.shape, self.weight.dtype, self.region


def _batched(layers: list[_Batch]) -> list[_Batch]:
    """The layers, those of one kind stacked."""
    alike: dict[tuple[object, ...], list[_Batch]] = {}
    for layer in layers:
        if not layer.stays_alone:
            alike.setdefault(layer.kind, []).append(layer)
    stacks = [members[0] if len(members) == 1 else _Batch.stacked(members) for members in alike.values()]
    return [layer for layer in layers if layer.stays_alone] + stacks
