"""From averaged gradients to directions, layer by layer or batched over layers of one shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

import lnb_kernels as lk
from lnb.balance import output_moment
from lnb.config import Config
from lnb.damping import Agreement
from lnb.equations import Equation, solve_equation, solve_joined
from lnb.factored import Factor, block_count, factorize
from lnb.metric import begin_block, keep_direction
from lnb.orthogonalize import inverse_root
from lnb.statistics import average_second_moment, few_samples, ridge_of
from lnb.trust_region import spectral_direction
from lnb.verdict import Verdict
from lnb.work import BlockWork
from lnb_kernels.balanced.reference import row_scale
from lnb_kernels.scaling import sum_dtype

# On the CPU, layers of one shape are solved in one call up to this many entries: above, stacking them costs more than the
# calls it saves.
_STACKED = 1 << 15


@dataclass(frozen=True)
class Direction:
    """One layer's ``h``, one tensor for each of its moving parameters.

    Attributes:
        residual: CG's last residual norms, where there are any.
        product: ``<h, g~>``, where the solver has it.
        squared_norm: ``||h_W||^2``, where the solver has it.
        free_squared_norm: the same before rows were multiplied by their agreement.
        squared_average: ``||g~||^2`` of weight and bias, where the solver has it.
        damped: whether the rows are multiplied by their agreement already.
    """

    parts: list[Tensor]
    residual: Tensor | None = None
    product: Tensor | None = None
    squared_norm: Tensor | None = None
    free_squared_norm: Tensor | None = None
    squared_average: Tensor | None = None
    damped: bool = False


def solve(
    works: list[BlockWork], averages: dict[nn.Parameter, Tensor], verdict: Verdict, squares: Agreement | None = None
) -> list[Direction]:
    """The directions of all layers, in the order of ``works``; their statistics are updated."""
    factored = [i for i, work in enumerate(works) if work.config.factored]
    of_factored = None if squares is None else squares.among(factored)
    solved = iter(_solve_factored([works[i] for i in factored], averages, verdict, of_factored))
    iterated = iter(_iterate([work for work in works if not work.config.factored], averages, verdict))
    return [next(solved if work.config.factored else iterated) for work in works]


def _solve_factored(
    works: list[BlockWork], averages: dict[nn.Parameter, Tensor], verdict: Verdict, squares: Agreement | None
) -> list[Direction]:
    each = [None] * len(works) if squares is None else squares.rows
    layers = [_Batch.of_layer(i, work, averages, verdict, each[i]) for i, work in enumerate(works)]
    batches = _batched(layers)
    found: dict[int, Direction] = {}
    solved = _directions(batches, 1.0 if squares is None else squares.noise)
    for batch, (weight, bias, sums) in zip(batches, solved, strict=True):
        weights, biases = batch.unstacked(weight), batch.unstacked(bias)
        for k, i in enumerate(batch.members):
            parts = works[i].block.shaped([weights[k], *biases[k : k + 1]])
            if sums is None:
                found[i] = Direction(parts)
            else:
                product, norm, free_norm, average = sums[k].unbind()
                found[i] = Direction(
                    parts,
                    product=product,
                    squared_norm=norm,
                    free_squared_norm=free_norm,
                    squared_average=average,
                    damped=squares is not None,
                )
    return [found[i] for i in range(len(works))]


@dataclass(frozen=True)
class _Batch:
    """Layers that are solved in one call: one of them, or some of one shape, stacked.

    Attributes:
        members: their places among the layers.
        weight: ``g~`` of the weight, ``[groups, rows, d_in]``; of several layers ``[layers, groups, rows, d_in]``.
        bias: of the bias, ``[.., rows, 1]``.
        factor: of their metrics.
        output: ``P^(-1/2)`` of their outputs, for the balanced region.
        squares: the mean squares of their rows' gradients, for agreement.
    """

    members: tuple[int, ...]
    weight: Tensor
    bias: Tensor | None
    factor: Factor
    output: Tensor | None
    squares: Tensor | None
    trust_region: str

    @staticmethod
    def of_layer(
        i: int, work: BlockWork, averages: dict[nn.Parameter, Tensor], verdict: Verdict, squares: Tensor | None
    ) -> _Batch:
        """The layer in place ``i``; its factor is made anew if this step gathered its second moment."""
        weight, bias = _matrices(work, averages)
        factor, output = _refresh(work, (weight, bias), verdict)
        return _Batch((i,), weight, bias, factor, output, squares, work.config.trust_region)

    @staticmethod
    def stacked(batches: list[_Batch]) -> _Batch:
        """Layers of one shape and trust region."""
        biases = [batch.bias for batch in batches if batch.bias is not None]
        means = [batch.factor.mean for batch in batches if batch.factor.mean is not None]
        outputs = [batch.output for batch in batches if batch.output is not None]
        squares = [batch.squares for batch in batches if batch.squares is not None]
        return _Batch(
            tuple(i for batch in batches for i in batch.members),
            torch.stack([batch.weight for batch in batches]),
            torch.stack(biases) if biases else None,
            Factor(torch.stack([batch.factor.matrix for batch in batches]), torch.stack(means) if means else None),
            torch.stack(outputs) if outputs else None,
            torch.stack(squares) if squares else None,
            batches[0].trust_region,
        )

    def unstacked(self, tensor: Tensor | None) -> Sequence[Tensor]:
        """``tensor`` of every member; nothing for None."""
        if tensor is None:
            return ()
        return (tensor,) if len(self.members) == 1 else tensor.unbind()

    @property
    def groups(self) -> int:
        """Matrices of each layer."""
        return self.weight.shape[-3]

    @property
    def stays_alone(self) -> bool:
        """On the CPU the balanced region's op takes lists, and the stack of large layers costs more than it saves."""
        return self.weight.is_cpu and (self.output is not None or self.weight.numel() > _STACKED)

    @property
    def kind(self) -> tuple[object, ...]:
        """What layers of one stack have in common."""
        weight, output = self.weight, None if self.output is None else self.output.shape
        return (
            weight.shape,
            self.bias is None,
            self.factor.matrix.shape,
            output,
            weight.dtype,
            weight.device,
            self.trust_region,
        )


def _batched(layers: list[_Batch]) -> list[_Batch]:
    """The layers, those of one kind stacked."""
    alike: dict[tuple[object, ...], list[_Batch]] = {}
    for layer in layers:
        if not layer.stays_alone:
            alike.setdefault(layer.kind, []).append(layer)
    stacks = [members[0] if len(members) == 1 else _Batch.stacked(members) for members in alike.values()]
    return [layer for layer in layers if layer.stays_alone] + stacks


_Solved: TypeAlias = tuple[Tensor, Tensor | None, Sequence[Tensor] | None]  # weight, bias, sums of every layer [4]


def _directions(batches: list[_Batch], noise: float) -> list[_Solved]:
    """The directions of every batch; those of the balanced region in one call per device and dtype."""
    together: dict[tuple[torch.device, torch.dtype], list[_Batch]] = {}
    for batch in batches:
        if batch.output is not None:
            together.setdefault((batch.weight.device, batch.weight.dtype), []).append(batch)
    solved: dict[int, _Solved] = {}
    for alike in together.values():
        # In place: nothing needs the averages any more, and new tensors would cost a CPU more than the solution of small layers.
        squares = [batch.squares for batch in alike if batch.squares is not None]
        sums = lk.balanced_directions_(
            [batch.weight for batch in alike],
            [batch.bias for batch in alike],
            [batch.factor.matrix for batch in alike],
            [batch.factor.mean for batch in alike],
            [batch.output for batch in alike if batch.output is not None],
            squares or None,
            noise,
        )
        of_layers = iter(_sums(sums, [batch.groups for batch in alike for _ in batch.members]))
        for batch in alike:
            solved[batch.members[0]] = batch.weight, batch.bias, [next(of_layers) for _ in batch.members]
    return [(*_direction(batch), None) if batch.output is None else solved[batch.members[0]] for batch in batches]


def _sums(sums: Tensor, counts: list[int]) -> Sequence[Tensor]:
    """The sum of each run of ``counts[i]`` rows of ``sums``, ``[4]`` each."""
    return sums.unbind() if max(counts) == 1 else [run.sum(0) for run in sums.split(counts)]


def _direction(batch: _Batch) -> tuple[Tensor, Tensor | None]:
    """The directions of the other regions that have a factor."""
    weight, bias, factor = batch.weight, batch.bias, batch.factor
    if batch.trust_region == "spectral":
        if bias is None:
            return spectral_direction(weight, factor), None
        joined = spectral_direction(torch.cat([weight, bias], dim=-1), factor)
        return joined[..., :-1], joined[..., -1:]
    step, step_bias = factor.solve(weight, bias)
    if batch.trust_region == "neuron":
        if bias is None or step_bias is None:
            return _scaled(step, _neuron_scale((step, weight))), None
        scale = _neuron_scale((step, weight), (step_bias, bias))
        return _scaled(step, scale), _scaled(step_bias, scale)
    return step, step_bias


def _neuron_scale(*parts: tuple[Tensor, Tensor]) -> Tensor:
    """``1 / sqrt(<h_i, g~_i>)`` of every row, ``[..., rows, 1]``, from the parts of ``h`` and ``g~``, in the dtype of sums:
    for a gradient near the least float32 it is larger than the largest."""
    wide = sum_dtype(parts[0][0].device)
    products = sum((h.to(wide) * g.to(wide)).sum(-1, keepdim=True) for h, g in parts)
    return row_scale(cast(Tensor, products))


def _scaled(step: Tensor, scale: Tensor) -> Tensor:
    """``step * scale``, multiplied in the dtype of ``scale``, in that of ``step``."""
    return (step * scale).to(step.dtype)


def _iterate(works: list[BlockWork], averages: dict[nn.Parameter, Tensor], verdict: Verdict) -> list[Direction]:
    """One layer at a time, so that only one has its copies in memory; small ones wait, to be solved in one call."""
    found: dict[int, Direction] = {}
    waiting: dict[int, Equation] = {}
    for i, work in enumerate(works):
        gradient = work.block.join([averages[parameter] for parameter in work.parameters])
        begun = begin_block(work, gradient, verdict, work.config)
        if isinstance(begun, Tensor):
            found[i] = _shaped(work, begun, gradient, None)
        elif begun.joins:
            waiting[i] = begun
        else:
            found[i] = _finish(work, begun, solve_equation(begun), verdict)
    for i, solved in zip(waiting, solve_joined(list(waiting.values())), strict=True):
        found[i] = _finish(works[i], waiting[i], solved, verdict)
    return [found[i] for i in range(len(works))]


def _finish(work: BlockWork, equation: Equation, solved: tuple[Tensor, Tensor], verdict: Verdict) -> Direction:
    solution, residual = solved
    keep_direction(work, solution, equation.has_rows, verdict)
    return _shaped(work, solution, equation.gradient, residual)


def _shaped(work: BlockWork, matrix: Tensor, gradient: Tensor, residual: Tensor | None) -> Direction:
    if work.config.trust_region == "neuron":
        matrix = _scaled(matrix, _neuron_scale((matrix, gradient)))
    return Direction(work.block.split(matrix), residual)


def _matrices(work: BlockWork, averages: dict[nn.Parameter, Tensor]) -> tuple[Tensor, Tensor | None]:
    """``g~`` of the weight ``[groups, rows, d_in]`` and of the bias ``[groups, rows, 1]``."""
    groups, rows, d_in = work.block.shape
    weight, *bias = (averages[parameter] for parameter in work.parameters)
    return weight.reshape(groups, rows, d_in), bias[0].reshape(groups, rows, 1) if bias else None


def _refresh(work: BlockWork, gradient: tuple[Tensor, Tensor | None], verdict: Verdict) -> tuple[Factor, Tensor | None]:
    """The layer's factor and that of its outputs, made anew if this step gathered its second moment."""
    state, config = work.state, work.config
    balanced = config.trust_region == "balanced"
    if work.moments is not None:
        second_moment = average_second_moment(work, verdict, config.b_s, keep=config.b_s > 0)
        spectral = config.trust_region == "spectral"
        relative = config.ridge_mode == "relative"
        share: float | Tensor = work.ridge
        if relative and config.sample_ridge > 0:
            share = share + config.sample_ridge * few_samples(work, second_moment)
        ridge = ridge_of(second_moment, share, relative, work.with_bias)
        fresh = factorize(second_moment, ridge, work.with_bias, inverse=not spectral)
        if balanced:
            _keep(work, "output_factor", _output_factor(work, gradient, fresh, verdict, config), verdict)
        _keep(work, "factor_mean", fresh.mean, verdict)
        _keep(
            work, "factor", fresh.matrix, verdict
        )  # last: a layer that has it needs no refresh, and a step may break off
    mean = state.get("factor_mean")
    if not work.with_bias:
        mean = None  # the bias was frozen since the last refresh
    elif mean is None:
        mean = state["factor"].new_zeros(work.block.shape[0], work.block.d_in)  # or thawed
    return Factor(state["factor"], mean), state["output_factor"] if balanced else None


def _output_factor(
    work: BlockWork, gradient: tuple[Tensor, Tensor | None], factor: Factor, verdict: Verdict, config: Config
) -> Tensor:
    """``P^(-1/2)`` of the averaged second moment of the neurons' gradients.

    The average is not corrected for its start at zero: its scale has no effect on a direction that is scaled row by row.
    """
    moment = output_moment(*gradient, factor, block_count(work.block.shape[1], config.block_size))
    if config.b_s > 0:
        kept = work.state.get("output_moment")
        if kept is None or kept.shape != moment.shape:
            kept = torch.zeros_like(moment)
        moment = torch.lerp(kept, moment, 1 - config.b_s)
        _keep(work, "output_moment", moment, verdict)
    return inverse_root(moment)


def _keep(work: BlockWork, name: str, value: Tensor | None, verdict: Verdict) -> None:
    """Remember ``value`` as the layer's ``name``, if this step had rows that count; at first, and when blocks have changed,
    there is zero: a layer that stands still."""
    state = work.state
    if value is None:
        state.pop(name, None)
        return
    if name not in state or state[name].shape != value.shape:
        state[name] = torch.zeros_like(value, memory_format=torch.contiguous_format)  # LAPACK's are not
    verdict.commit(state[name], value, also=work.has_rows)
