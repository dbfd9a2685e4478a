"""The refresh on NVIDIA GPUs: tables for the kernels that serve all layers at once (:mod:`lnb_kernels.refresh`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lnb.statistics.arenas import Arenas
from lnb.statistics.orthogonalize import QUINTIC, STEPS
from lnb.statistics.running import NOISE
from lnb.verdict import Verdict
from lnb.work import LayerWork
from lnb_kernels.refresh import (
    AveragedGradient,
    InputMetric,
    OutputMetric,
    largest_side,
    refresh_metrics,
    serves,
    takes,
)

_Averages = Mapping[nn.Parameter, Tensor | AveragedGradient]


def refresh_on_device(
    works: Sequence[LayerWork], averages: _Averages, verdict: Verdict, arenas: Arenas
) -> list[LayerWork]:
    """Refresh the layers that the kernels take, all at once; return them.

    They take float32 statistics, in blocks of at most 144 inputs and neurons (less where a device has little
    shared memory), of layers that keep ``C^-1``.

    Args:
        works: layers with second moments of this step, of one device, whose states hold views of their arenas.
        averages: ``g~`` of each of their parameters.
        verdict: whether anything may change.
        arenas: where the states live.
    """
    if not works or not serves(works[0].layer.weight.device):
        return []
    device = works[0].layer.weight.device
    largest = largest_side(works[0].layer.weight)
    taken = [work for work in works if _is_taken(work, averages, largest)]
    averaged = [work.state for work in taken if work.config.b_s > 0]
    if averaged:
        like = torch.empty((), dtype=torch.float32, device=device)
        arenas.select("second_moment_step", averaged, [()] * len(averaged), like)
    noise = NOISE * torch.finfo(torch.float32).eps
    for work in taken:
        if not work.with_bias:
            work.state.pop("factor_mean", None)
    refresh_metrics([_metric(work, averages) for work in taken], verdict.on(device), noise, QUINTIC, STEPS)
    return taken


def _is_taken(work: LayerWork, averages: _Averages, largest: int) -> bool:
    assert work.moments is not None
    factor, root = work.state["factor"], work.state.get("output_factor")
    if work.moments.dtype != torch.float32 or work.config.region.whitens or factor.shape[-1] > largest:
        return False
    if not work.config.region.two_sided:
        return True
    assert root is not None
    return root.shape[-1] <= largest and all(takes(averages[parameter]) for parameter in work.parameters)


def _metric(work: LayerWork, averages: _Averages) -> InputMetric:
    assert work.moments is not None
    config, state = work.config, work.state
    kept = config.b_s > 0
    relative = config.ridge_mode == "relative"
    outputs = None
    if config.region.two_sided:
        weight, *bias = (averages[parameter] for parameter in work.parameters)
        average = state["output_moment"] if kept else None
        outputs = OutputMetric(weight, bias[0] if bias else None, average, state["output_factor"])
    return InputMetric(
        gathered=work.moments,
        squarable=work.squarable,
        average=state["second_moment"] if kept else None,
        steps=state["second_moment_step"] if kept else None,
        inverse=state["factor"],
        mean=state["factor_mean"] if work.with_bias else None,
        decay=config.b_s,
        ridge=work.ridge,
        relative=relative,
        sample_ridge=config.sample_ridge if relative else 0.0,
        sample_every=config.sample_every,
        outputs=outputs,
    )
