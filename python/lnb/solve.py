"""From averaged gradients to directions, layer by layer or batched over layers of one shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lnb.config import Config
from lnb.factored import Factor, block_count, factorize
from lnb.metric import solve_block
from lnb.statistics import average_second_moment, ridge_of
from lnb.trust_region import spectral_direction
from lnb.verdict import Verdict
from lnb.work import BlockWork


@dataclass(frozen=True)
class Direction:
    """One layer's ``h`` ``[groups, rows, columns]``, ``<h, g~>`` ``[]``, and CG's last residual norms where there are any."""

    matrix: Tensor
    product: Tensor
    residual: Tensor | None = None


def solve(
    works: list[BlockWork], averages: dict[nn.Parameter, Tensor], verdict: Verdict, config: Config
) -> list[Direction]:
    """The directions of all layers, in the order of ``works``; their statistics are updated."""
    gradients = [work.block.join([averages[p] for p in work.parameters]) for work in works]
    if not config.factored:
        return [_iterate(work, gradient, verdict, config) for work, gradient in zip(works, gradients, strict=True)]
    factors = [_refresh(work, verdict, config) for work in works]
    found: dict[int, Direction] = {}
    for members in _same_shape(gradients, factors):
        gradient = _stack([gradients[i] for i in members])
        factor = _stack_factors([factors[i] for i in members])
        spectral = config.trust_region == "spectral"
        matrices = spectral_direction(gradient, factor) if spectral else factor.solve(gradient)
        products = (matrices * gradient).sum(dim=(-3, -2, -1))
        found.update(zip(members, map(Direction, matrices.unbind(), products.unbind()), strict=True))
    return [found[i] for i in range(len(works))]


def _iterate(work: BlockWork, gradient: Tensor, verdict: Verdict, config: Config) -> Direction:
    matrix, residual = solve_block(work, gradient, verdict, config)
    return Direction(matrix, (matrix * gradient).sum(), residual)


def _refresh(work: BlockWork, verdict: Verdict, config: Config) -> Factor:
    """The layer's factor, made anew if this step gathered its second moment."""
    state = work.state
    if work.moments is not None:
        second_moment = average_second_moment(work, verdict, config.b_s, keep=config.b_s > 0)
        blocks = block_count(work.block.d_in, config.block_size)
        spectral = config.trust_region == "spectral"
        ridge = ridge_of(second_moment, work.ridge, config.ridge_mode == "relative", work.with_bias)
        fresh = factorize(second_moment, ridge, work.with_bias, blocks, inverse=not spectral)
        for name, value in (("factor", fresh.matrix), ("factor_mean", fresh.mean)):
            if value is None:
                state.pop(name, None)
                continue
            if name not in state:  # zero, a layer that does not move, until there are rows to learn from
                state[name] = torch.zeros_like(value)
            verdict.commit(state[name], value, also=work.moments[0, -1, -1] > 0)
    mean = state.get("factor_mean")
    if not work.with_bias:
        mean = None  # the bias was frozen since the last refresh
    elif mean is None:
        mean = state["factor"].new_zeros(work.block.shape[0], work.block.d_in)  # or thawed
    return Factor(state["factor"], mean)


def _same_shape(gradients: list[Tensor], factors: list[Factor]) -> list[list[int]]:
    """Which layers can be solved in one batch."""
    batches: dict[tuple[object, ...], list[int]] = {}
    for i, (gradient, factor) in enumerate(zip(gradients, factors, strict=True)):
        key = gradient.shape, gradient.dtype, gradient.device, factor.matrix.shape, factor.mean is None
        batches.setdefault(key, []).append(i)
    return list(batches.values())


def _stack(tensors: list[Tensor]) -> Tensor:
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tensors)


def _stack_factors(factors: list[Factor]) -> Factor:
    means = [factor.mean for factor in factors if factor.mean is not None]
    return Factor(_stack([factor.matrix for factor in factors]), _stack(means) if means else None)
