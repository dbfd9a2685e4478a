"""The averages of the features' means and mean squares, of which the arrow preconditioner is made."""

from __future__ import annotations

import torch
from torch import Tensor

from lnb.statistics.running import bias_correction, shrunk_variance, sums_from_inputs, sums_from_moments
from lnb.verdict import Verdict
from lnb.work import LayerWork


def preconditioner(work: LayerWork, like: Tensor, verdict: Verdict) -> tuple[Tensor, Tensor, Tensor]:
    """Update the averages with this step's rows, if it gathered any.

    State of the layer's weight: ``mean`` and ``mean_square``, ``[groups, d_in]``, raw averages with the decays ``b_mu`` and
    ``b_nu``, and ``moment_step``, what they count.

    Args:
        work: the layer.
        like: a tensor of the device and dtype of statistics.
        verdict: whether state may change.

    Returns:
        The mean and the shrunk variance of every feature, ``[groups, d_in]``, and whether the batch had rows, ``[]``.
    """
    state, config = work.state, work.config
    if work.moments is None and not work.inputs:  # between two refreshes
        has_rows = state["moment_step"] > 0
    else:
        if work.moments is not None:
            sums = sums_from_moments(work.layer, work.moments, work.channels)
        else:
            sums = sums_from_inputs(work.layer, work.inputs, like.dtype)
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
    return mean, shrunk_variance(mean, mean_square, config.shrinkage), has_rows
