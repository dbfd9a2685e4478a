"""The averages that solvers read: of the features' means and mean squares, and of the second moment.

:func:`average_statistics` is the stage of the step that updates them. What comes after it only reads. Layers whose metric is kept
as a factor have their averages updated by the refresh (:mod:`lnb.statistics.refresh`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lnb.context import LayerContext
from lnb.statistics.running import bias_correction, shrunk_variance, sums_from_inputs, sums_from_moments
from lnb.verdict import Verdict


def average_statistics(
    contexts: Sequence[LayerContext], gradients: dict[nn.Parameter, Tensor], verdict: Verdict
) -> None:
    """Update the averages of all layers with what this step gathered.

    Args:
        contexts: the layers; their state is updated.
        gradients: averaged gradients, whose dtype is that of the statistics of kept inputs.
        verdict: whether state may change.
    """
    for context in contexts:
        if context.config.factored:
            continue
        if context.config.keeps_feature_moments:
            _average_features(context, gradients[context.parameters[0]].dtype, verdict)
        if context.config.keeps_second_moment and context.moments is not None:
            _average_second_moment(context, verdict)


def feature_moments(context: LayerContext) -> tuple[Tensor, Tensor, Tensor]:
    """The features' moments, from which the arrow preconditioner is made.

    Returns:
        The averaged mean and the shrunk variance of every feature, ``[groups, d_in]``, and whether this step's batch had
        samples, or between two refreshes any batch before, ``[]``.
    """
    state, config = context.state, context.config
    steps = state["moment_step"].clamp(min=1)
    mean, mean_square = (
        state[name] / bias_correction(decay, steps).to(state[name].dtype)
        for name, decay in (("mean", config.b_mu), ("mean_square", config.b_nu))
    )
    gathered = context.moments is not None or context.inputs
    has_samples = _has_samples(context) if gathered else state["moment_step"] > 0
    return mean, shrunk_variance(mean, mean_square, config.shrinkage), has_samples


def second_moment_of(context: LayerContext) -> Tensor:
    """``E[x~ x~']``, ``[groups, blocks, size+1, size+1]``, each block's last entry 1.

    It is the average where the layer's state keeps one, and otherwise that of this step's samples.
    """
    state, config = context.state, context.config
    if not config.keeps_second_moment:
        assert context.moments is not None
        return context.moments / context.moments[0, 0, -1, -1].clamp(min=1)
    kept: Tensor = state["second_moment"]
    return kept / bias_correction(config.b_s, state["second_moment_step"].clamp(min=1)).to(kept.dtype)


def _average_features(context: LayerContext, dtype: torch.dtype, verdict: Verdict) -> None:
    """Update ``mean`` and ``mean_square``, ``[groups, d_in]``, raw averages with the decays ``b_mu`` and ``b_nu``, and
    ``moment_step``, the number of steps that they count."""
    state, config = context.state, context.config
    if context.moments is not None:
        sums = sums_from_moments(context.layer, context.moments, context.channels)
    elif context.inputs:
        sums = sums_from_inputs(context.layer, context.inputs, dtype)
    else:  # between two refreshes
        return
    if "mean" not in state:
        state["moment_step"] = torch.zeros((), dtype=torch.float32, device=sums.total.device)
        state["mean_square"] = torch.zeros_like(sums.total)
        state["mean"] = torch.zeros_like(sums.total)  # last: a step may break off in between
    has_samples = _has_samples(context)
    count = sums.count.clamp(min=1)
    verdict.commit(state["moment_step"], state["moment_step"] + 1, also=has_samples)
    for name, decay, total in (("mean", config.b_mu, sums.total), ("mean_square", config.b_nu, sums.square)):
        verdict.commit(state[name], torch.lerp(state[name], total / count, 1 - decay), also=has_samples)


def _has_samples(context: LayerContext) -> Tensor:
    """Whether this step had samples whose features are in range, ``[]``."""
    if context.moments is None:
        some = any(x.numel() > 0 for x in context.inputs)
        found = torch.full((), some, dtype=torch.bool, device=context.inputs[0].device)
    else:
        found = (context.moments[0, 0, -1, -1] if context.channels is None else context.channels[2, 0]) > 0
    return found if context.squarable is None else found & context.squarable


def _average_second_moment(context: LayerContext, verdict: Verdict) -> None:
    """Update ``second_moment``, the raw average of ``E[x~ x~']`` with the decay ``b_s``, and ``second_moment_step``.

    A step without samples that count leaves the average as it is. It starts anew in other blocks.
    """
    state = context.state
    assert context.moments is not None
    mean = context.moments / context.moments[0, 0, -1, -1].clamp(min=1)
    if "second_moment" not in state or state["second_moment"].shape != mean.shape:
        state["second_moment_step"] = torch.zeros((), dtype=torch.float32, device=mean.device)
        state["second_moment"] = torch.zeros_like(mean)  # last: a step may break off in between
    counts = context.has_samples
    verdict.commit(state["second_moment_step"], state["second_moment_step"] + 1, also=counts)
    verdict.commit(
        state["second_moment"], torch.lerp(state["second_moment"], mean, 1 - context.config.b_s), also=counts
    )
