"""From averaged gradients to directions, layer by layer or batched over layers of one shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import lnb_kernels as lk
from lnb.arenas import sums_of
from lnb.columns import ColumnProblem, column_directions_
from lnb.damping import Agreement
from lnb.equations import Equation, solve_equation, solve_joined
from lnb.factored import Factor
from lnb.metric import begin_block, keep_direction
from lnb.refresh import matrices
from lnb.shared_iterations import solve_shared
from lnb.trust_regions import TrustRegion
from lnb.verdict import Verdict
from lnb.work import BlockWork

# On the CPU, layers of one shape are solved in one call up to this many entries: above, stacking them costs more than the
# calls it saves.
_STACKED = 1 << 15


@dataclass
class Solution:
    """The directions ``h`` of the layers of a step.

    Attributes:
        parts: per layer, one tensor for each of its moving parameters.
        residuals: per layer CG's last residual norms, where there are any.
        summed: the places of the layers in ``sums``. The rows of their directions are multiplied by their agreement already.
        sums: ``<h, g~>``, ``||h_W||^2``, the same before rows were multiplied by their agreement, and ``||g~||^2`` of weight
            and bias, ``[len(summed), 4]``.
    """

    parts: list[list[Tensor]]
    residuals: dict[int, Tensor] = field(default_factory=dict)
    summed: tuple[int, ...] = ()
    sums: Tensor | None = None


def solve(
    works: list[BlockWork],
    averages: dict[nn.Parameter, Tensor],
    verdict: Verdict,
    agreement: Agreement | None = None,
    add: Callable[[list[BlockWork], Tensor], Tensor] | None = None,
) -> Solution:
    """The directions of all layers of one device, in the order of ``works``. Layers that keep a factor have it already.

    Where the layers are rows of layers, ``add`` makes sums over all rows of those here, ``[layers, n]`` of some of the layers.
    """
    solution = Solution([[] for _ in works])
    two_sided = [i for i, work in enumerate(works) if work.config.region.two_sided]
    if two_sided:
        _solve_two_sided(solution, works, two_sided, averages, agreement)
    others = [i for i, work in enumerate(works) if work.config.factored and not work.config.region.two_sided]
    for batch in _batched([_Batch.of_layer(i, works[i], averages) for i in others]):
        weight, bias = batch.region.direction(batch.weight, batch.bias, batch.factor)
        weights, biases = batch.unstacked(weight), batch.unstacked(bias)
        for k, i in enumerate(batch.members):
            solution.parts[i] = works[i].block.shaped([weights[k], *biases[k : k + 1]])
    _iterate(solution, works, [i for i, work in enumerate(works) if not work.config.factored], averages, verdict, add)
    return solution


def _solve_two_sided(
    solution: Solution,
    works: list[BlockWork],
    members: list[int],
    averages: dict[nn.Parameter, Tensor],
    agreement: Agreement | None,
) -> None:
    """The directions of the two-sided region, in one call per dtype.

    They take the place of the averages: nothing needs these any more, and new tensors would cost a CPU more than the solution
    of small layers.
    """
    by_dtype: dict[torch.dtype, list[int]] = {}
    cut = [i for i in members if works[i].block.columns is not None]
    for i in members:
        if i not in set(cut):
            by_dtype.setdefault(averages[works[i].parameters[0]].dtype, []).append(i)
    sums = []
    for alike in by_dtype.values():
        given = [matrices(works[i], averages) for i in alike]
        factors = [_factor(works[i]) for i in alike]
        found = lk.two_sided_directions_(
            [weight for weight, _ in given],
            [bias for _, bias in given],
            [factor.matrix for factor in factors],
            [factor.mean for factor in factors],
            [works[i].state["output_factor"] for i in alike],
            None if agreement is None else [agreement.rows[i] for i in alike],
            1.0 if agreement is None else agreement.noise,
        )
        sums.append(sums_of(found, tuple(works[i].block.groups for i in alike)))
    if cut:
        problems = [_columns(works[i], averages, None if agreement is None else agreement.rows[i]) for i in cut]
        sums.append(column_directions_(problems, 1.0 if agreement is None else agreement.noise))
    for i in members:
        solution.parts[i] = [averages[parameter] for parameter in works[i].parameters]
    solution.summed = (*(i for alike in by_dtype.values() for i in alike), *cut)
    solution.sums = sums[0] if len(sums) == 1 else torch.cat(sums)


def _columns(work: BlockWork, averages: dict[nn.Parameter, Tensor], squares: Tensor | None) -> ColumnProblem:
    assert work.block.columns is not None
    return ColumnProblem(
        *matrices(work, averages), _factor(work), work.state["output_factor"], squares, work.block.columns
    )


def _factor(work: BlockWork) -> Factor:
    """The layer's factor, as far as this step's parameters need it."""
    state = work.state
    mean = state.get("factor_mean")
    if not work.with_bias:
        mean = None  # the bias was frozen since the last refresh
    elif mean is None:
        mean = state["factor"].new_zeros(work.block.shape[0], work.block.d_in)  # or thawed
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
    def of_layer(i: int, work: BlockWork, averages: dict[nn.Parameter, Tensor]) -> _Batch:
        """The layer in place ``i``."""
        weight, bias = matrices(work, averages)
        return _Batch((i,), weight, bias, _factor(work), work.config.region)

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
        """``tensor`` of every member; nothing for None."""
        if tensor is None:
            return ()
        return (tensor,) if len(self.members) == 1 else tensor.unbind()

    @property
    def stays_alone(self) -> bool:
        """On the CPU the stack of large layers costs more than it saves."""
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


def _iterate(
    solution: Solution,
    works: list[BlockWork],
    members: list[int],
    averages: dict[nn.Parameter, Tensor],
    verdict: Verdict,
    add: Callable[[list[BlockWork], Tensor], Tensor] | None,
) -> None:
    """One layer at a time, so that only one has its copies in memory; small ones wait, to be solved in one call.

    Layers whose rows are elsewhere too, and share a step length, wait for each other.
    """
    waiting: dict[int, Equation] = {}
    shared: dict[int, Equation] = {}
    for i in members:
        work = works[i]
        gradient = work.block.join([averages[parameter] for parameter in work.parameters])
        begun = begin_block(work, gradient, verdict, work.config)
        if isinstance(begun, Tensor):
            solution.parts[i] = _shaped(work, begun, gradient)
        elif add is not None and begun.scope == "layer":
            shared[i] = begun
        elif begun.joins:
            waiting[i] = begun
        else:
            _finish(solution, i, work, begun, solve_equation(begun), verdict)
    if shared and add is not None:
        of_shared, add_all = [works[i] for i in shared], add
        found = solve_shared(list(shared.values()), lambda values: add_all(of_shared, values))
        for i, solved in zip(shared, found, strict=True):
            _finish(solution, i, works[i], shared[i], solved, verdict)
    for i, solved in zip(waiting, solve_joined(list(waiting.values())), strict=True):
        _finish(solution, i, works[i], waiting[i], solved, verdict)


def _finish(
    solution: Solution,
    i: int,
    work: BlockWork,
    equation: Equation,
    solved: tuple[Tensor, Tensor],
    verdict: Verdict,
) -> None:
    found, solution.residuals[i] = solved
    keep_direction(work, found, equation.has_rows, verdict)
    solution.parts[i] = _shaped(work, found, equation.gradient)


def _shaped(work: BlockWork, matrix: Tensor, gradient: Tensor) -> list[Tensor]:
    return work.block.split(work.config.region.of_solution(matrix, gradient))
