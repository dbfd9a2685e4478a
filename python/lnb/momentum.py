"""The averages of gradients that a step starts from, and Adam's rule for parameters of no layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from lnb.config import Config
from lnb.context import StepContext
from lnb.layers.capture import statistics_dtype
from lnb.scratch import Scratch
from lnb.statistics.arenas import Arenas, chunked
from lnb.statistics.running import bias_correction
from lnb.verdict import Verdict
from lnb_kernels import multi_tensor
from lnb_kernels.scaling import largest_squarable

ADAM_EPSILON = 1e-8


def average_gradients(
    context: StepContext, verdict: Verdict, config: Config, scratch: Scratch, arenas: Arenas
) -> dict[nn.Parameter, Tensor]:
    """Update the gradient averages; return ``g~`` per moving parameter, in the statistics' dtype.

    ``m <- b m + (1 - b) grad``; ``g~ = m / (1 - b^t)``, or with Nesterov's look-ahead ``b m / (1 - b^t) + (1 - b) grad``.
    The caller may overwrite ``g~``; what a direction will overwrite is in the memory of ``scratch``.

    State of every parameter: ``momentum``, ``m``, like the parameter; ``step``, ``t``, ``[]``.

    Args:
        context: the layers and other parameters to move, all on one device.
        verdict: whether anything may change.
        config: the optimizer's settings.
        scratch: memory of the step.
        arenas: where the counts live.
    """
    members = context.parameters
    states = [context.states[parameter] for parameter in members]
    for parameter, state in zip(members, states, strict=True):
        if "momentum" not in state:
            state["momentum"] = state_like(parameter)
    device = members[0].device
    ok = verdict.on(device)
    raw = [state["momentum"] for state in states]
    gradients = [cast(Tensor, parameter.grad) for parameter in members]
    like = torch.empty((), dtype=torch.float32, device=device)
    counted = arenas.select("step", states, [()] * len(states), like)
    counted.write(counted.read() + (1.0 if ok is None else ok.float()))
    corrections = bias_correction(config.momentum, counted.read())
    shares = (config.momentum if config.nesterov else 1.0) / corrections
    take = 1 - config.momentum if config.nesterov else 0.0
    out = _memory(context, members, raw, scratch) if device.type == "cpu" else None
    return dict(
        zip(
            members,
            multi_tensor.ema_combined_(raw, gradients, config.momentum, shares, take, ok, out),
            strict=True,
        )
    )


def _memory(
    context: StepContext, members: list[nn.Parameter], averages: list[Tensor], scratch: Scratch
) -> list[Tensor] | None:
    """Where ``g~`` of ``members`` goes; None where none of it is overwritten by its direction."""
    overwritten = {p for each in context.layers if each.config.overwrites_average for p in each.parameters}
    kept = scratch.take({p: average for p, average in zip(members, averages, strict=True) if p in overwritten})
    if not kept:
        return None
    return [kept[p] if p in kept else torch.empty_like(average) for p, average in zip(members, averages, strict=True)]


def adam_directions(
    context: StepContext, averages: dict[nn.Parameter, Tensor], verdict: Verdict, decay: float, arenas: Arenas
) -> list[Tensor]:
    """Adam's direction ``g~ / (sqrt(v / (1 - b^t)) + eps)`` of every other parameter, updating ``v``, the mean square.

    Entries beyond what can be squared count as the largest that can: an infinite mean square would never end. The entries of
    parameters that together fit a CPU's caches form one vector; an accelerator joins all of them.

    State of every other parameter: ``gradient_square``, ``v``, like the parameter.
    """
    kinds: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter in context.others:
        kinds.setdefault(averages[parameter].dtype, []).append(parameter)
    directions: dict[nn.Parameter, Tensor] = {}
    for members in kinds.values():
        shapes = [tuple(parameter.shape) for parameter in members]
        arenas.select("gradient_square", [context.states[p] for p in members], shapes, averages[members[0]])
        for chunk in chunked(members, Tensor.numel, members[0].device):
            states = [context.states[parameter] for parameter in chunk]
            shapes = [tuple(parameter.shape) for parameter in chunk]
            kept = arenas.select("gradient_square", states, shapes, averages[chunk[0]])
            gradient = _joined([cast(Tensor, parameter.grad) for parameter in chunk], averages[chunk[0]].dtype)
            square = _squarable(gradient).square_()
            kept.write(torch.lerp(kept.read(), square, 1 - decay), verdict.on(square.device))
            corrections = bias_correction(decay, torch.stack([state["step"] for state in states]).clamp(min=1))
            sizes = [parameter.numel() for parameter in chunk]
            steps = _squarable(_joined([averages[parameter] for parameter in chunk], square.dtype)).split(sizes)
            parts = kept.read().split(sizes)
            roots = torch._foreach_sqrt(torch._foreach_div(parts, list(corrections.to(square.dtype).unbind())))
            torch._foreach_add_(roots, ADAM_EPSILON)
            torch._foreach_div_(steps, roots)
            directions.update((p, step.view(p.shape)) for p, step in zip(chunk, steps, strict=True))
    return [directions[parameter] for parameter in context.others]


def _joined(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The entries of all, one after the other."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    return (flat[0] if len(flat) == 1 else torch.cat(flat)).to(dtype)


def _squarable(values: Tensor) -> Tensor:
    """A copy of ``values`` whose squares are finite."""
    most = largest_squarable(values.dtype)
    return values.clamp(-most, most)


def state_like(parameter: Tensor) -> Tensor:
    """Zeros of the shape of ``parameter``, in the dtype in which its statistics are kept."""
    return torch.zeros_like(
        parameter, dtype=statistics_dtype(parameter.dtype), memory_format=torch.contiguous_format, requires_grad=False
    )
