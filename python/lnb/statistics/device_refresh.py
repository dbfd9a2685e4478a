"""The refresh on GPUs: tables for the kernels that serve all layers at once (:mod:`lnb_kernels.refresh`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lnb.context import LayerContext
from lnb.statistics.arenas import Arenas
from lnb.statistics.input_sizes import select_input_sizes
from lnb.statistics.orthogonalize import QUINTIC, STEPS
from lnb.statistics.running import NOISE
from lnb.statistics.shared_state import Sharing, layers_of
from lnb.verdict import Verdict
from lnb_kernels.refresh import AveragedGradient, InputMetric, OutputMetric, refreshers, takes

_Averages = Mapping[nn.Parameter, Tensor | AveragedGradient]


def refresh_on_device(
    sharings: Sequence[Sharing], averages: _Averages, verdict: Verdict, arenas: Arenas
) -> list[Sharing]:
    """Refresh the layers that the kernels take, all at once; return them.

    They take float32 statistics, in blocks of at most 144 inputs and neurons by the CUDA module (less where a device has little
    shared memory), and of 576 by Triton, of layers that keep ``C^-1``.

    Args:
        sharings: layers with second moments of this step, of one device, whose states hold views of their arenas.
        averages: ``g~`` of each of their parameters.
        verdict: whether anything may change.
        arenas: where the states live.
    """
    if not sharings:
        return []
    weight = sharings[0].first.layer.weight
    noise = NOISE * torch.finfo(torch.float32).eps
    done: set[Sharing] = set()
    for kernels in refreshers(weight):
        left = (sharing for sharing in sharings if sharing not in done)
        taken = [x for x in left if all(_is_taken(context, averages, kernels.largest) for context in x.contexts)]
        averaged = [sharing for sharing in taken if sharing.first.config.b_s > 0]
        if averaged:
            like = torch.empty((), dtype=torch.float32, device=weight.device)
            states, others = [sharing.state for sharing in averaged], [sharing.others for sharing in averaged]
            arenas.select("second_moment_step", states, [()] * len(states), like, others=others)
        select_input_sizes(layers_of(taken), arenas)
        for context in layers_of(taken):
            if not context.with_bias:
                context.state.pop("factor_mean", None)
        metrics = [_metric(sharing, averages) for sharing in taken]
        if kernels.refresh(metrics, verdict.on(weight.device), noise, QUINTIC, STEPS):
            done.update(taken)
    return [sharing for sharing in sharings if sharing in done]


def _is_taken(context: LayerContext, averages: _Averages, largest: int) -> bool:
    assert context.moments is not None
    factor, root = context.state["factor"], context.state.get("output_factor")
    if context.moments.dtype != torch.float32 or context.config.region.whitens or factor.shape[-1] > largest:
        return False
    if not context.config.region.two_sided:
        return True
    assert root is not None
    return root.shape[-1] <= largest and all(takes(averages[parameter]) for parameter in context.parameters)


def _metric(sharing: Sharing, averages: _Averages) -> InputMetric:
    context, config, state = sharing.first, sharing.first.config, sharing.state
    kept = config.b_s > 0
    relative = config.ridge_mode == "relative"
    return InputMetric(
        gathered=sharing.moments,
        squarable=context.squarable,
        average=state["second_moment"] if kept else None,
        steps=state["second_moment_step"] if kept else None,
        inverse=state["factor"],
        mean=state["factor_mean"] if context.with_bias else None,
        decay=config.b_s,
        ridge=context.ridge,
        relative=relative,
        sample_ridge=config.sample_ridge if relative else 0.0,
        data_inputs=context.data_inputs if relative else 0.0,
        sample_every=config.sample_every,
        output_ridge=config.output_ridge,
        outputs=tuple(_outputs(own, averages) for own in sharing.contexts) if config.region.two_sided else (),
    )


def _outputs(context: LayerContext, averages: _Averages) -> OutputMetric:
    weight, *bias = (averages[parameter] for parameter in context.parameters)
    average = context.state["output_moment"] if context.config.b_s > 0 else None
    size = context.state.get("input_size") if context.layer.sees_data else None
    return OutputMetric(weight, bias[0] if bias else None, average, context.state["output_factor"], size)
