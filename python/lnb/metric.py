"""The metric of one layer and its solution: ``(X~'X~/N + ridge diag(1..1, 0)) h = g~``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import lnb_kernels as lk
from lnb.config import Config
from lnb.dual import solve_dual
from lnb.equations import Equation
from lnb.factored import factorize
from lnb.rounded_metric import RoundedMetric, rounds_products
from lnb.statistics import (
    average_second_moment,
    bias_correction,
    ridge_of,
    shrunk_variance,
    sums_from_inputs,
    sums_from_moments,
)
from lnb.verdict import Verdict

if TYPE_CHECKING:
    from lnb.work import BlockWork


def begin_block(work: BlockWork, gradient: Tensor, verdict: Verdict, config: Config) -> Tensor | Equation:
    """The direction ``h`` of one layer; or, where conjugate gradients find it, what they have to solve.

    Args:
        work: the layer's statistics of this step, and its state, which is updated.
        gradient: ``g~``, ``[groups, rows, columns]``.
        verdict: whether state may change.
        config: the optimizer's settings.

    Returns:
        ``h``, of the shape of ``gradient``, zero for a batch without rows; or the equation, whose solution goes to
        :func:`keep_direction`.
    """
    if config.solver == "dual":
        if work.inputs:
            return solve_dual(work.block, work.inputs, gradient, work.ridge)
        second_moment = average_second_moment(work, verdict, 0.0, keep=False)  # of a packed in-projection
        factor = factorize(second_moment, work.ridge, work.with_bias, inverse=True)
        solved, bias = factor.solve(gradient[..., : work.block.d_in], gradient[..., -1:] if work.with_bias else None)
        return solved if bias is None else torch.cat([solved, bias], dim=-1)
    mean, mean_square, has_rows = _update_feature_moments(work, gradient, verdict, config)
    variance = shrunk_variance(mean, mean_square, config.shrinkage)
    if config.solver == "arrow":
        return torch.where(has_rows, lk.arrow_solve(gradient, mean, variance, bias=work.with_bias), 0.0)
    operator, ridge = _operator(work, verdict, config)
    return Equation(
        operator,
        gradient,
        _previous_direction(work, gradient),
        (mean, variance),
        ridge,
        config.cg_iterations,
        config.cg_scope,
        has_rows,
    )


def _update_feature_moments(
    work: BlockWork, like: Tensor, verdict: Verdict, config: Config
) -> tuple[Tensor, Tensor, Tensor]:
    """Update ``mu`` and ``nu``; return them bias-corrected ``[groups, d_in]``, and whether the batch had rows ``[]``."""
    state = work.state
    if work.moments is None and not work.inputs:  # between two refreshes
        has_rows = state["moment_step"] > 0
    else:
        if work.moments is not None:
            sums = sums_from_moments(work.block, work.moments, work.channels)
        else:
            sums = sums_from_inputs(work.block, work.inputs, like.dtype)
        if "mean" not in state:
            state["moment_step"] = torch.zeros((), dtype=torch.float32, device=like.device)
            state["mean_square"] = torch.zeros_like(sums.total)
            state["mean"] = torch.zeros_like(sums.total)  # last: a step may break off in between
        has_rows = sums.count > 0
        if work.squarable is not None:
            has_rows = has_rows & work.squarable
        rows = sums.count.clamp(min=1)
        verdict.commit(state["moment_step"], state["moment_step"] + 1, also=has_rows)
        for name, decay, total in (("mean", config.b_mu, sums.total), ("mean_square", config.b_nu, sums.square)):
            verdict.commit(state[name], torch.lerp(state[name], total / rows, 1 - decay), also=has_rows)
    steps = state["moment_step"].clamp(min=1)
    mean, mean_square = (
        state[name] / bias_correction(decay, steps).to(like.dtype)
        for name, decay in (("mean", config.b_mu), ("mean_square", config.b_nu))
    )
    return mean, mean_square, has_rows


def _operator(work: BlockWork, verdict: Verdict, config: Config) -> tuple[Tensor | Callable[[Tensor], Tensor], float]:
    """The metric, as the second moment or as a product with the kept inputs; and the ridge still to be added to it."""
    relative = config.ridge_mode == "relative"
    if not work.inputs:
        if config.averaged or relative:
            average = average_second_moment(work, verdict, config.b_s, keep=config.averaged)
        else:
            assert work.moments is not None
            average = work.moments
        moments = average.squeeze(1)
        ridge = ridge_of(average.flatten(0, 1), work.ridge, relative, work.with_bias, (1,) * len(average))
        added = ridge.squeeze(1) if isinstance(ridge, Tensor) else ridge
        if rounds_products(work.block, config):
            return RoundedMetric(moments, added), 0.0
        if not isinstance(added, Tensor):
            return moments, added
        weights = torch.ones(moments.shape[-1], dtype=moments.dtype, device=moments.device)
        weights[-1] = 0
        return moments + added * weights.diag(), 0.0
    block, inputs = work.block, work.inputs
    kind, module = block.layer_kind, block.modules[0]
    rows = [kind.rows(module, x) for x in inputs]
    total = max(1, sum(rows))

    def matvec(direction: Tensor) -> Tensor:
        """``(X~'X~/N + ridge) v``: every input's share, weighted by its rows."""
        flat = direction.reshape(-1, direction.shape[-1])
        shares = [kind.matvec(module, x, flat, work.ridge) * (n / total) for x, n in zip(inputs, rows, strict=True)]
        product = torch.stack(shares).sum(0) if len(shares) > 1 else shares[0]
        return product.reshape(direction.shape)

    return matvec, 0.0


def _previous_direction(work: BlockWork, gradient: Tensor) -> Tensor | None:
    """The previous unnormalised ``h``, as far as it has this step's columns; None at first."""
    previous = work.state.get("direction")
    if previous is None or previous.shape == gradient.shape:
        return previous
    columns = gradient.shape[-1] - previous.shape[-1]  # the bias was frozen or thawed since
    return previous[..., :columns] if columns < 0 else nn.functional.pad(previous, (0, columns))


def keep_direction(work: BlockWork, solution: Tensor, has_rows: Tensor, verdict: Verdict) -> None:
    """Remember the solution of an equation, for the next step to start from."""
    previous = work.state.get("direction")
    if previous is None or previous.shape != solution.shape:
        previous = work.state["direction"] = torch.zeros_like(solution)
    verdict.commit(previous, solution, also=has_rows & torch.linalg.vector_norm(solution, math.inf).isfinite())
